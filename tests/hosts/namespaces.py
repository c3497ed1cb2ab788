"""Hosts out of Linux network namespaces: own names, own addresses, one cable each to a switch; ``tc`` limits its rate.

    alpha  eth0 10.213.k.11 --+
    beta   eth0 10.213.k.12 --+-- bridge (a namespace of its own) -- tplab-k 10.213.k.1: the tests' own process
    gamma  eth0 10.213.k.99 --+

``gamma`` is the outsider: it reaches every address and holds no key. What the hosts share, as real ones do not: the
file system (all but ``/etc/hosts``), process numbers, clock, cores and memory. There is no netem here, so no added
latency.

Everything hangs on one process per namespace (``holder.py``), whose stdin the tests' process holds: when that ends,
killed or not, the hosts' processes, interfaces and namespaces go. Several test processes may do this at once: the
interface outside, whose name the kernel gives only once, decides who has which ``k``.
"""

import errno
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MEMBERS = {"alpha": 11, "beta": 12, "gamma": 99}
"""Names of the hosts and the last number of their addresses."""


class NotAllowed(Exception):
    """This machine does not let this user make network namespaces; the text says why."""


@dataclass(frozen=True)
class Host:
    """One network namespace with a name and an address."""

    name: str
    """What ``hostname`` says in it."""
    address: str
    """Its IPv4 address, which the others and the tests' process reach."""
    holder: "subprocess.Popen[str]" = field(repr=False)
    """The process that keeps it in being."""
    interface: str = "eth0"
    """The one that has the address; besides there is ``lo``."""

    def within(self, argv: Sequence[str | Path], cwd: str | Path | None = None) -> list[str]:
        """The command line that runs ``argv`` on this host, in ``cwd`` or the caller's directory, as one process."""
        spaces = [f"--{kind}=/proc/{self.holder.pid}/ns/{file}" for kind, file in _SPACES]
        # Entering a mount namespace leads to its root.
        return ["nsenter", *spaces, "--", "env", "-C", str(cwd or os.getcwd()), *map(str, argv)]

    def popen(
        self, argv: Sequence[str | Path], env: Mapping[str, str] | None = None, **options: Any
    ) -> "subprocess.Popen[Any]":
        """Start ``argv`` here; ``env`` is added to the environment. The process's pid is the same from outside."""
        return subprocess.Popen(
            self.within(argv, options.pop("cwd", None)), env={**os.environ, **(env or {})}, **options
        )

    def run(
        self, argv: Sequence[str | Path], env: Mapping[str, str] | None = None, **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Run ``argv`` here to its end, output captured; a status that is not 0 raises."""
        options = {"capture_output": True, "text": True, "check": True, "timeout": 60, **options}
        return subprocess.run(self.within(argv, options.pop("cwd", None)), env={**os.environ, **(env or {})}, **options)

    def python(self, code: str, *arguments: str, **options: Any) -> str:
        """What this Python code prints here."""
        return self.run([sys.executable, "-c", code, *arguments], **options).stdout

    def pids(self) -> list[int]:
        """The processes on this host, the holder not among them."""
        space = os.readlink(f"/proc/{self.holder.pid}/ns/net")
        found = []
        for process in Path("/proc").iterdir():
            with suppress(OSError):  # not a process, or gone meanwhile
                if process.name.isdigit() and os.readlink(process / "ns/net") == space:
                    found.append(int(process.name))
        return [pid for pid in found if pid != self.holder.pid]

    def listening(self) -> list[tuple[str, int]]:
        """Address and port of every TCP socket that listens here."""
        ends = [line.split()[3] for line in self.run(["ss", "-Htln"]).stdout.splitlines()]
        return [
            (address.strip("[]").split("%")[0], int(port)) for address, _, port in (e.rpartition(":") for e in ends)
        ]


_SPACES = (("net", "net"), ("uts", "uts"), ("mount", "mnt"))


@dataclass(frozen=True)
class Hosts:
    """alpha and beta, which work together, and gamma, which does not belong to them."""

    alpha: Host
    beta: Host
    gamma: Host
    switch: Host = field(repr=False)
    """Where their cables end."""
    address: str
    """Of the tests' own process, as the hosts reach it."""
    interface: str
    """The one that has this address, outside."""

    @property
    def members(self) -> tuple[Host, Host]:
        """alpha and beta."""
        return self.alpha, self.beta

    def link_down(self, host: Host) -> None:
        """Pull the cable at the switch: whatever ``host`` sends is lost, and nobody is told."""
        self.switch.run(["ip", "link", "set", _port(host), "down"])

    def link_up(self, host: Host) -> None:
        """Put the cable back."""
        self.switch.run(["ip", "link", "set", _port(host), "up"])

    def set_rate(self, host: Host, mbit: float | None) -> None:
        """Limit what ``host`` sends and what it receives to ``mbit`` Mbit/s each; None: as fast as memory."""
        for place, device in ((host, host.interface), (self.switch, _port(host))):
            if mbit is None:
                place.run(["tc", "qdisc", "del", "dev", device, "root"], check=False)
                continue
            burst = max(16_000, int(mbit * 1e6 / 8 * 1e-3))  # 1 ms of it: larger ones let short messages pass unlimited
            limit = ["rate", f"{mbit}mbit", "burst", str(burst), "latency", "100ms"]
            place.run(["tc", "qdisc", "replace", "dev", device, "root", "tbf", *limit])

    def reset(self) -> None:
        """Cables in, no limits."""
        for host in (*self.members, self.gamma):
            self.link_up(host)
            self.set_rate(host, None)


def why_not() -> str:
    """Why hosts cannot be made here; empty: they can."""
    if platform.system() != "Linux":
        return "network namespaces are Linux's"
    if os.getuid() != 0:
        return "only root may make network namespaces that this process reaches"
    missing = [
        command for command in ("ip", "tc", "ss", "unshare", "nsenter", "mount") if shutil.which(command) is None
    ]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install iproute2 util-linux"
    tried = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True)
    if tried.returncode:
        return f"namespaces are not allowed: {tried.stderr.strip()}"
    return ""


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """alpha, beta and gamma, joined; ``folder`` is for their ``/etc/hosts``. Afterwards nothing is left of them."""
    if reason := why_not():
        raise NotAllowed(reason)
    with ExitStack() as stack:
        switch = stack.enter_context(_space("switch", "", folder / "none"))
        number, outside = _outer_cable(switch)
        addresses = {name: f"10.213.{number}.{last}" for name, last in _MEMBERS.items()}
        names = folder / "hosts"
        known = {"localhost": "127.0.0.1", **addresses}
        names.write_text("".join(f"{address} {name}\n" for name, address in known.items()))
        switch.run(["ip", "link", "add", "name", "bridge", "type", "bridge"])
        switch.run(["ip", "link", "set", "bridge", "up"])
        switch.run(["ip", "link", "set", "outside", "master", "bridge", "up"])
        made = {}
        for name, address in addresses.items():
            host = made[name] = stack.enter_context(_space(name, address, names))
            ends = ["ip", "link", "add", "name", _port(host), "type", "veth", "peer", "name", host.interface]
            switch.run([*ends, "netns", str(host.holder.pid)])
            switch.run(["ip", "link", "set", _port(host), "master", "bridge", "up"])
            host.run(["ip", "address", "add", f"{address}/24", "dev", host.interface])
            host.run(["ip", "link", "set", host.interface, "up"])
        hosts = Hosts(**made, switch=switch, address=f"10.213.{number}.1", interface=outside)
        _own(["ip", "address", "add", f"{hosts.address}/24", "dev", outside])
        _own(["ip", "link", "set", outside, "up"])
        for host in made.values():
            _wait_until_reached(hosts, host)
        yield hosts
    _wait_until_gone(outside)


