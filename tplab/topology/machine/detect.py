"""The machine at hand: NVIDIA GPUs through NVML, or else CPU cores with gloo between them.

NVML rather than the text of ``nvidia-smi``: it is the same information without a format that changes with the driver,
and it tells NVLink switches from bridges. Speeds are not measured here (``calibrate`` does that): they come from the
spec sheet of the GPU's name, or for an unknown GPU from its clocks.
"""

import os
from collections import Counter
from importlib import import_module
from typing import Any

from tplab.cluster.backends import num_cores
from tplab.cluster.cgroups import memory_limits
from tplab.topology.machine.generations import GENERATIONS, generation_of
from tplab.topology.machine.gpu_names import preset_of
from tplab.topology.machine.machine import Gpu, Link, Machine
from tplab.topology.machine.spec_sheets import cuda_GB
from tplab.topology.machine.topo_machine import machine_from_table
from tplab.topology.machine.topo_text import TopoTable

_ANCESTOR = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
"""NVML's topology levels in ``nvidia-smi``'s words (nvml.h: nvmlGpuTopologyLevel_t)."""
_MOST_NVLINKS = 18
_TENSOR_FLOPS = {(6, 0): 256, (6, 1): 256, (8, 0): 2048, (9, 0): 4096, (10, 0): 8192, (10, 3): 8192}
"""Dense fp16 operations of one SM in one cycle with fp32 sums, by compute capability: the architecture white papers.
Without tensor cores: of plain fp16 (6.0) or fp32 (6.1). All others: 1024, and half of that on GeForce."""
_PCIE_GBPS = {1: 4.0, 2: 8.0, 3: 15.8, 4: 31.5, 5: 63.0, 6: 121.0}
"""PCIe generation -> bandwidth of 16 lanes in one direction, in GB/s."""

AMD_DEVICE = "/dev/kfd"
"""What AMD's kernel driver makes."""
CPU_CORE_GBPS = 8.0
CPU_CORE_TFLOPS = 0.05
GLOO_GBPS = 2.0
GLOO_LATENCY_US = 60.0
"""Orders of magnitude: memory bandwidth and arithmetic of one core, bandwidth and latency of gloo over loopback. They
hold until ``calibrate`` measures them."""


def detect(nvml: Any = None) -> Machine:
    """The machine this runs on.

    Args:
        nvml: stands for the module ``pynvml``; the real one by default.
    """
    if nvml is None:
        try:
            nvml = import_module("pynvml")
        except ImportError:
            return _cpu("pynvml is not installed")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return _cpu(f"no NVIDIA driver answers ({error})")
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return _gpus(nvml, handles) if handles else _cpu("the NVIDIA driver lists no GPU")
    finally:
        nvml.nvmlShutdown()


def _gpus(nvml: Any, handles: list[Any]) -> Machine:
    names = [_text(nvml.nvmlDeviceGetName(handle)) for handle in handles]
    kind, _ = Counter(names).most_common(1)[0]
    others = sorted(set(names) - {kind})
    handles = [handle for handle, name in zip(handles, names, strict=True) if name == kind]
    gpu, notes = _gpu(nvml, handles[0], kind)
    if others:
        notes.append(f"left out, since layouts are for GPUs of one kind: {', '.join(others)}")
    table = _table(nvml, handles)
    machine = machine_from_table(table, [gpu], source="NVML")
    return Machine(
        name=machine.name,
        gpu=gpu,
        gpus_per_node=machine.gpus_per_node,
        links=machine.links,
        source="NVML",
        notes=(*machine.notes, *notes),
    )


