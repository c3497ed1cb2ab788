"""The smallest useful run: every rank brings a number, an all-reduce joins them, and somebody checks and times it.

Imported by the ranks, so it keeps to what they have loaded anyway.
"""

import math
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

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

    x = torch.empty(num_elements, device=rank.device)
    microseconds: list[float] = []
    correct = True
    reported, reported_at = 0, time.perf_counter()
    for repeat in range(repeats):
        us, right = _once(rank, x, reduction)
        microseconds.append(us)
        correct = correct and right
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


def talk(rank: "Rank", bursts: int = 4, burst: int = 25, pause_s: float = 0.5) -> dict[str, Any]:
    """All-reduce ``contribution(rank.index)``, one float32, ``burst`` times in a row, and again after a pause: some
    work that lasts one to two seconds on any machine, and leaves the cores to others for most of it.

    Runs on a rank. Reports after each burst ``burst`` (its number), ``had``, ``got``, ``correct`` (every result of it
    was the expected one), ``device`` and ``samples`` (microseconds). Returns the last report's fields.
    """
    import torch

    x = torch.empty(1, device=rank.device)
    told: dict[str, Any] = {}
    for number in range(bursts):
        if number:
            time.sleep(pause_s)
        times, right = zip(*(_once(rank, x, "SUM") for _ in range(burst)), strict=True)
        told = {
            "burst": number,
            "had": contribution(rank.index),
            "got": x.item(),
            "correct": all(right),
            "device": str(rank.device),
            "samples": {"all-reduce": list(times)},
        }
        rank.report(**told)
    return told


def _once(rank: "Rank", x: "torch.Tensor", reduction: str) -> tuple[float, bool]:
    """Fill ``x``, wait for all ranks, all-reduce it: microseconds, and whether every element is as expected."""
    import torch
    import torch.distributed as dist

    x.fill_(contribution(rank.index))
    dist.barrier(group=rank.group)
    _wait_for_device(rank)
    began = time.perf_counter()
    dist.all_reduce(x, op=getattr(dist.ReduceOp, reduction), group=rank.group)
    _wait_for_device(rank)
    us = (time.perf_counter() - began) * 1e6
    return us, bool(torch.allclose(x, torch.full_like(x, expected(rank.world_size, reduction))))


def _wait_for_device(rank: "Rank") -> None:
    if rank.device.type == "cuda":
        import torch

        torch.cuda.synchronize(rank.device)
