"""Figures are pure functions of a frame: what they draw is tested without a browser."""

import pandas as pd
import pytest

from tplab.lab import style
from tplab.lab.figures import calls_figure, launch_figure, timings_figure
from tplab.lab.figures.launch import predict_launch


@pytest.fixture
def launches() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"num_ranks": n, "phase": phase, "seconds": seconds * n, "num_cores": 2}
            for n in (1, 2, 4)
            for phase, seconds in (("interpreter", 0.1), ("import torch", 1.4))
        ]
    )


def badge_of(figure: object) -> str:
    return figure.layout.annotations[-1].text  # type: ignore[attr-defined]


@pytest.mark.parametrize(("num_ranks", "cores", "factor"), [(1, 2, 1), (2, 2, 1), (3, 2, 1.5), (4, 2, 2), (4, 64, 1)])
def test_launch_model_shares_cores_only_when_there_are_too_few(num_ranks: int, cores: int, factor: float) -> None:
    assert predict_launch(num_ranks, 1.5, cores) == pytest.approx(1.5 * factor)


def test_launch_figure_stacks_phases_under_the_model(launches: pd.DataFrame) -> None:
    figure = launch_figure(launches, badge="LIVE gloo · 4 ranks", prediction_s=9.0)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [trace.name for trace in bars] == ["interpreter", "import torch"]
    assert list(bars[1].y) == pytest.approx([1.4, 2.8, 5.6])
    model, guess = (trace for trace in figure.data if trace.type == "scatter")
    assert list(model.y) == pytest.approx([1.5, 1.5, 3.0])
    assert (list(guess.x), list(guess.y)) == (["4"], [9.0])
    assert "LIVE gloo · 4 ranks" in badge_of(figure)
    assert figure.layout.paper_bgcolor == "white"  # readable in the dark theme


def test_calls_figure_names_its_medians() -> None:
    frame = pd.DataFrame({"call": [0, 1, 2], "call_ms": [2.0, 4.0, 90.0], "function_ms": [1.0, 1.5, 2.0]})
    figure = calls_figure(frame, badge="LIVE gloo · 2 ranks", prediction_ms=50.0)
    assert [trace.name.rsplit("(", 1)[1] for trace in figure.data] == ["median 4.00 ms)", "median 1.50 ms)"]
    assert any(shape.y0 == 50.0 for shape in figure.layout.shapes)


def test_timings_figure_thins_the_points_and_not_the_statistics() -> None:
    frame = pd.DataFrame({"repeat": range(100_000), "max_us": [1.0] * 50_001 + [9.0] * 49_999})
    figure = timings_figure(frame, title="t", badge="LIVE gloo · 2 ranks")
    points, median, p95 = figure.data
    assert len(points.x) < 2000
    assert "100,000 repetitions" in points.name
    assert (median.y[0], p95.y[0]) == (1.0, 9.0)


def test_timings_figure_of_nothing_is_an_empty_card() -> None:
    figure = timings_figure(pd.DataFrame({"repeat": [], "max_us": []}), title="t", badge="MODEL")
    assert not figure.data
    assert "MODEL" in badge_of(figure)


@pytest.mark.parametrize(("badge", "colour"), [("LIVE x", "#007E5D"), ("RECORDED x", "#0B3D84"), ("MODEL", "#5B6472")])
def test_badges_differ_in_colour(badge: str, colour: str) -> None:
    assert style.badge_colour(badge) == colour


def test_log_ticks_cover_the_values_at_one_two_five() -> None:
    ticks = style.log_ticks([0.3, 40.0])
    assert ticks["tickvals"][0] <= 0.3
    assert ticks["tickvals"][-1] >= 40.0
    assert {"0.5", "1", "2", "20", "50"} <= set(ticks["ticktext"])
    assert style.log_ticks([])["tickvals"]  # nothing measured yet
