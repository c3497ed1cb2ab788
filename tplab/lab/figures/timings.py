"""Repeated timings of one collective."""

import pandas as pd
import plotly.graph_objects as go

from tplab.lab import style
from tplab.lab.figures import marks

_POINTS_SHOWN = 800


def timings_figure(frame: pd.DataFrame, *, title: str, badge: str) -> go.Figure:
    """Each repetition's time (the slowest rank's), the median and the 95th percentile.

    Args:
        frame: rows of ``repeat`` and ``max_us``; long ones are thinned for drawing, the statistics use all rows.
    """
    figure = go.Figure()
    if not frame.empty:
        shown = frame.iloc[:: max(1, len(frame) // _POINTS_SHOWN)]
        name, hover = f"{len(frame):,} repetitions, slowest rank of each", "repetition %{x}: %{y:.1f} µs<extra></extra>"
        x, y = shown["repeat"], shown["max_us"]
        marks.points(figure, x, y, name, style.COLLECTIVE, hover=hover, size=7, marker_opacity=0.65)
        ends = [frame["repeat"].min(), frame["repeat"].max()]
        for value, name, dash in (
            (frame["max_us"].median(), "median", "solid"),
            (frame["max_us"].quantile(0.95), "95th percentile", "dot"),
        ):
            said = f"{name} {value:,.1f} µs"
            marks.line(figure, ends, [value, value], said, style.FORWARD, dash, hover=f"{said}<extra></extra>")
    figure.update_xaxes(title="repetition")
    figure.update_yaxes(title="microseconds", type="log", **style.log_ticks(frame["max_us"]))
    return style.card(figure, title=title, badge=badge)
