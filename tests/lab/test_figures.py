"""Figures are pure functions of a frame: what they draw is tested without a browser."""

import math
from unittest.mock import patch

import pandas as pd
import pytest

from tplab.lab import say, style
from tplab.lab.figures import calls_figure, explain_calls, explain_launch, launch_figure, timings_figure


def badge_of(figure: object) -> str:
    return figure.layout.annotations[-1].text  # type: ignore[attr-defined]


PHASES = {"gloo": {"interpreter": 0.1, "import torch": 1.5, "process group": 0.4}}
PHASES["nccl"] = {
    "interpreter": 0.1,
    "import torch": 3.5,
    "context": 0.02,
    "process group": 0.6,
    "first collective": 0.1,
}


def launch_of(backend: str, num_ranks: int = 2) -> pd.DataFrame:
    """Rank 1 imports torch 0.3 s faster than rank 0, and waits for it."""
    rows = []
    for rank in range(num_ranks):
        start_s = 0.0
        for phase, seconds in PHASES[backend].items():
            seconds += rank * {"import torch": -0.3, "process group": 0.3}.get(phase, 0.0)
            rows.append({"rank": rank, "phase": phase, "start_s": start_s, "seconds": seconds, "last": rank == 0})
            start_s += seconds
    return pd.DataFrame(rows).assign(backend=backend, num_ranks=num_ranks)


@pytest.mark.parametrize("backend", PHASES)
def test_launch_figure_has_a_bar_per_rank(backend: str) -> None:
    figure = launch_figure(launch_of(backend), badge="LIVE x · 2 ranks")
    assert [trace.name for trace in figure.data] == [*PHASES[backend]]
    group = figure.data[list(PHASES[backend]).index("process group")]
    assert list(group.y) == ["rank 0", "rank 1"]
    assert group.x[1] - group.x[0] == pytest.approx(0.3)
    assert group.base[0] - group.base[1] == pytest.approx(0.3)
    assert list(figure.layout.yaxis.categoryarray) == ["rank 1", "rank 0"]  # from the bottom
    assert "LIVE x · 2 ranks" in badge_of(figure)
    assert figure.layout.paper_bgcolor == "white"  # readable in the dark theme


def test_explain_launch_speaks_of_the_rank_that_the_others_waited_for() -> None:
    assert explain_launch(launch_of("gloo")) == (
        "The 2 ranks were ready after 2.0 s, 75% of it importing torch. Connecting took 0.40 s once every rank had "
        "come."
    )
    said = explain_launch(launch_of("nccl", 1))
    assert said.startswith("The rank was ready after 4.3 s, 81% of it importing torch. The GPU's context is made")
    assert "(0.02 s were left of it)" in said
    assert "bootstrap took 0.60 s" in said
    assert said.endswith("the first all-reduce, in which it opens its channels, 0.10 s.")


def test_explain_calls_sets_a_call_beside_a_start() -> None:
    calls = pd.DataFrame({"call_ms": [2.0, 4.0, 90.0], "function_ms": [1.0, 1.5, 2.0], "overhead_ms": [1.0, 2.5, 88.0]})
    assert explain_calls(calls, launch_of("gloo")) == (
        "A call took 4.0 ms (median of 3): 1.5 ms in the function on the slowest rank, 2.5 ms on the way there and "
        "back, each a median of its own. Starting the ranks took 2.0 s, as long as 500 calls."
    )


def test_calls_figure_names_its_medians() -> None:
    frame = pd.DataFrame({"call": [0, 1, 2], "call_ms": [2.0, 4.0, 90.0], "function_ms": [1.0, 1.5, 2.0]})
    figure = calls_figure(frame, badge="LIVE gloo · 2 ranks", prediction_ms=50.0)
    assert [trace.name.rsplit("(", 1)[1] for trace in figure.data] == ["median 4.00 ms)", "median 1.50 ms)"]
    assert any(shape.y0 == 50.0 for shape in figure.layout.shapes)
    words = [each for each in figure.layout.annotations if each.text == "your prediction"]
    assert [each.y for each in words] == [pytest.approx(math.log10(50.0))]  # as annotations on a logarithmic axis are
    for nowhere in (0.0, -3.0):
        assert len(calls_figure(frame, badge="LIVE x", prediction_ms=nowhere).layout.shapes) == 2


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


def test_sentences_are_shown_as_paragraphs_and_as_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    with patch("IPython.display.display") as display:
        say("2 < 3 & so on.", "Two\nlines.")
    (bundle,), options = display.call_args
    assert options == {"raw": True}
    assert bundle["text/plain"] == "2 < 3 & so on.\nTwo\nlines."
    assert bundle["text/html"].count("<p ") == 3
    assert "2 &lt; 3 &amp; so on." in bundle["text/html"]
