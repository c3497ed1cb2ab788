"""Messages between the stages of a pipeline: started in the order of the table, shapes announced once.

A directed pair of ranks is a queue. The sender starts its messages in the order of its table and never waits for one
before the end of the run; the receiver posts its receives in the order of its own table, which a valid table makes the
same. So a rank only ever waits for data that it is about to use, and no message is too large for that. (A blocking send
waits for the peer, which may be sending, too.) What has been sent is kept in memory until the run ends: gloo does not
say when it is out, short of waiting for it.

The receiver learns shapes and dtypes from a header in front of the first message of each boundary between two stages,
not from a trial run: a stage may keep state, which a trial would spoil.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from tplab.collectives.transport import Handle, Transport
from tplab.pipeline.schedule import Action, Op

Key = Action
"""A message is known by the computation that made it: F, or B for both B and I."""

Boundary = tuple[Op, int, object]
"""Messages of the same shapes: op and stage that make them, and phase or micro-batch."""


class Meta(NamedTuple):
    """One tensor of a message."""

    dtype: torch.dtype
    requires_grad: bool
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.shape}"


Metas = tuple[Meta, ...]

_HEADER_LENGTH = 64
_MAX_DIMS = 6
_MAX_TENSORS = (_HEADER_LENGTH - 1) // (3 + _MAX_DIMS)
_DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16),
    *(torch.int8, torch.uint8, torch.bool),
)


def describe(tensors: Sequence[torch.Tensor]) -> Metas:
    return tuple(Meta(t.dtype, t.requires_grad, tuple(t.shape)) for t in tensors)


def text_of(metas: Metas) -> str:
    """``float32 (4, 8)``, or several joined by ``and``."""
    return " and ".join(map(str, metas)) or "nothing"


def header_of(metas: Metas, sender: str) -> torch.Tensor:
    """What the receiver has to know, as whole numbers. Raises ``ValueError`` for what messages cannot carry."""
    if len(metas) > _MAX_TENSORS:
        raise ValueError(f"{sender} has {len(metas)} tensors; a message carries at most {_MAX_TENSORS}")
    header = torch.zeros(_HEADER_LENGTH, dtype=torch.int64)
    numbers = [len(metas)]
    for meta in metas:
        if meta.dtype not in _DTYPES:
            raise ValueError(f"{sender} has dtype {meta.dtype}; messages carry {', '.join(map(str, _DTYPES))}")
        if len(meta.shape) > _MAX_DIMS:
            raise ValueError(f"{sender} has shape {meta.shape}; messages carry at most {_MAX_DIMS} dimensions")
        padded = [*meta.shape, *[0] * (_MAX_DIMS - len(meta.shape))]
        numbers += [_DTYPES.index(meta.dtype), int(meta.requires_grad), len(meta.shape), *padded]
    header[: len(numbers)] = torch.tensor(numbers)
    return header


def metas_in(header: torch.Tensor) -> Metas:
    """Tensor metadata from a header that :func:`header_of` wrote."""
    numbers = header.tolist()
    metas = []
    for at in range(1, 1 + numbers[0] * (3 + _MAX_DIMS), 3 + _MAX_DIMS):
        dtype, requires_grad, num_dims = numbers[at : at + 3]
        metas.append(Meta(_DTYPES[dtype], bool(requires_grad), tuple(numbers[at + 3 : at + 3 + num_dims])))
    return tuple(metas)


@dataclass(frozen=True, slots=True)
class Route:
    """The queue from this rank to another, or from it; ``tplab.pipeline.routes`` makes them."""

    payload: Transport
    header: Transport
    peer: int
    """Index of the other end in both transports."""


@dataclass(slots=True, eq=False)
class _Expected:
    """A message that was posted, in the order of its link."""

    key: Key
    boundary: Boundary
    header: torch.Tensor | None = None
    header_handle: Handle | None = None
    tensors: tuple[torch.Tensor, ...] | None = None
    handle: Handle | None = None


class Channels:
    """All messages of one rank in one run."""

    def __init__(self, outgoing: dict[int, Route], incoming: dict[int, Route], device: torch.device) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._device = device
        self._told: dict[Boundary, Metas] = {}
        self._known: dict[Boundary, Metas] = {}
        self._queues: dict[int, deque[_Expected]] = {src: deque() for src in incoming}
        self._posted: dict[Key, tuple[int, _Expected]] = {}
        self._kept: list[tuple[Handle, Any]] = []

    def know(self, boundary: Boundary, metas: Metas) -> None:
        """Set the metadata of messages that this rank knows beforehand; the sender announces nothing for them."""
        if boundary not in self._known:
            self._known[boundary] = metas
            for src in self._queues:
                self._start(src)

    def agree(self, boundary: Boundary, metas: Metas) -> None:
        """Set the shapes of a boundary that all ranks know from the beginning."""
        self._known[boundary] = self._told[boundary] = metas

    def send(self, dst: int, boundary: Boundary, tensors: Sequence[torch.Tensor], metas: Metas, sender: str) -> None:
        """Start a message; ``tensors`` must not change until :meth:`finish`.

        Args:
            sender: who sends what, for errors.
        """
        route = self._outgoing[dst]
        if boundary[0] is Op.F and boundary not in self._told:
            header = header_of(metas, sender).to(self._device)
            self._kept.append((route.header.exchange([(header, route.peer)], []), header))
            self._told[boundary] = metas
        messages = [(tensor.contiguous(), route.peer) for tensor in tensors]
        if messages:
            self._kept.append((route.payload.exchange(messages, []), messages))

    def told(self, boundary: Boundary) -> Metas | None:
        """Tensor metadata last announced to the receiver; None before the first message."""
        return self._told.get(boundary)

    def post(self, src: int, key: Key, boundary: Boundary) -> None:
        """Post a receive for the next message from ``src``."""
        expected = _Expected(key, boundary)
        self._queues[src].append(expected)
        self._posted[key] = src, expected
        self._start(src)

    def take(self, key: Key) -> tuple[tuple[torch.Tensor, ...], Metas]:
        """The message ``key``, posted before; waits for it."""
        src, expected = self._posted.pop(key)
        self._start(src)
        while expected.tensors is None:
            # Its shapes, or those of a message before it on this link, are still under way.
            head = self._queues[src][0]
            assert head.header is not None, f"{head.key} is waited for before its shapes can be known"
            assert head.header_handle is not None
            head.header_handle.wait()
            self._known[head.boundary] = metas_in(head.header)
            self._start(src)
        if expected.handle is not None:
            expected.handle.wait()
        return expected.tensors, self._known[expected.boundary]

    def _start(self, src: int) -> None:
        """Start all receives from ``src`` whose shapes are known, in order."""
        queue, route = self._queues[src], self._incoming[src]
        while queue:
            head = queue[0]
            metas = self._known.get(head.boundary)
            if metas is None:
                if head.boundary[0] is Op.F and head.header is None:
                    head.header = torch.empty(_HEADER_LENGTH, dtype=torch.int64, device=self._device)
                    head.header_handle = route.header.exchange([], [(head.header, route.peer)])
                return
            queue.popleft()
            head.tensors = tuple(torch.empty(meta.shape, dtype=meta.dtype, device=self._device) for meta in metas)
            if head.tensors:
                head.handle = route.payload.exchange([], [(tensor, route.peer) for tensor in head.tensors])

    def finish(self) -> None:
        """Wait until everything has left."""
        for handle, _ in self._kept:
            handle.wait()
        self._kept.clear()
