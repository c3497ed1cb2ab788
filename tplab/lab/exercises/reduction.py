"""Notebook 00: reduce so that every rank holds the product."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tplab.cluster import Cluster, ClusterError
from tplab.lab.exercises.verdict import Verdict

if TYPE_CHECKING:
    import torch

    from tplab.cluster import Rank


def check_reduction(
    cluster: Cluster, reduce: "Callable[[Rank, torch.Tensor], torch.Tensor]", *, timeout: float = 20.0
) -> Verdict:
    """Notebook 00: ``reduce(rank, x)`` must leave the product of all ranks' tensors on *every* rank.

    The first try holds 2 on rank 0 and 3 on rank 1 (1 on further ranks), so the product is 6. A second try with other
    numbers and a longer tensor tells a real reduction from a constant.
    """
    for values, length, what in (
        ([2.0, 3.0], 1, "with 2 and 3"),
        ([5.0, -1.5], 5, "with 5 and -1.5, a second try that you did not see,"),
    ):
        start = (values + [1.0] * cluster.num_ranks)[: cluster.num_ranks]
        want = math.prod(start)
        try:
            outcomes = cluster.run(_try, reduce, start, length, timeout=timeout)
        except ClusterError as error:
            return Verdict(False, f"Expected {want:g} on every rank, but the run failed: {error}")
        for rank, (kind, outcome) in enumerate(outcomes):
            if kind != "tensor":
                return Verdict(False, f"reduce() must return the tensor x; on rank {rank} it returned {outcome}.")
            if len(outcome) != length:
                return Verdict(
                    False, f"x has {length} elements; on rank {rank} reduce() returned {len(outcome)} elements."
                )
            if outcome != [want] * length:
                return Verdict(
                    False,
                    f"{what.capitalize()} every rank must hold {want:g}; rank {rank} holds {outcome[0]:g}. "
                    "Look at the op= of dist.all_reduce, and that every rank returns what it holds.",
                )
    return Verdict(True, f"all {cluster.num_ranks} ranks hold the product, also for numbers you had not seen.")


def _try(rank: "Rank", reduce: Callable[..., Any], start: list[float], length: int) -> tuple[str, Any]:
    import torch

    x = torch.full((length,), start[rank.index], device=rank.device)
    result = reduce(rank, x)
    if not isinstance(result, torch.Tensor):
        return type(result).__name__, repr(result)
    return "tensor", result.flatten().tolist()
