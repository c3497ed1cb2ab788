"""The engine that starts ranks as subprocesses of this kernel.

Fresh interpreters, never ``fork`` (a kernel that has run one threaded torch operation deadlocks its children, and CUDA
forbids it) and never ``multiprocessing.spawn`` (it imports ``__main__``, which a notebook does not have). Each rank
leads a session of its own, so that Jupyter's interrupt, which goes to the kernel's process group, does not reach it.
Kernel and rank talk over a socket pair: nothing listens, so nobody else can connect.
"""

import json
import os
import secrets
import selectors
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import IO

from tplab.cluster.backends import LOOPBACK, Placement, rank_environment
from tplab.cluster.engine import Event, Exited, Received, Stream, Wrote
from tplab.cluster.worker import Setup

# The kernel's import path goes along: tplab itself may be importable only from the kernel's folder.
_BOOTSTRAP = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[2]); "
    "from tplab.cluster.worker import main; main(int(sys.argv[1]))"
)
_SEND_TIMEOUT_S = 10
_READ_SIZE = 1 << 16
_CHECK_EXITS_EVERY_S = 0.5


@dataclass(slots=True)
class _Pipe:
    """One output stream of a rank, cut into lines."""

    rank: int
    stream: Stream
    file: IO[bytes]
    partial: bytes = b""
    ended: bool = False

    def read(self) -> Iterator[Wrote]:
        """All complete lines there are now."""
        while not self.ended:
            try:
                data = os.read(self.file.fileno(), _READ_SIZE)
            except BlockingIOError:
                return
            if not data:
                self.ended = True
                yield from self.rest()
                return
            *lines, self.partial = (self.partial + data).split(b"\n")
            yield from (self._wrote(line) for line in lines)

    def rest(self) -> Iterator[Wrote]:
        """A last line without its newline."""
        if self.partial:
            yield self._wrote(self.partial)
            self.partial = b""

    def _wrote(self, line: bytes) -> Wrote:
        # A progress bar rewrites its line after a carriage return: only the last state is worth a line here.
        return Wrote(self.rank, self.stream, line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace"))


@dataclass(slots=True)
class _Process:
    """One rank's process and its three channels."""

    rank: int
    popen: subprocess.Popen[bytes]
    connection: Connection
    pipes: list[_Pipe]
    exited: bool = False

    def drain(self) -> list[Event]:
        return [line for pipe in self.pipes for line in pipe.read()]


class LocalEngine:
    """Ranks as subprocesses on this machine."""

    def __init__(self, placement: Placement, *, start_timeout: float) -> None:
        self._placement = placement
        self._start_timeout = start_timeout
        self._processes: list[_Process] = []
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)

    @property
    def num_ranks(self) -> int:
        return self._placement.num_ranks

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(process.popen.pid for process in self._processes)

    def spawn(self) -> None:
        assert not self._processes
        cluster_id = secrets.token_hex(4)
        # Bound here and handed to rank 0 as an open descriptor: a port that is only picked free can be lost again.
        with socket.socket() as listener:
            listener.bind((LOOPBACK, 0))
            listener.listen(128)
            for rank in range(self.num_ranks):
                self._processes.append(self._start(rank, listener, cluster_id))

    def _start(self, rank: int, listener: socket.socket, cluster_id: str) -> _Process:
        ours, theirs = socket.socketpair()
        with theirs:
            # A rank that is stopped (SIGSTOP) takes nothing in: sending to it must fail, not hang the supervisor.
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_TIMEOUT_S, 0))
            store_fd = listener.fileno() if rank == 0 else None
            popen = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, str(theirs.fileno()), json.dumps(sys.path), f"rank {rank}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()] + ([] if store_fd is None else [store_fd]),
                env=rank_environment(self._placement, rank, cluster_id),
                start_new_session=True,
            )
        connection = Connection(ours.detach())
        connection.send(
            Setup(
                index=rank,
                world_size=self.num_ranks,
                backend=self._placement.backend,
                device=self._placement.devices[rank],
                store_host=LOOPBACK,
                store_port=listener.getsockname()[1],
                store_fd=store_fd,
                kernel_pid=os.getpid(),
                start_timeout=self._start_timeout,
            )
        )
        assert popen.stdout is not None
        assert popen.stderr is not None
        pipes = [_Pipe(rank, "stdout", popen.stdout), _Pipe(rank, "stderr", popen.stderr)]
        process = _Process(rank, popen, connection, pipes)
        self._selector.register(connection, selectors.EVENT_READ, process)
        for pipe in pipes:
            os.set_blocking(pipe.file.fileno(), False)
            self._selector.register(pipe.file, selectors.EVENT_READ, pipe)
        return process

    def send(self, rank: int, message: object) -> None:
        process = self._processes[rank]
        try:
            process.connection.send(message)
        except OSError:
            # Gone, or stopped for so long that it is as good as gone. Ending it makes both look the same.
            _kill_session(process.popen)

    def poll(self, timeout: float | None) -> list[Event]:
        if self._processes:
            timeout = _CHECK_EXITS_EVERY_S if timeout is None else min(timeout, _CHECK_EXITS_EVERY_S)
        events: list[Event] = []
        for key, _ in self._selector.select(timeout):
            match key.data:
                case _Pipe() as pipe:
                    events += pipe.read()
                    if pipe.ended:
                        self._selector.unregister(pipe.file)
                case _Process() as process:
                    events += self._receive(process)
                case _:
                    with suppress(BlockingIOError):
                        while self._wake_read.recv(_READ_SIZE):
                            pass
        # A process that a rank forked can hold the rank's socket open: look at the processes themselves, too.
        for process in self._processes:
            if not process.exited and process.popen.poll() is not None:
                events += self._exit(process)
        return events

    def _receive(self, process: _Process) -> list[Event]:
        events: list[Event] = []
        try:
            while not process.exited and process.connection.poll():
                message = process.connection.recv()
                events += process.drain()
                events.append(Received(process.rank, message))
        except (EOFError, OSError):
            events += self._exit(process)
        return events

    def _exit(self, process: _Process) -> list[Event]:
        """The rank's socket or process ended: end the rest of its session too. (A kill does not change the exit code
        of a process that is already on its way out.)"""
        process.exited = True
        self._selector.unregister(process.connection)
        _kill_session(process.popen)
        process.popen.wait()
        return [*process.drain(), Exited(process.rank, process.popen.returncode)]

    def kill(self) -> list[Event]:
        processes, self._processes = self._processes, []
        for process in processes:
            if not process.exited:
                _kill_session(process.popen)
        events: list[Event] = []
        for process in processes:
            process.popen.wait()
            events += process.drain()
            for pipe in process.pipes:
                events += pipe.rest()
                with suppress(KeyError):
                    self._selector.unregister(pipe.file)
                pipe.file.close()
            if not process.exited:
                self._selector.unregister(process.connection)
            process.connection.close()
        return events

    def wake(self) -> None:
        with suppress(OSError):  # full: a wake-up is under way already; closed: nobody sleeps
            self._wake_write.send(b"!")

    def close(self) -> None:
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()


def _kill_session(popen: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the session that the rank leads. Its id stays taken while the rank is unreaped or has children left,
    so it cannot hit anyone else."""
    with suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)
