"""Rows of a weight that several ranks hold: the key-value heads that there are too few of.

Not a second process group per set of holders: the sets overlap (heads 6 with 2 key-value heads on 3 ranks), and groups
are dear. One all-reduce over all ranks does, in training only.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from tplab.layers.comm import Comm


class SharedRows:
    """Rows of a weight that several ranks hold: identity, whose backward sums their gradients over those ranks.

    Each holder uses the rows for its own query heads and gets that part of the gradient. All ranks put theirs into a
    zero tensor of all such rows, all-reduce it, and take their own again: T-independent, S = all key-value rows.

    Args:
        start: first shared row of the local weight; all after it are shared.
        places: for each block of local rows from ``start`` on, in order, its (start, end) in the full tensor of rows.
        total: rows of that full tensor.
    """

    def __init__(self, start: int, places: tuple[tuple[int, int], ...], total: int) -> None:
        self.start = start
        self.places = places
        self.total = total

    def __call__(self, rows: torch.Tensor, comm: Comm) -> torch.Tensor:
        if not rows.requires_grad:
            return rows
        out: torch.Tensor = _SumShared.apply(rows, self, comm)  # type: ignore[no-untyped-call]
        return out


class _SumShared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, shared: SharedRows, comm: Comm) -> torch.Tensor:
        ctx.shared, ctx.comm = shared, comm
        return rows.view_as(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        shared = ctx.shared
        full = grad.new_zeros((shared.total, *grad.shape[1:]))
        lengths = [end - start for start, end in shared.places]
        for (start, end), part in zip(shared.places, torch.split(grad[shared.start :], lengths), strict=True):
            full[start:end] = part
        ctx.comm.all_reduce(full)
        mine = [full[start:end] for start, end in shared.places]
        return torch.cat([grad[: shared.start], *mine]), None, None
