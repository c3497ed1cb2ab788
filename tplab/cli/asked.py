"""What is asked about, on the command line: a model, a machine, the engine and its settings; for ``advise`` and
``validate``."""

import argparse
import sys
import textwrap
from typing import TYPE_CHECKING

from tplab.cli.words import width
from tplab.files import MAX_BYTES, read_text, text_of

if TYPE_CHECKING:
    from tplab.models.spec import ModelSpec
    from tplab.topology.advisor.calibration import Calibration
    from tplab.topology.advisor.workload import EnginePolicy
    from tplab.topology.machine.machine import Machine

_NO_SERVER = ("fastertransformer", "lab")


def engines() -> str:
    """Names of the engines that serve, for a help."""
    from tplab.topology.advisor.constants import DEFAULT

    return ", ".join(sorted(set(DEFAULT.engines) - set(_NO_SERVER)))


def with_presets(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    """Add a subcommand whose help ends with the names that may be given, since nobody can guess them."""
    from tplab.models.presets import MODELS
    from tplab.topology.machine.gpu_names import OWN
    from tplab.topology.machine.presets import INSTANCES, MACHINES
    from tplab.topology.machine.spec_sheets import GPUS

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


def add_what(parser: argparse.ArgumentParser, engine: str, required: bool = True) -> None:
    """Add the options that ``what`` and ``engine_of`` read; ``engine`` is what the help says of its default."""
    from tplab.models.precision import ITEMSIZE
    from tplab.topology.advisor.workload import PREFILL_POLICIES

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
    parser.add_argument(
        "--gpu", help="which GPUs those are, with --topo: preset (below; default: as the text names them, else a guess)"
    )
    parser.add_argument("--calibration", help="file written by tplab calibrate; without --machine also the machine")
    parser.add_argument("--engine", help=f"{engines()} (default {engine})")
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


def what(arguments: argparse.Namespace) -> "tuple[ModelSpec, Machine, Calibration | None]":
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
        raise ValueError("--gpu goes with --topo, whose table does not say what GPUs it lists; else give --machine")
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
            f"with --ranks {machine.num_gpus}, or ask about as many GPUs as were measured (--gpus, --nodes)"
        )
    return model, machine, calibration


def _topo(path: str) -> str:
    if path == "-":
        return text_of(sys.stdin.buffer.read(MAX_BYTES), "--topo -", errors="replace")
    try:
        return read_text(path, errors="replace")
    except OSError as error:
        raise ValueError(f"--topo {path} cannot be read: {error.strerror}") from error


def engine_of(arguments: argparse.Namespace, usual: str) -> "EnginePolicy":
    """The engine and its settings that the arguments name; the engine called ``usual`` if they name none."""
    from tplab.topology.advisor.workload import EnginePolicy

    if arguments.acceptance is not None and not arguments.speculative_tokens:
        raise ValueError("--acceptance goes with --speculative-tokens: of how many is it the share?")
    names = ("max_num_seqs", "prefill_policy", "chunked_prefill", "speculative_tokens", "acceptance")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if given.get("chunked_prefill") == 0:
        given["chunked_prefill"] = None
    return EnginePolicy(name=arguments.engine or usual, cuda_graphs=not arguments.eager, **given)
