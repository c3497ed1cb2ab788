"""Repeated timings of one collective."""

import pandas as pd
import plotly.graph_objects as go

from tplab.lab import style

_POINTS_SHOWN = 800


def timings_figure(frame: pd.DataFrame, *, title: str, badge: str) -> go.Figure:
    """Each repetition's time (the slowest rank's), the median and the 95th percentile.

    Args:
        frame: rows of ``repeat`` and ``max_us``; long ones are thinned for drawing, the statistics use all rows.
    """
    figure = go.Figure()
    if not frame.empty:
        shown = frame.iloc[:: max(1, len(frame) // _POINTS_SHOWN)]
        figure.add_scatter(
            x=shown["repeat"],
            y=shown["max_us"],
            mode="markers",
            name=f"{len(frame):,} repetitions, slowest rank of each",
            marker={"color": style.COLLECTIVE, "size": 7, "opacity": 0.65},
            hovertemplate="repetition %{x}: %{y:.1f} µs<extra></extra>",
        )
        for value, name, dash in (
            (frame["max_us"].median(), "median", "solid"),
            (frame["max_us"].quantile(0.95), "95th percentile", "dot"),
        ):
            figure.add_scatter(
                x=[frame["repeat"].min(), frame["repeat"].max()],
                y=[value, value],
                mode="lines",
                name=f"{name} {value:,.1f} µs",
                line={"color": style.FORWARD, "dash": dash, "width": 2},
                hovertemplate=f"{name} {value:,.1f} µs<extra></extra>",
            )
    figure.update_xaxes(title="repetition")
    figure.update_yaxes(title="microseconds", type="log", **style.log_ticks(frame["max_us"]))
    return style.card(figure, title=title, badge=badge)
