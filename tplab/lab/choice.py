"""What a machine offers the ranks of a notebook: a GPU for each, GPUs that they share, or the CPU.

Every notebook asks once, by its pool, and takes from the answer what differs between the three: sizes, the link, and
whether stages compute or wait. Known from the driver alone: the kernel imports no torch.
"""

from dataclasses import dataclass
from typing import TypeVar

from tplab.checks import check_count
from tplab.cluster.backends import num_cores, visible_gpus

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One of the things that a machine offers so many ranks."""

    num_ranks: int
    """World size."""
    backend: str
    """``nccl`` or ``gloo``."""
    num_gpus: int
    """GPUs that these ranks use; 0 on the CPU."""
    gpu: str | None
    """Name of the first one."""
    memory_GB: float
    """GPU memory for a rank, its share of the smallest GPU; 0 on the CPU."""
    num_cores: int
    """CPU cores for all ranks."""

    @property
    def on_gpus(self) -> bool:
        """Whether ranks speak NCCL."""
        return self.backend == "nccl"

    @property
    def own_gpus(self) -> bool:
        """Whether every rank has a GPU of its own."""
        return self.on_gpus and self.num_gpus >= self.num_ranks

    def pick(self, *, cpu: T, shared: T, own: T) -> T:
        """What suits: on the CPU, on GPUs that ranks share, or on a GPU for each rank."""
        return own if self.own_gpus else shared if self.on_gpus else cpu

    @property
    def label(self) -> str:
        """``NCCL, a GPU each``, ``NCCL, ranks share a GPU`` or ``gloo, CPU``."""
        if not self.on_gpus:
            return "gloo, CPU"
        if self.own_gpus:
            return "NCCL, a GPU each" if self.num_ranks > 1 else "NCCL, a GPU"
        return f"NCCL, ranks share {'a GPU' if self.num_gpus == 1 else f'{self.num_gpus} GPUs'}"

    def __str__(self) -> str:
        ranks = f"{self.num_ranks} rank{'s' * (self.num_ranks > 1)}"
        if not self.on_gpus:
            return f"{ranks} over gloo, on {self.num_cores} CPU core{'s' * (self.num_cores > 1)}"
        gpus = f"{self.num_gpus} x {self.gpu}" if self.num_gpus > 1 else f"one {self.gpu}"
        return f"{ranks} over NCCL, {'on' if self.own_gpus else 'sharing'} {gpus}"


def choices(num_ranks: int) -> tuple[Choice, ...]:
    """What this machine offers ``num_ranks`` ranks, the best first: NCCL where torch can use a GPU, and always gloo."""
    check_count("num_ranks", num_ranks, least=1)
    cpu = Choice(num_ranks=num_ranks, backend="gloo", num_gpus=0, gpu=None, memory_GB=0.0, num_cores=num_cores())
    gpus = visible_gpus()
    if not gpus:
        return (cpu,)
    on_one = -(-num_ranks // len(gpus))
    nccl = Choice(
        num_ranks=num_ranks,
        backend="nccl",
        num_gpus=min(num_ranks, len(gpus)),
        gpu=gpus[0].name,
        memory_GB=min(gpu.memory_bytes for gpu in gpus[:num_ranks]) / on_one / 1e9,
        num_cores=num_cores(),
    )
    return nccl, cpu
