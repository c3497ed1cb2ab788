"""In real Jupyter kernels: cells, tracebacks, interrupts, output under the right cell, and kernels that end."""

import ast
import os
import signal
import time
from dataclasses import dataclass, field
from queue import Empty

import pytest
from jupyter_client.manager import KernelManager

import tplab

pytestmark = pytest.mark.timeout(90)

ROOT = os.path.dirname(os.path.dirname(tplab.__file__))
SOON_S = 3.0
AFTER_KILL_S = 2.0


@dataclass
class Reply:
    """What one cell gave."""

    status: str
    error: str
    """Name and message of the exception."""
    traceback: str
    value: str
    """Text of the cell's last expression."""
    seconds: float
    msg_id: str


@dataclass
class Kernel:
    """A running kernel; keeps every stream message with the cell that the kernel says it belongs to."""

    manager: KernelManager
    client: object
    streams: list[tuple[str, str, str]] = field(default_factory=list)
    """(msg_id of the cell, stdout or stderr, text)"""
    _values: dict[str, str] = field(default_factory=dict)
    _idle: set[str] = field(default_factory=set)

    @classmethod
    def start(cls):
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel(cwd=ROOT)
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        return cls(manager, client)

    def send(self, code):
        """Begin to execute a cell."""
        return self.client.execute(code, allow_stdin=False)

    def wait(self, msg_id, timeout=30.0):
        """Wait for a cell's end."""
        began = time.monotonic()
        while True:
            reply = self.client.get_shell_msg(timeout=timeout)
            if reply["parent_header"].get("msg_id") == msg_id:
                break
        while msg_id not in self._idle:
            self.listen(timeout)
        content = reply["content"]
        return Reply(
            status=content["status"],
            error=f"{content.get('ename', '')}: {content.get('evalue', '')}",
            traceback="\n".join(content.get("traceback", [])),
            value=self._values.get(msg_id, ""),
            seconds=time.monotonic() - began,
            msg_id=msg_id,
        )

    def listen(self, timeout):
        """Take in one message of the output channel."""
        message = self.client.get_iopub_msg(timeout=timeout)
        kind, content = message["msg_type"], message["content"]
        parent = message["parent_header"].get("msg_id", "")
        if kind == "stream":
            self.streams.append((parent, content["name"], content["text"]))
        elif kind == "execute_result":
            self._values[parent] = content["data"]["text/plain"]
        elif kind == "status" and content["execution_state"] == "idle":
            self._idle.add(parent)

    def __call__(self, code, timeout=30.0):
        """Execute a cell that must not fail; returns the value of its last expression."""
        reply = self.wait(self.send(code), timeout)
        assert reply.status == "ok", reply.error + reply.traceback
        return ast.literal_eval(reply.value) if reply.value else None

    def fails(self, code, timeout=30.0):
        """Execute a cell that must fail."""
        reply = self.wait(self.send(code), timeout)
        assert reply.status == "error"
        return reply

    def output_of(self, msg_id, name="stdout"):
        return "".join(text for parent, stream, text in self.streams if (parent, stream) == (msg_id, name))

    def wait_for_output(self, words, within=10.0):
        """The cell under which a text appears."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            for parent, _, text in self.streams:
                if words in text:
                    return parent
            try:
                self.listen(0.1)
            except Empty:
                continue
        raise AssertionError(f"{words!r} never appeared; there was {self.streams}")

    def end(self):
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=True)


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
