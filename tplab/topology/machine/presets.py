"""Links by their kind, and the nodes that GPUs usually sit in.

Latencies of links are those of one empty message between two CUDA kernels. NVLink 2 us, PCIe 3-5, network 6: between
the hardware latencies of NCCL's tuner (src/graph/tuning.cc: 0.6-3.4 NVLink, 1.0-5.7 PCIe, 2.7-14 network, by protocol)
and send-receive tests (6 us between two H100, software included). Infinity Fabric is taken as NVLink [no table]. The
launch of the kernels themselves comes on top, in the latency model.

Nodes are the makers' own (DGX, HGX, the MI300X platform), and for cards the servers and desktops they are sold in.
Instances of clouds are as their own pages list GPUs and network bandwidth (aws.amazon.com/ec2/instance-types,
learn.microsoft.com/azure/virtual-machines/sizes/gpu-accelerated, cloud.google.com/compute/docs/gpus,
docs.oracle.com: GPU shapes; November 2026); "up to" bandwidths count in full.
"""

from collections.abc import Mapping
from dataclasses import replace

from tplab.checks import ArgumentError, check_count
from tplab.topology.machine.gpu_names import find, gpu_of_figures, hint, key_of, known_gpu
from tplab.topology.machine.machine import MOST_GPUS, Gpu, Link, Machine
from tplab.topology.machine.spec_sheets import GPU_ALIASES, GPUS

NVLINK_LATENCY_US = 2.0
PCIE_LATENCY_US = {"pix": 3.0, "pxb": 3.5, "phb": 4.0, "node": 4.5, "sys": 5.0}
HOST_COPY_US = 1.0
"""What a way through host memory adds to the latency between GPUs that do not reach each other over PCIe, in us. All-
reduces of a few bytes: eight RTX 4090 take 42 us (NCCL issue 1530), eight RTX PRO 6000, which do, 25 (AIConfigurator):
1.2 us at each of 14 steps; two RTX 4070 Ti SUPER take no longer (6.2 us, as two RTX PRO 6000)."""
NETWORK_LATENCY_US = 6.0
SOCKETS_LATENCY_US = 30.0
"""The same through the kernel's sockets, which cards of less than 100 Gb/s are taken to mean [no table]: a message
there and back over 10 to 50 Gb/s Ethernet takes some 60 us."""
SYS_SHARE = 0.75
"""Bandwidth between sockets per GPU, as a share of its PCIe slot: a CPU's links to the other socket are of the
generation of its slots. 12, 24 and 47 GB/s for PCIe 3, 4 and 5. Measured: 24 and 49 by rings that cross between bridged
pairs of A100 (4) and H100 NVL (5) (Vidur, commit 7d47513), 39-51 between RTX PRO 6000 (5)
(github.com/voipmonitor/rtx6kpro, hardware/pcie-bandwidth.md). NCCL's topology code counts 10 for Skylake (3), 16 for
AMD (4), 22 and 40 for Sapphire and Emerald Rapids (5) (src/graph/topo.h)."""
NIC_GBPS = 50.0
"""Bandwidth of a 400 Gb/s network card in one direction, in GB/s."""
_SWITCHED = 8
"""Fewest NVLinks of GPUs that NVSwitch joins (A800 and H800)."""


def pcie_link(kind: str, gpu: Gpu) -> Link:
    """Between two GPUs over PCIe, by ``nvidia-smi topo``'s word for the path."""
    bandwidth = gpu.pcie_GBps
    if kind == "sys":
        bandwidth *= SYS_SHARE
    if not gpu.pcie_p2p:  # through host memory: every byte crosses PCIe twice, up and down
        bandwidth /= 2
    latency = PCIE_LATENCY_US[kind] + (0 if gpu.pcie_p2p else HOST_COPY_US)
    return Link(kind=kind, bandwidth_GBps=bandwidth, latency_us=latency, label=kind.upper())


def nvlink(gpu: Gpu, links: int, *, switched: bool = False) -> Link:
    """Between two GPUs over ``links`` NVLinks. Raises ``ValueError`` for a GPU without any."""
    if not gpu.nvlink_GBps:
        raise ValueError(f"{gpu.name} has no NVLink, yet a pair is said to be joined by NV{links}: is it another GPU?")
    kind = "nvswitch" if switched else "nvlink"
    bandwidth = gpu.nvlink_GBps * links
    return Link(kind=kind, bandwidth_GBps=bandwidth, latency_us=NVLINK_LATENCY_US, label=f"NV{links}")


