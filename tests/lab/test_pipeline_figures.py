"""Gantt charts and curves of pipelines: what is drawn is what the traces say."""

import re
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.lab import style
from tplab.lab.figures.gantt_bars import CALLED
from tplab.lab.figures.pipeline import caption, gantt, small_multiples
from tplab.lab.figures.pipeline_curves import (
    bubble_figure,
    bubble_frame,
    decode_figure,
    few_micro_batches_figure,
    few_micro_batches_frame,
    prefill_figure,
)
from tplab.pipeline import Costs, Op, Schedule, Trace, build_schedule, formulas, simulate
from tplab.pipeline.mistakes import one_micro_batch_too_many
from tplab.pipeline.trace import KINDS

pytestmark = pytest.mark.timeout(60)

HOPS = Costs(forward_s=0.02, input_grad_s=0.02, weight_grad_s=0.02, hop_s=0.002)
TRAINING = [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 3), ("zb-h1", 1)]


def as_measured(trace: Trace, late_s: float = 0.0) -> Trace:
    """The trace of a run in which everything came ``late_s`` later, but the beginning."""
    spans = [span._replace(start_s=span.start_s + late_s, end_s=span.end_s + late_s) for span in trace.spans]
    return Trace.from_spans(
        trace.schedule, spans, measured=True, badge="LIVE gloo · 4 ranks · emulated compute", zero_s=0.0
    )


def bars(figure: go.Figure, axis: str = "y") -> dict[str, go.Bar]:
    return {item.name: item for item in figure.data if item.type == "bar" and item.yaxis == axis}


def drawn(bar: go.Bar) -> list[tuple[float, float]]:
    base, x = np.asarray(bar.base, float), np.asarray(bar.x, float)
    return sorted(zip(base.tolist(), (base + x).tolist(), strict=True))


def captions(figure: go.Figure) -> list[str]:
    return [item.text for item in figure.layout.annotations[1:]]


@pytest.mark.parametrize(("name", "v"), TRAINING)
def test_one_bar_trace_per_kind_holds_all_its_spans(name: str, v: int) -> None:
    trace = simulate(build_schedule(name, 4, 8, v), HOPS)
    found = bars(gantt(trace))
    kinds = trace.frame().groupby("kind")
    assert set(found) == {"idle", *(CALLED.get(kind, kind) for kind in kinds.groups)}
    for kind, rows in kinds:
        spans = sorted(zip(rows["start_ms"], rows["end_ms"], strict=True))
        assert np.asarray(drawn(found[CALLED.get(kind, kind)])) == pytest.approx(np.asarray(spans), abs=1e-3)


def test_rank_0_is_on_top_and_messages_have_half_the_height() -> None:
    trace = simulate(build_schedule("1f1b", 4, 8), HOPS)
    figure = gantt(trace)
    top, bottom = figure.layout.yaxis.range[::-1]
    assert (top, bottom) == (0, 4)  # rank r lies between r and r + 1, and the axis points down
    found = bars(figure)
    compute = found["forward"]
    middle = np.round(np.asarray(compute.y) - np.floor(compute.y), 9)
    assert np.unique(middle).size == 1
    messages = found["message"]
    lanes = np.unique(np.round(np.asarray(messages.y) - np.floor(messages.y), 9))
    assert lanes.size == 2  # forward and backward, in the two halves of one lane
    assert 2 * messages.width == pytest.approx(compute.width / 2)
    assert min(lanes) - messages.width / 2 > middle[0] + compute.width / 2  # below the computations
    assert max(lanes) + messages.width / 2 < 1
    assert sorted(np.floor(compute.y)) == sorted(trace.rank[trace.op == 0])


def test_forward_only_messages_have_the_whole_lane_and_free_ones_none() -> None:
    messages = bars(gantt(simulate(build_schedule("decode-ring", 4, 12), HOPS)))["message"]
    assert np.unique(np.round(np.asarray(messages.y) % 1, 9)).size == 1
    free = bars(gantt(simulate(build_schedule("1f1b", 4, 8))))
    assert "message" not in free
    assert free["forward"].width > bars(gantt(simulate(build_schedule("1f1b", 4, 8), HOPS)))["forward"].width


