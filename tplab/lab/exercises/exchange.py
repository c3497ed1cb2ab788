"""Notebook 09: two ranks swap tensors, and neither knows how long the other's is."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tplab.cluster import Cluster
from tplab.lab.exercises import on_ranks
from tplab.lab.exercises.trial import Trial
from tplab.lab.exercises.verdict import NotYetError, Verdict, checker

if TYPE_CHECKING:
    import torch

    from tplab.cluster import Rank

_LENGTHS = ((5, 5), (3, 8), (8, 3), (1, 0), (200_000, 7))
"""Elements on rank 0 and on rank 1."""
_ON_HANG = (
    "A send returns when the other rank receives: who sends while the other sends, too, waits for ever. "
    "catch_hang(cluster, fn) says who waits in what."
)


@checker("09-exchange")
def check_exchange(
    cluster: Cluster, exchange: "Callable[[Rank, torch.Tensor], torch.Tensor]", *, timeout: float = 5.0
) -> Verdict:
    """Notebook 09: ``exchange(rank, x)`` must return the other rank's x, by messages between the two.

    First both tensors have five numbers; then they have other lengths, which the other rank is not told.
    """
    if cluster.num_ranks != 2:
        raise NotYetError(f"two ranks swap their tensors; this cluster has {cluster.num_ranks}: use Pool(num_ranks=2).")
    trial = Trial(cluster, exchange, timeout=timeout, on_hang=_ON_HANG)
    for lengths in _LENGTHS:
        what = f"With {lengths[0]:,} numbers on rank 0 and {lengths[1]:,} on rank 1"
        seen = trial.run(_given, _compared, lengths, context=what)
        for rank in seen:
            if rank.value:
                raise NotYetError(f"{what}, {rank.value.format(rank=rank.rank)}")
        if not any(rank.calls for rank in seen):
            raise NotYetError(f"{what}: right, but no message was counted. The tensors are to come from the ranks.")
    return Verdict(True, "each rank has what the other had, whatever its length.")


def _numbers(rank: "Rank", seed: int, of: int, lengths: tuple[int, int]) -> "torch.Tensor":
    import torch

    generator = torch.Generator().manual_seed(seed + of)
    return torch.randint(-99, 100, (lengths[of],), generator=generator).float().to(rank.device)


def _given(rank: "Rank", seed: int, lengths: tuple[int, int]) -> tuple[Any, ...]:
    return (_numbers(rank, seed, rank.index, lengths),)


def _compared(rank: "Rank", seed: int, got: Any, lengths: tuple[int, int]) -> str:
    """What is wrong on this rank; empty if nothing is."""
    import torch

    got = on_ranks.as_tensor(got)
    if not isinstance(got, torch.Tensor):
        return f"return the other tensor; on rank {{rank}} my_exchange() returned {on_ranks.described(got)}."
    want = _numbers(rank, seed, 1 - rank.index, lengths)
    if got.shape != want.shape:
        return f"the other rank has {want.numel():,} numbers; rank {{rank}} returned {got.numel():,}."
    if torch.equal(got.cpu().float(), want.cpu()):
        return ""
    mine = torch.equal(got.cpu().float(), _numbers(rank, seed, rank.index, lengths).cpu())
    return f"rank {{rank}} returned {'its own tensor' if mine else 'other numbers than the other rank has'}."
