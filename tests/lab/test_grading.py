"""`tplab grade`: what is taken of a notebook, what a learner's code cannot do, and what the teacher gets."""

import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from tplab import cli
from tplab.checks import ArgumentError
from tplab.lab.exercises import EXERCISES
from tplab.lab.grading import submissions
from tplab.lab.grading.answers import find_answer
from tplab.lab.grading.confined import landlock_version
from tplab.lab.grading.grades import Grade, grade_folder
from tplab.lab.grading.outside import Outcome, run_answer
from tplab.lab.grading.submissions import Notebook, Submission, find_submissions, learner_of

pytestmark = pytest.mark.timeout(240)

PRODUCT = EXERCISES["00-product"]
SCHEDULE = EXERCISES["05-schedule"]
RIGHT = """import torch.distributed as dist

def reduce(rank, x):
    dist.all_reduce(x, op=dist.ReduceOp.PRODUCT)
    return x
"""
# Checked without starting ranks: what is tried here is what an answer does before and around its call.
SCORE = EXERCISES["07-score"]


def cell(source: str, exercise: str = "", part: str = "", kind: str = "code") -> dict[str, Any]:
    metadata = {"tplab": {"exercise": exercise, "part": part}} if exercise else {}
    return {"cell_type": kind, "metadata": metadata, "source": source}


def submission(*cells: Any) -> Submission:
    book = Notebook(
        name="x.ipynb", modified=0.0, cells=tuple(each if isinstance(each, dict) else cell(each) for each in cells)
    )
    return Submission(learner="ada", notebooks=[book])


def write(path: Path, *cells: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = [each if isinstance(each, dict) else cell(each) for each in cells]
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": made}))
    return path


def taken(source: Submission, name: str = "00-product") -> dict[str, Any]:
    """What the answer's definitions come to, run here: only ever the tests' own code."""
    answer = find_answer(source, EXERCISES[name])
    assert answer is not None
    assert not answer.fault
    scope: dict[str, Any] = {}
    for piece in answer.pieces:
        exec(compile(piece.source, f"cell {piece.cell}", "exec"), scope)
    return scope


def graded(*cells: str, exercise: Any = SCORE, timeout: float = 60.0, memory_bytes: float = 4e9) -> Outcome:
    answer = find_answer(submission(*cells), exercise)
    assert answer is not None
    return run_answer(exercise, answer, timeout=timeout, memory_bytes=memory_bytes)


# What is taken of a notebook.


def test_definitions_are_taken_and_nothing_else_is_run() -> None:
    scope = taken(
        submission(
            "import math\nimport os\nprint(1/0)\n",
            "%load_ext tplab\nSCALE = math.sqrt(16); raise SystemExit",
            "TABLE = open('x').read()\nclass Helper:\n    base = SCALE\n",
            "def unused():\n    pass\nunrelated = 1 / 0",
            cell("def reduce(rank, x):\n    return x * Helper.base\nreduce(None, 1)", "00-product", "stub"),
            cell("check()", "00-product", "check"),
            "SCALE = 7.0",
        )
    )
    assert scope["reduce"](None, 2.0) == 8.0
    assert not {"TABLE", "unused", "unrelated", "os"} & scope.keys()


def test_lines_keep_their_numbers_and_a_helper_defined_twice_is_the_later() -> None:
    source = "import functools\n\n@functools.cache\ndef helper():\n    return 1\n"
    scope = taken(
        submission("def helper():\n    return 0", source, "# a comment\n\ndef reduce(rank, x):\n    return helper()")
    )
    assert scope["reduce"](None, None) == 1
    assert scope["reduce"].__code__.co_firstlineno == 3
    assert scope["helper"].__wrapped__.__code__.co_firstlineno == 3


def test_metadata_beat_the_name_and_the_name_helps_where_they_are_lost() -> None:
    marked = find_answer(
        submission(cell("def reduce(r, x): return 1", "00-product", "stub"), "def reduce(r, x): return 2"), PRODUCT
    )
    assert marked is not None
    assert marked.pieces[-1].cell == 1
    lost = find_answer(submission("def other(): pass", "def reduce(r, x): return 2"), PRODUCT)
    assert lost is not None
    assert "metadata" in lost.note
    assert find_answer(submission("x = 1"), PRODUCT) is None
    # A notebook of another exercise may have a function of that name.
    assert (
        find_answer(submission(cell("def my_mlp(): return 1", "03-mlp", "stub"), "def reduce(): return 2"), PRODUCT)
        is None
    )


@pytest.mark.parametrize("body", ["pass", "...", '"""Doc."""', "raise NotImplementedError"])
def test_an_empty_body_is_no_attempt(body: str) -> None:
    answer = find_answer(submission(f"def reduce(rank, x):\n    {body}"), PRODUCT)
    assert answer is not None
    assert not answer.attempted


def test_the_stub_as_handed_out_is_no_attempt() -> None:
    stub = "def reduce(rank, x):\n    # your code\n    return x\n"
    for text, attempted in ((stub.replace("# your code", ""), False), (stub.replace("return x", "return 2 * x"), True)):
        answer = find_answer(submission(text), PRODUCT, stub)
        assert answer is not None
        assert answer.attempted is attempted


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def reduce(rank, x):\n    return (", "line 2 of the cell: SyntaxError"),
        ("%%ranks\ndef reduce(rank, x):\n    pass", "%%"),
    ],
)
def test_a_cell_that_is_no_python_is_a_fault_in_words(source: str, words: str) -> None:
    answer = find_answer(submission(cell(source, "00-product", "stub")), PRODUCT)
    assert answer is not None
    assert words in answer.fault


