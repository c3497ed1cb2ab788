"""The figures and panels of notebook 02."""

import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from tplab.cluster import RankDied, RunStopped
from tplab.collectives.cost import AlphaBeta, Curve
from tplab.lab import Pool, SweepPanel
from tplab.lab.figures import algorithms_figure, busbw_figure, bytes_figure, latency_figure
from tplab.lab.figures.collectives import (
    explain_busbw,
    explain_emulated,
    explain_growth,
    explain_sweep,
    leave_one_out,
)
from tplab.lab.panels.figure_view import FigureView

pytestmark = pytest.mark.timeout(90)


def frame_of(alpha_us: float, beta_GBps: float, n: int = 4) -> pd.DataFrame:
    """A sweep on a machine that keeps to the line exactly."""
    sizes = np.array([1 << power for power in range(10, 25)])
    p50 = alpha_us + sizes / beta_GBps / 1e3
    return pd.DataFrame(
        {
            "algorithm": "library",
            "dtype": "float32",
            "bytes": sizes,
            "p50_us": p50,
            "p95_us": 1.2 * p50,
            "algbw_GBps": sizes / p50 / 1e3,
            "busbw_GBps": sizes / p50 / 1e3 * 2 * (n - 1) / n,
            "correct": True,
            "num_ranks": n,
        }
    )


def trace(figure: object, word: str) -> object:
    return next(item for item in figure.data if word in item.name)  # type: ignore[attr-defined]


def test_latency_figure_draws_points_whiskers_models_and_residuals() -> None:
    frame = frame_of(50.0, 2.0)
    figure = latency_figure(frame, badge="LIVE gloo · 4 ranks", link=AlphaBeta(alpha_us=5.0, beta_GBps=4.0))
    points = trace(figure, "measured")
    assert list(points.y) == frame["p50_us"].tolist()
    assert list(points.error_y.array) == pytest.approx((0.2 * frame["p50_us"]).tolist())
    assert "50 µs + S / 2.00 GB/s" in trace(figure, "line:").name
    assert max(abs(np.array(trace(figure, "error of the line").y))) < 1e-6
    bound = trace(figure, "lower bound")
    measured = np.interp(np.log(bound.x), np.log(frame["bytes"]), frame["p50_us"])
    assert (np.array(bound.y) <= measured).all()


def test_without_a_link_no_bound_is_drawn_and_an_empty_frame_is_an_empty_card() -> None:
    names = [item.name for item in latency_figure(frame_of(1.0, 1.0), badge="MODEL").data]
    assert not any("bound" in name for name in names)
    assert not latency_figure(frame_of(1.0, 1.0).head(0), badge="MODEL").data
    assert not busbw_figure(frame_of(1.0, 1.0).head(0), badge="MODEL").data


def test_left_out_points_are_predicted_by_the_others_only() -> None:
    sizes, times = np.array([1.0, 2.0, 4.0, 8.0]), np.array([10.0, 1000.0, 40.0, 80.0])
    predicted = leave_one_out(sizes, times)
    assert np.isnan(predicted[[0, 3]]).all()
    assert predicted[1] == pytest.approx(20.0)  # from 10 at 1 and 40 at 4, whatever was measured at 2


def test_bytes_figure_sets_counted_beside_formula() -> None:
    frame = pd.DataFrame({"algorithm": ["ring"] * 2, "rank": [0, 1], "counted_bytes": [4, 4], "formula_bytes": [4, 4]})
    figure = bytes_figure(frame, badge="LIVE gloo · 2 ranks")
    assert [list(item.y) for item in figure.data] == [[4, 4], [4, 4]]


def test_every_formula_stays_above_the_bound() -> None:
    figure = algorithms_figure(8, 3.0, 150.0)
    bound = np.array(trace(figure, "lower bound").y)
    for item in figure.data:
        assert (np.array(item.y) >= bound - 1e-9).all(), item.name


def test_the_words_say_the_fit_and_whether_results_were_right() -> None:
    frame = frame_of(50.0, 2.0)
    assert "50 µs + S / 2.00 GB/s is off by 0 %" in explain_sweep(frame)
    assert "Every result was checked" in explain_sweep(frame)
    frame.loc[3, "correct"] = False
    assert "WRONG on some rank: 1 results" in explain_sweep(frame)
    assert explain_sweep(frame.head(0)) == ""


def test_the_words_call_nearer_what_is_nearer() -> None:
    bent = frame_of(50.0, 2.0)
    bent["p50_us"] = 50 * (bent["bytes"] / 1024) ** 0.5  # no line, but a smooth curve
    assert "the curve is nearer" in explain_sweep(bent)
    scattered = frame_of(50.0, 2.0)
    scattered.loc[1::2, "p50_us"] *= 1.8
    assert "the curve is nearer" not in explain_sweep(scattered)
    assert "neither is clearly better" in explain_sweep(frame_of(50.0, 2.0))


def test_bus_bandwidth_of_several_numbers_of_ranks() -> None:
    both = pd.concat([frame_of(5.0, 300.0, n=2), frame_of(5.0, 200.0, n=4)])
    names = [item.name for item in busbw_figure(both, badge="MODEL").data]
    assert names == [
        *("busbw: library, float32, 2 ranks", "algbw: library, float32, 2 ranks"),
        *("busbw: library, float32, 4 ranks", "algbw: library, float32, 4 ranks"),
    ]
    assert "busbw is nearly a property of the links" in explain_busbw(both)
    assert "else than the links binds" in explain_busbw(pd.concat([frame_of(5.0, 2.0, n=2), frame_of(5.0, 2.0, n=4)]))
    assert "else than the links binds" in explain_busbw(pd.concat([frame_of(5.0, 9.0, n=2), frame_of(5.0, 3.0, n=4)]))
    assert explain_busbw(frame_of(5.0, 2.0, n=2)).endswith("On 2 ranks the factor is 1: both are the same.")
    assert explain_busbw(both.head(0)) == ""


