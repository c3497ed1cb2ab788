"""Fixtures for the tests of tplab.layers: warm clusters of one to four ranks, shared by all modules."""

from collections.abc import Iterator

import cloudpickle
import pytest

from tplab import Cluster


@pytest.fixture(scope="module", autouse=True)
def functions_travel_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture(scope="package")
def clusters(no_ranks_left: None) -> Iterator[dict[int, Cluster]]:
    """For tests that leave the ranks in step: faults belong elsewhere."""
    clusters = {n: Cluster(n, "gloo") for n in (1, 2, 3, 4)}
    yield clusters
    for cluster in clusters.values():
        cluster.close()


@pytest.fixture(params=[1, 2, 3, 4], ids=lambda n: f"n={n}")
def ranks(request: pytest.FixtureRequest, clusters: dict[int, Cluster]) -> Cluster:
    return clusters[request.param]
