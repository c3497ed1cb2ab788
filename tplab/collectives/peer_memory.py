"""Memory that GPUs write to each other, and the all-reduces over it in one kernel each.

Not torch's kernels (``symmetric``): those take only tensors that lie in such memory, have a barrier before and after
(6.4 us for 16 KiB in a graph on two H200, where ours takes 1.9 and NCCL 10.6), and no norm and no narrow numbers. Nor
the ``multimem`` ones: NVLink multicast stays off.

``PHASES`` of an algorithm are for ranks that are simulated in one process, see :meth:`PeerMemory.in_one_process`.

Legend: n ranks, S bytes of the tensor; T tokens, D features.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tplab.checks import ArgumentError, check_count, check_one_of
from tplab.collectives import symmetric
from tplab.collectives.sweep_plan import MOST_ONE_SHOT_BYTES

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from tplab.cluster import Rank

MOST_RANKS = 8
"""Ranks that the kernels are made for: the GPUs of a host."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of the tensors, in the order of the kernels' ``KIND``."""
NARROW = ("int8", "fp8")
"""What a quantised two-shot sends."""
ALL_PHASES = 0
"""A kernel as a whole, which waits for its peers."""
PHASES = {"one-shot": (1, 2), "two-shot": (1, 2, 3), "int8": (1, 2, 3), "fp8": (1, 2, 3)}
"""The parts of each kernel that do not wait."""
_MOST_BLOCKS = 256
_TWO_SHOT_BLOCKS, _QUANTISED_BLOCKS = 128, 256
"""Blocks of a large message, a block or two per processor of an H100: each has few loads under way at a time."""
_WORD = 4
_SLOT_WORDS = MOST_ONE_SHOT_BYTES // _WORD
_ROUNDING = 512
"""Bytes by which rounding can lengthen a rank's chunk."""


@dataclass(kw_only=True, slots=True, eq=False)
class PeerMemory:
    """A rank's view of the memory of all.

    One all-reduce at a time: calls of all ranks in the same order, on one stream each.
    """

    index: int
    """This rank's place in the group."""
    size: int
    """n."""
    most_bytes: int
    """The longest two-shot message."""
    table: torch.Tensor
    """(n,) int64 on the device: address of each rank's memory."""
    epochs: torch.Tensor
    """(256,) int32 on the device: calls so far."""
    held: Any
    """Whatever keeps the memory alive."""
    most_polls: int = 0
    """Looks at a flag that does not come, before the kernel ends with an error, which costs the rank its GPU context. 0
    is some 4 billion: an hour. For tests, which must not hang."""

    @classmethod
    def over(cls, group: "ProcessGroup", device: torch.device, most_bytes: int) -> "PeerMemory":
        """Memory of all ranks of ``group``. A collective: all must call it alike.

        Raises:
            RuntimeError: GPUs that cannot reach each other's memory, or several ranks on one.
            ValueError: more than 8 ranks.
        """
        import torch.distributed._symmetric_memory as symmetric_memory

        size = group.size()
        num_bytes = _places(size, most_bytes)["end"]
        memory = symmetric_memory.empty(num_bytes, dtype=torch.uint8, device=device)
        handle = symmetric.meet(memory, group)
        memory.zero_()
        torch.cuda.synchronize(device)
        group.barrier().wait()  # nobody writes before everybody has zeroed
        offset = getattr(handle, "offset", 0)  # of the tensor in the block that the addresses are of; since torch 2.12
        table = torch.tensor([address + offset for address in handle.buffer_ptrs], dtype=torch.int64, device=device)
        return cls._made(group.rank(), size, most_bytes, table, (memory, handle))

    @classmethod
    def in_one_process(cls, size: int, device: torch.device, most_bytes: int) -> "list[PeerMemory]":
        """Ranks that share a process and a device, for tests and for the time of a kernel without any link."""
        num_bytes = _places(size, most_bytes)["end"]
        memories = [torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in range(size)]
        table = torch.tensor([memory.data_ptr() for memory in memories], dtype=torch.int64, device=device)
        return [cls._made(index, size, most_bytes, table, memories) for index in range(size)]

    @classmethod
    def _made(cls, index: int, size: int, most_bytes: int, table: torch.Tensor, held: Any) -> "PeerMemory":
        epochs = torch.zeros(_MOST_BLOCKS, dtype=torch.int32, device=table.device)
        return cls(index=index, size=size, most_bytes=most_bytes, table=table, epochs=epochs, held=held)

    def takes(self, tensor: torch.Tensor, most_bytes: int) -> bool:
        """Whether the kernels can take a tensor, of at most ``most_bytes``."""
        num_bytes = tensor.numel() * tensor.element_size()
        return (
            tensor.dtype in DTYPES
            and tensor.is_contiguous()
            and not (num_bytes % _WORD or tensor.data_ptr() % _WORD)
            and num_bytes <= most_bytes
        )

    def check(self, tensor: torch.Tensor, most_bytes: int) -> None:
        """Raises ``ValueError`` for a tensor that the kernels cannot take, up to ``most_bytes``."""
        if self.takes(tensor, most_bytes):
            return
        if tensor.dtype not in DTYPES:
            raise ArgumentError("tensor", tensor.dtype, "must be float32, bfloat16 or float16 for these kernels")
        num_bytes = tensor.numel() * tensor.element_size()
        if num_bytes > most_bytes:
            raise ArgumentError("tensor", num_bytes, f"must have at most {most_bytes:,} bytes here")
        raise ArgumentError("tensor", tuple(tensor.shape), "must be contiguous and of whole words of 4 bytes")

    def _launch(self) -> dict[str, Any]:
        return {"table": self.table, "epochs": self.epochs, "polls": self.most_polls, "RANK": self.index}


