"""Published measurements read into cases that a prediction can be set beside. The tables are given, never kept here.

Three forms, told apart by their columns:

  served     model_path, system, backend, isl, osl, tp_size, silicon_tpot_ms, and if present precision or
             gemm_quant_mode, kv_cache_dtype, pp_size, concurrency or batch_size, silicon_ttft_ms: a closed loop
             (AIConfigurator's export of served models)
  generated  model, impl, tp, pp, batch_size, input_len, output_len, latency_ms: one static batch per call
             (FasterTransformer's guide)
  saturated  throughput with far more requests than fit, by model, gpu, tp, isl, osl and a column of tokens per second
             (``_ALIASES`` has other names for each; pp, precision, engine and concurrency if present): offline
             benchmarks (TensorRT-LLM's performance overview)

Rows that cannot be read (a model or GPU that is not known, tensors split otherwise) are counted by reason, not dropped
silently. What a table does not say is assumed, here and nowhere else: a cache in fp8 where the weights are, else in
bf16.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from tplab.files import read_frame
from tplab.models.presets import MODELS
from tplab.models.shards import Layout
from tplab.models.spec import ModelSpec
from tplab.shown import listed, shown
from tplab.topology.advisor.workload import MOST, EnginePolicy, Workload
from tplab.topology.machine.gpu_names import gpu_preset
from tplab.topology.machine.machine import Machine

SERVED = frozenset({"model_path", "system", "backend", "isl", "osl", "tp_size", "silicon_tpot_ms"})
GENERATED = frozenset({"model", "impl", "tp", "pp", "batch_size", "input_len", "output_len", "latency_ms"})

_ALIASES = {
    "model": ("model", "model_path", "model_name"),
    "gpu": ("gpu", "system", "hardware", "gpu_type", "device"),
    "tp": ("tp", "tp_size"),
    "isl": ("isl", "input_len", "input_length", "input"),
    "osl": ("osl", "output_len", "output_length", "output"),
}
_OF_ALL = ("output_tokens_per_s", "output_tok_s", "throughput_tok_s", "tokens_per_s", "tok_s", "throughput")
_OF_ONE = tuple(f"{name}_per_gpu" for name in _OF_ALL) + tuple(f"{name}_gpu" for name in _OF_ALL)
_REQUESTS = ("silicon_concurrency", "concurrency", "batch_size")
_LARGEST = 1e15
_SATURATING = 4096
"""Requests in flight where a saturated table does not say: more than any cache holds or any engine admits."""

_PRECISIONS = {
    "fp8": "fp8", "fp8_block": "fp8", "fp8_static": "fp8", "fp16": "fp16", "float16": "fp16", "half": "fp16",
    "bf16": "bf16", "bfloat16": "bf16", "int8": "int8", "w8a8": "int8", "int4": "int4", "int4_wo": "int4",
    "awq": "int4", "w4a16": "int4", "nvfp4": "fp4", "fp4": "fp4",
}  # fmt: skip
_ENGINES = {"trtllm": "trtllm", "tensorrt-llm": "trtllm", "tensorrt_llm": "trtllm", "vllm": "vllm", "sglang": "sglang"}

_GPT_SHAPES = {  # heads, head size, layers: FasterTransformer, docs/gpt_guide.md
    "gpt-530b": (128, 160, 105), "gpt-175b": (96, 128, 96), "gpt-89b": (96, 128, 48), "gpt-20b": (48, 128, 44),
    "gpt-6.7b": (32, 128, 32), "gpt-1.3b": (32, 64, 24), "gpt-350m": (16, 64, 24), "bert-6b": (32, 128, 32),
}  # fmt: skip
_GPT_VOCAB = 51200


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One measurement."""

    table: str
    """Name of the file that the row is from."""
    model: ModelSpec
    machine: Machine
    """The GPUs in use, in whole nodes if they need more than one."""
    workload: Workload
    tp: int
    pp: int
    gpu: str
    engine: str
    """Name of the engine, as published."""
    kind: str
    """``served``, ``generated`` (``tpot_ms`` is then the call's time over its tokens) or ``saturated``."""
    tpot_ms: float | None = None
    ttft_ms: float | None = None
    output_tokens_per_s: float | None = None
    """Measured throughput in output tokens per second; None if not measured."""

    @property
    def static(self) -> bool:
        """One batch per call."""
        return self.kind == "generated"

    @property
    def length(self) -> str:
        """Tokens in and out, as a name."""
        return f"{self.workload.input_length}/{self.workload.output_length}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """What a folder holds."""

    cases: tuple[Case, ...]
    skipped: Mapping[str, int]
    """Reason -> number of rows left out, the most frequent reason first."""

    @property
    def skipped_in_words(self) -> str:
        """``12 of 40 rows left out: model x is not a preset (12)``; empty if none were."""
        if not self.skipped:
            return ""
        left = sum(self.skipped.values())
        return (
            f"{left} of {left + len(self.cases)} rows left out: "
            f"{'; '.join(f'{reason} ({count})' for reason, count in self.skipped.items())}"
        )


def read_folder(folder: "str | os.PathLike[str]") -> Tables:
    """Every CSV file of a known form in ``folder``; lines that begin with ``#`` are comments.

    Raises:
        ValueError: no such folder, no table of a known form in it, or a file that is no CSV in UTF-8 (which).
    """
    path = Path(folder)
    if not os.path.isdir(path):
        raise ValueError(f"{path} is not a folder: give one with published tables as CSV files")
    cases: list[Case] = []
    skipped: Counter[str] = Counter()
    known = 0
    for file in sorted(path.glob("*.csv")):
        reader = _reader({str(name) for name in read_frame(file, comment="#", rows=0).columns})
        if reader is None:
            continue
        known += 1
        for row in read_frame(file, comment="#").to_dict("records"):
            try:
                case = reader(file.name, {str(key): value for key, value in row.items()})
                Layout.of(case.model, case.tp, case.pp)  # refused here, with its reason, if it cannot be
                cases.append(case)
            except ValueError as error:
                skipped[str(error)] += 1
    if not known:
        raise ValueError(
            f"{path} has no table of a known form: needs columns {', '.join(sorted(SERVED))}, or "
            f"{', '.join(sorted(GENERATED))}, or {', '.join(_ALIASES)} and {_OF_ALL[0]}"
        )
    return Tables(cases=tuple(cases), skipped=dict(skipped.most_common()))


def _reader(header: set[str]) -> "Callable[[str, Mapping[str, Any]], Case] | None":
    if header >= SERVED:
        return _served
    if header >= GENERATED:
        return _generated
    named = all(header & set(names) for names in _ALIASES.values())
    return _saturated if named and header & {*_OF_ALL, *_OF_ONE} else None


def _served(table: str, row: Mapping[str, Any]) -> Case:
    tp, pp = _count(row, "tp_size"), _count(row, "pp_size", usual=1)
    if _count(row, "attention_dp_size", usual=1) > 1:
        raise ValueError("attention is copied, not split (attention_dp_size > 1)")
    backend = str(row["backend"]).lower()
    precision = _precision(_value(row, "gemm_quant_mode") or _value(row, "precision"))
    model = _model(str(row["model_path"]), precision, _precision(_value(row, "kv_cache_dtype")))
    engine = EnginePolicy(name=_ENGINES.get(backend, "generic"))
    asked = next((key for key in _REQUESTS if _value(row, key)), None)
    if asked is None:
        raise ValueError(f"requests in flight are missing ({', '.join(_REQUESTS)})")
    ttft = _number(row, "silicon_ttft_ms")
    return Case(
        table=table,
        model=model,
        machine=_machine(str(row["system"]), tp * pp),
        workload=Workload(
            input_length=_count(row, "isl"),
            output_length=_count(row, "osl"),
            concurrency=_count(row, asked),
            engine=engine,
        ),
        tp=tp,
        pp=pp,
        gpu=gpu_preset(_gpu_name(str(row["system"]))).name,
        engine=backend,
        kind="served",
        tpot_ms=_positive(row, "silicon_tpot_ms"),
        ttft_ms=ttft or None,
    )


def _generated(table: str, row: Mapping[str, Any]) -> Case:
    tp, pp, out = _count(row, "tp"), _count(row, "pp"), _count(row, "output_len", least=0)
    name = str(row["model"]).lower()
    if name not in _GPT_SHAPES:
        raise ValueError(f"shape of {shown(row['model'])} is not known")
    impl = str(row["impl"]).lower()
    engine = EnginePolicy(name=impl if impl == "fastertransformer" else "generic", chunked_prefill=None)
    tokens = max(out, 1)
    return Case(
        table=table,
        model=_gpt(name),
        machine=_machine("a100", tp * pp),
        workload=Workload(
            input_length=_count(row, "input_len"),
            output_length=tokens,
            concurrency=_count(row, "batch_size"),
            engine=engine,
        ),
        tp=tp,
        pp=pp,
        gpu="a100",
        engine=impl,
        kind="generated",
        tpot_ms=_positive(row, "latency_ms") / tokens,
    )


def _saturated(table: str, row: Mapping[str, Any]) -> Case:
    named = {key: _first(row, names) for key, names in _ALIASES.items()}
    if missing := [key for key, value in named.items() if value is None]:
        raise ValueError(f"{', '.join(missing)} is missing")
    tp, pp = _count(named, "tp"), _count({"pp": _first(row, ("pp", "pp_size"))}, "pp", usual=1)
    precision = _precision(_first(row, ("precision", "gemm_quant_mode", "dtype", "quantization")))
    engine = str(_first(row, ("engine", "backend", "framework")) or "generic").lower()
    rates = {"of all": _first(row, _OF_ALL), "of one": _first(row, _OF_ONE)}
    total, each = _number(rates, "of all"), _number(rates, "of one")
    tokens_per_s = total if total is not None else (each or 0) * tp * pp
    if not tokens_per_s > 0:
        raise ValueError("tokens per second are missing or not above 0")
    return Case(
        table=table,
        model=_model(str(named["model"]), precision, _precision(_value(row, "kv_cache_dtype"))),
        machine=_machine(str(named["gpu"]), tp * pp),
        workload=Workload(
            input_length=_count(named, "isl"),
            output_length=_count(named, "osl"),
            concurrency=_count(
                {"concurrency": _first(row, ("concurrency", "batch_size"))}, "concurrency", usual=_SATURATING
            ),
            engine=EnginePolicy(name=_ENGINES.get(engine, "generic")),
        ),
        tp=tp,
        pp=pp,
        gpu=gpu_preset(_gpu_name(str(named["gpu"]))).name,
        engine=engine,
        kind="saturated",
        output_tokens_per_s=tokens_per_s,
    )


@cache
def _model(path: str, precision: str | None, cache_precision: str | None) -> ModelSpec:
    """A preset by the last part of its path; a precision that only the name has is taken from there."""
    name = path.split("/")[-1].lower().replace("_", "-").replace(" ", "-")
    for word in ("-nvfp4", "-fp4", "-fp8", "-awq", "-int4"):
        if word in name:
            name = name.replace(word, "")
            precision = precision or _PRECISIONS[word[1:]]
    for word in ("-instruct", "-hf", "-base", "-chat", "-dynamic", "-2507", "-kv"):
        name = name.replace(word, "")
    name = name.removeprefix("meta-").replace("llama-v", "llama-")
    if name not in MODELS:
        raise ValueError(f"model {listed([path])} is not a preset")
    cache_precision = cache_precision or ("fp8" if precision in ("fp8", "fp4") else None)
    return ModelSpec.from_config(name, weight_precision=precision, kv_precision=cache_precision)


@cache
def _gpt(name: str) -> ModelSpec:
    heads, size, layers = _GPT_SHAPES[name]
    return ModelSpec(
        name=name,
        num_layers=layers,
        hidden_size=heads * size,
        intermediate_size=4 * heads * size,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=size,
        vocab_size=_GPT_VOCAB,
        gated_mlp=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        norm_bias=True,
        num_positions=2048,
        weight_precision="fp16",
        kv_precision="fp16",
        activation_precision="fp16",
    )


def _gpu_name(system: str) -> str:
    name = system.lower().replace("_", "-").replace(" ", "-").removeprefix("nvidia-")
    for word in ("-sxm", "-server", "-80gb", "-hbm3", "-blackwell", "-edition"):
        name = name.replace(word, "")
    return name


@cache
def _machine(system: str, gpus: int) -> Machine:
    """``gpus`` of them in usual nodes, the last one full; a rack of GB200 is one node."""
    name = _gpu_name(system)
    usual = Machine.preset(name).gpus_per_node
    if gpus <= usual or name == "gb200":
        return Machine.preset(name, gpus=gpus)
    return Machine.preset(name, nodes=-(-gpus // usual))


def _precision(value: Any) -> str | None:
    if value is None:
        return None
    found = _PRECISIONS.get(str(value).lower())
    if found is None:
        raise ValueError(f"precision {listed([value])} is not known")
    return found


def _value(row: Mapping[str, Any], key: str) -> Any:
    value = row.get(key)
    return None if value is None or (isinstance(value, float) and pd.isna(value)) else value


def _first(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The first of several columns that has a value."""
    return next((value for value in (_value(row, key) for key in keys) if value is not None), None)


def _count(row: Mapping[str, Any], key: str, *, least: int = 1, usual: int | None = None) -> int:
    """A whole number; ``usual`` where there is none, or 0."""
    value = _number(row, key)
    if not value and usual is not None:
        return usual
    if value is None or not value.is_integer() or not least <= value <= MOST:
        raise ValueError(f"{key} must be a whole number from {least} to {MOST:,}, got {shown(row[key])}")
    return int(value)


def _number(row: Mapping[str, Any], key: str) -> float | None:
    """None where there is none."""
    value = _value(row, key)
    try:
        number = None if value is None else float(value)
    except (OverflowError, TypeError, ValueError):
        number = math.nan
    if number is not None and not 0 <= number <= _LARGEST:
        raise ValueError(f"{key} must be a number of at least 0 and at most {_LARGEST:g}, got {shown(value)}")
    return number


def _positive(row: Mapping[str, Any], key: str) -> float:
    value = _number(row, key)
    if not value:
        raise ValueError(f"{key} is missing or not above 0")
    return value
