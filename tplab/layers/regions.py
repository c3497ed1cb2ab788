"""Collectives with their gradients: what a tensor passes when it enters or leaves the region that is sharded.

Each forward has a backward that is a collective, too, and usually the *other* one: what is copied to all ranks has a
gradient that is the sum over all ranks. torch's own differentiable collectives (``torch.distributed.nn.functional``)
take the view that every rank's output is a loss of its own and sum where these do not: for a replicated loss their
gradients are n times too large.

Source of the pairs: Shoeybi and others, "Megatron-LM" (2019), section 3, f and g; Korthikanti and others (2022),
section 4.2.2, g and g-bar.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from tplab.layers.comm import Comm
from tplab.layers.strategies import Blocking


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
