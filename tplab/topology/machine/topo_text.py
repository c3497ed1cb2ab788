"""``nvidia-smi topo -m`` read as people paste it.

The table has one row and one column per GPU and network card (NIC), and says for each pair what lies between them:

    ``X`` itself, ``NV#`` a bond of # NVLinks, ``PIX`` at most one PCIe bridge, ``PXB`` several, ``PHB`` the CPU's host
    bridge, ``NODE`` several host bridges of a NUMA node, ``SYS`` (once ``SOC``) the way to another NUMA node.

Columns of affinity follow (CPU, NUMA, and lately the GPU's own NUMA ID), then a legend, then the names of the cards.
Drivers underline the header with escape sequences, part columns by tabs or blanks, and leave affinity cells empty.
Terminals that wrap long lines run two cells into one word when the lines are joined again. Source of the words: the
legend itself; checked on a dozen tables in public repositories and issue threads, and on a real pair of H100.

The table does not say which GPUs these are, nor whether NVLinks go through a switch. The first may stand beside it in a
report (``named_gpus``) or is asked for; the second follows from it: seven peers at NV18 each are more links than a GPU
has. ``nvidia-smi topo -p2p`` prints a table like it, which says whether each pair reaches each other's memory (``OK``)
or why not: the chipset, the GPU, the topology, a setting, or unknown.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile

from tplab.checks import ArgumentError
from tplab.shown import listed, shown
from tplab.topology.machine.named_gpus import named_without_table
from tplab.topology.machine.other_tools import no_table, other_tool
from tplab.topology.machine.topo_lines import LINK, PEER, bare_lines, join_broken, plain_lines, words_of

_GPU = re.compile(r"GPU\d+")
_CELL = re.compile(LINK, re.ASCII)
_PIECE = re.compile("NO?D?|NV|P[IXH]?|SY?")
_PEER = re.compile(PEER)
_DEVICE = re.compile(r"[A-Za-z][\w.:\-]*\d[\w.:\-]*", re.ASCII)
_TITLES = re.compile(r"(CPU|NUMA|GPU|CPU ?A\w*|Affinity)\b")
_NIC_NAME = re.compile(r"\s*(NIC\d+)\s*:\s*(\S+)\s*$")
_AFFINITIES = (r"CPU ?Affinity", r"NUMA ?Affinity", r"GPU ?NUMA ?ID")
_P2P = re.compile(r"p2p\s+-?([rwnap]+)\b")
_MOST_DEVICES = 256
"""Most GPUs and network cards of one table: a rack of 72 GPUs has some 150."""
_LONGEST_NAME = 64
_MOST_LINES = 10_000
_MOST_LETTERS = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class TopoTable:
    """What the text says, in its own words."""

    gpus: tuple[str, ...]
    """``GPU0``, ... in the order of the columns."""
    nics: tuple[str, ...]
    """Network cards in the order of the columns, under their real names where the text has the legend of cards."""
    cells: tuple[tuple[str, ...], ...]
    """One row per GPU and one column per GPU: ``X``, ``NV18``, ``SYS``."""
    nic_cells: tuple[tuple[str, ...], ...]
    """One row per GPU and one column per network card."""
    numa: tuple[str | None, ...]
    """NUMA node of each GPU, None where the text does not say."""
    peers: tuple[tuple[str, ...], ...] = ()
    """One row and one column per GPU: ``OK``, or why the pair does not reach each other's memory (``GNS``, ``CNS``);
    ``""`` where no table says. Empty without such a table."""
    notes: tuple[str, ...] = ()
    """What else the text holds, and what was made of it."""

    def without(self, gpus: Collection[int]) -> "TopoTable":
        """The same without some GPUs."""
        kept = [i for i in range(len(self.gpus)) if i not in gpus]

        def square(rows: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
            return tuple(tuple(rows[i][j] for j in kept) for i in kept) if rows else ()

        return replace(
            self,
            gpus=tuple(self.gpus[i] for i in kept),
            cells=square(self.cells),
            nic_cells=tuple(self.nic_cells[i] for i in kept),
            numa=tuple(self.numa[i] for i in kept),
            peers=square(self.peers),
        )

    @property
    def near_nics(self) -> tuple[str, ...]:
        """Cards that some GPU reaches through PCIe switches alone: those that GPU traffic is meant for."""
        near = [any(row[j] in ("PIX", "PXB") for row in self.nic_cells) for j in range(len(self.nics))]
        return tuple(nic for nic, yes in zip(self.nics, near, strict=True) if yes)


def parse_topo(text: str) -> TopoTable:
    """The table in ``text``; the first, if there are several.

    Raises:
        ValueError: no table, or another tool's; a row that is cut off, a word that is none of the legend's, a GPU
            without a row, two cells of a pair that disagree. Each names the line.
    """
    if not isinstance(text, str):
        raise ArgumentError("text", text, "must be what `nvidia-smi topo -m` prints, as a str")
    if len(text) > _MOST_LETTERS or text.count("\n") > _MOST_LINES:
        raise ValueError(
            f"the text has {len(text):,} characters, or {text.count(chr(10)):,} lines: give what `nvidia-smi topo -m` "
            f"prints, which is at most {_MOST_LETTERS:,} and {_MOST_LINES:,}"
        )
    plain = plain_lines(text)
    try:
        return _first_table(plain)
    except ValueError:
        if other := other_tool(text):
            raise ValueError(other) from None
        raise


def _first_table(plain: Sequence[str]) -> TopoTable:
    lines = bare_lines(plain)
    headers = _headers(lines)
    kinds = [_holds(lines[at : end + 1], header) for at, end, header in headers]
    links = [header for header, kind in zip(headers, kinds, strict=True) if kind == "links"] or [
        header for header, kind in zip(headers, kinds, strict=True) if kind != "peers"
    ]
    if not links:
        if headers:
            raise ValueError("the text has the table of topo -p2p alone: add what `nvidia-smi topo -m` prints")
        raise ValueError(no_table("\n".join(plain), named_without_table(plain)))
    table = _table(lines, *links[0])
    peers = [
        (_capability(plain[max(0, at - 6) : at + 1]), lines[at : end + 1])
        for (at, end, _), kind in zip(headers, kinds, strict=True)
        if kind == "peers"
    ]
    others = []
    for header in links[1:]:
        with suppress(ValueError):
            others.append(_table(lines, *header))
    differ = sum(other.cells != table.cells for other in others)
    note = f"the text has {len(others) + 1} tables, {differ} unlike the first, which counts"
    return replace(table, peers=_peers(table, peers), notes=(note,) if differ else ())


def _table(lines: Sequence[str], start: int, end: int, header: "_Header") -> TopoTable:
    devices, extras = header
    known = set(devices)
    gpus = [name for name in devices if _GPU.fullmatch(name)]
    rows: dict[str, list[str]] = {}
    rest: dict[str, list[str]] = {}
    at: dict[str, int] = {}
    last, lacking = start, set(gpus)
    lines = list(lines[: end + 1])
    for number in range(start + 1, len(lines)):
        words = words_of(lines[number])
        if not words or words[0] not in known:
            if not lacking or (words and words[0].startswith("Legend")):
                break
            if words and all(map(_CELL.fullmatch, words)):
                raise ValueError(
                    f"line {number + 1}: {shown(' '.join(words))} belongs to no row: did a terminal break the lines?"
                )
            continue
        name = words[0]
        if name in rows and rows[name] == words[1 : 1 + len(devices)]:
            continue  # several ranks print the same table at once
        if name in rows:
            raise ValueError(f"line {number + 1}: a second row for {name} (the first is line {at[name] + 1})")
        if _is_short(words, devices):
            join_broken(lines, number, partial(_row_goes_on, devices=devices))
            words = words_of(lines[number])
        if not lacking and len(words) <= len(devices):
            break  # cut off in the row of a card: all links of the GPUs are there
        lacking.discard(name)
        rows[name] = _cells(number, name, words[1:], devices)
        rest[name] = words[1 + len(devices) :]
        at[name] = last = number
        if rest[name] and _CELL.fullmatch(rest[name][0]):
            raise ValueError(
                f"line {number + 1}: row {name} has more links than the header on line {start + 1} has columns: is the "
                f"header cut off?"
            )
    missing = [gpu for gpu in gpus if gpu not in rows]
    if missing:
        raise ValueError(
            f"line {last + 1}: the table ends here, without rows for {listed(missing, 8)}, which the header on line "
            f"{start + 1} lists: is the text cut off?"
        )
    _check_symmetric(gpus, devices, rows, at)
    names = {match[1]: match[2] for line in lines if (match := _NIC_NAME.match(line))}
    column = {name: j for j, name in enumerate(devices)}
    nics = [name for name in devices if not _GPU.fullmatch(name)]
    return TopoTable(
        gpus=tuple(gpus),
        nics=tuple(names.get(nic, nic) for nic in nics),
        cells=tuple(tuple(rows[a][column[b]] for b in gpus) for a in gpus),
        nic_cells=tuple(tuple(rows[a][column[b]] for b in nics) for a in gpus),
        numa=tuple(_numa(rest[gpu], extras) for gpu in gpus),
    )


_Header = tuple[list[str], int]
"""The devices that a header lists, and how many columns of affinity follow them."""


def _headers(lines: list[str]) -> list[tuple[int, int, _Header]]:
    """Every header with its line and the last line that is its table's; headers that a terminal broke are joined."""
    found: list[tuple[int, _Header]] = []
    for number, line in enumerate(lines):
        header = _header(number, line)
        if header is None and _GPU.match(line.lstrip()):  # broken within a word?
            header = _header(number, line + "".join(lines[number + 1 : number + 2]), broken=True)
        if header is not None:
            join_broken(lines, number, _header_goes_on)
            header = _header(number, lines[number]) or header
            twice = [name for name, count in Counter(header[0]).items() if count > 1]
            if twice:
                raise ValueError(f"line {number + 1}: the header lists {listed(sorted(twice))} twice")
            found.append((number, header))
    ends = [*(at - 1 for at, _ in found[1:]), len(lines) - 1][: len(found)]
    return [(at, end, header) for (at, header), end in zip(found, ends, strict=True)]


