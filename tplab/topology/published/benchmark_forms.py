"""Results of benchmarks, as each program writes them, made into one record; told apart by their keys.

Sources of the keys, their units and what each time includes:

  vllm bench serve       vllm/benchmarks/serve.py of github.com/vllm-project/vllm (0.9 to 0.15); ms. TensorRT-LLM's
                         ``benchmark_serving`` writes the same.
  sglang.bench_serving   python/sglang/bench_serving.py of github.com/sgl-project/sglang (0.3 to 0.5); ms. Early ones
                         have medians only. ``random_range_ratio`` r: lengths uniform from r times the length to it;
                         vLLM's: from 1 - r to 1 + r times the length.
  genai-perf, aiperf     github.com/triton-inference-server/perf_analyzer (genai-perf 0.0.8 to 0.0.16),
                         github.com/ai-dynamo/aiperf (0.1 to 0.8): each metric with its ``unit``. Their inter-token
                         latency is per request and without the first token, so it is a time per output token.
  guidellm               src/guidellm/benchmark of github.com/vllm-project/guidellm (0.2 to 0.5). Its
                         ``time_per_output_token_ms`` divides by all tokens, ``inter_token_latency_ms`` leaves out the
                         first.
  InferenceX             utils/process_result.py of github.com/SemiAnalysisAI/InferenceX, formerly InferenceMAX;
                         seconds; throughput per GPU.
  LLMPerf                token_benchmark_ray.py of github.com/ray-project/llmperf (2.0): seconds; its inter-token
                         latency includes the first token, so that the time of a request is taken instead.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tplab.shown import shown
from tplab.topology.published.benchmark import Benchmark
from tplab.topology.published.benchmark_entries import Entries

_MS = {
    **{"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3, "sec": 1e3},
    **{"nanoseconds": 1e-6, "microseconds": 1e-3, "milliseconds": 1.0, "seconds": 1e3},
}
"""Unit -> milliseconds."""
_ENGINES = {"sglang": "sglang", "trt": "trtllm", "tensorrt": "trtllm", "vllm": "vllm"}
"""Part of what results call an engine -> its name here."""
_ONE_LENGTH = ("random", "random-ids", "sonnet", "generated-shared-prefix", "custom")
"""Data sets of ``bench_serving`` whose lengths are set by other arguments, or not known."""
_TRUE = (True, 1, "true", "True", "1")


class Form(NamedTuple):
    """How one program writes a result."""

    program: str
    way_out: str
    """What makes the program write all that is needed."""
    marks: tuple[str, ...]
    """Keys by which it is known: one of them is there."""
    read: Callable[[Entries, str], Benchmark]


def benchmark_of(name: str, data: Any) -> list[Benchmark]:
    """The loads in one result: one, or those of a sweep.

    Raises:
        ValueError: no result of a program that is read, one of a program that serves nobody, or what is missing in it.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{name} must hold an object as vllm bench serve writes it; it holds a {type(data).__name__}")
    for program, marks in _NOT_SERVING.items():
        if all(mark in data for mark in marks):
            raise ValueError(
                f"{name} is a result of {program}, which sends no requests to a server over time: run vllm bench serve "
                f"--save-result, or sglang.bench_serving --output-file"
            )
    for what, (marks, instead) in _RECORDS.items():
        if all(mark in data for mark in marks):
            raise ValueError(f"{name} is {what}: give {instead}, which stands beside it")
    if isinstance(data.get("metrics"), dict) and "tput_per_gpu" in data["metrics"]:  # the site's rows
        data = data | data["metrics"]
    if isinstance(data.get("benchmarks"), list):
        runs = data["benchmarks"]
        if not runs:
            raise ValueError(f"{name} holds no benchmarks: guidellm broke off before the first one ended")
        names = [name] if len(runs) == 1 else [f"{name}#{i}" for i in range(1, len(runs) + 1)]
        return [found for each, run in zip(names, runs, strict=True) for found in _entry(each, run, data)]
    form = next((form for form in _FORMS if any(mark in data for mark in form.marks)), _SERVE)
    if form is _SERVE and not any(key in data for key in _SERVED):
        raise ValueError(f"{name} is no result of a benchmark that is read: {READ}")
    return [_read(name, data, form)]


