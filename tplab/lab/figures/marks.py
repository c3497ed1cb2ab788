"""What the lab's figures are drawn with: bars, lines, points and words, each added to a figure by one call.

``hover`` is what is said of a mark under the pointer, as a template of plotly's; its name stands beside that, unless
there is an ``<extra>``. Without ``hover`` nothing is said. Further keywords go to plotly as they are.
"""

from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go

from tplab.lab import style


def bars(
    figure: go.Figure, x: Any, y: Any, name: str, colour: str, pattern: str = "", *, hover: str, **more: Any
) -> None:
    """Bars of a colour, with a pattern over it.

    Args:
        figure: what is added to.
        x, y: values, one per mark.
        name: what the legend calls it.
        colour, pattern: look of the bars.
        hover: words under the pointer.
    """
    marker = style.bar_marker(colour, pattern)
    figure.add_bar(x=x, y=y, name=name, marker=marker, **_said(hover, name), **more)


def line(
    figure: go.Figure,
    x: Any,
    y: Any,
    name: str,
    colour: str,
    dash: str = "solid",
    *,
    width: float = 2,
    hover: str = "",
    **more: Any,
) -> None:
    """A line, whose points are seen where there is a ``marker`` for them.

    Args:
        figure: what is added to.
        x, y: values, one per mark.
        name: what the legend calls it.
        colour, dash, width: look of the line; width in pixels.
        hover: words under the pointer.
    """
    look = {"color": colour, "dash": dash, "width": width}
    mode = "lines+markers" if "marker" in more else "lines"
    figure.add_scatter(x=x, y=y, name=name, mode=mode, line=look, **_said(hover, name), **more)


def points(
    figure: go.Figure,
    x: Any,
    y: Any,
    name: str,
    colour: str,
    symbol: str = "circle",
    *,
    size: float = 8,
    edge: str = "",
    hover: str = "",
    **more: Any,
) -> None:
    """Points without a line between them; ``edge`` is the colour of their outline.

    Args:
        figure: what is added to.
        x, y: values, one per mark.
        name: what the legend calls it.
        colour, symbol, size, edge: look of the points; size in pixels.
        hover: words under the pointer.
    """
    marker = {
        "color": colour,
        "symbol": symbol,
        "size": size,
        **({"line": {"color": edge, "width": 1}} if edge else {}),
    }
    figure.add_scatter(x=x, y=y, name=name, mode="markers", marker=marker, **_said(hover, name), **more)


def predictions(figure: go.Figure, x: Any, y: Any, name: str, *, size: float = 11, hover: str, **more: Any) -> None:
    """What a model says, as yellow diamonds beside what was measured.

    Args:
        figure: what is added to.
        x, y: values, one per mark.
        name: what the legend calls it.
        size: of a diamond, in pixels.
        hover: words under the pointer.
    """
    points(figure, x, y, name, style.BACKWARD, "diamond", size=size, edge=style.INK, hover=hover, **more)


def note(figure: go.Figure, x: Any, y: Any, text: str, *, size: float = 11, colour: str = "", **more: Any) -> None:
    """Words at a place, without an arrow.

    Args:
        figure: what is added to.
        x, y: the place.
        text: the words.
        size, colour: of the letters; size in pixels.
    """
    font = {"size": size, **({"color": colour} if colour else {})}
    figure.add_annotation(x=x, y=y, text=text, showarrow=False, font=font, **more)


def apart(pieces: Iterable[Iterable[Any]]) -> list[Any]:
    """Pieces of a line one after another with a gap after each: one trace is drawn sooner than one for each piece."""
    return [value for piece in pieces for value in (*piece, None)]


def _said(hover: str, name: str) -> dict[str, str]:
    if not hover:
        return {"hoverinfo": "skip"}
    return {"hovertemplate": hover if "<extra>" in hover else f"{hover}<extra>{name}</extra>"}
