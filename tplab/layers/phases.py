"""How a tensor-parallel block's time divides into computation and exposed communication, from decode to prefill.

Same method as ``tplab.layers.overlap``: the block as it runs, and with its communication deleted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tplab.collectives.emulated_link import check_backend
from tplab.layers.overlap import WARM_UPS, StackPlan, linked_comm, plain_stack, step_timer

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Provenance, Rank, Report, Run
    from tplab.collectives.emulated_link import EmulatedLink


@dataclass(frozen=True, kw_only=True, slots=True)
class PhasePlan:
    """What :func:`measure_phases` measures: one transformer block, float32, at several step sizes."""

    tokens: tuple[int, ...] = (1, 16, 128, 512)
    """Tokens of each step, of one sequence. 1 is a decode step, with ``context`` tokens in the cache."""
    context: int = 256
    """Tokens that a decode step attends to."""
    hidden: int = 512
    num_heads: int = 8
    num_kv_heads: int = 4
    intermediate: int = 1536
    """Shape of the block."""
    link: "EmulatedLink | None" = None
    """Emulated link between every two ranks; None for the backend's own."""
    iterations: int = 9
    """Number of samples of each step."""

    def __post_init__(self) -> None:
        if not self.tokens or any(not isinstance(t, int) or t < 1 for t in self.tokens):
            raise ValueError(f"tokens must be positive whole numbers; got {self.tokens}")


def submit_phases(cluster: "Cluster", plan: PhasePlan, **callbacks: Any) -> "Run[None]":
    """Start measuring; :func:`phases_frame` makes the frame of what has been reported so far.

    Raises ``ValueError`` for a link without gloo.
    """
    check_backend(plan.link, cluster.backend)
    return cluster.submit(time_phases, plan, timeout=None, **callbacks)


def measure_phases(cluster: "Cluster", plan: PhasePlan) -> pd.DataFrame:
    """Time a block at every step size of ``plan``; see :func:`phases_frame`."""
    run = submit_phases(cluster, plan)
    run.result()
    return phases_frame(plan, run.reports, cluster.provenance)


def phases_frame(plan: PhasePlan, reports: "Sequence[Report]", provenance: "Provenance") -> pd.DataFrame:
    """One row per step size: ``tokens``, ``total_us``, ``compute_us``, ``exposed_us``, ``exposed_pct`` (of the total),
    ``payload_bytes`` (both all-reduces), ``correct``; then the provenance. Medians of the slowest rank's samples."""
    n = provenance.num_ranks
    columns = [*_COLUMNS, *provenance.columns()]
    by_rank: dict[int, list[dict[str, Any]]] = {}
    for report in list(reports):
        if "samples" in report.fields:
            by_rank.setdefault(report.rank, []).append(report.fields)
    rounds = min((len(by_rank.get(rank, [])) for rank in range(n)), default=0)
    if rounds == 0:
        return pd.DataFrame(columns=columns)
    samples = np.array([[by_rank[rank][i]["samples"] for i in range(rounds)] for rank in range(n)])
    medians = np.median(samples.max(axis=0), axis=0)  # (ranks, rounds, tokens, 2) -> (tokens, 2)
    rows = []
    for tokens, (total, compute) in zip(plan.tokens, medians.tolist(), strict=True):
        exposed = max(0.0, total - compute)
        rows.append(
            {
                "tokens": tokens,
                "total_us": total,
                "compute_us": min(total, compute),
                "exposed_us": exposed,
                "exposed_pct": 100 * exposed / total,
                "payload_bytes": 2 * tokens * plan.hidden * 4 if n > 1 else 0,
                "correct": all(by_rank[rank][i]["correct"] for rank in range(n) for i in range(rounds)),
                **provenance.columns(),
                "link": provenance.link if plan.link is None else f"emulated: {plan.link}",
            }
        )
    return pd.DataFrame(rows, columns=columns)


_COLUMNS = ("tokens", "total_us", "compute_us", "exposed_us", "exposed_pct", "payload_bytes", "correct")


def time_phases(rank: "Rank", plan: PhasePlan) -> None:
    """Runs on the ranks; reports each round."""
    import torch

    from tplab.layers.block import ParallelBlock
    from tplab.layers.comm import NullComm, as_comm

    shape = StackPlan(
        hidden=plan.hidden,
        num_heads=plan.num_heads,
        num_kv_heads=plan.num_kv_heads,
        intermediate=plan.intermediate,
        depth=1,
    )
    plain = plain_stack(rank, shape)[0]
    comms = linked_comm(rank, plan.link), NullComm(rank.index, rank.world_size)
    blocks = [ParallelBlock.from_module(plain, comm) for comm in comms]
    generator = torch.Generator().manual_seed(5)
    past = torch.randn(1, plan.context, plan.hidden, generator=generator).to(rank.device)
    inputs = [torch.randn(1, tokens, plan.hidden, generator=generator).to(rank.device) for tokens in plan.tokens]
    timer = step_timer(rank, as_comm(rank.group))
    with torch.inference_mode():
        caches = [block.self_attn.make_cache(1, plan.context + 1) for block in blocks]
        for block, cache in zip(blocks, caches, strict=True):
            block(past, cache=cache)
        wants = [plain(torch.cat([past, x], 1))[:, -1:] if x.shape[1] == 1 else plain(x) for x in inputs]
        for round_ in range(-WARM_UPS, plan.iterations):
            samples, correct = [], True
            for x, want in zip(inputs, wants, strict=True):
                pair = []
                for block, cache in zip(blocks, caches, strict=True):
                    cache.length = plan.context
                    used = cache if x.shape[1] == 1 else None
                    us, y = timer(partial(block, x, cache=used))
                    pair.append(us)
                    if block is blocks[0]:
                        error = (y - want).abs().max() / want.abs().max()
                        correct = correct and bool(error < 1e-4)
                samples.append(pair)
            done = {"done": max(0, round_ + 1), "total": plan.iterations}
            if round_ < 0:
                rank.report(phase="warm-up", **done)
            else:
                rank.report(phase="measure", samples=samples, correct=correct, **done)
