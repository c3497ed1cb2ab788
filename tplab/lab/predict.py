"""The learner commits a number before the answer is seen.

A :class:`Predict` asks; ``compare`` gives a :class:`Comparison`, which is covered until a number was committed, in
either of the two, or the reader asks to see the answer without one. While it is covered the answer is not in the page:
neither in an output, nor in the state of a widget that a notebook saves.
"""

import math
import re
import time
import weakref
from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets as widgets

from tplab.checks import ArgumentError, check_number, check_text
from tplab.lab.answers import Answer, quantity
from tplab.lab.panels import html
from tplab.lab.panels.figure_view import FigureView
from tplab.lab.panels.versions import put_edge
from tplab.lab.progress import PredictionRecord, earlier_prediction, record_prediction
from tplab.lab.still import Part, Stilled, figures_in
from tplab.lab.style import badge_colour

_EDGE = "4px solid var(--jp-border-color2,#CBD0D8)"
_NAME = re.compile(r"\d\d-[a-z0-9]+(-[a-z0-9]+)*")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?")
_FIELD_GONE = html.quiet("Run ▸ Run All Cells brings the field for your number back.")
_OPEN = "A wrong guess teaches more than none."
_COVERED = "The answer is covered until you commit a number, here or above."
_FROM_A_FUNCTION = 3
"""Places for figures that a function may return."""
_LATE_S = 2.0
"""Digits of an entry that come so soon after Enter belong to it."""


