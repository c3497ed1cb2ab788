"""Fixtures for all tests."""

from collections.abc import Iterator

import psutil
import pytest

from tplab import Cluster


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
def cluster2(no_ranks_left: None) -> Iterator[Cluster]:
    """Two warm ranks for the whole session. For tests that leave the ranks in step: faults belong elsewhere."""
    with Cluster(2, "gloo") as cluster:
        yield cluster
