"""The rows of the fault matrix: how each fault is made, and what is right."""

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from tests.hosts.faults.beds import Bed, eventually
from tests.hosts.faults.desk import Desk, Seen
from tests.hosts.faults.footprint import marked
from tests.hosts.namespaces import Host

SOON_S = 3.0
LIMIT_S = 2.0
"""Time limit of the runs that nothing else would end."""
CGROUPS = Path("/sys/fs/cgroup/memory")


class NotHere(Exception):
    """This machine does not allow the fault to be made; the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One fault."""

    drive: Callable[[Desk], Seen]
    """Makes it happen to a notebook whose ranks are warm."""
    expect: tuple[str, ...]
    """Names of the exceptions that are right; an empty name: none."""
    rank: str = "last"
    """Which rank has to be named: ``last``, ``any`` or ``none``."""
    within_s: float = SOON_S
    """From the fault to the error."""
    on_hosts_s: float = 0.0
    """The same on several hosts, where it is longer."""
    settle_s: float = 3.0
    """How long after the next run processes and sockets may still be there."""
    engines: tuple[str, ...] = ("local", "ipyparallel", "plain ipyparallel", "notebook_launcher")
    """Where the row has a meaning."""
    once: bool = False
    """Whether the number of ranks is the row's own."""
    next_run: bool = True
    """Whether the next run has to work before anything is done; otherwise it has to say why it does not."""
    restore: Callable[[Desk], None] | None = None
    """Makes what the fault has ended anew, after the next run; the notebook is closed then."""


def by_rank(fault: str, timeout: float | None = None) -> Callable[[Desk], Seen]:
    """A fault that a rank makes by itself."""

    def drive(desk: Desk) -> Seen:
        return desk.seen(desk.attempt(fault, timeout or 60))

    return drive


def interrupt(times: int) -> Callable[[Desk], Seen]:
    """The Stop button, while ranks wait in a collective."""

    def drive(desk: Desk) -> Seen:
        cell = desk.begin("hung")
        desk.happened()
        time.sleep(0.2)
        began = time.time()
        for press in range(times):
            time.sleep(0.05 * bool(press))
            desk.kernel.manager.interrupt_kernel()
        return desk.seen(desk.told(desk.end(cell)), began)

    return drive


def interrupt_start(desk: Desk) -> Seen:
    """The Stop button while ranks start: the traceback holds all that there was by then."""
    desk.kernel("close()")
    known = set(marked(desk.bed.mark))
    cell = desk.kernel.send("start()")
    assert eventually(lambda: set(marked(desk.bed.mark)) - known, 20), "nothing starts"
    time.sleep(0.3)
    began = time.time()
    desk.kernel.manager.interrupt_kernel()
    seen = desk.seen(desk.told(desk.end(cell)), began)
    desk.kernel("start()", 120)
    return seen


def end_kernel(desk: Desk, how: str) -> Seen:
    """The kernel goes away while ranks wait in a collective; what is timed is until they are gone, with what they
    started."""
    cell = desk.begin("hung")
    desk.happened()
    kernel = desk.kernel.manager.provisioner.pid
    before = set(marked(desk.bed.mark))
    below = {child.pid for child in psutil.Process(kernel).children(recursive=True)}
    theirs = below if not desk.on_hosts else {pid for pid in before if "worker" in " ".join(words(pid))}
    theirs |= {pid for pid in before if words(pid)[:1] == ["sleep"]}
    assert theirs, "no rank to look for"
    began = time.time()
    how_long = 15.0 if desk.on_hosts else SOON_S
    if how == "killed":
        os.kill(kernel, signal.SIGKILL)
    else:
        desk.kernel.manager.restart_kernel()
    gone = eventually(lambda: not theirs & set(marked(desk.bed.mark)), how_long)
    seconds = time.time() - began
    if how == "killed":
        desk.kernel.end()
        desk.kernel = desk.new_kernel()
    else:
        desk.kernel.client.wait_for_ready(timeout=60)
        desk.kernel.streams.clear()
        desk.define(desk.kernel)
    del cell
    again = time.monotonic()
    desk.kernel("attach()" if desk.on_hosts else "start()", 120)
    note = f"ranks again after {time.monotonic() - again:.1f} s"
    left = len(theirs & set(marked(desk.bed.mark)))
    wrong = "" if gone else f"{left} of {len(theirs)} processes of the ranks stayed"
    return Seen(error="ranks gone" if gone else "ranks stay", seconds=seconds, note=note, wrong=wrong)


