"""What an all-reduce algorithm needs from below: an index, a size, and messages that start without blocking.

Algorithms are written against ``Transport`` and not against ``torch.distributed``, so that the same code runs over a
real process group (``ProcessGroupTransport``) and over a declared link (``tplab.collectives.emulated``). One call,
``exchange``, is the whole interface: a blocking send after a blocking send deadlocks as soon as messages outgrow the
buffers, and NCCL wants the sends and receives that belong together in one batch.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Message: TypeAlias = tuple[torch.Tensor, int]
"""A contiguous tensor and the peer (index in the group) that it goes to or comes from."""
_TAG = 0


class Handle(Protocol):
    """Messages under way."""

    def wait(self) -> None:
        """Return when what was received can be read and what was sent can be overwritten.

        On a GPU the current stream waits, not the host, as everywhere in ``torch.distributed``.
        """


class Transport(Protocol):
    """Moves messages between the ranks of one group. Peers are indices in the group, never global ranks."""

    @property
    def index(self) -> int:
        """This rank's place in the group, 0 to ``size - 1``."""

    @property
    def size(self) -> int:
        """How many ranks the group has."""

    @property
    def device_types(self) -> frozenset[str]:
        """Device types that tensors may be on: ``cpu``, ``cuda``; empty if any."""

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Handle:
        """Start all messages. Messages between the same two ranks arrive in the order in which they were started."""


class _Works:
    __slots__ = ("_works",)

    def __init__(self, works: "list[dist.Work]") -> None:
        self._works = works

    def wait(self) -> None:
        for work in self._works:
            work.wait()


class ProcessGroupTransport:
    """Point-to-point messages of a process group, one by one or in one batch per exchange.

    gloo's go one by one, through the group's own methods: ``batch_isend_irecv`` does the same in twice the time (110
    instead of 60 us until the rank can go on). NCCL runs the messages of a group one after the other, so those that
    cross need a batch. Warm the group up with any collective first: NCCL connects on the first batch, and then wants
    all ranks in it, which the fold of recursive doubling does not give.

    Args:
        batched: the messages of an exchange are one batch; by default with NCCL only. Both ends must do the same:
            NCCL's messages outside of a batch have a connection per pair of ranks.
    """

    def __init__(self, group: "ProcessGroup", *, batched: bool | None = None) -> None:
        self._group = group
        self._index = dist.get_rank(group)
        if self._index < 0:
            raise ValueError("group: this rank is not a member of it; call only on the ranks that are")
        self._size = dist.get_world_size(group)
        backend = dist.get_backend(group)
        self._batched = backend == "nccl" if batched is None else batched
        # P2POp wants global ranks: in a subgroup they are not the indices.
        self._global_ranks = [dist.get_global_rank(group, index) for index in range(self._size)]
        self._device_types = _DEVICE_TYPES.get(backend, frozenset[str]())

    @property
    def index(self) -> int:
        return self._index

    @property
    def size(self) -> int:
        return self._size

    @property
    def device_types(self) -> frozenset[str]:
        return self._device_types

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Handle:
        # Receives first: gloo can then push the data of a send straight from the calling thread of the peer.
        if not self._batched:
            works = [self._group.recv([tensor], peer, _TAG) for tensor, peer in recvs]
            return _Works([*works, *(self._group.send([tensor], peer, _TAG) for tensor, peer in sends)])
        operations = [self._operation(dist.irecv, *message) for message in recvs]
        operations += [self._operation(dist.isend, *message) for message in sends]
        return _Works(dist.batch_isend_irecv(operations) if operations else [])

    def _operation(self, call: Callable[..., Any], tensor: torch.Tensor, peer: int) -> dist.P2POp:
        return dist.P2POp(call, tensor, self._global_ranks[peer], self._group)


# gloo lists cuda among its devices, for collectives that copy through the host; its point-to-point calls do not.
_DEVICE_TYPES = {"gloo": frozenset({"cpu"}), "nccl": frozenset({"cuda"})}


class NullTransport:
    """A place in a group whose other ranks are not there: nothing is sent, and what is received is what was in the
    buffer. By default a group of one, where that is right."""

    device_types: frozenset[str] = frozenset()

    def __init__(self, index: int = 0, size: int = 1) -> None:
        self.index, self.size = index, size

    def exchange(self, sends: Sequence[Message], recvs: Sequence[Message]) -> Handle:
        return _Works([])


