"""The engine that starts ranks as subprocesses of this kernel.

Fresh interpreters, never ``fork`` of the kernel (one that has run a threaded torch operation deadlocks its children,
and CUDA forbids it) and never ``multiprocessing.spawn`` (it imports ``__main__``, which a notebook does not have). Each
rank leads a session of its own, so that Jupyter's interrupt, which goes to the kernel's process group, does not reach
it. Kernel and rank talk over a socket pair: nothing listens, so nobody else can connect. Between them stands a small
process that takes everything along when the kernel dies (see ``keeper``).
"""

import json
import marshal
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tplab.cluster import keeper
from tplab.cluster.admission import check_room
from tplab.cluster.backends import RankDevices, Share, rank_environment
from tplab.cluster.channel import ChannelBroken, Part, SupervisorChannel, encode
from tplab.cluster.engine import Broke, Event, Exited, Received
from tplab.cluster.output import Pipe
from tplab.cluster.wire import Answer, import_path
from tplab.cluster.worker import Setup
from tplab.needs import Later

if TYPE_CHECKING:
    import psutil
else:
    psutil = Later("psutil", "Cluster")

# The kernel's import path goes along: tplab itself may be importable only from the kernel's folder.
_BOOTSTRAP = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[2]); "
    "from tplab.cluster.worker import main; main(int(sys.argv[1]))"
)
# In the environment of the ranks, and so of what they start: for the case that the keeper itself was killed.
_MARK = "TPLAB_CLUSTER"
_READ_SIZE = 1 << 16
_CHECK_EXITS_EVERY_S = 0.5
_EXIT_S = 2.0
_KEEPER_START_S = 20.0
_KEEPER_END_S = 10.0


@dataclass(slots=True)
class _Process:
    """One rank's process and its three channels."""

    rank: int
    pid: int
    channel: SupervisorChannel
    pipes: list[Pipe]
    talking: bool = True
    """Whether the rank's socket is open at both ends."""
    hung_up_at: float = 0.0
    exited: bool = False

    def drain(self) -> list[Event]:
        events: list[Event] = []
        for pipe in self.pipes:
            events += [*pipe.read(), *pipe.opened()]
        return events

    def rest(self) -> list[Event]:
        events: list[Event] = []
        for pipe in self.pipes:
            events += [*pipe.rest(), *pipe.opened()]
        return events


class _Keeper:
    """This side of the process that starts the ranks and outlives them."""

    def __init__(self, ranks: list[keeper.Rank], cluster_id: str) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._partial = b""
        self._cluster_id = cluster_id
        self.ended = False
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *(fd for _, _, fds in ranks for fd in fds)],
                start_new_session=True,
            )
        try:
            ours.settimeout(_KEEPER_START_S)
            job = marshal.dumps((os.getpid(), ranks))
            ours.sendall(len(job).to_bytes(8, "big") + job)
            while not (lines := self._lines()):
                if self.ended:
                    raise OSError("the process that starts the ranks ended")
            word, *rest = lines[0].split(" ", 2)
            if word == "error":
                raise OSError(int(rest[0]), rest[1])
            self.pids = [int(pid) for pid in lines[0].split()[1:]]
            self.early = lines[1:]
            """What came together with the process ids."""
            ours.setblocking(False)
        except BaseException:
            self.end()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def exits(self) -> dict[int, int]:
        """Rank -> exit code, of those that it says have ended since the last call."""
        lines, self.early = self.early, []
        return {int(rank): int(code) for _, rank, code in map(str.split, lines or self._lines())}

    def _lines(self) -> list[str]:
        try:
            data = self._socket.recv(_READ_SIZE)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self.ended = self.ended or not data
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [line.decode() for line in lines]

    def kill(self, rank: int) -> None:
        with suppress(OSError):
            self._socket.send(f"kill {rank}\n".encode())

    def end(self) -> None:
        """Have everything below it ended, and wait for that."""
        with suppress(OSError):
            self._popen.send_signal(signal.SIGCONT)  # somebody may have stopped it
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        try:
            clean = self._popen.wait(_KEEPER_END_S) == 0
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
            clean = False
        if not clean or sys.platform != "linux":
            _kill_marked(self._cluster_id)


