"""Fixtures for the tests of tplab.layers: one to four warm ranks."""

from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest

from tplab import Cluster


@pytest.fixture(scope="module", autouse=True)
def functions_travel_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture(params=[1, 2, 3, 4], ids=lambda n: f"n={n}")
def ranks(request: pytest.FixtureRequest, clusters: Any) -> Cluster:
    made: Cluster = clusters[request.param]
    return made
