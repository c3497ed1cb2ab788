"""``{measured} sweep``: a recorded measurement as the lab's own figure, drawn from its frame when the site is built.

With each stand a sentence made of its numbers (none is typed, so none can be of another recording), where and when it
was measured, and the numbers themselves: what readers without JavaScript have. Figures are placed as those of the
notebooks are.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from tplab_pictures import figure_place

from tplab.lab import explain_busbw, explain_pipeline, explain_profile, explain_strategies, explain_sweep, figures
from tplab.lab.recorded import recorded, recorded_badge, recorded_trace
from tplab.pipeline import build_schedule, measured_costs, simulate
from tplab.shown import number

FOUR, TWO, ONE = "4xH200-2026-11-26", "2xH200-2026-11-28", "1xH100-2026-11-28"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What a page shows of a recording."""

    box: str
    """Its name."""
    step: str
    """Its file, without the ending."""
    frame: pd.DataFrame
    """The rows that are shown, with their provenance."""
    columns: Sequence[str]
    """Columns that stand in the table of numbers."""
    figure: go.Figure
    """The lab's figure of them."""
    sentence: str
    """What they say."""


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("measured", MeasuredDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _latency() -> Shown:
    sweep = recorded(FOUR, "sweep")
    frame = sweep[(sweep.num_ranks == 4) & (sweep.launch_mode == "eager") & (sweep.algorithm == "library")]
    return Shown(
        box=FOUR,
        step="sweep",
        frame=frame,
        columns=["bytes", "p50_us", "p95_us", "algbw_GBps", "busbw_GBps"],
        figure=figures.latency_figure(frame, badge=recorded_badge(FOUR)),
        sentence=explain_sweep(frame),
    )


def _bandwidth() -> Shown:
    sweep = recorded(FOUR, "sweep")
    frame = sweep[(sweep.algorithm == "library") & (sweep.launch_mode == "eager")]
    return Shown(
        box=FOUR,
        step="sweep",
        frame=frame,
        columns=["num_ranks", "bytes", "p50_us", "busbw_GBps"],
        figure=figures.busbw_figure(frame, badge=recorded_badge(FOUR)),
        sentence=explain_busbw(frame),
    )


def _strategies() -> Shown:
    layers = recorded(FOUR, "layers")
    frame = layers[layers["tokens"] == layers["tokens"].max()]
    return Shown(
        box=FOUR,
        step="layers",
        frame=frame,
        columns=["strategy", "total_us", "compute_us", "exposed_us"],
        figure=figures.strategies_figure(frame, badge=recorded_badge(FOUR)),
        sentence=explain_strategies(frame),
    )


def _pipeline() -> Shown:
    pipeline = recorded(FOUR, "pipeline")
    frame = pipeline[pipeline["schedule"] == "1f1b"]
    order = build_schedule("1f1b", 4, 8)
    measured = recorded_trace(FOUR, order)
    alone = simulate(order, measured_costs(measured))
    return Shown(
        box=FOUR,
        step="pipeline",
        frame=frame,
        columns=["schedule", "micro_batches", "makespan_ms", "simulated_ms", "idle_over_total"],
        figure=figures.gantt(alone, measured),
        sentence=explain_pipeline(alone, measured),
    )


def _layouts() -> Shown:
    layouts = recorded(FOUR, "layouts")
    frame = layouts[(layouts["model"] == "llama-3.1-70b") & (layouts["concurrency"] == 8)]
    errors, asked = frame["tpot_ms_error_pct"].abs(), frame.iloc[0]
    fastest = frame.loc[frame["measured_tpot_ms"].idxmin()]
    load = f"{asked.concurrency} x {asked.input_length} tokens in, {asked.output_length} out"
    return Shown(
        box=FOUR,
        step="layouts",
        frame=frame,
        columns=[
            "layout",
            "predicted_tpot_ms",
            "measured_tpot_ms",
            "tpot_ms_error_pct",
            "measured_output_tokens_per_s",
        ],
        figure=figures.verification_figure(frame, badge=recorded_badge(FOUR), title=f"Llama-3.1 70B, {load}"),
        sentence=(
            f"{len(frame)} layouts run: the predicted time per token is off by {number(errors.mean(), 2)} % on "
            f"average, {number(errors.max(), 2)} % at worst. The fastest per token is {fastest.layout}, with "
            f"{number(fastest.measured_tpot_ms)} ms."
        ),
    )


def _step() -> Shown:
    profile = recorded(ONE, "profile")
    frame = profile[profile["batch"] == 1]
    title = f"Llama-3.1 8B on one H100: {frame['prompt_length'].iloc[0]} tokens in"
    return Shown(
        box=ONE,
        step="profile",
        frame=frame,
        columns=["phase", "term", "measured_ms", "predicted_ms", "share_pct", "calls"],
        figure=figures.profile_figure(frame, title=title, badge=recorded_badge(ONE)),
        sentence=explain_profile(frame),
    )


def _generation() -> Shown:
    frame = recorded(TWO, "generation")
    first = frame.iloc[0]
    quick = frame.loc[frame["tpot_ms"].idxmin()]
    return Shown(
        box=TWO,
        step="generation",
        frame=frame,
        columns=["tp", "pp", "micro_batches", "sequences", "ttft_ms", "tpot_ms", "output_tokens_per_s"],
        figure=figures.layouts_figure(frame, badge=recorded_badge(TWO)),
        sentence=(
            f"Llama-3.1 8B, prompts of {first.prompt_tokens} tokens. The least time per token, "
            f"{number(quick.tpot_ms)} ms, takes TP {quick.tp} × PP {quick.pp} with {quick.sequences} in flight."
        ),
    )


MEASURED: Mapping[str, Callable[[], Shown]] = {
    "latency": _latency,
    "bandwidth": _bandwidth,
    "strategies": _strategies,
    "pipeline": _pipeline,
    "layouts": _layouts,
    "step": _step,
    "generation": _generation,
}
"""What the directive can show, by name."""


class MeasuredDirective(SphinxDirective):
    """``{measured} NAME``, one of ``MEASURED``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if name not in MEASURED:
            raise self.error(f"nothing is called {name!r}: take one of {', '.join(MEASURED)}")
        shown = MEASURED[name]()
        alt = f"{shown.figure.layout.title.text}. {shown.sentence}"
        return [
            nodes.paragraph("", shown.sentence),
            nodes.raw("", figure_place(json.loads(shown.figure.to_json()), alt), format="html"),
            nodes.raw("", _table(shown.frame[list(shown.columns)]), format="html"),
            nodes.paragraph("", "", nodes.emphasis("", provenance(shown))),
        ]


def provenance(shown: Shown) -> str:
    """Where, when and with what a recording was made, in a sentence, from its rows."""
    rows = shown.frame
    counts = sorted(rows["num_ranks"].unique())
    ranks = f"{' and '.join(map(str, counts))} rank{'s' * (counts != [1])}"
    devices = "; ".join(sorted(map(str, rows["device"].unique())))
    links = " and ".join(sorted({link for link in rows["link"] if not link.startswith("none")})) or "no messages"
    day = min(rows["started_at"])[:16].replace("T", " ")
    first = rows.iloc[0]
    return (
        f"{recorded_badge(shown.box)}: {day} UTC, {devices}, {ranks}, {links}, "
        f"torch {first.torch_version}, NCCL {first.nccl_version}, Python {first.python_version}. "
        f"The file is tplab/lab/recorded/{shown.box}/{shown.step}.csv."
    )


def _table(frame: pd.DataFrame) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in frame.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in frame.to_numpy())
    table = f'<table class="table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<details class="tplab-numbers"><summary>The numbers</summary><div>{table}</div></details>'


def _cell(value: Any) -> str:
    return escape(
        number(value, 4) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )
