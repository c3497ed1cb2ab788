"""Computes the fitted constants from published tables: ``python -m tplab.topology.published.fit FOLDER``.

What is fitted on what, and nothing else:

  engines     hbm_share and one mfu of 8 and 16 bits for all; step_us, sequence_us and, where it runs 8 bits,
              small_batch_slowdown of each engine
              on served tables: time per token, and with half the weight the time of a whole request
  generated   step_us, light_kernels and mfu of FasterTransformer, the rest held
              on generated tables
  kernels     matmul_fixed_us and sharpness; kv_share and attention_fixed_us; attention_share
              on gemm_latency_*.csv and attention_latency_*.csv (columns as AIConfigurator exports them), bf16
  all-reduce  NCCL's protocols and the engines' own kernels, up to 8 MiB
              on allreduce_latency.csv

Least squares of ln(predicted / measured), flattened beyond ``_ROBUST`` so that one odd cell bends nothing. Few
constants for many cells on purpose: two shared ones and two or three per engine for 537 cells of two models, two GPUs,
three engines, four TP degrees and some twenty lengths. None per model, GPU or degree: the rest is structure. Each of
them is held near what it is known to be otherwise (``PRIORS``), as strongly as a few dozen cells would: a table of one
model cannot tell an engine's own time from that model's kernels, and what it cannot tell stays where it was.

The tables are not part of this project. ``main`` prints what comes out beside ``constants.DEFAULT``, for a person to
judge; the scoreboard (``validate``) calls ``fit_engines`` without the part that it then predicts.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tplab.files import read_frame
from tplab.models.shards import Layout
from tplab.topology.advisor.constants import (
    DEFAULT,
    Constants,
    CustomAllReduce,
    EngineConstants,
    LinkConstants,
    mfu_table,
)
from tplab.topology.advisor.latency import Server
from tplab.topology.advisor.layouts import Layouts, layout_arrays
from tplab.topology.advisor.memory import LayoutMemory
from tplab.topology.advisor.roofline import NARROW
from tplab.topology.machine.gpu_names import gpu_preset
from tplab.topology.published.tables import Case, read_folder

Floats = NDArray[np.float64]
_ROBUST = 0.05


def least_squares(
    residuals: Callable[[Floats], Floats], start: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> Floats:
    """The parameters between ``low`` and ``high`` that make the sum of ``sqrt(r² + _ROBUST²)`` small.

    Levenberg and Marquardt's method with numerical derivatives; enough for ten parameters and a good start.
    """
    lo, hi = np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)
    x, damping = np.clip(np.array(start, dtype=np.float64), lo, hi), 1e-2
    r = residuals(x)

    def loss(r: Floats) -> float:
        return float(np.sum(np.sqrt(r**2 + _ROBUST**2)))

    for _ in range(40):
        slopes = np.empty((len(r), len(x)))
        for i in range(len(x)):
            delta = max(abs(x[i]) * 1e-3, 1e-6)
            moved = x.copy()
            moved[i] += delta if x[i] + delta <= hi[i] else -delta
            slopes[:, i] = (residuals(moved) - r) / (moved[i] - x[i])
        weighted = slopes / np.sqrt(r**2 + _ROBUST**2)[:, None]
        normal, gradient, before = weighted.T @ slopes, weighted.T @ r, loss(r)
        for _ in range(8):
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-12), -gradient)
            candidate = np.clip(x + step, lo, hi)
            new = residuals(candidate)
            if loss(new) < before:
                x, r, damping = candidate, new, damping / 4
                break
            damping *= 5
        if loss(r) > before * (1 - 1e-5):
            break
    return x


# --- served and generated tables -------------------------------------------------------------------------------------


class Bench:
    """Cases with their layouts, grouped so that each model, GPU, engine and length is computed in one go."""

    def __init__(self, cases: Sequence[Case], constants: Constants = DEFAULT) -> None:
        self.cases = tuple(cases)
        groups: dict[Any, list[int]] = {}
        for i, case in enumerate(self.cases):
            w = replace(case.workload, concurrency=1)
            groups.setdefault((case.model, case.machine.gpu, case.machine.network, w, case.kind), []).append(i)
        self._groups = [(at, *self._layouts([self.cases[i] for i in at], constants)) for at in groups.values()]

    @staticmethod
    def _layouts(cases: Sequence[Case], constants: Constants) -> tuple[LayoutMemory, Layouts]:
        parts: dict[tuple[int, int], Layouts] = {}
        for case in cases:
            engine, layout = constants.engines[case.workload.engine.name], Layout.of(case.model, case.tp, case.pp)
            memory = LayoutMemory.of(case.model, case.machine.gpu, case.workload, layout)
            if (case.tp, case.pp) not in parts:
                parts[case.tp, case.pp] = layout_arrays(case.machine, [memory], engine, constants)
        return memory, Layouts.joined([parts[case.tp, case.pp] for case in cases])

    def predict(self, constants: Constants) -> Floats:
        """Rows: time per token and to the first one in ms, output tokens per second; one column per case.

        Of static batches the first is the call's time over its tokens, and the second is nan.
        """
        made = np.full((3, len(self.cases)), np.nan)
        for at, memory, layouts in self._groups:
            first = self.cases[at[0]]
            server = Server.of(first.machine, [memory], calibration=None, constants=constants, layouts=layouts)
            requests = np.array([float(self.cases[i].workload.concurrency or 1) for i in at])
            tokens = first.workload.output_length
            if first.static:
                call = server.generate_us(requests)
                made[0, at], made[2, at] = call / tokens / 1e3, requests * tokens / call * 1e6
            else:
                served = server.serve(requests)
                rate = served.requests_per_s * tokens
                if first.kind == "saturated":
                    rate = rate * _share_of_waves(requests / served.running)
                made[:, at] = served.tpot_us / 1e3, served.ttft_us / 1e3, rate
        return made


def _share_of_waves(waves: Floats) -> Floats:
    """Mean throughput over the steady one, of a benchmark that sends all its requests at once, ``waves`` times what can
    run: while the last of them end, fewer and fewer run."""
    waves = np.maximum(waves, 1.0)
    return waves / (waves + (1 - 1 / waves) / 2)


PRIORS = {
    "hbm_share": (0.88, 0.05),  # a copy on one H200: 0.88; single matmuls [K] 0.84
    "mfu": (0.65, 0.1),  # [K]: 0.8 for single matmuls of any precision; served ones run into each other's tails
    "step_us": (500.0, 0.6),
    "sequence_us": (50.0, 0.7),
    "small_batch_slowdown": (1.05, 0.1),  # [K] single matmuls: 1 to 1.25
}
"""Constant -> where it is held, and the standard deviation of its logarithm there."""
_SERVERS = ("vllm", "sglang", "trtllm", "generic")
"""Engines that run the same libraries' matmuls, and share ``mfu``."""
_PRIOR_CELLS = 54
"""So many cells does each prior weigh as much as, at a residual of one ``_SPREAD``."""
_SPREAD = 0.07
"""Residual of ln(predicted / measured) that a good prediction has."""


