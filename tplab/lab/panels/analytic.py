"""The frame of panels that only compute: controls on the left, figure on the right, drawn anew at every move.

They run nothing on ranks, so there is no Run button. What cannot work is said in words above the last figure that could
be drawn.
"""

from abc import abstractmethod
from collections.abc import Mapping
from html import escape
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go

from tplab.lab import style
from tplab.lab.panels import html
from tplab.lab.panels.figure_view import FigureView


def wide() -> dict[str, Any]:
    """For a control in the left column; a layout of its own, since panels hide single controls."""
    return {"layout": widgets.Layout(width="auto"), "style": {"description_width": "84px"}}


class AnalyticPanel(widgets.VBox):
    """Named controls, error area, figure, words below; a subclass says what is drawn.

    ``show(name=value, ...)`` does what moving controls does; ``figure`` is the last figure drawn, ``error`` what is
    wrong with the settings, ``below`` the words below the figure (both HTML, empty if there are none).
    """

    def __init__(
        self, *, title: str, named: Mapping[str, Any], view: "widgets.ToggleButtons | None" = None, min_height: int
    ) -> None:
        self._named = dict(named)
        self._setting = False
        self._error = widgets.HTML()
        self._below = widgets.HTML()
        self._view = FigureView(min_height=min_height)
        if view is not None:
            self._named["view"] = view
        for control in self._named.values():
            control.observe(lambda _: self._draw(), names="value")
        left = widgets.VBox(
            [control for name, control in self._named.items() if name != "view"],
            layout=widgets.Layout(width=style.PANEL_CONTROLS_WIDTH, flex=f"0 0 {style.PANEL_CONTROLS_WIDTH}"),
        )
        above = [] if view is None else [view]
        right = widgets.VBox(
            [self._error, *above, self._view, self._below],
            layout=widgets.Layout(flex="1 1 0", min_width="420px"),
        )
        body = widgets.HBox([left, right], layout=widgets.Layout(flex_flow="row wrap", grid_gap="18px"))
        self._table = widgets.HTML()
        super().__init__([widgets.HTML(html.heading(title)), body, self._table])
        self._error.add_class("tplab-error")
        self._below.add_class("tplab-below")
        self._table.add_class("tplab-table")

    @abstractmethod
    def draw(self, values: dict[str, Any]) -> tuple[go.Figure, str]:
        """Figure and HTML below it for these settings. Raises ``ValueError`` for settings that cannot work."""

    def table(self) -> str:
        """HTML below everything, as wide as the panel; called after ``draw``."""
        return ""

    @property
    def figure(self) -> go.Figure | None:
        """The last figure drawn."""
        return self._view.figure

    @property
    def error(self) -> str:
        """What is wrong with the settings, as HTML; empty if nothing is."""
        return str(self._error.value)

    @property
    def below(self) -> str:
        """The words below the figure, as HTML."""
        return str(self._below.value)

    def show(self, **settings: Any) -> Any:
        """Set controls by name; returns the panel.

        Raises ``ValueError`` for a name or a value that the panel does not offer; a combination that cannot work is
        said in the panel, as for a slider.
        """
        for name, value in settings.items():
            if name not in self._named:
                raise ValueError(f"{name} is not a control of this panel; it has {', '.join(self._named)}")
            check_offered(name, self._named[name], value)
        self._setting = True
        try:
            for name, value in settings.items():
                self._named[name].value = value
        finally:
            self._setting = False
        self._draw()
        return self

    def _draw(self) -> None:
        if self._setting:
            return
        try:
            figure, below = self.draw({name: control.value for name, control in self._named.items()})
        except ValueError as error:
            self._error.value = html.error_card(error)
            return
        self._error.value = ""
        height = figure.layout.height
        if height:  # the place of a figure does not grow with it
            self._view.layout.min_height = f"{height + 10:.0f}px"
        self._view.show(figure)
        self._below.value = below
        self._table.value = self.table()


def said(text: str, *, ok: bool | None = None, word: str = "") -> str:
    """Words below a figure, behind a pill that says in a word whether things are well; ``ok=None``: no pill."""
    pill = "" if ok is None else html.pill(word, style.WEIGHT_GRADIENT if ok else style.COLLECTIVE) + "&nbsp; "
    colour = "color:var(--jp-ui-font-color1,#1F2430)"
    return f'<div style="font-size:13px;line-height:1.5;{colour}">{pill}{escape(text)}</div>'


def check_offered(name: str, control: Any, value: Any) -> None:
    """Raises ``ValueError`` for a value that ``control`` cannot take, with those it can."""
    if isinstance(control, widgets.Textarea | widgets.Text):
        if not isinstance(value, str):
            raise ValueError(f"{name} must be text; got {value!r}")
        return
    options = getattr(control, "options", None)
    if options is not None:
        offered = [option[1] if isinstance(option, tuple) else option for option in options]
        if value not in offered:
            raise ValueError(f"{name} must be one of {', '.join(map(str, offered))}; got {value!r}")
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not control.min <= value <= control.max:
        raise ValueError(f"{name} must be {control.min:g} to {control.max:g}; got {value!r}")
    if isinstance(control, widgets.IntSlider | widgets.BoundedIntText) and value != int(value):
        raise ValueError(f"{name} must be a whole number; got {value!r}")
