"""The subcommands ``tplab lab``, a copy of the notebooks where none are, and JupyterLab on the first, and ``tplab
demo``, the panels alone."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import tplab
from tplab import needs
from tplab.checks import ArgumentError, check_count
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
    _add_server(parser, 8888)
    parser.set_defaults(call=_lab)


def add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``demo`` to ``tplab``'s commands."""
    parser = commands.add_parser(
        "demo",
        help="show the panels alone, as a page for visitors",
        usage="tplab demo [options] [-- options of Voila]",
        description="Serve the panels as a page without notebooks, through Voila. A visitor has a process of their "
        "own, which ends with the page; ranks start at the press of a button. Whatever follows -- goes to Voila as it "
        "is.",
    )
    parser.add_argument("--no-ranks", action="store_true", help="leave out the panels that can start ranks")
    _add_server(parser, 8866)
    parser.set_defaults(call=_demo)


def _add_server(parser: argparse.ArgumentParser, port: int) -> None:
    """Add the options of a server that a browser looks at."""
    parser.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    parser.add_argument("--port", type=int, help=f"port of the server (default {port}, or the next that is free)")
    parser.add_argument("--ip", help="address that the server listens on (default: this machine only)")


def _server_options(arguments: argparse.Namespace, ip: str) -> list[str]:
    """The same for a server of Jupyter's, whose option for the address is ``ip``, and what the command line has after
    ``--``. Raises ``ArgumentError``."""
    given = ["--no-browser"] if arguments.no_browser else []
    if arguments.port is not None:
        given.append(f"--port={check_count('port', arguments.port, least=0, most=65535)}")
    if arguments.ip is not None:
        given.append(f"{ip}={arguments.ip}")
    return [*given, *arguments.beyond]


def _become(module: str, options: Sequence[str]) -> int:
    """Run a module in this process's place, so that Ctrl-C, the terminal and the exit status are its own."""
    sys.stdout.flush()
    # -P: a random.py in the folder that somebody is in must not take the place of Python's.
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *options])


def _lab(arguments: argparse.Namespace) -> int:
    from tplab.lab.shipped.copying import DEFAULT, copy_notebooks, default_folder, find_workplace, refresh

    options = _server_options(arguments, "--ip")
    if not arguments.copy_only:
        needs.check("this command", "jupyterlab")
    folder = default_folder() if arguments.folder is None else _written(arguments.folder)
    place = find_workplace(folder)
    if place is None and folder.resolve() == Path.home().resolve():
        folder /= DEFAULT  # not half a dozen names between somebody's own
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
    start = f"--LabApp.default_url=/lab/tree/{quote(place.start)}"
    return _become("jupyterlab", [f"--ServerApp.root_dir={place.folder}", start, *options])


def _written(folder: str) -> Path:
    """The folder that somebody has written. Raises ``ArgumentError`` naming ``folder`` for a home of nobody's."""
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise ArgumentError("folder", folder, "begins with ~ and the name of nobody on this machine") from error


def _demo(arguments: argparse.Namespace) -> int:
    options = _server_options(arguments, "--Voila.ip")
    needs.check("this command", "voila")
    from tplab.lab.demo import serve_demo

    serve_demo(options, ranks=not arguments.no_ranks)
    return 0


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
