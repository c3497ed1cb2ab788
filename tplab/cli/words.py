"""How ``tplab`` talks: arguments under the names that the command line gives them, numbers and tables that fit a
terminal, files that cannot be written named by their option.

The rooms refuse a bad value with an ``ArgumentError``, which keeps the argument apart from the rule. Options store into
destinations that are called as those arguments are, so the parser itself knows the option of each: the rules stay in
one place, and no text is rewritten.
"""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tplab.checks import ArgumentError
from tplab.files import check_writable, replacing
from tplab.shown import fixed

if TYPE_CHECKING:
    import pandas as pd
    from tqdm import tqdm

    from tplab.cluster import Report

_NARROWEST = 80
INDENT = " " * 6


def options(parser: argparse.ArgumentParser) -> dict[str, str]:
    """What the command line calls each argument of ``parser``: its option, or the placeholder of one without."""
    return {action.dest: (action.option_strings or [str(action.metavar)])[0] for action in parser._actions}


def passed_on(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line up to ``--``, and what follows it, for those commands that pass it on to another program."""
    argv = list(argv)
    at = argv.index("--") if argv[:1] in (["lab"], ["demo"]) and "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


def show_options(parser: argparse.ArgumentParser) -> None:
    """Values stand in the help under their option's name, ``--input INPUT``, and not under the argument's."""
    for action in parser._actions:
        if action.option_strings and action.metavar is None and action.nargs is None:
            action.metavar = action.option_strings[-1].lstrip("-").replace("-", "_").upper()


def check(arguments: argparse.Namespace) -> None:
    """Reject empty texts, which argparse accepts but no command can use. Raises ``ArgumentError``."""
    for name, value in vars(arguments).items():
        texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
        if any(not text.strip() for text in texts):
            raise ArgumentError(name, value, "must not be empty")


def width() -> int:
    """Width of the terminal in characters, at least ``_NARROWEST``."""
    return max(_NARROWEST, shutil.get_terminal_size().columns)


def wrapped(text: str, indent: str = INDENT) -> str:
    """Break a text into lines of the terminal's width, all but the first with ``indent``."""
    return textwrap.fill(text, width(), subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def table(frame: "pd.DataFrame") -> str:
    """Format a frame in as many blocks of columns as the terminal's width needs."""
    return str(frame.to_string(index=False, float_format=fixed, na_rep="-", line_width=width()))


def advancing(bar: "tqdm[NoReturn]") -> "Callable[[Report], None]":
    """For ``on_report`` of a sweep: moves the bar on with each point that rank 0 has measured."""

    def on_report(report: "Report") -> None:
        if report.rank == 0 and report.fields["phase"] == "measure":
            bar.total = report.fields["total"]
            bar.update()

    return on_report


def say(text: str) -> None:
    """Print a line; on the error output if the output goes to a full disk."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError:
        print(text, file=sys.stderr)


def writable(argument: str, path: str) -> Path:
    """Checked before anything is measured. Raises ``ValueError`` naming the argument."""
    from tplab.cluster.torchrun import speaks

    if not speaks():  # it does not write either, and its host may lack the folder
        return Path(path)
    try:
        check_writable(path)
    except OSError as error:
        raise ValueError(f"{argument} {path} cannot be written: {error.strerror}") from error
    return Path(path)


def write_csv(argument: str, frame: "pd.DataFrame", path: Path) -> None:
    """Writes it and says so. Raises ``ValueError`` naming the argument, such as for a disk that is full, and prints the
    rows."""
    try:
        with replacing(path) as partial:
            frame.to_csv(partial, index=False)
    except OSError as error:
        raise unsaved(argument, error, frame.to_csv(index=False)) from error
    print(f"Wrote {path} ({len(frame)} rows).")


def unsaved(argument: str, error: OSError, text: str) -> ValueError:
    """Prints ``text``, which may have taken minutes to measure and could not be written to a file. Gives the error to
    raise."""
    say(text)
    return ValueError(
        f"{argument} {error.filename} cannot be written: {error.strerror}; what was to go into it is printed instead"
    )
