"""Spec sheets: GPUs, and the nodes they usually sit in.

GPU figures are the makers' dense rates (without sparsity) and bandwidths in one direction. Sources: NVIDIA's data
sheets and architecture white papers of V100, A100, A30, A10, A40, RTX A6000, H100, H20, H200, B200, L4, L40S, RTX 6000
Ada, RTX PRO 6000 Blackwell, GeForce RTX 3090, 4090 and 5090; those of A100, A30, H100, H200, B200, GB200, L4, L40S and
RTX PRO 6000 checked against the system files of NVIDIA AIConfigurator (github.com/ai-dynamo/aiconfigurator, commit
095f58a, Apache-2.0), whose memory bandwidth is used for B200 (7700 GB/s, not the spec sheet's 8000). GeForce rates are
those with fp32 sums. Memory is what the driver shows, which is less than the name says.

Latencies of links are those of one empty message between two CUDA kernels. NVLink 2 us, PCIe 3-5, network 6: between
the hardware latencies of NCCL's tuner (src/graph/tuning.cc: 0.6-3.4 NVLink, 1.0-5.7 PCIe, 2.7-14 network, by protocol)
and send-receive tests (6 us between two H100, software included). The launch of the kernels themselves comes on top, in
the latency model.
"""

from collections.abc import Mapping
from typing import Any

from tplab.checks import ArgumentError
from tplab.shown import nearest
from tplab.topology.machine.machine import Gpu, Link, Machine

_MIB = 1048576 / 1e9  # GB per MiB


def _gpu(name: str, mib: int, hbm: float, bf16: float, **more: Any) -> Gpu:
    return Gpu(name=name, memory_GB=round(mib * _MIB, 2), hbm_GBps=hbm, bf16_TFLOPS=bf16, **more)


_HOPPER: dict[str, Any] = {"pcie_GBps": 63.0, "nvlink_GBps": 25.0, "num_nvlinks": 18, "num_sms": 132}
_BRIDGED: dict[str, Any] = {"num_nvlinks": 12}  # three bridges to one other card
_GDDR7: dict[str, Any] = {"pcie_GBps": 63.0, "num_sms": 188}
_GEFORCE: dict[str, Any] = {"pcie_p2p": False, "num_sms": 170}
_BLACKWELL: dict[str, Any] = {"pcie_GBps": 63.0, "nvlink_GBps": 50.0, "num_nvlinks": 18, "num_sms": 148}
_AMPERE: dict[str, Any] = {"nvlink_GBps": 25.0, "num_nvlinks": 12, "num_sms": 108, "int8_TOPS": 624.0}
_VOLTA: dict[str, Any] = {"pcie_GBps": 15.8, "nvlink_GBps": 25.0, "num_nvlinks": 6, "num_sms": 80}

GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _gpu("v100-16gb", 16160, 900, 125, **_VOLTA),
        _gpu("v100-32gb", 32510, 900, 125, **_VOLTA),
        _gpu("a100-40gb", 40960, 1555, 312, **_AMPERE),
        _gpu("a100", 81920, 2039, 312, **_AMPERE),
        _gpu("a100-pcie", 81920, 1935, 312, **_AMPERE),
        _gpu("a30", 24576, 933, 165, int8_TOPS=330, nvlink_GBps=25, num_nvlinks=4, num_sms=56),
        _gpu("a10", 23028, 600, 125, int8_TOPS=250, num_sms=72),
        _gpu("a40", 46068, 696, 149.7, int8_TOPS=299.3, nvlink_GBps=14.0625, num_nvlinks=4, num_sms=84),
        _gpu("rtx-a6000", 49140, 768, 154.8, int8_TOPS=309.7, nvlink_GBps=14.0625, num_nvlinks=4, num_sms=84),
        _gpu("h100", 81559, 3352, 989, fp8_TFLOPS=1979, int8_TOPS=1979, **_HOPPER),
        _gpu("h100-pcie", 81559, 2039, 756, fp8_TFLOPS=1513, int8_TOPS=1513, **_HOPPER | _BRIDGED | {"num_sms": 114}),
        _gpu("h100-nvl", 95830, 3938, 835, fp8_TFLOPS=1671, int8_TOPS=1671, **_HOPPER | _BRIDGED),
        _gpu("h20", 97871, 4000, 148, fp8_TFLOPS=296, int8_TOPS=296, **_HOPPER | {"num_sms": 78}),
        _gpu("h200", 143771, 4800, 989, fp8_TFLOPS=1979, int8_TOPS=1979, **_HOPPER),
        _gpu("b200", 183359, 7700, 2250, fp8_TFLOPS=4500, int8_TOPS=4500, fp4_TFLOPS=9000, **_BLACKWELL),
        _gpu("gb200", 189471, 8000, 2500, fp8_TFLOPS=5000, int8_TOPS=5000, fp4_TFLOPS=10000, **_BLACKWELL),
        _gpu("l4", 23034, 300, 121, fp8_TFLOPS=242, int8_TOPS=242, num_sms=58),
        _gpu("l40s", 46068, 864, 362, fp8_TFLOPS=733, int8_TOPS=733, num_sms=142),
        _gpu("rtx-6000-ada", 49140, 960, 364.2, fp8_TFLOPS=728.5, int8_TOPS=728.5, num_sms=142),
        _gpu("rtx-pro-6000", 97887, 1792, 468, fp8_TFLOPS=936, int8_TOPS=936, fp4_TFLOPS=1871, **_GDDR7),
        _gpu("rtx-3090", 24576, 936, 71, int8_TOPS=284, pcie_p2p=False, nvlink_GBps=14.0625, num_nvlinks=4, num_sms=82),
        _gpu("rtx-4090", 24564, 1008, 165.2, fp8_TFLOPS=330.3, int8_TOPS=660.6, pcie_p2p=False, num_sms=128),
        _gpu("rtx-5090", 32607, 1792, 209.5, fp8_TFLOPS=419, int8_TOPS=838, fp4_TFLOPS=1676, **_GDDR7 | _GEFORCE),
    )
}
"""Name -> GPU."""

_GPU_ALIASES = {
    "a100-80gb": "a100", "a100-sxm": "a100", "a100-sxm4-80gb": "a100", "a100-sxm4-40gb": "a100-40gb",
    "a100-80gb-pcie": "a100-pcie", "h100-sxm": "h100", "h100-80gb": "h100", "h100-80gb-hbm3": "h100",
    "h200-sxm": "h200", "b200-sxm": "b200", "v100": "v100-32gb", "4090": "rtx-4090", "3090": "rtx-3090",
    "5090": "rtx-5090", "a6000": "rtx-a6000",
}  # fmt: skip

NVLINK_LATENCY_US = 2.0
PCIE_LATENCY_US = {"pix": 3.0, "pxb": 3.5, "phb": 4.0, "node": 4.5, "sys": 5.0}
NETWORK_LATENCY_US = 6.0
SYS_GBPS = 20.0
"""Bandwidth between sockets per GPU, in GB/s: what UPI or Infinity Fabric leaves of a PCIe slot. NCCL's topology code
counts 16-40 GB/s, by CPU, for all that crosses (src/graph/topo.h: its constants for QPI, UPI and AMD)."""
NIC_GBPS = 50.0
"""Bandwidth of a 400 Gb/s network card in one direction, in GB/s."""


def gpu_preset(name: "str | Gpu") -> Gpu:
    """The GPU of that name. Raises ``ValueError`` with the nearest names for one that is not known."""
    if isinstance(name, Gpu):
        return name
    key = _key(name).removeprefix("nvidia-").removeprefix("geforce-").removeprefix("tesla-")
    key = _GPU_ALIASES.get(key, key)
    if key not in GPUS:
        raise ValueError(f"no GPU preset is called {name!r}: {nearest(key, [*GPUS, *_GPU_ALIASES])}")
    return GPUS[key]


