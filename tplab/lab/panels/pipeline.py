"""The live panels of notebook 05: a schedule on real ranks, and inference pipelines.

On GPUs of their own ranks compute: blocks of a real model's shape. Elsewhere stages wait declared times instead
(``emulated compute``, on the badge): with more ranks than cores, or several on a GPU, real ones would take the
processors from each other. Ranks, messages and the order of work are real.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import ipywidgets as widgets
import pandas as pd

from tplab.checks import ArgumentError
from tplab.cluster import Cluster
from tplab.lab.choice import Choice
from tplab.lab.figures.pipeline import explain_pipeline, gantt
from tplab.lab.figures.pipeline_curves import decode_figure, explain_serving, prefill_figure
from tplab.lab.panels import html
from tplab.lab.panels.base import Drawing, RunPanel, Submitted
from tplab.lab.panels.controls import Settings, wide
from tplab.lab.panels.pool import Pool
from tplab.lab.panels.run_state import Work
from tplab.pipeline.blocks import block_stages
from tplab.pipeline.build import SCHEDULES, build_schedule
from tplab.pipeline.costs import Costs, measured_costs
from tplab.pipeline.job import RunPlan
from tplab.pipeline.run import MeasuredTrace, run_trace, submit_schedule
from tplab.pipeline.schedule import Schedule
from tplab.pipeline.serving import (
    ChunkedPrefillPlan,
    DecodePlan,
    PrefillPlan,
    ServingPlan,
    serving_frame,
    submit_serving,
)
from tplab.pipeline.simulation import simulate
from tplab.pipeline.trace import Trace
from tplab.topology.machine.names import offered

MESSAGE_BYTES = 4096
"""Bytes of a message between stages that wait."""
_WAIT, _COMPUTE = "wait", "compute"


def _slider(value: int, low: int, high: int, text: str, step: int = 1) -> Any:
    return widgets.IntSlider(value=value, min=low, max=high, step=step, description=text, **wide(104))


def stages_control() -> Any:
    """Whether stages wait or compute; which of them is offered, ``ScheduleRunPanel.suit`` says."""
    return widgets.Dropdown(options=(_WAIT, _COMPUTE), description="stages", **wide(104))


class ScheduleRunPanel(RunPanel):
    """Any schedule on the pool's ranks, a stage on each (or v): the measured Gantt chart under the simulated one.

    ``simulated`` and ``trace`` are the traces of the last run, ``trace`` also of one that was stopped or failed.

    Args:
        pool: the ranks that it runs on.
        title: heading of the panel.
        named: controls, among them ``stages``: whether stages wait or compute.
    """

    def __init__(self, pool: Pool, *, title: str, named: Mapping[str, Any]) -> None:
        super().__init__(pool, title=title, named=named, height=560)
        self.simulated: Trace | None = None
        self.trace: MeasuredTrace | None = None
        pool.on_choice(self._fit)

    def _fit(self, choice: Choice) -> None:
        """Blocks for a rank's share of its GPU, which every number of ranks changes."""
        self._blocks = block_stages(choice.memory_GB)

    def suit(self, choice: Choice) -> None:
        stages = self._named["stages"]
        stages.options = (_WAIT, _COMPUTE) if choice.on_gpus else (_WAIT,)
        stages.value = choice.pick(cpu=_WAIT, shared=_WAIT, own=_COMPUTE)

    @abstractmethod
    def schedule_of(self, settings: Settings, num_ranks: int) -> Schedule:
        """The table to run."""

    @abstractmethod
    def costs_of(self, settings: Settings) -> Costs:
        """What stages and messages take where stages wait."""

    def submit(self, cluster: Cluster, settings: Settings) -> Submitted:
        schedule = self.schedule_of(settings, cluster.num_ranks)
        if settings["stages"] == _COMPUTE:
            plan = self._blocks.plan(schedule)
        else:
            plan = RunPlan(schedule=schedule, stage=self.costs_of(settings))
        return submit_schedule(cluster, plan, on_report=self.on_report), plan

    def draw(self, work: Work) -> Drawing:
        plan = work.plan
        trace = run_trace(plan, work.run.reports, work.provenance)
        if not len(trace.rank):
            return None, ""
        self.trace = trace
        costs = plan.stage if isinstance(plan.stage, Costs) else measured_costs(self.trace)
        self.simulated = simulate(plan.schedule, costs)
        figure = gantt(self.simulated, self.trace)
        return figure, html.quiet(explain_pipeline(self.simulated, self.trace))


