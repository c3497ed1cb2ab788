"""Whether every host can connect to every other on the address that its ranks would use: tried, before a run hangs.

Gloo waits for minutes for a peer behind a firewall and then names nobody. Here every host listens for a moment on its
chosen address, at a port that the system gives, as gloo does, and every other connects to it, both ways. Whoever
connects must know a secret that went through the controller, and so must the listener: an answer of somebody else who
has the same address in another network is none. A few dozen kilobytes go back and forth, because a path whose packets
are smaller than both ends believe lets the handshake through and swallows the rest.
"""

import hmac
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from tplab.cluster.hosts.networks import Address, Unreachable

TIMEOUT_S = 3.0
_PATIENCE_S = 10.0  # for a host to answer, whose cores may be busy with ranks that import torch
_DATA_BYTES = 32 * 1024  # several of the largest Ethernet packets
_NONCE_BYTES = 16
_PROOF_BYTES = 32
_MOST_CALLERS = 256  # at a time; more than that is no check
_NAMED = 4


class Answer(Protocol):
    """What a host will have answered: a future, as ``ipyparallel`` gives."""

    def result(self, timeout: float | None = None, /) -> Any:
        """Wait for it; raises ``TimeoutError`` after so many seconds."""


Call = Callable[..., Answer]
"""``call(host, function, *args)`` runs a function on a host, and does not wait for it."""


@dataclass(frozen=True, slots=True)
class Reached:
    """One host connected to another."""

    from_host: str
    to_host: str
    seconds: float
    """Time of the connecting, measured: one round trip."""
    source: str
    """The address that the connection came from."""


@dataclass(frozen=True, slots=True)
class Unreached:
    """One host could not connect to another."""

    from_host: str
    to_host: str
    reason: str
    """What was in the way: ``timed out after 3 s``."""


def check_pairs(call: Call, addresses: Mapping[str, Address], timeout_s: float = TIMEOUT_S) -> list[Unreached]:
    """The pairs of hosts that cannot connect; empty where all can. Takes ``timeout_s`` and a little at most."""
    return [each for each in try_pairs(call, addresses, timeout_s) if isinstance(each, Unreached)]


def try_pairs(call: Call, addresses: Mapping[str, Address], timeout_s: float = TIMEOUT_S) -> list[Reached | Unreached]:
    """Connect every host to every other, all at once.

    Args:
        call: runs a function on a host (see :data:`Call`).
        addresses: host -> where its ranks would listen.
        timeout_s: seconds that a connection may take.
    """
    hosts = list(addresses)
    if len(hosts) < 2:
        return []
    secret = secrets.token_bytes(_PROOF_BYTES)
    callers = len(hosts) - 1
    opened = {host: call(host, open_door, secret, addresses[host].address, callers, timeout_s) for host in hosts}
    doors, closed = _answers(opened, _PATIENCE_S)
    calls: dict[str, Answer] = {}
    for host in doors:
        peers = {peer: (addresses[peer].address, port) for peer, port in doors.items() if peer != host}
        calls[host] = call(host, knock, secret, peers, timeout_s)
    said, silent = _answers(calls, timeout_s + _PATIENCE_S)
    found: list[Reached | Unreached] = []
    for host in hosts:
        for peer in hosts:
            if peer != host:
                reason = closed.get(host) or closed.get(peer) or silent.get(host)
                found.append(Unreached(host, peer, reason) if reason else _outcome(host, peer, said[host][peer]))
    if any(isinstance(each, Unreached) for each in found):
        _answers({host: call(host, close_door, addresses[host].address, doors[host]) for host in said}, _PATIENCE_S)
    return found


def unreachable(pairs: list[Unreached], addresses: Mapping[str, Address]) -> Unreachable:
    """The error that names the pairs."""
    lines = []
    for pair in pairs[:_NAMED]:
        to = addresses[pair.to_host]
        lines.append(
            f"{pair.from_host} cannot connect to {pair.to_host} at {to.address} "
            f"(interface {to.interface}): {pair.reason}"
        )
    if len(pairs) > _NAMED:
        lines.append(f"and {len(pairs) - _NAMED} more pairs of hosts")
    return Unreachable(
        f"{'; '.join(lines)}. Ranks on these hosts could not reach each other. Name the network that joins the hosts "
        f"with interface=..., or let their firewalls pass TCP connections between them on all ports."
    )


def _answers(calls: Mapping[str, Answer], timeout_s: float) -> tuple[dict[str, Any], dict[str, str]]:
    """What the hosts answered within the time; for the others, why there is no answer."""
    values, reasons = {}, {}
    deadline = time.monotonic() + timeout_s
    for host, answer in calls.items():
        try:
            values[host] = answer.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            reasons[host] = f"{host} did not answer the kernel within {timeout_s:g} s"
        except Exception as error:  # of the host, and wrapped by whatever carried it: it speaks for itself
            reasons[host] = f"{host} said {error}"
    return values, reasons


def _outcome(host: str, peer: str, said: tuple[float, str] | str) -> Reached | Unreached:
    return Unreached(host, peer, said) if isinstance(said, str) else Reached(host, peer, *said)


# ---- on the hosts

