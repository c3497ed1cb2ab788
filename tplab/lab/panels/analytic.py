"""The frame of panels that only compute: controls on the left, figure on the right, drawn anew at every move.

They run nothing on ranks, so there is no Run button. What cannot work is said in words above the last figure that could
be drawn.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, ClassVar, Self

import ipywidgets as widgets
import plotly.graph_objects as go

from tplab.lab import style
from tplab.lab.panels import html
from tplab.lab.panels.controls import NamedControls, panel
from tplab.lab.panels.figure_view import FigureView
from tplab.lab.pictures.picture import Picture
from tplab.lab.still import AFTER_A_MOVE_S, Part, Stilled, settings_line


class AnalyticPanel(Stilled, widgets.VBox):
    """Named controls, error area, figure, words below; a subclass says what is drawn.

    ``show(name=value, ...)`` does what moving controls does; ``figure`` is the last figure drawn, ``error`` what is
    wrong with the settings, ``below`` the words below the figure (both HTML, empty if there are none).

    Args:
        title: heading of the panel.
        named: controls of the left column, by the name of their setting.
        view: the choice above the figure of what is drawn, the setting ``view``; None for none.
        beneath: widgets below the controls.
        drawing: what stands in the figure's place whenever ``draw`` sets ``drawn``.
        min_height: height of the figure's place in pixels.
    """

    _offered: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """What a control can offer, where that depends on another one."""

    def __init__(
        self,
        *,
        title: str,
        named: Mapping[str, Any],
        view: "widgets.ToggleButtons | None" = None,
        beneath: Sequence[widgets.Widget] = (),
        drawing: "Picture | None" = None,
        min_height: int,
    ) -> None:
        above = {} if view is None else {"view": view}
        self._named = NamedControls({**named, **above})
        self._setting = False
        self._error = widgets.HTML()
        self._below = widgets.HTML()
        self._table = widgets.HTML()
        self._view = FigureView(min_height=min_height)
        for control in self._named.values():
            control.observe(lambda _: self._moved(), names="value")
        self.drawing, self.drawn = drawing, False
        if drawing is not None:  # moved by a hand, it is another one for a page without a kernel, too
            drawing.observe(lambda _: self.settled(after_s=AFTER_A_MOVE_S), names=drawing.moved_by_hand)
        right = [self._error, *above.values(), *([drawing] if drawing else []), self._view, self._below]
        super().__init__([*panel(title, [*named.values(), *beneath], right), self._table])
        self._error.add_class("tplab-error")
        self._below.add_class("tplab-below")
        self._table.add_class("tplab-table")

    @abstractmethod
    def draw(self, values: dict[str, Any]) -> tuple[go.Figure, str]:
        """Figure and HTML below it for these settings. Raises ``ValueError`` for settings that cannot work."""

    def warning(self) -> str:
        """HTML above a figure that was drawn all the same; called after ``draw``."""
        return ""

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

    def show(self, **settings: Any) -> Self:
        """Set controls by name.

        Raises ``ArgumentError`` for a name or a value that the panel does not offer; a combination that cannot work is
        said in the panel, as for a slider.
        """
        self._named.check(settings, self._offered)
        self._setting = True
        try:
            self._named.put(settings)
        finally:
            self._setting = False
        self._draw()
        self.settled()
        return self

    def still(self) -> Sequence[Part]:
        """Heading, settings, words, figure and table."""
        heading, *rest = super().still()
        return [heading, settings_line(self._named.said(self._named.settings())), *rest]

    def _moved(self) -> None:
        if not self._setting:
            self._draw()
            self.settled(after_s=AFTER_A_MOVE_S)

    def _draw(self) -> None:
        if self._setting:
            return
        self.drawn = False
        try:
            figure, below = self.draw(self._named.settings())
        except ValueError as error:
            self._error.value = html.error_card(error)
            return
        self._error.value = self.warning()
        if self.drawing is not None:
            self.drawing.layout.display, self._view.layout.display = ("", "none") if self.drawn else ("none", "")
        self._view.show(figure, alt=below)
        self._below.value = below
        self._table.value = self.table()


def said(text: str, *, ok: bool | None = None, word: str = "") -> str:
    """Words below a figure, behind a pill that says in a word whether things are well; ``ok=None``: no pill."""
    pill = "" if ok is None else html.pill(word, style.WEIGHT_GRADIENT if ok else style.COLLECTIVE) + "&nbsp; "
    colour = "color:var(--jp-ui-font-color1,#1F2430)"
    return f'<div style="font-size:13px;line-height:1.5;{colour}">{pill}{escape(text)}</div>'
