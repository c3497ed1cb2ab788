"""One clock for the computations of all ranks: the host's, and CUDA events mapped onto it."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

Interval = tuple[float, float | None]


class HostClock:
    """``time.monotonic``: one for all processes of a machine."""

    is_immediate = True

    def start(self) -> None:
        """Before the first mark."""

    def mark(self) -> float:
        return time.monotonic()

    def resolve(self, records: Iterable[tuple[Any, Any, Any, Any]]) -> Iterator[Interval]:
        """Start and end of each record, whose last two fields are marks, or None where there is no end."""
        for _, _, start, end in records:
            yield start, end


class CudaClock:
    """Marks are events on the current stream; known once the device has passed them.

    Known to be wrong by the time from recording the first event to reading the host's clock, some 10 us.
    """

    is_immediate = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self) -> None:
        torch.cuda.synchronize(self._device)
        self._zero = self.mark()
        self._zero.synchronize()
        self._zero_s = time.monotonic()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def resolve(self, records: Iterable[tuple[Any, Any, Any, Any]]) -> Iterator[Interval]:
        torch.cuda.synchronize(self._device)
        for _, _, start, end in records:
            yield self._seconds(start), None if end is None else self._seconds(end)

    def _seconds(self, mark: Any) -> float:
        if isinstance(mark, float):  # an emulated link's
            return mark
        return self._zero_s + float(self._zero.elapsed_time(mark)) / 1e3
