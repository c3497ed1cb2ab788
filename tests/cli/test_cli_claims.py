"""``tplab claims``: the ledger in a shell."""

import csv
from pathlib import Path

import pytest

from tplab.cli import main


def test_lists_what_the_filters_leave(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "--verdict", "wrong", "--topic", "memory"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("C2 wrong: Beyond one GPU's memory")
    assert "C1 " not in said
    assert "36.6 GB" in said


def test_codes_give_everything_about_a_claim(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "c5", "X2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "C5 [under conditions]" in said
    assert "claimed 64 MiB, found 112 MiB (differs)" in said
    assert "X2 [wrong]" in said


def test_writes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "claims.csv"
    assert main(["claims", "--notebook", "02", "--markdown", "--csv", str(path)]) == 0
    assert "| C9 | wrong |" in capsys.readouterr().out
    with path.open(encoding="utf-8", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)][:3] == ["C4", "C5", "C6"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["C77"], "CODE must be one of S1"),
        (["--verdict", "maybe"], "--verdict must be one of holds"),
        (["--notebook", "09"], "--notebook must be one of 01"),
        (["--text", "zebra"], "--text and the filters leave no claim"),
        (["C1", "--topic", "pipeline"], "leave no claim"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", *arguments]) == 2
    assert said in capsys.readouterr().err
