"""Run a table on real ranks, and get the same kind of trace that simulating it gives.

The stages are real modules, or only wait as long as :class:`~tplab.pipeline.costs.Costs` says (``emulated compute``):
where ranks outnumber cores they would otherwise take the cores from each other. Data and messages are real either way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tplab.measure import provenance_columns
from tplab.pipeline.costs import Costs, stage_bytes
from tplab.pipeline.job import Job, Record, RunPlan, make_job
from tplab.pipeline.schedule import Schedule
from tplab.pipeline.table import Flow
from tplab.pipeline.trace import Trace

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Rank, Run


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MeasuredTrace(Trace):
    """The trace of a run, and what the run computed."""

    outputs: tuple[Any, ...] | None = None
    """What the last stage returned for each micro-batch: a tensor or a tuple of them. None with emulated compute."""
    losses: tuple[float, ...] | None = None
    """Loss of each micro-batch; None in inference."""
    gradients: Mapping[int, Mapping[str, Any]] | None = None
    """Stage -> name of a parameter -> gradient of the mean loss; None in inference."""

    @property
    def loss(self) -> float | None:
        """The mean of ``losses``."""
        return float(np.mean(self.losses)) if self.losses else None


def run_schedule(
    cluster: "Cluster", schedule: Schedule, stage: Any, *, timeout: float | None = 120.0, **options: Any
) -> MeasuredTrace:
    """Run ``schedule`` on ``cluster``, a rank of it for each of the table's.

    ::

        def stage(rank, index):
            torch.manual_seed(index)
            return nn.Linear(64, 64)

        trace = run_schedule(cluster, build_schedule("1f1b", 4, 8), stage, inputs=x, targets=y, loss=F.mse_loss)
        trace.makespan_s, trace.loss, trace.gradients[3]["weight"]

    Args:
        stage: a function that makes a stage's module, or :class:`Costs` to wait instead; see :class:`RunPlan`.
        timeout: seconds the ranks have.
        options: the other fields of :class:`RunPlan`.

    Raises:
        ValueError: a cluster of another size; a table that cannot run (``ScheduleError``, as ``validate`` says), before
            any rank starts; options that do not fit.
        RankError: a stage failed; the message names it, what it was given, and by whom (``StageError``).
    """
    __tracebackhide__ = True
    plan = RunPlan(schedule=schedule, stage=stage, **options)
    run = submit_schedule(cluster, plan, timeout=timeout)
    values = run.result()
    return run_trace(plan, run.reports, cluster.provenance, values)


def submit_schedule(
    cluster: "Cluster", plan: RunPlan, *, timeout: float | None = 120.0, **callbacks: Any
) -> "Run[dict[str, Any]]":
    """Start a run; :func:`run_trace` makes the trace of what has been reported so far. Raises like
    :func:`run_schedule`."""
    return cluster.submit(run_on_rank, make_job(cluster, plan), timeout=timeout, **callbacks)


def run_on_rank(rank: "Rank", job: Job) -> dict[str, Any]:
    """Runs on the ranks. The executor is imported only there: it needs torch."""
    from tplab.pipeline.executor import run_job

    return run_job(rank, job)


def run_trace(
    plan: RunPlan, reports: Sequence[Any], provenance: Any, values: Sequence[Mapping[str, Any]] | None = None
) -> MeasuredTrace:
    """The trace of what ``run.reports`` hold so far, and of what the ranks returned, once they have.

    Computations as they ran; a RECV for every wait for a message; a SEND for every message, from its start to its
    arrival. Where the link is real nobody notes the arrival: it is then the moment at which the receiver has it, which
    is later where the receiver was busy.
    """
    records: list[Record] = [record for report in list(reports) for record in report.fields.get("records", ())]
    schedule = plan.schedule
    flow = Flow(schedule)
    had = {action: end for _, action, _, end in records if action.op.is_recv}
    zero = min((start for _, action, start, _ in records if action.op.is_compute), default=0.0)
    spans = []
    for rank, action, start, end in records:
        known = had.get(flow.recv_of(action)) if end is None else end
        if known is not None:
            start = max(start, zero)  # ranks wait from the moment they are let go, a little before the first computes
            spans.append((rank, *action, start, max(start, known)))
    trace = MeasuredTrace.from_spans(
        schedule,
        spans,
        measured=True,
        badge=plan.badge(provenance.badge),
        provenance={
            **provenance_columns(provenance, link=plan.links_or_declared),
            "compute": "emulated" if plan.emulates else "real",
        },
        activation_bytes=stage_bytes(schedule, plan.stage) if isinstance(plan.stage, Costs) else None,
        zero_s=zero,
    )
    trace = cast(MeasuredTrace, trace)
    if values is None or plan.emulates:
        return trace
    outputs, losses = _merged(values, "outputs"), _merged(values, "losses")
    training = not schedule.is_inference
    in_order = [outputs[i] for i in range(schedule.num_micro_batches)] if outputs else []
    return replace(
        trace,
        outputs=tuple(one[0] if len(one) == 1 else one for one in in_order) if outputs else None,
        losses=tuple(losses[i] for i in range(schedule.num_micro_batches)) if training else None,
        gradients=dict(sorted(_merged(values, "gradients").items())) if training and plan.keep else None,
    )


def _merged(values: Sequence[Mapping[str, Any]], name: str) -> dict[int, Any]:
    return {key: value for per_rank in values for key, value in per_rank[name].items()}
