"""Holds one host's namespaces: run by :mod:`tests.hosts.namespaces` under ``unshare``, lives until its stdin ends.

    unshare --net --uts --mount --propagation slave python holder.py NAME HOSTS_FILE

Then, or when the tests' own process is gone, however it went, it kills every process that is left in its network
namespace, and with the last of them the kernel takes away the namespace, its interfaces and their other ends.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path


def others() -> list[int]:
    """The processes in this one's network namespace, without this one."""
    mine, found = os.readlink("/proc/self/ns/net"), []
    for process in Path("/proc").iterdir():
        with suppress(OSError):  # not a process, or gone meanwhile
            if process.name.isdigit() and os.readlink(process / "ns/net") == mine and int(process.name) != os.getpid():
                found.append(int(process.name))
    return found


def run(*argv: str) -> None:
    subprocess.run(argv, check=True)


def main() -> None:
    name, hosts_file = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # of the terminal: the tests' process decides
        signal.signal(number, signal.SIG_IGN)
    socket.sethostname(name)
    # The /sys there is would show the interfaces outside; what it has of cgroups is kept.
    sysfs = tempfile.mkdtemp(dir=Path(hosts_file).parent)
    run("mount", "-t", "sysfs", "sysfs", sysfs)
    run("mount", "--rbind", "/sys/fs/cgroup", f"{sysfs}/fs/cgroup")
    run("mount", "--rbind", sysfs, "/sys")
    run("mount", "--bind", hosts_file, "/etc/hosts")
    run("ip", "link", "set", "lo", "up")
    print("ready", flush=True)
    sys.stdin.read()
    while left := others():
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
