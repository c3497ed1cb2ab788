"""A cluster over two hosts: the contract of one machine, and what there is besides."""

import os
import signal
import threading
import time

import pandas as pd
import pytest
import torch
import torch.distributed as dist

from tplab import Cluster
from tplab.cli import main
from tplab.cluster import ClusterError, HostLost, RankDied, RankError, RankTimeout, RunStopped
from tplab.cluster.hosts.connect import open_client

pytestmark = pytest.mark.timeout(150)


def total(rank):
    x = torch.full((3,), float(rank + 1))
    dist.all_reduce(x)
    return x.tolist()


def place(rank):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GLOO_SOCKET_IFNAME")
    return os.uname().nodename, *(os.environ[name] for name in names)


def wait_in_barrier(rank, late):
    if rank == late:
        time.sleep(60)
    dist.barrier()


@pytest.fixture(scope="module")
def cluster(_parallel):
    client = _parallel.client()
    with Cluster(4, engine="ipyparallel", client=client) as cluster:
        yield cluster
    client.close()


@pytest.fixture(autouse=True)
def _works_afterwards(request, hosts):
    yield
    if "cluster" in request.fixturenames:
        assert request.getfixturevalue("cluster").run(total) == [[10.0] * 3] * 4


def test_no_warning_of_signatures_where_all_is_encrypted(shared_parallel, caplog):
    client, _ = open_client(cluster_file=shared_parallel.cluster_file)
    try:
        assert client.curve_serverkey
        assert "signing" not in caplog.text
    finally:
        client.close()


