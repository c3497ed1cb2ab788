"""Attention of one new token per sequence over a cache whose length is in the device's memory.

A CUDA graph holds the launch and not the length: it is as good for token 5 as for token 5,000. The cache is cut into
parts by its capacity; every part has a program of its own, which ends at once where there is nothing yet, and their
results are put together by their sums of exponentials. torch's kernels take the length from the tensor's shape, on the
host; cuDNN's even make a new plan for each.

Legend: B sequences, H query heads, G key-value heads, M query heads of one key-value head at most, E head dimension;
C places of the cache, P parts of it.

Source: Dao and others, "Flash-Decoding for long-context inference" (2023), for the parts.
"""

import math

import torch
import triton
import triton.language as tl

from tplab.layers.kernels.launch import dependents, num_warps_for, wait_for_previous

_MOST_PARTS = 64
_SHORTEST_PART = 128


@triton.jit(do_not_specialize=["capacity", "window"])
def _decode_attention_kernel(
    q, k_cache, v_cache, out, sums, past, starts, firsts, capacity, scale, window,
    H: tl.constexpr, G: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr, M: tl.constexpr,
    PART: tl.constexpr, BLOCK_C: tl.constexpr, NUM_PARTS: tl.constexpr, WINDOWED: tl.constexpr, EXACT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One program per key-value head of a sequence, with all its query heads, and part of the cache."""
    sequence, group, part = (tl.program_id(0) // G).to(tl.int64), tl.program_id(0) % G, tl.program_id(1)
    dependents(PDL)
    wait_for_previous(PDL)
    last = tl.load(past)
    begin = part * PART
    first_head, end_head = tl.load(firsts + group), tl.load(firsts + group + 1)
    heads = first_head + tl.arange(0, M)
    mine = heads < end_head
    dims = tl.arange(0, BLOCK_E)
    kept = dims < E
    rows = (sequence * H + heads) * NUM_PARTS + part
    # Also where there is nothing: what is left from an earlier token must not be taken for a result.
    if begin > last:
        tl.store(sums + rows, tl.full([M], float("-inf"), tl.float32), mask=mine)
        return
    q_ME = tl.load(
        q + (sequence * H + heads[:, None]) * E + dims[None, :], mask=mine[:, None] & kept[None, :], other=0.0
    )
    start = tl.load(starts + sequence)
    base = (sequence * G + group) * capacity * E
    best = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    mixed = tl.zeros([M, BLOCK_E], tl.float32)
    for offset in range(0, PART, BLOCK_C):
        places = begin + offset + tl.arange(0, BLOCK_C)
        seen = (places <= last) & (places >= start)
        if WINDOWED:
            seen = seen & (places > last - window)
        at = base + places[:, None] * E + dims[None, :]
        there = seen[:, None] & kept[None, :]
        k_CE = tl.load(k_cache + at, mask=there, other=0.0)
        v_CE = tl.load(v_cache + at, mask=there, other=0.0)
        scores = tl.dot(q_ME, tl.trans(k_CE), input_precision="ieee" if EXACT else "tf32") * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, axis=1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(scores - safe[:, None])
        shrink = tl.exp(best - safe)
        total = total * shrink + tl.sum(weights, axis=1)
        mixed = mixed * shrink[:, None]
        mixed += tl.dot(weights.to(v_CE.dtype), v_CE, input_precision="ieee" if EXACT else "tf32")
        best = higher
    there = total > 0
    result = mixed / tl.where(there, total, 1.0)[:, None]
    out_at = out + rows[:, None] * E + dims[None, :]
    tl.store(out_at, result.to(out.dtype.element_ty), mask=mine[:, None] & kept[None, :])
    tl.store(sums + rows, tl.where(there, best + tl.log(tl.where(there, total, 1.0)), float("-inf")), mask=mine)


@triton.jit
def _combine_kernel(
    parts, sums, out, E: tl.constexpr, BLOCK_E: tl.constexpr, NUM_PARTS: tl.constexpr, BLOCK_P: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One program per query head of a sequence."""
    row = tl.program_id(0).to(tl.int64)
    which, dims = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_E)
    dependents(PDL)
    wait_for_previous(PDL)
    logs = tl.load(sums + row * NUM_PARTS + which, mask=which < NUM_PARTS, other=float("-inf"))
    weights = tl.exp(logs - tl.max(logs, axis=0))
    # A part without anything wrote no result: it is not to be read.
    there = (logs > float("-inf"))[:, None] & (dims < E)[None, :]
    values = tl.load(parts + (row * NUM_PARTS + which[:, None]) * E + dims[None, :], mask=there, other=0.0)
    mixed = tl.sum(values * weights[:, None], axis=0) / tl.sum(weights, axis=0)
    tl.store(out + row * E + dims, mixed.to(out.dtype.element_ty), mask=dims < E)


def decode_attention(
    q_BHE: torch.Tensor,
    k_BGCE: torch.Tensor,
    v_BGCE: torch.Tensor,
    *,
    past: torch.Tensor,
    starts_B: torch.Tensor,
    firsts: torch.Tensor,
    most: int,
    window: int | None = None,
) -> torch.Tensor:
    """(B, H, E): the queries' attention over the places ``start`` to ``past`` of the cache, this token's included.

    Args:
        q_BHE: one query per sequence and head, contiguous.
        k_BGCE, v_BGCE: the cache, contiguous; place ``past`` holds this token's keys and values already.
        past: (1,) int32 on the device.
        starts_B: (B,): first place of each sequence; what stands before is padding.
        firsts: (G + 1,) int32 on the device: first query head of each key-value head, and H.
        most: M, query heads of one key-value head at most.
        window: how many places back, its own included, a token sees; None: all.
    """
    batch, num_heads, size = q_BHE.shape
    _, num_kv, capacity, _ = k_BGCE.shape
    part = max(_SHORTEST_PART, triton.next_power_of_2(triton.cdiv(capacity, _MOST_PARTS)))
    num_parts = triton.cdiv(capacity, part)
    out = torch.empty_like(q_BHE)
    sums = q_BHE.new_empty((batch, num_heads, num_parts), dtype=torch.float32)
    parts = out if num_parts == 1 else q_BHE.new_empty((batch, num_heads, num_parts, size), dtype=torch.float32)
    block_e = max(16, triton.next_power_of_2(size))
    block_c = 64 if size <= 128 else 32
    exact = q_BHE.dtype is torch.float32
    _decode_attention_kernel[(batch * num_kv, num_parts)](
        q_BHE, k_BGCE, v_BGCE, parts, sums, past, starts_B, firsts, capacity, 1 / math.sqrt(size), window or 0,
        H=num_heads, G=num_kv, E=size, BLOCK_E=block_e, M=max(16, triton.next_power_of_2(most)), PART=part,
        BLOCK_C=block_c, NUM_PARTS=num_parts, WINDOWED=window is not None, EXACT=exact, **num_warps_for(4, q_BHE),
    )  # fmt: skip
    if num_parts > 1:
        _combine_kernel[(batch * num_heads,)](
            parts, sums, out, E=size, BLOCK_E=block_e, NUM_PARTS=num_parts,
            BLOCK_P=triton.next_power_of_2(num_parts), **num_warps_for(4, q_BHE),
        )  # fmt: skip
    return out
