"""Colab and Kaggle: what they have is enough, so the notebooks' install cell adds tplab and replaces nothing."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LINES = (Path(__file__).parent / "pip-freeze-colab.txt").read_text().splitlines()
THERE = dict(line.split("==") for line in LINES if not line.startswith("#"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def needed() -> list[Requirement]:
    """What the install cell asks for: the core and the layers ``run`` and ``notebook``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    layers = project["optional-dependencies"]
    return [Requirement(each) for each in [*project["dependencies"], *layers["run"], *layers["notebook"]]]


@pytest.mark.parametrize("requirement", needed(), ids=lambda each: each.name)
def test_colab_has_what_tplab_asks_for(requirement: Requirement) -> None:
    there = {name.lower(): version for name, version in THERE.items()}
    assert requirement.specifier.contains(there[requirement.name.lower()])


def test_kaggle_has_ipywidgets_8() -> None:
    bound = next(each for each in needed() if each.name == "ipywidgets")
    assert bound.specifier.contains("8.1.5")


def install_cell(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return next(cell.source for cell in cells if cell.metadata.get("tplab", {}).get("address") == "install")


def test_every_notebook_installs_the_same_way_before_anything_is_imported() -> None:
    for path in NOTEBOOKS:
        first = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
        assert first.source == install_cell(NOTEBOOKS[0])
        assert first.metadata.tplab.address == "install"
        assert first.source.startswith("# "), "what JupyterLab shows of a folded cell is its first line"
        assert first.metadata.jupyter.source_hidden


def shell_line(tmp_path: Path) -> str:
    line = re.search(r"\.system\('(.+)'\)$", install_cell(NOTEBOOKS[0]), re.M)
    assert line is not None
    return line[1].replace("/tmp/here.txt", str(tmp_path / "here.txt"))


def run_with_pip(tmp_path: Path, install_status: int) -> tuple[str, str]:
    """What the line says and asks for, with a pip that lists one package and writes down how it is called."""
    pip = tmp_path / "pip"
    pip.write_text(
        f'#!/bin/sh\nif [ "$1" = list ]; then echo plotly==5.24.1; else printf "%s\\n" "$@" > {tmp_path}/asked; '
        f"cat {tmp_path}/here.txt >> {tmp_path}/asked; exit {install_status}; fi\n"
    )
    pip.chmod(0o755)
    shell = ["/bin/sh", "-c", shell_line(tmp_path)]
    done = subprocess.run(shell, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True)
    return done.stdout, (tmp_path / "asked").read_text()


def test_what_is_installed_holds_for_pip(tmp_path: Path) -> None:
    said, asked = run_with_pip(tmp_path, 0)
    assert said == ""
    words = asked.splitlines()
    assert "tplab[run,notebook]" in words
    assert words[words.index("-c") + 1] == str(tmp_path / "here.txt")
    assert words[-1] == "plotly==5.24.1"


def test_where_that_cannot_be_it_is_said(tmp_path: Path) -> None:
    said, _ = run_with_pip(tmp_path, 1)
    assert "docs/front-ends.md" in said
    assert "could not be added" in said, "why is what pip said: versions, no network, or no such package there"


def test_where_tplab_is_nothing_is_run() -> None:
    code = install_cell(NOTEBOOKS[0])
    subprocess.run([sys.executable, "-c", code], check=True)
    absent = code.replace('"tplab"', '"tplab_absent"')  # only then it asks for a shell, which this Python has not
    assert subprocess.run([sys.executable, "-c", absent], capture_output=True).returncode == 1
