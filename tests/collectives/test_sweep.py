"""The sweep: what it refuses, what it measures, and that it would notice a wrong result."""

import csv
import time
from pathlib import Path
from typing import Any

import pytest

from tplab import cli
from tplab.cluster import Cluster, Report, RunStopped
from tplab.collectives import timing
from tplab.collectives.counting import count_sent_bytes
from tplab.collectives.point_to_point import fit_link, measure_point_to_point
from tplab.collectives.sweep import submit_sweep, sweep_all_reduce, sweep_frame
from tplab.collectives.sweep_plan import ALGORITHMS, ON_SYMMETRIC_MEMORY, default_iterations, plan_sweep

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"sizes": []}, "sizes"),
        ({"sizes": [1024, -4]}, "sizes.*-4"),
        ({"sizes": [2048, 1024]}, "sizes must rise"),
        ({"sizes": [1024, 1024]}, "sizes must rise"),
        ({"sizes": [1.5]}, "sizes"),
        ({"sizes": [True]}, "sizes"),
        ({"sizes": [6], "dtypes": ["float32"]}, "multiples.*4 bytes"),
        ({"dtypes": ["float31"]}, "dtypes.*float31"),
        ({"dtypes": "float32"}, "dtypes must be a list"),
        ({"dtypes": []}, "dtypes"),
        ({"algorithms": ["rign"]}, "algorithms.*rign"),
        ({"mode": "lazy"}, "mode.*lazy"),
        ({"mode": "graph"}, "mode must be eager on the gloo backend: CUDA graphs need nccl; got 'graph'"),
        (
            {"mode": "graph", "backend": "nccl", "algorithms": ["ring"]},
            "mode must be eager for algorithms other",
        ),
        ({"iterations": 0}, "iterations"),
        ({"algorithms": ["symmetric-one-shot"]}, "need a GPU per rank, and this cluster has the gloo backend"),
        (
            {"algorithms": ["ring", "int8-two-shot"], "dtypes": ["float32", "int32"]},
            "dtypes must be out of float32, .*float64 for int8-two-shot; got .'int32'",
        ),
        (
            {"algorithms": ["symmetric-one-shot"], "backend": "nccl", "dtypes": ["float16"]},
            "dtypes must be out of bfloat16, float32 for symmetric-one-shot; got .'float16'",
        ),
        (
            {"algorithms": ["symmetric-two-shot"], "backend": "nccl", "sizes": [1024 + 64]},
            "sizes must be multiples of 128 bytes for symmetric-two-shot; got 1088",
        ),
        (
            {"algorithms": ["pushed-one-shot"], "backend": "nccl", "sizes": [1 << 20]},
            "sizes must begin below 256 KiB for pushed-one-shot alone",
        ),
        (
            {"algorithms": ["symmetric-two-shot"], "backend": "nccl", "shares_gpus": True},
            "need a GPU per rank, and this cluster has ranks that share a GPU",
        ),
    ],
)
def test_bad_input_is_named(arguments: dict[str, object], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        plan_sweep(**arguments)


def test_the_plan_names_what_the_ranks_have() -> None:
    """Two lists, because the plan is made where there is no torch."""
    assert tuple(timing.IMPLEMENTATIONS) == ALGORITHMS


def test_one_step_has_rows_of_small_messages_only() -> None:
    points = plan_sweep(algorithms=["library", "pushed-one-shot"], sizes=[1 << 18, 1 << 19], backend="nccl")
    assert [(point.algorithm, point.num_elements) for point in points] == [
        ("library", 1 << 16),
        ("library", 1 << 17),
        ("pushed-one-shot", 1 << 16),
    ]


def test_iterations_fall_with_size_and_are_the_same_everywhere() -> None:
    counts = [default_iterations(1 << power) for power in range(8, 31)]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (50, 7)


def test_every_algorithm_and_dtype_is_measured_and_checked(cluster3: Cluster) -> None:
    """3 ranks: no chunk splits evenly."""
    algorithms = [name for name in timing.IMPLEMENTATIONS if name not in ON_SYMMETRIC_MEMORY]
    frame = sweep_all_reduce(
        cluster3, sizes=[8, 1000, 65536], dtypes=["float32", "bfloat16", "float64"], algorithms=algorithms, iterations=2
    )
    assert len(frame) == 3 * 3 * len(algorithms)
    assert frame["correct"].all()
    assert (frame["min_us"] <= frame["p50_us"]).all()
    assert (frame["p50_us"] <= frame["p95_us"]).all()
    assert (frame["fastest_rank_p50_us"] <= frame["p95_us"]).all()
    assert frame["algbw_GBps"].tolist() == pytest.approx((frame["bytes"] / frame["p50_us"] / 1e3).tolist())
    assert frame["busbw_GBps"].tolist() == pytest.approx((frame["algbw_GBps"] * 4 / 3).tolist())
    assert set(frame["num_ranks"]) == {3}
    assert set(frame["link"]) == {"TCP over loopback"}


def test_one_rank_has_no_bus(clusters: Any) -> None:
    frame = sweep_all_reduce(clusters[1], sizes=[1024], iterations=2)
    assert frame["correct"].all()
    assert frame["busbw_GBps"].tolist() == [0.0]


def test_a_wrong_all_reduce_is_noticed(cluster2: Cluster) -> None:
    """Rank 1 forgets the last element."""

    def sabotage(rank, points):
        import tplab.collectives.timing as on_rank

        right = on_rank.IMPLEMENTATIONS["library"]

        def wrong(x, group):
            right(x, group)
            if rank.index == 1:
                x[-1] += 1

        on_rank.IMPLEMENTATIONS["library"] = wrong
        try:
            on_rank.time_points(rank, points)
        finally:
            on_rank.IMPLEMENTATIONS["library"] = right

    points = plan_sweep(sizes=[4096], iterations=2)
    run = cluster2.submit(sabotage, points)
    run.result()
    assert sweep_frame(points, run.reports, cluster2.provenance)["correct"].tolist() == [False]


def test_a_stopped_sweep_keeps_what_every_rank_had_measured(cluster2: Cluster) -> None:
    points = plan_sweep(sizes=[1024, 2048], iterations=3) + plan_sweep(sizes=[1 << 20], iterations=100_000)
    run = submit_sweep(cluster2, points)
    while sum("samples" in report.fields for report in list(run.reports)) < 4:
        time.sleep(0.02)
    run.stop()
    with pytest.raises(RunStopped):
        run.result()
    assert sweep_frame(points, run.reports, cluster2.provenance)["bytes"].tolist() == [1024, 2048]


def test_a_row_that_one_rank_has_not_reported_is_not_there(cluster2: Cluster) -> None:
    points = plan_sweep(sizes=[1024])
    reports = [Report(0, {"phase": "measure", "samples": {0: [1.0]}, "correct": True})]
    assert sweep_frame(points, reports, cluster2.provenance).empty
    assert "p50_us" in sweep_frame(points, [], cluster2.provenance).columns


@pytest.mark.parametrize("num_elements", [1, 7, 1 << 12])
def test_counted_bytes_equal_the_formula_also_where_chunks_are_uneven(cluster3: Cluster, num_elements: int) -> None:
    frame = count_sent_bytes(cluster3, ["ring", "two-shot", "one-shot"], num_elements)
    assert frame["counted_bytes"].tolist() == frame["formula_bytes"].tolist()
    ring = frame[frame["algorithm"] == "ring"]["counted_bytes"]
    assert ring.sum() == 2 * 2 * 4 * num_elements  # 2(n-1) S over all ranks, without padding


def test_point_to_point_measures_every_ordered_pair(cluster3: Cluster) -> None:
    frame = measure_point_to_point(cluster3, sizes=[64, 1 << 16], iterations=3)
    pairs = {(a, b) for a in range(3) for b in range(3) if a != b}
    assert set(zip(frame["src"], frame["dst"], strict=True)) == pairs
    assert len(frame) == 12
    assert (frame["p50_us"] > 0).all()
    link = fit_link(frame)
    assert link.alpha_us > 0


def test_point_to_point_names_bad_input(clusters: Any, cluster2: Cluster) -> None:
    with pytest.raises(ValueError, match="sizes"):
        measure_point_to_point(cluster2, sizes=[0])
    with pytest.raises(ValueError, match="iterations"):
        measure_point_to_point(cluster2, iterations=0)
    with pytest.raises(ValueError, match="at least 2 ranks"):
        measure_point_to_point(clusters[1])


def test_the_command_writes_a_csv_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s.csv"
    arguments = ["sweep", "--backend", "gloo", "--to-size", "8KiB", "--iterations", "2", "--out", str(out)]
    assert cli.main(arguments) == 0
    rows = list(csv.DictReader(out.open()))
    assert [int(row["bytes"]) for row in rows] == [1024, 2048, 4096, 8192]
    assert "plotly" in out.with_suffix(".html").read_text()
    assert "Every result was checked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--from-size", "3 elephants"], "--from-size"),
        (["--from-size", "2MiB", "--to-size", "1MiB"], "--from-size must not be above --to-size"),
        (["--algorithms", "rign"], "--algorithms must be out of library, "),
        (["--mode", "lazy"], "--mode must be one of eager, graph; got 'lazy'"),
        (["--mode", "graph"], "--mode must be eager on the gloo backend"),
        (["--algorithms", "symmetric-one-shot"], "--algorithms need a GPU per rank"),
        (["--algorithms", "int8-two-shot", "--dtypes", "int32"], "--dtypes must be out of float32, "),
        (["--iterations", "0"], "--iterations must be a whole number of at least 1; got 0"),
        (["--ranks", "0"], "--ranks must be a whole number from 1 to"),
        (["--out", "/there/is/no/such/folder/x.csv"], "--out"),
    ],
)
def test_the_command_names_bad_input(arguments: list[str], names: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "--backend", "gloo", *arguments]) == 2
    assert names in capsys.readouterr().err


def test_the_same_sweep_under_torchrun(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    out = tmp_path / "t.csv"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "tplab.cli"]
    options = ["--backend", "gloo", "--to-size", "4KiB", "--iterations", "2", "--out", str(out)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, "sweep", *options], check=True, timeout=90, env=environment)
    rows = list(csv.DictReader(out.open()))
    assert [int(row["bytes"]) for row in rows] == [1024, 2048, 4096]
    assert {row["correct"] for row in rows} == {"True"}
    assert {row["num_ranks"] for row in rows} == {"2"}


def test_rank_0_says_first_what_all_ranks_find() -> None:
    """torchrun ends a host's ranks as soon as one of them has ended."""
    import os
    import subprocess
    import sys

    def begin(rank: int) -> "subprocess.Popen[str]":
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "::1"}
        command = [sys.executable, "-m", "tplab.cli", "sweep", "--from-size", "abc"]
        environment = os.environ | place | {"MASTER_PORT": "1"}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    other = begin(1)
    try:
        assert "--from-size must be" in begin(0).communicate(timeout=60)[1]
        assert other.poll() is None
    finally:
        other.kill()
        assert other.communicate()[1] == ""
