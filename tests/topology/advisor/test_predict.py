"""What a prediction says about itself: terms, memory, constraint, provenance, interval."""

import math
from dataclasses import replace

import pytest

from tplab.models.shards import Layout
from tplab.topology import EnginePolicy, Machine, ModelSpec, Workload
from tplab.topology.advisor.calibration import AllReduceTimes, Calibration, MatmulTimes, SendTimes
from tplab.topology.advisor.prediction import predict, predict_all
from tplab.topology.advisor.served import TERMS, TTFT_TERMS
from tplab.topology.machine.machine import Gpu, Link

LLAMA = ModelSpec.from_config("llama-3.1-70b", weight_precision="fp8", kv_precision="fp8")
H200 = Machine.preset("h200")


def workload(requests=16, engine="vllm", **more):
    sizes = {"input_length": 1024, "output_length": 1024} | more
    return Workload(concurrency=requests, engine=EnginePolicy(name=engine), **sizes)


@pytest.mark.parametrize(
    ("machine", "engine", "tp", "requests", "measured_ms"),
    [
        ("h200", "trtllm", 1, 4, 20.1), ("h200", "trtllm", 8, 4, 6.26), ("h200", "trtllm", 2, 128, 27.0),
        ("h200", "vllm", 1, 4, 21.5), ("h200", "vllm", 8, 4, 7.93), ("h200", "vllm", 4, 64, 16.1),
        ("h100", "vllm", 2, 16, 19.7), ("h100", "vllm", 8, 64, 15.5),
    ],
)  # fmt: skip
def test_served_llama_70b(machine, engine, tp, requests, measured_ms):
    # Llama-3.1-70B fp8, 1024 in, 1024 out: AIConfigurator (commit 095f58a), silicon_sample.csv.
    made = predict(LLAMA, Machine.preset(machine), workload(requests, engine), tp, 1)
    assert made.tpot_ms == pytest.approx(measured_ms, rel=0.2)  # 5 to 8 % on average over the table
    low, high = made.tpot_range_ms
    assert low < made.tpot_ms < high
    assert made.regime == "checked: model, engine, GPU, memory of the GPU, precision, links, pipeline"


def test_prefill_of_others_is_a_term_that_matters():
    # The same source, 8192 in, 1024 out, TP 1 on H200: 24.0 ms at 4 requests, 58.7 at 32.
    few, many = (predict(LLAMA, H200, workload(c, "trtllm", input_length=8192), 1, 1) for c in (4, 32))
    assert few.tpot_ms == pytest.approx(24.0, rel=0.1)
    assert many.tpot_ms == pytest.approx(58.7, rel=0.15)
    assert many.term_ms("prefill") > 0.4 * many.tpot_ms
    assert many.binding == "prefill of other requests"


def test_terms_are_complete_and_each_says_where_it_is_from():
    made = predict(LLAMA, H200, workload(), 2, 2)
    assert tuple(term.name for term in made.terms) == TERMS
    assert math.fsum(term.ms for term in made.terms) == pytest.approx(made.tpot_ms)
    assert all(term.provenance for term in made.terms + made.ttft_terms)
    assert tuple(term.name for term in made.ttft_terms) == TTFT_TERMS
    assert math.fsum(term.ms for term in made.ttft_terms) == pytest.approx(made.ttft_ms)
    own = {term.name: term.ms for term in made.ttft_terms[3:]}
    assert math.fsum(own.values()) == pytest.approx(made.prefill_ms)
    assert own["weights"] > own["attention"] > 0  # 1024 tokens: the matrices' work, not attention's
    assert made.regime.endswith("new: pipeline")
    assert made.term_ms("hops") > 0
    with pytest.raises(ValueError, match="no term is called 'magic': use one of weights"):
        made.term_ms("magic")


def test_throughput_and_time_of_a_request_agree():
    made = predict(LLAMA, H200, workload(32), 2, 1, replicas=4)
    assert made.num_gpus == 8
    assert made.concurrency == 8
    assert made.output_tokens_per_s == pytest.approx(1024 * made.requests_per_s)
    assert made.e2e_ms == pytest.approx(made.ttft_ms + 1023 * made.tpot_ms)
    assert made.output_tokens_per_s_per_gpu == pytest.approx(made.output_tokens_per_s / 8)
    assert predict(LLAMA, H200, workload(8), 2, 1).tpot_ms == pytest.approx(made.tpot_ms)