def _entry(name: str, run: Any, report: Mapping[str, Any]) -> list[Benchmark]:
    """What one entry of a report's ``benchmarks`` tells: guidellm's, or another program's in somebody's collection."""
    if isinstance(run, dict) and isinstance(run.get("metrics"), dict):
        return [_read(name, {**run, "_report": report}, _GUIDELLM)]
    if not isinstance(run, dict) or "benchmarks" in run:
        raise ValueError(f"{name} must be an object of one benchmark, got {shown(run)}")
    return benchmark_of(name, run)


def _read(name: str, data: Mapping[str, Any], form: Form) -> Benchmark:
    entries = Entries(name, data, form.program, form.way_out)
    found = form.read(entries, form.program)
    entries.end()
    tokens = found.output_tokens_per_s
    if found.completed == 0 or not tokens:
        raise ValueError(f"{name}: {tokens:g} tokens/s came back; there is nothing to compare")
    return found


def _served(entries: Entries, program: str) -> Benchmark:
    """``vllm bench serve``, ``sglang.bench_serving`` and their printed tables, under the same keys."""
    e, remarks = entries, list[str]()
    backend = e.text("backend", "endpoint_type")
    completed, outputs = e.needed("completed"), e.needed("total_output_tokens")
    inputs, duration = e.needed("total_input_tokens"), e.number("duration") or 0.0
    for key, value in (("total_output_tokens", outputs), ("completed", completed)):
        if value < 1:
            raise ValueError(
                f"{e.name}: {completed:g} requests came back with {outputs:g} tokens ({key}); there is "
                f"nothing to compare"
            )
    length = outputs / completed
    requests_per_s = e.number("request_throughput")
    if requests_per_s is None:
        requests_per_s = completed / duration if duration else e.needed("request_throughput")
    tokens_per_s = e.number("output_throughput")
    if tokens_per_s is None:
        can = duration and not e.is_null("output_throughput")
        tokens_per_s = outputs / duration if can else e.needed("output_throughput")
    ttft = e.number("mean_ttft_ms", "median_ttft_ms")
    if e.number("mean_ttft_ms") is None and ttft is not None:
        remarks.append("the result has medians only, predicted are means")
    ttft = e.needed("mean_ttft_ms") if ttft is None else ttft
    tpot = e.number("mean_tpot_ms", "mean_itl_ms", "median_tpot_ms", "median_itl_ms")
    if tpot is None:
        latency = e.number("mean_e2e_latency_ms", "mean_e2el_ms")
        tpot = e.needed("mean_tpot_ms") if latency is None else _tpot(latency, ttft, length)
    dataset, ratio = e.text("dataset_name"), e.number("random_range_ratio")
    input_std, output_std = e.std("input_lens"), e.std("output_lens")
    if input_std is None and dataset.startswith("random") and ratio is not None and ratio < 1:
        share = 1 - ratio if _is_sglang(e.data) else 2 * ratio
        input_std, output_std = (_uniform_std(share, e.number(f"random_{what}_len")) for what in ("input", "output"))
    if input_std is None and dataset and dataset not in _ONE_LENGTH:
        remarks.append(f"lengths in {dataset} differ from request to request: predicted for their mean")
    burstiness = e.number("burstiness")
    if burstiness not in (None, 1.0) and e.rate("request_rate") is not None:
        remarks.append(f"arrivals with a burstiness of {burstiness:g}, predicted for a steady rate")
    accepted = e.number("accept_length", "spec_decode_acceptance_length") or 0.0
    if accepted > 1:
        remarks.append(f"{accepted:.3g} tokens a step by speculative decoding: predicted only where it is asked for")
    if e.get("server_info.enable_dp_attention") in _TRUE:
        remarks.append("attention ran data-parallel, predicted is tensor-parallel")
    return Benchmark(
        name=e.name,
        program="sglang.bench_serving" if _is_sglang(e.data) else program,
        engine=_engine(backend) or "vllm",
        model_id=e.text("model_id", "model", "server_info.model_path"),
        num_prompts=e.count("num_prompts"),
        completed=int(completed) if completed == completed else None,
        max_concurrency=e.limit("max_concurrency"),
        request_rate=e.rate("request_rate"),
        load_is_said=any(key in e.data for key in ("max_concurrency", "request_rate")),
        input_length=inputs / completed,
        output_length=length,
        input_std=input_std,
        output_std=output_std,
        ttft_ms=ttft,
        tpot_ms=tpot,
        output_tokens_per_s=tokens_per_s,
        requests_per_s=requests_per_s,
        medians_ms=_medians({what: e.number(f"median_{what}_ms") for what in ("ttft", "tpot")}),
        degrees=e.degrees("server_info."),
        unpredicted=_ramp(e),
        remarks=tuple(remarks),
    )


