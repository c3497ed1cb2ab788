"""An output stream of a rank, cut into lines of bounded length, in time that grows with the bytes alone.

What has no end yet, a progress bar for example, can be asked for at any time (``opened``). Of a line that is rewritten
after a carriage return the last state counts, and a backspace takes a character back. A stream that moves its cursor
up, as nested bars do, gets a window of rows, as tall as it has moved: rows are lines once they have left that.
"""

import codecs
import os
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import IO

from tplab.cluster.engine import Opened, Stream, Wrote

LONGEST_LINE = 1 << 19
"""Bytes; what is longer comes in pieces of this length, each as a line."""
LONGEST_OPEN = 240
"""Characters that are shown of a line without end: the last ones."""
_READ_SIZE = 1 << 16
_TALLEST = 32  # rows that a cursor can go back
_MOVES = re.compile(rb"\n|\x1b\[(\d{0,3})([ABEF])")
# Escape sequences that move the cursor or clear what is there; those of colours end in m.
_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[@-ln-~]")
_COLOUR = re.compile(rb"\x1b\[([0-9;]*)m")
_CUT_OFF = re.compile(rb"\x1b(\[[0-9;?]*)?$")


@dataclass(slots=True)
class Pipe:
    """The reading end of one output stream of a rank."""

    rank: int
    stream: Stream
    file: IO[bytes]
    partial: bytes = b""
    """What has come of a line that has no end yet: never longer than LONGEST_LINE."""
    ended: bool = False
    _above: list[bytes] = field(default_factory=list)
    """Rows that the cursor may come back to, from top to bottom; and those below it."""
    _below: list[bytes] = field(default_factory=list)
    _reach: int = 0
    """How far up it has gone."""
    _falling: bool = False
    """Whether it went down last, to rows that it has written before."""
    _last: bytes = b""
    """The last line that was handed out."""
    _shown: str = ""
    """What ``opened`` has said last."""

    def read(self) -> Iterator[Wrote]:
        """All complete lines there are now."""
        for _ in range(2):  # more than a pipe holds, and not for ever when a rank writes as fast as this reads
            if self.ended:
                return
            try:
                data = os.read(self.file.fileno(), _READ_SIZE)
            except BlockingIOError:
                return
            if not data:
                self.ended = True
                yield from self.rest()
                return
            data = self.partial + data  # both are bounded, so the time is linear
            if self._reach or b"\x1b[" in data:
                data = yield from self._move(data)
            else:
                *lines, data = data.split(b"\n")
                # An empty line waits for what comes next: it may be a bar's, which goes down a row and up again.
                if lines and not lines[-1] and data[:1] in (b"", b"\r"):
                    lines.pop()
                    data = b"\n" + data
                for line in lines:
                    yield from self._finish(line)
            # A progress bar that rewrites its line needs no more of it than the last state, which a \r begins.
            if len(data) > LONGEST_LINE and b"\r" in data[:-1]:
                data = data[data.rindex(b"\r", 0, -1) :]
            *pieces, self.partial = _cut(data)
            yield from map(self._wrote, pieces)

    def rest(self) -> Iterator[Wrote]:
        """Last lines without their newline; those that were wiped out, or were about to be, are none."""
        if self.partial.startswith(b"\n"):
            self.partial = self.partial[1:]
            yield from self._finish(b"")
        if self._falling:
            self._below = []
            self.partial = b"" if self.partial.endswith(b"\r") else self.partial
        rows = [*self._above, self.partial, *self._below]
        self._above, self._below, self._reach, self.partial, self._falling = [], [], 0, b"", False
        while rows and not (_state(rows[-1]).strip() if b"\r" in rows[-1] else rows[-1]):
            rows.pop()
        for row in rows:
            yield from self._finish(row)
        self._last = b""

    def opened(self) -> Iterator[Opened]:
        """What stands in the line that has no end yet, if that is new; rows of a window are lines of the text."""
        rows = [_tail(row) for row in (*self._above, self.partial, *self._below)]
        text = "\n".join(row for row in rows if row.strip())
        if text != self._shown:
            self._shown = text
            yield Opened(self.rank, self.stream, text)

    def _move(self, data: bytes) -> Generator[Wrote, None, bytes]:
        """Follow the cursor through what came: yields the lines that it has left, and returns what is in its row."""
        begin = 0
        row = b""
        for match in _MOVES.finditer(data):
            row += data[begin : match.start()]
            begin = match.end()
            letter = match[2] or b"B"
            for _ in range(min(int(match[1] or 1), _TALLEST)):
                if letter in b"AF":
                    if len(self._below) >= _TALLEST:
                        break
                    self._below.insert(0, _state(row))
                    row = (self._above.pop() if self._above else self._last) + b"\r"
                    self._last = b""
                    self._reach = max(self._reach, len(self._below))
                    self._falling = False
                elif self._below:
                    self._above.append(_state(row))
                    row = self._below.pop(0) + b"\r"
                    self._falling = True
                elif match[2] is None:  # a newline; going down alone makes no rows
                    self._above.append(row)
                    row = b""
        for _ in range(len(self._above) + len(self._below) - self._reach):  # not sooner: it may have gone up since
            yield from self._finish(self._above.pop(0))
        return row + data[begin:]

    def _finish(self, line: bytes) -> Iterator[Wrote]:
        self._last = _state(line) if len(line) < _READ_SIZE else b""
        # A progress bar rewrites its line after a carriage return: only the last state is worth a line here.
        return map(self._wrote, _cut(_state(line)))

    def _wrote(self, piece: bytes) -> Wrote:
        return Wrote(self.rank, self.stream, _clean(_state(piece)).decode(errors="replace"))


def _state(row: bytes) -> bytes:
    """What was written to a row last."""
    return row.rstrip(b"\r").rpartition(b"\r")[2]


def _clean(row: bytes) -> bytes:
    """Without what would move a cursor, and with its colours ended: other ranks' lines come next."""
    row = _erased(row) if b"\b" in row else row
    if b"\x1b[" not in row:
        return row
    row = _CONTROL.sub(b"", row)
    colours = _COLOUR.findall(row)
    return row + b"\x1b[0m" if colours and colours[-1].strip(b"0;") else row


def _erased(row: bytes) -> bytes:
    """Without the characters that a backspace takes back."""
    first, *others = row.split(b"\b")
    kept = bytearray(first)
    for part in others:
        while kept and kept[-1] & 0xC0 == 0x80:  # the later bytes of a character
            kept.pop()
        del kept[-1:]
        kept += part
    return bytes(kept)


def _tail(row: bytes) -> str:
    """The end of a row as it can be shown while more may come; colours are not."""
    state = _state(row)
    kept = _erased(_COLOUR.sub(b"", _CONTROL.sub(b"", _CUT_OFF.sub(b"", state[-8 * LONGEST_OPEN :]))))
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(kept).expandtabs()
    return (
        text if len(text) <= LONGEST_OPEN and len(kept) <= len(state) < 8 * LONGEST_OPEN else "…" + text[-LONGEST_OPEN:]
    )


def _cut(line: bytes) -> list[bytes]:
    """Pieces of at most LONGEST_LINE bytes, at least one; no character of UTF-8 is cut in two."""
    pieces = []
    start = 0
    while len(line) - start > LONGEST_LINE:
        end = start + LONGEST_LINE
        while end > start + LONGEST_LINE - 3 and line[end] & 0xC0 == 0x80:
            end -= 1
        pieces.append(line[start:end])
        start = end
    return [*pieces, line[start:]]
