"""Each room's public edge: names that load from its ``__init__``, and that are what they are called."""

import importlib
from types import ModuleType

import pytest

ROOMS = [
    "tplab",
    "tplab.cluster",
    "tplab.measure",
    "tplab.collectives",
    "tplab.layers",
    "tplab.pipeline",
    "tplab.models",
    "tplab.topology",
    "tplab.lab",
    "tplab.lab.exercises",
    "tplab.lab.figures",
    "tplab.lab.panels",
]


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_load(room: str) -> None:
    package = importlib.import_module(room)
    assert package.__all__
    assert {*package.__all__} <= {*dir(package)}
    for name in package.__all__:
        # A module of a public function's name would take its place as soon as somebody imports it.
        assert not isinstance(getattr(package, name), ModuleType), f"{room}.{name} is a module"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing
