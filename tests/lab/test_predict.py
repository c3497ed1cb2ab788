"""Predictions: nothing of an answer is to be seen before a number was committed, and then the right words."""

import json

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from tplab.checks import ArgumentError
from tplab.lab import Predict
from tplab.lab.answers import Answer
from tplab.lab.predict import number_of

LIVE = "LIVE gloo · 2 ranks"
ANSWER = 4.03125


def asked() -> Predict:
    return Predict("one call, there and back", unit="ms", name="00-call")


def page(*roots: widgets.Widget) -> str:
    """Everything that a page or a saved notebook knows of widgets: their state, and that of those in them."""
    todo, seen = list(roots), {}
    while todo:
        widget = todo.pop()
        if widget.model_id not in seen:
            state = widget.get_state()
            seen[widget.model_id] = {key: value for key, value in state.items() if not key.startswith("_")}
            todo += getattr(widget, "children", ())
            if isinstance(widget, widgets.Output):
                seen[widget.model_id]["outputs"] = widget.outputs
    return json.dumps(list(seen.values()), default=str, ensure_ascii=False)


def press(button: widgets.Button) -> None:
    if not button.disabled:
        button.click()


def test_nothing_of_the_answer_is_in_the_page_until_a_number_is_committed() -> None:
    guess = asked()
    answer = guess.compare(ANSWER, badge=LIVE, shown=f"the answer is {ANSWER}")
    covered = page(guess, answer) + repr(answer) + str(answer) + json.dumps(answer._repr_mimebundle_())
    assert answer.covered
    assert "4.03" not in covered
    assert "LIVE" not in covered
    guess.commit(12)
    opened = page(guess, answer)
    assert "Measured: 4.03 ms" in opened
    assert LIVE in opened
    assert f"the answer is {ANSWER}" in opened
    assert answer.text == "You predicted 12 ms. Measured: 4.03 ms. That is 3 times too high."
    assert answer._repr_mimebundle_()["text/plain"] == answer.text == str(answer) == repr(answer)


def test_a_comparison_may_come_before_or_after_the_commit_and_again() -> None:
    guess = asked()
    before = guess.compare(8.0, badge=LIVE)
    guess.commit(8)
    after = guess.compare(2.0, badge=LIVE)
    assert "Exactly right" in before.text
    assert "4 times too high" in after.text
    assert "4 times too high" in page(after)


def test_the_number_is_typed_and_committed_in_either_of_two_places() -> None:
    guess = asked()
    answer = guess.compare(ANSWER, badge=LIVE)
    assert guess.entry in guess.children
    assert guess.entry in answer.children
    assert guess._field.value == ""
    assert guess._commit.disabled
    press(guess._commit)
    guess._field.value = "lots"
    assert guess._commit.disabled
    assert "not a number" in guess._said.value
    assert guess.value is None
    guess._field._handle_custom_msg({"event": "submit"}, [])
    assert guess.value is None
    guess._field.value = "12 ms"
    assert not guess._commit.disabled
    press(guess._commit)
    assert guess.value == 12
    assert not answer.covered
    assert guess._field.disabled


def test_digits_that_enter_overtook_belong_to_the_number() -> None:
    """A page holds back what is typed while the kernel is busy, but not Enter."""
    guess = Predict("all-reduce of 4 bytes", unit="ms")
    comparison = guess.compare(25.0, source="model")
    guess._field.value = "2"
    guess._field._handle_custom_msg({"event": "submit"}, [])
    assert "You predicted 2 ms" in comparison.text
    guess._field.value = "25"
    assert guess.value == 25
    assert "You predicted 25 ms" in comparison.text
    assert "25 ms" in str(comparison.children[0].value)
    guess._field.value = "251"  # one that comes later was not typed before Enter
    assert guess.value == 25