@settings(max_examples=25, deadline=None)
@given(
    p=st.integers(1, 5),
    rounds=st.integers(1, 3),
    which=st.sampled_from(TRAINING),
    forward_s=st.floats(0.001, 0.1),
    hop_s=st.sampled_from([0.0, 0.003]),
)
def test_idle_and_work_fill_every_lane(
    p: int, rounds: int, which: tuple[str, int], forward_s: float, hop_s: float
) -> None:
    name, v = which
    trace = simulate(build_schedule(name, p, p * rounds, v), Costs(forward_s=forward_s, hop_s=hop_s))
    factor = 1e3 if trace.end_s.max() < 10 else 1.0
    found = bars(gantt(trace))
    for rank in range(p):
        lengths = {
            kind: sum(np.asarray(bar.x, float)[np.floor(np.asarray(bar.y, float)) == rank])
            for kind, bar in found.items()
            if kind != "message"
        }
        seen = 1e-3 * trace.makespan_s * factor  # times are rounded to what can be seen
        assert sum(lengths.values()) == pytest.approx(trace.makespan_s * factor, abs=seen)
        assert lengths["idle"] == pytest.approx(trace.idle_s[rank] * factor, abs=seen)


def test_colours_and_patterns_tell_kinds_apart() -> None:
    found = bars(gantt(simulate(build_schedule("1f1b", 4, 8), HOPS))) | bars(
        gantt(simulate(build_schedule("zb-h1", 4, 8)))
    )
    assert found["forward"].marker.color == style.FORWARD
    assert found["backward"].marker.color == style.BACKWARD
    assert found["backward (weights)"].marker.color == style.WEIGHT_GRADIENT
    assert found["message"].marker.color == style.POINT_TO_POINT
    assert found["idle"].marker.color == style.IDLE
    looks = [(bar.marker.color, bar.marker.pattern.shape) for bar in found.values()]
    assert len(set(looks)) == len(looks) == 6
    decode = bars(gantt(simulate(build_schedule("decode-ring", 2, 4))))["decode"]
    assert decode.marker.color == style.DECODE


def test_later_chunks_are_paler() -> None:
    trace = simulate(build_schedule("interleaved", 2, 4, 2))
    forward = bars(gantt(trace))["forward"]
    chunks = trace.stage[trace.op == 0] // 2
    assert {colour for colour, chunk in zip(forward.marker.color, chunks, strict=True) if chunk == 0} == {style.FORWARD}
    assert {colour for colour, chunk in zip(forward.marker.color, chunks, strict=True) if chunk == 1} == {style.DECODE}


@pytest.mark.parametrize(
    ("m", "labels"), [(4, {"F0", "F3"}), (8, {"0", "7"}), (64, None)], ids=["spelled", "short", "none"]
)
def test_labels_up_to_64_actions_per_lane(m: int, labels: set[str] | None) -> None:
    forward = bars(gantt(simulate(build_schedule("1f1b", 4, m))))["forward"]
    if labels is None:
        assert forward.text is None
    else:
        assert labels <= set(forward.text)


def test_a_bar_too_narrow_for_its_label_has_none() -> None:
    slow_first = Costs(forward_s=[1.0, 0.001], input_grad_s=[1.0, 1.0], weight_grad_s=[1.0, 1.0])
    trace = simulate(build_schedule("1f1b", 2, 4), slow_first)
    forward = bars(gantt(trace))["forward"]
    by_rank = [{label for label, y in zip(forward.text, forward.y, strict=True) if int(y) == rank} for rank in (0, 1)]
    assert by_rank == [{"F0", "F1", "F2", "F3"}, {""}]


def test_lanes_too_flat_for_labels_have_none() -> None:
    trace = simulate(build_schedule("1f1b", 4, 8), HOPS)
    assert bars(gantt(trace, lane_px=12))["forward"].text is None
    assert bars(gantt(trace, lane_px=20))["forward"].text is not None
    assert bars(small_multiples([trace]))["forward"].text is not None