def test_the_newest_of_two_answers_counts() -> None:
    both = Submission(learner="ada")
    for name, modified in (("new.ipynb", 2.0), ("old.ipynb", 1.0)):
        both.notebooks.append(Notebook(name=name, modified=modified, cells=(cell(RIGHT),)))
    answer = find_answer(both, PRODUCT)
    assert answer is not None
    assert answer.notebook == "new.ipynb"
    assert "2 notebooks" in answer.note


def test_an_answer_counts_before_a_newer_stub_and_in_a_cell_of_its_own() -> None:
    stub = "def reduce(rank, x):\n    pass"
    marked = cell(stub, "00-product", "stub")
    both = Submission(learner="ada")
    for name, modified, text in (("copied-later.ipynb", 2.0, stub), ("mine.ipynb", 1.0, RIGHT)):
        both.notebooks.append(Notebook(name=name, modified=modified, cells=(cell(text, "00-product", "stub"),)))
    older = find_answer(both, PRODUCT)
    assert older is not None
    assert (older.notebook, older.attempted) == ("mine.ipynb", True)
    assert "the newest with an answer counts" in older.note
    own = find_answer(submission(marked, RIGHT, cell("check()", "00-product", "check")), PRODUCT)
    assert own is not None
    assert (own.pieces[-1].cell, own.attempted) == (2, True)
    assert "cell of its own" in own.note
    untouched = find_answer(submission(marked, stub), PRODUCT)
    assert untouched is not None
    assert not untouched.attempted


@pytest.mark.parametrize(
    ("stem", "learner"),
    [
        ("ada-02", "ada"),
        ("03-tensor-parallel-layers (ada)", "ada"),
        ("ada_03-tensor-parallel-layers", "ada"),
        ("00-start-here", "00-start-here"),
        ("group 12", "group 12"),
    ],
)
def test_names_of_learners(stem: str, learner: str) -> None:
    assert learner_of(stem) == learner


# What an answer does to the process that checks it.

