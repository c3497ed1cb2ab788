"""The subcommands ``tplab advise`` and ``tplab validate``: thin, call ``tplab.topology``."""

import argparse
import os
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from tplab.checks import check_count
from tplab.cli.words import table, width, writable, write_csv
from tplab.files import MAX_BYTES, read_text
from tplab.models.precision import ITEMSIZE
from tplab.models.presets import MODELS
from tplab.shown import fixed
from tplab.topology.advisor.constants import DEFAULT
from tplab.topology.advisor.workload import PREFILL_POLICIES
from tplab.topology.machine.gpu_names import OWN
from tplab.topology.machine.presets import INSTANCES, MACHINES
from tplab.topology.machine.spec_sheets import GPUS

if TYPE_CHECKING:
    import pandas as pd

    from tplab.models.spec import ModelSpec
    from tplab.topology.advisor.advice import Advice
    from tplab.topology.advisor.calibration import Calibration
    from tplab.topology.advisor.workload import EnginePolicy, Workload
    from tplab.topology.machine.machine import Machine

_NO_SERVER = ("fastertransformer", "lab")
_ENGINES = ", ".join(sorted(set(DEFAULT.engines) - set(_NO_SERVER)))
_BY = "model,gpu,engine,tp,pp"
_CONCURRENCY = 16
_INDENT = " " * 6
_OF_A_FOLDER = ("by", "no_refit", "report", "beside")
_OF_EITHER = ("help", "paths", "csv")
"""Arguments of ``validate``; the others come with result files, for published tables say those things themselves."""
_COLUMNS = {"tpot_ms": "tpot_ms", "ttft_ms": "ttft_ms", "output_tokens_per_s": "tokens/s", "free_GB": "free GB/GPU"}
"""Column of ``Advice.table`` -> heading, for the columns that are printed."""


