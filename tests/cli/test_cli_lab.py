"""``tplab lab``: what it says, what it starts."""

import sys
from pathlib import Path

import pytest

import tplab
from tplab.cli import lab, main
from tplab.lab.shipped import copying

pytest.importorskip("jupyterlab")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What this process would have become."""
    commands: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path.with_suffix(".jupyter")))  # where notebooks are signed

    def become(program: str, words: list[str]) -> None:
        commands.append(words)
        raise SystemExit

    monkeypatch.setattr(lab.os, "execv", become)
    monkeypatch.setattr(lab.os, "geteuid", lambda: 1000)
    return commands


def test_notebooks_are_copied_once_and_jupyterlab_opens_the_first(
    started: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--no-browser", "--port", "9999", "--ip", "0.0.0.0", "--", "--ServerApp.token=x", "--"]
    for words in (options, []):
        with pytest.raises(SystemExit):
            main(["lab", "a b", *words])
    home = [sys.executable, "-P", "-m", "jupyterlab", f"--ServerApp.root_dir={tmp_path / 'a b'}"]
    home += ["--LabApp.default_url=/lab/tree/notebooks/00-start-here.ipynb"]
    assert started == [
        [*home, "--no-browser", "--port=9999", "--ip=0.0.0.0", "--ServerApp.token=x", "--"],
        home,
    ]
    said = " ".join(capsys.readouterr().out.split())
    assert f"Copied the notebooks of tplab {tplab.__version__} to {tmp_path / 'a b/notebooks'}." in said
    assert f"The notebooks in {tmp_path / 'a b/notebooks'} are left as they are." in said
    assert "fresh" not in said


def test_without_a_folder_and_with_options_of_jupyterlab_only(started: list[list[str]], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["lab", "--", "--debug"])
    assert (tmp_path / "tplab-lab/notebooks/00-start-here.ipynb").is_file()
    assert started[0][-1] == "--debug"


def test_the_address_of_a_folder_with_signs_in_its_name(started: list[list[str]], tmp_path: Path) -> None:
    assert main(["lab", "course", "--copy-only"]) == 0
    (tmp_path / "course/notebooks").rename(tmp_path / "course/week 1 #%")
    with pytest.raises(SystemExit):
        main(["lab", "course/week 1 #%"])
    assert started[0][-1] == "--LabApp.default_url=/lab/tree/week%201%20%23%25/00-start-here.ipynb"


def test_a_home_gets_one_folder(started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for _ in range(2):
        assert main(["lab", "~", "--copy-only"]) == 0
    assert [each.name for each in tmp_path.iterdir()] == ["tplab-lab"]


def test_a_copy_of_another_version_is_told_and_refreshed(
    started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "--copy-only"]) == 0
    changed = tmp_path / "tplab-lab/notebooks/02-collectives.ipynb"
    changed.write_text(changed.read_text().replace("import", "import  ", 1))
    monkeypatch.setattr(tplab, "__version__", "9.0.0")
    monkeypatch.setattr(copying, "shipped_files", lambda: {"notebooks/00-start-here.ipynb": changed})
    capsys.readouterr()
    assert main(["lab", "--copy-only"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "and this is 9.0.0, which has others. You have changed 02-collectives.ipynb." in said
    assert "`tplab lab tplab-lab --fresh`" in said
    assert main(["lab", "--copy-only", "--fresh"]) == 0
    assert len([*tmp_path.glob("tplab-lab/notebooks-*/02-*.ipynb")]) == 1
    assert started == []


def test_without_jupyterlab_nothing_is_copied(
    started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jupyterlab", None)
    assert main(["lab"]) == 2
    assert 'pip install "tplab[lab]"' in capsys.readouterr().err
    assert started == [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "70000"], "--port must be"),
        (["file"], "FOLDER must be a folder"),
        (["~nobody-here/lab"], "FOLDER begins with ~ and the name of nobody"),
        ([""], "FOLDER must not be"),
    ],
)
def test_what_is_refused(
    started: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["lab", *words]) == 2
    assert told in capsys.readouterr().err
    assert started == []
