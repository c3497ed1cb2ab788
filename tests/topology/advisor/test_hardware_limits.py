"""Kinds of GPUs: what each cannot do is said, and changes what is predicted or printed."""

from dataclasses import replace

import pytest

from tplab.models.spec import ModelSpec
from tplab.topology import Machine, Workload, advise, predict
from tplab.topology.advisor.hardware_limits import hardware_notes, refused
from tplab.topology.advisor.workload import EnginePolicy
from tplab.topology.machine.machine import Gpu
from tplab.topology.machine.spec_sheets import GPUS

MODEL = ModelSpec.from_config("llama-3.1-8b")
OWN = Gpu(name="own", memory_GB=80, hbm_GBps=2000, bf16_TFLOPS=300)


def asked(engine="vllm", **more):
    given = {"input_length": 512, "output_length": 128, "concurrency": 8, **more}
    return Workload(**given, engine=EnginePolicy(name=engine))


@pytest.mark.parametrize(
    ("gpu", "engines"),
    [
        ("p100", set()),
        ("p40", set()),
        ("v100-32gb", {"vllm"}),
        ("t4", {"vllm", "sglang"}),
        ("rtx-2080-ti", {"vllm", "sglang"}),
        ("a10g", {"vllm", "sglang", "trtllm"}),
        ("gb10", {"vllm", "sglang", "trtllm"}),
        ("mi300x", {"vllm", "sglang"}),
    ],
)
def test_commands_are_of_engines_that_run_there(gpu, engines):
    advice = advise(MODEL, Machine.preset(gpu), asked(engine="generic"))
    assert set(advice.commands) == engines
    assert engines == {name for name in ("vllm", "sglang", "trtllm") if not refused(name, GPUS[gpu])}


def test_an_engine_that_needs_a_newer_gpu_is_named_with_the_prediction():
    made = predict(MODEL, Machine.preset("p40"), asked("vllm"), 1, 1)
    assert any("vLLM needs compute capability 7.0, and p40 (pascal) has 6.0: no command" in note for note in made.notes)
    assert any("p40 has no tensor cores: GEMMs run at 11.8 TFLOP/s" in note for note in made.notes)


def test_tensorrt_on_amd_is_refused():
    with pytest.raises(ValueError, match=r"engine must be one that runs on AMD's GPUs, .*mi325x; got 'trtllm'"):
        predict(MODEL, Machine.preset("mi325x"), asked("trtllm"), 1, 1)


@pytest.mark.parametrize("gpu", ["v100s", "t4", "titan-rtx"])
def test_bf16_where_there_is_none_is_run_as_fp16(gpu):
    advice = advise(MODEL, Machine.preset(gpu), asked())
    assert any(f"{gpu} multiplies no bf16" in note for note in advice.notes)
    for commands in advice.commands.values():
        assert all(command.endswith("--dtype half") for command in commands)
    in_fp16 = replace(MODEL, weight_precision="fp16", activation_precision="fp16", kv_precision="fp16")
    assert not any("bf16" in note for note in hardware_notes("vllm", in_fp16, Machine.preset(gpu)))


def test_fp8_weights_have_no_kernels_before_ampere():
    quantised = replace(MODEL, weight_precision="fp8")
    (note,) = [each for each in hardware_notes("vllm", quantised, Machine.preset("t4")) if "fp8" in each]
    assert note == "t4: engines have no kernels for fp8 weights before Ampere"
    assert not any("fp8" in each for each in hardware_notes("vllm", quantised, Machine.preset("a10g")))


def test_what_is_not_known_of_amd_is_said():
    notes = hardware_notes("vllm", MODEL, Machine.preset("mi300x"))
    assert any("GEMMs on mi300x reach 64%" in note for note in notes)
    assert any("RCCL's all-reduce is another curve" in note for note in notes)
    assert not any("RCCL" in note for note in hardware_notes("vllm", MODEL, Machine.preset("mi300x", gpus=1)))