def check_alone() -> None:
    """Raises ``ValueError`` where a group that is left out cannot stand for a rank alone."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        ranks = dist.get_world_size()
        raise ValueError(f"group must be given: there are {ranks} ranks, and None stands for a rank alone: rank.group")


def as_transport(group: "ProcessGroup | Transport | None") -> Transport:
    """The transport over a process group; a transport is returned as it is; None: a rank alone.

    None never means torch's default group: a sum that silently ran over the wrong ranks, or over none, is worse than
    an error. So it is refused where there is a default group of several ranks.
    """
    if group is None:
        check_alone()
        return NullTransport()
    if isinstance(group, dist.ProcessGroup):
        return ProcessGroupTransport(group)
    if hasattr(group, "exchange"):  # isinstance with a Protocol takes longer than a small message
        return group
    raise ValueError(f"group must be a process group that this rank belongs to, or a Transport; got {group!r}")


@contextmanager
def flat_view(tensor: torch.Tensor, transport: Transport) -> Iterator[torch.Tensor]:
    """The elements of ``tensor`` as one contiguous row that an algorithm may change in place.

    A view where the tensor is contiguous. Otherwise a copy, written back at the end: messages have to be contiguous,
    and a view in memory order would differ between ranks whose tensors have different strides.
    """
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"tensor must be a torch.Tensor; got {type(tensor).__name__}")
    allowed = transport.device_types
    if allowed and tensor.device.type not in allowed:
        raise ValueError(
            f"tensor is on {tensor.device}, but this group's messages need it on {' or '.join(sorted(allowed))}"
        )
    if tensor.layout is not torch.strided:
        raise ValueError(f"tensor must be dense (torch.strided); its layout is {tensor.layout}")
    if any(stride == 0 and length > 1 for stride, length in zip(tensor.stride(), tensor.shape, strict=True)):
        raise ValueError(
            f"tensor of shape {tuple(tensor.shape)} and strides {tensor.stride()} is expanded: several of its elements "
            f"share one place in memory and cannot hold a sum in place; pass tensor.contiguous()"
        )
    with torch.no_grad():
        data = tensor.detach()
        if data.is_complex():
            data = torch.view_as_real(data)  # NCCL knows no complex numbers
        row = data.reshape(-1)  # a view where the tensor is contiguous, else a copy
        row = row if row.is_contiguous() else row.contiguous()
        yield row
        if row.data_ptr() != data.data_ptr():
            data.copy_(row.view(data.shape))


class _Kept(threading.local):
    """Scratch memory of this thread's last algorithm: fresh pages cost a fifth of a 16 MiB ring over gloo."""

    buffer: torch.Tensor | None = None


_kept = _Kept()
_KEPT_BYTES = 16 << 20


@contextmanager
def scratch_like(tensor: torch.Tensor, num_elements: int) -> Iterator[torch.Tensor]:
    """A row of ``num_elements``, dtype and device of ``tensor``; its content is left over from anything.

    On the CPU the same memory again from call to call, up to 16 MiB per thread. On a GPU torch's allocator does that,
    and knows about streams and graphs, which this does not.
    """
    if tensor.device.type != "cpu":
        yield tensor.new_empty(num_elements)
        return
    num_bytes = num_elements * tensor.element_size()
    # Taken out while in use, and lost if the algorithm raises: a message may still arrive in it.
    buffer, _kept.buffer = _kept.buffer, None
    if buffer is None or buffer.numel() < num_bytes:
        with torch.inference_mode(False):  # a tensor made in inference mode could not be written outside
            buffer = torch.empty(num_bytes, dtype=torch.uint8)
    yield buffer[:num_bytes].view(tensor.dtype)
    if buffer.numel() <= _KEPT_BYTES:
        _kept.buffer = buffer


def split_evenly(length: int, parts: int) -> list[tuple[int, int]]:
    """Start and end of each part by the rule of ``torch.tensor_split``: the first ``length % parts`` are one longer."""
    shorter, longer = divmod(length, parts)
    ends = [(part + 1) * shorter + min(part + 1, longer) for part in range(parts)]
    return list(zip([0, *ends[:-1]], ends, strict=True))
