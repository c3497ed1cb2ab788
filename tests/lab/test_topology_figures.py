"""Figures of memory, links and layouts: what they draw is what the frames say."""

from dataclasses import replace

import pytest

from tplab.cluster import Report
from tplab.lab.figures import by_stage, degrees_frame, memory_figure, memory_frame, shards_figure
from tplab.lab.figures.memory import explain_memory, explain_shards
from tplab.lab.panels.memory_wall import small_model
from tplab.topology import Layout, Machine, ModelSpec, Workload
from tplab.topology.advisor.memory import fullest_rank, max_requests
from tplab.topology.verification.memory import ShardPlan, shards_frame

LLAMA = ModelSpec.from_config("llama-3.1-70b")
H100 = Machine.preset("h100").gpu


def asked(context=8192, batch=16):
    return Workload(input_length=context - 1, output_length=1, concurrency=batch)


def memory(tp=2, pp=1, batch=16, spec=LLAMA):
    return memory_frame(spec, H100, asked(batch=batch), Layout.of(spec, tp, pp), requests=batch)


def badge_of(figure):
    return [item.text for item in figure.layout.annotations]


def test_bars_add_up_to_the_rank():
    frame = memory(tp=2, pp=3)
    assert frame["label"].tolist() == ["0·0", "0·1", "1·0", "1·1", "2·0", "2·1"]
    assert frame["layers"].tolist() == [26, 26, 27, 27, 27, 27]
    figure = memory_figure(frame, title="T", badge="MODEL")
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [sum(column) for column in zip(*(bar.y for bar in bars), strict=True)] == pytest.approx(
        frame["total_GB"].tolist()
    )
    assert (frame["total_GB"] + frame["free_GB"]).tolist() == pytest.approx(frame["usable_GB"].tolist())
    assert badge_of(figure) == ["<b>MODEL</b>"]


def test_ranks_over_what_an_engine_takes_are_marked():
    over, under = (memory_figure(memory(tp=tp), title="T", badge="MODEL") for tp in (2, 4))
    marks = [next(trace for trace in figure.data if trace.name == "over by") for figure in (over, under)]
    assert list(marks[0].x) == ["0", "1"]
    assert marks[0].text[0] == f"+{-memory(tp=2)['free_GB'].iloc[0]:.3g} GB"
    assert len(marks[1].x) == 0
    assert not marks[1].showlegend


def test_lines_stand_at_the_card_and_at_the_engines_part_of_it():
    figure = memory_figure(memory(), title="T", badge="MODEL")
    heights = sorted(shape.y0 for shape in figure.layout.shapes)
    assert heights == pytest.approx([0.9 * H100.memory_GB, H100.memory_GB])
    assert {trace.name for trace in figure.data if trace.type == "scatter" and trace.mode == "lines"} == {
        f"card, {H100.memory_GB:.3g} GB",
        f"engine limit (90%), {0.9 * H100.memory_GB:.3g} GB",
    }


def test_past_32_ranks_there_is_a_bar_for_the_fullest_of_each_stage():
    frame = memory(tp=16, pp=16)
    bars = by_stage(frame)
    assert bars["label"].tolist() == [str(stage) for stage in range(16)]
    assert bars["ranks"].tolist() == [16] * 16
    for _, bar in bars.iterrows():
        assert bar["free_GB"] == frame[frame["stage"] == bar["stage"]]["free_GB"].min()
    assert by_stage(memory(tp=16, pp=2))["ranks"].tolist() == [1] * 32
    ends = by_stage(memory(tp=1, pp=40))
    assert ends["label"].tolist() == ["emptiest rank", "fullest rank"]
    assert ends["free_GB"].tolist() == [memory(pp=40, tp=1)["free_GB"].max(), memory(pp=40, tp=1)["free_GB"].min()]


def test_bars_far_below_the_limit_fill_the_axis_and_words_say_how_far():
    low, high = (memory_figure(memory(tp=tp, pp=tp), title="T", badge="MODEL") for tp in (16, 2))
    fullest = memory(tp=16, pp=16)["total_GB"].max()
    assert low.layout.yaxis.range[1] == pytest.approx(1.3 * fullest)
    assert not low.layout.shapes
    said = f"the fullest bar is {fullest / (0.9 * H100.memory_GB):.0%} of the limit"
    assert any(said in item.text for item in low.layout.annotations)
    assert high.layout.yaxis.range[1] == pytest.approx(1.15 * H100.memory_GB)


def test_labels_of_one_axis():
    assert memory(tp=2)["label"].tolist() == ["0", "1"]
    assert memory(tp=1, pp=2)["label"].tolist() == ["0", "1"]
    assert memory(tp=1, pp=1)["label"].tolist() == ["0"]


def test_along_tp_the_cache_stops_shrinking_at_the_key_value_heads():
    frame = degrees_frame(LLAMA, H100, asked(), Layout.of(LLAMA, 4, 1), along="tp", requests=16)
    assert frame["label"].tolist() == ["TP 1", "TP 2", "TP 4", "TP 8", "TP 16"]
    kv = frame["kv_GB"].tolist()
    assert kv[:4] == pytest.approx([kv[0], kv[0] / 2, kv[0] / 4, kv[0] / 8])
    assert kv[4] == pytest.approx(kv[3])
    for label, total in zip(frame["label"], frame["total_GB"], strict=True):
        layout = Layout.of(LLAMA, int(label.split()[1]), 1)
        assert total == pytest.approx(fullest_rank(LLAMA, H100, asked(), layout, requests=16).total / 1e9)