_TOP = "class A:\n    {}\n\ndef my_score(*args, **kwargs):\n    A\n    return 0.0\n"


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("raise SystemExit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended the process that checks it"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
        ("exec('while True: pass')", "not done after 6 s"),
    ],
)
def test_an_answer_that_ends_or_hangs_its_process_is_a_line_in_the_table(does: str, words: str) -> None:
    outcome = graded(_TOP.format(does), timeout=6.0)
    assert not outcome.passed
    assert words in outcome.message


def test_what_an_answer_starts_is_ended_and_what_it_prints_is_cut() -> None:
    began = time.time()
    does = (
        "import subprocess; subprocess.Popen(['sleep', '333'], start_new_session=True, env={}); print('y' * 30_000_000)"
    )
    outcome = graded(_TOP.format(does))
    assert not outcome.passed
    assert len(outcome.details) < 20_000
    assert "yyyy" in outcome.details
    sleeping = [p for p in psutil.process_iter(["cmdline", "create_time"]) if p.info["cmdline"] == ["sleep", "333"]]
    assert [p for p in sleeping if p.info["create_time"] >= began - 1] == []


def test_forked_copies_have_no_say_and_memory_has_a_limit() -> None:
    fork = graded("import os\n" + _TOP.format("[os.fork() for _ in range(3)]").replace("    A", "    os\n    A"))
    assert not fork.passed
    large = graded(_TOP.format("held = [bytearray(1 << 26) for _ in range(64)]"), memory_bytes=1e9)
    assert "more than 1 GB of memory" in large.message


@pytest.mark.parametrize(
    "does",
    [
        "import sys; sys.modules['tplab.lab.exercises.topology'].check_score = lambda *a, **k: (True, 'ha', '')",
        "import tplab.lab.exercises.verdict as v; v.Verdict.__new__ = lambda *a: (True, 'ha', '')",
    ],
)
def test_an_answer_that_edits_the_checker_does_not_pass(does: str) -> None:
    assert not graded(_TOP.format(does)).passed


def test_a_forged_line_is_no_verdict() -> None:
    does = 'import os; os.write(3, b\'{"passed": true, "message": "ha", "secret": "guess"}\\n\'); os._exit(0)'
    outcome = graded(_TOP.format(does))
    assert not outcome.passed
    assert "ended the process" in outcome.message


@pytest.mark.skipif(landlock_version() == 0, reason="this system has no Landlock")
def test_an_answer_writes_only_into_its_own_folder(tmp_path: Path) -> None:
    keep = tmp_path / "keep.txt"
    keep.write_text("mine")
    for does in (f"open({str(keep)!r}, 'w')", f"import os; os.remove({str(keep)!r})"):
        outcome = graded(_TOP.format(does))
        assert "PermissionError" in outcome.message
        assert "cell 1, line 2" in outcome.message
    assert keep.read_text() == "mine"
    assert "PermissionError" not in graded(_TOP.format("open('mine.txt', 'w').write('x')")).message


@pytest.mark.skipif(landlock_version() < 6, reason="signals are not kept in before Linux 6.12")
def test_an_answer_cannot_end_its_parents() -> None:
    outcome = graded(_TOP.format("import psutil; [p.kill() for p in psutil.Process().parents() if p.pid > 1]"))
    assert psutil.pid_exists(os.getpid())
    assert "AccessDenied" in outcome.message


# A whole folder.


def test_a_folder_is_graded_on_ranks_and_everybody_gets_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    write(folder / "ada" / "00-start-here.ipynb", cell(RIGHT, "00-product", "stub"))
    write(folder / "bob-00.ipynb", cell(RIGHT.replace("PRODUCT", "SUM"), "00-product", "stub"))
    (folder / "dora").mkdir()
    (folder / "dora" / "00-start-here.ipynb").write_text("{ damaged")
    with zipfile.ZipFile(folder / "eve.zip", "w") as archive:
        archive.write(
            write(tmp_path / "e.ipynb", cell("def reduce(rank, x):\n    pass", "00-product", "stub")), "e.ipynb"
        )
    assert cli.main(["grade", str(folder), "--csv", "grades.csv", "--exercises", "00-product"]) == 1
    out = capsys.readouterr().out
    frame = pd.read_csv("grades.csv").set_index("learner")
    assert frame["status"].to_dict() == {"ada": "passed", "bob": "failed", "dora": "missing", "eve": "unanswered"}
    assert frame["points"].tolist() == [1, 0, 0, 0]
    assert "dora: dora/00-start-here.ipynb" in out
    assert "Isolation:" in out
    assert {path.name for path in Path("reports").iterdir()} == {"ada.md", "bob.md", "dora.md", "eve.md"}
    assert "1 of 1 points" in Path("reports/ada.md").read_text()
    assert "rank" in Path("reports/bob.md").read_text()


