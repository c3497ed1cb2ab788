"""Algorithms over a declared link: what the formula says, and what came out."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from tplab.collectives.cost import time_us
from tplab.collectives.emulated_link import EmulatedLink, check_backend
from tplab.measure import provenance_columns, samples_of

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
    algorithm with the link's alpha and beta (whole chunks; every two ranks have a link), ``error_pct``, ``correct``,
    and the provenance, whose ``link`` is the declared one.

    Raises ``ValueError`` for a cluster without gloo.
    """
    check_backend(link, cluster.backend)
    run = cluster.submit(_time_emulated, link, list(algorithms), list(sizes), iterations, timeout=None)
    run.result()
    rows = []
    for (algorithm, nbytes), samples in samples_of(run.reports, cluster.num_ranks).items():
        n = cluster.num_ranks
        formula = time_us(algorithm, nbytes, n, link.latency_us, link.bandwidth_GBps, ports=max(1, n - 1))
        rows.append(
            {
                "algorithm": algorithm,
                "bytes": nbytes,
                "p50_us": samples.p50_us,
                "formula_us": formula,
                "error_pct": 100 * (samples.p50_us / formula - 1),
                "correct": samples.correct,
                **provenance_columns(cluster.provenance, link=link),
            }
        )
    return pd.DataFrame(rows)


def _time_emulated(rank: "Rank", link: EmulatedLink, algorithms: list[str], sizes: list[int], iterations: int) -> None:
    import torch

    from tplab.collectives.emulated import EmulatedGroup
    from tplab.measure.clock import timed
    from tplab.measure.sampler import WARM_UPS

    group = EmulatedGroup(rank.group, link)
    for algorithm in algorithms:
        for nbytes in sizes:
            x = torch.empty(nbytes // 4)
            want = torch.full_like(x, sum(range(1, rank.world_size + 1)))
            us, right = [], []
            for _ in range(WARM_UPS + iterations):
                x.fill_(rank.index + 1.0)
                group.line_up()
                us.append(timed(partial(group.all_reduce, x, algorithm))[0])
                right.append(torch.equal(x, want))
            rank.report(samples={(algorithm, nbytes): us[WARM_UPS:]}, correct=all(right))
