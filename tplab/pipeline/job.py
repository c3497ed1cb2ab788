"""What a run of a table is, what the notebook kernel hands to the ranks for it, and what a stage's failure becomes.

Apart from ``tplab.pipeline.executor``, since the notebook kernel does without torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tplab.checks import check_count
from tplab.cluster.provenance import count
from tplab.collectives.emulated_link import EmulatedLink, LinkTable, check_backend
from tplab.measure import joined_badge, link_text
from tplab.pipeline.communication import add_communication
from tplab.pipeline.costs import Costs, durations, grid
from tplab.pipeline.costs import links as link_costs
from tplab.pipeline.schedule import OPS, Action, Schedule
from tplab.pipeline.validation import validate

if TYPE_CHECKING:
    from tplab.cluster import Cluster

_RECV_AHEAD = 2
_LEAST_BYTES = 4

Record = tuple[int, Action, float, float | None]
"""Rank, action, start and end in seconds of one clock. A send of which only the receiver can tell when it arrived has
no end; the receiver's own record has it."""


class StageError(RuntimeError):
    """A stage failed: says which action of which stage, on what, from whom. The stage's own exception is its cause."""


class Waits(NamedTuple):
    """Stages that only wait."""

    durations: Mapping[Action, float]
    """Computation -> seconds."""
    message_bytes: Sequence[Sequence[int]]
    """Bytes by stage and micro-batch: size of the output and of its gradient, rounded up to whole float32 numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """What :func:`~tplab.pipeline.run.run_schedule` runs."""

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
        check_count("warm_ups", self.warm_ups)

    @property
    def emulates(self) -> bool:
        """The stages only wait."""
        return isinstance(self.stage, Costs)

    def badge(self, cluster_badge: str) -> str:
        """The cluster's badge with what was emulated after it."""
        compute = "emulated compute" if self.emulates else ""
        return joined_badge(cluster_badge, compute, link_text(self.links_or_declared))

    @property
    def links_or_declared(self) -> LinkTable | EmulatedLink | None:
        """``links``, else those that the costs declare, where messages take time there."""
        if self.links is not None or not isinstance(self.stage, Costs):
            return self.links
        hop, inverse_bandwidth = link_costs(self.schedule, self.stage)
        p = self.schedule.num_stages
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A plan as the ranks are handed it."""

    plan: RunPlan
    """The plan, with its sends and receives in the table, and the links that are emulated."""
    waits: Waits | None
    """What the stages do where they only wait; None: they are modules."""
    recv_ahead: int
    """Receives that a rank posts before their place in the table, per link. A message without a receive waits until its
    sender has heard of one, which takes long on a busy machine."""


def make_job(cluster: "Cluster", plan: RunPlan) -> Job:
    """What the ranks are handed, after all checks that can be made here."""
    schedule = plan.schedule
    if cluster.num_ranks != schedule.num_stages:
        raise ValueError(
            f"schedule {schedule.name!r} is for num_stages={schedule.num_stages} ranks, but the cluster has "
            f"{count(cluster.num_ranks, 'rank')}: take Cluster({schedule.num_stages}), or build the schedule for "
            f"{cluster.num_ranks}"
        )
    validate(schedule)
    links = plan.links_or_declared
    check_backend(links, cluster.backend)
    return Job(
        plan=replace(
            plan,
            schedule=schedule if schedule.has_communication else add_communication(schedule),
            links=links,
            # With costs, sizes that differ between micro-batches are declared, and not announced.
            dynamic_shapes=plan.dynamic_shapes or plan.emulates,
        ),
        waits=_waits(schedule, plan.stage) if isinstance(plan.stage, Costs) else None,
        # A table that says when to receive is taken at its word. On a GPU a receive is a CUDA kernel that waits, and
        # what waits for the device (loading code, allocating) waits for it: it must not depend on what comes after.
        recv_ahead=_RECV_AHEAD if cluster.backend == "gloo" and not schedule.has_communication else 0,
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
    # NCCL sends nothing for an empty tensor, and then nobody waits for it: every message has a number in it.
    return Waits(times, np.maximum(np.ceil(sizes), _LEAST_BYTES).astype(int).tolist())
