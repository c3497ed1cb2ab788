"""In real Jupyter kernels: cells, tracebacks, interrupts, output under the right cell, and kernels that end."""

import os
import signal
import time

import pytest

from tests.kernels import Kernel

pytestmark = pytest.mark.timeout(90)

SOON_S = 3.0
AFTER_KILL_S = 2.0


SETUP = """
import os, sys, time
import tplab
from tplab import Cluster
cluster = Cluster(2, "gloo")

def who(rank):
    return os.getpid()

def total(rank):
    import torch
    x = torch.tensor([rank.index + 1.0])
    torch.distributed.all_reduce(x)
    return x.item()

def hang_up(rank):
    import torch
    rank.report(begun=True)
    if rank.index == 0:
        torch.distributed.all_reduce(torch.ones(1))
    else:
        time.sleep(600)
"""


@pytest.fixture(scope="module")
def shared_kernel():
    kernel = Kernel.start()
    kernel(SETUP)
    yield kernel
    kernel.end()


@pytest.fixture
def kernel(shared_kernel):
    """One kernel, with a cluster of two ranks that are ready, for the tests that leave it running."""
    shared_kernel("cluster.start().state.value")
    return shared_kernel


@pytest.fixture
def own_kernel():
    """A kernel that the test may end."""
    kernel = Kernel.start()
    kernel(SETUP)
    yield kernel
    kernel.end()


class TestCells:
    def test_function_defined_in_a_cell(self, kernel):
        kernel(
            "offset = 40\ndef helper(i):\n    return offset + i\ndef in_a_cell(rank):\n    return helper(rank.index)"
        )
        assert kernel("cluster.run(in_a_cell)") == [40, 41]
        kernel("offset = 50")
        assert kernel("cluster.run(in_a_cell)") == [50, 51]

    def test_redefined_function(self, kernel):
        """The newest definition runs, also on ranks that are warm."""
        for version in (1, 2):
            kernel(f"def again(rank):\n    return {version}")
            assert kernel("cluster.run(again)") == [version] * 2

    def test_class_defined_in_a_cell(self, kernel):
        kernel(
            "from dataclasses import dataclass\n@dataclass\nclass Cell:\n    x: int\n"
            "def make(rank, c):\n    return Cell(c.x + rank.index)"
        )
        assert kernel("[(type(v) is Cell, v.x) for v in cluster.run(make, Cell(3))]") == [(True, 3), (True, 4)]

    def test_collective(self, kernel):
        assert kernel("cluster.run(total)") == [3.0, 3.0]

    def test_ranks_stay(self, kernel):
        assert kernel("cluster.run(who)") == kernel("cluster.run(who)")

    def test_traceback_shows_the_line_of_the_cell(self, kernel):
        """The line is in an earlier cell than the call, and no file has it."""
        kernel("def stumble(rank):\n    zero = rank.index * 0\n    return 1 / zero  # this very line")
        reply = kernel.fails("cluster.run(stumble)")
        assert reply.error.startswith("RankError: rank ")
        assert "ZeroDivisionError" in reply.error
        assert "1 / zero  # this very line" in reply.error
        assert "in stumble" in reply.error
        assert "line 3" in reply.error

    def test_timeout_shows_the_line_of_the_cell(self, kernel):
        kernel(
            "import torch\ndef mismatch(rank):\n    if rank.index == 1:\n"
            "        torch.distributed.all_reduce(torch.ones(1))  # this very call"
        )
        reply = kernel.fails("cluster.run(mismatch, timeout=1)")
        assert reply.error.startswith("RankTimeout: rank 1")
        assert "# this very call" in reply.error
        assert kernel("cluster.run(total)") == [3.0, 3.0]


