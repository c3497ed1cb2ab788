"""The subcommands for a teacher, ``tplab grade``, ``solutions`` and ``export``: thin, call ``tplab.lab.grading``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tplab import needs
from tplab.checks import ArgumentError
from tplab.cli import words

if TYPE_CHECKING:
    from tplab.lab.grading.grades import Grade

_NOTEBOOKS = "folder with the lab's notebooks (default: those that tplab was installed with)"


def add_grade(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``grade`` to ``tplab``'s commands."""
    parser = commands.add_parser(
        "grade",
        help="grade learners' notebooks: a table, a report for each learner",
        description="Run every answer in FOLDER (a folder or zip file for each learner, or files such as ada-02.ipynb) "
        "through its checker, in a process and on ranks of its own. Marks: ok passed, x not passed, . as handed out. "
        "Exit status 1 if something handed in could not be read, or Ctrl-C ended it before all were graded. "
        "SECURITY.md says what keeps learners' code in.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="what the learners handed in")
    parser.add_argument("--exercises", help="comma-separated, such as 02-ring,03-mlp (default: all that are found)")
    parser.add_argument("--csv", help="also write a row for each learner and exercise to this file")
    parser.add_argument("--reports", default="reports", help="folder for a report per learner (default reports)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one answer (default 300)")
    parser.add_argument(
        "--memory-GB", dest="memory_GB", type=float, default=4.0, help="memory that one answer may take (default 4)"
    )
    parser.add_argument("--notebooks", help=f"{_NOTEBOOKS}: to know what was handed out")
    parser.set_defaults(call=_grade)


def _grade(arguments: argparse.Namespace) -> int:
    needs.check("this command", "torch", "psutil", "tqdm", "nbformat")
    from tqdm import tqdm

    from tplab.lab.grading.confined import isolation_in_words
    from tplab.lab.grading.grades import grade_folder
    from tplab.lab.grading.sources import notebooks_folder, stubs_of

    csv = words.writable("--csv", arguments.csv) if arguments.csv is not None else None
    try:
        stubs = stubs_of(notebooks_folder(arguments.notebooks))
    except ArgumentError:
        if arguments.notebooks is not None:
            raise
        stubs = {}
    names = [name.strip() for name in arguments.exercises.split(",")] if arguments.exercises is not None else None
    with tqdm(disable=None, unit=" answers") as bar:

        def on_grade(grade: "Grade") -> None:
            bar.set_description(f"{grade.learner} {grade.exercise}")
            bar.update()

        grades = grade_folder(
            arguments.folder,
            exercises=names,
            timeout=arguments.timeout,
            memory_GB=arguments.memory_GB,
            stubs=stubs,
            on_grade=on_grade,
        )
    print(words.table(grades.table))
    damaged = [(learner, fault) for learner, faults in grades.faults.items() for fault in faults]
    for learner, fault in damaged:
        print(f"{learner}: {fault}")
    print(f"Isolation: {isolation_in_words()}.")
    try:
        written = grades.write_reports(arguments.reports)
    except OSError as error:
        text = "\n".join(map(grades.report, grades.faults))
        raise words.unsaved("--reports", error, text) from error
    print(f"Wrote {len(written)} reports to {arguments.reports}.")
    if csv is not None:
        words.write_csv("--csv", grades.frame, csv)
    if grades.not_graded:
        print(f"Interrupted: not graded are {', '.join(grades.not_graded)}.")
    return 1 if damaged or grades.not_graded else 0


def add_solutions(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``solutions`` to ``tplab``'s commands."""
    parser = commands.add_parser(
        "solutions",
        help="write the notebooks with every exercise solved",
        description="Write each notebook that has exercises with every stub replaced by its solution.",
    )
    parser.add_argument("folder", nargs="?", default="solutions", metavar="FOLDER", help="default solutions")
    parser.add_argument("--notebooks", help=_NOTEBOOKS)
    parser.set_defaults(call=_solutions)


def add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``export`` to ``tplab``'s commands."""
    parser = commands.add_parser(
        "export",
        help="write the exercises as assignments of nbgrader or Otter-Grader",
        description="Write the exercises, with points, solutions, tests and hints, for another grader: nbgrader (a "
        "course folder: then `nbgrader generate_assignment NOTEBOOK`) or otter (then `otter assign FILE FOLDER`).",
    )
    parser.add_argument("grader", metavar="GRADER", choices=("nbgrader", "otter"), help="nbgrader or otter")
    parser.add_argument("folder", metavar="FOLDER", help="where to write")
    parser.add_argument("--notebooks", help=_NOTEBOOKS)
    parser.set_defaults(call=_export)


def _solutions(arguments: argparse.Namespace) -> int:
    from tplab.lab.grading.export import write_solutions

    return _say_written(write_solutions(arguments.folder, arguments.notebooks))


def _export(arguments: argparse.Namespace) -> int:
    from tplab.lab.grading.export import export_nbgrader, export_otter

    export = export_nbgrader if arguments.grader == "nbgrader" else export_otter
    return _say_written(export(arguments.folder, arguments.notebooks))


def _say_written(paths: list[Path]) -> int:
    for path in paths:
        print(f"Wrote {path}.")
    return 0


def add_size(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``size`` to ``tplab``'s commands."""
    parser = commands.add_parser(
        "size",
        help="measure the memory and cores that the notebooks take, to size a room",
        description="Run notebooks from top to bottom, one after the other, and print the peak memory (PSS) of kernel "
        "and ranks, and the cores that they kept busy.",
    )
    parser.add_argument("names", nargs="*", metavar="NOTEBOOK", help="such as 02 (default: all)")
    parser.add_argument("--notebooks", help=_NOTEBOOKS)
    parser.set_defaults(call=_size)


def _size(arguments: argparse.Namespace) -> int:
    needs.check("this command", "torch", "psutil", "tqdm", "nbformat", "jupyter_client")
    from tplab.lab.grading.sources import notebooks_folder
    from tplab.lab.sizing import measure_notebooks

    found = sorted(notebooks_folder(arguments.notebooks).glob("[0-9][0-9]-*.ipynb"))
    for name in arguments.names:
        if not any(path.name.startswith(name) for path in found):
            rule = f"must be out of {', '.join(path.stem for path in found)}"
            raise ArgumentError("names", name, rule)
    chosen = [path for path in found if not arguments.names or path.name.startswith(tuple(arguments.names))]
    frame = measure_notebooks(chosen, lambda row: words.say(f"{row['notebook']}: {row['peak_GB']:.2f} GB at the peak"))
    print(words.table(frame))
    return int(frame["error"].any())
