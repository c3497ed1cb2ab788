"""Where the output of a run is shown: lines in few messages, and below them what is still being written.

Lines are gathered for a moment and printed together. Lines without end (progress bars, dots) are redrawn in place:

- in a terminal, as a block of rows under the last line, by escape sequences;
- in a notebook kernel a single one in its own stream, after a carriage return, as the kernel's own would be. Several,
  or one between the lines of another stream, in an output of their own that is replaced (``update_display_data``): a
  carriage return can rewrite one line only. So is one that is redrawn for long where there is no page, since what runs
  notebooks without one (nbclient, nbconvert) stores each redraw.
- anywhere else (a pipe, a file, a captured stream) not at all: there only lines appear.
"""

import contextvars
import math
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from typing import Any

from tplab.cluster import naming
from tplab.cluster.engine import Stream

GATHERED_S = 0.06
"""Seconds for which lines are gathered: short enough to look live, long enough that a flood makes few messages."""
_GATHERED_CHARACTERS = 1 << 18  # no message is much larger
_SEGMENTS_IN_ORDER = 16  # of one flood with both streams by turns, each is put together instead
_REDRAWN_IN_STREAM = 12
_LINES_BELOW_BLOCK = 20
_RUNS_REMEMBERED = 100


class Screen:
    """What a run shows, in the context (the notebook cell) in which it was made. Used by one thread."""

    def __init__(self) -> None:
        # A background thread has no cell: printing in the caller's context puts lines under the caller's cell.
        self._context = contextvars.copy_context()
        self._pending: list[tuple[Stream, str]] = []
        self._characters = 0
        self._open: dict[tuple[int, Stream], tuple[str, str]] = {}
        self._stale = False
        self.due: float | None = None
        """When ``flush`` should be called (``time.monotonic``); None while there is nothing to show."""
        self._drawn: tuple[Stream, str] | None = None
        """An open line that stands in its stream now, without a newline."""
        self._redraws_left = math.inf if _has_page() else _REDRAWN_IN_STREAM
        self._rows_on_terminal = 0
        self._block = ""
        """Display id of the output that holds the open lines."""
        self._block_text = ""
        self._lines_below_block = 0

    def write(self, text: str, stream: Stream) -> None:
        """A line, to be shown soon."""
        self._pending.append((stream, text))
        self._characters += len(text)
        self._touch()
        if self._characters > _GATHERED_CHARACTERS:
            self.flush()

    def open(self, rank: int, stream: Stream, text: str, label: str = "") -> None:
        """What stands in a rank's line, or lines, without end, and what to put before each; nothing: there is none."""
        if text:
            self._open[rank, stream] = label or naming.label(rank), text
        elif self._open.pop((rank, stream), None) is None:
            return
        self._stale = True
        self._touch()

    def _touch(self) -> None:
        self.due = self.due or time.monotonic() + GATHERED_S

    def flush(self) -> None:
        """Show everything now."""
        self.due = None
        pending, self._pending, self._characters = self._pending, [], 0
        if pending or self._stale:
            self._stale = False
            self._context.run(self._show, _joined(pending))

    def close(self) -> None:
        """Show everything, and take away what has no end."""
        for key in [*self._open]:
            self.open(*key, "")
        self.flush()

    def _show(self, segments: list[tuple[Stream, str]]) -> None:
        rows = [
            (stream, f"{label} {row}")
            for (_, stream), (label, text) in sorted(
                self._open.items(), key=lambda item: (item[0][0], item[0][1] != "stdout")
            )
            for row in text.split("\n")
        ]
        kernel = all(type(file).__module__ == "ipykernel.iostream" for file in (sys.stdout, sys.stderr))
        terminal = next((file for file in (sys.stderr, sys.stdout) if file is not None and _is_terminal(file)), None)
        if kernel:
            self._show_in_kernel(segments, rows)
        elif terminal is not None:
            self._show_in_terminal(terminal, segments, [row for _, row in rows])
        else:
            for stream, text in segments:
                _print(text, stream)

    def _show_in_terminal(self, terminal: Any, segments: list[tuple[Stream, str]], rows: list[str]) -> None:
        if self._rows_on_terminal:
            terminal.write("\r" + "\x1b[A" * (self._rows_on_terminal - 1) + "\x1b[J")
            terminal.flush()
        for stream, text in segments:
            _print(text, stream)
        size = shutil.get_terminal_size()
        rows = [row[: size.columns - 1] for row in rows[-max(1, size.lines - 2) :]]  # what wraps cannot be taken back
        terminal.write("\n".join(rows))
        terminal.flush()
        self._rows_on_terminal = len(rows)

    def _show_in_kernel(self, segments: list[tuple[Stream, str]], rows: list[tuple[Stream, str]]) -> None:
        own = rows[0][0] if len(rows) == 1 else None
        streams = {stream for stream, _ in segments} | ({self._drawn[0]} if self._drawn is not None else set())
        in_stream = own is not None and not self._block_text and streams <= {own} and self._redraws_left > 0
        for stream, text in segments:
            self._print_over(text + "\n", stream)
            self._lines_below_block += text.count("\n") + 1
        if in_stream:
            self._redraws_left -= 1
            self._print_over(rows[0][1], rows[0][0])
            self._drawn = rows[0]
            return
        if self._drawn is not None:
            self._print_over("", self._drawn[0])
        self._show_block("\n".join(row for _, row in rows))

    def _print_over(self, text: str, stream: Stream) -> None:
        """Print in a stream, in the place of the open line that may stand there."""
        if self._drawn is not None and self._drawn[0] == stream:
            first, newline, others = text.partition("\n")
            room = len(self._drawn[1])
            text = f"\r{first:<{room}}{newline}{others}" if first else f"\r{'':<{room}}\r{newline}{others}"
            self._drawn = None
        if text:
            _print(text, stream, end="")

    def _show_block(self, text: str) -> None:
        if text == self._block_text:
            return
        fresh = not self._block or (not self._block_text and self._lines_below_block > _LINES_BELOW_BLOCK)
        if fresh:
            self._block, self._lines_below_block = f"tplab-{secrets.token_hex(8)}", 0
        self._block_text = text
        shell = sys.modules["IPython"].get_ipython()
        shell.display_pub.publish({"text/plain": text}, transient={"display_id": self._block}, update=not fresh)


