"""The subcommand ``tplab advise``: thin, calls ``tplab.topology.advisor``."""

import argparse
import textwrap
from typing import TYPE_CHECKING

from tplab.checks import check_count
from tplab.cli import asked
from tplab.cli.words import INDENT, width, wrapped, writable, write_csv
from tplab.shown import fixed

if TYPE_CHECKING:
    from tplab.models.spec import ModelSpec
    from tplab.topology.advisor.advice import Advice
    from tplab.topology.advisor.calibration import Calibration
    from tplab.topology.advisor.workload import Workload
    from tplab.topology.machine.machine import Machine

_CONCURRENCY = 16
_COLUMNS = {"tpot_ms": "tpot_ms", "ttft_ms": "ttft_ms", "output_tokens_per_s": "tokens/s", "free_GB": "free GB/GPU"}
"""Column of ``Advice.table`` -> heading, for the columns that are printed."""


def add_advise(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``advise`` to ``tplab``'s commands."""
    parser = asked.with_presets(
        commands,
        "advise",
        "rank tensor and pipeline layouts of a model on a machine",
        "Predict every layout that fits and rank them: time per token, throughput, what binds, and the commands that "
        "start the best one.",
    )
    asked.add_what(parser, engine="generic: one that nobody has measured; prints commands of all")
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
        "--most", type=int, default=12, help="rows to print; 0: all, and the impossible layouts (default 12)"
    )
    parser.add_argument("--csv", help="also write the whole table here")
    parser.set_defaults(call=_advise)


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
    model, machine, calibration = asked.what(arguments)
    workload = Workload(
        input_length=arguments.input_length,
        output_length=arguments.output_length,
        concurrency=requests,
        request_rate=arguments.request_rate,
        cached_prefix=arguments.cached_prefix,
        ttft_limit_ms=arguments.ttft_limit_ms,
        tpot_limit_ms=arguments.tpot_limit_ms,
        engine=asked.engine_of(arguments, "generic"),
    )
    advice = advise(model, machine, workload, calibration=calibration)
    print(wrapped(_asked(model, machine, workload, calibration), indent="  "))
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
    named = workload.engine.name
    for engine in [named] if named in commands else commands:
        print(f"{engine}:")
        for command in commands[engine]:
            print(textwrap.indent(command, "  "))
    for note in advice.notes:
        print(wrapped(f"Note: {note}", indent="  "))
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
        *(["which GPUs these are is a guess, and everything hangs on it (--gpu)"] if machine.doubt else []),
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
            print(wrapped(INDENT + verdict))
    if (shown["replicas"] > 1).any():
        print("x N: N replicas, each with its own copy of the model.")
    if most == 0 and len(cannot):
        print("Impossible:")
        for layout, reason in zip(cannot["layout"], cannot["verdict"], strict=True):
            print(wrapped(f"  {layout}: {reason}"))
        return
    more = len(fitting) - len(shown)
    hidden = [f"{more} more that fit"] * (more > 0) + [f"{len(cannot)} impossible"] * (len(cannot) > 0)
    if hidden:
        print(f"({' and '.join(hidden)}: --most 0 shows them, --csv writes them to a file)")
