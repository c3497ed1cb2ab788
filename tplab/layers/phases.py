"""How a tensor-parallel block's time divides into computation and exposed communication, from decode to prefill.

Same method as ``tplab.layers.overlap``: the block as it runs, and with its communication deleted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from tplab.checks import check_count
from tplab.collectives.emulated_link import check_backend
from tplab.layers.overlap import StackPlan, linked_comm, plain_stack
from tplab.measure import provenance_columns, samples_of

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
        for tokens in self.tokens or (0,):
            check_count("tokens", tokens, least=1)


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
    columns = [*_COLUMNS, *provenance.columns()]
    samples = samples_of(reports, provenance.num_ranks)
    if not samples:
        return pd.DataFrame(columns=columns)
    rows = []
    for step, tokens in enumerate(plan.tokens):
        total, compute = samples["total", step].p50_us, samples["compute", step].p50_us
        exposed = max(0.0, total - compute)
        rows.append(
            {
                "tokens": tokens,
                "total_us": total,
                "compute_us": min(total, compute),
                "exposed_us": exposed,
                "exposed_pct": 100 * exposed / total,
                "payload_bytes": 2 * tokens * plan.hidden * 4 if provenance.num_ranks > 1 else 0,
                "correct": samples["total", step].correct,
                **provenance_columns(provenance, link=plan.link),
            }
        )
    return pd.DataFrame(rows, columns=columns)


_COLUMNS = ("tokens", "total_us", "compute_us", "exposed_us", "exposed_pct", "payload_bytes", "correct")


def time_phases(rank: "Rank", plan: PhasePlan) -> None:
    """Runs on the ranks; reports each round."""
    import torch

    from tplab.layers.block import ParallelBlock
    from tplab.layers.comm import NullComm
    from tplab.measure.sampler import take_turns

    shape = StackPlan(
        hidden=plan.hidden,
        num_heads=plan.num_heads,
        num_kv_heads=plan.num_kv_heads,
        intermediate=plan.intermediate,
        depth=1,
    )
    plain = plain_stack(rank, shape)[0]
    comms = {"total": linked_comm(rank, plan.link), "compute": NullComm(rank.index, rank.world_size)}
    generator = torch.Generator().manual_seed(5)
    past = torch.randn(1, plan.context, plan.hidden, generator=generator).to(rank.device)
    inputs = [torch.randn(1, tokens, plan.hidden, generator=generator).to(rank.device) for tokens in plan.tokens]

    def step_of(block: Any, cache: Any, x: torch.Tensor) -> torch.Tensor:
        cache.length = plan.context
        return block(x, cache=cache if x.shape[1] == 1 else None)  # type: ignore[no-any-return]

    def right(key: tuple[str, int], y: torch.Tensor) -> bool:
        what, step = key
        error = (y - wants[step]).abs().max() / wants[step].abs().max()
        return what != "total" or bool(error < 1e-4)

    with torch.inference_mode():
        wants = [plain(torch.cat([past, x], 1))[:, -1:] if x.shape[1] == 1 else plain(x) for x in inputs]
        made = []
        for what, comm in comms.items():
            block = ParallelBlock.from_module(plain, comm)
            cache = block.self_attn.make_cache(1, plan.context + 1)
            block(past, cache=cache)
            made.append((what, block, cache))
        works = {
            (what, step): partial(step_of, block, cache, x)
            for step, x in enumerate(inputs)
            for what, block, cache in made
        }
        take_turns(rank, works, plan.iterations, right)
