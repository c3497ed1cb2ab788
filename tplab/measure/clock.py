"""One clock: the host's, which all processes of a machine share, and CUDA events mapped onto it. Runs on the ranks.

When a rank did what is written down by whoever does it, not by a profiler: two readings of the clock (0.2 us) leave a
decode step as it is. torch's profiler does not know that a wait inside a collective is waiting, and sees nothing of an
emulated link.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from tplab.cluster.recorder import unrecorded

T = TypeVar("T")
TimedSpan = tuple[str, Any, float, float]
"""Kind, what was worked on, start and end in seconds of the machine's monotonic clock."""


def timed(call: Callable[[], T], device: torch.device | None = None) -> tuple[float, T]:
    """Microseconds of a call by the host's clock, until ``device`` has done it, too; and what it returned."""
    with unrecorded():
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
    with unrecorded():
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
    """Marks are events on the stream that was current at the start; known once the device has passed them.

    The stream is asked for once: that takes longer than recording an event (4.5 of 9 us on the host of an H100).

    Known to be wrong by the time from recording the first event to reading the host's clock, some 10 us.
    """

    is_immediate = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._beside: Any = None

    def start(self) -> None:
        """Before the first mark: sets the device's clock by the host's."""
        synchronize(self._device)
        self._stream = torch.cuda.current_stream(self._device)
        self._zero = event()
        self._zero.synchronize()
        self._zero_s = time.monotonic()

    def mark(self) -> torch.cuda.Event:
        """When the device will have done what it was given so far."""
        mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._stream.record_event(mark)
        return mark

    def mark_after(self, wait: Callable[[], Any]) -> torch.cuda.Event:
        """When that is over which ``wait`` makes a stream wait for: told by a stream of its own, so that the current
        one does not wait."""
        if self._beside is None:
            self._beside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._beside):
            wait()
            return event()

    def seconds(self, mark: torch.cuda.Event | float) -> float:
        """When that was, by the host's clock; waits for it. The host's own marks, of an emulated link, are theirs."""
        if isinstance(mark, float):
            return mark
        mark.synchronize()
        return self._zero_s + float(self._zero.elapsed_time(mark)) / 1e3


class Recorder:
    """What this rank did, and when.

    Args:
        device: its device; on a GPU marks are events of the stream that is current at the start.
        at_work: returns what is being worked on; by default ``at`` says it.
    """

    def __init__(self, device: torch.device, at_work: Callable[[], Any] | None = None) -> None:
        self._clock: Any = CudaClock(device) if device.type == "cuda" else HostClock()
        self._records: list[tuple[str, Any, Any, Any]] = []
        self._at_work = at_work
        self.at: Any = None
        self.start = self._clock.start
        self.mark = self._clock.mark
        self.seconds: Callable[[Any], float] = self._clock.seconds
        self.mark_after: Callable[[Callable[[], Any]], Any] | None = getattr(self._clock, "mark_after", None)
        """See :meth:`CudaClock.mark_after`; None where the host's clock is read."""

    @property
    def label(self) -> Any:
        """What is being worked on."""
        return self.at if self._at_work is None else self._at_work()

    def add(self, kind: str, start: Any, end: Any = None, label: Any = None) -> None:
        """A span from the mark ``start`` to ``end``, by default to now, and of what is being worked on."""
        end = self.mark() if end is None else end
        self._records.append((kind, self.label if label is None else label, start, end))

    def spans(self) -> list[TimedSpan]:
        """All spans so far, in the order in which they ended."""
        seconds = self._clock.seconds
        return [(kind, label, seconds(start), seconds(end)) for kind, label, start, end in list(self._records)]
