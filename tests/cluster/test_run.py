"""What run and submit do when nothing goes wrong: values, arguments, output, reports, handles, threads."""

import asyncio
import concurrent.futures
import itertools
import os
import random
import subprocess
import sys
import threading
import time
import types
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tplab import Cluster
from tplab.cluster import ClusterError, Provenance, RankError, Report, Run, RunStopped, launch_phases

pytestmark = pytest.mark.timeout(60)


class TestEveryWorldSize:
    def test_values_come_in_rank_order(self, sized):
        """Also when the last rank answers first."""

        def late(rank):
            time.sleep(0.1 * (rank.world_size - 1 - rank.index))
            return rank.index, rank.world_size

        n = sized.num_ranks
        assert sized.run(late, timeout=20) == [(i, n) for i in range(n)]

    def test_what_a_rank_is(self, sized):
        def describe(rank):
            return {
                "group": isinstance(rank.group, dist.ProcessGroup),
                "default": rank.group is dist.group.WORLD,
                "index": dist.get_rank() == rank.index == dist.get_rank(rank.group),
                "world_size": dist.get_world_size() == rank.world_size == dist.get_world_size(rank.group),
                "backend": dist.get_backend(),
                "device": rank.device,
            }

        for view in sized.run(describe, timeout=20):
            assert view.pop("backend") == sized.backend == "gloo"
            assert view.pop("device") == torch.device("cpu")
            assert all(view.values()), view

    @pytest.mark.parametrize("explicit", [False, True], ids=["default group", "rank.group"])
    def test_collectives(self, sized, explicit):
        def exchange(rank, explicit):
            group = rank.group if explicit else None
            mine = torch.tensor([rank.index + 1.0, 10.0**rank.index])
            summed, first = mine.clone(), mine.clone()
            dist.all_reduce(summed, group=group)
            dist.broadcast(first, src=0, group=group)
            gathered = [torch.empty(2) for _ in range(rank.world_size)]
            dist.all_gather(gathered, mine, group=group)
            return summed.tolist(), first.tolist(), torch.stack(gathered).tolist()

        n = sized.num_ranks
        own = [[i + 1.0, 10.0**i] for i in range(n)]
        expected = ([sum(column) for column in zip(*own, strict=True)], own[0], own)
        assert sized.run(exchange, explicit, timeout=20) == [expected] * n

    def test_point_to_point_ring(self, sized):
        def ring(rank):
            got = torch.tensor([rank.index])
            if rank.world_size > 1:
                to, source = (rank.index + 1) % rank.world_size, (rank.index - 1) % rank.world_size
                sent = dist.isend(torch.tensor([rank.index]), to)
                dist.recv(got, source)
                sent.wait()
            return got.item()

        n = sized.num_ranks
        assert sized.run(ring, timeout=20) == [(i - 1) % n for i in range(n)]

    def test_processes_stay(self, sized):
        """One process per rank, none of them the kernel, the same ones from run to run."""
        pids = sized.run(lambda rank: os.getpid(), timeout=20)
        assert len({*pids, os.getpid()}) == sized.num_ranks + 1
        assert sized.run(lambda rank: os.getpid(), timeout=20) == pids
        assert sized.pids == tuple(pids)

    def test_store_lives_between_runs(self, sized):
        def keep(rank):
            rank.store["weights"] = torch.full((2,), float(rank.index))

        def use(rank):
            return rank.store["weights"].tolist()

        assert sized.run(keep, timeout=20) == [None] * sized.num_ranks
        assert sized.run(use, timeout=20) == [[float(i)] * 2 for i in range(sized.num_ranks)]

    def test_launch_is_measured(self, sized):
        sized.start()
        launch = sized.launches[-1]
        assert sorted(launch) == list(range(sized.num_ranks))
        for phases in launch.values():
            assert all(seconds >= 0 for seconds in phases.values())
            assert 0 < sum(phases.values()) < 120
        frame = launch_phases(sized)
        assert frame["phase"].tolist() == ["interpreter", "import torch", "process group"] * sized.num_ranks
        totals = frame.groupby("rank")["seconds"].sum().tolist()
        assert totals == pytest.approx([sum(phases.values()) for phases in launch.values()])
        arrived = frame[frame["phase"] == "process group"].set_index("rank")
        assert arrived["last"].tolist() == (arrived["start_s"] == arrived["start_s"].max()).tolist()
        assert set(frame["backend"]) == {"gloo"}

    def test_provenance(self, sized):
        provenance = sized.provenance
        n = sized.num_ranks
        assert isinstance(provenance, Provenance)
        assert (provenance.num_ranks, provenance.backend, provenance.nccl_version) == (n, "gloo", "")
        assert provenance.torch_version == torch.__version__
        assert provenance.device
        assert provenance.columns()["num_ranks"] == n
        assert sized.badge == f"LIVE gloo · {n} rank{'s' if n > 1 else ''}"


@pytest.mark.timeout(120)
def test_sixteen_ranks(assert_works, assert_gone):
    with Cluster(16, "gloo", start_timeout=110) as cluster:
        assert_works(cluster.start())
        assert cluster.run(lambda rank: rank.index, timeout=20) == list(range(16))
        pids = cluster.pids
        assert len(set(pids)) == 16
    assert_gone(pids)


def module_level(rank, x=2):
    return rank.index * x + _helper(rank)


def _helper(rank):
    return 100 * rank.world_size


class Scale:
    """A callable object, with state."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, rank, x=1):
        return rank.index * self.factor * x

    def method(self, rank):
        return self.factor + rank.index


class TestFunctions:
    """Whatever cloudpickle can carry."""

    def test_lambda(self, cluster2):
        assert cluster2.run(lambda rank: rank.index + 1) == [1, 2]

    def test_closure(self, cluster2):
        offset = 40

        def inner(rank):
            return offset + rank.index

        assert cluster2.run(inner) == [40, 41]

    def test_closure_is_taken_at_the_call(self, cluster2):
        """What the caller changes afterwards does not reach a run already submitted."""
        values = [1]

        def inner(rank):
            return list(values)

        first = cluster2.submit(inner)
        values.append(2)
        assert first.result(20) == [[1], [1]]
        assert cluster2.run(inner) == [[1, 2]] * 2

    def test_module_level_function_with_a_helper(self, cluster2):
        assert cluster2.run(module_level) == [200, 202]

    def test_partial(self, cluster2):
        assert cluster2.run(partial(module_level, x=5)) == [200, 205]

    def test_partial_of_a_lambda(self, cluster2):
        assert cluster2.run(partial(lambda rank, a, b: (rank.index, a, b), b=2), 1) == [(0, 1, 2), (1, 1, 2)]

    def test_callable_object(self, cluster2):
        assert cluster2.run(Scale(3), 2) == [0, 6]

    def test_bound_method(self, cluster2):
        assert cluster2.run(Scale(3).method) == [3, 4]

    def test_recursive(self, cluster2):
        def factorial(rank, n):
            return 1 if n == 0 else n * factorial(rank, n - 1)

        assert cluster2.run(factorial, 5) == [120, 120]

    def test_module_beside_the_caller(self, cluster2, tmp_path, monkeypatch):
        """The ranks import what the kernel can import, also from a folder added after they started."""
        (tmp_path / "beside_the_notebook.py").write_text("def double(x):\n    return 2 * x\n")
        monkeypatch.syspath_prepend(tmp_path)

        def use(rank):
            import beside_the_notebook

            return beside_the_notebook.double(rank.index)

        assert cluster2.run(use) == [0, 2]

    def test_function_from_a_module_that_ranks_cannot_import(self, cluster2):
        """A module that exists only in this process: a clear error, and the ranks stay."""
        module = types.ModuleType("only_in_the_kernel")
        exec("def fn(rank):\n    return 1\n", module.__dict__)
        sys.modules[module.__name__] = module
        pids = cluster2.start().pids
        try:
            with pytest.raises(RankError, match=r"(?s)rank [01].*ModuleNotFoundError.*only_in_the_kernel"):
                cluster2.run(module.fn)
        finally:
            del sys.modules[module.__name__]
        assert cluster2.pids == pids


class Point:
    """A value of a type that only this module defines."""

    def __init__(self, x):
        self.x = x


class TestValues:
    def test_arguments_arrive(self, cluster2):
        args = (1, "two", [3.0, None], {"four": (5,)}, np.arange(3), torch.arange(4), Point(6))

        def look(rank, *got):
            one, two, three, four, array, tensor, point = got
            return one, two, three, four, array.tolist(), tensor.tolist(), point.x

        expected = (1, "two", [3.0, None], {"four": (5,)}, [0, 1, 2], [0, 1, 2, 3], 6)
        assert cluster2.run(look, *args) == [expected] * 2

    def test_each_rank_has_a_copy(self, cluster2):
        shared = torch.zeros(1)

        def add(rank, x):
            x += rank.index + 1
            return x.item()

        assert cluster2.run(add, shared) == [1, 2]
        assert shared.item() == 0

    def test_tensors_come_back(self, cluster2):
        def make(rank):
            return {
                "plain": torch.full((2, 3), float(rank.index)),
                "grad": torch.ones(2, requires_grad=True) * 1,
                "parameter": torch.nn.Parameter(torch.ones(2)),
                "half": torch.ones(2, dtype=torch.bfloat16),
                "view": torch.arange(10)[2:4],
            }

        for index, value in enumerate(cluster2.run(make)):
            assert torch.equal(value["plain"], torch.full((2, 3), float(index)))
            assert torch.equal(value["view"], torch.tensor([2, 3]))
            assert value["half"].dtype is torch.bfloat16
            assert isinstance(value["parameter"], torch.nn.Parameter)

    @pytest.mark.parametrize("num_bytes", [1 << 16, 30_000_000])
    def test_large_both_ways(self, cluster2, num_bytes):
        data = random.Random(num_bytes).randbytes(num_bytes)

        def echo(rank, data):
            return data + bytes([rank.index])

        assert cluster2.run(echo, data, timeout=30) == [data + b"\0", data + b"\1"]

    def test_an_object_of_the_callers_class_is_still_of_that_class(self, cluster2):
        values = cluster2.run(lambda rank: Point(rank.index))
        assert [value.x for value in values] == [0, 1]
        assert all(isinstance(value, Point) for value in values)

    def test_an_exception_can_be_a_value(self, cluster2):
        values = cluster2.run(lambda rank: ValueError(rank.index))
        assert [type(value) for value in values] == [ValueError] * 2

    def test_input_does_not_wait_for_anyone(self, cluster2):
        with pytest.raises(RankError, match="EOFError"):
            cluster2.run(lambda rank: input(), timeout=10)


class TestHandle:
    def test_is_a_future(self, cluster2):
        run = cluster2.submit(lambda rank: rank.index)
        assert isinstance(run, Run)
        assert isinstance(run, concurrent.futures.Future)
        assert run.result(20) == [0, 1]
        assert run.done()
        assert run.exception() is None
        assert run.result() == [0, 1]

    def test_submit_does_not_wait(self, cluster2):
        began = time.monotonic()
        run = cluster2.start().submit(lambda rank: time.sleep(0.6))
        assert time.monotonic() - began < 0.5
        assert not run.done()
        run.result(20)
        assert time.monotonic() - began > 0.55

    def test_times(self, cluster2):
        def sleep(rank):
            time.sleep(0.1 + 0.2 * rank.index)

        run = cluster2.submit(sleep)
        run.result(20)
        assert len(run.rank_s) == 2
        assert 0.1 <= run.rank_s[0] < run.rank_s[1]
        assert 0.3 <= run.rank_s[1] <= run.elapsed_s < 5

    def test_runs_queue(self, cluster2):
        """They run one after the other, in the order of their submission."""

        def span(rank):
            began = time.monotonic()
            time.sleep(0.05)
            return began, time.monotonic()

        runs = [cluster2.submit(span) for _ in range(4)]
        spans = [run.result(20) for run in runs]
        for earlier, later in itertools.pairwise(spans):
            assert max(end for _, end in earlier) <= min(start for start, _ in later)

    def test_timeout_counts_from_the_beginning_of_the_run(self, cluster2):
        """Not from its submission: waiting in the queue costs nothing."""
        first = cluster2.submit(lambda rank: time.sleep(0.8))
        assert cluster2.run(lambda rank: rank.index, timeout=0.5) == [0, 1]
        assert first.done()

    def test_no_timeout(self, cluster2):
        assert cluster2.run(lambda rank: time.sleep(0.1) or rank.index, timeout=None) == [0, 1]

    def test_result_timeout_limits_the_waiting_only(self, cluster2):
        run = cluster2.submit(lambda rank: time.sleep(0.5) or rank.index)
        with pytest.raises(TimeoutError):
            run.result(timeout=0.05)
        assert not run.done()
        assert run.result(20) == [0, 1]

    def test_futures_tools(self, cluster2):
        runs = [cluster2.submit(lambda rank, i: i, i) for i in range(3)]
        done, pending = concurrent.futures.wait(runs, timeout=20)
        assert (len(done), len(pending)) == (3, 0)

        async def await_it():
            return await asyncio.wrap_future(cluster2.submit(lambda rank: rank.index))

        assert asyncio.run(await_it()) == [0, 1]

    def test_done_callback(self, cluster2):
        called = threading.Event()
        run = cluster2.submit(lambda rank: rank.index)
        run.add_done_callback(lambda done: done.result() == [0, 1] and called.set())
        assert called.wait(20)

    def test_waiting_in_a_callback_is_refused(self, cluster2):
        """It would wait for itself."""
        errors = []

        def callback(_):
            try:
                cluster2.run(lambda rank: 1)
            except ClusterError as error:
                errors.append(error)

        cluster2.submit(lambda rank: time.sleep(0.1)).add_done_callback(callback)
        cluster2.run(lambda rank: 1, timeout=10)
        assert len(errors) == 1


class TestDerivedRun:
    """What is made of a run: a handle like the run's own."""

    def test_result_is_made_of_the_run(self, cluster2):
        run = cluster2.submit(lambda rank: rank.index)
        derived = run.map(lambda run: sum(run.result()))
        assert derived.run is run
        assert derived.result(20) == 1
        assert concurrent.futures.wait([derived], timeout=20).done == {derived}
        assert run.map(lambda run: run.result()[1]).result() == 1  # of a run that is over

    def test_partial_is_made_of_the_reports_so_far_also_after_a_stop(self, cluster2):
        arrived = threading.Event()

        def work(rank):
            rank.report(done=rank.index)
            time.sleep(30)

        run = cluster2.submit(work, on_report=lambda report: arrived.set())
        derived = run.map(lambda run: [report.fields["done"] for report in run.reports])
        assert arrived.wait(20)
        assert set(derived.partial()) <= {0, 1}
        with pytest.raises(TimeoutError):
            derived.result(timeout=0.05)
        assert not derived.done()
        derived.stop()
        with pytest.raises(RunStopped):
            derived.result(20)
        assert isinstance(derived.exception(20), RunStopped)
        assert derived.partial()

    def test_faults(self, cluster2):
        def build(run):
            raise KeyError("made of nothing")

        with pytest.raises(RankError, match="division by zero"):
            cluster2.submit(lambda rank: 1 / 0).map(len).result(20)
        with pytest.raises(KeyError, match="made of nothing"):
            cluster2.submit(lambda rank: 1).map(build).result(20)


