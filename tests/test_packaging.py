"""The files that say how tplab is installed, held together.

The same packages are named in pyproject.toml, environment.yml, binder/requirements.txt and constraints.txt, and the
commands that a reader types are in README.md. Nothing but these tests compares them: conda's channels and Binder's
builders are not there when the tests run, so a list that has drifted would first fail at a reader's desk. The house
rules that no linter knows (imports run one way, modules stay short, ``import tplab`` stays light) are kept here too.
"""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import tplab

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tplab"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

# conda-forge's name for a package that PyPI calls otherwise.
CONDA_NAMES = {"torch": "pytorch", "playwright": "playwright-python", "build": "python-build"}

# A room may import from itself and from the rooms before it, in the order of the picture in docs/architecture.md from
# the bottom to the top. What comes first here are doorsteps of all rooms.
PICTURE = re.findall(r"^(  |    )(\w+)/ ", (ROOT / "docs/architecture.md").read_text("utf-8").split("```")[1], re.M)
ROOMS = [
    *("moved", "needs", "lazy", "shown", "checks", "file_kinds", "files", "frames"),
    *(room if indent == "  " else f"topology.{room}" for indent, room in reversed(PICTURE)),
]

LONGEST_MODULE = 400

# A path that exists on one machine only. Binder's own home is the same for everyone.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|home/(?!jovyan\b)[a-z_][\w.-]*)/")
ANSI_COLOUR = re.compile(r"\x1b\[[\d;]*m")

Bounds = dict[str, SpecifierSet]


def bounds(lines: list[str]) -> Bounds:
    """Name and version bounds of each requirement line, with those of tplab's own layers where a line asks for them:
    ``tplab[run]``. Where two lines ask for the same package, the bounds are those that start at the later version."""
    found: Bounds = {}
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        asked = {name: requirement.specifier}
        if name == PROJECT["name"]:
            asked = bounds([line for each in requirement.extras for line in PROJECT["optional-dependencies"][each]])
        for package, specifier in asked.items():
            found[package] = max(found.get(package, SpecifierSet()), specifier, key=least)
    return found


def least(specifier: SpecifierSet) -> Version:
    """The version that bounds start at."""
    return max((Version(each.version) for each in specifier if each.operator in (">=", "==")), default=Version("0"))


def core() -> Bounds:
    return bounds(PROJECT["dependencies"])


def layer(name: str) -> Bounds:
    """What one of the optional layers asks for, with the layers below it."""
    return bounds(PROJECT["optional-dependencies"][name])


def requirement_lines(path: str) -> tuple[list[str], list[str]]:
    """The requirements and the options of a requirements file, without comments."""
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in (ROOT / path).read_text("utf-8").splitlines()]
    return [line for line in lines if line and line[0] != "-"], [line for line in lines if line and line[0] == "-"]


def pins() -> dict[str, Version]:
    """The versions in constraints.txt; each line must be exactly ``name==version``."""
    requirements, options = requirement_lines("constraints.txt")
    assert options == [], "constraints.txt holds pins only"
    pinned = {}
    for line in requirements:
        match = re.fullmatch(r"([\w.-]+)==([\w.!]+)", line)
        assert match, f"constraints.txt: {line!r} is not name==version (no path, no marker, no local suffix)"
        pinned[canonicalize_name(match[1])] = Version(match[2])
    return pinned


def test_conda_environment_lists_what_pyproject_lists() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    listed = environment["dependencies"]
    from_pip = [line for item in listed if isinstance(item, dict) for line in item["pip"]]
    assert "-e ." in from_pip
    conda = bounds([item for item in listed if isinstance(item, str)])
    conda |= bounds([line for line in from_pip if line != "-e ."])

    wanted = {CONDA_NAMES.get(name, name): specifier for name, specifier in (core() | layer("test")).items()}
    wanted |= {"python": SpecifierSet(PROJECT["requires-python"]), "pip": SpecifierSet()}
    assert conda == wanted
    assert environment["name"] == "tplab"
    assert environment["channels"][0] == "conda-forge"


def test_binder_installs_the_core_and_the_lab() -> None:
    requirements, options = requirement_lines("binder/requirements.txt")
    assert options == ["--extra-index-url https://download.pytorch.org/whl/cpu", "-c ../constraints.txt"]
    binder, wanted = bounds(requirements), core() | layer("lab")
    assert binder.pop("torch") == SpecifierSet(f"=={pins()['torch']}+cpu")
    del wanted["torch"]
    assert binder == wanted


def test_binder_runs_a_python_that_tplab_supports() -> None:
    name, version = (ROOT / "binder/runtime.txt").read_text("utf-8").strip().split("-")
    assert name == "python"
    assert version in SpecifierSet(PROJECT["requires-python"])


@pytest.mark.parametrize("path", [".ci/run", "binder/postBuild"])
def test_scripts_are_executable_and_stop_at_the_first_failure(path: str) -> None:
    assert os.access(ROOT / path, os.X_OK)
    assert "\nset -euo pipefail\n" in (ROOT / path).read_text("utf-8")


def test_ci_installs_the_pinned_torch_before_anything_else() -> None:
    installs = re.findall(r"pip install .*", (ROOT / ".ci/run").read_text("utf-8"))
    assert installs[0] == f"pip install -c constraints.txt torch=={pins()['torch']}"
    assert installs[1] == "pip install -c constraints.txt -e '.[test,dev]'"


