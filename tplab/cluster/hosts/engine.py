"""The engine that has ranks started on other hosts, by agents in the engines of an ipyparallel cluster.

The second of two behind the supervisor (see ``tplab.cluster.engine``): it spreads ranks over the hosts that answer, and
carries messages. What a fault means is the supervisor's, the same as on one machine. A host that is lost has lost its
ranks; the next start takes the hosts that answer then.
"""

import os
import pickle
import queue
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from tplab.checks import ArgumentError
from tplab.cluster.backends import RankDevices, Share
from tplab.cluster.channel import Part
from tplab.cluster.engine import Event, Exited, Received, Wrote
from tplab.cluster.errors import ClusterError, NoRoom
from tplab.cluster.hosts import messages
from tplab.cluster.hosts.connect import Host, NoHosts, call_on, find_hosts, start_on
from tplab.cluster.hosts.link import Beats, Link
from tplab.cluster.hosts.networks import Address, Network, choose
from tplab.cluster.hosts.reach import check_pairs, unreachable
from tplab.cluster.hosts.spread import Spread
from tplab.cluster.wire import Ready

_ANSWER_S = 5.0
_OPEN_S = 10.0
_LINGER_MS = 1000
_SPAWN_S = 20.0
_EVENTS_AT_ONCE = 256  # a stop must not wait until a slow callback has had all that has come
_LAST_EVENTS = 1000  # nor what comes after it: as many lines as a run keeps
_KILL_S = 15.0  # an agent's keeper has 10
# Of the kernel's environment: what the libraries of the ranks read. Interfaces are chosen per host.
_PASSED_ON = ("NCCL_", "TORCH", "PYTORCH_", "GLOO_", "OMP_", "MKL_", "TPLAB_", "CUDA_LAUNCH_", "CUBLAS_")
_NOT_PASSED_ON = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TPLAB_CLUSTER")


@dataclass(slots=True)
class _OnHost:
    """One host's part in the ranks that run."""

    link: Link
    first_rank: int
    num_ranks: int
    pids: tuple[int, ...] = ()
    clock_ahead_s: float = 0.0
    """How far this machine's monotonic clock is ahead of the host's, but for a message's way."""

    def ranks(self) -> range:
        return range(self.first_rank, self.first_rank + self.num_ranks)


