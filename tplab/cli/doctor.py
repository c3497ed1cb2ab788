"""The subcommand ``tplab doctor``: thin, calls ``tplab.lab``."""

import argparse
import json
from dataclasses import asdict


def add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``doctor`` to ``tplab``'s commands."""
    parser = commands.add_parser(
        "doctor",
        help="look at this machine and say what works, what does not, and the cure",
        description="Check your install: look at torch, backends, cores, memory, GPUs, links, the notebook's packages, "
        "disk and write access, then start a notebook kernel, and two ranks that all-reduce. The last line is the "
        "verdict; exit status 1 if there is a problem.",
    )
    parser.add_argument("--no-ranks", action="store_true", help="start neither ranks nor a kernel (faster)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(call=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from tplab.lab.checks import PreflightTable, preflight
    from tplab.lab.install import verdict

    checks = preflight(ranks=not arguments.no_ranks)
    if arguments.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        print(f"{PreflightTable(checks)}\n\n{verdict(checks)}")
    return int(any(check.status == "problem" for check in checks))