def test_measured_under_simulated_on_one_axis_with_both_bubbles() -> None:
    simulated = simulate(build_schedule("1f1b", 4, 8), HOPS)
    measured = as_measured(simulated, 0.001)
    figure = gantt(simulated, measured)
    assert {item.xaxis for item in figure.data} == {"x"}
    assert set(bars(figure, "y")) == set(bars(figure, "y2"))
    upper, lower, memory = figure.layout.yaxis.domain, figure.layout.yaxis2.domain, figure.layout.yaxis3.domain
    assert upper[0] > lower[1] > lower[0] > memory[1]
    said = captions(figure)
    assert [re.search("<b>(.*?)</b>", text)[1] for text in said] == ["simulated", "measured", "memory"]
    for text, trace in zip(said, (simulated, measured), strict=False):
        assert f"idle/total {trace.idle_over_total:.1%}" in text
        assert f"idle/work {trace.idle_over_work:.1%}" in text
    assert "LIVE gloo · 4 ranks · emulated compute" in figure.layout.annotations[0].text
    legend = [item.name for item in figure.data if item.showlegend is not False]
    assert len(legend) == len(set(legend))


def hovered(bar: go.Bar, action: str) -> str:
    """What the page makes of the template for an action; `x` is there where the bar ends."""
    (at,) = [at for at, told in enumerate(bar.customdata) if told[0] == action]
    text = bar.hovertemplate
    for place, value in enumerate(bar.customdata[at]):
        shown = value if isinstance(value, str) else f"{value:.4g}"
        text = re.sub(rf"%{{customdata\[{place}\][^}}]*}}", shown, text)
    text = re.sub(r"%{base[^}]*}", f"{bar.base[at]:.4g}", text)
    return re.sub(r"%{x[^}]*}", f"{bar.base[at] + bar.x[at]:.4g}", text)


def test_hovering_an_action_tells_both_times_and_the_pointer_marks_one_moment() -> None:
    simulated = simulate(build_schedule("1f1b", 4, 8), HOPS)
    figure = gantt(simulated, as_measured(simulated, 0.004))
    for axis, words in (("y", ("simulated", "measured")), ("y2", ("measured", "simulated"))):
        text = hovered(bars(figure, axis)["forward"], "2F3")
        assert [line.split()[0] for line in text.split("<br>")[1:]] == list(words)
        span = next(s for s in simulated.spans if (s.stage, s.op, s.micro_batch) == (2, Op.F, 3))
        assert "rank 2, stage 2, micro-batch 3" in text
        assert f"simulated {span.start_s * 1e3:.4g} to {span.end_s * 1e3:.4g} ms (20)" in text
        assert f"measured {span.start_s * 1e3 + 4:.4g} to {span.end_s * 1e3 + 4:.4g} ms (20)" in text
    assert figure.layout.xaxis.showspikes
    assert figure.layout.xaxis.spikemode == "across"


def test_a_run_that_has_only_begun_is_drawn_as_far_as_it_got() -> None:
    simulated = simulate(build_schedule("1f1b", 4, 8), HOPS)
    some = [span for span in simulated.spans if span.end_s < 0.1]
    begun = Trace.from_spans(simulated.schedule, some, measured=True, badge="LIVE")
    figure = gantt(simulated, begun)
    assert len(bars(figure, "y2")["forward"].x) == sum(span.op is Op.F for span in some)
    nothing = Trace.from_spans(simulated.schedule, [], measured=True, badge="LIVE")
    assert set(bars(gantt(simulated, nothing), "y2")) == {"idle"}
    assert gantt(nothing).data


def memory(figure: go.Figure) -> list[go.Scatter]:
    return [item for item in figure.data if item.type == "scatter" and item.name.startswith("held")]


