"""Sum, residual and norm in one call: equal to the three written out."""

import pytest
import torch

from tplab.layers.comm import NullComm
from tplab.layers.sum_norm import sum_add_norm


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_alone_it_is_the_norm_of_the_residual_and_the_addend(offset: float) -> None:
    generator = torch.Generator().manual_seed(3)
    x, residual = torch.randn(2, 5, 48, generator=generator)
    weight = torch.randn(48, generator=generator)
    h, y = sum_add_norm(NullComm(), x.clone(), residual, weight, 1e-5, offset)
    assert torch.equal(h, x + residual)
    wide = h.double()
    want = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (offset + weight.double())
    assert torch.allclose(y.double(), want, rtol=1e-6, atol=1e-6)