def _header(number: int, line: str, *, broken: bool = False) -> _Header | None:
    """What the line lists if it is a header: GPUs and cards, then titles of affinity; the command, or a word such as
    ``Topology:``, may stand before them. A ``broken`` one may end with a piece of a word."""
    words = words_of(line)
    first = next((i for i, word in enumerate(words) if _GPU.fullmatch(word)), None)
    if first is None or (first and not any("topo" in word.lower() for word in words[:first])):
        return None
    devices = list(takewhile(_DEVICE.fullmatch, words[first:]))
    titles = " ".join(words[first + len(devices) :])
    follows = words[first + 1 : first + 2]
    if any(map(_CELL.fullmatch, follows)) or any(map(_PEER.fullmatch, follows)) or _CELL.fullmatch(devices[-1]):
        return None
    if titles and not _TITLES.match(titles) and not (broken and " " not in titles):
        return None
    if len(devices) > _MOST_DEVICES:
        raise ValueError(
            f"line {number + 1}: the header lists {len(devices):,} GPUs and network cards; a node has at most "
            f"{_MOST_DEVICES}"
        )
    if longest := max((len(name) for name in devices if len(name) > _LONGEST_NAME), default=0):
        raise ValueError(
            f"line {number + 1}: the header, with what reads as its rest, has a name of {longest:,} letters, and no "
            f"device has: is the text cut off after it?"
        )
    return devices, sum(re.search(title, titles) is not None for title in _AFFINITIES)