@pytest.mark.parametrize(("name", "v"), TRAINING)
def test_the_memory_lane_is_what_ranks_hold(name: str, v: int) -> None:
    trace = simulate(build_schedule(name, 4, 8, v), HOPS)
    (lane,) = memory(gantt(trace))
    x, y = np.asarray(lane.x, float), np.asarray(lane.y, float)
    scale = 0.86 / trace.peak_activations()
    for rank in range(4):
        mine = (y > rank) & (y < rank + 1)
        times, held = trace.activations(rank)
        peak = (rank + 0.95 - y[mine].min()) / scale
        assert peak == pytest.approx(trace.peak_activations(rank), abs=1e-3)
        for at in np.linspace(trace.makespan_s * 0.01, trace.makespan_s * 0.99, 23):
            want = held[times <= at][-1] if (times <= at).any() else 0.0
            edges = np.flatnonzero(x[mine] <= at * 1e3)
            got = (rank + 0.95 - y[mine][edges[-1]]) / scale if len(edges) else 0.0
            assert got == pytest.approx(want, abs=1e-3)


def test_the_article_beside_the_right_1f1b_shows_5_4_3_2_against_4_3_2_1() -> None:
    right, wrong = simulate(build_schedule("1f1b", 4, 8)), simulate(one_micro_batch_too_many(4, 8))
    figure = gantt(right, wrong, max_activations=4)
    (peaks,) = [item for item in figure.data if item.name == "peaks"]
    assert list(peaks.text) == ["4 / 5", "3 / 4", "2 / 3", "1 / 2"]
    without = captions(gantt(right, wrong, memory=False))
    assert "peak 4, 3, 2, 1" in without[0]
    assert "peak 5, 4, 3, 2" in without[1]
    assert not any("peak 4" in text for text in captions(figure))  # the memory lane has it
    filled, line = memory(figure)
    assert filled.fill == "toself"
    assert line.fill is None
    (cap,) = [item for item in figure.data if item.name == "cap: 4"]
    heights = [y for y in cap.y if y is not None]
    assert min(np.asarray(line.y, float)[~np.isnan(np.asarray(line.y, float))]) < min(heights)


def test_inference_has_no_memory_lane_unless_asked_for() -> None:
    trace = simulate(build_schedule("forward-only", 4, 8))
    assert not memory(gantt(trace))
    assert memory(gantt(trace, memory=True))
    assert "peak" not in caption(trace, "x")


def test_small_multiples_share_one_axis_and_say_what_each_is() -> None:
    traces = [simulate(build_schedule(name, 4, 12, v)) for name, v in TRAINING]
    figure = small_multiples(traces)
    assert {item.xaxis for item in figure.data} == {"x"}
    assert len({item.yaxis for item in figure.data}) == len(TRAINING)
    said = captions(figure)
    assert ["interleaved 1F1B, 3 chunks" in text for text in said] == [
        name == "interleaved" and v == 3 for name, v in TRAINING
    ]
    makespans = [f"{trace.makespan_s:.4g} s" in text for trace, text in zip(traces, said, strict=True)]
    assert all(makespans)


