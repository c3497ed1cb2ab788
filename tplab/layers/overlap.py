"""What hiding communication does gain: chunk counts and strategies timed on a cluster.

Three times of the same layer, taking turns: as it runs, with its communication deleted, and its communication alone.
What is exposed is the first less the second, and no way of hiding can get below the larger of the last two. Over an
emulated link where there is no fast real one: a laptop's loopback is itself done by the cores that compute.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from tplab.checks import check_count, check_one_of
from tplab.collectives.cost import time_us
from tplab.collectives.emulated_link import check_backend
from tplab.collectives.volumes import chunk_lengths
from tplab.layers.cost import Overlap, chunked_us
from tplab.measure import provenance_columns, samples_of

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Rank, Run
    from tplab.collectives.emulated_link import EmulatedLink
    from tplab.layers.strategies import Blocking


_ITEMSIZES = {"float32": 4, "bfloat16": 2}
_TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}
"""Largest error of a chunked layer, in units of the largest element: addends of 8 bits of mantissa, then added up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkPlan:
    """What :func:`measure_chunks` measures: a row-parallel linear layer at several chunk counts."""

    tokens: int = 512
    """T, tokens of the input."""
    in_features: int = 2048
    """I, input features of the full layer, sharded over the ranks."""
    out_features: int = 1024
    """D, output features; the all-reduce has T·D elements."""
    dtype: str = "float32"
    """Name of the torch dtype of weights and activations: ``float32`` or ``bfloat16``."""
    chunks: tuple[int, ...] = (1, 2, 4, 8)
    """Chunk counts to try; the first is 1, the blocking layer."""
    link: "EmulatedLink | None" = None
    """Emulated link between every two ranks; None for the backend's own."""
    iterations: int = 9
    """Number of samples of each time."""

    def __post_init__(self) -> None:
        for name in ("tokens", "in_features", "out_features", "iterations"):
            check_count(name, getattr(self, name), least=1)
        check_one_of("dtype", self.dtype, tuple(_TOLERANCES))
        if not self.chunks or self.chunks[0] != 1 or list(self.chunks) != sorted(set(self.chunks)):
            raise ValueError(f"chunks must rise from 1 on, such as (1, 2, 4, 8); got {self.chunks}")
        if self.chunks[-1] > self.tokens:
            raise ValueError(f"chunks={self.chunks[-1]} is more than the {self.tokens} tokens")


def submit_chunks(cluster: "Cluster", plan: ChunkPlan, **callbacks: Any) -> "Run[None]":
    """Start measuring; :func:`chunks_frame` makes the frame of what has been reported so far.

    Raises ``ValueError`` for a link without gloo, or features that do not divide over the ranks.
    """
    check_backend(plan.link, cluster.backend)
    if plan.in_features % cluster.num_ranks:
        raise ValueError(f"in_features={plan.in_features} does not divide over {cluster.num_ranks} ranks")
    return cluster.submit(time_chunks, plan, timeout=None, **callbacks)


def measure_chunks(cluster: "Cluster", plan: ChunkPlan) -> pd.DataFrame:
    """Time a row-parallel layer at every chunk count of ``plan``; see :func:`chunks_frame`."""
    run = submit_chunks(cluster, plan)
    run.result()
    return chunks_frame(plan, run.reports, cluster.provenance)


def chunks_frame(plan: ChunkPlan, reports: Sequence[Any], provenance: Any) -> pd.DataFrame:
    """One row per chunk count: ``chunks``, ``tokens``, ``total_us``, ``compute_us`` and ``comm_us`` (of the blocking
    layer's parts), ``exposed_us``, ``hidden_us``, ``hidden_share`` (of what can be hidden), ``overlap_ratio``,
    ``bound_us``, ``predicted_us`` (``chunked_us``, from the matmul alone and the link's formula, or the measured
    all-reduce where the link is real), ``correct``; then the provenance. Medians of the slowest rank's samples.
    """
    n, columns = provenance.num_ranks, [*_CHUNK_COLUMNS, *provenance.columns()]
    samples = samples_of(reports, n)
    if not samples:
        return pd.DataFrame(columns=columns)

    def median(what: str, chunks: int) -> float:
        return samples[what, chunks].p50_us

    compute, comm = median("compute", 1), median("comm", 1)
    pieces = {length: k for k in plan.chunks for length in chunk_lengths(plan.tokens, k)}

    def comm_us(tokens: int) -> float:
        if plan.link is None:
            return median("comm", pieces[tokens])
        return time_us(
            "one-shot" if n == 2 else "ring",
            _ITEMSIZES[plan.dtype] * tokens * plan.out_features,
            n,
            plan.link.latency_us,
            plan.link.bandwidth_GBps,
        )

    rows = []
    for k in plan.chunks:
        overlap = Overlap(compute_us=compute, comm_us=comm, total_us=median("total", k))
        rows.append(
            {
                "chunks": k,
                "tokens": plan.tokens,
                "in_features": plan.in_features,
                "out_features": plan.out_features,
                **{name: getattr(overlap, name) for name in _OVERLAP_COLUMNS},
                "predicted_us": chunked_us(plan.tokens, k, lambda tokens: median("compute", pieces[tokens]), comm_us),
                "correct": samples["total", k].correct,
                **provenance_columns(provenance, link=plan.link),
            }
        )
    return pd.DataFrame(rows, columns=columns)


_OVERLAP_COLUMNS = (
    *("total_us", "compute_us", "comm_us", "exposed_us", "hidden_us", "hidden_share", "overlap_ratio", "bound_us"),
)
_CHUNK_COLUMNS = (*("chunks", "tokens", "in_features", "out_features", *_OVERLAP_COLUMNS, "predicted_us", "correct"),)


