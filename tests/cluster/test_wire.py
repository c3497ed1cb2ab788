"""What crosses the socket: calls, values, faults. No process involved."""

import io
import linecache
import signal
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tplab.cluster import wire
from tplab.cluster.packing import unpack

pytestmark = pytest.mark.timeout(60)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


class TestCall:
    @given(PLAIN, PLAIN)
    def test_round_trip(self, first, second):
        fn, args = unpack(wire.pack_call(lambda rank, *args: (rank, args), (first, second)))
        assert args == (first, second)
        assert fn("rank", *args) == ("rank", (first, second))

    @pytest.mark.parametrize("position", [0, 1, 2])
    def test_names_the_argument(self, position):
        args = [1] * position + [threading.Lock()] + [1]
        with pytest.raises(TypeError, match=rf"args\[{position}\].*lock"):
            wire.pack_call(print, args)

    def test_names_the_function(self):
        lock = threading.Lock()

        def guarded(rank):
            return lock

        with pytest.raises(TypeError, match=r"\bfn\b.*guarded.*lock"):
            wire.pack_call(guarded, ())

    def test_names_the_function_first(self):
        file = io.TextIOWrapper(io.BytesIO())
        with pytest.raises(TypeError, match=r"\bfn\b"):
            wire.pack_call(lambda rank: file, (threading.Lock(),))

    def test_reason_that_is_no_type_error(self):
        class Refuses:
            def __reduce__(self):
                raise RuntimeError("not me")

        with pytest.raises(TypeError, match=r"args\[0\].*not me"):
            wire.pack_call(print, (Refuses(),))


class TestValue:
    @given(PLAIN)
    def test_round_trip(self, value):
        assert unpack(wire.pack_value(value)) == value

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
    def test_tensor(self, dtype):
        x = torch.arange(6).reshape(2, 3).to(dtype)
        y = unpack(wire.pack_value({"x": [x]}))["x"][0]
        assert y.dtype is dtype
        assert torch.equal(x, y)

    def test_tensor_that_needs_a_gradient(self):
        y = unpack(wire.pack_value(torch.ones(2, requires_grad=True)))
        assert torch.equal(y, torch.ones(2))

    def test_function(self):
        assert unpack(wire.pack_value(lambda x: x + 1))(2) == 3