def test_commands_for_amd_choose_gpus_its_way():
    model = replace(MODEL, weight_precision="fp4")
    commands = advise(model, Machine.preset("mi355x"), asked(concurrency=64), tp=[2]).commands["vllm"]
    assert "HIP_VISIBLE_DEVICES=0,1 " in commands[0]
    assert "(MXFP4, by AMD's Quark)" in commands[0]


def test_memory_that_the_cpu_shares_is_said():
    assert any(
        "CPU and GPU share the memory of gb10" in note for note in hardware_notes("vllm", MODEL, Machine.preset("gb10"))
    )


@pytest.mark.parametrize("gpu", ["a100", "h100", "l40s", "rtx-pro-6000", "b200"])
def test_nothing_is_said_of_gpus_without_anything_unusual(gpu):
    assert hardware_notes("trtllm", MODEL, Machine.preset(gpu)) == ()


def test_a_gpu_of_ones_own_is_taken_as_able():
    assert hardware_notes("trtllm", MODEL, Machine.preset(OWN, gpus=2)) == ()
    assert not refused("trtllm", OWN)


def test_an_infinity_fabric_all_reduce_of_two_has_one_link_and_of_eight_has_seven():
    """Prompts, whose all-reduces are large: bytes on the wire over what the group's links carry together."""
    model, machine = ModelSpec.from_config("llama-3.1-70b"), Machine.preset("mi300x")
    work = asked(input_length=8192, output_length=16, concurrency=1)
    us = {tp: predict(model, machine, work, tp, 1) for tp in (2, 8)}
    reduced = {tp: made.term_ms("all_reduce") for tp, made in us.items()}
    wide = Machine.uniform(machine.gpu, 8, replace(machine.link(0, 1), kind="nvlink", bandwidth_GBps=448))
    same = {tp: predict(model, wide, work, tp, 1) for tp in (2, 8)}
    assert us[2].prefill_ms - us[8].prefill_ms > same[2].prefill_ms - same[8].prefill_ms
    assert us[2].prefill_ms > 1.2 * same[2].prefill_ms
    assert us[8].prefill_ms == pytest.approx(same[8].prefill_ms, rel=0.05)
    assert all(ms > 0 for ms in reduced.values())


def test_gpus_of_an_older_generation_start_kernels_later():
    gpu = replace(GPUS["h100"], name="as if")
    old, new = (
        predict(MODEL, Machine.preset(replace(gpu, generation=generation)), asked(), 1, 1)
        for generation in ("turing", "hopper")
    )
    assert old.term_ms("kernels") > 1.2 * new.term_ms("kernels")


@pytest.mark.parametrize(
    ("model", "input_length", "output_length", "requests", "tokens_per_s"),
    [
        ("llama-3.1-70b", 128, 4096, 1500, 12171.0),
        ("llama-3.1-70b", 500, 2000, 2000, 13290.4),
        ("llama-3.1-70b", 2048, 2048, 1500, 8216.5),
        ("llama-3.1-405b", 128, 2048, 1500, 4331.6),
        ("llama-3.1-405b", 500, 2000, 2000, 3184.0),
        ("llama-3.1-405b", 2048, 2048, 500, 2154.3),
    ],
)
def test_eight_mi300x_near_what_their_maker_measured(model, input_length, output_length, requests, tokens_per_s):
    """AMD's performance results of April 2025 (vLLM 0.8.3 on ROCm 6.3.1, fp8 weights and cache, TP 8), to which nothing
    was fitted: all requests at once, so many at a time."""
    spec = ModelSpec.from_config(model, weight_precision="fp8", kv_precision="fp8")
    engine = EnginePolicy(name="vllm", max_num_seqs=requests, gpu_memory_utilization=0.95)
    load = Workload(input_length=input_length, output_length=output_length, concurrency=requests, engine=engine)
    made = predict(spec, Machine.preset("mi300x"), load, 8, 1)
    assert made.output_tokens_per_s == pytest.approx(tokens_per_s, rel=0.4)
