"""What hiding communication does gain: chunk counts and strategies timed on a cluster.

Three times of the same layer, taking turns: as it runs, with its communication deleted, and its communication alone.
What is exposed is the first less the second, and no way of hiding can get below the larger of the last two. Over an
emulated link where there is no fast real one: a laptop's loopback is itself done by the cores that compute.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tplab.collectives.cost import time_us
from tplab.collectives.emulated_link import check_backend
from tplab.collectives.volumes import chunk_lengths
from tplab.layers.cost import Overlap, chunked_us

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Rank, Run
    from tplab.collectives.emulated_link import EmulatedLink
    from tplab.layers.strategies import Blocking

WARM_UPS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkPlan:
    """What :func:`measure_chunks` measures: a row-parallel linear layer, float32, at several chunk counts."""

    tokens: int = 512
    """T, tokens of the input."""
    in_features: int = 2048
    """I, input features of the full layer, sharded over the ranks."""
    out_features: int = 1024
    """D, output features; the all-reduce has T·D·4 bytes."""
    chunks: tuple[int, ...] = (1, 2, 4, 8)
    """Chunk counts to try; the first is 1, the blocking layer."""
    link: "EmulatedLink | None" = None
    """Emulated link between every two ranks; None for the backend's own."""
    iterations: int = 9
    """Number of samples of each time."""

    def __post_init__(self) -> None:
        for name in ("tokens", "in_features", "out_features", "iterations"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a positive whole number; got {getattr(self, name)!r}")
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
    n = provenance.num_ranks
    columns = [*_CHUNK_COLUMNS, *provenance.columns()]
    by_rank: dict[int, list[dict[str, Any]]] = {}
    for report in list(reports):
        if "samples" in report.fields:
            by_rank.setdefault(report.rank, []).append(report.fields)
    rounds = min((len(by_rank.get(rank, [])) for rank in range(n)), default=0)
    if rounds == 0:
        return pd.DataFrame(columns=columns)

    def median(what: str, chunks: int) -> float:
        samples = [[by_rank[rank][i]["samples"][what, chunks] for i in range(rounds)] for rank in range(n)]
        return float(np.median(np.max(samples, axis=0)))

    compute, comm = median("compute", 1), median("comm", 1)
    pieces = {length: k for k in plan.chunks for length in chunk_lengths(plan.tokens, k)}

    def comm_us(tokens: int) -> float:
        if plan.link is None:
            return median("comm", pieces[tokens])
        return time_us(
            "one-shot" if n == 2 else "ring",
            4 * tokens * plan.out_features,
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
                "total_us": overlap.total_us,
                "compute_us": compute,
                "comm_us": comm,
                "exposed_us": overlap.exposed_us,
                "hidden_us": overlap.hidden_us,
                "hidden_share": overlap.hidden_share,
                "overlap_ratio": overlap.overlap_ratio,
                "bound_us": overlap.bound_us,
                "predicted_us": chunked_us(plan.tokens, k, lambda tokens: median("compute", pieces[tokens]), comm_us),
                "correct": all(by_rank[rank][i]["correct"] for rank in range(n) for i in range(rounds)),
                **provenance.columns(),
                "link": provenance.link if plan.link is None else f"emulated: {plan.link}",
            }
        )
    return pd.DataFrame(rows, columns=columns)


_CHUNK_COLUMNS = (
    *("chunks", "tokens", "in_features", "out_features", "total_us", "compute_us", "comm_us", "exposed_us"),
    *("hidden_us", "hidden_share", "overlap_ratio", "bound_us", "predicted_us", "correct"),
)


