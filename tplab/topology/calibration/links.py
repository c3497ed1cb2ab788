"""What links cost here: all-reduces in groups of ranks, messages between pairs. Runs on the ranks.

As layers and stages use them: all-reduces through the sweep's own samplers (over emulated links through the ``Comm`` of
the layers), messages by the calls of the pipeline's engine.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tplab.cluster import Rank
from tplab.collectives.sweep_plan import plan_sweep
from tplab.collectives.timing import time_points
from tplab.measure.sampler import WARM_UPS, collective_sampler, ping_pong
from tplab.topology.calibration.copies import comm_of, p2p_of, subgroup

if TYPE_CHECKING:
    from tplab.topology.calibration.plan import CalibrationPlan


def time_all_reduces(rank: Rank, plan: "CalibrationPlan") -> None:
    """Every group of the plan in turn, the other ranks idle: keys ``("all_reduce", ranks, launch, bytes)``."""
    for ranks in plan.groups:
        group = subgroup(rank, ranks)
        comm = comm_of(rank, ranks, plan.links) if plan.links is not None else None
        for launch in plan.launches:
            if group is not None:
                member = Rank(
                    index=dist.get_rank(group),
                    world_size=len(ranks),
                    group=group,
                    device=rank.device,
                    send_report=partial(_relay, rank, ranks, launch, plan.sizes),
                )
                if comm is not None:
                    _over_comm(member, comm, plan)
                else:
                    time_points(member, _points(plan, launch))
            dist.barrier(group=rank.group)


def _points(plan: "CalibrationPlan", launch: str) -> Any:
    return plan_sweep(
        sizes=plan.sizes,
        dtypes=(plan.dtype,),
        mode=launch,
        iterations=plan.iterations,
        backend=plan.backend,
        shares_gpus=plan.shares_gpus,
    )


@torch.inference_mode()
def _over_comm(rank: Rank, comm: Any, plan: "CalibrationPlan") -> None:
    buffers = [torch.ones(size // 4) for size in plan.sizes]
    for turn in range(plan.rounds):
        for index, x in enumerate(buffers):
            sample = collective_sampler(rank, partial(comm.all_reduce, x), before=partial(x.fill_, 1.0))
            for _ in range(WARM_UPS if turn == 0 else 1):
                sample()
            samples = {index: [sample() for _ in range(plan.iterations_over_links)]}
            rank.report(samples=samples, correct=bool((x == rank.world_size).all()))


def _relay(rank: Rank, ranks: tuple[int, ...], launch: str, sizes: Sequence[int], fields: dict[str, Any]) -> None:
    """A report from the ranks of a group, who number their samples by size, as one of the calibration's."""
    for index, us in fields.get("samples", {}).items():
        if not fields["correct"]:
            raise RuntimeError(f"an all-reduce of {sizes[index]} bytes in ranks {ranks} gave a wrong sum")
        rank.report(samples={("all_reduce", ranks, launch, sizes[index]): us})


@torch.inference_mode()
def time_sends(rank: Rank, plan: "CalibrationPlan") -> None:
    """There and back between every two ranks, half of it: keys ``("send", source, target, bytes)``."""
    p2p = p2p_of(rank, plan.links)
    ping_pong(rank, plan.pairs, plan.send_sizes, plan.rounds * 5, p2p.exchange)
