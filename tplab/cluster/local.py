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
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

import psutil

from tplab.cluster.backends import LOOPBACK, Placement, rank_environment
from tplab.cluster.channel import SupervisorChannel, encode
from tplab.cluster.engine import Event, Exited, Received, Stream, Wrote
from tplab.cluster.wire import Answer, import_path
from tplab.cluster.worker import Setup

# The kernel's import path goes along: tplab itself may be importable only from the kernel's folder.
_BOOTSTRAP = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[2]); "
    "from tplab.cluster.worker import main; main(int(sys.argv[1]))"
)
# In the environment of the ranks, and so of everything they start, in whatever session.
_MARK = "TPLAB_CLUSTER"
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
        for _ in range(2):  # more than a pipe holds, and not for ever when a rank writes as fast as this reads
            if self.ended:
                return
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
    channel: SupervisorChannel
    pipes: list[_Pipe]
    exited: bool = False

    def drain(self) -> list[Event]:
        return [line for pipe in self.pipes for line in pipe.read()]

    def rest(self) -> list[Event]:
        return [line for pipe in self.pipes for line in pipe.rest()]


class LocalEngine:
    """Ranks as subprocesses on this machine."""

    def __init__(self, placement: Placement, *, start_timeout: float) -> None:
        self._placement = placement
        self._start_timeout = start_timeout
        self._processes: list[_Process] = []
        self._cluster_id = ""
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
        self._cluster_id = cluster_id = secrets.token_hex(8)
        # Bound here and handed to rank 0 as an open descriptor: a port that is only picked free can be lost again.
        with socket.socket() as listener:
            listener.bind((LOOPBACK, 0))
            listener.listen(128)
            for rank in range(self.num_ranks):
                self._processes.append(self._start(rank, listener, cluster_id))

    def _start(self, rank: int, listener: socket.socket, cluster_id: str) -> _Process:
        ours, theirs = socket.socketpair()
        with theirs:
            store_fd = listener.fileno() if rank == 0 else None
            popen = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, str(theirs.fileno()), json.dumps(import_path()), f"rank {rank}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()] + ([] if store_fd is None else [store_fd]),
                env=rank_environment(self._placement, rank, cluster_id) | {_MARK: cluster_id},
                start_new_session=True,
            )
        setup = Setup(
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
        channel = SupervisorChannel(ours)
        channel.send(encode(setup))
        assert popen.stdout is not None
        assert popen.stderr is not None
        pipes = [_Pipe(rank, "stdout", popen.stdout), _Pipe(rank, "stderr", popen.stderr)]
        process = _Process(rank, popen, channel, pipes)
        self._selector.register(channel, selectors.EVENT_READ, process)
        for pipe in pipes:
            os.set_blocking(pipe.file.fileno(), False)
            self._selector.register(pipe.file, selectors.EVENT_READ, pipe)
        return process

    def send(self, rank: int, data: bytes) -> None:
        process = self._processes[rank]
        if not process.exited:
            process.channel.send(data)
            self._watch(process)

    def _watch(self, process: _Process) -> None:
        writing = selectors.EVENT_WRITE if process.channel.has_outgoing else 0
        self._selector.modify(process.channel, selectors.EVENT_READ | writing, process)

    def poll(self, timeout: float | None) -> list[Event]:
        if self._processes:
            timeout = _CHECK_EXITS_EVERY_S if timeout is None else min(timeout, _CHECK_EXITS_EVERY_S)
        events: list[Event] = []
        for key, ready in self._selector.select(timeout):
            match key.data:
                case _Pipe() as pipe:
                    events += pipe.read()
                    if pipe.ended:
                        self._selector.unregister(pipe.file)
                case _Process() as process:
                    if ready & selectors.EVENT_WRITE:
                        process.channel.flush()
                        self._watch(process)
                    if ready & selectors.EVENT_READ:
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
        messages, ended = process.channel.read()
        # Read after the messages: it holds all that the rank wrote before it sent them.
        events = process.drain()
        if any(isinstance(message, Answer) for message in messages):
            events += process.rest()  # a line that the run left without an end must not run into the next run's
        events += [Received(process.rank, message) for message in messages]
        return events + self._exit(process) if ended else events

    def _exit(self, process: _Process) -> list[Event]:
        """The rank's socket or process ended: end the rest of its session too. (A kill does not change the exit code
        of a process that is already on its way out.)"""
        process.exited = True
        self._selector.unregister(process.channel)
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
            events += process.rest()
            for pipe in process.pipes:
                with suppress(KeyError):
                    self._selector.unregister(pipe.file)
                pipe.file.close()
            if not process.exited:
                self._selector.unregister(process.channel)
            process.channel.close()
        if processes:
            _kill_marked(self._cluster_id)
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


def _kill_marked(cluster_id: str) -> None:
    """End what ranks have started in sessions of its own, as torch.compile's workers are, wherever it hangs now."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_MARK) == cluster_id:
                process.kill()
