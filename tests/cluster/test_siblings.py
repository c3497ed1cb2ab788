"""Small situations in which a run waited for ever, was lost, or ended ranks that had done nothing wrong."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psutil
import pytest
import torch
import torch.distributed as dist

from tplab import Cluster
from tplab.cluster import ClusterClosed, RankDied, RankError, RunStopped

pytestmark = pytest.mark.timeout(60)


def index(rank):
    return rank.index


class TestQueue:
    def test_behind_a_start(self, cluster2):
        """A run that only waits for the ranks is followed by one that nobody announces again."""
        for _ in range(5):
            threads = [threading.Thread(target=cluster2.start) for _ in range(3)]
            for thread in threads:
                thread.start()
            assert cluster2.submit(index, timeout=5).result(5) == [0, 1]
            for thread in threads:
                thread.join()

    def test_from_many_threads(self, cluster2):
        calls = [cluster2.start, lambda: cluster2.provenance, lambda: cluster2.run(index)]
        with ThreadPoolExecutor(6) as pool:
            futures = [pool.submit(calls[i % 3]) for i in range(60)]
            for future in futures:
                future.result(20)

    def test_behind_a_failure_of_the_kernels_side(self, cluster, monkeypatch):
        poll, failed = cluster._supervisor.engine.poll, []

        def fail_once(timeout):
            if not failed and len(cluster._supervisor._queue):
                failed.append(True)
                raise RuntimeError("planted")
            return poll(timeout)

        first = cluster.submit(lambda rank: time.sleep(0.5))
        monkeypatch.setattr(cluster._supervisor.engine, "poll", fail_once)
        second = cluster.submit(index)
        first.exception(10)
        assert second.result(20) == [0, 1]

    def test_behind_a_callback_that_raises_what_is_no_exception(self, cluster2):
        def leave(run):
            raise SystemExit

        pids = cluster2.start().pids
        first = cluster2.submit(lambda rank: time.sleep(0.2))
        first.add_done_callback(leave)
        second = cluster2.submit(index)
        assert second.result(10) == [0, 1]
        assert cluster2.pids == pids

    def test_closing_in_spite_of_such_a_callback(self):
        def leave(run):
            raise SystemExit

        cluster = Cluster(2, "gloo").start()
        first = cluster.submit(lambda rank: time.sleep(30))
        first.add_done_callback(leave)
        second = cluster.submit(index)
        time.sleep(0.1)
        cluster.close()
        for run in (first, second):
            with pytest.raises(ClusterClosed):
                run.result(5)
        assert cluster.closed


class TestGroups:
    def test_stopped_while_one_rank_makes_one(self, cluster, assert_works):
        """Names of groups are counted: a rank that has begun one more is out of step."""

        def lone(rank):
            rank.report(here=True)
            if rank.index == 0:
                dist.new_group([0, 1])

        def both(rank):
            return dist.get_world_size(dist.new_group([0, 1]))

        run = cluster.submit(lone)
        while len(run.reports) < 2:
            time.sleep(0.01)
        time.sleep(0.2)
        run.stop()
        with pytest.raises(RunStopped):
            run.result(10)
        assert cluster.run(both, timeout=20) == [2, 2]
        assert_works(cluster)

    def test_ranks_may_come_late(self):
        """Later than a start may take: a run has its own time limit."""

        def skewed(rank):
            if rank.index:
                time.sleep(5)
            return dist.get_world_size(dist.new_group([0, 1]))

        with Cluster(2, "gloo", start_timeout=4) as cluster:
            assert cluster.run(skewed, timeout=30) == [2, 2]

    def test_other_sockets_of_the_rank_stay_as_they_are(self, cluster2):
        """A server that a rank has, and its connections, are none of tplab's business."""

        def serve(rank):
            import socket

            with socket.socket() as server:
                server.bind(("127.0.0.1", 0))
                server.listen()
                with socket.create_connection(server.getsockname()) as before:
                    accepted, _ = server.accept()
                    rank.mesh(tp=2)
                    dist.new_group([0, 1])
                    before.send(b"still")
                    with accepted, socket.create_connection(server.getsockname(), timeout=2):
                        return accepted.recv(5)

        assert cluster2.run(serve, timeout=20) == [b"still"] * 2

    def test_what_cannot_be_asked_does_not_pass(self, cluster, assert_works):
        def without_descriptors(rank):
            import resource

            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, 1 << 10))
            dist.new_group([0, 1])

        with pytest.raises((RankError, RankDied)):
            cluster.run(without_descriptors, timeout=20)
        assert_works(cluster)


