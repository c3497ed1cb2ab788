"""How clusters begin and end, and that nothing is left of them, however the process that made them ends."""

import gc
import os
import pathlib
import signal
import sys
import textwrap
import threading
import time
import weakref

import psutil
import pytest
import torch
import torch.distributed as dist

from tplab import Cluster
from tplab.cluster import ClusterClosed, RankError, State

pytestmark = pytest.mark.timeout(60)

SOON_S = 3.0
AFTER_KILL_S = 2.0


def hang_up(rank):
    """Rank 0 waits in a collective that rank 1 never enters."""
    rank.report(begun=True)
    if rank.index == 0:
        dist.all_reduce(torch.ones(1))
    else:
        time.sleep(600)


class TestClose:
    def test_close(self, assert_works, assert_gone):
        """Twice; and nothing works afterwards, each time with the same clear error."""
        with Cluster(1, "gloo") as cluster:
            assert not cluster.closed
            assert_works(cluster)
            pids = cluster.pids
            cluster.close()
            assert_gone(pids, within=0.5)
            assert cluster.closed
            assert cluster.pids == ()
            cluster.close()
            for attempt in (
                lambda: cluster.run(lambda rank: 1),
                lambda: cluster.submit(lambda rank: 1).result(5),
                cluster.start,
                cluster.restart,
            ):
                with pytest.raises(ClusterClosed, match="closed"):
                    attempt()
        cluster.close()
        assert "closed" in repr(cluster)

    def test_with_ends_the_ranks_also_when_the_body_raises(self, assert_gone, eventually):
        cluster = Cluster(1, "gloo")
        assert eventually(lambda: cluster.pids)
        pids = cluster.pids
        with pytest.raises(ZeroDivisionError), cluster:
            raise ZeroDivisionError
        assert cluster.closed
        assert_gone(pids)

    def test_while_starting(self, assert_gone, eventually):
        cluster = Cluster(2, "gloo")
        run = cluster.submit(lambda rank: 1)
        assert eventually(lambda: len(cluster.pids) == 2)
        pids = cluster.pids
        began = time.monotonic()
        cluster.close()
        assert time.monotonic() - began < SOON_S
        with pytest.raises(ClusterClosed):
            run.result(1)
        assert_gone(pids, within=0.5)

    def test_before_there_is_anything(self):
        for _ in range(5):
            Cluster(1, "gloo").close()

    def test_from_another_thread_during_a_run(self, cluster, assert_gone, eventually):
        """The run and those behind it fail, soon."""
        pids = cluster.pids
        runs = [cluster.submit(hang_up), cluster.submit(lambda rank: 1)]
        assert eventually(lambda: len(runs[0].reports) == 2)
        began = time.monotonic()
        thread = threading.Thread(target=cluster.close)
        thread.start()
        for run in runs:
            with pytest.raises(ClusterClosed):
                run.result(10)
        thread.join(10)
        assert not thread.is_alive()
        assert time.monotonic() - began < SOON_S
        assert_gone(pids, within=0.5)
        runs[0].stop()

    def test_from_a_callback(self, assert_gone, eventually):
        """The cluster's own thread must not wait for itself."""
        cluster = Cluster(1, "gloo")
        pids = cluster.start().pids
        run = cluster.submit(lambda rank: rank.report(a=1) or time.sleep(600), on_report=lambda report: cluster.close())
        with pytest.raises(ClusterClosed):
            run.result(SOON_S)
        assert_gone(pids)
        assert eventually(lambda: cluster.closed)

    def test_with_a_rank_stopped_by_sigstop(self, assert_gone, eventually):
        cluster = Cluster(1, "gloo")
        assert eventually(lambda: cluster.pids)
        pids = cluster.pids
        os.kill(pids[0], signal.SIGSTOP)
        began = time.monotonic()
        cluster.close()
        assert time.monotonic() - began < SOON_S
        assert_gone(pids, within=0.5)

    def test_leaves_no_thread_and_no_descriptor(self):
        def count():
            gc.collect()
            return psutil.Process().num_fds(), threading.active_count()

        before = count()
        with Cluster(1, "gloo") as cluster:
            cluster.run(lambda rank: 1)
            cluster.restart()
        del cluster
        (fds, threads), (fds_before, threads_before) = count(), before
        assert fds <= fds_before
        assert threads <= threads_before


