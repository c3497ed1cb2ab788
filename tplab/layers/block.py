"""A transformer block on several ranks, its MLP, and stacks of blocks: where the sums are, and what runs meanwhile.

A block is written once, as a generator that stops wherever a sum is under way. Run alone it just waits; several parts
of a batch run in turns, so that one's sum is hidden behind another's computation, across block borders, too. Not a
second forward for the overlapped case: there would be two of everything to keep equal.

Legend: B batch, S sequence, T = B·S tokens, D hidden, I intermediate; n ranks.
"""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

from tplab.checks import check_length
from tplab.layers import kernels
from tplab.layers.attention import ParallelAttention
from tplab.layers.comm import Comm, Pending, as_comm
from tplab.layers.core_attention import GrowingCache, KVCache
from tplab.layers.linear import MergedColumnParallelLinear, RowParallelLinear, Sharded
from tplab.layers.plain import GATES, MLP, Block, gated
from tplab.layers.regions import gather_tokens, scatter_tokens, share_norm
from tplab.layers.shards import Shard, even_range, prefixed, rows_plan
from tplab.layers.strategies import BatchSplit, Blocking
from tplab.layers.sum_norm import add_norm, of_norm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Cache: TypeAlias = KVCache | GrowingCache
Steps: TypeAlias = Generator[None, None, torch.Tensor]
"""Work that stops (yields) whenever it has started a sum, and returns its result."""
BlockSteps: TypeAlias = Generator[None, None, tuple[torch.Tensor, torch.Tensor]]


class ParallelMLP(Sharded[MLP]):
    """SwiGLU, GeGLU or GELU with the intermediate features sharded over the ranks.

    Column-parallel in, row-parallel out. Not two sharded layers that each gather: the activation works feature by
    feature, so what the first leaves sharded the second takes as it is.

    ==================  ===============  ===================================================
    on rank r           shape            what
    ==================  ===============  ===================================================
    gate_up.weight      (2·I/n, D)       its rows of gate, then its rows of up (gated)
    gate_up.weight      (I/n, D)         its rows of up (GELU)
    gate_up.bias        as many          if the plain one has biases
    down.weight         (D, I/n)         its columns of down
    down.bias           (D,)             the full bias, added once
    x, y                (..., D)         the same on every rank (token shards under
                                         sequence parallelism)
    ==================  ===============  ===================================================

    Equation: ``y = sum over r of (silu(x G_r) * (x U_r)) D_r``, GeGLU with gelu; GELU: ``sum over r of
    gelu(x U_r) D_r``.

    Communication: forward one all-reduce of S = T·D·itemsize, backward another; see ``RowParallelLinear``.

    Args:
        hidden_size, intermediate_size: D and I of the full layer; n must divide I.
        group: process group or ``Comm``.
        activation: ``swiglu``, ``geglu`` or ``gelu``.
        bias: whether the matrices have biases.
        strategy: how the layer communicates; None: blocking.
        device, dtype: of the weights.

    Source: Shoeybi and others, "Megatron-LM" (2019), section 3; gate and up in one matmul as everywhere since.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        group: "ProcessGroup | Comm | None" = None,
        *,
        activation: str = "swiglu",
        bias: bool = False,
        strategy: Blocking | None = None,
        device: "torch.device | str | None" = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        plain = MLP(hidden_size, intermediate_size, activation=activation, bias=bias, device=device, dtype=dtype)
        self._shard(plain, as_comm(group), strategy)

    def _shard(self, plain: MLP, comm: Comm, strategy: Blocking | None) -> None:
        super().__init__()
        self.activation = plain.activation
        up = plain.up_proj
        start, end = even_range("intermediate_size", up.out_features, comm.index, comm.size)
        names = ["gate_proj.", "up_proj."] if plain.activation in GATES else ["up_proj."]
        plan = rows_plan([(name, start, end) for name in names], bias=up.bias is not None)
        self.gate_up = MergedColumnParallelLinear(
            up.in_features, len(names) * up.out_features, plan, comm, plain=plain, strategy=strategy
        )
        self.down = RowParallelLinear.from_module(plain.down_proj, comm, strategy=strategy)

    @property
    def plan(self) -> dict[str, tuple[Shard, ...]]:
        """Every parameter's slices, by the names in the plain module."""
        return {**prefixed(self.gate_up.plan, "gate_up.", ""), **prefixed(self.down.plan, "down.", "down_proj.")}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.finish(self.start(x))

    def start(self, x: torch.Tensor) -> Pending:
        """Compute, and start the sum; ``finish`` waits for it and gives what ``forward`` returns."""
        h = self.gate_up(x)
        return self.down.start(gated(h, self.activation) if self.activation in GATES else F.gelu(h))

    def finish(self, pending: Pending) -> torch.Tensor:
        return self.down.finish(pending)