@pytest.mark.parametrize("text", ["7", "3"])
def test_another_number_after_enter_does_not_count(text: str) -> None:
    guess = Predict("all-reduce of 4 bytes", unit="ms")
    guess.compare(25.0, source="model")
    guess._field.value = "2"
    guess._field._handle_custom_msg({"event": "submit"}, [])
    guess._field.value = text
    assert guess.value == 2


def test_enter_commits() -> None:
    guess = asked()
    guess._field.value = "0.5"
    guess._field._handle_custom_msg({"event": "submit"}, [])
    assert guess.value == 0.5


def test_a_commit_is_undone_until_the_answer_was_seen() -> None:
    guess = asked().commit(12)
    assert guess._undo.layout.display == ""
    press(guess._undo)
    assert guess.value is None
    assert not guess._field.disabled
    assert guess._field.value == "12"
    guess.commit(3).commit(4)
    answer = guess.compare(ANSWER, badge=LIVE)
    assert guess._undo.layout.display == "none"
    assert guess.commit(4).value == 4
    for late in (guess.undo, lambda: guess.commit(ANSWER)):
        with pytest.raises(ValueError, match=r"was seen.*run its cell again"):
            late()
    assert "You predicted 4 ms" in answer.text


def test_an_answer_is_shown_without_a_prediction_on_demand() -> None:
    guess = asked()
    answer = guess.compare(ANSWER, badge=LIVE)
    assert guess._reveal in answer.children
    press(guess._reveal)
    assert answer.text == "Measured: 4.03 ms. It was shown without a prediction."
    assert guess._field.disabled
    with pytest.raises(ValueError, match="no number was committed"):
        guess.commit(4)


@pytest.mark.parametrize(
    ("prediction", "value", "unit", "says"),
    [
        (10, 11.0, "ms", "9 % too low"),
        (11, 10.0, "ms", "10 % too high"),
        (141, 141.1, "GB", "within 1 %"),
        (20, 10.0, "ms", "2 times too high"),
        (1, 10.0, "ms", "10 times too low"),
        (55, 55, "requests", "Exactly right"),
        (53, 55, "requests", "Too low by 2."),
        (2, np.int64(8), "GPUs", "Too low by 6, 4 times."),
        (50, 12.5, "%", "Too high by 37.5 percentage points"),
        (0, 4.0, "ms", "Too low by 4 ms"),
        (5, 0.0, "ms", "Too high by 5 ms"),
        (0, 0.0, "ms", "Exactly right"),
        (-3, 4.0, "ms", "Off by 7 ms, and on the other side of zero"),
        (-3, -4.0, "ms", "Too high by 1 ms"),
        (3, float("nan"), "ms", "no number (nan)"),
        (3, float("inf"), "ms", "no number (inf)"),
        (1e-300, 1e300, "ms", "too low"),
    ],
)
def test_predictions_are_compared_in_words(prediction: float, value: float, unit: str, says: str) -> None:
    answer = Predict("how long", unit=unit).commit(prediction).compare(value, badge=LIVE)
    assert says in answer.text
    assert "within 25 %" not in answer.text
    assert "nan ms" not in page(answer)


@pytest.mark.parametrize(
    ("source", "badge", "says", "pill"),
    [
        ("model", "", "Computed: 5 ms", "MODEL"),
        ("counted", "", "Counted: 5 ms", "COUNTED"),
        ("count", "", "Counted: 5 ms", "COUNTED"),
        ("measured", "RECORDED 4xH200 2026-11-26", "Measured: 5 ms", "RECORDED 4xH200 2026-11-26"),
    ],
)
def test_the_source_is_said_and_wears_its_badge(source: str, badge: str, says: str, pill: str) -> None:
    answer = asked().commit(5).compare(5.0, source=source, badge=badge)
    assert says in answer.text
    assert f">{pill}<" in page(answer)


