"""What a thread says after its run is over belongs to that run; and nothing of a run is held after it."""

import gc
import os
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

from tplab.cluster import ClusterError
from tplab.cluster.late import Ledger

pytestmark = pytest.mark.timeout(60)


def go_on(rank):
    """A thread that reports and prints until the next run tells it to stop."""
    stop = rank.store["stop"] = threading.Event()

    def talk():
        i = 0
        while not stop.wait(0.01):
            i += 1
            rank.report(of="A", i=i)
            print("a line", "of A", flush=True)
            print("an error of A", file=sys.stderr)

    threading.Thread(target=talk, daemon=True).start()
    time.sleep(0.05)


def speak(rank):
    time.sleep(0.3)
    print("a line of B")
    rank.report(of="B")
    rank.store.pop("stop").set()


def test_reports_and_lines_carry_their_run(cluster2, capsys):
    first = cluster2.submit(go_on)
    first.result()
    reports, lines = len(first.reports), len(first.output)
    second = cluster2.submit(speak)
    second.result()
    assert [report.fields["of"] for report in second.reports] == ["B", "B"]
    assert sorted(second.output) == ["[rank 0] a line of B", "[rank 1] a line of B"]
    assert len(first.reports) > reports + 10, "they are not lost either"
    assert len(first.output) > lines + 10
    assert all("of A" in line for line in first.output)
    assert {report.fields["of"] for report in first.reports} == {"A"}
    assert {line for line in capsys.readouterr().out.splitlines() if "rank 0" in line} == {
        "[rank 0] a line of A",
        "[rank 0] a line of B",
    }


def test_nobody_is_called_after_the_end(cluster2):
    called = []
    first = cluster2.submit(go_on, on_report=called.append, on_output=called.append)
    first.result()
    time.sleep(0.1)
    count = len(called)
    cluster2.run(speak)
    assert len(called) <= count + 2, "nothing but what was under way when it ended"
    assert len(first.reports) > 20


def test_what_a_thread_leaves_without_a_newline(cluster2, eventually):
    def leave(rank):
        def talk():
            time.sleep(0.2)
            print("its last words", end="")

        threading.Thread(target=talk, daemon=True).start()

    run = cluster2.submit(leave)
    run.result()
    assert eventually(lambda: sorted(run.output) == ["[rank 0] its last words", "[rank 1] its last words"])


def test_of_a_run_that_nobody_holds(cluster2, capsys):
    """Nobody could ask for it: it goes nowhere, and not into the next run."""
    cluster2.run(go_on)
    second = cluster2.submit(speak)
    second.result()
    assert len(second.reports) == 2
    assert len(second.output) == 2


def test_an_object_of_an_earlier_run_reports_for_the_run_that_calls_it(cluster2):
    """On the main thread there is no doubt."""

    def keep(rank):
        rank.store["kept"] = rank

    def use(rank):
        rank.store.pop("kept").report(now=True)

    cluster2.run(keep)
    run = cluster2.submit(use)
    run.result()
    assert len(run.reports) == 2


def test_threads_of_the_run_itself_are_its_own(cluster2):
    def spread(rank):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda i: (rank.report(i=i), print("line", i)), range(20)))

    run = cluster2.submit(spread)
    run.result()
    assert len(run.reports) == 40
    assert len(run.output) == 40


class TestLedger:
    def test_a_thread_that_was_there_before_belongs_to_the_run_before(self):
        ledger, stop, seen = Ledger(), threading.Event(), []
        ledger.ignore(threading.enumerate())

        def look():
            stop.wait(10)
            seen.append(ledger.late_run())

        threads = []
        for run_id in (3, 4):
            threads.append(threading.Thread(target=look))
            threads[-1].start()
            ledger.close_run(run_id)
        fresh = threading.Thread(target=look)
        fresh.start()
        stop.set()
        for thread in [*threads, fresh]:
            thread.join()
        assert sorted(seen, key=str) == [3, 4, None]
        assert ledger.late_run() is None


