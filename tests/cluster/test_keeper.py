"""The process between kernel and ranks: whatever ranks start ends with them, also when the kernel is killed."""

import os
import signal
import sys
import time

import psutil
import pytest

from tplab import Cluster
from tplab.cluster import RankDied, local

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers"),
]

# Children of every kind, each of which prints its own process id before it sleeps.
CHILDREN = """
import os, subprocess, sys

SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(300)"
PYTHON = [sys.executable, "-S", "-c"]

def pid_of(*args, **kwargs):
    process = subprocess.Popen([*PYTHON, *args], stdout=subprocess.PIPE, text=True, **kwargs)
    return int(process.stdout.readline())

def start_children(rank):
    double_fork = (
        "import os, subprocess, sys\\n"
        "if os.fork() == 0:\\n"
        "    os.setsid()\\n"
        "    if os.fork() == 0:\\n"
        "        os.execve(sys.executable, [sys.executable, '-S', '-c', %r], {})\\n" % SLEEP +
        "    os._exit(0)\\n"
    )
    stubborn = "import signal; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; " + SLEEP
    return {
        "plain": pid_of(SLEEP),
        "own session": pid_of(SLEEP, start_new_session=True),
        "no environment": pid_of(SLEEP, env={}, start_new_session=True),
        "daemon": pid_of(double_fork, start_new_session=True),
        "ignores signals": pid_of(stubborn, start_new_session=True),
    }
"""
exec(CHILDREN)

SCRIPT = (
    CHILDREN
    + """
import json, sys, time
from tplab import Cluster

cluster = Cluster(2, "gloo")
children = [pid for one in cluster.run(start_children) for pid in one.values()]
keepers = {process.pid for process in __import__("psutil").Process().children()}
"""
)


SAY_AND_WAIT = """
print(json.dumps([children, list(cluster.pids), list(keepers)]), flush=True)
time.sleep(100)
"""


class TestKernelKilled:
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_takes_everything_along(self, script, assert_gone, number):
        running = script(SCRIPT + SAY_AND_WAIT)
        children, ranks, keepers = running.read()
        assert len(children) == 10
        assert len(keepers) == 1, "one small process besides the ranks"
        running.process.send_signal(number)
        running.process.wait()
        assert_gone([*children, *ranks, *keepers], within=3.0)

    def test_with_its_process_group_as_jupyter_restarts_hard(self, script, assert_gone):
        running = script(SCRIPT + SAY_AND_WAIT)
        children, ranks, keepers = running.read()
        os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
        assert_gone([*children, *ranks, *keepers], within=3.0)

    def test_while_a_forked_copy_of_it_lives(self, script, assert_gone):
        """The copy holds every socket open: nobody hears the kernel hang up."""
        fork = """
import os
copy = os.fork()
if copy == 0:
    time.sleep(60)
    os._exit(0)
print(json.dumps([children, list(cluster.pids), list(keepers), copy]), flush=True)
time.sleep(100)
"""
        running = script(SCRIPT + fork)
        children, ranks, keepers, copy = running.read()
        running.process.kill()
        running.process.wait()
        try:
            assert_gone([*children, *ranks, *keepers], within=3.0)
        finally:
            os.kill(copy, signal.SIGKILL)


class TestRanksEnd:
    def test_close_takes_everything_along(self, assert_gone):
        with Cluster(2, "gloo") as cluster:
            children = [pid for one in cluster.run(start_children) for pid in one.values()]  # noqa: F821
        assert_gone(children)

    def test_a_killed_rank_too(self, cluster, assert_gone, assert_works):
        children = [pid for one in cluster.run(start_children) for pid in one.values()]  # noqa: F821
        with pytest.raises(RankDied):
            cluster.run(lambda rank: os.kill(os.getpid(), 9) if rank.index else time.sleep(5))
        assert_gone(children)
        assert_works(cluster)

    def test_children_stay_between_runs(self, cluster, assert_gone):
        """Data loaders are warm, too."""
        children = [pid for one in cluster.run(start_children) for pid in one.values()]  # noqa: F821
        cluster.run(lambda rank: time.sleep(0.3))
        assert all(psutil.pid_exists(pid) for pid in children)
        cluster.restart()
        assert_gone(children)

    def test_no_zombies(self, cluster):
        def orphan(rank):
            for _ in range(20):
                if os.fork() == 0:
                    if os.fork() == 0:
                        os._exit(0)
                    os._exit(0)
                os.wait()
            return os.getppid()

        (keeper, _) = cluster.run(orphan)
        time.sleep(0.2)
        below = psutil.Process(keeper).children(recursive=True)
        assert {process.pid for process in below} == set(cluster.pids)


class TestKeeperEnds:
    def test_killed_between_runs(self, cluster, assert_gone, assert_works, eventually):
        pids = cluster.pids
        os.kill(psutil.Process(pids[0]).ppid(), signal.SIGKILL)
        assert_gone(pids)
        assert_works(cluster)

    def test_killed_in_a_run(self, cluster, assert_gone, assert_works):
        children = [pid for one in cluster.run(start_children) for pid in one.values()]  # noqa: F821
        pids = cluster.pids
        run = cluster.submit(lambda rank: time.sleep(30))
        time.sleep(0.2)
        os.kill(psutil.Process(pids[0]).ppid(), signal.SIGKILL)
        with pytest.raises(RankDied, match="rank 0 of 2 ended"):
            run.result()
        assert_gone(pids)
        # What has kept the ranks' environment is found without it.
        assert_gone([children[at] for at in (0, 1, 5, 6)])
        for pid in children:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        assert_works(cluster)

    def test_stopped(self, cluster, assert_gone, assert_works, monkeypatch):
        """It cannot do its work; closing does not wait for it for ever."""
        monkeypatch.setattr(local, "_KEEPER_END_S", 1.0)
        pids = cluster.pids
        keeper = psutil.Process(psutil.Process(pids[0]).ppid())
        keeper.suspend()
        began = time.monotonic()
        cluster.restart()
        assert time.monotonic() - began < 10
        assert_gone([*pids, keeper.pid])
        assert_works(cluster)


class TestInterpreter:
    def test_that_cannot_be_started(self, monkeypatch, assert_works):
        """The next run tries again."""
        from tplab.cluster import ClusterError

        with monkeypatch.context() as patched:
            patched.setattr(local.sys, "executable", "/no/such/python")
            with Cluster(2, "gloo") as cluster, pytest.raises(ClusterError, match="/no/such/python"):
                cluster.start()
        with Cluster(2, "gloo") as cluster:
            assert_works(cluster)

    def test_ranks_inherit_nothing_but_their_own(self, cluster2):
        def look(rank):
            return sorted(
                target
                for name in os.listdir("/proc/self/fd")
                if os.path.lexists(f"/proc/self/fd/{name}")
                and (target := os.readlink(f"/proc/self/fd/{name}")).startswith(("socket", "pipe"))
            )

        first, second = cluster2.run(look)
        ours = look(None)
        assert not [target for target in first if target in second and target.startswith("socket")]
        assert not [target for target in first + second if target in ours and target.startswith("socket")]
