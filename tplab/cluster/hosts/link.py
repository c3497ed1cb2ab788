"""The kernel's side of the messages: what goes to each host's agent, and what comes from it.

Through an ``ipyparallel.Client`` that may be the user's own. Of its inner parts this module alone knows: ``_send``, by
which ipyparallel relays messages of widgets to engines (they ask for no answer, and nobody keeps account of them), and
``create_message_futures``, whose ``iopub_callbacks`` are called with what an engine publishes for a request.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from tplab.cluster.channel import ChannelBroken, Part
from tplab.cluster.hosts import messages
from tplab.cluster.hosts.agent import COMM
from tplab.cluster.hosts.connect import Host
from tplab.cluster.hosts.messages import Garbled, Inlet, Outlet


class Link:
    """To one host's agent. ``send`` may be called from any thread.

    Args:
        client: an ``ipyparallel.Client``.
        host: where the agent is.
        cluster_id: by which it knows the cluster.
        on_message: called on the client's own thread with the link, a message, and where in all that the agent sends
            it ends (for :meth:`handled`).
        on_lost: called once with the link and a sentence, when nothing can be heard of the host any more.
    """

    def __init__(
        self,
        client: Any,
        host: Host,
        cluster_id: str,
        on_message: "Callable[[Link, object, int], None]",
        on_lost: "Callable[[Link, str], None]",
    ) -> None:
        self.host = host
        self._client = client
        self._comm = COMM + cluster_id
        self._on_message, self._on_lost = on_message, on_lost
        self._outlet, self._inlet = Outlet(self._put), Inlet()
        self._handled_bytes = self._told_bytes = 0
        self._silent_beats = 0
        self.heard_at = time.monotonic()
        """When it was heard of last."""
        self.lost = ""
        """Why nothing is heard of it any more; empty while it is."""
        # Of no request: what the agent publishes for it never ends with an answer.
        header = client.session.msg_header("tplab")
        self.header = {name: header[name] for name in ("msg_id", "msg_type", "session", "username", "version")}
        future, _ = client.create_message_futures(header["msg_id"], header, async_result=True)
        future.iopub_callbacks.append(self._receive)
        client._registration_callbacks.append(self._notice)

    def send(self, message: object) -> None:
        """Send a message; to a host that is lost: no effect."""
        if not self.lost:
            self._outlet.send(message)

    def handled(self, end: int) -> None:
        """What it has sent up to here is done with, and it may send as much more: what waits to be handled would
        otherwise pile up in this process, where a callback is slower than the ranks."""
        self._handled_bytes = max(end, self._handled_bytes)
        self._tell()

    def drop(self) -> None:
        """Send nothing of what still waits."""
        self._outlet.drop()

    def beat(self, others_too: bool = False) -> None:
        """Give a sign of life, and see whether there was one; ``others_too``: nor was there from any other host."""
        if self.lost:
            return
        self._silent_beats += 1
        if self._silent_beats * messages.BEAT_S > messages.SILENCE_S:
            cause = ", nor of any other host: the controller of the ipyparallel cluster may be gone" * others_too
            self.lose(f"nothing was heard of host {self.host.name} for {messages.SILENCE_S:g} s{cause}")
            return
        self._outlet.beat()

    @property
    def is_silent(self) -> bool:
        """Whether the last two beats had no answer."""
        return self._silent_beats > 2

    def lose(self, reason: str) -> None:
        """Take the host for lost."""
        if not self.lost:
            self.lost = reason
            self._outlet.drop()
            self._on_lost(self, reason)

    def close(self) -> None:
        """Forget the agent, without telling it."""
        self.lost = self.lost or "closed"
        self._outlet.drop()
        with suppress(ValueError):
            self._client._registration_callbacks.remove(self._notice)
        for known in (self._client._futures, self._client._output_futures, self._client.metadata):
            known.pop(self.header["msg_id"], None)

    def _put(self, content: dict[str, Any], buffers: Sequence[Part]) -> None:
        content |= {"taken": self._inlet.taken_bytes, "handled": self._handled_bytes}
        self._told_bytes = content["taken"] + content["handled"]
        try:
            self._client._send(
                self._client._control_socket,
                "comm_msg",
                content={"comm_id": self._comm, "data": content},
                buffers=buffers,
                ident=self.host.uuid.encode(),
            )
        except (OSError, RuntimeError) as error:
            self.lose(f"the client of the ipyparallel cluster is closed ({error})")

    def _tell(self) -> None:
        """Say what has come and what is done with, if that is much more than was said."""
        told = self._inlet.taken_bytes + self._handled_bytes
        if not self.lost and told - self._told_bytes > messages.WINDOW_BYTES // 4:
            self._outlet.beat()

    def _notice(self, event: dict[str, Any]) -> None:
        """The controller says that an engine has come or gone: sooner than silence would."""
        if event["event"] == "unregister" and int(event["id"]) == self.host.engine_id:
            self.lose(f"the agent of host {self.host.name} ended: its engine left the ipyparallel cluster")

    def _receive(self, message: dict[str, Any]) -> None:
        """On the client's thread."""
        content = message["content"]
        if self.lost or content.get("execution_state") != "tplab":
            return
        self._silent_beats, self.heard_at = 0, time.monotonic()
        self._outlet.arrived(content["taken"])
        try:
            for each in self._inlet.take(content, message["buffers"]):
                if isinstance(each, messages.Left):
                    self.lose(f"the agent of host {self.host.name} ended its ranks: {each.reason}")
                else:
                    self._on_message(self, each, self._inlet.taken_bytes)
        except (Garbled, ChannelBroken) as error:
            self.lose(f"host {self.host.name} cannot be understood any more: {error}")
        self._tell()


class Beats:
    """A thread that beats for all links, until it is closed."""

    def __init__(self, links: Callable[[], Sequence[Link]]) -> None:
        self._links = links
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tplab-hosts", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        before = time.monotonic()
        while not self._closed.wait(messages.BEAT_S):
            now = time.monotonic()
            if now - before < 2 * messages.BEAT_S:  # else this process itself was held up, and what came waits unread
                links = [link for link in self._links() if not link.lost]
                all_silent = len(links) > 1 and all(link.is_silent for link in links)
                for link in links:
                    with suppress(Exception):
                        link.beat(all_silent)
            before = now

    def close(self) -> None:
        self._closed.set()