def fit_engines(cases: Sequence[Case], constants: Constants = DEFAULT) -> Constants:
    """``hbm_share``, ``mfu``, and what each engine among the served ``cases`` adds.

    Servers that are not among them, ``generic`` too, are left with what is known of any (``PRIORS``).

    Raises:
        ValueError: no served case.
    """
    served = [case for case in cases if case.kind == "served"]
    if not served:
        raise ValueError(f"none of {len(cases)} cases is of a served model: nothing to fit engines on")
    narrow = {case.workload.engine.name for case in served if case.model.weight_precision in NARROW}
    keys = [("", "hbm_share"), ("", "mfu")]
    for name in sorted({case.workload.engine.name for case in served}):
        keys += [(name, "step_us"), (name, "sequence_us")]
        keys += [(name, "small_batch_slowdown")] if name in narrow else []
    center, spread = np.array([PRIORS[key] for _, key in keys]).T
    unknown: dict[str, Any] = {key: PRIORS[key][0] for key in ("step_us", "sequence_us", "small_batch_slowdown")}

    def made(x: Floats) -> Constants:
        values = dict(zip(keys, np.exp(x).tolist(), strict=True))
        mfu = mfu_table(values.pop(("", "mfu")))
        engines = dict(constants.engines)
        for name in _SERVERS:
            engines[name] = replace(engines[name], mfu=mfu, **unknown)
        hbm_share = values.pop(("", "hbm_share"))
        for (name, key), value in values.items():
            engines[name] = replace(engines[name], **{key: value})
        return replace(constants, hbm_share=hbm_share, engines=engines)

    bench = Bench(served, constants)
    tpot = np.array([case.tpot_ms or np.nan for case in served])
    more = np.array([case.workload.output_length - 1 for case in served])
    whole = np.array([case.ttft_ms or np.nan for case in served]) + more * tpot

    def residuals(x: Floats) -> Floats:
        time, first, _ = bench.predict(made(x))
        requests = np.nan_to_num(np.log((first + more * time) / whole))
        held = np.sqrt(_PRIOR_CELLS) * _SPREAD * (x - np.log(center)) / spread
        return np.concatenate([np.log(time / tpot), requests / 2, held])

    least = [1.0 if key == "small_batch_slowdown" else 1e-3 * PRIORS[key][0] for _, key in keys]
    found = least_squares(residuals, *(np.log(x).tolist() for x in (center, least, 1e3 * center)))
    return made(found)


