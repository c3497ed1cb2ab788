"""The ``tplab`` command: thin, calls the rooms."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

import tplab
from tplab.checks import ArgumentError
from tplab.cli import advise, claims, crossover, lab, measure, nccl, progress, teach, validate, words
from tplab.cluster import Cluster, ClusterError, Report
from tplab.files import replacing

if TYPE_CHECKING:
    import pandas as pd

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
    doctor = commands.add_parser(
        "doctor",
        help="look at this machine and say what works, what does not, and the cure",
        description="Check your install: look at torch, backends, cores, memory, GPUs, links, the notebook's packages, "
        "disk and write access, then start a notebook kernel, and two ranks that all-reduce. The last line is the "
        "verdict; exit status 1 if there is a problem.",
    )
    doctor.add_argument("--no-ranks", action="store_true", help="start neither ranks nor a kernel (faster)")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(call=_doctor)
    sweep = commands.add_parser(
        "sweep",
        help="measure all-reduce over sizes; write a CSV file and an HTML figure",
        description="Measure all-reduce over message sizes on local ranks, or, started by torchrun (torchrun "
        "--nproc-per-node 8 -m tplab.cli sweep ...), on the ranks it made. Writes a tidy CSV file and an HTML "
        "figure.",
    )
    sweep.add_argument(
        "--ranks", dest="n", type=int, default=2, help="how many ranks to start (default 2; not under torchrun)"
    )
    sweep.add_argument("--backend", default="auto", help="auto, gloo or nccl")
    sweep.add_argument("--from-size", default="1KiB", help="smallest message: 512B, 64KiB, 2MiB (default 1KiB)")
    sweep.add_argument(
        "--to-size", default="64MiB", help="largest message; sizes double from one to the next (default 64MiB)"
    )
    sweep.add_argument("--dtypes", default="float32", help="comma-separated (default float32)")
    sweep.add_argument("--algorithms", default="library", help="comma-separated: library, ring, two-shot, ...")
    sweep.add_argument("--mode", default="eager", help="eager, or graph on GPUs")
    sweep.add_argument("--iterations", type=int, help="samples per size (default: 50, fewer for large messages)")
    sweep.add_argument("--out", default="sweep.csv", help="CSV file; the figure goes beside it as .html")
    sweep.set_defaults(call=_sweep)
    for add in (
        lab.add_lab,
        crossover.add_crossover,
        measure.add_calibrate,
        nccl.add_nccl,
        advise.add_advise,
        claims.add_claims,
        validate.add_validate,
        measure.add_box,
        progress.add_progress,
        teach.add_grade,
        teach.add_solutions,
        teach.add_export,
        teach.add_size,
    ):
        add(commands)
    for each in commands.choices.values():
        words.show_options(each)
    argv, beyond = words.passed_on(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(argv)
    arguments.beyond = beyond
    arguments.options = words.options(commands.choices[arguments.command])
    status = 2
    try:
        words.check(arguments)
        status = int(arguments.call(arguments))
        sys.stdout.flush()  # at exit nobody could catch what it raises
        return status
    except BrokenPipeError:  # the reader has had enough, such as head: nothing to say, and nobody to say it to
        _drop_output()
        return _CLOSED_PIPE
    except KeyboardInterrupt:
        status, message = _INTERRUPTED, "interrupted"
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
    print(f"tplab {arguments.command}: {message}", file=sys.stderr)
    return status


def _drop_output() -> None:
    """Python writes what is left of the output once more as it ends, and would complain once more."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _doctor(arguments: argparse.Namespace) -> int:
    from tplab.lab.checks import PreflightTable, preflight
    from tplab.lab.install import verdict

    checks = preflight(ranks=not arguments.no_ranks)
    if arguments.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        print(f"{PreflightTable(checks)}\n\n{verdict(checks)}")
    return int(any(check.status == "problem" for check in checks))


def _sweep(arguments: argparse.Namespace) -> int:
    from tplab.cluster.torchrun import attached, gather_reports, under_torchrun
    from tplab.collectives.sweep import submit_sweep, sweep_frame, sweep_on_rank
    from tplab.collectives.sweep_plan import parse_bytes, plan_sweep

    smallest, largest = parse_bytes("--from-size", arguments.from_size), parse_bytes("--to-size", arguments.to_size)
    if smallest > largest:
        raise ValueError(f"--from-size must not be above --to-size; got {arguments.from_size} and {arguments.to_size}")
    sizes = [smallest << doublings for doublings in range((largest // smallest).bit_length())]
    options = {
        "sizes": sizes,
        "dtypes": arguments.dtypes.split(","),
        "algorithms": arguments.algorithms.split(","),
        "mode": arguments.mode,
        "iterations": arguments.iterations,
    }
    csv = Path(arguments.out)
    if csv.suffix == ".html":
        raise ValueError(f"--out must not end in .html, as the figure beside the rows does; got {csv}")
    for path in (csv, csv.with_suffix(".html")):
        words.writable("--out", str(path))
    if under_torchrun():
        with attached(arguments.backend) as (rank, provenance, reports):
            points = plan_sweep(**options, backend=provenance.backend, shares_gpus=provenance.shares_gpus)
            sweep_on_rank(rank, points)
            everything = gather_reports(rank, reports)
        if rank.index != 0:
            return 0
        frame, badge = sweep_frame(points, everything, provenance), provenance.badge
    else:
        with Cluster(arguments.n, arguments.backend) as cluster:
            points = plan_sweep(**options, backend=cluster.backend, shares_gpus=cluster.shares_gpus)
            with tqdm(desc=cluster.badge, disable=None) as bar:

                def on_report(report: Report) -> None:
                    if report.rank == 0 and report.fields["phase"] == "measure":
                        bar.total = report.fields["total"]
                        bar.update()

                run = submit_sweep(cluster, points, on_report=on_report)

                def write() -> None:
                    _write_sweep(sweep_frame(points, run.reports, cluster.provenance), cluster.badge, csv)

                try:
                    run.result()
                except BaseException:  # what was measured before a fault or an interrupt is written all the same
                    try:
                        write()
                    except ValueError as error:
                        print(f"tplab sweep: {error}", file=sys.stderr)
                    raise
                write()
            return 0
    _write_sweep(frame, badge, csv)
    return 0


def _write_sweep(frame: "pd.DataFrame", badge: str, csv: Path) -> None:
    from tplab.lab.figures.collectives import explain_sweep, latency_figure

    if frame.empty:
        return
    print(explain_sweep(frame))
    words.write_csv("--out", frame, csv)
    page = csv.with_suffix(".html")
    try:
        with replacing(page) as partial:
            latency_figure(frame, badge=badge).write_html(partial, include_plotlyjs=True)
    except OSError as error:
        raise ValueError(f"the figure {page} cannot be written: {error.strerror}; the rows are in {csv}") from error
    print(f"Wrote {page}.")