def memory_of(rank: "Rank", group: "ProcessGroup", most_bytes: int) -> PeerMemory:
    """The memory that this rank shares with ``group``: what there is, or a longer one; see :meth:`PeerMemory.over`.

    Lives on the rank until ranks are replaced: the survivors' view of the others' memory is then gone, too.
    """
    # By its ranks, not by its name: that of a group in another world on the same ranks can be the same.
    key = "tplab.collectives.peer_memory", rank.world_size, tuple(dist.get_process_group_ranks(group))
    memory: PeerMemory | None = rank.store.get(key)
    if memory is None or memory.most_bytes < most_bytes:
        rank.store[key] = memory = PeerMemory.over(group, rank.device, most_bytes)
    return memory


def one_shot(
    x: torch.Tensor, memory: PeerMemory, out: torch.Tensor | None = None, phase: int = ALL_PHASES
) -> torch.Tensor:
    """The sum of ``x`` over the ranks, the same bits on all: every rank sends all to all, and adds up by itself.

    ==================  =========================  ==================================================
    on rank r           shape, dtype               what
    ==================  =========================  ==================================================
    x                   any, S bytes               own addend
    slot q              (S/4,) int64               what rank q has sent: 4 bytes of it, 4 of a flag
    out                 as x                       the sum; by default in place
    ==================  =========================  ==================================================

    Equation: ``out = x_0 + x_1 + ...``, in rank order and float32, rounded once.

    Bytes that a rank writes over the links: ``2 (n-1) S``, in one step: the flags are half of them.

    Source: the flagged words of NCCL's protocol LL (Hu and others, "Demystifying NCCL", 2025); one-shot as in
    TensorRT-LLM's and vLLM's custom all-reduce, which read where this writes.
    """
    from tplab.collectives.peer_kernels import one_shot_kernel

    memory.check(x, MOST_ONE_SHOT_BYTES)
    out = x if out is None else out
    num_words = _words(x)
    if num_words:
        block, warps = (256, 8) if num_words <= 16384 else (1024, 8)
        one_shot_kernel[(-(-num_words // block),)](
            x.view(-1).view(torch.int32), out.view(-1).view(torch.int32), num_words=num_words, N=memory.size,
            KIND=DTYPES.index(x.dtype), SLOT=_SLOT_WORDS, BLOCK=block, PACK=block // (32 * warps), PHASE=phase,
            num_warps=warps, **memory._launch(), **_following(x, phase),
        )  # fmt: skip
    return out


def all_reduce_add_rms_norm(
    x_TD: torch.Tensor,
    residual_TD: torch.Tensor,
    weight_D: torch.Tensor,
    memory: PeerMemory,
    *,
    eps: float,
    offset: float = 0.0,
    phase: int = ALL_PHASES,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual with the sum of ``x`` over the ranks added, and its RMSNorm, as one kernel; see
    ``tplab.layers.sum_norm``.

    Equation: ``h = residual + (x_0 + x_1 + ...)``; ``y = h / sqrt(mean(h²) + eps) · (offset + weight)``. The sum is
    made in float32 and rounded, ``h`` is rounded: its bits are those of :func:`one_shot` and an addition. ``y`` is
    computed from the rounded ``h`` in float32.

    Bytes that a rank writes over the links: as :func:`one_shot`. In its own memory: reads x, residual and weight once,
    writes h and y once; separate kernels read and write the sum and h once more.

    Args:
        x_TD: own addend.
        residual_TD, weight_D: the same on every rank.
        memory: of the ranks.
        eps: added to the mean square.
        offset: added to the weights, as Gemma's norms do.
        phase: 0, or one of ``PHASES["one-shot"]``.
        out: where ``h`` and ``y`` go; by default new tensors.

    Source: the fused kernels of TensorRT-LLM (``allReduceFusionKernels``) and FlashInfer.
    """
    from tplab.collectives.peer_kernels import add_rms_norm_kernel

    rows, num_words = x_TD.shape[0], _words(x_TD) // max(1, x_TD.shape[0])
    for tensor in (x_TD, residual_TD, weight_D):
        memory.check(tensor, MOST_ONE_SHOT_BYTES)
    if rows > _MOST_BLOCKS or _words(weight_D) != num_words or not num_words:
        rule = f"must have 1 to {_MOST_BLOCKS} rows as long as weight_D, of whole words"
        raise ArgumentError("x_TD", tuple(x_TD.shape), rule)
    hidden, normed = (torch.empty_like(residual_TD), torch.empty_like(residual_TD)) if out is None else out
    block = max(128, 1 << (num_words - 1).bit_length())
    warps = min(32, max(4, block // 128))
    add_rms_norm_kernel[(rows,)](
        *(tensor.view(-1).view(torch.int32) for tensor in (x_TD, residual_TD, weight_D, hidden, normed)),
        num_words=num_words, eps=eps, shift=offset, N=memory.size, KIND=DTYPES.index(x_TD.dtype), SLOT=_SLOT_WORDS,
        BLOCK=block, PACK=4 if block >= 128 * warps else 1, PHASE=phase, num_warps=warps,
        **memory._launch(), **_following(x_TD, phase),
    )  # fmt: skip
    return hidden, normed


def two_shot(
    x: torch.Tensor, memory: PeerMemory, out: torch.Tensor | None = None, phase: int = ALL_PHASES
) -> torch.Tensor:
    """The sum of ``x`` over the ranks, the same bits on all and as :func:`one_shot`: each adds up a chunk for all.

    ==================  =========================  ==================================================
    on rank r           shape, dtype               what
    ==================  =========================  ==================================================
    x                   any, S bytes               own addend
    inbox q             (S/n,) bytes               chunk r of rank q
    results c           (S/n,) bytes               the sum of chunk c, from rank c
    out                 as x                       the sum; by default in place
    ==================  =========================  ==================================================

    Equation and rounding as :func:`one_shot`. Bytes that a rank writes over the links: ``2 (n-1)/n S``, in two steps
    with a signal after each; chunks are rounded up to 64 bytes.

    Source: as ``tplab.collectives.two_shot``, writing into the peers' memory.
    """
    from tplab.collectives.peer_kernels import two_shot_kernel

    memory.check(x, memory.most_bytes)
    out = x if out is None else out
    num_words = _words(x)
    if num_words:
        chunk, most_blocks = _rounded(-(-num_words // memory.size), 16), _TWO_SHOT_BLOCKS
        block = 4096 if chunk >= 4096 * most_blocks else 1024
        places = _places(memory.size, memory.most_bytes)
        two_shot_kernel[(min(most_blocks, -(-chunk // block)),)](
            x.view(-1).view(torch.int32), out.view(-1).view(torch.int32), num_words=num_words, chunk=chunk,
            flags=places["flags"], inbox=places["inbox"], results=places["results"], N=memory.size,
            KIND=DTYPES.index(x.dtype), BLOCK=block, PHASE=phase, num_warps=8 if block == 1024 else 16,
            **memory._launch(),
        )  # fmt: skip
    return out


def quantised_two_shot(
    x: torch.Tensor, memory: PeerMemory, narrow: str = "int8", out: torch.Tensor | None = None, phase: int = ALL_PHASES
) -> torch.Tensor:
    """Nearly the sum of ``x`` over the ranks, the same bits on all: two-shot with a byte per element.

    ==================  =========================  ==================================================
    on rank r           shape, dtype               what
    ==================  =========================  ==================================================
    x                   any (N elements)           own addend
    inbox q             (N/n,) bytes, and          chunk r of rank q: numbers, and a float32 scale for
                        (N/n/64,) float32          each 64 of them
    results c           the same                   the sum of chunk c, from rank c
    out                 as x                       the sum, nearly; by default in place
    ==================  =========================  ==================================================

    Equation: as ``quantised.int8_all_reduce`` with chunks of a multiple of 64 elements; its ``error_bound`` holds, with
    ``narrow="fp8"`` for e4m3. A group in which any rank has an infinity or a NaN comes out as NaN.

    Bytes that a rank writes over the links: ``2 (n-1)/n · N · (1 + 4/64)``: 0.53 of bfloat16's.

    Args:
        x: float32, bfloat16 or float16.
        memory: of the ranks.
        narrow: ``int8``, or ``fp8`` (e4m3; GPUs since compute capability 8.9).
        out: where the sum goes; by default ``x``.
        phase: 0, or one of ``PHASES[narrow]``.
    """
    from tplab.collectives.quantised_kernels import SCALE_GROUP, quantised_two_shot_kernel

    memory.check(x, memory.most_bytes)
    check_one_of("narrow", narrow, NARROW)
    if narrow == "fp8" and x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 9):
        raise ArgumentError("narrow", narrow, "must be int8 on a GPU before compute capability 8.9")
    out = x if out is None else out
    if x.numel():
        chunk = _rounded(-(-x.numel() // memory.size), SCALE_GROUP)
        groups, most_blocks = chunk // SCALE_GROUP, _QUANTISED_BLOCKS
        rows = 64 if groups >= 64 * most_blocks // 2 else 16
        places = _places(memory.size, memory.most_bytes)
        quantised_two_shot_kernel[(min(most_blocks, -(-groups // rows)),)](
            x.view(-1), out.view(-1), num_elements=x.numel(), chunk=chunk, flags=places["flags"],
            inbox=places["inbox"], results=places["results"], scales=memory.size * chunk, FP8=narrow == "fp8",
            N=memory.size, ROWS=rows, PHASE=phase, num_warps=4 if rows == 16 else 8, **memory._launch(),
        )  # fmt: skip
    return out


def quantised_chunk(num_elements: int, size: int) -> int:
    """Elements of each rank's chunk in :func:`quantised_two_shot`; the last ones may be shorter, or empty."""
    return _rounded(-(-num_elements // size), 64)


def _following(x: torch.Tensor, phase: int) -> dict[str, Any]:
    """Launch options: whether programs may start while the kernel before still runs (Hopper and later)."""
    overlaps = phase == ALL_PHASES and x.is_cuda and torch.cuda.get_device_capability(x.device) >= (9, 0)
    return {"PDL": overlaps, "launch_pdl": overlaps} if x.is_cuda else {"PDL": False}


def _words(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size() // _WORD


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _places(size: int, most_bytes: int) -> dict[str, int]:
    """Offset in bytes of what is in a rank's memory: flagged words from 0 on, flags, inbox, results; and its end."""
    if check_count("most_bytes", most_bytes, least=1) and not 1 <= size <= MOST_RANKS:
        raise ArgumentError("group", size, f"must have at most {MOST_RANKS} ranks for these kernels")
    room = _rounded(most_bytes, 16) + size * _ROUNDING
    flags = 2 * size * _SLOT_WORDS * 8
    inbox = flags + _MOST_BLOCKS * size * _WORD
    return {"flags": flags, "inbox": inbox, "results": inbox + room, "end": inbox + 2 * room}
