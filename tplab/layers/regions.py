"""Collectives with their gradients: what tensors, weights and norms pass at the edge of a region that is sharded.

Each forward has a backward that is a collective, too, and usually the *other* one: what is copied to all ranks has a
gradient that is the sum over all ranks. torch's own differentiable collectives (``torch.distributed.nn.functional``)
take the view that every rank's output is a loss of its own and sum where these do not: for a replicated loss their
gradients are n times too large.

The two matmuls are here as autograd functions, not left to autograd over the collectives: a backward pass can then
start the all-reduce of the input's gradient and compute the weight's gradient while it runs. Without gradients they are
not used at all; a decode step would pay 20 us for each.

Tokens are sharded flat for sequence parallelism: batch and sequence together are T tokens, padded with zeros to a
multiple of n; rank r holds the r-th part. A sequence dimension of its own would need a copy around every collective
(they cut dim 0), and could not share 17 tokens.

Legend: B batch, S sequence, D hidden, T = B·S tokens; I input features, O output features; n ranks.

Source of the pairs: Shoeybi and others, "Megatron-LM" (2019), section 3, f and g; Korthikanti and others (2022),
section 4.2.2, g and g-bar.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tplab.layers.comm import Comm, Pending
from tplab.layers.strategies import Blocking, few_tokens_linear


def copy_to_group(x: torch.Tensor, comm: Comm) -> torch.Tensor:
    """Identity; backward: all-reduce. For what every rank has and uses in its own way."""
    if not _matters(x, comm):
        return x
    out: torch.Tensor = _Copy.apply(x, comm)  # type: ignore[no-untyped-call]
    return out


def reduce_from_group(x: torch.Tensor, comm: Comm, strategy: Blocking) -> torch.Tensor:
    """The strategy's sum over ranks; backward: identity, or all-gather under sequence parallelism.

    ``x`` is overwritten.
    """
    if _matters(x, comm):
        out: torch.Tensor = _Reduce.apply(x, comm, strategy)  # type: ignore[no-untyped-call]
        return out
    return strategy.reduce(x, comm).wait()


def gather_from_group(x: torch.Tensor, comm: Comm, *, dim: int = -1) -> torch.Tensor:
    """Concatenate along ``dim``, in rank order; backward: this rank's slice, as all ranks compute the same loss."""
    if not _matters(x, comm):
        return _gathered(x, comm, dim)
    out: torch.Tensor = _Gather.apply(x, comm, dim)  # type: ignore[no-untyped-call]
    return out


def split_to_group(x: torch.Tensor, comm: Comm, *, dim: int = -1) -> torch.Tensor:
    """This rank's slice of what all ranks have; backward: all-gather. n must divide the dimension."""
    if not _matters(x, comm):
        return _slice(x, comm, dim)
    out: torch.Tensor = _Split.apply(x, comm, dim)  # type: ignore[no-untyped-call]
    return out


def _matters(x: torch.Tensor, comm: Comm) -> bool:
    return comm.size > 1 and x.requires_grad and torch.is_grad_enabled()


def _gathered(x: torch.Tensor, comm: Comm, dim: int) -> torch.Tensor:
    if comm.size == 1:
        return x
    dim %= x.dim()
    every = comm.start_all_gather(x.unsqueeze(0).contiguous()).wait()
    # (n, ..., d, ...) -> (..., n, d, ...) -> (..., n·d, ...)
    return every.movedim(0, dim).flatten(dim, dim + 1).contiguous()


def _slice(x: torch.Tensor, comm: Comm, dim: int) -> torch.Tensor:
    each = x.shape[dim] // comm.size
    return x.narrow(dim, comm.index * each, each)


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, comm: Comm) -> torch.Tensor:
        ctx.comm = comm
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        # A copy: autograd may have handed the same gradient to somebody else.
        return ctx.comm.all_reduce(grad.clone(memory_format=torch.contiguous_format)), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, comm: Comm, strategy: Blocking) -> torch.Tensor:
        ctx.comm, ctx.strategy = comm, strategy
        out = strategy.reduce(x, comm).wait()
        if out is x:
            ctx.mark_dirty(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return ctx.strategy.gather_output_grad(grad, ctx.comm), None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, comm: Comm, dim: int) -> torch.Tensor:
        ctx.comm, ctx.dim = comm, dim
        return _gathered(x, comm, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _slice(grad, ctx.comm, ctx.dim).contiguous(), None, None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, comm: Comm, dim: int) -> torch.Tensor:
        ctx.comm, ctx.dim = comm, dim
        return _slice(x, comm, dim).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _gathered(grad, ctx.comm, ctx.dim), None, None


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


class SharedRows:
    """Rows of a weight that several ranks hold: identity, whose backward sums their gradients over those ranks.

    Each holder uses the rows for its own query heads and gets that part of the gradient. All ranks put theirs into a
    zero tensor of all such rows, all-reduce it, and take their own again: T-independent, S = all key-value rows. Not a
    process group per set of holders: the sets overlap (6 heads with 2 key-value heads on 3 ranks), and groups are dear.

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


def share_norm(norm: nn.Module, x: torch.Tensor, comm: Comm) -> torch.Tensor:
    """``norm(x)``; backward sums the gradients of its parameters over the ranks, of which each has seen its part."""
    if comm.size == 1 or not torch.is_grad_enabled():
        return norm(x)  # type: ignore[no-any-return]
    shared = {name: copy_to_group(parameter, comm) for name, parameter in norm.named_parameters()}
    out: torch.Tensor = torch.func.functional_call(norm, shared, (x,))
    return out


def padded_tokens(tokens: int, n: int) -> int:
    """The next multiple of n."""
    return -(-tokens // n) * n


def pad_tokens(x_TD: torch.Tensor, n: int) -> torch.Tensor:
    """Append zeros up to a multiple of n tokens."""
    missing = padded_tokens(x_TD.shape[0], n) - x_TD.shape[0]
    return F.pad(x_TD, (0, 0, 0, missing)) if missing else x_TD


def scatter_tokens(x_BSD: torch.Tensor, comm: Comm) -> torch.Tensor:
    """(B, S, D), the same on every rank -> this rank's (ceil(T/n), D). Backward: all-gather."""
    return split_to_group(pad_tokens(x_BSD.flatten(0, 1), comm.size), comm, dim=0)


def gather_tokens(x_tD: torch.Tensor, comm: Comm, shape: tuple[int, int]) -> torch.Tensor:
    """The reverse of :func:`scatter_tokens`: (ceil(T/n), D) -> (B, S, D), for ``shape`` = (B, S)."""
    batch, seq = shape
    every = gather_from_group(x_tD, comm, dim=0)
    check_shape(shape, every.shape[0], comm.size)
    return every[: batch * seq].view(batch, seq, x_tD.shape[1])


def check_shape(shape: tuple[int, int], held: int, n: int) -> None:
    """Raises ``ValueError`` unless ``held``, the tokens in the shards of all n ranks, fits ``shape`` = (B, S)."""
    tokens = shape[0] * shape[1]
    if held != padded_tokens(tokens, n):
        raise ValueError(
            f"shape={shape} has {tokens} tokens, {padded_tokens(tokens, n)} with padding; the shards of {n} ranks hold "
            f"{held}"
        )
