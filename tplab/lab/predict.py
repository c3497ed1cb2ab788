"""The learner commits a number before anything runs."""

import ipywidgets as widgets

from tplab.checks import check_number
from tplab.lab.panels import html


class Predict(widgets.VBox):
    """A question, a number field and a Commit button; once committed, the number stays.

    ``value`` is None until then. ``commit(number)`` does what the button does.
    """

    def __init__(self, question: str, *, unit: str = "") -> None:
        self._field = widgets.FloatText(value=None, layout=widgets.Layout(width="110px"))
        self._button = widgets.Button(description="Commit", icon="check", layout=widgets.Layout(width="100px"))
        self._said = widgets.HTML(html.quiet("Not committed yet. A wrong guess teaches more than none."))
        self._unit = unit
        self._value: float | None = None
        self._button.on_click(lambda _: self.commit(float(self._field.value)))
        row = widgets.HBox([self._field, widgets.HTML(html.quiet(unit)), self._button, self._said])
        row.layout.align_items = "center"
        super().__init__([widgets.HTML(html.heading(f"Predict: {question}")), row])

    @property
    def value(self) -> float | None:
        """The committed number."""
        return self._value

    def commit(self, number: float) -> "Predict":
        """Commit ``number``; it can be committed once. Raises ``ValueError`` for a second number, or for no number."""
        check_number("number", number)
        if self._value is not None and number != self._value:
            raise ValueError(
                f"a prediction is committed once; this one is {self._value:g}. Run the cell again to reset it"
            )
        self._value = float(number)
        self._field.value = number
        self._field.disabled = self._button.disabled = True
        self._said.value = html.quiet(f"Committed: {number:g} {self._unit}".rstrip() + ".")
        return self

    def compare(self, measured: float) -> str:
        """One sentence that sets the prediction beside a measurement (both in the prediction's unit)."""
        if self._value is None:
            return f"Measured: {measured:.3g} {self._unit}. You had not committed a prediction."
        ratio = max(self._value, measured) / max(min(self._value, measured), 1e-12)
        if ratio < 1.25:
            verdict = "within 25 % of it"
        else:
            verdict = f"{ratio:.2g} times too {'high' if self._value > measured else 'low'}"
        return f"You predicted {self._value:g} {self._unit}; measured: {measured:.3g} {self._unit}; you were {verdict}."
