"""Who owns the other end of a TCP connection between two processes of this machine.

Linux says it twice: in a table of all sockets (``/proc/net/tcp``), which takes some 10 ms to read on a machine with
much memory, and of one socket at a time over netlink (``sock_diag(7)``), in microseconds. The second is asked first;
the table where it does not answer (a sandbox without netlink).
"""

import os
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI")
_NO_COOKIE = b"\xff" * 8
_ESTABLISHED = 1
_MAPPED = b"\0" * 10 + b"\xff\xff"

Address = tuple[bytes, int]
"""Packed IPv4 or IPv6 address, and port."""


class Owner(NamedTuple):
    """The owner of one end of a connection."""

    uid: int
    inode: int
    """Inode of the socket; 0 if no process has it: not accepted yet, or closed."""


def own_sockets() -> dict[int, int]:
    """Inode -> file descriptor, of every socket of this process. Raises ``OSError`` where they cannot be listed."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:["):
                found[int(target[8:-1])] = int(name)
    return found


def is_listening(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def borrowed(fd: int) -> socket.socket:
    """A socket object for a descriptor that stays its owner's; to be closed. Raises ``OSError``."""
    return socket.socket(fileno=os.dup(fd))


def ends_of(connection: socket.socket) -> tuple[Address, Address] | None:
    """This end and the other of a TCP connection; None for any other socket."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
        return None
    try:
        return _packed(connection.getsockname()), _packed(connection.getpeername())
    except OSError:  # not connected
        return None


def is_on_loopback(address: Address) -> bool:
    """127.0.0.0/8 or ::1."""
    host = address[0]
    return host[:1] == b"\x7f" if len(host) == 4 else host == b"\0" * 15 + b"\1"


def owner_of(here: Address, there: Address) -> Owner | None:
    """Owner of the socket at ``here`` that is connected to ``there``; None where there is none."""
    return _ask_kernel(here, there) if _answers(_ask_kernel) else _look_up(here, there)


def can_tell() -> bool:
    """Whether this system says who owns a connection."""
    return _answers(_ask_kernel) or _answers(_look_up)


@lru_cache
def _answers(ask: Callable[[Address, Address], Owner | None]) -> bool:
    """Whether ``ask`` knows a connection that there is: what a system says does not change."""
    with suppress(OSError), socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as near:
            ends = ends_of(near)
            owner = None if ends is None else ask(*ends)
            return owner is not None and owner == Owner(os.getuid(), os.fstat(near.fileno()).st_ino)
    return False


def _ask_kernel(here: Address, there: Address) -> Owner | None:
    family = socket.AF_INET if len(here[0]) == 4 else socket.AF_INET6
    ends = struct.pack("!HH", here[1], there[1]) + here[0].ljust(16, b"\0") + there[0].ljust(16, b"\0")
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 1 << _ESTABLISHED) + ends + b"\0" * 4 + _NO_COOKIE
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(1.0)
        netlink.send(_HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + request)
        reply = netlink.recv(1 << 16)
    _, kind, *_ = _HEADER.unpack_from(reply)
    body = reply[_HEADER.size :]
    # A listener on the same port answers where there is no such connection.
    if kind != _SOCK_DIAG_BY_FAMILY or body[1] != _ESTABLISHED or body[4:8] != ends[:4]:
        return None
    return Owner(*struct.unpack_from("=II", body, 64))


def describe_user(uid: int | None) -> str:
    """The owner in words; ``uid`` None means a process that has ended."""
    if uid is None:
        return "a process that has gone"
    try:
        import pwd

        return f"another user of this machine ({pwd.getpwuid(uid).pw_name}, uid {uid})"
    except (ImportError, KeyError):
        return f"another user of this machine (uid {uid})"


def _look_up(here: Address, there: Address) -> Owner | None:
    for name in ("tcp", "tcp6"):
        with suppress(OSError), open(f"/proc/net/{name}") as file:
            next(file, None)
            for line in file:
                _, local, remote, state, _, _, _, uid, _, inode, *_ = line.split()
                if int(state, 16) == _ESTABLISHED and (_read(local), _read(remote)) == (here, there):
                    return Owner(int(uid), int(inode))
    return None


def _read(text: str) -> Address:
    """An address as /proc writes it: words of 32 bits in the machine's byte order."""
    host, port = text.split(":")
    words = [int(host[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(host), 8)]
    return b"".join(words).removeprefix(_MAPPED), int(port, 16)


def _packed(name: tuple[str, int]) -> Address:
    host = name[0].partition("%")[0]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.inet_pton(family, host).removeprefix(_MAPPED), name[1]