def fit_generated(cases: Sequence[Case], constants: Constants = DEFAULT) -> Constants:
    """``step_us``, ``light_kernels`` and fp16 mfu of FasterTransformer, on its static batches.

    Raises:
        ValueError: no such case.
    """
    name = "fastertransformer"
    static = [case for case in cases if case.static and case.workload.engine.name == name]
    if not static:
        raise ValueError(f"none of {len(cases)} cases is a static batch of {name}")
    old = constants.engines[name]

    measured, bench = np.array([case.tpot_ms for case in static]), Bench(static, constants)

    def made(x: Floats) -> Constants:
        step, kernels, mfu = (float(value) for value in x)
        engine = replace(old, step_us=step, light_kernels=kernels, mfu={**old.mfu, "fp16": mfu, "bf16": mfu})
        return replace(constants, engines={**constants.engines, name: engine})

    def residuals(x: Floats) -> Floats:
        return np.asarray(np.log(bench.predict(made(x))[0] / measured), dtype=np.float64)

    start = [old.step_us, old.light_kernels, old.mfu["fp16"]]
    return made(least_squares(residuals, start, [50.0, 5.0, 0.2], [5000.0, 60.0, 0.95]))


# --- kernels and collectives ------------------------------------------------------------------------------------------


def fit_matmul(table: pd.DataFrame, dtype: str = "bfloat16", gpu: str = "h200") -> dict[str, float]:
    """Start-up, share of bandwidth, share of peak and sharpness of single matmuls of 2M to 1G parameters."""
    params = table["n"] * table["k"]
    rows = table[(table["gemm_dtype"] == dtype) & (params >= 2e6) & (params < 1e9)]
    m, p = rows["m"].to_numpy(float), (rows["n"] * rows["k"]).to_numpy(float)
    us, spec = rows["latency_us"].to_numpy(float), gpu_preset(gpu)
    size, peak = (1.0, spec.peak_TFLOPS("fp8")) if dtype == "fp8" else (2.0, spec.bf16_TFLOPS)

    def residuals(x: Floats) -> Floats:
        memory, compute = p * size / (x[1] * spec.hbm_GBps * 1e3), 2e-6 * m * p / (x[2] * peak)
        return np.asarray(np.log((x[0] + (memory ** x[3] + compute ** x[3]) ** (1 / x[3])) / us), dtype=np.float64)

    x = least_squares(residuals, [4.0, 0.85, 0.65, 3.0], [0.0, 0.3, 0.2, 1.0], [30.0, 1.2, 1.0, 10.0])
    names = ("matmul_fixed_us", "share", "mfu", "sharpness")
    return dict(zip(names, map(float, x), strict=True)) | {"error": _error(residuals(x))}


