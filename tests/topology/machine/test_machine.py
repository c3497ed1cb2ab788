"""Machines: links of every pair, presets, and what cannot be."""

from dataclasses import replace
from itertools import combinations

import pytest

from tplab.topology import Gpu, Link, Machine
from tplab.topology.machine.presets import GPUS, MACHINES, gpu_preset

LINK = Link(kind="emulated", bandwidth_GBps=4, latency_us=10)
GPU = Gpu(name="toy", memory_GB=8, hbm_GBps=100, bf16_TFLOPS=1)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("nodes", [1, 3])
def test_every_preset_has_every_link(name, nodes):
    machine = Machine.preset(name, nodes=nodes)
    assert machine.num_gpus == nodes * machine.gpus_per_node
    for i, j in combinations(range(machine.num_gpus), 2):
        assert machine.link(i, j) == machine.link(j, i)
        assert (machine.link(i, j).kind == "network") == (machine.node_of(i) != machine.node_of(j))
    table = machine.bandwidths()
    assert all(table[i][i] == 0 for i in range(machine.num_gpus))
    assert table[0][-1] == machine.link(0, machine.num_gpus - 1).bandwidth_GBps
    assert machine.notes


@pytest.mark.parametrize("name", MACHINES)
def test_any_number_of_gpus(name):
    for gpus in (1, 2, 3, 7):
        assert Machine.preset(name, gpus=gpus).num_gpus == gpus


def test_switched_beats_bridged_beats_pcie():
    switched, pairs, pcie = (Machine.preset(name, gpus=4) for name in ("a100", "a100-pairs", "a100-pcie"))
    assert switched.slowest_link(range(4)).bandwidth_GBps > 5 * pairs.slowest_link(range(4)).bandwidth_GBps
    assert pairs.link(0, 1).bandwidth_GBps == switched.link(0, 1).bandwidth_GBps
    assert pairs.slowest_link(range(4)) == pcie.slowest_link(range(4))
    assert pairs.slowest_link([0, 1]).is_nvlink
    assert not pcie.slowest_link([0, 1]).is_nvlink


def test_dgx1_has_six_nvlinks_a_gpu_and_is_symmetric():
    machine = Machine.preset("dgx-1")
    for i in range(8):
        links = [machine.link(i, j) for j in range(8) if j != i]
        assert sum(link.bandwidth_GBps for link in links if link.is_nvlink) == 150
        assert sum(link.kind == "sys" for link in links) == 3


def test_names_as_people_write_them():
    assert Machine.preset("H100 SXM") == Machine.preset("h100")
    assert Machine.preset("DGX_A100") == Machine.preset("a100")
    assert gpu_preset("NVIDIA H100 80GB HBM3") == GPUS["h100"]
    assert gpu_preset("GeForce RTX 4090") == GPUS["rtx-4090"]


def test_spec_sheets_are_in_order():
    """Newer is faster, and what is said twice agrees."""
    for key in ("hbm_GBps", "bf16_TFLOPS", "num_sms"):
        values = [getattr(GPUS[name], key) for name in ("v100-32gb", "a100", "h100")]
        assert values == sorted(values)
    for gpu in GPUS.values():
        assert gpu.fp8_TFLOPS is None or 1.9 < gpu.fp8_TFLOPS / gpu.bf16_TFLOPS < 2.1
        assert gpu.memory_bytes == gpu.memory_GB * 1e9
    assert GPUS["h200"].bf16_TFLOPS == GPUS["h100"].bf16_TFLOPS
    assert GPUS["h200"].memory_GB > 1.7 * GPUS["h100"].memory_GB


def test_peak_by_precision():
    h100, a100 = GPUS["h100"], GPUS["a100"]
    assert h100.peak_TFLOPS("fp8") == 1979
    assert a100.peak_TFLOPS("fp8") == a100.peak_TFLOPS("bf16") == 312
    assert a100.peak_TFLOPS("int8") == 624
    assert h100.peak_TFLOPS("int4") == h100.peak_TFLOPS("fp16") == 989
    assert h100.peak_TFLOPS("fp32") < h100.peak_TFLOPS("bf16")


def test_uniform():
    machine = Machine.uniform(GPU, 3, LINK)
    assert machine.num_gpus == 3
    assert machine.slowest_link([0, 1, 2]) == LINK
    assert machine.name == "3 x toy"
    slow = Link(kind="network", bandwidth_GBps=1, latency_us=30)
    two = Machine.uniform(GPU, 2, LINK, nodes=2, network=slow)
    assert two.slowest_link(range(4)) == slow
    assert two.slowest_link([2, 3]) == LINK
    assert two.slowest_link([2]) is None


def test_slowest_by_latency_between_equals():
    rows = [[None, LINK, LINK], [LINK, None, LINK], [LINK, LINK, None]]
    late = replace(LINK, latency_us=99)
    rows[1][2] = rows[2][1] = late
    machine = Machine(name="m", gpu=GPU, gpus_per_node=3, links=tuple(map(tuple, rows)))
    assert machine.slowest_link(range(3)) == late


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpus_per_node": 0, "links": ()}, "gpus_per_node must be a whole number from 1 to 4,096; got 0"),
        ({"links": ((None,),)}, r"links must be 2 rows of 2, one per GPU of a node; got \[1\]"),
        ({"links": ((None, LINK), (replace(LINK, latency_us=1), None))}, "GPUs 0 and 1 must be given and the same"),
        ({"links": ((None, None), (None, None))}, "link of GPUs 0 and 1 must be given"),
        ({"nodes": 2}, "network must be Link.* for 2 nodes; got None"),
    ],
)  # fmt: skip
def test_machines_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        replace(Machine.uniform(GPU, 2, LINK), **change)


def test_gpus_that_are_not_there():
    machine = Machine.preset("h100", gpus=2)
    with pytest.raises(ValueError, match="GPU 2 is not there: 2 x h100 has GPUs 0 to 1"):
        machine.link(0, 2)
    with pytest.raises(ValueError, match="GPU 1 has no link to itself"):
        machine.link(1, 1)
    with pytest.raises(ValueError, match="GPU -1 is not there"):
        machine.node_of(-1)


def test_unknown_names_and_too_many_gpus():
    with pytest.raises(ValueError, match=r"no machine preset is called 'h1000': did you mean h100"):
        Machine.preset("h1000")
    with pytest.raises(ValueError, match=r"use one of .*dgx-1"):
        Machine.preset("abacus")
    with pytest.raises(ValueError, match=r"gpus must be 1 to 8, the GPUs of a h100 node: .*; got 16"):
        Machine.preset("h100", gpus=16)
    with pytest.raises(ValueError, match="no GPU preset is called 'mi300x'"):
        gpu_preset("mi300x")


def test_links_and_gpus_that_cannot_be():
    with pytest.raises(ValueError, match=r"kind must be one of nvswitch, .*; got 'string'"):
        Link(kind="string", bandwidth_GBps=1, latency_us=1)
    with pytest.raises(ValueError, match="bandwidth_GBps must be a number above 0; got 0"):
        Link(kind="pix", bandwidth_GBps=0, latency_us=1)
    with pytest.raises(ValueError, match="hbm_GBps of GPU 'toy' must be a finite number above 0; got 0"):
        replace(GPU, hbm_GBps=0)
    with pytest.raises(ValueError, match="kind must be one of gpu, cpu; got 'tpu'"):
        replace(GPU, kind="tpu")
