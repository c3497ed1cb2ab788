"""Whether there is memory for ranks that are to be started: a plain refusal instead of an out-of-memory kill.

On a shared server the kernel of the operating system ends some process when the memory is used up: a rank, somebody's
notebook, or the whole server of a learner, and says so to nobody. So what ranks take, measured, is held against what is
free before they are started. What a function allocates on them comes on top, and is not known here.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tplab.cluster.backends import RankDevices, torch_is_for_cuda, visible_gpus
from tplab.cluster.cgroups import memory_limits
from tplab.cluster.errors import NoRoom
from tplab.needs import Later

if TYPE_CHECKING:
    import psutil
else:
    psutil = Later("psutil", "Cluster")

OVERRULE = "TPLAB_MEMORY"
"""The variable of the environment that, set to ``ignore``, has ranks started whatever is free."""
GPU_RANK_BYTES = 600_000_000
"""GPU memory of a rank that is up: its CUDA context and NCCL's buffers."""
THIS_MACHINE = "this machine"


@dataclass(frozen=True, kw_only=True, slots=True)
class FreeMemory:
    """The memory that new processes can have."""

    num_bytes: int
    """Bytes, at least 0."""
    where: str
    """What says so: ``this machine``, ``the container's limit`` or ``JupyterHub's limit``."""


def free_memory() -> FreeMemory:
    """The least of what is free on the machine, under the limits of this process's cgroups, and under JupyterHub's."""
    found = [FreeMemory(num_bytes=psutil.virtual_memory().available, where=THIS_MACHINE)]
    found += [
        FreeMemory(num_bytes=max(0, limit.num_bytes - limit.used_bytes), where="the container's limit")
        for limit in memory_limits()
    ]
    if (left := _left_of_hub()) is not None:
        found.append(FreeMemory(num_bytes=max(0, left), where="JupyterHub's limit"))
    return min(found, key=lambda each: each.num_bytes)


def rank_bytes(placement: RankDevices) -> int:
    """Memory of a rank that is up and has all-reduced something small, with a share of what ranks have in common.

    Measured as PSS, four ranks at once (docs/teaching.md): over gloo with torch 2.13 for CPUs and with torch 2.11 for
    CUDA, over NCCL with a GPU each, and sharing some.
    """
    if placement.backend == "gloo":
        return 305_000_000 if torch_is_for_cuda() else 180_000_000
    return 910_000_000 if placement.shares_gpus else 780_000_000


def check_room(placement: RankDevices) -> None:
    """Raise :class:`NoRoom` where the ranks would not fit, with what would, and the way to overrule it."""
    if os.environ.get(OVERRULE, "").strip().lower() == "ignore":
        return
    free = free_memory()
    _hold_against(placement.num_ranks, rank_bytes(placement), free.num_bytes, f"({free.where})")
    if placement.backend != "nccl":
        return
    gpus = visible_gpus()
    for index, device in enumerate(sorted(set(placement.devices))):
        on_it = placement.devices.count(device)
        if index < len(gpus):
            _hold_against(on_it, GPU_RANK_BYTES, gpus[index].free_bytes, f"on GPU {index}", "GPU ")


def _hold_against(num_ranks: int, each: int, free: int, where: str, kind: str = "") -> None:
    if num_ranks * each <= free:
        return
    ranks = f"{num_ranks} rank{'s take' if num_ranks > 1 else ' takes'}"
    fit = free // each
    fewer = f"start fewer ranks ({fit} fit{'s' * (fit == 1)}), or " if fit else ""
    raise NoRoom(
        f"no memory for these ranks: {ranks} about {num_ranks * each / 1e9:.1f} GB of {kind}memory, and "
        f"{free / 1e9:.1f} GB are free {where}. To go on, {fewer}stop other notebooks (Kernel ▸ Shut Down: each keeps "
        f"its kernel and its ranks). os.environ['{OVERRULE}'] = 'ignore' starts them all the same."
    )


def _left_of_hub() -> int | None:
    """What is left of ``MEM_LIMIT``, where JupyterHub's spawner has set it: some of them enforce it by other means than
    a cgroup, so the processes of this user's server are counted."""
    if "JUPYTERHUB_USER" not in os.environ:  # other programs read that name, too, and not always in bytes
        return None
    try:
        limit = int(float(os.environ["MEM_LIMIT"]))
    except (KeyError, ValueError, OverflowError):
        return None
    if limit <= 0:
        return None
    server = here = psutil.Process()
    with suppress(psutil.Error):
        for parent in here.parents():
            if parent.pid == 1 or parent.uids().real != here.uids().real:
                break
            server = parent
    used = 0
    for process in (server, *server.children(recursive=True)):
        with suppress(psutil.Error):
            used += process.memory_full_info().uss  # of shared pages only those of one process
    return limit - used