class ParallelBlock(Sharded[Block]):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``, with heads and intermediate features sharded over
    the ranks.

    ==========================  ===========  ==========================================
    on rank r                   shape        what
    ==========================  ===========  ==========================================
    input_layernorm             (D,)         full weights
    self_attn                   its heads    :class:`ParallelAttention`
    post_attention_layernorm    (D,)         full weights
    mlp                         its part     :class:`ParallelMLP`
    x, y                        (B, S, D)    the same on every rank
    ==========================  ===========  ==========================================

    Communication, forward: two all-reduces of S = B·S·D·itemsize. Under sequence parallelism two all-gathers and two
    reduce-scatters instead, and x and y are this rank's tokens, ``(ceil(B·S/n), D)``, with ``shape=(B, S)`` passed on;
    :func:`run_blocks` shards and gathers around a stack.
    """

    def _shard(self, plain: Block, comm: Comm, strategy: Blocking | None) -> None:
        super().__init__()
        self.comm = comm
        self.strategy = strategy or Blocking()
        self.input_layernorm: nn.Module = plain.input_layernorm
        self.self_attn = ParallelAttention.from_module(plain.self_attn, comm, strategy=strategy)
        self.post_attention_layernorm: nn.Module = plain.post_attention_layernorm
        self.mlp = ParallelMLP.from_module(plain.mlp, comm, strategy=strategy)

    @property
    def plan(self) -> dict[str, tuple[Shard, ...]]:
        """Every parameter's slices, by the names in the plain module."""
        plan = {**prefixed(self.self_attn.plan, *["self_attn."] * 2), **prefixed(self.mlp.plan, *["mlp."] * 2)}
        for name in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            plan[name] = (Shard(source=name),)
        return plan

    def forward(self, x: torch.Tensor, **attention: Any) -> torch.Tensor:
        """One block. Arguments as :meth:`ParallelAttention.start`."""
        cache = attention.pop("cache", None)
        if self.strategy.num_parts > 1:
            return run_blocks([self], x, cache=cache, **attention)
        return _run(_stack([self], x, [cache], **attention))

    def steps(self, x: torch.Tensor, delta: torch.Tensor | None = None, **attention: Any) -> BlockSteps:
        """The block for ``x + delta``, stopping at each of its two sums. The result is two addends, too: whoever has
        another norm behind it adds them up in the same kernel."""
        x, h = self._add_norm(self.input_layernorm, x, delta)
        pending = self.self_attn.start(h, **attention)
        yield
        x, h = self._add_norm(self.post_attention_layernorm, x, self.self_attn.finish(pending))
        pending = self.mlp.start(h)
        yield
        return x, self.mlp.finish(pending)

    def _add_norm(
        self, norm: nn.Module, x: torch.Tensor, delta: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if kernels.usable(x) and isinstance(norm, nn.RMSNorm):
            return add_norm(x, delta, *of_norm(norm, x.dtype))
        x = x if delta is None else x + delta
        return x, share_norm(norm, x, self.comm) if self.strategy.sequence_parallel else norm(x)


def run_blocks(
    blocks: Sequence[ParallelBlock],
    x_BSD: torch.Tensor,
    *,
    caches: Sequence[KVCache] | None = None,
    cache: KVCache | None = None,
    positions: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    shape: tuple[int, int] | None = None,
) -> torch.Tensor:
    """A stack of blocks, (B, S, D) -> (B, S, D) on every rank, by the strategy of the first block.

    Args:
        caches: one per block; ``cache`` for a stack of one.
        positions, mask: as for attention. A batch split by sequences takes neither.
        shape: (B, S) where ``x`` is this rank's tokens already, under sequence parallelism; then the result is, too.
    """
    strategy = blocks[0].strategy
    if cache is not None and len(blocks) > 1:
        raise ValueError(f"cache is for a stack of one block; for {len(blocks)} give caches, one per block")
    each: list[Cache | None] = [*caches] if caches is not None else [cache] * len(blocks)
    check_length("caches", each, len(blocks), "blocks")
    how = {"positions": positions, "mask": mask}
    if strategy.sequence_parallel:
        comm = blocks[0].comm
        if shape is not None:
            return _run(_stack(blocks, x_BSD, each, shape=shape, **how))
        shape = (x_BSD.shape[0], x_BSD.shape[1])
        shards = _run(_stack(blocks, scatter_tokens(x_BSD, comm), each, shape=shape, **how))
        return gather_tokens(shards, comm, shape)
    if isinstance(strategy, BatchSplit):
        by, num_parts = strategy.parts_of(x_BSD.shape[0], x_BSD.shape[1])
        if num_parts > 1:
            return _run_split(blocks, x_BSD, each, by, num_parts, how)
    return _run(_stack(blocks, x_BSD, each, **how))


def _run_split(
    blocks: Sequence[ParallelBlock],
    x_BSD: torch.Tensor,
    caches: list[Cache | None],
    by: str,
    num_parts: int,
    how: dict[str, Any],
) -> torch.Tensor:
    batch, seq, _ = x_BSD.shape
    # Before the first part writes: a later one that did not fit would leave the cache half filled.
    for cache in caches:
        if isinstance(cache, KVCache):
            cache.check_room(seq)
            if cache.batch != batch:
                raise ValueError(f"the cache is for batch {cache.batch}; got batch {batch}")
    parts = x_BSD.tensor_split(num_parts, dim=0 if by == "batch" else 1)
    if by == "sequence":
        if not all(block.self_attn.causal for block in blocks):
            raise ValueError(
                f"{blocks[0].strategy} would split the sequence, whose earlier tokens do not see the later ones: "
                f"attention with causal=False needs BatchSplit(by='batch')"
            )
        if any(value is not None for value in how.values()):
            raise ValueError(
                "positions and mask cannot be given where the sequence is split: use BatchSplit(by='batch')"
            )
        # Later parts see the earlier ones' keys and values through a cache, if only for this pass.
        shared: list[Cache | None] = [GrowingCache() if cache is None else cache for cache in caches]
        return torch.cat(interleave([_stack(blocks, part, shared) for part in parts]), dim=1)
    if any(isinstance(cache, GrowingCache) for cache in caches):
        raise ValueError("cache: a GrowingCache cannot be split by batch: give one of make_cache")
    works, start = [], 0
    views = []
    for part in parts:
        end = start + part.shape[0]
        mine = [cache.rows(start, end) if isinstance(cache, KVCache) else None for cache in caches]
        views.append(mine)
        rows = {
            name: value[start:end] if value is not None and value.dim() > 1 and value.shape[0] > 1 else value
            for name, value in how.items()
        }
        works.append(_stack(blocks, part, list(mine), **rows))
        start = end
    out = torch.cat(interleave(works), dim=0)
    for cache, view in zip(caches, views[0], strict=True):
        if cache is not None and view is not None:
            cache.length = view.length
    return out


def _stack(blocks: Sequence[ParallelBlock], x: torch.Tensor, caches: "Sequence[Cache | None]", **how: Any) -> Steps:
    delta: torch.Tensor | None = None
    for block, cache in zip(blocks, caches, strict=True):
        x, delta = yield from block.steps(x, delta, cache=cache, **how)
    return x if delta is None else x + delta


def interleave(works: Sequence[Steps]) -> list[torch.Tensor]:
    """Run several works in turns, each up to where it has started a sum; their results."""
    results: list[torch.Tensor | None] = [None] * len(works)
    under_way = list(enumerate(works))
    while under_way:
        still = []
        for index, work in under_way:
            try:
                next(work)
            except StopIteration as end:
                results[index] = end.value
            else:
                still.append((index, work))
        under_way = still
    return [result for result in results if result is not None]


def _run(work: Steps) -> torch.Tensor:
    return interleave([work])[0]