def _header_goes_on(line: str, new: str) -> bool:
    """Whether ``new`` is the rest of a header that a terminal broke: more devices, titles, or pieces of either."""
    words, listed_before = words_of(new), set(words_of(line))
    if not words or words[0] in listed_before or _PEER.fullmatch(words[-1]) or words[0].startswith("Legend"):
        return False
    if any(map(_CELL.fullmatch, words)):
        return False
    joined, before = _header(0, line + new, broken=True), _header(0, line, broken=True)
    return joined is not None and before is not None and joined != before and len(joined[0]) >= len(before[0])


def _row_goes_on(line: str, new: str, devices: Sequence[str]) -> bool:
    words = words_of(new)
    return _is_short(words_of(line), devices) and words[0] not in devices and not words[0].startswith("Legend")


def _is_short(words: Sequence[str], devices: Sequence[str]) -> bool:
    """Whether a row lacks cells, or the end of its last."""
    return len(words) <= len(devices) or (len(words) == len(devices) + 1 and _PIECE.fullmatch(words[-1]) is not None)


def _holds(lines: Sequence[str], header: _Header) -> str:
    """``links`` or ``peers``, by the first row; nothing where no row follows."""
    for line in lines[1:]:
        words = words_of(line)
        if len(words) > 1 and words[0] in header[0] and _GPU.fullmatch(words[0]):
            cells = [word for word in words[1 : 1 + len(header[0])] if word != "X"]
            if cells or len(header[0]) == 1:
                return "peers" if cells and _PEER.fullmatch(cells[0]) else "links"
    return ""