class TestReports:
    def test_order(self, cluster2):
        def work(rank):
            for step in range(5):
                rank.report(phase="work", done=step, value=torch.tensor(float(step)))
            return rank.index

        run = cluster2.submit(work)
        assert run.result(20) == [0, 1]
        assert len(run.reports) == 10
        for index in (0, 1):
            mine = [report for report in run.reports if report.rank == index]
            assert all(isinstance(report, Report) for report in mine)
            assert [report.fields["done"] for report in mine] == list(range(5))
            assert [report.fields["value"].item() for report in mine] == list(range(5))

    def test_arrive_while_the_run_goes_on(self, cluster2):
        arrived = threading.Event()

        def work(rank):
            rank.report(done=1)
            time.sleep(1.0)

        run = cluster2.submit(work, on_report=lambda report: arrived.set())
        assert arrived.wait(20)
        assert not run.done()
        run.result(20)

    def test_on_report_that_raises_does_not_spoil_the_run(self, cluster2):
        def broken(report):
            raise ValueError("in the callback")

        run = cluster2.submit(lambda rank: rank.report(a=rank.index) or 7, on_report=broken)
        assert run.result(20) == [7, 7]
        assert sorted(report.fields["a"] for report in run.reports) == [0, 1]

    def test_belong_to_their_run(self, cluster2):
        runs = [cluster2.submit(lambda rank, i: rank.report(run=i), i) for i in range(3)]
        for i, run in enumerate(runs):
            run.result(20)
            assert [report.fields for report in run.reports] == [{"run": i}] * 2


