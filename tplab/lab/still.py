"""A picture of every live thing, for pages without its kernel.

A widget's view is nothing without its model: reopened the next day or read on a web site, it is an error or a blank. So
whatever is shown live is followed by outputs that need no kernel, its *still*: HTML words and the figure as a plain
figure. While the live view is in the page, the page hides them; on save the view is taken out (``tplab.lab.saving``),
and they remain. Not one output with both in it: a change of an output draws all of it anew, so the live panel would
lose its focus whenever its picture is renewed.
"""

import json
import logging
import threading
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final, TypeAlias

import ipywidgets as widgets
import plotly.graph_objects as go

from tplab.lab.panels import html
from tplab.lab.panels.figure_view import FigureView, described, plain
from tplab.lab.panels.versions import let_colab_load_widgets, on_colab, view_of
from tplab.lab.saving import MARK, PLOTLY
from tplab.lab.style import PLOT_CONFIG

Bundle = Mapping[str, Any]
Part: TypeAlias = str | go.Figure | Bundle
"""HTML, a figure, or the MIME bundle of a picture."""

GO_ON: Final = "Run ▸ Run All Cells brings the controls back."
"""How to go on from a still."""
NO_VIEW: Final = "What moves here is not shown by this front end; what follows is a picture of it."
"""What a front end shows that has no widgets, in place of a panel: without it, the name of a Python class."""
AFTER_A_MOVE_S: Final = 2.5
"""A figure that a hand moves has settled after so many seconds."""

_SENDING = threading.Lock()


def _hiding(live: str, child: str) -> str:
    """The style that hides stills after a live view; places of outputs as CSS."""
    later = f"{live}:has(.tplab-live) ~ {child}"
    return f"<style>{later}:has(.tplab-still),{later}:has(.tplab-still-above) + {child}{{display:none}}</style>"


_STYLE = "".join(_hiding(child, child) for child in (".jp-OutputArea-child", ".output_area"))  # JupyterLab, Notebook 6
# On Colab each cell's outputs are a page of their own, and what they lie in is not documented: so any neighbours.
_COLAB_STYLE = _hiding(":root:not(:has(.jp-OutputArea)) *", "*")


_displayed: "weakref.WeakSet[Any]" = weakref.WeakSet()


class Stilled:
    """A widget with a still: put before the widget's class. ``settled()`` renews the still, from any thread."""

    _still_ids: tuple[str, ...] = ()
    _still_sent: tuple[str, ...] = ()
    _still_due = 0.0
    _still_waits = False

    def still(self) -> Sequence[Part]:
        """What a page without the kernel shows: by default the words and figures of the widget, in its order."""
        return list(parts_of(self))

    def still_figures(self) -> int:
        """How many figures ``still`` may come to have: places for them are made when the widget is displayed."""
        return figures_in(getattr(self, "children", ()))

    def settled(self, *, after_s: float = 0.0) -> None:
        """What is shown has changed, for a while at least: renew the still.

        Args:
            after_s: only if so many seconds pass without another change.
        """
        if not self._still_ids or self.comm is None:  # type: ignore[attr-defined]  # not displayed, or closed
            return
        if after_s == 0.0:
            _send(self)
            return
        self._still_due = time.monotonic() + after_s
        if not self._still_waits:
            self._still_waits = True
            threading.Thread(target=_send_when_due, args=(weakref.ref(self),), daemon=True, name="tplab-still").start()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        inherited = getattr(super(), "_repr_mimebundle_", None)
        return view_of(self) if inherited is None else inherited(**kwargs)  # ipywidgets 7 has none

    def _ipython_display_(self, **kwargs: Any) -> None:
        from IPython.display import publish_display_data

        let_colab_load_widgets()
        self.add_class("tplab-live")  # type: ignore[attr-defined]
        view = self._repr_mimebundle_(**kwargs)
        data, metadata = view if isinstance(view, tuple) else (view, None)  # an anywidget's has metadata
        publish_display_data({**data, "text/html": html.quiet(NO_VIEW)}, metadata)
        if not self._still_ids:
            _displayed.add(self)
            self._still_ids = tuple(uuid.uuid4().hex for _ in range(2 * self.still_figures() + 1))
        outputs = _outputs(self)
        self._still_sent = tuple(map(json.dumps, outputs))
        for name, (data, metadata) in zip(self._still_ids, outputs, strict=True):
            publish_display_data(data, metadata, transient={"display_id": name})