def _ramp(e: Entries) -> str:
    strategy = e.get("ramp_up_strategy")
    if strategy in (None, "None", "none"):
        return ""
    ends = [e.number(f"ramp_up_{end}_rps") for end in ("start", "end")]
    said = "" if None in ends else f" from {ends[0]:g} to {ends[1]:g} requests/s"
    return f"a ramp is no steady load ({shown(strategy)}{said}): nothing is predicted for it; run it at one rate"


def _perf(entries: Entries, program: str) -> Benchmark:
    """genai-perf and aiperf."""
    e = entries
    served = e.count("request_count.avg")
    phases = e.get("input_config.phases") or []  # aiperf 0.10
    if not isinstance(phases, list) or not all(isinstance(phase, Mapping) for phase in phases):
        raise ValueError(f"{e.name}: input_config.phases must be a list of objects, got {shown(phases)}")
    counted = [phase for phase in phases if not phase.get("exclude_from_results")]
    e.data = {**e.data, "_phase": counted[0] if counted else {}}
    loads = ("_phase", "input_config.loadgen", "input_config.perf_analyzer.stimulus", "input_config")
    limits = [f"{load}.concurrency" for load in loads]
    rates = [f"{load}.{key}" for load in loads for key in ("request_rate", "rate")]
    ramps = [key for load in loads[:2] for key, value in e.items(load) if "ramp" in str(key) and value]
    if len(counted) > 1:
        unpredicted = f"{len(counted)} phases of load are one result: nothing is predicted for it"
    else:
        unpredicted = f"a ramp is no steady load ({ramps[0]}): nothing is predicted for it" if ramps else ""
    return Benchmark(
        name=e.name,
        program="aiperf" if "aiperf_version" in e.data else program,
        engine=_engine(str(e.get("input_config.endpoint.backend") or "")) or "vllm",
        model_id=e.text(
            *(f"input_config.{key}" for key in ("endpoint.model_names", "model_names", "model", "models.items.0.name"))
        ),
        num_prompts=None if served is None else served + (e.count("error_request_count.avg") or 0),
        completed=served,
        max_concurrency=e.limit(*limits),
        request_rate=e.rate(*rates),
        load_is_said=e.get(*limits, *rates) is not None,
        input_length=e.needed("input_sequence_length.avg"),
        output_length=e.needed("output_sequence_length.avg"),
        input_std=e.number("input_sequence_length.std"),
        output_std=e.number("output_sequence_length.std"),
        ttft_ms=e.needed("time_to_first_token.avg", scale=_unit(e, "time_to_first_token")),
        tpot_ms=e.needed("inter_token_latency.avg", scale=_unit(e, "inter_token_latency")),
        output_tokens_per_s=e.needed("output_token_throughput.avg"),
        requests_per_s=e.needed("request_throughput.avg"),
        medians_ms=_medians(
            {
                "ttft": e.number("time_to_first_token.p50", scale=_unit(e, "time_to_first_token")),
                "tpot": e.number("inter_token_latency.p50", scale=_unit(e, "inter_token_latency")),
            }
        ),
        unpredicted=unpredicted,
    )


def _unit(e: Entries, metric: str) -> float:
    unit = e.get(f"{metric}.unit") or "ms"
    plain = re.sub("[µμ]", "u", unit.strip().lower()) if isinstance(unit, str) else ""  # the sign, or the letter
    if plain not in _MS:
        raise ValueError(f"{e.name}: {metric}.unit must be one of {', '.join(_MS)}, got {shown(unit)}")
    return _MS[plain]


