"""The collectives of ranks with a GPU each: small all-reduces by our kernels, which write into the other GPUs' memory.

A decode step has two sums per layer, of a few kilobytes: their time is latency, and NCCL's is several times that of a
way over NVLink. So sums go by size: in one step, in two, and the long ones of a prefill through NCCL. All can be
captured in a CUDA graph: the kernels count their calls in memory, and their buffers stay where they are. A tensor need
not lie in any special memory, for the kernels push from wherever it is.

Collectives that are to run beside computation (``start_...``) stay NCCL's: ours take the stream they are called on.
"""

import importlib.util
import os
import socket
import zlib
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from tplab.collectives import peer_memory
from tplab.collectives.limits import Limits, limits_key
from tplab.collectives.peer_memory import MOST_RANKS, PeerMemory
from tplab.collectives.sweep_plan import MOST_ONE_SHOT_BYTES
from tplab.layers.comm import Comm, ProcessGroupComm, RecordingComm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from tplab.cluster import Rank

ALGORITHMS = ("one-shot", "two-shot", *peer_memory.NARROW)
"""Ways to sum in one kernel, of which the last two are quantised."""
_LEAST_MEMORY_BYTES, _MOST_MEMORY_BYTES = 8 << 20, 32 << 20
"""Longest two-shot message that memory is kept for, at least and at most; it takes twice as much of each GPU."""


