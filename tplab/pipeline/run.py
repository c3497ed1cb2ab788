"""Run a table on real ranks, and get the same kind of trace that simulating it gives.

The stages are real modules, or only wait as long as :class:`~tplab.pipeline.costs.Costs` says (``emulated compute``):
where ranks outnumber cores they would otherwise take the cores from each other. Data and messages are real either way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tplab.cluster.provenance import count
from tplab.collectives.emulated_link import EmulatedLink, LinkTable, check_backend
from tplab.pipeline.communication import Messages, add_communication
from tplab.pipeline.costs import Costs, durations, grid, stage_bytes
from tplab.pipeline.costs import links as link_costs
from tplab.pipeline.job import Job, Record, Waits
from tplab.pipeline.schedule import OPS, Action, Op, Schedule
from tplab.pipeline.trace import Trace

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Rank, Run

_RECV_AHEAD = 2


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


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """What :func:`run_schedule` runs."""

    schedule: Schedule
    """Any table that ``validate`` accepts, with or without sends and receives."""
    stage: Callable[[Any, int], Any] | Costs
    """``stage(rank, index)`` makes the module of stage ``index`` on the rank that holds it, once per run; to keep
    weights between runs it puts them in ``rank.store``. Its gradients start from none. A module whose ``forward`` has a
    parameter ``micro_batch`` is passed the number. Costs instead: no modules, each computation waits its time."""
    inputs: Any = None
    """Inputs of stage 0: one tensor, split into m micro-batches; or a sequence with a tensor (or tuple) for each; or a
    function ``inputs(rank, micro_batch)``."""
    targets: Any = None
    """Targets of the loss, in the same forms."""
    loss: Callable[..., Any] | None = None
    """``loss(output, target)``, on the last stage; ``loss(output)`` without targets. By default the last stage returns
    its loss itself."""
    links: LinkTable | EmulatedLink | None = None
    """Emulated links between the ranks. By default those that the costs declare, else the backend's own."""
    dynamic_shapes: bool = False
    """Whether shapes are announced with every message instead of once: for micro-batches that differ in shape, as the
    last chunk of a prompt does."""
    warm_ups: int = 0
    """Runs of the table before the one that counts, for modules whose first call is slow. Not for stages with a state
    that they would spoil, such as a KV cache."""
    keep: bool = True
    """Whether to bring outputs and gradients to the notebook kernel."""

    def __post_init__(self) -> None:
        if not isinstance(self.stage, Costs) and not callable(self.stage):
            raise ValueError(f"stage must be a function of rank and stage index, or Costs; got {self.stage!r}")
        if isinstance(self.stage, Costs):
            for name in ("inputs", "targets", "loss"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} must be left out where stage is Costs: nothing is computed then")
            if not self.stage.overlap:
                raise ValueError("stage: Costs(overlap=False) can be simulated only: a run never waits for its sends")
        elif self.inputs is None:
            raise ValueError("inputs must be given: a tensor, one for each micro-batch, or a function that makes them")
        if self.warm_ups < 0:
            raise ValueError(f"warm_ups must be 0 or more; got {self.warm_ups}")

    @property
    def emulates(self) -> bool:
        """The stages only wait."""
        return isinstance(self.stage, Costs)

    def badge(self, cluster_badge: str) -> str:
        """The cluster's badge with what was emulated after it."""
        links = _links_of(self)
        table = LinkTable(default=links) if isinstance(links, EmulatedLink) else links
        parts = [cluster_badge, "emulated compute" if self.emulates else "", table.badge if table else ""]
        return " · ".join(part for part in parts if part)


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


def make_job(cluster: "Cluster", plan: RunPlan) -> Job:
    """What the ranks are handed, after all checks that can be made here."""
    from tplab.pipeline.validation import validate

    schedule = plan.schedule
    if cluster.num_ranks != schedule.num_stages:
        raise ValueError(
            f"schedule {schedule.name!r} is for num_stages={schedule.num_stages} ranks, but the cluster has "
            f"{count(cluster.num_ranks, 'rank')}: take Cluster({schedule.num_stages}), or build the schedule for "
            f"{cluster.num_ranks}"
        )
    validate(schedule)
    links = _links_of(plan)
    check_backend(links, cluster.backend, "links")
    return Job(
        schedule=schedule if schedule.has_communication else add_communication(schedule),
        stage=_waits(schedule, plan.stage) if isinstance(plan.stage, Costs) else plan.stage,
        inputs=plan.inputs,
        targets=plan.targets,
        loss=plan.loss,
        links=links,
        # A table that says when to receive is taken at its word. On a GPU a receive is a CUDA kernel that waits, and
        # what waits for the device (loading code, allocating) waits for it: it must not depend on what comes after.
        recv_ahead=_RECV_AHEAD if cluster.backend == "gloo" and not schedule.has_communication else 0,
        # With costs, sizes that differ between micro-batches are declared, and not announced.
        dynamic_shapes=plan.dynamic_shapes or plan.emulates,
        warm_ups=plan.warm_ups,
        keep=plan.keep,
    )


def _waits(schedule: Schedule, costs: Costs) -> Waits:
    columns, seconds = schedule.columns, durations(schedule, costs)
    times = {
        Action(stage, OPS[op], micro_batch): duration
        for stage, op, micro_batch, duration in zip(
            columns.stage.tolist(), columns.op.tolist(), columns.micro_batch.tolist(), seconds.tolist(), strict=True
        )
        if OPS[op].is_compute
    }
    sizes = grid(schedule, "message_bytes", costs.message_bytes, shared=False).copy()
    if schedule.has_back_edge:
        sizes[-1] = grid(schedule, "token_bytes", costs.token_bytes, shared=False)[-1]
    return Waits(times, np.ceil(sizes).astype(int).tolist())


def _links_of(plan: RunPlan) -> LinkTable | EmulatedLink | None:
    """Links of the plan, else those of its costs where messages take time there."""
    if plan.links is not None or not isinstance(plan.stage, Costs):
        return plan.links
    hop, inverse_bandwidth = link_costs(plan.schedule, plan.stage)
    p = plan.schedule.num_stages
    if p == 1 or not (hop.any() or inverse_bandwidth.any()):
        return None

    def link(src: int, dst: int) -> EmulatedLink:
        inverse = float(inverse_bandwidth[src, dst])
        return EmulatedLink(
            latency_us=float(hop[src, dst]) * 1e6, bandwidth_GBps=1e-9 / inverse if inverse else float("inf")
        )

    default = link(0, 1)
    every = {(src, dst): link(src, dst) for src in range(p) for dst in range(p) if src != dst}
    return LinkTable(default=default, overrides={pair: other for pair, other in every.items() if other != default})


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
    messages = Messages(schedule)
    had = {Action(stage, Op(op), mb): end for _, stage, op, mb, _, end in records if Op(op).is_recv}
    zero = min((start for _, _, op, _, start, _ in records if Op(op).is_compute), default=0.0)
    spans = []
    for rank, stage, op, micro_batch, start, end in records:
        if end is None:
            recv = messages.recv_of(Action(stage, Op(op), micro_batch))
            end = had.get(recv) if recv is not None else None
        if end is not None:
            start = max(start, zero)  # ranks wait from the moment they are let go, a little before the first computes
            spans.append((rank, stage, Op(op), micro_batch, start, max(start, end)))
    link = plan.badge("").removeprefix("emulated compute").removeprefix(" · ")
    trace = MeasuredTrace.from_spans(
        schedule,
        spans,
        measured=True,
        badge=plan.badge(provenance.badge),
        provenance={
            **provenance.columns(),
            **({"link": link} if link else {}),
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
