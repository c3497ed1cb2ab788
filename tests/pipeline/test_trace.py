"""A trace's arithmetic, on spans small enough to count by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from tplab.pipeline import Costs, Op, Schedule, Span, Trace, build_schedule, simulate
from tplab.pipeline.costs import measured_costs

TABLE = Schedule.from_text("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n", name="tiny")
SPANS = (
    Span(0, 0, Op.F, 0, 10.0, 11.0),
    Span(0, 0, Op.F, 1, 11.0, 12.0),
    Span(0, 0, Op.B, 0, 14.0, 16.0),
    Span(0, 0, Op.B, 1, 17.0, 19.0),
    Span(0, 0, Op.SEND_F, 0, 11.0, 11.5),
    Span(1, 1, Op.F, 0, 11.0, 12.0),
    Span(1, 1, Op.B, 0, 12.0, 14.0),
    Span(1, 1, Op.F, 1, 14.0, 15.0),
    Span(1, 1, Op.B, 1, 15.0, 17.0),
)


@pytest.fixture
def trace() -> Trace:
    return Trace.from_spans(TABLE, SPANS, measured=True, badge="LIVE gloo · 2 ranks", activation_bytes=(5.0, 7.0))


def test_both_bubbles(trace: Trace) -> None:
    assert trace.makespan_s == 9.0
    assert trace.work_s.tolist() == [6.0, 6.0]  # the send is no work
    assert trace.idle_over_total == pytest.approx(6 / 18)
    assert trace.idle_over_work == pytest.approx(6 / 12)
    assert trace.idle_over_total_per_rank == pytest.approx([1 / 3, 1 / 3])
    assert trace.idle_over_work_per_rank == pytest.approx([1 / 2, 1 / 2])


def test_memory_lane(trace: Trace) -> None:
    times, held = trace.activations(0)
    assert times.tolist() == [0.0, 1.0, 6.0, 9.0]
    assert held.tolist() == [1.0, 2.0, 1.0, 0.0]
    assert trace.peak_activations_per_rank == (2.0, 1.0)  # on rank 1 room is made at the instant it is taken
    assert trace.peak_activations(1, in_bytes=True) == 7.0
    assert trace.peak_activations(in_bytes=True) == 10.0


def test_in_inference_nothing_is_kept() -> None:
    table = Schedule.from_text("0F0,0F1\n")
    spans = [Span(0, 0, Op.F, 0, 0.0, 1.0), Span(0, 0, Op.F, 1, 1.0, 2.0)]
    assert Trace.from_spans(table, spans, measured=False, badge="MODEL").peak_activations_per_rank == (1.0,)


def test_bytes_need_sizes() -> None:
    trace = Trace.from_spans(TABLE, SPANS, measured=True, badge="")
    with pytest.raises(ValueError, match="in_bytes=True needs activation_bytes"):
        trace.peak_activations(in_bytes=True)


def test_frame_has_units_and_provenance() -> None:
    trace = Trace.from_spans(TABLE, SPANS, measured=True, badge="LIVE", provenance={"backend": "gloo", "num_ranks": 2})
    frame = trace.frame()
    assert len(frame) == len(SPANS)
    first = frame.iloc[0]
    assert (first.action, first.kind, first.start_ms, first.duration_ms) == ("0F0", "forward", 0.0, 1000.0)
    assert (first.schedule, first.badge, first.backend, first.measured) == ("tiny", "LIVE", "gloo", True)
    assert frame.loc[frame.op == "SEND_F", "kind"].tolist() == ["point-to-point"]


def test_perfetto_opens_with_every_span(trace: Trace, tmp_path: Path) -> None:
    trace.to_perfetto(tmp_path / "trace.json")
    data = json.loads((tmp_path / "trace.json").read_text())
    spans = [event for event in data["traceEvents"] if event["ph"] == "X"]
    assert sorted((e["pid"], e["name"], e["ts"], e["dur"]) for e in spans) == sorted(
        (s.rank, f"{s.stage}{s.op}{s.micro_batch}", (s.start_s - 10) * 1e6, (s.end_s - s.start_s) * 1e6) for s in SPANS
    )
    # Complete events on one track must not overlap: a send has a track of its own.
    assert {(e["name"].count("SEND") > 0, e["tid"]) for e in spans} == {(False, 0), (True, 1)}
    assert data["otherData"]["badge"] == "LIVE gloo · 2 ranks"


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_a_perfetto_file_is_a_trace_again(trace: Trace, tmp_path: Path, name: str) -> None:
    trace.to_perfetto(tmp_path / name)
    again = Trace.from_perfetto(tmp_path / name, TABLE)
    assert [span[:4] for span in again.spans] == [span[:4] for span in trace.spans]
    assert np.allclose(again.start_s, trace.start_s, atol=1e-12)
    assert np.allclose(again.end_s, trace.end_s, atol=1e-12)
    assert (again.badge, again.measured) == (trace.badge, True)
    assert Trace.from_perfetto(tmp_path / name, TABLE, badge="RECORDED").badge == "RECORDED"


def test_a_file_that_is_no_trace_or_another_ones(trace: Trace, tmp_path: Path) -> None:
    trace.to_perfetto(tmp_path / "trace.json")
    with pytest.raises(ValueError, match="is a trace of tiny, not of this 1f1b of 2 stages and 4 micro-batches"):
        Trace.from_perfetto(tmp_path / "trace.json", build_schedule("1f1b", 2, 4))
    for text in (
        '{"traceEvents": []}',
        '{"traceEvents": [], "otherData": []}',
        "[",
        '{"otherData": {"schedule": "a"}}',
    ):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ValueError, match=r"other\.json is no trace that to_perfetto wrote"):
            Trace.from_perfetto(tmp_path / "other.json", TABLE)
    with pytest.raises(ValueError, match=r"missing\.json is no trace"):
        Trace.from_perfetto(tmp_path / "missing.json", TABLE)
    small, large = (build_schedule("1f1b", 2, m) for m in (2, 4))
    simulated = simulate(large)
    simulated.to_perfetto(tmp_path / "model.json")
    with pytest.raises(ValueError, match=r"model\.json is a simulation"):
        Trace.from_perfetto(tmp_path / "model.json", large)
    Trace.from_spans(large, simulated.spans, measured=True, badge="LIVE").to_perfetto(tmp_path / "large.json")
    with pytest.raises(ValueError, match="is a trace of 1f1b, not of this 1f1b of 2 stages and 2 micro-batches"):
        Trace.from_perfetto(tmp_path / "large.json", small)


def test_costs_of_a_run_are_its_medians() -> None:
    planted = Costs(forward_s=[1.0, 2.0], input_grad_s=[0.5, 1.5], weight_grad_s=[0.5, 1.5])
    trace = simulate(build_schedule("1f1b", 2, 4), planted)
    costs = measured_costs(trace)
    assert simulate(trace.schedule, costs).makespan_s == pytest.approx(trace.makespan_s)
    assert costs.forward_s == [1.0, 2.0]
    split = simulate(build_schedule("zb-h1", 2, 4), Costs(forward_s=1.0, input_grad_s=2.0, weight_grad_s=3.0))
    assert measured_costs(split).weight_grad_s == [3.0, 3.0]
    assert measured_costs(split).input_grad_s == [2.0, 2.0]
    mixed = Schedule.from_text("0F0,0F1,0B0,0I1,0W1\n", name="mixed")
    with pytest.raises(ValueError, match="whole backwards"):
        measured_costs(simulate(mixed))


def test_spans_come_back(trace: Trace) -> None:
    moved = tuple(span._replace(start_s=span.start_s - 10, end_s=span.end_s - 10) for span in SPANS)
    assert sorted(trace.spans) == sorted(moved)


def test_an_empty_trace_divides_by_nothing() -> None:
    trace = Trace.from_spans(TABLE, [], measured=True, badge="")
    assert (trace.makespan_s, trace.idle_over_total, trace.idle_over_work) == (0.0, 0.0, 0.0)
    assert trace.peak_activations_per_rank == (0.0, 0.0)


def test_columns_of_unequal_length_are_refused(trace: Trace) -> None:
    with pytest.raises(ValueError, match="equally long"):
        Trace(
            schedule=TABLE,
            rank=trace.rank[1:],
            stage=trace.stage,
            op=trace.op,
            micro_batch=trace.micro_batch,
            start_s=np.asarray(trace.start_s),
            end_s=trace.end_s,
            measured=True,
        )
