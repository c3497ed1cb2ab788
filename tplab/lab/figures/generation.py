"""Generation: where each layout's time goes. The timeline of one is ``gantt`` of its trace."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from tplab.lab import style
from tplab.lab.figures import marks
from tplab.shown import time_text

if TYPE_CHECKING:
    from tplab.models.result import Generation

_PARTS = (
    ("compute", "computing", style.FORWARD, ""),
    ("collective", "collectives", style.COLLECTIVE, "/"),
    ("graph", "CUDA graphs (computing and collectives)", style.FORWARD, "x"),
    ("wait", "waiting for another stage", style.IDLE, ""),
)


def layouts_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """Time per output token of every layout, cut by the shares that computing, collectives and waiting have of the run.

    Below each layout stands the time to its first token. What a line stands above its bar is bookkeeping.

    Args:
        frame: as ``layouts_frame`` gives it.
    """
    figure = go.Figure()
    sizes = zip(frame["tp"].tolist(), frame["pp"].tolist(), frame["micro_batches"].tolist(), strict=True)
    labels = [_label(tp, pp, k) for tp, pp, k in sizes]
    edge = {"color": style.MUTED, "width": 0.5}
    for part, name, colour, pattern in _PARTS:
        share = frame[f"{part}_share"]
        if part == "graph" and not share.any():
            continue  # collectives have times of their own in all of these
        hover = "%{y:.2f} ms, %{customdata:.0f} % of the time<extra>" + part + "</extra>"
        y, share_pct = frame["tpot_ms"] * share, 100 * share
        marks.bars(figure, labels, y, name, colour, pattern, customdata=share_pct, marker_line=edge, hover=hover)
    figure.add_scatter(
        x=labels,
        y=frame["tpot_ms"],
        mode="markers",
        name="time per output token",
        marker={"symbol": "line-ew", "size": 34, "line": {"width": 2, "color": style.INK}},
        hovertemplate="%{y:.2f} ms per token<extra></extra>",
        cliponaxis=False,
    )
    figure.update_layout(barmode="stack", bargap=0.45)
    told = [f"{label}<br>first: {time_text(1e3 * ms)}" for label, ms in zip(labels, frame["ttft_ms"], strict=True)]
    title = "layout, micro-batches in flight, and the time to the first token"
    figure.update_xaxes(title=title, type="category", tickvals=labels, ticktext=told)
    highest = float(frame["tpot_ms"].max()) if len(frame) else 1.0
    figure.update_yaxes(title="milliseconds per output token", range=[0, 1.2 * highest])
    return style.card(figure, title="Time per output token, and where it goes", badge=badge, height=460)


def explain_stages(generations: "Sequence[Generation]") -> str:
    """Sentences on the stages of runs of one model in one layout: how long they were idle with so many micro-batches in
    flight, and what more of them gave."""
    lines = []
    for made in generations:
        k, p = made.num_micro_batches, made.layout.pp
        if p == 1:
            lines.append("One stage waits for no other.")
            continue
        text = f"With {k} micro-batch{'es' * (k != 1)} in flight each of {p} stages was idle for "
        text += f"{made.trace().idle_over_total:.0%} of the time, where "
        if k < p:
            text += f"stages alike and messages that take no time would leave {1 - k / p:.0%}."
        else:
            text += "stages alike and messages that take no time would idle only to fill and to drain."
        lines.append(text)
    first, last = generations[0], generations[-1]
    if first.num_micro_batches < last.num_micro_batches:
        ratio = last.output_tokens_per_s / first.output_tokens_per_s
        lines.append(
            f"{last.num_micro_batches} in flight gave {ratio:.2f} times the tokens per second of "
            f"{first.num_micro_batches}."
        )
    return " ".join(lines)


def _label(tp: int, pp: int, k: int) -> str:
    return f"TP {tp} × PP {pp}" + (f", {k} in flight" if pp > 1 else "")
