"""Values as people read them: numbers in three digits; what a file holds, in error messages, short whatever it is.

A message that prints what it refuses must not fail over it in turn: ``repr`` ends in a ``RecursionError`` for lists in
lists in lists, refuses whole numbers of 5,000 digits, and prints all of a megabyte.
"""

import difflib
import math
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

MAX_DEPTH = 100
"""Deepest nesting of lists and objects: beyond every real file, and far from where Python's recursion ends."""
_LONGEST = 80
"""Characters of a value or a name."""


def shown(value: Any) -> str:
    """Its ``repr``, cut short."""
    return _SHORT.repr(value)


def listed(names: Iterable[object], most: int = 4) -> str:
    """``a, b, c, d and 17 more``; each of them cut short."""
    texts = list(map(str, names))
    first = ", ".join(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..." for text in texts[:most])
    return f"{first} and {len(texts) - most:,} more" if len(texts) > most else first


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say about a name that is not known: the nearest ones, or all."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or [k for k in names if name and name in k][:3]
    return f"did you mean {' or '.join(close)}?" if close else f"use one of {', '.join(sorted(names))}"


def fixed(value: float) -> str:
    """Three digits, all of those before the point, and no exponent: ``9.53``, ``73.1``, ``402,700``."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    decimals = min(6, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{decimals}f}"


def number(value: float, digits: int = 3) -> str:
    """So many significant digits, all of those before the point, no exponent and no zeros at the end: ``1,260``,
    ``12.3``, ``0.0123``, ``9.5``, ``∞``."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "-∞"}.get(value, "not a number")
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}")))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text


def time_text(us: float, digits: int = 3) -> str:
    """Microseconds in the unit that suits them: ``14.2 µs``, ``1.26 ms``, ``3 s``."""
    return _in_unit(us, digits, ((1.0, "µs"), (1e3, "ms"), (1e6, "s")))


def bytes_text(nbytes: float, digits: int = 3) -> str:
    """``512 B``, ``64 KiB``, ``1.5 MiB``."""
    return _in_unit(nbytes, digits, _BINARY)


_BINARY = tuple((1024.0**power, unit) for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB")))


_ALGORITHMS = {
    "recursive-doubling": "recursive doubling",
    "int8-two-shot": "two-shot in int8",
    "symmetric-one-shot": "torch's one-shot",
    "symmetric-two-shot": "torch's two-shot",
    "pushed-one-shot": "our one-shot",
    "pushed-two-shot": "our two-shot",
    "pushed-int8": "our int8",
    "pushed-fp8": "our fp8",
}


def algorithm_text(name: str) -> str:
    """An algorithm of a collective as people write it: ``recursive-doubling`` is ``recursive doubling``."""
    return _ALGORITHMS.get(name, name)


def _in_unit(value: float, digits: int, units: Sequence[tuple[float, str]]) -> str:
    """In the largest unit in which the rounded value is 1 or more."""
    fitting = [each for each in units if float(f"{abs(value) / each[0]:.{digits - 1}e}") >= 1]
    size, unit = fitting[-1] if fitting else units[0]
    return f"{number(value / size, digits)} {unit}"


def amount(number: float) -> str:
    """Format a request count: integer if whole, else three significant digits."""
    return f"{number:,.0f}" if number == round(number) else fixed(number)


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 token``, ``1,024 tokens``; ``plural`` for nouns that do not take an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(ms: float) -> str:
    """Format a time given in milliseconds: in milliseconds below a second, else in seconds."""
    return f"{fixed(ms)} ms" if ms < 1000 else f"{fixed(ms / 1e3)} s"


def as_GB(nbytes: float) -> str:
    """Format bytes as GB = 1e9 of them: three significant digits below a thousand, else whole; less than 0.0001 GB as
    MB."""
    if 0 < abs(nbytes) < 1e5:
        return f"{nbytes / 1e6:.3g} MB"
    return f"{nbytes / 1e9:.3g} GB" if nbytes < 999.5e9 else f"{math.floor(nbytes / 1e9):,} GB"


def check_depth(value: Any, name: str) -> None:
    """Raises ``ValueError`` for lists and objects more than 100 deep in each other, or in themselves: whatever looks at
    them further would end in a ``RecursionError``."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            each
            for held in level
            if isinstance(held, _HOLDERS)
            for each in (held.values() if isinstance(held, dict) else held)
            if isinstance(each, _HOLDERS)
        ]
        if not level:
            return
    raise ValueError(f"{name}: lists and objects in it are nested more than {MAX_DEPTH} deep")


_HOLDERS = (dict, list, tuple)


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxstring = self.maxother = self.maxlong = _LONGEST

    def repr_int(self, value: int, level: int) -> str:
        if value.bit_length() > 1024:  # Python does not print whole numbers of thousands of digits
            return f"a whole number of some {value.bit_length() * 3 // 10:,} digits"
        return super().repr_int(value, level)


_SHORT = _Short()


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; a bar in a cell would end it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)
