"""The same measurement under ``torchrun``: on Kubernetes and in batch queues nobody can start ranks from a notebook.

``torchrun`` starts the processes and sets the environment; :func:`attached` makes the ``Rank`` of each out of it, and
:func:`gather_reports` brings what they reported to rank 0, as a cluster would.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from tplab.cluster import backends
from tplab.cluster.provenance import Provenance
from tplab.cluster.rank import Rank
from tplab.cluster.run import Report


def under_torchrun() -> bool:
    """Whether this process was started by ``torchrun`` (or anything that sets the same variables)."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))


@contextmanager
def attached(backend: str = "auto") -> Iterator[tuple[Rank, Provenance, list[Report]]]:
    """Join the process group that ``torchrun`` set up: the rank, its provenance, and the list its reports go to."""
    import torch
    import torch.distributed as dist

    from tplab.cluster.worker import device_name

    if not under_torchrun():
        raise ValueError("RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR are not set: start this with torchrun")
    index, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    placement = backends.devices_of(local_size, backend)
    device = torch.device(placement.devices[local_rank])
    if world_size == local_size:  # all on this machine: its ports need not be seen from outside
        os.environ.setdefault("GLOO_SOCKET_IFNAME", backends.LOOPBACK_INTERFACE)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", backends.LOOPBACK_INTERFACE)
    if placement.shares_gpus:
        os.environ.update(backends.shared_gpu_environment(os.environ["MASTER_PORT"], index))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    reports: list[Report] = []
    dist.init_process_group(placement.backend, device_id=device if device.type == "cuda" else None)
    try:
        group = dist.group.WORLD
        assert group is not None
        rank = Rank(
            index=index,
            world_size=world_size,
            group=group,
            device=device,
            send_report=lambda fields: reports.append(Report(index, fields)),
        )
        nccl = torch.cuda.nccl.version() if placement.backend == "nccl" else ()  # type: ignore[no-untyped-call]
        provenance = Provenance(
            backend=placement.backend,
            num_ranks=world_size,
            device=device_name(device),
            num_devices=placement.num_devices * (world_size // local_size),
            link=backends.describe_link(placement) if world_size == local_size else "between hosts (torchrun)",
            num_cores=backends.num_cores(),
            torch_version=str(torch.__version__),
            nccl_version=".".join(map(str, nccl)),
            python_version=platform.python_version(),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        yield rank, provenance, reports
    finally:
        dist.destroy_process_group()


def gather_reports(rank: Rank, reports: list[Report]) -> list[Report]:
    """Every rank's reports, on rank 0; elsewhere an empty list."""
    import torch.distributed as dist

    gathered: list[Any] | None = [None] * rank.world_size if rank.index == 0 else None
    dist.gather_object(reports, gathered, dst=0, group=rank.group)
    return [report for per_rank in gathered or [] for report in per_rank]
