"""The notebooks with their solutions filled in, and the exercises as assignments of nbgrader and Otter-Grader.

All of it is made from the notebooks' own cells (see ``sources``), so there is one text of every exercise. nbgrader's
metadata: https://nbgrader.readthedocs.io/en/stable/contributor_guide/metadata.html. Otter's format of assignments:
https://otter-grader.readthedocs.io/en/latest/otter_assign/notebook_format.html.
"""

import ast
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_raw_cell, writes

from tplab.checks import ArgumentError
from tplab.cluster import Cluster
from tplab.files import replacing
from tplab.lab.exercises.registry import EXERCISES
from tplab.lab.grading.answers import find_answer
from tplab.lab.grading.grades import POINTS
from tplab.lab.grading.sources import Source, notebooks_folder, read_notebook, sources_of
from tplab.lab.grading.submissions import Notebook, Submission

_FOLDED_SOLUTION = re.compile(r"<details>\s*<summary>\s*Solution\s*</summary>.*?</details>", re.DOTALL)
_HERE = "# Your code: change the function above, or write it anew below this line."
_NBGRADER_CONFIG = f'''"""Made by `tplab export nbgrader`."""

c = get_config()
c.CourseDirectory.course_id = "tplab"
c.ClearSolutions.code_stub = {{"python": "{_HERE}"}}
c.Execute.timeout = 600  # seconds for a cell: a check starts ranks
'''


def assert_passes(exercise: str, function: Callable[..., Any]) -> None:
    """Grade ``function`` on fresh ranks, as a test cell of another grader does.

    Raises ``AssertionError`` in the checker's words, and ``ValueError`` for an unknown exercise.
    """
    if exercise not in EXERCISES:
        raise ValueError(f"exercise must be one of {', '.join(EXERCISES)}; got {exercise!r}")
    found = EXERCISES[exercise]
    if found.num_ranks:
        with Cluster(found.num_ranks) as cluster:
            verdict = found.grade(cluster, function)
    else:
        verdict = found.grade(None, function)
    if not verdict.passed:
        raise AssertionError(verdict.message)


def write_solutions(folder: str | os.PathLike[str], notebooks: str | os.PathLike[str] | None = None) -> list[Path]:
    """Write each notebook with exercises into ``folder``, every stub replaced by its solution; returns the paths.

    Raises ``ValueError`` where the lab's notebooks are not found, or ``folder`` is where they are.
    """
    home, top = _places(folder, notebooks)
    written = []
    for path, book, sources in _with_exercises(home):
        for source in sources:
            book.cells[source.stub].source = source.solution
        for cell in book.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        written.append(_write(top / path.name, book))
    if (home / "images").is_dir():
        shutil.copytree(home / "images", top / "images", dirs_exist_ok=True)
    return written


def export_nbgrader(folder: str | os.PathLike[str], notebooks: str | os.PathLike[str] | None = None) -> list[Path]:
    """Write a course of nbgrader into ``folder``: ``source/NOTEBOOK/NOTEBOOK.ipynb`` for each notebook with exercises,
    and ``nbgrader_config.py``; returns the paths of the notebooks. Raises like :func:`write_solutions`."""
    home, top = _places(folder, notebooks)
    written = []
    for path, book, sources in _with_exercises(home):
        made = _begun(book, sources)
        for source in sources:
            made.cells += _nbgrader_cells(book, source)
        written.append(_write(top / "source" / path.stem / path.name, made))
    with replacing(top / "nbgrader_config.py") as partial:
        partial.write_text(_NBGRADER_CONFIG, "utf-8")
    return written


def export_otter(folder: str | os.PathLike[str], notebooks: str | os.PathLike[str] | None = None) -> list[Path]:
    """Write a notebook for ``otter assign`` into ``folder/NOTEBOOK`` for each notebook with exercises; returns the
    paths. Raises like :func:`write_solutions`."""
    home, top = _places(folder, notebooks)
    written = []
    for path, book, sources in _with_exercises(home):
        made = _begun(book, sources)
        config = "# ASSIGNMENT CONFIG\ninit_cell: true\ncheck_all_cell: false\nexport_cell: true\nrequirements: [tplab]"
        made.cells.insert(0, _raw(config))
        for source in sources:
            made.cells += _otter_cells(book, source)
        written.append(_write(top / path.stem / path.name, made))
    return written


def _places(folder: str | os.PathLike[str], notebooks: str | os.PathLike[str] | None) -> tuple[Path, Path]:
    """Where the notebooks are, and where to write, which is not there."""
    home, top = notebooks_folder(notebooks), Path(folder)
    if top.resolve() == home.resolve():
        raise ArgumentError("folder", str(folder), "must be another folder than that of the notebooks themselves")
    return home, top