@pytest.mark.parametrize(
    ("traces", "more", "says"),
    [
        ([], {}, "traces must hold at least one"),
        ([2, 3], {}, r"equally many ranks; got \[2, 3\]"),
        ([2], {"names": ["a", "b"]}, "names must have one for each of the 1"),
    ],
)
def test_what_cannot_be_drawn_is_said(traces: list[int], more: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        gantt(*(simulate(build_schedule("1f1b", p, 4)) for p in traces), **more)


@pytest.mark.parametrize("p", [1, 2, 16])
@pytest.mark.parametrize("m", [1, 3])
def test_degenerate_sizes(p: int, m: int) -> None:
    figure = gantt(simulate(build_schedule("gpipe", p, m)))
    assert len(bars(figure)["forward"].x) == p * m
    assert len(figure.layout.yaxis.tickvals) <= 16


def test_no_time_at_all() -> None:
    assert gantt(simulate(build_schedule("1f1b", 2, 2), Costs(forward_s=0, input_grad_s=0, weight_grad_s=0))).data


def test_many_actions_cost_few_traces() -> None:
    trace = simulate(build_schedule("1f1b", 16, 256), HOPS)
    figure = gantt(trace)
    assert len(trace.rank) > 8192
    assert len([item for item in figure.data if item.type == "bar"]) <= len(KINDS) + 1
    small = gantt(simulate(build_schedule("1f1b", 2, 2), HOPS))
    assert len(figure.data) == len(small.data)


def test_drawing_keeps_a_slider_smooth() -> None:
    """p = 8, m = 32: the CPU time of building, simulating and drawing, best of several."""
    best = float("inf")
    for _ in range(6):
        start = time.process_time()
        gantt(simulate(build_schedule("1f1b", 8, 32), HOPS))
        best = min(best, time.process_time() - start)
    assert best < 0.1


def test_bubbles_by_formula_and_simulation_agree_and_the_claim_does_not() -> None:
    frame = bubble_frame(4, range(1, 17), [("gpipe", 1), ("1f1b", 1), ("interleaved", 2)])
    assert frame["formula"].to_numpy() == pytest.approx(frame["simulated"].to_numpy())
    assert set(frame[frame["schedule"] == "interleaved"]["micro_batches"]) == {4, 8, 12, 16}
    figure = bubble_figure(frame)
    claimed = next(item for item in figure.data if "claims" in item.name)
    gpipe = next(item for item in figure.data if item.name == "GPipe, simulated")
    assert list(claimed.x) == list(gpipe.x)
    assert (np.asarray(claimed.y) < np.asarray(gpipe.y)).all()
    assert list(gpipe.y) == pytest.approx([100 * 3 / (m + 3) for m in range(1, 17)])
    assert not any("claims" in item.name for item in bubble_figure(frame, claimed=False).data)


def decode_frame(needed: int = 3) -> pd.DataFrame:
    stage_s, k = [0.01] * 3, [1, 2, 3, 4]
    ms = [1e3 * formulas.decode_round_s(stage_s, each) for each in k]
    return pd.DataFrame(
        {
            "in_flight": k,
            "needed": needed,
            "full": [each >= needed for each in k],
            "formula_ms": ms,
            "simulated_ms": ms,
            "measured_ms": [1.02 * t for t in ms],
            "measured_idle": [0.67, 0.33, 0.0, 0.0],
            "steps_per_s": [each / t / 1.02 * 1e3 for each, t in zip(k, ms, strict=True)],
        }
    )


def test_the_decode_figure_shows_the_cliff() -> None:
    figure = decode_figure(decode_frame(), badge="LIVE gloo · 3 ranks · emulated compute")
    measured, formula, simulated = figure.data
    assert list(formula.y) == pytest.approx([100 / 3, 200 / 3, 100, 100])
    assert list(simulated.y) == pytest.approx(list(formula.y))
    assert list(measured.y) == pytest.approx([y / 1.02 for y in formula.y])
    assert list(measured.text) == ["67% idle", "33% idle", "0% idle", "0% idle"]
    note = next(item for item in figure.layout.annotations if "full from" in item.text)
    assert (note.text, note.x) == ("full from k = 3", 2)  # a position: the label "3" would be taken for one
    assert decode_figure(decode_frame(9), badge="LIVE").layout.annotations[0].text == "<b>LIVE</b>"


@pytest.mark.parametrize("column", ["micro_batches", "chunks"])
def test_the_prefill_figure_marks_the_best_number_of_chunks(column: str) -> None:
    frame = pd.DataFrame(
        {
            column: [1, 4, 8],
            "formula_ms": [9.0, 5.0, 6.0],
            "simulated_ms": [9.0, 5.0, 6.0],
            "measured_ms": [9.1, 5.3, 6.2],
            "idle_over_total": [0.75, 0.4, 0.3],
        }
    )
    figure = prefill_figure(frame, badge="LIVE")
    assert list(figure.data[0].y) == [9.1, 5.3, 6.2]
    notes = [(item.x, item.y) for item in figure.layout.annotations if item.text == "fewest ms by the model"]
    assert notes == ([(1, 5.3)] if column == "chunks" else [])


def test_no_verdict_before_all_points_are_in() -> None:
    frame = pd.DataFrame(
        {
            "chunks": [1, 4],
            **{key: [9.0, 5.0] for key in ("formula_ms", "simulated_ms", "measured_ms")},
            "idle_over_total": 0.5,
            "cases": 3,
        }
    )
    assert len(prefill_figure(frame, badge="LIVE").layout.annotations) == 1  # the badge
    assert len(prefill_figure(frame.assign(cases=2), badge="LIVE").layout.annotations) == 2


def test_collectives_lie_below_the_work_that_they_are_part_of() -> None:
    """Two stages of a generation: half of stage 0's second is spent in a collective, none of stage 1's."""
    trace = replace(simulate(build_schedule("forward-only", 2, 1)), collectives=((0, 0.25, 0.75),))
    assert trace.collective_over_total == pytest.approx(0.5 / 4)
    assert trace.idle_over_total == 0.5  # a collective is not idle time
    figure = gantt(trace, names=["measured"])
    found = bars(figure)
    assert found["collectives"].marker.color == style.COLLECTIVE
    assert drawn(found["collectives"]) == [(250.0, 750.0)]
    work = found["forward"]
    assert found["collectives"].y[0] - found["collectives"].width / 2 > work.y[0] + work.width / 2
    assert np.floor(found["collectives"].y[0]) == 0
    assert list(gantt(trace, lane="stage").layout.yaxis.ticktext) == ["stage 0", "stage 1"]
    assert "collectives/total 12.5%" in captions(figure)[0]
    assert "collectives" not in captions(gantt(replace(trace, collectives=())))[0]


def test_times_in_units_are_not_called_seconds() -> None:
    trace = simulate(build_schedule("1f1b", 4, 8))
    figure = gantt(trace, unit="units of F")
    assert figure.layout.xaxis.title.text == "units of F"
    assert "makespan 33 units of F" in captions(figure)[0]
    assert max(end for bar in bars(figure).values() for _, end in drawn(bar)) == 33
    assert "makespan 33 units of F" in captions(small_multiples([trace, trace], unit="units of F"))[1]
    assert gantt(trace).layout.xaxis.title.text == "seconds"
    assert gantt(simulate(build_schedule("1f1b", 4, 8), HOPS)).layout.xaxis.title.text == "milliseconds"


def test_with_fewer_micro_batches_than_ranks_no_table_is_as_fast_as_the_formula() -> None:
    frame = few_micro_batches_frame(8, (1, 2, 8), (1, 2, 4, 8, 16))
    assert (frame["simulated"] >= frame["least"] - 1e-9).all()
    few, enough = frame[frame["micro_batches"] < 8], frame[frame["micro_batches"] >= 8]
    assert enough["simulated"].to_numpy() == pytest.approx(enough["plotted"].to_numpy())
    assert (few[few["chunks"] > 1]["plotted"] < few[few["chunks"] > 1]["least"]).all()
    row = few[(few["chunks"] == 8) & (few["micro_batches"] == 4)].iloc[0]  # by hand: (8·8 + 3)/(8·4) - 1
    assert (row["plotted"], row["simulated"], row["least"]) == pytest.approx((7 / 32, 67 / 32 - 1, 1.0))
    names = [item.name for item in few_micro_batches_figure(frame).data]
    assert names[:3] == ["cannot be: below p/m - 1", "(p-1)/(v·m), 1 chunk", "simulated, 1 chunk"]


def test_nothing_measured_yet_is_an_empty_card() -> None:
    assert not decode_figure(pd.DataFrame(), badge="LIVE").data
    assert not prefill_figure(pd.DataFrame(), badge="LIVE").data
    assert bubble_figure(bubble_frame(4, [])).layout.title.text


def test_a_table_from_text_is_drawn_like_any_other() -> None:
    schedule = Schedule.from_text("0F0,0B0\n1F0,1B0\n")
    assert set(bars(gantt(simulate(schedule)))) == {"idle", "forward", "backward"}


@pytest.mark.parametrize("name", ["gpipe", "interleaved", "zb-h1"])
def test_captions_have_room_in_a_narrow_window(name: str) -> None:
    trace = simulate(build_schedule(name, 4, 12, 4 if name == "interleaved" else 1))
    for figure in (small_multiples([trace], unit="units of F"), gantt(trace, as_measured(trace, 0.001))):
        for text in captions(figure):
            assert max(len(line) for line in re.sub("</?b>", "", text).split("<br>")) <= 76, text
