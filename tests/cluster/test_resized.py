"""Some of a cluster's ranks as a cluster: what the ranks see, and faults on them and beside them."""

import os
import signal
import time
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from tplab import Cluster
from tplab.cluster import ClusterClosed, RankDied, RankError, RankTimeout, RunStopped, backends

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def whole():
    with Cluster(3, "gloo") as cluster:
        yield cluster.start()


@pytest.fixture
def two(whole):
    with whole.resized(2) as cluster:
        yield cluster


def total(rank):
    x = torch.full((3,), float(rank.index + 1))
    dist.all_reduce(x)
    y = torch.ones(1)
    dist.all_reduce(y, group=rank.group)
    return x.unique().tolist() + y.tolist()


TOTALS = {1: [[1.0, 1.0]], 2: [[3.0, 2.0]] * 2, 3: [[6.0, 3.0]] * 3}


def hang(rank):
    if rank.index == 0:
        dist.all_reduce(torch.ones(1))


class TestWhatRanksSee:
    def test_each_size_is_a_world(self, whole):
        def look(rank):
            mesh = rank.mesh(pp=rank.world_size)
            x = torch.tensor([10.0**rank.index])
            dist.all_reduce(x, group=mesh.get_group("pp"))
            made = dist.new_group([rank.world_size - 1])
            member = dist.get_rank(made) == 0
            return rank.world_size, dist.get_world_size(), dist.get_rank(), rank.index, int(x), member

        for n in (2, 3, 1, 2, 3):
            sum_of_all = int("1" * n)
            assert whole.resized(n).run(look) == [(n, n, i, i, sum_of_all, i == n - 1) for i in range(n)]

    def test_takes_turns_with_the_whole(self, whole, two):
        pids = whole.pids
        for _ in range(3):
            assert whole.run(total) == TOTALS[3]
            assert two.run(total) == TOTALS[2]
            assert two.resized(1).run(total) == TOTALS[1]
        assert whole.pids == pids
        assert two.pids == pids[:2]

    def test_store_is_the_ranks_own(self, whole, two):
        whole.run(lambda rank: rank.store.update(kept=rank.index))
        assert two.run(lambda rank: rank.store.pop("kept")) == [0, 1]
        assert whole.run(lambda rank: rank.store.pop("kept", None)) == [None, None, 2]

    def test_meshes_last(self, two):
        def twice(rank):
            return id(rank.mesh(tp=2)), id(rank.mesh(tp=2))

        first, again = two.run(twice), two.run(twice)
        assert first == again
        assert all(a == b for a, b in first)

    def test_run_has_two_of_everything(self, two):
        run = two.submit(lambda rank: rank.report(index=rank.index))
        run.result(30)
        assert sorted(report.rank for report in run.reports) == [0, 1]
        assert len(run.rank_s) == 2

    def test_says_what_it_is(self, whole, two):
        assert (two.num_ranks, two.backend, two.shares_gpus, two.own_gpus) == (2, "gloo", False, False)
        assert two.badge == "LIVE gloo · 2 ranks"
        assert two.provenance.started_at == whole.provenance.started_at
        assert [*two.launches[-1]] == [0, 1]
        assert "first 2 of 3" in repr(two)
        assert whole.resized(1).provenance.link == "none (one rank)"

    @pytest.mark.parametrize("n", [0, 4, -1, 2.5, None])
    def test_sizes_that_cannot_be(self, whole, n):
        with pytest.raises(ValueError, match="n must be"):
            whole.resized(n)
        with pytest.raises(ValueError, match=r"at most the 2 ranks .* make a Cluster\(3\)"):
            whole.resized(2).resized(3)

    def test_hashed_names_of_groups_differ(self, whole, two):
        """As NCCL's groups of a mesh have them: of ranks and of how many groups there are."""

        def name(rank):
            return distributed_c10d._process_group_name([0], use_hashed_name=True)

        names = [cluster.run(name)[0] for cluster in (whole, two, two.resized(1), whole)]
        assert len(set(names[:3])) == 3
        assert names[0] == names[3]

    @pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8])
    def test_first_ranks_share_a_gpu_if_all_ranks_do(self, monkeypatch, gpus):
        """NCCL takes sockets between ranks that were told to look like hosts: no two of them may pass for more."""
        monkeypatch.setattr(backends, "num_gpus", lambda: gpus)
        for num_ranks in range(1, 17):
            placement = backends.devices_of(num_ranks, "nccl")
            assert placement.num_devices == min(num_ranks, gpus)
            held = Counter(placement.devices).values()
            assert max(held) - min(held) <= 1
            for n in range(2, num_ranks + 1):
                assert placement.first(n).shares_gpus == placement.shares_gpus


