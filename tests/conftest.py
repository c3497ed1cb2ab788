"""Fixtures for all tests, and which cases of wide grids the default run takes."""

import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest

from tplab import Cluster

DOCS = Path(__file__).parents[1] / "docs"

# On a busy machine an example may take any time; what is too slow is ended by pytest's own limit.
hypothesis.settings.register_profile("tplab", deadline=None)
hypothesis.settings.load_profile("tplab")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked ``sampled(every=n)`` mark all cases as ``wide`` but each n-th along a diagonal of the grid, so
    that every value of every parameter stays in the default run. A case named on the command line is run."""
    values: dict[tuple[object, str], list[int]] = defaultdict(list)
    kept = set()
    for item in items:
        if (marker := item.get_closest_marker("sampled")) is None:
            continue
        assert isinstance(item, pytest.Function)
        places = []
        for name, value in item.callspec.params.items():
            known = values[item.function, name]
            if id(value) not in known:
                known.append(id(value))
            places.append((item.function, name, known.index(id(value))))
        if sum(index for *_, index in places) % marker.kwargs["every"]:
            item.add_marker("wide")
        else:
            kept.update(places)
    missed = {(*where, index) for where, known in values.items() for index in range(len(known))} - kept
    if missed:
        raise pytest.UsageError(f"sampled: in no case of the default run: {missed}")


@pytest.fixture(scope="session", autouse=True)
def no_ranks_left() -> Iterator[None]:
    """Whatever the tests did: this process ends without a rank below it."""
    yield
    left = [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and any("tplab.cluster.worker" in word for word in child.cmdline())
    ]
    for child in left:
        child.kill()
    assert not left, f"ranks left behind: {left}"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built with every warning an error: about 40 seconds, once."""
    out = tmp_path_factory.mktemp("site") / "site"
    build = subprocess.run([sys.executable, DOCS / "build_site.py", out], capture_output=True, text=True)
    assert build.returncode == 0, build.stderr[-8000:]
    return out


class Clusters:
    """Warm ranks by their number, started when first asked for. One and three are the first of four: what runs on a
    cluster runs on a resized one, too."""

    def __init__(self) -> None:
        self._made: dict[int, Cluster] = {}

    def __getitem__(self, n: int) -> Cluster:
        if n not in self._made:
            self._made[n] = self[4].resized(n) if n in (1, 3) else Cluster(n, "gloo")
        return self._made[n]

    def close(self) -> None:
        for cluster in self._made.values():
            cluster.close()


@pytest.fixture(scope="session")
def clusters(no_ranks_left: None) -> Iterator[Clusters]:
    """``clusters[n]``: n warm ranks for the whole session, since starting some takes seconds. For tests that leave the
    ranks in step: faults belong elsewhere."""
    clusters = Clusters()
    yield clusters
    clusters.close()


@pytest.fixture(scope="session")
def cluster2(clusters: Clusters) -> Cluster:
    return clusters[2]


@pytest.fixture(scope="session")
def cluster3(clusters: Clusters) -> Cluster:
    return clusters[3]
