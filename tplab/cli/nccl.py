"""The subcommand ``tplab read-nccl``: thin, calls ``tplab.collectives.nccl_tests`` and ``tplab.topology``."""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tplab.cli.words import table, unsaved, wrapped, writable, write_csv
from tplab.files import replacing

if TYPE_CHECKING:
    from tplab.collectives.nccl_tests import NcclTest
    from tplab.topology.advisor.allreduce import Times
    from tplab.topology.machine.machine import Machine

_MOST_ROWS = 40
_SHORT = 1 << 20
"""Bytes above which no time says what a short message takes."""


def add_nccl(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``read-nccl`` to ``tplab``'s commands."""
    parser = commands.add_parser(
        "read-nccl",
        help="read what nccl-tests or rccl-tests printed; calibrate the advisor's links with it",
        description="Read the output of all_reduce_perf, sendrecv_perf and the others, as printed or as JSON (-J), "
        "beside the formula for the machine; and write a calibration of its links for tplab advise. For that, run "
        "all_reduce_perf and sendrecv_perf with -b 8K -e 256M -f 2 -G 20 on all GPUs.",
    )
    parser.add_argument("path", metavar="FILE", nargs="+", help="output of one machine, or - for standard input")
    parser.add_argument("--machine", help="preset of the machine or GPU (default: by the GPU that the output names)")
    parser.add_argument(
        "--collective", help="what it measured, where the output does not say it: all-reduce, point-to-point, ..."
    )
    parser.add_argument("--calibration", help="write the links here, for tplab advise --calibration")
    parser.add_argument("--csv", help="write the rows here")
    parser.add_argument("--html", help="write a figure of the first test here")
    parser.set_defaults(call=_read_nccl)


def _read_nccl(arguments: argparse.Namespace) -> int:
    from tplab.collectives.nccl_tests import nccl_frame, read_nccl
    from tplab.topology.calibration.from_nccl import calibration_of_nccl, formula_of_test, machine_of_test

    for option in ("calibration", "csv", "html"):
        if (path := getattr(arguments, option)) is not None:
            writable(f"--{option}", path)
    tests: list[NcclTest] = []
    for path in arguments.path:
        try:
            tests += read_nccl(path, collective=arguments.collective)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    machines = [machine_of_test(test, arguments.machine) for test in tests]
    made, refused = None, None
    if arguments.calibration is not None:
        try:
            made = calibration_of_nccl(tests, machine=arguments.machine)
        except ValueError as error:  # once the rows are printed
            refused = error
    if made is not None:  # files first: what is printed may go to a reader who has enough of it, such as head
        try:
            made.save(arguments.calibration)
        except OSError as error:
            raise unsaved("--calibration", error, made.to_json()) from error
    if arguments.html is not None:
        formula = None if machines[0] is None else formula_of_test(tests[0], machines[0])
        _draw(tests[0], formula, machines[0], arguments.html)
    if arguments.csv is not None:
        write_csv("--csv", nccl_frame(tests), writable("--csv", arguments.csv))
    for test, machine in zip(tests, machines, strict=True):
        _say(test, machine)
    if refused is not None:
        raise refused
    if made is not None:
        for note in made.notes[:2]:
            print(wrapped(f"Calibration {note}.", indent="  "))
        print(f"Wrote {arguments.calibration}: tplab advise --calibration {arguments.calibration} takes it.")
    return 0


def _say(test: "NcclTest", machine: "Machine | None") -> None:
    """What was measured, what a line through it is worth, and the formula beside it."""
    from tplab.topology.calibration.from_nccl import beside_formula
    from tplab.topology.machine.gpu_names import known_gpu

    kind = f"{test.collective}{' in CUDA graphs' if test.graph else ''}"
    print(wrapped(f"{test.badge}: {kind}, {len(test.curve)} sizes.", indent="  "))
    for note in _fits(test.curve):
        print(wrapped(note, indent="  "))
    frame = test.frame()
    frame = frame[
        [
            *(["algorithm"] if frame["algorithm"].nunique() > 1 else []),
            "bytes",
            "dtype",
            "p50_us",
            "algbw_GBps",
            "busbw_GBps",
        ]
    ].rename(columns={"p50_us": "mean_us"})
    if machine is not None and len(beside := beside_formula(test, machine)):
        frame = frame.merge(beside.drop(columns="measured_us"), on="bytes", how="left")
        off = beside["off_pct"].abs()
        print(
            wrapped(
                f"The advisor's formula for {machine.name} is {off.mean():.0f} % off on average, {off.max():.0f} % at "
                f"worst.",
                indent="  ",
            )
        )
    print(table(frame.head(_MOST_ROWS)))
    if len(frame) > _MOST_ROWS:
        print(f"({len(frame) - _MOST_ROWS} more rows: --csv writes them to a file)")
    named = known_gpu(test.device)
    notes = list(test.notes)
    if machine is not None and named not in (None, machine.gpu.name):
        notes.append(f"the output is of {test.device}, the machine that was given has {machine.gpu.name}")
    for note in notes:
        print(wrapped(f"Note: {note}.", indent="  "))
    print()


def _fits(curve: "dict[int, float]") -> Sequence[str]:
    from tplab.collectives.cost import errors, fit_ends, fit_line, leave_out_error

    sizes, times = list(curve), list(curve.values())
    if len(sizes) < 2:
        return []
    ends, line = fit_ends(sizes, times), fit_line(sizes, times)
    off = errors(line, sizes, times)
    if math.isinf(ends.beta_GBps) or math.isinf(line.beta_GBps):
        return [f"All of them take {line.alpha_us:.3g} us: too short for a bandwidth."]
    short = f"Short ones take {ends.alpha_us:.3g} us, long" if sizes[0] <= _SHORT else "Long"
    said = [
        f"{short} ones go at {ends.beta_GBps:.4g} GB/s; the line {line.alpha_us:.3g} us + S / {line.beta_GBps:.4g} "
        f"GB/s is {off.mean_pct:.0f} % off on average, {off.max_pct:.0f} % at worst."
    ]
    if len(sizes) >= 5:
        said += [f"The curve, on every second size left out, is {leave_out_error(sizes, times).mean_pct:.0f} % off."]
    return said


def _draw(test: "NcclTest", formula: "Times | None", machine: "Machine | None", path: str) -> None:
    from tplab.lab.figures.collectives import latency_figure

    beside: dict[str, Callable[[float], float]] = {}
    if formula is not None and machine is not None:
        by_formula = formula
        beside[f"the advisor's formula, {machine.name}"] = lambda nbytes: float(by_formula(nbytes)[0])
    try:
        with replacing(path) as partial:
            latency_figure(test.frame(), badge=test.badge, beside=beside).write_html(partial, include_plotlyjs=True)
    except OSError as error:
        raise ValueError(f"--html {path} cannot be written: {error.strerror}") from error
    print(f"Wrote {path}.")
