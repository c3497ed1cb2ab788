"""The user's own server beside the prediction: result files of ``vllm bench serve --save-result``.

The file says what was asked (prompts, most in flight or arrival rate), what came out (tokens, times, throughput) and
which model; not on how many GPUs nor how they were split, unless it was started with ``--metadata
tensor_parallel_size=4`` or the like. That is said here. SGLang's ``bench_serving`` writes other keys: those are named
as missing. Pure: no torch.

Source of the keys: vllm/benchmarks/serve.py of github.com/vllm-project/vllm (versions 0.9 to 0.15).
"""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from tplab.checks import ArgumentError, check_number, check_text
from tplab.files import parse_json_documents, read_text
from tplab.models.spec import ModelSpec
from tplab.shown import shown
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.constants import DEFAULT, Constants
from tplab.topology.advisor.prediction import predict
from tplab.topology.advisor.workload import EnginePolicy, Workload
from tplab.topology.machine.machine import Machine

Source = str | os.PathLike[str]
_NUMBERS = (
    *("completed", "total_input_tokens", "total_output_tokens", "request_throughput", "output_throughput"),
    *("mean_ttft_ms", "mean_tpot_ms"),
)
_DEGREES = {
    "tp": ("tensor_parallel_size", "tensor-parallel-size", "tp_size", "tp"),
    "pp": ("pipeline_parallel_size", "pipeline-parallel-size", "pp_size", "pp"),
}
_MOST_RUNS = 500
_LARGEST = 1e15
"""Largest number accepted from a file: beyond it nothing counts tokens or milliseconds."""
_LONGEST_NAME = 200
_FULL = 0.9
"""Share of the most that may be in flight, from which on that limit and not the arrival rate sets the load."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmBenchmark:
    """One run of ``vllm bench serve``."""

    name: str
    """Name of the file, and the number of the run where it holds several."""
    model_id: str
    """The model that the server was asked for."""
    num_prompts: int
    """Number of requests sent."""
    completed: int
    """Number of requests that were answered completely."""
    max_concurrency: int | None
    """Most requests in flight; None without a limit."""
    request_rate: float | None
    """Requests sent per second; None: all at once, or as fast as ``max_concurrency`` allows."""
    input_length: float
    """Mean length of a prompt, in tokens."""
    output_length: float
    """Mean number of tokens generated per request."""
    ttft_ms: float
    """Mean time to the first token, in ms."""
    tpot_ms: float
    """Mean time per output token after the first, in ms."""
    output_tokens_per_s: float
    requests_per_s: float
    medians_ms: Mapping[str, float] = field(default_factory=dict)
    """Medians in ms, of ``ttft`` and ``tpot``, where the file has them."""
    degrees: Mapping[str, int] = field(default_factory=dict)
    """Degrees ``tp`` and ``pp``, where the file's metadata has them."""

    @property
    def in_flight(self) -> float:
        """Mean number of requests in the server, by Little's law."""
        return self.requests_per_s * (self.ttft_ms + max(self.output_length - 1, 0) * self.tpot_ms) / 1e3

    def workload(self, engine: EnginePolicy | None = None) -> Workload:
        """What was asked of the server. With both a limit and a rate, the one that set the load."""
        how: dict[str, Any] = {"concurrency": min(self.max_concurrency or self.num_prompts, self.num_prompts)}
        limited = self.max_concurrency is not None and self.in_flight >= _FULL * self.max_concurrency
        if self.request_rate is not None and not limited:
            how = {"request_rate": self.request_rate}
        return Workload(
            input_length=max(1, round(self.input_length)),
            output_length=max(1, round(self.output_length)),
            engine=engine or EnginePolicy(name="vllm"),
            **how,
        )


