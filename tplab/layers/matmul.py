"""The two matmuls of tensor parallelism with their gradients and collectives.

Written as autograd functions, not left to autograd over ``regions``: here a backward pass can start the all-reduce of
the input's gradient and compute the weight's gradient while it runs. Without gradients they are not used at all; a
decode step would pay 20 us for each.

Legend: T tokens; I input features, O output features.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tplab.layers.comm import Comm, Pending
from tplab.layers.small_matmul import few_tokens_linear
from tplab.layers.strategies import Blocking


def column_matmul(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, comm: Comm, strategy: Blocking
) -> torch.Tensor:
    """``x @ weight.T + bias`` where all ranks share ``x`` and each has its own weight: its gradient is summed.

    Args:
        x: input, (T, I), the same on all ranks (token shards under sequence parallelism).
        weight: this rank's rows, (O/n, I).
        bias: this rank's part, (O/n,); None for none.
        comm: the ranks.
        strategy: how the input is gathered and its gradient summed.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        y: torch.Tensor = _ColumnMatmul.apply(x, weight, bias, comm, strategy)  # type: ignore[no-untyped-call]
        return y
    return few_tokens_linear(strategy.gather_input(x, comm), weight, bias)


def start_row_matmul(x: torch.Tensor, weight: torch.Tensor, comm: Comm, strategy: Blocking) -> Pending:
    """The sum over ranks of ``x @ weight.T``, where each rank has its own ``x`` and weight, under way."""
    if not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        return strategy.reduce_matmul(x, weight, comm)
    box: list[Pending] = []
    y = _RowMatmul.apply(x, weight, comm, strategy, box)  # type: ignore[no-untyped-call]
    return _Tracked(box[0], y)


class _ColumnMatmul(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        comm: Comm,
        strategy: Blocking,
    ) -> torch.Tensor:
        x_full = strategy.gather_input(x, comm)
        ctx.save_for_backward(x_full, weight)
        ctx.comm, ctx.strategy = comm, strategy
        return F.linear(x_full, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        pending: Pending | None = None
        if needs_x:
            pending = ctx.strategy.start_input_grad(grad @ weight, ctx.comm)
        # The weight's gradient is computed while the input's is summed over the ranks.
        grad_weight = _outer(grad, x) if needs_weight else None
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if needs_bias else None
        return pending.wait() if pending is not None else None, grad_weight, grad_bias, None, None


class _RowMatmul(torch.autograd.Function):
    """Starts the sum; ``box`` holds what to wait for. Nobody may read the result before."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, comm: Comm, strategy: Blocking, box: list[Pending]
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.comm, ctx.strategy = comm, strategy
        box.append(strategy.reduce_matmul(x, weight, comm))
        # Another tensor over the same memory: gloo's threads may copy into the target with gradients on, which autograd
        # would write down as the origin of what we return.
        return box[0].target.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad = ctx.strategy.gather_output_grad(grad, ctx.comm)
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        grad_weight = _outer(grad, x) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, None, None, None


class _Tracked:
    """The pending sum, and the tensor that autograd knows."""

    __slots__ = ("_pending", "target")

    def __init__(self, pending: Pending, target: torch.Tensor) -> None:
        self._pending = pending
        self.target = target

    def wait(self) -> torch.Tensor:
        self._pending.wait()
        return self.target


def _outer(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Gradient of a weight: (..., O), (..., I) -> (O, I)."""
    return grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