def xgmi(gpu: Gpu) -> Link:
    """Between two of AMD's GPUs, which each pair has for itself."""
    return Link(kind="xgmi", bandwidth_GBps=gpu.xgmi_GBps, latency_us=NVLINK_LATENCY_US, label="XGMI")


def name_of(gpu: Gpu, count: int, nodes: int) -> str:
    """``8 x h100``, or ``2 x 8 x h100`` of two nodes."""
    return f"{nodes} x {count} x {gpu.name}" if nodes > 1 else f"{count} x {gpu.name}"


def network(nics: int, gpus: int, nic_GBps: float = NIC_GBPS) -> Link:
    """What one of ``gpus`` GPUs of a node gets of its ``nics`` cards when all send at once."""
    latency = NETWORK_LATENCY_US if nic_GBps >= 12.5 else SOCKETS_LATENCY_US
    return Link(kind="network", bandwidth_GBps=nics * nic_GBps / gpus, latency_us=latency, label=f"{nics} NICs")


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

_Row = tuple[str, int, int, str, int, float]
_DESKTOP = (2, 8, "one socket", 1, 1.25)
_BRIDGED = (2, 8, "pairs", 1, 1.25)
_CARDS = (4, 8, "two sockets", 1, 12.5)
_SERVER = (8, 8, "two sockets", 2, 50.0)
_HGX = (8, 8, "nvswitch", 8, 50.0)
_FABRIC = (8, 8, "fabric", 8, 50.0)

_MACHINES: Mapping[str, _Row] = {
    # name: GPU, GPUs of a usual node, most in a node, how they are joined, network cards, GB/s of a card
    "dgx-1": ("v100-32gb", 8, 8, "dgx-1", 4, 12.5),
    "dgx-1-16gb": ("v100-16gb", 8, 8, "dgx-1", 4, 12.5),
    "dgx-1-p100": ("p100", 8, 8, "dgx-1", 4, 12.5),
    "dgx-2": ("v100-32gb", 16, 16, "nvswitch", 8, 12.5),
    "a100-40gb": ("a100-40gb", 8, 16, "nvswitch", 8, 25.0),
    "a100": ("a100", 8, 16, "nvswitch", 8, 25.0),
    "a100-pcie": ("a100-pcie", 8, 8, "two sockets", 2, 25.0),
    "a100-pcie-40gb": ("a100-pcie-40gb", 8, 8, "two sockets", 2, 25.0),
    "a100-pairs": ("a100-pcie", 4, 8, "pairs", 2, 25.0),
    "a800": ("a800", 8, 8, "nvswitch", 8, 25.0),
    "a800-pcie": ("a800-pcie", 8, 8, "two sockets", 2, 25.0),
    "a800-pcie-40gb": ("a800-pcie-40gb", 2, 8, "pairs", 1, 12.5),
    "a40-pairs": ("a40", 4, 8, "pairs", 2, 12.5),
    "a6000-pairs": ("rtx-a6000", 4, 8, "pairs", 1, 12.5),
    "h100": ("h100", *_HGX),
    "h100-pcie": ("h100-pcie", *_SERVER),
    "h100-pairs": ("h100-pcie", 4, 8, "pairs", 2, 50.0),
    "h100-nvl": ("h100-nvl", 4, 8, "pairs", 2, 50.0),
    "h800": ("h800", *_HGX),
    "h800-pcie": ("h800-pcie", *_SERVER),
    "h200-nvl": ("h200-nvl", 4, 8, "pairs", 2, 50.0),
    "gh200": ("gh200", 1, 2, "pairs", 1, 50.0),
    "gh200-144gb": ("gh200-144gb", 2, 2, "pairs", 2, 50.0),
    "h20": ("h20", *_HGX),
    "h20-3e": ("h20-3e", *_HGX),
    "h200": ("h200", *_HGX),
    "b200": ("b200", *_HGX),
    "b300": ("b300", 8, 8, "nvswitch", 8, 100.0),
    "gb200": ("gb200", 4, 72, "nvswitch", 4, 50.0),
    "gb300": ("gb300", 4, 72, "nvswitch", 4, 100.0),
    "gb10": ("gb10", 1, 1, "one socket", 1, 25.0),
    "mi300x": ("mi300x", *_FABRIC),
    "mi325x": ("mi325x", *_FABRIC),
    "mi350x": ("mi350x", *_FABRIC),
    "mi355x": ("mi355x", *_FABRIC),
    "t4": ("t4", 4, 8, "two sockets", 1, 6.25),
    "l4": ("l4", 8, 8, "two sockets", 1, 12.5),
    "l20": ("l20", 8, 8, "two sockets", 2, 25.0),
    "l40": ("l40", *_SERVER),
    "l40s": ("l40s", *_SERVER),
    "rtx-pro-6000": ("rtx-pro-6000", *_SERVER),
    **{name: (name, *_CARDS) for name in ("p100-pcie", "p40", "v100-pcie-16gb", "v100-pcie-32gb", "v100s", "a2")},
    **{name: (name, *_CARDS) for name in ("a10", "a10g", "a30", "l2", "rtx-4500-ada", "rtx-5000-ada", "rtx-6000-ada")},
    **{name: (name, *_CARDS) for name in ("rtx-a4000", "rtx-pro-5000", "rtx-pro-6000-max-q")},
    "rtx-pro-6000-workstation": ("rtx-pro-6000-workstation", 2, 4, "one socket", 1, 12.5),
    **{name: (name, *_BRIDGED) for name in ("rtx-2080-ti", "titan-rtx", "quadro-rtx-6000", "quadro-rtx-8000")},
    **{name: (name, *_BRIDGED) for name in ("rtx-a5000", "rtx-3090", "rtx-3090-ti")},
    **{name: (name, *_DESKTOP) for name in ("rtx-3060", "rtx-3080", "rtx-3080-ti", "rtx-4060-ti", "rtx-4070")},
    **{name: (name, *_DESKTOP) for name in ("rtx-4070-ti", "rtx-4070-ti-super", "rtx-4080", "rtx-4080-super")},
    **{name: (name, *_DESKTOP) for name in ("rtx-4090-d", "rtx-4090", "rtx-5060-ti", "rtx-5070", "rtx-5070-ti")},
    **{name: (name, *_DESKTOP) for name in ("rtx-5080", "rtx-5090")},
}
MACHINES = tuple(_MACHINES)
"""Names of usual nodes, for ``Machine.preset``."""

