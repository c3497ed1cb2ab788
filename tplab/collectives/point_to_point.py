"""What a link does cost: ping-pong between every pair of ranks."""

from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import TYPE_CHECKING

import pandas as pd

from tplab.checks import ArgumentError, check_count
from tplab.collectives.cost import AlphaBeta, fit_ends
from tplab.measure import samples_of

if TYPE_CHECKING:
    from tplab.cluster import Cluster, DerivedRun, Provenance, Rank, Report

MESSAGE_SIZES = (1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 23)
"""Bytes of the messages, by default."""
SHARED_GPU_MESSAGE_SIZES = (*MESSAGE_SIZES, 1 << 25)
"""Where ranks share GPUs: taking turns costs as much as 8 MiB through NCCL's sockets."""
GPU_MESSAGE_SIZES = tuple(1 << power for power in range(10, 29, 3))
"""Where every rank has a GPU: to 256 MiB, since at 8 MiB NVLink is not yet at its bandwidth."""


def measure_point_to_point(
    cluster: "Cluster", sizes: Sequence[int] | None = None, iterations: int = 15
) -> pd.DataFrame:
    """Ping-pong between every two ranks, the others idle.

    Over gloo by the sender's clock. Over NCCL by ``batch_isend_irecv`` and the clock of the sender's GPU: the link's
    time, without the host's 30 to 60 us for each call.

    Args:
        cluster: two ranks or more.
        sizes: bytes of the messages; None: ``MESSAGE_SIZES`` on the CPU, ``GPU_MESSAGE_SIZES`` where every rank has a
            GPU, ``SHARED_GPU_MESSAGE_SIZES`` where ranks share them.
        iterations: samples of each; a third, of messages from 32 MiB on.

    Returns one row per ordered pair and size: ``src``, ``dst``, ``bytes``, ``p50_us`` and ``p95_us`` of one way (half
    of there and back), ``GBps``, and the provenance.
    """
    return submit_point_to_point(cluster, sizes, iterations).result()


def submit_point_to_point(
    cluster: "Cluster", sizes: Sequence[int] | None = None, iterations: int = 15, *, timeout: float | None = None
) -> "DerivedRun[pd.DataFrame]":
    """Like :func:`measure_point_to_point`, without waiting: with ``result()``, ``stop()`` and ``partial()``."""
    if cluster.num_ranks < 2:
        raise ValueError(f"cluster must have at least 2 ranks for a link between two; it has {cluster.num_ranks}")
    sizes = usual_sizes(cluster) if sizes is None else sizes
    if not sizes:
        raise ArgumentError("sizes", sizes, "must hold at least one size in bytes")
    sizes = [check_count("sizes", size, least=1) for size in sizes]
    check_count("iterations", iterations, least=1)
    run = cluster.submit(_ping_pong, sizes, iterations, timeout=timeout)
    return run.map(lambda run: _frame(run.reports, cluster.provenance))


def _frame(reports: "Iterable[Report]", provenance: "Provenance") -> pd.DataFrame:
    rows = []
    for (_, src, dst, nbytes), one_way in sorted(samples_of(reports).items()):
        rows.append(
            {
                "src": src,
                "dst": dst,
                "bytes": nbytes,
                "p50_us": one_way.p50_us,
                "p95_us": one_way.p95_us,
                "GBps": nbytes / one_way.p50_us / 1e3,
                **provenance.columns(),
            }
        )
    return pd.DataFrame(rows)


def usual_sizes(cluster: "Cluster") -> tuple[int, ...]:
    """Bytes of the messages between such ranks, rising."""
    if cluster.backend != "nccl":
        return MESSAGE_SIZES
    return SHARED_GPU_MESSAGE_SIZES if cluster.shares_gpus else GPU_MESSAGE_SIZES


def fit_link(frame: pd.DataFrame) -> AlphaBeta:
    """Alpha and beta of the best pair in a frame of :func:`measure_point_to_point`, for lower bounds (``fit_ends``)."""
    best = frame.groupby("bytes")["p50_us"].min()
    return fit_ends(best.index.to_numpy(float), best.to_numpy(float))


def _ping_pong(rank: "Rank", sizes: list[int], iterations: int) -> None:
    from tplab.collectives.transport import ProcessGroupTransport
    from tplab.measure.sampler import ping_pong

    pairs = permutations(range(rank.world_size), 2)
    ping_pong(rank, pairs, sizes, iterations, ProcessGroupTransport(rank.group).exchange)
