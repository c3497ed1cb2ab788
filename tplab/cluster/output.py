"""An output stream of a rank, cut into lines of bounded length, in time that grows with the bytes alone."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from tplab.cluster.engine import Stream, Wrote

LONGEST_LINE = 1 << 19
"""Bytes; what is longer comes in pieces of this length, each as a line."""
_READ_SIZE = 1 << 16


@dataclass(slots=True)
class Pipe:
    """The reading end of one output stream of a rank."""

    rank: int
    stream: Stream
    file: IO[bytes]
    partial: bytes = b""
    """What has come of a line that has no end yet: never longer than LONGEST_LINE."""
    ended: bool = False

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
            *lines, last = (self.partial + data).split(b"\n")  # both are bounded, so the time is linear
            for line in lines:
                yield from self._pieces(line)
            # A progress bar that rewrites its line needs no more of it than the last state, which a \r begins.
            if len(last) > LONGEST_LINE and b"\r" in last[:-1]:
                last = last[last.rindex(b"\r", 0, -1) :]
            *pieces, self.partial = _cut(last)
            yield from map(self._wrote, pieces)

    def rest(self) -> Iterator[Wrote]:
        """A last line without its newline."""
        if self.partial:
            yield self._wrote(self.partial)
            self.partial = b""

    def _pieces(self, line: bytes) -> Iterator[Wrote]:
        # A progress bar rewrites its line after a carriage return: only the last state is worth a line here.
        return map(self._wrote, _cut(line.rstrip(b"\r").rpartition(b"\r")[2]))

    def _wrote(self, piece: bytes) -> Wrote:
        return Wrote(self.rank, self.stream, piece.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace"))


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
