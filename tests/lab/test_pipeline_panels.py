"""The panels of notebook 05: the studio follows its sliders; runs on ranks are drawn under their simulation."""

import re
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tplab.cluster import RunStopped
from tplab.lab import EditorPanel, PipelinePanel, Pool, ScheduleStudio, ServingPanel, style
from tplab.lab.figures.pipeline import explain_pipeline
from tplab.lab.figures.pipeline_curves import explain_hops, explain_serving
from tplab.lab.panels.figure_view import unpacked
from tplab.lab.panels.pipeline import serving_plan
from tplab.layers import StackPlan
from tplab.pipeline import SCHEDULES, BlockStages, Costs, Trace, build_schedule, formulas, measured_costs, simulate
from tplab.pipeline.build import INFERENCE, TRAINING
from tplab.topology.machine.names import name_of, offered

pytestmark = pytest.mark.timeout(90)


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", html))


def rows_of(studio: ScheduleStudio) -> dict[str, list[str]]:
    """Name -> simulated and formula."""
    cells = re.findall(r"<tr>(.*?)</tr>", studio._facts.value)
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in cells]
    return {row[0]: row[1:] for row in rows if row}


@pytest.fixture
def studio() -> ScheduleStudio:
    return ScheduleStudio()


def test_the_studio_shows_what_it_is_set_to(studio: ScheduleStudio) -> None:
    assert studio.error == ""
    assert studio.figure.layout.title.text == "1F1B: 4 ranks, 8 micro-batches"
    assert "<b>MODEL</b>" in studio.figure.layout.annotations[0].text
    assert rows_of(studio)["makespan"] == ["330 ms", "330 ms"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_has_its_figure(studio: ScheduleStudio, name: str) -> None:
    studio.show(schedule=name)
    assert studio.error == ""
    assert studio.figure.layout.title.text.startswith(name_of(name))
    assert studio._named["phase"].value == ("infer" if name in INFERENCE else "train")
    assert studio._named["v"].disabled == (name != "interleaved")
    assert studio._named["k"].disabled == (name not in ("decode-ring", "prefill-decode"))


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "gpipe", "p": 3, "m": 7, "forward_ms": 4, "input_grad_ms": 9, "weight_grad_ms": 2},
        {"schedule": "1f1b", "p": 5, "m": 3},
        {"schedule": "interleaved", "v": 3, "m": 12},
        {"schedule": "zb-h1", "p": 8, "m": 32, "weight_grad_ms": 4},
        {"schedule": "forward-only", "last_stage": 2.5, "hop_ms": 3},
        {"schedule": "chunked-prefill", "m": 16},
        {"schedule": "decode-ring", "k": 3, "m": 30, "hop_ms": 2},
        {"schedule": "decode-ring", "k": 6, "m": 60, "last_stage": 2},
        {"schedule": "forward-only", "p": 1, "m": 1},
    ],
)
def test_formula_and_simulation_agree_in_the_table(studio: ScheduleStudio, settings: dict[str, object]) -> None:
    studio.show(**settings)
    said = {name: cells for name, cells in rows_of(studio).items() if cells[1] not in ("", "–")}
    assert said
    for name, (simulated, formula) in said.items():
        assert simulated == formula, name


@pytest.mark.parametrize("more", [{"hop_ms": 2}, {"last_stage": 2}])
def test_where_there_is_no_formula_none_is_shown(studio: ScheduleStudio, more: dict[str, float]) -> None:
    studio.show(schedule="1f1b", **more)
    assert "none for these settings" in text_of(studio._facts.value)
    assert rows_of(studio)["makespan"][1] == "–"


def test_a_slider_is_followed_at_once(studio: ScheduleStudio) -> None:
    before = studio.trace.makespan_s
    studio._named["forward_ms"].value = 20
    assert studio.trace.makespan_s > before
    shown = unpacked(studio._view._plot)
    assert "440 ms" in str(shown["layout"]["annotations"])
    studio._named["phase"].value = "infer"
    assert studio.trace.schedule.is_inference
    assert studio._named["schedule"].options == tuple(offered(INFERENCE))
    studio._named["phase"].value = "train"
    assert studio._named["schedule"].options == tuple(offered(TRAINING))


def test_impossible_settings_are_said_above_the_last_good_figure(studio: ScheduleStudio) -> None:
    studio.show(schedule="interleaved", m=8)
    good = studio.figure
    studio._named["m"].value = 9
    assert "with 4 ranks take 8 or 12 micro-batches" in text_of(studio.error)
    assert studio.figure is good
    studio._named["m"].value = 12
    assert studio.error == ""
    assert studio.figure is not good