def words(pid: int) -> list[str]:
    """Command line of a process that may be gone."""
    with suppress(psutil.Error):
        return psutil.Process(pid).cmdline()
    return []


def full_disk(desk: Desk) -> Seen:
    if desk.bed.no_disk:
        raise NotHere(desk.bed.no_disk)
    earlier = desk.bed.disk / "result.csv"
    earlier.write_text("the earlier one")
    seen = desk.seen(desk.attempt("full_disk"))
    whole = [path.read_text() for path in earlier.parent.iterdir()] == ["the earlier one"]
    note = "the earlier file is whole" if whole else "the earlier file is lost"
    return replace(seen, note=note, wrong="" if whole else note)


def killed_for_memory(desk: Desk) -> Seen:
    """By the system, in a control group with 100 MiB."""
    group = CGROUPS / f"tplab-faults-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(100 << 20))
    except OSError as error:
        raise NotHere(f"no control group can be made: {error}") from None
    try:
        cell = desk.begin("killed_for_memory")
        desk.happened()
        (group / "cgroup.procs").write_text((desk.folder / "pid").read_text())
        (desk.folder / "pid").unlink()  # the rank goes on
        began = time.time()
        return desk.seen(desk.told(desk.end(cell)), began)
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text(), 5)
        with suppress(OSError):
            group.rmdir()


def port_taken(desk: Desk) -> Seen:
    """Somebody else has the port of every tutorial."""
    with socket.socket() as taken:
        with suppress(OSError):  # somebody else has it already
            taken.bind(("127.0.0.1", 29500))
            taken.listen()
        return desk.seen(desk.attempt("pasted"))


def many_ranks(desk: Desk) -> Seen:
    """16 ranks on two cores: they start, meet, and the fault of one is found."""
    other = Desk(desk.bed, desk.engine, 16)
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(other.kernel.manager.provisioner.pid, sorted(allowed)[:2])
        seconds = other.start()
        seen = other.seen(other.attempt("raises"))
        other.attempt("well", limit_s=120)
        other.kernel("close()")
    finally:
        other.close()
    return replace(seen, note=f"16 ranks met after {seconds:.1f} s")


def two_notebooks(desk: Desk) -> Seen:
    """A rank of one is killed while the other runs: that one feels nothing."""
    other = Desk(desk.bed, desk.engine, desk.num_ranks)
    try:
        other.start()
        cell = other.begin("slow")
        other.happened()
        seen = desk.seen(desk.attempt("killed"))
        told = other.told(other.end(cell))
        well = told["values"] == [float(desk.num_ranks)] * desk.num_ranks
        other.kernel("close()")
    finally:
        other.close()
    note = "the other is well" if well else f"the other: {told['error']}: {told['text'][:200]}"
    return replace(seen, note=note, wrong="" if well else note)


HOST_S = 5.0
"""Within which a host that is cut off has to be named."""
HOST_SETTLE_S = 15.0
"""A host that is cut off ends its ranks by itself, a while later."""


