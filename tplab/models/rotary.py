"""The rotary frequencies of a model, stretched as its configuration says; those that depend on how long a sequence is.

Bitwise as transformers computes them, operation for operation: tokens are equal only where angles are.

Sources of the scaled frequencies: Chen and others, "Extending Context Window of Large Language Models via Positional
Interpolation" (2023) for ``linear``; the reference implementation of Llama 3.1 for ``llama3``, with the constants in
each model's config.json; Peng and others, "YaRN: Efficient Context Window Extension of Large Language Models" (2023)
for ``yarn`` and ``dynamic``; Ding and others, "LongRoPE" (2024).

Legend: E head dimension.
"""

import math
from collections.abc import Callable

import torch

from tplab.layers.core_attention import SharedRotary
from tplab.models.rope import RopeScaling, yarn_mscale
from tplab.models.spec import ModelConfig


class LengthRotary(SharedRotary):
    """Frequencies that depend on the length of the sequence: of all its tokens, those of the past included.

    Keys in the cache keep the angles of their own step, as in transformers, where each step turns only what is new. To
    be told of the length before every step: :meth:`follow`.

    Args:
        head_dim: E.
        short: (E/2,) frequencies of sequences up to ``most``.
        of_long: those of longer ones, from ``held`` and the length, a tensor () on the device.
        held: whatever it computes with, kept on the device.
        most: tokens.
        factor: multiplies cosines and sines.
    """

    def __init__(
        self,
        head_dim: int,
        *,
        short: torch.Tensor,
        of_long: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        held: torch.Tensor,
        most: int,
        factor: float = 1.0,
    ) -> None:
        super().__init__(head_dim, short, factor=factor)
        self._short, self._of_long, self._held, self._most = short, of_long, held, most

    def follow(self, length: torch.Tensor) -> None:
        """The next step is of sequences of so many tokens, a tensor of one number on the device. It is not read from
        there, so that a CUDA graph of the step is good for every length."""
        device = length.device
        if self._short.device != device:
            self._short, self._held = self._short.to(device), self._held.to(device)
        length = length.reshape(())
        self.frequencies = torch.where(length > self._most, self._of_long(self._held, length), self._short)
        self._angles = None
        self._tables.clear()


def make_rotary(config: ModelConfig) -> SharedRotary:
    """The rotary embedding of a model. Frequencies (E/2,) in float32, on the CPU until first used elsewhere."""
    size, theta, scaling = config.head_dim, config.rope_theta, config.rope_scaling
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size
    powers = theta**exponents
    if scaling is None:
        return SharedRotary(size, 1.0 / powers)
    if scaling.kind == "dynamic":
        return _dynamic(exponents, config, scaling.factor)
    if scaling.kind == "yarn":
        return SharedRotary(size, _yarn(powers, theta, scaling), factor=_on_angles(scaling))
    if scaling.kind == "longrope":
        assert scaling.original_max_positions is not None
        short, long = (
            1.0 / (torch.tensor(factors, dtype=torch.float32, device="cpu") * powers)
            for factors in (scaling.short_factors, scaling.long_factors)
        )
        return LengthRotary(
            size,
            short=short,
            of_long=lambda held, _: held,
            held=long,
            most=scaling.original_max_positions,
            factor=_on_angles(scaling),
        )
    return SharedRotary(size, _scaled(1.0 / powers, scaling))


def _dynamic(exponents: torch.Tensor, config: ModelConfig, factor: float) -> LengthRotary:
    """A theta that grows with the length, so that the lowest frequency is stretched as the sequence is."""
    most, size, theta = config.max_positions, config.head_dim, config.rope_theta
    assert most is not None

    def frequencies(held: torch.Tensor, length: "torch.Tensor | int") -> torch.Tensor:
        base = theta * ((factor * length / most) - (factor - 1)) ** (size / (size - 2))
        made: torch.Tensor = 1.0 / base**held
        return made

    return LengthRotary(size, short=frequencies(exponents, most), of_long=frequencies, held=exponents, most=most)


def _yarn(powers: torch.Tensor, theta: float, scaling: RopeScaling) -> torch.Tensor:
    """Frequencies that turn more than ``beta_fast`` times within the trained context stay, those with fewer turns than
    ``beta_slow`` are divided by the factor, and in between the two are mixed by their place among the E/2."""
    size, trained = 2 * powers.shape[0], scaling.original_max_positions
    assert trained is not None

    def place_of(turns: float) -> float:
        return (size * math.log(trained / (turns * 2 * math.pi))) / (2 * math.log(theta))

    low, high = place_of(scaling.beta_fast), place_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001  # transformers' step from one to the other
    places = torch.arange(size // 2, dtype=torch.float32, device="cpu")
    kept = 1 - ((places - low) / (high - low)).clamp(0, 1)
    return 1.0 / (scaling.factor * powers) * (1 - kept) + 1.0 / powers * kept


def _on_angles(scaling: RopeScaling) -> float:
    """The factor on cosines and sines that makes up for distances which have become more alike."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.kind == "yarn":
        return yarn_mscale(scaling.factor)
    assert scaling.original_max_positions is not None
    if scaling.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_positions))


def _scaled(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
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
