# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"
"""The quantised two-shot all-reduce as one Triton kernel that writes into the memory of other GPUs.

As ``quantised.int8_all_reduce``, and with its bound: each addend but the owner's is rounded to a scale per 64 elements,
sums are made in float32, and each sum is rounded once more. The way of the messages is that of ``peer_kernels``.

Not in the narrow type's own arithmetic, and not one scale per chunk: see ``quantised``. FP8 (e4m3) keeps a relative
error instead of an absolute one: better for what is small within its group, eight times worse for what is large.

Legend: n ranks; C the elements of a chunk, a multiple of 64.
"""

import triton
import triton.language as tl

from tplab.collectives.peer_kernels import end_call, meet, memory_of

SCALE_GROUP = 64
"""Elements per scale."""
_GROUP = tl.constexpr(SCALE_GROUP)
_MAGIC = tl.constexpr(12582912.0)
"""1.5 · 2^23: what is added to it is rounded to a whole number, half to even."""


@triton.jit
def _quantised(x, FP8: tl.constexpr):
    """Rows of 64 numbers -> the narrow ones, and a scale per row: NaN where one of them is not finite."""
    poison = tl.sum(x * 0.0, axis=1)
    scale = tl.max(tl.abs(x), axis=1) / (448.0 if FP8 else 127.0) + poison
    ratio = tl.div_rn(x, tl.where(scale == 0.0, 1.0, scale)[:, None])
    if FP8:
        return ratio.to(tl.float8e4nv).to(tl.int8, bitcast=True), scale
    whole = (ratio + _MAGIC) - _MAGIC
    return tl.minimum(tl.maximum(whole, -127.0), 127.0).to(tl.int8), scale


@triton.jit
def _dequantised(numbers, scale, FP8: tl.constexpr):
    if FP8:
        return numbers.to(tl.float8e4nv, bitcast=True).to(tl.float32) * scale[:, None]
    return numbers.to(tl.float32) * scale[:, None]


@triton.jit
def _send(x, there, element, group, inside, rows_inside, scales, FP8: tl.constexpr):
    """Quantise, and write to ``there``: numbers from its start, scales ``scales`` bytes further on."""
    numbers, scale = _quantised(x, FP8)
    tl.store(tl.multiple_of(there.to(tl.pointer_type(tl.int8)), 16) + element, numbers, mask=inside)
    tl.store(tl.multiple_of((there + scales).to(tl.pointer_type(tl.float32)), 16) + group, scale, mask=rows_inside)


@triton.jit
def _receive(here, element, group, inside, rows_inside, scales, FP8: tl.constexpr):
    numbers = tl.load(tl.multiple_of(here.to(tl.pointer_type(tl.int8)), 16) + element, mask=inside, other=0)
    scale = tl.load(
        tl.multiple_of((here + scales).to(tl.pointer_type(tl.float32)), 16) + group, mask=rows_inside, other=0.0
    )
    return _dequantised(numbers, scale, FP8)


@triton.jit
def quantised_two_shot_kernel(
    x, out, table, epochs, num_elements, chunk, flags, inbox, results, scales, polls, FP8: tl.constexpr,
    RANK: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, PHASE: tl.constexpr,
):  # fmt: skip
    """``out`` = nearly the sum of ``x`` over the ranks, with the same bits on all of them.

    Phases as in ``two_shot_kernel``.

    Args:
        x, out: numbers; may be the same.
        num_elements, chunk: of ``x``, and of a rank's part.
        flags, inbox, results: offsets in bytes in everybody's memory; the last two begin with a byte per element of n
            chunks.
        scales: bytes from there to their scales.
        FP8: e4m3; otherwise int8.
        ROWS: groups that a block moves at a time.
        table, epochs, polls, RANK, N, PHASE: as in ``one_shot_kernel``.
    """
    epoch = tl.load(epochs + tl.program_id(0), volatile=True) + 1
    step = tl.num_programs(0) * ROWS * _GROUP
    begin = tl.program_id(0) * ROWS * _GROUP
    rows = tl.arange(0, ROWS)
    lanes = rows[:, None] * _GROUP + tl.arange(0, _GROUP)[None, :]
    if PHASE == 0 or PHASE == 1:
        start = begin
        while start < chunk:
            offset = start + lanes
            group = start // _GROUP + rows
            for distance in tl.static_range(1, N):
                peer = (RANK + distance) % N
                inside = (offset < chunk) & (peer * chunk + offset < num_elements)
                value = tl.load(x + peer * chunk + offset, mask=inside, other=0.0).to(tl.float32)
                element = RANK * chunk + offset
                _send(
                    value, memory_of(table, peer) + inbox, element, RANK * chunk // _GROUP + group,
                    offset < chunk, group < chunk // _GROUP, scales, FP8,
                )  # fmt: skip
            start += step
    if PHASE == 0:
        meet(table, flags, 2 * epoch, polls, RANK, N)
    if PHASE == 0 or PHASE == 2:
        start = begin
        while start < chunk:
            offset = start + lanes
            group = start // _GROUP + rows
            whole, rows_whole = offset < chunk, group < chunk // _GROUP
            inside = whole & (RANK * chunk + offset < num_elements)
            total = tl.zeros([ROWS, _GROUP], tl.float32)
            for sender in tl.static_range(N):
                if sender == RANK:
                    total += tl.load(x + RANK * chunk + offset, mask=inside, other=0.0).to(tl.float32)
                else:
                    total += _receive(
                        memory_of(table, RANK) + inbox, sender * chunk + offset, sender * chunk // _GROUP + group,
                        whole, rows_whole, scales, FP8,
                    )  # fmt: skip
            # To this rank, too: its own chunk as the others have it.
            for distance in tl.static_range(N):
                _send(
                    total, memory_of(table, (RANK + distance) % N) + results, RANK * chunk + offset,
                    RANK * chunk // _GROUP + group, whole, rows_whole, scales, FP8,
                )  # fmt: skip
            start += step
    if PHASE == 0:
        meet(table, flags, 2 * epoch + 1, polls, RANK, N)
    if PHASE == 0 or PHASE == 3:
        start = begin
        while start < chunk:
            offset = start + lanes
            group = start // _GROUP + rows
            for owner in tl.static_range(N):
                inside = (offset < chunk) & (owner * chunk + offset < num_elements)
                value = _receive(
                    memory_of(table, RANK) + results, owner * chunk + offset, owner * chunk // _GROUP + group,
                    offset < chunk, group < chunk // _GROUP, scales, FP8,
                )  # fmt: skip
                tl.store(out + owner * chunk + offset, value.to(out.dtype.element_ty), mask=inside)
            start += step
        end_call(epochs, epoch)
