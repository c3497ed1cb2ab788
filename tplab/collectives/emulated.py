"""An emulated link: messages over gloo that arrive as late as a declared latency and bandwidth say.

So that slow links, the ratios between NVLink, PCIe and InfiniBand, and the hiding of communication behind computation
can be felt on one laptop. Not a simulation: the data really moves, the waiting is real, and whatever computes meanwhile
really computes. Not ``tc netem`` either, which does this in the system's kernel but needs root and slows the whole
loopback.

The model of a directed link, one per ordered pair of ranks, each a queue of its own::

    start     = max(time of the send, time the link is free)
    link free = start + bytes / bandwidth
    arrival   = start + bytes / bandwidth + latency

The latency is paid by every message and does not occupy the link; the receiver's buffers are endless, so a message
travels whether or not its receive was posted. Known to be wrong: real links share switches and host memory, and have
packets, credits and rendezvous; here two links never slow each other down.

How: each message carries the time of its send on the host's monotonic clock, which all processes of a machine share.
Both ends compute the same times from it, and complete the send (when the last byte has left) and the receive (at the
arrival) no earlier. gloo must be faster than the declared link: otherwise messages are late, and the handle says by how
much. On one machine only, and on the CPU.

How true: where cores are to spare, 100 us and 1 GB/s come out within 5 % from 4 MiB on and 25 us too long for one short
message; a ring of short messages takes twice the declared latencies, as gloo itself needs 100 to 200 us a step. Where
ranks compete for cores, one can wait 4 ms for its turn. So declare a millisecond and some 0.1 GB/s where a figure must
be true on a laptop, and choose the message sizes to match.
"""

import ctypes
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tplab.checks import check_one_of
from tplab.collectives.emulated_link import EmulatedLink as EmulatedLink
from tplab.collectives.emulated_link import LinkTable as LinkTable
from tplab.collectives.one_shot import one_shot_all_reduce
from tplab.collectives.recursive_doubling import recursive_doubling_all_reduce
from tplab.collectives.ring import ring_all_reduce
from tplab.collectives.transport import Message
from tplab.collectives.two_shot import two_shot_all_reduce
from tplab.measure.columns import link_text

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_IN_WHOLE_MESSAGES = {
    "two-shot": two_shot_all_reduce,
    "recursive-doubling": recursive_doubling_all_reduce,
    "one-shot": one_shot_all_reduce,
}
ALGORITHMS = ("ring", *_IN_WHOLE_MESSAGES)
"""Names of all-reduces that run over emulated links."""
_TAG = 7_405  # keeps our messages apart from others on the same group
_STAMP_BYTES = 8
# Up to here the stamp travels in front of the payload, at the price of a copy; above it in a message of its own.
_JOINED_BYTES = 32 << 10
# Only the last bit is spun: ranks that spin for longer take the cores from gloo's own threads.
_SPIN_NS = 40_000
_SPIN_COARSE_NS = 100_000  # where the timer's slack of 50 us cannot be changed
_PR_SET_TIMERSLACK = 29
_DELIVERIES_KEPT = 4096
_LINE_UP_NS = 1_000_000  # longer than a barrier takes


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """A message that this rank has received. Times in seconds of ``time.monotonic``, the same on all ranks."""

    src: int
    """Index of the sender in the group."""
    num_bytes: int
    """Bytes of the message."""
    sent_s: float
    """Time at which the send was called, in seconds of the host's monotonic clock, as all times here."""
    start_s: float
    """Time at which the link was free for the message."""
    due_s: float
    """Time at which the message arrives by the model."""
    done_s: float
    """Time at which ``wait`` returned."""
    late_us: float
    """Microseconds by which ``wait`` overran: the arrival, or its own call where that came later. More than some 20 us:
    gloo, or the machine's load, was slower than the declared link."""


class _Link:
    """The clock of one directed link, kept at both of its ends."""

    def __init__(self, link: EmulatedLink) -> None:
        self._link = link
        self._free_ns = 0
        self.unstamped: deque[_Receive] = deque()
        """Messages whose stamp has not been read at the receiving end, in the order in which they were sent."""

    def pass_through(self, sent_ns: int, num_bytes: int) -> tuple[int, int, int]:
        """Start, end of transmission and arrival of the next message."""
        start_ns = max(sent_ns, self._free_ns)
        self._free_ns = start_ns + self._link.transmission_ns(num_bytes)
        return start_ns, self._free_ns, self._free_ns + self._link.latency_ns