def test_an_interrupt_keeps_the_learners_that_are_done(tmp_path: Path) -> None:
    for name in ("ada", "bob", "eve"):
        write(tmp_path / f"{name}-00.ipynb", "def reduce(rank, x):\n    pass")

    def on_grade(grade: Grade) -> None:
        if grade.learner == "bob":
            raise KeyboardInterrupt

    grades = grade_folder(tmp_path, on_grade=on_grade)
    assert grades.not_graded == ("bob", "eve")
    assert grades.table["learner"].tolist() == ["ada"]


def test_names_and_words_of_learners_cannot_leave_the_reports(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "a.. b<i>" / "00.ipynb", cell("def reduce(r, x): return (", "00-product", "stub"))
    grades = grade_folder(folder)
    (written,) = grades.write_reports(tmp_path / "out")
    assert written.parent == tmp_path / "out"
    assert "<i>" not in written.read_text()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda top: top / "nowhere", "must be a folder that exists"),
        (lambda top: write(top / "a.ipynb"), "must be a folder with"),
        (lambda top: (top / "empty").mkdir() or top / "empty", "must hold notebooks"),
    ],
)
def test_a_bad_folder_is_a_clear_error(tmp_path: Path, make: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        grade_folder(make(tmp_path))


def test_an_unknown_exercise_is_named_by_its_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "ada.ipynb", RIGHT)
    assert cli.main(["grade", str(tmp_path), "--exercises", "99-nothing"]) == 2
    assert "--exercises must be one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"cells": 3}',
        '{"cells": [1, null, {"cell_type": "code", "source": 5}]}',
        "[" * 5000,
        "\x00\x01",
    ],
)
def test_damaged_notebooks_are_faults_or_without_answers(tmp_path: Path, text: str) -> None:
    (tmp_path / "ada.ipynb").write_text(text)
    (found,) = find_submissions(tmp_path)
    assert found.faults or find_answer(found, PRODUCT) is None


def test_files_as_systems_leave_them_and_links_to_the_neighbours(tmp_path: Path) -> None:
    right = write(tmp_path / "ada" / "00.IPYNB", RIGHT)
    (tmp_path / "ada" / "._00.ipynb").write_bytes(b"\x00\x05\x16\x07")  # macOS, on a disk of another system's
    with zipfile.ZipFile(tmp_path / "bob.ZIP", "w") as archive:
        archive.write(right, "00.ipynb")
        archive.writestr("._00.ipynb", b"\x00\x05\x16\x07")
    (tmp_path / "eve").mkdir()
    (tmp_path / "eve" / "00.ipynb").symlink_to(right)
    found = {each.learner: (len(each.notebooks), each.faults) for each in find_submissions(tmp_path)}
    assert found == {
        "ada": (1, []),
        "bob": (1, []),
        "eve": (0, ["eve/00.ipynb: a link that leads out of the folder"]),
    }


def test_archives_are_read_within_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submissions, "_MOST_BYTES", 1 << 20)
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 nothing")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big.ipynb", b" " * (2 << 20))
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    found = {each.learner: each.faults for each in find_submissions(tmp_path)}
    assert all(len(faults) == 1 for faults in found.values())
    assert "MiB" in found["bomb"][0]
