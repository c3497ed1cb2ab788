"""Each room's public edge: names that load from its ``__init__``, and all that notebooks import."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
ROOMS = [
    "tplab",
    "tplab.cluster",
    "tplab.measure",
    "tplab.collectives",
    "tplab.measure",
    "tplab.collectives",
    "tplab.layers",
    "tplab.pipeline",
    "tplab.models",
    "tplab.topology",
    "tplab.lab",
    "tplab.lab.claims",
    "tplab.lab.exercises",
    "tplab.lab.figures",
    "tplab.lab.grading",
    "tplab.lab.panels",
    "tplab.lab.recorded",
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


def imports_of(notebook: Path) -> Iterator[tuple[str, str]]:
    """Module and name of every import of ours in a notebook's cells; no name where the module itself is imported."""
    for cell in nbformat.read(notebook, 4).cells:
        if cell.cell_type != "code":
            continue
        code = "\n".join(line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!")))
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "tplab")
            elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "tplab":
                yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_import_from_rooms_only(notebook: Path) -> None:
    found = [*imports_of(notebook)]
    assert found
    allowed = {(room, name) for room in ROOMS for name in importlib.import_module(room).__all__}
    assert [f"from {module} import {name}" for module, name in found if (module, name) not in allowed] == []
