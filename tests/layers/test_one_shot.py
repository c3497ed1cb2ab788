"""Sums by one exchange: those of the backend, the same bits on every rank, for every size and dtype."""

from typing import Any

import pytest
import torch

from tplab.cluster import Rank

SHAPES = [(1,), (3, 5), (1, 1, 768), (0,), (16_384,), (16_385,), (200_003,)]


def sums(rank: Rank, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    from tplab.layers.comm import OneShotComm, as_comm

    ours, theirs = OneShotComm(rank.group), as_comm(rank.group)
    out = []
    for number, shape in enumerate(SHAPES):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(100 * number + rank.index)).to(dtype)
        got = x.clone()
        assert ours.all_reduce(got) is got, "in place"
        out.append((got, theirs.all_reduce(x)))
    return out


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sums(n: int, dtype: torch.dtype, clusters: Any) -> None:
    by_rank = clusters[n].run(sums, dtype)
    for results in zip(*by_rank, strict=True):
        first = results[0][0]
        for got, want in results:
            assert torch.equal(got, first)
            if n == 2:
                assert torch.equal(got, want)
            else:
                torch.testing.assert_close(got, want, atol=0.1 if dtype is torch.bfloat16 else 1e-5, rtol=0.05)
