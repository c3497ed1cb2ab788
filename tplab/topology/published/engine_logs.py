"""What engines said of their memory when they started, beside what the memory model promises (``engine_logs.csv``).

One row of the table is one start of an engine, as it was published. The same rows are a test of the model and a section
of ``docs/accuracy.md``: neither holds a figure of its own. Two rules of thumb stand beside the model, since most people
ask them first. Pure.
"""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from tplab.models.precision import ITEMSIZE
from tplab.models.shards import Layout
from tplab.models.spec import ModelSpec
from tplab.topology.advisor.memory import LayoutMemory, RankMemory
from tplab.topology.advisor.workload import EnginePolicy, Workload
from tplab.topology.machine.spec_sheets import GPUS

_GIB = 2.0**30
PARTS: Mapping[str, str] = {
    "derived": "constants rest on it",
    "checked": "compared with when they were made",
    "new": "found later",
    "held back": "found later, held back",
}
"""Parts of the table -> what the page calls them. Those held back were looked at once, after all mending."""


def _sizes(hidden: int, layers: int, heads: int, kv: int, inner: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "qwen2", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "intermediate_size": inner, "vocab_size": vocab, "torch_dtype": "bfloat16",
        "max_position_embeddings": 32768,
    } | more  # fmt: skip


_TIED = {"tie_word_embeddings": True}
_SIZES: Mapping[str, Mapping[str, Any]] = {
    "qwen2.5-0.5b": _sizes(896, 24, 14, 2, 4864, 151936, **_TIED),
    "qwen2.5-1.5b": _sizes(1536, 28, 12, 2, 8960, 151936, **_TIED),
    "qwen2.5-14b": _sizes(5120, 48, 40, 8, 13824, 152064, max_position_embeddings=131072),
    "qwen2.5-32b": _sizes(5120, 64, 40, 8, 27648, 152064),
    "qwen1.5-7b": _sizes(4096, 32, 32, 32, 11008, 151936),
    "qwen1.5-14b": _sizes(5120, 40, 40, 40, 13696, 152064),
    "qwen-72b": _sizes(8192, 80, 64, 64, 24576, 152064),
    "codellama-7b": _sizes(4096, 32, 32, 32, 11008, 32016, model_type="llama", max_position_embeddings=16384),
    "deepseek-coder-6.7b": _sizes(4096, 32, 32, 32, 11008, 32256, model_type="llama", max_position_embeddings=16384),
    "deepseek-coder-33b": _sizes(7168, 62, 56, 8, 19200, 32256, model_type="llama", max_position_embeddings=16384),
}
"""Models of the table that tplab does not know by name: the ``config.json`` of each on Hugging Face. Qwen-72B in the
keys of its successor."""

_COLUMNS: Mapping[str, Callable[[str], object]] = {
    **dict.fromkeys(("tp", "pp", "chunk", "rows", "max_len", "tokens"), int),
    **dict.fromkeys(("cuda_GiB", "share", "weights_GiB"), float),
    "cache": str,
}
"""Columns of numbers, and those that may be empty -> how they are read."""


@dataclass(frozen=True, kw_only=True)
class EngineLog:
    """One start of an engine, as published; fields as in the head of ``engine_logs.csv``."""

    link: str
    """Address of who published it."""
    engine: str
    version: str
    date: str
    """Engine, its version as far as it is said, and the day of the log."""
    model: str
    weights: str
    cache: str | None
    """Model, precision of its weights and of its cache; None: as it is computed."""
    gpu: str
    cuda_GiB: float
    """Card and its memory as CUDA shows it."""
    tp: int
    pp: int
    share: float
    """``gpu_memory_utilization``, or what corresponds to it."""
    chunk: int
    rows: int
    """Most tokens in a step, and most sequences at once."""
    max_len: int | None
    """Context asked for; None: not said."""
    tokens: int
    """What the cache holds; 0 where the engine found no room for one."""
    weights_GiB: float | None
    """Weights that one GPU loaded, where that was logged."""
    part: str
    """What the row is for: a key of ``PARTS``."""

    @cached_property
    def spec(self) -> ModelSpec:
        """The model as the engine served it."""
        source = _SIZES.get(self.model, self.model)
        spec = ModelSpec.from_config(source, weight_precision=self.weights, kv_precision=self.cache)
        return replace(spec, name=self.model)

    @cached_property
    def memory(self) -> LayoutMemory:
        """What the model says of its GPUs."""
        gpu = replace(GPUS[self.gpu], memory_GB=self.cuda_GiB * _GIB / 1e9)
        policy = EnginePolicy(
            name=self.engine, gpu_memory_utilization=self.share, chunked_prefill=self.chunk, max_num_seqs=self.rows
        )
        workload = Workload(input_length=64, output_length=64, concurrency=1, engine=policy)
        return LayoutMemory.of(self.spec, gpu, workload, Layout.of(self.spec, self.tp, self.pp))

    @property
    def rank(self) -> RankMemory:
        """The fullest GPU with nothing cached."""
        return min(self.memory.ranks(0), key=lambda rank: rank.free)

    @property
    def promised(self) -> int:
        """Tokens that the cache holds, by the model."""
        return self.memory.token_capacity()

    @property
    def error(self) -> float:
        """Relative, positive where more is promised than the engine had; nan where it had no room."""
        return self.promised / self.tokens - 1 if self.tokens else math.nan

    @property
    def wrong_GiB(self) -> float:
        """The same of memory on one GPU; where there was no room, how much of it is promised."""
        return (self.promised - self.tokens) * self.rank.kv_per_token / _GIB

    def started(self, tokens: int) -> bool:
        """Whether an engine whose cache holds so many tokens takes this context."""
        return tokens >= max(1, self.max_len or 0)

    def by_weights(self, factor: float = 1.0) -> bool:
        """Whether the model fits by the bytes of its parameters alone, times ``factor``, over all GPUs."""
        parameters = self.spec.total_params * min(ITEMSIZE[self.weights], 2.0)
        return parameters * factor <= self.tp * self.pp * self.cuda_GiB * _GIB


@cache
def engine_logs() -> tuple[EngineLog, ...]:
    """All rows of the table."""
    lines = Path(__file__).with_name("engine_logs.csv").read_text(encoding="utf-8").splitlines()
    return tuple(_row(row) for row in csv.DictReader(line for line in lines if not line.startswith("#")))


def _row(row: Mapping[str, str]) -> EngineLog:
    typed: dict[str, Any] = {key: kind(row[key]) if row[key] else None for key, kind in _COLUMNS.items()}
    return EngineLog(**dict(row) | typed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Errors of some rows that had room."""

    rows: int
    """How many."""
    typical: float
    """Factor by which a promise is off, either way: the geometric mean, minus 1."""
    bias: float
    """Geometric mean of promised over reported, minus 1: above 0 promises too much."""
    hopeful: float
    careful: float
    """Largest relative error above and below 0."""

    @classmethod
    def of(cls, logs: Sequence[EngineLog]) -> "Score":
        """Of these rows; those without room are left out."""
        logs = [log for log in logs if log.tokens and log.promised]
        ratios = [math.log((log.promised or 1) / log.tokens) for log in logs]
        errors = [log.error for log in logs]
        return cls(
            rows=len(logs),
            typical=math.expm1(sum(map(abs, ratios)) / len(ratios)),
            bias=math.expm1(sum(ratios) / len(ratios)),
            hopeful=max(0.0, *errors),
            careful=min(0.0, *errors),
        )
