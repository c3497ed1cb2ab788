"""What the container files promise, held to the project: no engine runs them here, so nothing else would notice."""

import ast
import json
import os
import re
import secrets
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tplab.lab.shipped import shipped_files

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text("utf-8")
COMPOSE = ["docker/compose.yaml", "docker/room/compose.yaml"]
HUB = ROOT / "docker/room/jupyterhub_config.py"


def services() -> list[tuple[str, dict[str, Any]]]:
    return [item for path in COMPOSE for item in yaml.safe_load((ROOT / path).read_text("utf-8"))["services"].items()]


def taken(path: str) -> bool:
    """Whether the build's context has a path, by the lines of the file that says what it leaves out."""
    lines = (ROOT / "docker/Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert lines[1] == "*", "everything is left out that is not named"
    return any(line[0] == "!" and (path == line[1:] or path.startswith(f"{line[1:]}/")) for line in lines if line)


def test_the_context_has_all_that_the_wheel_is_made_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    wanted = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    wanted |= {*wheel["packages"], *wheel["shared-data"], *(path.name for path in ROOT.glob("hatch_build.py"))}
    wanted |= {path.relative_to(ROOT).as_posix() for path in shipped_files().values()}
    wanted |= {name for line in re.findall(r"^COPY (?!--|\. )(.*) \S+$", DOCKERFILE, re.M) for name in line.split()}
    assert {name for name in wanted if not (ROOT / name).exists() or not taken(name)} == set()
    assert not any(map(taken, [".git/config", ".venv/bin/python", "tests/conftest.py", ".env", "docker.env"]))


def test_compose_builds_stages_that_exist_and_publishes_to_this_machine_only() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.M))
    assert {service["build"]["target"] for _, service in services()} <= stages
    for name, service in services():
        for port in service.get("ports", []):
            assert re.match(r"127\.0\.0\.1:|\$\{ROOM_ADDRESS:-127\.0\.0\.1\}:", port), name
        assert service.get("privileged") is None
    assert len(set(re.findall(r"^ARG (JUPYTERHUB=\S+)$", DOCKERFILE, re.M))) == 1, "hub and learners differ"


def test_no_image_runs_as_root_or_without_a_token() -> None:
    for stage in ("lab", "learner"):
        text = re.search(rf"^FROM \S+ AS {stage}$(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)
        assert text is not None
        assert re.findall(r"^USER (\S+)$", text[1], re.M)[-1] == "1000"
    everything = DOCKERFILE + "".join((ROOT / path).read_text("utf-8") for path in COMPOSE) + HUB.read_text("utf-8")
    assert not re.search(r"token\s*=\s*['\"]{2}|password\s*=\s*['\"]|disable_check_xsrf|allow_all", everything, re.I)


def test_slips_are_secret_and_stay_as_they_are(tmp_path: Path) -> None:
    tree = ast.parse(HUB.read_text("utf-8"))
    wanted = [
        node
        for node in tree.body
        if getattr(node, "name", None) == "read_slips" or ast.unparse(node).startswith("LETTERS = ")
    ]
    module: dict[str, Any] = {"Path": Path, "secrets": secrets}
    exec(compile(ast.Module(wanted, []), str(HUB), "exec"), module)
    slips = tmp_path / "slips.txt"
    before = os.umask(0)
    try:
        first = module["read_slips"](slips, ["ada", "bob"])
    finally:
        os.umask(before)
    assert stat.S_IMODE(slips.stat().st_mode) == 0o600
    assert all(re.fullmatch(r"[a-z2-9]{12}", password) for password in first.values())
    assert first["ada"] != first["bob"]
    more = module["read_slips"](slips, ["ada", "bob", "eve"])
    assert {name: more[name] for name in first} == first
    assert module["read_slips"](slips, ["ada"]) == {"ada": first["ada"]}, "who is no learner now gets no password"
    assert slips.read_text().split() == [word for item in more.items() for word in item]


def test_the_devcontainer_runs_what_is_there() -> None:
    text = (ROOT / ".devcontainer/devcontainer.json").read_text("utf-8")
    settings = json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.M))
    command = ROOT / settings["postCreateCommand"]
    assert os.access(command, os.X_OK)
    assert "\nset -euo pipefail\n" in command.read_text("utf-8")
    python = settings["image"].rsplit(":", 1)[1].split("-")[0]
    assert (ROOT / "binder/runtime.txt").read_text("utf-8").strip() == f"python-{python}"


@pytest.mark.parametrize("path", COMPOSE)
def test_the_commands_in_the_comments_name_their_own_file(path: str) -> None:
    text = (ROOT / path).read_text("utf-8")
    assert set(re.findall(r"-f (\S+\.yaml)", text)) == {path}
