"""How ``tplab`` talks: arguments under the names that the command line gives them, numbers and tables that fit a
terminal, files that cannot be written named by their option.

The rooms refuse bad values in the words of Python (``gpus=0``, ``weight_precision='fp3'``). Those words are translated
here, by a table, rather than asked again before every call: the rule stays in one place.
"""

import argparse
import os
import re
import shutil
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from tplab.files import check_writable, replacing
from tplab.topology.advisor.wording import fixed

if TYPE_CHECKING:
    import pandas as pd

OPTIONS = {
    "weight_precision": "--weights", "kv_precision": "--kv", "gpu": "--gpu", "gpus": "--gpus", "nodes": "--nodes",
    "input_length": "--input", "output_length": "--output", "concurrency": "--concurrency", "request_rate": "--rate",
    "ttft_limit_ms": "--ttft-limit-ms", "tpot_limit_ms": "--tpot-limit-ms", "tp": "--tp", "pp": "--pp", "by": "--by",
    "num_ranks": "--ranks", "n": "--ranks", "rounds": "--rounds", "steps": "--steps", "backend": "--backend",
    "latency_us": "--latency-us", "bandwidth_GBps": "--bandwidth-GBps", "mode": "--mode", "dtypes": "--dtypes",
    "algorithms": "--algorithms", "iterations": "--iterations",
}  # fmt: skip
"""Arguments of the rooms' functions, and the options they come from."""

PHRASES = {
    "give network=Link(...)": "name such nodes with --machine, whose networks are known",
    "use Cluster(n, 'gloo')": "use --backend gloo",
    "leave out the machine": "leave out --machine",
}
"""Advice that can only be followed in Python, and what to do on the command line."""

_LEAST = {"gpus": 1, "nodes": 1, "tp": 1, "pp": 1, "most": 0}
_POSITIONAL = {"folder": "FOLDER", "paths": "PATH"}
_NARROWEST = 80


def check(arguments: argparse.Namespace) -> None:
    """What the parser lets through and no command can mean.

    Raises:
        ValueError: an empty text, or a count that is too small; by the option's name.
    """
    for dest, value in vars(arguments).items():
        texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
        if any(not text.strip() for text in texts):
            raise ValueError(f"{_POSITIONAL.get(dest) or option(dest)} must not be empty")
        if dest in _LEAST and value is not None and value < _LEAST[dest]:
            raise ValueError(f"{option(dest)} must be at least {_LEAST[dest]}, got {value}")


def option(dest: str) -> str:
    """``--ttft-limit-ms`` for ``ttft_limit_ms``."""
    return f"--{dest.replace('_', '-')}"


def in_options(message: str, dests: Collection[str]) -> str:
    """``message`` with the options of a command that has ``dests`` in place of Python's arguments.

    A name with an underscore can be nothing else; a plain word is one only in front of ``=``, in quotes, or where it is
    what the message is about.
    """
    for phrase, instead in PHRASES.items():
        message = message.replace(phrase, instead)
    for name, said in OPTIONS.items():
        if said[2:].replace("-", "_") not in dests:
            continue
        word = rf"(?<![\w.-]){name}"
        message = re.sub(rf"{word}=(?=[\w'\"\[.-])", f"{said} ", message)
        message = re.sub(rf"{word}=", said, message)
        message = re.sub(rf"(['`\"]){name}\1", said, message)
        message = re.sub(rf"^{name}(?= (?:must|may|for|need)\b)", said, message)
        if "_" in name:
            message = re.sub(rf"{word}\b", said, message)
    return message


def width() -> int:
    """Columns that lines may take."""
    return max(_NARROWEST, shutil.get_terminal_size().columns)


def table(frame: "pd.DataFrame") -> str:
    """In as many blocks of columns as the terminal's width makes needed."""
    return str(frame.to_string(index=False, float_format=fixed, na_rep="-", line_width=width()))


def say(text: str) -> None:
    """Prints it, on the error output where what is printed goes to a disk that is full."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError:
        print(text, file=sys.stderr)


def writable(argument: str, path: str) -> Path:
    """Checked before anything is measured. Raises ``ValueError`` naming the argument."""
    from tplab.cluster.torchrun import under_torchrun

    if under_torchrun() and os.environ["RANK"] != "0":  # which does not write, and whose host may lack the folder
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
