"""The one way to open a file that a user gives, and the one way to write a file that a user keeps.

Reading: people download configurations, calibrations, topologies, schedules and results of benchmarks, so a file may
hold anything. Whatever is in it, a reader here answers soon, with the text or with a ``ValueError`` that names the file.
Writing: beside the file first, then renamed over it, so that a full disk or an interrupt leaves the earlier file whole.
"""

import json
import os
import select
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MAX_BYTES = 64 << 20
"""Largest file that is read unless a reader says otherwise: beyond every configuration, table or schedule."""
MAX_DIGITS = 18
"""Longest whole number in a JSON file: it still fits 64 bits. No size, count or time of a machine has more digits."""
_PIPE_PATIENCE_S = 10.0
_READ_SIZE = 1 << 20


def read_bytes(path: str | os.PathLike[str], *, limit: int = MAX_BYTES) -> bytes:
    """The whole file. A pipe (``<(command)`` of a shell) is read to its end while it goes on giving.

    Raises:
        ValueError: longer than ``limit`` bytes, a pipe that nobody writes to, or a path that no system takes.
        OSError: the file cannot be opened or read (``FileNotFoundError``, ``IsADirectoryError``, ...), named.
    """
    try:
        # Not blocking: a named pipe without a writer would hold up the opening itself.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a zero byte in the path
        raise ValueError(f"{os.fspath(path)!r} is no path of a file: {error}") from None
    with os.fdopen(fd, "rb", buffering=0) as file:
        kind = os.fstat(fd).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(21, "is a folder, not a file", str(path))
        chunks, size = [], 0
        while True:
            if not stat.S_ISREG(kind) and not select.select([fd], [], [], _PIPE_PATIENCE_S)[0]:
                raise ValueError(f"{path}: nothing came out of this pipe for {_PIPE_PATIENCE_S:.0f} s")
            try:
                chunk = file.read(_READ_SIZE)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from None
            if chunk is None:
                continue
            if not chunk:
                return b"".join(chunks)
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                raise ValueError(f"{path} is longer than {limit:,} bytes: no file of this kind is")


def read_text(path: str | os.PathLike[str], *, limit: int = MAX_BYTES, errors: str = "strict") -> str:
    """The file's text: UTF-8, or UTF-16 where it begins with that mark; a byte order mark is not part of the text.

    Raises like :func:`read_bytes`, and ``ValueError`` where the bytes are no such text and ``errors`` is ``strict``.
    """
    data = read_bytes(path, limit=limit)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from None


def parse_json(text: str, name: str) -> Any:
    """The value behind a JSON text; ``name`` says in errors where the text came from.

    Raises ``ValueError`` for anything that is not JSON, is nested too deep, or holds a whole number of more than 18
    digits.
    """
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError(f"{name}: the JSON in it is nested too deep to be read") from None
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON: {error}") from None


def read_json(path: str | os.PathLike[str], *, limit: int = MAX_BYTES) -> Any:
    """The value in a JSON file. Raises like :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path, limit=limit), str(path))


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; what is there becomes ``path`` when the block ends well.

    When it does not (an error, an interrupt, a full disk), the earlier file stays as it was and the partial one is
    removed. A link is followed, and the earlier file's permissions are kept. What is not a file (``/dev/stdout``, a
    pipe) is written in place.

    Raises ``OSError`` that names ``path``.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        yield target
        return
    partial: Path | None = None
    try:
        try:
            fd, name = tempfile.mkstemp(prefix=".", suffix=f".partial{target.suffix}", dir=target.parent)
            partial = Path(name)
            os.fchmod(fd, stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask())
            os.close(fd)
            yield partial
            with open(partial, "rb") as file:
                os.fsync(file.fileno())  # some file systems find out here that the disk is full
            os.replace(partial, target)
        except OSError as error:
            if error.filename not in (None, str(partial), str(target)):
                raise  # of another file, which the block read or wrote
            raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        if partial is not None:
            with suppress(OSError):
                partial.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` in UTF-8, in the manner of :func:`replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits.lstrip('-'))} digits, more than {MAX_DIGITS}")
    return int(digits)


def _umask() -> int:
    """The umask, which can only be read by setting it; not thread-safe, so taken from Linux where it says."""
    with suppress(OSError, StopIteration, ValueError):
        with open("/proc/self/status") as file:
            return int(next(line for line in file if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
