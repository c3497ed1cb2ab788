"""Progress: one file beside the notebooks, which several kernels write, and which no fault of it may stop or lose."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tplab.checks import ArgumentError
from tplab.cli import main
from tplab.lab import Predict, progress_table
from tplab.lab import progress as progress_module
from tplab.lab.exercises.verdict import NotYetError, Verdict, checker
from tplab.lab.progress import (
    FILE_NAME,
    PredictionRecord,
    Progress,
    progress_file,
    record_exercise,
    record_prediction,
    reset_progress,
)

LIVE = "LIVE gloo · 2 ranks"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where progress is kept in a test."""
    file = tmp_path / FILE_NAME
    monkeypatch.setenv("TPLAB_PROGRESS", str(file))
    return file


def asked(unit: str = "ms") -> Predict:
    return Predict("one call, there and back", unit=unit, name="00-call")


def test_a_prediction_is_kept_with_what_it_was_compared_with(kept: Path) -> None:
    guess = asked().commit(12)
    record = Progress.read(kept).predictions["00-call"]
    assert (record.value, record.unit, record.answer) == (12.0, "ms", None)
    guess.compare(4.5, badge=LIVE)
    record = Progress.read(kept).predictions["00-call"]
    assert (record.value, record.answer, record.source, record.badge) == (12.0, 4.5, "measured", LIVE)
    assert record.at.startswith("20")
    assert "4.5" not in Predict("something else", unit="ms", name="00-other")._said.value


def test_the_number_of_an_earlier_session_is_offered_and_does_not_count_by_itself(kept: Path) -> None:
    asked().commit(12)
    again = asked()
    answer = again.compare(4.5, badge=LIVE)
    assert again.value is None
    assert answer.covered
    assert "Last time you said 12 ms" in again._said.value
    assert again._again.layout.display == ""
    again._again.click()
    assert again.value == 12
    assert "You predicted 12 ms" in answer.text
    assert again._again.layout.display == "none"
    assert "Last time" not in asked(unit="s")._said.value, "of another unit it means nothing"
    assert asked().commit(3).value == 3


def test_undo_gives_the_earlier_record_back_and_showing_does_not_take_it(kept: Path) -> None:
    asked().commit(5).undo()
    assert Progress.read(kept).predictions == {}
    asked().commit(12)
    asked().commit(5).undo()
    assert Progress.read(kept).predictions["00-call"].value == 12
    shown = asked().reveal()
    shown.compare(4.5, badge=LIVE)
    assert Progress.read(kept).predictions["00-call"].value == 12
    other = Predict("other", name="00-other").reveal()
    other.compare(float("nan"), badge=LIVE)
    record = Progress.read(kept).predictions["00-other"]
    assert (record.value, record.answer) == (None, None)


def test_exercises_count_attempts_and_keep_the_first_pass(kept: Path) -> None:
    def stub() -> None: ...

    def wrong() -> int:
        return 1

    def right() -> int:
        return 2

    for passed, answer in ((False, stub), (False, stub), (False, wrong), (True, right), (True, right), (False, stub)):
        assert record_exercise("02-ring", passed, answer) == ""
    record = Progress.read(kept).exercises["02-ring"]
    assert record.passed
    assert (record.attempts, record.attempts_until_passed) == (4, 3)
    assert record.passed_at
    record_exercise("02-ring", False, print)  # no source to be had
    record_exercise("02-ring", False)
    assert Progress.read(kept).exercises["02-ring"].attempts == 6


def test_several_kernels_write_at_once_and_nothing_is_lost(kept: Path) -> None:
    code = (
        "import sys; from tplab.lab.progress import *\n"
        "for i in range(12): assert not record_prediction(f'0{sys.argv[1]}-q{i}', PredictionRecord(value=i))"
    )
    env = os.environ | {"TPLAB_PROGRESS": str(kept)}
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n)], env=env) for n in range(3)]
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 3
    assert len(Progress.read(kept).predictions) == 36
    assert [path.name for path in kept.parent.iterdir()] == [FILE_NAME]


def test_a_lock_that_somebody_holds_holds_nobody_up(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "_PATIENCE_S", 0.05)
    with progress_module._locked(kept.parent):
        assert record_prediction("00-call", PredictionRecord(value=1.0)) == ""
    assert Progress.read(kept).predictions["00-call"].value == 1


