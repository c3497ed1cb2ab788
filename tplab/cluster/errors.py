"""What can go wrong on a cluster, as the caller sees it.

Each fault is one exception that names the rank. The ranks' own exceptions are not re-raised bare: the learner could not
tell which rank raised, and a type that only the rank can import could not be raised here at all.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tplab.cluster.hang import Diagnosis


class ClusterError(RuntimeError):
    """Base of every fault a cluster reports."""

    host = ""
    """Name of the host whose rank it names; empty where all ranks are on this machine."""
    hang: "Diagnosis | None" = None
    """Which ranks waited in which collective, send or recv, and who was missing; None where no rank waited for
    another."""


class ClusterClosed(ClusterError):
    """The cluster was closed, before or during the call."""


class NoRoom(ClusterError):
    """There is too little memory for the ranks that were to be started (see ``admission``)."""


class RunStopped(ClusterError):
    """``stop()`` ended the run."""


class RankError(ClusterError):
    """The function raised on a rank. ``__cause__`` is the rank's own exception where it could be brought here."""

    def __init__(self, message: str, *, rank: int, traceback: str = "") -> None:
        super().__init__(message)
        self.rank = rank
        """Index of the rank that raised (the first, when several did)."""
        self.traceback = traceback
        """The rank's traceback, as text."""


class RankDied(ClusterError):
    """A rank's process ended: killed, crashed or left by ``os._exit``."""

    def __init__(self, message: str, *, rank: int, exit_code: int | None, output: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.rank = rank
        """Index of the rank whose process ended."""
        self.exit_code = exit_code
        """The exit code as ``subprocess.Popen.returncode`` has it: negative for a signal's number; None if unknown."""
        self.output = tuple(output)
        """The last lines the rank wrote."""


class HostLost(RankDied):
    """A rank's host is not heard of any more: it is down, or cut off from the network. ``rank`` is its first one."""

    def __init__(self, message: str, *, rank: int) -> None:
        super().__init__(message, rank=rank, exit_code=None)


class RankTimeout(ClusterError, TimeoutError):
    """Ranks had not answered when the time limit ran out."""

    def __init__(self, message: str, *, ranks: Sequence[int], stacks: Mapping[int, str] | None = None) -> None:
        super().__init__(message)
        self.ranks = tuple(ranks)
        """Indices of the ranks that had not answered."""
        self.stacks = dict(stacks or {})
        """Rank index -> where its main thread was, as text."""

    @property
    def rank(self) -> int:
        """Index of the first rank that could not even say where it was, or else the first that had not answered."""
        return next((rank for rank in self.ranks if rank not in self.stacks), self.ranks[0])


def closed() -> ClusterClosed:
    """What a cluster says that was closed."""
    return ClusterClosed("this cluster is closed: make a new one with Cluster(n)")
