"""The shard painter as Python has it; what it draws is tested in tests/browser/test_pictures_painter.py."""

import pytest

from tplab.collectives.cost import AlphaBeta
from tplab.lab import Predict, ShardPainter
from tplab.lab.known_links import THIS_MACHINE
from tplab.lab.pictures.painter import OPENING
from tplab.layers.plan import CANONICAL


@pytest.fixture
def painter() -> ShardPainter:
    return ShardPainter()


def test_it_opens_on_a_painting_that_can_be_bettered(painter: ShardPainter) -> None:
    assert tuple(painter.plan.choices.values()) == OPENING
    assert painter.plan.sent_bytes > ShardPainter().paint(**CANONICAL).plan.sent_bytes
    assert "1 all-reduce, 2 all-gathers, 1 reduce-scatter" in repr(painter)


def test_the_plan_follows_what_is_painted_in_the_browser(painter: ShardPainter) -> None:
    painter.set_state({"choices": list(CANONICAL.values()), "ranks": 8, "tokens": 2048, "model": "Llama-3.1 70B"})
    assert painter.plan.is_canonical
    assert (painter.plan.n, painter.plan.tokens, painter.plan.hidden) == (8, 2048, 8192)
    assert painter.plan.summary == "2 all-reduces"


def test_what_cannot_work_keeps_the_last_plan(painter: ShardPainter) -> None:
    painter.ranks = 3  # 32 heads
    assert painter.plan.n == 4
    painter.choices = ["replicated"] * 4
    assert painter.plan.n == 3


def test_paint_sets_what_is_given(painter: ShardPainter) -> None:
    assert painter.paint(qkv="row", up="replicated", model="tiny", ranks=6) is painter
    assert painter.plan.choices == {"qkv": "row", "out": "column", "up": "replicated", "down": "row"}
    assert (painter.plan.n, painter.model, painter.tokens) == (6, "tiny", 1024)


@pytest.mark.parametrize(
    ("match", "bad"),
    [
        ("up must be one of column, row, replicated; got 'diagonal'", {"up": "diagonal", "tokens": 1}),
        ("ranks must be a whole number from 1 to 8; got 9", {"ranks": 9}),
        ("tokens must be one of 1, 2, 4, .*; got 1000", {"tokens": 1000}),
        ("model must be one of tiny, Llama-3.1 8B, Llama-3.1 70B; got 'GPT'", {"model": "GPT"}),
        ("link must be one of NVLink 4", {"link": "string"}),
        ("num_heads=32 does not divide by n=5", {"ranks": 5, "tokens": 1}),
    ],
)
def test_paint_names_what_is_offered_and_changes_nothing(
    painter: ShardPainter, match: str, bad: dict[str, str]
) -> None:
    before = painter.state()
    with pytest.raises(ValueError, match=match):
        painter.paint(**bad)  # type: ignore[arg-type]
    assert painter.state() == before


def test_a_measured_link_comes_first() -> None:
    measured = ShardPainter(link=AlphaBeta(alpha_us=40.0, beta_GBps=1.5))
    assert measured.link == next(iter(measured.links)) == THIS_MACHINE
    assert tuple(measured.links[THIS_MACHINE]) == (40.0, 1.5)
    assert THIS_MACHINE not in ShardPainter().links


class TestAfterAPrediction:
    def test_it_opens_when_a_number_is_committed(self) -> None:
        guess = Predict("the fewest")
        painter = ShardPainter(after=guess)
        assert "the fewest" in painter.question
        guess.commit(3)
        assert painter.question == ""
        assert guess.seen  # or somebody could paint, and then undo

    def test_painting_without_predicting_shows_the_answer(self) -> None:
        guess = Predict("the fewest")
        painter = ShardPainter(after=guess)
        answer = guess.compare(2, source="model")
        assert answer.covered
        painter.set_state({"question": ""})  # the button in the picture
        assert not answer.covered
        assert guess.value is None

    def test_a_prediction_made_before_asks_nothing(self) -> None:
        assert ShardPainter(after=Predict("the fewest").commit(1)).question == ""
