"""Numbers as people return them: Python's, NumPy's and torch's, in lists, tuples, arrays or tensors of any nesting."""

import math
from collections.abc import Iterable
from typing import Any


def as_number(value: Any) -> float | None:
    """A finite number out of Python's, NumPy's or a tensor of one element; None for anything else, a ``bool`` too."""
    item = getattr(value, "item", None)
    if callable(item) and not isinstance(value, type):
        try:
            value = item()
        except (ValueError, TypeError, RuntimeError):  # several elements
            return None
    if isinstance(value, bool | str | bytes) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_count(value: Any) -> int | None:
    """A whole number, also as 4.0; None for anything else."""
    number = as_number(value)
    return int(number) if number is not None and number == int(number) else None


def as_numbers(value: Any) -> list[Any] | None:
    """A flat list of what a nested list, tuple, array, tensor or iterator holds, in its order; None for no such thing.

    The members are not looked at.
    """
    value = value.to_numpy() if hasattr(value, "to_numpy") else value  # a table of pandas
    tolist = getattr(value, "tolist", None)
    if callable(tolist) and not isinstance(value, type):
        value = tolist()
    if isinstance(value, str | bytes | dict | set) or not isinstance(value, Iterable):
        return None
    flat: list[Any] = []
    for member in value:
        nested = as_numbers(member) if getattr(member, "ndim", 1) else None
        flat += [member] if nested is None else nested
    return flat
