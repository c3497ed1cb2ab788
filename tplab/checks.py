"""Arguments of public functions, checked one by one: one wording for all rooms, and an error made of parts.

An :class:`ArgumentError` keeps the argument's name, its value and the rule, so that a caller who asked under another
name, as the command line does with its options, can say that name. Not pydantic: every rank and every kernel would wait
for its import. A ``bool`` is no number here, although Python counts it as one: ``Cluster(True)`` is a mistake. NumPy's
numbers are numbers. Each check returns the value, so that it can stand where the value is used. Pure: no torch.
"""

import math
import operator
from collections.abc import Iterable, Sized
from numbers import Real
from typing import Any, SupportsIndex, TypeVar

from tplab.shown import shown

T = TypeVar("T")


class ArgumentError(ValueError):
    """An argument that breaks a rule: ``n must be a whole number of at least 1; got 0``."""

    def __init__(self, argument: str, value: object, rule: str) -> None:
        super().__init__(argument, value, rule)
        self.argument = argument
        """Name of the argument in the function that refuses it."""
        self.value = value
        """What came instead."""
        self.rule = rule
        """What it must be, and the way out where there is one: follows the name in a sentence."""

    def __str__(self) -> str:
        return self.named(self.argument)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def named(self, name: str) -> str:
        """The message with another name for the argument, such as the option that it came from."""
        return f"{name} {self.rule}; got {shown(self.value)}"


def check_count(name: str, value: SupportsIndex, least: int = 0, most: int | None = None) -> int:
    """``value`` as an ``int`` (also from numpy, which would overflow), from ``least`` to ``most``."""
    try:
        count = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = least - 1
    if count < least or (most is not None and count > most):
        size = f"of at least {least:,}" if most is None else f"from {least:,} to {most:,}"
        raise ArgumentError(name, value, f"must be a whole number {size}")
    return count


def check_number(
    name: str, value: float, *, least: float | None = None, above: float | None = None, most: float | None = None
) -> float:
    """``value``, at least ``least``, above ``above`` and at most ``most``; finite unless ``most`` is infinite.

    Args:
        name: the argument's name, for the error.
        value: what is checked.
        least, above, most: bounds; None for none. ``least`` and ``most`` may be reached, ``above`` may not.
    """
    if (
        not isinstance(value, int | float | Real)
        or isinstance(value, bool)
        or not (_is_finite(value) or value == most)
        or not (least is None or value >= least)
        or not (above is None or value > above)
        or not (most is None or value <= most)
    ):
        kind = "a finite number" if most is None else "a number"
        bounds = {"of at least": least, "above": above, "at most": None if most == math.inf else most}
        said = " and ".join(f"{words} {_short(bound)}" for words, bound in bounds.items() if bound is not None)
        raise ArgumentError(name, value, f"must be {kind} {said}".rstrip())
    return value


def check_one_of(name: str, value: T, choices: Iterable[T]) -> T:
    """``value``, which must be one of ``choices``."""
    known = list(choices)
    if value not in known:
        raise ArgumentError(name, value, f"must be one of {', '.join(map(str, known)) or 'none'}")
    return value


def check_all_of(name: str, values: Iterable[T], choices: Iterable[T]) -> list[T]:
    """``values``, at least one, each out of ``choices``; a single text is refused, for its letters would be taken."""
    known, given = list(choices), None if isinstance(values, str) else list(values)
    said = ", ".join(map(str, known))
    if not given:
        raise ArgumentError(name, values, f"must be a list out of {said}")
    for value in given:
        if value not in known:
            raise ArgumentError(name, value, f"must be out of {said}")
    return given


def check_divides(name: str, value: int, whole_name: str, whole: int) -> None:
    """``value`` must be above 0 and divide ``whole``."""
    if value < 1 or whole % value:
        raise ArgumentError(name, value, f"must divide {whole_name}={whole}")


def check_length(name: str, values: Sized, length: int, what: str) -> None:
    """``values`` must have one for each of ``length`` things, ``what``."""
    if len(values) != length:
        raise ArgumentError(name, len(values), f"must have one for each of the {length:,} {what}")


def check_flag(name: str, value: Any) -> bool:
    """``value``, true or false: the text "false" would count as true."""
    if not isinstance(value, bool):
        raise ArgumentError(name, value, "must be true or false")
    return value


def check_text(name: str, value: Any) -> str:
    """``value``, which must be a text."""
    if not isinstance(value, str):
        raise ArgumentError(name, value, "must be a text")
    return value


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond every float
        return False


def _short(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
