"""What goes wrong on the ranks: one clear exception, soon; no process left; and the next run works.

Most faults go through ``provoke``: every rank first starts a process of its own, so that each test also looks for
grandchildren left behind.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist

from tplab import Cluster
from tplab.cluster import ClusterError, RankDied, RankError, RankTimeout, RunStopped, State, supervisor
from tplab.cluster.cells import Cell

pytestmark = pytest.mark.timeout(60)

SOON_S = 3.0
STOP_S = 2.0
LINGER = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]


def meet(rank):
    """Wait for all the others in a collective."""
    dist.all_reduce(torch.ones(1))


def hang_up(rank):
    """Rank 0 waits in a collective that the others never enter."""
    if rank.index == 0:
        meet(rank)
    else:
        time.sleep(600)


def flood(rank):
    """Output without end, line by line and in large pieces."""
    lines = b"never mind this line\n" * 500
    while True:
        if rank.index == 0:
            print("x")
        else:
            os.write(1, lines)


@contextmanager
def rescue(seconds, action):
    """Do it if the body takes that long."""
    timer = threading.Timer(seconds, action)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@dataclass
class Outcome:
    error: ClusterError
    seconds: float
    pids: tuple[int, ...]
    """The ranks that ran."""
    children: list[int]
    """What they had started."""


@pytest.fixture
def provoke(assert_gone, assert_works):
    """Run a function that fails; check what holds for every fault that costs the ranks."""

    def check(cluster, fn, *args, expect, within=SOON_S, timeout=30.0):
        def with_child(rank, *args):
            rank.report(child=subprocess.Popen(LINGER).pid)
            return fn(rank, *args)

        pids = cluster.start().pids
        began = time.monotonic()
        run = cluster.submit(with_child, *args, timeout=timeout)
        with pytest.raises(expect) as info:
            run.result(timeout=40)
        seconds = time.monotonic() - began
        children = [report.fields["child"] for report in run.reports]
        assert_gone([*pids, *children])
        assert seconds < within
        assert_works(cluster)
        assert not set(cluster.pids) & set(pids)
        return Outcome(info.value, seconds, pids, children)

    return check


@pytest.fixture
def provoke_warm(assert_works):
    """Run a function that raises on all ranks; check that they stay, and what they keep."""

    def check(cluster, fn, *args, within=SOON_S):
        pids = cluster.start().pids
        cluster.run(lambda rank: rank.store.update(kept=rank.index))
        began = time.monotonic()
        with pytest.raises(RankError) as info:
            cluster.run(fn, *args, timeout=30)
        assert time.monotonic() - began < within
        assert cluster.run(lambda rank: rank.store["kept"]) == list(range(cluster.num_ranks))
        assert cluster.pids == pids
        assert_works(cluster)
        return info.value

    return check


def assert_names_rank(error, rank):
    assert error.rank == rank
    assert f"rank {rank}" in str(error)


class TestRaise:
    @pytest.mark.parametrize(("n", "culprit"), [(1, 0), (2, 0), (3, 1), (4, 3)])
    def test_before_a_collective_the_others_wait_in(self, clusters, n, culprit, request):
        def stumble(rank, culprit):
            if rank.index == culprit:
                time.sleep(0.3)  # the others are in the collective by now
                raise ValueError("a wrong", 7)  # the culprit's line
            meet(rank)

        if n == 1:  # all ranks have answered: they stay
            error = request.getfixturevalue("provoke_warm")(clusters(n), stumble, culprit)
        else:
            error = request.getfixturevalue("provoke")(clusters(n), stumble, culprit, expect=RankError).error
        assert_names_rank(error, culprit)
        assert isinstance(error.__cause__, ValueError)
        assert error.__cause__.args == ("a wrong", 7)
        for text in (error.traceback, str(error)):
            assert "the culprit's line" in text
            assert "in stumble" in text
            assert "ValueError: ('a wrong', 7)" in text
        for other in set(range(n)) - {culprit}:
            assert f"rank {other}" in str(error), "says nothing of where the others were"

    def test_inside_a_collective(self, cluster, provoke):
        """One rank's call is refused, the other waits."""

        def refuse(rank):
            dist.all_reduce(torch.ones(1) if rank.index == 0 else "no tensor")

        error = provoke(cluster, refuse, expect=RankError).error
        assert_names_rank(error, 1)
        assert "all_reduce" in error.traceback

    def test_after_a_collective(self, cluster, assert_works):
        """The others are done already: no need to lose them, but the run has failed."""

        def later(rank):
            meet(rank)
            if rank.index == 1:
                raise KeyError("later")
            return rank.index

        with pytest.raises(RankError, match=r"rank 1.*KeyError") as info:
            cluster.run(later, timeout=30)
        assert_names_rank(info.value, 1)
        assert_works(cluster)

    def test_on_all_ranks(self, sized, provoke_warm):
        """Every rank answered: they stay, and so does what they keep."""

        def fail(rank):
            raise ValueError(f"from {rank.index}")

        error = provoke_warm(sized, fail)
        assert 0 <= error.rank < sized.num_ranks
        assert str(error.__cause__) == f"from {error.rank}"
        for rank in range(sized.num_ranks):
            assert f"from {rank}" in str(error)

    def test_on_all_ranks_after_a_collective(self, cluster, provoke_warm):
        def fail(rank):
            meet(rank)
            raise ValueError("after")

        provoke_warm(cluster, fail)

    @pytest.mark.parametrize("error_type", [SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError])
    def test_not_every_exception_is_an_Exception(self, cluster, provoke_warm, error_type):
        def fail(rank):
            raise error_type(5)

        error = provoke_warm(cluster, fail)
        assert error_type.__name__ in str(error)
        assert isinstance(error.__cause__, error_type)

    def test_sys_exit_on_one_rank_while_the_other_computes(self, cluster, provoke):
        """Nobody waits for the rank that left; the other would go on for long."""

        def leave(rank):
            if rank.index == 1:
                sys.exit("done here")
            while True:
                pass

        error = provoke(cluster, leave, expect=RankError).error
        assert_names_rank(error, 1)
        assert "SystemExit" in str(error)
        assert "done here" in str(error)

    def test_traceback_shows_what_the_exception_came_from(self, cluster, provoke_warm):
        def fail(rank):
            try:
                {}["the real reason"]
            except KeyError as error:
                raise RuntimeError("in general") from error

        error = provoke_warm(cluster, fail)
        assert "in general" in error.traceback
        assert "the real reason" in error.traceback

    def test_exception_that_is_its_own_cause(self, cluster, provoke_warm):
        def fail(rank):
            error = RuntimeError("itself")
            raise error from error

        assert "itself" in str(provoke_warm(cluster, fail))

    def test_note_on_the_exception_is_kept(self, cluster, provoke_warm):
        def fail(rank):
            error = ValueError("bare")
            error.add_note("try something else")
            raise error

        assert "try something else" in str(provoke_warm(cluster, fail))