def _guidellm(entries: Entries, program: str) -> Benchmark:
    """One entry of ``benchmarks``."""
    e, roots = entries, ("config.strategy", "scheduler.strategy", "args.strategy")
    kind = e.text(*(f"{root}.{key}" for root in roots for key in ("type_", "kind", "type")))
    limit = e.limit(*(f"{root}.{key}" for root in roots for key in ("streams", "max_concurrency")))
    rate = e.rate(*(f"{root}.rate" for root in roots)) if kind in ("constant", "poisson", "async") else None

    def mean(metric: str, key: str = "mean") -> tuple[str, str]:
        return f"metrics.{metric}.successful.{key}", f"metrics.{metric}.total.{key}"

    done, failed = (e.count(f"metrics.request_totals.{k}", f"request_totals.{k}") for k in ("successful", "errored"))
    backends = ("config.backend", "benchmarker.backend", "worker", "_report.args")
    return Benchmark(
        name=e.name,
        program=program,
        model_id=e.text(*(f"{root}.{key}" for root in backends for key in ("model", "backend_model"))),
        num_prompts=None if done is None else done + (failed or 0),
        completed=done,
        max_concurrency=1 if kind == "synchronous" else limit,
        request_rate=rate,
        load_is_said=bool(kind) or limit is not None,
        input_length=e.needed(*mean("prompt_token_count")),
        output_length=e.needed(*mean("output_token_count")),
        input_std=e.number(*mean("prompt_token_count", "std_dev")),
        output_std=e.number(*mean("output_token_count", "std_dev")),
        ttft_ms=e.needed(*mean("time_to_first_token_ms")),
        tpot_ms=e.needed(*mean("inter_token_latency_ms")),
        output_tokens_per_s=e.needed(*mean("output_tokens_per_second")),
        requests_per_s=e.needed(*mean("requests_per_second")),
        medians_ms=_medians(
            {
                "ttft": e.number(*mean("time_to_first_token_ms", "median")),
                "tpot": e.number(*mean("inter_token_latency_ms", "median")),
            }
        ),
    )


def _inferencex(entries: Entries, program: str) -> Benchmark:
    e, remarks = entries, list[str]()
    apart = e.get("disagg") in _TRUE or (e.get("disagg") is None and e.get("prefill_tp") is not None)
    degrees = e.degrees() if apart or e.get("tp") is not None else e.degrees("decode_")
    gpus = degrees.get("tp", 1) * degrees.get("pp", 1)
    isl, osl = e.number("isl", "mean_input_tokens"), e.number("osl", "mean_output_tokens_actual")
    tokens = e.number("output_tput_per_gpu")
    if tokens is None:  # the first rows have all tokens only
        tokens = e.needed("tput_per_gpu") * (osl / (isl + osl) if isl and osl else math.nan)
    if tokens != tokens and e.get("tput_per_gpu") is not None:
        raise ValueError(f"{e.name} lacks isl and osl, without which tput_per_gpu does not tell the tokens generated")
    if any(e.get(key) in _TRUE for key in ("dp_attention", "decode_dp_attention")):
        remarks.append("attention ran data-parallel, predicted is tensor-parallel")
    if (e.number("ep") or 1) > 1:
        remarks.append(f"experts were spread over {e.number('ep'):g} GPUs (ep)")
    if (spec := e.get("spec_decoding", "spec_method", "mtp")) not in (None, "none", "off", "", False):
        remarks.append(f"with speculative decoding ({shown(spec)}): predicted with it only where it is asked for")
    if (scenario := e.text("scenario_type")) not in ("", "fixed-seq-len"):
        remarks.append(f"{scenario}: requests share their beginnings, which is predicted only where it is asked for")
    return Benchmark(
        name=e.name,
        program=program,
        engine=_engine(e.text("framework")) or "vllm",
        model_id=e.text("model"),
        gpu=e.text("hw", "hardware", "device"),
        weight_precision=e.text("precision"),
        num_prompts=e.count("num_requests_total"),
        completed=e.count("num_requests_successful"),
        max_concurrency=int(e.needed("conc")) if e.get("conc") is not None else e.limit("conc"),
        request_rate=None,
        load_is_said=e.get("conc") is not None,
        input_length=isl,
        output_length=osl,
        input_std=e.number("std_input_tokens"),
        ttft_ms=e.needed("mean_ttft", "median_ttft", scale=1e3),
        tpot_ms=e.needed("mean_tpot", "median_tpot", scale=1e3),
        output_tokens_per_s=tokens * gpus,
        requests_per_s=e.number("mean_qps") or (tokens * gpus / osl if osl else None),
        medians_ms=_medians({what: e.number(f"median_{what}", scale=1e3) for what in ("ttft", "tpot")}),
        degrees=degrees,
        unpredicted="prompts and answers were served by GPUs apart (disaggregated), which is not predicted" * apart,
        remarks=tuple(remarks),
    )


