"""What lies between the projection of queries, keys and values and attention, in one kernel: the norms of heads where a
model has them, rotary positions, and the write into the cache. Queries come out, keys and values are where they belong.

Legend: B sequences, S new tokens of each, H query heads, G key-value heads, E head dimension; C places of the cache.
"""

import torch
import triton
import triton.language as tl

from tplab.layers.kernels.launch import dependents, num_warps_for, wait_for_previous

_HEADS = 8
"""Heads of one program."""


@triton.jit
def _of_heads(q_weight, k_weight, is_q, at, E: tl.constexpr):
    """Weights of each head's norm."""
    of_q, of_k = tl.load(q_weight + at, mask=at < E, other=0.0), tl.load(k_weight + at, mask=at < E, other=0.0)
    return tl.where(is_q, of_q[None, :], of_k[None, :]).to(tl.float32)


# A length must not make a new kernel: compiling takes longer than a prompt.
@triton.jit(do_not_specialize=["past", "seq", "capacity", "stride"])
def _rope_cache_kernel(
    qkv, q_out, k_cache, v_cache, cos, sin, past, positions, q_weight, k_weight, seq, capacity, stride, eps, offset,
    H: tl.constexpr, G: tl.constexpr, E: tl.constexpr, HALF: tl.constexpr, BLOCK_H: tl.constexpr,
    ON_DEVICE: tl.constexpr, HAS_NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program per new token and ``BLOCK_H`` of its heads: queries, then keys, then values."""
    token = tl.program_id(0).to(tl.int64)
    sequence, step = token // seq, token % seq
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    half = tl.arange(0, HALF)
    inside = (half < E // 2)[None, :] & (heads < H + 2 * G)[:, None]
    dependents(PDL)
    wait_for_previous(PDL)
    if ON_DEVICE:
        place = tl.load(past) + step
        position = tl.maximum(place - tl.load(positions + sequence), 0)
    else:
        place = past + step
        position = tl.load(positions + sequence * stride + step)
    at = qkv + token * ((H + 2 * G) * E) + heads[:, None] * E + half[None, :]
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + E // 2, mask=inside, other=0.0).to(tl.float32)
    is_q, is_v = (heads < H)[:, None], (heads >= H + G)[:, None]
    if HAS_NORM:
        mean = (tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / E
        scale = tl.rsqrt(mean + eps)[:, None]
        one = first * scale * (_of_heads(q_weight, k_weight, is_q, half, E) + offset)
        two = second * scale * (_of_heads(q_weight, k_weight, is_q, half + E // 2, E) + offset)
        # Rounded where a norm of its own would store it.
        first = tl.where(is_v, first, one.to(q_out.dtype.element_ty).to(tl.float32))
        second = tl.where(is_v, second, two.to(q_out.dtype.element_ty).to(tl.float32))
    c = tl.load(cos + position * (E // 2) + half, mask=half < E // 2, other=1.0)[None, :].to(tl.float32)
    s = tl.load(sin + position * (E // 2) + half, mask=half < E // 2, other=0.0)[None, :].to(tl.float32)
    turned_first = tl.where(is_v, first, first * c - second * s)
    turned_second = tl.where(is_v, second, second * c + first * s)
    kind = q_out.dtype.element_ty
    q_at = q_out + token * (H * E) + heads[:, None] * E + half[None, :]
    tl.store(q_at, turned_first.to(kind), mask=inside & is_q)
    tl.store(q_at + E // 2, turned_second.to(kind), mask=inside & is_q)
    k_at = k_cache + ((sequence * G + heads[:, None] - H) * capacity + place) * E + half[None, :]
    is_k = (heads >= H)[:, None] & (heads < H + G)[:, None]
    tl.store(k_at, turned_first.to(kind), mask=inside & is_k)
    tl.store(k_at + E // 2, turned_second.to(kind), mask=inside & is_k)
    v_at = v_cache + ((sequence * G + heads[:, None] - H - G) * capacity + place) * E + half[None, :]
    tl.store(v_at, turned_first.to(kind), mask=inside & is_v)
    tl.store(v_at + E // 2, turned_second.to(kind), mask=inside & is_v)


def rotate_into_cache(
    qkv_BSF: torch.Tensor,
    k_BGCE: torch.Tensor,
    v_BGCE: torch.Tensor,
    *,
    cos: torch.Tensor,
    sin: torch.Tensor,
    past: "torch.Tensor | int",
    positions: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor, float, float] | None = None,
) -> torch.Tensor:
    """Queries with their positions, (B, S, H, E); keys and values are written into the cache.

    Args:
        qkv_BSF: (B, S, (H + 2·G)·E), contiguous: queries, keys and values of the new tokens.
        k_BGCE, v_BGCE: the cache, contiguous, whose places ``past`` to ``past + S`` are written.
        cos, sin: (C, E/2) by position, at least as many as the cache has places.
        past: tokens that are in the cache; (1,) int32 on the device, or a number.
        positions: of the new tokens, (S,) or (B, S). With ``past`` on the device: (B,), the first place of each
            sequence, where its positions count from.
        norms: weights of the queries' and of the keys' RMSNorm, their eps and offset; None: there are none.
    """
    batch, seq, _ = qkv_BSF.shape
    _, num_kv, capacity, size = k_BGCE.shape
    num_q = qkv_BSF.shape[2] // size - 2 * num_kv
    q_BSHE = qkv_BSF.new_empty((batch, seq, num_q, size))
    on_device = isinstance(past, torch.Tensor)
    q_weight, k_weight, eps, offset = norms or (qkv_BSF, qkv_BSF, 0.0, 0.0)
    _rope_cache_kernel[(batch * seq, triton.cdiv(num_q + 2 * num_kv, _HEADS))](
        qkv_BSF, q_BSHE, k_BGCE, v_BGCE, cos, sin, past, positions, q_weight, k_weight, seq, capacity,
        seq if positions.dim() == 2 else 0, eps, offset,
        H=num_q, G=num_kv, E=size, HALF=triton.next_power_of_2(size // 2), BLOCK_H=_HEADS,
        ON_DEVICE=on_device, HAS_NORM=norms is not None, **num_warps_for(4, qkv_BSF),
    )  # fmt: skip
    return q_BSHE