class EmulatedHandle:
    """One message or a batch of them, under way."""

    def __init__(self, parts: "Sequence[_Send | _Receive]") -> None:
        self._parts = parts
        self.late_us: float | None = None
        """The worst :attr:`Delivery.late_us` among the received messages, 0 for sends; None until waited for."""

    def wait(self) -> None:
        """Return when all of it has left (sends) and arrived (receives), by the model and in fact.

        Only here time is spent waiting: what is computed between the call and ``wait`` overlaps the transfer.
        """
        if self.late_us is not None:
            return
        called_ns = time.monotonic_ns()
        due_ns = max((part.finish() for part in self._parts), default=0)
        sleep_until(due_ns)
        done_ns = time.monotonic_ns()
        receives = [part for part in self._parts if isinstance(part, _Receive)]
        self.late_us = max((part.log(called_ns, due_ns, done_ns) for part in receives), default=0.0)


class EmulatedGroup:
    """The ranks of a gloo group, joined by emulated links. Made on every rank, without communication.

    Peers are indices in the group. It is a :class:`~tplab.collectives.transport.Transport`, so every algorithm of this
    package runs over it unchanged: ``ring_all_reduce(x, emulated)``.

    Args:
        group: a process group with gloo; what else it is used for does not pass the emulated links.
        links: a table, or one link for all pairs.

    Raises:
        ValueError: a group without gloo, or a table for ranks that the group does not have.
    """

    device_types = frozenset({"cpu"})

    def __init__(self, group: "ProcessGroup", links: LinkTable | EmulatedLink) -> None:
        if not isinstance(group, dist.ProcessGroup) or dist.get_backend(group) != "gloo":
            raise ValueError(f"group must be a process group with the gloo backend; got {group!r}")
        self.links = LinkTable(default=links) if isinstance(links, EmulatedLink) else links
        self.index = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        strangers = [pair for pair in self.links.overrides if max(pair) >= self.size]
        if strangers:
            raise ValueError(f"links: {strangers[0]} is not a pair of ranks of a group of {self.size}")
        self.deliveries: deque[Delivery] = deque(maxlen=_DELIVERIES_KEPT)
        """The last messages received, oldest first."""
        self._group = group
        peers = [peer for peer in range(self.size) if peer != self.index]
        self._outgoing = {peer: _Link(self.links.link(self.index, peer)) for peer in peers}
        self._incoming = {peer: _Link(self.links.link(peer, self.index)) for peer in peers}

    def isend(self, tensor: torch.Tensor, dst: int) -> EmulatedHandle:
        """Start a message to ``dst``. The tensor must not be changed until ``wait`` has returned."""
        return self.batch([(tensor, dst)], [])

    def irecv(self, tensor: torch.Tensor, src: int) -> EmulatedHandle:
        """Start to receive the next message from ``src`` into a contiguous tensor."""
        return self.batch([], [(tensor, src)])

    def batch(self, sends: Iterable[Message], recvs: Iterable[Message]) -> EmulatedHandle:
        """Start several messages, pairs ``(tensor, peer)``, and wait for them together."""
        sends, recvs = list(sends), list(recvs)
        for (tensor, peer), name in [(one, "dst") for one in sends] + [(one, "src") for one in recvs]:
            self._check(tensor, peer, name)
        parts: list[_Send | _Receive] = [_Send(self._outgoing[dst], tensor, dst, self._group) for tensor, dst in sends]
        for tensor, src in recvs:
            parts.append(_Receive(self._incoming[src], tensor, src, self._group, self.deliveries))
        return EmulatedHandle(parts)

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> EmulatedHandle:
        """:meth:`batch` under the name that the algorithms use."""
        return self.batch(sends, recvs)

    def all_reduce(self, tensor: torch.Tensor, algorithm: str = "ring", *, segment_bytes: int | None = None) -> None:
        """Sum ``tensor`` over the group, in place.

        Args:
            algorithm: one of ``ALGORITHMS``.
            segment_bytes: for the ring. None: one message per step, the textbook's ring; see ``ring_all_reduce``.
        """
        if algorithm == "ring":
            ring_all_reduce(tensor, self, segment_bytes=segment_bytes)
            return
        check_one_of("algorithm", algorithm, ALGORITHMS)
        if segment_bytes is not None:
            raise ValueError(f"segment_bytes={segment_bytes} is for algorithm='ring'; got algorithm={algorithm!r}")
        _IN_WHOLE_MESSAGES[algorithm](tensor, self)

    def line_up(self) -> None:
        """Return on all ranks at the same time, to some microseconds.

        A barrier lets them go 50 to 200 us apart, which a measurement would count as the links'. Here the barrier says
        when, by the clock that all ranks share.
        """
        start = torch.tensor([time.monotonic_ns() + _LINE_UP_NS])
        dist.all_reduce(start, dist.ReduceOp.MAX, group=self._group)
        sleep_until(int(start))

    @property
    def late_us(self) -> float:
        """The worst among ``deliveries``; 0 before the first."""
        return max((delivery.late_us for delivery in self.deliveries), default=0.0)

    def _check(self, tensor: torch.Tensor, peer: int, name: str) -> None:
        if not 0 <= peer < self.size or peer == self.index:
            raise ValueError(
                f"{name} must be another rank of the group, 0 to {self.size - 1}; rank {self.index} got {peer}"
            )
        if tensor.device.type != "cpu":
            raise ValueError(f"tensor must be on the cpu for an emulated link; it is on {tensor.device}")
        if not tensor.is_contiguous():
            raise ValueError(
                f"tensor must be contiguous; its shape is {tuple(tensor.shape)}, its strides are {tensor.stride()}"
            )

    def __repr__(self) -> str:
        return f"<EmulatedGroup: rank {self.index} of {self.size}, {link_text(self.links)}>"


