"""The subcommand ``tplab crossover``: thin, calls ``tplab.collectives``."""

import argparse
from functools import partial
from typing import TYPE_CHECKING

from tplab.checks import ArgumentError
from tplab.cli.words import advancing, table, writable, write_csv

if TYPE_CHECKING:
    import pandas as pd

_LOSSES = {
    "engine": "engine",
    "batch": "batch",
    "bytes": "bytes",
    "kind": "takes",
    "engine_us": "us",
    "best": "best here",
    "best_us": "us here",
    "lost_us_per_call": "lost us/call",
    "lost_ms_per_step": "lost ms/step",
}
"""Column of ``engine_losses`` -> heading, for the columns that are printed."""


def add_crossover(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``crossover`` to ``tplab``'s commands."""
    parser = commands.add_parser(
        "crossover",
        help="which all-reduce is the fastest for which size here, beside the limits in serving engines",
        description="Measure the exact all-reduces of this machine over sizes (on GPUs of their own in CUDA graphs), "
        "or take a recorded sweep; say the fastest of each size, the sizes at which the choice changes, and what a "
        "decode step loses by the limits that vLLM, SGLang and TensorRT-LLM have in their code.",
    )
    parser.add_argument("--ranks", dest="n", type=int, help="how many ranks (default 2; of a recording: the most)")
    parser.add_argument("--backend", help="auto (default), gloo or nccl")
    parser.add_argument("--recorded", dest="name", help="a recording instead, such as 4xH200-2026-11-26")
    parser.add_argument("--file", dest="path", help="rows that tplab sweep or this command wrote, instead of measuring")
    parser.add_argument("--from-size", help="smallest message (default 1KiB)")
    parser.add_argument("--to-size", help="largest message (default 64MiB on GPUs of their own, 4MiB elsewhere)")
    parser.add_argument("--iterations", type=int, help="samples per size (default: 50, fewer for large messages)")
    parser.add_argument(
        "--model",
        dest="config",
        default="llama-3.1-70b",
        help="whose decode step: config.json, its folder, or a preset",
    )
    parser.add_argument("--batches", default="1,4,16,64,256", help="comma-separated: sequences that decode together")
    parser.add_argument("--csv", help="also write the rows that were measured here")
    parser.set_defaults(call=_crossover)


def _crossover(arguments: argparse.Namespace) -> int:
    from tplab.collectives.crossover import (
        comparable,
        crossovers,
        engine_losses,
        explain_crossovers,
        fastest,
        rules_beside,
    )
    from tplab.lab.figures.crossover import explain_losses
    from tplab.models.spec import ModelSpec

    out = writable("--csv", arguments.csv) if arguments.csv is not None else None
    batches = _batches(arguments.batches)
    spec = ModelSpec.from_config(arguments.config)
    sweep, badge = _rows(arguments)
    if out is not None:
        write_csv("--csv", sweep, out)
    frame = comparable(sweep, num_ranks=arguments.n)
    row = frame.iloc[0]
    rules = rules_beside(frame, spec.hidden_size)
    losses = engine_losses(frame, rules, hidden=spec.hidden_size, num_layers=spec.num_layers, batches=batches)
    print(f"{badge} · {row['launch_mode']} · {row['dtype']}")
    print(table(fastest(frame)))
    print(f"\n{table(crossovers(frame))}\n\n{explain_crossovers(frame)}")
    calls = 2 * spec.num_layers
    print(f"\nA decode step of {spec.name} has {calls} all-reduces of batch x {2 * spec.hidden_size:,} bytes.")
    timed = losses[losses["engine_us"].notna()]
    if len(timed):
        print(table(timed[list(_LOSSES)].rename(columns=_LOSSES)))
    print(explain_losses(losses))
    for rule in rules:
        print(f"{rule.source}{f'; {rule.note}' if rule.note and rule.bands else ''}")
    return 0


def _batches(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < int(part) < 1 << 20 for part in parts):
        raise ArgumentError("batches", text, "must be whole numbers above 0, such as 1,8,64")
    return [int(part) for part in parts]


def _rows(arguments: argparse.Namespace) -> "tuple[pd.DataFrame, str]":
    """The sweep and its badge, measured or read."""
    measuring = {name: getattr(arguments, name) for name in ("backend", "from_size", "to_size", "iterations", "csv")}
    if arguments.name is not None or arguments.path is not None:
        if arguments.name is not None and arguments.path is not None:
            raise ValueError("--recorded and --file must not be given together")
        if given := [arguments.options[name] for name, value in measuring.items() if value is not None]:
            raise ValueError(f"{', '.join(given)} must not come with --recorded or --file, which measure nothing")
    if arguments.name is not None:
        from tplab.lab.recorded import recorded, recorded_badge

        return recorded(arguments.name, "sweep"), recorded_badge(arguments.name)
    if arguments.path is not None:
        from tplab.collectives.sweep import read_sweep

        return read_sweep(arguments.path), f"FILE {arguments.path}"
    return _measured(arguments)


def _measured(arguments: argparse.Namespace) -> "tuple[pd.DataFrame, str]":
    from tqdm import tqdm

    from tplab.cluster import Cluster
    from tplab.collectives.sweep import submit_sweep, sweep_frame
    from tplab.collectives.sweep_plan import parse_bytes, plan_crossover

    with Cluster(2 if arguments.n is None else arguments.n, arguments.backend or "auto") as cluster:
        plan = partial(
            plan_crossover,
            backend=cluster.backend,
            shares_gpus=cluster.shares_gpus,
            peer_memory=cluster.peer_memory,
        )
        usual = [point.nbytes for point in plan()]
        low, high = (
            edge if text is None else parse_bytes(option, text)
            for option, text, edge in (
                ("--from-size", arguments.from_size, min(usual)),
                ("--to-size", arguments.to_size, max(usual)),
            )
        )
        if low > high:
            raise ValueError(f"--from-size must not be above --to-size; got {low} and {high} bytes")
        sizes = [low << doublings for doublings in range((high // low).bit_length())]
        points = plan(sizes=sizes, iterations=arguments.iterations)
        with tqdm(desc=cluster.badge, disable=None) as bar:
            run = submit_sweep(cluster, points, on_report=advancing(bar))
            run.result()
        return sweep_frame(points, run.reports, cluster.provenance), cluster.badge
