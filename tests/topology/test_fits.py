"""Does it fit, and on what: what is proposed is asked again; more of anything never makes it fit; hand-made sums."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab import ModelSpec, fits
from tplab.models.shards import Layout
from tplab.topology import Gpu, Link, Machine, Workload, max_requests, offers
from tplab.topology.advisor.engine_memory import ENGINES
from tplab.topology.advisor.memory import CACHE_PAGE
from tplab.topology.advisor.workload import EnginePolicy
from tplab.topology.capacity.drawn import bar_text, offers_text
from tplab.topology.machine.names import name_of
from tplab.topology.machine.spec_sheets import GPUS

MODELS = (
    "qwen3-0.6b",
    "llama-3.1-8b",
    "mistral-7b-v0.1",
    "gemma-2-27b",
    "llama-3.1-70b",
    "gpt-3-175b",
    "llama-3.1-405b",
)
CARDS = ("t4", "rtx-3090", "l40s", "a100", "h100", "b200", "mi300x")
questions = st.fixed_dictionaries(
    {
        "model": st.sampled_from(MODELS),
        "gpu": st.sampled_from(CARDS),
        "gpus": st.integers(1, 20),
        "context": st.integers(1, 2048),
        "users": st.integers(1, 700),
        "engine": st.sampled_from(("vllm", "sglang", "generic")),
    }
)


@settings(max_examples=60, deadline=None)
@given(questions, st.integers(1, 2048), st.integers(1, 700), st.integers(1, 20))
def test_more_users_and_longer_contexts_never_begin_to_fit_and_more_gpus_never_stop(asked, context, users, gpus):
    fit = fits(**asked)
    if fit.fits:
        assert fit.again(context=min(context, asked["context"])).fits
        assert fit.again(users=min(users, asked["users"])).fits
        assert fit.again(gpus=max(gpus, asked["gpus"])).fits
    else:
        assert not fit.again(context=max(context, asked["context"]), users=max(users, asked["users"])).fits
        assert not fit.again(gpus=min(gpus, asked["gpus"])).fits


@settings(max_examples=60, deadline=None)
@given(questions)
def test_the_longest_context_and_the_most_users_fit_and_one_more_does_not(asked):
    fit = fits(**asked)
    question, layout = fit.question, (fit.tp, fit.pp)
    assert question.holds(*layout) == fit.fits
    most, longest = fit.max_users, fit.max_context
    assert not most or question.holds(*layout, users=most)
    assert not question.holds(*layout, users=most + 1)
    assert not longest or question.holds(*layout, context=longest)
    assert longest == question.longest or longest % CACHE_PAGE == 0
    if longest + CACHE_PAGE <= question.longest:
        assert not question.holds(*layout, context=longest + CACHE_PAGE)
    assert (most >= fit.users) == fit.fits == (longest >= fit.context)


@settings(max_examples=60, deadline=None)
@given(questions)
def test_each_change_is_enough(asked):
    fit = fits(**asked)
    assert not (fit.fits and fit.changes)
    for change in fit.changes:
        there = fit.again(**change.settings)
        assert there.fits, change
        if change.kind == "gpus":  # no fewer would do, of the numbers in which machines have them
            assert not any(fit.again(gpus=n).fits for n in (1, 2, 3, 4, 6, 8, 16, 24) if n < change.settings["gpus"])
    if fit.changes:
        assert fit.best_change.words in fit.sentence


@pytest.mark.parametrize(
    ("model", "gpu", "gpus", "kind", "flag", "needs"),
    [
        ("llama-3.1-405b", "h100", 8, "weights", "--quantization fp8", "already in fp8"),  # 101 GB each in bf16
        ("llama-3.1-8b", "rtx-4090", 1, "weights", "--quantization fp8", ""),  # loaded whole, it is there
        ("llama-3.1-405b", "t4", 1, "both", "--tensor-parallel-size 8", "already in int4"),
    ],
)
def test_weights_made_smaller_while_they_are_loaded_must_be_there_first(model, gpu, gpus, kind, flag, needs):
    changes = {each.kind: each for each in fits(model, gpu, gpus, users=8).changes}
    assert flag in changes[kind].flag
    assert needs in changes[kind].needs
    assert bool(needs) == bool(changes[kind].needs)


@pytest.mark.parametrize("width", [30, 80, 200])
def test_the_words_below_the_bar_are_no_wider_than_the_terminal(width):
    drawn = bar_text(fits("llama-3.1-70b", "h100", 4), width).splitlines()
    assert max(map(len, drawn[2:])) <= max(width, 40)


@pytest.mark.parametrize("gpu", ["4xh100", "4 x H100", "4 × h100", "4*h100"])
def test_how_many_may_stand_before_the_name(gpu):
    assert fits("llama-3.1-70b", gpu).sentence == fits("llama-3.1-70b", "h100", 4).sentence
    with pytest.raises(ValueError, match="must name one GPU where gpus=2"):
        fits("llama-3.1-70b", gpu, 2)


def test_one_is_left_over():
    assert "1 of 3 GPUs is left over" in fits("llama-3.1-8b", "h100", 3).notes


def test_it_is_the_advisors_memory_model():
    fit = fits("llama-3.1-70b", "h100", 4, context=4096)
    spec, engine = ModelSpec.from_config("llama-3.1-70b"), EnginePolicy(name="vllm")
    workload = Workload(input_length=4095, output_length=1, concurrency=1, engine=engine)
    assert (fit.tp, fit.pp) == (4, 1)
    assert fit.max_users == max_requests(spec, GPUS["h100"], workload, Layout.of(spec, tp=4))
    assert fit.rank.kv == 4096 * 2 * 80 * 8 / 4 * 128 * 2
    assert fit.rank.weights == pytest.approx(spec.total_params * 2 / 4, rel=1e-3)


def test_the_sentence_of_the_question_that_people_come_with():
    fit = fits("Llama-3.1-70B-Instruct", "h100")
    assert fit.fits is False
    assert str(fit).startswith("Llama 3.1 70B in bf16 does not fit on one H100: weights alone are 141 GB")
    kinds = {change.kind: change for change in fit.changes}
    assert kinds["weights"].settings == {"precision": "int4"}
    assert kinds["gpus"].settings == {"gpus": 2}
    assert "checkpoint already in int4" in kinds["weights"].needs


def test_more_users_than_the_engine_runs_by_default_take_memory_for_their_samples():
    few, many = (fits("qwen3-0.6b", "rtx-3090", context=16, users=users) for users in (256, 2000))
    assert many.rank.activations - few.rank.activations > 1000 * 151936 * 4


def test_tensor_parallelism_comes_first_and_stages_say_why():
    assert (fits("llama-3.1-405b", "h200", 8).tp, fits("llama-3.1-405b", "h200", 8, users=10**5).tp) == (8, 8)
    assert (fits("llama-3.1-405b", "h100", 16).tp, fits("llama-3.1-405b", "h100", 16).pp) == (8, 2)
    three, two = fits("qwen2.5-72b", "h100", 3), fits("llama-3.1-70b", "h100", 2)
    assert "PP 3: not TP 3, which must divide the model's 64 query heads" in three.notes
    (why,) = [note for note in two.notes if note.startswith("PP 2: not TP 2, which lacks")]
    assert float(why.split("lacks ")[1].split(" GB")[0]) > 0
    assert not two.question.holds(2, 1)
    (change,) = [change for change in fits("llama-3.1-70b", "h100").changes if change.kind == "gpus"]
    assert change.needs in why


def test_what_is_too_long_is_answered_with_the_engines_own_flag():
    fit = fits("llama-3.1-8b", "rtx-4090", context=131072)
    (context,) = [change for change in fit.changes if change.kind == "context"]
    assert context.flag == f"--max-model-len {fit.max_context}"
    assert "for 131,072" in fit.sentence
    assert (
        fits("llama-3.1-8b", "rtx-4090", context=131072, engine="sglang").changes[0].flag.startswith("--context-length")
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_whose_memory_is_known_can_be_asked_about(engine):
    fit = fits("llama-3.1-8b", "rtx-4090", context=131072, engine=engine)
    assert fit.fits is False
    assert all(fit.again(**change.settings).fits for change in fit.changes)


def test_a_cache_in_fp8_is_proposed_where_the_gpu_multiplies_fp8():
    def kinds(gpu):
        short = fits("llama-3.1-8b", gpu, context=16)
        return {change.kind for change in short.again(context=int(1.2 * short.max_context)).changes}

    assert "kv" in kinds("rtx-4090")
    assert "kv" not in kinds("rtx-3090")


def test_a_machine_brings_its_gpus_and_a_node_limits_tensor_parallelism():
    assert fits("llama-3.1-8b", Machine.preset("h100", gpus=2)).tp == 2
    assert fits("llama-3.1-70b", "g5.12xlarge").gpus == 4
    assert fits("llama-3.1-405b", "h100", 16).tp <= 8
    with pytest.raises(ValueError, match="gpus must be at most 2"):
        fits("llama-3.1-8b", Machine.preset("h100", gpus=2), 3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "llama-3.1-71b"}, "did you mean llama-3.1-70b"),
        ({"gpu": "h1000"}, "h100"),
        ({"context": 200_000}, "context must be at most 131,072 tokens"),
        ({"context": 0}, "context must be a whole number"),
        ({"users": 0}, "users must be a whole number"),
        ({"users": True}, "users must be a whole number"),
        ({"gpus": 0}, "gpus must be a whole number"),
        ({"precision": "fp3"}, "precision must be one of"),
        ({"kv_precision": "fp3"}, "kv_precision must be one of"),
        ({"engine": "ollama"}, "engine must be one of"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization must be a number"),
        ({"gpu": "mi300x", "engine": "trtllm"}, "AMD"),
        ({"model": "  "}, "must not be empty"),
    ],
)
def test_what_cannot_be_asked(settings, said):
    with pytest.raises(ValueError, match=said):
        fits(**{"model": "llama-3.1-70b", "gpu": "h100"} | settings)


def test_without_a_gpu_here_one_must_be_named(monkeypatch):
    core = Gpu(name="cpu core", memory_GB=4.0, hbm_GBps=8.0, bf16_TFLOPS=0.05, kind="cpu")
    link = Link(kind="host", bandwidth_GBps=2.0, latency_us=60.0)
    monkeypatch.setattr(Machine, "detect", lambda: Machine.uniform(core, 2, link))
    with pytest.raises(ValueError, match="no NVIDIA GPU is seen"):
        fits("llama-3.1-8b")


def test_offers_name_the_fewest_gpus_of_each_kind():
    for fit in offers("llama-3.1-70b", users=4):
        if fit.fits:
            count = fit.tp * fit.pp
            assert count == 1 or not any(fit.again(gpus=n).fits for n in (1, 2, 3, 4, 6) if n < count)
        else:
            assert fit.tp * fit.pp == 8 or fit.gpus == 8
    with pytest.raises(ValueError, match="gpu must be left out"):
        offers("llama-3.1-70b", gpu="h100")


def test_more_than_one_node_is_no_offer():
    table = offers_text(offers("llama-3.1-405b", precision="fp32"))
    assert "more than 8" in table
    assert {len(line.split("  ")[0]) <= 12 for line in table.splitlines()} == {True}


@pytest.mark.parametrize("width", [20, 80, 200])
@pytest.mark.parametrize("asked", [("llama-3.1-70b", "h100"), ("llama-3.1-8b", "h100"), ("qwen3-0.6b", "b300")])
def test_a_bar_is_as_wide_as_it_may_be_and_its_pieces_as_their_bytes(width, asked):
    fit = fits(*asked)
    line = bar_text(fit, width, blocks=False).splitlines()[0].strip()
    inside = line[1:-1]
    assert len(inside) == max(24, min(100, width - 6))
    whole = max(fit.rank.usable, fit.rank.total)
    assert inside.count("#") == pytest.approx(len(inside) * fit.rank.weights / whole, abs=1)
    assert inside.count(".") == pytest.approx(len(inside) * max(0, fit.rank.free) / whole, abs=1)
    assert ("too much" in bar_text(fit, width)) != fit.fits
    assert bar_text(fit, width, blocks=False).isascii()


def test_html_escapes_what_came_from_outside():
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
              "num_attention_heads": 4, "vocab_size": 99, "name": "<script>alert(1)</script>", "<b>": 1}  # fmt: skip
    html = fits(config, "t4")._repr_html_()
    assert "<script>" not in html
    assert "<b>" not in html
    assert "&lt;script&gt;" in html


def test_what_is_far_too_small_is_answered_with_other_gpus_and_as_many_as_it_takes():
    (other,) = [change for change in fits("llama-3.1-405b", "rtx-3090").changes if change.kind == "gpu"]
    assert other.settings["gpus"] in (2, 4, 8)
    assert other.words == f"on {other.settings['gpus']} × {name_of(other.settings['gpu'])}"


def test_json_has_every_number():
    found = json.loads(json.dumps(fits("llama-3.1-70b", "h100").as_dict()))
    assert found["fits"] is False
    assert found["per_gpu_bytes"]["weights"] == pytest.approx(141.1e9, rel=1e-3)
    assert [change["kind"] for change in found["changes"]] == ["weights", "gpus", "gpu"]
