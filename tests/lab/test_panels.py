"""Panels without a browser: what a click runs, through the same methods."""

import os
import re
import signal
import time
from typing import Any

import psutil
import pytest

from tplab.cluster import RankDied, RunStopped, State
from tplab.lab import HelloPanel, Pool
from tplab.lab.panels import html
from tplab.lab.panels.figure_view import unpacked
from tplab.lab.panels.hello import slowest_per_repeat

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def pool() -> Pool:
    pool = Pool(2, backend="gloo")
    yield pool
    pool.stop()


@pytest.fixture
def panel(pool: Pool) -> HelloPanel:
    return HelloPanel(pool)


def click(button: object) -> None:
    button.click()  # type: ignore[attr-defined]


def wait_for(condition: object, timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def test_run_draws_the_figure_and_the_checked_table(panel: HelloPanel) -> None:
    values = panel.configure(reduction="PRODUCT", num_elements=1024, repeats=10).run()
    assert [value["got"] for value in values] == [2.0, 2.0]
    assert all(value["correct"] and len(value["us"]) == 10 for value in values)
    assert panel.figure is not None
    assert panel.figure.layout.title.text == "All-reduce (PRODUCT) of 4 KiB"
    assert "LIVE gloo · 2 ranks" in panel.figure.layout.annotations[-1].text
    assert panel._below.value.count("✓") == 2
    assert panel._status.share == 1.0
    assert unpacked(panel._view._plot)["data"]


def test_times_are_the_slowest_ranks(panel: HelloPanel) -> None:
    panel.configure(repeats=10).run()
    run = panel.state.work.run
    per_rank = [value["us"] for value in run.result()]
    assert slowest_per_repeat(run)["max_us"].tolist() == [max(pair) for pair in zip(*per_rank, strict=True)]


def test_the_ribbon_shows_while_settings_differ_from_the_run(panel: HelloPanel) -> None:
    panel.configure(reduction="SUM", repeats=10).run()
    assert panel._ribbon.value == ""
    panel._named["reduction"].value = "MAX"
    assert "Settings changed" in panel._ribbon.value
    panel._named["reduction"].value = "SUM"
    assert panel._ribbon.value == ""


def test_stop_keeps_what_was_measured_and_run_works_again(panel: HelloPanel) -> None:
    panel._named["repeats"].value = 10_000_000
    click(panel._run_button)
    assert panel._run_button.disabled
    assert not panel._stop_button.disabled
    wait_for(lambda: panel.state.work.run.reports)
    stopped_at = time.monotonic()
    click(panel._stop_button)
    wait_for(panel._ended.is_set)
    assert time.monotonic() - stopped_at < 2.0
    assert isinstance(panel.state.work.run.exception(), RunStopped)
    assert panel._status.words == "Stopped. What was measured until then is shown."
    assert panel._error.value == ""
    assert len(panel.figure.data[0].x) > 0
    assert panel._stop_button.disabled
    panel.configure(repeats=10).run()
    assert panel._error.value == ""


def test_a_dead_rank_shows_in_plain_words_and_run_works_again(panel: HelloPanel, pool: Pool) -> None:
    panel._named["repeats"].value = 10_000_000
    click(panel._run_button)
    wait_for(lambda: panel.state.work.run.reports)
    os.kill(pool.cluster.pids[1], signal.SIGKILL)
    wait_for(panel._ended.is_set)
    assert isinstance(panel.state.work.run.exception(), RankDied)
    assert "Rank 1 died" in panel._error.value
    panel.configure(repeats=10)
    assert len(panel.run()) == 2


def test_run_on_a_stopped_pool_starts_it(pool: Pool, panel: HelloPanel) -> None:
    pool.stop()
    wait_for(lambda: "stopped" in pool._chip.value)
    assert len(panel.configure(repeats=10).run()) == 2
    wait_for(lambda: "ready" in pool._chip.value)


@pytest.mark.parametrize(
    ("setting", "value"), [("reduction", "AVG"), ("num_elements", 3), ("repeats", 0), ("repeats", "many")]
)
def test_a_setting_that_is_not_offered_is_named(panel: HelloPanel, setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=setting):
        panel.configure(**{setting: value})


def test_the_chip_tells_the_state_and_buttons_follow() -> None:
    pool = Pool(1, backend="gloo")
    assert "stopped" in pool._chip.value
    assert pool._stop.disabled
    click(pool._start)
    wait_for(lambda: "ready" in pool._chip.value)
    assert "LIVE gloo · 1 rank" in pool._chip.value
    assert re.search(rf"process ids {pool.cluster.pids[0]}\b", pool._detail.value)
    assert re.search(r"Ready in \d+\.\d s \(.*import torch \d+\.\d.*\)", pool._detail.value)
    first = pool.cluster
    pool.num_ranks = 2
    assert pool.cluster.num_ranks == 2
    assert first.closed
    pool.start()
    click(pool._stop)
    wait_for(lambda: "stopped" in pool._chip.value)
    assert pool._cluster.state is State.CLOSED


def test_a_closed_pool_ends_its_ranks() -> None:
    pool = Pool(1, backend="gloo").start()
    pid = pool.cluster.pids[0]
    pool.close()
    wait_for(lambda: not psutil.pid_exists(pid))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_reduction_is_checked_against_what_it_must_be(n: int, clusters: Any) -> None:
    from tplab.cluster.hello import REDUCTIONS, all_reduce_hello

    for reduction in REDUCTIONS:
        values = clusters[n].run(all_reduce_hello, 5, reduction, 2)
        want = {"SUM": n * (n + 1) / 2, "PRODUCT": {1: 1, 2: 2, 3: 6}[n], "MIN": 1, "MAX": n}[reduction]
        assert [(v["got"], v["correct"]) for v in values] == [(want, True)] * n


def test_error_cards_escape_what_ranks_said() -> None:
    card = html.error_card(RuntimeError("<script>alert(1)</script>"))
    assert "<script>" not in card


def test_pool_resized(pool: Pool) -> None:
    """Fewer ranks are some of those there are; for more the pool grows, also to a number that was not offered."""
    whole = pool.cluster.start()
    assert pool.resized(1).run(lambda rank: rank.world_size) == [1]
    assert pool.resized(2).pids == whole.pids
    for wrong in (0, 65):
        with pytest.raises(ValueError, match="n must be"):
            pool.resized(wrong)
    assert pool.cluster is whole
    small = Pool(1, backend="gloo")
    try:
        assert small.resized(5).num_ranks == 5
        assert (small.num_ranks, small.cluster.num_ranks) == (5, 5)
        assert small.resized(2).badge == "LIVE gloo · 2 ranks"
    finally:
        small.stop()
