"""The schedule studio: a schedule, its sizes and its times as sliders, and what comes of them. Runs nothing.

Analytic, so it follows every slider at once: a table of 8 ranks and 32 micro-batches is built, simulated and drawn in
about 40 ms. What cannot work is said in words above the last figure that could be drawn.
"""

from html import escape
from typing import Any, ClassVar, Self

import ipywidgets as widgets
import plotly.graph_objects as go

from tplab.lab.figures.pipeline import gantt
from tplab.lab.panels import html
from tplab.lab.panels.analytic import AnalyticPanel
from tplab.lab.panels.controls import Settings, toggles, wide
from tplab.lab.panels.versions import hint
from tplab.pipeline import formulas
from tplab.pipeline.build import INFERENCE, TRAINING, build_schedule
from tplab.pipeline.costs import Costs
from tplab.pipeline.schedule import Schedule
from tplab.pipeline.serving import steady_round
from tplab.pipeline.simulation import simulate
from tplab.pipeline.trace import Trace
from tplab.shown import amount, counted, number
from tplab.topology.machine.names import offered

_NO_FORMULA = "none for these settings"
_RINGS = ("decode-ring", "prefill-decode")


class ScheduleStudio(AnalyticPanel):
    """Train or infer, schedule, p, m, v or k, times, hop, memory cap; Gantt chart, memory lane, formula beside it.

    ``show(schedule=, p=, m=, ...)`` sets controls; ``figure`` is the figure, ``trace`` what it shows, ``error`` the
    words above it.
    """

    _offered: ClassVar = {"schedule": TRAINING + INFERENCE}

    def __init__(self, schedule: str = "1f1b", p: int = 4, m: int = 8) -> None:
        def whole(value: int, low: int, high: int, text: str, tip: str = "") -> Any:
            return widgets.IntSlider(value=value, min=low, max=high, description=text, **hint(tip or text), **wide(132))

        def time(value: float, high: float, text: str, low: float = 0.0) -> Any:
            return widgets.FloatSlider(value=value, min=low, max=high, step=0.5, description=text, **wide(132))

        named = {
            "phase": toggles(["train", "infer"], 84),
            "schedule": widgets.Dropdown(options=offered(TRAINING), description="schedule", **wide(132)),
            "p": whole(p, 1, 16, "p ranks"),
            "m": whole(m, 1, 64, "micro-batches"),
            "v": whole(2, 1, 4, "v chunks", "chunks per rank: interleaved only"),
            "k": whole(4, 1, 16, "batches in flight", "decode ring, prefill and decode"),
            "forward_ms": time(10, 40, "forward ms"),
            "input_grad_ms": time(10, 40, "backward (input)"),
            "weight_grad_ms": time(10, 40, "backward (weights)"),
            "last_stage": time(1, 4, "last stage ×", 0.5),
            "hop_ms": time(0, 20, "hop ms"),
            "cap": whole(0, 0, 64, "memory cap", "micro-batches that a rank may hold; 0: no cap"),
        }
        named["phase"].observe(lambda change: self._offer(change["new"]), names="value")
        self.trace: Trace | None = None
        self._over = ""
        self._facts = widgets.HTML()
        super().__init__(title="Schedule studio", named=named, beneath=(self._facts,), min_height=500)
        self.add_class("tplab-studio")
        self.show(schedule=schedule)

    def show(self, **settings: Any) -> Self:
        """Set controls by name: ``schedule=``, ``p=``, ``m=``, ``v=``, ``k=``, ``forward_ms=``, ``input_grad_ms=``,
        ``weight_grad_ms=``, ``last_stage=`` (times as long as the others), ``hop_ms=``, ``cap=``, ``phase=``.

        Raises ``ValueError`` for a name or a value that the panel does not offer; a combination that cannot work is
        said in the panel, as for a slider.
        """
        if settings.get("schedule") in (*TRAINING, *INFERENCE):
            settings = {"phase": "infer" if settings["schedule"] in INFERENCE else "train"} | settings
        in_order = sorted(settings.items(), key=lambda each: each[0] != "phase")  # which decides the schedules
        return super().show(**dict(in_order))

    def _offer(self, phase: str) -> None:
        """The schedules of a phase; the panel draws once for it, not for the schedule that changes with it."""
        self._setting, before = True, self._setting
        self._named["schedule"].options = offered(INFERENCE if phase == "infer" else TRAINING)
        self._setting = before

    def draw(self, values: Settings) -> tuple[go.Figure, str]:
        name, training = values["schedule"], values["phase"] == "train"
        self._named["v"].disabled = name != "interleaved"
        self._named["k"].disabled = name not in _RINGS
        for gradient in ("input_grad_ms", "weight_grad_ms", "cap"):
            self._named[gradient].disabled = not training
        schedule = _schedule_of(values)
        self.trace = simulate(schedule, _costs_of(values))
        cap = values["cap"] if training and values["cap"] else None
        self._over = "" if cap is None else _over_cap(self.trace, cap)
        self._facts.value = _table(self.trace, values)
        return gantt(self.trace, max_activations=cap), ""

    def warning(self) -> str:
        return self._over


