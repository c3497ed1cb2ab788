"""The collectives that tensor-parallel layers need, over one group of ranks.

Layers are written against ``Comm`` and not against ``torch.distributed``: the same layer then runs over NCCL or gloo,
over a declared link on a laptop, or on a rank alone without any process group. Each collective comes twice: one that
returns when the result is there, and ``start_...``, which returns at once with something to ``wait`` for. That second
one is all that hiding communication needs.

Not ``torch.distributed._functional_collectives``: they allocate a new tensor for every result, which costs a decode
step as much as the collective's own overhead.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist

from tplab.collectives.emulated import EmulatedGroup
from tplab.collectives.transport import Handle, Message, NullTransport, ProcessGroupTransport, Transport, check_alone
from tplab.measure.clock import Recorder, TimedSpan

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")
COLLECTIVE, IN_FLIGHT = "collective", "in flight"
_MOST_ONE_SHOT_BYTES = 64 << 10


class Pending(Protocol):
    """A collective under way."""

    @property
    def target(self) -> torch.Tensor:
        """The tensor that will hold the result. Not to be read before ``wait``."""

    def wait(self) -> torch.Tensor:
        """The result. On a GPU the current stream waits for it, not the host."""


class Comm(Protocol):
    """Collectives of one group. Tensors must be contiguous; gathers and scatters are along dim 0."""

    @property
    def index(self) -> int:
        """This rank's place in the group."""

    @property
    def size(self) -> int:
        """How many ranks the group has."""

    @property
    def device_types(self) -> frozenset[str]:
        """Device types that tensors may be on; empty if any."""

    @property
    def is_capturable(self) -> bool:
        """Whether its collectives may be captured in a CUDA graph."""

    @property
    def transport(self) -> Transport:
        """Point-to-point messages between the same ranks, for collectives of our own. Ask for it each time: what was
        started before may have to be over first."""

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""

    def start_all_reduce(self, x: torch.Tensor) -> Pending:
        """The same, under way. ``x`` must not be touched until waited for."""

    def all_reduce_max(self, x: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum over the ranks, in place."""

    def start_all_gather(self, x: torch.Tensor) -> Pending:
        """(d, ...) on each rank -> (n·d, ...) on every rank, in rank order."""

    def start_reduce_scatter(self, x: torch.Tensor) -> Pending:
        """(n·d, ...) on each rank -> (d, ...): part r of the sum on rank r."""


class Done:
    """A result that is there already."""

    __slots__ = ("target",)

    def __init__(self, target: torch.Tensor) -> None:
        self.target = target

    def wait(self) -> torch.Tensor:
        return self.target


class _Working:
    """A ``torch.distributed`` work and the tensor that it fills."""

    __slots__ = ("_source", "_work", "target")

    def __init__(self, work: "dist.Work", target: torch.Tensor, source: torch.Tensor) -> None:
        self._work = work
        self._source = source  # not every backend keeps its input alive until it is done
        self.target = target

    @property
    def future(self) -> "torch.futures.Future[object]":
        return self._work.get_future()

    def wait(self) -> torch.Tensor:
        self._work.wait()
        return self.target


class NullComm:
    """A place in a group whose other ranks are not there: every collective gives what this rank has, in the shape that
    the result would have. No message is sent, no process group needed.

    By default a group of one rank, where that is right. Of several ranks the numbers are wrong, and the time is that of
    computation alone: the bound that no way of hiding communication can beat.
    """

    device_types: frozenset[str] = frozenset()
    is_capturable = True

    def __init__(self, index: int = 0, size: int = 1) -> None:
        self.index, self.size = index, size

    @property
    def transport(self) -> Transport:
        return NullTransport(self.index, self.size)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def all_reduce_max(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def start_all_reduce(self, x: torch.Tensor) -> Pending:
        return Done(x)

    def start_all_gather(self, x: torch.Tensor) -> Pending:
        return Done(x if self.size == 1 else x.repeat(self.size, *[1] * (x.dim() - 1)))

    def start_reduce_scatter(self, x: torch.Tensor) -> Pending:
        return Done(x if self.size == 1 else x[: x.shape[0] // self.size])


class ProcessGroupComm:
    """Collectives of a process group, through the group's own methods.

    ``dist.all_reduce`` and its kin check and wrap each call; at decode sizes over gloo that is 5 % of an MLP.
    """

    def __init__(self, group: "ProcessGroup") -> None:
        self._group = group
        self._transport = ProcessGroupTransport(group)
        self.index = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        backend = dist.get_backend(group)
        self.device_types = {"nccl": frozenset({"cuda"}), "gloo": frozenset({"cpu", "cuda"})}.get(
            backend, frozenset[str]()
        )
        self.is_capturable = backend == "nccl"
        # With asyncOp off, NCCL runs on the current stream: no second stream to wait for.
        self._blocking = dist.AllreduceOptions()
        self._blocking.asyncOp = False
        self._max = dist.AllreduceOptions()
        self._max.reduceOp = dist.ReduceOp(dist.ReduceOp.MAX)
        self._max.asyncOp = False
        self._scattering = dist.ReduceScatterOptions()

    @property
    def transport(self) -> Transport:
        return self._transport

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        work = self._group.allreduce([x], self._blocking)
        if work is not None:
            work.wait()
        return x

    def all_reduce_max(self, x: torch.Tensor) -> torch.Tensor:
        work = self._group.allreduce([x], self._max)
        if work is not None:
            work.wait()
        return x

    def start_all_reduce(self, x: torch.Tensor) -> Pending:
        return _Working(self._group.allreduce([x]), x, x)

    def start_all_gather(self, x: torch.Tensor) -> Pending:
        out = x.new_empty((self.size * x.shape[0], *x.shape[1:]))
        return _Working(self._group._allgather_base(out, x), out, x)

    def start_reduce_scatter(self, x: torch.Tensor) -> Pending:
        out = x.new_empty((x.shape[0] // self.size, *x.shape[1:]))
        return _Working(self._group._reduce_scatter_base(out, x, self._scattering), out, x)


class OneShotComm(ProcessGroupComm):
    """A gloo group whose small all-reduces are one exchange: everybody sends everything to everybody, at once.

    gloo's own all-reduce is a ring, 2(n-1) messages one after another. The sums of a decode step are a few kilobytes,
    so that is nothing but latency: one exchange takes 0.4 to 0.6 of the time on two ranks, and about as much on four up
    to 64 KiB (loopback, two cores). It sends n/2 times the ring's bytes: on two ranks no more, so all sizes go this way
    there. The addends are added in rank order on every rank, so all have the same bits.

    Not ``tplab.collectives.one_shot``, which takes any tensor and twice as long to start its messages.
    """

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        n, r = self.size, self.index
        if n > 2 and x.numel() * x.element_size() > _MOST_ONE_SHOT_BYTES:
            return super().all_reduce(x)
        addends = [x if rank == r else torch.empty_like(x) for rank in range(n)]
        others = [rank for rank in range(n) if rank != r]
        self._transport.exchange([(x, rank) for rank in others], [(addends[rank], rank) for rank in others]).wait()
        total = addends[0] + addends[1]
        for addend in addends[2:]:
            total += addend
        return x.copy_(total)


class RecordingComm:
    """The collectives of another ``Comm``, with when the computing thread was in them.

    While there is a recorder it gets a span of kind ``collective`` for every blocking call and every ``wait``, labelled
    by what was worked on when the collective was started.

    Args:
        comm: whose collectives.
        recorder: where spans are written down; may be set and taken away. None: nothing is.
        in_flight: also record when each collective was under way, kind ``in flight``, for :meth:`spans`: through an
            ``EmulatedComm`` until the last byte is there, through gloo until gloo says so, on a GPU by events of the
            stream that it runs on.
    """

    def __init__(self, comm: Comm, recorder: Recorder | None = None, *, in_flight: bool = False) -> None:
        self._comm, self._in_flight = comm, in_flight
        self.recorder = recorder
        self._started: list[_Recorded] = []
        self.index, self.size, self.device_types = comm.index, comm.size, comm.device_types
        self.is_capturable = comm.is_capturable

    @property
    def inner(self) -> Comm:
        """Whose collectives are recorded."""
        return self._comm

    @property
    def transport(self) -> Transport:
        return self._comm.transport if self.recorder is None else _RecordingTransport(self._comm.transport, self)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return self.timed(lambda: self._comm.all_reduce(x))

    def all_reduce_max(self, x: torch.Tensor) -> torch.Tensor:
        return self.timed(lambda: self._comm.all_reduce_max(x))

    def start_all_reduce(self, x: torch.Tensor) -> Pending:
        return self.record(lambda: self._comm.start_all_reduce(x))

    def start_all_gather(self, x: torch.Tensor) -> Pending:
        return self.record(lambda: self._comm.start_all_gather(x))

    def start_reduce_scatter(self, x: torch.Tensor) -> Pending:
        return self.record(lambda: self._comm.start_reduce_scatter(x))

    def timed(self, call: Callable[[], T]) -> T:
        """What ``call`` gives, a collective that has ended when it returns; recorded."""
        if self.recorder is None:
            return call()
        began, out = self.recorder.mark(), call()
        ended = self.recorder.mark()
        self.recorder.add(COLLECTIVE, began, ended)
        if self._in_flight:
            self.recorder.add(IN_FLIGHT, began, ended)
        return out

    def record(self, start: Callable[[], T]) -> T:
        """What ``start`` gives, something to ``wait`` for; the wait is recorded."""
        if self.recorder is None:
            return start()
        recorded = _Recorded(self.recorder, self.recorder.mark(), start())
        if self._in_flight:
            self._started.append(recorded)
            recorded.watch()
        return cast("T", recorded)

    def spans(self, timeout_s: float = 5.0) -> list[TimedSpan]:
        """What was written down, once everything started is over. Collectives follow one another on one channel, so
        one that was started while another ran begins when that one ends."""
        assert self.recorder is not None
        give_up = time.monotonic() + timeout_s
        while not all(each.ended for each in self._started) and time.monotonic() < give_up:
            time.sleep(1e-4)
        seconds = self.recorder.seconds
        flights = [
            (IN_FLIGHT, each.label, seconds(each.began), seconds(each.ended[0])) for each in self._started if each.ended
        ]
        spans, free = [], 0.0
        for kind, label, start, end in sorted([*self.recorder.spans(), *flights], key=lambda span: span[3]):
            if kind == IN_FLIGHT:
                start, free = max(start, free), end
            spans.append((kind, label, start, end))
        return spans


class _Recorded:
    """A collective, or messages of one, under way."""

    __slots__ = ("_recorder", "_under_way", "began", "ended", "label")

    def __init__(self, recorder: Recorder, began: Any, under_way: Any) -> None:
        self._recorder, self._under_way = recorder, under_way
        self.began, self.label = began, recorder.label
        self.ended: list[Any] = []
        """Ends noted by whoever waited and by the thread that it ended on: the first entry counts."""

    @property
    def target(self) -> torch.Tensor:
        target: torch.Tensor = self._under_way.target
        return target

    def watch(self) -> None:
        """Learn of the end before anybody waits for it. Messages say nothing: they are under way until waited for."""
        if not hasattr(self._under_way, "future"):
            return
        if self._recorder.mark_after is not None:
            self.ended.append(self._recorder.mark_after(self._under_way.wait))
        else:
            self._under_way.future.add_done_callback(lambda _: self.ended.append(time.monotonic()))

    def wait(self) -> Any:
        waiting, out = self._recorder.mark(), self._under_way.wait()
        ended = self._recorder.mark()
        self.ended.append(ended)
        self._recorder.add(COLLECTIVE, waiting, ended, self.label)
        return out


class _RecordingTransport:
    """Messages of collectives of our own (int8's)."""

    def __init__(self, transport: Transport, comm: RecordingComm) -> None:
        self._transport, self._comm = transport, comm
        self.index, self.size, self.device_types = transport.index, transport.size, transport.device_types

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Handle:
        return self._comm.record(lambda: self._transport.exchange(sends, recvs))


def as_comm(group: "ProcessGroup | Comm | None") -> Comm:
    """The collectives of a process group; a ``Comm`` is returned as it is; None, or a group of one: a rank alone.

    Raises:
        ValueError: a process group that this rank is not in; an ``EmulatedGroup`` that is not wrapped; or None where
            there is a default group of several ranks: a layer that silently left out its sum would be wrong.
    """
    if group is None:
        check_alone()
        return NullComm()
    if isinstance(group, dist.ProcessGroup):
        # A sum over one rank is what is there already: no call, and no copy into a queue.
        return NullComm() if dist.get_world_size(group) == 1 else ProcessGroupComm(group)
    if isinstance(group, EmulatedGroup):
        raise ValueError("group is an EmulatedGroup: wrap it once per rank, EmulatedComm(group), and share that")
    if hasattr(group, "start_all_reduce"):
        return group
    if isinstance(group, int) and group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("group: this rank is not in it; build the layer only on the ranks that are")
    raise ValueError(f"group must be a process group, a Comm, or None for a rank alone; got {group!r}")


def why_not_captured(comm: Comm) -> str | None:
    """The reason why collectives cannot be captured in a CUDA graph, in words; None where they can."""
    if comm.is_capturable:
        return None
    return "CUDA graphs hold NCCL's collectives only; those of this rank go through the host"
