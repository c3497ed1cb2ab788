"""Which part of which full tensor a rank holds: sharding as data.

One table per module (``Plan``) says, for every parameter of the parallel module, from which full tensors it is put
together and which slices of them. ``from_module`` reads it with tensors, a checkpoint loader with slices of a file, the
memory model with shapes alone. Not torch's ``DTensor`` placements: those cannot say "my heads' rows of q, of k and of
v, one below the other", nor that two ranks hold the same key head.

Legend: n ranks, r this rank.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import nn

from tplab.layers.ranges import HeadShard, VocabShard, even_range

__all__ = [
    "HeadShard",
    "Plan",
    "Shard",
    "VocabShard",
    "even_range",
    "load",
    "load_from",
    "prefixed",
    "rows_plan",
    "same_kind",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A slice of one full tensor."""

    source: str
    """Name of the full tensor, such as ``q_proj.weight``."""
    dim: int | None = None
    """The dimension that is cut; None for the whole tensor."""
    start: int = 0
    end: int = 0
    """``start`` is the first row (or column) of the slice, ``end`` the one after the last."""
    padding: int = 0
    """Number of rows of zeros that follow."""

    def take(self, full: Any) -> torch.Tensor:
        """The slice of ``full``: a tensor, or anything that slices like one (a safetensors slice)."""
        if self.dim is None:
            part = full[...]
        elif self.dim == 0:
            part = full[self.start : self.end]
        else:
            part = full[:, self.start : self.end]
        if not self.padding:
            return torch.as_tensor(part)
        shape = list(part.shape)
        shape[self.dim or 0] = self.padding
        return torch.cat([part, part.new_zeros(shape)], dim=self.dim or 0)


Plan: TypeAlias = Mapping[str, tuple[Shard, ...]]
"""Parameter of the parallel module -> the slices it consists of, one below the other."""


def prefixed(plan: Plan, here: str, there: str) -> dict[str, tuple[Shard, ...]]:
    """The plan of a child as its parent's: ``here`` in front of parameters' names, ``there`` of full tensors'."""
    return {
        here + name: tuple(replace(shard, source=there + shard.source) for shard in shards)
        for name, shards in plan.items()
    }


def rows_plan(places: Sequence[tuple[str, int, int]], *, bias: bool, padding: int = 0) -> Plan:
    """Rows of full linear layers one below the other, as ``weight`` and ``bias``.

    Args:
        places: for each full layer what its parameters' names begin with, the first row and the one after the last.
        bias: whether the layers have one.
        padding: rows of zeros after each layer's.
    """
    return {
        kind: tuple(
            Shard(source=prefix + kind, dim=0, start=start, end=end, padding=padding) for prefix, start, end in places
        )
        for kind in (("weight", "bias") if bias else ("weight",))
    }


def load_from(plain: nn.Module, module: nn.Module, plan: Plan) -> None:
    """Fill the parameters of ``module`` by ``plan`` from those of ``plain``."""
    load(module, plan, dict(plain.named_parameters()).__getitem__)


def load(module: nn.Module, plan: Plan, source: Callable[[str], Any]) -> None:
    """Fill the parameters of ``module`` by ``plan``; ``source(name)`` gives a full tensor, or a slice of a file.

    On the meta device nothing is read.
    """
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, shards in plan.items():
            if parameters[name].is_meta:
                continue
            full = [source(shard.source) for shard in shards]
            parts = [shard.take(tensor) for shard, tensor in zip(shards, full, strict=True)]
            parameters[name].copy_(parts[0] if len(parts) == 1 else torch.cat(parts))
            parameters[name].requires_grad_(all(getattr(tensor, "requires_grad", True) for tensor in full))


def same_kind(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Dtype and device of a module's parameters. Raises ``ValueError`` where they differ."""
    kinds = {(p.dtype, p.device): name for name, p in module.named_parameters()}
    if len(kinds) > 1:
        listed = "; ".join(f"{name}: {dtype} on {device}" for (dtype, device), name in kinds.items())
        raise ValueError(f"module has parameters of mixed dtypes or devices ({listed}): use .to(...) to make them one")
    return next(iter(kinds), (torch.get_default_dtype(), torch.device("cpu")))
