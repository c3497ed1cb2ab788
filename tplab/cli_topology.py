"""The subcommands ``tplab calibrate``, ``advise``, ``validate`` and ``box``: thin, call ``tplab.topology``."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from tplab.cluster import Cluster, Report

if TYPE_CHECKING:
    from tplab.topology.calibration import Calibration
    from tplab.topology.machine import Machine
    from tplab.topology.model_spec import ModelSpec
    from tplab.topology.workload import EnginePolicy


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the four to ``tplab``'s."""
    _add_calibrate(commands)
    _add_advise(commands)
    _add_validate(commands)
    _add_box(commands)


def _add_calibrate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "calibrate",
        help="measure this machine's links and rates for the advisor; write a JSON file",
        description="Measure all-reduces, messages, matmuls and the engine's overheads on local ranks, or, started by "
        "torchrun (torchrun --nproc-per-node 8 -m tplab.cli calibrate ...), on the ranks it made. About half a minute.",
    )
    parser.add_argument("--ranks", type=int, default=2, help="how many ranks to start (default 2; not under torchrun)")
    parser.add_argument("--backend", default="auto", help="auto, gloo or nccl")
    parser.add_argument("--rounds", type=int, default=4, help="more of them forgive busier machines (default 4)")
    parser.add_argument("--latency-us", type=float, help="with --bandwidth-GBps: over an emulated link (gloo)")
    parser.add_argument("--bandwidth-GBps", dest="bandwidth_GBps", type=float, help="of the emulated link")
    parser.add_argument("--name", help="what to call the machine (default: ranks and device)")
    parser.add_argument("--out", default="calibration.json", help="the file to write (default calibration.json)")
    parser.set_defaults(call=_calibrate)


def _add_advise(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "advise",
        help="rank tensor and pipeline layouts of a model on a machine",
        description="Predict every layout that fits and rank them: time per token, throughput, what binds, and the "
        "commands that start the best one.",
    )
    _add_what(parser)
    parser.add_argument("--input", type=int, default=1024, help="tokens of a prompt (default 1024)")
    parser.add_argument("--output", type=int, default=256, help="tokens generated (default 256)")
    parser.add_argument("--concurrency", type=int, help="requests in flight (default 16)")
    parser.add_argument("--rate", type=float, help="requests per second, instead of --concurrency")
    parser.add_argument("--ttft-limit-ms", type=float, help="longest wait for the first token")
    parser.add_argument("--tpot-limit-ms", type=float, help="longest time per token after it")
    parser.add_argument("--most", type=int, default=12, help="rows of the table to print; 0 for all (default 12)")
    parser.add_argument("--csv", help="also write the whole table here")
    parser.set_defaults(call=_advise)


def _add_validate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "validate",
        help="the advisor's own error: on published tables, or beside a vllm bench serve result",
        description="With a folder of published tables: the scoreboard of the model's error and of its choices. With "
        "result files of vllm bench serve --save-result: that server beside the prediction; give --model, --machine "
        "and --tp.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a folder of tables, or vLLM result files")
    parser.add_argument("--by", default="model,gpu,engine,tp,pp", help="columns to group by (folder)")
    parser.add_argument("--no-refit", action="store_true", help="do not fit again without each GPU, engine, length")
    parser.add_argument("--tp", type=int, help="GPUs of the server that share a layer (vLLM result)")
    parser.add_argument("--pp", type=int, help="its pipeline stages (vLLM result)")
    _add_what(parser, required=False)
    parser.add_argument("--csv", help="also write the table here")
    parser.set_defaults(call=_validate)


def _add_box(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "box",
        help="measure everything on a machine with several GPUs, and run models in every layout",
        description="Links, all-reduces, layers, a pipeline, and whole models in every layout of all ranks, predicted "
        "from the spec sheet and from a calibration beside what was measured. A file per step in the folder.",
    )
    parser.add_argument("out", metavar="FOLDER", help="where the files go")
    parser.add_argument("--ranks", type=int, help="how many (default: one per GPU, 2 without)")
    parser.add_argument("--backend", default="auto", help="auto, gloo or nccl")
    parser.add_argument("--steps", help="comma-separated: links, sweep, layers, pipeline, layouts (default: all)")
    parser.add_argument("--model", help="run this one instead: config.json, its folder, or a preset")
    parser.add_argument("--input", type=int, help="with --model: tokens of a prompt (default 1024)")
    parser.add_argument("--output", type=int, help="with --model: tokens generated (default 32)")
    parser.add_argument("--concurrency", type=int, help="with --model: requests (default 16)")
    parser.set_defaults(call=_box)


