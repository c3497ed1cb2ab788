"""The one way to open a file that a user gives, and the one way to write a file that a user keeps.

Reading: people download configurations, calibrations, topologies, schedules and results of benchmarks, so a file may
hold anything. Whatever is in it, a reader here answers soon, with what is in it or with a ``ValueError`` that names it.
Writing: beside the file first, then renamed over it, so that a full disk or an interrupt leaves the earlier file whole.
"""

import errno
import gc
import gzip
import json
import os
import re
import secrets
import select
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from tplab.file_kinds import binary_kind, encoding_of, json_hint, text_kind
from tplab.shown import check_depth, nearest, shown

MAX_BYTES = 64 << 20
"""Largest file that is read unless a reader says otherwise: beyond every configuration, table or schedule."""
MAX_WHOLE = (1 << 63) - 1
"""Largest whole number in a JSON file, as it fits 64 bits: so do times in nanoseconds, sizes and counts."""
MAX_HOLDERS = 2_000_000
"""Most lists and objects in a JSON file; parsing as many takes about a second."""
_PIPE_PATIENCE_S = 10.0
_READ_SIZE = 1 << 20
_GZIP = b"\x1f\x8b"
_MOST_MEMBERS = 16
_BLANKS = re.compile(r"[ \t\n\r]*")
_TRIAL_SIZE = 4096
_MOST_NAMES = 1000
_ROOM = "make room, or write to another disk"
_OF_YOURS = "write to a folder of yours"
_WAYS_OUT = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "write to another disk, or raise the limit of ulimit -f",
    errno.EROFS: _OF_YOURS,
    errno.EACCES: _OF_YOURS,
    errno.EPERM: _OF_YOURS,
    errno.EISDIR: "give the name of a file",
    errno.ENAMETOOLONG: "give a shorter name",
}


def read_bytes(path: str | os.PathLike[str], *, limit: int = MAX_BYTES) -> bytes:
    """The whole file, unpacked where its name ends in ``.gz``. A pipe (``<(command)`` of a shell) is read to its end
    while it goes on giving.

    Raises:
        ValueError: longer than ``limit`` bytes, also unpacked; a broken gzip file, a pipe that nobody writes to, or a
            path that no system takes.
        OSError: the file cannot be opened or read (``FileNotFoundError``, ``IsADirectoryError``, ...), named.
    """
    try:
        # Not blocking: a named pipe without a writer would hold up the opening itself.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a zero byte in the path
        raise ValueError(f"{shown(os.fspath(path))} is no path of a file: {error}") from None
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, f"{error.strerror}{instead_of(path)}", os.fspath(path)) from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ValueError(f"{shown(os.fspath(path))} is no path of a file: {error.strerror}") from None
    kind = os.fstat(fd).st_mode
    if stat.S_ISDIR(kind):  # before fdopen, which would name the descriptor
        os.close(fd)
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", str(path))
    with os.fdopen(fd, "rb", buffering=0) as file:
        chunks: list[bytes] = []
        size = 0
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
                data = b"".join(chunks)
                # A browser may have unpacked it and kept the name.
                return _unpacked(data, path, limit) if _is_packed(path) and data.startswith(_GZIP) else data
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                raise ValueError(f"{path} is longer than {limit:,} bytes: no file of this kind is")


def read_text(path: str | os.PathLike[str], *, limit: int = MAX_BYTES, errors: str = "strict") -> str:
    """The file's text, in UTF-8 or UTF-16, without a byte order mark and with ``\\n`` at the end of lines.

    Raises like :func:`read_bytes` and :func:`text_of`.
    """
    return text_of(read_bytes(path, limit=limit), str(path), errors=errors)


