"""Generation: where each layout's time goes. The timeline of one is ``gantt`` of its trace."""

import pandas as pd
import plotly.graph_objects as go

from tplab.lab import style
from tplab.lab.figures import marks

_PARTS = (
    ("compute", "computing", style.FORWARD, ""),
    ("collective", "collectives", style.COLLECTIVE, "/"),
    ("graph", "CUDA graphs (computing and collectives)", style.FORWARD, "x"),
    ("wait", "waiting for another stage", style.IDLE, ""),
)


def layouts_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """Time per output token of every layout, cut by the shares that computing, collectives and waiting have of the run.

    Labels above the bars are the time to the first token. What a line stands above its bar is bookkeeping.

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
        mode="markers+text",
        name="time per output token (text: to the first)",
        text=[f"{ms:.0f} ms" for ms in frame["ttft_ms"]],
        textposition="top center",
        marker={"symbol": "line-ew", "size": 34, "line": {"width": 2, "color": style.INK}},
        hovertemplate="%{y:.2f} ms per token; first after %{text}<extra></extra>",
        cliponaxis=False,
    )
    figure.update_layout(barmode="stack", bargap=0.45)
    figure.update_xaxes(title="layout (k micro-batches in flight)", type="category")
    highest = float(frame["tpot_ms"].max()) if len(frame) else 1.0
    figure.update_yaxes(title="milliseconds per output token", range=[0, 1.2 * highest])
    return style.card(figure, title="The same tokens in every layout", badge=badge, height=440)


def _label(tp: int, pp: int, k: int) -> str:
    return f"TP {tp} x PP {pp}" + (f", k={k}" if pp > 1 else "")
