"""Messages over a socket: blocking on the rank's side, never blocking on the supervisor's.

Not ``multiprocessing.connection``: its ``recv`` waits for the rest of a message and its ``send`` for a reader, so one
rank that is stopped in the middle of either would hold up the supervisor, and with it every time limit.

A message is a pickle and the large values in it, which travel beside it as they are (``wire.Bulk``): they are copied
neither into the pickle nor out of it, and one that the kernel has no memory for arrives empty.
On the socket: a mark, how many parts there are, the length of each, the parts. The mark tells bytes that something else
on the rank has written there from a message.
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
_HEADER = struct.Struct("!4sI")
_LENGTH = struct.Struct("!Q")
_MAX_PARTS = 64
_MAX_LENGTH = 1 << 42
_SCRATCH = 1 << 16
_LARGE = 1 << 16
_READS_AT_ONCE = 64  # a rank that sends as fast as this reads must not hold up the supervisor's clock

Part = bytes | memoryview


class ChannelBroken(Exception):
    """What came is no message; nothing behind it can be understood either."""


class _Lost(bytearray):
    """Empty, in the place of a large value that there was no memory for."""


def encode(message: object) -> list[Part]:
    """A message as it travels, in parts that several ranks may share."""
    bulk: list[memoryview] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < _LARGE:
            return True
        bulk.append(raw)
        return False

    main = pickle.dumps(message, protocol=5, buffer_callback=is_small)
    lengths = b"".join(_LENGTH.pack(len(part)) for part in (main, *bulk))
    return [_HEADER.pack(_MARK, 1 + len(bulk)) + lengths + main, *bulk]


def _decode(parts: Sequence[Any]) -> Any:
    try:
        return pickle.loads(parts[0], buffers=parts[1:])
    except BaseException as error:  # a pickle of another's making can raise anything, SystemExit included
        raise ChannelBroken(f"a message that cannot be read ({error!r})") from error


def _check_header(mark: bytes, num_parts: int) -> None:
    if mark != _MARK or not 1 <= num_parts <= _MAX_PARTS:
        raise ChannelBroken(f"the bytes {mark!r} where a message should begin")


def _check_lengths(lengths: Sequence[int]) -> None:
    if max(lengths) > _MAX_LENGTH:
        raise ChannelBroken(f"a message of {max(lengths):,} bytes announced")


class RankChannel:
    """The rank's end."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._file = self._socket.makefile("rb")

    def forsake(self) -> None:
        """For a forked copy of the rank: it must neither speak in the rank's name nor keep the connection open."""
        with suppress(OSError):
            os.close(self._socket.detach())

    def send(self, message: object) -> None:
        """Send, waiting until the kernel's side has taken it in."""
        for part in encode(message):
            self._socket.sendall(part)

    def recv(self) -> Any:
        """Wait for the next message. Raises ``EOFError`` when the kernel has hung up."""
        mark, num_parts = _HEADER.unpack(self._read(_HEADER.size))
        _check_header(mark, num_parts)
        lengths = [_LENGTH.unpack(self._read(_LENGTH.size))[0] for _ in range(num_parts)]
        _check_lengths(lengths)
        return _decode([self._read(length) for length in lengths])

    def _read(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) < length:
            raise EOFError
        return data


class SupervisorChannel:
    """The supervisor's end: what cannot be sent now is kept, what has come in part waits for the rest."""

    def __init__(self, own_socket: socket.socket) -> None:
        own_socket.setblocking(False)
        self._socket = own_socket
        self._outgoing: deque[memoryview] = deque()
        self._scratch = memoryview(bytearray(_SCRATCH))
        self._begin()

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

    def _sort(self, data: memoryview, messages: list[Any]) -> None:
        """Bytes that may end one thing and begin the next."""
        while data:
            size = min(len(data), self._wanted - self._filled)
            if not isinstance(self._buffer, _Lost):
                self._buffer[self._filled : self._filled + size] = data[:size]
            data = data[size:]
            self._take(size, messages)

    def _take(self, size: int, messages: list[Any]) -> None:
        self._filled += size
        while self._filled == self._wanted:
            self._advance(messages)

    def _begin(self) -> None:
        """Wait for a header."""
        self._num_parts = 0
        self._lengths: list[int] = []
        self._parts: list[bytearray] = []
        self._expect(bytearray(_HEADER.size), _HEADER.size)

    def _expect(self, buffer: bytearray, wanted: int) -> None:
        self._buffer, self._wanted, self._filled = buffer, wanted, 0

    def _advance(self, messages: list[Any]) -> None:
        """A header, the lengths or a part is complete: go on to the next of them, or to the next message."""
        if self._lengths:
            self._parts.append(self._buffer)
        elif self._num_parts:
            self._lengths = [length for (length,) in _LENGTH.iter_unpack(self._buffer)]
            _check_lengths(self._lengths)
        else:
            mark, self._num_parts = _HEADER.unpack(self._buffer)
            _check_header(mark, self._num_parts)
            self._expect(bytearray(_LENGTH.size * self._num_parts), _LENGTH.size * self._num_parts)
            return
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

    def close(self) -> None:
        self._socket.close()