def lines_of(text, rank):
    prefix = f"[rank {rank}] "
    return [line.removeprefix(prefix) for line in text.splitlines() if line.startswith(prefix)]


class TestOutput:
    @pytest.fixture(autouse=True)
    def _no_leftovers(self, cluster2, capsys):
        cluster2.run(lambda rank: None)
        capsys.readouterr()

    def test_print(self, cluster2, capsys):
        def talk(rank):
            for i in range(3):
                print("line", i, "of", rank.index)

        run = cluster2.submit(talk)
        run.result(20)
        out, err = capsys.readouterr()
        for index in (0, 1):
            expected = [f"line {i} of {index}" for i in range(3)]
            assert lines_of(out, index) == expected
            assert lines_of("\n".join(run.output), index) == expected
        assert len(out.splitlines()) == 6
        assert err == ""

    def test_stderr(self, cluster2, capsys):
        cluster2.run(lambda rank: print("complaint", file=sys.stderr))
        out, err = capsys.readouterr()
        assert out == ""
        assert sorted(err.splitlines()) == ["[rank 0] complaint", "[rank 1] complaint"]

    def test_c_level(self, cluster2, capsys):
        """What C and C++ write, past sys.stdout."""

        def talk(rank):
            os.write(1, b"from fd 1\n")
            os.write(2, b"from fd 2\n")

        cluster2.run(talk)
        out, err = capsys.readouterr()
        assert sorted(out.splitlines()) == ["[rank 0] from fd 1", "[rank 1] from fd 1"]
        assert sorted(err.splitlines()) == ["[rank 0] from fd 2", "[rank 1] from fd 2"]

    def test_of_a_program_that_the_rank_runs(self, cluster2, capsys):
        cluster2.run(lambda rank: subprocess.run(["echo", "hello"], check=True) and None)
        assert sorted(capsys.readouterr().out.splitlines()) == ["[rank 0] hello", "[rank 1] hello"]

    def test_streams_while_the_run_goes_on(self, cluster2):
        lines, arrived = [], threading.Event()

        def talk(rank):
            print("early")
            time.sleep(1.0)
            print("late")

        run = cluster2.submit(talk, on_output=lambda line: (lines.append(line), arrived.set()))
        assert arrived.wait(20)
        assert not run.done()
        assert set(lines) <= {"[rank 0] early", "[rank 1] early"}
        run.result(20)
        assert sorted(lines) == sorted(f"[rank {i}] {word}" for i in (0, 1) for word in ("early", "late"))

    def test_on_output_replaces_printing(self, cluster2, capsys):
        lines = []
        cluster2.submit(lambda rank: print("kept"), on_output=lines.append).result(20)
        assert sorted(lines) == ["[rank 0] kept", "[rank 1] kept"]
        assert capsys.readouterr().out == ""

    def test_one_line_far_larger_than_a_pipe(self, cluster2, capsys):
        """300 kB before the first newline: the rank must not block."""

        def shout(rank):
            os.write(1, b"<")
            sys.stdout.write(chr(ord("a") + rank.index) * 300_000 + ">\n")

        cluster2.run(shout, timeout=20)
        out = capsys.readouterr().out
        assert lines_of(out, 0) == ["<" + "a" * 300_000 + ">"]
        assert lines_of(out, 1) == ["<" + "b" * 300_000 + ">"]

    def test_many_lines_stay_whole(self, cluster2, capsys):
        def chatter(rank):
            for i in range(5000):
                print(f"{i} " + "x" * 60)

        cluster2.run(chatter, timeout=20)
        out = capsys.readouterr().out
        for index in (0, 1):
            assert lines_of(out, index) == [f"{i} " + "x" * 60 for i in range(5000)]

    def test_last_line_without_newline(self, cluster2, capsys):
        """It is there before run returns, and does not run into the next run's first line."""
        cluster2.run(lambda rank: print("unfinished", end=""))
        first = capsys.readouterr().out
        cluster2.run(lambda rank: print("next"))
        second = capsys.readouterr().out
        assert sorted(first.splitlines()) == ["[rank 0] unfinished", "[rank 1] unfinished"]
        assert sorted(second.splitlines()) == ["[rank 0] next", "[rank 1] next"]

    def test_large_output_without_any_newline(self, cluster2, capsys):
        cluster2.run(lambda rank: print("y" * 200_000, end=""), timeout=20)
        cluster2.run(lambda rank: print(), timeout=20)  # for an implementation that needs the newline
        assert capsys.readouterr().out.count("y") == 400_000

    def test_progress_bar(self, cluster2, capsys):
        """A line rewritten after carriage returns is one line: its last state."""

        def bar(rank):
            for percent in (0, 50, 100):
                sys.stderr.write(f"\r{percent}%")
            sys.stderr.write("\n")

        cluster2.run(bar)
        assert sorted(capsys.readouterr().err.splitlines()) == ["[rank 0] 100%", "[rank 1] 100%"]

    def test_bytes_that_are_no_text(self, cluster2, capsys):
        cluster2.run(lambda rank: os.write(1, b"caf\xc3\xa9 \xff\n") and None)
        lines = [f"[rank {i}] café \N{REPLACEMENT CHARACTER}" for i in (0, 1)]
        assert sorted(capsys.readouterr().out.splitlines()) == lines

    def test_belongs_to_its_run(self, cluster2):
        runs = [cluster2.submit(lambda rank, i: print("run", i), i) for i in range(3)]
        for i, run in enumerate(runs):
            run.result(20)
            assert sorted(run.output) == [f"[rank 0] run {i}", f"[rank 1] run {i}"]


