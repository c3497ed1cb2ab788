"""Nothing ends a cluster for good: whatever comes from a rank, or fails in the kernel, is one error of one run."""

import os
import random
import sys
import threading
import time
from collections import Counter
from contextlib import suppress

import psutil
import pytest
import torch
import torch.distributed as dist

from tplab import Cluster
from tplab.cluster import ClusterClosed, ClusterError, RankError, channel
from tplab.cluster.verdict import Evidence, judge

pytestmark = pytest.mark.timeout(90)


class Raises:
    """Cannot be rebuilt: whatever it is given is raised."""

    def __init__(self, error_type):
        self.error_type = error_type

    def __reduce__(self):
        return _raise, (self.error_type,)


def _raise(error_type):
    raise error_type("while it was rebuilt")


class RaisesWhenPacked:
    def __init__(self, error_type):
        self.error_type = error_type

    def __reduce__(self):
        raise self.error_type("while it was packed")


class WickedError(Exception):
    def __reduce__(self):
        return _raise, (SystemExit,)


class WorseError(Exception):
    def __reduce__(self):
        raise SystemExit(4)


BASE_ERRORS = [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException, RecursionError, MemoryError]


@pytest.fixture
def check(cluster2):
    """Run a function that fails on a rank: the error; the next run works, with the same ranks."""

    def run(fn, *args, on=cluster2):
        pids = on.start().pids
        with pytest.raises(RankError) as caught:
            on.run(fn, *args, timeout=20)
        assert on.run(lambda rank: rank.index) == [0, 1]
        assert on.pids == pids, "the ranks did nothing wrong"
        return caught.value

    return run


class TestPickles:
    @pytest.mark.parametrize("error_type", BASE_ERRORS)
    def test_value_that_raises_here(self, check, error_type):
        error = check(lambda rank: Raises(error_type) if rank.index else 0)
        assert error.rank == 1
        assert "rank 1 returned cannot be rebuilt here" in str(error)
        assert error_type.__name__ in str(error)

    @pytest.mark.parametrize("error_type", BASE_ERRORS)
    def test_value_that_raises_there(self, check, error_type):
        assert check(lambda rank: RaisesWhenPacked(error_type) if rank.index else 0).rank == 1

    @pytest.mark.parametrize("error_type", BASE_ERRORS)
    def test_argument_that_raises_there(self, check, error_type):
        check(lambda rank, value: value, Raises(error_type))

    @pytest.mark.parametrize("error_type", [WickedError, WorseError])
    def test_exception_that_raises(self, check, error_type):
        def fail(rank):
            raise error_type("the message")

        error = check(fail)
        assert "the message" in str(error)
        assert error.__cause__ is None

    @pytest.mark.parametrize("error_type", BASE_ERRORS)
    def test_report_that_raises_here(self, cluster2, error_type):
        def report(rank):
            rank.report(x=Raises(error_type))
            rank.report(x=1)
            return rank.index

        run = cluster2.submit(report)
        assert run.result() == [0, 1]
        of_first = [report.fields["x"] for report in run.reports if report.rank == 0]
        assert len(run.reports) == 4
        assert type(of_first[0]) is RankError
        assert error_type.__name__ in str(of_first[0])
        assert of_first[1] == 1


def write_to_sockets(data):
    """To each that this process has: a library that closes "its" descriptor twice writes to whatever got the number."""
    for name in os.listdir("/proc/self/fd"):
        if os.path.lexists(f"/proc/self/fd/{name}") and os.readlink(f"/proc/self/fd/{name}").startswith("socket"):
            with suppress(OSError):  # it listens
                os.write(int(name), data)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="finds sockets in /proc")
class TestStrayBytes:
    @pytest.mark.parametrize(
        "data",
        [
            b"\0\0\0\0\0\0\0\x10this is no pickl",
            b"x",
            b"x" * 200_000,
            channel._HEADER.pack(b"tplb", 1, 5) + b"wrong",
            channel._HEADER.pack(b"tplb", 1, 1 << 60),
            channel._HEADER.pack(b"tplb", 0, 1),
            channel._HEADER.pack(b"tplb", 1 << 30, 1),
        ],
        ids=lambda data: repr(data[:20]),
    )
    def test_on_the_socket(self, cluster, assert_works, data):
        def write(rank):
            if rank.index == 1:
                write_to_sockets(data)
            time.sleep(0.2)

        with pytest.raises(RankError, match="rank 1 of 2 sent what is no message") as caught:
            cluster.run(write, timeout=20)
        assert caught.value.rank == 1
        assert_works(cluster)

    def test_in_the_midst_of_a_message(self, cluster, assert_works):
        def write(rank):
            rank.report(data=bytes(100))
            write_to_sockets(channel.encode("half of it")[0][:20])
            return 1

        with pytest.raises(RankError, match="no message"):
            cluster.run(write, timeout=20)
        assert_works(cluster)


class TestNoMemory:
    """For large parts only; that of small ones cannot be planted."""

    @pytest.fixture
    def no_room(self, monkeypatch):
        room = channel.SupervisorChannel._room

        def tight(self, length):
            if length > 1_000_000:
                try:
                    raise MemoryError
                except MemoryError:
                    if not self._parts:
                        raise channel.ChannelBroken("no memory") from None
                    return channel._Lost()
            return room(self, length)

        monkeypatch.setattr(channel.SupervisorChannel, "_room", tight)

    def test_for_the_value_of_a_rank(self, check, no_room):
        error = check(lambda rank: bytes(5_000_000 if rank.index else 5))
        assert error.rank == 1
        assert "short of memory" in str(error)

    def test_for_a_real_limit(self, script):
        running = script(
            """
import json, resource, psutil
from tplab import Cluster

with Cluster(2, "gloo") as cluster:
    cluster.start()
    limit = psutil.Process().memory_info().vms + (300 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    for fn in (lambda rank: bytes(200_000_000), lambda rank: rank.index):
        try:
            print(json.dumps(cluster.run(fn, timeout=30)), flush=True)
        except Exception as error:
            print(json.dumps([type(error).__name__, getattr(error, "rank", None), str(error)]), flush=True)
"""
        )
        name, rank, text = running.read()
        assert name == "RankError"
        assert rank in (0, 1)
        assert "memory" in text
        assert running.read() == [0, 1]
        assert running.finish()[0] == 0