def _capability(lines: Sequence[str]) -> str:
    """Letters of the ``-p2p`` that made a table, from the lines before it; empty where they do not say."""
    said = [found[1] for line in lines for found in _P2P.finditer(line)]
    return said[-1] if said else ""


def _peers(table: TopoTable, found: Sequence[tuple[str, Sequence[str]]]) -> tuple[tuple[str, ...], ...]:
    """What the tables of ``topo -p2p`` say of every pair: the first refusal, else ``OK``, else nothing. Tables of
    atomics and of NVLinks alone do not count: pairs without either reach each other all the same."""
    said: dict[tuple[str, str], str] = {}
    links = {(a, b): table.cells[i][j] for i, a in enumerate(table.gpus) for j, b in enumerate(table.gpus)}
    for capability, lines in found:
        if capability and not set(capability) & set("rwp"):
            continue
        column, rows = [word for word in words_of(lines[0]) if _GPU.fullmatch(word)], list(lines)
        for number in range(1, len(rows)):
            words = words_of(rows[number])
            if len(words) < 2 or words[0] not in column or not (words[1] == "X" or _PEER.fullmatch(words[1])):
                continue
            join_broken(rows, number, partial(_row_goes_on, devices=column))
            name, *words = words_of(rows[number])
            if len(words) < len(column):
                raise ValueError(
                    f"the table of topo -p2p: row {name} has {len(words)} of {len(column)}: is it cut off?"
                )
            for other, word in zip(column, words, strict=False):
                bonded = links.get((name, other), "").startswith("NV")
                if _PEER.fullmatch(word) and (name, other) in links and not (bonded and capability == "p"):
                    pair = (min(name, other), max(name, other))
                    said[pair] = word if said.get(pair, "OK") == "OK" else said[pair]
    if not said:
        return ()
    return tuple(tuple(said.get((min(a, b), max(a, b)), "") for b in table.gpus) for a in table.gpus)


def _cells(number: int, name: str, words: Sequence[str], devices: Sequence[str]) -> list[str]:
    cells = list(words[: len(devices)])
    for column, word in enumerate(cells):
        if not _CELL.fullmatch(word):
            short = re.fullmatch(r"[\d,\-]+|N/A", word) is not None
            raise ValueError(
                f"line {number + 1}: row {name} has {column} of {len(devices)} links: is it cut off?"
                if short
                else f"line {number + 1}: row {name}, column {devices[column]}: {shown(word)} is no link of the "
                f"legend (X, NV#, PIX, PXB, PHB, NODE, SYS)"
            )
    if len(cells) < len(devices):
        raise ValueError(f"line {number + 1}: row {name} has {len(cells)} of {len(devices)} links: is it cut off?")
    own = devices.index(name)
    for column, word in enumerate(cells):
        if (word == "X") != (column == own):
            raise ValueError(
                f"line {number + 1}: row {name}, column {devices[column]} says {word}: columns are shifted"
            )
    return cells


def _check_symmetric(
    gpus: Sequence[str], devices: Sequence[str], rows: Mapping[str, Sequence[str]], at: Mapping[str, int]
) -> None:
    column = {name: j for j, name in enumerate(devices)}
    for i, a in enumerate(gpus):
        for b in gpus[i + 1 :]:
            there, back = rows[a][column[b]], rows[b][column[a]]
            if there != back:
                raise ValueError(
                    f"line {at[a] + 1} says {there} between {a} and {b}, line {at[b] + 1} says {back}: which is right?"
                )


def _numa(words: Sequence[str], extras: int) -> str | None:
    """The NUMA column: the second, if no cell is empty (blank cells cannot be told apart once tabs are gone)."""
    return words[1] if extras >= 2 and len(words) >= extras else None