INSTANCES: Mapping[str, tuple[str, int, int, float]] = {
    # name: node, GPUs, network cards, GB/s of a card
    "p3.2xlarge": ("dgx-1-16gb", 1, 1, 1.25),
    "p3.8xlarge": ("dgx-1-16gb", 4, 1, 1.25),
    "p3.16xlarge": ("dgx-1-16gb", 8, 1, 3.125),
    "p3dn.24xlarge": ("dgx-1", 8, 1, 12.5),
    "p4d.24xlarge": ("a100-40gb", 8, 4, 12.5),
    "p4de.24xlarge": ("a100", 8, 4, 12.5),
    "p5.4xlarge": ("h100", 1, 1, 12.5),
    "p5.48xlarge": ("h100", 8, 32, 12.5),
    "p5e.48xlarge": ("h200", 8, 32, 12.5),
    "p5en.48xlarge": ("h200", 8, 16, 25.0),
    "p6-b200.48xlarge": ("b200", 8, 8, 50.0),
    "p6-b300.48xlarge": ("b300", 8, 16, 50.0),
    "p6e-gb200.36xlarge": ("gb200", 4, 4, 50.0),
    "g4dn.12xlarge": ("t4", 4, 1, 6.25),
    "g4dn.metal": ("t4", 8, 1, 12.5),
    "g5.12xlarge": ("a10g", 4, 1, 5.0),
    "g5.24xlarge": ("a10g", 4, 1, 6.25),
    "g5.48xlarge": ("a10g", 8, 1, 12.5),
    "g6.12xlarge": ("l4", 4, 1, 5.0),
    "g6.24xlarge": ("l4", 4, 1, 6.25),
    "g6.48xlarge": ("l4", 8, 1, 12.5),
    "g6e.12xlarge": ("l40s", 4, 1, 12.5),
    "g6e.24xlarge": ("l40s", 4, 1, 25.0),
    "g6e.48xlarge": ("l40s", 8, 1, 50.0),
    **{
        f"{family}.{size}": (node, 1, 1, gbps / 8)
        for family, node, of_each in (
            ("g4dn", "t4", (25, 25, 25, 50, 50)),
            ("g5", "a10g", (10, 10, 25, 25, 25)),
            ("g6", "l4", (10, 10, 25, 25, 25)),
            ("g6e", "l40s", (20, 20, 20, 25, 35)),
        )
        for size, gbps in zip(("xlarge", "2xlarge", "4xlarge", "8xlarge", "16xlarge"), of_each, strict=True)
    },
    "nc64as-t4-v3": ("t4", 4, 1, 4.0),
    "nc24ads-a100-v4": ("a100-pairs", 1, 1, 2.5),
    "nc48ads-a100-v4": ("a100-pairs", 2, 1, 5.0),
    "nc96ads-a100-v4": ("a100-pairs", 4, 1, 10.0),
    "nc40ads-h100-v5": ("h100-nvl", 1, 1, 5.0),
    "nc80adis-h100-v5": ("h100-nvl", 2, 1, 10.0),
    "nd96asr-v4": ("a100-40gb", 8, 8, 25.0),
    "nd96amsr-a100-v4": ("a100", 8, 8, 25.0),
    "nd96isr-h100-v5": ("h100", 8, 8, 50.0),
    "nd96isr-h200-v5": ("h200", 8, 8, 50.0),
    "nd96isr-mi300x-v5": ("mi300x", 8, 8, 50.0),
    "a2-highgpu-1g": ("a100-40gb", 1, 1, 3.0),
    "a2-highgpu-2g": ("a100-40gb", 2, 1, 4.0),
    "a2-highgpu-4g": ("a100-40gb", 4, 1, 6.25),
    "a2-highgpu-8g": ("a100-40gb", 8, 1, 12.5),
    "a2-megagpu-16g": ("a100-40gb", 16, 1, 12.5),
    "a2-ultragpu-8g": ("a100", 8, 1, 12.5),
    "a3-highgpu-8g": ("h100", 8, 4, 25.0),
    "a3-megagpu-8g": ("h100", 8, 8, 25.0),
    "a3-ultragpu-8g": ("h200", 8, 8, 50.0),
    "a4-highgpu-8g": ("b200", 8, 8, 50.0),
    "g2-standard-24": ("l4", 2, 1, 4.0),
    "g2-standard-48": ("l4", 4, 1, 6.25),
    "g2-standard-96": ("l4", 8, 1, 12.5),
    "bm.gpu.h100.8": ("h100", 8, 8, 50.0),
    "bm.gpu.h200.8": ("h200", 8, 8, 50.0),
    "bm.gpu.mi300x.8": ("mi300x", 8, 8, 50.0),
    "gb200-nvl72": ("gb200", 72, 72, 50.0),
    "gb300-nvl72": ("gb300", 72, 72, 100.0),
}
"""Instances of AWS, Azure, Google Cloud and Oracle, and whole racks, for ``Machine.preset``."""

