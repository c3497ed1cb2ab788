"""Two ranks talking, without a browser: what the buttons do, and that the picture says of each process what is true."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from tplab.checks import ArgumentError
from tplab.cluster import NoRoom, RankDied, State, admission
from tplab.lab import Pool, TwoRanks

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool(2, backend="gloo")
    yield pool
    pool.close()


@pytest.fixture
def two(pool: Pool) -> Iterator[TwoRanks]:
    two = TwoRanks(pool)
    yield two
    two.stop()
    wait_for(lambda: not two.scene["busy"])


def wait_for(condition: Callable[[], object], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def press(two: TwoRanks, **message: Any) -> None:
    two._pressed(None, message, [])


def states(two: TwoRanks) -> list[str]:
    return [rank["state"] for rank in two.scene["ranks"]]


def pids(two: TwoRanks) -> list[int]:
    return [rank["pid"] for rank in two.scene["ranks"]]


def test_run_shows_what_the_ranks_held_and_how_long_it_took(two: TwoRanks, pool: Pool) -> None:
    values = two.run(flights=2)
    assert [(value["had"], value["got"], value["correct"]) for value in values] == [(1.0, 3.0, True), (2.0, 3.0, True)]
    scene = two.scene
    assert pids(two) == list(pool.cluster.pids)
    assert [(rank["got"], rank["correct"]) for rank in scene["ranks"]] == [(3.0, True), (3.0, True)]
    assert (scene["flight"], scene["count"], scene["badge"]) == (2, 200, "LIVE gloo · 2 ranks")
    assert 1 < scene["median_us"] < 1e6
    assert scene["status"] == "Done: 200 all-reduces, 3 on every rank after each."
    assert not scene["busy"]
    assert scene["card"] is None
    assert states(two) == ["ready", "ready"]


def test_until_stop_lets_others_have_the_ranks_and_stops_softly(two: TwoRanks, pool: Pool) -> None:
    cluster = pool.cluster.start()
    before = cluster.pids
    cluster.run(lambda rank: rank.store.update(kept=1))
    press(two, press="run")
    wait_for(lambda: two.scene["flight"] == 1)
    assert states(two) == ["running", "running"]
    assert cluster.run(lambda rank: rank.store["kept"], timeout=20) == [1, 1]  # between two flights
    wait_for(lambda: two.scene["flight"] == 3)
    press(two, press="stop")
    assert two.scene["stopping"]
    wait_for(lambda: not two.scene["busy"], timeout=6)
    assert two.scene["card"] is None
    assert two.scene["status"].startswith("Done: 300")
    assert cluster.pids == before  # a stop costs no process

    press(two, press="run")  # and a cell that runs it ends what goes on until Stop
    wait_for(lambda: two.scene["busy"])
    assert len(two.run()) == 2
    assert two.scene["count"] == 100


def test_killed_while_it_talks(two: TwoRanks, pool: Pool) -> None:
    victim = 0
    press(two, press="run")
    wait_for(lambda: two.scene["ranks"][victim]["got"] == 3.0 and states(two) == ["running", "running"])
    old = pids(two)
    shown: list[tuple[float, dict[str, Any]]] = []
    two.observe(lambda change: shown.append((time.monotonic(), change["new"])), names="scene")
    pressed_at = time.monotonic()
    for _ in range(2):
        press(two, press="kill", rank=victim)
    wait_for(lambda: not two.scene["busy"])
    two.unobserve_all()
    card_at, first = next((at, scene) for at, scene in shown if scene["card"] is not None)
    assert first["card"]["title"] == f"Rank {victim} was killed by SIGKILL."
    assert 0 < first["card"]["noticed_ms"] <= (card_at - pressed_at) * 1e3
    assert card_at - pressed_at < 1.0  # 20 ms on a quiet machine
    assert not any(psutil.pid_exists(pid) for pid in old)
    assert states(two) == ["dead", "ended"]
    assert f"Rank {1 - victim} cannot all-reduce without it" in two.scene["card"]["text"]
    assert "talk()" in two.scene["card"]["details"]
    assert len(two.run()) == 2
    assert not set(pids(two)) & set(old)
    assert two.scene["card"] is None


def test_killed_while_they_wait_and_by_somebody_else(two: TwoRanks, pool: Pool) -> None:
    pool.cluster.start()
    wait_for(lambda: states(two) == ["ready", "ready"])
    two.run()
    two.kill(1)
    wait_for(lambda: states(two) == ["ended", "dead"])
    assert two.scene["card"]["title"] == "Rank 1 was killed by SIGKILL."
    two.kill(1)  # nobody is there
    pool.cluster.start()  # not by this picture's Run: the card is of ranks that are gone
    wait_for(lambda: states(two) == ["ready", "ready"])
    assert two.scene["card"] is None
    assert [(rank["got"], rank["last"]) for rank in two.scene["ranks"]] == [(None, 3.0), (None, 3.0)]
    assert two.scene["status"].endswith("3 on every rank after each. These processes are new since.")
    os.kill(pids(two)[0], signal.SIGTERM)
    wait_for(lambda: states(two) == ["dead", "ended"])
    assert two.scene["card"]["title"] == "Rank 0 was killed by SIGTERM."
    assert two.scene["card"]["noticed_ms"] is None


def test_killed_while_they_start() -> None:
    pool = Pool(2, backend="gloo")
    two = TwoRanks(pool)
    try:
        assert states(two) == ["none", "none"]
        two.kill(1)  # no ranks yet
        press(two, press="run")
        wait_for(lambda: states(two) == ["starting", "starting"] and len(pool.cluster.pids) == 2)
        press(two, press="run")  # pressed again: it is under way
        press(two, press="kill", rank=1)
        wait_for(lambda: not two.scene["busy"])
        assert states(two) == ["ended", "dead"]
        assert "while starting" in two.scene["card"]["details"]
        threading.Timer(0.2, lambda: two.kill(0)).start()
        with pytest.raises(RankDied):
            two.run(flights=5)
        assert len(two.run()) == 2
    finally:
        pool.close()


def test_another_number_of_ranks_and_a_stopped_pool(two: TwoRanks, pool: Pool) -> None:
    pool.num_ranks = 3
    try:
        assert [value["got"] for value in two.run()] == [6.0] * 3
        assert states(two) == ["ready"] * 3
        with pytest.raises(ArgumentError, match="rank must be"):
            two.kill(3)
        with pytest.raises(ArgumentError, match="flights must be"):
            two.run(0)
        press(two, press="run")
        wait_for(lambda: two.scene["busy"] and "running" in states(two))
        pool.stop()  # the reader's own wish: no card
        wait_for(lambda: states(two) == ["none"] * 3 and not two.scene["busy"])
        assert two.scene["card"] is None
        assert two.scene["status"] == "No processes. Press Run: 3 ranks start by themselves."
    finally:
        pool.num_ranks = 2


def test_what_others_do_is_not_taken_for_its_own(two: TwoRanks, pool: Pool) -> None:
    other = pool.cluster.start().submit(lambda rank: time.sleep(1.0))
    wait_for(lambda: states(two) == ["running", "running"])
    assert two.scene["status"] == "Both ranks are at work for another cell."
    press(two, press="run")
    assert two.scene["status"] == "Waiting for what runs on these ranks."
    press(two, press="stop")  # it has not begun: at once
    wait_for(lambda: not two.scene["busy"], timeout=0.5)
    assert other.result() == [None, None]


def test_too_little_memory_is_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "torch_is_for_cuda", lambda: False)
    monkeypatch.setattr(admission, "free_memory", lambda: admission.FreeMemory(num_bytes=200_000_000, where="here"))
    pool = Pool(2, backend="gloo")
    two = TwoRanks(pool)
    try:
        with pytest.raises(NoRoom):
            two.run()
        assert two.scene["card"]["title"] == "Too little memory for these ranks."
    finally:
        pool.close()


def test_the_recording_is_of_a_real_run() -> None:
    """It has everything in it once: a start, talk, a kill that is noticed, fresh processes."""
    recording = TwoRanks().recording
    scenes = [scene for _, scene in recording]
    times = [at for at, _ in recording]
    assert times == sorted(times)
    assert all(scene["badge"].startswith("RECORDED") for scene in scenes if scene["count"])
    seen = [tuple(rank["state"] for rank in scene["ranks"]) for scene in scenes]
    wanted = [
        ("starting",) * 2,
        ("running",) * 2,
        ("ended", "dead"),
        ("starting",) * 2,
        ("running",) * 2,
        ("ready",) * 2,
    ]
    at = 0
    for state in wanted:
        at = seen.index(state, at)
    first, last = (next(s for s in order if s["count"]) for order in (scenes, scenes[::-1]))
    assert not {rank["pid"] for rank in first["ranks"]} & {rank["pid"] for rank in last["ranks"]}
    assert {rank["got"] for rank in last["ranks"]} == {3.0}
    assert next(s for s in scenes if s["card"])["card"]["noticed_ms"] < 500
    assert State(scenes[-1]["phase"]) is State.READY
    still = TwoRanks(Pool(2, backend="gloo")).still_state()  # what a page shows when these ranks are gone
    assert (still["live"], len(still["recording"])) == (False, len(recording))
