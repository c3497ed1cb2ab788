"""The unsharded modules that the parallel ones are made from, and judged by.

Ordinary ``nn.Module``s with the parameter names of Hugging Face's Llama, so that a checkpoint fits without renaming.
They are the slow twin of every equivalence test, and the whole layer on a rank alone.

Legend: B batch, S sequence, D hidden, I intermediate; H query heads, G key-value heads, E head dimension.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tplab.checks import ArgumentError, check_count, check_divides, check_one_of
from tplab.layers import kernels
from tplab.layers.core_attention import GrowingCache, KVCache, RotaryEmbedding, attend

GATES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "swiglu": F.silu,
    "geglu": partial(F.gelu, approximate="tanh"),
}
"""What is applied to the gate of a gated MLP; GeGLU as in Gemma."""
ACTIVATIONS = (*GATES, "gelu")


def gated(h: torch.Tensor, activation: str) -> torch.Tensor:
    """``act(gate) * up`` of a product with both side by side, (..., 2·I) -> (..., I); one kernel where there is one."""
    if kernels.usable(h):
        from tplab.layers.kernels.gemv import gated as fused

        return fused(h.contiguous(), activation)
    gate, up = h.chunk(2, dim=-1)
    return GATES[activation](gate) * up


class MLP(nn.Module):
    """SwiGLU, ``down(silu(gate(x)) * up(x))``, GeGLU, the same with gelu, or GELU, ``down(gelu(up(x)))``:
    (..., D) -> (..., D)."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, *, activation: str = "swiglu", bias: bool = False, **kind: Any
    ) -> None:
        super().__init__()
        check_one_of("activation", activation, ACTIVATIONS)
        self.activation = activation
        if activation in GATES:
            self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=bias, **kind)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias, **kind)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias, **kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.activation in GATES:
            gate = GATES[self.activation](self.gate_proj(x))
            return self.down_proj(gate * self.up_proj(x))  # type: ignore[no-any-return]
        return self.down_proj(F.gelu(self.up_proj(x)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention with H query heads and G key-value heads (MHA: G = H, MQA: G = 1, GQA: between).

    Args:
        hidden_size: D.
        num_heads: H.
        num_kv_heads: G, which divides H; H by default.
        head_dim: E; D/H by default.
        bias, out_bias: of q, k, v, and of the output projection.
        rope: rotary positions; None for none.
        causal: whether a token sees only those before it.
        qk_norm: RMSNorm over each query and key head, as in Qwen3.
        sliding_window: how many tokens back, itself included, a token sees; None for all.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        *,
        head_dim: int | None = None,
        bias: bool = False,
        out_bias: bool = False,
        rope: RotaryEmbedding | None = None,
        causal: bool = True,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
        sliding_window: int | None = None,
        **kind: Any,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_divides("num_kv_heads", num_kv_heads, "num_heads", check_count("num_heads", num_heads, least=1))
        if head_dim is None and hidden_size % num_heads:
            raise ArgumentError("num_heads", num_heads, f"must divide hidden_size={hidden_size}, or head_dim be given")
        if sliding_window is not None and (sliding_window < 1 or not causal):
            raise ValueError(f"sliding_window={sliding_window} must be at least 1, and needs causal=True")
        self.hidden_size, self.num_heads, self.num_kv_heads = hidden_size, num_heads, num_kv_heads
        self.head_dim = head_dim or hidden_size // num_heads
        self.rope, self.causal, self.sliding_window = rope, causal, sliding_window
        self.q_proj = nn.Linear(hidden_size, num_heads * self.head_dim, bias=bias, **kind)
        self.k_proj = nn.Linear(hidden_size, num_kv_heads * self.head_dim, bias=bias, **kind)
        self.v_proj = nn.Linear(hidden_size, num_kv_heads * self.head_dim, bias=bias, **kind)
        self.o_proj = nn.Linear(num_heads * self.head_dim, hidden_size, bias=out_bias, **kind)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=norm_eps, **kind) if qk_norm else None
        self.k_norm = nn.RMSNorm(self.head_dim, eps=norm_eps, **kind) if qk_norm else None

    def forward(
        self,
        x_BSD: torch.Tensor,
        *,
        positions: torch.Tensor | None = None,
        cache: "KVCache | GrowingCache | None" = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        batch, seq, _ = x_BSD.shape
        q_BHSE = self.q_proj(x_BSD).view(batch, seq, self.num_heads, self.head_dim).transpose(1, 2)
        k_BGSE = self.k_proj(x_BSD).view(batch, seq, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v_BGSE = self.v_proj(x_BSD).view(batch, seq, self.num_kv_heads, self.head_dim).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q_BHSE, k_BGSE = self.q_norm(q_BHSE), self.k_norm(k_BGSE)
        y_BHSE = attend(
            q_BHSE,
            k_BGSE,
            v_BGSE,
            rope=self.rope,
            positions=positions,
            cache=cache,
            causal=self.causal,
            sliding_window=self.sliding_window,
            mask=mask,
        )
        return self.o_proj(y_BHSE.transpose(1, 2).reshape(batch, seq, -1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm transformer block: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    The names are Hugging Face's: ``input_layernorm``, ``self_attn``, ``post_attention_layernorm``, ``mlp``.
    """

    def __init__(self, attention: Attention, mlp: MLP, *, norm_eps: float = 1e-6, **kind: Any) -> None:
        super().__init__()
        hidden = attention.hidden_size
        self.input_layernorm = nn.RMSNorm(hidden, eps=norm_eps, **kind)
        self.self_attn = attention
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps=norm_eps, **kind)
        self.mlp = mlp

    def forward(self, x_BSD: torch.Tensor, **attention: Any) -> torch.Tensor:
        x_BSD = x_BSD + self.self_attn(self.input_layernorm(x_BSD), **attention)
        return x_BSD + self.mlp(self.post_attention_layernorm(x_BSD))  # type: ignore[no-any-return]
