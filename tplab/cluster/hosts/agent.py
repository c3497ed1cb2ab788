"""A host's agent: a thread in the engine that owns this host's ranks, as a kernel on this host would.

It holds no policy. What the kernel says it does, and what its ranks say and do it tells; the fault policy is the
kernel's supervisor alone. One thing it decides: when nothing has been heard of the kernel for a while, or of the
controller through which it speaks, it ends its ranks, because nobody else can.

The kernel's messages come on the engine's control channel, which goes on while the engine computes; the agent's go out
on the engine's iopub, with the header that the kernel gave it for a parent. Both are ipyparallel's, with its signatures
and its encryption: nothing of ours listens.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tplab.cluster import wire
from tplab.cluster.channel import ChannelBroken, Part
from tplab.cluster.engine import Event, Received
from tplab.cluster.errors import ClusterError, NoRoom
from tplab.cluster.hosts import messages
from tplab.cluster.hosts.connect import topic
from tplab.cluster.hosts.messages import Garbled, Inlet, Outlet
from tplab.cluster.local import LocalEngine

_ORPHANED_S = 2.0  # four signs of life are missing
COMM = "tplab-agent "
"""Before a cluster's id: by this name its messages find the agent."""


class Agent(threading.Thread):
    """One cluster's ranks on this host.

    Args:
        cluster_id: of the kernel's cluster.
        header: parent of all that it publishes, by which the kernel's client knows whose it is.
        kernel: the engine's, an ``IPythonParallelKernel``.
    """

    def __init__(self, cluster_id: str, header: dict[str, Any], kernel: Any) -> None:
        super().__init__(name=f"tplab-agent-{cluster_id}", daemon=True)
        self._header = {"header": header}
        self._topic = topic(header["session"])
        self._kernel = kernel
        self._inlet, self._outlet = Inlet(), Outlet(self._publish)
        self._orders: deque[object] = deque()
        self._woken = threading.Event()
        self._engine: LocalEngine | None = None
        self._launch = 0
        self._ended = False
        self._why_ended = ""  # where the kernel did not ask for it
        self._heard_at = time.monotonic()
        self._arrived = self._handled = 0  # bytes, as the kernel says

    # On the engine's control thread.

    def receive(self, content: messages.Content, buffers: Sequence[Any]) -> None:
        """A piece from the kernel."""
        self._heard_at = time.monotonic()
        self._arrived, self._handled = content["taken"], content["handled"]
        try:
            self._orders += self._inlet.take(content, buffers)
        except (Garbled, ChannelBroken) as error:
            self._why_ended, self._ended = f"what came from the kernel cannot be understood ({error})", True
        self.wake()

    @property
    def silent_s(self) -> float:
        """Seconds since the kernel was last heard of."""
        return time.monotonic() - self._heard_at

    def wake(self) -> None:
        self._woken.set()
        if (engine := self._engine) is not None:
            engine.wake()

    def end(self, reason: str = "") -> None:
        """End the ranks and the thread, and wait for that."""
        self._why_ended, self._ended = reason, True
        self.wake()
        self.join(15)

    # On the agent's thread.

    def run(self) -> None:
        beat_at, told = 0.0, 0
        try:
            while not self._ended and self.silent_s < messages.PATIENCE_S:
                while self._orders and not self._ended:
                    self._obey(self._orders.popleft())
                self._outlet.arrived(self._arrived)
                if time.monotonic() >= beat_at or self._inlet.taken_bytes - told > messages.WINDOW_BYTES // 4:
                    told = self._inlet.taken_bytes
                    self._outlet.beat()
                    beat_at = time.monotonic() + messages.BEAT_S
                self._wait(max(0.0, beat_at - time.monotonic()))
            if not self._ended:
                self._why_ended = f"nothing was heard of the kernel for {messages.PATIENCE_S:g} s"
        except Exception as error:
            self._why_ended = f"it failed ({error!r})"
            raise
        finally:
            self._ended = True
            self._drop()
            if self._why_ended:  # a kernel that was only stopped for a while learns it as soon as it goes on
                self._outlet.drop()
                self._tell(messages.Left(self._why_ended))

    def _wait(self, timeout_s: float) -> None:
        """For something to happen to the ranks, an order, or the time of the next sign of life."""
        is_full = self._outlet.is_full or self._outlet.sent_bytes - self._handled > messages.WINDOW_BYTES
        if self._engine is None or is_full:
            self._woken.wait(min(timeout_s, 0.05) if self._engine is not None else timeout_s)
            self._woken.clear()
        elif events := self._engine.poll(timeout_s):
            self._tell(messages.Happened(self._launch, _portable(events)))

    def _obey(self, order: object) -> None:
        match order:
            case messages.Spawn():
                self._spawn(order)
            case messages.Pass(ranks, parts) if self._engine is not None:
                for rank in ranks:
                    self._engine.send(rank, parts)
            case messages.KillRank(rank) if self._engine is not None:
                self._engine.kill_rank(rank)
            case messages.Kill(launch):
                self._outlet.drop()
                self._tell(messages.Killed(launch, _portable(self._drop())))
            case messages.Leave():
                self._ended = True

    def _spawn(self, order: messages.Spawn) -> None:
        self._drop()
        self._launch = order.launch
        engine = LocalEngine(order.placement, start_timeout=order.start_timeout, share=order.share)
        try:
            engine.spawn()
        except (OSError, ClusterError) as error:
            engine.kill()
            engine.close()
            self._tell(messages.Spawned(order.launch, (), str(error), isinstance(error, NoRoom), time.monotonic()))
            return
        self._engine = engine
        self._tell(messages.Spawned(order.launch, engine.pids, "", False, time.monotonic()))

    def _drop(self) -> list[Event]:
        """End the ranks, if there are any; returns what they still wrote."""
        engine, self._engine = self._engine, None
        if engine is None:
            return []
        events = engine.kill()
        engine.close()
        return events

    def _tell(self, message: object) -> None:
        self._outlet.send(message)

    def _publish(self, content: dict[str, Any], buffers: list[Part]) -> None:
        # A message of state: the only kind that the controller neither stores nor warns of.
        self._kernel.session.send(
            self._kernel.iopub_socket,
            "status",
            content={"execution_state": "tplab", "taken": self._inlet.taken_bytes, **content},
            parent=self._header,
            ident=self._topic,
            buffers=buffers,
        )


def _portable(events: Sequence[Event]) -> tuple[Event, ...]:
    """With large values beside the message again."""
    return tuple(_beside(event) for event in events)


def _beside(event: Event) -> Event:
    if isinstance(event, Received):
        match event.message:
            case wire.Answer(value=value) as answer if value is not None:
                return replace(event, message=replace(answer, value=wire.bulk(value)))
            case wire.ReportMessage(fields=fields) as report:
                return replace(event, message=replace(report, fields=wire.bulk(fields)))
    return event


_agents: dict[str, Agent] = {}  # of this engine: what outlives each call of a kernel's
_remembered: dict[str, Any] = {}


def open_agent(cluster_id: str, headers: dict[str, Any], settings: dict[str, Any]) -> None:
    """Called by a kernel: an agent for its cluster, in the place of the one it had before.

    Args:
        cluster_id: of the cluster.
        headers: uuid of each engine -> parent of all that its agent will publish.
        settings: of the cluster, for a kernel that takes over (see ``Cluster.attach``).
    """
    from IPython import get_ipython

    kernel = get_ipython().kernel
    kernel.control_handlers["comm_msg"] = _on_message
    if (before := _agents.pop(cluster_id, None)) is not None:
        before.end()
    for name in [name for name, agent in _agents.items() if not agent.is_alive()]:
        del _agents[name]
    _remembered.clear()
    _remembered.update(settings)
    _agents[cluster_id] = Agent(cluster_id, headers[kernel.ident], kernel)
    _agents[cluster_id].start()


def remembered() -> dict[str, Any]:
    """Called by a kernel that takes over: the settings of the last cluster here; empty if there was none.

    Ranks that an earlier kernel has left are ended now, and not only when the agent's patience ends.
    """
    for agent in [*_agents.values()]:
        if agent.silent_s > _ORPHANED_S:
            agent.end("another kernel took over its host")
    return dict(_remembered)


def _on_message(stream: Any, idents: Any, message: dict[str, Any]) -> None:
    content = message["content"]
    agent = _agents.get(str(content["comm_id"]).removeprefix(COMM))
    if agent is not None:
        agent.receive(content["data"], message["buffers"])