def pcie_link(kind: str, gpu: Gpu) -> Link:
    """Between two GPUs over PCIe, by ``nvidia-smi topo``'s word for the path."""
    bandwidth = gpu.pcie_GBps
    if kind == "sys":
        bandwidth = min(bandwidth, SYS_GBPS)
    if not gpu.pcie_p2p:  # through host memory: every byte crosses PCIe twice, up and down
        bandwidth /= 2
    latency = PCIE_LATENCY_US[kind] * (1 if gpu.pcie_p2p else 2)
    return Link(kind=kind, bandwidth_GBps=bandwidth, latency_us=latency, label=kind.upper())


def nvlink(gpu: Gpu, links: int, *, switched: bool = False) -> Link:
    """Between two GPUs over ``links`` NVLinks. Raises ``ValueError`` for a GPU without any."""
    if not gpu.nvlink_GBps:
        raise ValueError(f"{gpu.name} has no NVLink, yet a pair is said to be joined by NV{links}: is it another GPU?")
    kind = "nvswitch" if switched else "nvlink"
    bandwidth = gpu.nvlink_GBps * links
    return Link(kind=kind, bandwidth_GBps=bandwidth, latency_us=NVLINK_LATENCY_US, label=f"NV{links}")


def network(nics: int, gpus: int, nic_GBps: float = NIC_GBPS) -> Link:
    """What one of ``gpus`` GPUs of a node gets of its ``nics`` cards when all send at once."""
    return Link(
        kind="network", bandwidth_GBps=nics * nic_GBps / gpus, latency_us=NETWORK_LATENCY_US, label=f"{nics} NICs"
    )


DGX1_NVLINKS = (
    (0, 1, 1, 2, 2, 0, 0, 0),
    (1, 0, 2, 1, 0, 2, 0, 0),
    (1, 2, 0, 2, 0, 0, 1, 0),
    (2, 1, 2, 0, 0, 0, 0, 1),
    (2, 0, 0, 0, 0, 1, 1, 2),
    (0, 2, 0, 0, 1, 0, 2, 1),
    (0, 0, 1, 0, 1, 2, 0, 2),
    (0, 0, 0, 1, 2, 1, 2, 0),
)
"""NVLinks of each pair in a DGX-1 with V100 (its system architecture white paper; p3.16xlarge is wired the same): six
per GPU, none for the pairs that are two hops apart."""

_MACHINES: Mapping[str, tuple[str, int, int, str, int, float]] = {
    # name: GPU, GPUs of a usual node, most in a node, how they are joined, network cards, GB/s of a card
    "dgx-1": ("v100-32gb", 8, 8, "dgx-1", 4, 12.5),
    "a100-40gb": ("a100-40gb", 8, 16, "nvswitch", 8, 25.0),
    "a100": ("a100", 8, 16, "nvswitch", 8, 25.0),
    "a100-pcie": ("a100-pcie", 8, 8, "two sockets", 2, 25.0),
    "a100-pairs": ("a100-pcie", 4, 8, "pairs", 2, 25.0),
    "a40-pairs": ("a40", 4, 8, "pairs", 2, 12.5),
    "a6000-pairs": ("rtx-a6000", 4, 8, "pairs", 1, 12.5),
    "a10": ("a10", 4, 8, "two sockets", 1, 12.5),
    "h100": ("h100", 8, 8, "nvswitch", 8, 50.0),
    "h100-pcie": ("h100-pcie", 8, 8, "two sockets", 2, 50.0),
    "h100-pairs": ("h100-pcie", 4, 8, "pairs", 2, 50.0),
    "h100-nvl": ("h100-nvl", 4, 8, "pairs", 2, 50.0),
    "h20": ("h20", 8, 8, "nvswitch", 8, 50.0),
    "h200": ("h200", 8, 8, "nvswitch", 8, 50.0),
    "b200": ("b200", 8, 8, "nvswitch", 8, 50.0),
    "gb200": ("gb200", 4, 72, "nvswitch", 4, 50.0),
    "l4": ("l4", 8, 8, "two sockets", 1, 12.5),
    "l40s": ("l40s", 8, 8, "two sockets", 2, 50.0),
    "rtx-6000-ada": ("rtx-6000-ada", 4, 8, "two sockets", 1, 12.5),
    "rtx-pro-6000": ("rtx-pro-6000", 8, 8, "two sockets", 2, 50.0),
    "rtx-3090": ("rtx-3090", 2, 8, "pairs", 1, 1.25),
    "rtx-4090": ("rtx-4090", 2, 8, "one socket", 1, 1.25),
    "rtx-5090": ("rtx-5090", 2, 8, "one socket", 1, 1.25),
}
MACHINES = tuple(_MACHINES)
"""Names for ``Machine.preset``."""

