"""The crossover map's figures and panel without a browser: pictures of frames, a click, a recording, this machine."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from tplab.collectives import comparable, engine_losses, engine_rules
from tplab.lab import CrossoverPanel, Pool, explain_losses
from tplab.lab.figures import crossover_figure, losses_figure
from tplab.lab.recorded import recorded

pytestmark = pytest.mark.timeout(120)
BOX = "4xH200-2026-11-26"


@pytest.fixture
def frame() -> pd.DataFrame:
    return comparable(recorded(BOX, "sweep"))


def strips_of(figure: Any) -> list[tuple[str, tuple[float, float]]]:
    """Name and edges of every piece of the strips."""
    lines = [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "lines"]
    return [(trace.y[0], tuple(trace.x)) for trace in lines]


def losses_of(frame: pd.DataFrame, device: str = "NVIDIA H200") -> pd.DataFrame:
    return engine_losses(frame, engine_rules(device, 4, 8192), hidden=8192, num_layers=80, batches=[1, 64])


def test_the_map_has_a_cell_per_size_and_algorithm_and_a_strip_per_engine(frame: pd.DataFrame) -> None:
    rules = engine_rules("NVIDIA H200", 4, 8192)
    figure = crossover_figure(frame, rules, badge="RECORDED x")
    grid = figure.data[0]
    assert (len(grid.y), len(grid.x)) == (3, 21)
    assert min(min(column) for column in zip(*grid.z, strict=True)) == 1.0
    strips = strips_of(figure)
    assert {name for name, _ in strips} == {"as measured", "vLLM", "SGLang", "TensorRT-LLM"}
    assert [end for name, (_, end) in strips if name == "vLLM"][:-1] == [512 << 10, 8 << 20]
    limits = [note.text for note in figure.layout.annotations]
    assert {"25.5 MiB", "512 KiB", "8 MiB", "<b>RECORDED x</b>"} <= set(limits)


def test_without_a_threshold_there_is_this_machine_alone(frame: pd.DataFrame) -> None:
    figure = crossover_figure(frame, engine_rules("AMD EPYC", 4, 8192), badge="LIVE x")
    assert {name for name, _ in strips_of(figure)} == {"as measured"}


def test_losses_are_drawn_and_said(frame: pd.DataFrame) -> None:
    losses = losses_of(frame)
    figure = losses_figure(losses, title="t", badge="RECORDED x")
    assert [bar.name for bar in figure.data] == ["vLLM", "SGLang", "TensorRT-LLM"]
    assert list(figure.data[0].x) == ["1", "64"]
    assert "TensorRT-LLM loses at most 1.29 ms per step, 8.1 µs per call, at batch 64" in explain_losses(losses)
    nothing = losses_of(frame, "AMD EPYC")
    assert explain_losses(nothing).startswith("vLLM, SGLang and TensorRT-LLM: no threshold for AMD EPYC")
    assert all(not bar.x for bar in losses_figure(nothing, title="t", badge="MODEL").data)


@pytest.fixture(scope="module")
def panel() -> Iterator[CrossoverPanel]:
    pool = Pool(2, backend="gloo")
    yield CrossoverPanel(pool)
    pool.stop()


class TestPanel:
    def test_nothing_is_drawn_before_a_run(self, panel: CrossoverPanel) -> None:
        assert panel.figure is None
        with pytest.raises(ValueError, match="press Run"):
            _ = panel.frame

    def test_a_recording_is_drawn_without_ranks(self, panel: CrossoverPanel) -> None:
        panel.configure(source=f"{BOX}, 4 ranks")
        assert panel.state.work is None
        assert "4 ranks" in panel.figure.layout.title.text
        assert panel.bands["algorithm"].tolist() == ["symmetric-two-shot", "library"]
        before = panel.losses["bytes"].iloc[0]
        panel.configure(model="llama-3.1-8b")
        assert panel.losses["bytes"].iloc[0] == before / 2
        panel._look.value = "Decode step"
        assert "Llama 3.1 8B, TP 4" in panel.figure.layout.title.text

    def test_this_machine_without_a_run_does_not_keep_the_recordings_figure(self, panel: CrossoverPanel) -> None:
        panel.configure(source=f"{BOX}, 4 ranks").configure(source="this machine")
        assert "Nothing measured yet" in panel.figure.layout.title.text
        assert panel._below.value == ""

    def test_run_measures_this_machine_and_shows_it(self, panel: CrossoverPanel) -> None:
        panel._look.value = "Map"
        panel.run()
        assert panel.settings()["source"] == "this machine"
        assert set(panel.frame["backend"]) == {"gloo"}
        assert panel.frame["correct"].all()
        assert "2 ranks" in panel.figure.layout.title.text
        assert "no threshold" in panel._below.value
        assert panel._ribbon.value == ""
        assert "Run of" in panel._shown.value
        panel.configure(source=f"{BOX}, 4 ranks")
        assert panel._shown.value == ""  # the figure is the recording's, and no run of these ranks
        panel.configure(source="this machine")
        assert "on LIVE gloo · 2 ranks" in panel._shown.value
