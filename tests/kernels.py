"""A real Jupyter kernel, as a test drives one: cells, what they gave, and what appeared under them."""

import ast
import os
import time
from dataclasses import dataclass, field
from datetime import datetime
from queue import Empty

from jupyter_client.manager import KernelManager

import tplab

ROOT = os.path.dirname(os.path.dirname(tplab.__file__))


def sent_at(message):
    """When a message was sent; where ipyparallel is imported, dates are text."""
    date = message["header"]["date"]
    return (datetime.fromisoformat(date) if isinstance(date, str) else date).timestamp()


@dataclass
class Reply:
    """What one cell gave."""

    status: str
    error: str
    """Name and message of the exception."""
    traceback: str
    value: str
    """Text of the cell's last expression."""
    seconds: float
    msg_id: str


@dataclass
class Kernel:
    """A running kernel; keeps every stream message with the cell that the kernel says it belongs to."""

    manager: KernelManager
    client: object
    streams: list[tuple[str, str, str]] = field(default_factory=list)
    """(msg_id of the cell, stdout or stderr, text)"""
    blocks: list[tuple[str, str, str]] = field(default_factory=list)
    """(msg_id of the cell, display id, text)"""
    times: list[float] = field(default_factory=list)
    """When each of both was sent."""
    _values: dict[str, str] = field(default_factory=dict)
    _idle: set[str] = field(default_factory=set)

    @classmethod
    def start(cls, cwd=ROOT, **options):
        """``options``: further arguments of the kernel's ``Popen``."""
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel(cwd=cwd, **options)
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        return cls(manager, client)

    def send(self, code):
        """Begin to execute a cell."""
        return self.client.execute(code, allow_stdin=False)

    def wait(self, msg_id, timeout=30.0):
        """Wait for a cell's end."""
        began = time.monotonic()
        while True:
            reply = self.client.get_shell_msg(timeout=timeout)
            if reply["parent_header"].get("msg_id") == msg_id:
                break
        while msg_id not in self._idle:
            self.listen(timeout)
        content = reply["content"]
        return Reply(
            status=content["status"],
            error=f"{content.get('ename', '')}: {content.get('evalue', '')}",
            traceback="\n".join(content.get("traceback", [])),
            value=self._values.get(msg_id, ""),
            seconds=time.monotonic() - began,
            msg_id=msg_id,
        )

    def listen(self, timeout):
        """Take in one message of the output channel."""
        message = self.client.get_iopub_msg(timeout=timeout)
        kind, content = message["msg_type"], message["content"]
        parent = message["parent_header"].get("msg_id", "")
        if kind == "stream":
            self.streams.append((parent, content["name"], content["text"]))
            self.times.append(sent_at(message))
        elif kind in ("display_data", "update_display_data"):
            self.blocks.append((parent, content["transient"].get("display_id", ""), content["data"]["text/plain"]))
            self.times.append(sent_at(message))
        elif kind == "execute_result":
            self._values[parent] = content["data"]["text/plain"]
        elif kind == "status" and content["execution_state"] == "idle":
            self._idle.add(parent)

    def __call__(self, code, timeout=30.0):
        """Execute a cell that must not fail; returns the value of its last expression."""
        reply = self.wait(self.send(code), timeout)
        assert reply.status == "ok", reply.error + reply.traceback
        return ast.literal_eval(reply.value) if reply.value else None

    def fails(self, code, timeout=30.0):
        """Execute a cell that must fail."""
        reply = self.wait(self.send(code), timeout)
        assert reply.status == "error"
        return reply

    def output_of(self, msg_id, name="stdout"):
        return "".join(text for parent, stream, text in self.streams if (parent, stream) == (msg_id, name))

    def wait_for_output(self, words, within=10.0):
        """The cell under which a text appears."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            for parent, _, text in self.streams:
                if words in text:
                    return parent
            try:
                self.listen(0.1)
            except Empty:
                continue
        raise AssertionError(f"{words!r} never appeared; there was {self.streams}")

    def end(self):
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=True)
