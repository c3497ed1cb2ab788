"""The user's own server beside the prediction: results of the programs that people measure servers with.

What is read: files and logs of ``vllm bench serve``, ``sglang.bench_serving`` and TensorRT-LLM's ``benchmark_serving``,
their printed tables, ``genai-perf`` and ``aiperf`` (JSON and CSV), ``guidellm``, InferenceX, LLMPerf; told apart by
content. A result says what was asked (prompts, most in flight or arrival rate), what came out (tokens, times,
throughput) and mostly which model; seldom on how many GPUs nor how they were split: that is said here, unless vLLM's
benchmark was started with ``--metadata tensor_parallel_size=4`` or the like. Pure: no torch.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pandas as pd

from tplab.checks import ArgumentError
from tplab.files import MAX_BYTES, parse_json_documents, read_text
from tplab.models.precision import ITEMSIZE
from tplab.models.spec import ModelSpec
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.constants import DEFAULT, Constants
from tplab.topology.advisor.prediction import predict
from tplab.topology.advisor.workload import EnginePolicy
from tplab.topology.machine.machine import Machine
from tplab.topology.published.benchmark import Benchmark
from tplab.topology.published.benchmark_forms import READ, benchmark_of
from tplab.topology.published.benchmark_text import results_in

Source = str | os.PathLike[str]
_MOST_RUNS = 500
_COMPARED = ("tpot_ms", "ttft_ms", "output_tokens_per_s")


def read_benchmark(path: Source) -> list[Benchmark]:
    """The runs in one file: one, or several (``--append-result``, lines of JSON, a sweep, a log with many tables).

    Raises:
        ValueError: a file that cannot be read, holds no result that is known (which keys are missing), is of a program
            that runs no server, or tells of a run in which nothing came back.
    """
    path = Path(path)
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise ValueError(
                f"{path} is longer than {MAX_BYTES:,} bytes: save the result without the details of each request "
                f"(without --save-detailed, --output-details)"
            )
        text = read_text(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    if not text.strip():
        raise ValueError(f"{path} is empty: vllm bench serve writes a result with --save-result")
    found, remarks = _results(text, path)
    if len(found) > _MOST_RUNS:
        benchmark_of(path.name, found[0])  # which says so if they are no runs
        raise ValueError(f"{path} holds {len(found):,} runs; at most {_MOST_RUNS:,} are read")
    names = [path.name] if len(found) == 1 else [f"{path.name}#{i}" for i in range(1, len(found) + 1)]
    runs = [run for name, data in zip(names, found, strict=True) for run in benchmark_of(name, data)]
    return [replace(runs[0], remarks=(*runs[0].remarks, *remarks)), *runs[1:]] if runs else []


def _results(text: str, path: Path) -> tuple[list[Any], list[str]]:
    """The results in a text as JSON has them, and remarks."""
    refused: ValueError | None = None
    if text.lstrip()[:1] in ("{", "["):
        try:
            documents = parse_json_documents(text, str(path), most=_MOST_RUNS)
        except ValueError as error:
            refused = error  # a log may begin so, too
        else:
            found: list[Any] = []
            for data in documents:
                found += data if isinstance(data, list) else [data]
            if not found:
                raise ValueError(f"{path} holds an empty list: there is no result in it")
            return found, []
    try:
        found, remarks = results_in(text, path.name)
    except ValueError as error:
        raise refused or error from None
    if not found:
        raise refused or ValueError(f"{path} holds no result of a benchmark that is read: {READ}")
    return found, remarks


def beside_benchmark(
    sources: "Source | Benchmark | Sequence[Source | Benchmark]",
    model: ModelSpec,
    machine: Machine,
    *,
    tp: int | None = None,
    pp: int | None = None,
    replicas: int | None = None,
    input_length: float | None = None,
    output_length: float | None = None,
    engine: EnginePolicy | None = None,
    calibration: Calibration | None = None,
    constants: Constants = DEFAULT,
) -> pd.DataFrame:
    """What the server did beside what is predicted for it; one row per run.

    Columns: ``run``, ``program``, ``model_id``, ``engine``, ``tp``, ``pp``, ``replicas``, ``load`` (in words),
    ``input_length``, ``output_length``; for ``tpot_ms``, ``ttft_ms`` and ``output_tokens_per_s`` ``predicted_...``,
    ``measured_...`` (means) and ``..._error_pct``; ``tpot_low_ms``, ``tpot_high_ms`` (nine of ten are said to lie
    within) and ``within``; ``binding``; ``note``. What is no steady load has no prediction, and the note says why.

    Args:
        sources: files with results, or runs that were read.
        model, machine: what the server runs, on what. A result has only the model's name.
        tp, pp: of the server; by default what the result says, and pp=1.
        replicas: copies behind one address (data parallel); by default what the result says, else 1.
        input_length, output_length: mean tokens of a prompt and of an answer, where the result does not say them.
        engine: how the engine runs it; the usual way by default. A ``generic`` one takes the name that the result has.
        calibration, constants: as for ``predict``.

    Raises:
        ValueError: what :func:`read_benchmark` and ``predict`` say, or a tp or a length that is given nowhere.
    """
    if isinstance(sources, str | os.PathLike | Benchmark):
        sources = [sources]
    runs = [run for each in sources for run in ([each] if isinstance(each, Benchmark) else read_benchmark(each))]
    rows, seen = [], dict[str, str]()
    for run in runs:
        t = run.degrees.get("tp") if tp is None else tp
        p = run.degrees.get("pp", 1) if pp is None else pp
        copies = run.degrees.get("replicas", 1) if replicas is None else replicas
        if t is None:
            raise ArgumentError(
                "tp",
                run.name,
                "must be given with a result that does not say on how many GPUs the server ran, as it does after vllm "
                "bench serve --metadata tensor_parallel_size=4",
            )
        run = replace(
            run,
            input_length=input_length if run.input_length is None else run.input_length,
            output_length=output_length if run.output_length is None else run.output_length,
        )
        row: dict[str, Any] = {
            "run": run.name,
            "program": run.program,
            "model_id": run.model_id,
            "engine": run.engine if engine is None or engine.name == EnginePolicy().name else engine.name,
            "tp": t,
            "pp": p,
            "replicas": copies,
            "load": "no steady load",
            "input_length": run.input_length,
            "output_length": run.output_length,
        }
        predicted = dict.fromkeys(_COMPARED, math.nan)
        low, high, binding = math.nan, math.nan, ""
        notes = [*run.notes(), *_others(run, model, machine)]
        split = {"tp": t, "pp": p, "replicas": copies}
        if {**split, **run.degrees} != split:
            said = ", ".join(f"{degree} {number}" for degree, number in run.degrees.items())
            notes.append(f"the result says {said}: the throughput is of that many GPUs")
        if not run.unpredicted:
            try:
                workload = run.workload(engine)
                made = predict(
                    model, machine, workload, t, p, replicas=copies, calibration=calibration, constants=constants
                )
            except ArgumentError as error:
                raise ArgumentError(error.argument, error.value, f"{error.rule} ({run.name})") from error
            except ValueError as error:
                raise ValueError(f"{run.name}: {error}") from error
            predicted = {name: getattr(made, name) for name in _COMPARED}
            if made.reason is not None:
                notes.append(f"by the prediction it {made.reason}")
                if made.fits:  # cannot keep up: the wait for the first token has no end
                    predicted["ttft_ms"] = math.nan
            (low, high), binding = made.tpot_range_ms, made.binding
            rate, in_flight = workload.request_rate, workload.concurrency
            row["load"] = f"{rate:g} requests/s" if rate else f"{in_flight} in flight"
        for name, value in predicted.items():
            measured = getattr(run, name)
            row |= {
                f"predicted_{name}": value,
                f"measured_{name}": measured,
                f"{name}_error_pct": 100 * (value / measured - 1) if measured else math.nan,
            }
        figures = repr(astuple(replace(run, name="")))
        if figures in seen:
            notes.append(f"the same figures as {seen[figures]} above: one result twice")
        seen[figures] = run.name
        rows.append(
            row
            | {
                "tpot_low_ms": low,
                "tpot_high_ms": high,
                "within": math.nan if run.unpredicted else low <= run.tpot_ms <= high,
                "binding": binding,
                "note": "; ".join(notes),
            }
        )
    return pd.DataFrame(rows)


read_vllm, beside_vllm = read_benchmark, beside_benchmark
"""The names that these had when they read one program's file."""


def _others(run: Benchmark, model: ModelSpec, machine: Machine) -> list[str]:
    """Where the result is of another model or precision, or of other GPUs."""
    notes = []
    asked, known = (_plain(text) for text in (run.model_id, model.name))
    if run.model_id and known not in asked and asked not in known:
        notes.append(f"the server ran {run.model_id}, predicted is {model.name}")
    sizes = [ITEMSIZE.get(precision.lower()) for precision in (run.weight_precision, model.weight_precision)]
    if None not in sizes and sizes[0] != sizes[1]:
        notes.append(f"the result is of {run.weight_precision} weights, predicted are {model.weight_precision}")
    if run.gpu and _chip(run.gpu) != _chip(machine.gpu.name):
        notes.append(f"the result is of {run.gpu}, predicted is {machine.gpu.name}")
    return notes


def _plain(name: str) -> str:
    last = name.rstrip("/").rsplit("/", 1)[-1].lower()
    return "".join(letter for letter in last.removeprefix("meta-") if letter.isalnum())


def _chip(name: str) -> str:
    return name.lower().replace("_", "-").split("-")[0]
