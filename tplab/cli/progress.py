"""The subcommand ``tplab progress``: thin, calls ``tplab.lab``."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from tplab.checks import ArgumentError


def add_progress(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``progress`` to ``tplab``'s commands."""
    parser = commands.add_parser(
        "progress",
        help="what was predicted and solved in the notebooks of a folder, and what comes next",
        description="Show what was predicted and solved in the notebooks of a folder, from its tplab-progress.json, "
        "and what comes next.",
    )
    parser.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="the notebooks' folder (default: those that `tplab lab` would open)"
    )
    parser.add_argument("--json", action="store_true", help="print what the file says as JSON")
    parser.add_argument("--reset", action="store_true", help="begin anew; the file is put aside under another name")
    parser.set_defaults(call=_progress)


def _progress(arguments: argparse.Namespace) -> int:
    from tplab.lab.progress import FILE_NAME, Progress, reset_progress
    from tplab.lab.progress_view import progress_table
    from tplab.lab.shipped.copying import default_folder, find_workplace

    folder = Path(arguments.folder or ".")
    if not folder.is_dir():
        raise ArgumentError("folder", arguments.folder, "must be a folder with notebooks")
    if arguments.folder is None and (place := find_workplace(default_folder())) is not None:
        folder = place.path
    if arguments.reset:
        aside = reset_progress(folder)
        print(f"Put aside as {aside}." if aside else f"There is no {FILE_NAME} in {folder}: nothing to do.")
    elif arguments.json:
        print(json.dumps(asdict(Progress.read(folder / FILE_NAME)), indent=2, ensure_ascii=False))
    else:
        print(progress_table(folder))
    return 0