class TestThreads:
    @pytest.mark.parametrize("num_threads", [2, 8])
    def test_right_answers(self, cluster2, num_threads):
        """Every thread gets its own answers, made by its own collectives."""

        def work(rank, thread, i):
            x = torch.tensor([float(thread * 1000 + i) * (rank.index + 1)])
            dist.all_reduce(x)
            print(thread, i)
            return thread, i, x.item()

        wrong, barrier = [], threading.Barrier(num_threads)

        def use(thread):
            barrier.wait()
            for i in range(10):
                run = cluster2.submit(work, thread, i)
                values = run.result(30)
                if values != [(thread, i, 3.0 * (thread * 1000 + i))] * 2:
                    wrong.append((thread, i, values))
                if sorted(run.output) != [f"[rank 0] {thread} {i}", f"[rank 1] {thread} {i}"]:
                    wrong.append((thread, i, list(run.output)))

        threads = [threading.Thread(target=use, args=(t,)) for t in range(num_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
        assert not any(thread.is_alive() for thread in threads)
        assert not wrong

    def test_one_threads_fault_is_not_anothers(self, cluster2):
        """Of eight threads every other one raises: each gets its own outcome, and the ranks stay."""

        def work(rank, thread):
            if thread % 2:
                raise ValueError(f"thread {thread}")
            return thread

        outcomes = {}

        def use(thread):
            try:
                outcomes[thread] = cluster2.run(work, thread, timeout=30)
            except RankError as error:
                outcomes[thread] = str(error.__cause__)

        pids = cluster2.start().pids
        threads = [threading.Thread(target=use, args=(t,)) for t in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
        assert outcomes == {t: f"thread {t}" if t % 2 else [t, t] for t in range(8)}
        assert cluster2.pids == pids


def test_restart_replaces_the_ranks(clusters, assert_works, assert_gone):
    cluster = clusters(1)
    cluster.run(lambda rank: rank.store.update(kept=1))
    before = cluster.pids
    assert cluster.restart() is cluster
    assert_gone(before)
    assert not set(before) & set(cluster.pids)
    assert cluster.run(lambda rank: dict(rank.store)) == [{}]
    assert_works(cluster)


def test_repr_says_what_it_is(cluster2):
    cluster2.start()
    assert "2" in repr(cluster2)
    assert "gloo" in repr(cluster2)
