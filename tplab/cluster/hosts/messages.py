"""What kernel and agent say to each other, and how it travels: messages cut into numbered pieces.

ipyparallel signs a message's headers and not what comes with it, so each piece brings its checksum in the signed part,
and nothing is unpickled before that was looked at. Pieces are small, so that a large value on its way is no silence;
numbered, because ipyparallel's way back (publish and subscribe) drops what comes while a connection is renewed.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tplab.cluster.backends import RankDevices, Share
from tplab.cluster.channel import Assembly, Part, encode
from tplab.cluster.engine import Event

BEAT_S = 0.5
"""Seconds between two signs of life, either way."""
SILENCE_S = 3.0
"""Seconds without one after which the kernel takes a host for lost."""
PATIENCE_S = 10.0
"""Seconds without one after which an agent ends its ranks: nobody is left who would. Longer than the kernel's, since a
kernel can be busy in compiled code."""
PIECE_BYTES = 1 << 20
WINDOW_BYTES = 4 << 20
"""How much is sent that the other end has not said it has, either way, and how much an agent takes from its ranks that
the kernel has not said it has handled. More would pile up: in the controller with every sign of life behind it, or in
the kernel."""

Content = Mapping[str, Any]
"""What is signed with a piece, in JSON: ``number``, ``digest``, ``anew`` (the rest of the message before does not
come), ``taken`` (bytes that have come the other way), and from the kernel ``handled`` (those that it is done with)."""


# From kernel to agent.


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start ranks; those that there were are ended."""

    launch: int
    """Number of the start, which all that is said of its ranks repeats."""
    placement: RankDevices
    """Backend and devices of this host's ranks."""
    share: Share
    """Which of the cluster's they are."""
    start_timeout: float
    """Seconds that they have to start."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Pass an encoded message on to ranks."""

    ranks: tuple[int, ...]
    """Their numbers on this host."""
    parts: tuple[Any, ...]
    """The message, as ``PickleBuffer`` on the way in, as bytes on the way out."""


@dataclass(frozen=True, slots=True)
class KillRank:
    """Kill one rank."""

    rank: int
    """The rank's number on this host."""


@dataclass(frozen=True, slots=True)
class Kill:
    """End all ranks."""

    launch: int
    """Number of their start, for the answer."""


@dataclass(frozen=True, slots=True)
class Leave:
    """End all ranks, and the agent: the cluster is closed."""


# From agent to kernel.


@dataclass(frozen=True, slots=True)
class Spawned:
    """The ranks' processes run, or could not be started."""

    launch: int
    """Number of the start."""
    pids: tuple[int, ...]
    """Process ids on the host, in rank order."""
    error: str
    """Why not; empty if they run."""
    no_room: bool
    """Whether it is for want of memory."""
    clock_s: float
    """What the host's monotonic clock said."""


@dataclass(frozen=True, slots=True)
class Happened:
    """Something happened to ranks."""

    launch: int
    """Number of their start."""
    events: tuple[Event, ...]
    """Ranks in it are numbered as on this host."""


@dataclass(frozen=True, slots=True)
class Killed:
    """All ranks are ended."""

    launch: int
    """Number of their start."""
    events: tuple[Event, ...]
    """The last that they wrote."""


@dataclass(frozen=True, slots=True)
class Left:
    """The agent has ended its ranks, unasked, and itself."""

    reason: str
    """Why, to follow a colon."""


class Garbled(Exception):
    """What came is not what was sent: a piece is missing, or another than was signed."""


class Outlet:
    """The sending end. May be used by several threads.

    Args:
        put: sends one piece, or a sign of life with none: called with its content and its bytes.
    """

    def __init__(self, put: Callable[[dict[str, Any], list[Part]], None]) -> None:
        self._put = put
        self._lock = threading.RLock()  # what goes wrong in put may be why nothing more is sent
        self._number = self._arrived_bytes = 0
        self._cut = False
        self._waiting: deque[Iterator[bytes | bytearray]] = deque()
        self.sent_bytes = 0

    def send(self, message: object) -> None:
        """Send a message: what of it is within the window, and the rest as the other end has said what it has."""
        with self._lock:
            self._waiting.append(_pieces(encode(message)))
            self._send_on()

    def beat(self) -> None:
        """Give a sign of life."""
        with self._lock:
            self._send(b"")

    def arrived(self, num_bytes: int) -> None:
        """The other end has had so many bytes."""
        with self._lock:
            self._arrived_bytes = num_bytes
            self._send_on()

    def drop(self) -> None:
        """Send nothing of what still waits, nor the rest of what has begun."""
        with self._lock:
            self._cut |= bool(self._waiting)
            self._waiting.clear()

    @property
    def is_full(self) -> bool:
        """Whether something waits."""
        return bool(self._waiting)

    def _send_on(self) -> None:
        while self._waiting and self.sent_bytes - self._arrived_bytes < WINDOW_BYTES:
            if (piece := next(self._waiting[0], None)) is not None:
                self._send(piece)
            elif self._waiting:
                self._waiting.popleft()

    def _send(self, piece: bytes | bytearray) -> None:
        self._number += 1
        self.sent_bytes += len(piece)
        content = {"number": self._number, "digest": _digest(piece), "anew": self._cut}
        self._cut = False
        self._put(content, [memoryview(piece)] if piece else [])


def _pieces(parts: Sequence[Part]) -> Iterator[bytearray]:
    """An encoded message in pieces, each made when it is sent."""
    piece = bytearray()
    for part in parts:
        view = memoryview(part).cast("B")
        while view:
            room = PIECE_BYTES - len(piece)
            piece += view[:room]
            view = view[room:]
            if len(piece) == PIECE_BYTES:
                yield piece
                piece = bytearray()
    if piece:
        yield piece


class Inlet:
    """The receiving end."""

    def __init__(self) -> None:
        self._assembly = Assembly()
        self._number = 0
        self.taken_bytes = 0

    def take(self, content: Content, buffers: Sequence[Any]) -> list[Any]:
        """The messages that a piece completes. Raises :class:`Garbled`, or ``ChannelBroken`` for what is no message."""
        piece = memoryview(getattr(buffers[0], "buffer", buffers[0])) if buffers else memoryview(b"")
        self._number += 1
        if content["number"] != self._number:
            raise Garbled(f"piece {self._number} of what it sent was lost on the way")
        if content["digest"] != _digest(piece):
            raise Garbled(f"piece {self._number} was changed on the way")
        if content["anew"]:
            self._assembly = Assembly()
        self.taken_bytes += len(piece)
        return self._assembly.feed(piece)


def _digest(piece: bytes | bytearray | memoryview) -> str:
    return hashlib.blake2b(piece, digest_size=16).hexdigest()
