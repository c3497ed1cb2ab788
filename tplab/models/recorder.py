"""When this rank computed, summed over ranks and waited, on the clock of the machine.

A communicator that takes the time, and not a profiler: two readings of the clock per collective (0.2 us) leave a decode
step as it is, and work the same over gloo and NCCL, where they are events.
"""

from typing import Any

import torch

from tplab.collectives.transport import Transport
from tplab.layers.comm import Comm, Pending
from tplab.measure.clock import CudaClock, HostClock
from tplab.models.records import Span


class Recorder:
    """Spans of one run on one rank. ``step`` and ``micro_batch`` are what is being worked on."""

    def __init__(self, device: torch.device) -> None:
        self._clock: Any = CudaClock(device) if device.type == "cuda" else HostClock()
        self._records: list[tuple[str, int, int, Any, Any]] = []
        self.step = self.micro_batch = 0
        self.mark = self._clock.mark

    def start(self) -> None:
        """Before the first mark."""
        self._clock.start()

    def add(self, kind: str, start: Any) -> None:
        """A span from the mark ``start`` to now."""
        self._records.append((kind, self.step, self.micro_batch, start, self.mark()))

    def spans(self) -> list[Span]:
        """All so far, in seconds of the machine's clock."""
        seconds = self._clock.seconds
        return [
            Span(kind, step, micro_batch, seconds(start), seconds(end))
            for kind, step, micro_batch, start, end in self._records
        ]


class TimedComm:
    """Any ``Comm``; while ``recorder`` is set, its collectives are spans, and of those under way the waiting."""

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        self.index, self.size, self.device_types = comm.index, comm.size, comm.device_types
        self.recorder: Recorder | None = None

    @property
    def transport(self) -> Transport:
        return self._comm.transport

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        if self.recorder is None:
            return self._comm.all_reduce(x)
        start = self.recorder.mark()
        self._comm.all_reduce(x)
        self.recorder.add("collective", start)
        return x

    def all_reduce_max(self, x: torch.Tensor) -> torch.Tensor:
        if self.recorder is None:
            return self._comm.all_reduce_max(x)
        start = self.recorder.mark()
        self._comm.all_reduce_max(x)
        self.recorder.add("collective", start)
        return x

    def start_all_reduce(self, x: torch.Tensor) -> Pending:
        return self._timed(self._comm.start_all_reduce(x))

    def start_all_gather(self, x: torch.Tensor) -> Pending:
        return self._timed(self._comm.start_all_gather(x))

    def start_reduce_scatter(self, x: torch.Tensor) -> Pending:
        return self._timed(self._comm.start_reduce_scatter(x))

    def _timed(self, pending: Pending) -> Pending:
        return pending if self.recorder is None else _TimedPending(pending, self.recorder)


class _TimedPending:
    __slots__ = ("_pending", "_recorder", "target")

    def __init__(self, pending: Pending, recorder: Recorder) -> None:
        self._pending, self._recorder = pending, recorder
        self.target = pending.target

    def wait(self) -> torch.Tensor:
        start = self._recorder.mark()
        out = self._pending.wait()
        self._recorder.add("collective", start)
        return out
