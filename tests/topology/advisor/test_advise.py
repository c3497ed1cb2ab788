"""What is recommended, why not the others, where it flips, on which GPUs, and how to start it."""

import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.models.shards import Layout
from tplab.topology import EnginePolicy, Machine, ModelSpec, Workload
from tplab.topology.advisor.advice import advise, on_front
from tplab.topology.advisor.calibration import AllReduceTimes, Calibration
from tplab.topology.advisor.launch_commands import ENGINES, launch_commands
from tplab.topology.advisor.layouts import all_choices, layout_arrays
from tplab.topology.advisor.memory import LayoutMemory
from tplab.topology.advisor.prediction import predict
from tplab.topology.machine.machine import Link
from tplab.topology.machine.placement import place

LLAMA = ModelSpec.from_config("llama-3.1-70b", weight_precision="fp8", kv_precision="fp8")
SMALL = ModelSpec.from_config("llama-3.2-1b")
H100 = Machine.preset("h100")


def asked(requests=16, **more):
    engine = more.pop("engine", EnginePolicy(name="vllm"))
    if "request_rate" not in more:
        more["concurrency"] = requests
    return Workload(**{"input_length": 1024, "output_length": 256, "engine": engine} | more)


def slow(machine, gbps, latency=5.0):
    link = Link(kind="node", bandwidth_GBps=gbps, latency_us=latency)
    return Machine.uniform(machine.gpu, machine.gpus_per_node, link)


def sizes(option):
    return option.layout.tp, option.layout.pp


def test_one_request_on_nvlink_gets_the_largest_tp():
    made = advise(LLAMA, Machine.preset("h200"), asked(1))
    assert sizes(made.best) == (8, 1)


def test_a_slow_link_gets_stages():
    # A model that one GPU does not hold, so that copies are no way out.
    bf16 = ModelSpec.from_config("llama-3.1-70b")
    fast, far = (advise(bf16, machine, asked(64), tp=[1, 2, 4, 8]) for machine in (H100, slow(H100, 0.5)))
    assert fast.best.layout.tp > 1
    assert fast.best.layout.pp == 1
    assert far.best.layout.tp == 1
    assert far.best.layout.pp >= 2


def test_a_model_that_fits_one_gpu_gets_copies_when_many_ask():
    made = advise(SMALL, H100, asked(512))
    assert made.best.layout.gpus_per_replica <= 2
    assert made.best.layout.num_gpus == 8


@pytest.mark.parametrize("requests", [1, 16, 300])
def test_every_layout_is_ranked_or_has_a_reason(requests):
    made = advise(LLAMA, H100, asked(requests))
    table = made.table()
    choices = all_choices(LLAMA, H100, asked(requests))
    assert len(table) == len(choices) == len(made.options) + len(made.rejected)
    assert sorted(zip(table.tp, table.pp, strict=True)) == sorted((c.tp, c.pp) for c in choices)
    ranked = table[table["rank"] > 0]
    assert list(ranked["rank"]) == list(range(1, len(made.options) + 1))
    assert (np.diff(ranked["output_tokens_per_s"]) <= 1e-9).all()
    assert table["verdict"].str.len().gt(0).all()
    assert ranked["verdict"].iloc[0] == "recommended"
    assert ranked["verdict"].iloc[1:].str.contains("fewer tokens/s").all()
    rejected = table[table["rank"] == 0]
    assert rejected["verdict"].str.contains("divide|fit|room").all()


def test_an_option_is_what_predict_says():
    made = advise(LLAMA, H100, asked(48))
    for option in made.options:
        lay = option.layout
        alone = predict(LLAMA, H100, asked(48), lay.tp, lay.pp, replicas=lay.replicas)
        assert option.prediction.tpot_ms == pytest.approx(alone.tpot_ms)
        assert option.prediction.ttft_ms == pytest.approx(alone.ttft_ms)
        assert option.prediction.binding == alone.binding


def test_limits_go_before_throughput():
    free = advise(LLAMA, H100, asked(400))
    tight = advise(LLAMA, H100, asked(400, tpot_limit_ms=free.best.prediction.tpot_ms * 0.9))
    if not tight.best.misses:
        assert tight.best.prediction.tpot_ms <= free.best.prediction.tpot_ms * 0.9
    fitting = [option for option in tight.options if not option.misses]
    assert tight.options[: len(fitting)] == tuple(fitting)
    impossible = advise(LLAMA, H100, asked(400, tpot_limit_ms=0.1, ttft_limit_ms=0.1))
    assert all(option.misses for option in impossible.options)
    assert "over the limit of 0.1 ms" in impossible.best.verdict
    assert impossible.best.verdict.startswith("least far")


