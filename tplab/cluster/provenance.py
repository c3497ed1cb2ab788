"""Where a number came from: the columns every result carries and the badge every figure shows."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """The machine, software and launch behind a measurement."""

    backend: str
    """``gloo`` or ``nccl``."""
    num_ranks: int
    """World size."""
    device: str
    """CPU model or GPU name."""
    num_devices: int
    """Distinct devices the ranks use: 1 on a CPU; on GPUs fewer than ``num_ranks`` when ranks share them."""
    link: str
    """What carries the bytes between ranks."""
    launch_mode: str = "eager"
    """``eager`` or ``graph`` (CUDA graph)."""
    num_cores: int
    """CPU cores the ranks may use, together."""
    torch_version: str
    nccl_version: str
    """Version of NCCL; empty with gloo."""
    python_version: str
    num_hosts: int = 1
    """Machines that the ranks are on."""
    started_at: str
    """Time at which the ranks started, in UTC, as ISO 8601."""

    @property
    def shares_gpus(self) -> bool:
        """More ranks than GPUs: NCCL runs over its socket transport, and the times are not those of a real machine."""
        return self.backend == "nccl" and self.num_ranks > self.num_devices

    @property
    def own_gpus(self) -> bool:
        """Whether every rank has a GPU of its own, over NCCL."""
        return self.backend == "nccl" and not self.shares_gpus

    @property
    def badge(self) -> str:
        """``LIVE gloo · 2 ranks``, ``LIVE nccl · 4 ranks on 1 GPU`` or ``LIVE nccl · 4 ranks on 4 GPUs of 2 hosts``."""
        places = [count(self.num_devices, "GPU")] if self.backend == "nccl" else []
        places += [count(self.num_hosts, "host")] if self.num_hosts > 1 else []
        ranks = count(self.num_ranks, "rank")
        return f"LIVE {self.backend} · {ranks}{' on ' if places else ''}{' of '.join(places)}"

    def columns(self) -> dict[str, str | int]:
        """One value per column, for a tidy frame."""
        return asdict(self)


def count(number: int, noun: str) -> str:
    """``1 rank``, ``2 ranks``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
