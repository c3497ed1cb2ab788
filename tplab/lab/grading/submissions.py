"""Learners and their notebooks in a folder, as people collect them: a folder each, files with names, archives.

Nothing of a learner's is run or unpacked to disk here.
"""

import io
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tplab.checks import ArgumentError
from tplab.files import parse_json, read_bytes, text_of
from tplab.lab.exercises.registry import EXERCISES

_SKIPPED = {".ipynb_checkpoints", "__MACOSX"}
_MOST_NOTEBOOKS = 500  # of one learner
_MOST_BYTES = 256 << 20  # of a notebook with all its outputs, and of all notebooks in an archive
_OWN_NAMES = sorted({exercise.notebook for exercise in EXERCISES.values()}, key=len, reverse=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Notebook:
    """One notebook of a learner."""

    name: str
    """Where it was found, below the folder."""
    modified: float
    """When it was last changed, in seconds; of several answers to one exercise the newest counts."""
    cells: tuple[Any, ...]
    """Cells as JSON objects, in order."""


@dataclass(kw_only=True, slots=True)
class Submission:
    """What a learner handed in."""

    learner: str
    """Name of the folder, or what is left of the file's name without the notebook's."""
    notebooks: list[Notebook] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What could not be read, in words."""


def find_submissions(folder: str | os.PathLike[str]) -> list[Submission]:
    """The submissions in ``folder``, by learner. Raises ``ArgumentError`` where there are none, or no folder."""
    top = Path(folder)
    if not top.is_dir():
        rule = "must be a folder with learners' notebooks" if top.exists() else "must be a folder that exists"
        raise ArgumentError("folder", str(folder), rule)
    found: dict[str, Submission] = {}
    for entry in sorted(top.iterdir()):
        if entry.name in _SKIPPED or entry.name.startswith("."):
            continue
        suffix = entry.suffix.lower()
        if entry.is_dir():
            _read_folder(_of(found, entry.name), entry, top)
        elif suffix == ".ipynb":
            _read_file(_of(found, learner_of(entry.stem)), entry, top)
        elif suffix == ".zip":
            _read_archive(_of(found, entry.stem), entry)
    if not any(each.notebooks or each.faults for each in found.values()):
        rule = "must hold notebooks: a folder or a zip file for each learner, or files such as ada-02.ipynb"
        raise ArgumentError("folder", str(folder), rule)
    return list(found.values())


def learner_of(stem: str) -> str:
    """The learner's name out of a file's: ``ada`` of ``ada-02``, of ``02-collectives (ada)``."""
    for name in _OWN_NAMES:
        if name in stem:
            left = stem.replace(name, " ", 1)
            break
    else:
        left = re.sub(r"(?<![0-9])0[0-9](?![0-9])", " ", stem, count=1)
    return left.strip(" -_.()[]") or stem


def _of(found: dict[str, Submission], learner: str) -> Submission:
    return found.setdefault(learner, Submission(learner=learner))


def _read_folder(submission: Submission, folder: Path, top: Path) -> None:
    count = 0
    for at, folders, names in os.walk(folder):  # does not follow links to folders
        folders[:] = sorted(set(folders) - _SKIPPED)
        for name in sorted(names):
            path, suffix = Path(at) / name, Path(name).suffix.lower()
            if name.startswith("._") or suffix not in {".ipynb", ".zip"}:  # macOS keeps its own beside each file
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                submission.faults.append(f"{path.relative_to(top).as_posix()}: a link that leads out of the folder")
            elif suffix == ".ipynb":
                count += 1
                if count > _MOST_NOTEBOOKS:
                    submission.faults.append(f"more than {_MOST_NOTEBOOKS} notebooks: the others were left out")
                    return
                _read_file(submission, path, top)
            else:
                _read_archive(submission, path)
    if not count and not submission.notebooks and not submission.faults:
        submission.faults.append("no notebook in the folder")


def _read_file(submission: Submission, path: Path, top: Path) -> None:
    name = path.relative_to(top).as_posix()
    try:
        _add(submission, name, path.stat().st_mtime, read_bytes(path, limit=_MOST_BYTES))
    except (ValueError, OSError) as error:
        submission.faults.append(_fault(name, error))


def _read_archive(submission: Submission, path: Path) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(read_bytes(path, limit=_MOST_BYTES))) as archive:
            left = _MOST_BYTES
            for member in _notebooks_in(archive):
                name = f"{path.name}/{member.filename}"
                if (left := left - member.file_size) < 0:
                    raise ValueError(f"more than {_MOST_BYTES >> 20} MiB of notebooks in one archive")
                with archive.open(member) as file:
                    data = file.read(member.file_size + 1)  # what the header says, whatever the rest unpacks to
                try:
                    _add(submission, name, _time_of(member), data)
                except ValueError as error:
                    submission.faults.append(_fault(name, error))
    except (ValueError, OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, EOFError) as error:
        submission.faults.append(_fault(path.name, error))
    if not submission.notebooks and not submission.faults:
        submission.faults.append(f"{path.name}: no notebook in it")


def _notebooks_in(archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    members = [
        member
        for member in archive.infolist()
        for path in [PurePosixPath(member.filename)]
        if path.suffix.lower() == ".ipynb" and not path.name.startswith("._") and not _SKIPPED & set(path.parts)
    ]
    yield from members[:_MOST_NOTEBOOKS]


def _time_of(member: zipfile.ZipInfo) -> float:
    from datetime import datetime

    try:
        return datetime(*member.date_time).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0


def _add(submission: Submission, name: str, modified: float, data: bytes) -> None:
    """Raises ``ValueError`` for what is no notebook."""
    read = parse_json(text_of(data, name), name)
    if not isinstance(read, dict):
        raise ValueError(f"{name} is no notebook: it holds no object")
    cells = read.get("cells")
    if cells is None and isinstance(sheets := read.get("worksheets"), list):  # version 3 of the format
        cells = [cell for sheet in sheets if isinstance(sheet, dict) for cell in sheet.get("cells", ())]
    if not isinstance(cells, list):
        raise ValueError(f"{name} is no notebook: it has no list of cells")
    # Outputs are not looked at, and can be most of a file.
    usable = tuple({k: v for k, v in cell.items() if k != "outputs"} for cell in cells if isinstance(cell, dict))
    submission.notebooks.append(Notebook(name=name, modified=modified, cells=usable))


def _fault(name: str, error: BaseException) -> str:
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return said if name in said else f"{name}: {said}"
