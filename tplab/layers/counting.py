"""Count the collectives of a model, layer by layer, and set them beside the formula; know which layer is at work."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd

from tplab.layers.cost import block_collectives, wire_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from tplab.cluster import Cluster, Rank
    from tplab.collectives.counter import CommCounter
    from tplab.layers.strategies import Blocking


@contextmanager
def count_by_layer(module: "nn.Module") -> "Iterator[CommCounter]":
    """Count what this rank communicates within the block, each call with the layer that made it.

    ``counter.frame_rows(by_where=True)`` gives the table: ``where`` is the layer's name in ``module``; ``backward`` for
    the collectives of a backward pass, which know no layer.
    """
    import torch

    from tplab.collectives.counter import CommCounter

    with watch_layers(module) as layer_at_work:

        def where() -> str:
            return "backward" if torch._C._current_graph_task_id() != -1 else layer_at_work()

        with CommCounter(where=where) as counter:
            yield counter


def layer_table(rows: Sequence[dict[str, Any]], n: int, backend: str) -> pd.DataFrame:
    """A row per layer and collective: ``layer``, ``kind``, ``calls``, ``payload_bytes`` (S), ``handed_bytes`` (what
    this rank gives to the call: S, and S/n for an all-gather), ``ring_bytes`` and ``wire_bytes`` (what it sends, by a
    ring and as this backend does it)."""
    table = []
    for row in rows:
        kind, payload = row["kind"], row["bytes"]
        if kind in ("send", "recv"):
            handed = ring = wire = payload if kind == "send" else 0
        elif kind in ("all-reduce", "all-gather", "reduce-scatter"):
            handed = payload // n if kind == "all-gather" else payload
            ring, wire = wire_bytes(kind, payload, n), wire_bytes(kind, payload, n, backend)
        else:
            handed, ring, wire = payload, payload, payload
        table.append(
            {
                "layer": row["where"],
                "kind": kind,
                "calls": row["calls"],
                "payload_bytes": payload,
                "handed_bytes": handed,
                "ring_bytes": ring,
                "wire_bytes": wire,
            }
        )
    return pd.DataFrame(table, columns=_COLUMNS)


_COLUMNS = ("layer", "kind", "calls", "payload_bytes", "handed_bytes", "ring_bytes", "wire_bytes")


def count_block(
    cluster: "Cluster",
    strategies: "Sequence[Blocking]",
    *,
    hidden: int = 256,
    num_heads: int = 8,
    num_kv_heads: int = 4,
    intermediate: int = 512,
    batch: int = 2,
    seq: int = 64,
) -> pd.DataFrame:
    """Run one transformer block (float32) per strategy on ``cluster`` and count its collectives by layer.

    Args:
        cluster: the ranks.
        strategies: how the block communicates, one run each.
        hidden, num_heads, num_kv_heads, intermediate: shape of the block.
        batch, seq: shape of the input.

    Returns the rows of :func:`layer_table` of rank 0, with ``strategy``, ``formula_calls`` and ``formula_bytes`` of
    ``block_collectives`` (empty where there is no formula: int8), ``error`` (largest difference from the unsharded
    block, in units of its largest element), ``agrees`` (whether all ranks counted the same), and the provenance.
    """
    columns = cluster.provenance.columns()
    shape = (hidden, num_heads, num_kv_heads, intermediate, batch, seq)
    frames = []
    for strategy in strategies:
        outcomes = cluster.run(count_on_rank, strategy, shape)
        frame = layer_table(outcomes[0][0], cluster.num_ranks, cluster.backend)
        expected = (
            {
                (one.layer, one.kind): one
                for one in block_collectives(
                    tokens=batch * seq,
                    hidden=hidden,
                    itemsize=4,
                    n=cluster.num_ranks,
                    strategy=strategy.name,
                    parts=strategy.num_calls(batch, seq),
                )
            }
            if strategy.name != "int8"
            else {}
        )
        found = [expected.get((str(row.layer), str(row.kind))) for row in frame.itertuples()]
        frame.insert(0, "strategy", str(strategy))
        frame["formula_calls"] = [None if one is None else one.num_calls for one in found]
        frame["formula_bytes"] = [None if one is None else one.payload_bytes for one in found]
        frame["error"] = max(error for _, error in outcomes)
        frame["agrees"] = all(rows == outcomes[0][0] for rows, _ in outcomes)
        frames.append(frame.assign(**columns))
    return pd.concat(frames, ignore_index=True)


def count_on_rank(
    rank: "Rank", strategy: "Blocking", shape: tuple[int, int, int, int, int, int]
) -> tuple[list[dict[str, Any]], float]:
    """Rows of this rank's counter for one pass of a block, and the largest difference from the unsharded block, in
    units of its largest element. ``shape`` as the arguments of :func:`count_block`."""
    import torch

    hidden, num_heads, num_kv_heads, intermediate, batch, seq = shape
    block, parallel = example_block(rank, hidden, num_heads, num_kv_heads, intermediate, strategy)
    x = torch.randn(batch, seq, hidden, generator=torch.Generator().manual_seed(2)).to(rank.device)
    with torch.no_grad():
        want = block(x)
        run = _runner(parallel, (batch, seq))
        with count_by_layer(parallel) as counter:
            shard, finish = run(x)
        got = finish(shard)
    return counter.frame_rows(by_where=True), float((got - want).abs().max() / want.abs().max())


def _runner(parallel: Any, shape: tuple[int, int]) -> Callable[[Any], tuple[Any, Callable[[Any], Any]]]:
    """The block on its own: under sequence parallelism between token shards, which is what a stack has inside."""
    from tplab.layers.regions import gather_tokens, scatter_tokens

    def run(x: Any) -> tuple[Any, Callable[[Any], Any]]:
        if not parallel.strategy.sequence_parallel:
            return parallel(x), lambda y: y
        return parallel(scatter_tokens(x, parallel.comm), shape=shape), lambda y: gather_tokens(y, parallel.comm, shape)

    return run


def example_block(
    rank: "Rank",
    hidden: int,
    num_heads: int,
    num_kv_heads: int,
    intermediate: int,
    strategy: "Blocking | None" = None,
    seed: int = 1,
) -> tuple[Any, Any]:
    """A plain block with random weights by seed, the same on every rank, and this rank's part of it.

    Args:
        rank: this rank.
        hidden, num_heads, num_kv_heads, intermediate: shape of the block.
        strategy: how its layers communicate; None: blocking.
        seed: seed of the weights.
    """
    from tplab.layers.block import ParallelBlock

    block = plain_block(rank, hidden, num_heads, num_kv_heads, intermediate, seed=seed)
    return block, ParallelBlock.from_module(block, rank.group, strategy=strategy)


def plain_block(
    rank: "Rank", hidden: int, num_heads: int, num_kv_heads: int, intermediate: int, *, seed: int = 1
) -> Any:
    """A plain block with random weights by seed, the same on every rank; made where it belongs, for a processor takes
    ten seconds to draw the weights of a large one.

    Args:
        rank: this rank, for its device.
        hidden, num_heads, num_kv_heads, intermediate: shape of the block.
        seed: seed of the weights.
    """
    import torch

    from tplab.layers.core_attention import RotaryEmbedding
    from tplab.layers.plain import MLP, Attention, Block

    torch.manual_seed(seed)
    with torch.device(rank.device):
        attention = Attention(hidden, num_heads, num_kv_heads, rope=RotaryEmbedding(hidden // num_heads))
        return Block(attention, MLP(hidden, intermediate))


@contextmanager
def watch_layers(module: "nn.Module") -> "Iterator[Callable[[], str]]":
    """Within the block, the function it gives returns the innermost layer at work, by its name in ``module``.

    ``""`` outside of any. Layers are those that have a strategy, that is, those that communicate, and norms. Not by
    forward hooks, nor torch's ``ModTracker``, which is made of them: blocks call ``start`` and ``finish`` of their
    layers, to run something else in between, and hooks see ``forward`` only.
    """
    from torch import nn

    at_work: list[str] = []
    wrapped: list[tuple[nn.Module, str, Any]] = []
    for name, layer in module.named_modules():
        if not hasattr(layer, "strategy") and not isinstance(layer, nn.RMSNorm | nn.LayerNorm):
            continue
        for method in ("forward", "start", "finish"):
            if hasattr(layer, method):
                wrapped.append((layer, method, layer.__dict__.get(method)))
                layer.__dict__[method] = _announced(getattr(layer, method), name or type(layer).__name__, at_work)
    try:
        yield lambda: at_work[-1] if at_work else ""
    finally:
        for layer, method, before in reversed(wrapped):
            if before is None:
                layer.__dict__.pop(method, None)
            else:
                layer.__dict__[method] = before


def _announced(call: Callable[..., Any], name: str, at_work: list[str]) -> Callable[..., Any]:
    def announced(*args: Any, **kwargs: Any) -> Any:
        at_work.append(name)
        try:
            return call(*args, **kwargs)
        finally:
            at_work.pop()

    return announced
