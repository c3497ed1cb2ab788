"""The ``tplab`` command: thin, calls the rooms."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import tplab


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the ``tplab`` command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="tplab", description="Predict, run and measure tensor and pipeline parallelism."
    )
    parser.add_argument("--version", action="version", version=f"tplab {tplab.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    doctor = commands.add_parser(
        "doctor",
        help="look at this machine and say what works, what does not, and the cure",
        description="Look at torch, backends, cores, memory, GPUs, links and the notebook's packages, then run an "
        "all-reduce on two ranks. Exit status 1 if there is a problem.",
    )
    doctor.add_argument("--no-ranks", action="store_true", help="do not start ranks (faster)")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(call=_doctor)
    arguments = parser.parse_args(argv)
    return int(arguments.call(arguments))


def _doctor(arguments: argparse.Namespace) -> int:
    from tplab.lab.checks import PreflightTable, preflight

    checks = preflight(ranks=not arguments.no_ranks)
    problems = sum(check.status == "problem" for check in checks)
    if arguments.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        print(PreflightTable(checks))
        noun = "problem" if problems == 1 else "problems"
        print(f"\n{problems} {noun} found." if problems else "\nNo problems found: `jupyter lab` and go.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
