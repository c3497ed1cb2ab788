"""A decode step through a stack of blocks, with the fused kernels: eight launches per block, and lengths on the device.

The same mathematics as ``run_blocks`` for one token per sequence, and the same weights; only the order of additions and
some roundings differ. Not by way of ``run_blocks``: there a sum, an addition and a norm are three steps that a strategy
may put something between; here they are one kernel, and nothing depends on how long the cache is by now, so that a CUDA
graph of the step is good for every token.

Legend: B sequences, D hidden, F features of q, k and v on this rank.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from tplab.layers import kernels
from tplab.layers.comm import Comm
from tplab.layers.plain import GATES, gated
from tplab.layers.strategies import few_tokens_linear
from tplab.layers.sum_norm import add_norm, of_norm, sum_add_norm

if TYPE_CHECKING:
    from tplab.layers.attention import ParallelAttention
    from tplab.layers.block import ParallelBlock, ParallelMLP
    from tplab.layers.core_attention import KVCache
    from tplab.layers.linear import RowParallelLinear


def why_not_decode(blocks: "Sequence[ParallelBlock]") -> str | None:
    """The reason why these blocks cannot decode with the fused kernels, in words; None where they can."""
    weight = blocks[0].self_attn.qkv.weight
    return kernels.why_not(weight.device, weight.dtype)


def decode_blocks(
    blocks: "Sequence[ParallelBlock]",
    x_BD: torch.Tensor,
    caches: "Sequence[KVCache]",
    *,
    past: torch.Tensor,
    starts_B: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states after a stack, as two addends: the residual, and this rank's part of the last MLP's sum.

    They are for :func:`sum_and_norm` with whatever norm comes next.

    Args:
        blocks: the stack.
        x_BD: the hidden state of one token per sequence.
        caches: one per block. Place ``past`` is written; their host lengths are neither read nor changed.
        past: (1,) int32 on the device: tokens that are in the caches.
        starts_B: (B,) on the device: first place of each sequence.
    """
    part: torch.Tensor | None = None
    for block, cache in zip(blocks, caches, strict=True):
        x_BD, h_BD = sum_and_norm(block.comm, part, x_BD, block.input_layernorm)  # type: ignore[arg-type]
        part = _row(block.self_attn.o, _attend(block.self_attn, h_BD, cache, past, starts_B))
        x_BD, h_BD = sum_and_norm(block.comm, part, x_BD, block.post_attention_layernorm)  # type: ignore[arg-type]
        part = _row(block.mlp.down, _gate_up(block.mlp, h_BD))
    assert part is not None
    return x_BD, part


def sum_and_norm(
    comm: Comm, part: torch.Tensor | None, x_BD: torch.Tensor, norm: nn.RMSNorm
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` plus the sum over ranks of ``part``, if there is any, and the norm of that."""
    how = of_norm(norm, x_BD.dtype)
    return add_norm(x_BD, None, *how) if part is None else sum_add_norm(comm, part, x_BD, *how)


def _row(linear: "RowParallelLinear", x: torch.Tensor) -> torch.Tensor:
    """This rank's addend of a row-parallel layer. The bias, which is added once, is in the first rank's."""
    return few_tokens_linear(x, linear.weight, linear.bias if linear.comm.index == 0 else None)


def _attend(
    attention: "ParallelAttention", h_BD: torch.Tensor, cache: "KVCache", past: torch.Tensor, starts_B: torch.Tensor
) -> torch.Tensor:
    from tplab.layers.kernels.attention import decode_attention
    from tplab.layers.kernels.rotary import rotate_into_cache

    assert attention.rope is not None
    qkv_BF = few_tokens_linear(h_BD, attention.qkv.weight, attention.qkv.bias)
    cos, sin = attention.rope.tables(cache.max_length, h_BD.dtype, h_BD.device)
    norms = attention.norms_of_heads(h_BD.dtype)
    k, v = cache.k_BGSE, cache.v_BGSE
    q_B1HE = rotate_into_cache(qkv_BF.unsqueeze(1), k, v, cos=cos, sin=sin, past=past, positions=starts_B, norms=norms)
    firsts, most = attention.query_heads_of_kv(h_BD.device)
    window = attention.sliding_window
    y_BHE = decode_attention(
        q_B1HE.squeeze(1), k, v, past=past, starts_B=starts_B, firsts=firsts, most=most, window=window
    )
    return y_BHE.flatten(1)


def _gate_up(mlp: "ParallelMLP", h_BD: torch.Tensor) -> torch.Tensor:
    from tplab.layers.kernels.gemv import gated_gemv

    weight, bias = mlp.gate_up.weight, mlp.gate_up.bias
    if mlp.activation not in GATES:
        return F.gelu(few_tokens_linear(h_BD, weight, bias))
    if h_BD.shape[0] <= kernels.most_vectors(h_BD.dtype):
        return gated_gemv(h_BD, weight, bias, mlp.activation)
    return gated(F.linear(h_BD, weight, bias), mlp.activation)