class PipelinePanel(ScheduleRunPanel):
    """A schedule by name on the pool's ranks."""

    def __init__(self, pool: Pool, schedule: str = "1f1b", m: int = 8) -> None:
        named = {
            "schedule": widgets.Dropdown(
                options=offered(SCHEDULES), value=schedule, description="schedule", **wide(104)
            ),
            "m": _slider(m, 1, 32, "micro-batches"),
            "v": _slider(2, 1, 4, "v chunks"),
            "stages": stages_control(),
            "forward_ms": _slider(20, 2, 100, "forward ms"),
            "hop_ms": _slider(2, 0, 50, "hop ms"),
        }
        super().__init__(pool, title="A schedule on real ranks", named=named)

    def suit(self, choice: Choice) -> None:
        super().suit(choice)
        # Links are emulated over gloo: elsewhere they are the ranks' own.
        self._named["hop_ms"].disabled = choice.on_gpus
        if choice.on_gpus:
            self._named["hop_ms"].value = 0

    def schedule_of(self, settings: Settings, num_ranks: int) -> Schedule:
        name = settings["schedule"]
        return build_schedule(name, num_ranks, settings["m"], settings["v"] if name == "interleaved" else 1)

    def costs_of(self, settings: Settings) -> Costs:
        seconds = settings["forward_ms"] * 1e-3
        return Costs(
            forward_s=seconds,
            input_grad_s=seconds,
            weight_grad_s=seconds,
            hop_s=settings["hop_ms"] * 1e-3,
            message_bytes=MESSAGE_BYTES,
        )


_WHAT = ("decode ring", "prefill", "chunked prefill")


class ServingPanel(RunPanel):
    """An inference pipeline on the pool's ranks: formula, simulation and measurement.

    ``frame`` holds the measurement of the last run, also of one that was stopped or failed.
    """

    def __init__(self, pool: Pool, what: str = "decode ring") -> None:
        super().__init__(
            pool,
            title="Inference pipelines",
            named={
                "what": widgets.Dropdown(options=_WHAT, value=what, description="pipeline", **wide(104)),
                "stage_ms": _slider(10, 2, 50, "stage ms"),
                "last_ms": _slider(10, 2, 100, "last stage ms"),
                "hop_ms": _slider(2, 0, 20, "hop ms"),
            },
            height=430,
        )
        self.frame: pd.DataFrame = pd.DataFrame()

    def submit(self, cluster: Cluster, settings: Settings) -> Submitted:
        plan = serving_plan(cluster.num_ranks, **settings)
        return submit_serving(cluster, plan, on_report=self.on_report), plan

    def draw(self, work: Work) -> Drawing:
        frame = serving_frame(work.plan, work.run.reports, work.provenance)
        if frame.empty:
            return None, ""
        self.frame = frame
        draw = decode_figure if isinstance(work.plan, DecodePlan) else prefill_figure
        return draw(frame, badge=str(frame["badge"].iloc[0])), html.quiet(explain_serving(frame))


def serving_plan(num_ranks: int, what: str, stage_ms: float, last_ms: float, hop_ms: float) -> ServingPlan:
    """The plan for a panel's settings. In a chunked prefill the stages are alike, and ``stage_ms`` is the whole
    prompt's.

    Args:
        num_ranks: stages.
        what: name of the question, as the panel offers it.
        stage_ms, last_ms: time of a stage, and of the last one.
        hop_ms: latency of a message.
    """
    stage_s = (*[stage_ms * 1e-3] * (num_ranks - 1), last_ms * 1e-3)
    hop_s = hop_ms * 1e-3
    if what == "prefill":
        return PrefillPlan(stage_s=stage_s, hop_s=hop_s, rounds=3)
    if what == "chunked prefill":
        if last_ms != stage_ms:
            raise ArgumentError("last_ms", last_ms, f"must be stage_ms={stage_ms}: chunked prefills have stages alike")
        # A tenth of it is attention to the tokens before, and each chunk costs what 4 % of the prompt do besides.
        tokens, whole_s = 4096, 8 * stage_ms * 1e-3
        return ChunkedPrefillPlan(
            num_stages=num_ranks,
            tokens=tokens,
            per_token_s=0.9 * whole_s / tokens,
            per_pair_s=0.1 * whole_s / (tokens**2 / 2),
            overhead_s=0.04 * whole_s,
            hop_s=hop_s,
            rounds=3,
        )
    return DecodePlan(stage_s=stage_s, hop_s=hop_s)