def lose(fault: Callable[[Bed, Host], None]) -> Callable[[Desk], Seen]:
    """The host of the last rank goes away, or the controller, while the other ranks wait in a collective. Those may
    fail of it sooner than the loss shows: what is lost has to be named all the same."""

    def drive(desk: Desk) -> Seen:
        name = desk.kernel("list(cluster.hosts)")[-1]
        cell = desk.begin("hung")
        desk.happened()
        time.sleep(0.2)
        began = time.time()
        fault(desk.bed, getattr(desk.bed.hosts, name))
        told = desk.told(desk.end(cell))
        word = "the controller" if fault is kill_controller else f"host {name}"
        wrong = "" if word in told["text"].partition("\n")[0] else f"says nothing of {word}: {told['text'][:300]}"
        return desk.seen(told, began, wrong=wrong)

    return drive


def cut_off(bed: Bed, host: Host) -> None:
    bed.hosts.link_down(host)


def kill_agent(bed: Bed, host: Host) -> None:
    bed.parallel.kill_engine(host)


def kill_controller(bed: Bed, host: Host) -> None:
    bed.parallel.kill_controller()


def restore(desk: Desk) -> None:
    """Cables in, a controller, and an engine on each host."""
    bed = desk.bed
    bed.hosts.reset()
    if psutil.pid_exists(bed.parallel.controller.pid):
        for host in bed.hosts.members:
            if host.name not in bed.parallel.engines:
                bed.parallel.start_engine(host)
        bed.parallel.client().close()
    else:
        bed.renew()


def on_hosts(fault: Callable[[Bed, Host], None], next_run: bool = True) -> Row:
    """A row that has a meaning on several hosts only."""
    return Row(
        drive=lose(fault),
        expect=("HostLost",),
        rank="any",
        within_s=HOST_S,
        settle_s=HOST_SETTLE_S,
        engines=("ipyparallel",),
        next_run=next_run,
        restore=restore,
    )


ROWS: dict[str, Row] = {
    "raise": Row(drive=by_rank("raises"), expect=("RankError",)),
    "SIGKILL of a rank": Row(drive=by_rank("killed"), expect=("RankDied",)),
    "SIGSTOP of a rank": Row(drive=by_rank("stopped", LIMIT_S), expect=("RankTimeout",)),
    "collective of two sizes": Row(
        drive=by_rank("mismatched", LIMIT_S), expect=("RankError", "RankDied", "RankTimeout"), rank="any"
    ),
    "collective without a rank": Row(drive=by_rank("absent", LIMIT_S), expect=("RankTimeout",), rank="any"),
    "out of memory: refused": Row(drive=by_rank("short_of_memory"), expect=("RankError",)),
    "out of memory: killed": Row(drive=killed_for_memory, expect=("RankDied",)),
    "interrupt": Row(drive=interrupt(1), expect=("KeyboardInterrupt",), rank="none"),
    "interrupt twice": Row(drive=interrupt(2), expect=("KeyboardInterrupt",), rank="none"),
    "interrupt while starting": Row(
        drive=interrupt_start,
        expect=("KeyboardInterrupt",),
        rank="none",
        engines=("local", "ipyparallel", "plain ipyparallel"),
    ),
    "kernel killed": Row(
        drive=lambda desk: end_kernel(desk, "killed"),
        expect=("ranks gone",),
        rank="none",
        on_hosts_s=12.0,  # agents wait 10 s for the kernel to be heard of
    ),
    "kernel restarted": Row(drive=lambda desk: end_kernel(desk, "restarted"), expect=("ranks gone",), rank="none"),
    "disk full while saving": Row(drive=full_disk, expect=("RankError",)),
    "port taken": Row(drive=port_taken, expect=("",), rank="none"),
    "16 ranks on 2 cores": Row(drive=many_ranks, expect=("RankError",), once=True, within_s=15.0, settle_s=10.0),
    "two notebooks at once": Row(drive=two_notebooks, expect=("RankDied",)),
    "host unreachable": on_hosts(cut_off),
    "agent killed": on_hosts(kill_agent),
    "controller killed": on_hosts(kill_controller, next_run=False),
}
