"""The steps for a machine with several GPUs, over gloo and small: files, frames, faults that do not stop the others."""

import json
from pathlib import Path

import pandas as pd
import pytest

import tplab.topology.box as box
from tplab.topology.box import STEPS, measure_box

pytestmark = pytest.mark.timeout(150)


@pytest.fixture(scope="module")
def measured(no_ranks_left: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, pd.DataFrame]]:
    out = tmp_path_factory.mktemp("box") / "made"
    return out, measure_box(out, num_ranks=3, backend="gloo", say=lambda _: None)


def test_every_step_has_a_frame_and_a_file(measured: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    out, frames = measured
    assert set(frames) == set(STEPS)
    for step, frame in frames.items():
        stored = pd.read_csv(out / f"{step}.csv")
        assert list(stored.columns) == list(frame.columns)
        assert len(stored) == len(frame) > 0
        assert {"backend", "num_ranks", "device", "torch_version"} <= set(stored.columns)


def test_links_of_every_pair(measured: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    links = measured[1]["links"]
    assert len(links) == 6
    assert (links["latency_us"] > 0).all()
    assert (links["GBps"] > 0).all()


def test_sweeps_of_two_ranks_and_of_all(measured: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    sweep = measured[1]["sweep"]
    assert set(sweep["num_ranks"]) == {2, 3}
    assert set(sweep["algorithm"]) == {"library", "ring", "int8-two-shot"}
    assert sweep["correct"].all()


def test_layers_are_right_in_every_strategy(measured: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    layers = measured[1]["layers"]
    assert layers.groupby("tokens").size().nunique() == 1
    int8 = layers["strategy"].str.startswith("Int8")
    assert (layers.loc[~int8, "error"] < 1e-4).all()
    assert (layers.loc[int8, "error"] < 0.05).all()


def test_pipelines_take_as_long_as_simulated_or_longer(measured: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    out, frames = measured
    pipeline = frames["pipeline"]
    assert pipeline["schedule"].tolist() == ["forward-only", "gpipe", "1f1b"]
    assert (pipeline["makespan_ms"] > 0.5 * pipeline["simulated_ms"]).all()
    for name in pipeline["schedule"]:
        trace = json.loads((out / f"pipeline-{name}.json").read_text())
        assert trace["otherData"]["backend"] == "gloo"
        assert any(event.get("cat") == "forward" for event in trace["traceEvents"])


def test_a_step_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> pd.DataFrame:
        raise ValueError("no such links")

    monkeypatch.setattr(box, "links_step", broken)
    said: list[str] = []
    frames = measure_box(tmp_path, num_ranks=2, backend="gloo", steps=["links", "sweep"], say=said.append)
    assert set(frames) == {"sweep"}
    assert "no such links" in said[0]
    assert "sweep.csv" in said[1]
    assert not (tmp_path / "links.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_ranks": 1}, "num_ranks must be at least 2"),
        ({"num_ranks": 2, "steps": ["weather"]}, "steps must be out of links, .*got 'weather'"),
    ],
)
def test_bad_input(arguments: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        measure_box(tmp_path, **arguments)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be made a folder"):
        measure_box(tmp_path / "file" / "below", num_ranks=2)