def test_few_arrivals_are_served_one_at_a_time():
    def at(rate, replicas):
        load = Workload(input_length=1024, output_length=256, request_rate=rate)
        return predict(LLAMA, H200, load, 1, 1, replicas=replicas)

    alone = predict(LLAMA, H200, Workload(input_length=1024, output_length=256, concurrency=1), 1, 1)
    for replicas in (1, 8):
        made = at(0.01, replicas)
        assert made.tpot_ms == pytest.approx(alone.tpot_ms)
        assert made.e2e_ms == pytest.approx(alone.e2e_ms)
        assert made.requests_per_s == 0.01
        assert made.output_tokens_per_s == pytest.approx(2.56)
        assert made.concurrency == pytest.approx(0.01 * alone.e2e_ms / 1e3 / replicas)
    assert at(1e6, 8).requests_per_s < 1e3  # what it can, not what is asked


def test_a_group_over_two_nodes_takes_whole_ones():
    two = Machine.preset("h100", gpus=6, nodes=2)
    with pytest.raises(
        ValueError,
        match=r"needs 3 groups of 4 GPUs, and .* has room for 2: none lies over two nodes of 6 unless it takes whole",
    ):
        predict(LLAMA, two, workload(), 4, 3)


def test_longer_than_the_model_was_made_for():
    assert not predict(LLAMA, H200, workload(), 8, 1).notes[0].startswith("requests")
    made = predict(LLAMA, H200, workload(input_length=200_000), 8, 1)
    assert "requests of 201024 tokens are longer than the 131072 the model was made for" in made.notes[0]


def test_memory_of_more_requests_than_would_fit_at_full_length():
    made = predict(LLAMA, Machine.preset("h100"), workload(512, input_length=128, output_length=2048), 2, 1)
    assert made.running * 2176 > made.capacity_tokens  # pages are shared, and most requests are not at their end
    assert made.memory.free >= 0


def test_fewer_requests_than_replicas_leave_some_idle():
    one, four = predict(LLAMA, H200, workload(2), 2, 1), predict(LLAMA, H200, workload(2), 2, 1, replicas=4)
    alone = predict(LLAMA, H200, workload(1), 2, 1)
    assert four.output_tokens_per_s == pytest.approx(2 * alone.output_tokens_per_s)
    assert four.output_tokens_per_s > one.output_tokens_per_s


def test_a_queue_is_counted_and_named():
    made = predict(LLAMA, Machine.preset("h100"), workload(500, "trtllm", input_length=128, output_length=2048), 1, 1)
    assert made.queue_ms > made.prefill_ms
    assert made.ttft_ms > made.queue_ms
    assert made.binding.startswith("KV cache: room for ")
    assert made.running < 60
    assert made.capacity_tokens == pytest.approx(made.running * 2176, rel=0.01)


@pytest.mark.parametrize(
    ("limits", "binding"),
    [
        ({"max_num_seqs": 32}, "the engine's largest batch: 32 of 1,000 requests"),
        ({"chunked_prefill": 64}, "the engine's budget of tokens a step: 64 of 1,000 requests"),
    ],
)
def test_a_queue_that_the_engine_makes_is_not_the_cache(limits: dict[str, int], binding: str) -> None:
    asked = workload(1000, "vllm")
    made = predict(LLAMA, H200, replace(asked, engine=replace(asked.engine, **limits)), 8, 1)
    assert made.queue_ms > 0
    assert made.binding == binding


def test_what_does_not_fit_is_predicted_and_said():
    made = predict(ModelSpec.from_config("llama-3.1-70b"), Machine.preset("h100"), workload(), 1, 1)
    assert not made.fits
    assert made.reason is not None
    assert "does not fit" in made.reason
    assert made.memory.free < 0
    assert made.binding.startswith("memory")


def test_layouts_that_cannot_be():
    with pytest.raises(ValueError, match="tp must divide the model's 64 query heads"):
        predict(LLAMA, H200, workload(), 3, 1)
    with pytest.raises(ValueError, match=r"needs 16 GPUs, 8 x h200 has 8: use fewer, or more nodes"):
        predict(LLAMA, H200, workload(), 8, 2)
    assert predict_all(LLAMA, H200, workload(), []) == []


def test_over_nodes():
    machine = Machine.preset("a100", nodes=2)
    made = predict(LLAMA, machine, workload(1, "fastertransformer"), 16, 1)
    inside = predict(LLAMA, machine, workload(1, "fastertransformer"), 8, 1)
    assert made.term_ms("all_reduce") > 1.5 * inside.term_ms("all_reduce")
    assert made.term_ms("weights") < inside.term_ms("weights")