def test_a_badge_cannot_contradict_the_source_and_a_value_is_one_number() -> None:
    guess = asked()
    for wrong in ("", "MODEL"):
        with pytest.raises(ArgumentError, match=r"badge must say where a measurement comes from.*pool\.badge"):
            guess.compare(5.0, badge=wrong)
    with pytest.raises(ArgumentError, match="badge must not claim"):
        guess.compare(5.0, source="model", badge=LIVE)
    with pytest.raises(ArgumentError, match="source must be one of model, counted, measured"):
        guess.compare(5.0, source="guessed")
    for nothing in (None, "5", [1, 2], np.arange(2), True):
        with pytest.raises(ArgumentError, match="value must be one number"):
            guess.compare(nothing, source="model")
    for name in ("call", "00", "00 call", "00-Call"):
        with pytest.raises(ArgumentError, match="such as 00-call"):
            Predict("how long", name=name)
    for number in (float("nan"), "5", None):
        with pytest.raises(ValueError, match="number must be"):
            guess.commit(number)  # type: ignore[arg-type]


def test_more_is_shown_with_the_answer_only() -> None:
    figure = go.Figure(go.Bar(y=[ANSWER]))
    guess = asked()
    answer = guess.compare(1.0, badge=LIVE, shown=[figure, pd.DataFrame({"call_ms": [ANSWER]}), widgets.HTML("beside")])
    assert "4.03" not in page(answer)
    guess.commit(1)
    assert len(answer.children) == 4
    assert page(answer).count("4.03") >= 2
    assert "beside" in page(answer)


def test_what_would_give_the_answer_away_is_covered_with_it() -> None:
    guess = asked()
    table = guess.afterwards(f"a table with {ANSWER}")
    assert "4.03" not in page(guess, table) + str(table)
    assert "Shown once you have predicted" in page(table)
    guess.commit(12)
    assert f"a table with {ANSWER}" in page(table)
    assert str(table) == ""
    with pytest.raises(ValueError, match="was seen"):
        guess.undo()
    shown = asked()
    late = shown.afterwards(pd.DataFrame({"call_ms": [ANSWER]}))
    shown.reveal()
    assert "4.03" in page(late)


def test_what_is_shown_may_be_drawn_with_the_committed_number() -> None:
    guess = asked()
    answer = guess.compare(1.0, badge=LIVE, shown=lambda: f"a line at {guess.value:g}")
    assert len(answer.children) == 3
    assert answer.covered
    guess.commit(7)
    assert "a line at 7" in page(answer)


def test_both_numbers_are_on_one_line_logarithmic_where_far_apart() -> None:
    def line(prediction: float, value: float) -> str:
        return Answer.of(value, unit="ms", source="measured", badge=LIVE).line(prediction)

    assert "logarithmic" in line(1, 500.0)
    assert "logarithmic" not in line(4, 5.0)
    assert "logarithmic" not in line(-1, 500.0)
    assert "logarithmic" not in line(0, 500.0)
    assert line(3, float("nan")) == ""
    # Nor does it fail over any other pair of numbers.
    for prediction, value in ((0, 0.0), (-2, -1.0), (1e-9, 1e9), (3, 3.0), (1e-300, 1e300)):
        assert "you: " in line(prediction, value)
        assert "nan" not in line(prediction, value)
    # The greater number is to the right.
    at = [float(line(4, 5.0).split(mark)[1].split(end)[0]) for mark, end in (('path d="M', " "), ('circle cx="', '"'))]
    assert at[0] < at[1]


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        ("12", 12),
        ("1,000", 1000),
        ("1,000.5", 1000.5),
        ("2,5", 2.5),
        ("0,125", 0.125),
        ("12 ms", 12),
        ("12ms", 12),
        ("−3", -3),
        ("1e3", 1000),
        (" .5 ", 0.5),
        ("", None),
        ("x", None),
        ("nan", None),
        ("inf", None),
        ("1,2,3", None),
    ],
)
def test_numbers_as_people_type_them(typed: str, number: float | None) -> None:
    assert number_of(typed, "ms") == number
