"""Published measurements read into cases that a prediction can be set beside. The tables are given, never kept here.

Three forms, told apart by their columns:

  served     model_path, system, backend, isl, osl, tp_size, silicon_tpot_ms, and if present precision or
             gemm_quant_mode, kv_cache_dtype, pp_size, concurrency or batch_size, silicon_ttft_ms: a closed loop
             (AIConfigurator's export of served models)
  generated  model, impl, tp, pp, batch_size, input_len, output_len, latency_ms: one static batch per call
             (FasterTransformer's guide)
  saturated  throughput with far more requests than fit, by model, gpu, tp, isl, osl and a column of tokens per second,
             or value and unit (``_ALIASES`` has other names for each; pp, precision, engine and concurrency if
             present): offline benchmarks (TensorRT-LLM's performance overview)

Rows that cannot be read (a model or GPU that is not known, tensors split otherwise) are counted by reason, not dropped
silently. What a table does not say is assumed, here and nowhere else: a cache in fp8 where the weights are in fp8 or
fp4, else in bf16; the engine that alone is named in the comments above the header; of saturated tables how
many requests are sent, and the share of memory asked for (``_SENT``, ``_SATURATED_SHARE``).
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tplab.files import read_text
from tplab.frames import read_frame
from tplab.models.presets import MODELS
from tplab.models.shards import Layout
from tplab.models.spec import ModelSpec
from tplab.shown import listed, shown
from tplab.topology.advisor.workload import EnginePolicy, Workload
from tplab.topology.machine.gpu_names import gpu_preset
from tplab.topology.machine.machine import Machine
from tplab.topology.published.values import count_of, first_of, number_of, positive_of, value_of

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
_UNITED = frozenset({"value", "unit"})
_SENT = ((256, 30_000), (2_500, 3_000), (10_000, 1_500), (math.inf, 1_000))
"""Requests that a saturated benchmark sends, all at once, where its table does not say: up to so many tokens each, so
many. Source: TensorRT-LLM 1.0, docs/source/performance/perf-overview.md, commit 00f3768."""
_SATURATED_SHARE = 0.95
"""Share of memory in saturated tables. Source: --kv_cache_free_gpu_mem_fraction, on the same page."""

_PRECISIONS = {
    "fp8": "fp8", "fp8_block": "fp8", "fp8_static": "fp8", "fp16": "fp16", "float16": "fp16", "half": "fp16",
    "bf16": "bf16", "bfloat16": "bf16", "int8": "int8", "w8a8": "int8", "int4": "int4", "int4_wo": "int4",
    "awq": "int4", "w4a16": "int4", "nvfp4": "fp4", "fp4": "fp4",
}  # fmt: skip
_ENGINES = {"trtllm": "trtllm", "tensorrt-llm": "trtllm", "tensorrt_llm": "trtllm", "vllm": "vllm", "sglang": "sglang"}

_LOADS = ((4, "1-4"), (16, "5-16"), (64, "17-64"))
CELL = ("table", "kind", "model", "precision", "gpu", "engine", "tp", "pp", "length", "concurrency")
"""Columns that say which measurement a row is about (``Case.cell``)."""

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

    @property
    def load(self) -> str:
        """Class of the number of requests in flight."""
        if self.kind == "saturated":
            return self.kind
        requests = self.workload.concurrency or 1
        return next((name for most, name in _LOADS if requests <= most), "65 and more")

    @property
    def cell(self) -> dict[str, str | int | None]:
        """What the measurement is about: the columns ``CELL``."""
        values = (self.model.name, self.model.weight_precision, self.gpu, self.engine, self.tp, self.pp, self.length)
        return dict(zip(CELL, (self.table, self.kind, *values, self.workload.concurrency), strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """What a folder holds."""

    cases: tuple[Case, ...]
    skipped: Mapping[str, int]
    """Reason -> number of rows left out, the most frequent reason first."""
    comments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of each file of a known form -> the lines above its header, which say where it is from."""

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
    comments: dict[str, tuple[str, ...]] = {}
    for file in sorted(path.glob("*.csv")):
        reader = _reader({str(name) for name in read_frame(file, comment="#", rows=0).columns})
        if reader is None:
            continue
        comments[file.name] = lines = tuple(_comments(file))
        told = {"engine": engine} if (engine := _engine_named("\n".join(lines))) else {}
        for row in read_frame(file, comment="#").to_dict("records"):
            try:
                case = reader(file.name, told | {str(key): value for key, value in row.items()})
                Layout.of(case.model, case.tp, case.pp)  # refused here, with its reason, if it cannot be
                cases.append(case)
            except ValueError as error:
                skipped[str(error)] += 1
    if not comments:
        raise ValueError(
            f"{path} has no table of a known form: needs columns {', '.join(sorted(SERVED))}, or "
            f"{', '.join(sorted(GENERATED))}, or {', '.join(_ALIASES)} and {_OF_ALL[0]}"
        )
    return Tables(cases=tuple(cases), skipped=dict(skipped.most_common()), comments=comments)