def add_advise(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``advise`` to ``tplab``'s commands."""
    parser = _with_presets(
        commands,
        "advise",
        "rank tensor and pipeline layouts of a model on a machine",
        "Predict every layout that fits and rank them: time per token, throughput, what binds, and the commands that "
        "start the best one.",
    )
    _add_what(parser, engine="generic: one that nobody has measured; prints commands of all")
    parser.add_argument(
        "--input", dest="input_length", type=int, default=1024, help="tokens of a prompt (default 1024)"
    )
    parser.add_argument("--output", dest="output_length", type=int, default=256, help="tokens generated (default 256)")
    parser.add_argument("--concurrency", type=int, help=f"requests in flight (default {_CONCURRENCY})")
    parser.add_argument("--rate", dest="request_rate", type=float, help="requests per second, instead of --concurrency")
    parser.add_argument(
        "--cached-prefix", type=float, default=0.0, help="share of each prompt that the engine has cached (default 0)"
    )
    parser.add_argument("--ttft-limit-ms", type=float, help="longest wait for the first token (default: none)")
    parser.add_argument("--tpot-limit-ms", type=float, help="longest time per token after it (default: none)")
    parser.add_argument(
        "--percentiles",
        action="store_true",
        help="with --rate: also how long half, 90 %% and 99 %% of requests take that arrive at random",
    )
    parser.add_argument(
        "--most", type=int, default=12, help="rows to print; 0: all, and the layouts that cannot be (default 12)"
    )
    parser.add_argument("--csv", help="also write the whole table here")
    parser.set_defaults(call=_advise)


def add_validate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``validate`` to ``tplab``'s commands."""
    parser = _with_presets(
        commands,
        "validate",
        "the advisor's own error: on published tables, or beside a vllm bench serve result",
        "With a folder of published tables: the scoreboard of the model's error and of its choices. With result files "
        "of vllm bench serve --save-result: that server beside the prediction; give --model, --machine and --tp.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a folder of tables, or vLLM result files")
    parser.add_argument("--by", help=f"columns to group by (folder; default {_BY})")
    parser.add_argument(
        "--no-refit", action="store_true", help="do not fit again without each model, GPU, engine, length"
    )
    parser.add_argument("--report", help="also write a page (Markdown) about all of it here (folder)")
    parser.add_argument(
        "--beside", help="another tool's predictions of the cells, for the page (bench_aiconfigurator.py makes it)"
    )
    parser.add_argument(
        "--tp", type=int, help="GPUs of the server that share a layer (vLLM result; default: what the file says)"
    )
    parser.add_argument("--pp", type=int, help="its pipeline stages (vLLM result; default: what the file says, else 1)")
    _add_what(parser, required=False, engine="vllm")
    parser.add_argument("--csv", help="also write the table here")
    parser.set_defaults(call=_validate)


def _with_presets(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    """Add a subcommand whose help ends with the names that may be given, since nobody can guess them."""

    def filled(text: str) -> str:
        return textwrap.fill(text, width() - 2, subsequent_indent="  ", break_on_hyphens=False)

    presets = (("--model", MODELS), ("--machine", MACHINES), ("--machine, in clouds", INSTANCES), ("--gpu", GPUS))
    return commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, width() - 2),
        epilog="\n".join(filled(f"presets of {what}: {', '.join(sorted(names))}") for what, names in presets)
        + f"\n{filled(f'no preset: {OWN}')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_what(parser: argparse.ArgumentParser, engine: str, required: bool = True) -> None:
    parser.add_argument("--model", required=required, help="config.json, its folder, or a preset (below)")
    precisions = ", ".join(ITEMSIZE)
    parser.add_argument(
        "--weights",
        dest="weight_precision",
        help=f"precision of the weights: {precisions} (default: what the configuration says)",
    )
    parser.add_argument(
        "--kv",
        dest="kv_precision",
        help="precision of the cache, of the same (default: what the configuration says, else as activations)",
    )
    parser.add_argument("--machine", help="preset (below; default: the machine this runs on)")
    parser.add_argument("--gpus", type=int, help="GPUs per node, with --machine (default: those of a usual node)")
    parser.add_argument("--nodes", type=int, help="with --machine or --topo (default 1)")
    parser.add_argument(
        "--topo", help="file with what nvidia-smi topo -m prints, or - for standard input; instead of --machine"
    )
    parser.add_argument("--gpu", help="which GPUs those are, with --topo: preset (below; default: a guess)")
    parser.add_argument("--calibration", help="file written by tplab calibrate; without --machine also the machine")
    parser.add_argument("--engine", help=f"{_ENGINES} (default {engine})")
    parser.add_argument("--eager", action="store_true", help="the engine runs without CUDA graphs")
    parser.add_argument(
        "--max-num-seqs", type=int, help="most requests that one replica runs at once (default: engine's)"
    )
    policies = ", ".join(PREFILL_POLICIES)
    parser.add_argument("--prefill-policy", help=f"how prompts get their turn: {policies} (default auto: engine's)")
    parser.add_argument(
        "--token-budget",
        dest="chunked_prefill",
        type=int,
        help="most tokens in one step, prompts are cut to it; 0: prompts whole (default 8192)",
    )
    parser.add_argument("--speculative-tokens", type=int, help="tokens that a draft guesses in each step (default 0)")
    parser.add_argument("--acceptance", type=float, help="probability that a guessed token is accepted (default 0.7)")


def _advise(arguments: argparse.Namespace) -> int:
    from tplab.topology.advisor.advice import advise
    from tplab.topology.advisor.arrivals import simulate_arrivals
    from tplab.topology.advisor.workload import Workload

    check_count("most", arguments.most)
    csv = None if arguments.csv is None else writable("--csv", arguments.csv)
    if arguments.concurrency is not None and arguments.request_rate is not None:
        raise ValueError("--concurrency and --rate must not both be given")
    requests = arguments.concurrency
    if requests is None and arguments.request_rate is None:
        requests = _CONCURRENCY
    if arguments.percentiles and arguments.request_rate is None:
        raise ValueError("--percentiles goes with --rate: how many requests arrive per second?")
    model, machine, calibration = _what(arguments)
    workload = Workload(
        input_length=arguments.input_length,
        output_length=arguments.output_length,
        concurrency=requests,
        request_rate=arguments.request_rate,
        cached_prefix=arguments.cached_prefix,
        ttft_limit_ms=arguments.ttft_limit_ms,
        tpot_limit_ms=arguments.tpot_limit_ms,
        engine=_engine(arguments, "generic"),
    )
    advice = advise(model, machine, workload, calibration=calibration)
    print(_wrapped(_asked(model, machine, workload, calibration), indent="  "))
    print(f"\n{advice}\n")
    if arguments.percentiles:
        lay = advice.best.layout
        replicas = lay.replicas
        print(
            simulate_arrivals(model, machine, workload, lay.tp, lay.pp, replicas=replicas, calibration=calibration),
            end="\n\n",
        )
    _print_table(advice, arguments.most)
    print()
    commands = advice.commands
    asked = workload.engine.name
    for engine in [asked] if asked in commands else commands:
        print(f"{engine}:")
        for command in commands[engine]:
            print(textwrap.indent(command, "  "))
    for note in advice.notes:
        print(_wrapped(f"Note: {note}", indent="  "))
    if csv is not None:
        write_csv("--csv", advice.table(), csv)
    return 0


def _asked(model: "ModelSpec", machine: "Machine", workload: "Workload", calibration: "Calibration | None") -> str:
    w = workload
    load = f"{w.concurrency} in flight" if w.request_rate is None else f"{w.request_rate:g} per second"
    limits = [
        f"{what} within {limit:g} ms"
        for what, limit in (("first token", w.ttft_limit_ms), ("each further token", w.tpot_limit_ms))
        if limit is not None
    ]
    parts = [
        f"Asked: {model.name} with {model.weight_precision} weights and {model.kv_precision} cache on {machine.name}",
        f"requests of {w.input_length} tokens in and {w.output_length} out, {load}",
        *limits,
        f"engine {w.engine.name}{'' if w.engine.cuda_graphs else ' without CUDA graphs'}",
        *_beyond_defaults(w),
        *([calibration.badge] if calibration is not None else []),
    ]
    return f"{'; '.join(parts)}."


def _beyond_defaults(w: "Workload") -> list[str]:
    """What was asked of the engine and its cache that is not usual, in words."""
    usual, e = type(w.engine)(), w.engine
    budget = "prompts whole" if e.chunked_prefill is None else f"at most {e.chunked_prefill} tokens a step"
    said = {
        f"at most {e.max_num_seqs} requests at once on a replica": e.max_num_seqs is not None,
        f"prompts {e.prefill_policy}": e.prefill_policy != usual.prefill_policy,
        budget: e.chunked_prefill != usual.chunked_prefill,
        f"{w.cached_prefix:.0%} of each prompt cached": w.cached_prefix > 0,
        f"{e.speculative_tokens} tokens guessed a step, each accepted at {e.acceptance:g}": e.speculative_tokens > 0,
    }
    return [words for words, holds in said.items() if holds]


def _print_table(advice: "Advice", most: int) -> None:
    frame = advice.table()
    fitting, cannot = frame[frame["rank"] > 0], frame[frame["rank"] == 0]
    shown = fitting.head(most or len(fitting))
    columns = [("rank", *map(str, shown["rank"])), ("layout", *shown["layout"])]
    columns += [(head, *map(fixed, shown[name])) for name, head in _COLUMNS.items()]
    sides = (str.rjust, str.ljust, *[str.rjust] * len(_COLUMNS))
    cells = [[side(cell, max(map(len, each))) for cell in each] for side, each in zip(sides, columns, strict=True)]
    lines = ["  ".join(row) for row in zip(*cells, strict=True)]
    beside = len(lines[0]) + 2 + shown["verdict"].str.len().max() <= width()
    for line, verdict in zip(lines, ("verdict", *shown["verdict"]), strict=True):
        print(f"{line}  {verdict}" if beside else line)
        if not beside and line is not lines[0]:
            print(_wrapped(_INDENT + verdict))
    if (shown["replicas"] > 1).any():
        print("x N: N replicas, each with its own copy of the model.")
    if most == 0 and len(cannot):
        print("Cannot be:")
        for layout, reason in zip(cannot["layout"], cannot["verdict"], strict=True):
            print(_wrapped(f"  {layout}: {reason}"))
        return
    more = len(fitting) - len(shown)
    hidden = [f"{more} more that fit"] * (more > 0) + [f"{len(cannot)} that cannot be"] * (len(cannot) > 0)
    if hidden:
        print(f"({' and '.join(hidden)}: --most 0 shows them, --csv writes them to a file)")


def _wrapped(text: str, indent: str = _INDENT) -> str:
    return textwrap.fill(text, width(), subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def _validate(arguments: argparse.Namespace) -> int:
    csv = None if arguments.csv is None else writable("--csv", arguments.csv)
    paths = [Path(path) for path in arguments.paths]
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise ValueError(f"there is no file or folder {missing[0]}")
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
            print(_wrapped(f"  {count:5d}  {reason}", indent=" " * 9))
    if report is not None:
        write_text(report, accuracy_page(tables, rows, beside))
        print(f"Wrote {report}.")
    return frame


def _beside_server(arguments: argparse.Namespace, paths: list[Path]) -> "pd.DataFrame":
    from tplab.topology.published.vllm_bench import beside_vllm

    if arguments.model is None:
        raise ValueError("--model must be given with result files: they have only the model's name")
    model, machine, calibration = _what(arguments)
    frame = beside_vllm(
        paths,
        model,
        machine,
        tp=arguments.tp,
        pp=arguments.pp,
        engine=_engine(arguments, "vllm"),
        calibration=calibration,
    )
    columns = ["run", "tp", "pp", "load"]
    columns += [f"{part}_tpot_ms" for part in ("predicted", "measured")] + ["tpot_ms_error_pct", "ttft_ms_error_pct"]
    print(table(frame[[*columns, "output_tokens_per_s_error_pct", "within"]]))
    for run, note in zip(frame["run"], frame["note"], strict=True):
        if note:
            print(f"{run}: {note}")
    return frame


def _what(arguments: argparse.Namespace) -> "tuple[ModelSpec, Machine, Calibration | None]":
    """Model, machine and calibration that the arguments name."""
    from tplab.models.spec import ModelSpec
    from tplab.topology.advisor.calibration import Calibration
    from tplab.topology.machine.machine import Machine
    from tplab.topology.verification.static_batch import machine_of

    model = ModelSpec.from_config(
        arguments.model, weight_precision=arguments.weight_precision, kv_precision=arguments.kv_precision
    )
    named, wired = arguments.machine is not None, arguments.topo is not None
    if named and wired:
        raise ValueError("--machine and --topo must not both be given")
    if arguments.gpus is not None and not named:
        raise ValueError("--gpus goes with --machine: which GPUs are they?")
    if arguments.gpu is not None and not wired:
        raise ValueError("--gpu goes with --topo, which does not say what GPUs it lists; else give --machine")
    if arguments.nodes is not None and not (named or wired):
        raise ValueError("--nodes goes with --machine or --topo: which nodes are they?")
    nodes = 1 if arguments.nodes is None else arguments.nodes
    calibration = None
    if arguments.calibration is not None:
        try:
            calibration = Calibration.load(arguments.calibration)
        except OSError as error:
            raise ValueError(f"--calibration {arguments.calibration} cannot be read: {error.strerror}") from error
    if named:
        machine = Machine.preset(arguments.machine, gpus=arguments.gpus, nodes=nodes)
    elif wired:
        machine = Machine.from_topo(_topo(arguments.topo), gpu=arguments.gpu, nodes=nodes)
    else:
        machine = machine_of(calibration) if calibration is not None else Machine.detect()
    if calibration is not None and calibration.num_ranks not in (machine.num_gpus, machine.gpus_per_node):
        raise ValueError(
            f"--calibration is of {calibration.num_ranks} ranks, {machine.name} has {machine.num_gpus} GPUs: calibrate "
            f"with --ranks {machine.num_gpus}"
        )
    return model, machine, calibration


def _topo(path: str) -> str:
    if path == "-":
        try:
            return sys.stdin.read(MAX_BYTES)
        except UnicodeDecodeError as error:
            raise ValueError(f"--topo -: what came in is no text: {error.reason}") from None
    try:
        return read_text(path, errors="replace")
    except OSError as error:
        raise ValueError(f"--topo {path} cannot be read: {error.strerror}") from error


def _engine(arguments: argparse.Namespace, usual: str) -> "EnginePolicy":
    from tplab.topology.advisor.workload import EnginePolicy

    if arguments.acceptance is not None and not arguments.speculative_tokens:
        raise ValueError("--acceptance goes with --speculative-tokens: of how many is it the share?")
    names = ("max_num_seqs", "prefill_policy", "chunked_prefill", "speculative_tokens", "acceptance")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if given.get("chunked_prefill") == 0:
        given["chunked_prefill"] = None
    return EnginePolicy(name=arguments.engine or usual, cuda_graphs=not arguments.eager, **given)
