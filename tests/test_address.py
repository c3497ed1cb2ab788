"""The project's address stands in one place, and docs/set_address.py writes it into all others."""

import importlib.util
import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("set_address", ROOT / "docs/set_address.py")
assert SPEC is not None
assert SPEC.loader is not None
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)

OURS = "/".join(("some-body", "a.lab_2"))
"""An address that stands nowhere in the project, here included."""
LEFT_BEHIND = {".git", ".venv", "build", "dist", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout in which something may be written, with a notebook that has the cell of links."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT, copy, ignore=lambda _, names: LEFT_BEHIND & set(names))
    cell = {"cell_type": "markdown", "id": "links", "metadata": {"tplab": {"address": "open"}}, "source": ["old"]}
    text = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    folder = copy / "notebooks/zh"
    folder.mkdir(exist_ok=True)
    (folder / "00-über.ipynb").write_text(json.dumps(text, indent=1, ensure_ascii=False) + "\n", "utf-8")
    tool.main(["--write"], copy)
    return copy


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_place_agrees_with_what_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([]) == 0, capsys.readouterr().out
    places = [place for place, _, _ in tool.rewritten(None)]
    assert {"README.md", "pyproject.toml", "CITATION.cff"} <= set(places)


def test_exactly_the_places_are_written_and_written_once(checkout: Path) -> None:
    before = contents(checkout)
    places = {place for place, _, _ in tool.rewritten(None, checkout)}
    assert tool.main([f"https://github.com/{OURS}.git"], checkout) == 0
    written = contents(checkout)
    assert {name for name in before if before[name] != written[name]} == places
    assert {name for name in written if OURS.encode() in written[name]} == places, "a place was left without it"
    assert before.keys() == written.keys()
    assert tool.address(checkout) == OURS
    project = tomllib.loads(written["pyproject.toml"].decode())["project"]
    assert project["urls"]["Documentation"] == "https://some-body.github.io/a.lab_2/"
    assert project["optional-dependencies"], "the table stands between others, and must not swallow them"
    assert b"git clone ADDRESS" not in written["README.md"]

    tool.main([OURS], checkout)
    assert contents(checkout) == written
    tool.main(["other/lab"], checkout)
    assert not any(OURS.encode() in text for text in contents(checkout).values())
    tool.main(["--none"], checkout)
    unset = contents(checkout)
    assert {name for name in unset if unset[name] != before[name]} <= (set() if tool.address() is None else places)


def test_links_of_a_notebook_lead_to_that_notebook(checkout: Path) -> None:
    tool.main([OURS], checkout)
    cell = json.loads((checkout / "notebooks/zh/00-über.ipynb").read_text("utf-8"))["cells"][0]
    links = re.findall(r"\]\((\S+?)\)", "".join(cell["source"]))
    assert links == [
        f"https://colab.research.google.com/github/{OURS}/blob/main/notebooks/zh/00-%C3%BCber.ipynb",
        f"https://kaggle.com/kernels/welcome?src=https://github.com/{OURS}/blob/main/notebooks/zh/00-%C3%BCber.ipynb",
        f"https://mybinder.org/v2/gh/{OURS}/main?urlpath=lab%2Ftree%2Fnotebooks%2Fzh%2F00-%C3%BCber.ipynb",
        f"https://codespaces.new/{OURS}",
    ]


def test_badges_have_their_pictures_from_every_folder() -> None:
    for place in ("README.md", "docs/index.md"):
        images = re.findall(
            r"!\[[^]]+\]\(([^)]+)\)", tool.in_text("<!-- address badges -->\n<!-- /address -->", OURS, place)
        )
        assert len(images) == 4
        assert all((ROOT / place).parent.joinpath(image).resolve().is_file() for image in images)


def test_unpublished_places_have_no_link() -> None:
    for name, write in tool.WRITERS.items():
        assert "https://" not in write(None, "README.md"), name


def test_nobody_writes_the_address_by_hand() -> None:
    """Outside of its places an address would stay behind when the project moves."""
    slug = tool.address()
    if slug is None:
        pytest.skip("the project has no public address yet")
    files = {path for pattern in ("*", "docs/*", "tplab/**/*", "notebooks/**/*") for path in ROOT.glob(pattern)}
    texts = {path: path.read_bytes() for path in files if path.is_file() and not LEFT_BEHIND & set(path.parts)}
    places = {place for place, _, _ in tool.rewritten(None)}
    named = {path.relative_to(ROOT).as_posix() for path, text in texts.items() if f"github.com/{slug}".encode() in text}
    assert named <= places
    for place in named:
        text = (ROOT / place).read_text("utf-8")
        write = tool.in_notebook if place.endswith(".ipynb") else tool.in_text
        assert slug not in write(text, None, place), f"{place} names it outside of a region"


BAD = ["lab", "a/b/c", "https://gitlab.com/a/b", "a b/c", "_a/b", "a/..", "a/b?x", "", "a/b\nc"]


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_address_is_refused(bad: str, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(checkout)
    with pytest.raises(SystemExit) as ended:
        tool.main([bad or " "], checkout)
    assert ended.value.code == 2
    assert "neither OWNER/REPO nor" in capsys.readouterr().err
    assert contents(checkout) == before


def test_an_unknown_region_is_named() -> None:
    with pytest.raises(ValueError, match=r"page\.md: no region is called 'bagdes'; there are urls"):
        tool.in_text("<!-- address bagdes -->\n<!-- /address -->", None, "page.md")
