"""The smallest useful run: every rank brings a number, an all-reduce joins them, and somebody checks and times it.

Imported by the ranks, so it keeps to what they have loaded anyway.
"""

import math
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tplab.cluster.rank import Rank

REDUCTIONS = ("SUM", "PRODUCT", "MIN", "MAX")
_REPORT_EVERY_S = 0.2


def contribution(index: int) -> float:
    """What rank ``index`` brings: 1 on rank 0, 2 on rank 1, ..."""
    return float(index + 1)


def expected(world_size: int, reduction: str) -> float:
    """What every rank must hold afterwards."""
    values = [contribution(index) for index in range(world_size)]
    results = {"SUM": math.fsum(values), "PRODUCT": math.prod(values), "MIN": min(values), "MAX": max(values)}
    return results[reduction]


def all_reduce_hello(rank: "Rank", num_elements: int = 1, reduction: str = "SUM", repeats: int = 1) -> dict[str, Any]:
    """All-reduce a float32 tensor of ``num_elements`` that holds ``contribution(rank.index)``, ``repeats`` times.

    Runs on a rank. Each repetition refills the tensor, waits for all ranks, and times from the call until the result is
    there, by the host's clock. Reports ``phase``, ``done``, ``total`` and the newest times (``samples``: microseconds,
    one per repetition) as it goes.

    Returns ``rank``, ``pid``, ``device``, ``had``, ``got`` (the first element), ``correct`` (every element of every
    repetition held the expected value) and ``us``.
    """
    import torch
    import torch.distributed as dist

    x = torch.empty(num_elements, device=rank.device)
    op = getattr(dist.ReduceOp, reduction)
    want = expected(rank.world_size, reduction)
    microseconds: list[float] = []
    correct = True
    reported, reported_at = 0, time.perf_counter()
    for repeat in range(repeats):
        x.fill_(contribution(rank.index))
        dist.barrier(group=rank.group)
        _wait_for_device(rank)
        began = time.perf_counter()
        dist.all_reduce(x, op=op, group=rank.group)
        _wait_for_device(rank)
        microseconds.append((time.perf_counter() - began) * 1e6)
        correct = correct and bool(torch.allclose(x, torch.full_like(x, want)))
        if time.perf_counter() - reported_at > _REPORT_EVERY_S or repeat + 1 == repeats:
            samples = {"all-reduce": microseconds[reported:]}
            rank.report(phase="all-reduce", done=repeat + 1, total=repeats, samples=samples)
            reported, reported_at = repeat + 1, time.perf_counter()
    return {
        "rank": rank.index,
        "pid": os.getpid(),
        "device": str(rank.device),
        "had": contribution(rank.index),
        "got": x[0].item(),
        "correct": correct,
        "us": microseconds,
    }


def _wait_for_device(rank: "Rank") -> None:
    if rank.device.type == "cuda":
        import torch

        torch.cuda.synchronize(rank.device)