def _with_exercises(home: Path) -> Iterator[tuple[Path, Any, list[Source]]]:
    for path in sorted(home.glob("[0-9][0-9]-*.ipynb")):
        book = read_notebook(path)
        if sources := sources_of(book, path):
            yield path, book, sources


def _write(path: Path, book: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(writes(book) + "\n", "utf-8")  # type: ignore[no-untyped-call]
    return path


def _begun(book: Any, sources: list[Source]) -> Any:
    """A notebook with the title, and what of the lab's notebook stubs and solutions need to have been run before."""
    title = next((cell.source.splitlines()[0] for cell in book.cells if cell.cell_type == "markdown"), "# Exercises")
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    made = new_notebook(metadata=metadata)  # type: ignore[no-untyped-call]
    intro = f"{title}\n\nThe exercises of this notebook of the lab, to be handed in."
    made.cells.append(new_markdown_cell(intro))  # type: ignore[no-untyped-call]
    needed = list(dict.fromkeys(text for source in sources for text in _needed(book, source)))
    if needed:
        made.cells.append(new_code_cell("\n".join(needed)))  # type: ignore[no-untyped-call]
    return made


def _needed(book: Any, source: Source) -> Iterator[str]:
    """The definitions of earlier cells that stub or solution use."""
    for text in (book.cells[source.stub].source, source.solution):
        cells = deepcopy(json.loads(writes(book))["cells"])  # type: ignore[no-untyped-call]
        cells[source.stub]["source"] = text
        handed_in = Notebook(name=source.path.name, modified=0.0, cells=tuple(cells))
        answer = find_answer(Submission(learner="", notebooks=[handed_in]), source.exercise)
        assert answer is not None
        for piece in answer.pieces:
            if piece.cell != source.stub + 1:
                yield from map(ast.unparse, ast.parse(piece.source).body)


def _task_and_hints(book: Any, source: Source) -> tuple[str, str]:
    """Both without the solution."""
    hints = _FOLDED_SOLUTION.sub("", book.cells[source.hints].source).strip()
    return book.cells[source.task].source, hints


def _test(source: Source) -> str:
    return (
        "from tplab.lab.grading import assert_passes\n\n"
        f'assert_passes("{source.exercise.name}", {source.exercise.function})'
    )


def _nbgrader_cells(book: Any, source: Source) -> Iterator[Any]:
    name = source.exercise.name
    task, hints = _task_and_hints(book, source)

    def cell(made: Any, kind: str, **marks: Any) -> Any:
        usual = {"grade": False, "solution": False, "locked": True, "task": False, "schema_version": 3}
        made.metadata["nbgrader"] = {**usual, "grade_id": f"{name}-{kind}", **marks}
        made.metadata["tplab"] = {"exercise": name, "part": kind}
        return made

    answer = f"{book.cells[source.stub].source}\n\n### BEGIN SOLUTION\n{source.solution}\n### END SOLUTION"
    yield cell(new_markdown_cell(task), "task")  # type: ignore[no-untyped-call]
    yield cell(new_code_cell(answer), "stub", solution=True, locked=False)  # type: ignore[no-untyped-call]
    points = POINTS[source.exercise.difficulty]
    yield cell(new_code_cell(_test(source)), "check", grade=True, points=points)  # type: ignore[no-untyped-call]
    if hints:
        yield cell(new_markdown_cell(hints), "hints")  # type: ignore[no-untyped-call]


def _otter_cells(book: Any, source: Source) -> Iterator[Any]:
    task, hints = _task_and_hints(book, source)
    name, points = re.sub(r"\W", "_", f"q{source.exercise.name}"), POINTS[source.exercise.difficulty]
    answer = (
        f"{book.cells[source.stub].source}\n\n{_HERE}\n# BEGIN SOLUTION NO PROMPT\n{source.solution}\n# END SOLUTION"
    )
    stub = new_code_cell(answer)  # type: ignore[no-untyped-call]
    stub.metadata["tplab"] = {"exercise": source.exercise.name, "part": "stub"}
    yield _raw(f"# BEGIN QUESTION\nname: {name}\npoints: {points}")
    yield new_markdown_cell(task)  # type: ignore[no-untyped-call]
    yield _raw("# BEGIN SOLUTION")
    yield stub
    yield _raw("# END SOLUTION")
    yield _raw("# BEGIN TESTS")
    yield new_code_cell(_test(source))  # type: ignore[no-untyped-call]
    yield _raw("# END TESTS")
    yield _raw("# END QUESTION")
    if hints:
        yield new_markdown_cell(hints)  # type: ignore[no-untyped-call]


def _raw(text: str) -> Any:
    return new_raw_cell(text)  # type: ignore[no-untyped-call]
