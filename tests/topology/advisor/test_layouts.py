"""Which layouts can be, why others cannot, and what is said when none can."""

import math
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.layers.ranges import divisors
from tplab.models.shards import Layout
from tplab.topology import EnginePolicy, Link, Machine, ModelSpec, Workload
from tplab.topology.advisor.fitting import feasible_choices, nothing_fits, smallest_fit, usual_fit
from tplab.topology.advisor.layouts import all_choices, choice
from tplab.topology.advisor.memory import all_ranks
from tplab.topology.machine.spec_sheets import GPUS

WORKLOAD = Workload(input_length=1024, output_length=256, concurrency=8)


def spec_of(heads=12, kv=4, layers=7, f=96, **more):
    return ModelSpec(
        name="drawn",
        num_layers=layers,
        hidden_size=64,
        intermediate_size=f,
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=8,
        vocab_size=1000,
        **more,
    )


@settings(max_examples=60, deadline=None)
@given(
    heads=st.sampled_from([6, 8, 12, 28]),
    layers=st.integers(1, 9),
    gpus=st.integers(1, 8),
    nodes=st.integers(1, 3),
    f=st.sampled_from([84, 96, 100]),
)
def test_every_layout_is_there_and_judged_by_the_rules(heads, layers, gpus, nodes, f):
    spec = spec_of(heads=heads, kv=2, layers=layers, f=f)
    machine = Machine.preset("h100", gpus=gpus, nodes=nodes)
    choices = all_choices(spec, machine, WORKLOAD)
    assert len({(each.tp, each.pp) for each in choices}) == len(choices)
    expected = {(t, p) for t in range(1, gpus + 1) for p in range(1, nodes * (gpus // t) + 1)}
    expected |= {
        (k * gpus, p) for k in range(2, nodes + 1) if k * gpus <= heads for p in range(1, nodes // k + 1)
    }  # whole nodes
    assert {(each.tp, each.pp) for each in choices} == expected
    for each in choices:
        possible = heads % each.tp == 0 and f % each.tp == 0 and each.pp <= layers
        assert each.feasible == possible  # so small a model always fits
        if not possible:
            assert each.layout is None
            assert re.search(r"must divide|the model's layers", each.reason)
            continue
        assert sum(each.layout.layers_of_stage) == layers
        assert max(each.layout.layers_of_stage) - min(each.layout.layers_of_stage) <= 1
        assert each.layout.num_gpus + each.idle == machine.num_gpus
        assert each.idle < each.tp * each.pp + nodes * (gpus % each.tp if each.tp <= gpus else 0)
        assert any("crosses" in note for note in each.notes) == (each.tp > gpus)
        assert each.max_requests >= 1
        assert any("left over" in note for note in each.notes) == (each.idle > 0)
        assert any("longest sets the pace" in note for note in each.notes) == (layers % each.pp > 0)


def test_fit_is_memory_of_every_rank():
    spec = ModelSpec.from_config("llama-3.1-70b")
    machine = Machine.preset("h100")
    by_degrees = {(each.tp, each.pp): each for each in all_choices(spec, machine, WORKLOAD)}
    assert not by_degrees[1, 1].feasible
    assert by_degrees[2, 1].feasible
    assert by_degrees[1, 2].feasible
    assert by_degrees[1, 1].missing_bytes > 60e9
    for each in by_degrees.values():
        if each.layout is not None:
            ranks = all_ranks(spec, machine.gpu, WORKLOAD, each.layout, requests=1)
            assert each.feasible == all(rank.free >= 0 for rank in ranks)
            assert each.fullest.free == min(rank.free for rank in ranks)
    text = str(by_degrees[1, 1])
    assert re.search(r"TP 1 × PP 1 × 8: does not fit: stage 0 needs 14\d GB \(weights 141 GB", text)


def test_more_gpus_more_room():
    spec = ModelSpec.from_config("llama-3.1-70b")
    rooms = [choice(spec, Machine.preset("h100"), WORKLOAD, tp=tp, pp=1).max_requests for tp in (1, 2, 4, 8)]
    assert rooms == sorted(rooms)
    assert rooms[0] == 0
    assert rooms[2] > 2 * rooms[1]


def test_groups_stay_inside_nodes_or_take_whole_ones():
    spec = ModelSpec.from_config("llama-3.1-8b")
    machine = Machine.preset("h100", gpus=6, nodes=2)
    each = choice(spec, machine, WORKLOAD, tp=4, pp=2)
    assert each.layout.replicas == 1
    assert each.idle == 4
    assert choice(spec, machine, WORKLOAD, tp=4, pp=3).reason.startswith("pp=3 stages of 4 GPUs need 12 GPUs, and")
    reason = choice(spec, machine, WORKLOAD, tp=8, pp=1).reason
    assert "a node has 6: use tp of at most 6, or whole nodes, up to 12" in reason
    whole = choice(spec, Machine.preset("h100", gpus=4, nodes=5), WORKLOAD, tp=8, pp=1)
    assert (whole.layout.replicas, whole.idle) == (2, 4)
    assert "every all-reduce crosses 2 nodes, over 8 NICs 50 GB/s per GPU (preset): NCCL's" in whole.notes[0]


def test_only_some_degrees():
    spec = ModelSpec.from_config("llama-3.1-8b")
    choices = all_choices(spec, Machine.preset("h100"), WORKLOAD, tp=[2, 4], pp=[1])
    assert [(each.tp, each.pp) for each in choices] == [(2, 1), (4, 1)]


@pytest.mark.parametrize("name", ["tp", "pp"])
@pytest.mark.parametrize("degrees", [[], [0], [2, -1], [2.5], [True], ["2"]])
def test_degrees_that_cannot_be(name, degrees):
    with pytest.raises(ValueError, match=f"^{name} must (hold at least one degree|be a whole number of at least 1)"):
        all_choices(ModelSpec.from_config("llama-3.1-8b"), Machine.preset("h100"), WORKLOAD, **{name: degrees})


def test_degrees_may_come_from_a_generator_or_numpy():
    spec, machine = ModelSpec.from_config("llama-3.1-8b"), Machine.preset("h100")
    choices = all_choices(spec, machine, WORKLOAD, tp=np.array([1, 2]), pp=(p for p in (1, 2)))
    assert [(each.tp, each.pp) for each in choices] == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_what_engines_refuse_is_noted():
    """6 query heads, 2 key-value heads, tp 3: possible, and no engine does it."""
    each = choice(spec_of(heads=6, kv=2), Machine.preset("h100"), WORKLOAD, tp=3, pp=1)
    assert each.feasible
    assert any("vLLM, SGLang and TensorRT-LLM refuse tp=3 with 2 key-value heads" in note for note in each.notes)
    assert not choice(spec_of(heads=8, kv=2), Machine.preset("h100"), WORKLOAD, tp=4, pp=1).notes


def test_tied_embedding_is_noted():
    notes = choice(spec_of(layers=4, tied_embeddings=True), Machine.preset("h100"), WORKLOAD, tp=1, pp=2).notes
    assert any("first stage and on the last" in note for note in notes)


def test_too_large_says_how_much_and_what_would_fit():
    """Each way out that it names does work, and one GPU less does not."""
    spec = ModelSpec.from_config("llama-3.1-405b")
    with pytest.raises(ValueError, match="does not fit on 8 x h100") as caught:
        feasible_choices(spec, Machine.preset("h100"), WORKLOAD)
    text = str(caught.value)
    assert "812 GB of bf16 weights" in text
    missing = float(re.search(r"([\d.]+) GB more than", text)[1])
    best = min(
        (each for each in all_choices(spec, Machine.preset("h100"), WORKLOAD) if each.layout),
        key=lambda each: each.missing_bytes,
    )
    assert missing == pytest.approx(best.missing_bytes / 1e9, rel=1e-2)
    assert "What would fit: 16 x h100 as TP 8 × PP 2; fp8 weights (410 GB) on this machine as TP 8 × PP 1; " in text
    assert "8 x h200 (150 GB each) as TP 8 × PP 1." in text
    assert feasible_choices(spec, Machine.preset("h100", nodes=2), WORKLOAD)
    assert feasible_choices(spec, Machine.preset("h200"), WORKLOAD)
    smaller = ModelSpec.from_config("llama-3.1-405b", weight_precision="fp8")
    assert feasible_choices(smaller, Machine.preset("h100"), WORKLOAD)


@pytest.mark.parametrize(
    ("model", "gpu", "gpus", "ways"),
    [
        ("llama-3.1-405b", "rtx-4090", 1, "48 x rtx-4090 as TP 8 × PP 6; 8 x h200 (150 GB each) as TP 8 × PP 1"),
        ("llama-3.1-70b", "l4", 1, "8 x l4 as TP 8 × PP 1; 4 x l40s (47.8 GB each) as TP 4 × PP 1"),
        (
            "llama-3.1-70b",
            "h100",
            1,
            "2 x h100 as TP 2 × PP 1; fp8 weights (72.7 GB) on this machine as TP 1 × PP 1; "
            "1 x b200 (191 GB each) as TP 1 × PP 1",
        ),
        ("llama-3.1-405b", "b200", 1, "8 x b200 as TP 8 × PP 1; 4 x b300 (287 GB each) as TP 4 × PP 1"),
        (
            "llama-3.1-405b",
            "gb300",
            1,
            "4 x gb300 as TP 4 × PP 1; int4 weights (217 GB) on this machine as TP 1 × PP 1",
        ),
        ("llama-3.1-405b", "mi300x", 1, "8 x mi300x as TP 8 × PP 1; 4 x mi325x (275 GB each) as TP 4 × PP 1"),
        ("llama-3.1-70b", "rtx-3090", 1, "8 x rtx-3090 as TP 8 × PP 1; 2 x h100 (85 GB each) as TP 2 × PP 1"),
    ],
)
def test_what_would_fit_is_whole_usual_nodes_no_older_than_these(model, gpu, gpus, ways):
    machine = Machine.uniform(GPUS[gpu], gpus, Link(kind="node", bandwidth_GBps=30, latency_us=5))
    spec = ModelSpec.from_config(model)
    choices = all_choices(spec, machine, WORKLOAD)
    assert nothing_fits(spec, machine, WORKLOAD, choices).endswith(f"What would fit: {ways}.")


def test_usual_fit_takes_most_of_a_node_for_a_layer():
    spec = ModelSpec.from_config("llama-3.1-70b")
    for most in (1, 2, 4, 8, 16, 24):
        found = usual_fit(spec, GPUS["l4"], WORKLOAD, most_gpus=most)
        assert found is None or found.gpus_per_replica <= most
    assert (found.tp, found.pp) == (8, 1)
    odd = usual_fit(ModelSpec.from_config("qwen2.5-7b"), GPUS["l4"], WORKLOAD)  # 28 heads: not by 8
    assert (odd.tp, odd.pp) == (1, 1)
    long = Workload(input_length=800_000, output_length=10, concurrency=1)
    odd = usual_fit(ModelSpec.from_config("qwen2.5-7b"), GPUS["l4"], long)
    assert (odd.tp, odd.pp) == (4, 1)
    tight = Machine.preset("l4", gpus=2, nodes=4)  # a layer is shared inside a node
    found = usual_fit(spec, GPUS["l4"], WORKLOAD, most_gpus=8, machine=tight)
    assert (found.tp, found.pp) == (2, 4)
    assert usual_fit(spec_of(heads=7, kv=7, layers=1, f=70), GPUS["l4"], long, most_gpus=4) is not None


def test_fewer_bits_where_no_usual_number_will_do():
    """Six GPUs: four are too few for 410 GB, and of six only three stages of two will do."""
    spec = ModelSpec.from_config("llama-3.1-405b")
    with pytest.raises(ValueError, match=r"fp8 weights \(410 GB\) on this machine as TP 2 × PP 3;"):
        feasible_choices(spec, Machine.preset("a100", gpus=6), WORKLOAD)


def test_smallest_fit_is_smallest():
    spec = ModelSpec.from_config("llama-3.1-70b")
    gpu = GPUS["l40s"]
    found = smallest_fit(spec, gpu, WORKLOAD, most_tp=4)

    def fits(tp, pp):
        ranks = all_ranks(spec, gpu, WORKLOAD, Layout.of(spec, tp, pp), requests=1)
        return all(rank.free >= 0 for rank in ranks)

    tried = [(tp * pp, tp, pp) for tp in (1, 2, 4) for pp in range(1, 9) if fits(tp, pp)]
    assert found.gpus_per_replica == min(tried)[0]
    assert fits(found.tp, found.pp)
    assert smallest_fit(spec, gpu, WORKLOAD, most_tp=4, most_gpus=2) is None


@settings(max_examples=40, deadline=None)
@given(
    size=st.sampled_from((4096, 5120, 8192, 16384)),
    layers=st.sampled_from((1, 2, 7, 30, 81)),
    kv=st.sampled_from((1, 2, 4)),
    gpu=st.sampled_from(("l40s", "h100", "rtx-4090")),
    tied=st.booleans(),
    tokens=st.sampled_from((64, 4096, 200_000)),
)
def test_searching_by_halves_finds_what_one_by_one_would(size, layers, kv, gpu, tied, tokens):
    spec = ModelSpec(
        name="toy", num_layers=layers, hidden_size=size, intermediate_size=4 * size, num_heads=size // 128,
        num_kv_heads=kv, head_dim=128, vocab_size=128256, tied_embeddings=tied,
    )  # fmt: skip
    workload = Workload(input_length=tokens, output_length=64, concurrency=1)

    def fits(tp, pp):
        if pp > layers or spec.num_heads % tp:
            return False
        return all(rank.free >= 0 for rank in all_ranks(spec, GPUS[gpu], workload, Layout.of(spec, tp, pp)))

    counts = (1, 2, 4, *range(8, 65, 8))
    usual = [(n, tp) for n in counts for tp in range(min(n, 8), 0, -1) if n % tp == 0 and fits(tp, n // tp)]
    found = usual_fit(spec, GPUS[gpu], workload, most_gpus=64)
    assert (found and (found.gpus_per_replica, found.tp)) == (usual[0] if usual else None)
    smallest = [(tp * pp, pp) for tp in (1, 2, 4, 8) for pp in range(1, 64 // tp + 1) if fits(tp, pp)]
    found = smallest_fit(spec, GPUS[gpu], workload, most_tp=8, most_gpus=64)
    assert (found and (found.gpus_per_replica, found.pp)) == (min(smallest) if smallest else None)


@pytest.mark.parametrize("number", [*range(1, 50), 97 * 89, 65536, 10**6])
def test_divisors(number):
    assert divisors(number) == [n for n in range(1, number + 1) if number % n == 0]


def test_a_model_too_large_for_anything_is_said_at_once():
    spec = replace(
        ModelSpec.from_config("llama-3.1-8b"), num_layers=10_000, hidden_size=1 << 20, intermediate_size=1 << 20
    )
    began = time.process_time()
    with pytest.raises(ValueError, match="No number of such GPUs holds it"):
        feasible_choices(spec, Machine.preset("h100"), WORKLOAD)
    assert time.process_time() - began < 1


def test_one_request_too_long():
    """Weights fit, a single request's cache does not: no number of bits helps, more GPUs do."""
    spec = ModelSpec.from_config("llama-2-7b")
    workload = Workload(input_length=200_000, output_length=10, concurrency=1)
    with pytest.raises(ValueError, match=r"one request of 200010 tokens.*What would fit: \d+ x l4 as"):
        feasible_choices(spec, Machine.preset("l4", gpus=1), workload)


def test_heads_that_cannot_be_split():
    spec = spec_of(heads=7, kv=7, layers=1, f=70)
    with pytest.raises(ValueError, match=r"tp must divide the model's 7 query heads: use 1 or 7"):
        Layout.of(spec, 2, 1)
    with pytest.raises(ValueError, match=r"tp must divide intermediate_size=96: use 1; got 7$"):
        Layout.of(spec_of(heads=7, kv=7), 7, 1)
    with pytest.raises(ValueError, match=r"pp must be at most 1, the model's layers: a stage needs one; got 2"):
        Layout.of(spec, 1, 2)
    with pytest.raises(ValueError, match="replicas must be a whole number of at least 1"):
        Layout.of(spec, 1, 1, 0)


def test_no_degree_divides():
    """Asked for tp=2 alone, of a model with 7 heads."""
    spec, machine = spec_of(heads=7, kv=7), Machine.preset("h100", gpus=2)
    text = nothing_fits(spec, machine, WORKLOAD, all_choices(spec, machine, WORKLOAD, tp=[2]))
    assert text == ("drawn cannot be cut over 2 x h100 in any way: tp must divide the model's 7 query heads: use 1")


def test_utilisation_counts():
    spec = ModelSpec.from_config("llama-3.1-8b")
    machine = Machine.preset("l4")

    def room(part):
        engine = EnginePolicy(gpu_memory_utilization=part)
        return choice(
            spec, machine, Workload(input_length=512, output_length=64, concurrency=1, engine=engine), tp=1, pp=1
        ).max_requests

    assert room(0.95) > room(0.9) > 0
    assert not math.isinf(room(1.0))


def test_words():
    spec = ModelSpec.from_config("llama-3.1-8b")
    assert str(Layout.of(spec, 2, 4)) == "TP 2 × PP 4"
    assert str(Layout.of(spec, 2, 1, 4)) == "TP 2 × PP 1 × 4"
    assert re.fullmatch(r"TP 2 × PP 1 × 4: \d+ requests a replica",
                        str(choice(spec, Machine.preset("h100"), WORKLOAD, tp=2, pp=1)))  # fmt: skip
