"""Fixtures for tests over two hosts: see :mod:`tests.hosts.namespaces` and :mod:`tests.hosts.parallel`.

Functions of the test modules travel to the ranks by value, as in tests/cluster.
"""

from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

from tests.hosts.namespaces import Hosts, two_hosts, why_not
from tests.hosts.parallel import Parallel, parallel


@pytest.fixture(scope="module", autouse=True)
def functions_travel_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture(scope="session")
def _hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if reason := why_not():
        pytest.skip(reason)
    with two_hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@pytest.fixture
def hosts(_hosts: Hosts) -> Iterator[Hosts]:
    """alpha, beta and gamma, cables in and unlimited; whatever a test did to the cables is undone."""
    yield _hosts
    _hosts.reset()


@pytest.fixture(scope="session")
def _parallel(_hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parallel]:
    with parallel(_hosts, tmp_path_factory.mktemp("ipython")) as made:
        yield made


@pytest.fixture
def shared_parallel(hosts: Hosts, _parallel: Parallel) -> Parallel:
    """A controller outside and an engine per host for the whole session: for tests that leave them as they are."""
    return _parallel


@pytest.fixture
def own_parallel(hosts: Hosts, tmp_path: Path) -> Iterator[Parallel]:
    """The same, started for this test: it may kill them, or cut a host off. Takes seconds."""
    with parallel(hosts, tmp_path / "ipython") as made:
        yield made
