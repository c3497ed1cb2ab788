"""A calibration of another machine is refused where that is certain, and only there."""

from dataclasses import replace

import pytest

from tplab.lab.recorded import recorded_calibration
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.calibration_check import check_calibration
from tplab.topology.machine.gpu_names import gpus_called
from tplab.topology.machine.machine import Gpu, Link, Machine
from tplab.topology.machine.presets import MACHINES
from tplab.topology.machine.spec_sheets import GPUS
from tplab.topology.verification.static_batch import machine_of


def made_on(device, backend="nccl"):
    return Calibration(machine="m", device=device, backend=backend, num_ranks=2, created="2026-11-24", versions={})


def machine_with(name, kind="gpu"):
    gpu = Gpu(name=name, memory_GB=80, hbm_GBps=1000, bf16_TFLOPS=100, kind=kind)
    return Machine.uniform(gpu, 2, Link(kind="host", bandwidth_GBps=2.0, latency_us=50.0))


@pytest.mark.parametrize(
    ("device", "preset"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 PCIe", "h100-pairs"),  # the same GPU, joined otherwise
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("Tesla V100-SXM2-32GB", "dgx-1"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("h100", "h100"),
        ("NVIDIA Something New", "h100"),  # not known: may be anything
        ("2 x test", "h100"),
    ],
)
def test_what_may_be_of_that_machine_passes(device, preset):
    check_calibration(made_on(device), Machine.preset(preset))


@pytest.mark.parametrize("name", MACHINES)
def test_a_machine_passes_under_its_own_name_and_the_drivers(name):
    machine = Machine.preset(name)
    check_calibration(made_on(machine.gpu.name), machine)
    check_calibration(made_on(f"NVIDIA {machine.gpu.name.upper().replace('-', ' ')}"), machine)


@pytest.mark.parametrize(
    ("device", "preset"),
    [
        ("NVIDIA H200", "l40s"),
        ("NVIDIA H200", "h100"),
        ("NVIDIA H100 80GB HBM3", "h100-pcie"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("l4", "l40s"),
    ],
)
def test_another_gpu_is_refused_by_both_names(device, preset):
    machine = Machine.preset(preset)
    with pytest.raises(
        ValueError, match=f"of, {device}: .* got '8 x {machine.gpu.name}, whose GPUs are {machine.gpu.name}'"
    ):
        check_calibration(made_on(device), machine)


@pytest.mark.parametrize(
    ("calibration", "machine", "message"),
    [
        (
            made_on("AMD EPYC", "gloo"),
            Machine.preset("h100"),
            "is of, AMD EPYC, a processor .gloo.: leave it out .* got '8 x h100, whose GPUs are h100'",
        ),
        (
            made_on("AMD EPYC", "gloo"),
            machine_with("unheard of"),
            "a processor .gloo.: leave it out .* got '2 x unheard of, whose GPUs are",
        ),
        (
            made_on("NVIDIA H200"),
            machine_with("cpu core", "cpu"),
            "is of, NVIDIA H200: leave it out .* got '2 x cpu core, whose ranks are",
        ),
        (
            made_on("unheard of"),
            machine_with("cpu core", "cpu"),
            "is of, unheard of: .* got '2 x cpu core, whose ranks",
        ),
    ],
)
def test_a_processor_is_no_gpu(calibration, machine, message):
    with pytest.raises(ValueError, match=f"machine must be .*{message}"):
        check_calibration(calibration, machine)


@pytest.mark.parametrize(
    "calibration",
    [
        made_on("AMD EPYC", "gloo"),
        replace(made_on("a CPU", "gloo"), emulated_links=True, notes=("emulated link 2,000 us, 0.1 GB/s",)),
        made_on("NVIDIA Something New"),
        recorded_calibration("4xH200-2026-11-26"),
    ],
    ids=lambda calibration: calibration.device,
)
def test_the_machine_that_was_calibrated_passes(calibration):
    check_calibration(calibration, machine_of(calibration))
    check_calibration(calibration, machine_of(calibration, memory_GB=16))


def test_cpus_of_two_names_may_be_one():
    check_calibration(made_on("AMD EPYC", "gloo"), machine_with("cpu core", "cpu"))


def test_names():
    assert all(gpus_called(name) == {name} for name in GPUS)
    assert gpus_called("Tesla V100") == {"v100-16gb", "v100-32gb"}
    assert gpus_called("cpu core") == frozenset()
    assert gpus_called("NVIDIA A100-PCIE-40GB") == {"a100-pcie-40gb"}
    assert gpus_called("NVIDIA A100-PCIE-64GB") == frozenset()  # no sheet of that size: another is no guess
    assert gpus_called("NVIDIA GH200 480GB") == {"gh200", "gh200-144gb"}  # the name has the memory of its CPU
    assert gpus_called("NVIDIA A100 80GB PCIe") == {"a100-pcie"}