_MACHINE_ALIASES = {**_GPU_ALIASES, "v100": "dgx-1", "v100-32gb": "dgx-1", "dgx-a100": "a100", "dgx-h100": "h100"}
_JOINED = {
    "nvswitch": "every pair through NVSwitch",
    "dgx-1": "NVLink as in a DGX-1, SYS elsewhere",
    "pairs": "NVLink bridges on GPUs 0-1, 2-3, ...; PCIe elsewhere, half of the GPUs on either socket",
    "two sockets": "PCIe only, half of the GPUs on either socket",
    "one socket": "PCIe only, one socket",
}
_NO_PEERS = (
    "over PCIe, GPUs that cannot reach each other's memory take 2 to 10 times as long for an all-reduce, as one box "
    "with L40S did: calibrate before you choose"
)


def machine_preset(name: str, *, gpus: int | None = None, nodes: int = 1) -> Machine:
    """See :meth:`Machine.preset`."""
    key = _key(name)
    key = _MACHINE_ALIASES.get(key, key)
    if key not in _MACHINES:
        raise ValueError(f"no machine preset is called {name!r}: {nearest(key, [*_MACHINES, *_MACHINE_ALIASES])}")
    gpu_name, usual, most, joined, nics, nic = _MACHINES[key]
    count = usual if gpus is None else gpus
    if not 1 <= count <= most:
        raise ArgumentError("gpus", count, f"must be 1 to {most}, the GPUs of a {key} node: take more nodes for more")
    gpu = GPUS[gpu_name]
    links = tuple(
        tuple(None if i == j else _joined(joined, gpu, count, i, j) for j in range(count)) for i in range(count)
    )
    return Machine(
        name=f"{nodes} x {count} x {gpu.name}" if nodes > 1 else f"{count} x {gpu.name}",
        gpu=gpu,
        gpus_per_node=count,
        nodes=nodes,
        links=links,
        network=network(nics, usual, nic) if nodes > 1 else None,
        nics=tuple(f"NIC{i}" for i in range(nics)),
        notes=(
            f"preset: {_JOINED[joined]}; {nics} network card{'s' * (nics > 1)} of {nic * 8:g} Gb/s a node; spec sheet",
            *((_NO_PEERS,) if count > 1 and "socket" in joined else ()),
        ),
    )


def _joined(joined: str, gpu: Gpu, count: int, i: int, j: int) -> Link:
    if joined == "nvswitch":
        return nvlink(gpu, gpu.num_nvlinks, switched=True)
    if joined == "dgx-1":
        links = DGX1_NVLINKS[i][j]
        return nvlink(gpu, links) if links else pcie_link("sys", gpu)
    if joined == "pairs" and i // 2 == j // 2:
        return nvlink(gpu, gpu.num_nvlinks)
    far = joined != "one socket" and count > 2 and (i < (count + 1) // 2) != (j < (count + 1) // 2)
    return pcie_link("sys" if far else "node", gpu)


def _key(name: str) -> str:
    return "-".join(name.strip().lower().replace("_", "-").split())