def test_what_binds_a_message_is_said_from_twice_its_bytes() -> None:
    curve = Curve([1 << 10, 1 << 14, 1 << 20, 1 << 21, 1 << 25, 1 << 26], [10, 10, 20, 30, 170, 340])
    assert explain_growth("hop", curve, 1 << 12) == (
        "hop, 4 KiB: 10 µs; twice the bytes take 1.00 times as long: latency-bound"
    )
    assert explain_growth("hop", curve, 1 << 20).endswith("1.50 times as long: in between")
    assert explain_growth("hop", curve, 1 << 25).endswith("2.00 times as long: bandwidth-bound")


def test_the_words_on_a_declared_link_say_whether_large_messages_are_nearer() -> None:
    frame = pd.DataFrame({"bytes": [4096, 4096, 1 << 20], "p50_us": [1500.0, 1700.0, 10500.0], "formula_us": 0.0})
    frame["formula_us"] = [1000.0, 1000.0, 10000.0]
    frame["error_pct"] = 100 * (frame["p50_us"] / frame["formula_us"] - 1)
    frame["correct"] = True
    text = explain_emulated(frame)
    assert "4 KiB takes 600 µs more (+60 %), 1 MiB takes 500 µs more (+5 %)" in text
    assert "The larger the message, the nearer it comes" in text
    assert "the cores were busy" in explain_emulated(frame.assign(error_pct=[5.0, 5.0, 60.0]))
    assert "WRONG" in explain_emulated(frame.assign(correct=[True, False, True]))
    assert explain_emulated(frame.head(0)) == ""


def test_the_place_of_a_figure_is_as_high_as_the_figure() -> None:
    view = FigureView(min_height=300)
    view.show(go.Figure().update_layout(height=500))
    assert view.layout.min_height == "500px"
    view.show(go.Figure().update_layout(height=200))
    assert view.layout.min_height == "200px"  # nor is there a gap above the words below


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool(2, backend="gloo")
    yield pool
    pool.stop()


@pytest.fixture
def panel(pool: Pool) -> SweepPanel:
    return SweepPanel(pool).configure(sizes=(1 << 10, 1 << 14), dtypes=["float32"], algorithms=["library"])


def wait_for(condition: object, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def test_the_panel_measures_draws_and_explains(panel: SweepPanel) -> None:
    panel.run()
    assert panel.frame["bytes"].tolist() == [1 << power for power in range(10, 15)]
    assert panel.frame["correct"].all()
    assert "Every result was checked" in panel._below.value
    panel._look.value = "Bus bandwidth"
    assert panel.figure.layout.title.text == "All-reduce bus bandwidth"


def test_a_stopped_sweep_keeps_its_points(panel: SweepPanel) -> None:
    panel.configure(sizes=(1 << 10, 1 << 28))
    panel._run_button.click()
    wait_for(lambda: panel.state.work is not None and panel.state.work.run.reports)
    wait_for(lambda: any("samples" in report.fields for report in panel.state.work.run.reports), 60)
    panel.stop()
    wait_for(panel._ended.is_set)
    assert isinstance(panel.state.work.run.exception(), RunStopped)
    assert panel._status.words == "Stopped. What was measured until then is shown."
    assert panel._error.value == ""


def test_a_rank_killed_in_the_midst_shows_and_run_works_again(panel: SweepPanel, pool: Pool) -> None:
    panel.configure(sizes=(1 << 20, 1 << 26))
    panel._run_button.click()
    wait_for(lambda: panel.state.work is not None and panel.state.work.run.reports)
    os.kill(pool.cluster.pids[0], signal.SIGKILL)
    wait_for(panel._ended.is_set)
    assert isinstance(panel.state.work.run.exception(), RankDied)
    assert "Rank 0 died" in panel._error.value
    panel.configure(sizes=(1 << 10, 1 << 12)).run()
    assert panel._error.value == ""


def test_a_setting_that_cannot_work_is_shown_and_raised(panel: SweepPanel) -> None:
    panel._named["algorithms"].value = ()
    with pytest.raises(ValueError, match="algorithms"):
        panel.run()
    assert "algorithms" in panel._error.value
    with pytest.raises(ValueError, match="colour is not a setting"):
        panel.configure(colour="red")
    with pytest.raises(ValueError, match="dtypes"):
        panel.configure(dtypes=["int3"])


def test_a_figure_names_algorithms_as_people_do_and_writes_thousands_out() -> None:
    rows = [
        {"algorithm": name, "dtype": "float32", "num_ranks": 2, "bytes": 1 << 20, "p50_us": 15e3, "p95_us": 16e3}
        for name in ("recursive-doubling", "symmetric-two-shot")
    ]
    figure = latency_figure(pd.DataFrame(rows), badge="LIVE")
    names = [trace.name for trace in figure.data]
    assert names[:2] == ["measured: recursive doubling, float32", "measured: torch's two-shot, float32"]
    assert figure.layout.yaxis.exponentformat == "none"  # plotly's own choice is 15k