_doors: dict[tuple[str, int], socket.socket] = {}


def open_door(secret: bytes, address: str, callers: int, timeout_s: float) -> int:
    """Listen on ``address`` for so many callers who know the secret; returns the port.

    The port is closed when they have all come, by :func:`close_door`, or after the time in which they could have.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        door = socket.create_server((address, 0), family=family, backlog=_MOST_CALLERS)
    except OSError as error:
        raise OSError(error.errno, f"it cannot listen at {address}: {error.strerror}") from None
    port = int(door.getsockname()[1])
    _doors[address, port] = door
    until = time.monotonic() + timeout_s + 2 * _PATIENCE_S
    threading.Thread(
        target=_serve, args=(secret, (address, port), callers, until), name="tplab reach", daemon=True
    ).start()
    return port


def close_door(address: str, port: int) -> None:
    """Listen there no more."""
    door = _doors.pop((address, port), None)
    if door is not None:
        with suppress(OSError):
            door.shutdown(socket.SHUT_RDWR)  # else a thread that waits in accept() would keep it open
        door.close()


def _serve(secret: bytes, at: tuple[str, int], callers: int, until: float) -> None:
    door = _doors.get(at)
    if door is None:  # closed before this thread ran
        return
    welcome: list[socket.socket] = []

    def answer(caller: socket.socket) -> None:
        with caller, suppress(OSError, ValueError):
            caller.settimeout(max(0.01, until - time.monotonic()))
            nonce, proof = _take(caller, _NONCE_BYTES), _take(caller, _PROOF_BYTES)
            if not hmac.compare_digest(proof, _proof(secret, b"caller", nonce)):
                return
            _take(caller, _DATA_BYTES)
            seen = f"{caller.getpeername()[0]} {caller.getpeername()[1]}".encode().ljust(64)
            _give(caller, _proof(secret, b"door", nonce + seen) + seen + bytes(_DATA_BYTES))
            welcome.append(caller)
            if len(welcome) >= callers:
                close_door(*at)

    with suppress(OSError):  # closed
        while (left := until - time.monotonic()) > 0:
            door.settimeout(left)
            caller = door.accept()[0]
            if threading.active_count() > _MOST_CALLERS:
                caller.close()
                continue
            threading.Thread(target=answer, args=(caller,), name="tplab reach", daemon=True).start()
    close_door(*at)


def knock(secret: bytes, peers: Mapping[str, tuple[str, int]], timeout_s: float) -> dict[str, tuple[float, str] | str]:
    """Connect to all ``peers``, at once: for each the seconds and this end's address, or why it could not be."""
    with ThreadPoolExecutor(max_workers=min(len(peers), 64) or 1) as threads:
        waits = {peer: threads.submit(_connect, secret, at, timeout_s) for peer, at in peers.items()}
    return {peer: wait.result() for peer, wait in waits.items()}


def _connect(secret: bytes, at: tuple[str, int], timeout_s: float) -> tuple[float, str] | str:
    deadline = time.monotonic() + timeout_s
    began = time.perf_counter()
    try:
        one = socket.create_connection(at, timeout=timeout_s)
    except TimeoutError:
        return f"timed out after {timeout_s:g} s"
    except OSError as error:
        return error.strerror or str(error)
    seconds = time.perf_counter() - began
    with one:
        here = one.getsockname()
        one.settimeout(max(0.01, deadline - time.monotonic()))
        nonce = secrets.token_bytes(_NONCE_BYTES)
        try:
            _give(one, nonce + _proof(secret, b"caller", nonce) + bytes(_DATA_BYTES))
            proof, seen = _take(one, _PROOF_BYTES), _take(one, 64)
            _take(one, _DATA_BYTES)
        except TimeoutError:
            return (
                f"connected, but {_DATA_BYTES // 1024} KiB did not come through within {timeout_s:g} s (is the largest "
                "packet, the MTU, the same on the whole path?)"
            )
        except (OSError, ValueError):
            return "connected, but who answers there is another process than the host's (do hosts share an address?)"
    if not hmac.compare_digest(proof, _proof(secret, b"door", nonce + seen)):
        return "connected, but who answers there does not know the cluster's secret (do hosts share an address?)"
    came_from = seen.decode().split()
    if came_from != [here[0], str(here[1])]:
        return f"connected, but arrived as {came_from[0]} in place of {here[0]}: addresses are translated on the way"
    return seconds, str(here[0])


def _proof(secret: bytes, whose: bytes, text: bytes) -> bytes:
    return hmac.digest(secret, whose + text, "sha256")


def _give(one: socket.socket, data: bytes) -> None:
    """Send the first packet, a full one, by itself: the switches of virtual networks let long trains of packets pass
    that are too large one by one."""
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    full = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    one.sendall(data[:full])
    one.sendall(data[full:])


def _take(one: socket.socket, num_bytes: int) -> bytes:
    """So many bytes; raises ``ValueError`` where the other end hangs up before."""
    taken = bytearray()
    while len(taken) < num_bytes:
        if not (piece := one.recv(num_bytes - len(taken))):
            raise ValueError("hung up")
        taken += piece
    return bytes(taken)
