"""One look for everything the lab shows: colours, the figure card, the badge.

Stored figures are opaque white cards in both themes: plotly writes its colours into them, so a figure that took the
theme of the day it was made would be unreadable in the other. The same figures in panels follow the theme (see
``panels/figure_view.js``), as the HTML around them does, by JupyterLab's own CSS variables.
"""

import math
from collections.abc import Iterable
from typing import Any, Final

import plotly.graph_objects as go
import plotly.io as pio

from tplab.shown import number

FORWARD: Final = "#0B3D84"
DECODE: Final = "#74C1FB"
BACKWARD: Final = "#FFC813"
WEIGHT_GRADIENT: Final = "#007E5D"
COLLECTIVE: Final = "#B21405"
POINT_TO_POINT: Final = "#C7719E"
IDLE: Final = "#E9EBEE"
INK: Final = "#1F2430"
MUTED: Final = "#5B6472"
INK_ON_FILL: Final = "#1F2431"
"""Ink of text that stands on a pale fill. ``INK`` follows the theme of the page in live plots, this does not: the two
are told apart by their last digit."""

PLOT_CONFIG: Final[dict[str, Any]] = {"displaylogo": False, "modeBarButtons": [["toImage"]], "showSendToCloud": False}
"""plotly's bar in the lab's figures: the camera, and nothing that leaves the page."""
for _renderer in ("plotly_mimetype", "notebook", "notebook_connected"):
    pio.renderers[_renderer].config = dict(PLOT_CONFIG)  # a figure cannot carry it

PANEL_CONTROLS_WIDTH: Final = "290px"

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"


def card(figure: go.Figure, *, title: str, badge: str, height: int = 380) -> go.Figure:
    """Give a figure the lab's look, a title and the badge of its numbers; returns the same figure."""
    axis = {
        "gridcolor": "#E4E7EB",
        "zeroline": False,
        "linecolor": "#AEB6C1",
        "ticks": "outside",
        "automargin": True,
        "title_font": {"size": 13, "color": INK},
        "title_standoff": 10,
        "separatethousands": True,  # as everywhere in the lab
        "exponentformat": "none",  # 15,000 and not 15k
    }
    figure.update_layout(
        template="none",
        title={"text": title, "x": 0.0, "xref": "paper", "xanchor": "left", "y": 0.97, "yanchor": "top"},
        title_font={"size": 16, "color": INK},
        font={"family": _FONT, "size": 13, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        height=height,
        margin={"l": 70, "r": 24, "t": 70, "b": 60},
        # At the foot of the figure: plotly keeps room for as many rows as the width asks for, also when that changes.
        legend={
            "orientation": "h",
            "x": 0.0,
            "y": 0.0,
            "yref": "container",
            "yanchor": "bottom",
            "traceorder": "normal",
        },
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


def bar_marker(colour: str, pattern: str = "", **more: Any) -> dict[str, Any]:
    """Marker of a bar in ``colour``, with white lines of ``pattern`` over it: kinds differ by more than colour."""
    # Without "overlay" plotly takes the colour for the lines, and leaves the bar itself transparent.
    overlay = {"shape": pattern, "fillmode": "overlay", "fgcolor": "white", "fgopacity": 0.6, "solidity": 0.15}
    return {"color": colour, **({"pattern": overlay} if pattern else {}), **more}


def text_on(colour: str) -> str:
    """White or ink, whichever is read more easily on a ``#RRGGBB``: by its luminance, as sRGB weighs it."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else INK_ON_FILL


def log_ticks(values: Iterable[float]) -> dict[str, list[Any]]:
    """Ticks at 1, 2 and 5 times powers of ten around ``values``, written out: plotly's own say 2, 5, 2, 5."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    return {"tickvals": ticks, "ticktext": [number(tick, 10) for tick in ticks]}


def badge_colour(badge: str) -> str:
    """Live, recorded and modelled numbers differ at a glance, besides in words."""
    if badge.startswith("LIVE"):
        return WEIGHT_GRADIENT
    return FORWARD if badge.startswith("RECORDED") else MUTED
