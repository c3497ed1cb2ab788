"""The panels of notebooks 01 and 07 without a browser: what a control or a click does, through the same methods."""

import itertools
import time
from collections.abc import Iterator

import pytest

from tplab.cluster import RunStopped
from tplab.lab import AdvisorPanel, CalibrationPanel, LinkPanel, MemoryWall, Pool, ShardsPanel, VerifyPanel
from tplab.lab.panels.links import EXAMPLE_TOPO
from tplab.lab.panels.memory_wall import small_model
from tplab.lab.panels.verification import LINKS, all_layouts, verified_model
from tplab.topology import EnginePolicy, Machine, ModelSpec, advise, machine_of, place
from tplab.topology.machine.presets import MACHINES

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool(2, backend="gloo")
    yield pool
    pool.stop()


def badges(panel: object) -> list[str]:
    return [
        item.text
        for item in panel.figure.layout.annotations
        if item.text.startswith("<b>") and item.text.endswith("</b>")
    ]  # type: ignore[attr-defined]


class TestMemoryWall:
    def test_follows_its_sliders(self):
        wall = MemoryWall()
        before = wall.figure
        wall._named["tp"].value = 8
        assert wall.figure is not before
        assert len(wall.frame) == 8
        wall._named["pp"].value = 2
        assert len(wall.frame) == 16
        assert badges(wall) == ["<b>MODEL</b>"]

    def test_says_whether_it_fits_and_why_not(self):
        wall = MemoryWall().show(model="llama-3.1-70b", gpu="h100", batch=16, context=8192, tp=4)
        assert "fits</span>" in wall.below
        wall.show(tp=2)
        assert "does not fit</span>" in wall.below
        assert "more than the 76.5 GB that an engine may take" in wall.below
        assert wall.error == ""

    def test_a_cut_that_cannot_be_keeps_the_last_figure(self):
        wall = MemoryWall().show(tp=2)
        before = wall.figure
        wall.show(tp=3)
        assert "64 query heads: use 1, 2, 4" in wall.error
        assert wall.figure is before
        wall.show(tp=4)
        assert wall.error == ""
        assert wall.figure is not before

    def test_fewer_bits_and_shorter_requests_shrink_what_they_should(self):
        def parts(**settings):
            frame = MemoryWall().show(**settings).frame
            return frame[["weights_GB", "kv_GB"]].iloc[0].tolist()

        weights, cache = parts()
        assert parts(cache="fp8") == pytest.approx([weights, cache / 2])
        assert parts(context=4096) == pytest.approx([weights, cache / 2])
        assert parts(batch=32) == pytest.approx([weights, cache * 2])
        fewer, same = parts(weights="fp8")
        assert weights / 2 < fewer < 0.6 * weights
        assert same == cache

    @pytest.mark.parametrize(("view", "bars"), [("along TP", 5), ("along PP", 5), ("every rank", 4)])
    def test_views(self, view, bars):
        wall = MemoryWall().show(tp=4, pp=1, view=view)
        assert len(wall.frame) == bars

    def test_every_model_and_card_on_offer_is_drawn(self):
        wall = MemoryWall()
        for _, model in wall._named["model"].options:
            wall.show(model=model, tp=1, pp=2)
            assert wall.error == ""
        for _, gpu in wall._named["gpu"].options:
            wall.show(gpu=gpu)
            assert wall.error == ""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"colour": 1}, "colour is not a setting of this panel, which has model, gpu, weights, cache, batch"),
            ({"model": "llama-9"}, "model must be one of .*llama-3.1-70b.*; got 'llama-9'"),
            ({"tp": 17}, "tp must be a whole number from 1 to 16; got 17"),
            ({"tp": 2.5}, "tp must be a whole number from 1 to 16; got 2.5"),
            ({"tp": "two"}, "tp must be a whole number from 1 to 16; got 'two'"),
            ({"context": 1000}, "context must be one of 128, 256"),
        ],
    )
    def test_what_is_not_offered_is_named(self, settings, message):
        wall = MemoryWall()
        before = {name: control.value for name, control in wall._named.items()}
        with pytest.raises(ValueError, match=message):
            wall.show(**settings)
        assert {name: control.value for name, control in wall._named.items()} == before


class TestShards:
    def test_builds_draws_and_explains(self, pool):
        panel = ShardsPanel(pool).configure(tp=3, pp=2, layers=5, batch=2, context=16)
        panel.run()
        assert panel.frame["layout"].tolist() == ["TP 1 × PP 1"] + ["TP 3 × PP 2"] * 6
        assert panel.frame["exact"].all()
        assert set(panel.frame["built_on"]) == {0, 1}
        assert panel.frame["layers"].tolist() == [5, 2, 2, 2, 3, 3, 3]
        assert badges(panel) == ["<b>LIVE gloo · 2 ranks</b>"]
        assert "equal the formula, byte for byte" in panel._below.value
        panel.configure(batch=4)
        assert "Settings changed" in panel._ribbon.value

    def test_one_rank_alone(self, pool):
        panel = ShardsPanel(pool).configure(tp=1, pp=1, layers=1, batch=1, context=16)
        panel.run()
        assert len(panel.frame) == 1
        assert panel.frame["exact"].all()

    def test_a_cut_that_cannot_be_is_shown_and_raised(self, pool):
        panel = ShardsPanel(pool).configure(tp=4)
        with pytest.raises(ValueError, match="tp must divide the model's 6 query heads"):
            panel.run()
        assert "must divide" in panel._error.value
        with pytest.raises(ValueError, match="pp must be at most 3"):
            panel.configure(tp=1, pp=6, layers=3).run()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"speed": 1}, "speed is not a setting of this panel, which has shape, layers, tp, pp, batch, context"),
            ({"shape": "round"}, "shape must be one of 6 heads, 2 key-value"),
            ({"tp": 7}, "tp must be a whole number from 1 to 6; got 7"),
        ],
    )
    def test_what_is_not_offered_is_named(self, pool, settings, message):
        with pytest.raises(ValueError, match=message):
            ShardsPanel(pool).configure(**settings)

    def test_the_small_models_vocabulary_divides_by_nothing(self):
        for shape in ("6 heads, 2 key-value", "12 heads, 1 key-value"):
            spec = ModelSpec.from_config(small_model(shape).to_hf())
            assert all(spec.vocab_size % n for n in range(2, 7))
            assert spec.num_heads * spec.head_dim == spec.hidden_size


class TestLinks:
    def test_preset_detected_and_pasted(self):
        links = LinkPanel("dgx-1")
        assert links.machine == Machine.preset("dgx-1")
        links.show(preset="h100-pairs")
        assert links.machine == Machine.preset("h100-pairs")
        links.show(nodes=2)
        assert links.machine.nodes == 2
        links.show(source="detect")
        assert links.machine == Machine.detect()
        links.show(text=EXAMPLE_TOPO, gpu="a100-pcie", nodes=1)
        assert links.machine == Machine.from_topo(EXAMPLE_TOPO, gpu="a100-pcie")
        assert "NV4" in links.below
        assert links.error == ""

    def test_text_that_is_no_table_keeps_the_last_machine_and_figure(self):
        links = LinkPanel("dgx-1")
        before, machine = links.figure, links.machine
        links.show(text="GPU0 GPU1\nGPU0 X")
        assert "line" in links.error
        assert links.figure is before
        assert links.machine is machine
        links.show(source="preset")
        assert links.error == ""

    def test_placement_of_a_layout(self):
        links = LinkPanel("dgx-1").show(view="placement", tp=2, pp=2)
        assert "NV2 with 50 GB/s" in links.below
        assert badges(links) == ["<b>MODEL · preset</b>"]
        assert links.drawing.placement == place(links.machine, 2, 2)
        links.show(tp=16)
        assert "groups of 16 fit in a node of 8" in links.error

    def test_a_layout_that_another_machine_has_no_room_for_gives_way(self):
        links = LinkPanel("h100").show(tp=8, pp=1)
        links.show(preset="h100-pairs")
        assert links.error == ""
        assert (links._named["tp"].value, links.drawing.tp, links.drawing.machine["perNode"]) == (4, 4, 4)

    def test_the_drawing_stands_where_the_figure_would(self):
        links = LinkPanel("dgx-1")
        assert (links.drawing.layout.display, links._view.layout.display) == ("", "none")
        assert any("<iframe" in part for part in links.still() if isinstance(part, str))  # for pages without a kernel
        assert links.figure not in links.still()
        links.show(view="bandwidth")
        assert (links.drawing.layout.display, links._view.layout.display) == ("none", "")
        before = links.drawing.machine
        links.show(nodes=20, view="placement")
        assert "up to 144 are drawn" in links.error
        assert links.drawing.machine is before

    def test_a_hand_on_the_drawing_renews_what_a_page_without_a_kernel_shows(self, monkeypatch):
        links, renewed = LinkPanel("dgx-1").show(tp=2, pp=2), []
        monkeypatch.setattr(links, "settled", lambda **when: renewed.append(when))
        before = "".join(part for part in links.still() if isinstance(part, str))
        links.drawing.groups = [0, 0, 1, 1, 2, 2, 3, 3]
        assert renewed
        assert "".join(part for part in links.still() if isinstance(part, str)) != before

    def test_redraws_take_little_of_the_kernels_time(self):
        """Of 28 pairs in words, and of a layout whose links differ: 0.2 s and more before, 0.02 s now."""
        links = LinkPanel("dgx-1")
        for view in ("bandwidth", "placement"):
            links.show(view=view, nodes=1)
            took = []
            for gpus in (7, 8, 7, 8):
                start = time.process_time()
                links.show(preset="dgx-1", gpus=gpus)
                took.append(time.process_time() - start)
            assert min(took) < 0.1, view

    def test_controls_of_other_sources_are_hidden(self):
        links = LinkPanel()
        shown = {name for name, control in links._named.items() if control.layout.display != "none"}
        assert shown >= {"preset", "gpus", "nodes", "tp", "pp"}
        assert not shown & {"text", "gpu"}
        links.show(source="paste")
        shown = {name for name, control in links._named.items() if control.layout.display != "none"}
        assert shown >= {"text", "gpu", "nodes"}
        assert not shown & {"preset", "gpus"}

    def test_every_preset_is_drawn(self):
        links, views = LinkPanel(), itertools.cycle(["bandwidth", "latency", "placement"])
        for preset, view in zip(MACHINES, views, strict=False):
            links.show(preset=preset, view=view, tp=1, pp=2)
            assert links.error == ""

    def test_a_listener_hears_of_another_machine_once(self):
        links, heard = LinkPanel("h100"), []
        links.on_machine(heard.append)
        links.show(preset="a100")
        links.show(view="latency")
        assert [machine.name for machine in heard] == ["8 x a100"]


@pytest.fixture(scope="module")
def panel() -> AdvisorPanel:
    return AdvisorPanel(Machine.preset("h100"))


class TestAdvisor:
    def test_ranks_what_advise_ranks(self, panel):
        panel.show(concurrency=64, view="one step", engine="vllm")
        made = advise(panel.advice.model, panel.advice.machine, panel.advice.workload)
        assert panel.advice.table().equals(made.table())
        assert str(made.best.layout) in panel.below
        table = panel._table.value
        for option in made.options[:4]:
            assert f"{option.prediction.output_tokens_per_s:,.0f}" in table
        assert f"{len(made.rejected)} that do not fit, and why" in table
        assert made.commands["vllm"][0] in table
        assert badges(panel) == ["<b>MODEL · preset links</b>"]

    @pytest.mark.parametrize("view", ["one step", "front", "placement", "flips"])
    def test_views(self, panel, view):
        panel.show(view=view, concurrency=16)
        assert panel.error == ""
        assert badges(panel) == ["<b>MODEL · preset links</b>"]
        words = {"flips": "Along link bandwidth", "placement": "The slowest link inside a group"}
        assert words.get(view, "ms per token") in panel.below

    def test_limits_and_load_are_followed(self, panel):
        panel.show(view="one step", concurrency=1, tpot_limit_ms=0.0)
        alone = panel.advice.best.layout
        panel._named["concurrency"].value = 1024
        assert panel.advice.workload.concurrency == 1024
        assert panel.advice.best.layout != alone
        panel.show(concurrency=64, tpot_limit_ms=5.0)
        assert panel.advice.best.misses
        assert "over the limit of 5 ms" in panel._table.value
        panel.show(concurrency=1024, tpot_limit_ms=50.0)
        assert not panel.advice.best.misses
        assert f"it admits {panel.advice.best.prediction.admitted} of " in panel._table.value
        panel.show(tpot_limit_ms=0.0)
        assert panel.advice.workload.tpot_limit_ms is None
        assert "it admits" not in panel._table.value

    def test_the_engine_is_asked_for_what_the_controls_say(self, panel):
        panel.show(max_num_seqs=64, prefill_policy="prefill-first", cached_prefix=0.5, speculative_tokens=4)
        asked = panel.advice.workload
        assert (asked.cached_prefix, asked.engine.max_num_seqs) == (0.5, 64)
        assert (asked.engine.prefill_policy, asked.engine.speculative_tokens) == ("prefill-first", 4)
        assert "--max-num-seqs 64" in panel._table.value
        panel.show(max_num_seqs=0, prefill_policy="auto", cached_prefix=0.0, speculative_tokens=0)
        assert panel.advice.workload.engine == EnginePolicy(name=panel.advice.workload.engine.name)

    def test_narrower_links_change_the_choice(self, panel):
        panel.show(concurrency=64, links=1.0, view="one step")
        wide = panel.advice.best.layout
        panel.show(links=1 / 16)
        assert panel.advice.machine.link(0, 1).bandwidth_GBps == pytest.approx(450 / 16)
        assert panel.advice.best.layout != wide
        panel.show(links=1.0)

    def test_another_rank_is_looked_at(self, panel):
        panel.show(rank=2, view="one step")
        second = panel.advice.options[1]
        assert panel.option is second
        assert str(second.layout) in panel.figure.layout.title.text
        assert f"<b>{str(second.layout).replace(' ', '&nbsp;')}</b>" in panel._table.value
        panel.show(rank=30)
        assert panel.option is panel.advice.options[-1]
        panel.show(rank=1)

    def test_a_model_that_does_not_fit_keeps_the_last_figure(self):
        panel = AdvisorPanel(Machine.preset("l4", gpus=1)).show(model="llama-3.1-8b", weights="int4")
        before = panel.figure
        panel.show(model="llama-3.1-405b")
        assert "does not fit on 1 x l4" in panel.error
        assert "What would fit" in panel.error
        assert panel.figure is before

    def test_it_follows_the_links_above(self):
        links = LinkPanel("h100")
        panel = AdvisorPanel(links).show(concurrency=64)
        on_nvlink = panel.advice.best.layout
        links.show(preset="a100-pcie")
        assert panel.advice.machine.name == "8 x a100-pcie"
        assert panel.advice.best.layout != on_nvlink

    def test_the_placement_is_a_drawing_of_what_is_looked_at(self, panel):
        panel.show(view="placement", rank=2)
        lay, drawn = panel.option.layout, panel.drawing
        assert (drawn.tp, drawn.pp, drawn.replicas) == (lay.tp, lay.pp, lay.replicas)
        assert drawn.prices["best"]["tpot_ms"] == pytest.approx(panel.option.prediction.tpot_ms)
        panel.show(view="one step", rank=1)
        assert drawn.layout.display == "none"

    def test_flips_take_little_of_the_kernels_time(self):
        """On links that differ, where each of 21 bandwidths was placed anew before: 0.35 s then, 0.07 s now."""
        panel, took = AdvisorPanel(Machine.preset("dgx-1")).show(model="llama-3.1-8b", view="flips"), []
        for load in (16, 32, 64):
            start = time.process_time()
            panel.show(concurrency=load)
            took.append(time.process_time() - start)
        assert min(took) < 0.1

    def test_flips_wait_for_the_slider_to_be_let_go(self, panel):
        panel.show(view="flips")
        assert not panel._named["concurrency"].continuous_update
        panel.show(view="one step")
        assert panel._named["concurrency"].continuous_update


def wait_for(condition, timeout=60.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def calibrated(pool: Pool) -> CalibrationPanel:
    panel = CalibrationPanel(pool).configure(link="2 ms, 0.2 GB/s")
    panel.run()
    return panel


class TestMeasuring:
    def test_calibrating_draws_pairs_and_curves(self, calibrated):
        made = calibrated.calibration
        assert [sweep.num_ranks for sweep in made.all_reduce] == [2]
        assert made.sends[0].p50_us[0] > 2000
        assert made.matmuls
        assert badges(calibrated) == ["<b>LIVE gloo · 2 ranks · emulated link 2,000 us, 0.2 GB/s</b>"]
        assert "1 pair: a small message takes" in calibrated._below.value
        calibrated._look.value = "all-reduces"
        assert calibrated.figure.data[0].name == "all-reduce of 2"
        calibrated._look.value = "pairs"
        assert list(calibrated.figure.data[0].y) == ["ranks 0 and 1"]

    def test_the_advisor_takes_what_was_measured(self, calibrated):
        small = ModelSpec.from_config(verified_model(256).to_hf())
        made = calibrated.calibration
        panel = AdvisorPanel(machine_of(made), calibration=made, model=small)
        panel.show(engine="lab", concurrency=1)
        assert {panel._named[name].layout.display for name in ("model", "weights", "cache")} == {"none"}
        assert badges(panel) == [f"<b>MODEL · {made.badge}</b>"]
        assert "measured: gloo" in panel._table.value
        assert panel.advice.best.prediction.regime == "calibrated"

    def test_layouts_run_beside_their_predictions(self, calibrated):
        panel = VerifyPanel(calibrated).configure(hidden=256, layers=2, tokens=4, rounds=1)
        panel.run()
        frame = panel.verification.frame
        assert frame["layout"].tolist() == ["TP 1 × PP 1", "TP 1 × PP 2", "TP 2 × PP 1"]
        by = frame.set_index("layout")["measured_tpot_ms"]
        assert by["TP 2 × PP 1"] > 2 * 2 * 2  # two layers of two all-reduces, each at least two latencies of 2 ms
        assert by["TP 1 × PP 1"] < by["TP 1 × PP 2"] < by["TP 2 × PP 1"]
        assert panel.verification.spearman == 1.0
        assert panel.joined.frame.equals(frame)
        assert "3 layouts run" in panel._below.value
        assert badges(panel) == ["<b>LIVE gloo · 2 ranks · emulated link 2,000 us, 0.2 GB/s</b>"]
        # The words rank by output tokens/s, and so does the figure; another view says that it does not.
        assert "By output tokens/s: advised TP 1 × PP 1, best TP 1 × PP 1" in panel._below.value
        assert panel.figure.layout.yaxis.title.text == "output tokens/s"
        assert panel.figure.data[0].text[0] == "advised<br>best"
        panel._look.value = "per token"
        assert panel.figure.layout.yaxis.title.text.endswith("<i>advised and best: by output tokens/s</i>")

    def test_without_a_calibration_there_is_nothing_to_verify(self, pool):
        panel = VerifyPanel(CalibrationPanel(pool))
        with pytest.raises(ValueError, match="there is no calibration yet: press Run in the panel above"):
            panel.run()
        assert "there is no calibration yet" in panel._error.value
        assert panel.verification is None

    def test_a_calibration_that_is_stopped_keeps_what_it_has(self, pool):
        panel = CalibrationPanel(pool).configure(effort="thorough")
        panel._run_button.click()
        wait_for(lambda: panel.state.work is not None)
        wait_for(lambda: sum("samples" in report.fields for report in panel.state.work.run.reports) > 10)
        panel.stop()
        wait_for(panel._ended.is_set)
        assert isinstance(panel.state.work.run.exception(), RunStopped)
        assert panel.calibration.all_reduce
        assert not panel.calibration.matmuls
        assert "Stopped" in panel._status.words

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"link": "string"}, "link must be one of the ranks' own, 0.2 ms, 1 GB/s"),
            ({"speed": 1}, "speed is not a setting of this panel, which has link, effort"),
        ],
    )
    def test_what_is_not_offered_is_named(self, pool, settings, message):
        with pytest.raises(ValueError, match=message):
            CalibrationPanel(pool).configure(**settings)

    def test_links_on_offer_say_what_they_are(self):
        for name, link in LINKS.items():
            assert link is None or name == f"{link.latency_us / 1e3:g} ms, {link.bandwidth_GBps:g} GB/s"

    def test_layouts_of_some_ranks(self):
        config = verified_model(256, 4)  # 4 heads
        sizes = [(layout.tp, layout.pp) for layout in all_layouts(config, 4)]
        assert sizes == [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)]
        assert [(layout.tp, layout.pp) for layout in all_layouts(verified_model(256, 2), 4)] == [
            (1, 1),
            (1, 2),
            (2, 1),
            (2, 2),
            (4, 1),
        ]