class TestOwnFailure:
    def test_in_a_run(self, cluster, monkeypatch, assert_works, assert_gone, caplog):
        """The run that was under way learns of it, and the next one works."""
        supervisor = cluster._supervisor
        poll, failed = supervisor.engine.poll, []

        def fail_once(timeout):
            if not failed and supervisor.state.value == "running":
                failed.append(True)
                raise RuntimeError("planted")
            return poll(timeout)

        monkeypatch.setattr(supervisor.engine, "poll", fail_once)
        pids = cluster.pids
        with pytest.raises(ClusterError, match=r"kernel's side .* failed in <lambda>\(\): RuntimeError\('planted'\)"):
            cluster.run(lambda rank: time.sleep(0.1))
        assert "planted" in caplog.text
        assert_gone(pids)
        assert_works(cluster)

    def test_in_the_start(self, monkeypatch, assert_works):
        from tplab.cluster.local import LocalEngine

        spawn, failed = LocalEngine.spawn, []

        def fail_once(self):
            if not failed:
                failed.append(True)
                raise RuntimeError("planted")
            spawn(self)

        monkeypatch.setattr(LocalEngine, "spawn", fail_once)
        with Cluster(2, "gloo") as cluster:
            assert_works(cluster)

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_again_and_again(self, monkeypatch):
        """Callers do not wait for ever."""
        cluster = Cluster(2, "gloo").start()

        def fail(timeout):
            raise RuntimeError("planted")

        monkeypatch.setattr(cluster._supervisor.engine, "poll", fail)
        with pytest.raises(ClusterError, match="planted"):
            cluster.run(lambda rank: 1)
        cluster._supervisor.thread.join(5)
        assert cluster.closed
        with pytest.raises(ClusterClosed):
            cluster.run(lambda rank: 1)


def test_a_flood_that_ends_a_rank_is_named():
    said = "[rank 1]   what():  [enforce fail at listener.cc:63] false. accept: Too many open files"
    output = [said, *["[rank 1] a line of a traceback"] * 50]
    text = str(judge(Evidence("work", 2, 60.0, deaths={1: -6}), output))
    assert "rank 1 of 2 was killed by SIGABRT in work(): more connections came to a port of it" in text
    assert "another program or user" in text
    assert "more connections" not in str(judge(Evidence("work", 2, 60.0, deaths={0: -6}), output))


FAULTS = {
    "raise": lambda rank: 1 // rank.index,
    "exit": lambda rank: sys.exit(3),
    "killed": lambda rank: os.kill(os.getpid(), 9) if rank.index else dist.barrier(),
    "left": lambda rank: os._exit(5) if rank.index else time.sleep(5),
    "hang": lambda rank: dist.barrier() if rank.index else None,
    "value": lambda rank: Raises(SystemExit),
    "large": lambda rank: bytes(3_000_000),
    "fork": lambda rank: os.fork() and None,
    "children": lambda rank: (__import__("subprocess").Popen(["sleep", "60"], start_new_session=True, env={}), 1 // 0),
    "thread": lambda rank: (threading.Thread(target=time.sleep, args=(60,), daemon=True).start(), 1 // rank.index),
    "group": lambda rank: (rank.mesh(tp=2), dist.new_group([0, 1]), 1 // rank.index),
    "shared memory": lambda rank: (torch.zeros(1000).share_memory_(), os._exit(1)),
    "stray": lambda rank: write_to_sockets(b"x"),
}


def footprint():
    """Of this process and all below it, and of what ranks leave in shared memory."""
    me = psutil.Process()
    return {
        "processes": len(me.children(recursive=True)),
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "sockets": len(me.net_connections("all")),
        "shared memory": len(os.listdir("/dev/shm")),
        "MiB": me.memory_info().rss >> 20,
    }


def soak(names):
    """Faulty runs; the footprint after a tenth of them and after all, and how they ended."""
    ended = Counter()
    footprints = []
    with Cluster(2, "gloo") as cluster:
        for number, name in enumerate(names):
            run = cluster.submit(FAULTS[name], timeout=0.5)
            error = run.exception()
            ended[name, type(error).__name__ if error else "value"] += 1
            assert error is None or isinstance(error, ClusterError), repr(error)
            assert cluster.run(lambda rank: rank.index, timeout=30) == [0, 1], f"after {name}"
            if number in (len(names) // 10, len(names) - 1):
                cluster.restart()  # what runs have started lives as long as the ranks
                footprints.append(footprint())
    return *footprints, ended


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts in /proc")
class TestSoak:
    def test_some(self):
        names = [*FAULTS]
        random.Random(0).shuffle(names)
        self.check(*soak(names))

    @pytest.mark.soak
    @pytest.mark.timeout(3600)
    def test_five_hundred(self):
        early, late, ended = soak(random.Random(0).choices([*FAULTS], k=500))
        print(f"\nafter 50 runs: {early}\nafter 500 runs: {late}\n{dict(ended)}")
        self.check(early, late, ended)

    def check(self, early, late, ended):
        assert late.pop("MiB") < early.pop("MiB") + 30
        assert late == early