class TestOutput:
    def test_of_a_pool_that_is_kept(self, cluster2, capsys):
        """Its threads are the first run's; what they print later is printed all the same."""

        def first(rank):
            pool = rank.store["pool"] = ThreadPoolExecutor(1)
            pool.submit(print, "in the first").result()

        def second(rank):
            rank.store.pop("pool").submit(print, "in the second").result()

        cluster2.run(first)
        cluster2.run(second)
        time.sleep(0.1)
        out = capsys.readouterr().out
        assert out.count("in the first") == 2
        assert out.count("in the second") == 2

    def test_of_threads_of_compiled_code(self, cluster2):
        """Gloo's own threads call back in any run: they belong to none."""

        def call_back(rank):
            x = torch.ones(1)
            future = dist.all_reduce(x, async_op=True).get_future()
            future.then(lambda done: print("called back")).wait()

        for _ in range(4):
            run = cluster2.submit(call_back)
            run.result()
            assert len(run.output) == 2


class TestRank:
    @pytest.mark.parametrize(
        "fault",
        [
            lambda rank: _raise(SyntaxError("m", ("f.py", 1, "a", "text"))),
            lambda rank: _raise(type("E", (Exception,), {"__str__": lambda self: _raise(SystemExit(3))})()),
            lambda rank: _raise(Nameless("x")()),
        ],
        ids=["syntax error with a wrong line", "text that exits", "type without a name"],
    )
    def test_exceptions_that_cannot_be_described(self, cluster2, fault):
        pids = cluster2.start().pids
        with pytest.raises(RankError):
            cluster2.run(fault)
        assert cluster2.pids == pids

    @pytest.mark.parametrize("spoil", ["none", "no flush", "closed"])
    def test_stdout_that_is_spoilt(self, cluster2, spoil):
        def run(rank):
            kept = sys.stdout
            if spoil == "none":
                sys.stdout = None
            elif spoil == "no flush":
                sys.stdout = object()
            else:
                with open(os.devnull, "w") as sys.stdout:
                    pass
            rank.store["stdout"] = kept
            return rank.index

        assert cluster2.run(run) == [0, 1]
        cluster2.run(lambda rank: setattr(sys, "stdout", rank.store.pop("stdout")))

    def test_reports_from_a_signal_handler(self, cluster):
        def report(rank):
            signal.signal(signal.SIGALRM, lambda number, frame: rank.report(tick=True))
            signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
            try:
                for i in range(20):
                    rank.report(i=i, data=b"x" * 3_000_000)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)

        run = cluster.submit(report, timeout=30)
        run.result()
        assert [one.fields["i"] for one in run.reports if one.rank == 0 and "i" in one.fields] == list(range(20))
        assert any("tick" in one.fields for one in run.reports)

    def test_children_do_not_hold_its_connection(self, cluster, assert_works):
        """``os.system`` hands on what is inheritable."""

        def die(rank):
            if rank.index == 0:
                os.system("sleep 100 &")
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(20)

        began = time.monotonic()
        with pytest.raises(RankDied, match="rank 0 of 2 was killed by SIGKILL"):
            cluster.run(die)
        assert time.monotonic() - began < 5
        assert_works(cluster)

    def test_died_while_the_keeper_is_stopped(self, cluster, assert_works):
        keeper = psutil.Process(psutil.Process(cluster.pids[0]).ppid())
        keeper.suspend()
        began = time.monotonic()
        with pytest.raises(RankDied, match="rank 1 of 2 ended"):
            cluster.run(lambda rank: os._exit(7) if rank.index else time.sleep(30), timeout=None)
        assert time.monotonic() - began < 10
        assert_works(cluster)

    def test_waiting_for_no_time_at_all(self, cluster2):
        def wait(rank):
            store = dist.distributed_c10d._get_default_store()
            began = time.monotonic()
            try:
                store.wait(["nobody sets this"], timedelta(0))
            except dist.DistStoreError:
                return time.monotonic() - began
            return None

        assert max(cluster2.run(wait, timeout=20)) < 2


def _raise(error):
    raise error


def Nameless(name):
    class Meta(type):
        @property
        def __name__(cls):
            raise ValueError("no name")

    return Meta(name, (Exception,), {})


class TestInterruptedCall:
    @pytest.mark.parametrize("moment", ["submit", "result"])
    def test_ends_the_run(self, cluster2, monkeypatch, moment, eventually):
        """Wherever Ctrl-C comes: nobody holds the run, so it must not go on."""
        from tplab.cluster.run import Run
        from tplab.cluster.supervisor import Supervisor

        cluster2.start()
        if moment == "submit":
            submit = Supervisor.submit

            def interrupted(self, run):
                submit(self, run)
                raise KeyboardInterrupt

            monkeypatch.setattr(Supervisor, "submit", interrupted)
        else:
            monkeypatch.setattr(Run, "result", lambda self: _raise(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            cluster2.run(lambda rank: time.sleep(20))
        assert eventually(lambda: cluster2.state.value != "running", within=5)
