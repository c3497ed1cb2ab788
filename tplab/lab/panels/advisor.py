"""Notebook 07's advisor: limits as sliders, every layout ranked, what a step is made of, and where the choice flips.

Analytic, so it follows every slider: ranking all layouts of 8 GPUs takes some 20 ms, drawing a view some 50. Only the
view of flips takes half a second; while it is shown, sliders wait to be let go.
"""

from html import escape
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go

from tplab.lab.figures.advice import (
    explain_advice,
    explain_flips,
    flip_figure,
    flip_frame,
    front_figure,
    reference_GBps,
    waterfall_figure,
    with_links_scaled,
)
from tplab.lab.figures.topology import explain_placement, placement_figure
from tplab.lab.panels import html
from tplab.lab.panels.analytic import AnalyticPanel, said
from tplab.lab.panels.controls import toggles, wide
from tplab.lab.panels.links import LinkPanel
from tplab.lab.panels.versions import hint
from tplab.lab.pictures.topology import MOST_DRAWN, Topology
from tplab.models.presets import MODELS
from tplab.models.spec import ModelSpec
from tplab.shown import number, time_text
from tplab.topology.advisor.advice import Advice, Option, advise
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.workload import PREFILL_POLICIES, EnginePolicy, Workload
from tplab.topology.machine.machine import Machine
from tplab.topology.machine.names import offered
from tplab.topology.machine.placement import place

ENGINES = ("vllm", "sglang", "trtllm", "generic", "lab")
VIEWS = (
    ("one step", "one step"),
    ("latency vs throughput", "front"),
    ("placement", "placement"),
    ("what would change my mind", "flips"),
)
_LENGTHS = tuple(1 << power for power in range(4, 18))
_LOADS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_TPOT_LIMITS = (("none", 0.0), *((f"{ms} ms", float(ms)) for ms in (5, 8, 10, 15, 20, 30, 50, 80, 120, 200)))
_TTFT_LIMITS = (("none", 0.0), *((f"{ms:,} ms", float(ms)) for ms in (50, 100, 200, 500, 1000, 2000, 5000, 10000)))
_BATCHES = (("engine's", 0), *((str(1 << power), 1 << power) for power in range(3, 12)))
_PREFIXES = tuple((f"{percent} %", percent / 100) for percent in (0, 25, 50, 75, 90, 95))
_GUESSES = (("none", 0), *((str(k), k) for k in range(1, 9)))
_SCALES = tuple((f"× {2**power}" if power >= 0 else f"× 1/{2**-power}", 2.0**power) for power in range(-6, 3))
_ROWS_SHOWN = 8


