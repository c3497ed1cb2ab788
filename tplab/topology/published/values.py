"""Values in the rows of a published table: a column that may be missing, be empty or hold nonsense."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tplab.shown import shown
from tplab.topology.advisor.workload import MOST

_LARGEST = 1e15
"""Largest number accepted from a table."""


def value_of(row: Mapping[str, Any], key: str) -> Any:
    """What stands there; None where nothing does."""
    value = row.get(key)
    return None if value is None or (isinstance(value, float) and pd.isna(value)) else value


def first_of(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The first of several columns that has a value."""
    return next((value for value in (value_of(row, key) for key in keys) if value is not None), None)


def count_of(row: Mapping[str, Any], key: str, *, least: int = 1, usual: int | None = None) -> int:
    """A whole number; ``usual`` where there is none, or 0."""
    value = number_of(row, key)
    if not value and usual is not None:
        return usual
    if value is None or not value.is_integer() or not least <= value <= MOST:
        raise ValueError(f"{key} must be a whole number from {least} to {MOST:,}, got {shown(row[key])}")
    return int(value)


def number_of(row: Mapping[str, Any], key: str) -> float | None:
    """None where there is none."""
    value = value_of(row, key)
    try:
        number = None if value is None else float(value)
    except (OverflowError, TypeError, ValueError):
        number = math.nan
    if number is not None and not 0 <= number <= _LARGEST:
        raise ValueError(f"{key} must be a number of at least 0 and at most {_LARGEST:g}, got {shown(value)}")
    return number


def positive_of(row: Mapping[str, Any], key: str) -> float:
    """A number above 0."""
    value = number_of(row, key)
    if not value:
        raise ValueError(f"{key} is missing or not above 0")
    return value
