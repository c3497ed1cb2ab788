"""A learner's own copy of the notebooks: made where none are, and never written over.

A copy is laid out as a clone, so that links between notebooks and docs hold. It is made in a hidden folder beside and
renamed, the notebooks last: what an interrupt or a full disk leaves is a folder without notebooks, and the next call
goes on from there. A small file in it says which version it came from and what each file was, so that a later version
can tell what the learner has changed. Not git: it is not on every machine, and a stored output would count as a change.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tplab
from tplab.checks import ArgumentError
from tplab.files import read_json, write_text
from tplab.lab.progress import FILE_NAME
from tplab.lab.shipped import NUMBERED, START, shipped_files

MARKER: Final = ".tplab-lab.json"
"""File of a copy that says what it was made from."""
DEFAULT: Final = "tplab-lab"
"""Folder of a copy that nobody has named."""
_FORMAT = 1
_PARTIAL = ".tplab-partial-"
_KILLED_S = 3600.0  # a copy takes a second or two


@dataclass(frozen=True, kw_only=True, slots=True)
class Workplace:
    """Notebooks to open."""

    folder: Path
    """What the notebook server shows: with the docs beside the notebooks, where these are."""
    notebooks: str
    """Path of the notebooks below it; empty where they are in the folder itself."""

    @property
    def path(self) -> Path:
        """The folder of the notebooks."""
        return self.folder / self.notebooks

    @property
    def start(self) -> str:
        """Path below ``folder`` of what to open first: the start page, or what there is instead of it."""
        there = sorted(path.name for path in self.path.glob(NUMBERED))
        first = [START] if START in there else there[:1]
        return "/".join(filter(None, [self.notebooks, *first]))


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyRecord:
    """What a copy's own file says of it."""

    version: str
    """Version of tplab that it was copied from."""
    files: Mapping[str, str]
    """Fingerprint of each file as it was copied, by path below the folder."""


def default_folder() -> Path:
    """Where a learner is who names no folder: here if here are notebooks, else ``tplab-lab`` below."""
    here = Path()
    return here if find_workplace(here) is not None else here / DEFAULT


def find_workplace(folder: Path) -> Workplace | None:
    """The notebooks in ``folder``, or in its ``notebooks``; None where there are none."""
    if _has_notebooks(folder / "notebooks"):
        return Workplace(folder=folder.resolve(), notebooks="notebooks")
    if not _has_notebooks(folder.absolute()):  # a copy's are known by the folder's name, which "." does not have
        return None
    folder = folder.resolve()
    if (folder.parent / "docs").is_dir():  # the notebooks' links lead there
        return Workplace(folder=folder.parent, notebooks=folder.name)
    return Workplace(folder=folder, notebooks="")