class AdvisorPanel(AnalyticPanel):
    """Model, load, limits and links as controls; the ranked layouts, and a view of the best one or of the ``rank``-th.

    ``advice`` is the answer, ``option`` the layout that is looked at. ``show(model=, weights=, cache=, engine=,
    input_length=, output_length=, concurrency=, tpot_limit_ms=, ttft_limit_ms=, max_num_seqs=, prefill_policy=,
    cached_prefix=, speculative_tokens=, links=, rank=, view=)`` sets controls.

    Args:
        machine: a ``LinkPanel``, whose machine is followed, or a machine.
        calibration: what was measured on it; replaces spec-sheet terms.
        model: instead of the list's.
    """

    drawing: Topology

    def __init__(
        self,
        machine: "LinkPanel | Machine",
        *,
        calibration: Calibration | None = None,
        model: ModelSpec | None = None,
    ) -> None:
        self._machine = machine.machine if isinstance(machine, LinkPanel) else machine
        self._calibration, self._model = calibration, model
        self.advice: Advice | None = None
        self.option: Option | None = None

        def pick(options: Any, value: Any, text: str, tip: str = "") -> Any:
            return widgets.SelectionSlider(
                options=options, value=value, description=text, **hint(tip or text), **_wide()
            )

        super().__init__(
            title="Advisor",
            named={
                "model": widgets.Dropdown(
                    options=offered(MODELS), value="llama-3.1-70b", description="model", **_wide()
                ),
                "weights": widgets.Dropdown(options=("bf16", "fp8", "int8", "int4"), description="weights", **_wide()),
                "cache": widgets.Dropdown(options=("bf16", "fp8"), description="KV cache", **_wide()),
                "engine": widgets.Dropdown(options=offered(ENGINES), description="engine", **_wide()),
                "input_length": pick(_LENGTHS, 1024, "tokens in"),
                "output_length": pick(_LENGTHS, 256, "tokens out"),
                "concurrency": pick(_LOADS, 16, "in flight", "requests in flight over the whole machine"),
                "tpot_limit_ms": pick(_TPOT_LIMITS, 0.0, "per token", "longest time per output token"),
                "ttft_limit_ms": pick(_TTFT_LIMITS, 0.0, "first token", "longest wait for the first token"),
                "max_num_seqs": pick(_BATCHES, 0, "largest batch", "most requests that one replica runs at once"),
                "prefill_policy": widgets.Dropdown(options=PREFILL_POLICIES, description="prompts' turn", **_wide()),
                "cached_prefix": pick(_PREFIXES, 0.0, "cached prefix", "share of each prompt that is cached"),
                "speculative_tokens": pick(_GUESSES, 0, "guessed tokens", "tokens that a draft guesses in each step"),
                "links": pick(_SCALES, 1.0, "links", "all links inside nodes so many times as wide"),
                "rank": widgets.IntSlider(value=1, min=1, max=30, description="show layout", **_wide()),
            },
            view=toggles(VIEWS, 216),
            drawing=Topology(),
            min_height=460,
        )
        self.add_class("tplab-advisor")
        if model is not None:
            for name in ("model", "weights", "cache"):
                self._named[name].layout.display = "none"
        if isinstance(machine, LinkPanel):
            machine.on_machine(self._follow)
        self._draw()

    def _follow(self, machine: Machine) -> None:
        self._machine = machine
        self._draw()

    def draw(self, values: dict[str, Any]) -> tuple[go.Figure, str]:
        for control in self._named.values():
            if hasattr(control, "continuous_update"):
                control.continuous_update = values["view"] != "flips"
        self.advice = advice = advise(*self._asked(values), calibration=self._calibration)
        self.option = option = advice.options[min(values["rank"], len(advice.options)) - 1]
        words = said(explain_advice(advice), ok=not advice.best.misses, word=f"{advice.best.layout}")
        view = self._view_of(values, advice, option)
        return view[0], words + view[1]

    def table(self) -> str:
        assert self.advice is not None, "drawn before"
        return ranked_table(self.advice, self.option) + _folded(self.advice)

    def _asked(self, values: dict[str, Any]) -> tuple[ModelSpec, Machine, Workload]:
        model = self._model or ModelSpec.from_config(
            values["model"], weight_precision=values["weights"], kv_precision=values["cache"]
        )
        workload = Workload(
            input_length=values["input_length"],
            output_length=values["output_length"],
            concurrency=values["concurrency"],
            tpot_limit_ms=values["tpot_limit_ms"] or None,
            ttft_limit_ms=values["ttft_limit_ms"] or None,
            cached_prefix=values["cached_prefix"],
            engine=EnginePolicy(
                name=values["engine"],
                max_num_seqs=values["max_num_seqs"] or None,
                prefill_policy=values["prefill_policy"],
                speculative_tokens=values["speculative_tokens"],
            ),
        )
        return model, with_links_scaled(self._machine, values["links"]), workload

    @property
    def badge(self) -> str:
        """Where the numbers of the figure come from."""
        if self._calibration is not None:
            return f"MODEL · {self._calibration.badge}"
        return f"MODEL · {self._machine.source} links"

    def _view_of(self, values: dict[str, Any], advice: Advice, option: Option) -> tuple[go.Figure, str]:
        if values["view"] == "one step":
            low, high = option.prediction.tpot_range_ms
            title = (
                f"{option.layout}: {number(option.prediction.tpot_ms)} ms per token ({number(low)} to {number(high)})"
            )
            return waterfall_figure(advice.waterfall(option), title=title, badge=self.badge), ""
        if values["view"] == "front":
            limit = values["tpot_limit_ms"] or None
            best = str(advice.best.layout)
            return front_figure(advice.front, best=best, badge=self.badge, tpot_limit_ms=limit), ""
        if values["view"] == "placement":
            lay, machine, title = option.layout, advice.machine, f"{option.layout} on {advice.machine.name}"
            placed = advice.placement if option is advice.best else place(machine, lay.tp, lay.pp, lay.replicas)
            if machine.num_gpus <= MOST_DRAWN:
                self.drawing.lay(
                    machine,
                    advice.model,
                    advice.workload,
                    tp=lay.tp,
                    pp=lay.pp,
                    replicas=lay.replicas,
                    calibration=self._calibration,
                )
                self.drawn = True
            figure = placement_figure(machine, placed, title=title, badge=self.badge)
            return figure, said(explain_placement(machine, placed))
        flips = [
            (flip.at, f"{flip.below} | {flip.above}") for flip in advice.flips if flip.quantity == "link bandwidth"
        ]
        figure = flip_figure(flip_frame(advice), here=reference_GBps(advice), flips=flips, badge=self.badge)
        return figure, said(explain_flips(advice))


