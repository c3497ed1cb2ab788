"""What the stored notebooks promise a visitor who has not run anything (nbval executes them)."""

import json
import re
from pathlib import Path

import nbformat
import pytest

PLOTLY = "application/vnd.plotly.v1+json"
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


def test_every_code_cell_was_executed_in_order(notebook: nbformat.NotebookNode) -> None:
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_no_output_is_an_error_or_a_warning(notebook: nbformat.NotebookNode) -> None:
    assert [output for output in outputs(notebook) if output.output_type == "error"] == []
    assert [output.text for output in outputs(notebook) if output.get("name") == "stderr"] == []


def test_no_widget_state_and_no_views_without_one(notebook: nbformat.NotebookNode) -> None:
    assert "widgets" not in notebook.metadata
    assert "application/vnd.jupyter.widget-view+json" not in json.dumps(notebook)


def test_small_and_with_a_figure_that_wears_a_badge(notebook: nbformat.NotebookNode) -> None:
    assert len(json.dumps(notebook)) < 1_000_000
    figures = [output.data[PLOTLY] for output in outputs(notebook) if PLOTLY in output.get("data", {})]
    assert figures
    for figure in figures:
        texts = [annotation.get("text", "") for annotation in figure["layout"].get("annotations", [])]
        assert any(word in text for text in texts for word in ("LIVE", "RECORDED", "MODEL"))


def test_something_is_compared_when_nbval_runs_it(notebook: nbformat.NotebookNode) -> None:
    marked = [c for c in notebook.cells if c.cell_type == "code" and "nbval-check-output" in c.metadata.get("tags", [])]
    assert marked
    assert all(cell.outputs for cell in marked)


def test_marks_for_the_tools_are_tags_and_not_in_the_source_that_a_learner_reads(
    notebook: nbformat.NotebookNode,
) -> None:
    marks = re.compile(r"NBVAL|PYTEST_VALIDATE|nbval-", re.IGNORECASE)
    assert [cell.id for cell in notebook.cells if marks.search(cell.source)] == []
