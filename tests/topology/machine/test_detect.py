"""Detection through NVML, against a driver made up for the test, and without any."""

import os
from types import SimpleNamespace

import pytest

from tplab.topology import Machine
from tplab.topology.machine.detect import detect
from tplab.topology.machine.generations import generation_of
from tplab.topology.machine.gpu_names import gpus_called, preset_of
from tplab.topology.machine.presets import DGX1_NVLINKS
from tplab.topology.machine.spec_sheets import GPUS

MIB = 1048576


class Driver:
    """As much of ``pynvml`` as is asked for. A handle is a GPU's number."""

    class NVMLError(Exception):
        pass

    NVML_NVLINK_DEVICE_TYPE_SWITCH = 2
    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    def __init__(self, names, *, mib=81559, nvlinks=None, ancestors=None, hidden=False, switches=0):
        self.names, self.mib, self.hidden, self.switches = names, mib, hidden, switches
        self.nvlinks = nvlinks or [[0] * len(names) for _ in names]
        self.ancestors = ancestors or (lambda i, j: 50)
        self.open = False

    def nvmlInit(self):
        self.open = True

    def nvmlShutdown(self):
        self.open = False

    def nvmlDeviceGetCount(self):
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, i):
        return i

    def nvmlDeviceGetName(self, i):
        return self.names[i]

    def nvmlDeviceGetMemoryInfo(self, i):
        return SimpleNamespace(total=self.mib * MIB)

    def nvmlDeviceGetPciInfo(self, i):
        return SimpleNamespace(domain=0, bus=0x10 + i, device=0, busId=b"00000000:10:00.0")

    def ends(self, i):
        """What is at the other end of each link of GPU i."""
        direct = [j for j, count in enumerate(self.nvlinks[i]) for _ in range(count)]
        return direct + ["switch"] * self.switches

    def nvmlDeviceGetNvLinkState(self, i, link):
        if link >= len(self.ends(i)):
            raise self.NVMLError("Invalid Argument")
        return 1

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, i, link):
        if self.hidden:
            raise self.NVMLError("Not Supported")
        return 2 if self.ends(i)[link] == "switch" else 0

    def nvmlDeviceGetNvLinkRemotePciInfo(self, i, link):
        return self.nvmlDeviceGetPciInfo(self.ends(i)[link])

    def nvmlDeviceGetTopologyCommonAncestor(self, i, j):
        return self.ancestors(i, j)

    def nvmlDeviceGetCudaComputeCapability(self, i):
        return (9, 0)

    def nvmlDeviceGetMemoryBusWidth(self, i):
        return 5120

    def nvmlDeviceGetMaxClockInfo(self, i, clock):
        return {1: 1980, 2: 2619}[clock]

    def nvmlDeviceGetNumGpuCores(self, i):
        return 16896

    def nvmlDeviceGetMaxPcieLinkWidth(self, i):
        return 8

    def nvmlDeviceGetMaxPcieLinkGeneration(self, i):
        return 5


def test_through_switches():
    driver = Driver(["NVIDIA H100 80GB HBM3"] * 8, switches=18)
    machine = detect(driver)
    assert machine.links == Machine.preset("h100").links
    assert machine.gpu == GPUS["h100"]
    assert machine.source == "NVML"
    assert not driver.open


def test_two_of_a_switched_node():
    """Two H100 of a larger node, as a real one answered: 18 links each, all to switches."""
    machine = detect(Driver(["NVIDIA H100 80GB HBM3"] * 2, switches=18))
    assert machine.link(0, 1).bandwidth_GBps == 450
    assert machine.link(0, 1).label == "NV18"


def test_other_ends_hidden():
    """Inside some virtual machines."""
    assert detect(Driver([b"NVIDIA H200"] * 4, mib=143771, switches=18, hidden=True)).link(0, 3).label == "NV18"


def test_dgx1():
    driver = Driver(["Tesla V100-SXM2-32GB"] * 8, mib=32510, nvlinks=DGX1_NVLINKS)
    assert detect(driver).links == Machine.preset("dgx-1").links


def test_pcie():
    levels = {(0, 1): 10, (0, 2): 20, (0, 3): 30, (1, 2): 40, (1, 3): 50, (2, 3): 0}
    driver = Driver(["NVIDIA L40S"] * 4, mib=46068, ancestors=lambda i, j: levels[min(i, j), max(i, j)])
    machine = detect(driver)
    kinds = {pair: machine.link(*pair).kind for pair in levels}
    assert kinds == {(0, 1): "pix", (0, 2): "pxb", (0, 3): "phb", (1, 2): "node", (1, 3): "sys", (2, 3): "pix"}


