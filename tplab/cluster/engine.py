"""The small protocol between the supervisor and whatever hosts the ranks.

An engine starts processes, carries messages and notices exits; it takes no decisions. What a fault means, who waits for
whom and what is killed when is the supervisor's, the same for every engine. All methods but ``wake`` are called from
the supervisor's one thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tplab.cluster.backends import RankDevices
from tplab.cluster.channel import Part

Stream = Literal["stdout", "stderr"]


@dataclass(frozen=True, slots=True)
class Received:
    """A rank sent a message (see ``wire``)."""

    rank: int
    message: object


@dataclass(frozen=True, slots=True)
class Wrote:
    """A rank wrote a line of output, or a piece of one that is too long to be kept together."""

    rank: int
    stream: Stream
    line: str


@dataclass(frozen=True, slots=True)
class Opened:
    """What stands in a line of a rank that has no end yet; nothing: there is no such line any more."""

    rank: int
    stream: Stream
    text: str
    """The end of it, where it is long; several rows where the cursor moves between them."""


@dataclass(frozen=True, slots=True)
class Broke:
    """What a rank sent is no message. The engine ends that rank, because nothing more it sends can be understood."""

    rank: int
    reason: str


@dataclass(frozen=True, slots=True)
class Exited:
    """A rank's process ended."""

    rank: int
    exit_code: int | None
    lost: str = ""
    """Why nobody knows whether it ended: its host is not heard of any more."""


Event = Received | Wrote | Opened | Broke | Exited


class Engine(Protocol):
    """Hosts the ranks of one cluster."""

    @property
    def placement(self) -> RankDevices:
        """Backend, and device and host of every rank; of ranks that are down, where they were last, or would be."""

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the ranks that run now, in rank order; empty when there are none."""

    def spawn(self) -> None:
        """Start all ranks, without waiting for them. They send ``wire.Ready`` or ``wire.RankFault`` when they know.
        Raises ``OSError`` where the system refuses them, and a ``ClusterError`` where they cannot be: ``NoRoom``, too
        little memory, or hosts that cannot be reached."""

    def notices(self) -> list[str]:
        """What whoever runs something on these ranks should know of where they are; each is told once."""

    def send(self, rank: int, parts: Sequence[Part]) -> None:
        """Send an encoded message, without waiting for the rank to take it in. To a rank that is gone: no effect."""

    def poll(self, timeout: float | None) -> list[Event]:
        """What happened since the last call; waits up to ``timeout`` seconds for something to. A rank's output comes
        before the messages it sent after writing it."""

    def heard_since(self, rank: int, moment: float) -> bool:
        """Whether there was a sign of the rank's host since ``moment`` (``time.monotonic``); also True once it is known
        that there will be none."""

    def kill_rank(self, rank: int) -> None:
        """Send SIGKILL to one rank's process, and to its group. ``poll`` says when it has ended, as of any other that
        ends. Of a rank that is gone: no effect."""

    def kill(self) -> list[Event]:
        """End every rank and all that they started, whatever its session or parent, now; returns the output that was
        still under way. Safe to repeat."""

    def wake(self) -> None:
        """Make ``poll`` return; from any thread."""

    def close(self) -> None:
        """Free what the engine holds itself; the ranks are gone by then."""
