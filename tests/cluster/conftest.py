"""Fixtures for the tests of tplab.cluster.

Functions of the test modules travel to the ranks by value: under ``--import-mode=importlib`` a rank could not import
the modules they are in.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest
import torch
import torch.distributed as dist

import tplab
from tplab import Cluster

ROOT = Path(tplab.__file__).parents[1]

# Registered at import: the conftest's own rank functions must travel by value, too.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module", autouse=True)
def functions_travel_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture(autouse=True)
def interrupts_arrive() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, here and in scripts started from here, also where pytest was started with it
    ignored, as ``nohup pytest &`` is."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def total(rank: Any) -> list[float]:
    """Every rank brings its index + 1; all must hold the sum."""
    x = torch.full((3,), float(rank.index + 1))
    dist.all_reduce(x)
    return x.tolist()


class Clusters:
    """One cluster per world size, started when first asked for, made anew when a test ended it."""

    def __init__(self) -> None:
        self._clusters: dict[int, Cluster] = {}

    def __call__(self, n: int) -> Cluster:
        if n not in self._clusters or self._clusters[n].closed:
            self._clusters[n] = Cluster(n, "gloo")
        return self._clusters[n].start()

    def close(self) -> None:
        for cluster in self._clusters.values():
            cluster.close()


@pytest.fixture(scope="session")
def clusters(no_ranks_left: None) -> Iterator[Clusters]:
    clusters = Clusters()
    yield clusters
    clusters.close()


@pytest.fixture(scope="session")
def cluster2(no_ranks_left: None) -> Iterator[Cluster]:
    """Two ranks that no test ruins."""
    with Cluster(2, "gloo") as cluster:
        yield cluster


@pytest.fixture
def cluster(clusters: Clusters) -> Cluster:
    """Two ranks that a test may ruin; ready."""
    return clusters(2)


@pytest.fixture(params=[1, 2, 3, 4], ids=lambda n: f"n={n}")
def sized(request: pytest.FixtureRequest, clusters: Clusters) -> Cluster:
    """Ranks that a test may ruin, for each world size; ready."""
    return clusters(request.param)


@pytest.fixture
def assert_works() -> Callable[[Cluster], None]:
    """Check that the next run works without further ado."""

    def check(cluster: Cluster) -> None:
        n = cluster.num_ranks
        assert cluster.run(total, timeout=60) == [[n * (n + 1) / 2] * 3] * n

    return check


def is_running(pid: int) -> bool:
    """Neither ended nor a zombie that nobody has collected yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], object], within: float) -> bool:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def eventually() -> Callable[..., bool]:
    """``eventually(condition, within=seconds)``: whether it came true."""

    def check(condition: Callable[[], object], within: float = 3.0) -> bool:
        return wait_until(condition, within)

    return check


@pytest.fixture
def running() -> Callable[[int], bool]:
    return is_running


@pytest.fixture
def assert_gone() -> Callable[..., None]:
    """Check that processes end, and end them if they do not."""

    def check(pids: Iterable[int], within: float = 2.0) -> None:
        pids = list(pids)
        assert pids, "no process to look for: the test looks at nothing"
        wait_until(lambda: not any(map(is_running, pids)), within)
        left = [pid for pid in pids if is_running(pid)]
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        assert not left, f"{len(left)} of {len(pids)} processes still there after {within} s"

    return check


class Script:
    """A Python script in a process of its own; it prints one JSON value per line."""

    def __init__(self, path: Path, code: str) -> None:
        path.write_text(code)
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            cwd=path.parent,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def read(self) -> Any:
        """The next value; waits for it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, errors = self.process.communicate(timeout=10)
            raise AssertionError(f"the script ended early:\n{errors}")
        return json.loads(line)

    def finish(self, timeout: float = 30) -> tuple[int, str]:
        """Wait for the end: exit code and stderr."""
        _, errors = self.process.communicate(timeout=timeout)
        return self.process.returncode, errors


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[[str], Script]]:
    """Start a script from its source."""
    started: list[Script] = []

    def start(code: str) -> Script:
        started.append(Script(tmp_path / f"script{len(started)}.py", code))
        return started[-1]

    yield start
    for one in started:
        with one.process:
            one.process.kill()
