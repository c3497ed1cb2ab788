"""Which all-reduces a box sweeps on GPUs, and what it keeps of runs that end early; the ranks are played by others."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import tplab.topology.verification.box_sweep as box_sweep
from tplab.cluster import ClusterError, RankDied, RankTimeout
from tplab.lab.recorded import recorded
from tplab.topology.machine.machine import Machine
from tplab.topology.verification.box_files import BoxFiles
from tplab.topology.verification.box_plan import BoxPlan
from tplab.topology.verification.box_run import BoxRun
from tplab.topology.verification.box_sweep import sweep_step
from tplab.topology.verification.box_time import BoxTime

RECORDING = recorded("4xH200-2026-11-26", "sweep")


class Played:
    """Sweeps as four H200 were recorded, with a fault in those that a test names; ``asked`` has their labels."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        self.faults: dict[str, ClusterError] = {}
        self.kept = 3
        self.folder = folder
        monkeypatch.setattr(box_sweep, "_measure", self.measure)

    def measure(self, run: BoxRun, sweep: Any) -> tuple[pd.DataFrame, ClusterError | None]:
        self.asked.append(sweep.label)
        run.time_left.limit_s(sweep.cluster)
        rows = RECORDING[
            RECORDING["algorithm"].isin(sweep.algorithms)
            & (RECORDING["num_ranks"] == sweep.cluster.num_ranks)
            & (RECORDING["launch_mode"] == sweep.mode)
        ]
        fault = self.faults.get(sweep.label)
        return rows.iloc[: self.kept] if fault else rows, fault

    def step(self, *, hosts: tuple[str, ...] = (), minutes: float | None = None) -> Iterator[pd.DataFrame]:
        time_left = BoxTime(minutes, {"sweep": 1}, self.said.append)
        time_left.begin("sweep")
        run = BoxRun(
            cluster=gpus(4, hosts),
            plan=BoxPlan.large(),
            files=BoxFiles(self.folder, self.said.append),
            time_left=time_left,
            say=self.said.append,
        )
        return sweep_step(run, Machine.preset("h200", gpus=4))


def gpus(num_ranks: int, hosts: tuple[str, ...]) -> Any:
    return SimpleNamespace(
        backend="nccl",
        own_gpus=True,
        num_ranks=num_ranks,
        hosts=hosts[:num_ranks],
        resized=lambda n: gpus(n, hosts),
        start=lambda: None,
    )


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Played:
    return Played(monkeypatch, tmp_path)


def test_the_whole_machine_first_and_every_kind_of_all_reduce(played: Played) -> None:
    frame = pd.concat(played.step())
    of_each = ["the library's, eager", "the library's, graph", "of messages, eager"]
    of_each += ["torch's, eager", "torch's, graph", "pushed, eager", "pushed, graph"]
    assert played.asked == [f"all-reduces of {n} ranks, {words}" for n in (4, 2) for words in of_each]
    bands = pd.read_csv(played.folder / "crossover.csv")
    assert bands["num_ranks"].drop_duplicates().tolist() == [4, 2]
    assert frame["num_ranks"].drop_duplicates().tolist() == [4, 2]
    assert not (played.folder / "crossover.partial.csv").exists()


def test_the_library_stands_beside_the_formula_of_such_gpus(played: Played) -> None:
    frame = pd.concat(played.step())
    library = frame["algorithm"] == "library"
    assert frame.loc[library, "formula_us"].notna().all()
    assert frame.loc[~library, "formula_us"].isna().all()
    large = frame[library & (frame["bytes"] >= 1 << 26) & (frame["num_ranks"] == 4)]
    assert large["formula_us"].to_numpy() == pytest.approx(large["p50_us"].to_numpy(), rel=0.05)
    assert len(played.said) == 4
    assert played.said[1].startswith("sweep: all-reduces of 4 ranks, graph: measured 0.96 to 1.63 times the advisor's")
    assert played.said[1].endswith("farthest at 32 KiB, 16.6 µs measured and 10.2 µs by formula")


def test_gpus_that_cannot_reach_each_others_memory_still_have_a_sweep(played: Played) -> None:
    played.faults["all-reduces of 4 ranks, torch's, eager"] = RankDied("no peer access", rank=1, exit_code=1)
    assert set(pd.concat(played.step())["num_ranks"]) == {4, 2}
    symmetric = [label for label in played.asked if "torch's" in label or "pushed" in label]
    assert len(symmetric) == 1 + 4  # two GPUs may be joined where four are not
    assert "sweep: all-reduces of 4 ranks, torch's, eager: 3 rows, then no peer access" in played.said
    assert "sweep: no more of symmetric memory over 4 ranks" in played.said


def test_a_run_that_there_is_no_time_for_says_nothing_of_the_memory(played: Played) -> None:
    for label in ("all-reduces of 4 ranks, the library's, graph", "all-reduces of 4 ranks, torch's, eager"):
        played.faults[label] = RankTimeout("rank 0 did not answer within 9 s", ranks=[0])
    frame = pd.concat(played.step(minutes=9))
    assert len(played.asked) == 14
    assert "sweep: all-reduces of 4 ranks, torch's, eager: 3 rows, then stopped for want of time" in played.said
    assert not any("no symmetric memory" in line for line in played.said)
    stopped = frame[(frame["num_ranks"] == 4) & (frame["algorithm"] == "library") & (frame["launch_mode"] == "graph")]
    assert len(stopped) == 3


@pytest.mark.parametrize("kept", [0, 3])
def test_without_the_librarys_eager_run_the_others_are_there(played: Played, kept: int) -> None:
    """They are compared with it: of these ranks there may be no crossover, of the others there is."""
    played.kept = kept
    played.faults["all-reduces of 4 ranks, the library's, eager"] = RankDied("out of memory", rank=1, exit_code=1)
    frame = pd.concat(played.step())
    assert len(played.asked) == 14
    assert frame.groupby("num_ranks")["launch_mode"].nunique().tolist() == [2, 2]
    bands = pd.read_csv(played.folder / "crossover.csv")
    assert set(bands["num_ranks"]) <= {4, 2}
    assert 2 in set(bands["num_ranks"])


def test_gpus_of_several_hosts_are_not_asked_for_symmetric_memory(played: Played) -> None:
    list(played.step(hosts=("alpha", "alpha", "beta", "beta")))
    assert [label for label in played.asked if "torch's" in label] == [
        "all-reduces of 2 ranks, torch's, eager",
        "all-reduces of 2 ranks, torch's, graph",
    ]
    assert "sweep: no symmetric memory over 4 ranks: they are on several hosts" in played.said


def test_without_a_row_there_is_no_sweep(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = pd.DataFrame(), RankDied("rank 0 died", rank=0, exit_code=1)
    monkeypatch.setattr(box_sweep, "_measure", lambda *_: nothing)
    with pytest.raises(ValueError, match="no all-reduce could be measured"):
        list(played.step())