class Screens:
    """The screens of one cluster's runs: which of them hold something back, and those of the last runs."""

    def __init__(self) -> None:
        self._holding: set[Screen] = set()
        self._of_run: dict[int, Screen] = {}

    def touch(self, screen: Screen) -> None:
        """Something was written to it."""
        if screen.due is not None:
            self._holding.add(screen)

    def keep(self, run_id: int, screen: Screen) -> None:
        """Remember where the output of a run that is over went; of the last 100."""
        self._of_run[run_id] = screen
        if len(self._of_run) > _RUNS_REMEMBERED:
            self._of_run.pop(next(iter(self._of_run)))

    def write_late(self, run_id: int, text: str, stream: Stream) -> None:
        """A line of a thread whose run nobody holds any more."""
        if (screen := self._of_run.get(run_id)) is not None:
            screen.write(text, stream)
            self.touch(screen)

    @property
    def due(self) -> float:
        """When the first must be shown (``time.monotonic``); infinite if none holds anything back."""
        return min((screen.due or 0.0 for screen in self._holding), default=math.inf)

    def show(self, guard: Callable[[Callable[[], None]], None], now: float = math.inf) -> None:
        """Show what is due, each screen through ``guard``: a broken stdout may raise anything."""
        taken = [screen for screen in self._holding if (screen.due or 0.0) <= now]
        self._holding.difference_update(taken)
        for screen in taken:
            guard(screen.flush)


def _joined(pending: list[tuple[Stream, str]]) -> list[tuple[Stream, str]]:
    """Lines of one stream that follow each other, as one text."""

    def join(lines: list[tuple[Stream, str]]) -> list[tuple[Stream, str]]:
        return [(s, "\n".join(text for _, text in group)) for s, group in groupby(lines, key=lambda line: line[0])]

    segments = join(pending)
    return (
        segments if len(segments) <= _SEGMENTS_IN_ORDER else join(sorted(pending, key=lambda line: line[0] != "stdout"))
    )


def _has_page() -> bool:
    """Whether a cell of a page asked for it: pages (JupyterLab, VS Code) say which cell, and keep of a line the last
    state alone."""
    with suppress(Exception):  # no kernel, or one of another kind
        parent = sys.modules["IPython"].get_ipython().kernel.get_parent()
        return bool(parent["metadata"].get("cellId"))
    return False


def _print(text: str, stream: Stream, end: str = "\n") -> None:
    print(text, end=end, file=getattr(sys, stream), flush=True)


def _is_terminal(file: Any) -> bool:
    try:
        return bool(file.isatty())
    except Exception:  # whatever stands there is no terminal
        return False
