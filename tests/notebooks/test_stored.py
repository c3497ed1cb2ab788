"""What the stored notebooks promise a visitor who has not run anything (nbval executes them)."""

import json
import re
from base64 import b64decode
from pathlib import Path

import nbformat
import pytest

from tplab.lab.panels.figure_view import plain
from tplab.lab.saving import MARK, PLOTLY

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


def test_every_figure_and_every_live_thing_is_whole_without_a_kernel_and_without_scripts(
    notebook: nbformat.NotebookNode,
) -> None:
    for output in outputs(notebook):
        data = output.get("data", {})
        if PLOTLY in data:
            assert len(data["text/plain"]) > len("Figure"), "who does not see it reads its title"
            assert output.metadata["image/png"].alt == data["text/plain"]
            assert png_size(data["image/png"])[0] >= output.metadata["image/png"].width
        elif "image/png" in data:
            assert output.metadata["image/png"].alt
        elif MARK in output.get("metadata", {}):
            assert len(plain(data["text/html"])) > len("Run All Cells")
            assert "<iframe" not in data["text/html"]
        assert "A live panel: run the notebook" not in json.dumps(data)


def test_a_panel_says_how_to_go_on(notebook: nbformat.NotebookNode) -> None:
    """Each notebook has a pool, a panel and a prediction, and each of them a picture of itself."""
    texts = [output.data["text/html"] for output in outputs(notebook) if "tplab-still" in str(output.get("data"))]
    for words in ("starts fresh ones", "brings the controls back", "brings the field for your number back"):
        assert [text for text in texts if words in text], words


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_says_where_the_project_lies(path: Path) -> None:
    assert not re.findall(r"(?<![\w:/.])/[\w./-]+/(?:tplab|notebooks|site-packages)/", path.read_text("utf-8"))


def test_all_notebooks_together_are_small() -> None:
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 5_000_000


def png_size(image: str) -> tuple[int, int]:
    header = b64decode(image)[:24]
    assert header.startswith(b"\x89PNG\r\n")
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


def test_no_widget_state_and_no_views_without_one(notebook: nbformat.NotebookNode) -> None:
    assert "widgets" not in notebook.metadata
    assert "application/vnd.jupyter.widget-view+json" not in json.dumps(notebook)


def test_small_and_with_a_figure_that_wears_a_badge(notebook: nbformat.NotebookNode) -> None:
    assert len(json.dumps(notebook)) < 1_300_000  # a figure is stored as plotly has it and as a picture
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
