"""A learner's copy of the notebooks: whole, never written over, and brought up to date without a loss."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import tplab
from tplab.checks import ArgumentError
from tplab.lab import shipped
from tplab.lab.shipped import copying
from tplab.lab.shipped.copying import (
    MARKER,
    changed_files,
    copy_notebooks,
    default_folder,
    find_workplace,
    is_behind,
    read_record,
    refresh,
)  # fmt: skip

LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s#]+)")


@pytest.fixture(autouse=True)
def signatures(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the ones of whoever runs the tests."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path_factory.mktemp("jupyter")))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with two small notebooks in two languages, a page and a source that they link to."""
    home = tmp_path / "site"
    texts = {
        "notebooks/00-start-here.ipynb": book("to [a page](../docs/page.md), [02](02-b%20c.ipynb \"title (x)\")"),
        "notebooks/02-b c.ipynb": book("![picture](images/a.svg)"),
        "notebooks/zh/00-start-here.ipynb": book("你好"),
        "notebooks/images/a.svg": "<svg/>",
        "notebooks/tplab-progress.json": "{}",
        "notebooks/.ipynb_checkpoints/02-b-checkpoint.ipynb": "{}",
        "docs/page.md": "[code](../tplab/a/b.py) [up](../../outside.md) [none](none.md)",
        "docs/unlinked.md": "",
        "tplab/a/b.py": "B = 1",
    }  # fmt: skip
    for name, text in texts.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    (tmp_path / "outside.md").write_text("")
    monkeypatch.setattr(shipped, "CHECKOUT", home)
    monkeypatch.chdir(tmp_path)
    return home


