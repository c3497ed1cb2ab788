"""A layer's collectives with when they ran written down.

Not a profiler: torch's does not know that a wait inside a collective is waiting, and sees nothing of an emulated link.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tplab.collectives.transport import Handle, Message, Transport
from tplab.layers.comm import Comm, Pending


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Something that took time on a rank. Seconds of ``time.monotonic``: one clock for all ranks of a machine."""

    kind: str
    """``computation``, ``communication``, or ``waiting``: the computing thread in a collective's ``wait``."""
    name: str
    """Name of the layer or of the collective."""
    start_s: float
    end_s: float


class RecordingComm:
    """The collectives of another ``Comm``, with when they ran and how long the computing thread waited for them.

    For ranks on the CPU, where the host sees it all. Through an ``EmulatedComm`` a started collective runs until its
    last byte is there; through gloo until gloo says so.
    """

    def __init__(self, comm: Comm, layer_at_work: Callable[[], str] = lambda: "") -> None:
        self._comm = comm
        self._layer_at_work = layer_at_work
        self._lock = threading.Lock()
        self._under_way = 0
        self._spans: list[Span] = []
        self.index = comm.index
        self.size = comm.size
        self.device_types = comm.device_types

    @property
    def transport(self) -> Transport:
        return _RecordingTransport(self._comm.transport, self)

    def spans(self, timeout_s: float = 5.0) -> list[Span]:
        """What was written down, once everything started is over. Collectives follow one another on one channel, so
        one that was started while another ran begins when that one ends."""
        give_up = time.monotonic() + timeout_s
        while self._under_way and time.monotonic() < give_up:
            time.sleep(1e-4)
        with self._lock:
            spans, free = [], 0.0
            for span in sorted(self._spans, key=lambda span: span.end_s):
                if span.kind == "communication":
                    span, free = replace(span, start_s=max(span.start_s, free)), span.end_s
                spans.append(span)
            return spans

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        if self.size == 1:
            return self._comm.all_reduce(x)
        began = time.monotonic()
        # Whoever asks for the sum at once waits from the start: nothing is computed in between.
        return _Timed(self._comm.start_all_reduce(x), self, began).wait(since=began)

    def all_reduce_max(self, x: torch.Tensor) -> torch.Tensor:
        began, layer = time.monotonic(), self._layer_at_work()
        out = self._comm.all_reduce_max(x)
        ended = time.monotonic()
        self._note("communication", layer, began, ended)
        self._note("waiting", layer, began, ended)
        return out

    def start_all_reduce(self, x: torch.Tensor) -> Pending:
        return self._start(self._comm.start_all_reduce, x)

    def start_all_gather(self, x: torch.Tensor) -> Pending:
        return self._start(self._comm.start_all_gather, x)

    def start_reduce_scatter(self, x: torch.Tensor) -> Pending:
        return self._start(self._comm.start_reduce_scatter, x)

    def _start(self, start: Callable[[torch.Tensor], Pending], x: torch.Tensor) -> Pending:
        if self.size == 1:
            return start(x)
        began = time.monotonic()
        return _Timed(start(x), self, began)

    def _note(self, kind: str, name: str, start: float, end: float) -> None:
        with self._lock:
            self._spans.append(Span(kind=kind, name=name, start_s=start, end_s=end))


class _RecordingTransport:
    """Messages of collectives of our own (int8's): a batch is under way until it has been waited for."""

    def __init__(self, transport: Transport, recorder: RecordingComm) -> None:
        self._transport = transport
        self._recorder = recorder
        self.index = transport.index
        self.size = transport.size
        self.device_types = transport.device_types

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> "_TimedMessages":
        began = time.monotonic()
        return _TimedMessages(self._transport.exchange(sends, recvs), self._recorder, began)


class _TimedMessages:
    __slots__ = ("_began", "_handle", "_layer", "_recorder")

    def __init__(self, handle: Handle, recorder: RecordingComm, began: float) -> None:
        self._handle = handle
        self._recorder = recorder
        self._layer = recorder._layer_at_work()
        self._began = began

    def wait(self) -> None:
        waiting = time.monotonic()
        self._handle.wait()
        ended = time.monotonic()
        self._recorder._note("communication", self._layer, self._began, ended)
        self._recorder._note("waiting", self._layer, waiting, ended)


class _Timed:
    __slots__ = ("_began", "_layer", "_over", "_pending", "_recorder", "target")

    def __init__(self, pending: Any, recorder: RecordingComm, began: float) -> None:
        self._pending = pending
        self._recorder = recorder
        self._began = began
        self._layer = recorder._layer_at_work()
        self._over = False
        self.target: torch.Tensor = pending.target
        with recorder._lock:
            recorder._under_way += 1
        pending.future.add_done_callback(lambda _: self._end(time.monotonic()))  # on whichever thread it ends

    def wait(self, since: float | None = None) -> torch.Tensor:
        began = time.monotonic() if since is None else since
        out: torch.Tensor = self._pending.wait()
        ended = time.monotonic()
        self._end(ended)  # whoever waited may know before the thread that it ended on gets to say so
        self._recorder._note("waiting", self._layer, began, ended)
        return out

    def _end(self, ended: float) -> None:
        recorder = self._recorder
        with recorder._lock:
            if self._over:
                return
            self._over = True
            recorder._under_way -= 1
            recorder._spans.append(Span(kind="communication", name=self._layer, start_s=self._began, end_s=ended))
