"""Times of requests that arrive at random, as shares that take longer."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tplab.lab import style
from tplab.lab.figures import marks
from tplab.shown import duration, number
from tplab.topology.advisor.arrivals import PERCENTILES

_COLUMNS = {
    "ttft_ms": ("milliseconds to the first token", style.COLLECTIVE),
    "tpot_ms": ("milliseconds per output token", style.FORWARD),
}
_LEVELS = 200
_WIDE = 4
"""Times further apart than so many times have a logarithmic axis."""


def arrivals_figure(
    frame: pd.DataFrame,
    *,
    title: str,
    badge: str,
    ttft_limit_ms: float | None = None,
    tpot_limit_ms: float | None = None,
) -> go.Figure:
    """For each time to the first token and per token: the share of requests that took longer, down to one in all. A
    median is at 50 %, the 99th percentile at 1 %.

    Args:
        frame: as ``Arrivals.frame`` gives it: ``ttft_ms``, ``tpot_ms``; a column without numbers is left out.
        title, badge: words above.
        ttft_limit_ms, tpot_limit_ms: drawn as dashed lines.
    """
    columns = [name for name in _COLUMNS if frame[name].notna().any()]
    figure = make_subplots(rows=1, cols=max(1, len(columns)), shared_yaxes=True, horizontal_spacing=0.06)
    limits = {"ttft_ms": ttft_limit_ms, "tpot_ms": tpot_limit_ms}
    longer = np.geomspace(1.0, 1 / max(2, len(frame)), _LEVELS)
    for at, name in enumerate(columns, start=1):
        place: dict[str, Any] = {"row": 1, "col": at}
        said, colour = _COLUMNS[name]
        hover = f"%{{y:,.3~r}} % take longer than %{{x:,.3~r}} {said.replace('milliseconds', 'ms')}<extra></extra>"
        times = frame[name].quantile(1 - longer)
        marks.line(figure, times, 100 * longer, said, colour, hover=hover, showlegend=False, **place)
        tops = frame[name].quantile([of / 100 for of in PERCENTILES]).tolist()
        shares = [100 - of for of in PERCENTILES]
        marks.points(figure, tops, shares, said, colour, edge="white", hover=hover, showlegend=False, **place)
        limit = limits[name]
        ends = [times.min(), times.max(), *([limit] if limit else [])]
        wide = max(ends) > _WIDE * min(ends)
        low, high, *limit_at = np.log10(ends) if wide else ends
        for of, ms, share in zip(PERCENTILES, tops, shares, strict=True):
            where: dict[str, Any] = {"xanchor": "left", "xshift": 6, "yshift": 8, **place}
            marks.note(figure, np.log10(ms) if wide else ms, np.log10(share), f"p{of} {duration(ms)}", **where)
        if limit:
            figure.add_vline(x=limit, line={"dash": "dash", "color": style.INK, "width": 2}, **place)
            marks.note(figure, limit_at[0], 2, f"limit, {number(limit)} ms", xanchor="right", xshift=-4, **place)
        low, high = min([low, *limit_at]), max([high, *limit_at])
        spare = (high - low) / 5 or abs(low) / 10
        look: dict[str, Any] = {"type": "log", **style.log_ticks(ends)} if wide else {}
        figure.update_xaxes(title=said, range=[low - spare / 4, high + spare], **look, **place)
    figure.update_yaxes(type="log", **style.log_ticks(pd.Series(100 * longer)))
    figure.update_yaxes(title="% of requests that take longer", row=1, col=1)
    style.card(figure, title=title, badge=badge, height=420)
    return figure
