"""``nvidia-smi topo -m`` read as people paste it.

The table has one row and one column per GPU and network card (NIC), and says for each pair what lies between them:

    ``X`` itself, ``NV#`` a bond of # NVLinks, ``PIX`` at most one PCIe bridge, ``PXB`` several, ``PHB`` the CPU's host
    bridge, ``NODE`` several host bridges of a NUMA node, ``SYS`` (once ``SOC``) the way to another NUMA node.

Columns of affinity follow (CPU, NUMA, and lately the GPU's own NUMA ID), then a legend, then the names of the cards.
Drivers underline the header with escape sequences, part columns by tabs or blanks, and leave affinity cells empty.
Terminals that wrap long lines run two cells into one word when the lines are joined again. Source of the words: the
legend itself; checked on a dozen tables in public repositories and issue threads, and on a real pair of H100.

The table does not say which GPUs these are, nor whether NVLinks go through a switch. The second follows from the first:
seven peers at NV18 each are more links than a GPU has.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tplab.checks import ArgumentError
from tplab.shown import listed, shown
from tplab.topology.machine.gpu_names import gpu_preset
from tplab.topology.machine.machine import Gpu, Link, Machine
from tplab.topology.machine.presets import NIC_GBPS, network, nvlink, pcie_link

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\[[0-9;]*m(?=\S|\s|$)")
_GPU = re.compile(r"GPU\d+")
_CELL = re.compile(r"X|NV[1-9]\d{0,2}|PIX|PXB|PHB|NODE|SYS|SOC", re.ASCII)
_RUN_TOGETHER = re.compile(r"(?:GPU\d+|NIC\d+|mlx\d+_\d+?(?=GPU|NIC|mlx|$)|X|NV\d+|PIX|PXB|PHB|NODE|SYS|SOC)")
_NIC_NAME = re.compile(r"\s*(NIC\d+)\s*:\s*(\S+)\s*$")
_AFFINITIES = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")
_MOST_DEVICES = 256
"""Most GPUs and network cards of one table: a rack of 72 GPUs has some 150."""
_LONGEST_NAME = 64
_MOST_LINES = 10_000
_MOST_LETTERS = 1 << 20
_EXPORT_NVLINKS = 8
_PCIE = {"PIX": "pix", "PXB": "pxb", "PHB": "phb", "NODE": "node", "SYS": "sys", "SOC": "sys"}


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

    @property
    def near_nics(self) -> tuple[str, ...]:
        """Cards that some GPU reaches through PCIe switches alone: those that GPU traffic is meant for."""
        near = [any(row[j] in ("PIX", "PXB") for row in self.nic_cells) for j in range(len(self.nics))]
        return tuple(nic for nic, yes in zip(self.nics, near, strict=True) if yes)


def parse_topo(text: str) -> TopoTable:
    """The table in ``text``.

    Raises:
        ValueError: no table; a row that is cut off, a word that is none of the legend's, a GPU without a row, two
            cells of a pair that disagree. Each names the line.
    """
    if len(text) > _MOST_LETTERS or text.count("\n") > _MOST_LINES:
        raise ValueError(
            f"the text has {len(text):,} characters, or {text.count(chr(10)):,} lines: give what `nvidia-smi topo -m` "
            f"prints, which is at most {_MOST_LETTERS:,} and {_MOST_LINES:,}"
        )
    lines = [_ESCAPE.sub("", line).replace("|", " ").lstrip("> ").rstrip() for line in text.splitlines()]
    start, devices, extras = _header(lines)
    known = set(devices)
    gpus = [name for name in devices if _GPU.fullmatch(name)]
    rows: dict[str, list[str]] = {}
    rest: dict[str, list[str]] = {}
    at: dict[str, int] = {}
    last, lacking = start, set(gpus)
    for number, line in enumerate(lines[start + 1 :], start + 1):
        words = _words(line)
        again = len(words) > 1 and _GPU.fullmatch(words[1])  # the header of another table
        if not words or words[0] not in known or again:
            if not lacking or again or (words and words[0].startswith("Legend")):
                break
            continue
        name = words[0]
        if name in rows:
            raise ValueError(f"line {number + 1}: a second row for {name} (the first is line {at[name] + 1})")
        lacking.discard(name)
        rows[name] = _cells(number, name, words[1:], devices)
        rest[name] = words[1 + len(devices) :]
        at[name] = last = number
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


def machine_from_topo(
    text: str, *, gpu: Gpu | str | None = None, nodes: int = 1, network: Link | None = None
) -> Machine:
    """See :meth:`Machine.from_topo`."""
    spec = None if gpu is None else gpu_preset(gpu)
    table = parse_topo(text)
    source = "nvidia-smi topo"
    if spec is not None:
        return machine_from_table(table, spec, nodes=nodes, between=network, source=source)
    guess, why = guess_gpu(table)
    machine = machine_from_table(table, gpu_preset(guess), nodes=nodes, between=network, source=source)
    note = f"which GPUs these are, the text does not say: taken as {guess}, {why}; give the gpu if they are others"
    return replace(machine, notes=(note, *machine.notes))


def guess_gpu(table: TopoTable) -> tuple[str, str]:
    """A usual GPU with such NVLinks, and why. Memory and speed may be others': H100, H200 and B200 all have 18."""
    counts = [int(word[2:]) for row in table.cells for word in row if word.startswith("NV")]
    if not counts:
        return "l40s", "for want of any NVLink"
    most = max(counts)
    total = max(sum(int(word[2:]) for word in row if word.startswith("NV")) for row in table.cells)
    if most > 12:
        return "h100", f"by the {most} NVLinks of a pair"
    if most == _EXPORT_NVLINKS:
        return "h800", f"by the {most} NVLinks of a pair, which A800 and H800 are cut to"
    if most > 6:
        paired = total == most and len(table.gpus) > 2
        return ("a100-pcie" if paired else "a100"), f"by the {most} NVLinks of a pair"
    if most == 4 and total == 4:
        return "rtx-a6000", "by bridges of 4 NVLinks"
    if total == 2:
        return "rtx-2080-ti", "by 2 NVLinks to its peers together"
    if total == 12:
        return "a100", "by 12 NVLinks to its peers together"
    return "v100-32gb", f"by at most {most} NVLinks of a pair"


