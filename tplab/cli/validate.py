"""The subcommand ``tplab validate``: thin, calls ``tplab.topology.published``."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tplab.cli import asked
from tplab.cli.words import table, wrapped, writable, write_csv
from tplab.files import instead_of

if TYPE_CHECKING:
    import pandas as pd

_BY = "model,gpu,engine,tp,pp"
_OF_A_FOLDER = ("by", "no_refit", "report", "beside")
_OF_EITHER = ("help", "paths", "csv")
"""Arguments of ``validate``; the others come with result files, for published tables say those things themselves."""


def add_validate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``validate`` to ``tplab``'s commands."""
    parser = asked.with_presets(
        commands,
        "validate",
        "the advisor's own error: on published tables, or beside a benchmark of a server",
        "With a folder of published tables: the scoreboard of the model's error and of its choices. With results of "
        "vllm bench serve (--save-result, or what it prints), sglang.bench_serving, genai-perf, aiperf, guidellm, "
        "InferenceX or LLMPerf: that server beside the prediction; give --model, --machine and --tp.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a folder of tables, or results of benchmarks")
    parser.add_argument("--by", help=f"columns to group by (folder; default {_BY})")
    parser.add_argument(
        "--no-refit", action="store_true", help="do not fit again without each model, GPU, engine, length"
    )
    parser.add_argument("--report", help="also write a page (Markdown) about all of it here (folder)")
    parser.add_argument(
        "--beside", help="another tool's predictions of the cells, for the page (bench_aiconfigurator.py makes it)"
    )
    parser.add_argument(
        "--tp", type=int, help="GPUs of the server that share a layer (result; default: what the file says)"
    )
    parser.add_argument("--pp", type=int, help="its pipeline stages (result; default: what the file says, else 1)")
    parser.add_argument(
        "--replicas", type=int, help="its copies behind one address (result; default: what the file says, else 1)"
    )
    parser.add_argument(
        "--input", dest="input_length", type=int, help="tokens of a prompt, where the result does not say"
    )
    parser.add_argument(
        "--output", dest="output_length", type=int, help="tokens of an answer, where the result does not say"
    )
    asked.add_what(parser, required=False, engine="what the result says, else vllm")
    parser.add_argument("--csv", help="also write the table here")
    parser.set_defaults(call=_validate)


def _validate(arguments: argparse.Namespace) -> int:
    csv = None if arguments.csv is None else writable("--csv", arguments.csv)
    paths = [Path(path) for path in arguments.paths]
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise ValueError(f"there is no file or folder {missing[0]}{instead_of(missing[0])}")
    folders = [path for path in paths if os.path.isdir(path)]
    if folders and len(paths) > 1:
        raise ValueError(f"give one folder, or files only; got {len(paths)} paths of which {len(folders)} are folders")
    kind = "result files" if folders else "a folder of tables"
    others = set(arguments.options) - {*_OF_A_FOLDER, *_OF_EITHER} if folders else set(_OF_A_FOLDER)
    given = (name for name in arguments.options if name in others and getattr(arguments, name) not in (None, False))
    if astray := [arguments.options[name] for name in given]:
        raise ValueError(f"{', '.join(astray)} must come with {kind}; got {', '.join(map(str, paths))}")
    frame = _scoreboard(arguments, folders[0]) if folders else _beside_server(arguments, paths)
    if csv is not None:
        write_csv("--csv", frame, csv)
    return 0


def _scoreboard(arguments: argparse.Namespace, folder: Path) -> "pd.DataFrame":
    from tplab.files import write_text
    from tplab.topology.published.accuracy import accuracy_page, read_beside
    from tplab.topology.published.scoreboard import LEFT_OUT, layout_choice, predictions, score
    from tplab.topology.published.tables import read_folder

    if arguments.report is None and arguments.beside is not None:
        raise ValueError("--beside must come with --report: the page shows it")
    if arguments.report is not None and arguments.no_refit:
        raise ValueError("--report must come without --no-refit: the page is about what is left out")
    report = None if arguments.report is None else writable("--report", arguments.report)
    beside = None if arguments.beside is None else read_beside(arguments.beside)
    tables = read_folder(folder)
    rows = predictions(tables, leave_out=() if arguments.no_refit else LEFT_OUT)
    frame = score(rows, [key.strip() for key in (arguments.by or _BY).split(",")])
    print(table(frame))
    choice = layout_choice(rows)
    if not choice.empty:
        print("\nWhat choosing by prediction costs, beside the rules that need none:")
        print(table(choice))
    if tables.skipped:
        print("\nRows left out, by reason:")
        for reason, count in tables.skipped.items():
            print(wrapped(f"  {count:5d}  {reason}", indent=" " * 9))
    if report is not None:
        write_text(report, accuracy_page(tables, rows, beside))
        print(f"Wrote {report}.")
    return frame


def _beside_server(arguments: argparse.Namespace, paths: list[Path]) -> "pd.DataFrame":
    from tplab.topology.published.benchmarks import beside_benchmark

    if arguments.model is None:
        raise ValueError("--model must be given with result files: they have only the model's name")
    model, machine, calibration = asked.what(arguments)
    frame = beside_benchmark(
        paths,
        model,
        machine,
        tp=arguments.tp,
        pp=arguments.pp,
        replicas=arguments.replicas,
        input_length=arguments.input_length,
        output_length=arguments.output_length,
        engine=asked.engine_of(arguments, "generic"),
        calibration=calibration,
    )
    columns = ["run", "engine", "tp", "pp", "replicas", "load"]
    for what in ("tpot_ms", "ttft_ms", "output_tokens_per_s"):
        columns += [f"predicted_{what}", f"measured_{what}", f"{what}_error_pct"]
    print(table(frame[[*columns, "within"]]))
    for run, note in zip(frame["run"], frame["note"], strict=True):
        if note:
            print(wrapped(f"{run}: {note}", indent="  "))
    if machine.doubt:
        print(wrapped(f"Note: {machine.doubt}", indent="  "))
    return frame
