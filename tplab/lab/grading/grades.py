"""All of a folder graded: a table of learners and exercises, a report for each learner, rows for a spreadsheet."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tplab.checks import check_number, check_one_of
from tplab.files import replacing
from tplab.lab.exercises.registry import EXERCISES, Exercise
from tplab.lab.grading.answers import find_answer
from tplab.lab.grading.outside import run_answer
from tplab.lab.grading.submissions import Submission, find_submissions

POINTS = {"easy": 1, "medium": 2, "hard": 3}
"""Points of an exercise by its difficulty."""
_MARKS = {"passed": "ok", "failed": "x", "unanswered": ".", "missing": ""}


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """One exercise of one learner."""

    learner: str
    """Whose."""
    exercise: str
    """Name of the exercise."""
    status: str
    """``passed``; ``failed``; ``unanswered``: as it was handed out; ``missing``: in none of the notebooks."""
    message: str
    """The checker's words."""
    details: str = ""
    """A traceback, the last of what the answer printed."""
    notebook: str = ""
    """Where the answer stands."""
    seconds: float = 0.0
    """How long checking took."""

    @property
    def points(self) -> int:
        """By the exercise's difficulty, if it is passed."""
        return POINTS[EXERCISES[self.exercise].difficulty] * (self.status == "passed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Grades:
    """What :func:`grade_folder` found."""

    grades: tuple[Grade, ...]
    """One for each learner and exercise."""
    faults: Mapping[str, Sequence[str]]
    """Learner -> what of the submission could not be read; every learner is a key."""
    not_graded: tuple[str, ...] = ()
    """Learners whose turn had not come, or was not over, when grading was interrupted."""

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each learner and exercise, for a CSV file."""
        columns = ["learner", "exercise", "status", "points", "most_points", "seconds", "notebook", "message"]
        rows = [
            (
                *(grade.learner, grade.exercise, grade.status, grade.points),
                POINTS[EXERCISES[grade.exercise].difficulty],
                *(round(grade.seconds, 2), grade.notebook, grade.message),
            )
            for grade in self.grades
        ]
        return pd.DataFrame(rows, columns=columns)

    @property
    def table(self) -> pd.DataFrame:
        """One row for each learner, one column for each exercise: ``ok``, ``x``, ``.`` as handed out, or nothing."""
        names = list(dict.fromkeys(grade.exercise for grade in self.grades))
        most = sum(POINTS[EXERCISES[name].difficulty] for name in names)
        rows = []
        for learner, faults in self.faults.items():
            own = self.of(learner)
            marks = [_MARKS[grade.status] for grade in own]
            points, seconds = sum(grade.points for grade in own), sum(grade.seconds for grade in own)
            rows.append([learner, *marks, f"{points}/{most}", f"{seconds:.0f}", "see below" if faults else ""])
        return pd.DataFrame(rows, columns=["learner", *names, "points", "s", "note"])

    def of(self, learner: str) -> list[Grade]:
        """One learner's, in the order of the exercises."""
        return [grade for grade in self.grades if grade.learner == learner]

    def report(self, learner: str) -> str:
        """For the learner, in Markdown: points, and the checker's words on every exercise."""
        own = self.of(learner)
        most = sum(POINTS[EXERCISES[grade.exercise].difficulty] for grade in own)
        lines = [f"# {_plain(learner)}", "", f"{sum(grade.points for grade in own)} of {most} points.", ""]
        lines += [f"- Could not be read: {_plain(fault)}" for fault in self.faults[learner]]
        for grade in own:
            exercise = EXERCISES[grade.exercise]
            head = f"{grade.exercise} · {exercise.title}"
            points = f"{grade.points} of {POINTS[exercise.difficulty]}"
            lines += ["", f"## {head}: {grade.status}, {points}", "", _plain(grade.message)]
            if grade.details:
                fence = "`" * (max([2, *map(len, re.findall("`+", grade.details))]) + 1)
                lines += ["", "<details><summary>The whole of it</summary>", "", f"{fence}text"]
                lines += [grade.details.rstrip(), fence, "", "</details>"]
        return "\n".join(lines) + "\n"

    def write_reports(self, folder: str | os.PathLike[str]) -> list[Path]:
        """A file for each learner; returns their paths. Raises ``OSError`` where one cannot be written."""
        top = Path(folder)
        top.mkdir(parents=True, exist_ok=True)
        written = []
        for learner in self.faults:
            name = re.sub(r"[^\w.-]+", "_", learner)[:100].strip(".") or "learner"
            path = top / f"{name}.md"
            while path in written:
                path = path.with_name(f"{path.stem}_.md")
            with replacing(path) as partial:
                partial.write_text(self.report(learner), "utf-8")
            written.append(path)
        return written


def grade_folder(
    folder: str | os.PathLike[str],
    *,
    exercises: Sequence[str] | None = None,
    timeout: float = 300.0,
    memory_GB: float = 4.0,
    stubs: Mapping[str, str] | None = None,
    on_grade: Callable[[Grade], None] | None = None,
) -> Grades:
    """Grade every answer of every learner in ``folder``: each in a fresh process with ranks of its own.

    An interrupt (Ctrl-C) ends it with the learners that are done, if there are any.

    Args:
        folder: learners' folders, zip files or notebooks.
        exercises: names of those to grade; None: all that are found in any submission.
        timeout: seconds for one exercise of one learner, with the start of its ranks.
        memory_GB: memory that its processes may take together.
        stubs: exercise -> the stub cell's text as handed out, to tell answers from it.
        on_grade: called with each :class:`Grade` when it is known.

    Raises:
        ArgumentError: no such folder, nothing in it, or an unknown exercise.
    """
    check_number("timeout", timeout, above=0, most=86_400)
    check_number("memory_GB", memory_GB, above=0, most=10**6)
    asked = [check_one_of("exercises", name, EXERCISES) for name in exercises or ()]
    submissions = find_submissions(folder)
    if not asked:
        found = [
            name for name, exercise in EXERCISES.items() if any(find_answer(each, exercise) for each in submissions)
        ]
        asked = found or list(EXERCISES)
    grades: list[Grade] = []
    faults: dict[str, tuple[str, ...]] = {}
    for submission in submissions:
        own = []
        try:
            for name in asked:
                stub = (stubs or {}).get(name, "")
                own.append(_grade(submission, EXERCISES[name], stub, timeout=timeout, memory_bytes=memory_GB * 1e9))
                if on_grade is not None:
                    on_grade(own[-1])
        except KeyboardInterrupt:
            if not faults:
                raise
            break
        grades += own
        faults[submission.learner] = tuple(submission.faults)
    late = tuple(submission.learner for submission in submissions if submission.learner not in faults)
    return Grades(grades=tuple(grades), faults=faults, not_graded=late)


def _grade(submission: Submission, exercise: Exercise, stub: str, *, timeout: float, memory_bytes: float) -> Grade:
    answer = find_answer(submission, exercise, stub)
    if answer is None:
        message = "not in any of the notebooks."
        return Grade(learner=submission.learner, exercise=exercise.name, status="missing", message=message)
    note = f" ({answer.note})" if answer.note else ""
    if answer.fault or not answer.attempted:
        status = "failed" if answer.fault else "unanswered"
        message = f"{answer.fault}.{note}" if answer.fault else f"as it was handed out.{note}"
        return Grade(
            learner=submission.learner,
            exercise=exercise.name,
            status=status,
            message=message,
            notebook=answer.notebook,
        )
    outcome = run_answer(exercise, answer, timeout=timeout, memory_bytes=memory_bytes)
    return Grade(
        learner=submission.learner,
        exercise=exercise.name,
        status="passed" if outcome.passed else "failed",
        message=f"{outcome.message}{note}",
        details=outcome.details,
        notebook=answer.notebook,
        seconds=outcome.seconds,
    )


def _plain(text: str) -> str:
    """A learner's text in Markdown: no HTML, no control characters."""
    return "".join(each for each in text if each.isprintable() or each == "\n").replace("<", "&lt;")