class Predict(Stilled, widgets.VBox):
    """A question, an empty number field and a Commit button.

    ``value`` is the committed number, None until then. ``commit(number)``, ``undo()`` and ``reveal()`` do what the
    buttons do.

    Args:
        question: what is asked for, without a question mark.
        unit: unit of the answer.
        name: key of the progress file, the notebook's number and a word (``00-call``); not kept without.
    """

    def __init__(self, question: str, *, unit: str = "", name: str = "") -> None:
        check_text("question", question)
        check_text("unit", unit)
        if name and not _NAME.fullmatch(check_text("name", name)):
            raise ArgumentError("name", name, "must be a notebook's number and words, such as 00-call")
        self.question, self.unit, self.name = question, unit, name
        self._value: float | None = None
        self._revealed = False
        self._entry = ("", 0.0)  # what was committed by hand, and when
        earlier = earlier_prediction(name)
        self._earlier = earlier if earlier is not None and earlier.unit == unit else None
        self._note = ""
        self._comparisons: weakref.WeakSet[Comparison] = weakref.WeakSet()
        label = f"Your prediction in {unit}" if unit else "Your prediction"
        self._field = widgets.Text(
            placeholder="a number",
            description=label,  # a screen reader reads it out, too
            style={"description_width": "initial"},
            layout=widgets.Layout(width="auto", min_width="120px"),
        )
        self._commit = widgets.Button(description="Commit", icon="check", disabled=True, button_style="primary")
        self._undo = widgets.Button(description="Undo", icon="undo")
        self._reveal = widgets.Button(description="Show without predicting", layout=widgets.Layout(width="200px"))
        self._again = widgets.Button(description="Use it")
        for button in (self._commit, self._undo, self._again):
            button.layout.width = "100px"
        self._said = widgets.HTML()
        self._field.observe(lambda _: self._typed(), names="value")
        self._field.on_msg(self._entered)
        self._commit.on_click(lambda _: self._commit_typed())
        self._undo.on_click(lambda _: self.undo())
        self._again.on_click(lambda _: self._commit_earlier())
        self._reveal.on_click(lambda _: self.reveal())
        # One row in both places: what is typed in one of them stands in the other.
        row = widgets.HBox([self._field, self._commit, self._again, self._undo])
        row.layout.align_items, row.layout.flex_flow = "center", "row wrap"
        self.entry = widgets.VBox([row, self._said])
        super().__init__([widgets.HTML(html.heading(f"Predict: {question}")), self.entry])
        self.add_class("tplab-predict")
        for widget, word in (
            (self._field, "field"),
            (self._commit, "commit"),
            (self._undo, "undo"),
            (self._again, "again"),
        ):
            widget.add_class(f"tplab-predict-{word}")
        self._show()

    @property
    def value(self) -> float | None:
        """The committed number."""
        return self._value

    @property
    def seen(self) -> bool:
        """Whether an answer has been shown, so that the prediction cannot change any more."""
        return (self._value is not None or self._revealed) and len(self._comparisons) > 0

    def commit(self, number: float) -> "Predict":
        """Commit ``number``, in the prediction's unit; before the answer was seen it replaces an earlier one.

        Raises ``ValueError`` for what is no finite number, and for another number than the committed one once the
        answer was seen.
        """
        number = float(check_number("number", number))
        if self.seen and number != self._value:
            said = "no number was committed" if self._value is None else f"it is {quantity(self._value, self.unit)}"
            raise ValueError(f"the answer to this prediction was seen, and {said}: run its cell again to predict anew")
        self._value, self._revealed = number, False
        self._keep(PredictionRecord(value=number, unit=self.unit))
        self._show()
        return self

    def undo(self) -> "Predict":
        """Take the committed number back, as long as the answer was not seen. Raises ``ValueError`` afterwards."""
        if self.seen:
            raise ValueError("the answer to this prediction was seen: run its cell again to predict anew")
        self._value = None
        self._keep(self._earlier)
        self._show()
        return self

    def reveal(self) -> "Predict":
        """Show the answer without a prediction."""
        self._revealed = self._value is None
        self._show()
        return self

    def compare(self, value: Any, source: str = "measured", badge: str = "", shown: Any = None) -> "Comparison":
        """The answer beside the prediction, covered until there is one.

        Args:
            value: the answer, in the prediction's unit; a whole number (``int``) is taken for a count.
            source: ``model`` (computed), ``counted`` or ``measured``.
            badge: where it comes from: ``pool.badge``, or that of a recorded frame, for what was measured.
            shown: more to see together with the answer, below it: text, a figure, a frame, a widget, a list of such, or
                a function that makes one, called once a number was committed (``value`` is that number then).

        Raises ``ArgumentError`` for what is no number, and for a badge that does not go with the source.
        """
        return Comparison(self, Answer.of(value, unit=self.unit, source=source, badge=badge), shown)

    def afterwards(self, shown: Any) -> "Comparison":
        """What would give the answer away (a table, a figure, a sentence), covered as the answer is.

        Args:
            shown: as for :meth:`compare`.
        """
        return Comparison(self, None, shown)

    def still(self) -> Sequence[Part]:
        """The question, and the number if there is one."""
        return [*super().still(), *([] if self._value is not None else [_FIELD_GONE])]

    def _typed(self) -> None:
        text = self._field.value
        typed, at = self._entry
        late = number_of(text, self.unit)
        if text != typed and text.startswith(typed or "\0") and time.monotonic() - at < _LATE_S and late is not None:
            # Digits that Enter overtook: a page holds back what is typed while the kernel is busy, but not Enter.
            self._entry = ("", 0.0)
            self._commit_anew(late)
            return
        self._commit.disabled = self._field.disabled or number_of(text, self.unit) is None
        if self._value is None and not self._revealed:
            wrong = text.strip() and self._commit.disabled
            self._said.value = html.quiet(
                f"{text.strip()} is not a number: digits, such as 12 or 0.5." if wrong else self._open_words()
            )

    def _entered(self, _: Any, content: Any, buffers: Any) -> None:
        """Enter does what Commit does."""
        if isinstance(content, dict) and content.get("event") == "submit":
            self._commit_typed()

    def _commit_typed(self) -> None:
        number = number_of(self._field.value, self.unit)
        if number is not None and not self._field.disabled:
            self._entry = (self._field.value, time.monotonic())
            self.commit(number)

    def _commit_anew(self, number: float) -> None:
        """The same entry with all of its digits, also where the answer is open by now."""
        self._value = number
        self._keep(PredictionRecord(value=number, unit=self.unit))
        for comparison in list(self._comparisons):
            comparison._open = False
        self._show()

    def _commit_earlier(self) -> None:
        if self._earlier is not None and self._earlier.value is not None and not self._field.disabled:
            self.commit(self._earlier.value)

    def _open_words(self) -> str:
        """What stands below the empty field; an earlier session's number does not count by itself."""
        if self._earlier is None or self._earlier.value is None:
            return _OPEN
        return f"Last time you said {quantity(self._earlier.value, self.unit)}. Commit that again, or another number."

    def _keep(self, record: PredictionRecord | None) -> None:
        """Into the progress file, or out of it."""
        self._note = record_prediction(self.name, record)

    def _was_seen(self, answer: Answer) -> None:
        """The answer is in the page now."""
        if self._value is None and self._earlier is not None:
            return  # a number of an earlier session is worth more than that none was said today
        found = answer.value if math.isfinite(answer.value) else None
        self._keep(
            PredictionRecord(value=self._value, unit=self.unit, answer=found, source=answer.source, badge=answer.badge)
        )

    def _show(self) -> None:
        done = self._value is not None or self._revealed
        self._field.disabled = done
        if self._value is not None:
            self._field.value = f"{self._value:.15g}"
        self._undo.layout.display = "" if self._value is not None and not self.seen else "none"
        self._commit.layout.display = "none" if done else ""
        earlier = self._earlier is not None and self._earlier.value is not None
        self._again.layout.display = "" if earlier and not done else "none"
        self._typed()
        for comparison in list(self._comparisons):
            comparison._show()
        if self._value is not None:
            where = " The answer stands below." if self.seen else ""
            said = f"Committed: {quantity(self._value, self.unit)}.{where} {self._note}"
            self._said.value = html.quiet(said.rstrip())
        elif self._revealed:
            said = "Shown below without a prediction. Run the question's cell again to predict after all."
            self._said.value = html.quiet(f"{said} {self._note}".rstrip())
        self.settled()


