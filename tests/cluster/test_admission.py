"""Too little memory is said before ranks are started; ranks that nobody uses are ended."""

import math
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tplab import Cluster
from tplab.checks import ArgumentError
from tplab.cluster import NoRoom, State, admission, cgroups, idle
from tplab.cluster.admission import FreeMemory, check_room, free_memory
from tplab.cluster.backends import RankDevices, VisibleGpu, num_cores, rank_environment

pytestmark = pytest.mark.timeout(60)
FOUR = RankDevices(backend="gloo", devices=("cpu",) * 4)


def free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    found = FreeMemory(num_bytes=num_bytes, where="the container's limit")
    monkeypatch.setattr(admission, "free_memory", lambda: found)
    monkeypatch.setattr(admission, "torch_is_for_cuda", lambda: False)


def index(rank: Any) -> int:
    rank.store["seen"] = rank.store.get("seen", 0) + 1
    return rank.store["seen"]


def test_too_little_memory_says_what_fits_and_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 400_000_000)
    said = r"4 ranks take about 0\.7 GB .* 0\.4 GB are free \(the container's limit\)"
    with pytest.raises(NoRoom, match=said) as told:
        check_room(FOUR)
    assert "start fewer ranks (2 fit)" in str(told.value)
    assert "TPLAB_MEMORY" in str(told.value)
    monkeypatch.setenv("TPLAB_MEMORY", "ignore")
    check_room(FOUR)


def test_gpu_memory_counts_for_the_ranks_that_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 10**12)
    card = VisibleGpu(name="H", memory_bytes=80 * 10**9, free_bytes=15 * 10**8)
    monkeypatch.setattr(admission, "visible_gpus", lambda: (card, card))
    check_room(RankDevices(backend="nccl", devices=("cuda:0", "cuda:0", "cuda:1", "cuda:1")))
    with pytest.raises(NoRoom, match=r"3 ranks take about .* GPU memory, and 1\.5 GB are free on GPU 1\. .*2 fit"):
        check_room(RankDevices(backend="nccl", devices=("cuda:0", "cuda:1", "cuda:1", "cuda:1")))


@pytest.mark.parametrize(
    ("lines", "group", "files"),
    [
        (
            "0::/user.slice/hub",
            "user.slice/hub",
            {
                "memory.max": "1000000000",
                "memory.current": "900000000",
                "memory.stat": "inactive_file 40000000\nslab_reclaimable 10000000\nx 1",
            },
        ),
        (
            "5:cpu:/\n4:memory:/docker/abc",  # a path of the host, while the container sees its group at the top
            "memory",
            {
                "memory.limit_in_bytes": "1000000000",
                "memory.usage_in_bytes": "900000000",
                "memory.stat": "inactive_file 1\ntotal_inactive_file 30000000\ntotal_active_file 20000000",
            },
        ),
    ],
)
def test_limits_of_cgroups_hold_and_file_pages_count_as_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: str, group: str, files: dict[str, str]
) -> None:
    folder = tmp_path / group
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(cgroups, "_TOP", tmp_path)
    monkeypatch.setattr(cgroups, "_groups", lambda: [line.split(":", 2) for line in lines.splitlines()])
    assert free_memory() == FreeMemory(num_bytes=150_000_000, where="the container's limit")


@pytest.mark.parametrize("stat", [None, "odd"])
def test_a_limit_holds_where_nothing_is_said_of_file_pages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stat: str | None
) -> None:
    files = {"memory.max": "1000", "memory.current": "400"} | ({} if stat is None else {"memory.stat": stat})
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cgroups, "_TOP", tmp_path)
    monkeypatch.setattr(cgroups, "_groups", lambda: [["0", "", "/"]])
    assert free_memory() == FreeMemory(num_bytes=600, where="the container's limit")


