"""Messages over a socket: blocking on the rank's side, never blocking on the supervisor's.

Not ``multiprocessing.connection``: its ``recv`` waits for the rest of a message and its ``send`` for a reader, so one
rank that is stopped in the middle of either would hold up the supervisor, and with it every time limit.

A message is a pickle and the large values in it, which travel beside it as they are (``wire.Bulk``): they are copied
neither into the pickle nor out of it, and one that the kernel has no memory for arrives empty. On the socket: a mark,
how many parts there are, the length of each, the parts. The mark distinguishes bytes that something else on the rank
has written there from a message.
"""

import os
import pickle
import socket
import struct
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

_MARK = b"tplb"
_HEADER = struct.Struct("!4sIQ")
"""Mark, number of parts, length of the first; the lengths of the others follow."""
_LENGTH = struct.Struct("!Q")
_MAX_PARTS = 64
_MAX_LENGTH = 1 << 42
_SCRATCH = 1 << 16
_READS_AT_ONCE = 64  # a rank that sends as fast as this reads must not hold up the supervisor's clock

Part = bytes | memoryview


class ChannelBroken(Exception):
    """What came is no message; nothing behind it can be understood either."""


class _Lost(bytearray):
    """Empty, in the place of a large value that there was no memory for."""


def encode(message: object) -> list[Part]:
    """A message as it travels, in parts that several ranks may share."""
    bulk: list[pickle.PickleBuffer] = []
    main = pickle.dumps(message, protocol=5, buffer_callback=bulk.append)
    header = _HEADER.pack(_MARK, 1 + len(bulk), len(main))
    if not bulk:
        return [header + main]
    raw = [buffer.raw() for buffer in bulk]
    return [header + b"".join(_LENGTH.pack(len(part)) for part in raw) + main, *raw]


def _decode(parts: Sequence[Any]) -> Any:
    try:
        return pickle.loads(parts[0], buffers=parts[1:])
    except BaseException as error:  # a pickle of another's making can raise anything, SystemExit included
        raise ChannelBroken(f"a message that cannot be read ({error!r})") from error


