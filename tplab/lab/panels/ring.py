"""The ring all-reduce, one step at a time. Analytic: it follows its sliders and runs nothing."""

import ipywidgets as widgets

from tplab.lab.figures.collectives import ring_figure
from tplab.lab.panels import html
from tplab.lab.panels.controls import panel, wide
from tplab.lab.panels.figure_view import FigureView
from tplab.lab.still import AFTER_A_MOVE_S, Stilled


class RingStepper(Stilled, widgets.VBox):
    """Two sliders, ranks and step; the chunks each rank holds, what it sends next, and the bytes so far.

    ``show(n, step)`` sets the sliders; ``figure`` is the figure shown.
    """

    def __init__(self, n: int = 4) -> None:
        self._n = widgets.IntSlider(value=n, min=2, max=8, description="ranks", **wide(50))
        self._step = widgets.IntSlider(value=0, min=0, max=2 * (n - 1), description="step", **wide(50))
        self._play = widgets.Play(min=0, max=2 * (n - 1), interval=900, show_repeat=False)
        self._bytes = widgets.HTML()
        self._view = FigureView(min_height=400)
        widgets.link((self._play, "value"), (self._step, "value"))
        self._n.observe(self._resize, names="value")
        self._step.observe(lambda _: self._draw(), names="value")
        super().__init__(panel("Ring stepper", [self._n, self._step, self._play, self._bytes], [self._view]))
        self._draw()

    def show(self, n: int, step: int) -> "RingStepper":
        """Show ``n`` ranks after ``step`` of the 2(n-1) steps."""
        ring_figure(n, step)  # names what is out of range
        self._n.value = n
        self._step.value = step
        return self

    @property
    def figure(self) -> object:
        return self._view.figure

    def _resize(self, _: object) -> None:
        last = 2 * (self._n.value - 1)
        self._step.max = self._play.max = last
        self._draw()

    def _draw(self) -> None:
        n, step = self._n.value, self._step.value
        self._view.show(ring_figure(n, step))
        rows = [("sent so far", f"{step}/{n} = {step / n:.3g}")]
        if step == 2 * (n - 1):  # not before: the notebook asks for it
            rows += [("so all in all", f"2({n} - 1)/{n}"), ("a naive gather-to-all sends", f"{n - 1}")]
        self._bytes.value = html.table(("each rank", "in S"), rows)
        self.settled(after_s=AFTER_A_MOVE_S)