def renew() -> None:
    """Renew every still that was displayed, without waiting for what moves to settle."""
    for widget in list(_displayed):
        widget.settled()


def parts_of(widget: Any) -> Iterator[Part]:
    """Words and figures of the widgets in ``widget``, in their order, without controls and without what is hidden."""
    for child in getattr(widget, "children", ()):
        if child.layout.display == "none":
            continue
        if isinstance(child, Stilled):
            yield from child.still()
        elif isinstance(child, FigureView):
            if child.figure is not None:
                yield child.figure
        elif isinstance(child, widgets.HTML):
            yield child.value
        elif isinstance(child, widgets.Output):
            yield from (_html_of(output) for output in child.outputs)
        elif not hasattr(child, "value"):  # or it is a control, whose labels say nothing without its boxes
            yield from parts_of(child)


def _html_of(output: Mapping[str, Any]) -> str:
    """What an Output widget holds, as HTML."""
    data = output.get("data", {})
    return data.get("text/html") or f"<pre>{escape(data.get('text/plain', output.get('text', '')))}</pre>"


def figures_in(children: Iterable[Any]) -> int:
    """How many figures the stills of some widgets may come to have."""
    return sum(
        1
        if isinstance(child, FigureView)
        else child.still_figures()
        if isinstance(child, Stilled)
        else figures_in(getattr(child, "children", ()))
        for child in children
    )


def _outputs(widget: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Data and metadata for each place of a still: words, figure, words, figure, ... words."""
    places: list[Any] = [""]
    count = len(widget._still_ids)
    for part in widget.still():
        if isinstance(part, str):
            places[-1] += part
        elif len(places) < count:
            places += [part, ""]
        elif isinstance(part, go.Figure):  # more than were foreseen when the widget was displayed
            places[-1] += html.quiet(f"A figure that has no place here: {described(part, '')}.")
    places = (places + [None, ""] * count)[:count]
    about = {"still": widget.model_id}
    outputs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number, place in enumerate(places):
        empty = place is None or place == ""
        if place is None or isinstance(place, str):
            above = " tplab-still-above" if number + 1 < count and number % 2 == 0 else ""
            style = "" if number else _STYLE + _COLAB_STYLE * on_colab()
            text = f'<div class="tplab-still{above}">{place or ""}</div>'
            data = {"text/html": f"{style}{text}", "text/plain": plain(place or "")}
        elif isinstance(place, go.Figure):
            data = figure_bundle(place, places[number + 1])
        else:
            data = dict(place)
        outputs.append((data, {MARK: about | ({"empty": True} if empty else {})}))
    return outputs


def figure_bundle(figure: go.Figure, words: str = "") -> dict[str, Any]:
    """A figure as a plain cell shows it, with its title and words for those who do not see it."""
    from plotly.io.json import to_json_plotly

    content = json.loads(to_json_plotly(figure.to_plotly_json()))
    bundle = {PLOTLY: content | {"config": PLOT_CONFIG}, "text/plain": described(figure, words)}
    if on_colab():  # whose page draws no figures by their MIME type
        bundle["text/html"] = figure.to_html(include_plotlyjs="cdn", config=PLOT_CONFIG)
    return bundle


def settings_line(words: str) -> str:
    """Which settings a still shows, and how to go on."""
    return html.quiet(f"{f'Settings: {words}. ' if words else ''}A picture of a live panel. {GO_ON}")


def _send(widget: Any) -> None:
    """Renew the outputs that differ. A fault in it is logged: no run and no move is lost for its picture."""
    from IPython.display import publish_display_data

    try:
        with _SENDING:
            outputs = _outputs(widget)
            texts = tuple(map(json.dumps, outputs))
            before, widget._still_sent = widget._still_sent, texts
            for name, (data, metadata), text, sent in zip(widget._still_ids, outputs, texts, before, strict=True):
                if text != sent:
                    publish_display_data(data, metadata, transient={"display_id": name}, update=True)
    except Exception:
        logging.getLogger(__name__).warning("the still of %s could not be renewed", type(widget), exc_info=True)


def _send_when_due(reference: "weakref.ref[Any]") -> None:
    while (widget := reference()) is not None:
        left = widget._still_due - time.monotonic()
        if left <= 0:
            widget._still_waits = False
            widget.settled()
            return
        del widget
        time.sleep(left)