class TestContract:
    def test_places(self, cluster, hosts):
        first, second = dict.fromkeys(cluster.hosts)
        assert {first, second} == {"alpha", "beta"}
        assert repr(cluster) == f"<Cluster of 4 gloo ranks on 2 hosts, {cluster.state.value}>"
        assert cluster.hosts == (first, first, second, second)
        interface = cluster.run(place)[0][-1]
        assert interface != "lo"
        assert cluster.run(place) == [
            (host, str(rank), str(rank % 2), "4", "2", interface) for rank, host in enumerate(cluster.hosts)
        ]
        assert "2 hosts" in cluster.provenance.link

    def test_first_ranks_alone(self, cluster):
        assert [each[1:5] for each in cluster.resized(3).run(place)] == [
            ("0", "0", "3", "2"),
            ("1", "1", "3", "2"),
            ("2", "0", "3", "1"),
        ]
        assert cluster.resized(3).run(total) == [[6.0] * 3] * 3

    def test_store_mesh_and_reports(self, cluster):
        def keep(rank):
            rank.store["kept"] = rank * 10
            mesh = rank.mesh(tp=2)
            rank.report(phase="here", coordinates=mesh.get_coordinate())

        def kept(rank):
            return rank.store["kept"]

        run = cluster.submit(keep)
        run.result()
        assert sorted((report.rank, tuple(report.fields["coordinates"])) for report in run.reports) == [
            (rank, (rank // 2, rank % 2)) for rank in range(4)
        ]
        assert cluster.run(kept) == [0, 10, 20, 30]

    def test_output_says_where(self, cluster, capsys):
        cluster.run(lambda rank: print(f"I am {rank}"))
        lines = capsys.readouterr().out.splitlines()
        assert sorted(lines) == [f"[rank {rank} · {host}] I am {rank}" for rank, host in enumerate(cluster.hosts)]

    def test_large_values_both_ways(self, cluster):
        big = torch.arange(2_000_000)

        def halves(rank, big):
            return big * (rank + 1)

        for rank, value in enumerate(cluster.run(halves, big)):
            assert torch.equal(value, big * (rank + 1))

    def test_environment_of_the_kernel(self, cluster, monkeypatch):
        monkeypatch.setenv("TORCH_TEST_OF_TPLAB", "1")
        cluster.restart()
        assert cluster.run(lambda rank: os.environ.get("TORCH_TEST_OF_TPLAB")) == ["1"] * 4


class TestFaults:
    def test_raise(self, cluster):
        def fail(rank):
            if rank == 2:
                raise KeyError("weights")
            dist.barrier()

        with pytest.raises(RankError, match=f"rank 2 of 4 on host {cluster.hosts[2]} raised KeyError") as caught:
            cluster.run(fail)
        assert (caught.value.rank, caught.value.host) == (2, cluster.hosts[2])

    def test_death(self, cluster):
        def die(rank):
            if rank == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            dist.barrier()

        with pytest.raises(RankDied, match=f"rank 3 of 4 on host {cluster.hosts[3]} was killed by SIGKILL"):
            cluster.run(die)

    def test_time_limit(self, cluster):
        with pytest.raises(RankTimeout, match=rf"{cluster.hosts[0]}"):
            cluster.run(wait_in_barrier, 1, timeout=1)

    def test_stop(self, cluster):
        run = cluster.submit(wait_in_barrier, 0)
        while not run.running():
            time.sleep(0.01)
        run.stop()
        with pytest.raises(RunStopped):
            run.result(timeout=20)

    def test_killed_from_here(self, cluster):
        ended = threading.Event()
        cluster.watch(lambda state: None, lambda rank, code: ended.set() if (rank, code) == (1, -9) else None)
        cluster.start().kill_rank(1)
        assert ended.wait(20)


class TestCommands:
    @pytest.mark.parametrize("by", ["file", "profile"])
    def test_sweep(self, shared_parallel, tmp_path, capsys, monkeypatch, by):
        monkeypatch.setenv("IPYTHONDIR", shared_parallel.env["IPYTHONDIR"])
        cluster = str(shared_parallel.cluster_file) if by == "file" else "default"
        out = tmp_path / "sweep.csv"
        sizes = ["--from-size", "1KiB", "--to-size", "2KiB", "--iterations", "5"]
        assert main(["sweep", "--cluster", cluster, "--ranks", "2", *sizes, "--out", str(out)]) == 0
        assert "2 ranks on 2 hosts" in capsys.readouterr().out
        frame = pd.read_csv(out)
        assert set(frame["num_hosts"]) == {2}
        assert len(frame) == 2

    def test_what_is_no_cluster(self, capsys):
        assert main(["calibrate", "--cluster", "none.json"]) == 2
        assert "--cluster must be a profile's name" in capsys.readouterr().err


class TestHosts:
    """Each starts a controller and engines of its own, and may break them."""

    def test_cut_off_in_mid_run(self, own_parallel, hosts):
        with Cluster(4, engine="ipyparallel", cluster_file=own_parallel.cluster_file) as cluster:
            lost = hosts.members[1]
            first = cluster.start().hosts.index(lost.name)
            run = cluster.submit(wait_in_barrier, 0)
            while not run.running():
                time.sleep(0.01)
            cut_at = time.monotonic()
            hosts.link_down(lost)
            with pytest.raises(HostLost, match=f"rank {first} of 4 on host {lost.name}.*nothing was heard") as caught:
                run.result()
            assert time.monotonic() - cut_at < 10  # 3 s of silence, and what a busy machine adds
            assert (caught.value.rank, caught.value.host) == (first, lost.name)
            assert cluster.run(total) == [[10.0] * 3] * 4
            assert set(cluster.hosts) == {hosts.members[0].name}
            hosts.link_up(lost)
            deadline = time.monotonic() + 60
            while len({*cluster.restart().hosts}) < 2:
                assert time.monotonic() < deadline
            assert cluster.run(total) == [[10.0] * 3] * 4

    def test_agent_killed(self, own_parallel, hosts):
        with Cluster(4, engine="ipyparallel", cluster_file=own_parallel.cluster_file) as cluster:
            lost = hosts.members[0]
            pids = cluster.start().pids
            theirs = [pid for pid, host in zip(pids, cluster.hosts, strict=True) if host == lost.name]
            run = cluster.submit(wait_in_barrier, 0)
            own_parallel.kill_engine(lost)
            with pytest.raises(HostLost) as caught:
                run.result()
            assert caught.value.host == lost.name
            assert not any(os.path.exists(f"/proc/{pid}") for pid in theirs)
            assert cluster.run(total) == [[10.0] * 3] * 4
            own_parallel.start_engine(lost)
            deadline = time.monotonic() + 60
            while len({*cluster.restart().hosts}) < 2:
                assert time.monotonic() < deadline

    def test_controller_killed_and_started_again(self, own_parallel, hosts):
        with Cluster(2, engine="ipyparallel", cluster_file=own_parallel.cluster_file) as cluster:
            pids = cluster.start().pids
            run = cluster.submit(wait_in_barrier, 0)
            own_parallel.kill_controller()
            with pytest.raises(HostLost):
                run.result()
            with pytest.raises(ClusterError, match="ipyparallel"):
                cluster.run(total)
            deadline = time.monotonic() + 30  # the agents' patience
            while any(os.path.exists(f"/proc/{pid}") for pid in pids):
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def test_goes_on_after_the_kernel(self, own_parallel, hosts):
        """Its settings are found again, and its agents start the ranks."""
        where = {"cluster_file": own_parallel.cluster_file}
        with pytest.raises(ClusterError, match="remembers"):
            Cluster.attach(**where)
        with Cluster(3, "gloo", engine="ipyparallel", ranks_per_host=2, **where) as before:
            places = before.start().hosts
        with Cluster.attach(**where) as cluster:
            assert cluster.hosts == places
            assert cluster.run(total) == [[6.0] * 3] * 3
