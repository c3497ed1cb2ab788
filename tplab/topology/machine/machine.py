"""GPUs and the links between them.

A machine is one node, copied ``nodes`` times: GPUs of one kind, the link of every pair inside the node, and a network
between nodes. GPUs are numbered over all nodes, node by node. Not a graph of switches and bridges: what layouts need to
know is what a pair of GPUs gets, and that is what ``nvidia-smi topo -m`` prints. What it leaves out: two pairs that
share a wire (a PCIe switch's uplink, the path between sockets) are described as if each had it alone; ``calibrate``
measures whole groups for that reason.

Bandwidths are in one direction, GB/s = 1e9 bytes per second, as specified for the narrowest piece of the path; how much
of it a transfer reaches is the latency model's affair, or a measurement's.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from tplab.checks import ArgumentError, check_count, check_number, check_one_of
from tplab.topology.machine.generations import GENERATIONS, Generation

MOST_GPUS = 4096
"""Most GPUs of a machine, all nodes together: layouts are tried one by one."""
LINK_KINDS = ("nvswitch", "nvlink", "xgmi", "pix", "pxb", "phb", "node", "sys", "network", "host", "emulated")
"""Kinds of links from near to far: NVLink through switches (every GPU reaches every other at full speed) and directly;
AMD's Infinity Fabric, a link of its own for every pair; PCIe with at most one switch, several switches, over the CPU's
host bridge, over several bridges of one NUMA node, between NUMA nodes (``nvidia-smi topo``'s own words); another node;
gloo between processes of one host; a declared link of the lab's."""

GUESSED = "which GPUs these are, the text does not say"
"""Beginning of the note of a machine whose kind of GPUs is a guess."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One accelerator's spec sheet. Dense rates, without sparsity."""

    name: str
    """Name as in ``spec_sheets.GPUS``, or as the driver has it."""
    memory_GB: float
    """Memory that CUDA shows, in GB = 1e9 bytes: of an "80 GB" H100, where ``nvidia-smi`` shows 81559 MiB = 85.5 GB, it
    shows 85.0."""
    hbm_GBps: float
    """Memory bandwidth, in GB/s."""
    bf16_TFLOPS: float
    """Dense peak of bf16 and fp16 GEMMs with fp32 sums, in TFLOP/s. Without tensor cores: of the fastest arithmetic
    that engines use instead."""
    fp8_TFLOPS: float | None = None
    """Dense peak of fp8 GEMMs, in TFLOP/s; None: fp8 weights are widened, and multiplied at the bf16 rate."""
    int8_TOPS: float | None = None
    """Dense peak of int8 GEMMs, in TOP/s; None as for fp8."""
    fp4_TFLOPS: float | None = None
    """Dense peak of fp4 GEMMs, in TFLOP/s; None as for fp8."""
    pcie_GBps: float = 31.5
    """Bandwidth of its PCIe slot in one direction, in GB/s: 15.8 for gen 3 x16, 31.5 for gen 4, 63 for gen 5."""
    pcie_p2p: bool = True
    """Whether two of them exchange data over PCIe directly. GeForce cards do not: they go through host memory."""
    nvlink_GBps: float = 0.0
    """Bandwidth of one NVLink in one direction, in GB/s; 0 without NVLink. 20 for Pascal, 25 for Volta, Ampere and
    Hopper, 50 for Blackwell."""
    num_nvlinks: int = 0
    """Number of NVLinks of one GPU."""
    xgmi_GBps: float = 0.0
    """Bandwidth of the Infinity Fabric link that joins each pair of a node's GPUs, in one direction, in GB/s; 0 without
    (NVIDIA)."""
    num_sms: int | None = None
    """Number of streaming multiprocessors (AMD: compute units); None if unknown."""
    generation: str | None = None
    """Key of ``generations.GENERATIONS``; None if unknown: taken as able to do what the rates above say."""
    kept_share: float = 1.0
    """Part of the peak that large GEMMs keep up, over the part that they keep up on an H100 (0.8), where it was
    measured: cards with little power keep up less. 1 where it was not."""
    shared_memory: bool = False
    """Whether CPU and GPU take from the same memory, so that the system's own share is missing from ``memory_GB``."""
    kind: str = "gpu"
    """``gpu``, or ``cpu`` for one core that plays the part of a GPU."""

    def __post_init__(self) -> None:
        for key in ("memory_GB", "hbm_GBps", "bf16_TFLOPS", "pcie_GBps"):
            check_number(f"{key} of GPU {self.name!r}", getattr(self, key), above=0)
        check_one_of("kind", self.kind, ("gpu", "cpu"))
        check_number(f"kept_share of GPU {self.name!r}", self.kept_share, above=0, most=1.25)
        if self.generation is not None:
            check_one_of("generation", self.generation, tuple(GENERATIONS))

    @property
    def made(self) -> Generation | None:
        """What its generation decides; None if that is unknown."""
        return GENERATIONS[self.generation] if self.generation else None

    @property
    def is_amd(self) -> bool:
        return self.made is not None and self.made.maker == "amd"

    @property
    def memory_bytes(self) -> float:
        return self.memory_GB * 1e9

    def peak_TFLOPS(self, precision: str) -> float:
        """Peak of GEMMs with weights in ``precision``. What the GPU cannot multiply natively runs at the bf16 rate;
        int4 always does (weights are widened on the way in); fp32 runs at half of it where there is TF32."""
        fp32 = self.bf16_TFLOPS * (self.made.fp32 if self.made else 0.5)
        native = {"fp8": self.fp8_TFLOPS, "int8": self.int8_TOPS, "fp4": self.fp4_TFLOPS, "fp32": fp32}
        return self.kept_share * (native.get(precision) or self.bf16_TFLOPS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """What one GPU gets towards another."""

    kind: str
    """One of ``LINK_KINDS``."""
    bandwidth_GBps: float
    """Bandwidth in one direction, in GB/s, as specified for the narrowest piece of the path."""
    latency_us: float
    """Time of an empty message from one CUDA kernel to another, in us."""
    label: str = ""
    """What the source printed for this link, such as ``NV18`` or ``SYS``."""

    def __post_init__(self) -> None:
        check_one_of("kind", self.kind, LINK_KINDS)
        check_number("bandwidth_GBps", self.bandwidth_GBps, above=0, most=math.inf)
        check_number("latency_us", self.latency_us, least=0, most=math.inf)

    @property
    def is_nvlink(self) -> bool:
        return self.kind in ("nvswitch", "nvlink")

    @property
    def is_peer(self) -> bool:
        """Whether it is a fabric of GPUs alone, which engines' own all-reduce kernels ask for."""
        return self.is_nvlink or self.kind == "xgmi"

    def __str__(self) -> str:
        return f"{self.label or self.kind} {self.bandwidth_GBps:g} GB/s"


def slowest(links: Iterable[Link]) -> Link:
    """The one of least bandwidth; the longest latency decides between equals."""
    return min(links, key=lambda link: (link.bandwidth_GBps, -link.latency_us))


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """GPUs of one kind, in one or several equal nodes."""

    name: str
    """What to call it in tables."""
    gpu: Gpu
    gpus_per_node: int
    nodes: int = 1
    links: tuple[tuple[Link | None, ...], ...] = ()
    """Row i, column j: the link of GPUs i and j of a node; None on the diagonal. Symmetric."""
    network: Link | None = None
    """Link between nodes: what one GPU gets when all GPUs of its node send at once. None with one node."""
    nics: tuple[str, ...] = ()
    """Names of a node's network cards, where known."""
    source: str = "preset"
    """Origin of the description: ``preset``, ``nvidia-smi topo``, ``NVML``, ``declared``, ``measured``."""
    notes: tuple[str, ...] = ()
    """Assumptions made on the way here, one sentence each. To be shown with every result."""

    def __post_init__(self) -> None:
        g = check_count("gpus_per_node", self.gpus_per_node, least=1, most=MOST_GPUS)
        check_count("nodes", self.nodes, least=1, most=MOST_GPUS // g)
        if len(self.links) != g or any(len(row) != g for row in self.links):
            shape = [len(row) for row in self.links]
            raise ArgumentError("links", shape, f"must be {g} rows of {g}, one per GPU of a node")
        for i, j in combinations(range(g), 2):
            if self.links[i][j] is None or self.links[i][j] != self.links[j][i]:
                raise ValueError(
                    f"the link of GPUs {i} and {j} must be given and the same both ways, got {self.links[i][j]} and "
                    f"{self.links[j][i]}"
                )
        if self.nodes > 1 and self.network is None:
            raise ArgumentError("network", None, f"must be Link(kind='network', ...) for {self.nodes} nodes")

    @property
    def doubt(self) -> str:
        """The note that its kind of GPUs is a guess; empty if it is none."""
        return next((note for note in self.notes if note.startswith(GUESSED)), "")

    @classmethod
    def preset(cls, name: "str | Gpu", *, gpus: int | None = None, nodes: int = 1) -> "Machine":
        """A usual node of the named GPU (see ``tplab.topology.machine.presets.MACHINES``).

        Args:
            name: such as ``"h100"``, ``"a100-pcie"``, ``"dgx-1"``, ``"g5.48xlarge"``; capitals, blanks and dashes do
                not matter. Or a GPU of one's own, as a ``Gpu`` or in figures
                (``"memory_GB=24,hbm_GBps=936,bf16_TFLOPS=71"``): one of them by default, joined as its NVLinks allow.
            gpus: GPUs per node; by default a usual node's.
            nodes: how many such nodes.

        Raises:
            ValueError: unknown name (with its kin), or more GPUs than such a node has.
        """
        from tplab.topology.machine.presets import machine_preset

        return machine_preset(name, gpus=gpus, nodes=nodes)

    @classmethod
    def detect(cls) -> "Machine":
        """The machine this runs on: its NVIDIA GPUs through NVML, or else its CPU cores with gloo between them."""
        from tplab.topology.machine.detect import detect

        return detect()

    @classmethod
    def from_topo(
        cls, text: str, *, gpu: "Gpu | str | None" = None, nodes: int = 1, network: Link | None = None
    ) -> "Machine":
        """A machine from the text that ``nvidia-smi topo -m`` prints.

        Args:
            text: as pasted, alone or in a report: escape sequences, tabs or blanks, the same prefix before each line,
                lines that a terminal broke, network cards, affinity columns and legend may be in it. What tables of
                ``topo -p2p`` say of direct access is used.
            gpu: which GPUs these are, which the table does not say: a ``Gpu``, a name of ``GPUS`` or figures. By
                default those that the text names beside it (``nvidia-smi``, ``nvidia-smi -L``, vLLM's ``collect_env``,
                SGLang's ``check_env``), else the smallest usual ones with such NVLinks, which a note states.
            nodes: how many such nodes.
            network: between nodes; by default one 400 Gb/s card per listed network card, shared by the node's GPUs.

        Raises:
            ValueError: text without such a table, another tool's, or cut off (with the line); unknown GPU.
        """
        from tplab.topology.machine.topo_machine import machine_from_topo

        return machine_from_topo(text, gpu=gpu, nodes=nodes, network=network)

    @classmethod
    def uniform(
        cls,
        gpu: Gpu,
        gpus: int,
        link: Link,
        *,
        nodes: int = 1,
        network: Link | None = None,
        name: str = "",
        source: str = "declared",
        notes: Sequence[str] = (),
    ) -> "Machine":
        """A node in which every pair has the same link.

        Args:
            gpu, gpus: kind and number of the node's GPUs.
            link: link of every pair.
            nodes: copies of the node.
            network: link between nodes; needed for several.
            name: what to call the machine; by default GPU and number.
            source, notes: as the fields.
        """
        rows = tuple(tuple(None if i == j else link for j in range(gpus)) for i in range(gpus))
        return cls(
            name=name or f"{nodes * gpus} x {gpu.name}",
            gpu=gpu,
            gpus_per_node=gpus,
            nodes=nodes,
            links=rows,
            network=network,
            source=source,
            notes=tuple(notes),
        )

    @property
    def num_gpus(self) -> int:
        """Over all nodes."""
        return self.gpus_per_node * self.nodes

    def room_for(self, group: int) -> int:
        """Number of groups of so many GPUs that the machine holds: none lies over two nodes unless it takes whole
        ones."""
        if group <= self.gpus_per_node:
            return self.nodes * (self.gpus_per_node // group)
        return 0 if group % self.gpus_per_node else self.num_gpus // group

    def node_of(self, gpu: int) -> int:
        """The node that GPU ``gpu`` is in."""
        self._check(gpu)
        return gpu // self.gpus_per_node

    def link(self, i: int, j: int) -> Link:
        """Between GPUs ``i`` and ``j``, numbered over all nodes. Raises ``ValueError`` for a GPU that is not there, or
        with itself."""
        g = self.gpus_per_node
        if i == j or not (0 <= i < g * self.nodes and 0 <= j < g * self.nodes):
            self._check(i)
            self._check(j)
            raise ValueError(f"GPU {i} has no link to itself")
        link = self.links[i % g][j % g] if i // g == j // g else self.network
        assert link is not None, "checked on construction"
        return link

    def slowest_link(self, gpus: Sequence[int]) -> Link | None:
        """The slowest among all pairs of ``gpus``: what an all-reduce of them is held up by. None for one GPU."""
        pairs = list(combinations(gpus, 2))
        return slowest(self.link(i, j) for i, j in pairs) if pairs else None

    def bandwidths(self) -> list[list[float]]:
        """GB/s of every pair over all nodes, 0 on the diagonal: for a heat map."""
        n = self.num_gpus
        return [[0.0 if i == j else self.link(i, j).bandwidth_GBps for j in range(n)] for i in range(n)]

    def _check(self, gpu: int) -> None:
        if not 0 <= gpu < self.num_gpus:
            raise ValueError(f"GPU {gpu} is not there: {self.name} has GPUs 0 to {self.num_gpus - 1}")