def test_an_arrival_rate_is_kept_up_with_first():
    made = advise(LLAMA, H100, asked(request_rate=20.0))
    assert not made.best.misses
    times = [option.prediction.e2e_ms for option in made.options if not option.misses]
    assert times == sorted(times)
    failing = [option for option in made.options if option.misses]
    assert failing
    assert all("cannot keep up" in option.verdict for option in failing)
    assert made.best.prediction.requests_per_s == pytest.approx(20.0, rel=0.05)


def test_of_few_arrivals_the_faster_layout_is_first():
    made = advise(LLAMA, H100, asked(request_rate=0.001))
    times = [option.prediction.e2e_ms for option in made.options]
    assert times == sorted(times)
    longer = [float(option.verdict.split(" %")[0]) for option in made.options[1:]]
    assert longer == sorted(longer)


def test_no_more_are_admitted_than_keep_the_limit():
    free = advise(LLAMA, H100, asked(400))
    tight = advise(LLAMA, H100, asked(400, tpot_limit_ms=free.best.prediction.tpot_ms * 0.6))
    best = tight.best.prediction
    assert not tight.best.misses
    assert best.tpot_ms <= tight.workload.tpot_limit_ms
    share = 400 // best.replicas
    assert 1 <= best.admitted < share
    assert f"the limit per token: it admits {best.admitted} of {share} requests" in str(tight)
    assert "is for admission" in str(tight)
    assert f"--max-num-seqs {best.admitted} " in tight.commands["vllm"][0]
    lay = tight.best.layout

    # One more would miss it; so many in flight and no more are as fast, and nobody waits for admission.
    def alone(requests):
        return predict(LLAMA, H100, asked(requests * lay.replicas), lay.tp, lay.pp, replicas=lay.replicas)

    assert alone(best.admitted).tpot_ms == pytest.approx(best.tpot_ms, rel=0.02)
    assert alone(best.admitted + 1).tpot_ms > 0.99 * tight.workload.tpot_limit_ms
    for option in tight.options:  # nothing but a layout that cannot keep it at all misses it
        one = predict(LLAMA, H100, asked(1), option.layout.tp, option.layout.pp, replicas=option.layout.replicas)
        assert bool(option.misses) == (one.tpot_ms > tight.workload.tpot_limit_ms), str(option.layout)


def test_waiting_past_the_first_tokens_limit_is_no_way_to_keep_the_other():
    tight = advise(LLAMA, H100, asked(400, tpot_limit_ms=advise(LLAMA, H100, asked(400)).best.prediction.tpot_ms * 0.6))
    both = replace(tight.workload, ttft_limit_ms=tight.best.prediction.ttft_ms / 2)
    made = advise(LLAMA, H100, both)
    same = next(option for option in made.options if option.layout == tight.best.layout)
    assert same.prediction.admitted is None
    assert len(same.misses) == 1
    assert "time per token" in same.misses[0]
    loose = advise(LLAMA, H100, replace(both, ttft_limit_ms=tight.best.prediction.ttft_ms * 1.01))
    assert loose.best.layout == tight.best.layout
    assert not loose.best.misses


def test_an_arrival_rate_that_the_limit_does_not_let_through():
    free = advise(LLAMA, H100, asked(request_rate=20.0)).best.prediction
    made = advise(LLAMA, H100, asked(request_rate=20.0, tpot_limit_ms=free.tpot_ms * 0.5), tp=[free.tp], pp=[free.pp])
    assert "cannot keep up" in made.best.misses[0]


@pytest.mark.parametrize(
    "load", [{"requests": 64000}, {"requests": 64000, "tpot_limit_ms": 60.0}, {"request_rate": 123456.0}], ids=str
)
def test_no_number_is_an_exponent(load):
    made = advise(LLAMA, H100, asked(**load))
    words = [str(made), *made.table()["verdict"], *made.table()["binding"].dropna()]
    assert not re.search(r"\de[+-]\d", "\n".join(words))


def test_one_degree_may_stand_alone():
    assert [option.layout.tp for option in advise(LLAMA, H100, asked(4), tp=8, pp=1).options] == [8]


def test_none_is_close_where_all_miss_a_limit():
    assert advise(LLAMA, H100, asked(128)).close
    assert not advise(LLAMA, H100, asked(128, tpot_limit_ms=0.1)).close


def test_waiting_for_room_is_said():
    made = advise(LLAMA, H100, asked(2000, ttft_limit_ms=1e9), tp=[2])
    assert re.search(r"Of the wait for the first token, [\d.]+ s is for room in the cache\.", str(made))
    assert "for room in the cache" not in str(advise(LLAMA, H100, asked(4)))