def test_unknown_gpu_from_its_clocks():
    """With an H100's clocks: its memory bandwidth exactly, its peak rate within a tenth."""
    machine = detect(Driver(["NVIDIA Q500"] * 2, switches=18))
    gpu = machine.gpu
    assert gpu.name == "NVIDIA Q500"
    assert gpu.hbm_GBps == pytest.approx(GPUS["h100"].hbm_GBps, rel=0.001)
    assert gpu.bf16_TFLOPS == pytest.approx(GPUS["h100"].bf16_TFLOPS, rel=0.1)
    assert gpu.num_sms == 132
    assert gpu.pcie_GBps == 31.5
    assert gpu.num_nvlinks == 18
    assert any("no spec sheet here" in note for note in machine.notes)


def test_gpus_of_another_kind_are_left_out():
    machine = detect(Driver(["NVIDIA L4", "NVIDIA L4", "NVIDIA A2"], mib=23034))
    assert machine.num_gpus == 2
    assert any("left out" in note and "NVIDIA A2" in note for note in machine.notes)


@pytest.mark.parametrize(
    ("name", "memory", "preset"),
    [
        ("NVIDIA H100 80GB HBM3", 85.5, "h100"),
        ("NVIDIA H100 PCIe", 85.5, "h100-pcie"),
        ("NVIDIA H100 NVL", 100.5, "h100-nvl"),
        ("NVIDIA A100-SXM4-40GB", 42.9, "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", 85.9, "a100"),
        ("NVIDIA A100 80GB PCIe", 85.9, "a100-pcie"),
        ("Tesla V100-SXM2-16GB", 16.9, "v100-16gb"),
        ("NVIDIA B200", 192.0, "b200"),
        ("NVIDIA L4", 24.0, "l4"),
        ("NVIDIA L40S", 48.3, "l40s"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 102.6, "rtx-pro-6000"),
        ("NVIDIA RTX A6000", 51.5, "rtx-a6000"),
        ("NVIDIA RTX 6000 Ada Generation", 51.5, "rtx-6000-ada"),
        ("NVIDIA GeForce RTX 4090", 25.7, "rtx-4090"),
        ("Tesla V100-PCIE-32GB", 34.1, "v100-pcie-32gb"),  # no NVLink: the sheet of the SXM module would promise one
        ("Tesla V100S-PCIE-32GB", 34.1, "v100s"),
        ("Tesla P100-SXM2-16GB", 17.1, "p100"),
        ("Tesla P100-PCIE-16GB", 17.1, "p100-pcie"),
        ("Tesla P40", 24.0, "p40"),
        ("Tesla T4", 15.8, "t4"),
        ("NVIDIA T4G", 15.8, None),
        ("NVIDIA A10G", 24.1, "a10g"),
        ("NVIDIA A10", 24.1, "a10"),
        ("NVIDIA A2", 16.1, "a2"),
        ("NVIDIA A800-SXM4-80GB", 85.9, "a800"),
        ("NVIDIA A800 80GB PCIe", 85.9, "a800-pcie"),
        ("NVIDIA A100-PCIE-40GB", 42.9, "a100-pcie-40gb"),
        ("NVIDIA L20", 48.3, "l20"),
        ("NVIDIA L2", 24.1, "l2"),
        ("NVIDIA H800", 85.5, "h800"),
        ("NVIDIA H800 PCIe", 85.5, "h800-pcie"),
        ("NVIDIA H20", 102.6, "h20"),
        ("NVIDIA H20-3e", 150.8, "h20-3e"),
        ("NVIDIA H200 NVL", 150.8, "h200-nvl"),
        ("NVIDIA GH200 480GB", 102.6, "gh200"),
        ("NVIDIA GH200 144G HBM3e", 154.0, "gh200-144gb"),
        ("NVIDIA B300 SXM6 AC", 288.4, "b300"),
        ("NVIDIA GB300", 298.0, "gb300"),
        ("NVIDIA GB10", 128.5, "gb10"),
        ("NVIDIA TITAN RTX", 25.8, "titan-rtx"),
        ("Quadro RTX 8000", 51.5, "quadro-rtx-8000"),
        ("NVIDIA GeForce RTX 2080 Ti", 11.8, "rtx-2080-ti"),
        ("NVIDIA GeForce RTX 2080 Ti", 23.6, None),  # a modified card of 22 GB
        ("NVIDIA GeForce RTX 3080 Ti Laptop GPU", 17.2, None),
        ("NVIDIA GeForce RTX 4080 SUPER", 17.2, "rtx-4080-super"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 17.2, "rtx-4070-ti-super"),
        ("NVIDIA GeForce RTX 4070 SUPER", 12.9, None),
        ("NVIDIA GeForce RTX 4090 D", 25.7, "rtx-4090-d"),
        ("NVIDIA RTX 5000 Ada Generation", 34.4, "rtx-5000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 102.6, "rtx-pro-6000-workstation"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 102.6, "rtx-pro-6000-max-q"),
        ("AMD Instinct MI300X", 206.1, "mi300x"),
        ("AMD Instinct MI355X", 309.2, "mi355x"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 10.2, None),
        ("NVIDIA H100 64GB HBM2", 68.7, None),  # the sheet of the 80 GB card would promise it 17 GB
        ("NVIDIA H100 HBM3", 94.0, "h100"),  # a tenth less or more is what drivers and firmware take
        ("NVIDIA H100 HBM3", 96.0, None),
    ],
)
def test_names_of_the_driver(name, memory, preset):
    found = preset_of(name, memory)
    assert (found and found.name) == preset


def test_without_a_gpu():
    class Missing(Driver):
        def nvmlInit(self):
            raise self.NVMLError("Driver Not Loaded")

    machine = detect(Missing([]))
    assert machine.gpu.kind == "cpu"
    assert machine.num_gpus == len(os.sched_getaffinity(0))
    assert "no NVIDIA driver answers (Driver Not Loaded)" in machine.notes[0]
    assert all(link is None or link.kind == "host" for row in machine.links for link in row)
    assert "lists no GPU" in detect(Driver([])).notes[0]


def test_an_amd_gpu_is_not_passed_over_in_silence(tmp_path, monkeypatch):
    monkeypatch.setattr("tplab.topology.machine.detect.AMD_DEVICE", str(tmp_path / "kfd"))
    assert len(detect(Driver([])).notes) == 1
    (tmp_path / "kfd").touch()
    assert "only NVIDIA's are detected: name the machine, as in mi300x" in detect(Driver([])).notes[1]


def test_memory_that_the_driver_does_not_tell(monkeypatch):
    """GB10: NVML answers "Not Supported" for memory that is the CPU's as well."""

    class Unified(Driver):
        def nvmlDeviceGetMemoryInfo(self, i):
            raise self.NVMLError("Not Supported")

        def nvmlDeviceGetCudaComputeCapability(self, i):
            return (12, 1)

    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 500, "SC_PHYS_PAGES": 257_000_000}.__getitem__)
    known, unknown = (detect(Unified([name])) for name in ("NVIDIA GB10", "NVIDIA GB99"))
    assert known.gpu == GPUS["gb10"]
    assert unknown.gpu.memory_GB == 128.5
    assert unknown.gpu.shared_memory
    assert all("what memory" in "".join(machine.notes) for machine in (known, unknown))


