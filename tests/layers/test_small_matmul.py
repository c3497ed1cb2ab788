"""The matmul of few tokens is the linear one, in every shape, dtype and layout of its input."""

import pytest
import torch
from torch.nn import functional as F

from tplab.layers.strategies import few_tokens_linear


@pytest.mark.parametrize("shape", [(1,), (2,), (8,), (9,), (2, 1), (1, 3), (2, 4), (3, 3), (2, 1, 2), (0,)])
@pytest.mark.parametrize(("in_features", "out_features"), [(5, 7), (7, 5), (1, 2), (64, 64), (63, 129)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_linear(shape: tuple[int, ...], in_features: int, out_features: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*shape, in_features, generator=generator).to(dtype)
    weight = torch.randn(out_features, in_features, generator=generator).to(dtype)
    for bias in (None, torch.randn(out_features, generator=generator).to(dtype)):
        for each in (x, torch.stack([x, x], dim=-1)[..., 0]):  # also one whose rows do not lie together
            got = few_tokens_linear(each, weight, bias)
            close = {"rtol": 0.05, "atol": 0.05} if dtype is torch.bfloat16 else {}
            torch.testing.assert_close(got, F.linear(x, weight, bias), **close)
            assert got.is_contiguous(), "sums over ranks are in place"
