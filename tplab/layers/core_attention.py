"""Attention between the projections: rotary positions, the keys and values of the past, scaled dot products.

Heads do not mix here, so a rank does it for its own and communicates nothing: the plain and the parallel layers call
the same functions.

Rotary pairs are (i, i + E/2), as in the checkpoints of Hugging Face, not (2i, 2i + 1) as in the paper. The cache is
allocated once, at full length: shapes that grow would move memory at every step and cannot be captured in a CUDA graph.

Legend: B batch, H query heads, G key-value heads of this rank, S sequence, E head dimension.

Source of the rotary positions: Su and others, "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

_CUDNN_FROM = 4096
"""Tokens of a prompt from which cuDNN's attention is worth its plan: on an H100 0.9 ms for 8,192, flash 1.7."""
_WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class RotaryEmbedding:
    """Cosines and sines by position. Not a module: nothing in it is trained or saved.

    Args:
        head_dim: E, even.
        theta: base of the frequencies, theta^(-2i/E).
        frequencies: (E/2,) instead of those of ``theta``: for scaled variants.
        factor: multiplies cosines and sines (the attention factor of YaRN and LongRoPE).
    """

    def __init__(
        self,
        head_dim: int,
        *,
        theta: float = 10_000.0,
        frequencies: torch.Tensor | None = None,
        factor: float = 1.0,
    ) -> None:
        if head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions; got {head_dim}")
        self.head_dim = head_dim
        self.factor = factor
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
        self.frequencies = 1.0 / theta**exponents if frequencies is None else frequencies
        self._tables: dict[tuple[int, torch.dtype, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}

    def angles(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, each (..., S, E), for ``positions`` (..., S); computed in float32.

        The sines of the first half are negative, as :func:`rotate` wants them: a sign flipped here once is one that
        no layer has to flip.
        """
        if self.frequencies.device != positions.device:
            self.frequencies = self.frequencies.to(positions.device)
        half = positions[..., None].float() * self.frequencies
        cos, sin = half.cos() * self.factor, half.sin() * self.factor
        return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)

    def tables(self, length: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (C, E/2) of positions 0 to C, which is ``length`` or more, as :meth:`angles` has them.

        Kept for good: a CUDA graph reads them where they are. C is a power of two, so they are few.
        """
        places = 1 << max(0, length - 1).bit_length()
        if (places, dtype, device) not in self._tables:
            cos, sin = RotaryEmbedding.angles(self, torch.arange(places, device=device), dtype)
            half = self.head_dim // 2
            self._tables[places, dtype, device] = cos[:, :half].contiguous(), sin[:, half:].contiguous()
        return self._tables[places, dtype, device]


class SharedRotary(RotaryEmbedding):
    """One for all layers of a stage: the layers of a step pass the same tensor of positions, and share its angles.

    Known by identity, not by value, which would have to be computed on the device and waited for. So a tensor of
    positions must not be changed in place between two steps.
    """

    def __init__(self, head_dim: int, frequencies: torch.Tensor, *, factor: float = 1.0) -> None:
        super().__init__(head_dim, frequencies=frequencies, factor=factor)
        self._of: tuple[torch.Tensor, torch.dtype] | None = None
        self._angles: tuple[torch.Tensor, torch.Tensor] | None = None

    def angles(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        if self._angles is None or self._of is None or self._of[0] is not positions or self._of[1] is not dtype:
            self._of, self._angles = (positions, dtype), super().angles(positions, dtype)
        return self._angles


def rotate(x_BHSE: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn by the ``angles``, (S, E) for all sequences alike or (B, 1, S, E)."""
    first, second = x_BHSE.chunk(2, dim=-1)
    return torch.addcmul(x_BHSE * cos, torch.cat([second, first], dim=-1), sin)


class KVCache:
    """Keys and values (B, G, max_length, E), filled up to ``length``.

    Args:
        batch, num_kv_heads, max_length, head_dim: the shape; heads are this rank's.
    """

    def __init__(
        self,
        batch: int,
        num_kv_heads: int,
        max_length: int,
        head_dim: int,
        *,
        dtype: torch.dtype | None = None,
        device: "torch.device | str | None" = None,
    ) -> None:
        shape = (batch, num_kv_heads, max_length, head_dim)
        self.k_BGSE = torch.zeros(shape, dtype=dtype, device=device)
        self.v_BGSE = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.k_BGSE.shape[0]

    @property
    def max_length(self) -> int:
        """Capacity of the cache, in tokens."""
        return self.k_BGSE.shape[2]

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values."""
        return 2 * self.k_BGSE.numel() * self.k_BGSE.element_size()

    def append(self, k_BGSE: torch.Tensor, v_BGSE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the keys and values of new tokens; returns all so far, views of the cache.

        Raises ``ValueError`` when they do not fit. Not differentiable: for inference.
        """
        batch, num_heads, seq, _ = k_BGSE.shape
        past = self.claim(batch, num_heads, seq, k_BGSE.dtype)
        end = past + seq
        self.k_BGSE[:, :, past:end] = k_BGSE
        self.v_BGSE[:, :, past:end] = v_BGSE
        return self.k_BGSE[:, :, :end], self.v_BGSE[:, :, :end]

    def claim(self, batch: int, num_kv_heads: int, seq: int, dtype: torch.dtype) -> int:
        """Count ``seq`` more tokens, which the caller writes behind those that are there; returns how many those are.

        Args:
            batch, num_kv_heads, dtype: of what will be written.
            seq: tokens of each sequence.

        Raises ``ValueError`` when they do not fit.
        """
        self.check_room(seq)
        if batch != self.k_BGSE.shape[0] or num_kv_heads != self.k_BGSE.shape[1]:
            raise ValueError(
                f"the cache is for batch {self.k_BGSE.shape[0]} and {self.k_BGSE.shape[1]} key-value heads on this "
                f"rank; got batch {batch} and {num_kv_heads} heads"
            )
        if dtype is not self.k_BGSE.dtype:
            raise ValueError(
                f"the cache holds {self.k_BGSE.dtype}, the new keys and values are {dtype}: make the cache with "
                f"dtype={dtype}"
            )
        self.length += seq
        return self.length - seq

    def check_room(self, num_tokens: int) -> None:
        """Raises ``ValueError`` unless the capacity suffices for ``num_tokens`` more."""
        if self.length + num_tokens > self.max_length:
            raise ValueError(
                f"the cache has room for {self.max_length} tokens; {self.length} are in it and {num_tokens} more "
                f"came: use a larger max_length, or shorter prompts"
            )

    def rows(self, start: int, end: int) -> "KVCache":
        """The sequences ``start`` to ``end`` of the batch, in the same memory, with a length of their own."""
        part = object.__new__(KVCache)
        part.k_BGSE, part.v_BGSE = self.k_BGSE[start:end], self.v_BGSE[start:end]
        part.length = self.length
        return part

    def reset(self) -> None:
        """Forget everything; the memory stays."""
        self.length = 0


class GrowingCache:
    """Past keys and values as a list that grows: differentiable, for parts of one sequence within one forward pass."""

    def __init__(self) -> None:
        self.length = 0
        self._k: list[torch.Tensor] = []
        self._v: list[torch.Tensor] = []

    def append(self, k_BGSE: torch.Tensor, v_BGSE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the keys and values of new tokens; returns all so far."""
        self._k.append(k_BGSE)
        self._v.append(v_BGSE)
        self.length += k_BGSE.shape[2]
        return torch.cat(self._k, dim=2), torch.cat(self._v, dim=2)


def attend(
    q_BHSE: torch.Tensor,
    k_BGSE: torch.Tensor,
    v_BGSE: torch.Tensor,
    *,
    rope: RotaryEmbedding | None = None,
    positions: torch.Tensor | None = None,
    cache: "KVCache | GrowingCache | None" = None,
    causal: bool = True,
    sliding_window: int | None = None,
    mask: torch.Tensor | None = None,
    kv_of_q: list[int] | None = None,
) -> torch.Tensor:
    """Attention of H heads over G key-value heads, with torch's kernels: everything between the projections.

    Args:
        kv_of_q: key-value head of each query head; None: H/G neighbouring query heads share one.
        positions: (S,) or (B, S) of the new tokens; by default they follow what is in the cache.
        mask: (B, 1, S, past + S) bool, True where a token is seen, instead of the one from ``causal`` and the window.
    """
    seq = q_BHSE.shape[2]
    past = 0 if cache is None else cache.length
    if rope is not None:
        if positions is None:
            positions = torch.arange(past, past + seq, device=q_BHSE.device)
        cos, sin = rope.angles(positions, q_BHSE.dtype)
        if positions.dim() == 2:
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        q_BHSE, k_BGSE = rotate(q_BHSE, cos, sin), rotate(k_BGSE, cos, sin)
    if cache is not None:
        k_BGSE, v_BGSE = cache.append(k_BGSE, v_BGSE)
    return scaled_dot_products(
        q_BHSE, k_BGSE, v_BGSE, causal=causal, sliding_window=sliding_window, mask=mask, kv_of_q=kv_of_q
    )


def scaled_dot_products(
    q_BHSE: torch.Tensor,
    k_BGSE: torch.Tensor,
    v_BGSE: torch.Tensor,
    *,
    causal: bool = True,
    sliding_window: int | None = None,
    mask: torch.Tensor | None = None,
    kv_of_q: list[int] | None = None,
) -> torch.Tensor:
    """Attention of the last S of T tokens over all of them.

    On a GPU cuDNN's kernel only for long prompts: it makes a plan for every shape that it meets for the first time,
    some 60 ms for a stack of 32 layers, which a short prompt never earns back.

    Args:
        q_BHSE: queries of the last S tokens.
        k_BGSE, v_BGSE: keys and values of all T.
        causal, sliding_window, mask, kv_of_q: as of :func:`attend`.
    """
    seq, total = q_BHSE.shape[2], k_BGSE.shape[2]
    past = total - seq
    is_causal = False
    if mask is None and causal:
        windowed = sliding_window is not None and sliding_window < total
        if seq > 1 and past == 0 and not windowed:
            is_causal = True  # torch's causal mask starts at the first key, right only without a past
        elif seq > 1 or windowed:
            mask = causal_mask(seq, total, sliding_window, q_BHSE.device)
    if kv_of_q is not None:
        k_BGSE, v_BGSE = k_BGSE[:, kv_of_q], v_BGSE[:, kv_of_q]
    grouped = k_BGSE.shape[1] != q_BHSE.shape[1]
    on_gpu = q_BHSE.device.type == "cuda"
    if grouped and seq == 1:
        # The query heads of a group as so many queries of one head: the kernels read each key once, not once per head.
        shape = q_BHSE.shape
        q_BHSE = q_BHSE.view(shape[0], k_BGSE.shape[1], -1, shape[3])
        with _kernels(on_gpu):
            return F.scaled_dot_product_attention(q_BHSE, k_BGSE, v_BGSE, attn_mask=mask).reshape(shape)
    if grouped and mask is not None and on_gpu:  # the one kernel that takes masks without a plan wants as many heads
        k_BGSE, v_BGSE = (x.repeat_interleave(q_BHSE.shape[1] // x.shape[1], dim=1) for x in (k_BGSE, v_BGSE))
        grouped = False
    with _kernels(on_gpu and (seq < _CUDNN_FROM or mask is not None)):
        return F.scaled_dot_product_attention(
            q_BHSE, k_BGSE, v_BGSE, attn_mask=mask, is_causal=is_causal, enable_gqa=grouped
        )


def _kernels(without_plans: bool) -> AbstractContextManager[None]:
    return sdpa_kernel(_WITHOUT_PLANS) if without_plans else nullcontext()


def causal_mask(seq: int, total: int, window: int | None, device: torch.device) -> torch.Tensor:
    """(S, total) bool: the last ``seq`` of ``total`` tokens each see themselves and what came before, at most
    ``window`` of them."""
    mask = torch.ones(seq, total, dtype=torch.bool, device=device).tril(total - seq)
    return mask if window is None else mask.triu(total - seq - window + 1)