def machine_from_table(
    table: TopoTable, gpu: Gpu, *, nodes: int = 1, between: Link | None = None, source: str
) -> Machine:
    """The machine with that table's links. Raises ``ValueError`` where the GPU cannot have so many NVLinks, or for
    several nodes without any network card.

    Args:
        table: what was read.
        gpu: kind of the GPUs.
        nodes: copies of the node.
        between: link between nodes; by default from the table's network cards.
        source: origin of the table.
    """
    count = len(table.gpus)
    notes = [f"links read from {source}, their speeds from the specifications of {gpu.name}"]
    switched = _is_switched(table.cells, gpu)
    links = tuple(
        tuple(None if i == j else _link(table, i, j, gpu, switched) for j in range(count)) for i in range(count)
    )
    if nodes > 1 and between is None:
        cards = table.near_nics or table.nics
        if not cards:
            raise ArgumentError(
                "nodes",
                nodes,
                "must be 1 where the text lists no network card: give the network, or take the preset of a machine",
            )
        between = network(len(cards), count)
        notes.append(
            f"network taken as {len(cards)} cards ({', '.join(cards)}) of {NIC_GBPS * 8:g} Gb/s for {count} GPUs"
        )
    return Machine(
        name=f"{nodes} x {count} x {gpu.name}" if nodes > 1 else f"{count} x {gpu.name}",
        gpu=gpu,
        gpus_per_node=count,
        nodes=nodes,
        links=links,
        network=between,
        nics=table.nics,
        source=source,
        notes=tuple(notes),
    )


def _words(line: str) -> list[str]:
    """Split at blanks, and where two devices or two links have run together: ``NIC7NIC8``, ``SYSSYS``."""
    words: list[str] = []
    for word in line.split():
        parts = _RUN_TOGETHER.findall(word)
        words += parts if len(parts) > 1 and "".join(parts) == word else [word]
    return words


def _header(lines: Sequence[str]) -> tuple[int, list[str], int]:
    """The header's line, the devices it lists, and how many columns of affinity follow them."""
    for number, line in enumerate(lines):
        words = _words(line)
        if not words or not _GPU.fullmatch(words[0]) or (len(words) > 1 and _CELL.fullmatch(words[1])):
            continue
        names = " ".join(words)
        end = min((names.index(title) for title in _AFFINITIES if title in names), default=len(names))
        devices = names[:end].split()
        if devices and devices[-1] in ("CPU", "NUMA", "GPU"):  # a header cut off in its last title
            devices.pop()
        if len(devices) > _MOST_DEVICES:
            raise ValueError(
                f"line {number + 1}: the header lists {len(devices):,} GPUs and network cards; a node has at most "
                f"{_MOST_DEVICES}"
            )
        if longest := max((len(name) for name in devices if len(name) > _LONGEST_NAME), default=0):
            raise ValueError(f"line {number + 1}: the header has a name of {longest:,} letters: no device is called so")
        twice = [name for name, count in Counter(devices).items() if count > 1]
        if twice:
            raise ValueError(f"line {number + 1}: the header lists {listed(sorted(twice))} twice")
        return number, devices, sum(title in names for title in _AFFINITIES)
    raise ValueError(
        "no line of the text is the header of a topology table (GPU0 GPU1 ...): paste what `nvidia-smi topo -m` prints"
    )


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


def _is_switched(cells: Sequence[Sequence[str]], gpu: Gpu) -> bool:
    """Whether NVLinks must go through a switch: every GPU has more of them to its peers than it has at all."""
    bonds = [sum(int(word[2:]) for word in row if word.startswith("NV")) for row in cells]
    whole = all(word.startswith("NV") or word == "X" for row in cells for word in row)
    return whole and len(cells) > 1 and gpu.num_nvlinks > 0 and min(bonds) > gpu.num_nvlinks


def _link(table: TopoTable, i: int, j: int, gpu: Gpu, switched: bool) -> Link:
    word = table.cells[i][j]
    if not word.startswith("NV"):
        return pcie_link(_PCIE[word], gpu)
    count = int(word[2:])
    if gpu.num_nvlinks and count > gpu.num_nvlinks:
        raise ValueError(
            f"{table.gpus[i]} and {table.gpus[j]} are joined by {word}, and {gpu.name} has {gpu.num_nvlinks} NVLinks: "
            f"is it another GPU?"
        )
    return nvlink(gpu, count, switched=switched)