def test_a_rate_that_cannot_be_kept_up_with():
    fast = Workload(input_length=1024, output_length=1024, request_rate=500.0)
    made = predict(LLAMA, H200, fast, 8, 1)
    assert made.fits
    assert made.reason is not None
    assert "cannot keep up" in made.reason
    slow = predict(LLAMA, H200, replace(fast, request_rate=0.5), 8, 1)
    assert slow.reason is None
    assert slow.requests_per_s == pytest.approx(0.5, rel=0.03)


# --- with a calibration -----------------------------------------------------------------------------------------------

CORE = Gpu(name="core", memory_GB=8, hbm_GBps=10, bf16_TFLOPS=0.05, kind="cpu")
SMALL = ModelSpec(
    name="small", num_layers=4, hidden_size=256, intermediate_size=512, num_heads=8, num_kv_heads=4, head_dim=32,
    vocab_size=1000, weight_precision="fp32", kv_precision="fp32", activation_precision="fp32",
)  # fmt: skip
MEASURED = Calibration(
    machine="laptop",
    device="a CPU",
    backend="gloo",
    num_ranks=4,
    created="2026-11-24T18:00:00",
    versions={"torch": "2.13"},
    all_reduce=(
        AllReduceTimes(num_ranks=2, nbytes=(1e3, 1e6), p50_us=(100.0, 1000.0)),
        AllReduceTimes(num_ranks=4, nbytes=(1e3, 1e6), p50_us=(300.0, 2000.0)),
    ),
    sends=(SendTimes(source=0, target=1, nbytes=(1e3, 1e6), p50_us=(50.0, 500.0)),),
    matmuls=(
        MatmulTimes(
            precision="fp32",
            tokens=(1, 1, 1, 64, 64, 64),
            params=(1e5, 1e6, 1e7, 1e5, 1e6, 1e7),
            p50_us=(30.0, 210.0, 2010.0, 60.0, 510.0, 5010.0),
        ),
    ),
    copy_GBps=8.0,
    block_overhead_us=200.0,
    step_overhead_us=400.0,
    handoff_us=150.0,
    notes=("2 ranks a core",),
)


def laptop(ranks=4):
    return Machine.uniform(CORE, ranks, Link(kind="host", bandwidth_GBps=2.0, latency_us=50.0))


def lab(requests=1, **more):
    policy = EnginePolicy(name="lab", cuda_graphs=False, all_reduce="measured", gpu_memory_utilization=0.9)
    sizes = {"input_length": 8, "output_length": 64} | more
    return Workload(concurrency=requests, engine=policy, **sizes)


def test_measured_terms_replace_the_spec_sheet():
    made = predict(SMALL, laptop(), lab(), 2, 1, calibration=MEASURED)
    params = SMALL.block_matmul_params
    assert made.term_ms("weights") == pytest.approx(4 * (4 * 10 + params / 2 * 2e-4) / 1e3, rel=0.01)
    assert made.term_ms("kernels") == pytest.approx(4 * 0.2)
    assert made.term_ms("all_reduce") == pytest.approx(4 * 2 * 0.1, rel=0.02)  # 1 KiB
    assert made.term_ms("host") == pytest.approx(0.4)
    assert made.regime == "calibrated"
    assert "2 ranks a core" in made.notes
    where = {term.name: term.provenance for term in made.terms}
    for name in ("weights", "lm_head", "kernels", "all_reduce", "host", "activations"):
        assert where[name] == "measured: gloo, 4 x a CPU, 2026-11-24", name
    assert "spec sheet" in where["kv_cache"]


def test_measured_hops():
    made = predict(SMALL, laptop(), lab(), 1, 2, calibration=MEASURED)
    one = predict(SMALL, laptop(), lab(), 1, 2, calibration=replace(MEASURED, handoff_us=0.0))
    assert made.term_ms("hops") - one.term_ms("hops") == pytest.approx(2 * 0.15)
    assert one.term_ms("hops") == pytest.approx(2 * 0.05 * 1.024 ** (1 / 3))  # 1 KiB, in log size and log time


def test_group_sizes_that_were_not_measured_follow_the_nearest():
    eight = predict(SMALL, laptop(8), lab(), 8, 1, calibration=MEASURED)
    four = predict(SMALL, laptop(8), lab(), 4, 1, calibration=MEASURED)
    ratio = eight.term_ms("all_reduce") / four.term_ms("all_reduce")
    assert ratio == pytest.approx(7 / 3, rel=0.1)  # steps of a ring


