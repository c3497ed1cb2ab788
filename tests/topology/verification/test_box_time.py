"""Time shared out among the steps of a box, on a clock of our own."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from tplab.cluster import ClusterError, RankTimeout
from tplab.cluster.hang import Diagnosis
from tplab.cluster.launched import Launched
from tplab.topology.verification.box_time import BoxTime, OutOfTime

RANKS: Any = SimpleNamespace(start=lambda: None)
SHARES = {"links": 1, "sweep": 2, "layouts": 5}


class Clock:
    """Seconds that pass when somebody says so."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def passes(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(time_left: BoxTime, clock: Clock, step: str, parts: dict[str, float]) -> list[str]:
    """Which parts of a step were begun, each taking its seconds."""
    time_left.begin(step)
    begun = []
    for name in time_left.parts(list(parts), str):
        begun.append(name)
        clock.passes(parts[name])
    return begun


def test_without_an_end_everything_has_all_the_time_there_is(clock: Clock) -> None:
    said: list[str] = []
    time_left = BoxTime(None, SHARES, said.append, clock)
    for step in SHARES:
        assert run(time_left, clock, step, {"a": 1e6, "b": 1e6}) == ["a", "b"]
        assert not time_left.is_over
    assert not said


def test_a_step_has_its_share_of_what_is_left(clock: Clock) -> None:
    said: list[str] = []
    time_left = BoxTime(80 / 60, SHARES, said.append, clock)
    # Of 80 s links have 10: two parts of 4 s fit, a third one would not.
    assert run(time_left, clock, "links", {"a": 4, "b": 4, "c": 4, "d": 4}) == ["a", "b"]
    assert said == ["links: left out for want of time: c; d"]
    # Of 72 s the sweep has 2/7, and what it does not need the last step has.
    assert run(time_left, clock, "sweep", {"a": 4}) == ["a"]
    assert run(time_left, clock, "layouts", dict.fromkeys("abcdefgh", 10)) == list("abcdef")
    assert said[1:] == ["layouts: left out for want of time: g; h"]


def test_of_many_parts_that_are_left_out_some_are_named(clock: Clock) -> None:
    said: list[str] = []
    run(BoxTime(1, {"sweep": 1}, said.append, clock), clock, "sweep", dict.fromkeys("abcdefghij", 60))
    assert said == ["sweep: left out for want of time: b; c; d; e; f; g and 3 more"]


def test_ranks_that_start_anew_are_waited_for_first(clock: Clock) -> None:
    time_left = BoxTime(1, {"sweep": 1}, print, clock)
    time_left.begin("sweep")
    starting: Any = SimpleNamespace(start=lambda: clock.passes(20))
    assert time_left.limit_s(starting) == pytest.approx(40)


def test_another_part_is_taken_to_last_as_long_as_the_longest(clock: Clock) -> None:
    time_left = BoxTime(1, {"sweep": 1}, lambda _: None, clock)
    assert run(time_left, clock, "sweep", {"a": 25, "b": 1, "c": 1, "d": 10, "e": 1}) == ["a", "b", "c", "d"]


def test_a_part_that_came_to_nothing_says_nothing_of_the_next(clock: Clock) -> None:
    time_left = BoxTime(1, {"sweep": 1}, lambda _: None, clock)
    time_left.begin("sweep")
    begun = []
    for name in time_left.parts("abcd", str):
        begun.append(name)
        clock.passes(35 if name == "a" else 10)
        if name == "a":
            time_left.came_to_nothing()
    assert begun == ["a", "b", "c"]


def test_the_first_part_is_begun_however_small_the_share(clock: Clock) -> None:
    time_left = BoxTime(1, SHARES, lambda _: None, clock)
    assert run(time_left, clock, "links", {"a": 30, "b": 1}) == ["a"]
    assert run(time_left, clock, "sweep", {"a": 20}) == ["a"]
    assert run(time_left, clock, "layouts", {"a": 20}) == ["a"]
    assert time_left.is_over


def test_what_has_begun_may_take_twice_the_share_and_leaves_half_of_all(clock: Clock) -> None:
    """However many calls it is made of."""
    time_left = BoxTime(80 / 60, SHARES, lambda _: None, clock)
    time_left.begin("links")  # 10 of 80 s
    assert time_left.limit_s(RANKS) == pytest.approx(20)
    clock.passes(12)
    assert time_left.limit_s(RANKS) == pytest.approx(8)
    assert time_left.limit_s(RANKS, most=5) == 5
    clock.passes(8)
    with pytest.raises(OutOfTime):
        time_left.limit_s(RANKS)
    time_left.begin("sweep")  # 2/7 of 60 s; twice as much would leave less than half
    assert time_left.limit_s(RANKS) == pytest.approx(30)
    clock.passes(10)
    time_left.begin("layouts")
    assert time_left.limit_s(RANKS) == pytest.approx(50)
    clock.passes(50)
    assert time_left.is_over


def test_a_step_that_is_most_of_what_is_left_may_take_its_share(clock: Clock) -> None:
    time_left = BoxTime(1, {"layouts": 5, "generation": 1}, lambda _: None, clock)
    time_left.begin("layouts")
    assert time_left.limit_s(RANKS) == pytest.approx(50)


def test_torchruns_ranks_are_stopped_by_nothing_but_the_end(clock: Clock) -> None:
    nobody: Any = object()
    time_left = BoxTime(1, SHARES, lambda _: None, clock)
    time_left.begin("links")
    assert time_left.limit_s(Launched(nobody, 2)) == pytest.approx(60)


def test_where_there_is_no_end_a_part_has_its_own() -> None:
    time_left = BoxTime(None, SHARES, print)
    time_left.begin("links")
    assert time_left.limit_s(RANKS) is None
    assert time_left.limit_s(RANKS, most=300) == 300


def test_what_is_said_of_ranks_that_ran_out_of_time() -> None:
    late = RankTimeout("rank 1 of 2 did not answer within 9 s\n\nMeanwhile rank 0 was here:", ranks=[1])
    other = ClusterError("a\nb")
    endless, ended = BoxTime(None, SHARES, print), BoxTime(1, SHARES, print)
    assert endless.why(late) == "rank 1 of 2 did not answer within 9 s"
    assert ended.why(late) == "stopped for want of time"
    assert endless.why(other) == ended.why(other) == "a\nb"
    late.hang = Diagnosis("rank 1 never came", {}, (1,), ())
    assert ended.why(late) == "stopped for want of time (rank 1 never came)"
    late.hang = Diagnosis("nobody is missing", {}, (), (), reason="slow")
    assert ended.why(late) == "stopped for want of time"
    assert not endless.is_no_fault(late)
    assert ended.is_no_fault(late)
    assert not ended.is_no_fault(other)
    assert not ended.is_no_fault(None)


@pytest.mark.parametrize("minutes", [0, -1, math.nan, math.inf, 1e9, "9"])
def test_minutes_that_are_none(minutes: float) -> None:
    with pytest.raises(ValueError, match="minutes must be a number above 0 and at most 1,000,000"):
        BoxTime(minutes, SHARES, print)