def read_vllm(path: Source) -> list[VllmBenchmark]:
    """The runs in one result file: one, or, written with ``--append-result``, several.

    Raises:
        ValueError: a file that cannot be read, is no such JSON (which keys are missing), or tells of a run in which
            nothing came back.
    """
    path = Path(path)
    try:
        text = read_text(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    found: list[Any] = []
    for data in parse_json_documents(text, str(path), most=_MOST_RUNS):
        found += data if isinstance(data, list) else [data]
    if len(found) > _MOST_RUNS:
        raise ValueError(f"{path} holds {len(found):,} runs; at most {_MOST_RUNS:,} are read")
    if not found:
        raise ValueError(f"{path} is empty: vllm bench serve writes a result with --save-result")
    names = [path.name] if len(found) == 1 else [f"{path.name}#{i}" for i in range(1, len(found) + 1)]
    return [_benchmark(name, data) for name, data in zip(names, found, strict=True)]


def _benchmark(name: str, data: Any) -> VllmBenchmark:
    if not isinstance(data, dict):
        raise ValueError(f"{name} must hold an object as vllm bench serve writes it; it holds a {type(data).__name__}")
    missing = [key for key in ("num_prompts", *_NUMBERS) if key not in data]
    if missing:
        raise ValueError(
            f"{name} lacks {', '.join(missing)}: it is no result of vllm bench serve (--save-result), which has them"
        )
    values = {key: _number(name, data, key) for key in ("num_prompts", *_NUMBERS)}
    if values["completed"] < 1 or values["total_output_tokens"] < 1:
        raise ValueError(
            f"{name}: {values['completed']:g} requests came back with {values['total_output_tokens']:g} tokens; there "
            f"is nothing to compare"
        )
    rate, limit, model_id = data.get("request_rate"), data.get("max_concurrency"), data.get("model_id")
    model_id = "" if model_id is None else model_id
    check_text(f"{name}: model_id", model_id)
    degrees = {}
    for degree, keys in _DEGREES.items():
        for key in keys:
            if key in data:
                given = _number(name, data, key)
                if given < 1 or not given.is_integer():
                    raise ValueError(f"{name}: {key} must be a whole number of at least 1, got {shown(data[key])}")
                degrees[degree] = int(given)
                break
    return VllmBenchmark(
        name=name,
        model_id=model_id[:_LONGEST_NAME],
        num_prompts=int(values["num_prompts"]),
        completed=int(values["completed"]),
        max_concurrency=None if limit is None else int(_number(name, data, "max_concurrency")),
        request_rate=None if rate in (None, "inf") else _number(name, data, "request_rate"),
        input_length=values["total_input_tokens"] / values["completed"],
        output_length=values["total_output_tokens"] / values["completed"],
        ttft_ms=values["mean_ttft_ms"],
        tpot_ms=values["mean_tpot_ms"],
        output_tokens_per_s=values["output_throughput"],
        requests_per_s=values["request_throughput"],
        medians_ms={
            what: _number(name, data, f"median_{what}_ms") for what in ("ttft", "tpot") if f"median_{what}_ms" in data
        },
        degrees=degrees,
    )


def _number(name: str, data: Mapping[str, Any], key: str) -> float:
    value = data[key]
    if isinstance(value, str):  # --metadata gives texts
        with suppress(ValueError):
            value = float(value)
    return float(check_number(f"{name}: {key}", value, least=0, most=_LARGEST))


def beside_vllm(
    sources: "Source | VllmBenchmark | Sequence[Source | VllmBenchmark]",
    model: ModelSpec,
    machine: Machine,
    *,
    tp: int | None = None,
    pp: int | None = None,
    replicas: int = 1,
    engine: EnginePolicy | None = None,
    calibration: Calibration | None = None,
    constants: Constants = DEFAULT,
) -> pd.DataFrame:
    """What the server did beside what is predicted for it; one row per run.

    Columns: ``run``, ``model_id``, ``tp``, ``pp``, ``replicas``, ``load`` (in words), ``input_length``,
    ``output_length``; for ``tpot_ms``, ``ttft_ms`` and ``output_tokens_per_s`` ``predicted_...``, ``measured_...``
    (means) and ``..._error_pct``; ``tpot_low_ms``, ``tpot_high_ms`` (nine of ten are said to lie within) and
    ``within``; ``binding``; ``note``.

    Args:
        sources: result files, or runs that were read.
        model, machine: what the server runs, on what. The file has only the model's name.
        tp, pp: of the server; by default what the file's metadata says, and pp=1.
        replicas: copies behind one address.
        engine: how the engine runs it; vLLM's usual way by default.
        calibration, constants: as for ``predict``.

    Raises:
        ValueError: what :func:`read_vllm` and ``predict`` say, or a tp that is given nowhere.
    """
    if isinstance(sources, str | os.PathLike | VllmBenchmark):
        sources = [sources]
    runs = [run for each in sources for run in ([each] if isinstance(each, VllmBenchmark) else read_vllm(each))]
    rows = []
    for run in runs:
        t, p = tp or run.degrees.get("tp"), pp or run.degrees.get("pp", 1)
        if t is None:
            raise ArgumentError(
                "tp",
                run.name,
                "must be given with a result that does not say on how many GPUs the server ran, as it does after vllm "
                "bench serve --metadata tensor_parallel_size=4",
            )
        try:
            workload = run.workload(engine)
            made = predict(
                model, machine, workload, t, p, replicas=replicas, calibration=calibration, constants=constants
            )
        except ArgumentError as error:
            raise ArgumentError(error.argument, error.value, f"{error.rule} ({run.name})") from error
        except ValueError as error:
            raise ValueError(f"{run.name}: {error}") from error
        predicted = {
            "tpot_ms": made.tpot_ms,
            "ttft_ms": made.ttft_ms,
            "output_tokens_per_s": made.output_tokens_per_s,
        }
        row: dict[str, Any] = {
            "run": run.name,
            "model_id": run.model_id,
            "tp": t,
            "pp": p,
            "replicas": replicas,
            "load": (
                f"{workload.request_rate:g} requests/s"
                if workload.request_rate
                else f"{workload.concurrency} in flight"
            ),
            "input_length": run.input_length,
            "output_length": run.output_length,
        }
        for name, value in predicted.items():
            measured = getattr(run, name)
            row |= {
                f"predicted_{name}": value,
                f"measured_{name}": measured,
                f"{name}_error_pct": 100 * (value / measured - 1) if measured else math.nan,
            }
        low, high = made.tpot_range_ms
        rows.append(
            row
            | {
                "tpot_low_ms": low,
                "tpot_high_ms": high,
                "within": low <= run.tpot_ms <= high,
                "binding": made.binding,
                "note": "; ".join(_notes(run, model)),
            }
        )
    return pd.DataFrame(rows)


def _notes(run: VllmBenchmark, model: ModelSpec) -> list[str]:
    notes = []
    if run.completed < run.num_prompts:
        notes.append(f"{run.num_prompts - run.completed} of {run.num_prompts} requests failed")
    if run.max_concurrency is None and run.request_rate is None:
        notes.append("all requests were sent at once: no steady state to compare with")
    elif run.completed < 3 * (run.max_concurrency or 0):
        notes.append("fewer than three requests per place in flight: mostly filling and draining")
    asked, known = (_plain(text) for text in (run.model_id, model.name))
    if run.model_id and known not in asked and asked not in known:
        notes.append(f"the server ran {run.model_id}, predicted is {model.name}")
    return notes


def _plain(name: str) -> str:
    last = name.rstrip("/").rsplit("/", 1)[-1].lower()
    return "".join(letter for letter in last.removeprefix("meta-") if letter.isalnum())