_MACHINE_ALIASES = {
    **GPU_ALIASES, "v100": "dgx-1", "v100-32gb": "dgx-1", "v100-sxm2": "dgx-1", "v100-16gb": "dgx-1-16gb",
    "p100": "dgx-1-p100", "p100-sxm2": "dgx-1-p100", "a40": "a40-pairs", "rtx-a6000": "a6000-pairs",
    "a6000": "a6000-pairs",
}  # fmt: skip
_INSTANCE_ALIASES = {
    "nd-a100-v4": "nd96amsr-a100-v4", "nd-h100-v5": "nd96isr-h100-v5", "nd-h200-v5": "nd96isr-h200-v5",
    "nd-mi300x-v5": "nd96isr-mi300x-v5", "nc-a100-v4": "nc96ads-a100-v4", "nc-h100-v5": "nc80adis-h100-v5",
}  # fmt: skip
_JOINED = {
    "nvswitch": "every pair through NVSwitch",
    "fabric": "every pair by an Infinity Fabric link of its own",
    "dgx-1": "NVLink as in a DGX-1, SYS elsewhere",
    "pairs": "NVLink bridges on GPUs 0-1, 2-3, ...; PCIe elsewhere, half of the GPUs on either socket",
    "two sockets": "PCIe only, half of the GPUs on either socket",
    "one socket": "PCIe only, one socket",
}
_NO_PEERS = (
    "over PCIe, GPUs that cannot reach each other's memory take 2 to 10 times as long for an all-reduce, as one box "
    "with L40S did: calibrate before you choose"
)