class LocalEngine:
    """Ranks as subprocesses on this machine.

    Args:
        placement: backend and devices of these ranks, which are numbered from 0 here.
        start_timeout: seconds that they have to start.
        share: which ranks of a larger cluster they are; by default they are the whole.
    """

    def __init__(self, placement: RankDevices, *, start_timeout: float, share: Share | None = None) -> None:
        self._placement = placement
        self._share = share or Share.of_all(placement.num_ranks)
        self._start_timeout = start_timeout
        self._processes: list[_Process] = []
        self._keeper: _Keeper | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)

    @property
    def placement(self) -> RankDevices:
        return self._placement

    def notices(self) -> list[str]:
        return []

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self._processes)

    def spawn(self) -> None:
        assert self._keeper is None
        check_room(self._placement)
        cluster_id = secrets.token_hex(8)
        argv = [sys.executable, "-c", _BOOTSTRAP]
        ranks: list[keeper.Rank] = []
        with ExitStack() as ours, ExitStack() as theirs:  # the rank's ends are the keeper's once it runs
            channels: list[SupervisorChannel] = []
            pipes: list[list[Pipe]] = []
            for rank in range(self._placement.num_ranks):
                near, far = socket.socketpair()
                channels.append(SupervisorChannel(ours.enter_context(near)))
                theirs.enter_context(far)
                ends: list[int] = []
                pipes.append([])
                for stream in ("stdout", "stderr"):
                    read, write = os.pipe()
                    theirs.callback(os.close, write)
                    ends.append(write)
                    os.set_blocking(read, False)
                    pipes[rank].append(Pipe(rank, stream, ours.enter_context(os.fdopen(read, "rb", buffering=0))))
                channels[rank].send(encode(self._setup(rank)))
                environment = rank_environment(self._placement, rank, cluster_id, self._share) | {_MARK: cluster_id}
                arguments = [*argv, str(far.fileno()), json.dumps(import_path()), f"rank {rank}"]
                ranks.append((arguments, environment, (far.fileno(), ends[0], ends[1])))
            self._keeper = _Keeper(ranks, cluster_id)
            ours.pop_all()
        self._selector.register(self._keeper, selectors.EVENT_READ, self._keeper)
        for rank, pid in enumerate(self._keeper.pids):
            process = _Process(rank, pid, channels[rank], pipes[rank])
            self._processes.append(process)
            self._selector.register(process.channel, selectors.EVENT_READ, process)
            for pipe in process.pipes:
                self._selector.register(pipe.file, selectors.EVENT_READ, pipe)

    def _setup(self, rank: int) -> Setup:
        return Setup(
            index=self._share.first_rank + rank,
            share=self._share,
            backend=self._placement.backend,
            device=self._placement.devices[rank],
            start_timeout=self._start_timeout,
            shares_gpus=self._placement.shares_gpus,
        )

    def send(self, rank: int, parts: Sequence[Part]) -> None:
        process = self._processes[rank]
        if process.talking:
            process.channel.send(parts)
            self._watch(process)

    def _watch(self, process: _Process) -> None:
        writing = selectors.EVENT_WRITE if process.channel.has_outgoing else 0
        self._selector.modify(process.channel, selectors.EVENT_READ | writing, process)

    def poll(self, timeout: float | None) -> list[Event]:
        events: list[Event] = []
        if self._keeper is not None and self._keeper.early:
            return self._ends(self._keeper)
        leaving = [process for process in self._processes if not process.talking and not process.exited]
        if leaving:
            timeout = _EXIT_S if timeout is None else min(timeout, _EXIT_S)
        for key, ready in self._selector.select(timeout):
            match key.data:
                case Pipe() as pipe:
                    events += [*pipe.read(), *pipe.opened()]
                    if pipe.ended:
                        self._selector.unregister(pipe.file)
                case _Process() as process:
                    if not process.talking:  # hung up on since: what came before in this batch was its end
                        continue
                    if ready & selectors.EVENT_WRITE:
                        process.channel.flush()
                        self._watch(process)
                    if ready & selectors.EVENT_READ:
                        events += self._receive(process)
                case _Keeper():
                    events += self._ends(key.data)
                case _:
                    with suppress(BlockingIOError):
                        while self._wake_read.recv(_READ_SIZE):
                            pass
        for process in leaving:
            if not process.exited and time.monotonic() > process.hung_up_at + _EXIT_S:
                events += self._exit(process, None)  # the keeper does not say: somebody has stopped it
        return events

    def _receive(self, process: _Process) -> list[Event]:
        broke: list[Event] = []
        messages: list[object] = []
        try:
            messages, ended = process.channel.read()
        except ChannelBroken as error:
            broke, ended = [Broke(process.rank, str(error))], True
        # Read after the messages: it holds all that the rank wrote before it sent them.
        events = process.drain()
        if any(isinstance(message, Answer) for message in messages):
            events += process.rest()  # a line that the run left without an end must not run into the next run's
        events += [Received(process.rank, message) for message in messages]
        if ended:
            self._hang_up(process)
        return events + broke

    def _hang_up(self, process: _Process) -> None:
        """A rank that cannot be talked to is ended, with its session; the keeper says how. (A kill does not change the
        exit code of a process that is already on its way out.)"""
        process.talking = False
        process.hung_up_at = time.monotonic()
        self._selector.unregister(process.channel)
        if self._keeper is not None:
            self._keeper.kill(process.rank)

    def _ends(self, watch: _Keeper) -> list[Event]:
        """Ranks of which the keeper says that they ended; without a keeper there are no ranks."""
        codes: dict[int, int | None] = {**watch.exits()}
        if watch.ended:
            self._selector.unregister(watch)
            codes = dict.fromkeys(range(self._placement.num_ranks)) | codes
        return [event for rank, code in codes.items() for event in self._exit(self._processes[rank], code)]

    def _exit(self, process: _Process, code: int | None) -> list[Event]:
        if process.exited:
            return []
        process.exited = True
        events = self._receive(process) if process.talking else []
        if process.talking:  # something that it forked holds its end open
            self._hang_up(process)
        return [*events, *process.drain(), Exited(process.rank, code)]

    def heard_since(self, rank: int, moment: float) -> bool:
        return True

    def kill_rank(self, rank: int) -> None:
        if self._keeper is not None:
            self._keeper.kill(rank)

    def kill(self) -> list[Event]:
        processes, self._processes = self._processes, []
        watch, self._keeper = self._keeper, None
        if watch is not None:
            with suppress(KeyError, ValueError):
                self._selector.unregister(watch)
            watch.end()
        events: list[Event] = []
        for process in processes:
            events += process.drain()
            events += process.rest()
            for pipe in process.pipes:
                with suppress(KeyError):
                    self._selector.unregister(pipe.file)
                pipe.file.close()
            if process.talking:
                self._selector.unregister(process.channel)
            process.channel.close()
        return events

    def wake(self) -> None:
        with suppress(OSError):  # full: a wake-up is under way already; closed: nobody sleeps
            self._wake_write.send(b"!")

    def close(self) -> None:
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()


def _kill_marked(cluster_id: str) -> None:
    """End what ranks have started in sessions of their own, as far as that kept the ranks' environment."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_MARK) == cluster_id:
                process.kill()