def book(*sources: str, outputs: tuple[str, ...] = ()) -> str:
    cells = [
        {"cell_type": "markdown", "id": str(number), "metadata": {}, "source": text}
        for number, text in enumerate(sources)
    ]
    cells += [
        {"cell_type": "code", "id": "c", "metadata": {}, "execution_count": 1, "source": "1", "outputs": [*outputs]}
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_all_links_hold_in_a_copy_of_the_real_ones(tmp_path: Path) -> None:
    copy_notebooks(tmp_path)
    looked_at = 0
    for path in (each for each in tmp_path.rglob("*") if each.suffix in (".md", ".ipynb")):
        for target in LINK.findall(path.read_text("utf-8")):
            looked_at += 1
            assert (path.parent / unquote(target)).exists(), (path.name, target)
    assert looked_at > 100


def test_what_is_copied_is_what_the_notebooks_lead_to(small: Path) -> None:
    assert set(shipped.shipped_files()) == {
        *("notebooks/00-start-here.ipynb", "notebooks/02-b c.ipynb", "notebooks/zh/00-start-here.ipynb"),
        *("notebooks/images/a.svg", "docs/page.md", "tplab/a/b.py"),
    }


def test_the_notebooks_are_signed(small: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    from nbformat.sign import NotebookNotary

    place = copy_notebooks(Path("new"))
    notary = NotebookNotary()
    assert notary.check_signature(nbformat.read(place.path / "02-b c.ipynb", as_version=4))
    assert not notary.check_signature(nbformat.reads(book("somebody else's"), as_version=4))


def test_a_copy_is_found_again_from_wherever_one_is(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_folder() == Path("tplab-lab")
    assert find_workplace(Path()) is None
    made = copy_notebooks(Path("Kurs 1/größe"))
    assert made.start == "notebooks/00-start-here.ipynb"
    assert find_workplace(Path("Kurs 1/größe")) == find_workplace(Path("Kurs 1/größe/notebooks")) == made
    os.symlink("Kurs 1/größe", "link")
    assert find_workplace(Path("link")) == made
    monkeypatch.chdir("link/notebooks")
    assert default_folder() == Path()
    shutil.rmtree(made.folder / "docs")
    alone = find_workplace(Path())
    assert alone is not None
    assert (alone.folder, alone.start) == (made.path, "00-start-here.ipynb")
    (made.path / "00-start-here.ipynb").unlink()
    found = find_workplace(made.folder)
    assert found is not None
    assert found.start == "notebooks/02-b c.ipynb"
    assert default_folder() == Path()


def test_numbered_notebooks_of_somebody_elses_are_no_copy(small: Path) -> None:
    Path("mine").mkdir()
    Path("mine/01-notes.ipynb").write_text(book("mine"))
    assert find_workplace(Path("mine")) is None


@pytest.mark.parametrize("name", ["docs/mine.md", "docs/page.md", "notebooks/mine.ipynb", "tplab/x.py", "docs"])
def test_what_is_in_the_way_stays(small: Path, name: str) -> None:
    file = Path("folder", name)
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    before = tree(Path("folder"))
    with pytest.raises(ArgumentError, match=f"must have no {name.split('/')[0]} of its own.*folder/tplab-lab"):
        copy_notebooks(Path("folder"))
    assert tree(Path("folder")) == before


@pytest.mark.parametrize("link", [False, True])
def test_notebooks_go_where_nothing_is_or_all_stays_as_it_was(small: Path, link: bool) -> None:
    Path("folder").mkdir()
    Path("elsewhere").mkdir()
    if link:
        os.symlink("../elsewhere", "folder/notebooks")
    else:
        Path("folder/notebooks/empty").mkdir(parents=True)
    with pytest.raises(ArgumentError, match="must have no notebooks of its own"):
        copy_notebooks(Path("folder"))
    assert [each.name for each in Path("folder").iterdir()] == ["notebooks"]


def test_a_copy_whose_notebooks_were_moved_gets_new_ones_beside_what_its_owner_added(small: Path) -> None:
    place = copy_notebooks(Path("folder"))
    (place.folder / "docs/notes.md").write_text("mine")
    (place.folder / "docs/page.md").write_text("mine, too")
    place.path.rename(place.folder / "old")
    assert copy_notebooks(Path("folder")) == place
    assert (place.path / "00-start-here.ipynb").is_file()
    assert (place.folder / "docs/notes.md").read_text() == "mine"
    assert (place.folder / "docs/page.md").read_text() == "mine, too"


def test_other_files_are_not_in_the_way(small: Path) -> None:
    Path("folder/notebooks").mkdir(parents=True)
    Path("folder/README.md").write_text("mine")
    assert copy_notebooks(Path("folder")).start
    assert Path("folder/README.md").read_text() == "mine"


def test_no_folder(small: Path) -> None:
    Path("file").write_text("mine")
    os.symlink("nowhere", "dangling")
    for name, what in (("file", "is a file"), ("dangling", "leads nowhere"), ("file/below", "can be written to")):
        with pytest.raises(ArgumentError, match=what):
            copy_notebooks(Path(name))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("there", [False, True])
def test_half_a_copy_is_none_and_the_next_call_makes_it_whole(
    small: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, there: bool
) -> None:
    folder = Path("folder")
    if there:
        folder.mkdir()
    copied = shutil.copyfile
    calls = [0]

    def fail_at_the_third(*args: object) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise error
        copied(*args)

    with monkeypatch.context() as patched:
        patched.setattr(copying.shutil, "copyfile", fail_at_the_third)
        with pytest.raises((ArgumentError, KeyboardInterrupt)) as raised:
            copy_notebooks(folder)
    if isinstance(error, OSError):
        assert "No space left on device" in str(raised.value)
    assert not folder.exists() or (there and not [*folder.iterdir()])
    copy_notebooks(folder)
    assert set(tree(folder)) == {*shipped.shipped_files(), MARKER}


def test_what_a_killed_copy_left_goes_and_one_under_way_stays(small: Path) -> None:
    old, new = Path("folder/.tplab-partial-old"), Path("folder/.tplab-partial-new")
    for each in (old, new):
        (each / "notebooks").mkdir(parents=True)
    os.utime(old, (0, 0))
    copy_notebooks(Path("folder"))
    assert (old.exists(), new.exists()) == (False, True)


def test_two_at_once_make_one_copy(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust = copying._trust

    def overtaken(paths: Any) -> None:
        monkeypatch.setattr(copying, "_trust", trust)
        copy_notebooks(Path("folder"))
        Path("folder/notebooks/mine.ipynb").write_text("mine")

    monkeypatch.setattr(copying, "_trust", overtaken)
    assert copy_notebooks(Path("folder")).start == "notebooks/00-start-here.ipynb"
    assert Path("folder/notebooks/mine.ipynb").read_text() == "mine"
    assert not [*Path("folder").glob(".tplab-partial*")]


@pytest.mark.parametrize("aside", [False, True])
def test_an_interrupt_between_renames_leaves_notebooks_to_go_on_with(
    small: Path, monkeypatch: pytest.MonkeyPatch, aside: bool
) -> None:
    folder = Path("folder")
    if aside:
        place = copy_notebooks(folder)
        (place.path / "mine.ipynb").write_text("mine")
    renamed = os.rename

    def interrupted(source: Path, target: Path) -> None:
        if target.name == "notebooks" and "partial" in str(source):
            raise KeyboardInterrupt
        renamed(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(copying.os, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            refresh(place) if aside else copy_notebooks(folder)
    assert not [*folder.glob(".tplab-partial*")]
    if aside:
        assert (folder / "notebooks/mine.ipynb").read_text() == "mine"
    else:
        assert copy_notebooks(folder).start


def test_fresh_notebooks_and_nothing_lost(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = copy_notebooks(Path("folder"))
    folder = place.folder
    record = read_record(folder)
    assert record is not None
    assert changed_files(folder, record) == []
    assert not is_behind(record)

    # Outputs are no change of a learner's; words are.
    start, second = folder / "notebooks/00-start-here.ipynb", folder / "notebooks/02-b c.ipynb"
    start.write_text(start.read_text().replace('"outputs": []', '"outputs": [{"output_type": "stream"}]'))
    assert changed_files(folder, record) == []
    second.write_text(book("my words"))
    (folder / "docs/page.md").write_text("my page")
    (folder / "notebooks/tplab-progress.json").write_text('{"mine": 1}')
    (folder / "notebooks/extra.ipynb").write_text("my own")
    mine = tree(folder / "notebooks")
    assert sorted(changed_files(folder, record)) == ["docs/page.md", "notebooks/02-b c.ipynb"]

    (small / "notebooks/02-b c.ipynb").write_text(book("version 9"))
    (small / "tplab/a/b.py").write_text("B = 9")
    (small / "docs/page.md").write_text("page 9, [code](../tplab/a/b.py)")
    monkeypatch.setattr(tplab, "__version__", "9.0.0")
    assert is_behind(record)
    aside = refresh(place)
    assert aside == folder / f"notebooks-{record.version}"
    assert tree(aside) == mine
    assert "version 9" in second.read_text()
    assert (folder / "tplab/a/b.py").read_text() == "B = 9"
    assert (folder / "docs/page.md").read_text() == "my page"
    assert (folder / "notebooks/tplab-progress.json").read_text() == '{"mine": 1}'
    now = read_record(folder)
    assert now is not None
    assert (now.version, is_behind(now)) == ("9.0.0", False)
    assert refresh(place).name == "notebooks-9.0.0"
    assert refresh(place).name == "notebooks-9.0.0-2"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": "../..", "files": {}}', '{"version": 1, "files": {}}'])
def test_a_clone_or_a_spoilt_record_is_not_refreshed(small: Path, text: str) -> None:
    place = copy_notebooks(Path("folder"))
    (place.folder / MARKER).write_text(text)
    before = tree(place.folder)
    with pytest.raises(ArgumentError, match="must be a copy that `tplab lab` made"):
        refresh(place)
    assert tree(place.folder) == before


def test_an_installation_without_notebooks_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shipped, "CHECKOUT", tmp_path)
    with pytest.raises(ArgumentError, match="not in this installation"):
        shipped.root()