def machine_preset(name: "str | Gpu", *, gpus: int | None = None, nodes: int = 1) -> Machine:
    """See :meth:`Machine.preset`."""
    if gpus is not None:
        gpus = check_count("gpus", gpus)  # how many there may be is the node's to say
    if isinstance(name, Gpu) or "=" in name:
        return _own(name if isinstance(name, Gpu) else gpu_of_figures(name), gpus, nodes)
    key = key_of(name).removeprefix("standard-")
    row = find(key, _MACHINES, _MACHINE_ALIASES) or find(key.removeprefix("dgx-").removeprefix("hgx-"), _MACHINES, {})
    instance = find(key, INSTANCES, _INSTANCE_ALIASES) or _largest_of(key)
    if row is None and instance is None and (gpu := known_gpu(name)):
        row = find(gpu, _MACHINES, _MACHINE_ALIASES)
    if row is not None:
        return _node(row, GPUS[_MACHINES[row][0]], _MACHINES[row], gpus, nodes)
    if instance is None:
        if family := _instances_of(key):
            raise ArgumentError("machine", name, f"must be one of its instances: {', '.join(family)}")
        known = [*_MACHINES, *_MACHINE_ALIASES, *INSTANCES]
        raise ValueError(f"no machine preset is called {name!r}: {hint(name, known)}")
    of, count, nics, nic = INSTANCES[instance]
    gpu_name, _, _, joined, _, _ = _MACHINES[of]
    return _node(instance, GPUS[gpu_name], (gpu_name, count, count, joined, nics, nic), gpus, nodes)


def _instances_of(family: str) -> list[str]:
    return [name for name in INSTANCES if name.startswith((f"{family}.", f"{family}-"))]


def _largest_of(family: str) -> str | None:
    """The largest instance of a family (``p5``, ``g6e``), if all of it has the same GPUs."""
    of_it = _instances_of(family)
    nodes = {INSTANCES[name][0] for name in of_it}
    return max(of_it, key=lambda name: INSTANCES[name][1]) if len(nodes) == 1 else None


def _own(gpu: Gpu, gpus: int | None, nodes: int) -> Machine:
    """GPUs without a preset, in a node as their own links allow."""
    joined = "pairs" if gpu.num_nvlinks else "two sockets"
    if gpu.xgmi_GBps or gpu.num_nvlinks >= _SWITCHED:
        joined = "fabric" if gpu.xgmi_GBps else "nvswitch"
    count = 1 if gpus is None else gpus
    made = _node(gpu.name, gpu, (gpu.name, count, MOST_GPUS, joined, 1, NIC_GBPS), count, nodes)
    return replace(made, source="declared", notes=(f"figures as given, {made.notes[0]}", *made.notes[1:]))


def _node(key: str, gpu: Gpu, row: _Row, gpus: int | None, nodes: int) -> Machine:
    _, usual, most, joined, nics, nic = row
    count = usual if gpus is None else gpus
    if not 1 <= count <= most:
        raise ArgumentError("gpus", count, f"must be 1 to {most}, the GPUs of a {key} node: take more nodes for more")
    links = tuple(
        tuple(None if i == j else _joined(joined, gpu, count, i, j) for j in range(count)) for i in range(count)
    )
    return Machine(
        name=name_of(gpu, count, nodes),
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
    if joined == "fabric":
        return xgmi(gpu)
    if joined == "dgx-1":
        links = min(DGX1_NVLINKS[i][j], gpu.num_nvlinks - 3)  # a P100, with four, has one to each neighbour
        return nvlink(gpu, links) if links else pcie_link("sys", gpu)
    if joined == "pairs" and i // 2 == j // 2:
        return nvlink(gpu, gpu.num_nvlinks)
    far = joined != "one socket" and count > 2 and (i < (count + 1) // 2) != (j < (count + 1) // 2)
    return pcie_link("sys" if far else "node", gpu)


def most_per_node(gpu: Gpu) -> int:
    """Most such GPUs in one node; 8 where none is known."""
    row = _MACHINES.get(gpu.name)
    return row[2] if row else _SERVER[1]
