"""The sum over ranks, the residual and the norm that follow a row-parallel layer in a decoder block, as one call.

One function and not three, so that it is one kernel over a ``SymmetricComm`` and two with NCCL: in a decode step each
of the three is a launch and a trip through memory for a few kilobytes.

Legend: T tokens, D hidden.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tplab.layers import kernels
from tplab.layers.comm import Comm, RecordingComm
from tplab.layers.symmetric_comm import symmetric_of


def sum_add_norm(
    comm: Comm,
    x_TD: torch.Tensor,
    residual_TD: torch.Tensor,
    weight_D: torch.Tensor,
    eps: float,
    offset: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual with the sum over ranks of ``x`` added, and its RMSNorm: both (T, D), the same on every rank.

    Equation: ``h = residual + sum over r of x_r``, each rounded to their dtype;
    ``y = h / sqrt(mean(h²) + eps) · (offset + weight)``, in float32, rounded once.

    Args:
        comm: the ranks.
        x_TD: partial sums of this rank, contiguous; may be overwritten.
        residual_TD: the same on every rank; stays as it is.
        weight_D: of the norm.
        eps: added to the mean square.
        offset: what the norm adds to its weights: 1 for Gemma's, whose weights are stored less 1.
    """
    symmetric = symmetric_of(comm)
    if symmetric is not None and symmetric.fuses(x_TD, residual_TD, weight_D):
        if isinstance(comm, RecordingComm):
            return comm.timed(lambda: symmetric.sum_add_norm(x_TD, residual_TD, weight_D, eps, offset))
        return symmetric.sum_add_norm(x_TD, residual_TD, weight_D, eps, offset)
    return add_norm(residual_TD, comm.all_reduce(x_TD), weight_D, eps, offset)


def add_norm(
    x_TD: torch.Tensor, delta_TD: torch.Tensor | None, weight_D: torch.Tensor, eps: float, offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x + delta`` and its RMSNorm, in one kernel where there is one. Without ``delta``, ``x`` itself and its norm.

    Args:
        x_TD, delta_TD: (..., D).
        weight_D, eps, offset: as above.
    """
    if kernels.usable(x_TD):
        from tplab.layers.kernels.norm import add_norm as fused

        return fused(x_TD, delta_TD, weight_D, eps, offset)
    h_TD = x_TD if delta_TD is None else x_TD + delta_TD
    if not offset:
        return h_TD, F.rms_norm(h_TD, weight_D.shape, weight_D, eps)
    y_TD = F.rms_norm(h_TD.float(), weight_D.shape, None, eps) * (offset + weight_D.float())
    return h_TD, y_TD.to(h_TD.dtype)


def of_norm(norm: nn.RMSNorm, dtype: torch.dtype) -> tuple[torch.Tensor, float, float]:
    """Weights, eps and offset of a norm, as the functions above take them."""
    eps = torch.finfo(dtype).eps if norm.eps is None else norm.eps
    return norm.weight, eps, float(getattr(norm, "offset", 0.0))
