"""Pipelines in numbers: bubbles against micro-batches, prefills by their pieces, decoding rings by what is in flight.

Each has formula, simulation and, where there is one, measurement on the same axes.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from tplab.lab import style
from tplab.pipeline import formulas
from tplab.pipeline.build import build_schedule
from tplab.pipeline.simulation import simulate

_LINES = {
    "1f1b": (style.FORWARD, "solid", "circle"),
    "interleaved": (style.DECODE, "dash", "square"),
    "zb-h1": (style.WEIGHT_GRADIENT, "dashdot", "diamond"),
    "gpipe": (style.BACKWARD, "longdash", "triangle-up"),
    "forward-only": (style.POINT_TO_POINT, "longdashdot", "triangle-down"),
}


def bubble_frame(
    p: int, micro_batches: Sequence[int], schedules: Sequence[tuple[str, int]] = (("1f1b", 1), ("interleaved", 2))
) -> pd.DataFrame:
    """Bubbles (idle over total) by formula and by simulation, F = I = W, free messages.

    Args:
        schedules: names, each with its number of chunks; m that a schedule cannot do is left out.

    Returns:
        Rows of ``schedule``, ``chunks``, ``num_stages``, ``micro_batches``, ``formula``, ``simulated``.
    """
    rows = []
    for name, v in schedules:
        for m in micro_batches:
            try:
                schedule = build_schedule(name, p, m, v)
                formula = formulas.idle_over_total(name, p, m, v)
            except ValueError:
                continue
            rows.append((name, v, p, m, formula, simulate(schedule).idle_over_total))
    return pd.DataFrame(rows, columns=["schedule", "chunks", "num_stages", "micro_batches", "formula", "simulated"])


def bubble_figure(frame: pd.DataFrame, *, claimed: bool = True) -> go.Figure:
    """Bubbles against micro-batches: lines are formulas, marks are simulated.

    Args:
        frame: as :func:`bubble_frame` gives it.
        claimed: draw what the article says of GPipe, too.
    """
    figure = go.Figure()
    for _, rows in frame.groupby(["schedule", "chunks"], sort=False):
        name, v = str(rows["schedule"].iloc[0]), int(rows["chunks"].iloc[0])
        colour, dash, symbol = _LINES.get(name, (style.MUTED, "solid", "circle"))
        label = f"{name}, {v} chunks" if v > 1 else name
        figure.add_scatter(
            x=rows["micro_batches"],
            y=100 * rows["formula"],
            mode="lines",
            name=f"{label}, formula",
            line={"color": colour, "dash": dash, "width": 2},
            hovertemplate="m = %{x}: %{y:.1f} %<extra>" + f"{label}, formula</extra>",
        )
        figure.add_scatter(
            x=rows["micro_batches"],
            y=100 * rows["simulated"],
            mode="markers",
            name=f"{label}, simulated",
            marker={"color": colour, "symbol": symbol, "size": 9, "line": {"color": "white", "width": 1}},
            hovertemplate="m = %{x}: %{y:.1f} %<extra>" + f"{label}, simulated</extra>",
        )
    if claimed and len(frame):
        p, least, most = int(frame["num_stages"].iloc[0]), frame["micro_batches"].min(), frame["micro_batches"].max()
        x = list(range(int(least), int(most) + 1))
        figure.add_scatter(
            x=x,
            y=[100 * formulas.claimed_gpipe_bubble(p, m) for m in x],
            mode="lines",
            name="what the article claims for GPipe",
            line={"color": style.COLLECTIVE, "dash": "dot", "width": 2},
            hovertemplate="m = %{x}: %{y:.1f} %<extra>claimed for GPipe</extra>",
        )
    figure.update_xaxes(title="micro-batches m")
    figure.update_yaxes(title="bubble: idle / total", ticksuffix=" %", rangemode="tozero")
    p = int(frame["num_stages"].iloc[0]) if len(frame) else 0
    return style.card(figure, title=f"The bubble shrinks with micro-batches, {p} ranks", badge="MODEL", height=440)


def prefill_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """Makespan of a prefill against the number of micro-batches, or of one prompt against that of its chunks.

    Args:
        frame: as ``measure_serving`` gives it for a ``PrefillPlan`` or a ``ChunkedPrefillPlan``.
    """
    chunked = "chunks" in frame
    pieces = frame["chunks" if chunked else "micro_batches"] if len(frame) else pd.Series(dtype=int)
    labels = [str(count) for count in pieces]
    figure = go.Figure()
    if len(frame):
        _measured(figure, labels, frame["measured_ms"], style.FORWARD, "%{y:.1f} ms", idle=frame["idle_over_total"])
        _modelled(figure, labels, frame, "_ms", "%{y:.1f} ms")
    if chunked and len(frame):
        best = int(frame["simulated_ms"].argmin())
        _note(figure, best, max(frame["measured_ms"].iloc[best], frame["formula_ms"].iloc[best]), "least")
    what = "chunks of the prompt" if chunked else "micro-batches m"
    figure.update_layout(bargap=0.45)
    figure.update_xaxes(title=what, type="category")
    figure.update_yaxes(title="makespan, milliseconds", rangemode="tozero")
    title = "One prompt in chunks: fill the pipeline, or pay per chunk" if chunked else "Prefill: makespan"
    return style.card(figure, title=title, badge=badge, height=430)


def decode_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """Throughput of a decoding ring against what is in flight: below the needed k, the cliff.

    Args:
        frame: as ``measure_serving`` gives it for a ``DecodePlan``.
    """
    figure = go.Figure()
    labels = [str(k) for k in frame["in_flight"]] if len(frame) else []
    if len(frame):
        rates = pd.DataFrame(
            {f"{kind}_rate": frame["in_flight"] / frame[f"{kind}_ms"] * 1e3 for kind in _KINDS}
            | {"measured_rate": frame["steps_per_s"]}
        )
        idle = frame["measured_idle"]
        _measured(figure, labels, rates["measured_rate"], style.DECODE, "%{y:.1f} per second", idle=idle)
        _modelled(figure, labels, rates, "_rate", "%{y:.1f} per second")
        needed = int(frame["needed"].iloc[0])
        if str(needed) in labels:
            at = labels.index(str(needed))
            _note(figure, at, max(rates.iloc[at]), f"full from k = {needed}")
    figure.update_layout(bargap=0.45)
    figure.update_xaxes(title="micro-batches in flight k", type="category")
    figure.update_yaxes(title="micro-batch steps per second", rangemode="tozero")
    return style.card(figure, title="Decoding ring: the cliff below a full ring", badge=badge, height=430)


_KINDS = ("formula", "simulated")


def _measured(
    figure: go.Figure, labels: Sequence[str], values: Any, colour: str, text: str, *, idle: "pd.Series[float]"
) -> None:
    figure.add_bar(
        x=labels,
        y=values,
        name="measured, and its idle share",
        marker=style.bar_marker(colour, "" if colour == style.FORWARD else "."),
        text=[f"{share:.0%} idle" for share in idle],
        textposition="inside",
        insidetextanchor="start",
        textangle=0,
        textfont={"color": "white" if colour == style.FORWARD else style.INK},
        hovertemplate=text + ", %{text}<extra>measured</extra>",
    )


def _modelled(figure: go.Figure, labels: Sequence[str], frame: pd.DataFrame, unit: str, text: str) -> None:
    figure.add_scatter(
        x=labels,
        y=frame[f"formula{unit}"],
        mode="lines",
        name="formula",
        line={"color": style.INK, "dash": "dash", "width": 2},
        hovertemplate=text + "<extra>formula</extra>",
    )
    figure.add_scatter(
        x=labels,
        y=frame[f"simulated{unit}"],
        mode="markers",
        name="simulated",
        marker={"symbol": "diamond", "size": 11, "color": style.BACKWARD, "line": {"color": style.INK, "width": 1}},
        hovertemplate=text + "<extra>simulated</extra>",
    )


def _note(figure: go.Figure, position: int, height: float, text: str) -> None:
    """On a category axis, where plotly takes a label made of digits for a position."""
    figure.add_annotation(
        **{"x": position, "y": height, "text": text, "showarrow": True, "arrowhead": 2, "arrowcolor": style.INK},
        **{"ax": 0, "ay": -34, "font": {"size": 12, "color": style.INK}, "bgcolor": "white"},
    )