def test_too_little_memory_is_said_and_drawn(studio: ScheduleStudio) -> None:
    studio.show(schedule="gpipe", cap=4)
    assert "Over the memory cap" in studio.error
    assert "rank 0 holds up to 8 micro-batches, and 3 other ranks too many as well" in text_of(studio.error)
    assert any(item.name == "cap: 4" for item in studio.figure.data)
    studio.show(schedule="1f1b")
    assert studio.error == ""
    studio.show(schedule="decode-ring")
    assert not any(item.name == "cap: 4" for item in studio.figure.data)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"p": 17}, "p must be a whole number from 1 to 16; got 17"),
        ({"schedule": "dualpipe"}, "schedule must be one of gpipe"),
        ({"phase": "rest"}, "phase must be one of train, infer"),
        ({"stages": 4}, "stages is not a setting of this panel, which has phase"),
    ],
)
def test_what_the_studio_does_not_offer_is_named(
    studio: ScheduleStudio, settings: dict[str, object], says: str
) -> None:
    before = studio.figure
    with pytest.raises(ValueError, match=says):
        studio.show(**settings)
    assert studio.figure is before


def test_several_settings_are_drawn_once(studio: ScheduleStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(studio._view, "show", lambda figure, **_: drawn.append(figure))
    studio.show(schedule="interleaved", p=8, m=16, v=4)  # p = 8 and the m of before would not go together
    assert len(drawn) == 1


@pytest.mark.parametrize("name", ["1f1b", "zb-h1", "decode-ring"])
def test_an_update_is_fast_enough_for_a_slider(studio: ScheduleStudio, name: str) -> None:
    """p = 8, m = 32: the CPU time of the kernel for one step of a slider, best of several."""
    studio.show(schedule=name, p=8, m=32)
    best = float("inf")
    for step in range(6):
        start = time.process_time()
        studio._named["forward_ms"].value = 5 + step
        best = min(best, time.process_time() - start)
    assert best < 0.1


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool(2, backend="gloo")
    yield pool
    pool.stop()


def wait_for(condition: object, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def test_a_run_is_drawn_under_its_simulation(pool: Pool) -> None:
    panel = PipelinePanel(pool)
    panel.configure(schedule="interleaved", m=4, v=2, forward_ms=10, hop_ms=2).run()
    assert isinstance(panel.trace, Trace)
    assert panel.trace.measured
    schedule = build_schedule("interleaved", 2, 4, 2)
    assert panel.trace.schedule == panel.simulated.schedule == schedule
    expected = simulate(
        schedule, Costs(forward_s=0.01, input_grad_s=0.01, weight_grad_s=0.01, hop_s=0.002, message_bytes=4096)
    )
    assert panel.simulated.makespan_s == expected.makespan_s
    # Stages wait at least as long as they are declared to, and links carry nothing sooner.
    assert panel.trace.makespan_s > 0.999 * expected.makespan_s
    assert panel.trace.peak_activations_per_rank == expected.peak_activations_per_rank
    rows = {item.yaxis for item in panel.figure.data if item.name == "forward"}
    assert rows == {"y", "y2"}
    badge = panel.figure.layout.annotations[0].text
    assert "LIVE gloo · 2 ranks · emulated compute · emulated link 2,000 us" in badge
    assert "ms measured" in panel._below.value
    assert panel._status.share == 1.0


def test_stages_compute_where_ranks_have_gpus_of_their_own(pool: Pool) -> None:
    cpu = pool.choice
    own = replace(cpu, backend="nccl", num_gpus=2, gpu="a GPU", memory_GB=80.0)
    panel = PipelinePanel(pool)
    stages, hop = panel._named["stages"], panel._named["hop_ms"]
    assert (stages.options, hop.disabled) == (("wait",), False)
    panel.suit(replace(own, num_gpus=1))
    assert (stages.options, stages.value) == (("wait", "compute"), "wait")
    assert (hop.disabled, hop.value) == (True, 0)
    panel.suit(own)
    assert stages.value == "compute"
    panel._blocks = BlockStages(
        stack=StackPlan(batch=1, hidden=32, num_heads=2, num_kv_heads=2, intermediate=32, depth=2), tokens=8
    )
    panel.configure(m=4, schedule="interleaved").run()
    assert "emulated" not in panel.figure.layout.annotations[0].text
    assert panel.simulated.makespan_s == simulate(panel.trace.schedule, measured_costs(panel.trace)).makespan_s
    assert "of the messages took less than" in panel._below.value
    panel.suit(cpu)
    assert (stages.options, stages.value, hop.disabled) == (("wait",), "wait", False)


def test_settings_that_cannot_work_are_said_before_anything_runs(pool: Pool) -> None:
    panel = PipelinePanel(pool)
    panel.configure(schedule="interleaved", m=3)
    with pytest.raises(ValueError, match="3 is not a multiple of 2"):
        panel.run()
    assert "A setting cannot work" in panel._error.value
    panel.configure(m=4, forward_ms=2).run()
    assert panel._error.value == ""
    panel._named["m"].value = 6
    assert "Settings changed" in panel._ribbon.value


def test_stop_keeps_what_ran_and_another_schedule_can_follow(pool: Pool) -> None:
    panel = PipelinePanel(pool)
    panel.configure(schedule="gpipe", m=32, forward_ms=100)
    panel._run_button.click()
    wait_for(lambda: panel.state.work.run.reports and panel.trace is not None and panel.trace.is_compute.any())
    panel._stop_button.click()
    wait_for(panel._ended.is_set)
    assert isinstance(panel.state.work.run.exception(), RunStopped)
    done = int(panel.trace.is_compute.sum())
    assert 0 < done < 128
    assert f"{done} of 128 computations so far" in panel._below.value
    panel.configure(schedule="decode-ring", m=6, forward_ms=4).run()
    assert panel.trace.schedule.name == panel.simulated.schedule.name == "decode-ring"
    assert panel.figure.layout.title.text.startswith("decode ring")


@pytest.mark.parametrize(
    ("what", "column", "title"),
    [
        ("decode ring", "in_flight", "cliff"),
        ("prefill", "micro_batches", "Prefill"),
        ("chunked prefill", "chunks", "One prompt"),
    ],
)
def test_inference_pipelines_have_formula_simulation_and_measurement(
    pool: Pool, what: str, column: str, title: str
) -> None:
    panel = ServingPanel(pool, what)
    panel.configure(stage_ms=4, last_ms=4, hop_ms=1).run()
    assert list(panel.frame[column])
    assert (panel.frame["measured_ms"] > 0.9 * panel.frame["simulated_ms"]).all()
    assert [item.name for item in panel.figure.data] == ["measured, and its idle share", "formula", "simulated"]
    assert title in panel.figure.layout.title.text
    assert any("emulated compute" in item.text for item in panel.figure.layout.annotations)
    assert panel._below.value


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"what": "training"}, "what must be one of decode ring, prefill, chunked prefill"),
        ({"stage_ms": 1}, "stage_ms must be a whole number from 2 to 50"),
        ({"m": 8}, "m is not a setting of this panel, which has what"),
    ],
)
def test_a_setting_that_is_not_offered_is_named(pool: Pool, setting: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ServingPanel(pool).configure(**setting)


def test_stages_of_a_chunked_prefill_are_alike() -> None:
    with pytest.raises(ValueError, match=r"last_ms must be stage_ms=10: .*; got 20"):
        serving_plan(4, "chunked prefill", stage_ms=10, last_ms=20, hop_ms=0)
    plan = serving_plan(4, "chunked prefill", stage_ms=10, last_ms=10, hop_ms=0)
    best = {chunks: sum(plan.chunk_s(chunks)) + 3 * max(plan.chunk_s(chunks)) for chunks in plan.chunks}
    assert min(best, key=best.get) not in (min(plan.chunks), max(plan.chunks))  # the optimum shows in the figure


def test_words_say_what_the_numbers_say() -> None:
    simulated = simulate(build_schedule("1f1b", 4, 8))
    spans = [span._replace(start_s=2 * span.start_s, end_s=2 * span.end_s) for span in simulated.spans]
    slow = Trace.from_spans(simulated.schedule, spans, measured=True, badge="LIVE")
    said = explain_pipeline(simulated, slow)
    assert "a ratio of 2.000" in said
    assert f"idle for {simulated.idle_over_total:.1%}" in said
    assert "rank 0 held 4 micro-batches, the last rank 1" in said
    some = Trace.from_spans(simulated.schedule, spans[:5], measured=True, badge="LIVE")
    assert explain_pipeline(simulated, some) == "1F1B: 5 of 64 computations so far."
    assert explain_pipeline(simulated, Trace.from_spans(simulated.schedule, [], measured=True, badge="LIVE")) == ""
    assert explain_serving(pd.DataFrame()) == ""


def test_words_on_a_decoding_ring_name_the_k_that_fills_it() -> None:
    stage_s, k = [0.01] * 4, np.array([1, 2, 4])
    ms = np.array([1e3 * formulas.decode_round_s(stage_s, int(each)) for each in k])
    frame = pd.DataFrame(
        {
            "in_flight": k,
            "needed": 4,
            "full": k >= 4,
            "steps_per_s": k / ms * 1e3,
            "of_best": k / ms * 10,
            "error_pct": [1.0, -2.5, 0.5],
        }
    )
    said = explain_serving(frame)
    assert "With 1 in flight 25 micro-batches get a token per second, 25%" in said
    assert "full from k = 4, measured 100%" in said
    assert "differ by 1.0 % (median), 2.5 % at most" in said
    assert "measured 100%" not in explain_serving(frame.head(2))


def chunked(simulated: list[float], measured: list[float]) -> pd.DataFrame:
    chunks = [1 << power for power in range(len(simulated))]
    return pd.DataFrame(
        {"chunks": chunks, "simulated_ms": simulated, "measured_ms": measured, "error_pct": 0.0, "cases": len(chunks)}
    )


def test_words_on_a_prompt_in_chunks_follow_the_numbers_either_way() -> None:
    said = explain_serving(chunked([9, 5, 7], [9, 5.2, 7]))
    assert "1 chunk takes 9 ms; the fastest measured is 2 chunks, 5 ms. The model's fastest is 2 chunks: with" in said
    said = explain_serving(chunked([5, 7, 9], [5, 7, 9]))
    assert "takes 5 ms; that is the fastest measured. The model's fastest is 1 chunk: what each" in said
    said = explain_serving(chunked([9, 7, 5], [9, 5, 7]))
    assert "fastest measured is 2 chunks, 5 ms. The model's fastest is 4 chunks, the most that were tried" in said
    assert explain_serving(chunked([9, 5, 7], [9, 5, 7]).head(2)) == "2 of 3 measured so far."


def test_words_on_messages_follow_the_runs_either_way() -> None:
    table = build_schedule("forward-only", 4, 8)
    free = simulate(table, Costs(forward_s=0.02))
    over = simulate(table, Costs(forward_s=0.02, hop_s=0.01))
    waiting = simulate(table, Costs(forward_s=0.02, hop_s=0.01, overlap=False))
    said = explain_hops(free, over, free, waiting, 0.01)
    assert "8 micro-batches on 4 stages: 220 ms with free messages, 250 ms where each takes 10 ms" in said
    assert "longer by the time of 3.0, and the formula says 3, one per boundary: the others are on their way" in said
    assert "longer by the time of 10.0 (simulated)" in said
    slower = simulate(table, Costs(forward_s=0.021))  # a run is never as fast as its simulation
    assert "longer by the time of 10.0 (simulated)" in explain_hops(slower, over, free, waiting, 0.01)
    said = explain_hops(free, waiting, free, waiting, 0.01)  # a run that hid nothing is not said to have hidden any
    assert "here they were waited for" in said
    assert "on their way" not in said


def test_figures_are_white_cards(studio: ScheduleStudio) -> None:
    assert studio.figure.layout.paper_bgcolor == "white"
    assert studio.figure.layout.font.color == style.INK


def test_what_was_drawn_in_the_editor_runs_on_the_ranks(pool: Pool) -> None:
    panel = EditorPanel(pool)
    drawn = build_schedule("zb-h1", pool.num_ranks, 8)
    panel.editor.text = drawn.to_text()  # as the page hands it back
    assert panel.editor.schedule.ranks == drawn.ranks
    panel.configure(forward_ms=5).run()
    assert panel.trace.schedule.ranks == drawn.ranks
    assert panel.simulated.makespan_s == pytest.approx(
        simulate(drawn, Costs(forward_s=0.005, input_grad_s=0.005, weight_grad_s=0.005)).makespan_s
    )
    assert panel.simulated.makespan_s < panel.trace.makespan_s * 1.01
    assert panel._ribbon.value == ""
    panel.editor.text = build_schedule("gpipe", pool.num_ranks, 4).to_text()
    assert "another table" in text_of(panel._ribbon.value)
    assert "another table" not in text_of(panel._below.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0F0,0B0\n", "table must have a row for each rank of the pool, which has 2 ranks; got '1 rows'"),
        ("0B0,0F0\n1F0,1B0\n", "0B0 comes before its forward"),
        (
            "\n".join(",".join([f"{r}F{i}" for i in range(6)] + [f"{r}B{i}" for i in range(6)]) for r in range(2)),
            "hold 3",
        ),
        ("junk", "text must be an action"),
    ],
)
def test_a_table_that_cannot_run_is_refused_before_any_rank_starts(pool: Pool, text: str, says: str) -> None:
    panel = EditorPanel(pool)
    if says.endswith(("forward", "action")):
        with pytest.raises(ValueError, match=says):
            panel.configure(table=text)
        assert panel.editor.schedule.num_stages == 2  # nothing was changed
    panel.editor.text = text
    with pytest.raises(ValueError, match=says):
        panel.run()
    assert text_of(panel._error.value)
    assert panel.figure is None