class TestOutput:
    def test_appears_under_the_cell_that_called_run(self, kernel):
        kernel("def talk(rank):\n    print('spoken', flush=True)\n    print('muttered', file=sys.stderr)")
        first = kernel.send("cluster.run(talk) and None")
        second = kernel.send("print('second cell')")
        kernel.wait(first)
        kernel.wait(second)
        assert sorted(kernel.output_of(first).splitlines()) == ["[rank 0] spoken", "[rank 1] spoken"]
        assert sorted(kernel.output_of(first, "stderr").splitlines()) == ["[rank 0] muttered", "[rank 1] muttered"]
        assert kernel.output_of(second) == "second cell\n"

    def test_appears_under_the_cell_that_called_submit(self, kernel):
        """Also when it comes later: while another cell runs, or none."""
        kernel(
            "def later(rank):\n    if rank.index == 0:\n        time.sleep(0.5); print('during', flush=True)\n"
            "        time.sleep(0.8); print('afterwards', flush=True)"
        )
        submitting = kernel.send("run = cluster.submit(later)")
        kernel.wait(submitting)
        other = kernel.wait(kernel.send("time.sleep(0.9); print('other cell')")).msg_id
        assert kernel.wait_for_output("during") == submitting
        assert kernel.wait_for_output("afterwards") == submitting
        assert kernel.output_of(other) == "other cell\n"
        kernel("run.result() and None")

    def test_two_runs_of_two_cells(self, kernel):
        """Queued runs keep their own cells."""
        kernel("def name(rank, text):\n    time.sleep(0.2); print(text, flush=True)")
        cells = [kernel.send(f"r{i} = cluster.submit(name, 'from cell {i}')") for i in range(3)]
        for cell in cells:
            kernel.wait(cell)
        kernel("[r.result() for r in (r0, r1, r2)] and None")
        for i, cell in enumerate(cells):
            assert kernel.wait_for_output(f"from cell {i}") == cell


class TestLive:
    """What is written without a newline is seen at once, and redrawn in place."""

    def run(self, kernel, function):
        """Define and run a function of a cell; what it wrote, and the seconds at which that was seen."""
        kernel(f"from tqdm import tqdm\n{function}")
        kernel.streams.clear(), kernel.blocks.clear(), kernel.times.clear()
        began = time.time()
        kernel("cluster.run(fn) and None")
        return [at - began for at in kernel.times]

    @pytest.mark.parametrize("how", ["end='', flush=True", "end=''"])
    def test_one_line(self, kernel, how):
        """In its stream, as the kernel's own would be. (Line buffering flushes at a carriage return by itself.)"""
        times = self.run(
            kernel,
            "def fn(rank):\n    for i in range(3 * (rank.index == 1)):\n"
            f"        print('.' if i else 'step', {how}); time.sleep(0.3)",
        )
        texts = [text for _, _, text in kernel.streams]
        assert [text.strip("\r") for text in texts] == [
            *("[rank 1] step", "[rank 1] step.", "[rank 1] step.."),
            "[rank 1] step..\n",
        ]
        for i, at in enumerate(times[:3]):
            assert at - 0.3 * i < 0.29, f"each is seen before the next is written: {times}"
        assert kernel.blocks == []

    def test_bars_of_all_ranks(self, kernel):
        """One under the other, in rank order, in an output that is replaced; at the end only lines are left."""
        self.run(
            kernel,
            "def fn(rank):\n    for i in tqdm(range(4)): time.sleep(0.15)\n    print('done', rank.index)",
        )
        assert len({name for _, name, _ in kernel.blocks}) == 1
        for percent in (25, 50, 75):
            assert any(
                [row.split("%")[0].split()[:3] for row in text.splitlines()]
                == [["[rank", "0]", str(percent)], ["[rank", "1]", str(percent)]]
                for _, _, text in kernel.blocks
            )
        assert kernel.blocks[-1][2] == ""
        out, err = (
            sorted(line for _, stream, text in kernel.streams if stream == name for line in text.splitlines())
            for name in ("stdout", "stderr")
        )
        assert out == ["[rank 0] done 0", "[rank 1] done 1"]
        assert [line.split("|")[0] for line in err] == ["[rank 0] 100%", "[rank 1] 100%"]

    def test_lines_beside_a_bar(self, kernel):
        """The bar's own stream has it once, at the end: redraws between lines of the other would repeat it."""
        self.run(
            kernel,
            "def fn(rank):\n    for i in tqdm(range(5), disable=rank.index):\n"
            "        print('said', i); time.sleep(0.12)",
        )
        assert "".join(text for _, name, text in kernel.streams if name == "stderr").count("it/s") == 1
        assert "".join(text for _, name, text in kernel.streams if name == "stdout").count("said") == 10
        assert len(kernel.blocks) >= 4

    def test_a_fault_leaves_the_last_state(self, kernel):
        kernel(
            "def fn(rank):\n    print('so far', end='')\n    if rank.index: time.sleep(0.2); 1 / 0\n    time.sleep(1)"
        )
        kernel.streams.clear(), kernel.blocks.clear()
        kernel.fails("cluster.run(fn)")
        assert sorted(line for _, _, text in kernel.streams for line in text.splitlines()) == [
            "[rank 0] so far",
            "[rank 1] so far",
        ]
        assert kernel.blocks[-1][2] == ""

    def test_many_lines(self, kernel):
        """About as long as the kernel's own print of them takes, in about as many messages."""
        kernel("def fn(rank):\n    for i in range(4000): print('line', i)")
        counts, seconds = {}, {}
        for name, code in (
            ("own", "for i in range(8000): print('[rank 0] line', i)"),
            ("ranks", "cluster.run(fn) and None"),
        ):
            kernel.streams.clear()
            seconds[name] = kernel.wait(kernel.send(code)).seconds
            counts[name] = len(kernel.streams)
        lines = "".join(text for _, _, text in kernel.streams).splitlines()
        for rank in (0, 1):
            head = f"[rank {rank}] "
            assert [line for line in lines if line.startswith(head)] == [f"{head}line {i}" for i in range(4000)]
        assert len(lines) == 8000
        assert counts["ranks"] < counts["own"] + 20, counts
        assert seconds["ranks"] < 4 * seconds["own"] + 0.5, seconds


class TestSubmit:
    def test_the_kernel_answers_meanwhile(self, kernel):
        kernel("run = cluster.submit(hang_up)")
        began = time.monotonic()
        assert kernel("1 + 1") == 2
        assert kernel("run.done(), cluster.state.value") == (False, "running")
        assert time.monotonic() - began < 1
        began = time.monotonic()
        kernel("run.stop()")
        reply = kernel.fails("run.result()")
        assert time.monotonic() - began < 2
        assert reply.error.startswith("RunStopped")
        assert kernel("cluster.run(total)") == [3.0, 3.0]


class TestInterrupt:
    def test_while_hung_in_a_collective(self, kernel, assert_gone):
        """The Stop button."""
        pids = kernel("cluster.pids")
        cell = kernel.send("cluster.run(hang_up)")
        time.sleep(0.7)
        began = time.monotonic()
        kernel.manager.interrupt_kernel()
        reply = kernel.wait(cell)
        assert time.monotonic() - began < SOON_S
        assert reply.error.startswith("KeyboardInterrupt")
        assert_gone(pids)
        assert kernel("cluster.run(total)") == [3.0, 3.0]

    def test_while_starting(self, kernel):
        """Fresh ranks are on their way; the interrupt must not confuse them."""
        cell = kernel.send("cluster.restart() and None")
        time.sleep(0.3)
        began = time.monotonic()
        kernel.manager.interrupt_kernel()
        reply = kernel.wait(cell)
        assert time.monotonic() - began < SOON_S
        assert reply.error.startswith("KeyboardInterrupt")
        assert kernel("cluster.run(total)") == [3.0, 3.0]

    def test_of_another_cell(self, kernel):
        """It is not the ranks' business: neither idle ones nor a submitted run feel it."""
        pids = kernel("cluster.pids")
        kernel("def slow(rank):\n    time.sleep(1.2)\n    return rank.index\nrun = cluster.submit(slow)")
        cell = kernel.send("time.sleep(600)")
        time.sleep(0.4)
        kernel.manager.interrupt_kernel()
        assert kernel.wait(cell).error.startswith("KeyboardInterrupt")
        assert kernel("run.result()") == [0, 1]
        assert kernel("cluster.pids") == pids