def text_of(data: bytes, name: str, *, errors: str = "strict") -> str:
    """The text in ``data`` as :func:`read_text` has it; ``name`` says in errors where it came from.

    Raises ``ValueError`` where the bytes are no such text and ``errors`` is ``strict``, and for what is known to be
    something else (an archive, a web page, a pointer of Git LFS), with the way out.
    """
    if kind := binary_kind(data):
        raise ValueError(f"{name} is {kind}")
    try:
        text = data.decode(encoding_of(data), errors)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name} is not text in UTF-8 ({error.reason} at byte {error.start}): save it as such; it is line {line}"
        ) from None
    if kind := text_kind(text):
        raise ValueError(f"{name} is {kind}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str, name: str) -> Any:
    """The value behind a JSON text; ``name`` says in errors where the text came from.

    Raises ``ValueError`` for anything that is not JSON, is nested more than 100 deep, or holds a whole number that
    64 bits cannot.
    """
    text = text.removeprefix("\ufeff")  # of a text that somebody read as plain UTF-8
    return _parsed(text, name, lambda: json.loads(text, parse_int=_whole))


def parse_json_documents(text: str, name: str, *, most: int) -> list[Any]:
    """The values of a text with one JSON document after the other. Raises like :func:`parse_json`, and ``ValueError``
    for more than ``most`` of them."""
    decoder = json.JSONDecoder(parse_int=_whole)

    def documents() -> list[Any]:
        found: list[Any] = []
        at = 0
        while (at := _BLANKS.match(text, at).end()) < len(text):  # type: ignore[union-attr]  # it matches anywhere
            if len(found) == most:
                raise ValueError(f"more than {most:,} documents in one file")
            data, at = decoder.raw_decode(text, at)
            found.append(data)
        return found

    text = text.removeprefix("\ufeff")
    data: list[Any] = _parsed(text, name, documents)
    return data


def read_json(path: str | os.PathLike[str], *, limit: int = MAX_BYTES) -> Any:
    """The value in a JSON file. Raises like :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path, limit=limit), str(path))


def check_writable(path: str | os.PathLike[str]) -> None:
    """Ask whether a file can be written there, before minutes are spent on what is to go into it.

    A few bytes are written to a file without a name in the same folder: permissions alone do not show a disk that is
    full already, nor of what a server says. A pipe or a device is not touched.

    Raises ``OSError`` like :func:`replacing`.
    """
    try:
        target, _ = _target(path)
        if target is not None:
            with tempfile.TemporaryFile(dir=target.parent) as trial:
                trial.write(bytes(_TRIAL_SIZE))
                trial.flush()
    except OSError as error:
        raise _unwritten(path, error) from None


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; what is there becomes ``path`` when the block ends well.

    When it does not (an error, an interrupt, a full disk), the earlier file stays as it was and the partial one is
    removed. A link is followed, and the earlier file's owner and permissions are kept as far as one may; other names of
    it (hard links) keep the earlier file. What is not a file (a pipe, a device), and a file that this process prints
    to, is not replaced: the partial file is copied into it at the end.

    Raises ``OSError`` that names ``path`` and says the way out: no such folder, a folder of that name, an earlier file
    or a folder that one may not write to, no room.
    """
    partial: Path | None = None
    try:
        target, earlier = _target(path)
        folder = Path(tempfile.gettempdir()) if target is None else target.parent
        # Not of tempfile: the folder's own rules for new files are to hold. The ending tells pandas how to compress.
        partial = folder / f".{secrets.token_hex(8)}.partial{Path(path).suffix}"
        _create(partial, earlier)
        yield partial
        settle(partial)
        if target is None:
            _copy_into(path, partial)
        else:
            os.replace(partial, target)
    except OSError as error:
        if error.filename is not None and str(error.filename) not in (str(partial), os.fspath(path)):
            raise  # of another file, which the block read or wrote
        raise _unwritten(path, error) from None
    finally:
        if partial is not None:
            with suppress(OSError):
                partial.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` in UTF-8, packed where the name ends in ``.gz``; in the manner of :func:`replacing`, whose errors
    it raises."""
    data = text.encode()
    with replacing(path) as partial:
        partial.write_bytes(gzip.compress(data, mtime=0) if _is_packed(path) else data)  # the same text, the same file


def settle(path: str | os.PathLike[str]) -> None:
    """Wait until a file is on its disk: some file systems find out only then that there is no room for it."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def told_kind(path: str | os.PathLike[str]) -> str | None:
    """What a file is that should hold something else, with the way out, where its beginning tells: a web page, a
    pointer of Git LFS, a server's answer. None otherwise, and where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return text_kind(file.read(4096).decode("utf-8", "replace"))
    except OSError:
        return None


def instead_of(path: str | os.PathLike[str]) -> str:
    """What is there instead of a missing file, with a leading colon: a like name in its folder, or no folder."""
    folder, name = os.path.split(os.fsdecode(path))
    try:
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry in islice(entries, _MOST_NAMES)]
    except OSError:
        return f": there is no folder {folder}" if folder and not os.path.isdir(folder) else ""
    hint = nearest(name, names) if name else ""
    return f": {hint}" if hint.endswith("?") else ""


def _is_packed(path: str | os.PathLike[str]) -> bool:
    return os.fsdecode(path).lower().endswith(".gz")


def _unpacked(data: bytes, path: str | os.PathLike[str], limit: int) -> bytes:
    """What a gzip file holds, as far as the limit goes: a thousandth of it can say it. Not by the module gzip, which
    takes seconds for a hundred thousand members, however empty."""
    unpacked = bytearray()
    for _ in range(_MOST_MEMBERS):
        member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        try:
            unpacked += member.decompress(data, limit + 1 - len(unpacked))
        except zlib.error as error:
            raise ValueError(f"{path} is no whole gzip file: {error}") from None
        if len(unpacked) > limit:
            raise ValueError(f"{path} is longer than {limit:,} bytes when it is unpacked: no file of this kind is")
        if not member.eof:
            raise ValueError(f"{path} is no whole gzip file: its end is missing")
        data = member.unused_data
        if not data.strip(b"\0"):  # some tools fill blocks up
            return bytes(unpacked)
    raise ValueError(f"{path} is more than {_MOST_MEMBERS} gzip files in one: unpack it first (gunzip)")


def _target(path: str | os.PathLike[str]) -> tuple[Path | None, os.stat_result | None]:
    """The file to replace, behind all links, and what it is now; no file for what can only be written in place.

    Raises ``OSError`` where it cannot be written whatever the disk says.
    """
    try:
        earlier = os.stat(path)
    except FileNotFoundError:
        target = Path(os.path.realpath(path))
        if not target.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {target.parent} (make it first)") from None
        return target, None
    if stat.S_ISDIR(earlier.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(earlier.st_mode):
        return None, earlier
    os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC))  # may it be written to? Renaming would not ask
    return None if _printed_to(earlier) is not None else Path(os.path.realpath(path)), earlier


def _printed_to(file: os.stat_result) -> int | None:
    """The descriptor behind which this process prints to ``file``: ``/dev/stdout`` where a shell redirected it."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(file, os.fstat(descriptor)):
                return descriptor
    return None


def _create(partial: Path, earlier: os.stat_result | None) -> None:
    """Make the empty file, with the owner and the permissions of the earlier one as far as one may."""
    mode = 0o666 if earlier is None else 0o600
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        if earlier is not None and stat.S_ISREG(earlier.st_mode):
            with suppress(OSError):
                os.fchown(fd, earlier.st_uid, earlier.st_gid)
            with suppress(OSError):
                os.fchmod(fd, stat.S_IMODE(earlier.st_mode))
    finally:
        os.close(fd)


def _copy_into(path: str | os.PathLike[str], partial: Path) -> None:
    printed_to = _printed_to(os.stat(path))
    if printed_to is not None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # what was printed comes first
    out = os.open(path, os.O_WRONLY | os.O_CLOEXEC) if printed_to is None else os.dup(printed_to)
    with open(partial, "rb") as source, os.fdopen(out, "wb") as file:
        shutil.copyfileobj(source, file)


def _unwritten(path: str | os.PathLike[str], error: OSError) -> OSError:
    """The error under the name that was given, with the way out."""
    why = error.strerror or str(error)
    way = _WAYS_OUT.get(error.errno or 0)
    return OSError(error.errno, why if way is None else f"{why} ({way})", os.fspath(path))


def _parsed(text: str, name: str, parse: Callable[[], Any]) -> Any:
    if text.count("[") + text.count("{") > MAX_HOLDERS:
        raise ValueError(f"{name} is not valid JSON of this kind: more than {MAX_HOLDERS:,} lists and objects")
    collected = gc.isenabled()
    gc.disable()  # it would look through everything that has been parsed, again and again
    try:
        data = parse()
    except RecursionError:
        raise ValueError(f"{name}: the JSON in it is nested too deep to be read") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not valid JSON: {error}{json_hint(error.doc, error.pos)}") from None
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON: {error}") from None
    finally:
        if collected:
            gc.enable()
    check_depth(data, name)
    return data


def _whole(digits: str) -> int:
    if len(digits) > 20 or abs(value := int(digits)) > MAX_WHOLE:  # of thousands of digits, none is read
        raise ValueError(f"a whole number of {len(digits.lstrip('-'))} digits, more than 64 bits hold")
    return value