def _llmperf(entries: Entries, program: str) -> Benchmark:
    e = entries
    inputs = e.needed("results_number_input_tokens_mean", "mean_input_tokens")
    outputs = e.needed("results_number_output_tokens_mean", "mean_output_tokens")
    ttft = e.needed("results_ttft_s_mean", scale=1e3)
    done = e.count("results_num_completed_requests")
    per_minute = e.number("results_num_completed_requests_per_min")
    return Benchmark(
        name=e.name,
        program=program,
        model_id=e.text("model"),
        num_prompts=e.count("results_num_requests_started") or done,
        completed=done,
        max_concurrency=e.limit("num_concurrent_requests"),
        request_rate=None,
        load_is_said=e.get("num_concurrent_requests") is not None,
        input_length=inputs,
        output_length=outputs,
        input_std=e.number("results_number_input_tokens_stddev"),
        output_std=e.number("results_number_output_tokens_stddev"),
        ttft_ms=ttft,
        tpot_ms=_tpot(e.needed("results_end_to_end_latency_s_mean", scale=1e3), ttft, outputs),
        output_tokens_per_s=e.needed("results_mean_output_throughput_token_per_s"),
        requests_per_s=None if per_minute is None else per_minute / 60,
    )


def _tpot(latency_ms: float, ttft_ms: float, output_length: float) -> float:
    """Time per output token after the first, of the mean time of a request; 0 where there is only one."""
    return max(latency_ms - ttft_ms, 0.0) / (output_length - 1) if output_length > 1 else 0.0


def _uniform_std(share: float, length: float | None) -> float | None:
    """Standard deviation of lengths that are uniform over ``share`` of ``length``."""
    return None if length is None else share * length / math.sqrt(12)


def _medians(found: Mapping[str, float | None]) -> dict[str, float]:
    return {what: value for what, value in found.items() if value is not None}


def _engine(said: str) -> str:
    return next((name for part, name in _ENGINES.items() if part in said.lower()), "")


def _is_sglang(data: Mapping[str, Any]) -> bool:
    by_name = "num_prompts" not in data and _engine(str(data.get("backend"))) == "sglang"
    return by_name or "total_output_tokens_retokenized" in data


_SERVE = Form("vllm bench serve", "--save-result", (), _served)
_SERVED = ("completed", "total_output_tokens", "output_throughput", "request_throughput", "mean_ttft_ms")
_GUIDELLM = Form("guidellm", "guidellm benchmark --output-path FILE.json", (), _guidellm)
_FORMS: Sequence[Form] = (
    Form("InferenceX", "an agg_*.json of its artifacts", ("tput_per_gpu", "infmax_model_prefix"), _inferencex),
    Form("LLMPerf", "token_benchmark_ray.py, the *_summary.json", ("results_ttft_s_mean",), _llmperf),
    Form(
        "genai-perf",
        "genai-perf profile --streaming, or aiperf profile --streaming",
        ("time_to_first_token", "inter_token_latency", "request_latency", "input_sequence_length"),
        _perf,
    ),
)
_NOT_SERVING: Mapping[str, tuple[str, ...]] = {
    "vllm bench throughput": ("elapsed_time", "total_num_tokens"),
    "vllm bench latency": ("avg_latency", "percentiles"),
    "sglang.bench_one_batch": ("batch_size", "input_len", "output_len"),
    "sglang.bench_offline_throughput": ("successful_requests", "total_latency"),
    "trtllm-bench": ("world_info", "performance"),
}
"""Program that runs an engine without a server -> keys of its result."""
_RECORDS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "genai-perf's record of single requests": (("experiments", "service_kind"), "profile_export_genai_perf.json"),
    "aiperf's record of single requests": (("metadata", "metrics"), "profile_export_aiperf.json"),
}
"""File that stands beside a result -> its keys, and the file that has the result."""
READ = (
    "vllm bench serve --save-result, sglang.bench_serving --output-file, genai-perf, aiperf, guidellm, InferenceX and "
    "LLMPerf, or the table that the first two print"
)
"""What is read, in words."""