class NeedsTwo(Exception):
    """Pickles, but cannot be rebuilt: its arguments are not its ``__init__``'s."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class HoldsALock(Exception):
    def __init__(self):
        super().__init__("held")
        self.lock = threading.Lock()


class CannotBePrinted(Exception):
    def __str__(self):
        raise ValueError("no words")


class TestWhatCannotBeSent:
    """What pickle cannot carry costs neither the message nor the ranks."""

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: NeedsTwo("this", "that"), ["NeedsTwo", "this and that"]),
            (HoldsALock, ["HoldsALock", "held"]),
            (CannotBePrinted, ["CannotBePrinted"]),
        ],
        ids=["needs two", "holds a lock", "cannot be printed"],
    )
    def test_exception(self, cluster, provoke_warm, make, words):
        def fail(rank):
            raise make()  # the culprit's line

        error = provoke_warm(cluster, fail)
        assert error.rank in (0, 1)
        assert "the culprit's line" in error.traceback
        for word in words:
            assert word in str(error)
            assert word in error.traceback

    def test_exception_of_a_type_that_only_the_rank_knows(self, cluster, provoke_warm):
        def fail(rank):
            import types

            module = sys.modules["only_on_ranks"] = types.ModuleType("only_on_ranks")
            exec("class Strange(Exception): pass", module.__dict__)
            raise module.Strange("from afar")

        error = provoke_warm(cluster, fail)
        assert "Strange" in str(error)
        assert "from afar" in str(error)

    def test_return_value(self, cluster, provoke_warm):
        """The message says that it is about the value that was returned, not about some pickle."""

        def give(rank):
            return {"lock": threading.Lock()}

        error = provoke_warm(cluster, give)
        assert error.rank in (0, 1)
        assert "give" in str(error)
        assert "lock" in str(error)
        assert re.search("returned|return value", str(error)), "says nothing of the value that was returned"

    def test_return_value_of_one_rank(self, cluster, assert_works):
        with pytest.raises(RankError, match="rank 1") as info:
            cluster.run(lambda rank: threading.Lock() if rank.index else 1, timeout=30)
        assert info.value.rank == 1
        assert_works(cluster)

    def test_return_value_that_cannot_be_rebuilt(self, cluster, provoke_warm):
        class Broken:
            def __reduce__(self):
                return int, ("not a number",)

        error = provoke_warm(cluster, lambda rank: Broken())
        assert error.rank == 0
        assert "not a number" in str(error)

    def test_report(self, cluster, provoke_warm):
        assert "lock" in str(provoke_warm(cluster, lambda rank: rank.report(a=threading.Lock())))

    def test_report_that_cannot_be_rebuilt(self, cluster, assert_works, capsys):
        """An error stands in its place, which is said once; its other fields are there, and the run goes on."""

        class Broken:
            def __reduce__(self):
                return int, ("not a number",)

        def tell(rank):
            rank.report(a=Broken(), b=1)

        pids = cluster.pids
        run = cluster.submit(tell, timeout=30)
        assert run.result() == [None, None]
        assert [report.fields["b"] for report in run.reports] == [1] * 2
        assert all("the field 'a'" in str(report.fields["a"]) for report in run.reports)
        assert capsys.readouterr().err.count("not a number") == 1
        assert_works(cluster)
        assert cluster.pids == pids


class TestDeath:
    @pytest.mark.parametrize("culprit", [0, 1])
    def test_sigkill_in_the_midst_of_a_collective(self, cluster, provoke, culprit):
        def die(rank, culprit):
            print("last words of", rank.index)
            if rank.index == culprit:
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGKILL)
            meet(rank)

        error = provoke(cluster, die, culprit, expect=RankDied).error
        assert_names_rank(error, culprit)
        assert error.exit_code == -signal.SIGKILL
        assert "SIGKILL" in str(error)
        assert list(error.output) == [f"last words of {culprit}"]
        assert f"last words of {culprit}" in str(error)

    @pytest.mark.parametrize("n", [3, 4])
    def test_sigkill_of_other_sizes(self, clusters, provoke, n):
        def die(rank):
            if rank.index == rank.world_size - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            meet(rank)

        assert_names_rank(provoke(clusters(n), die, expect=RankDied).error, n - 1)

    def test_killed_from_outside_while_it_computes(self, cluster, assert_gone, assert_works, eventually):
        def spin(rank):
            rank.report(spins=True)
            while True:
                pass

        run = cluster.submit(spin)
        assert eventually(lambda: len(run.reports) == 2)
        pids = cluster.pids
        os.kill(pids[1], signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(RankDied) as info:
            run.result(30)
        assert time.monotonic() - began < SOON_S
        assert_names_rank(info.value, 1)
        assert_gone(pids)
        assert_works(cluster)

    def test_sigkill_of_the_only_rank(self, clusters, provoke):
        def die(rank):
            os.kill(os.getpid(), signal.SIGKILL)

        error = provoke(clusters(1), die, expect=RankDied).error
        assert_names_rank(error, 0)
        assert error.exit_code == -signal.SIGKILL

    def test_os_exit(self, cluster, provoke):
        def leave(rank):
            if rank.index == 1:
                time.sleep(0.2)
                os._exit(3)
            meet(rank)

        error = provoke(cluster, leave, expect=RankDied).error
        assert_names_rank(error, 1)
        assert error.exit_code == 3
        assert "code 3" in str(error)

    def test_segmentation_fault(self, cluster, provoke):
        """The output says where."""

        def crash(rank):
            if rank.index == 1:
                ctypes.string_at(0)  # the culprit
            meet(rank)

        error = provoke(cluster, crash, expect=RankDied).error
        assert_names_rank(error, 1)
        assert error.exit_code == -signal.SIGSEGV
        assert "SIGSEGV" in str(error)
        assert any("in crash" in line for line in error.output)

    def test_killed_in_the_midst_of_a_message(self, clusters, provoke):
        """Half an answer is none."""

        def half(rank):
            _write_half_then(signal.SIGKILL)
            return bytes(1_000_000)

        assert provoke(clusters(1), half, expect=RankDied).error.exit_code == -signal.SIGKILL

    def test_grandchildren_however_they_were_started(self, clusters, assert_gone):
        """Also those that left the rank's process group or session, as torch.compile's own helpers do."""

        def leave(rank):
            for how in ({"process_group": 0}, {"start_new_session": True}):
                rank.report(child=subprocess.Popen(LINGER, **how).pid)
            time.sleep(0.2)
            os._exit(3)

        run = clusters(1).submit(leave)
        with pytest.raises(RankDied):
            run.result(30)
        assert_gone([report.fields["child"] for report in run.reports])


def _write_half_then(number):
    """From now on this rank's large messages end in the middle, with a signal."""
    import socket

    whole = socket.socket.sendall

    def write_half(self, data):
        if len(data) < 1000:
            return whole(self, data)
        os.write(self.fileno(), data[: len(data) // 2])
        return os.kill(os.getpid(), number)

    socket.socket.sendall = write_half


class TestBetweenRuns:
    def test_killed_while_idle(self, cluster, assert_gone, assert_works, eventually, capsys):
        """The next run works, and says that the store is empty."""
        cluster.run(lambda rank: rank.store.update(kept=1))
        pids = cluster.pids
        os.kill(pids[0], signal.SIGKILL)
        assert_gone(pids, within=SOON_S)
        assert eventually(lambda: cluster.pids != pids)
        capsys.readouterr()
        assert cluster.run(lambda rank: dict(rank.store)) == [{}, {}]
        out, err = capsys.readouterr()
        assert "rank 0" in out + err
        assert "store" in out + err
        assert_works(cluster)
        assert "store" not in "".join(capsys.readouterr()), "said twice"

    def test_run_right_after_the_kill(self, cluster, assert_works, assert_gone):
        """Dead before it gets the run, and nobody has noticed yet: the run is told, and the next one works."""
        pids = cluster.pids

        def kill(state):
            if state is State.RUNNING and cluster.pids == pids:  # chosen for the run, which is sent next
                os.kill(pids[1], signal.SIGKILL)
                assert_gone(pids[1:])

        cluster.watch(kill)
        with pytest.raises(RankDied) as caught:
            cluster.run(lambda rank: rank.index)
        assert caught.value.rank == 1
        assert_gone(pids)
        assert_works(cluster)


class TestHang:
    def test_one_waits_in_a_collective_the_other_returned(self, cluster, provoke):
        def mismatch(rank):
            if rank.index == 0:
                meet(rank)  # the culprit's line

        error = provoke(cluster, mismatch, expect=RankTimeout, timeout=1.0).error
        assert_names_rank(error, 0)
        assert error.ranks == (0,)
        assert isinstance(error, TimeoutError)
        assert list(error.stacks) == [0]
        for text in (error.stacks[0], str(error)):
            assert "the culprit's line" in text
            assert "all_reduce" in text
        assert "1 s" in str(error)

    def test_all_but_one_wait(self, clusters, provoke):
        def mismatch(rank):
            if rank.index != 1:
                meet(rank)

        error = provoke(clusters(3), mismatch, expect=RankTimeout, timeout=1.0).error
        assert error.ranks == (0, 2)
        assert sorted(error.stacks) == [0, 2]
        assert "ranks 0, 2" in str(error)

    def test_different_shapes(self, cluster, provoke):
        """Gloo may hang, raise or abort: each is one fault with a name, and none the end."""

        def mismatch(rank):
            dist.all_reduce(torch.ones((3, 8)[rank.index]))

        error = provoke(cluster, mismatch, expect=(RankTimeout, RankDied, RankError), timeout=1.0).error
        assert_names_rank(error, error.rank)

    def test_not_in_a_collective(self, cluster, provoke):
        def hang(rank):
            if rank.index == 0:
                time.sleep(600)
            while True:
                pass

        error = provoke(cluster, hang, expect=RankTimeout, timeout=0.5).error
        assert error.ranks == (0, 1)
        assert sorted(error.stacks) == [0, 1]
        assert all("in hang" in stack for stack in error.stacks.values())

    def test_stack_that_cannot_be_had(self, cluster, provoke):
        """Whatever looking at a running thread comes to, the rank lives on: it is not the one that failed."""

        def spoil(rank):
            from tplab.cluster import wire

            def fail(thread):
                raise AttributeError("'function' object has no attribute 'f_lineno'")

            wire.stack_of = fail

        def fail_beside(rank):
            if rank.index == 1:
                raise ValueError("planted")
            time.sleep(600)

        cluster.run(spoil)
        error = provoke(cluster, fail_beside, expect=RankError).error
        assert_names_rank(error, 1)
        assert "planted" in str(error)

    def test_in_c_with_the_interpreter_locked(self, clusters, provoke):
        """Such a rank cannot even say where it is."""

        def hang(rank):
            ctypes.pythonapi.sleep(600)

        error = provoke(clusters(1), hang, expect=RankTimeout, timeout=0.5).error
        assert error.ranks == (0,)
        assert_names_rank(error, 0)

    def test_while_it_floods_the_kernel(self, cluster, assert_gone, assert_works, capsys):
        """``while True: print("x")``, as beginners write it: the supervisor must find time for its clock."""
        pids = cluster.pids
        with rescue(10, lambda: [os.kill(pid, signal.SIGKILL) for pid in pids]):
            began = time.monotonic()
            with pytest.raises(RankTimeout) as info:
                cluster.run(flood, timeout=1.0)
            assert time.monotonic() - began < SOON_S
        capsys.readouterr()
        assert info.value.ranks == (0, 1)
        assert_gone(pids)
        assert_works(cluster)

    def test_stopped_by_sigstop(self, cluster, provoke):
        def freeze(rank):
            if rank.index == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            meet(rank)

        error = provoke(cluster, freeze, expect=RankTimeout, timeout=1.0).error
        assert 1 in error.ranks

    def test_stopped_by_sigstop_between_runs(self, cluster, assert_gone, assert_works):
        """However much there is to send to a rank that takes nothing in."""
        pids = cluster.pids
        os.kill(pids[1], signal.SIGSTOP)
        # Frees a supervisor that is stuck, so that the test fails sooner.
        with rescue(8, lambda: os.kill(pids[1], signal.SIGKILL)):
            began = time.monotonic()
            with pytest.raises(RankTimeout) as info:
                cluster.run(lambda rank, data: len(data), bytes(10_000_000), timeout=1.0)
            assert time.monotonic() - began < SOON_S
        assert 1 in info.value.ranks
        assert_gone(pids)
        assert_works(cluster)

    def test_stopped_by_sigstop_in_the_midst_of_a_message(self, cluster, assert_gone, assert_works):
        def freeze(rank):
            if rank.index == 1:
                _write_half_then(signal.SIGSTOP)
            return bytes(1_000_000)

        pids = cluster.pids
        with rescue(8, lambda: os.kill(pids[1], signal.SIGKILL)):
            began = time.monotonic()
            with pytest.raises(RankTimeout):
                cluster.run(freeze, timeout=1.0)
            assert time.monotonic() - began < SOON_S
        assert_gone(pids)
        assert_works(cluster)


class TestInStep:
    """Ranks that stay must be in step: a collective left over from one run must never meet one of the next."""

    def test_one_rank_left_a_collective_behind(self, cluster, assert_works):
        """All answered, but one has an all-reduce under way."""

        def leave(rank):
            if rank.index == 0:
                rank.store["work"] = dist.all_reduce(torch.full((3,), 100.0), async_op=True)
            raise ValueError("both")

        with pytest.raises(RankError):
            cluster.run(leave, timeout=30)
        assert_works(cluster)

    def test_ranks_that_did_different_things_on_purpose_stay(self, clusters, assert_works):
        """A pipeline's stages send and receive unequally often: that alone is no reason to replace them."""

        def pass_on(rank):
            x = torch.tensor([rank.index])
            if rank.index == 0:
                dist.send(x, 1)
            elif rank.index == 1:
                dist.recv(x, 0)
            return x.item()

        cluster = clusters(3)
        pids = cluster.pids
        assert cluster.run(pass_on, timeout=10) == [0, 0, 2]
        assert_works(cluster)
        assert cluster.pids == pids

    def test_a_message_that_nobody_received(self, cluster):
        def leave(rank):
            if rank.index == 0:
                rank.store["work"] = dist.isend(torch.full((1,), 100.0), 1)
            raise ValueError("both")

        def pass_on(rank):
            x = torch.ones(1)
            if rank.index == 0:
                dist.send(x, 1)
            else:
                dist.recv(x, 0)
            return x.item()

        with pytest.raises(RankError):
            cluster.run(leave, timeout=30)
        assert cluster.run(pass_on, timeout=5) == [1.0, 1.0]

    def test_one_rank_left_a_collective_of_a_mesh_axis_behind(self, clusters):
        """The same on a group that is not the default one."""

        def leave(rank):
            group = rank.mesh(tp=2).get_group("tp")
            meet(rank)
            if rank.index == 0:
                rank.store["work"] = dist.all_reduce(torch.full((1,), 100.0), group=group, async_op=True)
            raise ValueError("all")

        def add(rank):
            x = torch.ones(1)
            dist.all_reduce(x, group=rank.mesh(tp=2).get_group("tp"))
            return x.item()

        cluster = clusters(4)
        with pytest.raises(RankError):
            cluster.run(leave, timeout=30)
        assert cluster.run(add, timeout=5) == [2.0] * 4


class TestStart:
    """Faults before the ranks are ready. Each test has a cluster of its own: it is about the start."""

    def test_rank_killed_while_starting(self, assert_gone, assert_works, eventually):
        with Cluster(2, "gloo") as cluster:
            run = cluster.submit(lambda rank: rank.index)
            assert eventually(lambda: len(cluster.pids) == 2)
            pids = cluster.pids
            os.kill(pids[1], signal.SIGKILL)
            began = time.monotonic()
            with pytest.raises(RankDied, match="start") as info:
                run.result(30)
            assert time.monotonic() - began < SOON_S
            assert_names_rank(info.value, 1)
            assert info.value.exit_code == -signal.SIGKILL
            assert_gone(pids)
            assert_works(cluster)

    def test_start_that_takes_too_long(self, assert_gone, eventually):
        with Cluster(2, "gloo", start_timeout=0.1) as cluster:
            assert eventually(lambda: len(cluster.pids) == 2)
            pids = cluster.pids
            for attempt in (cluster.start, lambda: cluster.run(lambda rank: 1)):
                began = time.monotonic()
                with pytest.raises(RankTimeout, match=r"rank.*0\.1 s.*start") as info:
                    attempt()
                assert time.monotonic() - began < SOON_S
                assert info.value.ranks == (0, 1)
            assert_gone(pids)

    def test_run_timeout_does_not_count_the_start(self, assert_works, eventually):
        with Cluster(1, "gloo") as cluster:
            assert cluster.run(lambda rank: rank.index, timeout=0.5) == [0]


class TestKeyboardInterrupt:
    @pytest.mark.parametrize("fn", [hang_up, lambda rank: time.sleep(600)], ids=["collective", "sleep"])
    def test_of_the_caller(self, cluster, fn, assert_works, assert_gone):
        """Ctrl-C while run waits."""
        pids = cluster.pids
        timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            cluster.run(fn)
        assert 0.6 < time.monotonic() - began < 0.7 + SOON_S
        if fn is hang_up:
            assert_gone(pids)
        assert_works(cluster)


class TestStop:
    @pytest.fixture
    def start(self, cluster, eventually):
        """Submit a function and wait until both ranks are in it."""

        runs = []

        def submit(fn, *args):
            def announced(rank, *args):
                rank.report(begun=rank.index)
                return fn(rank, *args)

            run = cluster.submit(announced, *args)
            runs.append(run)
            assert eventually(lambda: {report.rank for report in run.reports} == {0, 1})
            time.sleep(0.2)
            return run

        yield submit
        for run in runs:
            run.stop()

    def stop(self, run):
        began = time.monotonic()
        run.stop()
        assert time.monotonic() - began < 0.5, "stop waits for the end"
        with pytest.raises(RunStopped) as info:
            run.result(30)
        assert time.monotonic() - began < STOP_S
        assert run.done()
        return info.value

    @pytest.fixture
    def patient(self, monkeypatch):
        """A cluster of its own, which waits for stopped ranks longer than a busy machine keeps them from answering."""
        monkeypatch.setattr(supervisor, "_STOP_GRACE_S", 8.0)
        with Cluster(2, "gloo") as cluster:
            yield cluster

    def test_before_a_rank_has_taken_the_call_up(self, patient, eventually):
        """As it comes when a cell has just begun: the ranks stay warm."""

        def take_up_late(rank):
            from tplab.cluster.baseline import Baseline

            enter = Baseline.enter

            def enter_late(self, folder):
                time.sleep(0.5)
                enter(self, folder)

            Baseline.enter = enter_late

        patient.run(take_up_late)
        pids = patient.pids
        run = patient.submit(lambda rank: time.sleep(600))
        assert eventually(lambda: patient.state is State.RUNNING)
        run.stop()
        assert isinstance(run.exception(30), RunStopped)
        assert patient.pids == pids

    def test_while_a_cell_prepares(self, patient, eventually):
        """IPython prints what is raised where it calls back, an interrupt, too: it must come all the same."""

        def cell(source):
            return Cell(name="<cell>", source=source, title="%%ranks", ranks=(0, 1), gives="nothing", reloads=False)

        register = "get_ipython().events.register('pre_run_cell', prepare)"
        prepare = "def prepare(info):\n    rank.report(here=1)\n    time.sleep(0.5)\n"
        patient.run(cell(f"import time\n{prepare}\n{register}"))
        pids = patient.pids
        run = patient.submit(cell("time.sleep(600)"))
        assert eventually(lambda: {report.rank for report in run.reports} == {0, 1})
        run.stop()
        assert isinstance(run.exception(30), RunStopped)
        assert patient.pids == pids

    @pytest.mark.parametrize("how", ["sleep", "loop", "event", "subprocess"])
    def test_of_python(self, cluster, start, how, assert_works):
        """Ranks that can be interrupted stay warm."""

        def work(rank, how):
            while True:
                if how == "sleep":
                    time.sleep(600)
                elif how == "event":
                    threading.Event().wait()
                elif how == "subprocess":
                    subprocess.run(["sleep", "600"], check=True)

        cluster.run(lambda rank: rank.store.update(kept=rank.index))
        pids = cluster.pids
        self.stop(start(work, how))
        assert cluster.run(lambda rank: rank.store["kept"]) == [0, 1]
        assert cluster.pids == pids
        assert_works(cluster)

    def test_in_a_collective(self, cluster, start, assert_gone, assert_works):
        pids = cluster.pids
        error = self.stop(start(hang_up))
        assert "hang_up" in str(error) or "announced" in str(error)
        assert_gone(pids)
        assert_works(cluster)

    def test_of_a_flood_of_output(self, cluster, start, assert_works, capsys):
        self.stop(start(flood))
        capsys.readouterr()
        assert_works(cluster)

    def test_in_the_midst_of_a_report(self, clusters, assert_works):
        """The interrupt at the worst moment, half of a message being out: the rest must follow before anything else."""

        def tell(rank):
            import socket

            whole = socket.socket.sendall

            def interrupted(self, data):
                half = len(data) // 2
                if half < 10_000:
                    return whole(self, data)
                whole(self, data[:half])
                signal.raise_signal(signal.SIGINT)
                return whole(self, data[half:])

            socket.socket.sendall = interrupted
            try:
                rank.report(data=bytes(50_000))
                time.sleep(600)
            finally:
                socket.socket.sendall = whole

        cluster = clusters(1)
        pids = cluster.pids
        with pytest.raises(RankError, match="KeyboardInterrupt"):
            cluster.run(tell, timeout=2)
        assert_works(cluster)
        assert cluster.pids == pids

    def test_while_it_reports(self, clusters, assert_works):
        """Sixty times, wherever the interrupt finds the rank."""

        def tell(rank):
            while True:
                rank.report(data=bytes(1000))

        cluster = clusters(1)
        pids = cluster.pids
        for _ in range(60):
            begun = threading.Event()
            run = cluster.submit(tell, on_report=lambda report, begun=begun: begun.set())
            assert begun.wait(10)
            self.stop(run)
        assert not cluster.closed
        assert_works(cluster)
        assert cluster.pids == pids

    def test_of_a_training_loop(self, cluster, start, assert_works):
        """Many small collectives: wherever the stop finds the ranks, the next run works. Reports are kept."""

        def train(rank):
            for step in range(10**9):
                meet(rank)
                if step % 100 == 0:
                    rank.report(step=step)

        run = start(train)
        self.stop(run)
        assert {report.rank for report in run.reports if report.fields.get("step") == 0} == {0, 1}
        assert_works(cluster)

    def test_of_a_function_that_will_not_be_interrupted(self, cluster, start, assert_gone, assert_works):
        def stubborn(rank):
            while True:
                with suppress(KeyboardInterrupt):
                    time.sleep(600)

        pids = cluster.pids
        self.stop(start(stubborn))
        assert_gone(pids)
        assert_works(cluster)

    def test_of_a_rank_stopped_by_sigstop(self, cluster, start, assert_gone, assert_works):
        pids = cluster.pids
        run = start(lambda rank: time.sleep(600))
        os.kill(pids[0], signal.SIGSTOP)
        self.stop(run)
        assert_gone(pids)
        assert_works(cluster)

    def test_of_a_queued_run(self, cluster, start):
        """It never begins; the one before it goes on."""
        first = start(lambda rank: time.sleep(1.0) or rank.index)
        second = cluster.submit(lambda rank: rank.store.update(second=1))
        third = cluster.submit(lambda rank: "second" in rank.store)
        self.stop(second)
        assert not first.done()
        assert first.result(30) == [0, 1]
        assert third.result(30) == [False, False]

    def test_twice_and_after_the_end(self, cluster, start, assert_works):
        run = start(lambda rank: time.sleep(600))
        run.stop()
        self.stop(run)
        run.stop()
        done = cluster.submit(lambda rank: rank.index)
        assert done.result(30) == [0, 1]
        pids = cluster.pids
        done.stop()
        assert_works(cluster)
        assert done.result() == [0, 1]
        assert cluster.pids == pids

    def test_from_another_thread(self, cluster, start):
        run = start(lambda rank: time.sleep(600))
        threading.Timer(0.2, run.stop).start()
        with pytest.raises(RunStopped):
            run.result(STOP_S)

    def test_from_on_report(self, cluster):
        """The thread that calls back is the cluster's own."""
        runs = []
        ready = threading.Event()

        def stop(report):
            ready.wait(5)
            runs[0].stop()

        runs.append(cluster.submit(lambda rank: rank.report(a=1) or time.sleep(600), on_report=stop))
        ready.set()
        with pytest.raises(RunStopped):
            runs[0].result(STOP_S + 1)

    def test_cancel_is_stop(self, cluster, start):
        run = start(lambda rank: time.sleep(600))
        assert run.cancel() is True
        with pytest.raises(RunStopped):
            run.result(STOP_S)
        assert run.cancel() is False

    def test_does_not_reach_the_next_run(self, cluster):
        """A stop that comes as the run ends: the run after it must not feel it."""
        for i in range(30):
            run = cluster.submit(lambda rank: time.sleep(0.003))
            after = cluster.submit(lambda rank, i: time.sleep(0.01) or i, i)
            time.sleep(0.0003 * i)
            run.stop()
            assert after.result(30) == [i, i]
