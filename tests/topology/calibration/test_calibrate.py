"""Calibrating: the plan, what is made of the ranks' samples, and real runs whose lower bounds are known.

Over an emulated link a message cannot arrive before its latency has passed, however busy the machine: so the real runs
are held against bounds, not against times.
"""

from dataclasses import replace

import pytest

from tplab.cluster import Provenance, Report, RunStopped
from tplab.collectives.emulated_link import EmulatedLink, LinkTable
from tplab.models.spec import ModelSpec
from tplab.topology.advisor.calibration import Calibration, SendTimes
from tplab.topology.advisor.constants import DEFAULT
from tplab.topology.advisor.prediction import predict
from tplab.topology.advisor.roofline import rates
from tplab.topology.advisor.steps import engine_constants
from tplab.topology.advisor.workload import EnginePolicy, Workload
from tplab.topology.calibration.assemble import calibration_of
from tplab.topology.calibration.plan import (
    BLOCK_CONTEXT,
    BLOCK_TOKENS,
    BLOCK_WIDTHS,
    DEEP,
    GPU_LAYERS,
    HEAD_DIM,
    PHASES,
    SHALLOW,
    groups_of,
    llama,
    llama_block,
    mean_params,
    model_blocks,
    narrow,
    plan_calibration,
)
from tplab.topology.calibration.run import calibrate, submit_calibrate
from tplab.topology.machine.machine import Machine
from tplab.topology.verification.static_batch import machine_of

QUICK = {"rounds": 1, "sizes": (1 << 11, 1 << 16), "tokens": (1, 8), "widths": (64, 128)}
LATENCY_US = 3000.0
PROVENANCE = Provenance(
    backend="gloo",
    num_ranks=2,
    device="a CPU",
    num_devices=1,
    link="TCP over loopback",
    num_cores=2,
    torch_version="2.13",
    nccl_version="",
    python_version="3.11",
    started_at="2026-11-24T12:00:00+00:00",
)


def on(num_ranks, backend, num_cores=2, num_gpus=None):
    """A cluster with a GPU for each rank, unless there are fewer."""
    gpus = num_ranks if num_gpus is None else num_gpus
    return replace(PROVENANCE, num_ranks=num_ranks, backend=backend, num_cores=num_cores, num_devices=gpus)


def quick_plan(num_ranks=2, **more):
    return plan_calibration(on(num_ranks, "gloo"), **{**QUICK, **more})


@pytest.mark.parametrize(
    ("ranks", "want"),
    [
        (1, []),
        (2, [(0, 1)]),
        (3, [(0, 1), (0, 1, 2)]),
        (4, [(0, 1), (2, 3), (0, 1, 2, 3)]),
        (6, [(0, 1), (2, 3), (4, 5), (0, 1, 2), (3, 4, 5), (0, 1, 2, 3), (0, 1, 2, 3, 4, 5)]),
    ],
)
def test_groups_are_neighbours_in_sizes_that_tensor_parallelism_takes(ranks, want):
    assert list(groups_of(ranks)) == want


def test_ranks_beyond_the_cores_do_not_compute_at_once():
    plan = plan_calibration(on(4, "gloo"))
    assert plan.computing == (1, 2)
    assert "4 ranks share 2 cores" in plan.notes[0]
    assert plan_calibration(on(6, "gloo", num_cores=16)).computing == (1, 2, 4, 6)
    assert plan_calibration(on(1, "gloo", num_cores=16)).computing == (1,)


def test_gpus_are_timed_in_graphs_too_unless_ranks_share_them():
    assert plan_calibration(on(2, "nccl")).launches == ("eager", "graph")
    shared = plan_calibration(on(2, "nccl", num_gpus=1))
    assert shared.launches == ("eager",)
    assert "share GPUs" in shared.notes[0]