def _gpu(nvml: Any, handle: Any, name: str) -> tuple[Gpu, list[str]]:
    notes = []
    try:
        memory_GB = cuda_GB(nvml.nvmlDeviceGetMemoryInfo(handle).total / 1e9)
    except nvml.NVMLError:  # GB10, whose memory is the CPU's too
        memory_GB = _memory_GB()
        notes.append(f"the driver does not say what memory {name} has: taken as all of this system's")
    known = preset_of(name, memory_GB)
    if known is not None:
        return known, [f"{name}: speeds from the spec sheet of {known.name}", *notes]
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    bus_bits = nvml.nvmlDeviceGetMemoryBusWidth(handle)
    memory_MHz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)
    sm_MHz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)
    cores_per_sm = 64 if (major, minor) in ((6, 0), (7, 0), (7, 5), (8, 0)) else 128
    num_sms = nvml.nvmlDeviceGetNumGpuCores(handle) // cores_per_sm
    geforce, generation = "geforce" in name.lower(), generation_of(major, minor)
    rate = num_sms * _TENSOR_FLOPS.get((major, minor), 512 if geforce else 1024) * sm_MHz / 1e6
    made = GENERATIONS[generation] if generation else None
    lanes = nvml.nvmlDeviceGetMaxPcieLinkWidth(handle)
    pcie = nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle)
    gpu = Gpu(
        name=name,
        memory_GB=round(memory_GB, 2),
        hbm_GBps=2 * memory_MHz * bus_bits / 8e3,
        bf16_TFLOPS=rate,
        fp8_TFLOPS=made.fp8 * rate if made and made.fp8 else None,
        int8_TOPS=made.int8 * rate * (2 if geforce else 1) if made and made.int8 else None,
        fp4_TFLOPS=made.fp4 * rate * (2 if geforce else 1) if made and made.fp4 else None,
        pcie_GBps=_PCIE_GBPS.get(pcie, 31.5) * lanes / 16,
        pcie_p2p=not geforce,
        nvlink_GBps={6: 20.0, 10: 50.0}.get(major, 25.0) if _active_nvlinks(nvml, handle) else 0.0,
        num_nvlinks=len(_active_nvlinks(nvml, handle)),
        num_sms=num_sms,
        generation=generation,
        shared_memory=bool(notes),
    )
    return gpu, [
        *notes,
        f"{name} has no spec sheet here: memory bandwidth and peak rate follow from its clocks (compute capability "
        f"{major}.{minor}), and want measuring",
    ]


def _table(nvml: Any, handles: list[Any]) -> TopoTable:
    """The link of every pair, as the table of ``nvidia-smi topo -m`` has it."""
    buses = [_bus(nvml.nvmlDeviceGetPciInfo(handle)) for handle in handles]
    nvlinks = [_peers(nvml, handle) for handle in handles]
    rows = []
    for i, handle in enumerate(handles):
        row = []
        for j, other in enumerate(handles):
            if i == j:
                row.append("X")
                continue
            through_switch = min(nvlinks[i]["switch"], nvlinks[j]["switch"])
            count = nvlinks[i][buses[j]] or through_switch
            row.append(f"NV{count}" if count else _ANCESTOR[nvml.nvmlDeviceGetTopologyCommonAncestor(handle, other)])
        rows.append(tuple(row))
    return TopoTable(
        gpus=tuple(f"GPU{i}" for i in range(len(handles))),
        nics=(),
        cells=tuple(rows),
        nic_cells=tuple(() for _ in handles),
        numa=tuple(None for _ in handles),
    )


def _active_nvlinks(nvml: Any, handle: Any) -> list[int]:
    links = []
    for link in range(_MOST_NVLINKS):
        try:
            if nvml.nvmlDeviceGetNvLinkState(handle, link):
                links.append(link)
        except nvml.NVMLError:  # fewer links than that, or none at all
            continue
    return links


def _peers(nvml: Any, handle: Any) -> Counter[str]:
    """NVLinks by the bus address of what is at their other end; ``switch`` for all that end in switches."""
    peers: Counter[str] = Counter()
    for link in _active_nvlinks(nvml, handle):
        try:
            switch = nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link) == nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH
            peers["switch" if switch else _bus(nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link))] += 1
        except nvml.NVMLError:  # inside some virtual machines the other end is hidden: switches are what is hidden
            peers["switch"] += 1
    return peers


def _bus(info: Any) -> str:
    """Domain, bus and device. Not ``busId``, whose domain has 4 or 8 digits."""
    return f"{info.domain:x}:{info.bus:x}:{info.device:x}"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _memory_GB() -> float:
    """Of this system. Not from psutil, which only ranks need."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _cpu(why: str) -> Machine:
    """Every core a GPU, gloo the link of every pair."""
    unseen = f"an AMD GPU seems to be here ({AMD_DEVICE}); only NVIDIA's are detected: name the machine, as in mi300x"
    cores = num_cores()
    memory_GB = min([_memory_GB(), *(limit.num_bytes / 1e9 for limit in memory_limits())]) / cores
    gpu = Gpu(
        name="cpu core",
        memory_GB=round(memory_GB, 2),
        hbm_GBps=CPU_CORE_GBPS,
        bf16_TFLOPS=CPU_CORE_TFLOPS,
        kind="cpu",
    )
    return Machine.uniform(
        gpu,
        cores,
        Link(kind="host", bandwidth_GBps=GLOO_GBPS, latency_us=GLOO_LATENCY_US, label="gloo"),
        name=f"{cores} CPU cores",
        source="CPU",
        notes=(
            f"{why}: CPU cores stand for GPUs, with gloo between them; speeds are assumed until you calibrate",
            *((unseen,) if os.path.exists(AMD_DEVICE) else ()),
        ),
    )
