"""The subcommand ``tplab pipeline``: thin, calls ``tplab.pipeline``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tplab.checks import check_number
from tplab.cli import words
from tplab.cli.ranks import add_cluster, ranks
from tplab.files import replacing

if TYPE_CHECKING:
    from tplab.cluster import Cluster
    from tplab.pipeline import MeasuredTrace, Schedule, Trace

_HEAD_DIM = 64


def add_pipeline(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``pipeline`` to ``tplab``'s commands."""
    parser = commands.add_parser(
        "pipeline",
        help="run a pipeline schedule on ranks; write its trace and an HTML figure",
        description="Run a schedule on local ranks, with --cluster on ranks of several hosts, or, started by "
        "torchrun (torchrun --nproc-per-node 8 -m tplab.cli "
        "pipeline ...), on the ranks it made, a stage on each: transformer blocks, or stages that only wait. Writes "
        "the trace (ui.perfetto.dev opens it, Trace.from_perfetto in a notebook) and an HTML figure of what was "
        "measured below what the stages' times make by simulation.",
    )
    parser.add_argument("name", metavar="SCHEDULE", help="gpipe, 1f1b, interleaved, zb-h1, forward-only, ...")
    parser.add_argument(
        "--ranks", dest="n", type=int, default=2, help="how many ranks to start (default 2; not under torchrun)"
    )
    parser.add_argument("--backend", default="auto", help="auto, gloo or nccl")
    add_cluster(parser)
    parser.add_argument("--micro-batches", dest="num_micro_batches", type=int, help="default: twice the ranks")
    parser.add_argument("--chunks", dest="num_chunks", type=int, default=1, help="stages per rank (default 1)")
    parser.add_argument("--blocks", dest="depth", type=int, default=2, help="transformer blocks of a rank (default 2)")
    parser.add_argument("--hidden", type=int, default=512, help="their hidden size (default 512)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a micro-batch (default 128)")
    parser.add_argument(
        "--wait-ms", type=float, help="stages wait so long in a forward, twice that in a backward, and compute nothing"
    )
    parser.add_argument("--message", dest="message_bytes", help="with --wait-ms: size of a message (default 64KiB)")
    parser.add_argument("--out", default="pipeline.json", help="the trace; the figure goes beside it as .html")
    parser.set_defaults(call=_pipeline)


def _pipeline(arguments: argparse.Namespace) -> int:
    from tplab.pipeline import build_schedule

    out = Path(arguments.out)
    if out.suffix == ".html":
        raise ValueError(f"--out must not end in .html, as the figure beside the trace does; got {out}")
    for path in (out, out.with_suffix(".html")):
        words.writable("--out", str(path))
    if arguments.message_bytes is not None and arguments.wait_ms is None:
        raise ValueError("--message must come with --wait-ms: blocks send what they compute")
    if arguments.wait_ms is not None:
        check_number("wait_ms", arguments.wait_ms, above=0, most=1e6)
    with ranks(arguments.n, arguments.backend, arguments.cluster) as cluster:
        if cluster is None:
            return 0
        p = cluster.num_ranks
        m = 2 * p if arguments.num_micro_batches is None else arguments.num_micro_batches
        schedule = build_schedule(arguments.name, p, m, arguments.num_chunks)
        simulated, trace = (_blocks if arguments.wait_ms is None else _waits)(cluster, schedule, arguments)
    _write(simulated, trace, out)
    return 0


def _blocks(cluster: "Cluster", schedule: "Schedule", arguments: argparse.Namespace) -> "tuple[Trace, MeasuredTrace]":
    from tplab.layers.overlap import StackPlan
    from tplab.pipeline import BlockStages, measured_costs, simulate

    if schedule.has_back_edge:
        raise ValueError(f"{schedule.name} must come with --wait-ms: blocks sample no token to feed back")
    heads = max(1, arguments.hidden // _HEAD_DIM)
    stack = StackPlan(
        batch=1,
        hidden=arguments.hidden,
        num_heads=heads,
        num_kv_heads=heads,
        intermediate=2 * arguments.hidden,
        depth=arguments.depth,
        dtype="bfloat16" if cluster.backend == "nccl" else "float32",
    )
    trace = BlockStages(stack=stack, tokens=arguments.tokens).run(cluster, schedule, timeout=600.0)
    return simulate(schedule, measured_costs(trace)), trace


def _waits(cluster: "Cluster", schedule: "Schedule", arguments: argparse.Namespace) -> "tuple[Trace, MeasuredTrace]":
    from tplab.collectives.sweep_plan import parse_bytes
    from tplab.pipeline import Costs, run_schedule, simulate

    each = arguments.wait_ms / 1e3
    size = parse_bytes("--message", arguments.message_bytes or "64KiB")
    costs = Costs(forward_s=each, input_grad_s=each, weight_grad_s=each, message_bytes=size)
    return simulate(schedule, costs), run_schedule(cluster, schedule, costs, timeout=600.0)


def _write(simulated: "Trace", trace: "MeasuredTrace", out: Path) -> None:
    from tplab.lab.figures.pipeline import gantt

    print(
        f"{trace.badge}: {trace.schedule.name} took {trace.makespan_s * 1e3:.4g} ms, measured; "
        f"{simulated.makespan_s * 1e3:.4g} ms simulated without messages"
    )
    print(f"idle over total {trace.idle_over_total:.3f} measured, {simulated.idle_over_total:.3f} simulated")
    try:
        trace.to_perfetto(out)
    except OSError as error:
        raise words.unsaved("--out", error, trace.frame().to_csv(index=False)) from error
    print(f"Wrote {out}.")
    page = out.with_suffix(".html")
    try:
        with replacing(page) as partial:
            gantt(simulated, trace, badge=trace.badge).write_html(partial, include_plotlyjs=True)
    except OSError as error:
        raise ValueError(f"the figure {page} cannot be written: {error.strerror}; the trace is in {out}") from error
    print(f"Wrote {page}.")
