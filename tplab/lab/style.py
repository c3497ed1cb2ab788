"""One look for everything the lab shows: colours, the figure card, the badge.

Figures are opaque white cards in both themes: plotly writes its colours into the stored figure, so a figure that took
the theme of the day it was made would be unreadable in the other. HTML around them uses JupyterLab's own CSS variables
and follows the theme.
"""

from typing import Final

import plotly.graph_objects as go

FORWARD: Final = "#0B3D84"
DECODE: Final = "#74C1FB"
BACKWARD: Final = "#FFC813"
WEIGHT_GRADIENT: Final = "#007E5D"
COLLECTIVE: Final = "#B21405"
POINT_TO_POINT: Final = "#C7719E"
IDLE: Final = "#E9EBEE"
INK: Final = "#1F2430"
MUTED: Final = "#5B6472"

PANEL_CONTROLS_WIDTH: Final = "290px"

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"


def card(figure: go.Figure, *, title: str, badge: str, height: int = 380) -> go.Figure:
    """Give a figure the lab's look, a title and the badge of its numbers; returns the same figure."""
    axis = {"gridcolor": "#E4E7EB", "zeroline": False, "linecolor": "#AEB6C1", "ticks": "outside", "automargin": True}
    figure.update_layout(
        template="none",
        title={"text": title, "x": 0.0, "xref": "paper", "xanchor": "left", "y": 0.97, "yanchor": "top"},
        title_font={"size": 16, "color": INK},
        font={"family": _FONT, "size": 13, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        height=height,
        margin={"l": 70, "r": 24, "t": 78, "b": 56},
        legend={"orientation": "h", "x": 0.0, "y": -0.18, "yanchor": "top"},
        hoverlabel={"font": {"family": _FONT}},
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.add_annotation(
        text=f"<b>{badge}</b>",
        xref="paper",
        yref="paper",
        x=0.0,
        y=1.0,
        xanchor="left",
        yanchor="bottom",
        yshift=6,
        showarrow=False,
        font={"size": 11, "color": "white"},
        bgcolor=badge_colour(badge),
        borderpad=3,
    )
    return figure


def badge_colour(badge: str) -> str:
    """Live, recorded and modelled numbers differ at a glance, besides in words."""
    if badge.startswith("LIVE"):
        return WEIGHT_GRADIENT
    return FORWARD if badge.startswith("RECORDED") else MUTED
