"""A place for a figure inside a panel: one plot in the page, which ``Plotly.react`` changes.

Not an Output widget that is handed plotly's MIME bundle: its plot is thrown away and made anew at every move of a
slider. And not plotly's ``FigureWidget``, which brings plotly.js (5 MB) along with each figure: JupyterLab, Notebook
and Voila have it in the page already, as the renderer of plain figures. Front ends that have not ask this kernel for it
once per page.
"""

import json
import zlib
from html import unescape
from pathlib import Path
from re import sub
from typing import Any

import anywidget
import ipywidgets as widgets
import plotly.graph_objects as go
import traitlets

_COMPRESSED_FROM = 16_384  # bytes; below, compressing takes longer than sending
_ALT_CHARACTERS = 900


class FigureView(anywidget.AnyWidget):
    """Shows one figure at a time; may be set from any thread. ``figure`` is the figure shown, ``alt`` its description
    for people who do not see it.

    Args:
        min_height: pixels that are kept free before there is a figure.
    """

    _esm = Path(__file__).with_suffix(".js")
    _plot = traitlets.Bytes(b"").tag(sync=True)
    alt = traitlets.Unicode("").tag(sync=True)

    def __init__(self, *, min_height: int) -> None:
        # A least height before there is a figure: the page must not jump when it comes.
        layout = widgets.Layout(flex="1 1 auto", width="auto", min_width="280px", min_height=f"{min_height}px")
        super().__init__(layout=layout)
        self.figure: go.Figure | None = None
        self.add_class("tplab-figure")
        self.on_msg(self._on_message)

    def show(self, figure: go.Figure, *, alt: str = "") -> None:
        """Replace the figure.

        Args:
            figure: the new one.
            alt: what it shows, in words (HTML is taken out); its title by default.
        """
        self.figure = figure
        height = figure.layout.height
        with self.hold_sync():
            if height:
                self.layout.min_height = f"{height:.0f}px"
            self.alt = described(figure, alt)
            self._plot = packed(figure)

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        if content == {"kind": "plotly.js"}:
            from plotly.offline import get_plotlyjs

            # Compressed also because servers drop what comes in at more than 1 MB/s for some seconds.
            self.send({"kind": "plotly.js"}, [zlib.compress(get_plotlyjs().encode(), level=6)])


def packed(figure: go.Figure) -> bytes:
    """Data and layout as plotly's own encoder writes them; compressed if that is long."""
    from plotly.io.json import to_json_plotly

    text: bytes = to_json_plotly(figure.to_dict()).encode()
    return text if len(text) < _COMPRESSED_FROM else zlib.compress(text, level=1)


def unpacked(plot: bytes) -> dict[str, Any]:
    """What the page makes of it."""
    content: dict[str, Any] = json.loads(plot if plot.startswith(b"{") else zlib.decompress(plot))
    return content


def described(figure: go.Figure, words: str) -> str:
    """Title and words as one plain text, for an ``aria-label``."""
    title = plain(figure.layout.title.text or "")
    text = ". ".join(filter(None, (title, plain(words)))) or "Figure"
    return text if len(text) <= _ALT_CHARACTERS else f"{text[: _ALT_CHARACTERS - 2]} …"


def plain(html: str) -> str:
    """Text of some HTML: tags out, cells and lines apart."""
    apart = sub(r"</(?:td|th|div|p|li|tr)>|<br\s*/?>", " ", html)
    return " ".join(unescape(sub(r"<[^>]+>", "", apart)).split())
