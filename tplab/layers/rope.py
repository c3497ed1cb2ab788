"""Rotary position embedding: queries and keys turned by an angle that grows with the position.

Heads are turned one by one, so a rank turns its own and nothing is communicated. Pairs are (i, i + E/2), as in the
checkpoints of Hugging Face, not (2i, 2i + 1) as in the paper.

Legend: B batch, H heads, S sequence, E head dimension.

Source: Su and others, "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).
"""

import torch


class RotaryEmbedding:
    """Cosines and sines by position. Not a module: nothing in it is trained or saved.

    Args:
        head_dim: E, even.
        theta: base of the frequencies, theta^(-2i/E).
        frequencies: (E/2,) instead of those of ``theta``: for scaled variants.
        factor: multiplies cosines and sines (YaRN's attention factor).
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


def rotate(x_BHSE: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn by the ``angles``, (S, E) for all sequences alike or (B, 1, S, E)."""
    first, second = x_BHSE.chunk(2, dim=-1)
    return torch.addcmul(x_BHSE * cos, torch.cat([second, first], dim=-1), sin)
