"""Figures of links, placements, advice and verification: what they draw is what the frames say."""

from dataclasses import replace

import pandas as pd
import pytest

from tplab.lab import style
from tplab.lab.figures import (
    arrivals_figure,
    calibration_figure,
    flip_figure,
    flip_frame,
    front_figure,
    link_figure,
    link_frame,
    measured_links_frame,
    placement_figure,
    verification_figure,
    waterfall_figure,
)
from tplab.lab.figures.advice import explain_advice, explain_flips, reference_GBps, with_links_scaled
from tplab.lab.figures.topology import explain_links, explain_placement
from tplab.lab.figures.verification import explain_calibration, explain_verification
from tplab.topology import EnginePolicy, Machine, ModelSpec, Verification, Workload, advise, place, simulate_arrivals
from tplab.topology.advisor.calibration import AllReduceTimes, Calibration, SendTimes
from tplab.topology.advisor.prediction import predict

LLAMA = ModelSpec.from_config("llama-3.1-70b")
H100, DGX = Machine.preset("h100"), Machine.preset("dgx-1")


def asked(concurrency=64, **more):
    engine = EnginePolicy(name="vllm")
    return Workload(input_length=1024, output_length=256, concurrency=concurrency, engine=engine, **more)


@pytest.fixture(scope="module")
def advice():
    return advise(LLAMA, H100, asked())


def badge_of(figure):
    return [item.text for item in figure.layout.annotations if item.text.startswith("<b>")][-1]


class TestLinks:
    def test_a_cell_per_pair_with_its_name_and_bandwidth(self):
        frame = link_frame(DGX)
        assert len(frame) == 56
        figure = link_figure(frame, title="T", badge="MODEL · preset")
        heat = figure.data[0]
        for i in range(8):
            assert heat.z[i][i] is None
            for j in range(8):
                if i != j:
                    assert 10 ** heat.z[i][j] == pytest.approx(DGX.link(i, j).bandwidth_GBps)
        assert heat.texttemplate == "%{text}"
        assert heat.text[0][3] == "NV2<br>50"
        assert heat.text[0][7] == "SYS<br>11.9"
        assert badge_of(figure) == "<b>MODEL · preset</b>"

    def test_the_links_that_flip_are_those_of_predictions_one_by_one(self, advice):
        frame = advice.along_links([0.25, 1.0])
        machine = with_links_scaled(H100, 0.25)
        for row in frame[frame["links"] == 0.25].head(6).to_dict("records"):
            option = next(each for each in advice.options if str(each.layout) == row["layout"])
            lay = option.layout
            made = predict(LLAMA, machine, advice.workload, lay.tp, lay.pp, replicas=lay.replicas)
            assert (row["tpot_ms"], row["output_tokens_per_s"]) == pytest.approx(
                (made.tpot_ms, made.output_tokens_per_s)
            )
        assert len(frame) == 2 * len(advice.options)

    def test_all_alike_is_one_colour(self):
        figure = link_figure(link_frame(H100), title="T", badge="MODEL")
        numbers = {number for line in figure.data[0].z for number in line if number is not None}
        assert len(numbers) == 1
        assert figure.data[0].zmin < min(numbers) < figure.data[0].zmax

    def test_many_gpus_have_no_labels_and_one_has_no_links(self):
        two = Machine.preset("h100", nodes=3)
        figure = link_figure(link_frame(two), title="T", badge="MODEL")
        assert len(figure.data[0].z) == 24
        assert figure.data[0].text is None
        alone = link_figure(link_frame(Machine.preset("h100", gpus=1)), title="T", badge="MODEL")
        assert alone.data[0].z[0][0] is None

    def test_latency(self):
        figure = link_figure(link_frame(DGX), title="T", badge="MODEL", value="latency_us")
        assert 10 ** figure.data[0].z[0][3] == pytest.approx(DGX.link(0, 3).latency_us)

    def test_words(self):
        assert "Every pair of GPUs has the same link: NV18 with 450 GB/s" in explain_links(H100)
        assert "8 of 28 pairs have the fastest link, NV2 with 50 GB/s" in explain_links(DGX)
        assert "each GPU gets 50 GB/s when all send at once" in explain_links(Machine.preset("h100", nodes=2))
        assert "One GPU a node" in explain_links(Machine.preset("h100", gpus=1))


