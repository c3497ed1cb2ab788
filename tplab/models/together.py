"""Work that every rank does, or none goes on after: a fault on one is known to all. No torch at import."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from tplab.models.records import CheckpointError

if TYPE_CHECKING:
    from tplab.cluster import Rank

T = TypeVar("T")
ANOTHER_RANK = "another rank failed"
"""What a rank knows of a fault that was not its own."""


def together(rank: "Rank", work: Callable[[], T], *, all_of: bool = False) -> T:
    """Do ``work`` on every rank; if it raises on any, every rank raises, so that none waits for one that is gone.

    Two small collectives at most. With ``all_of`` the result is whether every rank's was true.

    Raises:
        CheckpointError: naming the rank, where the fault was another's; else the fault itself.
    """
    import torch
    import torch.distributed as dist

    error: Exception | None = None
    result: Any = None
    try:
        result = work()
    except Exception as raised:
        error = raised
    flags = torch.tensor([0 if error is None else 1, 0 if result else 1], device=rank.device)
    if rank.world_size > 1:
        dist.all_reduce(flags, group=rank.group)
    num_failed, num_false = flags.tolist()
    if num_failed:
        what = None if error is None else f"{type(error).__name__}: {error}"
        heard: list[Any] = [what]
        if rank.world_size > 1:
            heard = [None] * rank.world_size
            dist.all_gather_object(heard, what, group=rank.group)
        if error is not None:
            raise error
        first = next(index for index, said in enumerate(heard) if said is not None)
        raise CheckpointError(f"rank {first} failed, so no rank went on: {heard[first]}")
    answer: T = num_false == 0 if all_of else result
    return answer
