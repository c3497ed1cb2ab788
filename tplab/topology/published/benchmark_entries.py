"""The keys of one result of a benchmark, read one by one, with errors that name the result and the key."""

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from tplab.checks import check_number
from tplab.shown import shown

_LARGEST = 1e15
"""Largest number accepted from a file: beyond it nothing counts tokens or milliseconds."""
_LONGEST_NAME = 200
_FIRST = "0"
_DEGREES = {
    "tp": ("tensor_parallel_size", "tensor-parallel-size", "tp_size", "tp"),
    "pp": ("pipeline_parallel_size", "pipeline-parallel-size", "pp_size", "pp"),
    "replicas": ("data_parallel_size", "data-parallel-size", "dp_size"),
}


class Entries:
    """The keys of one result, and errors that name it and them."""

    def __init__(self, name: str, data: Mapping[str, Any], program: str, way_out: str) -> None:
        self.name, self.data = name, data
        self._program, self._way_out = program, way_out
        self._missing: list[str] = []

    def get(self, *paths: str) -> Any:
        """What stands under the first of the paths that is there and not null: keys joined by points, 0 for the first
        of a list."""
        for path in paths:
            found: Any = self.data
            for key in path.split("."):
                if key == _FIRST:
                    found = found[0] if isinstance(found, list) and found else None
                else:
                    found = found.get(key) if isinstance(found, Mapping) else None
            if found is not None:
                return found
        return None

    def items(self, path: str) -> Iterable[tuple[Any, Any]]:
        """Keys and values of an object; none where there is no object."""
        found = self.get(path)
        return found.items() if isinstance(found, Mapping) else ()

    def number(self, *paths: str, scale: float = 1.0) -> float | None:
        """A number of at least 0, times ``scale``; texts of numbers are taken for them."""
        for path in paths:
            value = self.get(path)
            if value is None:
                continue
            if isinstance(value, str):  # --metadata gives texts
                with suppress(ValueError):
                    value = float(value)
            return float(check_number(f"{self.name}: {path}", value, least=0, most=_LARGEST)) * scale
        return None

    def needed(self, *paths: str, scale: float = 1.0) -> float:
        """The same; where it is missing, ``end`` says so."""
        value = self.number(*paths, scale=scale)
        if value is None:
            if self.is_null(paths[0]):  # there, and no number
                check_number(f"{self.name}: {paths[0]}", None, least=0, most=_LARGEST)  # type: ignore[arg-type]
            self._missing.append(paths[0])
        return math.nan if value is None else value

    def is_null(self, path: str) -> bool:
        return path in self.data and self.data[path] is None

    def count(self, *paths: str) -> int | None:
        value = self.number(*paths)
        return None if value is None else int(value)

    def text(self, *paths: str) -> str:
        """A text, or the first of a list of them; empty where there is none."""
        value = self.get(*paths)
        if isinstance(value, list):
            value = value[0] if value else None
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{self.name}: {paths[0]} must be a text, got {shown(value)}")
        return (value or "")[:_LONGEST_NAME]

    def rate(self, *paths: str) -> float | None:
        """Requests per second; None where they were sent at once."""
        value = self.get(*paths)
        infinite = value in (None, "inf", "Infinity", "not", "None") or value == math.inf
        return None if infinite else self.number(*paths)

    def limit(self, *paths: str) -> int | None:
        """Most requests in flight; None without a limit."""
        return None if self.get(*paths) in (None, "not", "None", "none") else self.count(*paths)

    def degrees(self, *roots: str) -> dict[str, int]:
        """What the result says of how the server was split."""
        found = {}
        for degree, keys in _DEGREES.items():
            paths = [f"{root}{key}" for root in ("", *roots) for key in keys]
            path = next((path for path in paths if self.get(path) is not None), None)
            if path is not None:
                given = self.number(path) or 0.0
                if given < 1 or not given.is_integer():
                    raise ValueError(
                        f"{self.name}: {path} must be a whole number of at least 1, got {shown(self.get(path))}"
                    )
                found[degree] = int(given)
        return found

    def std(self, path: str) -> float | None:
        """Standard deviation of a list of numbers, where there is one."""
        values = self.get(path)
        if not isinstance(values, list) or not values:
            return None
        try:
            return float(np.std(np.asarray(values, dtype=np.float64)))
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{self.name}: {path} must be a list of numbers, got {shown(values)}") from None

    def end(self) -> None:
        """Raises ``ValueError`` that names everything missing."""
        if self._missing:
            raise ValueError(
                f"{self.name} lacks {', '.join(self._missing)}: it is no result of {self._program} ({self._way_out}), "
                f"which has them"
            )
