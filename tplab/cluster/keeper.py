"""A small process between the kernel and its ranks: it starts them, says when one ends, and outlives them.

Ranks start processes of their own (data loaders, compilers, profilers), in sessions of their own and with environments
of their own, and a kernel can be killed at any moment. Nobody is then left who knows what belongs together, but the
ancestor of all: on Linux this process is the subreaper of everything under it, so what loses its parent becomes its
child. When the kernel hangs up or dies, it kills until it has no children left, and ends; or after 8 s, for what does
not die of SIGKILL by then is another user's, or stuck in a driver.

Run as a file by a bare interpreter (``python -I -S keeper.py FD``), with few imports, to be up in 13 ms. ``FD`` is a
socket to the kernel. First comes the job, marshalled, behind its length in 8 bytes; then lines: ``kill RANK`` from the
kernel, and to it ``pids PID PID ...`` or ``error ERRNO TEXT`` once, and ``exit RANK CODE`` for each rank that ends.
"""

import marshal
import os
import select
import signal
import sys
import time
from types import FrameType

Rank = tuple[list[str], dict[str, str], tuple[int, int, int]]
"""Arguments, environment, and the descriptors of its socket, stdout and stderr."""
Job = tuple[int, list[Rank]]
"""The kernel's process id, and the ranks to start."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE_S = 8.0  # for processes that do not die of SIGKILL: another user's, or stuck in a driver
_READ_SIZE = 1 << 16


class Keeper:
    """The ranks that run, by process id, and the socket to the kernel."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.ranks: dict[int, int] = {}
        self.ending = False
        self.partial = b""

    def start(self, ranks: list[Rank]) -> None:
        """Start all ranks; if one cannot be, end the others and say why."""
        try:
            for index, rank in enumerate(ranks):
                self.ranks[_start(rank, os.getpid())] = index
        except OSError as error:
            self.tell(f"error {error.errno or 0} {error.strerror or error}")
            self.ending = True
            return
        finally:
            for _, _, fds in ranks:
                for fd in fds:
                    os.close(fd)
        self.tell("pids " + " ".join(map(str, self.ranks)))

    def read(self) -> bytes:
        """What the kernel has sent; ends the keeper when it has hung up."""
        try:
            data = os.read(self.fd, _READ_SIZE)
        except OSError:
            data = b""
        self.ending = self.ending or not data
        return data

    def obey(self) -> None:
        """End the ranks that the kernel names."""
        *lines, self.partial = (self.partial + self.read()).split(b"\n")
        for line in lines:
            for pid, rank in self.ranks.items():
                if rank == int(line.removeprefix(b"kill ")):
                    _kill(-pid)

    def tell(self, line: str) -> None:
        try:
            os.write(self.fd, line.encode() + b"\n")
        except OSError:
            self.ending = True

    def reap(self) -> bool:
        """Collect what has ended; a rank takes its process group along. Returns whether any child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if pid in self.ranks:
                _kill(-pid)  # the id stays taken while the group has members
                self.tell(f"exit {self.ranks.pop(pid)} {os.waitstatus_to_exitcode(status)}")

    def end(self, wake: int) -> None:
        """Kill everything below until there is nothing left; ``wake`` becomes readable when a child ends."""
        for pid in self.ranks:
            _kill(-pid)
        deadline = time.monotonic() + _PATIENCE_S
        while self.reap() and time.monotonic() < deadline:
            if not select.select([wake], [], [], 0.05)[0] or not self.ranks:  # it is not the ranks that we wait for
                for pid in _descendants(os.getpid()):
                    _kill(pid)
            _drain(wake)


def _start(rank: Rank, keeper_pid: int) -> int:
    """Start one rank in a session of its own; returns its process id. Forking is safe here: there is one thread."""
    argv, environment, (channel, stdout, stderr) = rank
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        if sys.platform == "linux":
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != keeper_pid:  # it ended before the request
                os._exit(1)
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.set_inheritable(channel, True)
        os.execve(argv[0], argv, environment)
    except BaseException as error:
        os.write(2, f"the interpreter of a rank could not be started: {error!r}\n".encode())
    finally:
        os._exit(127)


def _prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _descendants(root: int) -> list[int]:
    """Process ids below ``root``, where there is a /proc; elsewhere none."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue  # it ended meanwhile
            children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    look = [root]
    while look:
        below = children.get(look.pop(), [])
        found += below
        look += below
    return found


def _kill(pid: int) -> None:
    """SIGKILL to a process, or to the group of its negative."""
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:  # contextlib would cost a millisecond of the start
        return


def _drain(fd: int) -> None:
    try:
        while os.read(fd, _READ_SIZE):
            pass
    except BlockingIOError:
        return


def _receive_job(fd: int) -> Job | None:
    data = b""
    while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:8], "big"):
        more = os.read(fd, _READ_SIZE)
        if not more:
            return None
        data += more
    job: Job = marshal.loads(data[8:])
    return job


def main(fd: int) -> None:
    keeper = Keeper(fd)

    def on_end(number: int, frame: FrameType | None) -> None:
        keeper.ending = True

    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGTERM, on_end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    job = _receive_job(fd)
    if job is None:
        return
    kernel_pid, ranks = job
    for inherited in [fd, *(fd for _, _, fds in ranks for fd in fds)]:
        os.set_inheritable(inherited, False)  # each rank gets its own three, and nothing else
    if sys.platform == "linux":
        # The kernel's copies (a fork of it) can hold the socket open: its death is then told by this signal.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        keeper.ending = os.getppid() != kernel_pid
    if not keeper.ending:
        keeper.start(ranks)
    while not keeper.ending:
        ready, _, _ = select.select([fd, wake_read], [], [])
        if wake_read in ready:
            _drain(wake_read)
            keeper.reap()
        if fd in ready:
            keeper.obey()
    keeper.end(wake_read)


if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)  # nothing is left to tidy up
