"""What a learner has done and what comes next, over all notebooks of a folder.

The notebooks themselves say which predictions and exercises they have: ``Predict(..., name="00-call")`` in a cell, and
the metadata of exercises' cells. So a list apart from them cannot go stale.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from tplab.checks import ArgumentError
from tplab.files import read_json
from tplab.lab import style
from tplab.lab.panels import html
from tplab.lab.progress import (
    FILE_NAME,
    VARIABLE,
    ExerciseRecord,
    PredictionRecord,
    Progress,
    file_in,
    progress_file,
)
from tplab.shown import counted

_NUMBERED = re.compile(r"(\d\d)-.*\.ipynb")
_PREDICTION = re.compile(r'\bPredict\((?:(?!\bPredict\()[\s\S])*?\bname="(\d\d-[a-z0-9-]+)"')


@dataclass(frozen=True, kw_only=True, slots=True)
class NotebookProgress:
    """One notebook: what there is to predict and to solve, and what was."""

    number: str
    """The notebook's number, such as ``02``."""
    title: str
    """The heading, without the number."""
    file: str
    """Name of the file; empty where only records of it are there."""
    predictions: dict[str, PredictionRecord | None]
    """Predictions by name; None for those that are open."""
    exercises: dict[str, ExerciseRecord | None]
    """Exercises by name; None for those that nobody has tried."""

    @property
    def predicted(self) -> int:
        """How many numbers were committed."""
        return sum(record is not None and record.value is not None for record in self.predictions.values())

    @property
    def solved(self) -> int:
        """How many exercises have passed."""
        return sum(record is not None and record.passed for record in self.exercises.values())

    @property
    def open(self) -> tuple[list[str], list[str]]:
        """Names of predictions of which nothing was seen yet, and of exercises that have not passed."""
        return (
            [name for name, record in self.predictions.items() if record is None],
            [name for name, record in self.exercises.items() if record is None or not record.passed],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgressTable:
    """All notebooks of a folder, as a table in a notebook and as text elsewhere."""

    notebooks: tuple[NotebookProgress, ...]
    """The notebooks in order."""
    note: str = ""
    """Why something is missing: a file that cannot be read, say."""

    @property
    def next(self) -> str:
        """What to do next, in words."""
        for notebook in self.notebooks:
            predictions, exercises = notebook.open
            parts = [
                counted(len(names), kind)
                for names, kind in ((predictions, "prediction"), (exercises, "exercise"))
                if names
            ]
            if parts:
                return f"Next: {notebook.number} {notebook.title}, with {' and '.join(parts)} open."
        return "All done." if self.notebooks else "There are no notebooks here."

    def __repr__(self) -> str:
        rows = [("", "Notebook", "Predicted", "Exercises")]
        rows += [(each.number, each.title, _predictions(each), _exercises(each)) for each in self.notebooks]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *([self.note] if self.note else []), self.next])

    def _repr_html_(self) -> str:
        done = f'<span style="color:{style.WEIGHT_GRADIENT}" aria-hidden="true">✓</span> '

        def cells(each: NotebookProgress) -> Iterator[str]:
            finished = each.open == ([], [])
            name = escape(f"{each.number} · {each.title}")
            link = f'<a href="{escape(each.file)}">{name}</a>' if each.file else name
            yield f"{done if finished else ''}{link}"
            yield escape(_predictions(each))
            yield escape(_exercises(each))

        table = html.table(["Notebook", "Predicted", "Exercises"], map(cells, self.notebooks))  # type: ignore[arg-type]
        note = html.quiet(self.note) if self.note else ""
        return f"{table}{note}{html.heading(self.next)}"


def progress_table(folder: str | os.PathLike[str] | None = None) -> ProgressTable:
    """What was predicted and solved in the notebooks of a folder, and what comes next.

    Args:
        folder: the notebooks' folder; by default that of this kernel's progress, or the current one.

    A progress file that cannot be read is said in the table. Raises ``ArgumentError`` for what is no folder.
    """
    if folder is None:
        kept = progress_file()
        # Told to keep nothing, it shows nothing kept: whoever stores outputs may have progress of their own here.
        file = kept or (None if os.environ.get(VARIABLE) == "off" else Path.cwd() / FILE_NAME)
        folder = kept.parent if kept else Path.cwd()
    elif Path(folder).is_dir():
        file = file_in(folder)
    else:
        raise ArgumentError("folder", os.fspath(folder), "must be a folder with notebooks")
    notes = []
    try:
        progress = Progress() if file is None else Progress.read(file)
    except (OSError, ValueError) as error:
        progress = Progress()
        notes.append(f"The progress kept here cannot be shown: {error}.")
    titles: dict[str, tuple[str, str]] = {}
    predictions, exercises = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for path in sorted(Path(folder).iterdir(), key=lambda path: path.stem):
        if not _NUMBERED.fullmatch(path.name):
            continue
        number = path.name[:2]
        try:
            title, asked, tasks = _outline(read_json(path))
        except (OSError, ValueError) as error:
            notes.append(f"{path.name} cannot be read: {error}.")
            title, asked, tasks = path.stem[3:], [], []
        titles.setdefault(number, (title, path.name))  # later ones are somebody's copies
        predictions[number] += asked
        exercises[number] += tasks
    for name in progress.predictions:
        predictions[name[:2]].append(name)
    for name in progress.exercises:
        exercises[name[:2]].append(name)
    notebooks = []
    for number in sorted({*titles, *predictions, *exercises}):
        title, file_name = titles.get(number, ("(not in this folder)", ""))
        notebooks.append(
            NotebookProgress(
                number=number,
                title=title,
                file=file_name,
                predictions={name: progress.predictions.get(name) for name in predictions[number]},
                exercises={name: progress.exercises.get(name) for name in exercises[number]},
            )
        )
    return ProgressTable(
        notebooks=tuple(notebooks),
        note=" ".join(notes),
    )


def _outline(notebook: Any) -> tuple[str, list[str], list[str]]:
    """Title, names of predictions and names of exercises of a notebook. Raises ``ValueError`` for what is none."""
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise ValueError("it is not a notebook")
    title, predictions, exercises = "", [], []
    for cell in cells:
        if not isinstance(cell, dict):
            raise ValueError("it is not a notebook")
        source = cell.get("source", "")
        text = "".join(map(str, source)) if isinstance(source, list) else str(source)
        if not title and cell.get("cell_type") == "markdown" and text.startswith("# "):
            title = text.splitlines()[0].removeprefix("# ").partition("·")[2].strip()
        if cell.get("cell_type") == "code":
            predictions += _PREDICTION.findall(text)
        about = cell.get("metadata", {}).get("tplab", {}) if isinstance(cell.get("metadata"), dict) else {}
        if isinstance(about, dict) and about.get("part") == "stub" and isinstance(about.get("exercise"), str):
            exercises.append(about["exercise"])
    return title, predictions, exercises


def _predictions(each: NotebookProgress) -> str:
    if not each.predictions:
        return "none"
    shown = sum(record is not None and record.value is None for record in each.predictions.values())
    return f"{each.predicted} of {len(each.predictions)}" + (f", {shown} only shown" if shown else "")


def _exercises(each: NotebookProgress) -> str:
    if not each.exercises:
        return "none"
    tried = sum(record is not None and not record.passed for record in each.exercises.values())
    return f"{each.solved} of {len(each.exercises)}" + (f", {tried} tried" if tried else "")
