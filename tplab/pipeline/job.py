"""What the notebook kernel hands to the ranks for one run of a table, and the error that a stage's failure becomes.

Apart from ``tplab.pipeline.executor``, since the notebook kernel does without torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tplab.pipeline.communication import Messages
from tplab.pipeline.schedule import Action, Schedule

if TYPE_CHECKING:
    from tplab.collectives.emulated_link import EmulatedLink, LinkTable

Record = tuple[int, int, str, int, float, "float | None"]
"""Rank, stage, op, micro-batch, start and end in seconds of one clock. A send of which only the receiver can tell when
it arrived has no end; the receiver's own record has it."""


class StageError(RuntimeError):
    """A stage failed: says which action of which stage, on what, from whom. The stage's own exception is its cause."""


class Waits(NamedTuple):
    """Stages that only wait."""

    durations: Mapping[Action, float]
    """Computation -> seconds."""
    message_bytes: Sequence[Sequence[int]]
    """Bytes by stage and micro-batch: size of the output and of its gradient, rounded up to whole float32 numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One table, with communication, and what its stages compute."""

    schedule: Schedule
    """The table, with its sends and receives."""
    stage: Callable[[Any, int], Any] | Waits
    """``stage(rank, index)`` makes the module of stage ``index``; or waiting instead."""
    inputs: Any = None
    """One tensor to be split, one per micro-batch, or a function of rank and micro-batch."""
    targets: Any = None
    """Targets for the loss, in the forms that ``inputs`` has."""
    loss: Callable[..., Any] | None = None
    """The loss, as a function of output and target, or of the output alone where there are no targets."""
    links: "LinkTable | EmulatedLink | None" = None
    """Emulated links between the ranks; None: the backend's own."""
    recv_ahead: int = 0
    """Receives that a rank posts before their place in the table, per link. A message without a receive waits until its
    sender has heard of one, which takes long on a busy machine."""
    dynamic_shapes: bool = False
    """Whether shapes are announced with every message."""
    warm_ups: int = 0
    """Runs of the table before the one that counts."""
    keep: bool = True
    """Whether to send outputs and gradients to the notebook kernel."""


def pairs_of(schedule: Schedule) -> list[tuple[int, int]]:
    """Directed pairs of ranks between which the table sends something, sorted."""
    messages = Messages(schedule)
    pairs = set()
    for rank, _, action in schedule.actions():
        recv = messages.recv_of(action) if action.op.is_send else None
        if recv is not None:
            pairs.add((rank, schedule.stage_to_rank(recv.stage)))
    return sorted(pairs)
