"""The limits that a container, a batch queue or a hub has set for this process: its cgroups, of both versions.

What the system says of itself (cores, memory) is the machine's. A container that may have two of 64 cores still sees
64, and ranks that start a thread for each of them spend their time waiting for their share.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TOP = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60  # version 1 writes "no limit" of memory as a huge number


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryLimit:
    """A limit on the memory of one group that this process is in."""

    num_bytes: int
    """The limit."""
    used_bytes: int
    """What counts against it, without what the system keeps of files, which goes before a kill."""


def memory_limits() -> Iterator[MemoryLimit]:
    """Each limit on memory that holds for this process."""
    for group, is_v2 in _folders("memory"):
        limit_file, used_file = (
            ("memory.max", "memory.current") if is_v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        with suppress(OSError, ValueError):
            limit = int((group / limit_file).read_text())  # version 2 writes "max" for none
            if limit < _NO_LIMIT:
                used = int((group / used_file).read_text())
                yield MemoryLimit(num_bytes=limit, used_bytes=used - _reclaimable(group))


def cores_limit() -> float | None:
    """The processor time that this process may have, in cores, or None without a limit."""
    found = []
    for group, is_v2 in _folders("cpu"):
        with suppress(OSError, ValueError, ZeroDivisionError):
            if is_v2:
                quota, period = (group / "cpu.max").read_text().split()  # "max 100000" for none
            else:
                quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:  # version 1 writes -1 for none
                found.append(int(quota) / int(period))
    return min(found, default=None)


def _folders(controller: str) -> Iterator[tuple[Path, bool]]:
    """The groups of this process that may limit something, from its own up, and whether they are of version 2."""
    for number, controllers, path in _groups():
        if number == "0":
            tops = [_TOP, _TOP / "unified"]
        elif controller in controllers.split(","):
            tops = [_TOP / name for name in dict.fromkeys([controller, controllers])]
        else:
            continue
        inside = Path(path.lstrip("/"))
        # A container sees its own group at the top, while the path may be the one that the host has for it.
        for top in tops:
            for group in dict.fromkeys([top / inside, *(top / parent for parent in inside.parents), top]):
                yield group, number == "0"


def _groups() -> list[list[str]]:
    """Number, controllers and path of each cgroup of this process."""
    with suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        return [parts for line in lines if len(parts := line.split(":", 2)) == 3]
    return []


def _reclaimable(group: Path) -> int:
    """Nothing where the group does not say: a limit holds without it, too."""
    with suppress(OSError, ValueError):
        fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        total = "total_" if "total_inactive_file" in fields else ""  # version 1: with the groups below
        return sum(
            int(fields.get(f"{total}{name}", 0)) for name in ("inactive_file", "active_file", "slab_reclaimable")
        )
    return 0