def _wide() -> dict[str, Any]:
    return wide(104)  # labels of two words


def ranked_table(advice: Advice, looked_at: Option | None = None) -> str:
    """Layouts that fit, best first, with intervals, what binds and why they are not the best; the rest folded away."""
    header = ("", "layout", "ms per token", "first token", "tokens/s", "GB free", "why")
    frame = advice.table()
    rows = [_ranked(row, looked_at) for row in frame[frame["rank"] > 0].itertuples()]
    shown = html.table(header, rows[:_ROWS_SHOWN])
    hidden = rows[_ROWS_SHOWN:]
    if hidden:
        shown += _details(f"{len(hidden)} more that fit", html.table(header, hidden))
    cannot = frame.loc[frame["rank"] == 0, ["layout", "verdict"]]
    if len(cannot):
        why_not = html.table(("layout", "why not"), cannot.map(escape).itertuples(index=False))
        shown += _details(f"{len(cannot)} that do not fit, and why", why_not)
    return f'<div style="overflow-x:auto;margin-top:8px">{shown}</div>'


def _ranked(row: Any, looked_at: Option | None) -> tuple[str, ...]:
    """Cells of a row of ``Advice.table``."""
    layout = escape(row.layout).replace(" ", "&nbsp;") + (f"<br>{row.idle_gpus:.0f}&nbsp;idle" if row.idle_gpus else "")
    bold = "<b>{}</b>" if looked_at is not None and row.rank == looked_at.rank else "{}"
    return (
        bold.format(row.rank),
        bold.format(layout),
        f"{number(row.tpot_ms)}{_quiet(f'{number(row.tpot_low_ms)}&ndash;{number(row.tpot_high_ms)}')}",
        time_text(1e3 * row.ttft_ms).replace(" ", "&nbsp;"),
        f"{row.output_tokens_per_s:,.0f}{_quiet(f'{row.tokens_per_s_per_gpu:,.0f}&nbsp;a&nbsp;GPU')}",
        number(row.free_GB),
        f'<div style="min-width:150px">{escape(row.verdict)}{_quiet(f"bound by {escape(row.binding)}")}</div>',
    )


def _quiet(words: str) -> str:
    """A second line of a cell."""
    return f'<div style="color:var(--jp-ui-font-color2,#5B6472);font-size:12px">{words}</div>'


def _folded(advice: Advice) -> str:
    """Commands, provenance of the terms, and notes."""
    commands = "".join(
        f'<div style="font-weight:600;margin-top:6px">{escape(engine)}</div>'
        f'<pre style="white-space:pre-wrap;font-size:12px;margin:2px 0">{escape(chr(10).join(lines))}</pre>'
        for engine, lines in advice.commands.items()
    )
    rows = [(escape(t.name), number(t.ms), escape(t.provenance)) for t in advice.best.prediction.terms if t.ms > 0]
    folded = _details(f"Commands that start {advice.best.layout}", commands)
    folded += _details("Where each term comes from", html.table(("term", "ms", "from"), rows))
    if advice.notes:
        folded += _details("Approximations and assumptions", html.quiet(". ".join(advice.notes) + "."))
    return folded


def _details(summary: str, inside: str) -> str:
    colour = "color:var(--jp-ui-font-color1,#1F2430)"
    return (
        f'<details style="margin-top:6px;font-size:13px;{colour}"><summary style="cursor:pointer">{escape(summary)}'
        f"</summary>{inside}</details>"
    )