class TestWatch:
    def test_states(self, eventually):
        """Every change, in order, from the state at the call to the last."""
        seen = []
        with Cluster(1, "gloo") as cluster:
            cluster.watch(seen.append)
            cluster.run(lambda rank: 1)
            assert eventually(lambda: seen[-1] is State.READY)
            cluster.close()
        changes = [state for state, before in zip(seen, [None, *seen], strict=False) if state is not before]
        assert changes[-4:] == [State.READY, State.RUNNING, State.READY, State.DOWN, State.CLOSED][-4:]
        assert changes[0] in (State.DOWN, State.STARTING)

    def test_watcher_may_use_the_cluster(self, assert_gone, eventually):
        """Also at the end: a panel stops its run, or closes, when the state changes."""
        cluster = Cluster(1, "gloo")
        assert eventually(lambda: cluster.pids)
        pids = cluster.pids
        run = cluster.submit(lambda rank: rank.index)

        def use(state):
            run.stop()
            if state is State.CLOSED:
                cluster.close()

        cluster.watch(use)
        began = time.monotonic()
        cluster.close()
        assert time.monotonic() - began < SOON_S
        assert_gone(pids)
        assert cluster.closed
        assert eventually(lambda: not cluster._supervisor.thread.is_alive())

    def test_watcher_that_raises_does_no_harm(self, cluster2, assert_works):
        def broken(state):
            raise ValueError("in the watcher")

        cluster2.watch(broken)
        assert_works(cluster2)


class TestDropped:
    def test_ends_the_ranks(self, assert_gone):
        cluster = Cluster(1, "gloo")
        pids = cluster.start().pids
        gone = weakref.ref(cluster)
        del cluster
        gc.collect()
        assert gone() is None
        assert_gone(pids)

    def test_after_a_fault(self, assert_gone):
        def fail(rank):
            raise ValueError

        def use():
            cluster = Cluster(1, "gloo")
            try:
                cluster.run(fail)
            except RankError:
                return cluster.pids

        pids = use()
        gc.collect()
        assert_gone(pids)

    def test_not_before_its_run_is_done(self, assert_gone, eventually):
        """Nothing holds the cluster but the run."""
        run = Cluster(1, "gloo").submit(lambda rank: (time.sleep(0.5), os.getpid())[1])
        gc.collect()
        pids = run.result(30)
        assert len(pids) == 1
        gc.collect()
        assert_gone(pids)

    def test_run_on_a_temporary(self, assert_gone):
        pids = Cluster(1, "gloo").run(lambda rank: os.getpid())
        gc.collect()
        assert_gone(pids)


class TestSideBySide:
    def test_two_clusters(self, cluster2, cluster):
        """At the same time, each with its own group."""

        def work(rank, base):
            sums = []
            for i in range(20):
                x = torch.tensor([base + i])
                dist.all_reduce(x)
                sums.append(x.item())
            return sums

        runs = [(one.submit(work, base), base) for _ in range(3) for one, base in ((cluster2, 1000), (cluster, 5))]
        for run, base in runs:
            assert run.result(30) == [[2 * (base + i) for i in range(20)]] * 2
        assert not set(cluster.pids) & set(cluster2.pids)

    def test_a_fault_in_one_is_not_the_others(self, cluster2, cluster, assert_works):
        pids = cluster2.start().pids
        slow = cluster2.submit(lambda rank: time.sleep(0.5) or rank.index)
        os.kill(cluster.pids[0], signal.SIGKILL)
        assert slow.result(30) == [0, 1]
        assert_works(cluster2)
        assert cluster2.pids == pids


def test_made_in_a_thread_that_ended(assert_works):
    """On Linux ranks die with the thread that started them: that must not be the caller's."""
    made = []
    thread = threading.Thread(target=lambda: made.append(Cluster(1, "gloo").start()))
    thread.start()
    thread.join(30)
    with made[0] as cluster:
        time.sleep(0.2)
        pids = cluster.pids
        assert_works(cluster)
        assert cluster.pids == pids


def test_import_path_with_entries_that_are_no_strings(assert_works, monkeypatch, tmp_path):
    """Notebooks do put Path objects there; Python skips them."""
    monkeypatch.setattr(sys, "path", [*sys.path, pathlib.Path(tmp_path)])
    with Cluster(1, "gloo") as cluster:
        assert_works(cluster)


