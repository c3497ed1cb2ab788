"""What the kernel hands to the ranks for one run of a table, and the error that a stage's failure becomes.

Apart from ``tplab.pipeline.executor``, since the kernel does without torch.
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
    """By stage and micro-batch: size of the output, and of its gradient; rounded up to float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One table, with communication, and what its stages compute."""

    schedule: Schedule
    """Says when to send and to receive."""
    stage: Callable[[Any, int], Any] | Waits
    """``stage(rank, index)`` makes the module of stage ``index``; or waiting instead."""
    inputs: Any = None
    """One tensor to be split, one per micro-batch, or a function of rank and micro-batch."""
    targets: Any = None
    """Likewise, for the loss."""
    loss: Callable[..., Any] | None = None
    """Of output and target, or of the output where there are no targets."""
    links: "LinkTable | EmulatedLink | None" = None
    """Emulated links between the ranks; None: the backend's own."""
    recv_ahead: int = 0
    """Receives that a rank posts before their place in the table, per link. A message without a receive waits until its
    sender has been told of one, which a busy machine does late."""
    dynamic_shapes: bool = False
    """Tell shapes with every message."""
    warm_ups: int = 0
    """Runs of the table before the one that counts."""
    keep: bool = True
    """Send outputs and gradients to the kernel."""


def pairs_of(schedule: Schedule) -> list[tuple[int, int]]:
    """Directed pairs of ranks between which the table sends something, sorted."""
    messages = Messages(schedule)
    pairs = set()
    for rank, _, action in schedule.actions():
        recv = messages.recv_of(action) if action.op.is_send else None
        if recv is not None:
            pairs.add((rank, schedule.stage_to_rank(recv.stage)))
    return sorted(pairs)