def test_degrees_that_cannot_be_are_left_out():
    qwen = ModelSpec.from_config("qwen2.5-7b")  # 28 heads: not 8, not 16
    frame = degrees_frame(qwen, H100, asked(), Layout.of(qwen, 2, 1), along="tp", requests=1)
    assert frame["label"].tolist() == ["TP 1", "TP 2", "TP 4"]
    along_pp = degrees_frame(qwen, H100, asked(), Layout.of(qwen, 1, 3), along="pp", requests=1)
    assert along_pp["label"].tolist() == ["PP 1", "PP 2", "PP 3", "PP 4", "PP 8", "PP 16"]


def words(tp, pp=1, batch=16, spec=LLAMA, gpu=H100, context=8192):
    layout, workload = Layout.of(spec, tp, pp), asked(context, batch)
    frame = memory_frame(spec, gpu, workload, layout, requests=batch)
    return explain_memory(frame, spec, gpu, workload, layout)


def test_words_say_what_is_missing_and_what_would_fit():
    text = words(2)
    missing = -memory(tp=2)["free_GB"].min()
    assert f"{missing:.3g} GB more than the 76.5 GB" in text
    assert f"{max_requests(LLAMA, H100, asked(), Layout.of(LLAMA, 2, 1)):,} such requests would fit" in text
    assert "The fewest H100 with room for one: 2, as TP 2 × PP 1; for all 16: TP 4 × PP 1." in text
    assert max_requests(LLAMA, H100, asked(), Layout.of(LLAMA, 4, 1)) >= 16
    assert "Not even one request fits" in words(1)


def test_words_of_a_fit_say_how_many_more():
    text = words(8)
    assert f"{max_requests(LLAMA, H100, asked(), Layout.of(LLAMA, 8, 1))} would fit" in text
    assert "more than" not in text


@pytest.mark.parametrize(
    ("tp", "pp", "said"),
    [
        (16, 1, "more ranks than the 8 key-value heads: each is on 2 ranks"),
        (1, 3, "80 layers over 3 stages: 26-27-27"),
        (1, 2, "PP does not cut those"),
        (8, 1, ""),
    ],
)
def test_words_say_what_a_cut_leaves_whole(tp, pp, said):
    assert said in words(tp, pp)


def test_words_of_heads_that_straddle():
    spec = ModelSpec.from_config(small_model().to_hf())  # 6 query heads, 2 key-value heads
    assert "key-value heads" not in words(2, spec=spec)
    assert "more ranks than the 2 key-value heads" in words(6, spec=spec)
    mistral = ModelSpec.from_config("mistral-large-123b")  # 96 and 8
    assert mistral.kv_heads_per_rank(6) == 2
    assert "more ranks" in words(16, spec=mistral)
    five = replace(spec, num_heads=12, num_kv_heads=4)
    assert "does not divide the 4 key-value heads evenly: some rank keeps 2 of them, more than 4/3" in words(
        3, spec=five
    )


def shards(exact=True):
    """A plan, and reports as ranks would give them."""
    config = small_model()
    spec = ModelSpec.from_config(config.to_hf())
    plan = ShardPlan(config=config, layouts=(Layout.of(spec, 1, 1), Layout.of(spec, 3, 2)), batch=1, context=1)
    reports = [
        Report(
            rank=0,
            fields={
                "place": number,
                "weight_bytes": int(place.told_weight_bytes) + (0 if exact else number),
                "kv_bytes": int(place.told_kv_bytes),
            },
        )
        for number, place in enumerate(plan.places)
    ]
    return plan, reports


class Told:
    """Provenance of a run that there was not."""

    def columns(self):
        return {"backend": "gloo"}


@pytest.mark.parametrize("exact", [True, False])
def test_shards_stand_beside_the_formula(exact):
    plan, reports = shards(exact)
    frame = shards_frame(plan, reports, Told())
    assert len(frame) == 7
    assert frame["exact"].tolist() == [exact or number == 0 for number in range(7)]
    figure = shards_figure(frame, badge="LIVE gloo · 2 ranks")
    weights, cache, told, told_all = figure.data
    assert list(weights.y) == pytest.approx((frame["weight_bytes"] / 1e6).tolist())
    assert list(told.y) == pytest.approx((frame["told_weight_bytes"] / 1e6).tolist())
    assert [a + b for a, b in zip(told.y, cache.y, strict=True)] == pytest.approx(list(told_all.y))
    text = explain_shards(frame)
    assert ("byte for byte" in text) == exact
    assert ("6 of 7 shards DIFFER" in text) == (not exact)
    assert "768 to 2,048 bytes" in text
    assert "hold 2 times the cache of one rank alone" in text


def test_shards_that_are_not_there_yet():
    plan, reports = shards()
    frame = shards_frame(plan, reports[3:5], Told())
    assert frame["rank"].tolist() == [2, 3]
    empty = shards_frame(plan, [], Told())
    assert explain_shards(empty) == ""
    assert len(shards_figure(empty, badge="LIVE gloo · 2 ranks").data) == 4