def test_constraints_pin_every_dependency_within_its_bounds() -> None:
    pinned = pins()
    for source in (core(), *map(layer, PROJECT["optional-dependencies"])):
        for name, specifier in source.items():
            assert name in pinned, f"constraints.txt does not pin {name}"
            assert pinned[name] in specifier, f"{name}=={pinned[name]} is outside {specifier}"


def installed() -> Iterator[tuple[str, Version, importlib.metadata.Distribution]]:
    """Each pinned package that this environment has: its name, its pin and what is installed."""
    for name, pin in pins().items():
        try:
            yield name, pin, importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def test_constraints_install_on_the_oldest_python() -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    too_new = []
    for name, pin, distribution in installed():
        wanted = distribution.metadata["Requires-Python"] or ""
        if distribution.version == str(pin) and oldest not in SpecifierSet(wanted):
            too_new.append(f"{name}=={pin} wants Python {wanted}")
    assert too_new == []


def test_constraints_are_what_is_installed() -> None:
    mismatches = [
        f"{name}: pinned {pin}, installed {distribution.version}"
        for name, pin, distribution in installed()
        if Version(Version(distribution.version).public) != pin
    ]
    if mismatches and "CI" not in os.environ:
        pytest.skip("not the tested set: " + "; ".join(mismatches))
    assert not mismatches


@pytest.mark.parametrize(
    ("marker", "last"),
    [
        # The server's root is the clone: in the notebooks' folder, their links to ../docs would lead nowhere.
        ("lab command", "jupyter lab --ServerApp.root_dir=. notebooks/00-start-here.ipynb"),
        ("test command", "pytest"),
    ],
)
def test_readme_has_the_command(marker: str, last: str) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    # The expression is the one in .ci/run, which runs the test command out of README.md.
    blocks = re.findall(rf"^<!-- {marker} -->\n```\w*\n(.*?)^```$", readme, re.M | re.S)
    assert len(blocks) == 1, f"README.md needs one fenced block directly after the line <!-- {marker} -->"
    words = last.split()
    assert blocks[0].split()[-len(words) :] == words


def test_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]
    headings = ["Apache License\n", "Version 2.0, January 2004\n", "END OF TERMS AND CONDITIONS\n", "APPENDIX: "]
    assert [heading for heading in headings if heading not in text] == []
    sections = [int(number) for number in re.findall(r"^   (\d)\. ", text, re.M)]
    assert sections == list(range(1, 10))
    assert re.search(r"^   Copyright \d{4} the tplab authors$", text, re.M)


def test_the_newest_version_in_the_changelog_is_this_one() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", text, re.MULTILINE)
    assert versions[0] == tplab.__version__
    assert [*map(Version, versions)] == sorted(map(Version, versions), reverse=True)
    # A heading in another form would be left out of a release's notes.
    assert len(versions) == text.count("\n## ")


def test_console_script_is_declared() -> None:
    assert PROJECT["scripts"] == {"tplab": "tplab.cli:main"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(name: str) -> str:
    """The room of a dotted name below ``tplab``: the innermost. ``tplab.cluster.run.Run`` is in ``cluster``."""
    parts = name.split(".")[1:]
    return next((room for n in (2, 1) if (room := ".".join(parts[:n])) in ROOMS), parts[0] if parts else "__init__")


def dotted(module: Path) -> str:
    """``tplab.cluster.run`` of ``tplab/cluster/run.py``, ``tplab.cluster`` of ``tplab/cluster/__init__.py``."""
    return ".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(module: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of each import in a module, inside functions and type-checking blocks too."""
    package = [PACKAGE.name, *module.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def test_every_module_is_in_a_known_room() -> None:
    assert {room_of(dotted(module)) for module in modules()} <= {"__init__", *ROOMS}


def test_imports_run_one_way() -> None:
    backward = []
    for module in modules():
        if (home := room_of(dotted(module))) == "__init__":
            continue
        for line, name in imported(module):
            if not name.startswith("tplab.") or name == "tplab.__version__":
                continue
            # A name that is no room came through the front door, which would hide the room that it is from.
            if room_of(name) not in ROOMS[: ROOMS.index(home) + 1]:
                backward.append(f"{module.relative_to(ROOT)}:{line}: {home} imports {name}")
    assert not backward, f"rooms in order: {', '.join(ROOMS)}"


def test_modules_stay_short() -> None:
    texts = [*modules(), *PACKAGE.rglob("*.js")]
    lengths = {str(module.relative_to(ROOT)): len(module.read_text("utf-8").splitlines()) for module in texts}
    assert {path: length for path, length in lengths.items() if length > LONGEST_MODULE} == {}


def strings_in(value: object) -> Iterator[str]:
    """Every string in a JSON document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for item in value.values() for text in strings_in(item))
    elif isinstance(value, list):
        yield from (text for item in value for text in strings_in(item))


def readable(path: Path) -> str:
    """The text of a file as a reader sees it; empty for a binary file."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        return ""
    if path.suffix == ".ipynb":
        text = ANSI_COLOUR.sub("", "\n".join(strings_in(json.loads(text))))
    return text


def test_no_file_names_a_path_of_one_machine() -> None:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip(f"not a git checkout: {listing.stderr.strip()}")
    tracked = [ROOT / name for name in listing.stdout.split("\0") if name]
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()[:120]}"
        for path in tracked
        if path.is_file()
        for line in readable(path).splitlines()
        if MACHINE_PATH.search(line)
    ]
    assert found == []
