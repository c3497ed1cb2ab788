"""Who is at the other end of a rank's connections.

Gloo connects ranks through ports on loopback, and whoever connects to one and sends the small number that it expects is
taken for a rank. The addresses travel through the kernel, where nobody else can read them, but a port can be found by
looking. So, around the making of every group:

- its ranks wait for each other first, so that nobody listens for longer than connecting takes;
- afterwards each asks the system who owns the other end of each new connection, and hangs up on anybody else's;
- if anybody else was there, the ranks send each other secrets that went through the kernel: only a group in which every
  rank is who it should be passes;
- then every listening socket of the group is closed to newcomers (not where NCCL, of the same group, connects already).

Where the system does not say who is at the other end (macOS, a sandbox), nothing is checked.

Between hosts no system can be asked. There the ranks tell each other, through the kernel, both ends of every connection
that they have, and one to their ports that no rank has at its other end is a stranger's.
"""

import ctypes
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any

from tplab.cluster.sockets import (
    Address,
    borrowed,
    can_tell,
    describe_user,
    ends_of,
    is_listening,
    is_on_loopback,
    own_sockets,
    owner_of,
)

if TYPE_CHECKING:
    from tplab.cluster.rank_store import KernelStore

_SO_ATTACH_FILTER = 26
_OWNER_PATIENCE_S = 0.5  # an end that is just being accepted is nobody's yet
_CHALLENGE_S = 1.5
_SECRET_BYTES = 16


class Intruder(RuntimeError):
    """Somebody else took the place of a rank, or kept one from connecting."""


def strangers(descriptors: Sequence[int], ports: Collection[int] | None = None) -> dict[int, int | None]:
    """The connections over loopback, among these descriptors, whose other end is not this user's.

    Args:
        descriptors: of this process.
        ports: only connections to one of these ports of this process; None: all.

    Returns descriptor -> user id of the other end; None where nobody owns it. Raises ``OSError`` where it cannot be
    asked (no descriptor left): what was not looked at must not pass.
    """
    found: dict[int, int | None] = {}
    deadline = time.monotonic() + _OWNER_PATIENCE_S
    look = list(descriptors)
    while look:
        for fd in look:
            found.pop(fd, None)
            with _unless_closed(), borrowed(fd) as connection:
                ends = ends_of(connection)
                if ends is not None and is_on_loopback(ends[1]) and (ports is None or ends[0][1] in ports):
                    owner = owner_of(ends[1], ends[0])
                    if owner is None or not owner.inode:
                        found[fd] = None
                    elif owner.uid != os.getuid():
                        found[fd] = owner.uid
        look = [fd for fd, uid in found.items() if uid is None]
        if time.monotonic() > deadline:
            break
        if look:
            time.sleep(0.005)
    return found


@contextmanager
def _unless_closed() -> Iterator[None]:
    """Pass over a descriptor that was closed meanwhile, or is no socket any more."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.ENOTSOCK):
            raise


def listening_ports(descriptors: Sequence[int]) -> set[int]:
    """The ports of those of these sockets that listen."""
    found = set()
    for fd in descriptors:
        with _unless_closed(), borrowed(fd) as one:
            if one.family in (socket.AF_INET, socket.AF_INET6) and is_listening(one):
                found.add(one.getsockname()[1])
    return found


def ends_here(descriptors: Sequence[int]) -> set[str]:
    """Both ends, this one first, of each TCP connection among these descriptors, in words that ranks exchange."""
    return {_in_words(*ends) for ends in _connections(descriptors).values()}


def unclaimed(descriptors: Sequence[int], ports: Collection[int], claims: Collection[str]) -> dict[int, str]:
    """The connections among these descriptors to one of these ports whose other end none of the ranks has.

    Args:
        descriptors: of this process.
        ports: of this process.
        claims: what ``ends_here`` said on each rank, of all its connections.

    Returns descriptor -> who is there, in words.
    """
    return {
        fd: _describe_other(here, there)
        for fd, (here, there) in _connections(descriptors).items()
        if here[1] in ports and _in_words(there, here) not in claims
    }


def _connections(descriptors: Sequence[int]) -> dict[int, tuple[Address, Address]]:
    found = {}
    for fd in descriptors:
        with _unless_closed(), borrowed(fd) as connection:
            if (ends := ends_of(connection)) is not None:
                found[fd] = ends
    return found


def _in_words(here: Address, there: Address) -> str:
    return f"{here[0].hex()}:{here[1]} {there[0].hex()}:{there[1]}"


def _describe_other(here: Address, there: Address) -> str:
    """The user, where this host's system knows the other end; else the address."""
    owner = owner_of(there, here) if can_tell() else None
    if owner is not None and owner.inode and owner.uid != os.getuid():
        return describe_user(owner.uid)
    family = socket.AF_INET if len(there[0]) == 4 else socket.AF_INET6
    return f"somebody at {socket.inet_ntop(family, there[0])}, who is no rank,"


