"""The ``tplab`` command: thin, calls the rooms.

What a command needs is imported when it is asked for: ``tplab fits`` answers before pandas would have been imported.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module

import tplab
from tplab.checks import ArgumentError
from tplab.cli import words
from tplab.cluster.errors import ClusterError
from tplab.needs import MissingLayer, needed_by

COMMANDS: Mapping[str, tuple[str, str]] = {
    "doctor": ("doctor", "add_doctor"),
    "lab": ("lab", "add_lab"),
    "demo": ("lab", "add_demo"),
    "fits": ("fits", "add_fits"),
    "advise": ("advise", "add_advise"),
    "sweep": ("sweep", "add_sweep"),
    "crossover": ("crossover", "add_crossover"),
    "pipeline": ("pipeline", "add_pipeline"),
    "calibrate": ("measure", "add_calibrate"),
    "read-nccl": ("nccl", "add_nccl"),
    "claims": ("claims", "add_claims"),
    "validate": ("validate", "add_validate"),
    "box": ("measure", "add_box"),
    "progress": ("progress", "add_progress"),
    "grade": ("teach", "add_grade"),
    "solutions": ("teach", "add_solutions"),
    "export": ("teach", "add_export"),
    "size": ("teach", "add_size"),
}
"""Name of a command -> module of this package, and its function that adds the command, in the order of the help."""
_CLOSED_PIPE = 141
_INTERRUPTED = 130
"""Exit status of a tool that a closed pipe, or Ctrl-C, ended: 128 plus the signal's number."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the ``tplab`` command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="tplab", description="Predict, run and measure tensor and pipeline parallelism."
    )
    parser.add_argument("--version", action="version", version=f"tplab {tplab.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    argv, beyond = words.passed_on(sys.argv[1:] if argv is None else argv)
    for name in _wanted(argv):
        module, function = COMMANDS[name]
        getattr(import_module(f"tplab.cli.{module}"), function)(commands)
    for each in commands.choices.values():
        words.show_options(each)
    arguments = parser.parse_args(argv)
    arguments.beyond = beyond
    arguments.options = words.options(commands.choices[arguments.command])
    status = 2
    try:
        words.check(arguments)
        with needed_by("this command"):
            status = int(arguments.call(arguments))
        if sys.stdout is not None:  # closed by whoever began this
            sys.stdout.flush()  # at exit nobody could catch what it raises
        return status
    except BrokenPipeError:  # the reader has had enough, such as head: nothing to say, and nobody to say it to
        _drop_output()
        return _CLOSED_PIPE
    except KeyboardInterrupt:
        status, message = _INTERRUPTED, "interrupted"
    except MissingLayer as error:
        message = str(error)
    except ArgumentError as error:
        message = error.named(arguments.options.get(error.argument, error.argument))
    except (ValueError, ClusterError) as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    try:
        sys.stdout.flush()
    except OSError:  # a full disk behind a redirection, say
        _drop_output()
    from tplab.cluster.torchrun import speaks

    if speaks():  # of many ranks one
        print(f"tplab {arguments.command}: {message}", file=sys.stderr)
    return status


def _wanted(argv: Sequence[str]) -> Iterable[str]:
    """The commands that are added: the one that is named, or all, for the help and for what none is called."""
    if "--version" in argv[:1]:
        return ()
    return argv[:1] if argv and argv[0] in COMMANDS else COMMANDS


def _drop_output() -> None:
    """Python writes what is left of the output once more as it ends, and would complain once more."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
