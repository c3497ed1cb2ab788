"""The exercises as they stand in the lab's notebooks: the one source of stubs, tasks, hints and solutions."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from tplab.checks import ArgumentError
from tplab.lab.exercises.registry import EXERCISES, Exercise
from tplab.lab.grading.answers import part_of
from tplab.lab.shipped import NUMBERED, root

_SOLUTION = re.compile(r"<summary>\s*Solution\s*</summary>.*?^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One exercise in its notebook."""

    exercise: Exercise
    """Which."""
    path: Path
    """The notebook."""
    task: int
    """Index of the Markdown cell that asks for it."""
    stub: int
    """Index of the code cell that a learner fills in."""
    check: int
    """Index of the code cell that calls the checker."""
    hints: int
    """Index of the Markdown cell with hints and solution."""
    solution: str
    """What goes in the stub cell's place."""


def notebooks_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder with the lab's notebooks: ``folder``, or that of this installation. Raises ``ArgumentError`` where
    they are not."""
    found = root() / "notebooks" if folder is None else Path(folder)
    if any(found.glob(NUMBERED)):
        return found
    rule = "must be the folder with the lab's notebooks (00-start-here.ipynb, ...); `tplab lab` makes a copy of it"
    raise ArgumentError("notebooks", str(found), rule)


def read_notebook(path: Path) -> Any:
    """The notebook. Raises ``ValueError`` for what is none."""
    try:
        return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    except Exception as error:  # nbformat raises what its readers and its validator do
        raise ValueError(f"{path} is no notebook: {error}") from error


def sources_of(book: Any, path: Path) -> list[Source]:
    """The exercises of one notebook, in order. Raises ``ValueError`` where a part of one is missing."""
    places: dict[str, dict[str, int]] = {}
    for index, cell in enumerate(book.cells):
        name, part = part_of(cell)
        if name in EXERCISES:
            places.setdefault(name, {})[part] = index
    found = []
    for name, parts in places.items():
        if lacking := {"task", "stub", "check", "hints"} - parts.keys():
            raise ValueError(f"{path.name}: exercise {name} has no cell for its {', '.join(sorted(lacking))}")
        solution = _SOLUTION.search(book.cells[parts["hints"]].source)
        if solution is None:
            raise ValueError(f"{path.name}: the hints of exercise {name} fold no solution away")
        found.append(Source(exercise=EXERCISES[name], path=path, solution=solution[1].rstrip("\n"), **parts))
    return found


def stubs_of(folder: Path) -> dict[str, str]:
    """Exercise -> its stub cell's text, of all notebooks in ``folder``."""
    found = {}
    for path in sorted(folder.glob("*.ipynb")):
        for cell in read_notebook(path).cells:
            name, part = part_of(cell)
            if name in EXERCISES and part == "stub":
                found[name] = str(cell.source)
    return found
