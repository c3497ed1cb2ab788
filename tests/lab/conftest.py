"""Fixtures of the lab's tests."""

from collections.abc import Iterator

import cloudpickle
import pytest


@pytest.fixture(scope="module", autouse=True)
def functions_travel_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """As those of a notebook's cells do: the ranks cannot import a test's module."""
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)
