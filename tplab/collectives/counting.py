"""Count what own algorithms really hand to point-to-point calls, and set it beside the formula."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tplab.collectives.volumes import chunk_lengths, ring_sent_bytes, sent_bytes

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Rank, Run
    from tplab.cluster.run import DerivedRun


def count_sent_bytes(
    cluster: "Cluster", algorithms: Sequence[str] = ("ring", "two-shot", "one-shot"), num_elements: int = 1 << 18
) -> pd.DataFrame:
    """Run each of our algorithms once on float32 and count its send calls. ``whole-tensor`` is the mistaken ring of
    ``tplab.collectives.mistakes``.

    Returns one row per ``algorithm`` and ``rank``: ``counted_bytes``, ``num_sends``, ``formula_bytes`` (exact, with the
    uneven split where the number of ranks does not divide ``num_elements``; there is no padding), and ``bytes`` = S.
    """
    __tracebackhide__ = True
    return submit_count_sent_bytes(cluster, algorithms, num_elements).result()


def submit_count_sent_bytes(
    cluster: "Cluster", algorithms: Sequence[str], num_elements: int = 1 << 18, **callbacks: Any
) -> "DerivedRun[pd.DataFrame]":
    """Like :func:`count_sent_bytes`, without waiting: a future of the frame."""

    def build(run: "Run[list[tuple[int, int]]]") -> pd.DataFrame:
        rows, by_rank, n = [], run.result(), cluster.num_ranks
        for place, algorithm in enumerate(algorithms):
            for rank, counts in enumerate(by_rank):
                counted, num_sends = counts[place]
                rows.append(
                    {
                        "algorithm": algorithm,
                        "rank": rank,
                        "bytes": 4 * num_elements,
                        "counted_bytes": counted,
                        "num_sends": num_sends,
                        "formula_bytes": formula_bytes(algorithm, rank, num_elements, n),
                        **cluster.provenance.columns(),
                    }
                )
        return pd.DataFrame(rows)

    return cluster.submit(_count, tuple(algorithms), num_elements, **callbacks).map(build)


def formula_bytes(algorithm: str, rank: int, num_elements: int, n: int, itemsize: int = 4) -> float:
    """What ``rank`` must have sent.

    Args:
        algorithm: name of the all-reduce, one of the lab's own.
        rank: index of the rank.
        num_elements: length of the tensor.
        n: ranks.
        itemsize: bytes of an element.
    """
    if algorithm == "ring":
        return ring_sent_bytes(rank, num_elements, itemsize, n)
    if algorithm == "whole-tensor":
        return 2 * (n - 1) * itemsize * num_elements
    if algorithm == "two-shot":
        # Everybody else's chunk to its owner, then the own chunk to everybody else.
        own = chunk_lengths(num_elements, n)[rank]
        return itemsize * (num_elements - own + (n - 1) * own)
    return sent_bytes("all-reduce", algorithm, itemsize * num_elements, n).sent_max


def _count(rank: "Rank", algorithms: tuple[str, ...], num_elements: int) -> list[tuple[int, int]]:
    import torch

    from tplab.collectives.counter import CommCounter
    from tplab.collectives.mistakes import whole_tensor_all_reduce
    from tplab.collectives.timing import IMPLEMENTATIONS

    counted = []
    for algorithm in algorithms:
        x = torch.ones(num_elements, device=rank.device)
        with CommCounter() as counter:
            (IMPLEMENTATIONS | {"whole-tensor": whole_tensor_all_reduce})[algorithm](x, rank.group)
        total = counter.total("send")
        counted.append((total.num_bytes, total.num_calls))
    return counted