def _port(host: Host) -> str:
    """The end of ``host``'s cable at the switch."""
    return f"to-{host.name}"


def _own(argv: Sequence[str]) -> None:
    """Run a command outside."""
    subprocess.run(argv, check=True, capture_output=True, text=True)


@contextmanager
def _space(name: str, address: str, names: Path) -> Iterator[Host]:
    """A namespace with nothing in it but ``lo``; at the end its processes are killed."""
    names.touch()
    unshare = ["unshare", "--net", "--uts", "--mount", "--propagation", "slave"]
    holder = subprocess.Popen(
        [*unshare, sys.executable, "-I", "-S", str(Path(__file__).with_name("holder.py")), name, str(names)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stderr is not None
    try:
        if holder.stdout.readline() != "ready\n":
            raise NotAllowed(f"no namespace for {name}: {holder.stderr.read().strip()}")
        yield Host(name, address, holder)
    finally:
        holder.stdin.close()
        try:
            holder.wait(timeout=20)
        except subprocess.TimeoutExpired:
            holder.kill()
            raise
        finally:
            holder.stdout.close()
            holder.stderr.close()


def _outer_cable(switch: Host) -> tuple[int, str]:
    """A cable from the switch to the outside, whose name there is nobody else's, and the number in it."""
    for number in range(1, 255):
        name = f"tplab-{number}"
        ends = ["name", name, "type", "veth", "peer", "name", "outside", "netns", str(switch.holder.pid)]
        made = subprocess.run(["ip", "link", "add", *ends], capture_output=True, text=True)
        if made.returncode == 0:
            return number, name
        if os.strerror(errno.EEXIST) not in made.stderr:
            raise NotAllowed(made.stderr.strip())
    raise NotAllowed("254 other test processes have hosts on this machine")


def _wait_until_reached(hosts: Hosts, host: Host) -> None:
    """Until a connection from ``host`` to the outside is refused, or made: then its cable works."""
    with socket.create_server((hosts.address, 0)) as server:
        port = str(server.getsockname()[1])
        host.python(
            "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)",
            hosts.address,
            port,
        )


def _wait_until_gone(interface: str) -> None:
    """The kernel takes a namespace down a moment after its last process."""
    until = time.monotonic() + 20
    while Path("/sys/class/net", interface).exists():
        if time.monotonic() > until:
            raise RuntimeError(f"{interface} is still there")
        time.sleep(0.02)