def time_chunks(rank: "Rank", plan: ChunkPlan) -> None:
    """Runs on the ranks. Everything takes turns within a round, and each round is reported: what was measured before a
    stop stays."""
    import torch
    from torch import nn

    from tplab.layers.comm import NullComm, as_comm
    from tplab.layers.linear import RowParallelLinear
    from tplab.layers.strategies import Chunked

    comm = linked_comm(rank, plan.link)
    torch.manual_seed(3)
    full = nn.Linear(plan.in_features, plan.out_features, bias=False)
    x = torch.randn(plan.tokens, plan.in_features)
    start = rank.index * plan.in_features // rank.world_size
    mine = x[:, start : start + plan.in_features // rank.world_size].contiguous().to(rank.device)
    layer = RowParallelLinear.from_module(full.to(rank.device), comm)
    deleted = NullComm(rank.index, rank.world_size)
    works: dict[tuple[str, int], Callable[[], Any]] = {}

    def total(k: int) -> Callable[[], Any]:
        strategy = Chunked(k)

        def work() -> Any:
            layer.comm, layer.strategy = comm, strategy
            return layer(mine)

        return work

    def compute(tokens: int) -> Callable[[], Any]:
        part = mine[:tokens]

        def work() -> Any:
            layer.comm, layer.strategy = deleted, Chunked(1)
            return layer(part)

        return work

    def alone(tokens: int) -> Callable[[], Any]:
        message = torch.zeros(tokens, plan.out_features, device=rank.device)
        return lambda: comm.all_reduce(message)

    for k in plan.chunks:
        works["total", k] = total(k)
        # One chunk's share, the longest: what the prediction is made from. For one chunk, all of it.
        works["compute", k] = compute(chunk_lengths(plan.tokens, k)[0])
        works["comm", k] = alone(chunk_lengths(plan.tokens, k)[0])
    want = torch.nn.functional.linear(x.double(), full.weight.detach().cpu().double())
    timer = step_timer(rank, as_comm(rank.group))
    with torch.inference_mode():
        for round_ in range(-WARM_UPS, plan.iterations):
            samples, correct = {}, True
            for (what, k), work in works.items():
                samples[what, k], y = timer(work)
                if what == "total":
                    error = (y.cpu().double() - want).abs().max() / want.abs().max()
                    correct = correct and bool(error < 1e-5)
            done = {"done": max(0, round_ + 1), "total": plan.iterations}
            if round_ < 0:
                rank.report(phase="warm-up", **done)
            else:
                rank.report(phase="measure", samples=samples, correct=correct, **done)


def linked_comm(rank: "Rank", link: "EmulatedLink | None") -> Any:
    """The rank's group, or all its ranks joined by an emulated link. One per link lives on the rank: two would mix
    their messages."""
    from tplab.layers.comm import EmulatedComm, as_comm

    if link is None or rank.world_size == 1:
        return as_comm(rank.group)
    from tplab.collectives.emulated import EmulatedGroup

    key = "tplab.layers.overlap", link
    if key not in rank.store:
        rank.store[key] = EmulatedComm(EmulatedGroup(rank.group, link), "one-shot" if rank.world_size == 2 else "ring")
    return rank.store[key]


def step_timer(rank: "Rank", comm: Any) -> Callable[[Callable[[], Any]], tuple[float, Any]]:
    """A function that lines the ranks up, calls, and returns microseconds and the result."""
    import time

    import torch

    line_up = torch.zeros(1, device=rank.device)
    on_gpu = rank.device.type == "cuda"

    def timed(work: Callable[[], Any]) -> tuple[float, Any]:
        comm.all_reduce(line_up)
        if on_gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        result = work()
        if on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - began) * 1e6, result

    return timed


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


def measure_strategies(cluster: "Cluster", strategies: "Sequence[Blocking]", plan: StackPlan) -> pd.DataFrame:
    """Time a stack of blocks with every strategy, and with its communication deleted.

    Returns one row per strategy: ``strategy``, ``total_us``, ``compute_us`` (the blocking stack without its
    communication), ``exposed_us`` (the difference), ``error`` (largest difference from the unsharded stack, in units of
    its largest element), and the provenance.

    Raises ``ValueError`` for a link without gloo.
    """
    check_backend(plan.link, cluster.backend)
    run = cluster.submit(time_strategies, list(strategies), plan, timeout=None)
    per_rank = run.result()
    columns = cluster.provenance.columns()
    link = columns["link"] if plan.link is None else f"emulated: {plan.link}"
    samples = np.array([times for times, _ in per_rank]).max(axis=0)  # (works, iterations), slowest rank
    medians = np.median(samples, axis=1)
    return pd.DataFrame(
        {
            "strategy": str(strategy),
            "total_us": float(medians[i + 1]),
            "compute_us": float(medians[0]),
            "exposed_us": max(0.0, float(medians[i + 1] - medians[0])),
            "error": max(errors[i] for _, errors in per_rank),
            **columns,
            "link": link,
        }
        for i, strategy in enumerate(strategies)
    )


def time_strategies(
    rank: "Rank", strategies: "list[Blocking]", plan: StackPlan
) -> tuple[list[list[float]], list[float]]:
    """Runs on the ranks: samples of the stack without communication and of each strategy; the strategies' errors."""
    import torch

    from tplab.layers.block import ParallelBlock, run_blocks
    from tplab.layers.comm import NullComm, as_comm
    from tplab.layers.strategies import set_strategy

    plain = plain_stack(rank, plan)
    x = torch.randn(plan.batch, plan.seq, plan.hidden, generator=torch.Generator().manual_seed(4))
    x = x.to(device=rank.device, dtype=getattr(torch, plan.dtype))
    comms = [NullComm(rank.index, rank.world_size), linked_comm(rank, plan.link)]
    silent, linked = ([ParallelBlock.from_module(block, comm) for block in plain] for comm in comms)
    timer = step_timer(rank, as_comm(rank.group))
    times: list[list[float]] = [[] for _ in range(1 + len(strategies))]
    errors = [0.0] * len(strategies)
    with torch.inference_mode():
        want = x
        for block in plain:
            want = block(want)
        for round_ in range(-WARM_UPS, plan.iterations):
            took = [timer(lambda: run_blocks(silent, x))[0]]
            for i, strategy in enumerate(strategies):
                for block in linked:
                    set_strategy(block, strategy)
                us, y = timer(lambda: run_blocks(linked, x))
                took.append(us)
                errors[i] = max(errors[i], float((y - want).abs().max() / want.abs().max()))
            if round_ >= 0:
                for sample, us in zip(times, took, strict=True):
                    sample.append(us)
            rank.report(phase="measure", done=max(0, round_ + 1), total=plan.iterations)
    return times, errors


def plain_stack(rank: "Rank", plan: StackPlan) -> list[Any]:
    """The unsharded blocks, the same on every rank."""
    import torch

    from tplab.layers.counting import plain_block

    shape = plan.hidden, plan.num_heads, plan.num_kv_heads, plan.intermediate
    return [plain_block(rank, *shape, seed=seed).to(getattr(torch, plan.dtype)) for seed in range(plan.depth)]
