"""The subcommand ``tplab fits``: thin, calls ``tplab.topology.capacity``."""

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from tplab.cli import words
from tplab.shown import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tplab.topology.capacity.fit import Fit

_UNKNOWN = 3
_BLOCKS = "█▓▒·▕▏▲×"
_DESCRIPTION = (
    "Say whether a model fits on GPUs, with how many users, and what to change if it does not; without --gpu on the "
    "GPUs of this machine, or where there are none on what it does fit. Of a Hugging Face id the configuration and the "
    "headers of the weights are read, never the weights (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and the local cache "
    "count). Exit status 0 if it fits (without a GPU: anywhere), 1 if it does not, 2 for what cannot be asked, 3 where "
    "only the weights are known, and fit."
)
_EXAMPLES = """examples:
  tplab fits llama-3.1-70b                                 on what does it fit?
  tplab fits llama-3.1-70b --gpu h100 --gpus 2 --users 12
  tplab fits Qwen/Qwen3-32B-AWQ --gpu rtx-4090             an id of Hugging Face
  tplab fits ~/models/mine --gpu l40s --context 32768      a folder with config.json
  tplab fits config.json --gpu a100 --precision fp8 && ... in a script"""


def add_fits(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``fits`` to ``tplab``'s commands."""
    parser = commands.add_parser(
        "fits",
        help="does a model fit, and on what? One sentence, a bar, what to change",
        description=words.wrapped(_DESCRIPTION, ""),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="config.json, a checkpoint's folder, a safetensors file, a preset, or OWNER/NAME"
    )
    parser.add_argument("--gpu", help="which GPU, or machine: h100, rtx-4090, g5.12xlarge, ... (tplab advise --help)")
    parser.add_argument("--gpus", type=int, help="how many for one copy of the model (default 1, or the machine's)")
    parser.add_argument("--context", type=int, help="tokens of a request, prompt and answer (default 8192)")
    parser.add_argument("--users", type=int, default=1, help="requests in flight (default 1)")
    parser.add_argument("--precision", help="of the weights: bf16, fp8, int4, ... (default: the checkpoint's)")
    parser.add_argument("--kv", dest="kv_precision", help="of the cache, of the same (default: as activations)")
    parser.add_argument("--engine", default="vllm", help="vllm (default), sglang, trtllm or generic")
    parser.add_argument(
        "--gpu-memory-utilization", type=float, default=0.9, help="what the engine is told it may take (default 0.9)"
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.set_defaults(call=_fits)


def _fits(arguments: argparse.Namespace) -> int:
    from tplab.topology.capacity.asked import fits, offers

    names = ("context", "users", "precision", "kv_precision", "engine", "gpu_memory_utilization")
    settings = {name: getattr(arguments, name) for name in names}
    machine = arguments.gpu if arguments.gpu is not None else _machine_here()
    if machine is None:
        if arguments.gpus is not None:
            raise ValueError("--gpus goes with --gpu: which GPUs are they? No NVIDIA GPU is seen on this machine")
        answers = offers(arguments.model, **settings)
        _show_offers(answers, as_json=arguments.json)
        verdicts = {answer.fits for answer in answers}
        return 0 if True in verdicts else _UNKNOWN if None in verdicts else 1
    answer = fits(arguments.model, machine, arguments.gpus, **settings)
    if arguments.json:
        print(json.dumps(answer.as_dict(), indent=2))
    else:
        _show(answer)
    return _UNKNOWN if answer.fits is None else int(not answer.fits)


def _show(answer: "Fit") -> None:
    from tplab.topology.capacity.drawn import bar_text, changes_text

    blocks = _shows(_BLOCKS)
    _say(words.wrapped(answer.sentence, ""), blocks)
    _say(f"\n{bar_text(answer, words.width(), blocks=blocks, colours=_coloured())}", blocks)
    if changes := changes_text(answer):
        _say(f"\n{changes}", blocks)
    _say_notes(answer.notes, blocks)


def _show_offers(answers: "Sequence[Fit]", *, as_json: bool) -> None:
    from tplab.topology.capacity.drawn import offers_text

    if as_json:
        rows: list[dict[str, Any]] = [answer.as_dict() for answer in answers]
        print(json.dumps(rows, indent=2))
        return
    first, blocks = answers[0], _shows(_BLOCKS)
    precision = "" if first.found.spec is None else f" in {first.found.spec.weight_precision}"
    _say(
        words.wrapped(
            f"{first.model}{precision}, {counted(first.users, 'user')} at {first.context:,} tokens, with "
            f"{first.engine_name}: the fewest GPUs of each kind that hold it, and how many such users, or what "
            f"context, they hold.",
            "",
        ),
        blocks,
    )
    _say(f"\n{offers_text(answers, blocks=blocks)}", blocks)
    _say_notes(dict.fromkeys(note for answer in answers for note in answer.found.all_notes), blocks)
    if first.found.unknown:
        _say(words.wrapped(f"Only the weights are known: {first.found.unknown}.", ""), blocks)


def _say_notes(notes: "Sequence[str] | dict[str, None]", blocks: bool) -> None:
    for note in notes:
        _say(words.wrapped(f"note: {note}"), blocks)


def _say(text: str, blocks: bool) -> None:
    """Print it, without characters that the output has no bytes for."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"  # None: the output was closed
    print(text if blocks else text.replace("×", "x").encode(encoding, "replace").decode(encoding))


def _shows(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _coloured() -> bool:
    return (
        sys.stdout is not None
        and sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
    )


def _machine_here() -> Any:
    """The GPUs of this machine; None if there are none that are seen."""
    from importlib.util import find_spec

    if find_spec("pynvml") is None:
        return None
    from tplab.topology.machine.machine import Machine

    found = Machine.detect()
    return None if found.gpu.kind == "cpu" else found
