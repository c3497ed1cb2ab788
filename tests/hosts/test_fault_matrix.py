"""The fault matrix's cells that are tplab's: a sample, and all of them with ``-m wide``.

The whole table, beside the peers: ``python -m tests.hosts.fault_matrix --peers``.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from tests.hosts import fault_matrix
from tests.hosts.faults.cells import Cell, Desks, desks, examine, problems
from tests.hosts.faults.desk import Seen
from tests.hosts.faults.launchers import LAUNCHERS
from tests.hosts.faults.rows import ROWS
from tests.hosts.namespaces import why_not

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts in /proc"),
]

OURS = [engine for engine, launcher in LAUNCHERS.items() if launcher.is_ours]
# In the default run, on two ranks: what no other test has in a real kernel.
SAMPLE = {
    "local": ["disk full while saving", "two notebooks at once"],
    "ipyparallel": ["interrupt while starting", "kernel restarted", "two notebooks at once"],
}


def cells() -> Iterator[Any]:
    """Every cell that is tplab's, notebook by notebook."""
    for engine in OURS:
        for num_ranks in (2, 4):
            for fault, row in ROWS.items():
                if engine in row.engines and not (row.once and num_ranks == 4):
                    sampled = num_ranks == 2 and fault in SAMPLE[engine]
                    marks = [] if sampled else [pytest.mark.wide]
                    yield pytest.param(engine, num_ranks, fault, marks=marks, id=f"{fault}-{engine}-{num_ranks}")


@pytest.fixture(scope="module")
def opened() -> Iterator[Callable[[str], Desks]]:
    """Notebooks of an engine, one engine at a time."""
    with ExitStack() as stack:
        made: dict[str, Desks] = {}

        def get(engine: str) -> Desks:
            if engine not in made:
                stack.pop_all().close()
                made.clear()
                made[engine] = stack.enter_context(desks(stack.enter_context(fault_matrix.beds(engine))))
            return made[engine]

        yield get


@pytest.mark.parametrize(("engine", "num_ranks", "fault"), list(cells()))
def test_cell(opened, engine, num_ranks, fault):
    if engine == "ipyparallel" and (reason := why_not()):
        pytest.skip(reason)
    cell = examine(opened(engine), fault, engine, num_ranks)
    if cell.skipped:
        pytest.skip(cell.skipped)
    assert not cell.problems, fault_matrix.line(cell)


GOOD = Cell(
    fault="SIGKILL of a rank",
    engine="ipyparallel",
    num_ranks=2,
    seen=Seen(error="RankDied", seconds=0.5, rank=1, num_ranks=2, host="beta", text="rank 1 of 2 on beta was killed"),
    next_s=1.0,
)


def wrong(cell: Cell) -> str:
    return " and ".join(problems(cell, ROWS[cell.fault], on_hosts=True, next_text=""))


def test_what_is_green():
    assert wrong(GOOD) == ""


@pytest.mark.parametrize(
    ("said", "planted"),
    [
        ("RankError instead of RankDied", {"error": "RankError"}),
        ("no error instead of RankDied", {"error": ""}),
        ("names rank 0 of 2", {"rank": 0}),
        ("names rank None of 2", {"rank": None}),
        ("says nothing of rank 1", {"text": "somewhere on beta"}),
        ("names no host", {"host": ""}),
        ("names no host", {"text": "rank 1 of 2 was killed"}),
        ("came after 9.0 s", {"seconds": 9.0}),
        ("the other is ill", {"wrong": "the other is ill"}),
    ],
)
def test_what_is_red(said, planted):
    assert said in wrong(replace(GOOD, seen=replace(GOOD.seen, **planted)))


@pytest.mark.parametrize(
    ("said", "planted"),
    [("1 processes and 0", {"processes": 1}), ("0 processes and 2", {"sockets": 2}), ("it hangs", {"next_s": None})],
)
def test_what_is_left(said, planted):
    assert said in wrong(replace(GOOD, **planted))


def test_the_command(monkeypatch, capsys):
    """A cell that is not as its row says makes it end with 1."""
    monkeypatch.setitem(ROWS, "port taken", replace(ROWS["port taken"], expect=("RankError",), rank="none"))
    assert fault_matrix.main(["--engines", "local", "--ranks", "2", "--faults", "raise,port taken"]) == 1
    _, good, bad, *_, last = capsys.readouterr().out.splitlines()
    assert good.split()[:4] == ["raise", "2", "local", "RankError"]
    assert good.endswith("green")
    assert "RED: no error instead of RankError" in bad
    assert last == "1 of 2 cells of tplab's are green"
