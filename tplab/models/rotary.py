"""Rotary frequencies of a model's configuration, scaled where it says so, and angles that are computed once a step.

Legend: E head dimension.

Sources: Chen and others, "Extending Context Window of Large Language Models via Positional Interpolation" (2023) for
``linear``; the reference implementation of Llama 3.1 for ``llama3``, with the constants in each model's config.json.
"""

import math

import torch

from tplab.layers.rope import RotaryEmbedding
from tplab.models.spec import ModelConfig, RopeScaling


class SharedRotary(RotaryEmbedding):
    """One for all layers of a stage: the layers of a step pass the same tensor of positions, and share its angles.

    Known by identity, not by value, which would have to be computed on the device and waited for. So a tensor of
    positions must not be changed in place between two steps.
    """

    def __init__(self, head_dim: int, frequencies: torch.Tensor) -> None:
        super().__init__(head_dim, frequencies=frequencies)
        self._of: tuple[torch.Tensor, torch.dtype] | None = None
        self._angles: tuple[torch.Tensor, torch.Tensor] | None = None

    def angles(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        if self._angles is None or self._of is None or self._of[0] is not positions or self._of[1] is not dtype:
            self._of, self._angles = (positions, dtype), super().angles(positions, dtype)
        return self._angles


def make_rotary(config: ModelConfig) -> SharedRotary:
    """The rotary embedding of a model. Frequencies (E/2,) in float32, on the CPU until first used elsewhere."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    if config.rope_scaling is not None:
        frequencies = scale(frequencies, config.rope_scaling)
    return SharedRotary(config.head_dim, frequencies)


def scale(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Frequencies for a context ``scaling.factor`` times as long.

    ``llama3``: a frequency whose wavelength is longer than ``original_max_positions / low_freq_factor`` is divided by
    the factor, one shorter than ``original_max_positions / high_freq_factor`` stays, and in between the two are mixed
    in proportion.
    """
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    assert scaling.original_max_positions is not None
    turns = scaling.original_max_positions / (2 * math.pi / frequencies)  # within the trained context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies
