"""Machines: links of every pair, presets, and what cannot be."""

from dataclasses import replace
from itertools import combinations

import pytest

from tplab.topology import Gpu, Link, Machine
from tplab.topology.machine.gpu_names import gpu_preset
from tplab.topology.machine.presets import INSTANCES, MACHINES
from tplab.topology.machine.spec_sheets import GPU_ALIASES, GPUS

FEW = ("gh200", "gh200-144gb", "gb10", "rtx-pro-6000-workstation")
"""Nodes of at most four GPUs."""
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
    assert machine.num_gpus == 1 or table[0][-1] == machine.link(0, machine.num_gpus - 1).bandwidth_GBps
    assert machine.notes


@pytest.mark.parametrize("name", [name for name in MACHINES if name not in FEW])
def test_any_number_of_gpus(name):
    for gpus in (1, 2, 3, 7):
        assert Machine.preset(name, gpus=gpus).num_gpus == gpus


@pytest.mark.parametrize("name", INSTANCES)
def test_instances_are_nodes_of_their_gpus(name):
    machine = Machine.preset(name, nodes=2)
    node, gpus, nics, nic_GBps = INSTANCES[name]
    assert machine.gpu == Machine.preset(node).gpu
    assert machine.gpus_per_node == gpus
    assert machine.links == Machine.preset(node, gpus=gpus).links
    assert machine.network.bandwidth_GBps * gpus == pytest.approx(nics * nic_GBps)
    with pytest.raises(ValueError, match=f"gpus must be 1 to {gpus}, the GPUs of a {name} node"):
        Machine.preset(name, gpus=gpus + 1)


def test_every_gpu_has_a_node():
    nodes = {Machine.preset(name).gpu.name for name in MACHINES}
    assert nodes == set(GPUS)
    for name in (*GPUS, *GPU_ALIASES):
        assert Machine.preset(name).gpu.name.split("-")[0] == gpu_preset(name).name.split("-")[0]


def test_racks_of_grace_blackwell_are_one_node():
    rack = Machine.preset("gb300-nvl72")
    assert rack.gpus_per_node == 72
    assert rack.slowest_link(range(72)).kind == "nvswitch"
    assert rack.slowest_link(range(72)).bandwidth_GBps == 900


@pytest.mark.parametrize("name", ["a800", "h800"])
def test_nvlink_of_export_models_is_400_GB_a_second_both_ways(name):
    cut, whole = Machine.preset(name), Machine.preset(name.replace("8", "1"))
    assert cut.link(0, 7).bandwidth_GBps == 200 < whole.link(0, 7).bandwidth_GBps
    assert cut.gpu.hbm_GBps == whole.gpu.hbm_GBps


def test_infinity_fabric_joins_every_pair_by_a_link_of_its_own():
    machine = Machine.preset("mi300x")
    assert {machine.link(i, j).kind for i, j in combinations(range(8), 2)} == {"xgmi"}
    assert machine.link(0, 7).bandwidth_GBps == 64
    assert machine.link(0, 7).is_peer
    assert not machine.link(0, 7).is_nvlink


def test_p100_has_one_nvlink_to_each_of_four_neighbours():
    machine = Machine.preset("dgx-1-p100")
    for i in range(8):
        assert [machine.link(i, j).bandwidth_GBps for j in range(8) if j != i and machine.link(i, j).is_nvlink] == [
            20
        ] * 4


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
    assert gpu_preset("GeForce RTX 4090") == gpu_preset("RTX4090") == GPUS["rtx-4090"]
    assert gpu_preset("Tesla T4") == GPUS["t4"]
    assert gpu_preset("AMD Instinct MI300X") == GPUS["mi300x"]
    assert gpu_preset("NVIDIA GH200 480GB") == GPUS["gh200"]
    assert gpu_preset("rtx2080ti") == GPUS["rtx-2080-ti"]
    assert Machine.preset("Standard_ND96isr_MI300X_v5").gpu == GPUS["mi300x"]
    assert Machine.preset("hgx-h200") == Machine.preset("h200")
    assert Machine.preset("DGX Spark").gpu == GPUS["gb10"]
    assert Machine.preset("ND MI300X v5").gpu == GPUS["mi300x"]
    assert Machine.preset("Tesla V100-SXM2-16GB") == Machine.preset("dgx-1-16gb")


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("Tesla T4 16GB", "t4"),
        ("NVIDIA A10G 24GB", "a10g"),
        ("H800 SXM5 80GB", "h800"),
        ("H800 PCIe 80GB", "h800-pcie"),
        ("H20-3e 141GB", "h20-3e"),
        ("GH200 144GB HBM3e", "gh200-144gb"),
        ("GB300 NVL72", "gb300"),
        ("MI325X 256GB", "mi325x"),
        ("Tesla P100-SXM2-16GB", "p100"),
        ("GeForce RTX 2080 Ti 11GB", "rtx-2080-ti"),
        ("4080 super", "rtx-4080-super"),
        ("RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
        ("A100 40GB SXM", "a100-40gb"),
    ],
)
def test_names_with_more_words_than_a_preset_has(name, gpu):
    assert gpu_preset(name) == Machine.preset(name).gpu == GPUS[gpu]


