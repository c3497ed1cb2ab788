"""NCCL on real GPUs, also with more ranks than GPUs."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from tplab import Cluster
from tplab.cluster import RankDied, RankError, RankTimeout, RunStopped

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.timeout(150),
]

SOON_S = 3.0
STOP_S = 2.0


def total(rank):
    x = torch.full((1000,), float(rank.index + 1), device=rank.device)
    dist.all_reduce(x)
    return x.unique().tolist()


def wait_for_others(rank):
    dist.all_reduce(torch.ones(1, device=rank.device))
    torch.cuda.synchronize()


@pytest.fixture(scope="module")
def nccl_clusters():
    """One cluster per world size, kept for the module."""
    made = {}

    def get(n):
        if n not in made or made[n].closed:
            made[n] = Cluster(n, backend="nccl")
        return made[n].start()

    yield get
    for cluster in made.values():
        cluster.close()


@pytest.fixture
def pair(nccl_clusters):
    return nccl_clusters(2)


@pytest.fixture
def provoke(assert_gone):
    """Run a function that fails; check that it does so soon, that the ranks are gone, and that the next run works."""

    def check(cluster, fn, *, expect, timeout=60.0, within=SOON_S):
        cluster.run(total)  # connections are up: what follows is the fault alone
        pids = cluster.pids
        began = time.monotonic()
        with pytest.raises(expect) as info:
            cluster.run(fn, timeout=timeout)
        assert time.monotonic() - began < within
        assert_gone(pids)
        assert cluster.run(total) == [[3.0]] * 2
        return info.value

    return check


@pytest.mark.parametrize("n", [1, 2, 4])
class TestWorks:
    def test_all_reduce(self, nccl_clusters, n):
        for _ in range(2):
            assert nccl_clusters(n).run(total) == [[n * (n + 1) / 2]] * n

    def test_device_and_backend(self, nccl_clusters, n):
        def look(rank):
            return rank.device.type, torch.cuda.current_device() == rank.device.index, dist.get_backend()

        assert nccl_clusters(n).run(look) == [("cuda", True, "nccl")] * n

    def test_badge(self, nccl_clusters, n):
        gpus = min(n, torch.cuda.device_count())
        ranks = f"{n} rank{'s' if n > 1 else ''}"
        assert nccl_clusters(n).badge == f"LIVE nccl · {ranks} on {gpus} GPU{'s' if gpus > 1 else ''}"

    def test_provenance(self, nccl_clusters, n):
        provenance = nccl_clusters(n).provenance
        assert provenance.nccl_version
        assert provenance.nccl_version[0].isdigit()
        assert provenance.device == torch.cuda.get_device_name(0)
        assert provenance.num_devices == min(n, torch.cuda.device_count())
        assert provenance.shares_gpus == (n > torch.cuda.device_count())

    def test_tensors_come_back_on_the_cpu(self, nccl_clusters, n):
        def give(rank):
            x = torch.full((3,), float(rank.index), device=rank.device)
            return {"x": x, "parameter": torch.nn.Parameter(x), "half": [x.half()]}

        for index, value in enumerate(nccl_clusters(n).run(give)):
            expected = torch.full((3,), float(index))
            assert torch.equal(value["x"], expected)
            assert torch.equal(value["parameter"].detach(), expected)
            assert torch.equal(value["half"][0], expected.half())

    def test_report_comes_back_on_the_cpu(self, nccl_clusters, n):
        run = nccl_clusters(n).submit(lambda rank: rank.report(x=torch.ones(1, device=rank.device)))
        run.result(60)
        assert [report.fields["x"].device.type for report in run.reports] == ["cpu"] * n


def test_mesh(nccl_clusters):
    def sums(rank):
        mesh = rank.mesh(tp=2, pp=2)
        values = []
        for axis in ("tp", "pp"):
            x = torch.tensor([10.0**rank.index], device=rank.device)
            dist.all_reduce(x, group=mesh.get_group(axis))
            values.append(int(x.item()))
        return values

    assert nccl_clusters(4).run(sums) == [[11, 101], [11, 1010], [1100, 101], [1100, 1010]]


def test_phases_of_a_start(nccl_clusters):
    for phases in nccl_clusters(2).launches[-1].values():
        assert [*phases] == ["interpreter", "import torch", "context", "process group", "first collective"]
        assert all(seconds >= 0 for seconds in phases.values())


class TestResized:
    def test_each_size_is_a_world(self, nccl_clusters):
        whole = nccl_clusters(4)
        pids = whole.pids
        for n in (2, 4, 1, 2):
            cluster = whole.resized(n)
            assert cluster.run(total) == [[n * (n + 1) / 2]] * n
            assert cluster.own_gpus == (n == 1 or whole.own_gpus)
        assert whole.pids == pids

    def test_fault_on_some(self, nccl_clusters, assert_gone):
        whole = nccl_clusters(4)
        two = whole.resized(2)
        two.run(total)
        pids = whole.pids
        with pytest.raises(RankTimeout):
            two.run(lambda rank: wait_for_others(rank) if rank.index == 0 else None, timeout=1.0)
        assert_gone(pids)
        assert two.run(total) == [[3.0]] * 2
        assert whole.run(total) == [[10.0]] * 4

    def test_meshes_of_all_sizes(self, nccl_clusters):
        """NCCL splits groups for them, whose names torch makes of ranks and numbers of groups."""

        def sums(rank):
            mesh = rank.mesh(pp=rank.world_size)
            values = []
            for axis in ("tp", "pp"):
                x = torch.tensor([10.0**rank.index], device=rank.device)
                dist.all_reduce(x, group=mesh.get_group(axis))
                values.append(int(x.item()))
            return values

        for n in (4, 2, 1, 3, 4, 2):
            expected = [[10**index, int("1" * n)] for index in range(n)]
            assert nccl_clusters(4).resized(n).run(sums) == expected

    def test_beside_a_pool_of_gloo(self, pair):
        with Cluster(2, "gloo") as cpu_ranks:
            assert cpu_ranks.run(lambda rank: str(rank.device)) == ["cpu"] * 2
            assert cpu_ranks.run(total) == pair.run(total) == [[3.0]] * 2


def test_auto_picks_nccl():
    with Cluster(1) as cluster:
        assert cluster.backend == "nccl"
        assert cluster.run(total) == [[1.0]]


class TestFaults:
    def test_raise_while_the_other_waits(self, pair, provoke):
        def stumble(rank):
            if rank.index == 1:
                time.sleep(0.3)
                raise ValueError("a wrong")
            wait_for_others(rank)

        error = provoke(pair, stumble, expect=RankError)
        assert error.rank == 1
        assert isinstance(error.__cause__, ValueError)

    def test_raise_on_all(self, pair):
        """They stay."""
        pids = pair.pids

        def fail(rank):
            wait_for_others(rank)
            raise ValueError("all")

        with pytest.raises(RankError):
            pair.run(fail)
        assert pair.run(total) == [[3.0]] * 2
        assert pair.pids == pids

    def test_sigkill_in_the_midst_of_a_collective(self, pair, provoke):
        def die(rank):
            if rank.index == 1:
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGKILL)
            wait_for_others(rank)

        error = provoke(pair, die, expect=RankDied)
        assert error.rank == 1
        assert error.exit_code == -signal.SIGKILL

    def test_collective_that_hangs(self, pair, provoke):
        """One rank launches and returns at once: the wait is in the device, not in Python."""

        def mismatch(rank):
            if rank.index == 0:
                dist.all_reduce(torch.ones(1, device=rank.device))

        error = provoke(pair, mismatch, expect=RankTimeout, timeout=1.0)
        assert error.ranks == (0,)

    def test_stop_in_a_collective(self, pair, assert_gone):
        pair.run(total)
        pids = pair.pids
        run = pair.submit(lambda rank: wait_for_others(rank) if rank.index == 0 else time.sleep(600))
        time.sleep(1.0)
        began = time.monotonic()
        run.stop()
        with pytest.raises(RunStopped):
            run.result(30)
        assert time.monotonic() - began < STOP_S
        assert_gone(pids)
        assert pair.run(total) == [[3.0]] * 2

    def test_device_side_assert(self, pair, provoke):
        """An error that the device reports ruins the rank's CUDA context: such a rank must not stay."""

        def spoil(rank):
            index = torch.tensor([10**6], device=rank.device)
            return torch.ones(2, device=rank.device)[index].cpu()

        pair.run(total)
        with pytest.raises((RankError, RankDied)):
            pair.run(spoil)
        assert pair.run(total) == [[3.0]] * 2
