"""Noise by place: the bits of SplitMix64, uniform in every direction, and the same wherever they are computed."""

import math
from itertools import pairwise

import pytest
import torch

from tplab.layers.comm import NullComm
from tplab.layers.noise import _GOLDEN, NoiseByPlace, _mixed, _signed, key_of
from tplab.layers.shards import VocabShard
from tplab.layers.vocabulary import parallel_sample

# What Vigna's splitmix64.c gives for the seed 1234567 (as in Rosetta Code, "Pseudo-random numbers/Splitmix64").
SPLITMIX_1234567 = [
    *(6457827717110365317, 3203168211198807973, 9817491932198370423),
    *(4593380528125082431, 16408922859458223821),
]


def test_the_mixing_is_splitmix64s() -> None:
    states = torch.tensor([1234567]) + torch.arange(1, 6) * _signed(_GOLDEN)
    assert [value % (1 << 64) for value in _mixed(states).tolist()] == SPLITMIX_1234567


def draws(num_rows: int, num_steps: int, columns: int, seed: int = 0) -> torch.Tensor:
    """(steps, rows, columns)"""
    noise = NoiseByPlace([key_of(seed, place) for place in range(num_rows)])
    made = []
    for _ in range(num_steps):
        made.append(noise.uniform(0, columns))
        noise.advance()
    return torch.stack(made)


@pytest.mark.parametrize("shape", [(1, 1, 200_000), (1, 200_000, 1), (2_000, 1, 100), (40, 50, 100)], ids=str)
def test_numbers_are_uniform(shape: tuple[int, int, int]) -> None:
    """Kolmogorov and Smirnov's distance, and chi-square of 256 bins of the low and of the high bits: each beyond its
    bound once in a thousand seeds; these are fixed."""
    rows, steps, columns = shape
    u = draws(rows, min(steps, 2_000), columns * (steps // min(steps, 2_000))).flatten()
    assert 0 < float(u.min()) <= float(u.max()) < 1
    n = u.numel()
    below = torch.arange(n, dtype=torch.float64) / n
    assert float((u.sort().values - below).abs().max()) < 1.95 / math.sqrt(n)
    for scaled in (u * 256, u * 2**36):
        counts = (scaled.long() % 256).bincount(minlength=256).double()
        chi_square = float(((counts - n / 256) ** 2 / (n / 256)).sum())
        assert 255 - 3.3 * math.sqrt(2 * 255) < chi_square < 255 + 3.3 * math.sqrt(2 * 255)


def test_neighbours_have_nothing_to_do_with_each_other() -> None:
    u = draws(60, 60, 60) - 0.5
    for dim in range(3):
        one, next_one = u.narrow(dim, 0, 59).flatten(), u.narrow(dim, 1, 59).flatten()
        correlation = float((one * next_one).mean() * 12)
        assert abs(correlation) < 3.3 / math.sqrt(one.numel()), dim


def test_a_number_depends_on_key_step_and_column_alone() -> None:
    whole = draws(5, 4, 101, seed=3)
    for start, end in pairwise((0, 1, 40, 41, 101)):
        noise = NoiseByPlace([key_of(3, 4), key_of(3, 1)])
        noise.advance()
        assert torch.equal(noise.uniform(start, end), whole[1, [4, 1], start:end])
        noise.restart([key_of(3, 0), key_of(3, 2)])
        assert torch.equal(noise.uniform(start, end), whole[0, [0, 2], start:end])
    assert not torch.equal(draws(5, 4, 101, seed=4), whole)
    assert whole.unique().numel() == whole.numel()


def test_draws_follow_the_softmax() -> None:
    """Chi-square over the tokens, beyond its bound once in a thousand seeds; this one is fixed."""
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])
    rows = 20_000
    for temperature in (0.5, 1.0, 3.0):
        noise = NoiseByPlace([key_of(11, place) for place in range(rows)])
        tokens = parallel_sample(
            logits.expand(rows, 5), VocabShard.of(5, 0, 1), NullComm(), generator=noise, temperature=temperature
        )
        wanted = (logits.double() / temperature).softmax(-1) * rows
        chi_square = float(((tokens.bincount(minlength=5) - wanted) ** 2 / wanted).sum())
        assert chi_square < 18.5, temperature  # 4 degrees of freedom


def test_rows_of_noise_must_be_those_of_the_logits() -> None:
    noise = NoiseByPlace([1, 2])
    with pytest.raises(ValueError, match=r"generator: 2 of them for logits of shape \(3, 5\); one per row"):
        parallel_sample(torch.zeros(3, 5), VocabShard.of(5, 0, 1), NullComm(), generator=noise)


@pytest.mark.gpu
def test_a_gpu_has_the_same_bits() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    keys = [key_of(0, place) for place in range(4)]
    here, there = NoiseByPlace(keys), NoiseByPlace(keys, "cuda")
    for _ in range(3):
        assert torch.equal(here.uniform(5, 50_000), there.uniform(5, 50_000).cpu())
        here.advance()
        there.advance()