def _add_what(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("--model", required=required, help="config.json, its folder, or a preset such as llama-3.1-70b")
    parser.add_argument("--weights", help="precision of the weights: bf16, fp8, int8, int4, ...")
    parser.add_argument("--kv", help="precision of the cache")
    parser.add_argument("--machine", help="preset such as h200 (default: this machine)")
    parser.add_argument("--gpus", type=int, help="GPUs per node, with --machine")
    parser.add_argument("--nodes", type=int, default=1, help="with --machine or --topo (default 1)")
    parser.add_argument("--topo", help="file with what nvidia-smi topo -m prints, instead of --machine")
    parser.add_argument("--gpu", help="which GPUs those are, with --topo")
    parser.add_argument("--calibration", help="file written by tplab calibrate; without --machine also the machine")
    parser.add_argument("--engine", default=None, help="vllm, sglang, trtllm or generic")
    parser.add_argument("--eager", action="store_true", help="the engine runs without CUDA graphs")


def _calibrate(arguments: argparse.Namespace) -> int:
    from tplab.cluster.torchrun import attached, gather_reports, under_torchrun
    from tplab.collectives.emulated_link import EmulatedLink
    from tplab.topology.calibrate_plan import PHASES, plan_calibration
    from tplab.topology.calibrated import calibration_of
    from tplab.topology.calibrating import calibrate_on_rank, submit_calibrate

    out = _writable("--out", arguments.out)
    if (arguments.latency_us is None) != (arguments.bandwidth_GBps is None):
        raise ValueError("--latency-us and --bandwidth-GBps must be given together, or neither")
    links = None
    if arguments.latency_us is not None:
        links = EmulatedLink(latency_us=arguments.latency_us, bandwidth_GBps=arguments.bandwidth_GBps)
    if under_torchrun():
        with attached(arguments.backend) as (rank, provenance, reports):
            plan = plan_calibration(
                rank.world_size,
                provenance.backend,
                num_cores=provenance.num_cores,
                shares_gpus=provenance.shares_gpus,
                links=links,
                rounds=arguments.rounds,
            )
            calibrate_on_rank(rank, plan)
            everything = gather_reports(rank, reports)
        if rank.index == 0:
            _say_calibration(calibration_of(plan, everything, provenance, machine=arguments.name), out)
        return 0
    with Cluster(arguments.ranks, arguments.backend) as cluster, tqdm(total=len(PHASES), disable=None) as bar:

        def on_report(report: Report) -> None:
            if report.rank == 0 and "phase" in report.fields:
                bar.set_description(report.fields["phase"])
                bar.update(report.fields["done"] - bar.n)

        run = submit_calibrate(
            cluster,
            links=links,
            machine=arguments.name,
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
        raise ValueError(f"--out {out} cannot be written: {error}") from error
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


def _advise(arguments: argparse.Namespace) -> int:
    from tplab.topology.advisor import advise
    from tplab.topology.workload import Workload

    csv = _writable("--csv", arguments.csv) if arguments.csv else None
    if arguments.concurrency is not None and arguments.rate is not None:
        raise ValueError("--concurrency and --rate must not both be given")
    model, machine, calibration = _what(arguments)
    workload = Workload(
        input_length=arguments.input,
        output_length=arguments.output,
        concurrency=None if arguments.rate is not None else (arguments.concurrency or 16),
        request_rate=arguments.rate,
        ttft_limit_ms=arguments.ttft_limit_ms,
        tpot_limit_ms=arguments.tpot_limit_ms,
        engine=_engine(arguments, "generic"),
    )
    advice = advise(model, machine, workload, calibration=calibration)
    table = advice.table()
    shown = table[table["rank"] > 0]
    print(advice)
    columns = ["rank", "layout", "tpot_ms", "ttft_ms", "output_tokens_per_s", "free_GB", "verdict"]
    rows = shown if arguments.most == 0 else shown.head(arguments.most)
    print()
    print(rows[columns].to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    rejected = len(table) - len(shown)
    if rejected or len(rows) < len(shown):
        print(f"({len(shown) - len(rows)} more that fit, {rejected} that cannot be: --most 0 and --csv show them)")
    print()
    for engine, commands in advice.commands.items():
        print(f"{engine}:")
        for command in commands:
            print(f"  {command}")
    for note in advice.notes:
        print(f"Note: {note}")
    if csv is not None:
        table.to_csv(csv, index=False)
        print(f"Wrote {csv} ({len(table)} rows).")
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    csv = _writable("--csv", arguments.csv) if arguments.csv else None
    paths = [Path(path) for path in arguments.paths]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ValueError(f"there is no file or folder {missing[0]}")
    folders = [path for path in paths if path.is_dir()]
    if folders and len(paths) > 1:
        raise ValueError(f"give one folder, or files only; got {len(paths)} paths of which {len(folders)} are folders")
    frame = _scoreboard(arguments, folders[0]) if folders else _beside_server(arguments, paths)
    if csv is not None:
        frame.to_csv(csv, index=False)
        print(f"Wrote {csv} ({len(frame)} rows).")
    return 0


def _scoreboard(arguments: argparse.Namespace, folder: Path) -> Any:
    from tplab.topology.scoreboard import LEFT_OUT, layout_choice, predictions, score
    from tplab.topology.tables import read_folder

    rows = predictions(read_folder(folder), leave_out=() if arguments.no_refit else LEFT_OUT)
    frame = score(rows, arguments.by.split(","))
    print(_text(frame))
    choice = layout_choice(rows)
    if not choice.empty:
        print("\nWhat choosing by prediction costs, beside the rules that need none:")
        print(_text(choice))
    return frame


def _beside_server(arguments: argparse.Namespace, paths: list[Path]) -> Any:
    from tplab.topology.vllm_bench import beside_vllm

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
    print(_text(frame[[*columns, "output_tokens_per_s_error_pct", "within"]]))
    for run, note in zip(frame["run"], frame["note"], strict=True):
        if note:
            print(f"{run}: {note}")
    return frame


def _what(arguments: argparse.Namespace) -> "tuple[ModelSpec, Machine, Calibration | None]":
    """Model, machine and calibration that the arguments name."""
    from tplab.topology.calibration import Calibration
    from tplab.topology.machine import Machine
    from tplab.topology.model_spec import ModelSpec
    from tplab.topology.static_batch import machine_of

    model = ModelSpec.from_config(arguments.model, weight_precision=arguments.weights, kv_precision=arguments.kv)
    if arguments.machine and arguments.topo:
        raise ValueError("--machine and --topo must not both be given")
    if arguments.gpus is not None and not arguments.machine:
        raise ValueError("--gpus goes with --machine: which GPUs are they?")
    calibration = None
    if arguments.calibration:
        try:
            calibration = Calibration.load(arguments.calibration)
        except OSError as error:
            raise ValueError(f"--calibration {arguments.calibration} cannot be read: {error}") from error
    if arguments.machine:
        machine = Machine.preset(arguments.machine, gpus=arguments.gpus, nodes=arguments.nodes)
    elif arguments.topo:
        try:
            text = Path(arguments.topo).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ValueError(f"--topo {arguments.topo} cannot be read: {error}") from error
        machine = Machine.from_topo(text, gpu=arguments.gpu, nodes=arguments.nodes)
    else:
        machine = machine_of(calibration) if calibration is not None else Machine.detect()
    if calibration is not None and calibration.num_ranks != machine.num_gpus:
        raise ValueError(
            f"--calibration is of {calibration.num_ranks} ranks, {machine.name} has {machine.num_gpus} GPUs: calibrate "
            f"with --ranks {machine.num_gpus}"
        )
    return model, machine, calibration


def _engine(arguments: argparse.Namespace, usual: str) -> "EnginePolicy":
    from tplab.topology.workload import EnginePolicy

    return EnginePolicy(name=arguments.engine or usual, cuda_graphs=not arguments.eager)


def _text(frame: Any) -> str:
    return str(frame.to_string(index=False, float_format=lambda value: f"{value:.4g}"))


def _writable(argument: str, path: str) -> Path:
    """Checked before anything is measured. Raises ``ValueError`` naming the argument."""
    out = Path(path)
    if not out.parent.is_dir():
        raise ValueError(f"{argument} must be in an existing folder; there is no {out.parent}")
    if out.is_dir():
        raise ValueError(f"{argument} must be a file; {out} is a folder")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ValueError(f"{argument} {out} cannot be written: no permission")
    return out


def _box(arguments: argparse.Namespace) -> int:
    from tplab.cluster.backends import num_gpus
    from tplab.topology.box import STEPS, measure_box
    from tplab.topology.box_layouts import Case
    from tplab.topology.workload import Workload

    ranks = max(2, num_gpus()) if arguments.ranks is None else arguments.ranks
    steps = [step.strip() for step in arguments.steps.split(",")] if arguments.steps else STEPS
    asked = {"--input": arguments.input, "--output": arguments.output, "--concurrency": arguments.concurrency}
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
        cases = [Case(model=arguments.model, workload=workload)]  # refuses before any rank is started
    frames = measure_box(arguments.out, num_ranks=ranks, backend=arguments.backend, steps=steps, cases=cases)
    return 0 if set(frames) == set(steps) else 1
