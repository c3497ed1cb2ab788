"""Which run a thread belongs to: one that outlives its run must not print into the next.

A thread that is alive when a run ends, and was not there before, was started by that run. What it prints from then on
travels with the number of that run, beside the pipe that carries the output of the run under way. (Compiled code and
child processes write to the pipe directly: what they write counts as output of the run that goes on at that moment.)
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from io import TextIOWrapper
from typing import TextIO

from tplab.cluster.engine import Stream

_LONGEST_LINE = 1 << 16
_FLUSHED_AFTER_S = 0.04
_LOOKED_AFTER_S = 0.5


class Ledger:
    """Threads that have outlived their run, and the number of that run."""

    def __init__(self) -> None:
        self._ignored = {threading.main_thread()}
        self._run_of: dict[threading.Thread, int] = {}

    def ignore(self, threads: Iterable[threading.Thread]) -> None:
        """Threads of no run: they were there before the first."""
        self._ignored.update(threads)

    def close_run(self, run_id: int) -> None:
        """The run is over: what is alive now and was not before is its."""
        # Not those of compiled code (gloo's, say), which serve every run and are only known for having called Python.
        alive = [
            thread
            for thread in threading.enumerate()
            if thread not in self._ignored and not isinstance(thread, threading._DummyThread)
        ]
        self._run_of = {thread: self._run_of.get(thread, run_id) for thread in alive}

    def late_run(self) -> int | None:
        """The number of the run that the calling thread has outlived, if it has."""
        return self._run_of.get(threading.current_thread()) if self._run_of else None


class _Tagged(TextIOWrapper):
    """``sys.stdout`` or ``sys.stderr`` of a rank: lines of late threads go another way."""

    def __init__(self, stream: TextIO, ledger: Ledger, send_line: Callable[[int, str], None]) -> None:
        encoding, errors = stream.encoding, stream.errors
        super().__init__(stream.detach(), encoding=encoding, errors=errors, line_buffering=True)  # type: ignore[attr-defined]
        self._ledger = ledger
        self._send = send_line
        self._partial: dict[threading.Thread, tuple[int, str]] = {}
        self._pid = os.getpid()
        self._unfinished = threading.Event()
        threading.Thread(target=self._flush_soon, name="tplab-flush", daemon=True).start()

    def _flush_soon(self) -> None:
        """What has no newline yet is shown soon all the same, flushed by the function or not; and what a late thread
        leaves without one, when it ends."""
        while True:
            self._unfinished.wait(_LOOKED_AFTER_S if self._partial else None)
            time.sleep(_FLUSHED_AFTER_S)
            self._unfinished.clear()
            with suppress(Exception):  # the function may have closed it
                self.flush()
            with suppress(Exception):  # a dictionary that another thread changes, a kernel that is gone: look again
                for thread in [thread for thread in [*self._partial] if not thread.is_alive()]:
                    self._send_line(*self._partial.pop(thread))

    def write(self, text: str) -> int:
        run_id = self._ledger.late_run()
        if not text.endswith("\n") and not self._unfinished.is_set():
            self._unfinished.set()
        if run_id is None or os.getpid() != self._pid:
            return super().write(text)
        thread = threading.current_thread()
        _, before = self._partial.pop(thread, (0, ""))
        *lines, rest = (before + text).split("\n")
        if len(rest) > _LONGEST_LINE:
            lines, rest = [*lines, rest], ""
        if rest:
            self._partial[thread] = run_id, rest
        for line in lines:
            self._send_line(run_id, line)
        return len(text)

    def _send_line(self, run_id: int, line: str) -> None:
        self._send(run_id, line.rstrip("\r").rpartition("\r")[2])  # of a progress bar, its last state


def tag_output(ledger: Ledger, send_line: Callable[[Stream, int, str], None]) -> None:
    """Have what late threads print sent as lines: ``send_line(stream, number of their run, line)``."""
    name: Stream
    for name in ("stdout", "stderr"):
        tagged = _Tagged(getattr(sys, name), ledger, partial(send_line, name))
        setattr(sys, name, tagged)
        setattr(sys, f"__{name}__", tagged)