PRELUDE = """
import gc, json, os, signal, subprocess, sys, threading, time
from tplab import Cluster

def say(value):
    print(json.dumps(value), flush=True)

def who(rank):
    return os.getpid()

def hang_up(rank):
    import torch
    rank.report(begun=True)
    if rank.index == 0:
        torch.distributed.all_reduce(torch.ones(1))
    time.sleep(600)

def until(condition):
    while not condition():
        time.sleep(0.01)
"""


def in_prelude(code):
    return PRELUDE + textwrap.dedent(code)


class TestScript:
    """A plain script makes a cluster and ends without closing it."""

    @pytest.mark.parametrize(
        ("ending", "exit_code"),
        [("", 0), ("raise ValueError('out of here')", 1), ("os._exit(5)", 5)],
        ids=["runs out", "raises", "os._exit"],
    )
    def test_ends_without_closing(self, script, assert_gone, ending, exit_code):
        one = script(in_prelude(f"cluster = Cluster(1, 'gloo')\nsay(cluster.run(who))\n{ending}"))
        pids = one.read()
        code, errors = one.finish()
        assert code == exit_code
        assert_gone(pids)
        assert ("out of here" in errors) if exit_code == 1 else errors == ""

    def test_ends_with_a_run_under_way(self, script, assert_gone):
        one = script(
            in_prelude(
                """
                cluster = Cluster(2, "gloo")
                run = cluster.submit(hang_up)
                until(lambda: len(run.reports) == 2)
                say(cluster.pids)
                """
            )
        )
        pids = one.read()
        began = time.monotonic()
        assert one.finish() == (0, "")
        assert time.monotonic() - began < SOON_S + 1  # and the interpreter's own end
        assert_gone(pids)

    @pytest.mark.parametrize(
        "body",
        [
            "run = cluster.submit(hang_up); until(lambda: len(run.reports) == 2); say(cluster.pids)",
            "until(lambda: len(cluster.pids) == 2); say(cluster.pids)",
        ],
        ids=["hung", "starting"],
    )
    def test_killed(self, script, assert_gone, body):
        one = script(in_prelude(f"cluster = Cluster(2, 'gloo')\n{body}\ntime.sleep(600)"))
        pids = one.read()
        assert len(pids) == 2
        one.process.kill()
        one.finish()
        assert_gone(pids, within=AFTER_KILL_S)

    def test_terminated(self, script, assert_gone):
        """SIGTERM, as a batch system or a closing terminal sends it; the ranks are idle."""
        one = script(in_prelude("cluster = Cluster(1, 'gloo')\nsay(cluster.run(who))\ntime.sleep(600)"))
        pids = one.read()
        one.process.terminate()
        assert one.finish()[0] == -signal.SIGTERM
        assert_gone(pids, within=AFTER_KILL_S)

    def test_interrupted(self, script, assert_gone):
        """Ctrl-C in the terminal goes to the whole process group; the script ends with KeyboardInterrupt."""
        one = script(
            in_prelude(
                """
                cluster = Cluster(2, "gloo")
                threading.Timer(0, lambda: (until(lambda: cluster.state.value == "running"), say(cluster.pids))).start()
                cluster.run(hang_up)
                """
            )
        )
        pids = one.read()
        time.sleep(0.3)
        began = time.monotonic()
        os.killpg(one.process.pid, signal.SIGINT)
        code, errors = one.finish()
        assert time.monotonic() - began < SOON_S + 1  # and the interpreter's own end
        assert code != 0
        assert "KeyboardInterrupt" in errors
        assert_gone(pids)

    def test_forked_children_leave_the_ranks_alone(self, script):
        """However they end, and whatever they do to their copy of the cluster."""
        one = script(
            in_prelude(
                """
                import multiprocessing
                cluster = Cluster(2, "gloo")
                before = cluster.run(who)

                def in_child(end):
                    pid = os.fork()
                    if pid == 0:
                        end()
                        sys.exit(0)
                    return os.waitpid(pid, 0)[1]

                def drop():
                    global cluster
                    del cluster
                    gc.collect()

                codes = [
                    in_child(lambda: os._exit(0)),
                    in_child(lambda: None),
                    in_child(lambda: cluster.close()),
                    in_child(drop),
                ]
                process = multiprocessing.get_context("fork").Process(target=len, args=([],))
                process.start()
                process.join()
                say([codes, process.exitcode, before, cluster.run(who), list(cluster.pids)])
                cluster.close()
                """
            )
        )
        codes, exit_code, before, after, pids = one.read()
        assert codes == [0] * 4
        assert exit_code == 0
        assert before == after == pids
        assert one.finish()[0] == 0