def copy_notebooks(folder: Path) -> Workplace:
    """Copy the notebooks, and what they link to, into ``folder``, which is made if need be.

    Raises ``ArgumentError`` naming ``folder`` where something is in the way, or where it cannot be written to.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        what = "a link that leads nowhere" if folder.is_symlink() and not folder.exists() else "a file"
        raise ArgumentError("folder", str(folder), f"must be a folder, new or there already, and is {what}")
    shipped, record = shipped_files(), read_record(folder)
    if _has_notebooks(folder / "notebooks"):  # somebody else has copied them there at the same moment
        return Workplace(folder=folder.resolve(), notebooks="notebooks")
    for top in dict.fromkeys(name.split("/")[0] for name in shipped if "/" in name):
        if _in_the_way(folder, top, shipped, record):
            rule = f"must have no {top} of its own, where the lab's go: name a new folder, such as {folder / DEFAULT}"
            raise ArgumentError("folder", str(folder), rule)
    _put(folder, shipped, record)
    return Workplace(folder=folder.resolve(), notebooks="notebooks")


def refresh(place: Workplace) -> Path:
    """Put the installed version's notebooks in place of a copy's, which are kept in a folder beside: it is returned.
    What was predicted and solved goes along, and what else was changed stays as it is.

    Raises ``ArgumentError`` naming ``folder`` where the notebooks are no copy of tplab's, or cannot be written to.
    """
    record = read_record(place.folder)
    if record is None or place.notebooks != "notebooks":
        rule = "must be a copy that `tplab lab` made; a clone's notebooks come back by `git restore notebooks`"
        raise ArgumentError("folder", str(place.folder), rule)
    aside = _free(place.folder / f"notebooks-{record.version}")
    _put(place.folder, shipped_files(), record, aside)
    return aside


def read_record(folder: Path) -> CopyRecord | None:
    """What the copy in ``folder`` was made from; None where that is not known."""
    try:
        data = read_json(folder / MARKER)
        version, files = data["version"], data["files"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not isinstance(version, str) or not isinstance(files, dict) or "/" in version:
        return None
    return CopyRecord(version=version, files={str(name): str(mark) for name, mark in files.items()})


def changed_files(folder: Path, record: CopyRecord) -> list[str]:
    """What a learner has changed or taken away since the copy was made, by path below ``folder``; outputs of a
    notebook do not count."""
    return [name for name, mark in record.files.items() if _fingerprint_of(folder / name) != mark]


def is_behind(record: CopyRecord) -> bool:
    """Whether this version of tplab has other notebooks than those that were copied."""
    now = {name: _fingerprint_of(path) for name, path in shipped_files().items() if name.startswith("notebooks/")}
    return now != {name: mark for name, mark in record.files.items() if name.startswith("notebooks/")}


def _put(folder: Path, shipped: Mapping[str, Path], record: CopyRecord | None, aside: Path | None = None) -> None:
    """Write everything beside, then rename. Files outside ``notebooks`` that are there are replaced only where they
    are as ``record`` says."""
    made = not folder.is_dir()
    partial: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_PARTIAL}*"):  # by a copy that was killed
            if time.time() - left.lstat().st_mtime > _KILLED_S:
                shutil.rmtree(left, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder))
        files = {}
        for name, source in shipped.items():
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)  # without its permissions: an installation may be read-only
            files[name] = _fingerprint_of(target)
        _trust(partial.rglob("*.ipynb"))
        if aside is not None:
            with suppress(FileNotFoundError):
                shutil.copyfile(folder / "notebooks" / FILE_NAME, partial / "notebooks" / FILE_NAME)
        for name in files:
            earlier, target = None if record is None else record.files.get(name), folder / name
            if name.startswith("notebooks/"):
                continue
            if not os.path.lexists(target) or _fingerprint_of(target) == earlier:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(partial / name, target)
        about = {"tplab_lab": _FORMAT, "version": tplab.__version__, "files": files}
        write_text(folder / MARKER, json.dumps(about, indent=1) + "\n")
        if aside is not None:
            os.rename(folder / "notebooks", aside)
        try:
            os.rename(partial / "notebooks", folder / "notebooks")
        except BaseException as error:
            if aside is not None:
                os.rename(aside, folder / "notebooks")
            elif isinstance(error, OSError) and _has_notebooks(folder / "notebooks"):
                return  # somebody else has copied them there at the same moment
            raise
    except OSError as error:
        why = f"must be a folder that can be written to: {error.strerror or error}"
        raise ArgumentError("folder", str(folder), why) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        if made:
            with suppress(OSError):
                folder.rmdir()  # only if nothing came into it


def _trust(notebooks: Iterable[Path]) -> None:
    """Sign the notebooks, as the installer of tplab trusts them: unsigned ones are shown without what moves in them."""
    try:
        import nbformat
        from nbformat.sign import NotebookNotary

        notary = NotebookNotary()  # type: ignore[no-untyped-call]
        for path in notebooks:
            notary.sign(nbformat.read(path, as_version=4))  # type: ignore[no-untyped-call]
    except Exception as error:  # no nbformat, or no folder for its signatures: the notebooks are good without
        logging.getLogger(__name__).info("the notebooks are not signed: %s", error)


def _has_notebooks(folder: Path) -> bool:
    """Numbered notebooks alone may be anybody's."""
    copied = folder.name == "notebooks" and read_record(folder.parent) is not None
    return (folder / START).is_file() or (copied and any(folder.glob(NUMBERED)))


def _in_the_way(folder: Path, top: str, shipped: Mapping[str, Path], record: CopyRecord | None) -> bool:
    """Whether ``folder`` has a ``top`` with anything in it that is not of a copy. Where notebooks go nothing may be,
    not even an empty folder or a link: a whole folder is renamed to there."""
    there = folder / top
    if not there.is_dir():
        return os.path.lexists(there)
    if top == "notebooks":
        return there.is_symlink() or any(there.iterdir())
    if record is not None:  # a copy's, with what its owner has added and what an earlier version had
        return False
    for path in there.rglob("*"):
        name = path.relative_to(folder).as_posix()
        mine = name in shipped and _fingerprint_of(path) == _fingerprint_of(shipped[name])
        if not (mine or path.is_dir()):
            return True
    return False


def _fingerprint_of(path: Path) -> str:
    """Of what a learner may change in a file: a notebook's cells without their outputs, all of another; empty where
    there is none."""
    try:
        data = path.read_bytes()
    except OSError:
        return ""
    if path.suffix == ".ipynb":
        with suppress(ValueError, TypeError, KeyError):  # a damaged one differs by its bytes
            cells = [[cell["cell_type"], "".join(cell["source"])] for cell in json.loads(data)["cells"]]
            data = json.dumps(cells).encode()
    return hashlib.sha256(data).hexdigest()


def _free(path: Path) -> Path:
    """``path``, or the same with a number where that is taken."""
    number = 1
    free = path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