def fit_attention(table: pd.DataFrame, gpu: str = "h200") -> dict[str, float]:
    """Start-up and share of bandwidth of decode attention; share of the peak of prompts of 2048 tokens and more."""
    spec = gpu_preset(gpu)
    rows = table[table["phase"] == "decode"]
    size = rows["num_key_value_heads"] * rows["head_dim"] * 4.0
    cached = (rows["batch_size"] * rows["context_len"] * size).to_numpy(float)
    us = rows["latency_us"].to_numpy(float)

    def decode(x: Floats) -> Floats:
        return np.asarray(np.log((x[0] + cached / (x[1] * spec.hbm_GBps * 1e3)) / us), dtype=np.float64)

    rows = table[(table["phase"] == "prefill") & (table["context_len"] >= 2048)]
    work = rows["batch_size"] * rows["context_len"] ** 2.0 * rows["num_heads"] * rows["head_dim"]
    flops, long_us = (2 * work).to_numpy(float), rows["latency_us"].to_numpy(float)

    def prompts(x: Floats) -> Floats:
        return np.asarray(np.log((x[0] + flops / (x[1] * spec.bf16_TFLOPS * 1e6)) / long_us), dtype=np.float64)

    a = least_squares(decode, [11.0, 0.85], [0.0, 0.3], [40.0, 1.2])
    b = least_squares(prompts, [20.0, 0.5], [0.0, 0.2], [60.0, 1.0])
    return {
        "attention_fixed_us": float(a[0]),
        "kv_share": float(a[1]),
        "error": _error(decode(a)),
        "attention_share": float(b[1]),
        "prompt_error": _error(prompts(b)),
    }


def fit_nccl(n: Floats, nbytes: Floats, us: Floats, bandwidth_GBps: float) -> tuple[LinkConstants, float]:
    """Both of NCCL's protocols on one family of links, and the mean error."""

    def time(x: Floats) -> Floats:
        wire = 2 * (1 - 1 / n) * nbytes * 1e-3 / bandwidth_GBps
        bulk_share = np.where(n == 2, x[5], x[6])
        small = x[0] + x[1] * (n - 1) + wire / np.minimum(x[2], bulk_share)
        return np.asarray(np.minimum(small, x[3] + x[4] * (n - 1) + wire / bulk_share), dtype=np.float64)

    def residuals(x: Floats) -> Floats:
        return np.asarray(np.log(time(x) / us), dtype=np.float64)

    start, high = [5.0, 1.5, 0.3, 15.0, 1.0, 0.7, 0.7], [50.0, 10.0, 1.0, 100.0, 10.0, 1.2, 1.2]
    x = least_squares(residuals, start, [0.0, 0.0, 0.005, 0.0, 0.0, 0.005, 0.005], high)
    names = ("base_us", "step_us", "small_share", "bulk_base_us", "bulk_step_us", "pair_share", "ring_share")
    return LinkConstants(**dict(zip(names, map(float, x), strict=True))), _error(residuals(x))


def fit_custom(n: Floats, nbytes: Floats, us: Floats, bandwidth_GBps: float) -> tuple[CustomAllReduce, float]:
    """One-shot and two-shot kernels of an engine, and the mean error."""

    def residuals(x: Floats) -> Floats:
        size = nbytes * 1e-3 / bandwidth_GBps
        one = x[0] + x[1] * (n - 1) + (n - 1) * size / x[2]
        two = x[3] + x[4] * (n - 1) + 2 * (1 - 1 / n) * size / x[5]
        return np.asarray(np.log(np.minimum(one, two) / us), dtype=np.float64)

    low, high = [0.0, 0.0, 0.05, 0.0, 0.0, 0.05], [50.0, 10.0, 1.0, 100.0, 10.0, 1.2]
    x = least_squares(residuals, [4.0, 0.2, 0.6, 7.0, 0.5, 0.7], low, high)
    names = ("one_shot_us", "one_shot_step_us", "one_shot_share", "two_shot_us", "two_shot_step_us", "two_shot_share")
    return CustomAllReduce(**dict(zip(names, map(float, x), strict=True))), _error(residuals(x))