class _Send:
    def __init__(self, link: _Link, tensor: torch.Tensor, dst: int, group: "ProcessGroup") -> None:
        sent_ns = time.monotonic_ns()
        num_bytes = tensor.numel() * tensor.element_size()
        _, self._end_ns, _ = link.pass_through(sent_ns, num_bytes)
        payload = _as_bytes(tensor)
        joined = num_bytes <= _JOINED_BYTES
        stamped = torch.empty(_STAMP_BYTES + (num_bytes if joined else 0), dtype=torch.uint8)
        # Through numpy, and by the group's own methods: the wrappers would cost a small message half its time.
        in_numpy = stamped.numpy()
        in_numpy[:_STAMP_BYTES].view("int64")[0] = sent_ns
        if joined:
            in_numpy[_STAMP_BYTES:] = payload.numpy()
        self._buffers = [stamped] if joined else [stamped, payload]  # gloo reads them until the works are done
        self._works = [group.send([buffer], dst, _TAG) for buffer in self._buffers]

    def finish(self) -> int:
        for work in self._works:
            work.wait()
        return self._end_ns


class _Receive:
    def __init__(
        self, link: _Link, tensor: torch.Tensor, src: int, group: "ProcessGroup", deliveries: "deque[Delivery]"
    ) -> None:
        self._link = link
        self._src = src
        self._deliveries = deliveries
        self._payload = _as_bytes(tensor)
        self._num_bytes = num_bytes = self._payload.numel()
        self._joined = num_bytes <= _JOINED_BYTES
        self._stamp = torch.empty(_STAMP_BYTES + (num_bytes if self._joined else 0), dtype=torch.uint8)
        buffers = [self._stamp] if self._joined else [self._stamp, self._payload]
        self._works = deque(group.recv([buffer], src, _TAG) for buffer in buffers)
        self._sent_ns = self._start_ns = self._due_ns = 0
        link.unstamped.append(self)

    def finish(self) -> int:
        while self._due_ns == 0:  # the link's times follow from those of the messages before this one
            self._link.unstamped.popleft()._read_stamp()
        for work in self._works:
            work.wait()
        self._works.clear()
        if self._joined:
            self._payload.numpy()[:] = self._stamp.numpy()[_STAMP_BYTES:]
        return self._due_ns

    def _read_stamp(self) -> None:
        self._works.popleft().wait()  # only once: gloo would wait for another message
        self._sent_ns = int(self._stamp.numpy()[:_STAMP_BYTES].view("int64")[0])
        self._start_ns, _, self._due_ns = self._link.pass_through(self._sent_ns, self._num_bytes)

    def log(self, called_ns: int, batch_due_ns: int, done_ns: int) -> float:
        """Note the delivery; how late it was. Messages waited for together are done together."""
        late_us = max(0, done_ns - max(batch_due_ns, called_ns)) / 1e3
        self._deliveries.append(
            Delivery(
                src=self._src,
                num_bytes=self._num_bytes,
                sent_s=self._sent_ns / 1e9,
                start_s=self._start_ns / 1e9,
                due_s=self._due_ns / 1e9,
                done_s=done_ns / 1e9,
                late_us=late_us,
            )
        )
        return late_us


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


def sleep_until(due_ns: int) -> None:
    """Sleep, then spin: accurate to some microseconds where a core is free."""
    left_ns = due_ns - time.monotonic_ns()
    if left_ns > _SPIN_NS:
        fine = _set_timer_slack(1)
        spin_ns = _SPIN_NS if fine else _SPIN_COARSE_NS
        if left_ns > spin_ns:
            time.sleep((left_ns - spin_ns) / 1e9)
        if fine:
            _set_timer_slack(0)  # this thread's default again
    while time.monotonic_ns() < due_ns:
        pass


@cache
def _prctl() -> Any:
    return getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None


def _set_timer_slack(nanoseconds: int) -> bool:
    """How late Linux may wake this thread from a sleep, to save wake-ups; 0 for the default, 50 us."""
    prctl = _prctl()
    return prctl is not None and prctl(_PR_SET_TIMERSLACK, nanoseconds, 0, 0, 0) == 0