def test_nothing_fits():
    with pytest.raises(ValueError, match=r"does not fit on 1 x l4 .* more than .* What would fit: ") as caught:
        advise(LLAMA, Machine.preset("l4", gpus=1), asked())
    assert "l4" in str(caught.value)


def test_flips_are_where_the_winner_changes():
    made = advise(LLAMA, H100, asked(64))
    along = [flip for flip in made.flips if flip.quantity == "link bandwidth"]
    assert along
    for flip in along:
        for factor, expected in ((0.97, flip.below), (1.03, flip.above)):
            machine = replace(
                H100,
                links=tuple(
                    tuple(link and replace(link, bandwidth_GBps=flip.at * factor) for link in row) for row in H100.links
                ),
            )
            assert advise(LLAMA, machine, asked(64)).best.layout == expected, (flip, factor)
    late = [flip for flip in made.flips if flip.quantity == "link latency"]
    assert late
    for flip in late:
        for factor, expected in ((0.97, flip.below), (1.03, flip.above)):
            machine = Machine.uniform(H100.gpu, 8, replace(H100.link(0, 1), latency_us=flip.at * factor))
            assert advise(LLAMA, machine, asked(64)).best.layout == expected, (flip, factor)
    assert " us (here 2.00), " in str(late[0])
    requests = [flip for flip in made.flips if flip.quantity == "concurrency"]
    assert requests
    for flip in requests:
        below, above = max(1, int(flip.at * 0.97)), int(flip.at * 1.03) + 1
        assert advise(LLAMA, H100, asked(below)).best.layout == flip.below
        assert advise(LLAMA, H100, asked(above)).best.layout == flip.above
    assert "GB/s" in str(along[0])
    assert made.flips is made.flips  # computed once


def test_a_calibration_moves_the_choice():
    sweeps = tuple(
        AllReduceTimes(num_ranks=n, launch=launch, nbytes=(1e3, 1e9), p50_us=(3000.0, 3e7))
        for n in (2, 4, 8)
        for launch in ("eager", "graph")
    )
    measured = Calibration(
        machine="m", device="h100", backend="nccl", num_ranks=8, created="2026-11-24", versions={}, all_reduce=sweeps
    )
    assert advise(LLAMA, H100, asked(32)).best.layout.tp > 1
    made = advise(LLAMA, H100, asked(32), calibration=measured)
    assert made.best.layout.tp == 1
    where = dict(zip(made.waterfall().term, made.waterfall().provenance, strict=True))
    assert where["all_reduce"].startswith("measured: nccl")


def test_flips_of_a_calibrated_machine():
    sweeps = tuple(
        AllReduceTimes(num_ranks=n, launch="graph", nbytes=(1e4, 1e9), p50_us=(10.0, 1e6)) for n in (2, 4, 8)
    )
    measured = Calibration(
        machine="m", device="h100", backend="nccl", num_ranks=8, created="2026-11-24", versions={}, all_reduce=sweeps
    )
    made = advise(LLAMA, H100, asked(256), calibration=measured)
    along = [flip for flip in made.flips if flip.quantity == "link bandwidth"]
    assert along
    assert along[-1].above.tp > along[0].below.tp


def test_waterfall_adds_up():
    made = advise(LLAMA, H100, asked(64))
    for option in (None, made.options[-1]):
        frame = made.waterfall(option)
        assert frame["ms"].sum() == pytest.approx((option or made.best).prediction.tpot_ms)
        assert frame["share_pct"].sum() == pytest.approx(100)


def test_close_calls_are_named():
    made = advise(LLAMA, H100, asked(64))
    best = made.best.prediction
    for option in made.close:
        assert option.prediction.output_tokens_per_s > 0.8 * best.output_tokens_per_s
    assert made.best not in made.close
    far = advise(LLAMA, H100, asked(1))
    assert not far.close  # TP 8 beats TP 4 by a quarter


def test_summary_in_words():
    text = str(advise(LLAMA, H100, asked(64)))
    assert "llama-3.1-70b on 8 x h100: TP " in text
    assert "bound by " in text
    assert "ms per token" in text


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_front_is_what_nothing_beats(points):
    cost, value = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    for (c, v), on in zip(points, on_front(cost, value), strict=True):
        beaten = any((c2 <= c and v2 > v) or (c2 < c and v2 >= v) for c2, v2 in points)
        if on:
            assert not beaten
    shown = {point for point, on in zip(points, on_front(cost, value), strict=True) if on}
    best = {(c, v) for c, v in points if not any((d <= c and w > v) or (d < c and w >= v) for d, w in points)}
    assert shown == best


