"""A rank killed on purpose through the cluster: what follows, in every state, and who is told."""

import signal
import time

import pytest

from tplab import Cluster
from tplab.checks import ArgumentError
from tplab.cluster import RankDied, State

pytestmark = pytest.mark.timeout(60)


class Watched:
    """What a cluster tells its watchers, in order."""

    def __init__(self, cluster: Cluster) -> None:
        self.heard: list[State | tuple[int, int | None]] = []
        cluster.watch(self.heard.append, lambda rank, code: self.heard.append((rank, code)))

    @property
    def exits(self) -> list[tuple[int, int | None]]:
        return [each for each in self.heard if isinstance(each, tuple)]


@pytest.mark.parametrize("victim", [0, 1])
def test_in_a_run(cluster, assert_gone, assert_works, eventually, victim):
    """The exit is told at once, before the run is over; the other rank is ended and not told as an exit."""
    watched, pids = Watched(cluster), cluster.pids
    run = cluster.submit(lambda rank: (rank.report(here=1), time.sleep(30)))
    assert eventually(lambda: len(run.reports) == 2)
    cluster.kill_rank(victim)
    assert eventually(lambda: watched.exits)
    told_before_the_end = not run.done()
    error = run.exception(10)
    assert isinstance(error, RankDied)
    assert (error.rank, error.exit_code) == (victim, -signal.SIGKILL)
    assert told_before_the_end
    assert_gone(pids)
    assert watched.exits == [(victim, -signal.SIGKILL)]
    assert watched.heard[-1] is State.DOWN
    cluster.kill_rank(victim)  # there is nobody
    assert_works(cluster)
    assert watched.exits == [(victim, -signal.SIGKILL)]


def test_between_two_runs(cluster, assert_gone, assert_works, eventually):
    watched, pids = Watched(cluster), cluster.pids
    for _ in range(2):  # pressed twice
        cluster.kill_rank(1)
    assert eventually(lambda: cluster.state is State.DOWN)
    assert cluster.why_down == "rank 1 was killed by SIGKILL between two runs"
    assert watched.exits == [(1, -signal.SIGKILL)]
    assert_gone(pids)
    assert_works(cluster)
    assert cluster.why_down == ""
    assert not set(pids) & set(cluster.pids)


def test_while_they_start(assert_gone, assert_works, eventually):
    """Nobody waits for them: the reason is kept for whoever looks, and the next run starts others."""
    with Cluster(2, "gloo") as cluster:
        assert eventually(lambda: len(cluster.pids) == 2)
        watched, pids = Watched(cluster), cluster.pids
        cluster.kill_rank(0)
        assert eventually(lambda: watched.exits and cluster.state is State.DOWN)
        assert "rank 0 of 2 was killed by SIGKILL while starting" in cluster.why_down
        assert_gone(pids)
        assert_works(cluster)


def test_only_ranks_that_there_are(cluster2):
    for wrong in (-1, 2, 1.5, "1", None, True):
        with pytest.raises(ArgumentError, match="rank must be"):
            cluster2.kill_rank(wrong)
    with pytest.raises(ArgumentError, match="rank must be"):
        cluster2.resized(1).kill_rank(1)
    assert cluster2.run(lambda rank: rank.index) == [0, 1]


def test_a_closed_cluster_has_none():
    cluster = Cluster(1, "gloo")
    cluster.close()
    cluster.kill_rank(0)
    assert cluster.closed
