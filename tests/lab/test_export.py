"""One text of every exercise: filled in, and as the assignments of other graders."""

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tplab import cli
from tplab.checks import ArgumentError
from tplab.lab.exercises import EXERCISES
from tplab.lab.grading.export import assert_passes, export_nbgrader, export_otter, write_solutions
from tplab.lab.grading.grades import POINTS
from tplab.lab.grading.sources import notebooks_folder, stubs_of

pytestmark = pytest.mark.timeout(300)

STUB = "def reduce(rank, x):\n    dist.all_reduce(x)\n    return x"
SOLUTION = "def reduce(rank, x):\n    dist.all_reduce(x, op=dist.ReduceOp.PRODUCT)\n    return x"
HINTS = f"""<details><summary>Hint 1</summary>

The operation.
</details>
<details><summary>Solution</summary>

```python
{SOLUTION}
```
</details>"""


def cell(kind: str, part: str, source: str) -> dict[str, Any]:
    made = {"cell_type": kind, "id": f"c-{part}", "metadata": {}, "source": source}
    if part in ("task", "stub", "check", "hints"):
        made["metadata"] = {"tplab": {"exercise": "00-product", "part": part}}
    return made | ({"outputs": [], "execution_count": 1} if kind == "code" else {})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of notebooks, one with an exercise whose stub needs an import of an earlier cell."""
    cells = [
        cell("markdown", "title", "# 00 · Start here"),
        cell(
            "code", "before", "import torch.distributed as dist\nfrom tplab.lab import Pool\n\npool = Pool(2)\nprint(1)"
        ),
        cell("markdown", "task", "## Exercise · easy · 3 minutes\n\nThe product."),
        cell("code", "stub", STUB),
        cell("code", "check", "from tplab.lab import check_reduction\n\ncheck_reduction(pool.cluster, reduce)"),
        cell("markdown", "hints", HINTS),
    ]
    folder = tmp_path / "notebooks"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "x.png").write_bytes(b"x")
    book = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}
    (folder / "00-start-here.ipynb").write_text(json.dumps(book))
    (folder / "06-none.ipynb").write_text(json.dumps(book | {"cells": cells[:1]}))
    return folder


def sources(path: Path) -> list[tuple[str, str]]:
    return [(each.cell_type, each.source) for each in nbformat.read(path, 4).cells]


def test_solutions_stand_in_the_stubs_places(home: Path, tmp_path: Path) -> None:
    (written,) = write_solutions(tmp_path / "out", home)
    assert ("code", SOLUTION) in sources(written)
    assert ("code", STUB) not in sources(written)
    assert (tmp_path / "out/images/x.png").exists()


def test_nbgrader_gets_points_locked_tests_and_what_was_defined_before(home: Path, tmp_path: Path) -> None:
    (written,) = export_nbgrader(tmp_path / "course", home)
    assert written == tmp_path / "course/source/00-start-here/00-start-here.ipynb"
    book = nbformat.read(written, 4)
    nbformat.validate(book)
    marks = {each.metadata.nbgrader.grade_id: each for each in book.cells if "nbgrader" in each.metadata}
    assert [*marks] == ["00-product-task", "00-product-stub", "00-product-check", "00-product-hints"]
    check, stub = marks["00-product-check"], marks["00-product-stub"]
    assert (check.metadata.nbgrader.points, check.metadata.nbgrader.grade, check.metadata.nbgrader.locked) == (
        1,
        True,
        True,
    )
    assert (stub.metadata.nbgrader.solution, stub.metadata.nbgrader.locked) == (True, False)
    assert stub.source == f"{STUB}\n\n### BEGIN SOLUTION\n{SOLUTION}\n### END SOLUTION"
    assert "Solution" not in marks["00-product-hints"].source
    assert "The operation." in marks["00-product-hints"].source
    assert ("code", "import torch.distributed as dist") in sources(written)  # and no Pool
    compile((tmp_path / "course/nbgrader_config.py").read_text(), "config", "exec")


def test_otter_gets_a_question_with_its_blocks_in_order(home: Path, tmp_path: Path) -> None:
    (written,) = export_otter(tmp_path / "out", home)
    raw = [text.splitlines()[0] for kind, text in sources(written) if kind == "raw"]
    assert raw == [
        "# ASSIGNMENT CONFIG",
        "# BEGIN QUESTION",
        "# BEGIN SOLUTION",
        "# END SOLUTION",
        "# BEGIN TESTS",
        "# END TESTS",
        "# END QUESTION",
    ]
    answer = next(text for kind, text in sources(written) if "BEGIN SOLUTION NO PROMPT" in text and kind == "code")
    kept = re.sub(r"# BEGIN SOLUTION NO PROMPT\n.*?# END SOLUTION", "", answer, flags=re.DOTALL)
    assert "PRODUCT" not in kept
    assert STUB in kept


def test_a_test_cell_raises_in_the_checkers_words() -> None:
    with pytest.raises(AssertionError, match=r"correlation|layout|score"):
        assert_passes("07-score", lambda *args: 0.0)
    with pytest.raises(ValueError, match="exercise must be one of"):
        assert_passes("99", len)


def test_the_labs_own_notebooks_are_exported_whole(tmp_path: Path) -> None:
    books = export_nbgrader(tmp_path)
    points = [
        each.metadata.nbgrader.get("points", 0)
        for book in books
        for each in nbformat.read(book, 4).cells
        if "nbgrader" in each.metadata
    ]
    assert sum(points) == sum(
        POINTS[exercise.difficulty] for exercise in map(EXERCISES.__getitem__, stubs_of(notebooks_folder()))
    )
    for book in books:
        for kind, text in sources(book):
            if kind == "code":
                compile(text, str(book), "exec")


def test_a_solved_notebook_runs_from_top_to_bottom_and_its_checks_pass(home: Path, tmp_path: Path) -> None:
    (written,) = write_solutions(tmp_path / "out", home)
    book = nbformat.read(written, 4)
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(written.parent)}}).execute()
    check = next(each for each in book.cells if each.metadata.get("tplab", {}).get("part") == "check")
    assert "passed" in str(check.outputs)


def test_where_the_notebooks_are(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert notebooks_folder().name == "notebooks"
    with pytest.raises(ArgumentError, match="another folder"):
        write_solutions(home, home)
    assert cli.main(["solutions", str(tmp_path / "s"), "--notebooks", str(tmp_path)]) == 2
    assert "--notebooks must be the folder with the lab's notebooks" in capsys.readouterr().err
    assert cli.main(["export", "otter", str(tmp_path / "o"), "--notebooks", str(home)]) == 0
    assert "00-start-here.ipynb" in capsys.readouterr().out


@pytest.mark.parametrize(("part", "words"), [("hints", "no cell for its hints"), ("solution", "fold no solution away")])
def test_an_exercise_with_a_part_missing_is_named(home: Path, tmp_path: Path, part: str, words: str) -> None:
    path = home / "00-start-here.ipynb"
    book = json.loads(path.read_text())
    if part == "hints":
        book["cells"].pop()
    else:
        book["cells"][-1]["source"] = "<details><summary>Hint 1</summary>x</details>"
    path.write_text(json.dumps(book))
    with pytest.raises(ValueError, match=words):
        write_solutions(tmp_path / "out", home)
