"""Which backend the ranks speak, which device each one gets, and the environment it needs.

Decided in the kernel before any rank starts, so that a wrong argument is an error at once. GPUs are counted through
NVML: the kernel never pays for importing torch.
"""

import math
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path
from typing import Any

from tplab.checks import ArgumentError, check_one_of
from tplab.cluster.cgroups import cores_limit
from tplab.moved import say_new_names

BACKENDS = ("auto", "gloo", "nccl")
LOOPBACK = "127.0.0.1"
_READ_AND_WRITE = (0, 1)  # NVML_P2P_CAPS_INDEX_READ and _WRITE of nvml.h; nvidia-ml-py 13 has a tuple for the first
LOOPBACK_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"


@dataclass(frozen=True, kw_only=True, slots=True)
class RankDevices:
    """The backend and the device of every rank."""

    backend: str
    """``gloo`` or ``nccl``."""
    devices: tuple[str, ...]
    """One torch device string per rank, in rank order."""
    hosts: tuple[str, ...] = ()
    """Name of each rank's host; empty where all are on this machine."""

    @property
    def num_ranks(self) -> int:
        return len(self.devices)

    @property
    def num_devices(self) -> int:
        return len(set(self.devices)) if not self.hosts else len({*zip(self.hosts, self.devices, strict=True)})

    @property
    def num_hosts(self) -> int:
        return len(set(self.hosts)) or 1

    @property
    def shares_gpus(self) -> bool:
        return self.backend == "nccl" and self.num_devices < self.num_ranks

    def first(self, num_ranks: int) -> "RankDevices":
        """Those of the first ranks."""
        return replace(self, devices=self.devices[:num_ranks], hosts=self.hosts[:num_ranks])


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """The ranks of one host, as part of a cluster's."""

    first_rank: int
    """Number, among all, of the first of them; the others follow."""
    num_ranks: int
    """How many there are on this host."""
    world_size: int
    """How many there are on all."""
    num_hosts: int = 1
    interface: str = LOOPBACK_INTERFACE
    """Network interface by which ranks reach each other."""
    settings: tuple[tuple[str, str], ...] = ()
    """Variables of the kernel's environment that its ranks are to have."""

    @classmethod
    def of_all(cls, num_ranks: int) -> "Share":
        """All ranks of a cluster, on one host."""
        return cls(first_rank=0, num_ranks=num_ranks, world_size=num_ranks)

    @property
    def spans_hosts(self) -> bool:
        return self.num_hosts > 1


def num_cores() -> int:
    """CPU cores this process may use; a container's share of them, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores_limit()
    return cores if share is None else min(cores, math.ceil(share))


@dataclass(frozen=True, kw_only=True, slots=True)
class VisibleGpu:
    """A GPU that the ranks can use."""

    name: str
    """Name that the driver gives it, ``NVIDIA H100 80GB HBM3``."""
    memory_bytes: int
    """Bytes of its memory, used or not."""
    free_bytes: int
    """Bytes of it that nobody uses now."""


def visible_gpus() -> tuple[VisibleGpu, ...]:
    """The GPUs that torch can use, in its order where they are alike: none without an NVIDIA driver, or where torch is
    a build for CPUs.

    From NVML, without a CUDA context, and without torch: a notebook's kernel does not have it. As torch counts them
    (``torch.cuda._device_count_nvml``, 2.13): ``CUDA_VISIBLE_DEVICES`` ends at the first entry that names none, and one
    that is there twice leaves none at all.
    """
    try:
        import pynvml as nvml
    except ImportError:  # whoever only plans has none, and a Cluster asks for it
        return ()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        if not handles or not torch_is_for_cuda():
            return ()
        gpus = []
        for handle in _visible(nvml, handles):
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            name = str(nvml.nvmlDeviceGetName(handle))
            gpus.append(VisibleGpu(name=name, memory_bytes=memory.total, free_bytes=memory.free))
        return tuple(gpus)
    finally:
        nvml.nvmlShutdown()


def _visible(nvml: Any, handles: list[Any]) -> list[Any]:
    """Those that ``CUDA_VISIBLE_DEVICES`` names, by number or by the beginning of a UUID."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return handles
    found: list[Any] = []
    for entry in map(str.strip, asked.split(",")):
        named: list[Any] = []
        if entry.startswith("MIG-"):
            with suppress(nvml.NVMLError):
                named = [nvml.nvmlDeviceGetHandleByUUID(entry)]
        elif entry.startswith("GPU-"):
            named = [handle for handle in handles if str(nvml.nvmlDeviceGetUUID(handle)).startswith(entry)]
        elif number := re.match(r"\+?\d+", entry, re.ASCII):
            named = handles[int(number[0]) :][:1]
        if len(named) != 1:
            break
        if named[0] in found:
            return []
        found += named
    return found