def _comments(file: Path) -> Iterator[str]:
    for line in read_text(file).splitlines():
        if not line.startswith("#"):
            return
        yield line.lstrip("# ").rstrip()


def _engine_named(text: str) -> str | None:
    """The engine in a text that names one of them only."""
    found = {name: engine for name, engine in _ENGINES.items() if name in text.lower()}
    return next(iter(found)) if len(set(found.values())) == 1 else None


def _reader(header: set[str]) -> "Callable[[str, Mapping[str, Any]], Case] | None":
    if header >= SERVED:
        return _served
    if header >= GENERATED:
        return _generated
    named = all(header & set(names) for names in _ALIASES.values())
    return _saturated if named and (header & {*_OF_ALL, *_OF_ONE} or header >= _UNITED) else None


def _served(table: str, row: Mapping[str, Any]) -> Case:
    tp, pp = count_of(row, "tp_size"), count_of(row, "pp_size", usual=1)
    if count_of(row, "attention_dp_size", usual=1) > 1:
        raise ValueError("attention is copied, not split (attention_dp_size > 1)")
    backend = str(row["backend"]).lower()
    precision = _precision(value_of(row, "gemm_quant_mode") or value_of(row, "precision"))
    model = _model(str(row["model_path"]), precision, _precision(value_of(row, "kv_cache_dtype")))
    engine = EnginePolicy(name=_ENGINES.get(backend, "generic"))
    asked = next((key for key in _REQUESTS if value_of(row, key)), None)
    if asked is None:
        raise ValueError(f"requests in flight are missing ({', '.join(_REQUESTS)})")
    ttft = number_of(row, "silicon_ttft_ms")
    return Case(
        table=table,
        model=model,
        machine=_machine(str(row["system"]), tp * pp),
        workload=Workload(
            input_length=count_of(row, "isl"),
            output_length=count_of(row, "osl"),
            concurrency=count_of(row, asked),
            engine=engine,
        ),
        tp=tp,
        pp=pp,
        gpu=gpu_preset(_gpu_name(str(row["system"]))).name,
        engine=backend,
        kind="served",
        tpot_ms=positive_of(row, "silicon_tpot_ms"),
        ttft_ms=ttft or None,
    )


def _generated(table: str, row: Mapping[str, Any]) -> Case:
    tp, pp, out = count_of(row, "tp"), count_of(row, "pp"), count_of(row, "output_len", least=0)
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
            input_length=count_of(row, "input_len"),
            output_length=tokens,
            concurrency=count_of(row, "batch_size"),
            engine=engine,
        ),
        tp=tp,
        pp=pp,
        gpu="a100",
        engine=impl,
        kind="generated",
        tpot_ms=positive_of(row, "latency_ms") / tokens,
    )


def _saturated(table: str, row: Mapping[str, Any]) -> Case:
    named = {key: first_of(row, names) for key, names in _ALIASES.items()}
    if missing := [key for key, value in named.items() if value is None]:
        raise ValueError(f"{', '.join(missing)} is missing")
    tp, pp = count_of(named, "tp"), count_of({"pp": first_of(row, ("pp", "pp_size"))}, "pp", usual=1)
    precision = _precision(first_of(row, ("precision", "gemm_quant_mode", "dtype", "quantization")))
    engine = str(first_of(row, ("engine", "backend", "framework")) or "generic").lower()
    engine = _ENGINES.get(engine, engine)
    if unit := value_of(row, "unit"):
        name = str(unit).removesuffix("_total")
        if name not in (*_OF_ALL, *_OF_ONE):
            raise ValueError(f"unit {listed([unit])} is not known")
        row = {**row, name: value_of(row, "value")}
    tokens = count_of(named, "isl") + count_of(named, "osl")
    sent = next(requests for most, requests in _SENT if tokens <= most)
    rates = {"of all": first_of(row, _OF_ALL), "of one": first_of(row, _OF_ONE)}
    total, each = number_of(rates, "of all"), number_of(rates, "of one")
    tokens_per_s = total if total is not None else (each or 0) * tp * pp
    if not tokens_per_s > 0:
        raise ValueError("tokens per second are missing or not above 0")
    return Case(
        table=table,
        model=_model(str(named["model"]), precision, _precision(value_of(row, "kv_cache_dtype"))),
        machine=_machine(str(named["gpu"]), tp * pp),
        workload=Workload(
            input_length=count_of(named, "isl"),
            output_length=count_of(named, "osl"),
            concurrency=count_of({"batch": first_of(row, ("concurrency", "batch_size"))}, "batch", usual=sent),
            engine=EnginePolicy(
                name=engine if engine in _ENGINES else "generic", gpu_memory_utilization=_SATURATED_SHARE
            ),
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
