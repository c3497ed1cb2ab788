"""Notebook 00: reduce so that every rank holds the product."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tplab.cluster import Cluster
from tplab.lab.exercises import on_ranks
from tplab.lab.exercises.trial import Trial
from tplab.lab.exercises.verdict import NotYetError, Verdict, checker
from tplab.shown import counted

if TYPE_CHECKING:
    import torch

    from tplab.cluster import Rank

_SHOWN = (2.0, 3.0)
"""What the notebook gives the first two ranks; further ranks hold 1."""
_TOLERANCE = 1e-4
"""Relative; a product that comes by way of logarithms is right, too."""
_LENGTHS = (1, 5, 3)
"""Elements of the tries; the numbers of all but the first are drawn."""


@checker("00-product")
def check_reduction(
    cluster: Cluster, reduce: "Callable[[Rank, torch.Tensor], torch.Tensor]", *, timeout: float = 20.0
) -> Verdict:
    """Notebook 00: ``reduce(rank, x)`` must leave the product of all ranks' tensors on *every* rank.

    The first try holds 2 on rank 0 and 3 on rank 1 (1 on further ranks), so the product is 6. Further tries hold
    numbers that are drawn anew, another for every element, in longer tensors.
    """
    trial = Trial(cluster, reduce, timeout=timeout)
    for length in _LENGTHS:
        drawn = length > 1
        what = "With numbers you have not seen" if drawn else "With 2 on rank 0 and 3 on rank 1"
        seen = trial.run(_given, _compared, length, drawn, context=what)
        for rank in seen:
            if rank.value:
                raise NotYetError(f"{what}, {rank.value.format(rank=rank.rank)}")
        silent = next((rank.rank for rank in seen if not rank.calls), None)
        if silent is not None and cluster.num_ranks > 1:
            raise NotYetError(
                f"{what}: right on rank {silent}, but it has asked nobody: no collective was counted there. It knows "
                f"only its own x; the others' numbers come with dist.all_reduce."
            )
    return Verdict(True, f"all {cluster.num_ranks} ranks hold the product, also of numbers you had not seen.")


def _numbers(rank: "Rank", seed: int, length: int, drawn: bool) -> "torch.Tensor":
    """(ranks, length): small halves, whose products are exact."""
    import torch

    if not drawn:
        shown = [*_SHOWN, *[1.0] * rank.world_size][: rank.world_size]
        return torch.tensor(shown).reshape(-1, 1).expand(-1, length)
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(2, 7, (rank.world_size, length), generator=generator) / 2.0
    return numbers * (1 - 2 * torch.randint(0, 2, numbers.shape, generator=generator))


def _given(rank: "Rank", seed: int, length: int, drawn: bool) -> tuple[Any, ...]:
    return (_numbers(rank, seed, length, drawn)[rank.index].clone().to(rank.device),)


def _compared(rank: "Rank", seed: int, got: Any, length: int, drawn: bool) -> str:
    """What is wrong on this rank; empty if nothing is."""
    import torch

    got = on_ranks.as_tensor(got)
    if not isinstance(got, torch.Tensor):
        return f"reduce() must return the tensor x; on rank {{rank}} it returned {on_ranks.described(got)}."
    if got.numel() != length:
        return f"x has {length} elements; on rank {{rank}} reduce() returned {counted(got.numel(), 'element')}."
    want = _numbers(rank, seed, length, drawn).prod(0)
    got = got.detach().flatten().cpu().double()
    off = (~((got - want).abs() <= _TOLERANCE * want.abs())).nonzero().flatten()
    if not len(off):
        return ""
    return (
        f"every rank must hold the product, {want[off[0]]:g}; rank {{rank}} holds {got[off[0]]:g}. Look at "
        f"the op= of dist.all_reduce, and that every rank returns what it holds."
    )
