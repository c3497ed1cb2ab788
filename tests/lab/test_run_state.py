"""Panels never lie: whatever happens to a run, figure, words, bar and ribbon tell the same story."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from html import unescape
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go
import psutil
import pytest
import torch.distributed
from ipywidgets.widgets.widget import _instances

from tplab.cluster import RankDied, RankError, RunStopped
from tplab.cluster.rank import Rank
from tplab.lab import HelloPanel, Pool, SweepPanel, style
from tplab.lab.panels import RunPanel
from tplab.lab.panels.crossover import CrossoverPanel
from tplab.lab.panels.editor import EditorPanel
from tplab.lab.panels.generation import GenerationPanel
from tplab.lab.panels.hang import HangPanel
from tplab.lab.panels.layers import OverlapPanel, PhasesPanel
from tplab.lab.panels.memory_wall import ShardsPanel
from tplab.lab.panels.pipeline import PipelinePanel, ServingPanel
from tplab.lab.panels.profile import ProfilePanel
from tplab.lab.panels.race import RacePanel
from tplab.lab.panels.run_state import Work
from tplab.lab.panels.verification import CalibrationPanel, VerifyPanel, verified_model
from tplab.lab.panels.writing import WritingPanel

pytestmark = pytest.mark.timeout(120)


def wait_for(condition: Callable[[], Any], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def text_of(widget: widgets.HTML) -> str:
    return " ".join(unescape(re.sub("<[^>]+>", " ", widget.value)).split())


def says(panel: RunPanel) -> dict[str, str]:
    """Everything the panel says, by place."""
    places = {"ribbon": panel._ribbon, "error": panel._error, "shown": panel._shown, "so far": panel._so_far}
    return {"status": panel._status.words} | {name: text_of(widget) for name, widget in places.items()}


def counting(rank: Rank, steps: int, fault: str) -> int:
    """Reports each step; a fault at step 2, on rank 1."""
    for step in range(steps):
        if step == 2 and fault == "raise" and rank == 1:
            raise ValueError("step 2 went wrong")
        if fault != "silent":
            rank.report(phase="count", done=step + 1, total=steps, value=step)
        if step >= 2:
            time.sleep(0.05)
    return steps


class Counter(RunPanel):
    """A panel whose run, drawing and faults the tests choose."""

    def __init__(self, pool: Pool, title: str = "Counting") -> None:
        named = {
            "steps": widgets.IntSlider(value=3, min=1, max=100_000, description="steps"),
            "fault": widgets.Dropdown(options=("none", "raise", "silent", "refuse"), description="fault"),
        }
        self.clumsy = False
        super().__init__(pool, title=title, named=named, views=("Line", "Sum"))

    def submit(self, cluster: Any, settings: dict[str, Any]) -> Any:
        if settings["fault"] == "refuse":
            raise ValueError("fault must not be 'refuse'")
        run = cluster.submit(counting, settings["steps"], settings["fault"], timeout=None, on_report=self.on_report)
        return run, f"plan of {settings['steps']}"

    def draw(self, work: Work) -> Any:
        if self.clumsy:
            raise ZeroDivisionError("a drawing that fails")
        seen = [report.fields["value"] for report in work.run.reports if "value" in report.fields]
        if not seen:
            return None, "nothing yet"
        figure = style.card(go.Figure(go.Scatter(y=seen)), title=f"{self._look.value}: {work.plan}", badge=work.badge)
        return figure, f"<p>{work.settings['steps']} steps</p>"


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool(2, backend="gloo")
    yield pool
    pool.close()


@pytest.fixture
def panel(pool: Pool) -> Counter:
    return Counter(pool)


@pytest.fixture
def occupied(pool: Pool) -> Iterator[Callable[[], None]]:
    """Ranks that are busy with a cell until the returned function is called."""
    run = pool.cluster.start().submit(lambda rank: time.sleep(60))
    wait_for(run.running)
    yield run.stop
    run.stop()


def title_of(panel: RunPanel) -> str:
    assert panel.figure is not None
    return str(panel.figure.layout.title.text)


class TestWhatIsSaid:
    def test_before_the_first_run(self, panel: Counter) -> None:
        assert says(panel) == {"status": "Not run yet.", "ribbon": "", "error": "", "shown": "", "so far": ""}
        assert (panel._status.share, panel._status.outcome, panel.figure) == (0.0, "", None)
        assert panel._view.alt == "Press Run: the figure appears here."

    def test_a_run_that_ended_well_says_which_it_is(self, panel: Counter) -> None:
        assert panel.configure(steps=2).run() == [2, 2]
        assert title_of(panel) == "Line: plan of 2"
        assert re.fullmatch(r"Done in \d+\.\d\d s\.", panel._status.words)
        assert (panel._status.share, panel._status.outcome) == (1.0, "success")
        assert re.fullmatch(
            r"Run of \d\d:\d\d:\d\d on LIVE gloo · 2 ranks: steps 2, fault none\.", says(panel)["shown"]
        )
        assert says(panel)["ribbon"] == ""
        assert panel._view.alt == "Line: plan of 2. 2 steps"
        panel.configure(steps=3)
        assert says(panel)["ribbon"] == "Settings changed since this run (steps 2): press Run to measure them."
        panel.configure(steps=2)
        assert says(panel)["ribbon"] == ""

    def test_while_others_have_the_ranks_it_names_them(self, pool: Pool, panel: Counter, occupied: Any) -> None:
        other = Counter(pool, "Counting <elsewhere>")
        other._run_button.click()
        assert other._status.words == "Waiting for another cell …"
        other.configure(steps=100_000)
        panel._run_button.click()
        assert panel._status.words == "Waiting for Counting <elsewhere> …"
        assert (panel._run_button.disabled, panel._stop_button.disabled) == (True, False)
        with pytest.raises(RuntimeError, match=r"Counting is running already: .*stop\(\)"):
            panel.run()
        occupied()
        wait_for(other._ended.is_set)
        wait_for(panel._ended.is_set)
        assert panel._status.words.startswith("Done in")
        assert panel.state.drawn.run is panel.state.work.run

    def test_fresh_ranks_are_told_from_the_first(self) -> None:
        with_ranks = Pool(1, backend="gloo")
        try:
            panel = Counter(with_ranks)
            panel._run_button.click()
            assert panel._status.words == "Starting the ranks …"
            wait_for(panel._ended.is_set)
            with_ranks.stop()
            panel._run_button.click()
            assert panel._status.words == "Starting fresh ranks …"
            assert says(panel)["ribbon"].startswith("Not of this run yet. Shown: the run before, of ")
            wait_for(panel._ended.is_set)
            assert says(panel)["ribbon"] == ""
        finally:
            with_ranks.close()


class TestHowARunEnds:
    def test_stopped_before_it_measured_anything(self, panel: Counter, occupied: Any) -> None:
        panel._run_button.click()
        panel.stop()
        wait_for(panel._ended.is_set)
        assert says(panel) == {
            "status": "Stopped. Nothing was measured.", "ribbon": "", "error": "", "shown": "", "so far": ""
        }  # fmt: skip
        assert panel._status.outcome == "warning"
        assert panel.figure is None

    def test_stopped_early_after_another_run_the_figure_says_of_which_it_is(self, pool: Pool, panel: Counter) -> None:
        panel.configure(steps=2).run()
        figure = panel.figure
        panel.configure(steps=1000, fault="silent")
        panel._run_button.click()
        wait_for(lambda: panel.state.stage == "running")
        assert re.fullmatch(
            r"Not of this run yet\. Shown: the run before, of \S+ \(steps 2, fault none\)\.", says(panel)["ribbon"]
        )
        panel.stop()
        wait_for(panel._ended.is_set)
        assert panel.figure is figure
        told = says(panel)
        assert told["status"] == "Stopped. Nothing was measured. The figure is of an earlier run."
        assert re.fullmatch(
            r"Nothing was measured in the run of \S+\. Shown: an earlier run, of \S+ \(steps 2, fault none\)\.",
            told["ribbon"],
        )
        assert "steps 2, fault none" in told["shown"]
        panel._look.value = "Sum"
        assert title_of(panel) == "Sum: plan of 2"
        assert says(panel)["ribbon"] == told["ribbon"]

    def test_stopped_after_some_it_is_partial(self, panel: Counter) -> None:
        panel.configure(steps=100_000)
        panel._run_button.click()
        wait_for(lambda: panel.figure is not None)
        panel.stop()
        wait_for(panel._ended.is_set)
        told = says(panel)
        assert told["status"] == "Stopped. What was measured until then is shown."
        assert told["ribbon"] == "Only what was measured until the run was stopped."
        assert told["error"] == ""
        assert isinstance(panel.state.error, RunStopped)
        assert panel._status.share < 1.0
        with pytest.raises(ValueError, match="fault must not be"):
            panel.configure(fault="refuse").run()
        assert says(panel)["ribbon"].startswith("Only what was measured until the run was stopped.")  # it still is
        panel.configure(steps=2, fault="none").run()
        assert says(panel)["ribbon"] == ""

    def test_an_error_on_a_rank(self, panel: Counter) -> None:
        with pytest.raises(RankError):
            panel.configure(steps=9, fault="raise").run()
        told = says(panel)
        assert told["status"] == "Failed. What was measured until then is shown."
        assert "Rank 1 raised an error." in told["error"]
        assert "What the ranks said" in told["error"]
        assert told["ribbon"] == "Only what was measured until the run failed."
        assert panel._status.outcome == "danger"

    def test_a_killed_rank(self, pool: Pool, panel: Counter) -> None:
        panel.configure(steps=100_000)
        panel._run_button.click()
        wait_for(lambda: panel.figure is not None)
        os.kill(pool.cluster.pids[1], signal.SIGKILL)
        wait_for(panel._ended.is_set)
        assert isinstance(panel.state.error, RankDied)
        assert "Rank 1 died" in says(panel)["error"]
        assert panel._status.outcome == "danger"
        panel._look.value = "Sum"  # its ranks are gone; what they measured is not
        assert title_of(panel) == "Sum: plan of 100000"
        panel.configure(steps=2).run()
        assert says(panel)["error"] == ""

    @pytest.mark.parametrize(
        ("end", "status"),
        [
            (lambda pool: pool.cluster.restart(), "Ended: its ranks were restarted."),
            (lambda pool: pool.stop(), "Ended: the pool was stopped or replaced."),
        ],
    )
    def test_ranks_that_somebody_else_ended(self, pool: Pool, panel: Counter, end: Any, status: str) -> None:
        panel.configure(steps=100_000)
        panel._run_button.click()
        wait_for(lambda: panel.figure is not None)
        end(pool)
        wait_for(panel._ended.is_set)
        told = says(panel)
        assert told["status"] == f"{status} What was measured until then is shown."
        assert told["error"] == ""
        panel._look.value = "Sum"
        assert title_of(panel) == "Sum: plan of 100000"

    def test_a_setting_that_cannot_work(self, panel: Counter) -> None:
        panel.configure(steps=2).run()
        with pytest.raises(ValueError, match="fault must not be"):
            panel.configure(fault="refuse").run()
        told = says(panel)
        assert told["status"] == "Not run: a setting cannot work."
        assert told["error"] == "A setting cannot work. fault must not be 'refuse'"  # no rank said anything
        assert "steps 2, fault none" in told["shown"]
        assert (panel._status.share, panel._status.outcome) == (0.0, "")
        assert (panel._run_button.disabled, panel._stop_button.disabled) == (False, True)

    def test_a_drawing_that_fails_is_no_success(self, panel: Counter) -> None:
        panel.configure(steps=2).run()
        before = panel.figure
        panel.clumsy = True
        with pytest.raises(ZeroDivisionError):
            panel.run()
        told = says(panel)
        assert told["status"].endswith("but it could not be drawn.")
        assert told["error"].startswith("The figure could not be drawn.")
        assert panel._status.outcome == "danger"
        assert panel.figure is before
        assert re.match(r"The run of \S+ could not be drawn\. Shown: an earlier run, of \S+ \(", told["ribbon"])
        panel.clumsy = False
        panel.run()
        assert says(panel)["error"] == ""


QUICK: dict[type[RunPanel], dict[str, Any]] = {
    HelloPanel: {"repeats": 10},
    SweepPanel: {"sizes": (256, 512)},
    CrossoverPanel: {},
    PhasesPanel: {"tokens": (1,), "hidden": 256},
    OverlapPanel: {"chunks": (1,), "tokens": 256, "in_features": 1024},
    PipelinePanel: {"m": 2, "forward_ms": 2, "hop_ms": 0},
    EditorPanel: {"forward_ms": 2},
    ServingPanel: {"what": "prefill", "stage_ms": 2, "last_ms": 2, "hop_ms": 0},
    GenerationPanel: {"new_tokens": 8, "sequences": 1, "prompt_tokens": 8},
    ShardsPanel: {"layers": 2, "batch": 1, "context": 16},
    ProfilePanel: {"batch": 1, "prompt_length": 32},
    RacePanel: {"nbytes": 1 << 18, "algorithms": ["ring"]},
    WritingPanel: {"new_tokens": 16},
    CalibrationPanel: {},
    VerifyPanel: {"hidden": 256, "layers": 2, "tokens": 4, "rounds": 1},
    HangPanel: {"timeout_s": 1},
}
"""Every panel that runs something on ranks, with settings that take little time."""
OTHER: dict[type[RunPanel], dict[str, Any]] = {
    HelloPanel: {"reduction": "MAX"},
    SweepPanel: {"dtypes": ("float64",)},
    HangPanel: {"function": "leaves_later"},
    PhasesPanel: {"tokens": (4, 16)},
    OverlapPanel: {"chunks": (1, 2)},
    PipelinePanel: {"schedule": "gpipe", "m": 4},
    EditorPanel: {"forward_ms": 4},
    ServingPanel: {"what": "decode ring"},
    GenerationPanel: {"new_tokens": 16, "family": "qwen3"},
    ShardsPanel: {"tp": 1},
    ProfilePanel: {"batch": 4},
    RacePanel: {"algorithms": ["one-shot"]},
    WritingPanel: {"seed": 2},
    CalibrationPanel: {"link": "2 ms, 0.2 GB/s"},
    VerifyPanel: {"layers": 3},
}
"""Settings that the next run has."""


def panels_from(kind: type[RunPanel]) -> set[type[RunPanel]]:
    """All that people use: what only others are made from is no panel itself."""
    below = kind.__subclasses__()
    return set().union(*map(panels_from, below)) | ({kind} - {RunPanel} if not below else set())


def test_every_panel_is_tried() -> None:
    import tplab.lab

    for name in tplab.lab.__all__:
        getattr(tplab.lab, name)
    ours = {kind for kind in panels_from(RunPanel) if kind.__module__.startswith("tplab.")}
    assert ours == QUICK.keys()


def leaves_early(rank):  # type: ignore[no-untyped-def]
    if rank == 0:
        torch.distributed.barrier()


def leaves_later(rank):  # type: ignore[no-untyped-def]
    leaves_early(rank)


def made(kind: type[RunPanel], pool: Pool) -> RunPanel:
    if kind is HangPanel:
        return HangPanel(pool, leaves_early, leaves_later)
    if kind is ProfilePanel:
        return ProfilePanel(pool, verified_model(256, 2))
    if kind is VerifyPanel:
        calibrated = CalibrationPanel(pool)
        calibrated.run()
        return VerifyPanel(calibrated)
    return kind(pool)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", QUICK, ids=lambda kind: kind.__name__)
def test_a_panel_whose_next_run_was_stopped_at_once_shows_the_one_before(kind: type[RunPanel], pool: Pool) -> None:
    panel = made(kind, pool)
    assert panel.figure is None
    drop_downs = [control for control in panel._named.values() if isinstance(control, widgets.Dropdown)]
    assert [control.description for control in drop_downs if control.value is None] == []  # would show nothing
    panel.configure(**QUICK[kind])
    panel.run()
    titles = {}
    for view in panel._look.options or ("",):
        if view:
            panel._look.value = view
        titles[view] = title_of(panel)
    figure, shown = panel.figure, says(panel)["shown"]
    panel.configure(**OTHER.get(kind, {}))
    blocker = pool.cluster.submit(lambda rank: time.sleep(60))
    try:
        clicked_at = time.monotonic()
        panel._run_button.click()
        assert time.monotonic() - clicked_at < 2.0, "the kernel waits for other work"
        wait_for(lambda: panel.state.stage == "waiting")
        assert panel._status.words == "Waiting for another cell …"
        assert kind is CrossoverPanel or says(panel)["ribbon"].startswith("Not of this run yet.")
        panel.stop()
        assert panel.asks_ranks or panel._ended.wait(5)  # those that ask the ranks end when they are answered
    finally:
        blocker.stop()
    wait_for(panel._ended.is_set)
    told = says(panel)
    assert panel.figure is figure or kind is CrossoverPanel  # whose drawing goes by its controls
    assert told["status"] == "Stopped. Nothing was measured. The figure is of an earlier run."
    assert told["ribbon"].startswith("Nothing was measured in the run of")
    assert told["shown"] == shown
    for view, title in titles.items():
        if view:
            panel._look.value = view
            assert title_of(panel) == title
    assert panel.state.unclear is None


def test_memory_is_flat_over_fifty_runs(pool: Pool) -> None:
    panel = HelloPanel(pool).configure(repeats=10)
    process = psutil.Process()

    def after(runs: int) -> tuple[int, int, int]:
        for _ in range(runs):
            panel.run()
        return len(_instances), threading.active_count(), process.memory_info().rss

    after(10)
    widgets_before, threads_before, bytes_before = after(1)
    widgets_after, threads_after, bytes_after = after(50)
    assert widgets_after == widgets_before
    assert threads_after <= threads_before
    assert bytes_after - bytes_before < 8e6
    assert len(pool._queued) == 1
