"""What it costs to start ranks, and to call warm ones."""

import math

import pandas as pd
import plotly.graph_objects as go

from tplab.lab import style
from tplab.lab.figures import marks

_PHASES = {
    "interpreter": (style.IDLE, "/"),
    "import torch": (style.FORWARD, ""),
    "context": (style.DECODE, "."),
    "process group": (style.POINT_TO_POINT, "x"),
    "first collective": (style.COLLECTIVE, "\\"),
}


def launch_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """One bar per rank, of the phases of its start.

    Args:
        frame: of ``tplab.cluster.launch_phases``.
    """
    ranks = [f"rank {rank}" for rank in sorted(frame["rank"].unique())]
    figure = go.Figure()
    for phase, rows in frame.groupby("phase", sort=False):
        colour, shape = _PHASES.get(str(phase), (style.MUTED, ""))
        figure.add_bar(
            y=[f"rank {rank}" for rank in rows["rank"]],
            x=rows["seconds"],
            base=rows["start_s"],
            orientation="h",
            name=str(phase),
            marker={"color": colour, "line": {"color": "white", "width": 1}},
            marker_pattern={"shape": shape, "fgcolor": style.INK, "fillmode": "overlay"},
            customdata=rows["seconds"],
            hovertemplate="%{y}: " + str(phase) + " %{customdata:.2f} s<extra></extra>",
        )
    figure.update_layout(barmode="overlay", bargap=0.4)
    figure.update_xaxes(title="seconds since the ranks were started", rangemode="tozero")
    figure.update_yaxes(categoryorder="array", categoryarray=ranks[::-1])
    return style.card(figure, title="Starting ranks costs seconds", badge=badge)


def explain_launch(frame: pd.DataFrame) -> str:
    """The figure in a few sentences, right for gloo and for NCCL."""
    last = frame[frame["last"]].set_index("phase")["seconds"]
    total, first = last.sum(), frame.iloc[0]
    ranks = "The rank was" if first["num_ranks"] == 1 else f"The {first['num_ranks']} ranks were"
    said = [f"{ranks} ready after {total:.1f} s, {last['import torch'] / total:.0%} of it importing torch."]
    if first["backend"] == "nccl":
        said.append(
            f"The GPU's context is made meanwhile ({last['context']:.2f} s were left of it). NCCL's bootstrap took "
            f"{last['process group']:.2f} s once every rank had come, and the first all-reduce, in which it opens its "
            f"channels, {last['first collective']:.2f} s."
        )
    else:
        said.append(f"Connecting took {last['process group']:.2f} s once every rank had come.")
    return " ".join(said)


def explain_calls(calls: pd.DataFrame, launch: pd.DataFrame) -> str:
    """What a call to warm ranks consists of, and what it would be to start ranks for it.

    Args:
        calls: of ``tplab.cluster.measure_calls``.
        launch: of ``tplab.cluster.launch_phases``.
    """
    call_ms, start_s = calls["call_ms"].median(), launch[launch["last"]]["seconds"].sum()
    inside, outside = calls["function_ms"].median(), calls["overhead_ms"].median()
    return (
        f"A call took {call_ms:.1f} ms (median of {len(calls)}): {inside:.1f} ms in the function on the slowest rank, "
        f"{outside:.1f} ms on the way there and back, each a median of its own. "
        f"Starting the ranks took {start_s:.1f} s, as long as {1e3 * start_s / call_ms:,.0f} calls."
    )


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
    if prediction_ms is not None and prediction_ms > 0:  # nothing else has a place on a logarithmic axis
        figure.add_hline(y=prediction_ms, line={"color": style.BACKWARD, "width": 3})
        # Of its own: for the annotation of a line plotly takes the value itself, and puts it at ten to the power of it.
        words = {"text": "your prediction", "xref": "paper", "x": 1, "xanchor": "right", "yanchor": "bottom"}
        figure.add_annotation(y=math.log10(prediction_ms), showarrow=False, **words)
    figure.update_xaxes(title="call")
    shown = [*frame["call_ms"], *frame["function_ms"], *([] if prediction_ms is None else [prediction_ms])]
    figure.update_yaxes(title="milliseconds", type="log", **style.log_ticks(shown))
    return style.card(figure, title="Calling warm ranks costs milliseconds", badge=badge)
