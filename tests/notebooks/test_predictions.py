"""Predictions in notebooks: each is asked, named and compared, and nothing stored gives its answer away."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
TOLD = re.compile(r"(Measured|Computed|Counted): |You predicted ")


def trees(notebook: nbformat.NotebookNode) -> Iterator[tuple[nbformat.NotebookNode, ast.Module]]:
    for cell in notebook.cells:
        if cell.cell_type == "code" and not re.match(r"%%", cell.source):
            yield cell, ast.parse(re.sub(r"^[%!].*$", "pass", cell.source, flags=re.MULTILINE))


def asked(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Variable -> name of each prediction."""
    found = {}
    for _, tree in trees(notebook):
        for node in ast.walk(tree):
            match node:
                case ast.Assign(targets=[ast.Name(id=variable)], value=ast.Call(func=ast.Name(id="Predict")) as call):
                    names = {
                        word.arg: word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)
                    }
                    found[variable] = names.get("name", "")
    return found


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_each_prediction_is_named_after_its_notebook_and_compared(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    predictions = asked(notebook)
    assert predictions, "every notebook asks for something"
    assert len(set(predictions.values())) == len(predictions)
    assert [name for name in predictions.values() if not name.startswith(f"{path.name[:2]}-")] == []
    compared = [
        node.func.value.id
        for _, tree in trees(notebook)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "compare"
        and isinstance(node.func.value, ast.Name)
    ]
    assert sorted(name for name in compared if name in predictions) == sorted(predictions)


def test_a_comparison_is_what_its_cell_shows_and_stores_no_answer(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    predictions = asked(notebook)
    for cell, tree in trees(notebook):
        calls = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in {"compare", "afterwards"}
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id in predictions
        ]
        if not calls:
            continue
        last = tree.body[-1]
        assert isinstance(last, ast.Expr), cell.id
        assert calls == [last.value], f"{cell.id}: one comparison, as the last line"
        stored = json.dumps(cell.outputs, ensure_ascii=False)
        assert TOLD.search(stored) is None, cell.id


def test_nobody_relies_on_outputs_hidden(path: Path) -> None:
    """JupyterLab opens them whenever a cell is executed."""
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.id for cell in cells if cell.metadata.get("jupyter", {}).get("outputs_hidden")] == []
