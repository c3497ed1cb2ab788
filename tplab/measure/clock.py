"""One clock: the host's, which all processes of a machine share, and CUDA events mapped onto it. Runs on the ranks."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


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
        """Now."""
        return time.monotonic()

    def seconds(self, mark: float) -> float:
        """When a mark was made."""
        return mark


class CudaClock:
    """Marks are events on the current stream; known once the device has passed them.

    Known to be wrong by the time from recording the first event to reading the host's clock, some 10 us.
    """

    is_immediate = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self) -> None:
        """Before the first mark: sets the device's clock by the host's."""
        synchronize(self._device)
        self._zero = event()
        self._zero.synchronize()
        self._zero_s = time.monotonic()

    def mark(self) -> torch.cuda.Event:
        """When the device will have done what it was given so far."""
        return event()

    def seconds(self, mark: torch.cuda.Event | float) -> float:
        """When that was, by the host's clock; waits for it. The host's own marks, of an emulated link, are theirs."""
        if isinstance(mark, float):
            return mark
        mark.synchronize()
        return self._zero_s + float(self._zero.elapsed_time(mark)) / 1e3
