"""What a notebook takes: its memory at the peak, what runs below its kernel, and where it failed."""

import json
from pathlib import Path

import pytest

from tplab import cli
from tplab.checks import ArgumentError
from tplab.lab.sizing import measure_notebooks

pytestmark = pytest.mark.timeout(120)

_CHILD = "import sys, subprocess, time; x = bytearray(150_000_000); time.sleep(2)"


def write(path: Path, *sources: str) -> Path:
    cells = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "source": text, "outputs": [], "execution_count": None}
        for n, text in enumerate(sources)
    ]
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}))
    return path


def test_memory_of_kernel_and_of_what_it_started_is_told_apart(tmp_path: Path) -> None:
    run = f"import subprocess, sys\nheld = bytearray(100_000_000)\nsubprocess.run([sys.executable, '-c', {_CHILD!r}])"
    (row,) = measure_notebooks([write(tmp_path / "02-x.ipynb", run)]).to_dict("records")
    assert row["ranks_GB"] > 0.15
    assert row["kernel_GB"] > 0.1
    assert row["peak_GB"] == pytest.approx(row["ranks_GB"] + row["kernel_GB"])
    assert row["peak_GB"] < 1.0
    assert row["processes"] == 2
    assert row["error"] == ""


def test_a_notebook_that_fails_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "02-x.ipynb", "x = 1", "1 / 0", "x = 2")
    assert cli.main(["size", "02", "--notebooks", str(tmp_path)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert cli.main(["size", "07", "--notebooks", str(tmp_path)]) == 2
    assert "NOTEBOOK must be out of 02-x" in capsys.readouterr().err


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="paths must be notebooks"):
        measure_notebooks([tmp_path / "none.ipynb"])
