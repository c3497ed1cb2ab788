"""One clock: the host's, which all processes of a machine share, and CUDA events mapped onto it. Runs on the ranks."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Interval = tuple[float, float | None]


def timed(call: Callable[[], T], device: torch.device | None = None) -> tuple[float, T]:
    """Microseconds of a call by the host's clock, until ``device`` has done it, too; and what it returned."""
    began = time.perf_counter()
    result = call()
    synchronize(device)
    return (time.perf_counter() - began) * 1e6, result


def synchronize(device: torch.device | None) -> None:
    """Waits until a GPU has done all it was given. Nothing to wait for on a CPU, or for None."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def device_us(call: Callable[[], Any]) -> float:
    """Microseconds of a call by the GPU's own clock, from one event of the current stream to the next."""
    start = event()
    call()
    end = event()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3


def event() -> torch.cuda.Event:
    """A mark on the current stream."""
    mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    mark.record()
    return mark


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
        synchronize(self._device)
        self._zero = self.mark()
        self._zero.synchronize()
        self._zero_s = time.monotonic()

    def mark(self) -> torch.cuda.Event:
        return event()

    def resolve(self, records: Iterable[tuple[Any, Any, Any, Any]]) -> Iterator[Interval]:
        synchronize(self._device)
        for _, _, start, end in records:
            yield self._seconds(start), None if end is None else self._seconds(end)

    def _seconds(self, mark: Any) -> float:
        if isinstance(mark, float):  # an emulated link's
            return mark
        return self._zero_s + float(self._zero.elapsed_time(mark)) / 1e3