class NeedsTwo(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class HoldsALock(Exception):
    def __init__(self):
        super().__init__("held")
        self.lock = threading.Lock()


class NoWords(Exception):
    def __str__(self):
        raise ValueError


def caught(make):
    try:
        raise make()
    except BaseException as error:
        return error


def caught_from(fn):
    try:
        fn()
    except BaseException as error:
        return error


class TestFault:
    def test_exception_comes_back(self):
        fault = wire.describe_fault(caught(lambda: KeyError("a", 1)))
        error = wire.rebuild_exception(fault)
        assert isinstance(error, KeyError)
        assert error.args == ("a", 1)
        assert fault.type_name == "KeyError"
        assert fault.text == "KeyError: ('a', 1)"

    @pytest.mark.parametrize("make", [lambda: NeedsTwo(1, 2), HoldsALock, NoWords])
    def test_whatever_the_exception(self, make):
        """Its name and frames survive even where the exception itself does not."""
        error = caught(make)
        fault = wire.describe_fault(error)
        assert fault.type_name == type(error).__name__
        assert fault.type_name in fault.text
        assert fault.frames[-1][2] == "caught"
        rebuilt = wire.rebuild_exception(fault)
        assert rebuilt is None or isinstance(rebuilt, type(error))
        unpack(wire.pack_value(fault))

    @pytest.mark.parametrize("make", [lambda: NeedsTwo(1, 2), HoldsALock])
    def test_what_cannot_be_rebuilt_is_none(self, make):
        assert wire.rebuild_exception(wire.describe_fault(caught(make))) is None

    def test_frames_to_skip(self):
        def inner():
            raise ValueError

        def outer():
            inner()

        try:
            outer()
        except ValueError as error:
            names = [frame[2] for frame in wire.describe_fault(error, skip_frames=1).frames]
        assert names == ["outer", "inner"]

    def test_notes_are_kept(self):
        error = caught(ValueError)
        error.add_note("and mind the gap")
        assert "and mind the gap" in wire.describe_fault(error).text

    def test_syntax_error_shows_its_line(self):
        assert "1 +" in wire.describe_fault(caught(lambda: SyntaxError("bad", ("cell", 1, 4, "1 +")))).text

    def test_chain(self):
        """In Python's order: what came first is shown first."""

        def fail():
            try:
                {}["the reason"]
            except KeyError as error:
                raise RuntimeError("in general") from error

        text = wire.format_fault(wire.describe_fault(caught_from(fail)), 3)
        assert text.index("the reason") < text.index("direct cause") < text.index("in general")
        assert text.count("Traceback on rank 3") == 2

    def test_chain_by_accident(self):
        def fail():
            try:
                {}["the reason"]
            except KeyError:
                raise RuntimeError("in general")  # noqa: B904

        text = wire.format_fault(wire.describe_fault(caught_from(fail)), 0)
        assert text.index("the reason") < text.index("another exception occurred") < text.index("in general")

    def test_chain_that_was_cut(self):
        def fail():
            try:
                {}["the reason"]
            except KeyError:
                raise RuntimeError("in general") from None

        assert "the reason" not in wire.format_fault(wire.describe_fault(caught_from(fail)), 0)

    def test_chain_that_bites_its_tail(self):
        def fail():
            error = RuntimeError("itself")
            raise error from error

        fault = wire.describe_fault(caught_from(fail))
        assert "itself" in wire.format_fault(fault, 0)
        unpack(wire.pack_value(fault))

    def test_long_chain(self):
        def fail(depth=3000):
            error = None
            for i in range(depth):
                following = RuntimeError(f"number {i}")
                following.__cause__ = error
                error = following
            raise error

        fault = wire.describe_fault(caught_from(fail))
        assert "number 2999" in wire.format_fault(fault, 0)
        unpack(wire.pack_value(fault))

    def test_no_frames(self):
        assert wire.describe_fault(ValueError("never raised")).frames == ()


RUNS_ON = """
import gc, threading
from queue import SimpleQueue  # has no Python code in which garbage could be collected
from tplab.cluster import wire

def wait_below(depth):
    if depth:
        return wait_below(depth - 1)
    waits.put(None)
    go_on.get()

def overwrite(depth, *others):
    if depth:
        overwrite(depth - 1, depth, *others)

def leave(phase, info):
    global collections
    if threading.current_thread() is looker and phase == "start":
        collections += 1
        if collections == at:
            go_on.put(None)
            has_left.get()

def look():
    waits.get()
    frames = wire.stack_of(main)
    go_on.put(None)
    if all(isinstance(file, str) and isinstance(name, str) for file, _, name, _ in frames):
        print(end="o")

main = threading.get_ident()
gc.callbacks.append(leave)
gc.set_threshold(1)
for at in range(1, 31):
    collections = 0
    waits, go_on, has_left = SimpleQueue(), SimpleQueue(), SimpleQueue()
    looker = threading.Thread(target=look)
    looker.start()
    wait_below(30)
    overwrite(100)
    has_left.put(None)
    looker.join()
"""


class TestFrames:
    def test_line_that_only_the_kernel_knows(self):
        """A notebook cell's file exists nowhere: its lines are in the kernel's line cache."""
        name = "/nowhere/ipykernel_1/123.py"
        linecache.cache[name] = (10, None, ["x = 1\n", "y = x / 0\n"], name)
        try:
            text = wire.format_frames([(name, 2, "fn", None)])
        finally:
            del linecache.cache[name]
        assert "line 2, in fn" in text
        assert "y = x / 0" in text

    def test_line_that_the_rank_sent(self):
        text = wire.format_frames([("/nowhere/at/all.py", 7, "fn", "z = 3")])
        assert text.splitlines() == ['  File "/nowhere/at/all.py", line 7, in fn', "    z = 3"]

    def test_line_that_nobody_knows(self):
        assert "line 7, in fn" in wire.format_frames([("/nowhere/at/all.py", 7, "fn", None)])

    def test_stack(self):
        def inner():
            return wire.stack_of(threading.get_ident())

        names = [frame[2] for frame in inner()]
        assert names[-3:] == ["test_stack", "inner", "stack_of"]

    def test_stack_of_a_thread_that_runs_on(self):
        """It does so while garbage is collected, at each of the first 30 chances, and puts other frames in place."""
        done = subprocess.run([sys.executable, "-c", RUNS_ON], capture_output=True, text=True, timeout=50)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout == "o" * 30


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (0, "exited with code 0"),
        (3, "exited with code 3"),
        (-signal.SIGKILL, "was killed by SIGKILL"),
        (-signal.SIGSEGV, "was killed by SIGSEGV"),
        (-99, "was killed by signal 99"),
        (None, "ended"),
    ],
)
def test_describe_exit(exit_code, words):
    assert wire.describe_exit(exit_code) == words
