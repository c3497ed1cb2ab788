"""What people install is the wheel: built, judged, and used with the packages of one layer and no others.

Nothing is downloaded. A virtual environment gets the wheel, and links to those packages of this one that the wheel's
own metadata asks for, over as many steps as it takes: what is not asked for is not there.
"""

import contextlib
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests import wheel_questions
from tests.wheel_questions import COMMANDS, absent, call_commands, load_names, plan, show_panels

ROOT = Path(__file__).parents[1]
CORE_ROOMS = ["tplab.measure", "tplab.pipeline", "tplab.topology", "tplab.lab.claims", "tplab.lab.figures"]
"""Rooms all names of which load with the core's packages."""
SENTENCE = re.compile(r'needs [\w, -]+, which (is|are) not installed here: pip install "tplab\[[a-z,]+\]"$')


class Installed:
    """A virtual environment with the wheel and one layer of packages."""

    def __init__(self, folder: Path, wheel: Path, layer: str) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = folder / "venv/bin/python"
        (site,) = (folder / "venv/lib").glob("python*/site-packages")
        link_packages(folder / "packages", wheel, layer)
        (site / "packages.pth").write_text(f"{folder / 'packages'}\n")
        self.pip("install", "--quiet", "--no-deps", "--no-index", "--no-compile", str(wheel))

    def pip(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check", *arguments]
        return self.run(*command)

    def run(self, *command: str) -> str:
        # In a folder of its own, and without the clone on the path: nothing is there but what was installed.
        done = subprocess.run(command, cwd=self.folder, env={"PATH": "/usr/bin:/bin", "TPLAB_PROGRESS": "off"},
                              capture_output=True, text=True, timeout=120)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, question: Callable[[], Any]) -> Any:
        """What a function of ``wheel_questions`` returns there."""
        return json.loads(
            self.run(str(self.python), "-P", wheel_questions.__file__, question.__name__).splitlines()[-1]
        )


def link_packages(folder: Path, wheel: Path, layer: str) -> None:
    """Links to all that the wheel asks for with a layer, and to what that asks for."""
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        about = metadata.Distribution.from_name  # the others are looked for here
        text = archive.read(name).decode()
    asked = re.findall(r"^Requires-Dist: (.*)$", text, re.MULTILINE)
    left = [(Requirement(line), layer) for line in asked]
    seen: set[tuple[str, str]] = set()
    while left:
        requirement, extra = left.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in requirement.extras or {""}:
            if (requirement.name, wanted) in seen:
                continue
            seen.add((requirement.name, wanted))
            if requirement.name == "tplab":
                left += [(Requirement(line), wanted) for line in asked]
                continue
            found = about(requirement.name)
            left += [(Requirement(line), wanted) for line in found.requires or ()]
            for top in {path.parts[0] for path in found.files or () if path.parts[0] not in ("..", "__pycache__")}:
                with contextlib.suppress(FileExistsError):  # of two packages
                    (folder / top).symlink_to(found.locate_file(top))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, the wheel built from it, and below ``again`` the wheel built from the clone."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation"]
    for command in ([*build, "-o", folder, ROOT], [*build, "--wheel", "-o", folder / "again", ROOT]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("core"), wheel, "")


@pytest.fixture(scope="module")
def notebook(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("notebook"), wheel, "notebook")


@pytest.fixture(scope="module")
def lab(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("lab"), wheel, "lab")


def tracked(*below: str) -> set[str]:
    listing = subprocess.run(["git", "ls-files", "-z", *below], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip(f"not a git checkout: {listing.stderr.strip()}")
    return {name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()}


def test_a_wheel_from_the_sdist_is_that_from_the_clone_to_the_byte(built: Path, wheel: Path) -> None:
    assert (built / "again" / wheel.name).read_bytes() == wheel.read_bytes()


def test_the_wheel_has_the_package_and_what_the_notebooks_lead_to(wheel: Path) -> None:
    from tplab.lab.shipped import shipped_files

    shipped = {f"tplab/lab/shipped/{name}" for name in shipped_files() if not name.startswith("tplab/")}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name and ".data/" not in name}
    assert names - shipped == tracked("tplab")
    assert names >= shipped
    assert not [name for name in shipped if PurePosixPath(name).suffix not in (".ipynb", ".md", ".svg", ".png", "")]


def test_the_sdist_has_every_file_of_the_clone(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked() - names == set()


def test_what_an_index_says_of_both_is_well_formed(built: Path, wheel: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", wheel, sdist], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_core_is_without_the_large_packages(core: Installed) -> None:
    assert set(core.ask(absent).values()) == {True}


@pytest.mark.parametrize("layer", ["core", "notebook"])
def test_a_public_name_loads_or_says_which_layer_it_needs(layer: str, request: pytest.FixtureRequest) -> None:
    said = request.getfixturevalue(layer).ask(load_names)
    unclear = {name: words for name, words in said.items() if words and not SENTENCE.search(words)}
    assert unclear == {}
    assert {name: words for name, words in said.items() if words and name.rpartition(".")[0] in CORE_ROOMS} == {}
    # Other layers are asked for than those that are there.
    assert not any("tplab[notebook]" in words for words in said.values()) or layer == "core"
    assert any("tplab[run]" in words for words in said.values())


def test_a_command_works_or_says_which_layer_it_needs(core: Installed) -> None:
    from tplab.cli.command import COMMANDS as commands

    assert {*COMMANDS} == {*commands}
    for name, (status, words) in core.ask(call_commands).items():
        wanted = COMMANDS[name][1]
        assert status == (wanted if isinstance(wanted, int) else 2), (name, words)
        if isinstance(wanted, str):
            assert words.startswith(f"tplab {name}: ")
            assert SENTENCE.search(words), words
            assert words.endswith(f'"tplab[{wanted}]"'), words
    assert not (core.folder / "box").exists()  # nothing is begun that cannot be done


def test_the_core_plans_and_says_what_ranks_need(core: Installed) -> None:
    said = core.ask(plan)
    assert said["makespan_s"] == pytest.approx((8 + 4 - 1) * 0.03)  # (m + p - 1)(t_f + t_b), arXiv:2104.04473, 2.2
    assert said["cluster"].startswith("Cluster needs torch, cloudpickle, psutil, nvidia-ml-py, which are not")


def test_panels_that_need_no_ranks_are_shown_without_what_ranks_need(notebook: Installed) -> None:
    assert set(notebook.ask(show_panels).values()) == {""}


def test_the_lab_brings_jupyterlab_and_the_notebooks(lab: Installed) -> None:
    lab.run(str(lab.python), "-m", "jupyterlab", "--version")
    lab.run(str(lab.folder / "venv/bin/tplab"), "lab", "--copy-only", "mine")
    assert len([*lab.folder.glob("mine/notebooks/0*.ipynb")]) == len([*ROOT.glob("notebooks/0*.ipynb")])
    assert (lab.folder / "venv/etc/jupyter/jupyter_server_config.d/tplab.json").is_file()