@pytest.mark.parametrize(
    ("family", "largest"),
    [("p3", "p3.16xlarge"), ("p4d", "p4d.24xlarge"), ("p5", "p5.48xlarge"), ("p5e", "p5e.48xlarge"),
     ("g4dn", "g4dn.metal"), ("g5", "g5.48xlarge"), ("g6", "g6.48xlarge"), ("g2-standard", "g2-standard-96")],
)  # fmt: skip
def test_a_family_of_instances_is_its_largest(family, largest):
    assert Machine.preset(family) == Machine.preset(largest)


def test_a_family_with_two_kinds_of_gpus_is_asked_about():
    with pytest.raises(ValueError, match=r"machine must be one of its instances: a3-highgpu-8g, a3-megagpu-8g, a3-ul"):
        Machine.preset("a3")
    with pytest.raises(ValueError, match=r"machine must be one of its instances: p6-b200.*, p6-b300.48xlarge; got"):
        Machine.preset("p6")


def test_spec_sheets_are_in_order():
    """Newer is faster, and what is said twice agrees."""
    for key in ("hbm_GBps", "bf16_TFLOPS", "num_sms"):
        values = [getattr(GPUS[name], key) for name in ("v100-32gb", "a100", "h100")]
        assert values == sorted(values)
    for gpu in GPUS.values():
        assert gpu.fp8_TFLOPS is None or 1.9 < gpu.fp8_TFLOPS / gpu.bf16_TFLOPS < 2.1
        assert gpu.memory_bytes == gpu.memory_GB * 1e9
        assert (gpu.fp8_TFLOPS is None) == (gpu.made.fp8 is None)
        assert (gpu.fp4_TFLOPS is None) == (gpu.made.fp4 is None)
        assert gpu.is_amd == gpu.name.startswith("mi")
        assert not gpu.num_nvlinks or gpu.nvlink_GBps > 0
    assert GPUS["h200"].bf16_TFLOPS == GPUS["h100"].bf16_TFLOPS
    assert GPUS["h200"].memory_GB > 1.7 * GPUS["h100"].memory_GB


def test_peak_by_precision():
    h100, a100 = GPUS["h100"], GPUS["a100"]
    assert h100.peak_TFLOPS("fp8") == 1979
    assert a100.peak_TFLOPS("fp8") == a100.peak_TFLOPS("bf16") == 312
    assert a100.peak_TFLOPS("int8") == 624
    assert h100.peak_TFLOPS("int4") == h100.peak_TFLOPS("fp16") == 989
    assert h100.peak_TFLOPS("fp32") < h100.peak_TFLOPS("bf16")
    assert GPUS["v100-32gb"].peak_TFLOPS("fp32") == pytest.approx(15.7, rel=0.01)  # no TF32
    assert GPUS["mi300x"].peak_TFLOPS("bf16") == pytest.approx(668.4 / 0.803, rel=0.01)  # measured, as on an H100
    assert GPUS["t4"].peak_TFLOPS("bf16") == pytest.approx(24 / 0.803, rel=0.01)
    assert GPUS["b300"].peak_TFLOPS("int8") == GPUS["b300"].peak_TFLOPS("bf16")  # hardly any int8 units are left


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
    with pytest.raises(ValueError, match=r"gpus must be 1 to 1, the GPUs of a gb10 node"):
        Machine.preset("dgx-spark", gpus=2)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mi300", "no such MI300 is known, the nearest in kind is mi300x or mi325x; or give the figures"),
        ("AMD Instinct MI250X", "no AMD accelerator before MI300 is known, nor any of its kind: give the figures"),
        ("t4g", "the nearest in kind is t4;"),
        ("H100 CNX", "no such H100 is known, the nearest in kind is h100 or h100-pcie or h100-nvl;"),
        ("GTX 1080 Ti", "no Pascal GeForce is known, the nearest in kind is p40;"),
        ("Tesla K80", "no GPU older than Pascal is known, nor any of its kind"),
        ("rtx-2070", "no such Turing GeForce is known, the nearest in kind is rtx-2080-ti;"),
        ("RTX 4070 SUPER", "no such Ada GeForce is known, the nearest in kind is rtx-4060-ti or rtx-4070 or"),
        ("rtx-a4500", "no such Ampere workstation card is known"),
        ("A100-64GB", "the nearest in kind is a100 or a100-40gb or a100-pcie;"),
        ("h20e", "the nearest in kind is h20 or h20-3e;"),
        ("b100", "the nearest in kind is b200 or b300;"),
        ("Gaudi3", "no such chip is known, nor any of its kind"),
        ("Radeon RX 7900 XTX", "no Radeon is known, nor any of its kind"),
        ("rtx-4900", "did you mean rtx-4090"),
    ],
)
def test_a_gpu_that_is_not_known_is_answered_with_its_kin(name, hint):
    for ask in (gpu_preset, Machine.preset):
        with pytest.raises(ValueError, match=hint) as caught:
            ask(name)
        assert "memory_GB=24,hbm_GBps=936,bf16_TFLOPS=71" in str(caught.value)


def test_a_gpu_of_ones_own():
    gpu = gpu_preset("name=rtx-4070-super, memory_GB=12.9, hbm_GBps=504, bf16_TFLOPS=71, pcie_p2p=false, num_sms=56")
    assert gpu == Gpu(name="rtx-4070-super", memory_GB=12.9, hbm_GBps=504, bf16_TFLOPS=71, pcie_p2p=False, num_sms=56)
    assert Machine.preset(gpu).num_gpus == 1
    pair = Machine.preset(gpu, gpus=2, nodes=2)
    assert pair == Machine.preset(
        "name=rtx-4070-super,memory_GB=12.9,hbm_GBps=504,bf16_TFLOPS=71,pcie_p2p=false,num_sms=56", gpus=2, nodes=2
    )
    assert not pair.link(0, 1).is_nvlink
    assert pair.source == "declared"
    assert Machine.preset(replace(gpu, nvlink_GBps=25, num_nvlinks=12), gpus=4).link(0, 3).kind == "nvswitch"
    assert Machine.preset(replace(gpu, nvlink_GBps=25, num_nvlinks=4), gpus=4).link(0, 1).kind == "nvlink"
    assert Machine.preset(replace(gpu, xgmi_GBps=50), gpus=4).link(0, 3).kind == "xgmi"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory_GB=24", "lacks hbm_GBps and bf16_TFLOPS: every GPU needs those"),
        ("memory=24,hbm_GBps=1,bf16_TFLOPS=1", "'memory=24' is no figure of a GPU: use key=value with name, memory_GB"),
        ("memory_GB=lots,hbm_GBps=1,bf16_TFLOPS=1", "memory_GB must be a number; got 'lots'"),
        ("memory_GB=24,memory_GB=25,hbm_GBps=1,bf16_TFLOPS=1", "memory_GB stands twice in 'memory_GB=24,memory_GB=25"),
        ("memory_GB=-1,hbm_GBps=1,bf16_TFLOPS=1", "memory_GB of GPU 'own-gpu' must be a finite number above 0"),
        ("memory_GB=1,hbm_GBps=1,bf16_TFLOPS=1,pcie_p2p=perhaps", "pcie_p2p must be true or false; got 'perhaps'"),
        ("memory_GB=1,hbm_GBps=1,bf16_TFLOPS=1,generation=kepler", "generation must be one of pascal, "),
    ],
)  # fmt: skip
def test_figures_that_no_gpu_has(text, message):
    for ask in (gpu_preset, Machine.preset):
        with pytest.raises(ValueError, match=message):
            ask(text)


def test_links_and_gpus_that_cannot_be():
    with pytest.raises(ValueError, match=r"kind must be one of nvswitch, .*; got 'string'"):
        Link(kind="string", bandwidth_GBps=1, latency_us=1)
    with pytest.raises(ValueError, match="bandwidth_GBps must be a number above 0; got 0"):
        Link(kind="pix", bandwidth_GBps=0, latency_us=1)
    with pytest.raises(ValueError, match="hbm_GBps of GPU 'toy' must be a finite number above 0; got 0"):
        replace(GPU, hbm_GBps=0)
    with pytest.raises(ValueError, match="kind must be one of gpu, cpu; got 'tpu'"):
        replace(GPU, kind="tpu")


@pytest.mark.parametrize("gpus", [2.5, "4", True])
@pytest.mark.parametrize("name", ["h100", "p5.48xlarge", "memory_GB=24,hbm_GBps=936,bf16_TFLOPS=71"])
def test_a_number_of_gpus_that_is_none_is_named(name, gpus):
    with pytest.raises(ValueError, match="gpus must be a whole number"):
        Machine.preset(name, gpus=gpus)
