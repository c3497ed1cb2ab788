"""One cell of the matrix: a fault, tried on a notebook, and what was left of it."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tests.hosts.faults.beds import Bed, eventually
from tests.hosts.faults.desk import PEER_S, Desk, Hangs, Seen
from tests.hosts.faults.launchers import LAUNCHERS
from tests.hosts.faults.rows import ROWS, NotHere, Row

NEXT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What one fault did to one launcher of so many ranks."""

    fault: str
    engine: str
    num_ranks: int
    seen: Seen
    next_s: float | None = None
    """The next run, in seconds; None: there was none."""
    processes: int = 0
    """More than before the fault, in the end."""
    sockets: int = 0
    skipped: str = ""
    """Why the fault could not be made here."""
    problems: tuple[str, ...] = ()
    """What is wrong, for cells of tplab's."""


class Desks:
    """Notebooks that stay for the next row, as long as they are well."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.stale = False
        """Whether something went wrong, so that nothing may be trusted for the next row."""
        self._open: dict[tuple[str, int], Desk] = {}

    def get(self, engine: str, num_ranks: int) -> Desk:
        """A notebook whose ranks have met. Those of other launchers are closed: each is alone on the machine."""
        key = engine, num_ranks
        for other in [other for other in self._open if other != key]:
            self.drop(*other)
        if self.stale:
            self.bed.renew()
            self.stale = False
        if key not in self._open:
            self._open[key] = Desk(self.bed, engine, num_ranks)
            self._open[key].start()
        return self._open[key]

    def drop(self, engine: str, num_ranks: int) -> None:
        """Close one, with whatever its launcher started."""
        self._open.pop((engine, num_ranks)).close()
        if self.bed.parallel is None:
            self.bed.end_all()

    def close(self) -> None:
        for key in list(self._open):
            self.drop(*key)


@contextmanager
def desks(bed: Bed) -> Iterator[Desks]:
    """Notebooks in a bed, closed in the end."""
    opened = Desks(bed)
    try:
        yield opened
    finally:
        opened.close()


def examine(opened: Desks, fault: str, engine: str, num_ranks: int) -> Cell:
    """Try one fault on one launcher."""
    row = ROWS[fault]
    desk = opened.get(engine, num_ranks)
    cell = Cell(fault=fault, engine=engine, num_ranks=num_ranks, seen=Seen(error=""))
    before = desk.footprint()
    try:
        cell = replace(cell, seen=row.drive(desk))
    except NotHere as reason:
        return replace(cell, skipped=str(reason))
    except Hangs:
        cell = replace(cell, seen=Seen(error="hangs", note=f"for {desk.limit_s:.0f} s and more"))
    next_s, next_text = run_again(desk)
    if next_text and not row.next_run:
        cell = replace(cell, seen=replace(cell.seen, note=f"next run: {' '.join(next_text.split())[:160]}"))
    if row.restore:
        row.restore(desk)

    def is_clean() -> bool:
        now = desk.footprint()
        return now.processes <= before.processes and now.sockets <= before.sockets

    eventually(is_clean, row.settle_s)
    now = desk.footprint()
    cell = replace(
        cell,
        next_s=next_s,
        processes=max(0, now.processes - before.processes),
        sockets=max(0, now.sockets - before.sockets),
    )
    if LAUNCHERS[engine].is_ours:
        cell = replace(cell, problems=tuple(problems(cell, row, desk.on_hosts, next_text)))
    if cell.problems or row.restore or next_s is None or cell.processes or cell.sockets:
        opened.drop(engine, num_ranks)
    opened.stale = bool(cell.problems)
    return cell


def run_again(desk: Desk) -> tuple[float | None, str]:
    """The same notebook's next run, without anything done for it: seconds (None: it fails or hangs), and its error."""
    began = time.monotonic()
    try:
        told = desk.attempt("well", limit_s=NEXT_S if desk.launcher.is_ours else PEER_S)
    except Hangs:
        return None, ""
    values = told["values"] or [0.0]
    works = values == [float(len(values))] * len(values)
    return time.monotonic() - began if works else None, told["error"] and f"{told['error']}: {told['text']}"


def problems(cell: Cell, row: Row, on_hosts: bool, next_text: str) -> Iterator[str]:
    """What is not as it has to be; ``next_text``: what the next run raised."""
    seen = cell.seen
    if seen.error not in row.expect:
        yield f"{seen.error or 'no error'} instead of {' or '.join(row.expect) or 'none'}: {seen.text[:300]}"
    elif row.rank != "none":
        yield from names(seen, row, on_hosts)
    if seen.wrong:
        yield seen.wrong
    within_s = max(row.within_s, row.on_hosts_s * on_hosts)
    if seen.seconds is not None and seen.seconds > within_s:
        yield f"the error came after {seen.seconds:.1f} s, later than {within_s:g} s"
    if cell.processes or cell.sockets:
        yield f"{cell.processes} processes and {cell.sockets} sockets are left"
    if cell.next_s is None and (row.next_run or not next_text):
        yield f"the next run does not work: {next_text[:300] or 'it hangs'}"


def names(seen: Seen, row: Row, on_hosts: bool) -> Iterator[str]:
    """Whether the rank to blame is named, as data and in words, and its host."""
    if seen.rank is None or (row.rank == "last" and seen.rank != seen.num_ranks - 1):
        yield f"names rank {seen.rank} of {seen.num_ranks}"
    elif not re.search(rf"(?i)\branks? [^.]*\b{seen.rank}\b", seen.text):
        yield f"says nothing of rank {seen.rank}: {seen.text[:200]}"
    if on_hosts and not (seen.host and seen.host in seen.text):
        yield f"names no host: {seen.host!r}: {seen.text[:200]}"
