"""What a rank says of its collectives, sends and receives: plain data, which ``recorder`` writes down on the rank and
``hang`` judges in the kernel."""

from dataclasses import dataclass
from typing import Literal

Frame = tuple[str, int, str, str | None]
"""File name, line number, function name, source line (None where this process cannot see it)."""
State = Literal["called", "waits", "done"]
Status = Literal["running", "returned", "raised", "ended", "lost", "silent"]

BETWEEN_TWO = ("send", "recv")


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """A process group as one of its ranks knows it."""

    name: str
    """torch's name of it, the same on all its ranks."""
    description: str
    """torch's description of it; empty if there is none that says anything."""
    ranks: tuple[int, ...]
    """Ranks that are its members."""
    is_default: bool
    """Whether it is the group of all ranks of the run."""
    returns_early: bool = False
    """Whether a call, and the wait for it, are over when the GPU was told of it (NCCL)."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call that a rank made to a process group."""

    kind: str
    """``all_reduce``, ``all_gather``, ``reduce_scatter``, ``broadcast``, ``reduce``, ``gather``, ``scatter``,
    ``all_to_all``, ``barrier``, ``send`` or ``recv``."""
    group: str
    """Name of the group."""
    number: int
    """Which of the run's collectives on this group it is on this rank, from 1. Of a send or recv: which with this peer
    and tag."""
    num_elements: int | None
    """Elements of the tensor that must be as large on every rank (of an all-gather: the piece that a rank gives; of a
    reduce-scatter: the piece that it gets). None for a barrier."""
    dtype: str
    """Dtype of the tensor; empty for a barrier."""
    peer: int | None
    """The root, or the other rank of a send or recv. None where there is none, or where it can be any."""
    tag: int
    """Tag of a send or recv."""
    where: Frame
    """The line outside torch that made the call."""
    state: State
    """``waits``: the rank is in it now, or in the wait for it. ``done``: that has returned (with NCCL the GPU may still
    be at it). ``called``: it was started, and nobody has waited for it since."""


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of one rank in one run."""

    groups: tuple[GroupFacts, ...] = ()
    """Groups that the rank has called."""
    counts: tuple[tuple[str, int], ...] = ()
    """Group name -> how many collectives it was given in this run."""
    exchanged: tuple[tuple[str, str, int | None, int, int], ...] = ()
    """Group name, ``send`` or ``recv``, peer, tag and how many of them there were."""
    calls: tuple[Call, ...] = ()
    """The last calls, oldest first."""


NO_CALLS = Calls()


@dataclass(frozen=True, slots=True)
class Position:
    """Where one rank was when the run could not go on."""

    status: Status
    """``silent``: it was asked and did not answer. ``lost``: nothing is heard of its host."""
    frames: tuple[Frame, ...] = ()
    """The stack of a rank that runs, outermost first."""
    calls: Calls = NO_CALLS
    """The rank's calls; none where it could not say."""
    fault: str = ""
    """What it raised, in a word."""
    sizes: tuple[int, int] | None = None
    """Bytes of a message that came, and bytes that there was room for, where that ended its process (gloo)."""


__all__ = ["BETWEEN_TWO", "NO_CALLS", "Call", "Calls", "Frame", "GroupFacts", "Position", "State", "Status"]