class Comparison(Stilled, widgets.VBox):
    """An answer beside its prediction, or only what goes with it: covered, with the same number field, until there is a
    prediction.

    ``text`` is what it says now, and so is ``str()`` of it.
    """

    def __init__(self, guess: Predict, answer: Answer | None, shown: Any = None) -> None:
        self._guess, self._answer, self._shown = guess, answer, shown
        self._open = False
        super().__init__()
        self.add_class("tplab-comparison")
        guess._comparisons.add(self)
        guess._show()

    @property
    def covered(self) -> bool:
        """Whether the answer is still to be predicted."""
        return not self._guess.seen

    @property
    def text(self) -> str:
        """The sentence; while it is covered, that it is, without the answer."""
        if self.covered:
            return _COVERED
        return "" if self._answer is None else self._answer.beside(self._guess.value)

    def still(self) -> Sequence[Part]:
        """What is seen; while it is covered, nothing of the answer."""
        return [*super().still(), *([_FIELD_GONE] if self.covered else [])]

    def still_figures(self) -> int:
        """Those that are covered count, too."""
        return max(super().still_figures(), _figures_to_come(self._shown))

    def __repr__(self) -> str:
        return self.text

    __str__ = __repr__

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_(**kwargs)
        return bundle | {"text/plain": self.text}

    def _show(self) -> None:
        answer, value = self._answer, self._guess.value
        self.layout.padding = "4px 12px"
        if self.covered and answer is None:
            self.children = [widgets.HTML(html.quiet(f"Shown once you have predicted: {self._guess.question}."))]
            put_edge(self.layout, _EDGE)
        elif self.covered:
            about = html.heading(f"First predict: {self._guess.question}") + html.quiet(_COVERED)
            self.children = [widgets.HTML(about), self._guess.entry, self._guess._reveal]
            put_edge(self.layout, _EDGE)
        elif not self._open:
            self._open = True
            views = _views(self._shown)
            if answer is not None:
                self._guess._was_seen(answer)
                said = (
                    f'<div role="status" style="font-size:14px;line-height:1.6;color:var(--jp-ui-font-color1,#1F2430)">'
                    f"{escape(self.text)} {html.pill(answer.badge, badge_colour(answer.badge))}</div>"
                )
                views = [widgets.HTML(said + answer.line(value)), *views]
                put_edge(self.layout, f"4px solid {badge_colour(answer.badge)}")
            self.children = views
        self.settled()


def number_of(text: str, unit: str = "") -> float | None:
    """The finite number that somebody typed (``1,000``, ``2,5``, ``12 ms``), or None."""
    text = text.strip().removesuffix(unit).strip().replace("\N{MINUS SIGN}", "-")
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    elif text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    try:
        return float(check_number("number", float(text)))
    except ValueError:
        return None


def _views(shown: Any) -> list[widgets.Widget]:
    """Widgets that show an object, or each of a list, as a cell would."""
    import plotly.graph_objects as go

    if shown is None:
        return []
    if callable(shown) and not isinstance(shown, widgets.Widget):
        return _views(shown())
    if isinstance(shown, list | tuple):
        return [view for each in shown for view in _views(each)]
    if isinstance(shown, widgets.Widget):
        return [shown]
    if isinstance(shown, str):
        text = f'<div style="white-space:pre-wrap;line-height:1.5">{escape(shown)}</div>'
        return [widgets.HTML(text)]
    if isinstance(shown, go.Figure):
        view = FigureView(min_height=int(shown.layout.height or 380))
        view.show(shown)
        return [view]
    return [_output(shown)]


def _figures_to_come(shown: Any) -> int:
    """How many figures ``_views`` may find in an object; what a function will return nobody knows."""
    if isinstance(shown, list | tuple):
        return sum(map(_figures_to_come, shown))
    if isinstance(shown, widgets.Widget):
        return figures_in([shown])
    return _FROM_A_FUNCTION if callable(shown) else type(shown).__name__ == "Figure"


def _output(shown: Any) -> widgets.Output:
    from IPython.core.formatters import DisplayFormatter
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    formatter = DisplayFormatter() if shell is None else shell.display_formatter
    data, metadata = formatter.format(shown)
    output = widgets.Output()
    output.outputs = ({"output_type": "display_data", "data": data, "metadata": metadata},)
    return output
