"""What links cost here: all-reduces in groups of ranks, messages between pairs. Runs on the ranks.

As layers and stages use them: all-reduces through the sweep's own samplers (over emulated links through the ``Comm`` of
the layers), messages by the calls of the pipeline's engine. Counts are fixed; the notebook kernel takes the slowest
rank of every sample, then medians.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tplab.cluster import Rank
from tplab.collectives.sweep import plan_sweep
from tplab.collectives.timing import time_points
from tplab.topology.calibration.rigging import Hops, comm_of, subgroup

if TYPE_CHECKING:
    from tplab.topology.calibration.plan import CalibrationPlan

Note = Callable[..., None]
"""A function ``note(key, us)`` that takes samples in microseconds of what ``key`` names."""
_WARM_UPS = 2


def time_all_reduces(rank: Rank, plan: "CalibrationPlan", note: Note) -> None:
    """Every group of the plan in turn, the other ranks idle: keys ``("all_reduce", ranks, launch, bytes)``."""
    for ranks in plan.groups:
        group = subgroup(rank, ranks)
        comm = comm_of(rank, ranks, plan.links) if plan.links is not None else None
        for launch in plan.launches:
            if group is not None and comm is not None:
                _over_comm(comm, group, ranks, plan, note)
            elif group is not None:
                _through_sweep(rank, group, ranks, launch, plan, note)
            dist.barrier(group=rank.group)


def _through_sweep(
    rank: Rank, group: Any, ranks: tuple[int, ...], launch: str, plan: "CalibrationPlan", note: Note
) -> None:
    points = plan_sweep(
        sizes=plan.sizes,
        dtypes=(plan.dtype,),
        mode=launch,
        iterations=plan.iterations,
        backend=plan.backend,
        shares_gpus=plan.shares_gpus,
    )

    def relay(fields: dict[str, Any]) -> None:
        if "row" not in fields:
            return
        if not fields["correct"]:
            raise RuntimeError(f"an all-reduce of {plan.sizes[fields['row']]} bytes in ranks {ranks} gave a wrong sum")
        note(("all_reduce", ranks, launch, plan.sizes[fields["row"]]), fields["us"])

    member = Rank(index=dist.get_rank(group), world_size=len(ranks), group=group, device=rank.device, send_report=relay)
    time_points(member, points)


@torch.inference_mode()
def _over_comm(comm: Any, group: Any, ranks: tuple[int, ...], plan: "CalibrationPlan", note: Note) -> None:
    buffers = [torch.ones(size // 4) for size in plan.sizes]
    for turn in range(plan.rounds):
        for size, x in zip(plan.sizes, buffers, strict=True):
            samples = []
            for _ in range((_WARM_UPS if turn == 0 else 1) + max(2, plan.iterations_over_links)):
                x.fill_(1.0)
                dist.barrier(group=group)
                began = time.perf_counter()
                comm.all_reduce(x)
                samples.append((time.perf_counter() - began) * 1e6)
            if not bool((x == len(ranks)).all()):
                raise RuntimeError(f"an all-reduce of {size} bytes in ranks {ranks} gave a wrong sum")
            note(("all_reduce", ranks, "eager", size), samples[_WARM_UPS if turn == 0 else 1 :])


@torch.inference_mode()
def time_sends(rank: Rank, plan: "CalibrationPlan", note: Note) -> None:
    """There and back between every two ranks, half of it: keys ``("send", source, target, bytes)``."""
    hops = Hops(rank, range(rank.world_size), plan.links)
    for source, target in plan.pairs:
        dist.barrier(group=rank.group)
        if rank.index not in (source, target):
            continue
        for size in plan.send_sizes:
            message = torch.ones(size, dtype=torch.uint8, device=rank.device)
            samples = [_there_and_back(rank, hops, message, source, target) for _ in range(plan.rounds * 5 + _WARM_UPS)]
            if rank.index == source:
                note(("send", source, target, size), [us / 2 for us in samples[_WARM_UPS:]])
    dist.barrier(group=rank.group)


def _there_and_back(rank: Rank, hops: Hops, message: torch.Tensor, source: int, target: int) -> float:
    began = time.perf_counter()
    if rank.index == source:
        sent = hops.send([message], target, 0)
        hops.recv([message.clone()], target, 0).wait()
        sent.wait()
    else:
        hops.recv([message], source, 0).wait()
        hops.send([message], source, 0).wait()
    if rank.device.type == "cuda":
        torch.cuda.synchronize(rank.device)
    return (time.perf_counter() - began) * 1e6