class TestPlacement:
    def test_every_gpu_is_drawn_once(self):
        for tp, pp in ((2, 2), (4, 2), (8, 1), (3, 2), (1, 5), (1, 8)):
            figure = placement_figure(DGX, place(DGX, tp, pp), title="T", badge="MODEL")
            drawn = [int(text) for trace in figure.data for text in trace.text]
            assert sorted(drawn) == list(range(8))
            placed = place(DGX, tp, pp)
            assert len(figure.layout.shapes) == len(placed.groups) * pp
            idle = [trace for trace in figure.data if trace.name == "idle"]
            assert [int(text) for trace in idle for text in trace.text] == list(placed.idle)

    def test_boxes_hold_their_gpus_and_name_the_slowest_link(self):
        placed = place(DGX, 2, 2)
        figure = placement_figure(DGX, placed, title="T", badge="MODEL")
        where = {int(t): (x, y) for trace in figure.data for t, x, y in zip(trace.text, trace.x, trace.y, strict=True)}
        groups = [group for chain in placed.groups for group in chain]
        for shape, group in zip(figure.layout.shapes, groups, strict=True):
            for gpu in group:
                x, y = where[gpu]
                assert shape.x0 < x < shape.x1
                assert shape.y0 < y < shape.y1
        assert sum(item.text == "NV2 50 GB/s" for item in figure.layout.annotations) == 4

    def test_a_group_with_a_slow_link_is_red(self):
        slow = placement_figure(DGX, place(DGX, 8, 1), title="T", badge="MODEL")
        fast = placement_figure(DGX, place(DGX, 2, 1), title="T", badge="MODEL")
        assert slow.layout.shapes[0].line.color != fast.layout.shapes[0].line.color
        assert any("ring NV2" in item.text for item in slow.layout.annotations)

    def test_nodes_have_their_colours(self):
        two = Machine.preset("h100", nodes=2)
        figure = placement_figure(two, place(two, 8, 2), title="T", badge="MODEL")
        assert [trace.name for trace in figure.data] == ["GPU of node 0", "GPU of node 1"]
        assert figure.data[0].marker.color != figure.data[1].marker.color

    def test_words_compare_with_gpus_in_order(self):
        assert "GPUs in order (0-1, ...), as launchers take them, would have NV1 with 25 GB/s: 2 times slower" in (
            explain_placement(DGX, place(DGX, 2, 2))
        )
        assert "in order" not in explain_placement(H100, place(H100, 2, 2))
        assert "Idle: 3, 7" in explain_placement(DGX, place(DGX, 3, 1))
        assert explain_placement(H100, place(H100, 1, 1)) == "One GPU does everything."


class TestAdvice:
    def test_the_waterfall_falls_term_by_term(self, advice):
        frame = advice.waterfall()
        figure = waterfall_figure(frame, title="T", badge="MODEL")
        *terms, total = figure.data
        assert len(terms) == (frame["ms"] > 0).sum()
        at = 0.0
        for bar in terms:
            assert bar.base[0] == pytest.approx(at)
            at += bar.x[0]
        assert total.x[0] == pytest.approx(at)
        assert at == pytest.approx(advice.best.prediction.tpot_ms)

    def test_every_term_says_where_it_comes_from(self, advice):
        figure = waterfall_figure(advice.waterfall(), title="T", badge="MODEL")
        texts = " ".join(item.text for item in figure.layout.annotations)
        for words in ("spec sheet", "kernel tables", "formula", "served tables"):
            assert words in texts

    def test_the_front_has_every_layout(self, advice):
        frame = advice.front
        figure = front_figure(frame, best=str(advice.best.layout), badge="MODEL", tpot_limit_ms=30.0)
        drawn = {trace.name for trace in figure.data} - {"others"}
        assert set(frame[frame["on_front"]]["layout"]) | {str(advice.best.layout)} == drawn
        points = sum(sum(x is not None for x in trace.x) for trace in figure.data)
        assert points == len(frame)
        assert figure.layout.shapes[0].x0 == 30.0
        widest = max(figure.data, key=lambda trace: trace.line.width)
        assert widest.name == str(advice.best.layout)

    def test_flips_are_where_lines_cross(self, advice):
        frame = flip_frame(advice, points=41)
        here = reference_GBps(advice)
        assert here == 450.0
        drawn = [flip for flip in advice.flips if flip.quantity == "link bandwidth" and flip.at > 450 / 32 / 0.8]
        assert drawn
        for flip in drawn:
            below, above = (
                frame[frame["layout"] == str(each)].set_index("link_GBps") for each in (flip.below, flip.above)
            )
            gain = above["output_tokens_per_s"] - below["output_tokens_per_s"]
            assert gain[gain.index < 0.8 * flip.at].max() < 0
            assert gain[gain.index > 1.25 * flip.at].min() > 0
        figure = flip_figure(frame, here=here, flips=[(238.0, "a | b"), (1.0, "off")], badge="MODEL")
        assert {trace.name for trace in figure.data} == set(frame["layout"])
        words = [item.text for item in figure.layout.annotations]
        assert "a | b" in words
        assert "off" not in words
        assert "this machine, 450 GB/s" in words
        assert badge_of(figure) == "<b>MODEL</b>"

    def test_links_are_scaled_as_the_model_scales_them(self):
        half = with_links_scaled(H100, 0.5)
        assert half.link(0, 1).bandwidth_GBps == 225
        assert half.link(0, 1).latency_us == H100.link(0, 1).latency_us
        assert "links 0.5 times as wide" in half.notes
        assert with_links_scaled(H100, 1.0) is H100
        two = Machine.preset("h100", nodes=2)
        assert with_links_scaled(two, 4.0).network == two.network
        slower, as_is = (predict(LLAMA, machine, asked(), 8, 1) for machine in (half, H100))
        assert slower.term_ms("all_reduce") > as_is.term_ms("all_reduce")

    def test_words(self, advice):
        text = explain_advice(advice)
        assert str(advice.best.layout) in text
        assert f"Bound by {advice.best.prediction.binding}" in text
        assert ("Too close to call" in text) == bool(advice.close)
        impossible = advise(LLAMA, H100, asked(tpot_limit_ms=0.1))
        assert "No layout is within the limits" in explain_advice(impossible)
        odd = advise(LLAMA, Machine.preset("h100", gpus=7), asked(1))
        assert ("GPUs stay idle" in explain_advice(odd)) == bool(odd.best.choice.idle)
        assert "Along link bandwidth: " in explain_flips(advice)
        only = advise(LLAMA, H100, asked(), tp=[8], pp=[1])
        assert "stays the best" in explain_flips(only)