def _error(residuals: Floats) -> float:
    return float(np.mean(np.abs(np.expm1(residuals))))


# --- the report -------------------------------------------------------------------------------------------------------


def report(folder: Path) -> list[str]:
    """One line per fitted group, beside what ``constants.DEFAULT`` has. Groups whose table is missing are left out."""
    lines = []
    tables = read_folder(folder)
    for fitted, names in ((fit_engines, None), (fit_generated, ["fastertransformer"])):
        try:
            made = fitted(tables.cases)
        except ValueError as error:
            lines.append(f"left out: {error}")
            continue
        lines.append(f"hbm_share {made.hbm_share:.3f} (in use: {DEFAULT.hbm_share})")
        for name in names or sorted(made.engines):
            if made.engines[name] != DEFAULT.engines[name]:
                lines.append(f"{name}: {_engine(made.engines[name])} (in use: {_engine(DEFAULT.engines[name])})")
    for pattern, lines_of in (
        ("gemm_latency_*.csv", _matmul_lines),
        ("attention_latency_*.csv", lambda table: [f"attention: {_rounded(fit_attention(table))}"]),
        ("allreduce_latency.csv", _all_reduce_table),
    ):
        for file in sorted(folder.glob(pattern)):
            table = read_frame(file, comment="#")
            try:
                lines += lines_of(table)
            except KeyError as error:
                raise ValueError(f"{file} lacks the column {error}") from None
            except (TypeError, ValueError) as error:
                raise ValueError(f"{file}: {error}") from None
    return lines


def _matmul_lines(table: pd.DataFrame) -> list[str]:
    return [
        f"matmul {library} {dtype}: {_rounded(fit_matmul(rows, str(dtype)))}"
        for (library, dtype), rows in table.groupby(["library", "gemm_dtype"])
    ]


def _all_reduce_table(table: pd.DataFrame) -> list[str]:
    table = table[(table["source_id"] == "aic") & ((table["library"] != "nccl-tests") | table["dtype"].eq("half"))]
    lines = []
    for (hardware, library, launch), rows in table.groupby(["hardware", "library", "launch_mode"]):
        lines += _all_reduce_lines(str(hardware), str(library), str(launch), rows)
    return lines


def _all_reduce_lines(hardware: str, library: str, launch: str, rows: pd.DataFrame) -> list[str]:
    gpu = gpu_preset(hardware.replace("_sxm", "").replace("_server", "").replace("_", "-"))
    nvlink = gpu.nvlink_GBps * gpu.num_nvlinks
    name = f"all-reduce {hardware} {library}"
    n, nbytes, us = (rows[key].to_numpy(float) for key in ("num_gpus", "bytes", "latency_us"))
    if library == "nccl-tests":
        link, error = fit_nccl(n, nbytes, us, nvlink or gpu.pcie_GBps)
        return [f"{name}: {link} error {error:.3f}"]
    if launch == "cuda_graph" and nvlink:
        small = nbytes <= 8 * 2**20
        kernel, error = fit_custom(n[small], nbytes[small], us[small], nvlink)
        return [f"{name}: {kernel} error {error:.3f}"]
    return []


def _engine(engine: EngineConstants) -> str:
    values = {
        "step_us": engine.step_us,
        "sequence_us": engine.sequence_us,
        "light_kernels": engine.light_kernels,
        "mfu": engine.mfu["fp16"],
        "small_batch_slowdown": engine.small_batch_slowdown,
    }
    return _rounded(values)


def _rounded(values: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.3g}" for key, value in values.items())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tplab.topology.published.fit FOLDER")
    try:
        print("\n".join(report(Path(sys.argv[1]))))
    except ValueError as error:
        sys.exit(str(error))
