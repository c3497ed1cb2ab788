"""Random numbers by place: what is drawn for a token depends on a key, a step and the token's id, and on nothing else.

A generator with a state has to be run through all that comes before: every rank would draw the noise of the whole
vocabulary for each token, on the host, so that all have the same. A number that is a hash of its place is computed
where it is needed: by each rank for its own part of the vocabulary, on the device, also inside a CUDA graph, with the
same bits on CPU and GPU. Not torch's own Philox on a GPU: it gives other numbers than the CPU's, and its offset is the
host's.

Source of the mixing: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014), with the constants
of Stafford's variant 13, as in Java's ``SplittableRandom``.

Legend: B rows, each with a key of its own.
"""

import hashlib
from collections.abc import Sequence

import torch

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_BITS = 52  # one less than a float64 has, for a half in the middle of each step


class NoiseByPlace:
    """Uniform numbers of B rows, keyed by row, step and column. It counts its steps on the device.

    Args:
        keys: 64 bits for each row, from :func:`key_of`.
        device: where the numbers are wanted.
    """

    def __init__(self, keys: Sequence[int], device: "torch.device | str" = "cpu") -> None:
        self._keys_B1 = torch.tensor([keys], dtype=torch.int64, device=device).T.contiguous()
        self._step = torch.zeros(1, dtype=torch.int64, device=device)

    @property
    def num_rows(self) -> int:
        """B."""
        return self._keys_B1.shape[0]

    def restart(self, keys: Sequence[int]) -> None:
        """Step 0 again, with other keys, in the same memory."""
        self._keys_B1.copy_(torch.tensor([keys], dtype=torch.int64).T)
        self._step.zero_()

    def advance(self) -> None:
        """On to the next step."""
        self._step += 1

    def uniform(self, start: int, end: int) -> torch.Tensor:
        """(B, end - start) float64, above 0 and below 1: the numbers of columns ``start`` to ``end`` in this step."""
        row_B1 = _mixed(self._keys_B1 + self._step * _signed(_GOLDEN))
        column = torch.arange(start + 1, end + 1, device=row_B1.device)
        bits = _mixed(row_B1 + column * _signed(_GOLDEN)) >> (64 - _BITS)
        return ((bits & ((1 << _BITS) - 1)).double() + 0.5) * 2.0**-_BITS


def key_of(seed: int, place: int) -> int:
    """The key of row ``place`` among those with the same seed: any two differ in half of their 64 bits."""
    digest = hashlib.sha256(f"{seed}:{place}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _mixed(z: torch.Tensor) -> torch.Tensor:
    """64 bits in, 64 bits out, one to one; every bit of the input changes about half of the output's."""
    for shift, factor in _MIX:
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    return z ^ _shifted(z, 31)


def _shifted(z: torch.Tensor, shift: int) -> torch.Tensor:
    """To the right, with zeros coming in: torch's own shift of signed numbers repeats the sign."""
    return (z >> shift) & ((1 << (64 - shift)) - 1)


def _signed(bits: int) -> int:
    """The same 64 bits as a signed number: products wrap around alike."""
    return bits - (1 << 64) if bits >> 63 else bits
