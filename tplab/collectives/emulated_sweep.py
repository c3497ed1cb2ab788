"""Algorithms over a declared link: what the formula says, and what came out."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tplab.collectives.cost import time_us
from tplab.collectives.emulated_link import EmulatedLink, check_backend

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Rank


def measure_emulated(
    cluster: "Cluster",
    link: EmulatedLink,
    sizes: Sequence[int] = (1 << 10, 1 << 17, 1 << 20, 1 << 22),
    algorithms: Sequence[str] = ("ring", "two-shot", "recursive-doubling"),
    iterations: int = 9,
) -> pd.DataFrame:
    """All-reduce float32 tensors of ``sizes`` bytes over ``link`` between every two ranks.

    Args:
        cluster: ranks that speak gloo.
        link: link between every two of them.
        sizes: bytes of the tensors.
        algorithms: names as in ``emulated.ALGORITHMS``.
        iterations: samples of each size.

    Returns one row per ``algorithm`` and ``bytes``: ``p50_us`` of the slowest rank, ``formula_us`` of the same
    algorithm with the link's alpha and beta (whole chunks), ``error_pct``, ``correct``, and the provenance, whose
    ``link`` is the declared one.

    Raises ``ValueError`` for a cluster without gloo.
    """
    check_backend(link, cluster.backend)
    rows = []
    for algorithm in algorithms:
        for nbytes in sizes:
            per_rank = cluster.run(_time_emulated, link, algorithm, nbytes // 4, iterations)
            slowest = np.array([times for times, _ in per_rank]).max(axis=0)
            p50 = float(np.median(slowest))
            formula = time_us(algorithm, nbytes, cluster.num_ranks, link.latency_us, link.bandwidth_GBps)
            rows.append(
                {
                    "algorithm": algorithm,
                    "bytes": nbytes,
                    "p50_us": p50,
                    "formula_us": formula,
                    "error_pct": 100 * (p50 / formula - 1),
                    "correct": all(correct for _, correct in per_rank),
                    **cluster.provenance.columns(),
                    "link": str(link),
                }
            )
    return pd.DataFrame(rows)


def _time_emulated(
    rank: "Rank", link: EmulatedLink, algorithm: str, num_elements: int, iterations: int
) -> tuple[list[float], bool]:
    import torch
    import torch.distributed as dist

    from tplab.collectives.emulated import EmulatedGroup

    group = EmulatedGroup(rank.group, link)
    want = torch.full((num_elements,), sum(range(1, rank.world_size + 1)), dtype=torch.float32)
    times = []
    correct = True
    for _ in range(iterations + 1):
        x = torch.full((num_elements,), rank.index + 1.0)
        dist.barrier(group=rank.group)
        began = time.perf_counter()
        group.all_reduce(x, algorithm)
        times.append((time.perf_counter() - began) * 1e6)
        correct = correct and torch.equal(x, want)
    return times[1:], correct
