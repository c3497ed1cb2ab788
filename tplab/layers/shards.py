"""Which part of which full tensor a rank holds: sharding as data.

One table per module (``Plan``) says, for every parameter of the parallel module, from which full tensors it is put
together and which slices of them. ``from_module`` reads it with tensors, a checkpoint loader with slices of a file, the
memory model with shapes alone. Not torch's ``DTensor`` placements: those cannot say "my heads' rows of q, of k and of
v, one below the other", nor that two ranks hold the same key head.

Legend: n ranks, r this rank; H query heads, G key-value heads; V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A slice of one full tensor."""

    source: str
    """Name of the full tensor, such as ``q_proj.weight``."""
    dim: int | None = None
    """The dimension that is cut; None: the whole tensor."""
    start: int = 0
    end: int = 0
    """First row (or column) of the slice, and the one after the last."""
    padding: int = 0
    """Rows of zeros that follow."""

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


def even_range(what: str, size: int, index: int, n: int) -> tuple[int, int]:
    """The part of ``size`` that rank ``index`` of ``n`` holds. Raises ``ValueError`` unless n divides the size."""
    if size % n:
        fitting = [ranks for ranks in range(1, size + 1) if size % ranks == 0 and ranks <= 4 * n]
        below, above = size - size % n, size + n - size % n
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"{what}={size} does not divide over {n} ranks (remainder {size % n}): use {', '.join(map(str, fitting))} "
            f"ranks, or {what}={nearest}"
        )
    each = size // n
    return index * each, (index + 1) * each


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabShard:
    """The tokens whose rows a rank holds. Any vocabulary size: every rank has room for as many, the last ones of the
    last ranks are padding."""

    size: int
    """V, the true vocabulary."""
    start: int
    end: int
    """First token, and the one after the last; equal where a rank has padding only."""
    rows: int
    """Rows of the shard, padding included: the same on every rank."""

    @classmethod
    def of(cls, size: int, index: int, n: int) -> "VocabShard":
        """What rank ``index`` of ``n`` holds of a vocabulary of ``size``."""
        rows = -(-size // n)
        return cls(size=size, start=min(index * rows, size), end=min((index + 1) * rows, size), rows=rows)

    @property
    def padding(self) -> int:
        """Rows that stand for no token."""
        return self.rows - (self.end - self.start)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadShard:
    """The attention heads of a rank. Query heads are cut evenly; a rank holds every key-value head that they need.

    With fewer key-value heads than ranks, or groups that straddle a cut, several ranks hold the same one: 6 heads with
    2 key-value heads on 3 ranks give the middle rank one query head of each group, so both key-value heads.
    """

    q_start: int
    q_end: int
    """Query heads, the one after the last."""
    kv_start: int
    kv_end: int
    """Key-value heads, the one after the last."""
    kv_of_q: tuple[int, ...]
    """For each query head of this rank, its key-value head, counted from ``kv_start``."""
    replicated: bool
    """Whether any key-value head lies on more than one rank: then their gradients are summed over the ranks."""

    @classmethod
    def of(cls, num_heads: int, num_kv_heads: int, index: int, n: int) -> "HeadShard":
        """What rank ``index`` of ``n`` holds. Raises ``ValueError`` for head counts that cannot be cut."""
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(
                f"num_kv_heads={num_kv_heads} must divide num_heads={num_heads}: every key-value head serves as many "
                f"query heads"
            )
        per_group = num_heads // num_kv_heads
        cuts = [even_range("num_heads", num_heads, rank, n) for rank in range(n)]
        needs = [(start // per_group, (end - 1) // per_group + 1) for start, end in cuts]
        q_start, q_end = cuts[index]
        kv_start, kv_end = needs[index]
        return cls(
            q_start=q_start,
            q_end=q_end,
            kv_start=kv_start,
            kv_end=kv_end,
            kv_of_q=tuple(head // per_group - kv_start for head in range(q_start, q_end)),
            replicated=sum(end - start for start, end in needs) > num_kv_heads,
        )

    @property
    def num_q(self) -> int:
        return self.q_end - self.q_start

    @property
    def num_kv(self) -> int:
        return self.kv_end - self.kv_start


def same_kind(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Dtype and device of a module's parameters. Raises ``ValueError`` where they differ."""
    kinds = {(p.dtype, p.device): name for name, p in module.named_parameters()}
    if len(kinds) > 1:
        listed = "; ".join(f"{name}: {dtype} on {device}" for (dtype, device), name in kinds.items())
        raise ValueError(f"module has parameters of mixed dtypes or devices ({listed}): use .to(...) to make them one")
    return next(iter(kinds), (torch.get_default_dtype(), torch.device("cpu")))
