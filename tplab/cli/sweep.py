"""The subcommand ``tplab sweep``: thin, calls ``tplab.collectives``."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tplab.cli import words
from tplab.cli.ranks import add_cluster, ranks
from tplab.files import replacing

if TYPE_CHECKING:
    import pandas as pd


def add_sweep(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``sweep`` to ``tplab``'s commands."""
    parser = commands.add_parser(
        "sweep",
        help="measure all-reduce over sizes; write a CSV file and an HTML figure",
        description="Measure all-reduce over message sizes on local ranks, with --cluster on ranks of several hosts, "
        "or, started by torchrun (torchrun "
        "--nproc-per-node 8 -m tplab.cli sweep ...), on the ranks it made. Writes a tidy CSV file and an HTML "
        "figure.",
    )
    parser.add_argument(
        "--ranks", dest="n", type=int, default=2, help="how many ranks to start (default 2; not under torchrun)"
    )
    parser.add_argument("--backend", default="auto", help="auto, gloo or nccl")
    add_cluster(parser)
    parser.add_argument("--from-size", default="1KiB", help="smallest message: 512B, 64KiB, 2MiB (default 1KiB)")
    parser.add_argument(
        "--to-size", default="64MiB", help="largest message; sizes double from one to the next (default 64MiB)"
    )
    parser.add_argument("--dtypes", default="float32", help="comma-separated (default float32)")
    parser.add_argument("--algorithms", default="library", help="comma-separated: library, ring, two-shot, ...")
    parser.add_argument("--mode", default="eager", help="eager, or graph on GPUs")
    parser.add_argument("--iterations", type=int, help="samples per size (default: 50, fewer for large messages)")
    parser.add_argument("--out", default="sweep.csv", help="CSV file; the figure goes beside it as .html")
    parser.set_defaults(call=_sweep)


def _sweep(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from tplab.collectives.sweep import submit_sweep, sweep_frame
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
    with ranks(arguments.n, arguments.backend, arguments.cluster) as cluster:
        if cluster is None:
            return 0
        points = plan_sweep(**options, backend=cluster.backend, shares_gpus=cluster.shares_gpus)
        with tqdm(desc=cluster.badge, disable=None) as bar:
            run = submit_sweep(cluster, points, on_report=words.advancing(bar))

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
