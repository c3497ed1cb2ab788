"""What a link does cost: ping-pong between every pair of ranks."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tplab.collectives.cost import AlphaBeta, fit_line

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Rank

DEFAULT_SIZES = (1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 23)


def measure_point_to_point(
    cluster: "Cluster", sizes: Sequence[int] = DEFAULT_SIZES, iterations: int = 15
) -> pd.DataFrame:
    """Ping-pong between every two ranks, the others idle.

    Returns one row per ordered pair and size: ``src``, ``dst``, ``bytes``, ``p50_us`` and ``p95_us`` of one way (half
    of there and back, by the sender's clock), ``GBps``, and the provenance.
    """
    if cluster.num_ranks < 2:
        raise ValueError(f"cluster must have at least 2 ranks for a link between two; it has {cluster.num_ranks}")
    if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"sizes must be positive numbers of bytes; got {list(sizes)!r}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1; got {iterations}")
    rows = []
    for per_rank in cluster.run(_ping_pong, list(sizes), iterations, timeout=None):
        for src, dst, nbytes, one_way in per_rank:
            p50 = float(np.median(one_way))
            rows.append(
                {
                    "src": src,
                    "dst": dst,
                    "bytes": nbytes,
                    "p50_us": p50,
                    "p95_us": float(np.quantile(one_way, 0.95)),
                    "GBps": nbytes / p50 / 1e3,
                    **cluster.provenance.columns(),
                }
            )
    return pd.DataFrame(rows).sort_values(["src", "dst", "bytes"], ignore_index=True)


def fit_link(frame: pd.DataFrame) -> AlphaBeta:
    """Alpha and beta of the best pair in a frame of :func:`measure_point_to_point`, for lower bounds."""
    best = frame.groupby("bytes")["p50_us"].min()
    return fit_line(best.index.to_numpy(float), best.to_numpy(float))


def _ping_pong(rank: "Rank", sizes: list[int], iterations: int) -> list[tuple[int, int, int, list[float]]]:
    import torch
    import torch.distributed as dist

    results: list[tuple[int, int, int, list[float]]] = []
    for src in range(rank.world_size):
        for dst in range(rank.world_size):
            if src == dst:
                continue
            dist.barrier(group=rank.group)
            if rank.index not in (src, dst):
                continue
            for nbytes in sizes:
                message = torch.ones(nbytes, dtype=torch.uint8, device=rank.device)
                times = [_there_and_back(rank, message, src, dst) for _ in range(iterations + 2)][2:]
                if rank.index == src:
                    results.append((src, dst, nbytes, [seconds / 2 * 1e6 for seconds in times]))
    dist.barrier(group=rank.group)
    return results


def _there_and_back(rank: "Rank", message: Any, src: int, dst: int) -> float:
    import torch.distributed as dist

    began = time.perf_counter()
    if rank.index == src:
        dist.send(message, dst, group=rank.group)
        dist.recv(message, dst, group=rank.group)
    else:
        dist.recv(message, src, group=rank.group)
        dist.send(message, src, group=rank.group)
    if rank.device.type == "cuda":
        import torch

        torch.cuda.synchronize(rank.device)
    return time.perf_counter() - began