class SymmetricComm(ProcessGroupComm):
    """Collectives of an NCCL group whose ranks have a GPU each and reach each other's memory.

    ==================  ======================================  =========================================
    message             way                                     bytes that a rank sends
    ==================  ======================================  =========================================
    to one_shot_bytes   ``peer_memory.one_shot``                2 (n-1) S
    to two_shot_bytes   ``peer_memory.two_shot``                2 (n-1)/n S
    longer, or of       NCCL                                    2 (n-1)/n S in a ring
    another dtype
    ==================  ======================================  =========================================

    The kernels add in rank order and float32 and round once; NCCL in an order of its own.

    Args:
        group: the ranks.
        memory: of the same ranks.
        limits: largest messages of each way.
    """

    def __init__(self, group: "ProcessGroup", memory: PeerMemory, limits: Limits) -> None:
        super().__init__(group)
        self.memory, self.limits = memory, limits

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        num_bytes = x.numel() * x.element_size()
        if num_bytes <= self.limits.one_shot_bytes and self.memory.takes(x, MOST_ONE_SHOT_BYTES):
            return peer_memory.one_shot(x, self.memory)
        if num_bytes <= self.limits.two_shot_bytes and self.memory.takes(x, self.memory.most_bytes):
            return peer_memory.two_shot(x, self.memory)
        return super().all_reduce(x)

    def all_reduce_by(self, algorithm: str, x: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place, by one of ``ALGORITHMS``; in pieces where ``x`` is longer than the memory."""
        most = MOST_ONE_SHOT_BYTES if algorithm == "one-shot" else self.memory.most_bytes
        for piece in torch.split(x.view(-1), most // x.element_size()):
            if algorithm == "one-shot":
                peer_memory.one_shot(piece, self.memory)
            elif algorithm == "two-shot":
                peer_memory.two_shot(piece, self.memory)
            else:
                peer_memory.quantised_two_shot(piece, self.memory, algorithm)
        return x

    def fuses(self, x_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor) -> bool:
        """Whether :meth:`sum_add_norm` is the way for these tensors."""
        most = min(self.limits.one_shot_bytes, MOST_ONE_SHOT_BYTES)
        like = x_TD.dtype is residual_TD.dtype is weight_D.dtype
        fits = like and x_TD.dim() == 2 and 0 < x_TD.shape[0] <= 256
        return fits and all(self.memory.takes(each, most) for each in (x_TD, residual_TD, weight_D))

    def sum_add_norm(
        self, x_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor, eps: float, offset: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``tplab.layers.sum_norm``, in one kernel.

        Args:
            x_TD: own addend, at most 256 rows.
            residual_TD: the same on every rank.
            weight_D: of the norm.
            eps: added to the mean square.
            offset: added to the weights.
        """
        return peer_memory.all_reduce_add_rms_norm(x_TD, residual_TD, weight_D, self.memory, eps=eps, offset=offset)


def symmetric_of(comm: Comm) -> SymmetricComm | None:
    """The ``SymmetricComm`` that this is, or that it records; None where it is another."""
    inner = comm.inner if isinstance(comm, RecordingComm) else comm
    return inner if isinstance(inner, SymmetricComm) else None


def gpu_comm(rank: "Rank", group: "ProcessGroup", limits: Limits | None = None) -> ProcessGroupComm:
    """The fastest collectives there are for an NCCL group: a :class:`SymmetricComm` where it can be, else NCCL's.

    A collective: all ranks of the group get the same kind.

    Args:
        limits: by default those of the last sweep on these ranks that had our kernels and the library's, or else
            :meth:`Limits.default`.

    Raises:
        RuntimeError: memory that should be possible by what the driver says and is not, with the way out.
    """
    if why_not_symmetric(rank.device, group) is not None:
        return ProcessGroupComm(group)
    limits = limits or rank.store.get(limits_key(group.size())) or Limits.default(group.size())
    most = min(max(limits.two_shot_bytes, _LEAST_MEMORY_BYTES), _MOST_MEMORY_BYTES)
    try:
        memory = peer_memory.memory_of(rank, group, most)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        way_out = "set TPLAB_SYMMETRIC=0 in the environment before ranks start, and all sums go by NCCL"
        raise RuntimeError(f"memory that GPUs write to each other could not be made: {error}; {way_out}") from error
    return SymmetricComm(group, memory, limits)


def why_not_symmetric(device: torch.device, group: "ProcessGroup") -> str | None:
    """The reason why these ranks cannot write into each other's memory, in words; None where they can.

    A collective: all ranks of the group learn the same. With ``TPLAB_SYMMETRIC=0`` in the environment, so that they
    are compared with NCCL's, they are said not to.
    """
    if dist.get_backend(group) != "nccl":
        return f"symmetric memory needs NCCL; these ranks speak {dist.get_backend(group)}"
    if os.environ.get("TPLAB_SYMMETRIC") == "0":
        return "TPLAB_SYMMETRIC=0 leaves all sums to NCCL, to compare"
    if group.size() > MOST_RANKS:
        return f"the kernels are made for up to {MOST_RANKS} ranks; these are {group.size()}"
    index = torch.cuda.current_device() if device.index is None else device.index
    uuid = str(torch.cuda.get_device_properties(index).uuid)
    mine = [importlib.util.find_spec("triton") is not None, *(zlib.crc32(w.encode()) for w in (_host(), uuid)), index]
    every = _gathered(mine, device, group)
    if not all(has for has, *_ in every):
        return "the kernels need Triton, which is not installed"
    if len({host for _, host, *_ in every}) > 1:
        return "the ranks are on several hosts"
    if os.environ.get("TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES") == "1":
        return None  # for tests: ranks that share a GPU, and take turns of milliseconds
    if len({gpu for *_, gpu, _ in every}) < len(every):
        return "several ranks share a GPU"
    peers = [peer for *_, peer in every if peer != index]
    reach = len(peers) == len(every) - 1 and all(
        peer < torch.cuda.device_count() and torch.cuda.can_device_access_peer(index, peer) for peer in peers
    )
    if not all(all(each) for each in _gathered([reach], device, group)):
        return "not all of these GPUs reach each other's memory"
    return None


def _host() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read()
    except OSError:
        return socket.gethostname()


def _gathered(mine: list[int] | list[bool], device: torch.device, group: "ProcessGroup") -> list[list[int]]:
    """Numbers of every rank."""
    row = torch.tensor([int(number) for number in mine], dtype=torch.int64, device=device)
    every = [torch.empty_like(row) for _ in range(group.size())]
    dist.all_gather(every, row, group=group)
    return [each.tolist() for each in every]