@pytest.mark.parametrize(
    ("backend", "settings", "match"),
    [
        (
            "nccl",
            {"links": EmulatedLink(latency_us=1, bandwidth_GBps=1)},
            "backend must be gloo for emulated links, .*got 'nccl'",
        ),
        ("gloo", {"rounds": 0}, "rounds must be a whole number of at least 1; got 0"),
        ("gloo", {"widths": (64, 64)}, "at least two sizes"),
        ("gloo", {"shapes": ((8, 8), (4, 16))}, "at least two sizes"),
        ("gloo", {"widths": (4, 64)}, "widths must be at least 8"),
        ("gloo", {"tokens": (0,)}, "tokens must be at least 1"),
        ("gloo", {"sizes": ()}, "sizes at least 4 bytes"),
    ],
)
def test_what_cannot_be_measured(backend, settings, match):
    with pytest.raises(ValueError, match=match):
        plan_calibration(on(2, backend), **settings)


def test_blocks_of_a_model_are_cut_as_tensor_parallelism_cuts_them():
    model = ModelSpec.from_config("qwen3-0.6b")  # 16 heads of 128, 8 key-value heads, hidden 1024, MLP 3072
    assert model_blocks(model, 4) == [
        ((4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)),
        ((2048, 1024), (1024, 1024), (3072, 1024), (1024, 1536)),
        ((1024, 1024), (1024, 512), (1536, 1024), (1024, 768)),
    ]
    for t, block in zip((1, 2, 4), model_blocks(model, 4), strict=True):
        assert 4 * mean_params(block) == model.block_matmul_params / t
    assert len(model_blocks(model, 3)) == 1  # 3 does not divide 16 heads
    assert len(plan_calibration(on(1, "gloo", num_cores=1), model=model).blocks) == 2  # a small one for the start-up


def test_of_each_sample_the_slowest_rank_then_the_median():
    key = ("all_reduce", (0, 1), "eager", 2048)
    reports = [
        Report(0, {"samples": {key: [1.0, 9.0, 1.0]}}),
        Report(1, {"samples": {key: [5.0, 2.0]}}),
        Report(1, {"samples": {key: [4.0, 70.0]}}),  # its partner has not reported the last one
        Report(0, {"phase": "all-reduces", "done": 0, "total": 5}),
    ]
    made = calibration_of(quick_plan(), reports, PROVENANCE)
    assert made.all_reduce[0].nbytes == (2048.0,)
    assert made.all_reduce[0].p50_us == (5.0,)  # of 5, 9, 4
    assert made.all_reduce[0].link == "TCP over loopback"
    assert made.sends == () == made.matmuls
    assert made.copy_GBps is None is made.handoff_us


def test_overheads_are_what_is_left_of_narrow_models():
    """Planted times must come back out."""
    fixed, rate, overhead, ends, handoff, wire = 10.0, 1e-3, 300.0, 150.0, 80.0, 50.0
    config = narrow(SHALLOW, "float32")
    block = overhead + 4 * fixed + config.block_matmul_params * rate
    step = ends + fixed + config.vocab_size * config.hidden_size * rate
    times = {
        ("matmul", 1, tokens, place): fixed + mean_params(llama_block(width)) * rate * tokens
        for tokens in QUICK["tokens"]
        for place, width in enumerate(QUICK["widths"])
    }
    times |= {("send", 0, 1, size): wire for size in QUICK["sizes"]}
    times |= {("step", layers): step + layers * block for layers in (SHALLOW, DEEP)}
    times |= {("pipeline", DEEP): step + DEEP * block + 2 * (wire + handoff)}
    times |= {("copy", 10_000_000): 1000.0, ("light",): 7.0}
    times |= {("attention", 1_000): 20.0, ("attention", 1_001_000): 220.0}
    plan = quick_plan()
    times |= {("prompt attention", plan.prompt_tokens): 100.0}
    made = calibration_of(plan, [Report(0, {"samples": times})], PROVENANCE)
    assert made.block_overhead_us == pytest.approx(overhead)
    assert made.step_overhead_us == pytest.approx(ends)
    assert made.handoff_us == pytest.approx(handoff)
    assert made.copy_GBps == pytest.approx(10)
    assert made.attention_fixed_us == 20.0
    assert made.kv_read_GBps == pytest.approx(5)
    assert made.light_kernel_us == 7.0
    assert made.launch_us == 0.0
    width = plan.cache_shape[2] * HEAD_DIM
    assert made.prompt_attention_TFLOPS == pytest.approx(4e-6 * width * plan.prompt_tokens**2 / 2 / 100)


