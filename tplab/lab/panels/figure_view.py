"""A place for a figure inside a panel.

An Output widget that is handed plotly's MIME bundle, not a ``FigureWidget``: that one sends plotly.js (5 MB) over the
kernel's socket for every page, stores it in the notebook, and needs anywidget in the front end. The MIME renderer is
part of the page already, and the same bundle is what a plain figure stores.
"""

from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go

_MARGIN = 10  # pixels that a page puts around an output


class FigureView(widgets.Output):
    """Shows one figure at a time; may be set from any thread."""

    def __init__(self, *, min_height: int, **kwargs: Any) -> None:
        # A fixed least height: the page must not jump while one drawing replaces another.
        super().__init__(layout=widgets.Layout(flex="1 1 0", min_width="320px", min_height=f"{min_height}px"), **kwargs)
        self.figure: go.Figure | None = None

    def show(self, figure: go.Figure) -> None:
        """Replace the figure."""
        self.figure = figure
        bundle = {
            "application/vnd.plotly.v1+json": figure.to_plotly_json() | {"config": {"displaylogo": False}},
            "text/plain": repr(type(figure)),
        }
        # A figure higher than its place would get a scroll bar, and the words below it would stand across it.
        height = int(figure.layout.height or 0) + _MARGIN
        if height > int(self.layout.min_height.removesuffix("px")):
            self.layout.min_height = f"{height}px"
        self.outputs = ({"output_type": "display_data", "data": _plain(bundle), "metadata": {}},)


def _plain(bundle: dict[str, Any]) -> dict[str, Any]:
    """Arrays and numpy scalars as JSON knows them, through plotly's own encoder."""
    import json

    from plotly.utils import PlotlyJSONEncoder

    plain: dict[str, Any] = json.loads(json.dumps(bundle, cls=PlotlyJSONEncoder))
    return plain