def test_a_slower_measured_link_flips_the_choice():
    def best(times):
        sweeps = tuple(AllReduceTimes(num_ranks=n, nbytes=(1e3, 1e6), p50_us=times) for n in (2, 4))
        measured = replace(MEASURED, all_reduce=sweeps)
        made = {
            sizes: predict(SMALL, laptop(), lab(4), *sizes, calibration=measured).tpot_ms
            for sizes in ((4, 1), (2, 2), (1, 4))
        }
        return min(made, key=made.get)

    assert best((5.0, 50.0)) == (4, 1)
    assert best((5000.0, 50000.0)) == (1, 4)


def test_ranks_that_compute_at_once_are_slower():
    def weights(ranks_measured, *sizes, requests=1):
        slower = replace(MEASURED.matmuls[0], num_ranks=2, p50_us=tuple(3 * us for us in MEASURED.matmuls[0].p50_us))
        measured = replace(MEASURED, matmuls=(*MEASURED.matmuls, slower)[:ranks_measured])
        return predict(SMALL, laptop(), lab(requests), *sizes, calibration=measured).term_ms("weights")

    assert weights(2, 1, 1) == pytest.approx(weights(1, 1, 1))
    assert weights(2, 2, 1) == pytest.approx(3 * weights(1, 2, 1))
    assert weights(2, 1, 2) == pytest.approx(weights(1, 1, 2))  # one request: stages take turns
    assert weights(2, 1, 2, requests=2) == pytest.approx(3 * weights(1, 1, 2, requests=2), rel=0.01)
    both = predict_all(SMALL, laptop(), lab(), [Layout.of(SMALL, 1, 1), Layout.of(SMALL, 2, 1)], calibration=MEASURED)
    assert [one.term_ms("weights") for one in both] == pytest.approx([weights(1, 1, 1), weights(1, 2, 1)])


SENDS = (SendTimes(source=0, target=1, nbytes=(1e3, 1e6), p50_us=(20.0, 40.0)),)


def on_gpus(**more):
    """Four GPUs with links as their sheet says, and a loop of the lab's own that is slow."""
    sweeps = tuple(
        AllReduceTimes(num_ranks=n, launch="graph", nbytes=(1e3, 1e6, 1e9), p50_us=(12.0, 20.0, 1400.0 * n))
        for n in (2, 4)
    )
    sizes = {"block_overhead_us": 500.0, "step_overhead_us": 9000.0, "launch_us": 80.0, "handoff_us": 5000.0}
    given = {"all_reduce": sweeps, "sends": (), "kv_read_GBps": 3600.0, **sizes, **more}
    return replace(MEASURED, device="NVIDIA H200", backend="nccl", matmuls=(), copy_GBps=None, notes=(), **given)


def test_a_server_on_gpus_has_its_own_loop_and_kernels():
    sheet, server = (predict(LLAMA, H200, workload(), 4, 1, calibration=c) for c in (None, on_gpus()))
    for name in ("host", "kernels", "launch"):
        assert server.term_ms(name) == pytest.approx(sheet.term_ms(name), rel=0.01), name
    assert server.standing.new == sheet.standing.new == ()
    where = {term.name: term.provenance for term in server.terms}
    assert where["kv_cache"].startswith("measured: nccl")
    assert any("measured: nccl" in note for note in server.notes)
    lab_s = predict(LLAMA, H200, workload(engine="lab"), 4, 1, calibration=on_gpus())
    assert lab_s.term_ms("host") == pytest.approx(9.0)
    assert lab_s.term_ms("kernels") > 80 * 0.5


@pytest.mark.parametrize("machine", ["a100", "h100"])
def test_older_gpus_start_kernels_as_slowly_with_a_calibration(machine):
    llama, machine = ModelSpec.from_config("llama-3.1-8b"), Machine.preset(machine)
    measured = on_gpus(light_kernel_us=None, attention_fixed_us=None)
    measured = replace(measured, device=machine.gpu.name)
    sheet, server = (predict(llama, machine, workload(), 2, 1, calibration=c) for c in (None, measured))
    assert server.term_ms("kernels") == sheet.term_ms("kernels")


def test_what_is_not_measured_is_not_called_so():
    made = predict(LLAMA, H200, workload(), 2, 2, calibration=on_gpus(sends=SENDS))
    where = {term.name: term.provenance for term in made.terms}
    assert where["all_reduce"].startswith("vllm's kernels by formula where it has them; measured: nccl")
    assert where["hops"].endswith("; handing over as vllm does")
    lab_s = predict(LLAMA, H200, workload(engine="lab"), 2, 2, calibration=on_gpus(sends=SENDS))
    where = {term.name: term.provenance for term in lab_s.terms}
    assert where["all_reduce"].startswith("lab's kernels by formula where it has them; measured: nccl")
    assert where["hops"].startswith("measured: nccl")
    assert "handing over" not in where["hops"]


