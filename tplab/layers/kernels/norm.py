"""Residual and RMSNorm in one kernel: the hidden state is read once and written once.

Legend: T tokens, D hidden.

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
"""

import torch
import triton
import triton.language as tl

from tplab.layers.kernels.launch import dependents, num_warps_for, wait_for_previous


@triton.jit
def _norm_kernel(
    x, delta, weight, summed, normed, size, eps, offset, HAS_DELTA: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """One program per token."""
    at = tl.arange(0, BLOCK)
    here = at < size
    row = tl.program_id(0).to(tl.int64) * size
    w = tl.load(weight + at, mask=here, other=0.0).to(tl.float32)  # of no earlier kernel, so before the wait
    dependents(PDL)
    wait_for_previous(PDL)
    value = tl.load(x + row + at, mask=here, other=0.0).to(tl.float32)
    if HAS_DELTA:
        value += tl.load(delta + row + at, mask=here, other=0.0).to(tl.float32)
        rounded = value.to(summed.dtype.element_ty)
        tl.store(summed + row + at, rounded, mask=here)
        value = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / size + eps)
    tl.store(normed + row + at, (value * scale * (w + offset)).to(normed.dtype.element_ty), mask=here)


def add_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight_D: torch.Tensor, eps: float, offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x + delta``, and its RMSNorm: (..., D) each. The sum is rounded to the dtype first, as it is stored.

    Args:
        x: (..., D).
        delta: (..., D); None for nothing to add, then ``x`` itself comes back.
        weight_D: weights of the norm.
        eps: added to the mean square.
        offset: added to the weights, as Gemma's norms have it.
    """
    x, delta = x.contiguous(), None if delta is None else delta.contiguous()
    normed = torch.empty_like(x)
    summed = x if delta is None else torch.empty_like(x)
    size = x.shape[-1]
    block = triton.next_power_of_2(size)
    _norm_kernel[(x.numel() // size,)](
        x,
        x if delta is None else delta,
        weight_D,
        summed,
        normed,
        size,
        eps,
        offset,
        HAS_DELTA=delta is not None,
        BLOCK=block,
        **num_warps_for(block // 512, x),
    )
    return summed, normed