def torch_is_for_cuda() -> bool:
    """Whether the torch that ranks import was built with CUDA: said in its ``version.py``."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    said = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    return re.search(r"^cuda\b[^=]*=\s*['\"]", said, re.MULTILINE) is not None


def num_gpus() -> int:
    """How many :func:`visible_gpus` there are."""
    return len(visible_gpus())


def gpus_reach_each_other(num_gpus: int) -> bool:
    """Whether the first of :func:`visible_gpus` read and write each other's memory, over NVLink or PCIe: two T4 of a
    cloud do not. From the driver's table, as ``nvidia-smi topo -p2p r`` prints it; True where the driver has none."""
    import pynvml as nvml

    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return True
    try:
        handles = _visible(nvml, [nvml.nvmlDeviceGetHandleByIndex(each) for each in range(nvml.nvmlDeviceGetCount())])
        return all(
            nvml.nvmlDeviceGetP2PStatus(first, second, way) == nvml.NVML_P2P_STATUS_OK
            for first, second in permutations(handles[:num_gpus], 2)
            for way in _READ_AND_WRITE
        )
    except nvml.NVMLError:
        return True
    finally:
        nvml.nvmlShutdown()


def devices_of(num_ranks: int, backend: str) -> RankDevices:
    """Resolve ``auto`` and give every rank its device.

    Where there are too few GPUs, neighbouring ranks share one: so the first ones do however many are taken (see
    ``Cluster.resized``), over the sockets that NCCL was told to take between all of them.

    Raises ``ValueError`` for an unknown backend, or for ``nccl`` where it cannot run.
    """
    gpus = 0 if check_one_of("backend", backend, BACKENDS) == "gloo" else num_gpus()
    if backend == "nccl" and gpus == 0:
        raise ArgumentError(
            "backend",
            backend,
            "must be gloo or auto where torch can use no CUDA GPU (`tplab doctor` says what it sees)",
        )
    if gpus == 0:
        return RankDevices(backend="gloo", devices=("cpu",) * num_ranks)
    return RankDevices(
        backend="nccl", devices=tuple(f"cuda:{index * gpus // max(num_ranks, gpus)}" for index in range(num_ranks))
    )


NCCL_SETTINGS = {
    "NCCL_RAS_ENABLE": "0",  # a port of NCCL's that would tell anybody about the job
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    # A warning on every rank that a send outside a batch waits its turn: here that is meant.
    "TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING": "false",
}
"""What the environment of a rank has unless it says otherwise."""


def rank_environment(placement: RankDevices, rank: int, cluster_id: str, share: Share | None = None) -> dict[str, str]:
    """Environment of one rank's process: this one's own, plus what the backend needs.

    Args:
        placement: of the ranks of this host.
        rank: its number among these.
        cluster_id: must differ between clusters on one machine; it keeps NCCL's pretended hosts apart.
        share: which ranks of the cluster these are; by default all.
    """
    share = share or Share.of_all(placement.num_ranks)
    environment = dict(os.environ) | dict(share.settings)
    # Ranks that each start a thread per core fight over the cores, and a two-rank run comes out slower than one.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // placement.num_ranks)))
    # The host's name may resolve to another address, or to none; ranks of one host have no business outside.
    environment["GLOO_SOCKET_IFNAME"] = share.interface
    # Connections that are made later than their group could not be checked (see ``neighbours``).
    environment["TORCH_GLOO_LAZY_INIT"] = "0"
    # torch's stores and gloo honour proxies of neither kind; NCCL's bootstrap must stay on loopback like gloo.
    environment["NCCL_SOCKET_IFNAME"] = f"={share.interface}" if share.spans_hosts else share.interface  # a prefix
    environment = NCCL_SETTINGS | environment
    environment |= torchrun_environment(share.first_rank + rank, share.world_size, share)
    if placement.shares_gpus:
        environment |= shared_gpu_environment(cluster_id, rank, share.interface)
    return environment


def torchrun_environment(rank: int, num_ranks: int, share: Share) -> dict[str, str]:
    """What a script that was written for ``torchrun`` reads: which rank of how many it is, among all and on its host.
    Not MASTER_ADDR and MASTER_PORT: ranks find each other through the kernel."""
    local_size = min(share.num_ranks, num_ranks - share.first_rank)
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank - share.first_rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(local_size),
    }


def shared_gpu_environment(cluster_id: str, rank: int, interface: str = LOOPBACK_INTERFACE) -> dict[str, str]:
    """What lets several NCCL ranks share a GPU.

    NCCL refuses two ranks of one host on one GPU ("Duplicate GPU detected"). With a host id each, they count as ranks
    of different hosts, and NCCL takes its socket transport between them.
    """
    return {
        "NCCL_HOSTID": f"tplab-{cluster_id}-{rank}",
        "NCCL_IB_DISABLE": "1",
        "NCCL_SOCKET_IFNAME": interface,
    }


def describe_link(placement: RankDevices) -> str:
    """What carries the bytes between ranks, in words."""
    if placement.num_ranks == 1:
        return "none (one rank)"
    if placement.num_hosts > 1:
        return f"{'TCP' if placement.backend == 'gloo' else 'NCCL'} between {placement.num_hosts} hosts"
    if placement.backend == "gloo":
        return "TCP over loopback"
    if placement.shares_gpus:
        return "NCCL sockets over loopback (ranks share a GPU)"
    return "NCCL between GPUs"


say_new_names(__name__)
