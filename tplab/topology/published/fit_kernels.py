"""Constants of single kernels and collectives from published tables: matmuls, attention, all-reduces.

What of them is fitted on what: see ``fit``, which prints all.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tplab.topology.advisor.constants import DEFAULT, FAMILY_OF, CustomAllReduce, LinkConstants
from tplab.topology.machine.gpu_names import gpu_preset
from tplab.topology.machine.machine import Link, Machine

Floats = NDArray[np.float64]
_ROBUST = 0.05


def least_squares(
    residuals: Callable[[Floats], Floats],
    start: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    touches: "NDArray[np.bool_] | None" = None,
) -> Floats:
    """The parameters between ``low`` and ``high`` that make the sum of ``sqrt(r² + _ROBUST²)`` small.

    Levenberg and Marquardt's method with numerical derivatives; enough for ten parameters and a good start.

    Args:
        residuals: M of them, from N parameters.
        start, low, high: where to begin, and the bounds.
        touches: [N, M], whether a parameter changes a residual: parameters without one in common are moved together.
            None: each may change all.
    """
    lo, hi = np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)
    x, damping = np.clip(np.array(start, dtype=np.float64), lo, hi), 1e-2
    r = residuals(x)

    def loss(r: Floats) -> float:
        return float(np.sum(np.sqrt(r**2 + _ROBUST**2)))

    touched = np.ones((len(x), len(r)), dtype=bool) if touches is None else touches
    turns: list[list[int]] = []
    for i in range(len(x)):
        free = (turn for turn in turns if not (touched[turn].any(axis=0) & touched[i]).any())
        turn = next(free, None)
        turns.append([i]) if turn is None else turn.append(i)
    for _ in range(40):
        slopes = np.zeros((len(r), len(x)))
        delta = np.maximum(np.abs(x) * 1e-3, 1e-6)
        delta = np.where(x + delta <= hi, delta, -delta)
        for turn in turns:
            moved = x.copy()
            moved[turn] += delta[turn]
            change = residuals(moved) - r
            for i in turn:
                slopes[touched[i], i] = change[touched[i]] / delta[i]
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


def fit_nccl(n: Floats, nbytes: Floats, us: Floats, link: Link) -> tuple[LinkConstants, float]:
    """Both of NCCL's protocols on links such as this one, and the mean error. With one ``n`` alone, which cannot tell
    a step from the rest, the steps are those in use."""
    in_use = DEFAULT.links[FAMILY_OF[link.kind]]

    def time(x: Floats) -> Floats:
        wire = 2 * (1 - 1 / n) * nbytes * 1e-3 / link.bandwidth_GBps
        bulk_share = np.where(n == 2, x[5], x[6])
        small = x[0] + x[1] * (n - 1) + wire / np.minimum(x[2], bulk_share)
        return np.asarray(np.minimum(small, x[3] + x[4] * (n - 1) + wire / bulk_share), dtype=np.float64)

    def residuals(x: Floats) -> Floats:
        return np.asarray(np.log(time(x) / us), dtype=np.float64)

    start, high = [5.0, 1.5, 0.3, 15.0, 1.0, 0.7, 0.7], [50.0, 10.0, 1.0, 100.0, 10.0, 1.2, 1.2]
    low = [0.0, 0.0, 0.005, 0.0, 0.0, 0.005, 0.005]
    if len(set(n.tolist())) == 1:
        start[1] = low[1] = high[1] = in_use.step_us
        start[4] = low[4] = high[4] = in_use.bulk_step_us
        start[2], start[6] = in_use.small_share, in_use.ring_share
    x = least_squares(residuals, start, low, high)
    names = ("base_us", "step_us", "small_share", "bulk_base_us", "bulk_step_us", "pair_share", "ring_share")
    fitted: dict[str, Any] = dict(zip(names, map(float, x), strict=True))
    return replace(in_use, latency_us=link.latency_us, **fitted), _error(residuals(x))


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


def matmul_lines(table: pd.DataFrame) -> list[str]:
    """One line per library and precision."""
    return [
        f"matmul {library} {dtype}: {rounded(fit_matmul(rows, str(dtype)))}"
        for (library, dtype), rows in table.groupby(["library", "gemm_dtype"])
    ]


def all_reduce_table(table: pd.DataFrame) -> list[str]:
    """One line per machine, library and family of links."""
    table = table[(table["source_id"] == "aic") & ((table["library"] != "nccl-tests") | table["dtype"].eq("half"))]
    lines = []
    for (hardware, library, launch), rows in table.groupby(["hardware", "library", "launch_mode"]):
        lines += _all_reduce_lines(str(hardware), str(library), str(launch), rows)
    return lines


def _all_reduce_lines(hardware: str, library: str, launch: str, rows: pd.DataFrame) -> list[str]:
    machine = Machine.preset(hardware.replace("_sxm", "").replace("_server", ""))
    name = f"all-reduce {hardware} {library}"
    n, nbytes, us = (rows[key].to_numpy(float) for key in ("num_gpus", "bytes", "latency_us"))
    links = {size: machine.slowest_link(range(int(size))) for size in set(n.tolist())}
    family = np.array([FAMILY_OF[link.kind] if (link := links[size]) else "" for size in n.tolist()])
    if library == "nccl-tests":
        lines = []
        for each in sorted(set(family.tolist()) - {""}):
            of = family == each
            link = links[n[of][0]]
            assert link is not None, "a family is a link's"
            fitted, error = fit_nccl(n[of], nbytes[of], us[of], link)
            lines.append(f"{name}, {each}: {fitted} error {error:.3f}")
        return lines
    small = (nbytes <= 8 * 2**20) & (family == "nvlink")
    if launch == "cuda_graph" and small.any():
        nvlink = links[n[small][0]]
        assert nvlink is not None, "a family is a link's"
        kernel, error = fit_custom(n[small], nbytes[small], us[small], nvlink.bandwidth_GBps)
        return [f"{name}: {kernel} error {error:.3f}"]
    return []


def rounded(values: dict[str, float]) -> str:
    """As text, three digits each."""
    return ", ".join(f"{key} {value:.3g}" for key, value in values.items())
