"""The subcommand ``tplab lab``: a copy of the notebooks where none are, and JupyterLab on the first."""

import argparse
import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tplab
from tplab.checks import check_count
from tplab.cli import words

if TYPE_CHECKING:
    from tplab.lab.shipped.copying import Workplace

_MOST_NAMED = 3


def add_lab(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``lab`` to ``tplab``'s commands."""
    parser = commands.add_parser(
        "lab",
        help="open the notebooks in JupyterLab, copied to a folder of yours",
        usage="tplab lab [FOLDER] [options] [-- options of JupyterLab]",
        description="Open the workshop's first notebook in JupyterLab. Where FOLDER has no notebooks, they are copied "
        "there, with the pages that they link to; what is there is never written over. Whatever follows -- goes to "
        "JupyterLab as it is.",
    )
    parser.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="default: this folder if it has the notebooks, else ./tplab-lab"
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="put this version's notebooks into a copy of an earlier one; yours are kept in a folder beside",
    )
    parser.add_argument("--copy-only", action="store_true", help="copy, and do not start JupyterLab")
    add_server(parser)
    parser.set_defaults(call=_lab)


def add_server(parser: argparse.ArgumentParser) -> None:
    """Add the options of a server that a browser looks at."""
    parser.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    parser.add_argument("--port", type=int, help="port of the server (default 8888, or the next that is free)")
    parser.add_argument("--ip", help="address that the server listens on (default: this machine only)")


def server_options(arguments: argparse.Namespace) -> list[str]:
    """The same for a server of Jupyter's, and what the command line has after ``--``. Raises ``ArgumentError``."""
    given = ["--no-browser"] if arguments.no_browser else []
    if arguments.port is not None:
        given.append(f"--port={check_count('port', arguments.port, least=0, most=65535)}")
    if arguments.ip is not None:
        given.append(f"--ip={arguments.ip}")
    return [*given, *arguments.beyond]


def become(module: str, options: Sequence[str]) -> int:
    """Run a module in this process's place, so that Ctrl-C, the terminal and the exit status are its own."""
    sys.stdout.flush()
    # -P: a random.py in the folder that somebody is in must not take the place of Python's.
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *options])


def _lab(arguments: argparse.Namespace) -> int:
    from tplab.lab.shipped.copying import copy_notebooks, default_folder, find_workplace, refresh

    options = server_options(arguments)
    if not arguments.copy_only and importlib.util.find_spec("jupyterlab") is None:
        raise ValueError('`tplab lab` needs JupyterLab: pip install "tplab[lab]"')
    folder = default_folder() if arguments.folder is None else Path(arguments.folder).expanduser()
    place = find_workplace(folder)
    if place is None:
        place = copy_notebooks(folder)
        words.say(words.wrapped(f"Copied the notebooks of tplab {tplab.__version__} to {place.path}."))
    elif arguments.fresh:
        aside = refresh(place)
        words.say(
            words.wrapped(f"The notebooks of tplab {tplab.__version__} are in {place.path} now; yours are in {aside}.")
        )
    else:
        words.say(words.wrapped(_as_it_is(place, folder)))
    if arguments.copy_only:
        return 0
    if os.geteuid() == 0 and not any("allow-root" in each or "allow_root" in each for each in arguments.beyond):
        words.say(words.wrapped("You are root, as whom JupyterLab may refuse to start: `tplab lab -- --allow-root`."))
    start = f"--LabApp.default_url=/lab/tree/{place.start}"
    return become("jupyterlab", [f"--ServerApp.root_dir={place.folder}", start, *options])


def _as_it_is(place: "Workplace", folder: Path) -> str:
    """That nothing was copied, and how to get notebooks of the installed version where these are of another."""
    from tplab.lab.shipped.copying import changed_files, is_behind, read_record

    said = f"The notebooks in {place.path} are left as they are."
    record = read_record(place.folder)
    if record is None or not is_behind(record):
        return said
    changed = [name.removeprefix("notebooks/") for name in changed_files(place.folder, record) if ".ipynb" in name]
    named = ", ".join(changed[:_MOST_NAMED]) + (
        f" and {len(changed) - _MOST_NAMED} more" * (len(changed) > _MOST_NAMED)
    )
    yours = f"You have changed {named}. " if changed else ""
    return (
        f"{said} They are of tplab {record.version}, and this is {tplab.__version__}, which has others. {yours}"
        f"`tplab lab {shlex.quote(str(folder))} --fresh` puts the new ones there and keeps these in a folder beside."
    )