class TestCellsOnRanks:
    """``%%ranks`` (tests/lab has what a cell means)."""

    def test_output_is_live_and_under_its_cell(self, kernel):
        kernel("%load_ext tplab")
        cell = kernel.send("%%ranks\nimport time\nprint('early', flush=True)\ntime.sleep(1.5)\nx = rank + 1\nx")
        assert kernel.wait_for_output("early") == cell
        assert "[rank 0] 1" not in kernel.output_of(cell)
        assert kernel.wait(cell).status == "ok"
        *prints, first, second = kernel.output_of(cell).splitlines()
        assert sorted(prints) == ["[rank 0] early", "[rank 1] early"]
        assert (first, second) == ("[rank 0] 1", "[rank 1] 2")

    def test_traceback_has_the_number_of_the_prompt(self, kernel):
        kernel("%load_ext tplab")
        reply = kernel.fails("%%ranks 0\n\n1 / 0")
        prompt = kernel("len(In) - 1") - 1  # of the cell before this one
        assert f'"<%%ranks In[{prompt}]>", line 3, in <module>' in reply.error

    def test_stop_button_in_a_collective(self, kernel, assert_gone):
        kernel("%load_ext tplab")
        pids = kernel("cluster.pids")
        kernel("%%ranks\nweights = 1")
        cell = kernel.send("%%ranks\nif rank == 0:\n    dist.all_reduce(torch.ones(1))  # alone")
        time.sleep(0.7)
        began = time.monotonic()
        kernel.manager.interrupt_kernel()
        reply = kernel.wait(cell)
        assert time.monotonic() - began < SOON_S
        assert reply.error.startswith("KeyboardInterrupt")
        assert "# alone" in reply.traceback
        assert "run_cell_magic" not in reply.traceback
        assert_gone(pids)
        reply = kernel.fails("%%ranks\nweights")
        assert "NameError: name 'weights' is not defined" in reply.error
        assert "the ranks were replaced" in kernel.output_of(reply.msg_id, "stderr")
        assert kernel("xs = %ranks pull world_size\nxs") == [2, 2]

    def test_stop_button_in_python(self, kernel):
        """Ranks that can be interrupted keep what they have."""
        kernel("%load_ext tplab")
        kernel("%%ranks\nweights = 7")
        cell = kernel.send("%%ranks\nimport time\nwhile True:\n    time.sleep(0.01)")
        time.sleep(0.7)
        kernel.manager.interrupt_kernel()
        assert kernel.wait(cell).error.startswith("KeyboardInterrupt")
        assert kernel("xs = %ranks pull weights\nxs") == [7, 7]


class TestEnd:
    def test_killed_while_hung_in_a_collective(self, own_kernel, assert_gone):
        pids = own_kernel("cluster.run(who)")
        own_kernel("run = cluster.submit(hang_up)\nwhile len(run.reports) < 2: time.sleep(0.01)")
        os.kill(own_kernel.manager.provisioner.pid, signal.SIGKILL)
        assert_gone(pids, within=AFTER_KILL_S)

    def test_restarted_then_shut_down(self, own_kernel, assert_gone):
        """Normally, as the menu does it, with the cluster open."""
        before = own_kernel("cluster.run(who)")
        own_kernel.manager.restart_kernel()
        own_kernel.client.wait_for_ready(timeout=60)
        assert_gone(before)
        own_kernel(SETUP.replace("Cluster(2", "Cluster(1"))
        after = own_kernel("cluster.run(who)")
        assert own_kernel("cluster.run(total)") == [1.0]
        own_kernel.manager.shutdown_kernel()
        assert_gone(after)