def _schedule_of(values: dict[str, Any]) -> Schedule:
    name, p, m = values["schedule"], values["p"], values["m"]
    if name == "interleaved" and m % p:
        below = f"{m - m % p} or " if m > p else ""
        raise ValueError(
            f"Interleaved sends micro-batches round in groups of as many as there are ranks: with {p} ranks take "
            f"{below}{m - m % p + p} micro-batches."
        )
    return build_schedule(
        name,
        p,
        m,
        values["v"] if name == "interleaved" else 1,
        num_in_flight=values["k"] if name in _RINGS else None,
    )


def _costs_of(values: dict[str, Any]) -> Costs:
    """By stage, so that the last one can take longer; the share of a chunk is 1/v."""
    v = values["v"] if values["schedule"] == "interleaved" else 1
    stages = values["p"] * v
    longer = [1.0] * (stages - 1) + [values["last_stage"]]

    def by_stage(ms: float) -> list[float]:
        return [ms * 1e-3 / v * factor for factor in longer]

    return Costs(
        forward_s=by_stage(values["forward_ms"]),
        input_grad_s=by_stage(values["input_grad_ms"]),
        weight_grad_s=by_stage(values["weight_grad_ms"]),
        hop_s=values["hop_ms"] * 1e-3,
    )


def _over_cap(trace: Trace, cap: float) -> str:
    """The rank that holds most, and how many others hold too much; empty where none does."""
    peaks = trace.peak_activations_per_rank
    over = [rank for rank, peak in enumerate(peaks) if peak > cap]
    if not over:
        return ""
    worst = max(over, key=lambda rank: peaks[rank])
    others = f", and {counted(len(over) - 1, 'other rank')} too many as well" if over[1:] else ""
    return html.ribbon(
        f"Over the memory cap of {amount(cap)}: rank {worst} holds up to {amount(peaks[worst])} micro-batches{others}."
    )


def _table(trace: Trace, values: dict[str, Any]) -> str:
    simulated, formula = _simulated(trace, values), formula_of(values)
    rows = [
        (escape(name), escape(text), escape(formula.get(name, "")) or ("" if name not in _CLOSED else "–"))
        for name, text in simulated.items()
    ]
    quiet = "" if formula else html.quiet(f"Formula: {_NO_FORMULA}.")
    return html.table(("", "simulated", "formula"), rows) + quiet


_CLOSED = ("makespan", "idle / total", "idle / work", "peak, rank 0", "a round")


def _simulated(trace: Trace, values: dict[str, Any]) -> dict[str, str]:
    rows = {
        "makespan": _ms(trace.makespan_s),
        "idle / total": f"{trace.idle_over_total:.1%}",
        "idle / work": f"{trace.idle_over_work:.1%}",
    }
    if not trace.schedule.is_inference:
        rows["peak, rank 0"] = number(trace.peak_activations(0), 4)
        rows["peak, any rank"] = number(trace.peak_activations(), 4)
    elif values["schedule"] == "decode-ring" and values["m"] >= 3 * values["k"]:
        rows["a round"] = _ms(steady_round(trace, values["k"])[0])
        rows["tokens / s"] = number(values["k"] / steady_round(trace, values["k"])[0], 4)
    return rows


def formula_of(values: dict[str, Any]) -> dict[str, str]:
    """What is known in closed form of the panel's settings, by the names of the table's rows; empty where nothing is.

    Hops and stages that differ have a formula in inference only.
    """
    name, p, m = values["schedule"], values["p"], values["m"]
    v = values["v"] if name == "interleaved" else 1
    forward_s, hop_s = values["forward_ms"] * 1e-3, values["hop_ms"] * 1e-3
    stage_s = [forward_s] * (p - 1) + [forward_s * values["last_stage"]]
    if name in ("forward-only", "chunked-prefill"):
        makespan = formulas.prefill_makespan_s(stage_s, m, hop_s)
        work = m * sum(stage_s)
        idle = 1 - work / (p * makespan) if makespan else 0.0
        return {
            "makespan": _ms(makespan),
            "idle / total": f"{idle:.1%}",
            "idle / work": f"{idle / (1 - idle):.1%}" if idle < 1 else "",
        }
    if name == "decode-ring" and max(stage_s) > 0:
        round_s = formulas.decode_round_s(stage_s, values["k"], hop_s)
        return {"a round": _ms(round_s), "tokens / s": number(values["k"] / round_s, 4)}
    if name not in formulas.BALANCED or hop_s or values["last_stage"] != 1:
        return {}
    times = {f"{part}_s": values[f"{part}_ms"] * 1e-3 for part in ("forward", "input_grad", "weight_grad")}
    if not sum(times.values()):
        return {}
    try:
        return {
            "makespan": _ms(formulas.makespan_s(name, p, m, v, **times)),
            "idle / total": f"{formulas.idle_over_total(name, p, m, v, **times):.1%}",
            "idle / work": f"{formulas.idle_over_work(name, p, m, v, **times):.1%}",
            "peak, rank 0": number(formulas.peak_activations(name, p, m, v), 4),
        }
    except ValueError:  # outside of what the formula holds for: zb-h1 with fewer micro-batches than ranks
        return {}


def _ms(seconds: float) -> str:
    return f"{number(seconds * 1e3, 5)} ms"
