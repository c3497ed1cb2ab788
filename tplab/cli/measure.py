"""The subcommands ``tplab calibrate`` and ``box``, which measure: thin, call ``tplab.topology``."""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tplab import needs
from tplab.cli.ranks import add_cluster, ranks
from tplab.cli.words import say, unsaved, writable

if TYPE_CHECKING:
    from tplab.cluster import Report
    from tplab.topology.advisor.calibration import Calibration

_REQUESTS = ("input_length", "output_length", "concurrency")
"""Arguments of ``box`` that describe a model's requests."""


def add_calibrate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``calibrate`` to ``tplab``'s commands."""
    parser = commands.add_parser(
        "calibrate",
        help="measure this machine's links and rates for the advisor; write a JSON file",
        description="Measure all-reduces, messages, matmuls and the engine's overheads on local ranks, with "
        "--cluster on ranks of several hosts, or, started by "
        "torchrun (torchrun --nproc-per-node 8 -m tplab.cli calibrate ...), on the ranks it made. About half a minute.",
    )
    parser.add_argument(
        "--ranks", dest="n", type=int, default=2, help="how many ranks to start (default 2; not under torchrun)"
    )
    parser.add_argument("--backend", default="auto", help="auto, gloo or nccl")
    add_cluster(parser)
    parser.add_argument("--rounds", type=int, default=4, help="more of them forgive busier machines (default 4)")
    parser.add_argument("--latency-us", type=float, help="with --bandwidth-GBps: over an emulated link (gloo)")
    parser.add_argument("--bandwidth-GBps", dest="bandwidth_GBps", type=float, help="of the emulated link")
    parser.add_argument("--name", dest="machine", help="what to call the machine (default: ranks and device)")
    parser.add_argument("--out", default="calibration.json", help="the file to write (default calibration.json)")
    parser.set_defaults(call=_calibrate)


def add_box(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``box`` to ``tplab``'s commands."""
    parser = commands.add_parser(
        "box",
        help="measure everything on a machine with GPUs, and run models in every layout",
        description="Links, all-reduces, layers, a pipeline, whole models in every layout of all ranks, predicted "
        "from the spec sheet and from a calibration beside what was measured, and generation profiled kernel by "
        "kernel. A file per step in the folder; exit status 1 if a step has nothing to show: it failed, or there was "
        "no time for it. With one GPU two ranks share it, and one alone generates. Started by torchrun (torchrun "
        "--nproc-per-node 8 -m tplab.cli box ...), on the ranks it made.",
    )
    parser.add_argument("out", metavar="FOLDER", help="where the files go")
    parser.add_argument(
        "--ranks",
        dest="num_ranks",
        type=int,
        help="how many (default: one per GPU, 2 without; with --cluster what its hosts have; not under torchrun)",
    )
    parser.add_argument("--backend", default="auto", help="auto, gloo or nccl")
    add_cluster(parser)
    parser.add_argument(
        "--steps", help="comma-separated: links, sweep, layers, pipeline, layouts, generation (default: all)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="an end to all of it: the steps share the time, and what there is none for is left out (default: no end; "
        "torchrun's ranks are stopped with the command)",
    )
    parser.add_argument("--model", help="run this one instead: config.json, its folder, or a preset")
    parser.add_argument(
        "--input", dest="input_length", type=int, help="with --model: tokens of a prompt (default 1024)"
    )
    parser.add_argument("--output", dest="output_length", type=int, help="with --model: tokens generated (default 32)")
    parser.add_argument("--concurrency", type=int, help="with --model: requests (default 16)")
    parser.set_defaults(call=_box)


def _calibrate(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from tplab.collectives.emulated_link import EmulatedLink
    from tplab.topology.calibration.plan import PHASES
    from tplab.topology.calibration.run import submit_calibrate

    out = writable("--out", arguments.out)
    if (arguments.latency_us is None) != (arguments.bandwidth_GBps is None):
        raise ValueError("--latency-us and --bandwidth-GBps must be given together, or neither")
    links = None
    if arguments.latency_us is not None:
        links = EmulatedLink(latency_us=arguments.latency_us, bandwidth_GBps=arguments.bandwidth_GBps)
    with ranks(arguments.n, arguments.backend, arguments.cluster) as cluster:
        if cluster is None:
            return 0
        with tqdm(total=len(PHASES), disable=None) as bar:

            def on_report(report: "Report") -> None:
                if report.rank == 0 and "phase" in report.fields:
                    bar.set_description(report.fields["phase"])
                    bar.update(report.fields["done"] - bar.n)

            run = submit_calibrate(
                cluster,
                links=links,
                machine=arguments.machine,
                rounds=arguments.rounds,
                timeout=None,
                on_report=on_report,
            )
            made = run.result()
    _say_calibration(made, out)
    return 0


def _say_calibration(made: "Calibration", out: Path) -> None:
    try:
        made.save(out)
    except OSError as error:
        raise unsaved("--out", error, made.to_json()) from error
    print(made.badge)
    for sweep in made.all_reduce:
        print(
            f"all-reduce of {sweep.num_ranks} ({sweep.launch}, ranks {','.join(map(str, sweep.gpus))}): "
            f"{sweep.p50_us[0]:.3g} us at {sweep.nbytes[0]:g} bytes, {sweep.p50_us[-1] / 1e3:.3g} ms at "
            f"{sweep.nbytes[-1] / 1e6:.3g} MB"
        )
    for note in made.notes:
        print(note)
    print(f"Wrote {out}.")


def _box(arguments: argparse.Namespace) -> int:
    needs.check("this command", "torch", "cloudpickle", "psutil", "pynvml", "safetensors")  # before a folder is made
    from tplab.cluster.backends import num_gpus
    from tplab.cluster.torchrun import under_torchrun
    from tplab.topology.advisor.workload import Workload
    from tplab.topology.verification.box import STEPS, measure_box
    from tplab.topology.verification.box_layouts import BoxCase

    n, on_host = arguments.num_ranks, 0  # what the hosts of a cluster have is not known here
    if under_torchrun():
        on_host = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    elif arguments.cluster is None:
        n = on_host = max(2, num_gpus()) if n is None else n
    shared = 0 < num_gpus() < on_host and arguments.backend != "gloo"
    usual = [step for step in STEPS if step != "layouts" or not shared]  # of ranks that take turns it says nothing
    steps = [step.strip() for step in arguments.steps.split(",")] if arguments.steps is not None else usual
    asked = {
        "--input": arguments.input_length,
        "--output": arguments.output_length,
        "--concurrency": arguments.concurrency,
    }
    cases = None
    if arguments.model is None:
        given = [name for name, value in asked.items() if value is not None]
        if given:
            raise ValueError(f"{', '.join(given)} must come with --model, whose requests they describe")
    else:
        if "layouts" not in steps:
            raise ValueError("--model must come with the step layouts, the one that runs it")
        prompt, new, requests = (
            default if value is None else value for value, default in zip(asked.values(), (1024, 32, 16), strict=True)
        )
        workload = Workload(input_length=prompt, output_length=new, concurrency=requests)
        cases = [BoxCase(model=arguments.model, workload=workload)]  # refuses before any rank is started
    measure = partial(measure_box, arguments.out, steps=steps, cases=cases, minutes=arguments.minutes, say=say)
    if not under_torchrun() and arguments.cluster is None:
        frames = measure(num_ranks=n, backend=arguments.backend)
        return 0 if set(frames) == set(steps) else 1
    with ranks(n, arguments.backend, arguments.cluster) as cluster:
        if cluster is None:
            return 0
        frames = measure(cluster=cluster)
    return 0 if set(frames) == set(steps) else 1
