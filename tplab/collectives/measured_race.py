"""All-reduces of messages side by side at one size, each beside its formula with the link that they ran on.

Over the ranks' own link, whose latency and bandwidth are fitted from ping-pong in the same run, or over a declared one.
Not a sweep: a formula needs the link of the same minute, and one size is enough for a race.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from tplab.checks import ArgumentError, check_all_of
from tplab.collectives.cost import AlphaBeta, fit_ends, time_us
from tplab.collectives.emulated_link import EmulatedLink, check_backend
from tplab.collectives.emulated_sweep import _time_emulated
from tplab.collectives.point_to_point import GPU_MESSAGE_SIZES, MESSAGE_SIZES, SHARED_GPU_MESSAGE_SIZES
from tplab.collectives.sweep_plan import OF_MESSAGES, Point, plan_sweep
from tplab.measure import provenance_columns, samples_of

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Provenance, Rank, Report, Run

MOST_CPU_BYTES = 64 << 20
"""Largest tensor on the CPU: in one shot a rank holds those of all others, too."""
LEAST_LATENCY_US = 200.0
"""Shortest latency to emulate: gloo itself takes 100 to 200 us a step (``emulated``)."""
_MOST_S = 60.0
_ITERATIONS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class RacePlan:
    """What is raced."""

    points: tuple[Point, ...]
    """One for each algorithm."""
    link: EmulatedLink | None
    """The declared link between every two ranks; None: their own."""
    link_sizes: tuple[int, ...]
    """Bytes of the messages from which their own link is fitted."""


def plan_race(
    cluster: "Cluster", algorithms: Sequence[str], nbytes: int, *, link: EmulatedLink | None = None
) -> RacePlan:
    """Plan a race of float32 tensors. Raises ``ValueError`` naming what cannot be measured on these ranks.

    Args:
        cluster: two ranks or more.
        algorithms: out of ``sweep_plan.OF_MESSAGES``.
        nbytes: bytes of the tensor on each rank.
        link: a declared link between every two ranks, for gloo only.
    """
    check_all_of("algorithms", algorithms, OF_MESSAGES)
    check_backend(link, cluster.backend)
    n = cluster.num_ranks
    if n < 2:
        raise ArgumentError("cluster", n, "must have at least 2 ranks for a race")
    if cluster.backend == "gloo" and nbytes > MOST_CPU_BYTES:
        raise ArgumentError("nbytes", nbytes, f"must be at most {MOST_CPU_BYTES >> 20} MiB on the CPU")
    if link is not None:
        if link.latency_us < LEAST_LATENCY_US:
            rule = f"must be at least {LEAST_LATENCY_US:.0f} µs to be emulated, for gloo itself takes so long a step"
            raise ArgumentError("latency_us", link.latency_us, rule)
        formulas = [time_us(each, nbytes, n, link.latency_us, link.bandwidth_GBps, ports=n - 1) for each in algorithms]
        if (seconds := 2 * _ITERATIONS * sum(formulas) / 1e6) > _MOST_S:
            rule = f"must be less for this link: the race would take {seconds:,.0f} s, more than {_MOST_S:.0f}"
            raise ArgumentError("nbytes", nbytes, rule)
    points = plan_sweep(sizes=[nbytes], algorithms=algorithms, backend=cluster.backend, shares_gpus=cluster.shares_gpus)
    on_gpus = SHARED_GPU_MESSAGE_SIZES if cluster.shares_gpus else GPU_MESSAGE_SIZES
    sizes = on_gpus if cluster.backend == "nccl" else MESSAGE_SIZES
    return RacePlan(points=tuple(points), link=link, link_sizes=sizes)


def submit_race(cluster: "Cluster", plan: RacePlan, **callbacks: Any) -> "Run[None]":
    """Start a planned race; :func:`race_frame` makes the frame of what it has measured so far."""
    return cluster.submit(race_on_rank, plan, timeout=None, **callbacks)


def race_on_rank(rank: "Rank", plan: RacePlan) -> None:
    """What every rank does: the link between the first two ranks, then the algorithms."""
    from tplab.collectives.timing import time_points
    from tplab.collectives.transport import ProcessGroupTransport
    from tplab.measure.sampler import ping_pong

    if plan.link is not None:
        algorithms = [point.algorithm for point in plan.points]
        _time_emulated(rank, plan.link, algorithms, [plan.points[0].nbytes], _ITERATIONS)
        return
    rank.report(phase="the link", done=0, total=1)
    ping_pong(rank, [(0, 1), (1, 0)], plan.link_sizes, 15, ProcessGroupTransport(rank.group).exchange)
    time_points(rank, list(plan.points))


def race_link(plan: RacePlan, reports: "Iterable[Report]") -> AlphaBeta | None:
    """The link of a race: the declared one, or what its ping-pong fits (``fit_ends``); None before it has ended."""
    if plan.link is not None:
        return AlphaBeta(alpha_us=plan.link.latency_us, beta_GBps=plan.link.bandwidth_GBps)
    sent = {key: samples.p50_us for key, samples in samples_of(reports).items() if isinstance(key, tuple)}
    best = {nbytes: min(us for key, us in sent.items() if key[-1] == nbytes) for *_, nbytes in sent}
    return fit_ends(best, best.values()) if len(best) == len(plan.link_sizes) else None


def race_frame(plan: RacePlan, reports: "Iterable[Report]", provenance: "Provenance") -> pd.DataFrame:
    """A row per algorithm of which all ranks have reported samples: ``algorithm``, ``bytes``, ``p50_us`` of the slowest
    rank, ``formula_us`` with :func:`race_link`, ``correct``, and the provenance.

    A declared link joins every two ranks, so its formula has n-1 ``ports``; the ranks' own is taken for one that a rank
    has for all its messages.
    """
    reports = list(reports)
    link, n = race_link(plan, reports), provenance.num_ranks
    ports = 1 if plan.link is None else max(1, n - 1)
    rows = []
    for key, samples in samples_of(reports, n).items():
        if isinstance(key, tuple) and key[0] == "send":
            continue
        point = plan.points[key] if isinstance(key, int) else next(p for p in plan.points if p.algorithm == key[0])
        formula = None
        if link is not None:
            formula = time_us(point.algorithm, point.nbytes, n, link.alpha_us, link.beta_GBps, ports=ports)
        rows.append(
            {
                "algorithm": point.algorithm,
                "bytes": point.nbytes,
                "p50_us": samples.p50_us,
                "formula_us": formula,
                "correct": samples.correct,
                **provenance_columns(provenance, link=plan.link, launch_mode=point.mode),
            }
        )
    columns = ["algorithm", "bytes", "p50_us", "formula_us", "correct", *provenance.columns()]
    return pd.DataFrame(rows, columns=columns)