def test_hops_between_nodes_are_not_those_inside_one():
    two = Machine.preset("h200", gpus=4, nodes=2)
    slow = on_gpus(sends=(replace(SENDS[0], p50_us=(5e4, 5e4)),))
    sheet, made = (predict(LLAMA, two, workload(), 4, 2, calibration=c) for c in (None, slow))
    assert made.term_ms("hops") == pytest.approx(sheet.term_ms("hops"), rel=0.01)
    assert predict(LLAMA, two, workload(), 2, 2, calibration=slow).term_ms("hops") > 100


def test_an_engines_own_all_reduce_stays_beside_a_measured_nccl():
    sheet, fine = (predict(LLAMA, H200, workload(), 4, 1, calibration=c) for c in (None, on_gpus()))
    assert fine.term_ms("all_reduce") == pytest.approx(sheet.term_ms("all_reduce"), rel=0.25)
    slow = tuple(replace(s, p50_us=tuple(100 * us for us in s.p50_us)) for s in on_gpus().all_reduce)
    made = predict(LLAMA, H200, workload(), 4, 1, calibration=on_gpus(all_reduce=slow))
    assert made.term_ms("all_reduce") > 3 * sheet.term_ms("all_reduce")  # over links like these, no kernel is fast


def test_what_a_calibration_does_not_say_of_this_model():
    fp16 = replace(SMALL, weight_precision="fp16")
    products = replace(MEASURED, matmuls=(replace(MEASURED.matmuls[0], precision="bf16"),))
    made = predict(fp16, laptop(), lab(), 2, 1, calibration=products)
    assert made.regime == "calibrated"  # bf16 stands for it
    other = predict(replace(SMALL, weight_precision="fp8"), laptop(), lab(), 2, 1, calibration=products)
    assert other.regime != "calibrated"
    assert any("its products are in bf16, the model's weights in fp8" in note for note in other.notes)


def test_measurements_of_the_very_gpus_go_first():
    sweeps = tuple(
        AllReduceTimes(num_ranks=2, nbytes=(1e3, 1e6), p50_us=(us, us * 10), gpus=gpus)
        for us, gpus in ((10.0, (0, 1)), (20.0, (2, 3)), (900.0, (0, 2)))
    )
    sends = tuple(
        SendTimes(source=a, target=b, nbytes=(1e3, 1e6), p50_us=(us, us * 10))
        for us, a, b in ((30.0, 0, 1), (70.0, 1, 2), (40.0, 2, 3), (5000.0, 0, 3))
    )
    measured = replace(MEASURED, all_reduce=sweeps, sends=sends, handoff_us=0.0)
    one = predict(SMALL, laptop(), lab(), 2, 1, calibration=measured)
    assert one.term_ms("all_reduce") == pytest.approx(4 * 2 * 0.010, rel=0.02)  # GPUs 0 and 1
    two = predict(SMALL, laptop(), lab(2), 2, 1, replicas=2, calibration=measured)
    assert two.term_ms("all_reduce") == pytest.approx(4 * 2 * 0.020, rel=0.02)  # 2 and 3 hold it up
    chain = predict(SMALL, laptop(), lab(), 1, 4, calibration=measured)
    assert chain.term_ms("hops") == pytest.approx(4 * 0.070, rel=0.02)  # 0 and 3 are no neighbours
    wide = predict(SMALL, laptop(), lab(), 4, 1, calibration=measured)
    where = {term.name: term.provenance for term in wide.terms}
    assert where["all_reduce"].startswith("interpolated from other group sizes; measured: gloo")


def test_published_prefill_with_communication_deleted():
    # TokenWeave (commit f483d1c), Llama-3.3-70B in bf16 on H100, one prompt, all-reduces deleted: TP 8 and TP 4, in ms.
    bf16 = ModelSpec.from_config("llama-3.3-70b")
    measured = {
        (8, 2048): 74.9,
        (8, 8192): 289.6,
        (8, 32768): 1371.4,
        (4, 2048): 132.5,
        (4, 8192): 531.5,
        (4, 32768): 2546.3,
    }
    for (tp, tokens), ms in measured.items():
        engine = EnginePolicy(name="vllm", chunked_prefill=None)
        alone = Workload(input_length=tokens, output_length=1, concurrency=1, engine=engine)
        made = predict(bf16, Machine.preset("h100"), alone, tp, 1)
        without = made.prefill_ms - sum(term.ms for term in made.ttft_terms if term.name == "all_reduce")
        assert without == pytest.approx(ms, rel=0.1), (tp, tokens)
