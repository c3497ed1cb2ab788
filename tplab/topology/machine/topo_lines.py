"""Lines of a pasted table without their dressing: what a terminal, a log, a chat or a web page put around the words.

Nothing here knows what a cell means; ``topo_text`` does. Lines keep their numbers, so that errors can name them: a line
that a terminal broke is put together in its first place, and leaves an empty one behind.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()][A-Z0-9]|\[[0-9;]*m(?=\S|\s|$)")
_QUOTE = re.compile(r"^ *>[> ]*")
_ODD = {
    **dict.fromkeys((0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000, 0xFFFD), " "),
    **dict.fromkeys((0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), 0x2060, 0xFEFF, 0x08), None),
    **dict.fromkeys((*range(0x2010, 0x2016), 0x2212), "-"),
    **dict.fromkeys(map(ord, "│┃║"), "|"),
}
_MARKS = str.maketrans("|*`\"';", "      ")
_COMMA = re.compile(
    r"(?<=[A-Za-z]),|(?<=GPU\d),|(?<=GPU\d\d),|(?<=NV\d),|(?<=NV\d\d),|,(?=\s*(?:GPU|NIC|mlx|CPU|NUMA|X\b|NV\d|P[IXH][XB]|NODE|SYS))"
)
LINK = r"X|NV[1-9]\d{0,2}|PIX|PXB|PHB|NODE|SYS|SOC"
"""Cells of a table of links."""
PEER = r"OK|CNS|GNS|TNS|NS|DR|U"
"""Cells of a table of peer-to-peer access (``nvidia-smi topo -p2p``)."""
_ROW = re.compile(rf"(?<![A-Za-z0-9_])GPU\d+[\s|*`]+(?:{LINK}|{PEER})(?=[\s|*`]|$)")
_RUN_TOGETHER = re.compile(
    r"(?:GPU\d+|NIC\d+|mlx\d+_\d+?(?=GPU|NIC|mlx|CPU|$)|CPU|X|NV\d+|PIX|PXB|PHB|NODE|SYS|SOC|OK|[CGT]NS|NS)"
)
_CELL_AND_CORES = re.compile(r"((?:X|NV\d+|PIX|PXB|PHB|NODE|SYS|SOC)*(?:X|PIX|PXB|PHB|NODE|SYS|SOC))(\d[\d,-]*|N/A)")


def plain_lines(text: str) -> list[str]:
    """Without escape sequences, odd blanks, invisible letters and odd dashes, and without what stands before every row
    alike: the name of a container, a time, a number."""
    text = _ESCAPE.sub("", text.translate(_ODD))
    if "\\tGPU" in text or "\\nGPU" in text:  # printed as a string of a program, or out of a JSON file
        text = text.replace("\\r", "").replace("\\n", "\n").replace("\\t", "\t")
    lines = text.splitlines()
    before = Counter(_shape(line[: found.start()]) for line in lines if (found := _ROW.search(line)))
    prefix = max(before, key=lambda shape: before[shape], default="")
    if not prefix:
        return lines
    pattern = re.compile(prefix)
    return [pattern.sub("", line, count=1) for line in lines]


def bare_lines(lines: Sequence[str]) -> list[str]:
    """Without marks of tables and of quotations, and commas between cells."""
    return [_COMMA.sub(" ", _QUOTE.sub("", line.translate(_MARKS))) for line in lines]


def _shape(prefix: str) -> str:
    """A pattern for what differs from ``prefix`` in its digits and blanks only; empty for blanks alone."""
    if not prefix.strip():
        return ""
    words = prefix.rstrip()
    parts = re.findall(r"\d+|\s+|[^\d\s]+", words)
    pattern = "".join(
        r"\d+" if part[0].isdigit() else r"\s*" if part[0].isspace() else re.escape(part) for part in parts
    )
    return f"^{pattern}\\s{{0,{len(prefix) - len(words)}}}"  # more blanks part the pieces of a broken line


def words_of(line: str) -> list[str]:
    """Split at blanks, and where two devices or two cells have run together: ``NIC7NIC8``, ``SYSSYS``, ``SYS0-47``."""
    words: list[str] = []
    for word in line.split():
        cells = _CELL_AND_CORES.fullmatch(word)
        head, tail = (cells[1], [cells[2]]) if cells else (word, [])
        parts = _RUN_TOGETHER.findall(head)
        words += [*(parts if len(parts) > 1 and "".join(parts) == head else [head]), *tail]
    return words


def join_broken(lines: list[str], start: int, goes_on: Callable[[str, str], bool]) -> None:
    """Put the lines after ``start`` behind it while ``goes_on(line, next)``; empty lines take their places."""
    for number in range(start + 1, len(lines)):
        if not lines[number].strip() or not goes_on(lines[start], lines[number]):
            return
        lines[start], lines[number] = lines[start] + lines[number], ""