def calibration(**more):
    sizes = (4096.0, 1048576.0)
    made = {
        "machine": "2 ranks",
        "device": "a CPU",
        "backend": "gloo",
        "num_ranks": 3,
        "created": "2026-11-24T12:00:00+00:00",
        "versions": {},
        "all_reduce": (
            AllReduceTimes(num_ranks=2, nbytes=sizes, p50_us=(100.0, 2000.0), gpus=(0, 1)),
            AllReduceTimes(num_ranks=3, nbytes=sizes, p50_us=(200.0, 4000.0), gpus=(0, 1, 2)),
        ),
        "sends": (
            SendTimes(source=0, target=1, nbytes=sizes, p50_us=(50.0, 1048.576)),
            SendTimes(source=0, target=2, nbytes=sizes, p50_us=(60.0, 2097.152)),
        ),
        "block_overhead_us": 300.0,
        "step_overhead_us": 200.0,
        "notes": ("a note",),
    }
    return Calibration(**made | more)


class TestMeasured:
    def test_pairs(self):
        frame = measured_links_frame(calibration())
        assert len(frame) == 4
        pair = frame[(frame["gpu"] == 1) & (frame["peer"] == 0)].iloc[0]
        assert pair["bandwidth_GBps"] == pytest.approx(1.0)
        assert pair["latency_us"] == 50.0
        figure = link_figure(frame, title="T", badge="LIVE gloo · 3 ranks", what="rank")
        bars = figure.data[0]  # of so few a matrix would be mostly nothing
        assert list(bars.y) == ["ranks 0 and 1", "ranks 0 and 2"]  # 1 and 2 are not measured yet
        assert list(bars.x) == pytest.approx([1.0, 0.5])
        assert bars.text[0] == "gloo: 1 GB/s, 50 µs"
        assert figure.layout.height < 300

    def test_nothing_measured_yet(self):
        empty = calibration(all_reduce=(), sends=(), block_overhead_us=None)
        assert len(measured_links_frame(empty)) == 0
        figure = link_figure(measured_links_frame(empty), title="T", badge="LIVE")
        assert [list(line) for line in figure.data[0].z] == [[None]]
        assert len(calibration_figure(empty, badge="LIVE").data) == 0
        assert explain_calibration(empty) == "a note."

    def test_curves(self):
        figure = calibration_figure(calibration(), badge="LIVE gloo · 3 ranks")
        assert [trace.name for trace in figure.data] == ["all-reduce of 2", "all-reduce of 3", "message", "message"]
        assert [trace.showlegend for trace in figure.data] == [True, True, True, False]
        assert figure.layout.xaxis.ticktext == ("4 KiB", "1 MiB")

    def test_words(self):
        text = explain_calibration(calibration())
        assert "2 pairs: a small message takes 50 to 60 µs, a large one gets 0.5 to 1 GB/s" in text
        assert "A small all-reduce: 100 µs of 2, 200 µs of 3" in text
        assert "A block adds 300 µs" in text
        made = replace(calibration(), block_overhead_us=0.0, block_overhead_per_width_us=None, step_overhead_us=0.0)
        assert "adds" not in explain_calibration(made)  # nothing is not said

    def verified(self, settings=("emulated link 1 us, 1 GB/s",)):
        rows = [
            {
                "setting": setting,
                "layout": layout,
                "predicted_tpot_ms": predicted,
                "measured_tpot_ms": measured,
                "tpot_ms_error_pct": 100 * (predicted / measured - 1),
                "predicted_output_tokens_per_s": 1e3 / predicted,
                "measured_output_tokens_per_s": 1e3 / measured,
                "output_tokens_per_s_error_pct": 0.0,
            }
            for setting in settings
            for layout, predicted, measured in (("TP 1 × PP 1", 10.0, 20.0), ("TP 2 × PP 1", 11.0, 10.0))
        ]
        return Verification(frame=pd.DataFrame(rows), notes=(), badge="LIVE gloo · 2 ranks")

    def test_predicted_beside_measured(self):
        made = self.verified()
        figure = verification_figure(made.frame, badge=made.badge)
        bars, diamonds = figure.data
        assert list(bars.y) == [20.0, 10.0]
        assert list(diamonds.y) == [10.0, 11.0]
        assert list(bars.x) == ["TP 1 × PP 1", "TP 2 × PP 1"]
        assert list(bars.text) == ["advised", "best"]  # by tokens/s
        better = made.frame.assign(measured_output_tokens_per_s=[9.0, 1.0])
        assert list(verification_figure(better, badge="").data[0].text) == ["advised<br>best", ""]
        assert list(verification_figure(made.frame.head(1), badge="").data[0].text) == [""]  # nothing to choose from
        both = self.verified(("emulated link A", "gloo over loopback"))
        grouped = verification_figure(both.frame, badge=both.badge)
        assert list(grouped.data[0].x[0]) == ["A", "A", "gloo over loopback", "gloo over loopback"]

    def test_a_bar_over_the_whole_width_has_its_label_inside(self):
        terms = [("launch", 90.0), ("weights", 5.0), ("host", 5.0)]
        frame = pd.DataFrame(
            [{"term": term, "ms": ms, "share_pct": ms, "provenance": "spec sheet"} for term, ms in terms]
        )
        launch, weights, _, *_ = waterfall_figure(frame, title="", badge="MODEL").layout.annotations
        assert (launch.x, launch.xanchor, launch.font.color) == (90.0, "right", style.INK_ON_FILL)  # on light grey
        assert (weights.x, weights.xanchor, weights.bgcolor) == (90.0, "right", None)

    def test_a_prediction_by_spec_sheet_has_marks_of_its_own(self):
        made = self.verified()
        figure = verification_figure(made.frame.assign(spec_sheet_tpot_ms=[5.0, 6.0]), badge=made.badge)
        assert [trace.name for trace in figure.data] == ["measured", "predicted, calibrated", "predicted by spec sheet"]
        assert list(figure.data[2].y) == [5.0, 6.0]

    def test_words_of_a_verification(self):
        text = explain_verification(self.verified())
        assert "time per token off by 30 % on average" in text
        assert "rank correlation -1.00" in text
        assert "regret 50.0 %" in text
        assert "By output tokens/s: advised TP 1 × PP 1, best TP 2 × PP 1; rank" in text
        assert explain_verification(Verification(frame=pd.DataFrame(), notes=(), badge="")) == ""