def time_chunks(rank: "Rank", plan: ChunkPlan) -> None:
    """Runs on the ranks."""
    import torch
    from torch import nn

    from tplab.layers.comm import NullComm
    from tplab.layers.linear import RowParallelLinear
    from tplab.layers.strategies import Chunked
    from tplab.measure.sampler import take_turns

    comm = linked_comm(rank, plan.link)
    torch.manual_seed(3)
    with torch.device(rank.device):  # a processor takes seconds to draw what a GPU multiplies in milliseconds
        full = nn.Linear(plan.in_features, plan.out_features, bias=False).to(getattr(torch, plan.dtype))
        x = torch.randn(plan.tokens, plan.in_features).to(full.weight.dtype)
    start = rank.index * plan.in_features // rank.world_size
    mine = x[:, start : start + plan.in_features // rank.world_size].contiguous()
    layer = RowParallelLinear.from_module(full, comm)
    deleted = NullComm(rank.index, rank.world_size)
    works: dict[tuple[str, int], Callable[[], Any]] = {}

    def run(comm: Any, strategy: "Blocking", x: torch.Tensor) -> Any:
        layer.comm, layer.strategy = comm, strategy
        return layer(x)

    for k in plan.chunks:
        longest = chunk_lengths(plan.tokens, k)[0]
        works["total", k] = partial(run, comm, Chunked(k), mine)
        # One chunk's share, the longest: what the prediction is made from. For one chunk, all of it.
        works["compute", k] = partial(run, deleted, Chunked(1), mine[:longest])
        works["comm", k] = partial(comm.all_reduce, mine.new_zeros(longest, plan.out_features))
    want = torch.nn.functional.linear(x.double(), full.weight.detach().double())

    def right(key: tuple[str, int], y: Any) -> bool:
        return key[0] != "total" or bool((y.double() - want).abs().max() / want.abs().max() < _TOLERANCES[plan.dtype])

    with torch.inference_mode():
        take_turns(rank, works, plan.iterations, right)


def linked_comm(rank: "Rank", link: "EmulatedLink | None", strategies: "Sequence[Blocking]" = ()) -> Any:
    """The rank's group, or all its ranks joined by an emulated link. One per link lives on the rank: two would mix
    their messages. Where one of ``strategies`` is a kernel, the group can be summed over by kernels, too; the others
    have the backend's sums as ever."""
    from tplab.collectives.limits import Limits
    from tplab.layers.comm import as_comm
    from tplab.layers.emulated_comm import EmulatedComm
    from tplab.layers.strategies import OneKernel
    from tplab.layers.symmetric_comm import gpu_comm

    if link is None and rank.world_size > 1 and any(isinstance(strategy, OneKernel) for strategy in strategies):
        return gpu_comm(rank, rank.group, Limits(one_shot_bytes=0, two_shot_bytes=0))
    if link is None or rank.world_size == 1:
        return as_comm(rank.group)
    from tplab.collectives.emulated import EmulatedGroup

    key = "tplab.layers.overlap", rank.world_size, link
    if key not in rank.store:
        rank.store[key] = EmulatedComm(EmulatedGroup(rank.group, link), "one-shot" if rank.world_size == 2 else "ring")
    return rank.store[key]


@dataclass(frozen=True, kw_only=True, slots=True)
class StackPlan:
    """What :func:`measure_strategies` measures: a stack of transformer blocks at several strategies."""

    batch: int = 2
    seq: int = 128
    hidden: int = 512
    num_heads: int = 8
    num_kv_heads: int = 4
    intermediate: int = 1024
    """Shape of the input and of each block."""
    depth: int = 2
    """Number of blocks in the stack."""
    dtype: str = "float32"
    """Name of the torch dtype of weights and activations."""
    link: "EmulatedLink | None" = None
    """Emulated link between every two ranks; None for the backend's own."""
    iterations: int = 7
    """Number of samples of each time."""


def measure_strategies(
    cluster: "Cluster", strategies: "Sequence[Blocking]", plan: StackPlan, *, timeout: float | None = None
) -> pd.DataFrame:
    """Time a stack of blocks with every strategy, and with its communication deleted, in ``timeout`` seconds if any.

    Returns one row per strategy: ``strategy``, ``total_us``, ``compute_us`` (the blocking stack without its
    communication), ``exposed_us`` (the difference), ``error`` (largest difference from the unsharded stack, in units of
    its largest element), and the provenance.

    Raises ``ValueError`` for a link without gloo.
    """
    check_backend(plan.link, cluster.backend)
    run = cluster.submit(time_strategies, list(strategies), plan, timeout=timeout)
    per_rank, samples = run.result(), samples_of(run.reports, cluster.num_ranks)
    compute = samples["compute"].p50_us
    return pd.DataFrame(
        {
            "strategy": str(strategy),
            "total_us": samples[i].p50_us,
            "compute_us": compute,
            "exposed_us": max(0.0, samples[i].p50_us - compute),
            "error": max(errors[i] for errors in per_rank),
            **provenance_columns(cluster.provenance, link=plan.link),
        }
        for i, strategy in enumerate(strategies)
    )


def time_strategies(rank: "Rank", strategies: "list[Blocking]", plan: StackPlan) -> list[float]:
    """Runs on the ranks: samples of the stack without communication and of each strategy. Gives the strategies'
    errors."""
    import torch

    from tplab.layers.block import ParallelBlock, run_blocks
    from tplab.layers.comm import NullComm
    from tplab.layers.strategies import set_strategy
    from tplab.measure.sampler import take_turns

    plain = plain_stack(rank, plan)
    x = torch.randn(plan.batch, plan.seq, plan.hidden, generator=torch.Generator().manual_seed(4))
    x = x.to(device=rank.device, dtype=getattr(torch, plan.dtype))
    comms = [NullComm(rank.index, rank.world_size), linked_comm(rank, plan.link, strategies)]
    silent, linked = ([ParallelBlock.from_module(block, comm) for block in plain] for comm in comms)
    errors = [0.0] * len(strategies)

    def run_with(strategy: "Blocking") -> torch.Tensor:
        for block in linked:
            set_strategy(block, strategy)
        return run_blocks(linked, x)

    def note_error(key: int | str, y: torch.Tensor) -> bool:
        if isinstance(key, int):
            errors[key] = max(errors[key], float((y - want).abs().max() / want.abs().max()))
        return True

    works: dict[int | str, Callable[[], Any]] = {"compute": lambda: run_blocks(silent, x)}
    works |= {i: partial(run_with, strategy) for i, strategy in enumerate(strategies)}
    with torch.inference_mode():
        want = x
        for block in plain:
            want = block(want)
        take_turns(rank, works, plan.iterations, note_error)
    return errors


def plain_stack(rank: "Rank", plan: StackPlan, seed: int = 0) -> list[Any]:
    """The unsharded blocks, the same on every rank."""
    import torch

    from tplab.layers.counting import plain_block

    shape = plan.hidden, plan.num_heads, plan.num_kv_heads, plan.intermediate
    return [plain_block(rank, *shape, seed=seed + place).to(getattr(torch, plan.dtype)) for place in range(plan.depth)]
