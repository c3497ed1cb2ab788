"""Which backend the ranks speak, which device each one gets, and the environment it needs.

Decided in the kernel before any rank starts, so that a wrong argument is an error at once. GPUs are counted through
NVML first: a laptop without one then never pays for importing torch in the kernel.
"""

import os
import sys
from dataclasses import dataclass, replace

from tplab.checks import ArgumentError, check_one_of
from tplab.moved import say_new_names

BACKENDS = ("auto", "gloo", "nccl")
LOOPBACK = "127.0.0.1"
LOOPBACK_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"


@dataclass(frozen=True, kw_only=True, slots=True)
class RankDevices:
    """The backend and the device of every rank."""

    backend: str
    """``gloo`` or ``nccl``."""
    devices: tuple[str, ...]
    """One torch device string per rank, in rank order."""

    @property
    def num_ranks(self) -> int:
        return len(self.devices)

    @property
    def num_devices(self) -> int:
        return len(set(self.devices))

    @property
    def shares_gpus(self) -> bool:
        return self.backend == "nccl" and self.num_devices < self.num_ranks

    def first(self, num_ranks: int) -> "RankDevices":
        """Those of the first ranks."""
        return replace(self, devices=self.devices[:num_ranks])


def num_cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_gpus() -> int:
    """CUDA devices visible to this process (0 without an NVIDIA driver). Starts no CUDA context."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    pynvml.nvmlShutdown()
    # NVML counts the machine's GPUs; torch knows CUDA_VISIBLE_DEVICES and whether this build can use them.
    import torch

    return torch.cuda.device_count()


def devices_of(num_ranks: int, backend: str) -> RankDevices:
    """Resolve ``auto`` and give every rank its device; ranks share GPUs round-robin when there are too few.

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
    return RankDevices(backend="nccl", devices=tuple(f"cuda:{index % gpus}" for index in range(num_ranks)))


def rank_environment(placement: RankDevices, rank: int, cluster_id: str) -> dict[str, str]:
    """Environment of one rank's process: the kernel's own, plus what the backend needs.

    ``cluster_id`` must differ between clusters on one machine; it keeps NCCL's pretended hosts apart.
    """
    environment = dict(os.environ)
    # Ranks that each start a thread per core fight over the cores, and a two-rank run comes out slower than one.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // placement.num_ranks)))
    # The host's name may resolve to an outside address, or to none; local ranks have no business there.
    environment["GLOO_SOCKET_IFNAME"] = LOOPBACK_INTERFACE
    # Connections that are made later than their group could not be checked (see ``neighbours``).
    environment["TORCH_GLOO_LAZY_INIT"] = "0"
    # torch's stores and gloo honour proxies of neither kind; NCCL's bootstrap must stay on loopback like gloo.
    environment["NCCL_SOCKET_IFNAME"] = LOOPBACK_INTERFACE
    environment.setdefault("NCCL_RAS_ENABLE", "0")  # a port of NCCL's that would tell anybody about the job
    environment.setdefault("NCCL_NVLS_ENABLE", "0")
    environment.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    # A warning on every rank that a send outside a batch waits its turn: here that is meant.
    environment.setdefault("TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING", "false")
    if placement.shares_gpus:
        environment |= shared_gpu_environment(cluster_id, rank)
    return environment


def shared_gpu_environment(cluster_id: str, rank: int) -> dict[str, str]:
    """What lets several NCCL ranks share a GPU.

    NCCL refuses two ranks of one host on one GPU ("Duplicate GPU detected"). With a host id each, they count as ranks
    of different hosts, and NCCL takes its socket transport between them.
    """
    return {
        "NCCL_HOSTID": f"tplab-{cluster_id}-{rank}",
        "NCCL_IB_DISABLE": "1",
        "NCCL_SOCKET_IFNAME": LOOPBACK_INTERFACE,
    }


def describe_link(placement: RankDevices) -> str:
    """What carries the bytes between ranks, in words."""
    if placement.num_ranks == 1:
        return "none (one rank)"
    if placement.backend == "gloo":
        return "TCP over loopback"
    if placement.shares_gpus:
        return "NCCL sockets over loopback (ranks share a GPU)"
    return "NCCL between GPUs"


say_new_names(__name__)
