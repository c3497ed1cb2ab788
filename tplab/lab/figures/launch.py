"""What it costs to start ranks, and to call warm ones."""

import pandas as pd
import plotly.graph_objects as go

from tplab.lab import style
from tplab.lab.figures import marks

_PHASES = {
    "interpreter": (style.IDLE, "/"),
    "import torch": (style.FORWARD, ""),
    "process group": (style.POINT_TO_POINT, "x"),
    "first all-reduce": (style.COLLECTIVE, "."),
}


def predict_launch(num_ranks: int, one_rank_s: float, num_cores: int) -> float:
    """Seconds until ``num_ranks`` ranks are ready, from what one rank took.

    ``one_rank_s * max(1, num_ranks / num_cores)``: starting is CPU work (importing torch), so ranks start side by side
    as long as each has a core, and share the cores beyond. Leaves out disk caches, memory bandwidth and the rendezvous,
    so it is low for many ranks.
    """
    return one_rank_s * max(1.0, num_ranks / num_cores)


def launch_figure(frame: pd.DataFrame, *, badge: str, prediction_s: float | None = None) -> go.Figure:
    """Stacked phases per world size, the model's line over them, and the learner's guess for the last size.

    Args:
        frame: rows of ``num_ranks``, ``phase``, ``seconds``, ``num_cores``; must hold one rank, the model's base.
        prediction_s: the learner's guess for the largest world size, in seconds.
    """
    sizes = sorted(frame["num_ranks"].unique())
    labels = [str(n) for n in sizes]
    totals = frame.groupby("num_ranks")["seconds"].sum()
    figure = go.Figure()
    for phase, rows in frame.groupby("phase", sort=False):
        seconds = rows.set_index("num_ranks")["seconds"]
        colour, shape = _PHASES.get(str(phase), (style.MUTED, ""))
        figure.add_bar(
            x=labels,
            y=[seconds.get(n, 0.0) for n in sizes],
            name=str(phase),
            marker={"color": colour, "line": {"color": "white", "width": 1}},
            marker_pattern={"shape": shape, "fgcolor": style.INK, "fillmode": "overlay"},
            hovertemplate="%{x} ranks: " + str(phase) + " %{y:.2f} s<extra></extra>",
        )
    num_cores = int(frame["num_cores"].iloc[0])
    name = f"model: one rank × max(1, ranks / {num_cores} cores)"
    look, hover = {"symbol": "diamond", "size": 9}, "model %{y:.2f} s<extra></extra>"
    model = [predict_launch(n, totals[1], num_cores) for n in sizes]
    marks.line(figure, labels, model, name, style.INK, "dash", marker=look, hover=hover)
    if prediction_s is not None:
        x, y, hover = labels[-1:], [prediction_s], "your prediction %{y:.2f} s<extra></extra>"
        marks.points(figure, x, y, "your prediction", style.BACKWARD, "star", size=16, edge=style.INK, hover=hover)
    figure.update_layout(barmode="stack", bargap=0.5)
    figure.update_xaxes(title="ranks", type="category")
    figure.update_yaxes(title="seconds until the first result", rangemode="tozero")
    return style.card(figure, title="Starting ranks costs seconds", badge=badge)


def calls_figure(frame: pd.DataFrame, *, badge: str, prediction_ms: float | None = None) -> go.Figure:
    """Every call to warm ranks: the whole call and the function's own share, with medians and the learner's guess."""
    figure = go.Figure()
    for column, name, colour, symbol in (
        ("call_ms", "whole call, seen by the kernel", style.FORWARD, "circle"),
        ("function_ms", "the function itself, on the slowest rank", style.COLLECTIVE, "x"),
    ):
        median, hover = frame[column].median(), "call %{x}: %{y:.2f} ms<extra></extra>"
        name = f"{name} (median {median:.2f} ms)"
        marks.points(figure, frame["call"], frame[column], name, colour, symbol, hover=hover)
        figure.add_hline(y=median, line={"color": colour, "dash": "dot", "width": 1})
    if prediction_ms is not None:
        figure.add_hline(
            y=prediction_ms,
            line={"color": style.BACKWARD, "width": 3},
            annotation_text="your prediction",
            annotation_position="top right",
        )
    figure.update_xaxes(title="call")
    shown = [*frame["call_ms"], *frame["function_ms"], *([prediction_ms] if prediction_ms else [])]
    figure.update_yaxes(title="milliseconds", type="log", **style.log_ticks(shown))
    return style.card(figure, title="Calling warm ranks costs milliseconds", badge=badge)