class TestRelease:
    def test_the_kernel_holds_no_answer(self, cluster2):
        run = cluster2.submit(lambda rank: torch.zeros(1 << 24))
        run.result()
        answers = weakref.ref(run.result()[0])
        del run
        gc.collect()
        assert answers() is None

    @pytest.mark.parametrize("num_bytes", [100_000_000])
    def test_memory_on_both_sides(self, cluster2, num_bytes):
        def size(rank, data=b""):
            return os.getpid()

        def rss(process):
            return process.memory_info().rss

        pids = cluster2.run(size)
        processes = [psutil.Process(pid) for pid in (os.getpid(), *pids)]
        before = [rss(process) for process in processes]
        cluster2.run(size, bytes(num_bytes))
        kept = cluster2.submit(lambda rank, n: bytes(n), num_bytes)
        kept.result()
        del kept
        time.sleep(0.2)
        grown = [rss(process) - was for process, was in zip(processes, before, strict=True)]
        assert max(grown) < num_bytes / 2, grown

    def test_a_handle_does_not_hold_its_argument(self, cluster2):
        run = cluster2.submit(lambda rank, data: len(data), bytes(10_000_000))
        assert run.result() == [10_000_000] * 2
        assert not run.payload


class TestForkedRank:
    def test_small_and_large_answers(self, cluster2):
        def small(rank):
            if os.fork() == 0:
                return f"copy of {rank.index}"
            time.sleep(0.3)
            return f"rank {rank.index}"

        def large(rank):
            os.fork()
            return bytes(8_000_000)

        run = cluster2.submit(small)
        assert run.result() == ["rank 0", "rank 1"]
        assert any("forked copy" in line for line in run.output)
        assert [len(value) for value in cluster2.run(large)] == [8_000_000] * 2
        assert cluster2.run(lambda rank: rank.index) == [0, 1]

    def test_no_copy_stays(self, cluster2):
        def fork(rank):
            pid = os.fork()
            if pid:
                return pid
            return None

        copies = cluster2.run(fork)
        for pid in copies:
            psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=5)
        assert not [pid for pid in copies if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]

    @pytest.mark.parametrize(("end", "code"), [("raise", 1), ("exit", 7), ("exit text", 1), ("return", 0)])
    def test_how_a_copy_ends(self, cluster2, end, code):
        def fork(rank):
            pid = os.fork()
            if pid == 0:
                if end == "raise":
                    raise ValueError("in the copy")
                if end == "exit":
                    sys.exit(7)
                if end == "exit text":
                    sys.exit("no")
                return None
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        run = cluster2.submit(fork)
        assert run.result() == [code, code]
        if end == "raise":
            assert any("ValueError: in the copy" in line for line in run.output)

    def test_a_copy_cannot_report_or_make_groups(self, cluster2):
        def fork(rank):
            pid = os.fork()
            if pid == 0:
                try:
                    rank.report(x=1)
                except RuntimeError as error:
                    os._exit(3 if "forked" in str(error) else 4)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        run = cluster2.submit(fork)
        assert run.result() == [3, 3]
        assert run.reports == []

    def test_multiprocessing_workers_still_work(self, cluster2):
        import multiprocessing

        def workers(rank):
            context = multiprocessing.get_context("fork")
            queue = context.Queue()
            child = context.Process(target=queue.put, args=(rank.index + 10,))
            child.start()
            got = queue.get(timeout=10)
            child.join()
            return got, child.exitcode

        assert cluster2.run(workers) == [(10, 0), (11, 0)]


class TestForkedKernel:
    @pytest.mark.parametrize("call", ["run", "submit", "start", "restart", "watch", "result"])
    def test_is_refused_at_once(self, cluster2, call):
        pending = cluster2.submit(lambda rank: time.sleep(0.3))
        calls = {
            "run": lambda: cluster2.run(lambda rank: 1),
            "submit": lambda: cluster2.submit(lambda rank: 1),
            "start": cluster2.start,
            "restart": cluster2.restart,
            "watch": lambda: cluster2.watch(print),
            "result": pending.result,
        }
        pid = os.fork()
        if pid == 0:
            try:
                calls[call]()
            except ClusterError as error:
                os._exit(0 if "forked" in str(error) else 2)
            except BaseException:
                os._exit(3)
            os._exit(4)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            time.sleep(0.01)
        else:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            pytest.fail(f"{call} hangs in a forked copy of the kernel")
        assert os.waitstatus_to_exitcode(status) == 0
        assert pending.result() == [None, None]
        assert cluster2.run(lambda rank: rank.index) == [0, 1]
