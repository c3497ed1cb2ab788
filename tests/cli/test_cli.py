"""``tplab`` as a process among others: closed pipes, full disks, and what it does with a fault of the system."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tplab.checks import ArgumentError
from tplab.cli import asked, main

ADVISE = ("advise", "--model", "llama-3.1-8b", "--machine", "h100")
needs_full_disk = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, Linux's disk without room")


def tplab(*arguments, **streams):
    command = [sys.executable, "-m", "tplab.cli", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=60, **streams)


def test_a_reader_that_has_had_enough_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = tplab(*ADVISE, stdout=writing)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 141


@needs_full_disk
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = tplab(*ADVISE, stdout=full)
    assert done.stderr == "tplab advise: No space left on device\n"
    assert done.returncode == 2


@needs_full_disk
def test_a_table_that_cannot_be_written_names_its_option(capsys):
    assert main([*ADVISE, "--csv", "/dev/full"]) == 2
    assert capsys.readouterr().err == (
        "tplab advise: --csv /dev/full cannot be written: No space left on device (make room, or write to another "
        "disk); what was to go into it is printed instead\n"
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "a.json"), "a.json: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("something else"), "something else"),
        (ArgumentError("weight_precision", "fp3", "must be known"), "--weights must be known; got 'fp3'"),
        (ArgumentError("input_length", 0, "must be above 0"), "--input must be above 0; got 0"),
        (ArgumentError("num_heads", 3, "must be even"), "num_heads must be even; got 3"),
    ],
)
def test_faults_are_one_line(error, said, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(asked, "what", fail)
    assert main(ADVISE) == 2
    assert capsys.readouterr().err == f"tplab advise: {said}\n"
