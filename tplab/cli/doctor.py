"""The subcommand ``tplab doctor``: thin, calls ``tplab.lab``."""

import argparse
import json
from dataclasses import asdict

from tplab.checks import ArgumentError


def add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``doctor`` to ``tplab``'s commands."""
    parser = commands.add_parser(
        "doctor",
        help="look at this machine and say what works, what does not, and the cure",
        description="Check your install: look at torch, backends, cores, memory, GPUs, links, the notebook's packages, "
        "disk and write access, then start a notebook kernel, and two ranks that all-reduce. The last line is the "
        "verdict; exit status 1 if there is a problem. With --cluster, look at the hosts of an ipyparallel cluster: "
        "versions, clocks, whether every pair connects, NCCL's view, GPUs, limits, a shared folder; then start a rank "
        "on each.",
    )
    parser.add_argument(
        "--cluster",
        metavar="PROFILE-OR-FILE",
        help="an ipyparallel cluster: a profile's name, or its ipcontroller-client.json or cluster-ID.json",
    )
    parser.add_argument(
        "--interface", metavar="NAME", help="with --cluster: the interface ranks shall use on all hosts"
    )
    parser.add_argument(
        "--folder", metavar="PATH", help="with --cluster: a folder that should be the same on all hosts (default: this)"
    )
    parser.add_argument("--no-ranks", action="store_true", help="start neither ranks nor a kernel (faster)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(call=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from tplab.lab.checks import PreflightTable, preflight
    from tplab.lab.install import verdict

    ranks, onward = not arguments.no_ranks, ""
    if arguments.cluster is not None:
        from tplab.lab.cluster_checks import cluster_preflight

        options = {name: getattr(arguments, name) for name in ("interface", "folder")}
        checks = cluster_preflight(arguments.cluster, **options, ranks=ranks)
        onward = "`Cluster(engine='ipyparallel', ...)` and go"
    else:
        for name in ("interface", "folder"):
            if (given := getattr(arguments, name)) is not None:
                raise ArgumentError(name, given, "is about the hosts of a cluster: give --cluster, too")
        checks = preflight(ranks=ranks)
    if arguments.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        print(f"{PreflightTable(checks)}\n\n{verdict(checks, onward)}")
    return int(any(check.status == "problem" for check in checks))
