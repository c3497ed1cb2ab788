"""What to change so that a model fits: each by itself enough, and tried before it is named."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from tplab.models.precision import ITEMSIZE
from tplab.topology.advisor.launch_commands import CACHE_WORDS, WEIGHT_COMMENTS, WEIGHT_WORDS
from tplab.topology.capacity.fit import Change, Fit, on_gpus
from tplab.topology.capacity.question import USUAL_NUMBERS
from tplab.topology.machine.machine import Gpu
from tplab.topology.machine.names import name_of
from tplab.topology.machine.spec_sheets import GPUS, OFFERED

FULLEST = 0.95
"""Largest part of a GPU's memory that an engine is told to take: the rest is for CUDA graphs and other processes."""
_LEAST_CONTEXT = 512
"""Shortest context in tokens that is worth naming, unless shorter was asked for."""
_LOADS_ALL = {"vllm": "vLLM up to 0.14 loads", "sglang": "where SGLang loads"}
"""Engine -> when all weights are on the GPU as the checkpoint has them, before they are made smaller. vLLM 0.15 does so
layer by layer (github.com/vllm-project/vllm, pull requests 31914 and 32773)."""
_FLAGS: Mapping[str, Mapping[str, str]] = {
    "vllm": {
        "context": "--max-model-len",
        "users": "--max-num-seqs",
        "utilization": "--gpu-memory-utilization",
        "tp": "--tensor-parallel-size",
        "pp": "--pipeline-parallel-size",
    },
    "sglang": {
        "context": "--context-length",
        "users": "--max-running-requests",
        "utilization": "--mem-fraction-static",
        "tp": "--tp-size",
        "pp": "--pp-size",
    },
    "trtllm": {
        "context": "--max_seq_len",
        "users": "--max_batch_size",
        "utilization": "--kv_cache_free_gpu_memory_fraction",
        "tp": "--tp_size",
        "pp": "--pp_size",
    },
}
"""Engine -> what its command calls a setting (see ``advisor.launch_commands``)."""


def changes_for(fit: Fit) -> tuple[Change, ...]:
    """What to change so that it fits, the cheapest first: of the settings, of precision, of GPUs."""
    settings = [] if fit.question is None else list(_of_settings(fit))
    weights = [] if fit.question is None else list(_of_weights(fit))
    gpus = list(_of_gpus(fit))
    if fit.question is not None and not weights and not any(each.kind == "gpus" for each in gpus):
        gpus += _of_both(fit)
    return (*settings, *weights, *gpus)


def _of_settings(fit: Fit) -> Iterator[Change]:
    assert fit.question is not None
    longest, most = fit.max_context or 0, fit.max_users or 0
    if min(fit.context, _LEAST_CONTEXT) <= longest < fit.context:
        words = (
            f"with {'' if fit.users == 1 else f'{fit.users:,} users at '}{longest:,} tokens{' each' * (fit.users > 1)}"
        )
        yield _change(fit, "context", words, longest, context=longest)
    if 0 < most < fit.users:
        words = f"with {most:,} user{'s' * (most > 1)} at a time"
        yield _change(fit, "users", words, most, users=most)
    if fit.gpu_memory_utilization < FULLEST and fit.engine in _FLAGS:
        change = _change(
            fit, "utilization", f"with {100 * FULLEST:.0f} % of the memory", FULLEST, gpu_memory_utilization=FULLEST
        )
        yield from _that_helps(fit, change)
    spec = fit.question.spec
    if ITEMSIZE[spec.kv_precision] > 1 and fit.gpu.fp8_TFLOPS:
        words = " ".join(CACHE_WORDS.get((fit.engine, "fp8"), ()))
        change = Change(kind="kv", words="with its cache in fp8", flag=words, settings={"kv_precision": "fp8"})
        yield from _that_helps(fit, change)


def _of_weights(fit: Fit) -> Iterator[Change]:
    """The first of the smaller precisions that is enough."""
    for precision in _smaller(fit, fit.gpu):
        flag, needs = _weights_said(fit, precision, fit.rank.weights)
        change = Change(
            kind="weights", words=f"in {precision}", flag=flag, settings={"precision": precision}, needs=needs
        )
        if found := list(_that_helps(fit, change)):
            yield from found
            return


def _of_gpus(fit: Fit) -> Iterator[Change]:
    """The fewest GPUs more; and of the GPUs on offer the smallest that is enough, more of them if it takes that."""
    if change := _more_gpus(fit, {}):
        yield change
    larger = [GPUS[name] for name in OFFERED if GPUS[name].memory_GB > fit.gpu.memory_GB]
    larger.sort(key=lambda each: each.memory_GB)
    for gpus in (fit.gpus, *(n for n in (2, 4, 8) if n > fit.gpus)):
        for gpu in larger:
            words = f"on {on_gpus(gpu, 1, 1)}" if gpus == 1 else f"on {gpus} × {name_of(gpu.name)}"
            change = Change(kind="gpu", words=words, flag="", settings={"gpu": gpu.name, "gpus": gpus})
            if found := list(_that_helps(fit, change)):
                yield from found
                return


def _of_both(fit: Fit) -> Iterator[Change]:
    """A smaller precision, and the fewest GPUs that hold it so."""
    for precision in _smaller(fit, fit.gpu):
        if change := _more_gpus(fit, {"precision": precision}):
            flag, needs = _weights_said(fit, precision, fit.again(gpus=change.settings["gpus"]).rank.weights)
            yield replace(
                change,
                kind="both",
                words=f"in {precision} {change.words}",
                flag=" ".join(filter(None, (flag, change.flag))),
                needs="; ".join(filter(None, (needs, change.needs))),
            )
            return


def _weights_said(fit: Fit, precision: str, loaded: float) -> tuple[str, str]:
    """The engine's words for weights in a precision, and what they need.

    Args:
        fit: the answer that is to be changed.
        precision: the smaller one.
        loaded: bytes on a GPU of the weights as the checkpoint has them.
    """
    flag = " ".join(WEIGHT_WORDS.get((fit.engine, precision), ()))
    if not flag or loaded <= fit.rank.usable:
        return flag, "" if flag else WEIGHT_COMMENTS[precision]
    when = _LOADS_ALL[fit.engine]
    return flag, f"{when} the weights as they are first, and needs a checkpoint already in {precision}"


def _more_gpus(fit: Fit, settings: Mapping[str, Any]) -> Change | None:
    there = fit.again(**settings)
    if there.question is not None:
        count = there.question.least_gpus()
    else:
        count = next((n for n in USUAL_NUMBERS if there.again(gpus=n).fits is not False), None)
    if count is None or count <= fit.gpus:
        return None
    if there.question is None:
        return Change(kind="gpus", words=f"on {count} GPUs", flag="", settings={"gpus": count})
    then = there.again(gpus=count)
    flags = _FLAGS.get(fit.engine, {})
    words = [f"{flags[name]} {degree}" for name, degree in (("tp", then.tp), ("pp", then.pp)) if flags and degree > 1]
    degrees = " × ".join(f"{name} {degree}" for name, degree in (("TP", then.tp), ("PP", then.pp)) if degree > 1)
    return Change(
        kind="gpus",
        words=f"on {then.tp * then.pp} GPUs ({degrees})",
        flag=" ".join(words),
        settings={**settings, "gpus": count},
        needs=there.question.why_stages(then.tp, then.pp),
    )


def _smaller(fit: Fit, gpu: Gpu) -> list[str]:
    """Precisions of less bits for which engines have kernels on such a GPU, the most exact first: fp8 weights from
    Ampere on, int4 (AWQ, GPTQ) from Turing on (docs.vllm.ai, features/quantization/supported_hardware)."""
    assert fit.question is not None
    capability = gpu.made.capability if gpu.made else None
    able = {"fp8": (8, 0), "int4": (7, 5)}
    held = ITEMSIZE[fit.question.spec.weight_precision]
    return [
        name for name, least in able.items() if ITEMSIZE[name] < held and (capability is None or capability >= least)
    ]


def _that_helps(fit: Fit, change: Change) -> Iterator[Change]:
    """The change, if it is enough: also where it is only the weights that are known."""
    try:
        helps = fit.again(**change.settings).fits
    except ValueError:  # a precision that its checkpoint cannot be cut in
        return
    if helps is True or (helps is None and fit.question is None):
        yield change


def _change(fit: Fit, kind: str, words: str, value: float, **settings: Any) -> Change:
    flag = _FLAGS.get(fit.engine, {}).get(kind)
    return Change(kind=kind, words=words, flag=f"{flag} {value}" if flag else "", settings=settings)