class TestFaults:
    def test_raise_on_all_keeps_all_ranks(self, whole, two):
        pids = whole.pids

        def fail(rank):
            dist.all_reduce(torch.ones(1))
            raise ValueError("both")

        with pytest.raises(RankError, match=r"rank [01] of 2 raised"):
            two.run(fail)
        assert whole.run(total) == TOTALS[3]
        assert whole.pids == pids

    def test_raise_out_of_step_replaces_all(self, whole, two, assert_gone):
        pids = whole.pids

        def fail(rank):
            if rank.index == 1:
                raise ValueError("one")
            dist.all_reduce(torch.ones(1))

        with pytest.raises(RankError) as info:
            two.run(fail)
        assert info.value.rank == 1
        assert_gone(pids)
        assert two.run(total) == TOTALS[2]
        assert whole.run(total) == TOTALS[3]

    def test_operation_of_the_whole_group_is_noticed(self, whole, two, assert_gone):
        """Both ranks hand the same number of operations to a group of three: with the third, they are out of step."""
        whole.run(lambda rank: rank.store.update(group=rank.group))
        pids = whole.pids

        def reach_out(rank):
            rank.store["group"].send([torch.ones(1)], 2, 7)
            raise ValueError("both")

        with pytest.raises(RankError):
            two.run(reach_out)
        assert_gone(pids)
        assert whole.run(total) == TOTALS[3]

    def test_kill(self, whole, two, assert_gone):
        two.run(total)
        pids = whole.pids

        def die(rank):
            if rank.index == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            dist.all_reduce(torch.ones(1))

        with pytest.raises(RankDied, match="rank 1 of 2"):
            two.run(die)
        assert_gone(pids)
        assert two.run(total) == TOTALS[2]

    def test_hang(self, whole, two, assert_gone):
        two.run(total)
        pids = whole.pids
        with pytest.raises(RankTimeout, match="rank 0 of 2 did not answer") as info:
            two.run(hang, timeout=1)
        assert info.value.ranks == (0,)
        assert_gone(pids)
        assert two.run(total) == TOTALS[2]

    def test_stop(self, two):
        two.run(total)
        run = two.submit(hang)
        time.sleep(0.3)
        run.stop()
        with pytest.raises(RunStopped):
            run.result(30)
        assert two.run(total) == TOTALS[2]

    def test_stop_between_collectives_keeps_the_ranks(self, whole, two):
        two.run(total)
        pids = whole.pids
        run = two.submit(lambda rank: time.sleep(600))
        time.sleep(0.3)
        run.stop()
        with pytest.raises(RunStopped):
            run.result(30)
        assert whole.run(total) == TOTALS[3]
        assert whole.pids == pids

    def test_first_run_interrupted_while_it_connects(self, two):
        """Rank 1 never comes: the run ends, and the next finds each other."""
        two.restart()
        run = two.submit(total)
        run.stop()
        with pytest.raises(RunStopped):
            run.result(30)
        assert two.run(total) == TOTALS[2]

    def test_one_aside_dies_meanwhile(self, whole, two, capfd):
        """The run does not need it; afterwards all are replaced, and that is said."""
        two.run(total)
        pids = whole.pids
        run = two.submit(lambda rank: time.sleep(1.0) or rank.index)
        time.sleep(0.3)
        os.kill(pids[2], signal.SIGKILL)
        assert run.result(30) == [0, 1]
        assert whole.run(total) == TOTALS[3]
        assert set(whole.pids).isdisjoint(pids)
        assert "rank 2 was killed by SIGKILL while a run on other ranks went on" in capfd.readouterr().err


class TestClosing:
    def test_ranks_stay(self, whole):
        with whole.resized(2) as two:
            pids = two.start().pids
        assert two.closed
        assert not whole.closed
        with pytest.raises(ClusterClosed, match="were given back"):
            two.run(total)
        assert whole.resized(2).run(total) == TOTALS[2]
        assert whole.pids[:2] == pids

    def test_ends_its_runs_only(self, whole):
        with whole.resized(2) as two:
            run = two.submit(lambda rank: time.sleep(600), timeout=None)
            time.sleep(0.2)
            other = whole.submit(total)
        with pytest.raises(RunStopped):
            run.result(30)
        assert other.result(60) == TOTALS[3]

    def test_whole_closes(self):
        whole = Cluster(2, "gloo")
        two = whole.resized(1)
        assert two.run(total) == TOTALS[1]
        whole.close()
        assert two.closed
        with pytest.raises(ClusterClosed):
            two.run(total)

    def test_holds_the_whole(self):
        """Nobody else does."""
        assert Cluster(2, "gloo").resized(1).run(total) == TOTALS[1]
