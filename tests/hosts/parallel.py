"""An ipyparallel cluster over the hosts of :mod:`tests.hosts.namespaces`, started with ipyparallel's own commands.

The controller runs outside, where the tests' process is, or on a host; one engine on each of alpha and beta.
Connections are encrypted (CurveZMQ); the profile is a folder of the test's own.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.hosts.namespaces import Host, Hosts

SOON_S = 60


@dataclass
class Parallel:
    """A controller and its engines, which a test may kill."""

    hosts: Hosts
    folder: Path
    """IPython's, with the profile in it."""
    at: Host | None = None
    """Where the controller runs; None: outside."""
    controller: "subprocess.Popen[bytes] | None" = None
    engines: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)
    """The newest one of each host, by the host's name."""
    started: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @property
    def profile_dir(self) -> Path:
        return self.folder / "profile_default"

    @property
    def cluster_file(self) -> Path:
        """What a client connects with."""
        return self.profile_dir / "security" / "ipcontroller-client.json"

    @property
    def engine_file(self) -> Path:
        """What an engine connects with."""
        return self.profile_dir / "security" / "ipcontroller-engine.json"

    @property
    def env(self) -> dict[str, str]:
        """What a process needs in its environment to find the profile: pass it to a notebook's kernel."""
        return {"IPYTHONDIR": str(self.folder), "OMP_NUM_THREADS": "1"}

    def start_controller(self) -> None:
        """Start the controller and wait for its files."""
        address = self.at.address if self.at else self.hosts.address
        for file in (self.cluster_file, self.engine_file):
            file.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "ipyparallel.controller", f"--profile-dir={self.profile_dir}"]
        argv += [f"--ip={address}", f"--location={address}", "--IPController.enable_curve=True"]
        self.controller = self._start(self.at, argv, "controller")
        wait_for(
            lambda: self.cluster_file.exists() and self.engine_file.exists(), "the controller's files", self._ended
        )

    def start_engine(self, host: Host) -> None:
        """Start an engine on ``host``; it registers by itself, see :meth:`client`."""
        argv = [sys.executable, "-m", "ipyparallel.engine", f"--profile-dir={self.profile_dir}"]
        argv += [f"--file={self.engine_file}", "--timeout=30"]
        self.engines[host.name] = self._start(host, argv, f"engine-{host.name}")

    def client(self, engines: int = 2) -> Any:
        """A new client of ipyparallel's, once so many engines have registered; the test closes it."""
        import ipyparallel

        client = ipyparallel.Client(str(self.cluster_file))
        try:
            wait_for(lambda: len(client.ids) >= engines, f"{engines} engines", self._ended)
        except BaseException:
            client.close()
            raise
        return client

    def pids(self, host: Host) -> list[int]:
        """The processes on ``host`` that belong to this cluster: engines, their nannies, and what they started."""
        found = []
        for pid in host.pids():
            with suppress(OSError):  # gone meanwhile
                if f"IPYTHONDIR={self.folder}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    def kill_engine(self, host: Host) -> None:
        """SIGKILL to the engine of ``host``, and to nothing that it started: nanny and ranks are on their own."""
        _kill(self.engines.pop(host.name))

    def kill_controller(self) -> None:
        """SIGKILL to the controller and its schedulers, at once, as when its machine fails."""
        assert self.controller is not None
        children = psutil.Process(self.controller.pid).children(recursive=True)
        _kill(self.controller)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=SOON_S)

    def log(self, name: str) -> str:
        """What ``controller``, ``engine-alpha`` or ``engine-beta`` wrote."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        """End the engines, then the controller; politely, then not."""
        for process in reversed(self.started):
            if process.poll() is None:
                family = [process, *_children(process.pid)]
                process.send_signal(signal.SIGCONT)
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=5)
                for each in family:
                    with suppress(psutil.NoSuchProcess, ProcessLookupError):
                        each.kill()
            process.wait(timeout=SOON_S)

    def _start(self, host: Host | None, argv: list[str], name: str) -> "subprocess.Popen[bytes]":
        with open(self.folder / f"{name}.log", "ab") as log:
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            if host is None:
                process = subprocess.Popen(argv, env={**os.environ, **self.env}, **options)
            else:
                process = host.popen(argv, env=self.env, **options)
        self.started.append(process)
        return process

    def _ended(self) -> str:
        """Of the processes that should run, the first that does not, with its log's end."""
        running = {"controller": self.controller, **{f"engine-{name}": one for name, one in self.engines.items()}}
        for name, process in running.items():
            if process is not None and process.poll() is not None:
                return f"{name} ended with {process.returncode}: {self.log(name)[-2000:]}"
        return ""


@contextmanager
def parallel(hosts: Hosts, folder: Path, at: Host | None = None) -> Iterator[Parallel]:
    """A controller (on ``at``, or outside) and an engine on alpha and on beta, all there; ended afterwards."""
    folder.mkdir(mode=0o700, exist_ok=True)
    made = Parallel(hosts, folder, at)
    try:
        made.start_controller()
        for host in hosts.members:
            made.start_engine(host)
        made.client().close()
        yield made
    finally:
        made.close()


def wait_for(
    met: Callable[[], bool], what: str, failed: Callable[[], str] = lambda: "", within: float = SOON_S
) -> None:
    """Until ``met()``; ``failed()`` may say sooner why that will not be."""
    until = time.monotonic() + within
    while not met():
        if reason := failed():
            raise AssertionError(reason)
        if time.monotonic() > until:
            raise AssertionError(f"not within {within} s: {what}")
        time.sleep(0.02)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait(timeout=SOON_S)


def _children(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []
