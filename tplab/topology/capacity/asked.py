"""Does my model fit, and on what? Asked by name, answered by the memory model. Pure: no torch, no numpy."""

import os
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from tplab.checks import ArgumentError, check_count, check_number, check_one_of, check_text
from tplab.models.found.named import FoundModel, find_model
from tplab.models.precision import ITEMSIZE
from tplab.models.spec import ModelConfig
from tplab.topology.advisor.engine_memory import ENGINES, engine_memory
from tplab.topology.advisor.hardware_limits import check_engine, refused
from tplab.topology.advisor.memory import RankMemory, usable_bytes
from tplab.topology.advisor.workload import EnginePolicy
from tplab.topology.capacity.changes import changes_for
from tplab.topology.capacity.drawn import DrawnFit
from tplab.topology.capacity.fit import Fit
from tplab.topology.capacity.question import MOST_CONTEXT, MOST_GPUS, MOST_USERS, USUAL_NUMBERS, Question
from tplab.topology.machine.gpu_names import gpu_preset, known_gpu
from tplab.topology.machine.machine import Gpu, Machine
from tplab.topology.machine.presets import machine_preset, most_per_node
from tplab.topology.machine.spec_sheets import GPUS, OFFERED

USUAL_CONTEXT = 8192
"""Tokens of a request where nobody says: a long page and its answer."""
COMMON = ("t4", "l4", "rtx-3090", "rtx-4090", "rtx-5090", *OFFERED)
"""GPUs that ``offers`` looks at: what clouds rent, servers are sold with and desktops have."""

_MANY = re.compile(r"\s*(\d{1,4})\s*[x×*]\s*(\S.*)", re.IGNORECASE)
"""*8 x H100*: as answers write it, and people."""

Named = str | os.PathLike[str] | Mapping[str, Any] | ModelConfig | FoundModel


def fits(
    model: Named,
    gpu: "str | Gpu | Machine | None" = None,
    gpus: int | None = None,
    *,
    context: int | None = None,
    users: int = 1,
    precision: str | None = None,
    kv_precision: str | None = None,
    engine: str = "vllm",
    gpu_memory_utilization: float = 0.9,
) -> Fit:
    """Whether a model fits on GPUs: weights, the cache of so many users, and what the engine takes besides.

    Args:
        model: a preset's name in any spelling, the path of a ``config.json``, of a checkpoint's folder or of a
            safetensors file, ``owner/name`` of Hugging Face (its configuration and the headers of its weights are read,
            never the weights), the dict in a ``config.json``, or a ``ModelSpec``.
        gpu: a name of ``GPUS``, also with a number before it (``8 x H100``), of a machine, or figures of one's own; by
            default the GPUs of this machine.
        gpus: how many there are for one copy of the model, up to as many as the machine has if it is one, else 1.
        context: tokens of a user's request at its end, prompt and answer; by default 8,192, or all that the model takes
            if that is less.
        users: requests in flight.
        precision: of the weights, a key of ``ITEMSIZE``; by default the checkpoint's.
        kv_precision: of the cache; by default that of the activations.
        engine: ``vllm``, ``sglang``, ``trtllm`` or ``generic``.
        gpu_memory_utilization: what the engine is told that it may take.

    Returns:
        The answer: ``fit.fits``, ``fit.sentence``, ``fit.rank`` (bytes on the fullest GPU), ``fit.changes``.

    Raises:
        ValueError: a model or GPU that is not known, with the nearest names; numbers that no engine takes.
    """
    found = _found(model, precision, kv_precision)
    card, per_node, count, said = _gpus(gpu, gpus)
    check_one_of("engine", engine, ENGINES)
    check_engine(engine, card)
    check_number("gpu_memory_utilization", gpu_memory_utilization, above=0, most=1)
    check_count("users", users, least=1, most=MOST_USERS)
    asked: dict[str, Any] = {
        "gpu": card, "gpus": count, "context": context, "users": users, "precision": precision,
        "kv_precision": kv_precision, "engine": engine, "gpu_memory_utilization": gpu_memory_utilization,
    }  # fmt: skip
    longest = (found.spec.max_length if found.spec else None) or MOST_CONTEXT
    if context is None:
        context = min(USUAL_CONTEXT, longest)
    elif check_count("context", context, least=1) > longest:
        raise ArgumentError("context", context, f"must be at most {longest:,} tokens, the longest that the model takes")
    notes = [*said, *found.all_notes]
    if why := refused(engine, card):
        notes.append(why)
    again = partial(_again, found, asked)
    common: dict[str, Any] = {
        "found": found, "gpu": card, "gpus": count, "context": context, "users": users, "engine": engine,
        "gpu_memory_utilization": gpu_memory_utilization, "change": again, "find_changes": changes_for,
    }  # fmt: skip
    if found.spec is None:
        rank = _weights_alone(found, card, count, engine, gpu_memory_utilization)
        verdict = False if rank.free < 0 else None
        notes.append("weights taken as shared evenly by all GPUs; cache and activations are not counted")
        return DrawnFit(**common, tp=count, pp=1, fits=verdict, rank=rank, question=None, notes=tuple(notes))
    question = Question(
        spec=found.spec,
        weights=found.counted,
        gpu=card,
        per_node=per_node,
        gpus=count,
        context=context,
        users=users,
        engine=engine,
        gpu_memory_utilization=gpu_memory_utilization,
    )
    tp, pp = question.layout()
    if count > tp * pp:
        idle = count - tp * pp
        notes.append(f"{idle} of {count} GPUs {'is' if idle == 1 else 'are'} left over")
    if why := question.why_stages(tp, pp):
        notes.append(f"PP {pp}: {why}")
    rank = question.memory(tp, pp).fullest(users)
    return DrawnFit(**common, tp=tp, pp=pp, fits=rank.free >= 0, rank=rank, question=question, notes=tuple(notes))


def offers(model: Named, **settings: Any) -> tuple[Fit, ...]:
    """On what it fits: for each of ``COMMON`` the answer for the fewest of these GPUs, up to one node's, that hold it;
    for a whole node where those do not.

    Args:
        model: as in ``fits``.
        settings: the other arguments of ``fits``, but ``gpu`` and ``gpus``.

    Raises:
        ValueError: as ``fits``.
    """
    for name in ("gpu", "gpus"):
        if name in settings:
            raise ArgumentError(name, settings[name], "must be left out: every GPU is looked at")
    found = _found(model, settings.get("precision"), settings.get("kv_precision"))
    made = []
    for name in COMMON:
        if settings.get("engine") == "trtllm" and GPUS[name].is_amd:
            continue
        node = min(8, most_per_node(GPUS[name]))
        whole = fits(found, name, node, **settings)
        if whole.question is not None:
            least = whole.question.least_gpus(node)
        else:
            usual = [n for n in USUAL_NUMBERS if n < node]
            least = next((n for n in usual if whole.again(gpus=n).fits is not False), None)
        made.append(whole if least in (None, node) else whole.again(gpus=least))
    return tuple(made)


def _found(model: Named, precision: str | None, kv_precision: str | None) -> FoundModel:
    for name, given in (("precision", precision), ("kv_precision", kv_precision)):
        if given is not None:
            check_one_of(name, given, ITEMSIZE)
    try:
        return find_model(model, weight_precision=precision, kv_precision=kv_precision)
    except ArgumentError as error:
        if error.argument != "weight_precision":
            raise
        raise ArgumentError("precision", error.value, error.rule) from None


def _again(found: FoundModel, asked: Mapping[str, Any], **settings: Any) -> Fit:
    return fits(found, **{**asked, **settings})


def _gpus(gpu: "str | Gpu | Machine | None", gpus: int | None) -> tuple[Gpu, int, int, tuple[str, ...]]:
    """The GPU, how many of them may share a layer, how many there are, and what is to be said of them."""
    if isinstance(gpu, str):
        check_text("gpu", gpu)
        if (many := _MANY.fullmatch(gpu)) and known_gpu(many[2]):
            if gpus not in (None, int(many[1])):
                raise ArgumentError("gpu", gpu, f"must name one GPU where gpus={gpus} says how many")
            gpus, gpu = int(many[1]), many[2]
        if "=" not in gpu and not known_gpu(gpu):
            gpu = _machine_called(gpu)
    if gpu is None:
        gpu = Machine.detect()
        if gpu.gpu.kind == "cpu":
            raise ArgumentError("gpu", None, "must name one, such as h100: no NVIDIA GPU is seen on this machine")
    if isinstance(gpu, Machine):
        if gpus is not None and check_count("gpus", gpus, least=1) > gpu.num_gpus:
            raise ArgumentError("gpus", gpus, f"must be at most {gpu.num_gpus}, which {gpu.name} has")
        notes = gpu.notes if gpu.source != "preset" else ()
        return gpu.gpu, gpu.gpus_per_node, gpu.num_gpus if gpus is None else gpus, notes
    card = gpu_preset(gpu)
    return card, most_per_node(card), 1 if gpus is None else check_count("gpus", gpus, least=1, most=MOST_GPUS), ()


def _machine_called(name: str) -> "Gpu | Machine":
    try:
        return machine_preset(name)
    except ValueError:
        return gpu_preset(name)  # whose error names GPUs


def _weights_alone(found: FoundModel, gpu: Gpu, gpus: int, engine: str, share: float) -> RankMemory:
    """What a GPU holds of a model of which only the weights are known."""
    assert found.weights is not None
    takes = engine_memory(engine)
    held = {
        "weights": found.weights.served_bytes(ITEMSIZE["bf16"]) / gpus,
        "activations": 0.0,
        "workspace": takes.runtime_bytes + takes.collective_bytes(gpu, gpus, 1),
    }
    policy = EnginePolicy(name=engine, gpu_memory_utilization=share)
    usable = usable_bytes(gpu, policy, takes, **held)
    return RankMemory(stage=0, index=0, **held, kv=0.0, kv_per_token=0.0, usable=usable)
