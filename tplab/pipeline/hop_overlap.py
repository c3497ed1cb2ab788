"""How much of a message between stages, and of an all-reduce, is hidden behind a computation (C15 of docs/article.md).

A pipeline's send starts and returns: the stage computes its next micro-batch meanwhile. An all-reduce in one piece
cannot be hidden so, for the next matmul needs the sum. Both are timed here alone and beside the same computation. On
the CPU the link is emulated and the computation waits its time, because there the cores that compute are those that
copy.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tplab.collectives.emulated_link import EmulatedLink, check_backend
from tplab.measure import joined_badge, link_text, provenance_columns, samples_of

if TYPE_CHECKING:
    import pandas as pd

    from tplab.cluster import Cluster, Rank
    from tplab.cluster.run import DerivedRun

LINK = EmulatedLink(latency_us=2000, bandwidth_GBps=0.5)
"""Slow enough to be felt over gloo, which itself takes tenths of a millisecond."""
HOP, ALL_REDUCE = "hop", "all-reduce"
"""What is timed, in the column ``what``."""
_NUM_BYTES = {"gloo": 1 << 20, "shared": 1 << 24, "nccl": 1 << 28}
"""Bytes of the message: over gloo; where ranks share a GPU; between GPUs, where it must take much longer than a host
needs to see that it is over."""


def submit_hop_overlap(cluster: "Cluster", *, rounds: int = 7, **callbacks: Any) -> "DerivedRun[pd.DataFrame]":
    """Start to time both on the first two ranks; a future of a frame with a row for each.

    Columns: ``what`` (``hop``, ``all-reduce``), ``bytes``, ``call_us`` (until the call that starts it returns),
    ``alone_us``, ``compute_us`` (the computation without any message), ``both_us``, ``hidden_pct`` (the share of
    ``alone_us`` that beside the computation costs nothing, from 0 to 100), ``badge`` and the provenance.

    Args:
        cluster: at least two ranks, of which two are taken.
        rounds: samples of each.
        callbacks: as for ``Cluster.submit``.
    """
    import pandas as pd

    pair = cluster.resized(2) if cluster.num_ranks > 2 else cluster
    link = LINK if pair.backend == "gloo" else None
    num_bytes = _NUM_BYTES["shared" if pair.shares_gpus else pair.backend]
    check_backend(link, pair.backend)

    def build(run: Any) -> "pd.DataFrame":
        run.result()
        provenance = pair.provenance
        us = {key: samples.p50_us for key, samples in samples_of(run.reports).items()}
        rows = []
        for what in (HOP, ALL_REDUCE):
            alone, compute, both = us[what, "alone"], us["compute"], us[what, "both"]
            hidden = 100 * (alone + compute - both) / alone
            rows.append(
                {
                    "what": what,
                    "bytes": num_bytes,
                    "call_us": us[what, "call"],
                    "alone_us": alone,
                    "compute_us": compute,
                    "both_us": both,
                    "hidden_pct": min(100.0, max(0.0, hidden)),
                }
            )
        badge = joined_badge(provenance.badge, "emulated compute" if link else "", link_text(link))
        return pd.DataFrame(rows).assign(badge=badge, **provenance_columns(provenance, link=link))

    return pair.submit(_time_overlap, link, num_bytes, rounds, timeout=60.0, **callbacks).map(build)


def _time_overlap(rank: "Rank", link: EmulatedLink | None, num_bytes: int, rounds: int) -> None:
    import time

    import torch
    import torch.distributed as dist

    from tplab.collectives.emulated import EmulatedGroup
    from tplab.collectives.ring import ring_all_reduce
    from tplab.collectives.transport import ProcessGroupTransport
    from tplab.measure.sampler import take_turns

    transport = ProcessGroupTransport(rank.group) if link is None else EmulatedGroup(rank.group, link)
    message = torch.ones(num_bytes // 4, device=rank.device)
    calls: dict[str, list[float]] = {HOP: [], ALL_REDUCE: []}

    def all_reduce() -> None:
        began = time.perf_counter()
        if link is None:
            dist.all_reduce(message, group=rank.group)
        else:
            ring_all_reduce(message, transport)
        calls[ALL_REDUCE].append((time.perf_counter() - began) * 1e6)
        message.fill_(1)

    def start_hop() -> Callable[[], None]:
        sends, receives = ([(message, 1)], []) if rank.index == 0 else ([], [(message, 0)])
        began = time.perf_counter()
        handle = transport.exchange(sends, receives)
        calls[HOP].append((time.perf_counter() - began) * 1e6)
        return handle.wait

    compute = _computation(rank)

    def hop_beside() -> None:
        finish = start_hop()
        compute()
        finish()

    def sum_then_compute() -> None:
        all_reduce()  # what comes next needs the sum
        compute()

    take_turns(
        rank,
        {
            (HOP, "alone"): lambda: start_hop()(),
            (HOP, "both"): hop_beside,
            (ALL_REDUCE, "alone"): all_reduce,
            (ALL_REDUCE, "both"): sum_then_compute,
            "compute": compute,
        },
        rounds,
    )
    rank.report(samples={(what, "call"): us[-rounds:] for what, us in calls.items()})


def _computation(rank: "Rank") -> Callable[[], None]:
    """Work that takes longer than the message: some 2 ms of matmuls on a GPU; on the CPU a wait of 12 ms, for a matmul
    would slow the messages down."""
    import time
    from functools import partial

    import torch

    if rank.device.type == "cpu":
        return partial(time.sleep, 0.012)
    weight = torch.randn(4096, 4096, device=rank.device, dtype=torch.bfloat16) / 64

    def matmuls() -> None:
        x = weight
        for _ in range(12):
            x = x @ weight

    return matmuls
