"""The section of ``docs/accuracy.md`` on memory: what engines reported of their cache, and who says what fits.

Made from ``engine_logs.csv`` alone, so that the page cannot say anything that the model does not.
"""

from collections.abc import Callable, Iterator, Sequence

from tplab.shown import table
from tplab.topology.published.engine_logs import PARTS, EngineLog, Score, engine_logs

_FACTOR = 1.2
TIGHT = 0.1
"""Part of the GPU's memory below which a cache is what is left of nearly nothing."""
_RULES: dict[str, Callable[[EngineLog], bool]] = {
    "tplab": lambda log: log.started(log.promised),
    "bytes of the weights": EngineLog.by_weights,
    f"bytes of the weights x {_FACTOR}": lambda log: log.by_weights(_FACTOR),
}
_NAMES = {"vllm": "vLLM", "vllm-0.4": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}


def memory_section() -> Iterator[str]:
    """Its paragraphs and tables."""
    logs = engine_logs()
    held = Score.of([log for log in logs if log.part == "held back"])
    yield "## Memory: what engines reported of their cache"
    yield f"""{len(logs)} published starts of engines, each with its address: how many tokens the engine said its cache
holds, or that it found no room for one, beside what the memory model promises (`tplab fits` asks the same model).
Models, cards, settings and figures are in `tplab/topology/published/engine_logs.csv`, which also says what is assumed
where a log does not say its settings. **Off** is the promise over the report: above 0 promises too much. Of the rows
that were found after the constants were made, a third by the hash of their address was looked at only when nothing was
changed any more: {held.rows} of those had room, and the promise is {100 * held.typical:.1f} % off,
{100 * held.hopeful:.1f} % too much at most."""
    yield table(("rows", "with room", "off, typically", "bias", "most too much", "most too little"), _scores(logs))
    yield f"""*Typically* is the geometric mean of the factor by which it is off. Rows are *tight* where the cache is
less than {100 * TIGHT:.0f} % of the GPU's memory: there a gigabyte more or less is a third of the cache, and the
gigabytes say more. Versions of vLLM differ by up to 3 GiB on an H100 (samplers of 0.17 and later take less), so that
what is within 5 % of one is not within 5 % of the other. vLLM 0.6 and 0.7 with prompts in chunks did not try the
sampler when they started: they had more than is promised here. vLLM up to 0.4 kept the inputs of every all-reduce of a
step on GPUs that share a model, gigabytes: asked as an engine of its own, `vllm-0.4`, which promises nothing where all
of them do not fit, although part of them is enough on a slow card."""
    yield table(
        ("model", "GPU", "TP", "engine", "tokens reported", "promised", "off", "GiB per GPU", "weights, GiB", "part"),
        [_row(log) for log in sorted(logs, key=lambda log: (log.model, log.tp, log.gpu, log.tokens))],
    )
    yield "Weights are of the fullest GPU, by tplab and, where it was logged, as the engine loaded them."
    started, failed = ([log for log in logs if log.started(log.tokens) is did] for did in (True, False))
    yield "### Who says that it fits"
    yield f"""Of the same starts, {len(started)} took the context that was asked for and {len(failed)} did not. Beside
tplab two rules of thumb: the bytes of the parameters in their precision against the memory of all GPUs (what
`accelerate estimate-memory` lets one compare), and the same times {_FACTOR} (many calculators; after [Transformer Math
101](https://blog.eleuther.ai/transformer-math/))."""
    yield table(
        ("who", "of those that started, says fits", "of those that did not, says fits"),
        [(who, *(f"{sum(map(fits, of))} of {len(of)}" for of in (started, failed))) for who, fits in _RULES.items()],
    )
    yield "The starts that failed:"
    yield table(
        ("model", "GPUs", "engine", "context", "tokens that it had", *_RULES),
        [(*_failed(log), *("fits" if fits(log) else "no" for fits in _RULES.values())) for log in failed],
    )


def _scores(logs: Sequence[EngineLog]) -> Iterator[tuple[str, ...]]:
    groups = {said: [log for log in logs if log.part == part] for part, said in PARTS.items()}
    groups |= {
        "all": list(logs),
        "one GPU": [log for log in logs if log.tp == 1],
        "several GPUs": [log for log in logs if log.tp > 1],
        "all but tight ones": [log for log in logs if not tight(log)],
    }
    for said, group in groups.items():
        score = Score.of(group)
        signed = (f"{100 * part:+.1f} %" for part in (score.bias, score.hopeful, score.careful))
        yield f"{said}: {len(group)}", str(score.rows), f"{100 * score.typical:.1f} %", *signed


def tight(log: EngineLog) -> bool:
    """Whether the cache is next to nothing beside the GPU's memory."""
    return log.tokens * log.rank.kv_per_token < TIGHT * log.memory.gpu.memory_bytes


def _row(log: EngineLog) -> tuple[str, ...]:
    weights = f"{log.rank.weights / 2**30:.2f}" + (f" / {log.weights_GiB:.2f}" if log.weights_GiB else "")
    off = f"{100 * log.error:+.1f} %" if log.tokens else ""
    cache = f", cache {log.cache}" if log.cache else ""
    tokens = f"{log.tokens:,}", f"{log.promised:,}", off, f"{log.wrong_GiB:+.2f}"
    return f"{log.model} in {log.weights}{cache}", log.gpu, str(log.tp), _source(log), *tokens, weights, log.part


def _failed(log: EngineLog) -> tuple[str, ...]:
    asked = "" if log.max_len is None else f"{log.max_len:,}"
    return f"{log.model} in {log.weights}", f"{log.tp} x {log.gpu}", _source(log), asked, f"{log.tokens:,}"


def _source(log: EngineLog) -> str:
    return f"[{' '.join(filter(None, (_NAMES[log.engine], log.version)))}]({log.link})"
