"""The figures of notebooks 03 and 04, and the words below them."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tplab.collectives.volumes import chunk_lengths
from tplab.lab import style
from tplab.lab.figures.layers import (
    chunk_lanes_figure,
    error_bytes_figure,
    explain_chunks,
    explain_lanes,
    explain_overlap,
    explain_phases,
    explain_quantised,
    explain_strategies,
    overlap_figure,
    phases_figure,
    strategies_figure,
    timeline_figure,
    way_in_words,
)
from tplab.layers.cost import Overlap, pipelined_us

BADGE = "LIVE gloo · 2 ranks · emulated link 200 us, 0.05 GB/s"


def trace(figure: object, name: str) -> object:
    return next(item for item in figure.data if item.name == name)  # type: ignore[attr-defined]


def badges(figure: object) -> list[str]:
    return [item.text for item in figure.layout.annotations]  # type: ignore[attr-defined]


def chunks_frame_of(totals: dict[int, float], compute: float = 100e3, comm: float = 80e3) -> pd.DataFrame:
    rows = []
    for chunks, total in totals.items():
        overlap = Overlap(compute_us=compute, comm_us=comm, total_us=total)
        rows.append(
            {
                "chunks": chunks,
                "total_us": total,
                "compute_us": compute,
                "exposed_us": overlap.exposed_us,
                "hidden_share": overlap.hidden_share,
                "overlap_ratio": overlap.overlap_ratio,
                "bound_us": overlap.bound_us,
                "predicted_us": 0.9 * total,
                "correct": True,
            }
        )
    return pd.DataFrame(rows)


FRAME = chunks_frame_of({1: 180e3, 2: 144e3, 4: 116e3, 8: 130e3})


def test_overlap_bars_add_up_to_the_measured_time() -> None:
    figure = overlap_figure(FRAME, badge=BADGE)
    compute, exposed = trace(figure, "computation"), trace(figure, "exposed communication")
    assert list(compute.x) == list(exposed.x) == [0, 1, 2, 3]
    assert figure.layout.xaxis.ticktext == ("1", "2", "4", "8")
    assert np.add(compute.y, exposed.y) == pytest.approx(FRAME["total_us"] / 1e3)
    assert figure.layout.barmode == "stack"
    assert trace(figure, "predicted").y == pytest.approx(FRAME["predicted_us"] / 1e3)
    assert list(trace(figure, "predicted").customdata) == pytest.approx([0, 45, 80, 62.5])


def test_overlap_draws_the_bound_and_the_badge() -> None:
    figure = overlap_figure(FRAME, badge=BADGE)
    line = trace(figure, "bound: the larger of computation and communication, 100.0 ms")
    assert list(line.y) == [100.0] * 2
    assert line.x[0] < 0 < 3 < line.x[1]
    assert line.line.dash == "dash"
    assert f"<b>{BADGE}</b>" in badges(figure)


def test_kinds_differ_by_more_than_colour() -> None:
    figure = overlap_figure(FRAME, badge=BADGE)
    compute, exposed = (trace(figure, name).marker for name in ("computation", "exposed communication"))
    assert (compute.color, exposed.color) == (style.FORWARD, style.COLLECTIVE)
    assert not compute.pattern.shape
    assert exposed.pattern.shape
    assert exposed.pattern.fillmode == "overlay"  # or the bar would be transparent


def test_strategies_are_drawn_by_name() -> None:
    frame = pd.DataFrame({"strategy": ["Blocking()", "Chunked(4)"], "compute_us": [5e3, 5e3], "exposed_us": [4e3, 1e3]})
    figure = strategies_figure(frame, badge=BADGE)
    assert figure.layout.xaxis.ticktext == ("plain<br>all-reduce", "4 chunks")
    assert list(trace(figure, "exposed communication").y) == [4.0, 1.0]
    assert f"<b>{BADGE}</b>" in badges(figure)


def phases_frame_of(rows: list[tuple[int, float, float]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["tokens", "compute_us", "exposed_us"])
    frame["total_us"] = frame["compute_us"] + frame["exposed_us"]
    frame["exposed_pct"] = 100 * frame["exposed_us"] / frame["total_us"]
    return frame.assign(correct=True)


def test_phases_are_shares_of_the_whole() -> None:
    figure = phases_figure(phases_frame_of([(1, 250, 750), (1024, 9e4, 1e4)]), badge=BADGE)
    assert list(trace(figure, "computation").x) == ["1", "1,024"]
    assert list(trace(figure, "computation").y) == [25, 90]
    assert list(trace(figure, "exposed communication").y) == [75, 10]
    assert list(trace(figure, "exposed communication").text) == ["0.75 ms", "10.00 ms"]
    assert f"<b>{BADGE}</b>" in badges(figure)


TIMELINE = pd.DataFrame(
    [
        (0, "computation", "", 0.0, 400.0),
        (0, "hidden communication", "0.mlp.down", 100.0, 300.0),
        (0, "exposed communication", "0.mlp.down", 400.0, 500.0),
        (1, "computation", "", 0.0, 450.0),
    ],
    columns=["rank", "kind", "name", "start_us", "end_us"],
).assign(strategy="Chunked(2)")


def test_the_timeline_has_a_lane_per_rank_and_half_a_lane_of_communication() -> None:
    figure = timeline_figure(TIMELINE, badge=BADGE)
    compute, hidden = trace(figure, "computation"), trace(figure, "hidden communication")
    assert list(compute.base) == [0.0, 0.0]
    assert list(compute.x) == [0.4, 0.45]
    assert (list(hidden.base), list(hidden.x), list(hidden.customdata)) == ([0.1], [0.2], ["0.mlp.down"])
    assert hidden.width == compute.width / 2
    assert set(compute.y).isdisjoint(hidden.y)
    assert list(figure.layout.yaxis.ticktext) == ["rank 0", "rank 1"]
    assert figure.layout.yaxis.autorange == "reversed"  # rank 0 on top
    assert figure.layout.title.text == "Timeline: 2 chunks"
    assert f"<b>{BADGE}</b>" in badges(figure)


def test_lanes_of_neighbouring_ranks_do_not_touch() -> None:
    figure = timeline_figure(TIMELINE, badge=BADGE)
    extents = sorted(
        {(y - item.width / 2, y + item.width / 2) for item in figure.data for y in ([] if item.y is None else item.y)}
    )
    assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(extents))


@pytest.mark.parametrize(
    "draw", [overlap_figure, strategies_figure, phases_figure, timeline_figure, error_bytes_figure]
)
def test_nothing_measured_yet_is_an_empty_card(draw: object) -> None:
    columns = [
        *("chunks", "compute_us", "exposed_us", "predicted_us", "hidden_share", "bound_us", "strategy", "tokens"),
        *("rank", "kind", "name", "start_us", "end_us", "method", "error_pct", "worst_pct", "ratio_to_bf16"),
    ]
    figure = draw(pd.DataFrame(columns=columns), badge="MODEL")  # type: ignore[operator]
    assert "<b>MODEL</b>" in badges(figure)
    assert not any(len(item.x) for item in figure.data if item.x is not None)


milliseconds = st.floats(2, 100)


@given(st.integers(1, 32), milliseconds, milliseconds, st.floats(0, 2), st.floats(0, 2))
def test_the_lanes_are_the_model(chunks: int, compute: float, comm: float, overhead: float, latency: float) -> None:
    figure = chunk_lanes_figure(
        chunks, compute_ms=compute, comm_ms=comm, overhead_ms=overhead, latency_ms=latency, tokens=512
    )
    shares = [part / 512 for part in chunk_lengths(512, chunks)]
    computing = [overhead + (compute - overhead) * share for share in shares]
    talking = [latency + (comm - latency) * share for share in shares]
    drawn = {item.name: list(zip(item.base, item.x, strict=True)) for item in figure.data}
    spans = sorted(drawn["hidden communication"] + drawn["exposed communication"])
    assert sum(length for _, length in spans) == pytest.approx(sum(talking))
    assert [length for _, length in drawn["computation"]] == pytest.approx(computing)
    ends = [start + length for spans_of_kind in drawn.values() for start, length in spans_of_kind]
    assert max(ends) == pytest.approx(pipelined_us(computing, talking))
    for (start, length), (following, _) in pairwise(spans):
        assert start + length <= following + 1e-9  # one channel
    # Exposed is what comes after the last matmul, hidden what comes before.
    assert all(start >= sum(computing) - 1e-9 for start, _ in drawn["exposed communication"])
    assert all(start + length <= sum(computing) + 1e-9 for start, length in drawn["hidden communication"])
    assert figure.layout.shapes[0].x0 == max(compute, comm)
    assert badges(figure) == ["<b>MODEL</b>"]
    assert figure.layout.title.text.startswith(f"{chunks} chunk")


def test_in_one_piece_everything_is_exposed() -> None:
    figure = chunk_lanes_figure(1, compute_ms=30, comm_ms=20, overhead_ms=0.2, latency_ms=0.5)
    assert len(trace(figure, "hidden communication").x) == 0
    assert list(trace(figure, "exposed communication").base) == [30]
    assert figure.layout.title.text == "1 chunk: 50.0 ms; in one piece 50.0, bound 30.0 ms"


def test_errors_against_bytes_mark_what_is_wrong() -> None:
    frame = pd.DataFrame(
        {
            "method": ["bf16", "int8", "naive int8"],
            "error_pct": [0.2, 0.8, 5.0],
            "worst_pct": [0.4, 2.0, 90.0],
            "ratio_to_bf16": [1.0, 0.53, 0.5],
        }
    )
    figure = error_bytes_figure(frame, badge="LIVE gloo · 2 ranks")
    sent, wrong = trace(figure, "bytes"), trace(figure, "error")
    assert list(sent.y) == list(wrong.y) == ["bf16", "int8", "naive int8"]
    assert list(sent.x) == [1.0, 0.53, 0.5]
    assert list(wrong.x) == [0.2, 0.8, 5.0]
    assert list(wrong.text) == ["  0.2 %", "  0.8 %", "  5 %"]  # every point says its number
    assert list(wrong.marker.symbol) == ["circle", "circle", "x"]
    low, high = figure.layout.xaxis2.range
    assert all(10**low < value < 10**high for value in frame["error_pct"])
    assert figure.layout.xaxis2.type == "log"


def test_no_label_lies_under_a_diamond() -> None:
    """What is exposed is said above its bar, and the prediction stands beside the bar."""
    figure = overlap_figure(FRAME, badge=BADGE)
    assert list(trace(figure, "exposed, ms").y) == pytest.approx(FRAME["total_us"] / 1e3)
    assert [float(text) for text in trace(figure, "exposed, ms").text] == pytest.approx(FRAME["exposed_us"] / 1e3)
    half = (1 - figure.layout.bargap) / 2
    assert all(abs(x - place) > half for place, x in enumerate(trace(figure, "predicted").x))


def test_the_words_on_chunks() -> None:
    text = explain_chunks(FRAME)
    assert "In one piece 180.0 ms, of which 80.0 ms are exposed communication" in text
    assert "fastest in 4 chunks: 116.0 ms, which hides 80 % of what can be hidden." in text
    assert "The model says 4 chunks, also the fastest measured; its times are off by 10 % on average." in text
    assert "WRONG" not in text
    assert "WRONG" in explain_chunks(FRAME.assign(correct=[True, False, True, True]))
    assert explain_chunks(FRAME.head(0)) == ""


def test_the_words_on_one_chunk_count_only() -> None:
    assert "fastest in 1 chunk: 180.0 ms, which hides 0 %" in explain_chunks(FRAME.head(1))


def test_below_the_bound_nothing_is_hidden_twice() -> None:
    """A machine that was busy while the parts were timed: more than all is hidden, on paper."""
    frame = chunks_frame_of({1: 180e3, 2: 93e3, 4: 96e3})
    text = explain_chunks(frame)
    assert "as good as the bound, within noise" in text
    assert " % of what can be hidden" not in text
    assert list(trace(overlap_figure(frame, badge=BADGE), "predicted").customdata) == [0, 100, 100]


def test_the_words_on_a_model_that_chose_badly() -> None:
    frame = chunks_frame_of({1: 180e3, 2: 144e3, 4: 116e3})
    frame["predicted_us"] = [170e3, 100e3, 130e3]
    assert "The model says 2 chunks, 24 % slower than the best" in explain_chunks(frame)
    frame.loc[1, "total_us"] = 117e3
    assert "The model says 2 chunks, as fast as the best, within noise" in explain_chunks(frame)


def test_the_words_on_the_lanes() -> None:
    times = {"compute_ms": 30.0, "comm_ms": 24.0, "overhead_ms": 0.0, "latency_ms": 0.0}
    assert explain_lanes(1, **times) == "One chunk: nothing to hide behind, all 24 ms are exposed."
    assert explain_lanes(4, **times).endswith("Only the last chunk's communication is exposed: 6 ms.")
    times |= {"comm_ms": 60.0}
    assert explain_lanes(4, **times).endswith("Exposed: 4 x 15 - 3 x 7.5 = 37.5 ms.")


@given(st.sampled_from([1, 2, 4, 8, 16]), milliseconds, milliseconds)
def test_what_the_words_call_exposed_is_what_is_exposed(chunks: int, compute: float, comm: float) -> None:
    words = explain_lanes(chunks, compute_ms=compute, comm_ms=comm, overhead_ms=0.0, latency_ms=0.0)
    exposed = float(words.removesuffix(" are exposed.").removesuffix(".").removesuffix(" ms").split()[-1])
    total = pipelined_us([compute / chunks] * chunks, [comm / chunks] * chunks)
    assert exposed == pytest.approx(total - compute, rel=0.01)


WAYS = pd.DataFrame(
    {
        "strategy": ["Blocking()", "Chunked(4)", "SequenceParallel()", "Int8(64)"],
        "total_us": [10e3, 8e3, 11e3, 25e3],
        "exposed_us": [4e3, 2e3, 5e3, 19e3],
    }
)


def test_the_words_on_ways_to_communicate_follow_the_times() -> None:
    text = explain_strategies(WAYS)
    assert (
        "Plain all-reduce: 10.0 ms, 40 % of it exposed communication. Fastest of the exact ways: 4 chunks, 20 % faster."
        in text
    )
    assert "int8, with about half of the bytes, takes 2.50 times as long as the plain one." in text
    slower = explain_strategies(WAYS.assign(total_us=[10e3, 13e3, 11e3, 5e3]))
    assert "No exact way is faster; the next is sequence parallel, 10 % slower. int8, with" in slower
    assert "takes 0.50 times as long" in slower
    assert "No exact way is faster; the next is sequence parallel, 10 % slower." in explain_strategies(
        WAYS.assign(total_us=[10e3, 13e3, 11e3, 25e3])
    )
    assert "No exact way is clearly faster; the next is 4 chunks" in explain_strategies(
        WAYS.assign(total_us=[10e3, 9.9e3, 11e3, 25e3])
    )
    assert "int8" not in explain_strategies(WAYS.head(2))
    assert explain_strategies(WAYS.head(0)) == ""


def test_strategies_have_names_for_people() -> None:
    assert way_in_words("OneKernel('two-shot')") == "one kernel, two-shot"
    assert way_in_words("SomethingElse(3)") == "SomethingElse(3)"


def test_the_words_on_recorded_passes() -> None:
    text = explain_overlap({"split": TIMELINE, "waiting": TIMELINE[TIMELINE["kind"] != "hidden communication"]})
    split, waiting = text.splitlines()
    assert split == "split: 67 % of the communication ran under computation, 0.1 ms per rank were waited for."
    assert waiting.startswith("waiting: 0 % of the communication")


def test_the_words_on_int8_follow_the_times() -> None:
    frame = pd.DataFrame(
        {
            "method": ["bfloat16", "int8, 64 per scale", "int8 added up as int8"],
            "ratio_to_bf16": [1.0, 0.53, 0.5],
            "error_pct": [0.245, 0.763, 7.3],
            "worst_pct": [0.5, 0.7, 165.0],
            "p50_us": [100.0, 55.0, np.nan],
        }
    )
    text = explain_quantised(frame)
    assert text.startswith("int8, 64 per scale: 0.53 of bfloat16's bytes, 0.55 of its time. Its error is 0.76 %")
    assert text.endswith("off by 165 % of the largest.")
    assert "takes a part" in explain_quantised(frame.assign(p50_us=[100.0, 90.0, np.nan]))
    assert "slower" in explain_quantised(frame.assign(p50_us=[100.0, 300.0, np.nan]))
    assert explain_quantised(frame.head(0)) == ""


def test_the_words_on_phases() -> None:
    frame = phases_frame_of([(1, 250, 750), (1024, 9e4, 1e4)])
    text = explain_phases(frame)
    assert "A decode step: 75 % of 1.00 ms is exposed communication; 1,024 tokens: 10 % of 100.00 ms" in text
    assert "The share falls" in text
    assert "The share rises" in explain_phases(phases_frame_of([(1, 750, 250), (1024, 1e4, 9e4)]))
    assert "hardly changes" in explain_phases(phases_frame_of([(1, 750, 250), (1024, 75e3, 26e3)]))
    assert "WRONG" in explain_phases(frame.assign(correct=[False, True]))
    assert explain_phases(frame.head(0)) == ""


def test_the_words_do_not_compare_one_step_with_itself() -> None:
    text = explain_phases(phases_frame_of([(16, 250, 750)]))
    assert text.count("16 tokens") == 1


def test_titles_of_two_plots_side_by_side_do_not_meet_in_a_narrow_window() -> None:
    rows = {
        "method": ["float32", "int8"],
        "error_pct": [1e-6, 1.0],
        "worst_pct": [1.0, 1.0],
        "ratio_to_bf16": [2.0, 0.5],
    }
    layout = error_bytes_figure(pd.DataFrame(rows), badge="LIVE").layout
    assert max(len(axis.title.text) for axis in (layout.xaxis, layout.xaxis2)) <= 20
