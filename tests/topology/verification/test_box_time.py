"""Time shared out among the steps of a box, on a clock of our own."""

import math
from collections.abc import Iterator
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


class Played:
    """A step whose parts take given seconds, those in ``failing`` for nothing; ``begun`` are those that it came to."""

    def __init__(self, time_left: BoxTime, clock: Clock, name: str, parts: dict[str, float], failing: str = "") -> None:
        self.name = name
        self.begun: list[str] = []
        self._time_left = time_left
        self._made = self._make(time_left, clock, parts, failing)

    def go_on(self) -> bool:
        self._time_left.begin(self.name)
        return next(self._made, False)

    def _make(self, time_left: BoxTime, clock: Clock, parts: dict[str, float], failing: str) -> Iterator[bool]:
        for part in time_left.parts(list(parts), str):
            if part is None:
                yield True
                continue
            self.begun.append(part)
            clock.passes(parts[part])
            if part in failing:
                time_left.came_to_nothing()


def run(
    clock: Clock, seconds: float | None, *steps: tuple[str, dict[str, float]], failing: str = ""
) -> tuple[list[str], list[str]]:
    """What each step came to, and what was said."""
    said: list[str] = []
    time_left = BoxTime(None if seconds is None else seconds / 60, SHARES, said.append, clock)
    made = [Played(time_left, clock, name, parts, failing) for name, parts in steps]
    time_left.run(made)
    return ["".join(step.begun) for step in made], said


def test_without_an_end_everything_has_all_the_time_there_is(clock: Clock) -> None:
    assert run(clock, None, *((step, {"a": 1e6, "b": 1e6}) for step in SHARES)) == (["ab"] * 3, [])


def test_a_step_has_its_share_and_those_that_need_more_what_is_left(clock: Clock) -> None:
    links, sweep, layouts = {"a": 4.0, "b": 4, "c": 4, "d": 4}, {"a": 4.0}, dict.fromkeys("abcd", 10.0)
    # Of 80 s links have 10, where two parts fit; the others leave 28 s.
    begun, said = run(clock, 80, ("links", links), ("sweep", sweep), ("layouts", layouts))
    assert begun == ["abcd", "a", "abcd"]
    assert not said
    assert clock() == 1000 + 16 + 4 + 40


def test_what_there_is_no_room_for_in_the_end_is_said(clock: Clock) -> None:
    links, layouts = dict.fromkeys("abcdefgh", 6.0), dict.fromkeys("abcd", 20.0)
    begun, said = run(clock, 60, ("links", links), ("layouts", layouts))
    # Links have 10 s of 60, layouts what is left of them; the last 14 s are enough for two of the short parts.
    assert begun == ["abc", "ab"]
    assert said == ["links: left out for want of time: d; e; f; g; h", "layouts: left out for want of time: c; d"]
    assert clock() <= 1060


def test_of_many_parts_that_are_left_out_some_are_named(clock: Clock) -> None:
    begun, said = run(clock, 60, ("sweep", dict.fromkeys("abcdefghij", 50.0)))
    assert begun == ["a"]
    assert said == ["sweep: left out for want of time: b; c; d; e; f; g and 3 more"]


def test_another_part_is_taken_to_last_as_long_as_the_longest(clock: Clock) -> None:
    begun, _ = run(clock, 60, ("sweep", {"a": 25, "b": 1, "c": 1, "d": 10, "e": 1}))
    assert begun == ["abcd"]


def test_a_part_that_came_to_nothing_says_nothing_of_the_next(clock: Clock) -> None:
    begun, _ = run(clock, 60, ("sweep", {"a": 35, "b": 10, "c": 10, "d": 10}), failing="a")
    assert begun == ["abc"]


def test_the_first_part_is_begun_however_small_the_share(clock: Clock) -> None:
    begun, said = run(clock, 60, ("links", {"a": 30, "b": 1}), ("sweep", {"a": 20}), ("layouts", {"a": 20}))
    assert begun == ["a", "a", "a"]
    assert said == ["links: left out for want of time: b"]


def test_a_step_that_comes_too_late_is_left_out_whole(clock: Clock) -> None:
    begun, said = run(clock, 60, ("links", {"a": 70}), ("sweep", {"a": 1}), ("layouts", {"a": 1}))
    assert begun == ["a", "", ""]
    assert said == ["sweep: left out for want of time", "layouts: left out for want of time"]


def test_ranks_that_start_anew_are_waited_for_first(clock: Clock) -> None:
    time_left = BoxTime(1, {"sweep": 1}, print, clock)
    time_left.begin("sweep")
    starting: Any = SimpleNamespace(start=lambda: clock.passes(20))
    assert time_left.limit_s(starting) == pytest.approx(40)


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
    endless, ended, own = BoxTime(None, SHARES, print), BoxTime(1, SHARES, print), BoxTime(1, SHARES, print)
    for each, most in ((endless, 300), (ended, 300), (own, 0.1)):
        each.begin("links")
        each.limit_s(RANKS, most)
    assert endless.why(late) == own.why(late) == "rank 1 of 2 did not answer within 9 s"
    assert ended.why(late) == "stopped for want of time"
    assert endless.why(other) == ended.why(other) == "a\nb"
    late.hang = Diagnosis("ranks 0 and 1 wait for each other", {}, (), (), reason="circle")
    assert ended.why(late) == "stopped for want of time (ranks 0 and 1 wait for each other)"
    late.hang = Diagnosis("rank 1 never came", {}, (1,), ())  # it may have been on its way
    assert ended.why(late) == "stopped for want of time"
    assert not endless.is_no_fault(late)
    assert not own.is_no_fault(late)
    assert ended.is_no_fault(late)
    assert not ended.is_no_fault(other)
    assert not ended.is_no_fault(None)


@pytest.mark.parametrize("minutes", [0, -1, math.nan, math.inf, 1e9, "9"])
def test_minutes_that_are_none(minutes: float) -> None:
    with pytest.raises(ValueError, match="minutes must be a number above 0 and at most 1,000,000"):
        BoxTime(minutes, SHARES, print)