class HostsEngine:
    """Ranks on the hosts of an ipyparallel cluster.

    Args:
        client: of that cluster.
        reopen: called when no host answers, for another client: the controller may have been started anew. None: the
            client is somebody else's, who closes it.
        hosts: that answer now.
        spread: says which ranks go where.
        interface: of the network between hosts (see ``networks.choose``); None: the likeliest.
        start_timeout: seconds that ranks have to start.
        settings: of the cluster, which agents remember for a later kernel.
    """

    def __init__(
        self,
        client: Any,
        reopen: Callable[[], Any] | None,
        hosts: Sequence[Host],
        spread: Spread,
        *,
        interface: "str | Mapping[str, str] | None",
        start_timeout: float,
        settings: dict[str, Any],
    ) -> None:
        self._client, self._reopen = client, reopen
        self._just_found: Sequence[Host] = hosts
        self._spread = spread
        self._interface = interface
        self._start_timeout = start_timeout
        self._settings = settings
        self._id = secrets.token_hex(8)
        self._inbox: queue.SimpleQueue[tuple[Link, object, int] | None] = queue.SimpleQueue()
        self._handled: dict[Link, int] = {}  # where the last message of each ends that was taken out of the inbox
        self._links: dict[str, Link] = {}
        self._parts: list[_OnHost] = []
        self._launch = 0
        self._outbox: list[tuple[int, Sequence[Part]]] = []
        self._notices: list[str] = []
        self._beats: Beats | None = None

    @property
    def placement(self) -> RankDevices:
        return self._spread.placement

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(pid for part in self._parts for pid in part.pids)

    def notices(self) -> list[str]:
        told, self._notices = self._notices, []
        return told

    def spawn(self) -> None:
        assert not self._parts
        self._beats = self._beats or Beats(lambda: [*self._links.values()])
        hosts = self._find()
        if text := self._spread.over(hosts):
            self._notices.append(f"tplab: {text}")
        used = [host for host in hosts if host.name in self._spread.used]
        self._open(used)
        addresses = self._choose(used)
        self._launch += 1
        settings = _passed_on()
        first = 0
        for name, devices in self._spread.used.items():
            n = devices.num_ranks
            share = Share(
                first_rank=first,
                num_ranks=n,
                world_size=self.placement.num_ranks,
                num_hosts=len(self._spread.used),
                interface=addresses[name].interface,
                settings=settings,
            )
            part = _OnHost(self._links[name], first, n)
            self._parts.append(part)
            part.link.send(messages.Spawn(self._launch, devices, share, self._start_timeout))
            first += n
        self._await_spawned()
        if len(used) > 1:  # while the ranks import torch
            by_name = {host.name: host.engine_id for host in used}
            pairs = check_pairs(
                lambda host, function, *args: start_on(self._client, by_name[host], function.__name__, *args), addresses
            )
            if pairs:
                raise unreachable(pairs, addresses)

    def _choose(self, hosts: Sequence[Host]) -> dict[str, Address]:
        """By which interface and address the ranks of each host are reached."""
        networks: dict[str, Any] = {host.name: Network(interfaces=()) for host in hosts}
        if len(hosts) > 1:
            said = call_on(self._client, [host.engine_id for host in hosts], "look", timeout_s=_OPEN_S)
            networks = {host.name: said[host.engine_id] for host in hosts}
            for name, network in networks.items():
                if isinstance(network, Exception):
                    raise ClusterError(f"host {name} does not say which network interfaces it has: {network}")
        asked = self._interface
        if isinstance(asked, Mapping):  # of the hosts that answer now
            asked = {name: asked[name] for name in asked if name in networks}
        try:
            return choose(networks, asked)
        except ArgumentError as error:  # long after the call that it was given to
            raise ClusterError(f"the ranks could not be started: {error}") from None

    def _find(self) -> Sequence[Host]:
        found, self._just_found = self._just_found, ()
        if found:
            return found
        known = [link.host.uuid for link in self._links.values() if not link.lost]
        try:
            return find_hosts(self._client, known or None, _ANSWER_S)
        except NoHosts:
            if self._reopen is None:
                raise
        before, self._client = self._client, self._reopen()
        self._forget()
        before.close()
        return find_hosts(self._client)

    def _open(self, hosts: Sequence[Host]) -> None:
        """An agent on each, unless there is one that is heard of."""
        wanted = []
        for host in hosts:
            link = self._links.get(host.name)
            if link is None or link.lost or link.host.uuid != host.uuid:
                if link is not None:
                    link.close()
                self._links[host.name] = Link(self._client, host, self._id, self._on_message, self._on_lost)
                wanted.append(host)
        headers = {host.uuid: self._links[host.name].header for host in wanted}
        answers = call_on(
            self._client,
            [host.engine_id for host in wanted],
            "open_agent",
            *(self._id, headers, self._settings),
            timeout_s=_OPEN_S,
        )
        for host in wanted:
            if isinstance(error := answers[host.engine_id], Exception):
                self._links[host.name].lose(f"the agent of host {host.name} did not start: {error}")
                raise ClusterError(self._links[host.name].lost)

    def _await_spawned(self) -> None:
        waiting = {id(part.link): part for part in self._parts}
        early = []
        for link, message in self._until(_SPAWN_S, lambda: not waiting):
            match message:
                case messages.Spawned(launch, pids, error, no_room, clock_s) if launch == self._launch:
                    part = waiting.pop(id(link))
                    part.pids, part.clock_ahead_s = pids, time.monotonic() - clock_s
                    if error:
                        raise (NoRoom if no_room else ClusterError)(f"host {link.host.name}: {error}")
                case _Lost(reason) if id(link) in waiting:
                    raise ClusterError(f"the ranks could not be started: {reason}")
                case _:  # of ranks that are quick
                    early.append((link, message))
        for link, message in early:
            self._inbox.put((link, message, 0))
        if waiting:
            names = ", ".join(part.link.host.name for part in waiting.values())
            raise ClusterError(f"the agents of these hosts did not start their ranks within {_SPAWN_S:g} s: {names}")

    def _until(self, timeout_s: float, done: Callable[[], bool]) -> Iterator[tuple[Link, object]]:
        """What comes in, until it is enough."""
        deadline = time.monotonic() + timeout_s
        woken = False
        while not done() and (left := deadline - time.monotonic()) > 0:
            with suppress(queue.Empty):
                item = self._next(left)
                if item is None:
                    woken = True
                else:
                    yield item
        if woken:
            self.wake()

    def send(self, rank: int, parts: Sequence[Part]) -> None:
        self._outbox.append((rank, parts))

    def _flush(self) -> None:
        """Send what is to be sent: the same message goes once to each host."""
        outbox, self._outbox = self._outbox, []
        while outbox:
            parts = outbox[0][1]
            ranks = {rank for rank, same in outbox if same is parts}
            outbox = [entry for entry in outbox if entry[1] is not parts]
            raw = tuple(pickle.PickleBuffer(part) for part in parts)
            for part in self._parts:
                local = tuple(rank - part.first_rank for rank in part.ranks() if rank in ranks)
                if local:
                    part.link.send(messages.Pass(local, raw))

    def poll(self, timeout: float | None) -> list[Event]:
        for link, end in self._handled.items():
            link.handled(end)
        self._handled.clear()
        self._flush()
        events: list[Event] = []
        with suppress(queue.Empty):
            events += self._events(self._next(timeout))
            while len(events) < _EVENTS_AT_ONCE:
                events += self._events(self._next(0))
        return events

    def _events(self, item: tuple[Link, object] | None) -> list[Event]:
        if item is None:
            return []
        link, message = item
        part = next((part for part in self._parts if part.link is link), None)
        if part is None:
            return []
        match message:
            case messages.Happened(launch, events) if launch == self._launch:
                return [self._as_of_all(event, part) for event in events]
            case _Lost(reason):
                link.close()
                return [Exited(rank, None, reason) for rank in part.ranks()]
        return []

    def _as_of_all(self, event: Event, part: _OnHost) -> Event:
        event = replace(event, rank=event.rank + part.first_rank)
        if isinstance(event, Received) and isinstance(event.message, Ready):
            facts = event.message.facts
            phases = [(name, at + part.clock_ahead_s) for name, at in facts["phases"]]
            return replace(event, message=replace(event.message, facts=facts | {"phases": phases}))
        return event

    def heard_since(self, rank: int, moment: float) -> bool:
        return all(part.link.lost or part.link.heard_at >= moment for part in self._parts if rank in part.ranks())

    def kill_rank(self, rank: int) -> None:
        for part in self._parts:
            if rank in part.ranks():
                part.link.send(messages.KillRank(rank - part.first_rank))

    def kill(self) -> list[Event]:
        self._outbox.clear()
        parts, self._parts = self._parts, []
        waiting = {id(part.link): part for part in parts if not part.link.lost}
        for part in waiting.values():
            part.link.drop()
            part.link.send(messages.Kill(self._launch))
        events: deque[Event] = deque(maxlen=_LAST_EVENTS)
        for link, message in self._until(_KILL_S, lambda: not waiting):
            whose = next((part for part in parts if part.link is link), None)
            match message:
                case messages.Killed(launch, last) | messages.Happened(launch, last) if (
                    launch == self._launch and whose is not None
                ):
                    wrote = (event for event in last if isinstance(event, Wrote))
                    events += [replace(event, rank=event.rank + whose.first_rank) for event in wrote]
                    if isinstance(message, messages.Killed):
                        waiting.pop(id(link), None)
                case _Lost():
                    waiting.pop(id(link), None)
        return [*events]

    def wake(self) -> None:
        self._inbox.put(None)

    def close(self) -> None:
        if self._beats is not None:
            self._beats.close()
        for link in self._links.values():
            link.send(messages.Leave())
        self._forget()
        if self._reopen is not None:
            self._client.close(linger=_LINGER_MS)

    def _forget(self) -> None:
        for link in self._links.values():
            link.close()
        self._links.clear()

    def _next(self, timeout: float | None) -> tuple[Link, object] | None:
        """What came first; None: a wake-up. Raises ``queue.Empty``."""
        item = self._inbox.get(timeout=timeout)
        if item is None:
            return None
        link, message, self._handled[link] = item
        return link, message

    def _on_message(self, link: Link, message: object, end: int) -> None:
        self._inbox.put((link, message, end))

    def _on_lost(self, link: Link, reason: str) -> None:
        self._inbox.put((link, _Lost(reason), 0))


@dataclass(frozen=True, slots=True)
class _Lost:
    """In the place of a message: no more will come."""

    reason: str


def _passed_on() -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, value)
        for name, value in sorted(os.environ.items())
        if name.startswith(_PASSED_ON) and name not in _NOT_PASSED_ON
    )
