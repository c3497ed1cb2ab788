"""A two-shot all-reduce whose messages are int8 with a scale per group of elements: half the bytes of bfloat16.

Sums are made in float32, never in int8. Adding up int8 numbers as they are is the mistake that suggests itself, and
:func:`naive_int8_all_reduce` makes it: two numbers above 63 already wrap around, and scales that differ between ranks
mean different things by the same number.

Not exact, and how inexact follows from the data alone: see :func:`error_bound`.

Legend: n ranks, N elements, S bytes at two bytes an element; g elements per scale; a chunk has N/n elements.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tplab.checks import check_count
from tplab.collectives.transport import Transport, as_transport, flat_view, split_evenly

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

SCALE_GROUP = 64
"""Elements per scale: 4 bytes of scale for 64 bytes of numbers."""
_LEVELS = 127  # -128 is left out: the range is symmetric, and so is the error


def int8_all_reduce(
    tensor: torch.Tensor, group: "ProcessGroup | Transport | None", *, scale_group: int = SCALE_GROUP
) -> None:
    """Sum ``tensor`` over the ranks of ``group``, in place and approximately; the same bits on every rank.

    ==================  =========================  ==================================================
    on rank r           shape, dtype               what
    ==================  =========================  ==================================================
    tensor              any (N elements), float    in: own addend; out: the sum, nearly
    message             (4·G + N/n,) uint8         a chunk: G = ceil(N/n/g) float32 scales, then int8
    sum                 (N/n,) float32             of chunk r: the own addend as it is, the others' as
                                                   they arrived
    ==================  =========================  ==================================================

    Equation: ``out = Q(in_r + sum over q != r of Q(in_q))`` on chunk r, where Q rounds to ``scale · {-127 .. 127}``,
    ``scale = max |x| / 127`` within a group.

    Communication: as a two-shot all-reduce; each rank sends ``2 (n-1)/n · N · (1 + 4/g)`` bytes, exactly
    ``tplab.collectives.volumes.int8_sent_bytes``: 0.53 of bfloat16's at g = 64.

    A group in which any rank has an infinity or a NaN comes out as NaN.

    Args:
        group: a process group, or any :class:`~tplab.collectives.transport.Transport`; None for a rank alone, which
            changes nothing.
        scale_group: g.

    Raises:
        ValueError: ``tensor``, ``group`` or ``scale_group`` cannot work.

    Source: two-shot all-reduce with quantised messages as in NVIDIA's TensorRT-LLM and DeepSpeed's ZeRO++ (Wang and
    others, 2023, section 4.3: quantise, exchange, add in full precision).
    """
    check_count("scale_group", scale_group, least=1)
    transport = as_transport(group)
    with flat_view(tensor, transport) as x:
        if not x.is_floating_point():
            raise ValueError(f"tensor must hold floating-point numbers to be quantised; it holds {x.dtype}")
        if transport.size > 1 and x.numel():
            _two_shot(x, transport, scale_group)


def _two_shot(x_N: torch.Tensor, transport: Transport, scale_group: int) -> None:
    n, r = transport.size, transport.index
    chunks = [x_N[start:end] for start, end in split_evenly(x_N.numel(), n)]
    others = [(r + distance) % n for distance in range(1, n)]
    leaving = [(quantise(chunks[c], scale_group), c) for c in others if chunks[c].numel()]
    mine = chunks[r]
    arriving = {c: _message_like(mine, scale_group) for c in others} if mine.numel() else {}
    transport.exchange(leaving, [(message, c) for c, message in arriving.items()]).wait()
    total = mine.float()
    if mine.dtype is torch.float32:
        total = total.clone()
    for c in sorted(arriving):  # in rank order, so that a repetition has the same bits
        total += dequantise(arriving[c], mine.numel(), scale_group)
    summed = quantise(total, scale_group)
    results = {c: _message_like(chunks[c], scale_group) for c in others if chunks[c].numel()}
    transport.exchange([(summed, c) for c in others if mine.numel()], [(m, c) for c, m in results.items()]).wait()
    # The own chunk, too, as the others have it: all ranks hold the same bits.
    for c, message in {r: summed, **results}.items():
        chunks[c].copy_(dequantise(message, chunks[c].numel(), scale_group))


def quantise(x_N: torch.Tensor, scale_group: int = SCALE_GROUP) -> torch.Tensor:
    """A row of numbers -> (4·G + N,) uint8: G = ceil(N/g) float32 scales, then N int8 numbers."""
    length = x_N.numel()
    message = _message_like(x_N, scale_group)
    groups, whole = -(-length // scale_group), length // scale_group * scale_group
    scales = message[: 4 * groups].view(torch.float32)
    numbers = message[4 * groups :].view(torch.int8)
    x = x_N.float()
    for part, start, end in ((slice(0, whole // scale_group), 0, whole), (slice(groups - 1, groups), whole, length)):
        if start == end:
            continue
        rows = x[start:end].view(-1, min(scale_group, end - start))
        scale = rows.abs().amax(1) / _LEVELS
        scales[part] = scale
        # Zeros, and what is too small for a float32 scale, have scale 0: whatever the divisor, their product is zero.
        divisor = scale.masked_fill(scale == 0, 1.0).unsqueeze(1)
        numbers[start:end] = (rows / divisor).round_().clamp_(-_LEVELS, _LEVELS).to(torch.int8).flatten()
    return message


def dequantise(message: torch.Tensor, length: int, scale_group: int = SCALE_GROUP) -> torch.Tensor:
    """The reverse of :func:`quantise`, (N,) float32."""
    groups = -(-length // scale_group)
    scales = message[: 4 * groups].view(torch.float32)
    numbers = message[4 * groups :].view(torch.int8).float()
    return numbers * scales.repeat_interleave(scale_group)[:length]


def error_bound(
    addends: Sequence[torch.Tensor],
    owner: int,
    scale_group: int = SCALE_GROUP,
    *,
    dtype: torch.dtype = torch.float32,
    narrow: str = "int8",
) -> torch.Tensor:
    """What no element of a chunk's sum is off by more than: float64, as long as the chunk.

    Rounding to a scale is off by half of it: ``max |group| / 254``; rounding to e4m3 by half of its largest step, 16 of
    448: ``max |group| / 28``. That happens once to each addend but the owner's, and once to their sum; float32 rounding
    and that of the result's ``dtype`` come on top.

    Args:
        addends: the chunk of each rank, (C,), in rank order.
        owner: the rank that adds this chunk up.
        scale_group: elements per scale.
        dtype: of the result.
        narrow: what is sent, ``int8`` or ``fp8`` (e4m3).
    """
    off_by = {"int8": 1 / (2 * _LEVELS), "fp8": 1 / 28}[narrow]
    rounded = [addend.double() for addend in addends]
    off = sum(
        (_group_max(addend, scale_group) * off_by for rank, addend in enumerate(rounded) if rank != owner),
        start=torch.zeros_like(rounded[owner]),
    )
    total = torch.stack(rounded).sum(0)
    largest = _group_max(total.abs() + off, scale_group)
    rounding = len(addends) * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps
    magnitude = torch.stack(rounded).abs().sum(0) + largest
    return off + largest * off_by + rounding * magnitude


def _group_max(x_N: torch.Tensor, scale_group: int) -> torch.Tensor:
    """The largest absolute value in each element's group."""
    padded = torch.nn.functional.pad(x_N.abs(), (0, -x_N.numel() % scale_group)).view(-1, scale_group)
    return padded.amax(1).repeat_interleave(scale_group)[: x_N.numel()]


def naive_int8_all_reduce(tensor: torch.Tensor, group: "ProcessGroup") -> None:
    """Wrong on purpose: quantise, then let the library add up int8 numbers, which wrap around at 128.

    The scale is the largest over all ranks, so that at least the numbers mean the same everywhere. One could leave room
    for n addends, at 127/n levels each: of 8 bits, 8 ranks leave 5.
    """
    import torch.distributed as dist

    largest = tensor.abs().amax().float()
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    scale = largest / _LEVELS
    numbers = (tensor.float() / scale).round().to(torch.int8)
    dist.all_reduce(numbers, group=group)
    tensor.copy_(numbers.float() * scale)


def _message_like(x_N: torch.Tensor, scale_group: int) -> torch.Tensor:
    groups = -(-x_N.numel() // scale_group)
    # Scales first: a float32 view must start at a multiple of four bytes.
    return torch.empty(4 * groups + x_N.numel(), dtype=torch.uint8, device=x_N.device)
