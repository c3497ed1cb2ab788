"""A small process between the kernel and its ranks: it starts them, says when one ends, and outlives them.

Ranks start processes of their own (data loaders, compilers, profilers), in sessions of their own and with environments
of their own, and a kernel can be killed at any moment. Nobody is then left who knows what belongs together, but the
ancestor of all: on Linux this process is the subreaper of everything under it, so what loses its parent becomes its
child. When the kernel hangs up or dies, it kills until it has no children left, and ends.

Run as a file by a bare interpreter (``python -I -S keeper.py FD``), to be up in some 10 ms: standard library only, and
nothing of tplab. ``FD`` is a socket to the kernel. Lines of JSON cross it: first the ranks to start (``ranks``: for
each ``argv``, ``env`` and ``fds``: the rank's socket, stdout, stderr; ``kernel_pid``), then ``{"kill": rank}``; back
come ``{"pids": [...]}`` or ``{"error": [errno, text]}``, then ``{"rank": rank, "exit": code}`` for each that ends.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from types import FrameType
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE_S = 8.0  # for processes that do not die of SIGKILL: another user's, or stuck in a driver
_READ_SIZE = 1 << 16


class Keeper:
    """The ranks that run, by process id, and the socket to the kernel."""

    def __init__(self, kernel: socket.socket) -> None:
        self.kernel = kernel
        self.ranks: dict[int, int] = {}
        self.ending = False
        self.partial = b""

    def start(self, job: dict[str, Any]) -> None:
        """Start all ranks; if one cannot be, end the others and say why."""
        try:
            for rank, one in enumerate(job["ranks"]):
                self.ranks[_start(one, os.getpid())] = rank
        except OSError as error:
            self.tell({"error": [error.errno or 0, error.strerror or str(error)]})
            self.ending = True
            return
        finally:
            for one in job["ranks"]:
                for fd in one["fds"]:
                    os.close(fd)
        self.tell({"pids": list(self.ranks)})

    def lines(self) -> list[Any]:
        """What the kernel has sent; ends the keeper when it has hung up."""
        try:
            data = self.kernel.recv(_READ_SIZE)
        except OSError:
            data = b""
        if not data:
            self.ending = True
        *lines, self.partial = (self.partial + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def tell(self, message: object) -> None:
        try:
            self.kernel.sendall(json.dumps(message).encode() + b"\n")
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
                _kill_group(pid)  # the id stays taken while the group has members
                self.tell({"rank": self.ranks.pop(pid), "exit": os.waitstatus_to_exitcode(status)})

    def end(self) -> None:
        """Kill everything below until there is nothing left."""
        for pid in self.ranks:
            _kill_group(pid)
        deadline = time.monotonic() + _PATIENCE_S
        pause = 0.001
        while self.reap() and time.monotonic() < deadline:
            for pid in _descendants(os.getpid()):
                _kill(pid)
            time.sleep(pause)
            pause = min(0.05, pause * 1.5)


def _start(one: dict[str, Any], keeper_pid: int) -> int:
    """Start one rank in a session of its own; returns its process id. Forking is safe here: there is one thread."""
    channel, stdout, stderr = one["fds"]
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
        os.execve(one["argv"][0], one["argv"], one["env"])
    except BaseException as error:
        os.write(2, f"the interpreter of a rank could not be started: {error!r}\n".encode())
    finally:
        os._exit(127)


def _prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _descendants(root: int) -> list[int]:
    """Process ids below ``root``, where /proc tells; elsewhere none."""
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
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def main(fd: int) -> None:
    keeper = Keeper(socket.socket(fileno=fd))

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
    job = None
    while job is None and not keeper.ending:
        job = next(iter(keeper.lines()), None)
    if job is None:
        return
    for inherited in [fd, *(fd for one in job["ranks"] for fd in one["fds"])]:
        os.set_inheritable(inherited, False)  # each rank gets its own three, and nothing else
    if sys.platform == "linux":
        # The kernel's copies (a fork of it) can hold the socket open: its death is then told by this signal.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        keeper.ending = os.getppid() != job["kernel_pid"]
    if not keeper.ending:
        keeper.start(job)
    while not keeper.ending:
        ready, _, _ = select.select([fd, wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, _READ_SIZE)
            keeper.reap()
        if fd in ready:
            for message in keeper.lines():
                for pid, rank in keeper.ranks.items():
                    if rank == message["kill"]:
                        _kill_group(pid)
    keeper.end()


if __name__ == "__main__":
    main(int(sys.argv[1]))
