"""Exercises as they stand in the notebooks: registry, cells and checkers agree; every solution passes, every stub does
not, and is told so politely."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tplab.lab.exercises import EXERCISES
from tplab.lab.exercises.own_work import find_library_use

pytestmark = pytest.mark.timeout(120)

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
PARTS = ("task", "stub", "check", "hints")


def cells_of(path: Path) -> Iterator[tuple[str, str, Any]]:
    for cell in nbformat.read(path, as_version=4).cells:
        about = cell.metadata.get("tplab", {})
        if "exercise" in about:
            yield about["exercise"], about["part"], cell


CELLS = {
    path.stem: [(name, part, cell) for name, part, cell in cells_of(path)] for path in sorted(NOTEBOOKS.glob("*.ipynb"))
}
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n```python\n(.*?)\n```\n</details>", re.DOTALL)

each_exercise = pytest.mark.parametrize("name", EXERCISES)


def cell_of(name: str, part: str) -> Any:
    (cell,) = (c for n, p, c in CELLS[EXERCISES[name].notebook] if (n, p) == (name, part))
    return cell


def defined(source: str, function: str) -> Any:
    """What a stub cell, or a solution in its place, defines: on its own, without any other cell."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, f"<{function}>", "exec"), scope)
    return scope[function]


def test_notebooks_have_the_registrys_exercises_and_no_others() -> None:
    found = {name: notebook for notebook, cells in CELLS.items() for name, _, _ in cells}
    assert found == {name: exercise.notebook for name, exercise in EXERCISES.items()}


@each_exercise
def test_its_cells_are_there_in_order(name: str) -> None:
    exercise = EXERCISES[name]
    assert [part for n, part, _ in CELLS[exercise.notebook] if n == name] == list(PARTS)
    kinds = [cell_of(name, part).cell_type for part in PARTS]
    assert kinds == ["markdown", "code", "code", "markdown"]
    heading = cell_of(name, "task").source.splitlines()[0]
    assert heading.startswith(f"## Exercise · {exercise.difficulty} · {exercise.minutes} minutes")
    hints = re.findall(r"<summary>(.*?)</summary>", cell_of(name, "hints").source)
    assert hints == ["Hint 1", "Hint 2", "Hint 3", "Solution"]
    assert len(SOLUTION.findall(cell_of(name, "hints").source)) == 1
    called = exercise.checker.partition(":")[2]
    assert re.search(rf"\b{called}\(.*\b{exercise.function}\b", cell_of(name, "check").source)


@each_exercise
def test_its_checker_knows_its_name_and_explains_itself(name: str) -> None:
    check = EXERCISES[name].check_function
    assert check.exercise == name  # type: ignore[attr-defined]
    assert inspect.getdoc(check)


@each_exercise
def test_its_solution_passes_and_is_its_own_work(name: str, clusters: Any) -> None:
    exercise = EXERCISES[name]
    (solution,) = SOLUTION.findall(cell_of(name, "hints").source)
    function = defined(solution, exercise.function)
    assert find_library_use(function, exercise.allowed) == ""
    verdict = exercise.check(clusters[exercise.num_ranks] if exercise.num_ranks else None, function)
    assert verdict.passed, verdict.message


@each_exercise
def test_its_stub_is_told_politely_what_is_missing(name: str, clusters: Any) -> None:
    exercise = EXERCISES[name]
    function = defined(cell_of(name, "stub").source, exercise.function)
    verdict = exercise.check(clusters[exercise.num_ranks] if exercise.num_ranks else None, function)
    assert not verdict.passed
    assert "Traceback" not in verdict.message
    assert 20 < len(verdict.message) < 1000