@pytest.mark.parametrize(
    ("name", "capability", "rates"),
    [  # with 132 multiprocessors of 1.98 GHz
        ("NVIDIA Q500", (9, 0), (1071, 2141, 2141, None)),
        ("GeForce Q500", (8, 9), (134, 268, 535, None)),
        ("NVIDIA Q500", (8, 9), (268, 535, 535, None)),
        ("NVIDIA Q500", (7, 5), (535, None, 1071, None)),  # 64 cores in a multiprocessor: twice as many of those
        ("NVIDIA Q500", (12, 0), (268, 535, 535, 1071)),
        ("NVIDIA Q500", (6, 1), (67, None, None, None)),
        ("NVIDIA Q500", (5, 2), (268, None, None, None)),
    ],
)
def test_rates_of_an_unknown_gpu_by_its_generation(name, capability, rates):
    class Card(Driver):
        def nvmlDeviceGetCudaComputeCapability(self, i):
            return capability

    gpu = detect(Card([name])).gpu
    found = (gpu.bf16_TFLOPS, gpu.fp8_TFLOPS, gpu.int8_TOPS, gpu.fp4_TFLOPS)
    assert found == tuple(rate and pytest.approx(rate, rel=0.002) for rate in rates)
    assert gpu.generation == generation_of(*capability)


@pytest.mark.parametrize("size", ["0GB", "00 GB", "9" * 5000 + "GB"])
def test_a_name_with_a_size_that_no_memory_has_says_nothing_of_it(size):
    assert gpus_called(f"NVIDIA H100 {size} HBM3") == gpus_called("NVIDIA H100 HBM3")