def test_front_over_loads():
    front = advise(LLAMA, H100, asked(64)).front
    assert front["on_front"].any()
    kept = front[front["on_front"]].sort_values("tpot_ms")
    assert kept["tokens_per_s_per_gpu"].is_monotonic_increasing
    assert front["concurrency"].min() == 1
    assert front["tp"].nunique() == 4


def test_unequal_links_choose_the_gpus():
    made = advise(LLAMA, Machine.preset("h100-pairs"), asked(16))
    groups = {group for chain in made.gpu_groups for group in chain}
    if made.best.layout.tp == 2:
        assert groups == {(0, 1), (2, 3)}
    used = [gpu for chain in made.gpu_groups for group in chain for gpu in group]
    assert len(used) == len(set(used)) == made.best.layout.num_gpus


def test_scaling_links_leaves_the_network():
    machine = Machine.preset("h100", nodes=2)
    layouts = [Layout.of(LLAMA, 8, 2), Layout.of(LLAMA, 4, 2)]
    memories = [LayoutMemory.of(LLAMA, machine.gpu, asked(), layout) for layout in layouts]
    wide = layout_arrays(machine, memories).scaled(2.0)
    assert wide.groups.bandwidth_GBps.tolist() == [900.0, 900.0]
    assert wide.hop_GBps.tolist() == [50.0, 900.0]


# --- commands ---------------------------------------------------------------------------------------------------------


def commands_for(machine, tp, pp, replicas=1, model=LLAMA, **more):
    layout = Layout.of(model, tp, pp, replicas)
    where = place(machine, tp, pp, replicas)
    return launch_commands(model, machine, asked(**more), layout, where, path="org/model")


def words(line):
    return shlex.split(line.split("\n")[-1])


def value(line, flag):
    return words(line)[words(line).index(flag) + 1]


def test_commands_of_each_engine():
    made = commands_for(H100, 4, 2, requests=32)
    assert set(made) == set(ENGINES)
    vllm, sglang, trtllm = (made[engine][0] for engine in ENGINES)
    assert (value(vllm, "--tensor-parallel-size"), value(vllm, "--pipeline-parallel-size")) == ("4", "2")
    assert (value(sglang, "--tp-size"), value(sglang, "--pp-size")) == ("4", "2")
    assert (value(trtllm, "--tp_size"), value(trtllm, "--pp_size")) == ("4", "2")
    assert (
        value(vllm, "--max-model-len") == value(sglang, "--context-length") == value(trtllm, "--max_seq_len") == "1280"
    )
    assert value(vllm, "--max-num-seqs") == "32"
    assert value(vllm, "--kv-cache-dtype") == "fp8"
    assert not vllm.startswith("CUDA_VISIBLE_DEVICES")  # all of the node's GPUs, in order
    assert "org/model" in words(trtllm)


def test_commands_of_replicas_have_their_own_gpus_and_ports():
    made = commands_for(Machine.preset("h100-pairs"), 2, 1, 2, requests=9)["vllm"]
    assert [words(line)[0] for line in made] == ["CUDA_VISIBLE_DEVICES=0,1", "CUDA_VISIBLE_DEVICES=2,3"]
    assert [value(line, "--port") for line in made] == ["8000", "8001"]
    assert [value(line, "--max-num-seqs") for line in made] == ["5", "5"]
    assert "--pipeline-parallel-size" not in made[0]


def test_commands_over_nodes():
    made = commands_for(Machine.preset("h100", nodes=2), 8, 2)
    head, other = made["vllm"]
    assert "--headless" not in words(head)
    assert "--headless" in words(other)
    assert (value(head, "--node-rank"), value(other, "--node-rank")) == ("0", "1")
    assert value(made["sglang"][1], "--dist-init-addr") == "$HEAD:5000"
    assert words(made["trtllm"][0])[:3] == ["mpirun", "-n", "16"]
    assert "# node 1" in made["vllm"][1]


def test_commands_say_what_the_policy_says():
    policy = EnginePolicy(cuda_graphs=False, all_reduce="nccl", chunked_prefill=None, gpu_memory_utilization=0.8)
    made = commands_for(H100, 2, 1, model=ModelSpec.from_config("llama-3.1-70b"), engine=policy)
    vllm, sglang, trtllm = (words(made[engine][0]) for engine in ENGINES)
    assert {"--enforce-eager", "--disable-custom-all-reduce"} <= set(vllm)
    assert {"--disable-cuda-graph", "--disable-custom-all-reduce"} <= set(sglang)
    assert "--max-num-batched-tokens" not in vllm
    assert "--quantization" not in vllm
    assert value(made["trtllm"][0], "--kv_cache_free_gpu_memory_fraction") == "0.8"
    assert trtllm[1] == "trtllm-serve"
