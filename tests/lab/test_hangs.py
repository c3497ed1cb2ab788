"""A hang as people see it: frame, figure, table and panel."""

import time

import pandas as pd
import pytest
import torch
import torch.distributed as dist

from tplab.checks import ArgumentError
from tplab.cluster import Cluster, RankTimeout
from tplab.cluster.calls import Call, Calls, GroupFacts, Position
from tplab.cluster.hang import diagnose
from tplab.lab import HangPanel, Pool, catch_hang
from tplab.lab.figures import hang_figure
from tplab.lab.hangs import Hang, hang_frame
from tplab.lab.panels import html

pytestmark = pytest.mark.timeout(90)


def called(*calls, frames=()):
    """A rank that runs and has called these: ``(kind, group, number, state)``, or with a peer behind."""
    made = tuple(
        Call(kind, group, number, 4, "float32", *(peer or (None,)), 0, ("/x/<b>.py", 3, "f", None), state)
        for kind, group, number, state, *peer in calls
    )
    names = {group: 0 for _, group, *_ in calls}
    return Position(
        "running",
        frames,
        Calls(
            tuple(GroupFacts(name, "", (0, 1), name == "0") for name in names),
            tuple((name, max(c.number for c in made if c.group == name)) for name in names),
            (),
            made,
        ),
    )


@pytest.fixture
def crossed():
    """Each rank waits in another group."""
    groups = {0: ("1", "2"), 1: ("2", "1")}
    before = ("barrier", "0", 1, "done")
    known = {rank: called(before, ("all_reduce", first, 1, "waits")) for rank, (first, _) in groups.items()}
    return diagnose(known)


def test_columns_are_what_meets(crossed):
    frame = hang_frame(crossed)
    states = frame.pivot(index="rank", columns="call", values="state")
    assert list(states.columns[:1]) == ["#1"]
    assert set(states["#1"]) == {"done"}
    first, second = (states[name] for name in states.columns[1:])
    assert (list(first), list(second)) == (["waits", "missing"], ["missing", "waits"])
    assert next(iter(dict.fromkeys(frame["call"]))) == "#1", "what came first stands left"


def test_no_diagnosis_no_rows():
    assert hang_frame(None).empty


def test_figure_draws_each_call_once(crossed):
    frame = hang_frame(crossed)
    figure = hang_figure(frame, title="t", badge="LIVE gloo · 2 ranks")
    assert sum(len(bar.y) for bar in figure.data) == len(frame)
    waits = next(bar for bar in figure.data if bar.name == "waits")
    assert sorted(waits.y) == ["rank 0", "rank 1"]
    assert len({round(base) for base in waits.base}) == 2, "in columns of their own"


def test_a_rank_without_calls_has_a_row(crossed):
    figure = hang_figure(hang_frame(crossed), title="t", badge="LIVE gloo · 3 ranks", ranks=[0, 1, 2])
    assert figure.layout.yaxis.categoryarray == ("rank 2", "rank 1", "rank 0")
    assert figure.layout.yaxis.range == (-0.5, 2.5)


def test_table_escapes_what_users_wrote():
    frames = (("/x/<img src=x>.py", 3, "f", "<script>alert(1)</script>"),)
    found = diagnose({0: called(("barrier", "0", 1, "waits")), 1: Position("running", frames)})
    error = RankTimeout("late", ranks=[0, 1])
    error.hang = found
    page = Hang("<i>name", error, 2.0, "badge")._repr_html_() + html.error_card(error)
    assert "<script>" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page


@pytest.fixture(scope="module")
def pool(no_ranks_left):
    pool = Pool(num_ranks=2, backend="gloo")
    yield pool
    pool.stop()


def late(rank):
    dist.barrier()
    if rank == 1:
        time.sleep(60)
    dist.all_reduce(torch.ones(8))


def fine(rank):
    dist.barrier()


def test_panel_runs_a_function_and_shows_who_waits(pool):
    panel = HangPanel(pool, fine, late)
    assert panel.run() is None
    assert panel.figure is None
    hang = panel.configure(function="late", timeout_s=1).run()
    assert hang.diagnosis.missing == (1,)
    assert hang.seconds >= 1.0
    assert panel.figure.layout.title.text.startswith("late()")
    assert "waits in all_reduce #2 (8 float32" in panel._below.value
    assert "rank 1 never came" in panel._error.value
    assert panel._ribbon.value == "", "the figure is of the hang: nothing is missing in it"
    assert panel._status.words.startswith("It did not return")
    assert isinstance(hang.frame, pd.DataFrame)
    assert panel.configure(function="fine").run() is None, "the hang before is not this one's"


def test_panel_needs_a_function(pool):
    with pytest.raises(ArgumentError, match="HangPanel"):
        HangPanel(pool)


def test_catching_nothing(cluster2: Cluster):
    assert catch_hang(cluster2, fine) is None
    with pytest.raises(ValueError, match="timeout"):
        catch_hang(cluster2, fine, timeout=0)
