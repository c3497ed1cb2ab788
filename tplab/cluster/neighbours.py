"""Who is at the other end of a rank's connections.

Gloo connects ranks through ports on loopback, and whoever connects to one and sends the small number that it expects is
taken for a rank. The addresses travel through the kernel, where nobody else can read them, but a port can be found by
looking. So, around the making of every group:

- its ranks wait for each other first, so that nobody listens for longer than connecting takes;
- afterwards each asks the system who owns the other end of each new connection, and hangs up on anybody else's;
- if anybody else was there, the ranks send each other secrets that went through the kernel: only a group in which every
  rank is who it should be passes;
- then every listening socket of the group is closed to newcomers.

Linux only: elsewhere the system does not say who is at the other end, and nothing is checked.
"""

import ctypes
import os
import secrets
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tplab.cluster.rank_store import KernelStore

_ESTABLISHED, _LISTENING = 1, 10
_SO_ATTACH_FILTER = 26
_READINGS = 4  # the system's table is not a snapshot: a line can be missing from one reading
_CHALLENGE_S = 5.0
_SECRET_BYTES = 16


class Intruder(RuntimeError):
    """Another user of this machine took the place of a rank, or kept one from connecting."""


@dataclass(frozen=True, slots=True)
class Connection:
    """One TCP socket of this machine."""

    local: str
    """Address and port, as /proc writes them."""
    remote: str
    state: int
    uid: int
    inode: int


def connections() -> list[Connection]:
    """Every TCP socket of this machine (of this network namespace); empty where the system does not say."""
    found = []
    for name in ("tcp", "tcp6"):
        with suppress(OSError), open(f"/proc/net/{name}") as file:
            next(file, None)
            for line in file:
                _, local, remote, state, _, _, _, uid, _, inode, *_ = line.split()
                found.append(Connection(_plain(local), _plain(remote), int(state, 16), int(uid), int(inode)))
    return found


def own_sockets() -> dict[int, int]:
    """Inode -> file descriptor, of every socket of this process; empty where the system does not say."""
    found = {}
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                target = os.readlink(f"/proc/self/fd/{name}")
                if target.startswith("socket:["):
                    found[int(target[8:-1])] = int(name)
    return found


def strangers(own: dict[int, int], known: dict[int, int] | None = None) -> dict[int, int | None]:
    """Connections of this process to processes of other users of this machine.

    Args:
        own: ``own_sockets()``.
        known: those of an earlier moment, which are left out.

    Returns file descriptor -> user id of the other end; None where nobody owns it.
    """
    look = set(own) - set(known or {})
    found: dict[int, int | None] = {}
    for _ in range(_READINGS):
        table = connections()
        owner = {(one.local, one.remote): one for one in table}
        found = {}
        for one in table:
            if one.inode in look and one.state == _ESTABLISHED and _on_loopback(one.remote):
                other = owner.get((one.remote, one.local))
                # An end that is not accepted yet, or closed already, is nobody's: it shows as root's, with no inode.
                uid = other.uid if other is not None and other.inode else None
                if uid != os.getuid():
                    found[own[one.inode]] = uid
        if None not in found.values():
            break
    return found


def close_doors(own: dict[int, int], known: dict[int, int]) -> None:
    """Let nobody connect any more to the listening sockets that came between ``known`` and ``own``.

    A filter that drops what arrives, instead of closing them: they are gloo's, which must find them as it left them.
    """
    look = set(own) - set(known)
    if not look:
        return
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # one instruction: return 0 bytes
    program = struct.pack("HL", 1, ctypes.addressof(drop_all))
    for one in connections():
        if one.inode in look and one.state == _LISTENING:
            with suppress(OSError), socket.socket(fileno=os.dup(own[one.inode])) as listener:
                listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def guard_groups(store: "KernelStore") -> None:
    """Check every process group that this process makes from now on; call it before the first.

    ``torch.distributed`` has one function through which all groups are made, default and new, meshes' included.
    """
    from torch.distributed import distributed_c10d as c10d

    if sys.platform != "linux":
        return
    make: Callable[..., Any] = c10d._new_process_group_helper
    rounds: dict[str, int] = {}

    @wraps(make)
    def guarded(
        group_size: int, group_rank: int | None, members: Sequence[int], backend: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if group_rank is None or "gloo" not in _backends(backend):
            return make(group_size, group_rank, members, backend, *args, **kwargs)
        name = str(kwargs.get("group_name", args[1] if len(args) > 1 else ""))
        rounds[name] = rounds.get(name, 0) + 1
        meeting = _Meeting(store, f"tplab/{name}/{rounds[name]}", group_rank, group_size)
        meeting.exchange("here")
        known = own_sockets()
        made = make(group_size, group_rank, members, backend, *args, **kwargs)
        meeting.exchange("connected")
        own = own_sockets()
        others = strangers(own, known)
        for fd in others:
            with suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
                connection.shutdown(socket.SHUT_RDWR)
        seen = meeting.exchange("seen", ", ".join(map(_user, others.values())).encode())
        close_doors(own, known)
        if any(seen):
            _challenge(made[0], meeting, ", ".join(sorted({who.decode() for who in seen if who})))
        return made

    c10d._new_process_group_helper = guarded  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class _Meeting:
    """The ranks of one group, exchanging through the kernel."""

    store: "KernelStore"
    prefix: str
    rank: int
    size: int

    def exchange(self, what: str, value: bytes = b"") -> list[bytes]:
        """Every rank's value, once all have come."""
        keys = [f"{self.prefix}/{what}/{rank}" for rank in range(self.size)]
        self.store.set(keys[self.rank], value)
        return self.store.multi_get(keys)


def _challenge(group: Any, meeting: _Meeting, who: str) -> None:
    """Send secrets through the group and compare them with what came through the kernel. Raises ``Intruder``."""
    import torch

    mine = secrets.token_bytes(_SECRET_BYTES)
    expected = meeting.exchange("secret", mine)
    passed = False
    with suppress(RuntimeError):  # a connection that was hung up on
        backend = group._get_backend(torch.device("cpu"))
        received = [torch.zeros(_SECRET_BYTES, dtype=torch.uint8) for _ in range(meeting.size)]
        work = backend.allgather([received], [torch.frombuffer(bytearray(mine), dtype=torch.uint8)])
        work.wait(timedelta(seconds=_CHALLENGE_S))
        passed = [bytes(tensor.tolist()) for tensor in received] == expected
    if not all(meeting.exchange("passed", b"yes" if passed else b"")):
        raise Intruder(
            f"{who} connected to the ports of the ranks while a process group was made, and kept ranks from finding "
            "each other. Nothing was sent to anybody else; run again, and ask that user or the administrator"
        )


def _backends(backend: Any) -> str:
    return "gloo" if backend is None else str(backend).lower()


def _plain(address: str) -> str:
    """An IPv4 address that an IPv6 socket uses, as IPv4."""
    return address.removeprefix("0000000000000000FFFF0000")


def _on_loopback(address: str) -> bool:
    host = address.partition(":")[0]
    return (len(host) == 8 and host.endswith("7F")) or host == "0" * 24 + "01000000"


def _user(uid: int | None) -> str:
    if uid is None:
        return "a process that has gone"
    try:
        import pwd

        return f"another user of this machine ({pwd.getpwuid(uid).pw_name}, uid {uid})"
    except (ImportError, KeyError):
        return f"another user of this machine (uid {uid})"
