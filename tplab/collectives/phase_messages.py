"""The messages of a decode step and of a prefill, timed on ranks: an all-reduce of all, and a message from one to
another (C9 and C21 of docs/article.md).

Three sizes tell what binds: next to nothing, which is the latency; 16 KiB, one token at a hidden size of 8,192 in 16
bits; 32 MiB, 2,048 tokens.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tplab.measure import samples_of

if TYPE_CHECKING:
    import pandas as pd

    from tplab.cluster import Cluster, Rank
    from tplab.cluster.run import DerivedRun

EMPTY, DECODE, PREFILL = 1 << 10, 1 << 14, 1 << 25
"""Bytes: next to nothing; a token; 2,048 tokens."""
ALL_REDUCE, HOP = "all-reduce", "hop"
"""What is timed, in the column ``what``."""


def submit_phase_messages(cluster: "Cluster", *, iterations: int = 15, **callbacks: Any) -> "DerivedRun[pd.DataFrame]":
    """Start to time them; a future of a frame: ``what`` (``all-reduce`` over all ranks, ``hop`` from rank 0 to 1),
    ``bytes``, ``p50_us``, ``p95_us`` and the provenance.

    Args:
        cluster: at least two ranks.
        iterations: samples of each; a third of them for 32 MiB.
        callbacks: as for ``Cluster.submit``.
    """
    import pandas as pd

    def build(run: Any) -> "pd.DataFrame":
        run.result()
        rows: list[dict[str, object]] = []
        for (kind, *_, nbytes), samples in samples_of(run.reports).items():
            what = ALL_REDUCE if kind == ALL_REDUCE else HOP
            rows.append({"what": what, "bytes": nbytes, "p50_us": samples.p50_us, "p95_us": samples.p95_us})
        return pd.DataFrame(rows).assign(**cluster.provenance.columns())

    sizes = (EMPTY, DECODE, PREFILL)
    return cluster.submit(_time_messages, sizes, iterations, timeout=30.0 + 15.0 * cluster.num_ranks, **callbacks).map(
        build
    )


def _time_messages(rank: "Rank", sizes: Sequence[int], iterations: int) -> None:
    from functools import partial

    import torch
    import torch.distributed as dist

    from tplab.collectives.transport import ProcessGroupTransport
    from tplab.measure.sampler import WARM_UPS, collective_sampler, ping_pong

    for done, nbytes in enumerate(sizes):
        rank.report(phase="all-reduce", done=done, total=len(sizes))
        x = torch.zeros(nbytes // 4, device=rank.device)
        sample = collective_sampler(rank, partial(dist.all_reduce, x, group=rank.group), before=partial(x.fill_, 1))
        samples = iterations if nbytes < PREFILL else -(-iterations // 3)
        us = [sample() for _ in range(WARM_UPS + samples)]
        rank.report(samples={(ALL_REDUCE, nbytes): us[WARM_UPS:]})
    rank.report(phase="messages", done=0, total=1)
    ping_pong(rank, [(0, 1)], sizes, iterations, ProcessGroupTransport(rank.group).exchange)
    rank.report(phase="messages", done=1, total=1)
