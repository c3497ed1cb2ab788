"""Messages over a socket: blocking on the rank's side, never blocking on the supervisor's.

Not ``multiprocessing.connection``: its ``recv`` waits for the rest of a message and its ``send`` for a reader, so one
rank that is stopped in the middle of either would hold up the supervisor, and with it every time limit.
"""

import pickle
import socket
import struct
from collections import deque
from contextlib import suppress
from typing import Any

_HEADER = struct.Struct("!Q")
_READ_SIZE = 1 << 20
_READS_AT_ONCE = 64  # a rank that sends as fast as this reads must not hold up the supervisor's clock


def encode(message: object) -> bytes:
    """A message as it travels, without its length."""
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


class RankChannel:
    """The rank's end."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._file = self._socket.makefile("rb")

    def send(self, message: object) -> None:
        """Send, waiting until the kernel's side has taken it in."""
        data = encode(message)
        self._socket.sendall(_HEADER.pack(len(data)))
        self._socket.sendall(data)

    def recv(self) -> Any:
        """Wait for the next message. Raises ``EOFError`` when the kernel has hung up."""
        (length,) = _HEADER.unpack(self._read(_HEADER.size))
        return pickle.loads(self._read(length))

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
        self._incoming = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def has_outgoing(self) -> bool:
        """Whether something waits for the rank to take it in."""
        return bool(self._outgoing)

    def send(self, data: bytes) -> None:
        """Queue an encoded message and send what goes now. (The bytes are not copied: many ranks may share them.)"""
        self._outgoing += (memoryview(_HEADER.pack(len(data))), memoryview(data))
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
        """The messages that are complete now, and whether the rank has hung up."""
        ended = False
        try:
            for _ in range(_READS_AT_ONCE):
                data = self._socket.recv(_READ_SIZE)
                if not data:
                    ended = True
                    break
                self._incoming += data
        except BlockingIOError:
            pass
        except OSError:
            ended = True
        return self._complete(), ended

    def _complete(self) -> list[Any]:
        messages, at = [], 0
        while len(self._incoming) - at >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._incoming, at)
            if len(self._incoming) - at - _HEADER.size < length:
                break
            at += _HEADER.size
            messages.append(pickle.loads(memoryview(self._incoming)[at : at + length]))
            at += length
        del self._incoming[:at]
        return messages

    def close(self) -> None:
        self._socket.close()