def _read_header(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Number of parts and length of the first."""
    mark, num_parts, length = _HEADER.unpack_from(data)
    if mark != _MARK or not 1 <= num_parts <= _MAX_PARTS or length > _MAX_LENGTH:
        raise ChannelBroken(f"the bytes {bytes(data[: _HEADER.size])!r} where a message should begin")
    return num_parts, length


def _read_lengths(data: bytes | bytearray) -> list[int]:
    lengths = [length for (length,) in _LENGTH.iter_unpack(data)]
    if max(lengths, default=0) > _MAX_LENGTH:
        raise ChannelBroken(f"a message of {max(lengths):,} bytes announced")
    return lengths


class RankChannel:
    """The rank's end."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._file = self._socket.makefile("rb")

    def forsake(self) -> None:
        """For a forked copy of the rank: it must neither speak in the rank's name nor keep the connection open."""
        with suppress(OSError):
            os.close(self._socket.detach())

    def send(self, parts: Sequence[Part]) -> None:
        """Send an encoded message, waiting until the kernel's side has taken it in."""
        for part in parts:
            self._socket.sendall(part)

    def recv(self) -> Any:
        """Wait for the next message. Raises ``EOFError`` when the kernel has hung up."""
        num_parts, length = _read_header(self._read(_HEADER.size))
        lengths = [length, *_read_lengths(self._read(_LENGTH.size * (num_parts - 1)))]
        return _decode([self._read(length) for length in lengths])

    def _read(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) < length:
            raise EOFError
        return data


class Assembly:
    """Messages out of bytes that come in pieces of any length."""

    def __init__(self) -> None:
        self._begin()

    def feed(self, data: memoryview) -> list[Any]:
        """The messages that these bytes complete. Raises ``ChannelBroken`` when they are none."""
        messages: list[Any] = []
        self._sort(data, messages)
        return messages

    def _sort(self, data: memoryview, messages: list[Any]) -> None:
        """Bytes that may end one thing and begin the next."""
        while data:
            if self._is_between and len(data) >= _HEADER.size:  # the usual case: a small message, whole
                num_parts, length = _read_header(data)
                end = _HEADER.size + length
                if num_parts == 1 and end <= len(data):
                    messages.append(_decode([data[_HEADER.size : end]]))
                    data = data[end:]
                    continue
            size = min(len(data), self._wanted - self._filled)
            if not isinstance(self._buffer, _Lost):
                self._buffer[self._filled : self._filled + size] = data[:size]
            data = data[size:]
            self._take(size, messages)

    def _take(self, size: int, messages: list[Any]) -> None:
        self._filled += size
        while self._filled == self._wanted:
            self._advance(messages)

    @property
    def _is_between(self) -> bool:
        """Nothing of the next message has come."""
        return not self._num_parts and not self._filled

    def _begin(self) -> None:
        """Wait for a header."""
        self._num_parts = 0
        self._lengths: list[int] = []
        self._parts: list[bytearray] = []
        self._expect(bytearray(_HEADER.size), _HEADER.size)

    def _expect(self, buffer: bytearray, wanted: int) -> None:
        self._buffer, self._wanted, self._filled = buffer, wanted, 0

    def _advance(self, messages: list[Any]) -> None:
        """A header, the other lengths or a part is complete: go on to the next of them, or to the next message."""
        if not self._num_parts:
            self._num_parts, length = _read_header(self._buffer)
            self._lengths = [length]
            if self._num_parts > 1:
                others = _LENGTH.size * (self._num_parts - 1)
                self._expect(bytearray(others), others)
                return
        elif len(self._lengths) < self._num_parts:
            self._lengths += _read_lengths(self._buffer)
        else:
            self._parts.append(self._buffer)
        if len(self._parts) < self._num_parts:
            length = self._lengths[len(self._parts)]
            self._expect(self._room(length), length)
        else:
            parts = self._parts
            self._begin()
            messages.append(_decode(parts))

    def _room(self, length: int) -> bytearray:
        try:
            return bytearray(length)
        except MemoryError:
            if not self._parts:
                raise ChannelBroken(f"no memory for a message of {length:,} bytes") from None
            return _Lost()


class SupervisorChannel(Assembly):
    """The supervisor's end: what cannot be sent now is kept, what has come in part waits for the rest."""

    def __init__(self, own_socket: socket.socket) -> None:
        own_socket.setblocking(False)
        self._socket = own_socket
        self._outgoing: deque[memoryview] = deque()
        self._scratch = memoryview(bytearray(_SCRATCH))
        super().__init__()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def has_outgoing(self) -> bool:
        """Whether something waits for the rank to take it in."""
        return bool(self._outgoing)

    def send(self, parts: Sequence[Part]) -> None:
        """Queue an encoded message and send what goes now. (The bytes are not copied: many ranks may share them.)"""
        self._outgoing += (memoryview(part) for part in parts if len(part))
        self.flush()

    def flush(self) -> None:
        """Send what goes now. A peer that is gone shows when reading."""
        with suppress(OSError):  # also BlockingIOError: full
            while self._outgoing:
                sent = self._socket.send(self._outgoing[0])
                if sent == len(self._outgoing[0]):
                    self._outgoing.popleft()
                else:
                    self._outgoing[0] = self._outgoing[0][sent:]

    def read(self) -> tuple[list[Any], bool]:
        """The messages that are complete now, and whether the rank has hung up.

        Raises ``ChannelBroken`` when what came is no message.
        """
        messages: list[Any] = []
        try:
            for _ in range(_READS_AT_ONCE):
                left = self._wanted - self._filled
                if left >= _SCRATCH and not isinstance(self._buffer, _Lost):
                    size = self._socket.recv_into(memoryview(self._buffer)[self._filled :])
                    self._take(size, messages)
                else:
                    size = self._socket.recv_into(self._scratch)
                    self._sort(self._scratch[:size], messages)
                if not size:
                    return messages, True
        except BlockingIOError:
            return messages, False
        except OSError:
            return messages, True
        return messages, False

    def close(self) -> None:
        self._socket.close()
