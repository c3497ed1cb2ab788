"""What a learner has predicted and solved, kept in one small file beside the notebooks.

``tplab-progress.json`` lies in the folder in which the notebook's kernel runs: there it is found again after a reload,
goes with a copied folder, and can be read by a teacher. It is written where a notebook's kernel runs and nowhere else;
the environment variable ``TPLAB_PROGRESS`` names another file, or says ``off``. Each record is merged into what the
file says at that moment, under a lock, for several notebooks may be open at once. A file that cannot be read or written
is left as it is, and said: nobody's work stops over it.

Not in the notebook's own metadata: a kernel cannot write there, and a fresh copy of a notebook would forget.
"""

import fcntl
import hashlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tplab.checks import ArgumentError
from tplab.files import read_json, write_text
from tplab.shown import shown

FILE_NAME: Final = "tplab-progress.json"
"""The file's name, in the folder of the notebooks."""
VARIABLE: Final = "TPLAB_PROGRESS"
"""Environment variable that names another file, or says ``off``."""
_FORMAT = 1
_LONGEST = 1 << 20
_PATIENCE_S = 10.0
_home: Path | None = None  # where the kernel was at first: a learner's chdir must not split the file


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionRecord:
    """A committed prediction, and what it was compared with."""

    value: float | None = None
    """The committed number; None where the answer was shown without one."""
    unit: str = ""
    """Unit of the number and of the answer."""
    at: str = ""
    """Time of the commit (or of the showing), UTC, ISO 8601."""
    answer: float | None = None
    """The number it was compared with, if it was."""
    source: str = ""
    """Where the answer comes from: ``model``, ``counted`` or ``measured``."""
    badge: str = ""
    """The answer's badge, such as ``LIVE gloo · 2 ranks``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExerciseRecord:
    """What a checker has said about a learner's answers to one exercise."""

    attempts: int = 0
    """How many answers were checked; the same answer twice in a row is one."""
    passed: bool = False
    """Whether one of them passed."""
    passed_at: str = ""
    """Time of the first that passed, UTC, ISO 8601."""
    attempts_until_passed: int = 0
    """How many answers were checked up to and with the first that passed."""
    last_at: str = ""
    """Time of the last check, UTC, ISO 8601."""
    last_answer: str = ""
    """A short hash of the last answer's source, to know it again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """All that a progress file says."""

    predictions: dict[str, PredictionRecord] = field(default_factory=dict)
    """Predictions by name, such as ``00-call``."""
    exercises: dict[str, ExerciseRecord] = field(default_factory=dict)
    """Exercises by name, such as ``02-ring``."""

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Progress":
        """What a file says; nothing where there is none.

        Raises ``ValueError`` that names the file for what is no progress of tplab's, ``OSError`` where it cannot be
        opened.
        """
        try:
            data = read_json(path, limit=_LONGEST)
        except FileNotFoundError:
            return cls()
        if not isinstance(data, dict) or "tplab_progress" not in data:
            raise ValueError(f"{path} is not a progress file of tplab's")
        if data["tplab_progress"] != _FORMAT:
            raise ValueError(f"{path} was written by another version of tplab ({shown(data['tplab_progress'])})")
        return cls(
            predictions=_records(PredictionRecord, data, "predictions", path),
            exercises=_records(ExerciseRecord, data, "exercises", path),
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file, beside it first and renamed. Raises ``OSError`` that says the way out."""
        write_text(path, json.dumps({"tplab_progress": _FORMAT, **asdict(self)}, indent=1, ensure_ascii=False) + "\n")


def progress_file() -> Path | None:
    """Where this process keeps progress; None where it keeps none (no notebook's kernel, or ``TPLAB_PROGRESS=off``)."""
    global _home
    told = os.environ.get(VARIABLE, "")
    if told:
        return None if told == "off" else Path(told)
    # A process that has not imported IPython is no kernel, and does not import it to find out.
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is None:
        return None
    if _home is None:
        _home = Path.cwd()
    return _home / FILE_NAME


def earlier_prediction(name: str) -> PredictionRecord | None:
    """What was committed under this name at some time before, if it is kept and can be read."""
    path = progress_file()
    if not name or path is None:
        return None
    with suppress(OSError, ValueError):
        return Progress.read(path).predictions.get(name)
    return None