class TestArrivals:
    @pytest.mark.parametrize("output_length", [256, 1])
    def test_each_time_with_its_percentiles_and_limit(self, output_length):
        asked = Workload(input_length=1024, output_length=output_length, request_rate=6, ttft_limit_ms=150)
        made = simulate_arrivals(LLAMA, H100, asked, 8, 1, num_requests=500)
        figure = arrivals_figure(made.frame, title="T", badge="MODEL · preset", ttft_limit_ms=asked.ttft_limit_ms)
        assert badge_of(figure) == "<b>MODEL · preset</b>"
        lines = [trace for trace in figure.data if trace.mode == "lines"]
        tops = [trace for trace in figure.data if trace.mode == "markers"]
        names = ["ttft_ms", "tpot_ms"] if output_length > 1 else ["ttft_ms"]
        assert len(lines) == len(tops) == len(names)
        for name, line, points in zip(names, lines, tops, strict=True):
            assert line.x[0] == made.frame[name].min()
            assert list(line.x) == sorted(line.x)
            assert list(points.x) == made.percentiles.loc[name, ["p50", "p90", "p99"]].tolist()
            assert list(points.y) == [50, 10, 1]
        said = [item.text for item in figure.layout.annotations]
        assert next(text for text in said if text.startswith("p99")).endswith(" ms")
        assert said.count("limit, 150 ms") == 1