DAMAGED = {
    "not JSON": "{",
    "nothing": "",
    "a list": "[]",
    "somebody else's": '{"name": "x"}',
    "of a later version": '{"tplab_progress": 99}',
    "no object": '{"tplab_progress": 1, "predictions": []}',
    "no record": '{"tplab_progress": 1, "exercises": {"02-ring": 3}}',
    "a text for a number": '{"tplab_progress": 1, "predictions": {"00-call": {"value": "12"}}}',
    "a number for a flag": '{"tplab_progress": 1, "exercises": {"02-ring": {"passed": 1}}}',
    "less than nothing": '{"tplab_progress": 1, "exercises": {"02-ring": {"attempts": -1}}}',
    "nested": "[" * 100_000,
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_left_and_said_and_work_goes_on(kept: Path, text: str) -> None:
    kept.write_text(text)
    guess = asked()
    assert guess.value is None
    answer = guess.commit(12).compare(4.5, badge=LIVE)
    assert "You predicted 12 ms" in answer.text
    assert "Not kept" in guess._said.value
    assert FILE_NAME in guess._said.value
    assert FILE_NAME in record_exercise("02-ring", True)
    assert kept.read_text() == text
    assert "cannot be shown" in repr(progress_table(kept.parent))
    assert "Not kept" not in Predict("no name")._said.value


def test_a_folder_or_a_missing_folder_in_its_place_is_said(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.mkdir()
    assert "Not kept" in record_exercise("02-ring", True)
    monkeypatch.setenv("TPLAB_PROGRESS", str(kept.parent / "missing" / FILE_NAME))
    assert "missing" in record_prediction("00-call", PredictionRecord(value=1.0))


def test_nothing_is_written_where_no_notebook_runs_or_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for told in ("off", ""):
        monkeypatch.setenv("TPLAB_PROGRESS", told)
        assert progress_file() is None
        asked().commit(12).compare(3.0, badge=LIVE)
        assert record_exercise("02-ring", True) == ""
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_keeps_it_where_it_was_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shell:
        kernel = object()

    import IPython

    monkeypatch.setenv("TPLAB_PROGRESS", "")
    monkeypatch.setattr(IPython, "get_ipython", Shell)
    monkeypatch.setattr(progress_module, "_home", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    assert progress_file() == tmp_path / FILE_NAME
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert progress_file() == tmp_path / FILE_NAME


def test_begin_anew_puts_the_file_aside(kept: Path) -> None:
    assert reset_progress() is None
    for value in (1.0, 2.0):
        record_prediction("00-call", PredictionRecord(value=value))
        aside = reset_progress()
        assert aside is not None
        assert Progress.read(aside).predictions["00-call"].value == value
        assert not kept.exists()
    assert len(list(kept.parent.iterdir())) == 2
    mine = kept.parent / "thesis.json"
    mine.write_text("{}")
    with pytest.raises(ValueError, match=r"not a progress file.*left as it is"):
        reset_progress(mine)
    assert mine.exists()


def notebook(title: str, *code: str, exercise: str = "") -> str:
    cells = [{"cell_type": "markdown", "metadata": {}, "source": [f"# {title}\n", "more"]}]
    cells += [{"cell_type": "code", "metadata": {}, "source": text, "outputs": []} for text in code]
    if exercise:
        about = {"tplab": {"exercise": exercise, "part": "stub"}}
        cells.append({"cell_type": "code", "metadata": about, "source": "def f(): ...", "outputs": []})
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def test_the_table_says_what_is_done_and_what_is_next(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = kept.parent
    one = 'guess = Predict("how long", unit="ms", name="00-call")\nguess'
    two = 'Predict("a (b)", name="02-bytes")'
    (folder / "00-start.ipynb").write_text(notebook("00 · Start <here>", one))
    (folder / "02-rings.ipynb").write_text(
        notebook("02 · Rings", two, one.replace("00-call", "02-time"), exercise="02-ring")
    )
    (folder / "02-rings-Copy1.ipynb").write_text(notebook("02 · Rings", two))
    (folder / "notes.ipynb").write_text(notebook("Notes", two))
    assert progress_table(folder).next == "Next: 00 Start <here>, with 1 prediction open."
    record_prediction("00-call", PredictionRecord(value=1.0))
    record_prediction("02-time", PredictionRecord(value=None))
    record_exercise("02-ring", False)
    record_exercise("09-other", True)
    table = progress_table(folder)
    assert table.next == "Next: 02 Rings, with 1 prediction and 1 exercise open."
    lines = [" ".join(line.split()) for line in repr(table).splitlines()]
    assert lines[1:4] == [
        "00 Start <here> 1 of 1 none",
        "02 Rings 0 of 2, 1 only shown 0 of 1, 1 tried",
        "09 (not in this folder) none 1 of 1",
    ]
    page = table._repr_html_()
    assert "Start &lt;here&gt;" in page
    assert 'href="02-rings.ipynb"' in page
    record_exercise("02-ring", True)
    record_prediction("02-bytes", PredictionRecord(value=1.5))
    assert progress_table(folder).next == "All done."
    (folder / "05-broken.ipynb").write_text("[")
    assert "05-broken.ipynb cannot be read" in repr(progress_table(folder))

    assert main(["progress", str(folder)]) == 0
    assert "02  Rings" in capsys.readouterr().out
    assert main(["progress", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exercises"]["02-ring"]["passed"]
    assert main(["progress", str(folder), "--reset"]) == 0
    assert "Put aside" in capsys.readouterr().out
    assert not kept.exists()
    assert main(["progress", str(folder / "nowhere")]) == 2
    assert "FOLDER must be a folder" in capsys.readouterr().err


def test_who_keeps_nothing_is_shown_nothing(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kept.parent / "00-start.ipynb").write_text(notebook("00 · Start", 'Predict("x", name="00-call")'))
    record_prediction("00-call", PredictionRecord(value=1.0))
    monkeypatch.chdir(kept.parent)
    assert "1 of 1" in repr(progress_table())
    monkeypatch.setenv("TPLAB_PROGRESS", "off")
    assert "0 of 1" in repr(progress_table())
    monkeypatch.setenv("TPLAB_PROGRESS", "")  # no kernel runs: the file that lies here
    assert "1 of 1" in repr(progress_table())


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="folder must be a folder"):
        progress_table(tmp_path / "missing")
    assert progress_table(tmp_path).next == "There are no notebooks here."


def test_checkers_report_to_it(kept: Path) -> None:
    @checker("09-two")
    def check_two(cluster: object, function: Callable[[], int], *, timeout: float = 1) -> Verdict:
        if function() != 2:
            raise NotYetError("It must be 2.")
        return Verdict(True, "It is 2.")

    assert not check_two(None, lambda: 1).passed
    assert check_two(None, function=lambda: 2).message == "It is 2."
    record = Progress.read(kept).exercises["09-two"]
    assert (record.attempts, record.passed, record.attempts_until_passed) == (2, True, 2)
    kept.write_text("[")
    verdict = check_two(None, lambda: 2)
    assert verdict.passed
    assert verdict.message.startswith("It is 2. Not kept:")