def test_groups_without_a_limit_leave_the_machines_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(cgroups, "_TOP", tmp_path)
    monkeypatch.setattr(cgroups, "_groups", lambda: [["0", "", "/"]])
    monkeypatch.delenv("MEM_LIMIT", raising=False)
    found = free_memory()
    assert found.where == "this machine"
    assert found.num_bytes == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.parametrize(
    ("line", "files", "share"),
    [
        ("0::/docker/abc", {"docker/abc/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/a/b", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, 1.0),  # the upper one holds, too
        ("0::/", {"cpu.max": "max 100000\n"}, None),
        ("0::/", {"cpu.max": "odd"}, None),
        (
            "3:cpu,cpuacct:/hub",
            {"cpu,cpuacct/hub/cpu.cfs_quota_us": "50000", "cpu,cpuacct/hub/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ("3:cpuacct,cpu:/host/path", {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("2:cpuset:/", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_a_containers_share_of_the_cores_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, files: dict[str, str], share: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cgroups, "_TOP", tmp_path)
    monkeypatch.setattr(cgroups, "_groups", lambda: [line.split(":", 2)])
    assert cgroups.cores_limit() == share
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert num_cores() == (64 if share is None else math.ceil(share))
    threads = rank_environment(FOUR, 0, "id")["OMP_NUM_THREADS"]
    assert threads == ("16" if share is None else "1")


def test_jupyterhubs_limit_counts_the_processes_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    own = psutil.Process().memory_full_info().uss
    monkeypatch.setenv("MEM_LIMIT", str(own // 2))
    monkeypatch.delenv("JUPYTERHUB_USER", raising=False)
    assert free_memory().where != "JupyterHub's limit"  # another program's variable
    monkeypatch.setenv("JUPYTERHUB_USER", "ada")
    assert free_memory() == FreeMemory(num_bytes=0, where="JupyterHub's limit")
    for odd in ("", "1.5G", "0", "nan", "inf"):
        monkeypatch.setenv("MEM_LIMIT", odd)
        assert free_memory().where != "JupyterHub's limit"


def test_a_cluster_without_room_says_so_in_the_run_and_works_when_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 100_000_000)
    with Cluster(2, "gloo") as cluster:
        with pytest.raises(NoRoom, match="2 ranks take"):
            cluster.run(index)
        assert cluster.pids == ()
        assert "2 ranks take" in cluster.why_down
        free(monkeypatch, 10**12)
        assert cluster.run(index) == [1, 1]
        assert cluster.why_down == ""


def wait_for(cluster: Cluster, state: State, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while cluster.state is not state:
        assert time.monotonic() < deadline, f"{cluster.state} after {timeout} s"
        time.sleep(0.02)


def test_idle_ranks_end_and_the_next_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    with Cluster(1, "gloo", idle_minutes=0.5 / 60) as cluster:
        assert cluster.run(index) == [1]
        pids = cluster.pids
        wait_for(cluster, State.DOWN)
        assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)
        assert "idle minutes" in cluster.why_down
        assert "rank.store" in cluster.why_down
        assert cluster.run(index) == [1]
        assert "idle minutes, to leave memory to others" in capsys.readouterr().err
    assert threading.active_count() <= before


def test_a_run_is_not_idle_and_neither_is_a_running_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(rank: Any) -> None:
        time.sleep(0.8)

    with Cluster(1, "gloo", idle_minutes=0.4 / 60) as cluster:
        cluster.run(slow)
        assert cluster.run(index) == [1]
        monkeypatch.setattr(idle._CELLS, "running", True)
        time.sleep(0.8)
        assert cluster.state is State.READY
        monkeypatch.setattr(idle._CELLS, "running", False)
        wait_for(cluster, State.DOWN)


def test_cells_are_watched_through_ipython(monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    cells = idle._Cells()
    cells.watch()
    assert cells.running
    shell.user_ns["seen"] = seen = []
    shell.user_ns["cells"] = cells
    shell.run_cell("1")
    assert not cells.running
    shell.run_cell("seen.append(cells.running)")
    assert seen == [True]
    assert time.monotonic() - cells.ended < 10


@pytest.mark.parametrize(
    ("environment", "minutes"),
    [
        ({}, None),
        ({"JUPYTERHUB_USER": "ada"}, 30.0),
        ({"JUPYTERHUB_USER": "ada", "TPLAB_IDLE_MINUTES": "0"}, None),
        ({"TPLAB_IDLE_MINUTES": "12.5"}, 12.5),
    ],
)
def test_the_environment_says_when(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], minutes: float | None
) -> None:
    for name in ("JUPYTERHUB_USER", "TPLAB_IDLE_MINUTES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert idle.default_minutes() == minutes


@pytest.mark.parametrize("said", ["soon", "-1", "nan", "1e9"])
def test_what_is_no_number_of_minutes_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("TPLAB_IDLE_MINUTES", said)
    with pytest.raises(ArgumentError, match="TPLAB_IDLE_MINUTES must be a number of minutes"):
        idle.default_minutes()
    with pytest.raises(ArgumentError, match="idle_minutes must be"):
        Cluster(1, "gloo", idle_minutes=-1)