def check_all() -> None:
    """Look at every connection of this process, whenever it was made. Raises ``Intruder``.

    For NCCL between ranks that share GPUs: it connects when it first needs to, through sockets that take anybody.
    """
    others = strangers([*own_sockets().values()])
    if others:
        hang_up([*others])
        raise Intruder(
            f"{_names(others)} is connected to this rank, maybe in the place of another: what came from there is not "
            "to be trusted. Do not let ranks share GPUs on a machine with users you do not trust (SECURITY.md)"
        )


def hang_up(descriptors: Sequence[int]) -> None:
    """End these connections, and leave the descriptors to their owner."""
    for fd in descriptors:
        with suppress(OSError), borrowed(fd) as connection:
            connection.shutdown(socket.SHUT_RDWR)


def close_doors(descriptors: Sequence[int]) -> None:
    """Let nobody connect any more to those of these sockets that listen.

    A filter that drops what arrives, instead of closing them: they are gloo's, which must find them as it left them.
    """
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # one instruction: return 0 bytes
    program = struct.pack("HL", 1, ctypes.addressof(drop_all))
    for fd in descriptors:
        with suppress(OSError), borrowed(fd) as listener:
            if is_listening(listener):
                listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def guard_groups(store: "KernelStore", *, spans_hosts: bool = False) -> dict[str, int]:
    """Check every process group that this process makes from now on; call it before the first.

    ``torch.distributed`` has one function through which all gloo groups are made, default and new, meshes' included.
    Returns how often a group of each name was begun, counted on: ranks that disagree cannot make the next one.

    Args:
        store: where the ranks find each other.
        spans_hosts: whether ranks are on other hosts, too, and connect by a network.
    """
    from torch.distributed import distributed_c10d as c10d

    rounds: dict[str, int] = {}
    if not (os.path.isdir("/proc/self/fd") if spans_hosts else can_tell()):
        return rounds
    make: Callable[..., Any] = c10d._new_process_group_helper

    @wraps(make)
    def guarded(
        group_size: int, group_rank: int | None, members: Sequence[int], backend: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if group_rank is None or "gloo" not in _backends(backend):
            return make(group_size, group_rank, members, backend, *args, **kwargs)
        name = str(kwargs.get("group_name", args[1] if len(args) > 1 else ""))
        key = f"begun {name}"
        rounds[key] = rounds.get(key, 0) + 1
        meeting = _Meeting(store, f"tplab/{name}/{rounds[key]}", group_rank, group_size)
        meeting.exchange("here")
        known = own_sockets()
        made = make(group_size, group_rank, members, backend, *args, **kwargs)
        new = [fd for inode, fd in own_sockets().items() if inode not in known]
        claims = meeting.exchange("connected", "\n".join(ends_here(new) if spans_hosts else ()).encode())
        # What connected to the new ports; where this rank connected to, it has from the kernel.
        ports = listening_ports(new)
        new_now = [fd for inode, fd in own_sockets().items() if inode not in known]
        if spans_hosts:
            unknown = unclaimed(new_now, ports, {line for each in claims for line in each.decode().splitlines()})
            hang_up([*unknown])
            names = ", ".join(sorted(set(unknown.values())))
        else:
            others = strangers(new_now, ports)
            hang_up([*others])
            names = _names(others)
        seen = meeting.exchange("seen", names.encode())
        if not (kwargs.get("device_id") is not None and "nccl" in _backends(backend)):
            close_doors(new)  # else NCCL's are among them, to which its ranks are about to connect
        if any(seen):
            _challenge(made[0], meeting, ", ".join(sorted({who.decode() for who in seen if who})))
        return made

    c10d._new_process_group_helper = guarded  # type: ignore[assignment]
    return rounds


@dataclass(frozen=True, slots=True)
class _Meeting:
    """The ranks of one group, exchanging through the kernel."""

    store: "KernelStore"
    prefix: str
    rank: int
    size: int

    def exchange(self, what: str, value: bytes = b"") -> list[bytes]:
        """Every rank's value, once all have come; how long that may take is the run's business."""
        keys = [f"{self.prefix}/{what}/{rank}" for rank in range(self.size)]
        self.store.set(keys[self.rank], value)
        return self.store.get_all(keys)


def _challenge(group: Any, meeting: _Meeting, who: str) -> None:
    """Send secrets through the group and compare them with what came through the kernel. Raises ``Intruder``."""
    import torch

    mine = os.urandom(_SECRET_BYTES)
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


def _names(others: Mapping[int, int | None]) -> str:
    """The users among ``strangers``, each once; empty where there are none."""
    return ", ".join(sorted(map(describe_user, set(others.values()))))


def _backends(backend: Any) -> str:
    return "gloo" if backend is None else str(backend).lower()
