"""A hang: who came to which collective, who waits there, and who is missing."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from tplab.lab import style

_LOOKS = {
    "done": ("done", style.IDLE, ""),
    "called": ("started, not finished", style.DECODE, ""),
    "waits": ("waits", style.COLLECTIVE, "/"),
    "missing": ("is missing", style.BACKWARD, "x"),
}


def hang_figure(frame: pd.DataFrame, *, title: str, badge: str, ranks: Sequence[int] = ()) -> go.Figure:
    """Ranks from top to bottom, what they called from left to right.

    Args:
        frame: one row per rank and call, as ``hang_frame`` gives them: ``rank``, ``call``, ``label``, ``state``.
        title: of the figure.
        badge: of its numbers.
        ranks: those of which no call is known, too; they have an empty row.
    """
    figure = go.Figure()
    calls = list(dict.fromkeys(frame["call"]))
    for state, (name, colour, pattern) in _LOOKS.items():
        rows = frame[frame["state"] == state]
        if not len(rows):
            continue
        figure.add_bar(
            base=[calls.index(call) + 0.03 for call in rows["call"]],
            x=[0.94] * len(rows),
            y=[f"rank {rank}" for rank in rows["rank"]],
            orientation="h",
            name=name,
            marker=style.bar_marker(colour, pattern),
            text=rows["label"],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            # Grey has another shade in a dark page; plotly then chooses what can be read on it.
            textfont={"size": 12} if colour == style.IDLE else {"color": style.text_on(colour), "size": 12},
            hovertemplate=f"%{{y}}: %{{text}}<extra>{name}</extra>",
        )
    ranks = sorted({*frame["rank"], *ranks})
    figure.update_layout(barmode="overlay", bargap=0.3, showlegend=True)
    for place in range(1, len(calls)):
        figure.add_vline(x=place, line={"color": "#E4E7EB", "width": 1})
    style.card(figure, title=title, badge=badge, height=190 + 44 * len(ranks))
    figure.update_yaxes(categoryorder="array", categoryarray=[f"rank {rank}" for rank in ranks][::-1], ticks="")
    figure.update_yaxes(range=[-0.5, len(ranks) - 0.5], tickvals=[f"rank {rank}" for rank in ranks])
    figure.update_xaxes(showticklabels=False, showgrid=False, ticks="", range=[0, max(2, len(calls))])
    figure.update_xaxes(title="the last calls of each rank, in order: what stands in one column belongs together")
    return figure