def test_overheads_on_a_gpu_are_what_is_left_of_blocks_in_graphs():
    """Planted times must come back out."""
    fixed, rate, overhead, by_width, ends, handoff, wire, kv_GBps = 5.0, 6e-7, 20.0, 2e-3, 150.0, 10.0, 12.0, 5.0
    widths, tokens = (1024, 4096), (1, BLOCK_TOKENS)
    plan = plan_calibration(on(2, "nccl"), **{**QUICK, "widths": widths, "tokens": tokens})

    def block(width):
        return overhead + by_width * width + 4 * fixed + llama(1, width, "bfloat16").block_matmul_params * rate

    def cache(width):
        return BLOCK_TOKENS * BLOCK_CONTEXT * (width // 4) * 2 * 2 / kv_GBps / 1e3

    step = GPU_LAYERS * (block(BLOCK_WIDTHS[0]) + cache(BLOCK_WIDTHS[0])) + ends + fixed + 256 * BLOCK_WIDTHS[0] * rate
    times = {
        ("matmul", 1, m, place): fixed + mean_params(llama_block(width)) * rate
        for m in tokens
        for place, width in enumerate(widths)
    }
    times |= {("attention", 1_000): 20.0, ("attention", 1_001_000): 220.0}
    times |= {("send", 0, 1, size): wire for size in QUICK["sizes"]}
    times |= {("block", width): block(width) + cache(width) for width in BLOCK_WIDTHS}
    times |= {("step", GPU_LAYERS): step, ("pipeline", GPU_LAYERS): step + 2 * (wire + handoff)}
    made = calibration_of(plan, [Report(0, {"samples": times})], PROVENANCE)
    assert made.block_overhead_us == pytest.approx(overhead)
    assert made.block_overhead_per_width_us == pytest.approx(by_width)
    assert made.step_overhead_us == pytest.approx(ends)
    assert made.handoff_us == pytest.approx(handoff)
    wide, narrow_ = (
        rates(ModelSpec.from_config(name), Machine.preset("h200").gpu, engine_constants("lab"), DEFAULT, made)
        for name in ("llama-3.1-70b", "llama-3.1-8b")
    )
    assert wide.startup_us - narrow_.startup_us == pytest.approx(by_width * 4096)


def test_two_ranks_over_the_backends_own_links(cluster2, tmp_path):
    seen = []
    run = submit_calibrate(cluster2, machine="mine", on_report=seen.append, **QUICK)
    made = run.result(timeout=120)
    assert made.machine == "mine"
    assert made.num_ranks == 2
    assert made.backend == "gloo"
    assert set(made.versions) == {"torch", "python"}
    assert [(sweep.num_ranks, sweep.gpus, sweep.nbytes) for sweep in made.all_reduce] == [(2, (0, 1), (2048, 65536))]
    assert [(send.source, send.target) for send in made.sends] == [(0, 1)]
    assert {m.num_ranks for m in made.matmuls} == set(quick_plan(num_ranks=2).computing)
    assert all(m.precision == "fp32" for m in made.matmuls)
    for key in ("copy_GBps", "kv_read_GBps", "prompt_attention_TFLOPS", "block_overhead_us", "light_kernel_us"):
        assert getattr(made, key) > 0
    assert made.handoff_us >= 0
    assert made.notes == ()
    phases = [r.fields["phase"] for r in seen if r.rank == 0 and "phase" in r.fields]
    assert phases == [*PHASES, PHASES[-1]]
    assert Calibration.load(made.save(tmp_path / "mine.json")) == made


def test_an_emulated_link_costs_at_least_its_latency(cluster2):
    link = EmulatedLink(latency_us=LATENCY_US, bandwidth_GBps=0.1)
    made = calibrate(cluster2, links=link, timeout=120, **QUICK)
    assert min(made.sends[0].p50_us) >= LATENCY_US
    assert made.sends[0].p50_us[1] >= link.message_us(1 << 16)
    assert min(made.all_reduce[0].p50_us) >= 2 * LATENCY_US  # a ring of two: there and back
    assert made.notes == ("emulated link 3,000 us, 0.1 GB/s",)
    machine = machine_of(made)
    assert machine.link(0, 1).kind == "emulated"
    assert machine.link(0, 1).latency_us >= 0.8 * LATENCY_US
    model = ModelSpec.from_config("qwen3-0.6b", weight_precision="fp32")
    workload = Workload(input_length=8, output_length=8, concurrency=1, engine=EnginePolicy(name="lab"))
    two = predict(model, machine, workload, 2, 1, calibration=made)
    assert two.term_ms("all_reduce") >= 2 * model.num_layers * 2 * LATENCY_US / 1e3
    assert "measured: gloo" in next(term.provenance for term in two.terms if term.name == "all_reduce")


def test_unlike_links_are_told_apart_and_groups_are_measured_by_themselves(cluster3):
    near, far = (
        EmulatedLink(latency_us=100, bandwidth_GBps=1),
        EmulatedLink(latency_us=20_000, bandwidth_GBps=0.01),
    )
    links = LinkTable(default=far, overrides={(0, 1): near, (1, 0): near})
    made = calibrate(cluster3, links=links, timeout=120, **QUICK)
    by_group = {sweep.gpus: sweep.p50_us for sweep in made.all_reduce}
    assert set(by_group) == {(0, 1), (0, 1, 2)}
    assert min(by_group[0, 1, 2]) >= 4 * far.latency_us / 2  # 0-1 is near, both others are far
    assert by_group[0, 1][0] < by_group[0, 1, 2][0]
    machine = machine_of(made, memory_GB=4)
    assert machine.link(0, 2).latency_us > machine.link(0, 1).latency_us
    assert machine.gpu.memory_GB == 4
    assert machine.gpu.kind == "cpu"


@pytest.mark.parametrize(
    ("device", "memory_GB", "want"),
    [
        ("NVIDIA H100 80GB HBM3", None, "h100"),
        ("NVIDIA H200", None, "h200"),
        ("NVIDIA A100-SXM4-40GB", None, "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", None, "a100"),
        ("NVIDIA H200", 141.0, "h200"),
        ("NVIDIA Unheard-of 9000", None, "NVIDIA Unheard-of 9000"),
    ],
)
def test_a_known_gpu_keeps_its_spec_sheet(device, memory_GB, want):
    c = Calibration(machine="m", device=device, backend="nccl", num_ranks=2, created="2026", versions={})
    machine = machine_of(c, memory_GB=memory_GB)
    assert machine.gpu.name == want
    assert machine.gpu.kind == "gpu"
    assert machine.num_gpus == 2


def test_links_that_differ_by_noise_are_alike():
    sizes = (1e3, 1e5, 1e7)
    sends = tuple(
        SendTimes(source=i, target=j, nbytes=sizes, p50_us=tuple((100 + 1e-3 * n) * factor for n in sizes))
        for (i, j), factor in {(0, 1): 1.0, (0, 2): 1.4, (1, 2): 0.8}.items()
    )
    machine = machine_of(
        Calibration(machine="m", device="d", backend="gloo", num_ranks=3, created="2026", versions={}, sends=sends)
    )
    assert machine.link(0, 1) == machine.link(0, 2) == machine.link(1, 2)
    assert machine.link(0, 1).latency_us == pytest.approx(100, rel=0.01)


def test_one_rank_has_nothing_to_send(clusters):
    made = calibrate(clusters[1], timeout=120, **QUICK)
    assert made.all_reduce == () == made.sends
    assert made.handoff_us is None
    assert [m.num_ranks for m in made.matmuls] == [1]


def test_what_was_measured_before_a_stop_is_kept(cluster3):
    run = None

    def on_report(report):
        if report.fields.get("phase") == "messages":
            run.stop()

    run = submit_calibrate(cluster3, on_report=on_report, **{**QUICK, "rounds": 50})
    with pytest.raises(RunStopped):
        run.result(timeout=120)
    made = run.partial()
    assert len(made.all_reduce) == 2
    assert made.matmuls == ()