def record_prediction(name: str, record: PredictionRecord | None) -> str:
    """Keep a prediction, or forget it (None); a missing time becomes now. Returns a note where it could not be kept,
    else nothing."""

    def change(progress: Progress) -> None:
        if record is None:
            progress.predictions.pop(name, None)
        else:
            progress.predictions[name] = replace(record, at=record.at or _now())

    return _merge(change) if name else ""


def record_exercise(name: str, passed: bool, answer: Callable[..., Any] | None = None) -> str:
    """Keep an attempt at an exercise. Returns a note where it could not be kept, else nothing.

    Args:
        name: the exercise, such as ``02-ring``.
        passed: what the checker found.
        answer: the learner's function: the same source twice in a row counts once (Run All checks stubs again).
    """
    source = _hash(answer)

    def change(progress: Progress) -> None:
        before = progress.exercises.get(name, ExerciseRecord())
        again = source != "" and source == before.last_answer
        attempts = before.attempts + (not again)
        first = passed and not before.passed
        progress.exercises[name] = ExerciseRecord(
            attempts=attempts,
            passed=before.passed or passed,
            passed_at=_now() if first else before.passed_at,
            attempts_until_passed=attempts if first else before.attempts_until_passed,
            last_at=_now(),
            last_answer=source,
        )

    return _merge(change)


def reset_progress(path: str | os.PathLike[str] | None = None) -> Path | None:
    """Begin anew: the file is renamed, beside itself, so that nothing is lost. Returns the new name; None where there
    was no file.

    Args:
        path: a progress file, or a folder with one; this kernel's own by default.

    Raises ``ValueError`` for a file that is not tplab's, ``OSError`` where it cannot be renamed.
    """
    file = progress_file() if path is None else file_in(path)
    if file is None:
        raise ArgumentError("path", path, "must name a folder or a file: no progress is kept here")
    if not file.exists():
        return None
    try:
        Progress.read(file)
    except ValueError as error:
        if file.name != FILE_NAME:  # whatever it is, it is not ours to move
            raise ValueError(f"{error}; it was left as it is") from None
    with _locked(file.parent):
        number = next(n for n in range(1, 1_000_000) if not _aside(file, n).exists())
        os.rename(file, _aside(file, number))
    return _aside(file, number)


def file_in(path: str | os.PathLike[str]) -> Path:
    """The progress file that a folder or a file's path means."""
    return Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)


def _aside(file: Path, number: int) -> Path:
    return file.with_name(f"{file.stem}-old-{number}{file.suffix}")


def _merge(change: Callable[[Progress], None]) -> str:
    """Read, change, write, with nobody between. Returns a note where that could not be done, else nothing."""
    path = progress_file()
    if path is None:
        return ""
    try:
        with _locked(path.parent):
            progress = Progress.read(path)
            change(progress)
            progress.write(path)
    except ValueError as error:
        return f"Not kept: {error}. It was left as it is; `tplab progress --reset` puts it aside and begins anew."
    except OSError as error:
        return f"Not kept: {error}."
    return ""


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone with the files in a folder, among the kernels that ask here; given up after some seconds.

    The folder itself is locked: a lock on the file would be left on the earlier one when it is replaced. Where a file
    system has no locks, or somebody holds this one for long, the record is merged all the same.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.002)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)


def _records(kind: type[Any], data: dict[str, Any], key: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The entries under a key, each checked: somebody may have edited the file."""
    found = data.get(key, {})
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {key} must be an object, not {shown(found)}")
    records = {}
    for name, values in found.items():
        where = f"{path}: {key}, {shown(name)}"
        if not isinstance(values, dict):
            raise ValueError(f"{where} must be an object, not {shown(values)}")
        known = {each.name: each.type for each in fields(kind)}
        for what, value in values.items():
            if what in known and not _fits(value, known[what]):
                raise ValueError(f"{where}: {what} cannot be {shown(value)}")
        records[name] = kind(**{what: value for what, value in values.items() if what in known})
    return records


def _fits(value: Any, kind: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind is str:
        return isinstance(value, str)
    if isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, int) and value >= 0
    return value is None or isinstance(value, int | float)


def _hash(answer: Callable[..., Any] | None) -> str:
    with suppress(OSError, TypeError):
        if answer is not None:
            return hashlib.sha256(inspect.getsource(answer).encode()).hexdigest()[:16]
    return ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
