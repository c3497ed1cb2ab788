"""Ctrl-C at any moment, also twice: no thread, process or descriptor is left, and what was measured is not lost."""

import os
import random
import signal
import threading

import psutil
import pytest

from tplab import Cluster
from tplab.cluster.interrupts import interrupts_held
from tplab.cluster.run import Run
from tplab.cluster.supervisor import Supervisor

pytestmark = pytest.mark.timeout(120)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


class TestHeld:
    def test_comes_when_the_block_ends(self):
        reached = []

        def work():
            with interrupts_held():
                interrupt()
                reached.append("the end of the block")

        with pytest.raises(KeyboardInterrupt):
            work()
        assert reached
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_twice_is_once(self):
        def work():
            with interrupts_held():
                interrupt()
                interrupt()

        with pytest.raises(KeyboardInterrupt):
            work()

    def test_none(self):
        with interrupts_held():
            pass
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_goes_to_whoever_handled_it_before(self):
        got = []
        before = signal.signal(signal.SIGINT, lambda number, frame: got.append(number))
        try:
            with interrupts_held():
                interrupt()
        finally:
            signal.signal(signal.SIGINT, before)
        assert got == [signal.SIGINT]

    def test_in_another_thread_nothing_is_changed(self):
        seen = []

        def look():
            with interrupts_held():
                seen.append(signal.getsignal(signal.SIGINT))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert seen == [signal.default_int_handler]


def children():
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize("method", ["__init__", "start"])
def test_while_the_cluster_is_made(method, monkeypatch, eventually):
    """The traceback holds the half-made cluster, as IPython's does: dropping it cannot be what ends it."""
    threads, processes = set(threading.enumerate()), children()
    original = getattr(Supervisor, method)

    def interrupted(self, *args, **kwargs):
        interrupt()
        original(self, *args, **kwargs)
        interrupt()

    monkeypatch.setattr(Supervisor, method, interrupted)
    with pytest.raises(KeyboardInterrupt) as held:
        Cluster(2, "gloo")
    assert eventually(lambda: set(threading.enumerate()) <= threads, within=5)
    assert eventually(lambda: children() <= processes, within=5)
    del held


def test_while_its_start_is_waited_for(monkeypatch, eventually):
    """``Cluster(2).start()``: nobody but the traceback could hold the cluster, and IPython keeps that."""
    processes = children()
    original = Run.result

    def interrupted(self, *args):
        interrupt()
        return original(self, *args)

    monkeypatch.setattr(Run, "result", interrupted)
    with pytest.raises(KeyboardInterrupt) as held:
        Cluster(2, "gloo").start()
    assert eventually(lambda: children() <= processes, within=5)
    del held


SCRIPT = """
import gc, json, os, sys, threading, time
import psutil
from tplab import Cluster

def work(rank):
    time.sleep(0.05)
    return rank.index

def descriptors():
    return len(os.listdir("/proc/self/fd"))

before = descriptors()
print(json.dumps("go"), flush=True)
error = None
try:
    for turn in range(50):
        with Cluster(2, "gloo") as cluster:
            if turn % 2:
                cluster.start()
            cluster.run(work)
            cluster.run(work)
except KeyboardInterrupt as interrupt:
    error = interrupt  # as IPython keeps it, with every frame
try:
    time.sleep(0.3)  # a second Ctrl-C
except KeyboardInterrupt:
    pass
deadline = time.monotonic() + 8
while True:
    left = {
        "threads": [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()],
        "processes": len(psutil.Process().children(recursive=True)),
        "descriptors": descriptors() - before,
    }
    if not any(left.values()) or time.monotonic() > deadline:
        break
    time.sleep(0.02)
print(json.dumps(left), flush=True)
"""


def interrupt_script(script, rng):
    """One script, interrupted at a moment that ``rng`` draws, in one case of three twice: what it has left."""
    running = script(SCRIPT)
    assert running.read() == "go"
    for pause in [
        rng.choice([rng.uniform(0, 0.03), rng.uniform(0, 1.5)]),
        *([rng.uniform(0, 0.1)] * (rng.random() < 1 / 3)),
    ]:
        threading.Event().wait(pause)
        os.kill(running.process.pid, signal.SIGINT)
    left = running.read()
    code, errors = running.finish()
    return left, code, errors


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
@pytest.mark.parametrize("seed", range(4))
def test_at_any_moment(script, seed):
    left, code, errors = interrupt_script(script, random.Random(seed))
    assert not any(left.values()), left
    assert code == 0, errors


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_at_very_many_moments(script):
    rng = random.Random(0)
    for _ in range(150):
        left, code, errors = interrupt_script(script, rng)
        assert not any(left.values()), left
        assert code == 0, errors
