"""Collectives of three kinds of transformer block, counted on ranks: attention and MLP one after the other, side by
side (parallel residual), and sequence parallel (C4 of docs/article.md)."""

from typing import TYPE_CHECKING, Any

from tplab.layers.counting import count_on_rank, layer_table, plain_block

if TYPE_CHECKING:
    import pandas as pd

    from tplab.cluster import Cluster, Rank
    from tplab.cluster.run import DerivedRun

KINDS = ("one after the other", "side by side", "sequence parallel")
"""Kinds of block, in the order of the rows."""
_HIDDEN, _HEADS, _KV_HEADS, _INTERMEDIATE, _BATCH, _SEQ = 256, 8, 4, 512, 2, 64


def submit_block_kinds(cluster: "Cluster", **callbacks: Any) -> "DerivedRun[pd.DataFrame]":
    """Start to run each kind of block once (float32, random weights by seed); a future of the frame.

    The frame has the columns of ``layer_table``, of rank 0, with ``block`` (one of ``KINDS``), ``error`` (largest
    difference from the unsharded block, in units of its largest element) and the provenance. The ranks must be able to
    share the 8 heads.
    """
    import pandas as pd

    n, backend = cluster.num_ranks, cluster.backend

    def build(run: Any) -> "pd.DataFrame":
        frames = []
        by_rank = run.result()
        for place, kind in enumerate(KINDS):
            frame = layer_table(by_rank[0][place][0], n, backend)
            frame.insert(0, "block", kind)
            frames.append(frame.assign(error=max(each[place][1] for each in by_rank)))
        return pd.concat(frames, ignore_index=True).assign(**cluster.provenance.columns())

    return cluster.submit(_count_kinds, timeout=60.0, **callbacks).map(build)


def _count_kinds(rank: "Rank") -> list[tuple[list[dict[str, Any]], float]]:
    from tplab.layers.strategies import Blocking, SequenceParallel

    shape = (_HIDDEN, _HEADS, _KV_HEADS, _INTERMEDIATE, _BATCH, _SEQ)
    return [count_on_rank(rank, Blocking(), shape), _side_by_side(rank), count_on_rank(rank, SequenceParallel(), shape)]


def _side_by_side(rank: "Rank") -> tuple[list[dict[str, Any]], float]:
    """``x + attention(norm(x)) + mlp(norm(x))``: both halves leave partial sums, which are added before the one
    all-reduce of the block."""
    import torch
    import torch.distributed as dist

    from tplab.collectives.counter import CommCounter
    from tplab.layers.attention import ParallelAttention
    from tplab.layers.block import ParallelMLP
    from tplab.layers.comm import NullComm

    block = plain_block(rank, _HIDDEN, _HEADS, _KV_HEADS, _INTERMEDIATE)
    alone = NullComm(rank.index, rank.world_size)  # the layers leave their sums to us
    attention = ParallelAttention.from_module(block.self_attn, alone)
    mlp = ParallelMLP.from_module(block.mlp, alone)
    x = torch.randn(_BATCH, _SEQ, _HIDDEN, generator=torch.Generator().manual_seed(2)).to(rank.device)
    with torch.no_grad():
        h = block.input_layernorm(x)
        want = x + block.self_attn(h) + block.mlp(h)
        with CommCounter(where=lambda: "attention + mlp") as counter:
            part = attention(h) + mlp(h)
            dist.all_reduce(part, group=rank.group)
        got = x + part
    return counter.frame_rows(by_where=True), float((got - want).abs().max() / want.abs().max())
