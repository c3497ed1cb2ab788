"""Inference pipelines: formula beside simulation beside run, on ranks that wait as long as stages are declared to take.

Three questions, each a plan for ``measure_serving``, or for ``submit_serving`` and ``serving_frame`` in a panel:

- *prefill*: how long do m micro-batches take, if stages are uneven? (C13, see docs/article.md)
- *chunked prefill*: into how many chunks should one prompt be cut? Later chunks take longer, each pays an overhead.
- *decode*: how many micro-batches must be in flight, and what happens below? With C requests and fewer of them than
  stages, each is a micro-batch of its own, k = C, and C/p of the machine is all that can work: the cliff.

Why declared times: on a laptop with more ranks than cores, real stages would slow each other down. The ranks, the
messages between them and the back edge from the last stage to the first are real; ``run_schedule`` runs the same tables
with modules.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from tplab.checks import check_count
from tplab.pipeline import formulas
from tplab.pipeline.build import build_schedule
from tplab.pipeline.cases import case_traces, submit_cases
from tplab.pipeline.costs import Costs
from tplab.pipeline.job import RunPlan
from tplab.pipeline.schedule import CODES, Op, Schedule
from tplab.pipeline.simulation import simulate
from tplab.pipeline.trace import Trace

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Run


class ServingPlan(Protocol):
    """What the plans of this module have in common."""

    @property
    def rounds(self) -> int:
        """Runs of each case; frames have their medians."""

    def cases(self) -> list[RunPlan]:
        """The tables to run."""

    def rows(self, cases: Sequence[RunPlan], traces: Sequence[Sequence[Trace]]) -> list[dict[str, Any]]:
        """A row for each case that has a trace."""


def submit_serving(cluster: "Cluster", plan: ServingPlan, **callbacks: Any) -> "Run[None]":
    """Start measuring; :func:`serving_frame` makes the frame of what has been reported so far.

    Raises ``ValueError`` for a cluster that has not one rank for each stage.
    """
    return submit_cases(cluster, plan.cases(), rounds=plan.rounds, **callbacks)


def serving_frame(plan: ServingPlan, reports: Sequence[Any], provenance: Any) -> pd.DataFrame:
    """One row per case that has run: the plan's columns, ``cases`` (how many there are to run), ``badge`` and the
    provenance."""
    cases = plan.cases()
    traces = case_traces(cases, reports, provenance)
    rows = plan.rows(cases, traces)
    first = next((trace for some in traces for trace in some), None)
    about = {} if first is None else {"cases": len(cases), "badge": first.badge, **first.provenance}
    return pd.DataFrame([row | about for row in rows])


def measure_serving(cluster: "Cluster", plan: ServingPlan) -> pd.DataFrame:
    """Run all cases of ``plan``; see its class for the columns."""
    run = submit_serving(cluster, plan)
    run.result()
    return serving_frame(plan, run.reports, cluster.provenance)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillPlan:
    """Micro-batches of a prefill through stages that may be uneven.

    Columns: ``micro_batches``, ``formula_ms`` (``Σ t_s + (m-1)·max t_s + (p-1)·hop``), ``simulated_ms``,
    ``measured_ms``, ``error_pct`` (measured against simulated), ``idle_over_total`` (measured), ``per_micro_batch_ms``.
    """

    stage_s: tuple[float, ...]
    """Forward time of each stage for one micro-batch, seconds."""
    micro_batches: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of micro-batches m to try."""
    hop_s: float = 0.0
    """Latency of a message from stage to stage, seconds, by an emulated link."""
    message_bytes: int = 4096
    """Bytes that a stage sends on. On the emulated link they take no time beyond the latency."""
    rounds: int = 1
    """How often each m is run."""

    def __post_init__(self) -> None:
        _check_stages(self.stage_s, self.hop_s)
        _check_rising("micro_batches", self.micro_batches)

    def cases(self) -> list[RunPlan]:
        return [_plan(build_schedule("forward-only", len(self.stage_s), m), self) for m in self.micro_batches]

    def rows(self, cases: Sequence[RunPlan], traces: Sequence[Sequence[Trace]]) -> list[dict[str, Any]]:
        return [
            {
                "micro_batches": m,
                **_makespans(formulas.prefill_makespan_s(self.stage_s, m, self.hop_s), case, some),
                "per_micro_batch_ms": _median_ms(some) / m,
            }
            for m, case, some in zip(self.micro_batches, cases, traces, strict=True)
            if some
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkedPrefillPlan:
    """One prompt in chunks, through equal stages.

    A chunk of n tokens after a prefix of a takes ``overhead + n·per_token + n·(a + n/2)·per_pair`` on every stage.

    Columns: ``chunks``, ``chunk_tokens`` (of the longest), ``formula_ms`` (``Σ_j t_j + (p-1)·(max t_j + hop)``, for all
    stages are alike), ``simulated_ms``, ``measured_ms``, ``error_pct``, ``idle_over_total``, ``best`` (the least
    simulated makespan).
    """

    num_stages: int
    """Number of stages p."""
    tokens: int = 4096
    """Length of the prompt, in tokens."""
    chunks: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of chunks to try."""
    per_token_s: float = 2e-5
    """Seconds that one stage takes for a token, without attention to others."""
    per_pair_s: float = 4e-9
    """Seconds that one stage takes for a token's attention to one token before it."""
    overhead_s: float = 2e-3
    """Seconds that one stage takes for a chunk of any length: launches, and weights read once more."""
    hop_s: float = 0.0
    """The same as in :class:`PrefillPlan`."""
    message_bytes: int = 4096
    """The same as in :class:`PrefillPlan`."""
    rounds: int = 1
    """How often each number of chunks is run."""

    def __post_init__(self) -> None:
        _check_stages((self.overhead_s, self.per_token_s, self.per_pair_s), self.hop_s)
        _check_rising("chunks", self.chunks)
        check_count("num_stages", self.num_stages, least=1)
        if self.chunks[-1] > self.tokens:
            raise ValueError(f"chunks={self.chunks[-1]} is more than the {self.tokens} tokens")

    def chunk_s(self, chunks: int) -> list[float]:
        """Seconds of each chunk on a stage."""
        ends = np.linspace(0, self.tokens, chunks + 1).round()
        lengths, prefixes = np.diff(ends), ends[:-1]
        pairs = lengths * (prefixes + lengths / 2)
        return [float(t) for t in self.overhead_s + lengths * self.per_token_s + pairs * self.per_pair_s]

    def cases(self) -> list[RunPlan]:
        return [
            _plan(build_schedule("chunked-prefill", self.num_stages, chunks), self, [self.chunk_s(chunks)])
            for chunks in self.chunks
        ]

    def rows(self, cases: Sequence[RunPlan], traces: Sequence[Sequence[Trace]]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for chunks, case, some in zip(self.chunks, cases, traces, strict=True):
            if not some:
                continue
            times = self.chunk_s(chunks)
            formula = sum(times) + (self.num_stages - 1) * (max(times) + self.hop_s)
            rows.append(
                {"chunks": chunks, "chunk_tokens": -(-self.tokens // chunks), **_makespans(formula, case, some)}
            )
        best = min((row["simulated_ms"] for row in rows), default=0.0)
        return [row | {"best": row["simulated_ms"] == best} for row in rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodePlan:
    """A decoding ring with k micro-batches in flight, each a batch of sequences that gets one token a round.

    Columns: ``in_flight`` (k), ``needed`` (the least k that keeps the slowest stage busy), ``full`` (k is enough);
    round time ``formula_ms`` (``max(Σ t_s + p·hop, k·max t_s)``), ``simulated_ms``, ``measured_ms`` and ``error_pct``;
    ``formula_idle``, ``simulated_idle``, ``measured_idle`` (idle over total, of all ranks, between tokens of the steady
    state); ``steps_per_s`` (micro-batches that get a token, measured), ``of_best`` (against the ring that is full, by
    the formula).
    """

    stage_s: tuple[float, ...]
    """Time of each stage for one step, seconds."""
    in_flight: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    """Numbers of micro-batches in flight k to try."""
    steps: int = 6
    """Tokens that each batch decodes; the first third, while the ring fills, and the last one are not measured."""
    hop_s: float = 0.0
    """Latency of every message, the sampled token's too, seconds, by an emulated link."""
    message_bytes: int = 4096
    """Bytes of one step's hidden state."""
    token_bytes: int = 64
    """Bytes of one step's token ids, on the back edge."""
    rounds: int = 1
    """How often each k is run."""

    def __post_init__(self) -> None:
        _check_stages(self.stage_s, self.hop_s)
        _check_rising("in_flight", self.in_flight)
        check_count("steps", self.steps, least=3)  # or there is no steady state to look at

    def cases(self) -> list[RunPlan]:
        p = len(self.stage_s)
        return [_plan(build_schedule("decode-ring", p, k * self.steps, num_in_flight=k), self) for k in self.in_flight]

    def rows(self, cases: Sequence[RunPlan], traces: Sequence[Sequence[Trace]]) -> list[dict[str, Any]]:
        needed = formulas.decode_in_flight_needed(self.stage_s, self.hop_s)
        best = 1 / max(self.stage_s)  # micro-batches a second out of a ring whose slowest stage never waits
        rows = []
        for k, case, some in zip(self.in_flight, cases, traces, strict=True):
            if not some:
                continue
            assert isinstance(case.stage, Costs)
            formula = formulas.decode_round_s(self.stage_s, k, self.hop_s)
            simulated, simulated_idle = steady_round(simulate(case.schedule, case.stage), k)
            measured, idle = np.median([steady_round(trace, k) for trace in some], axis=0)
            rows.append(
                {
                    "in_flight": k,
                    "needed": needed,
                    "full": k >= needed,
                    "formula_ms": formula * 1e3,
                    "simulated_ms": simulated * 1e3,
                    "measured_ms": measured * 1e3,
                    "error_pct": 100 * (measured / simulated - 1),
                    "formula_idle": formulas.decode_idle_over_total(self.stage_s, k, self.hop_s),
                    "simulated_idle": simulated_idle,
                    "measured_idle": idle,
                    "steps_per_s": k / measured,
                    "of_best": k / measured / best,
                }
            )
        return rows


def steady_round(trace: Trace, in_flight: int) -> tuple[float, float]:
    """Seconds of a round of a decoding ring, and the idle share of all ranks in it, once the ring has filled.

    From the moments at which the last stage is done with a token, in whole rounds: without the first third of them, and
    without the last, in which the first stages have nothing more to do.
    """
    last = trace.schedule.total_stages - 1
    ends = np.sort(trace.end_s[(trace.op == CODES[Op.F]) & (trace.stage == last)])
    steps = len(ends) // in_flight
    first = max(1, steps // 3)
    begin, end = ends[first * in_flight - 1], ends[(steps - 1) * in_flight - 1]
    inside = np.clip(trace.end_s, begin, end) - np.clip(trace.start_s, begin, end)
    busy = inside[trace.is_compute].sum()
    return float((end - begin) / (steps - 1 - first)), float(1 - busy / (trace.num_ranks * (end - begin)))


def batch_of(schedule: Schedule) -> list[int]:
    """For every micro-batch, the batch of sequences whose step or chunk it is, counted from 0: the key of its KV cache.

    Micro-batches of one batch are those that need each other's keys and values.
    """
    batches: list[int] = []
    count = 0
    described = schedule.micro_batches
    for i in range(schedule.num_micro_batches):
        before = described[i].kv_from if described else None
        if before is None:
            batches.append(count)
            count += 1
        else:
            batches.append(batches[before])
    return batches


def _plan(schedule: Schedule, plan: Any, seconds: Any = None) -> RunPlan:
    stage_s = list(plan.stage_s) if seconds is None else seconds * schedule.total_stages
    costs = Costs(
        forward_s=stage_s,
        hop_s=plan.hop_s,
        message_bytes=plan.message_bytes,
        token_bytes=getattr(plan, "token_bytes", 0.0),
    )
    return RunPlan(schedule=schedule, stage=costs)


def _makespans(formula_s: float, case: RunPlan, traces: Sequence[Trace]) -> dict[str, float]:
    assert isinstance(case.stage, Costs)
    simulated, measured = simulate(case.schedule, case.stage).makespan_s * 1e3, _median_ms(traces)
    return {
        "formula_ms": formula_s * 1e3,
        "simulated_ms": simulated,
        "measured_ms": measured,
        "error_pct": 100 * (measured / simulated - 1),
        "idle_over_total": float(np.median([trace.idle_over_total for trace in traces])),
    }


def _median_ms(traces: Sequence[Trace]) -> float:
    return float(np.median([trace.makespan_s for trace in traces])) * 1e3


def _check_stages(stage_s: Sequence[float], hop_s: float) -> None:
    if not stage_s or min(stage_s) < 0 or not max(stage_s) > 0 or hop_s < 0:
        raise ValueError(f"times must not be negative, and not all 0; got {stage_s} and hop_s={hop_s}")


def _check_rising(name: str, values: tuple[int, ...]) -> None:
    if not values or values[0] < 1 or list(values) != sorted(set(values)):
        raise ValueError(f"{name} must be positive and rise, such as (1, 2, 4); got {values}")
