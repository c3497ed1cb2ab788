"""Sentences generated from measurements: what the figures show, in numbers."""

from typing import Any

import pandas as pd

from tplab.collectives.cost import errors, fit_line, leave_out_error
from tplab.lab import style
from tplab.pipeline.trace import Trace


def explain_sweep(frame: pd.DataFrame) -> str:
    """Two or three sentences on a sweep (``sweep_frame``): small messages, large ones, and how well the models fit."""
    if frame.empty:
        return ""
    algorithm, dtype = frame["algorithm"].iloc[0], frame["dtype"].iloc[0]
    rows = frame[(frame["algorithm"] == algorithm) & (frame["dtype"] == dtype)].sort_values("bytes")
    small, large = rows.iloc[0], rows.iloc[-1]
    wrong = int((~frame["correct"]).sum())
    text = [
        f"{algorithm}, {dtype}: {style.bytes_text(int(small['bytes']))} take {small['p50_us']:,.0f} µs, "
        f"{style.bytes_text(int(large['bytes']))} take {large['p50_us']:,.0f} µs "
        f"({large['algbw_GBps']:.2f} GB/s algbw, {large['busbw_GBps']:.2f} GB/s busbw)."
    ]
    if len(rows) >= 5:
        line = fit_line(rows["bytes"], rows["p50_us"])
        off = errors(line, rows["bytes"], rows["p50_us"])
        left_out = leave_out_error(rows["bytes"], rows["p50_us"])
        text.append(
            f"The line {line.alpha_us:,.0f} µs + S / {line.beta_GBps:.2f} GB/s is off by {off.mean_pct:.0f} % on "
            f"average, {off.max_pct:.0f} % at worst; the curve, on every second size left out, by "
            f"{left_out.mean_pct:.0f} %."
        )
    checked = "Every result was checked on every rank" if not wrong else f"{wrong} results were WRONG on some rank"
    text.append(f"{checked}.")
    return " ".join(text)


def explain_chunks(frame: pd.DataFrame) -> str:
    """Sentences on chunk counts (``chunks_frame``): the best one, what it hides, how good the prediction was."""
    if frame.empty:
        return ""
    first, best = frame.iloc[0], frame.iloc[int(frame["total_us"].argmin())]
    predicted = frame.iloc[int(frame["predicted_us"].argmin())]
    off = 100 * (frame["predicted_us"] / frame["total_us"] - 1).abs().mean()
    regret = 100 * (predicted["total_us"] / best["total_us"] - 1)
    text = (
        f"In one piece {first['total_us'] / 1e3:.1f} ms, of which {first['exposed_us'] / 1e3:.1f} ms are exposed "
        f"communication; best in {_chunks(best)}: {best['total_us'] / 1e3:.1f} ms, which hides "
        f"{100 * best['hidden_share']:.0f} % of what can be hidden (overlap ratio {best['overlap_ratio']:.2f}). "
        f"The model says {_chunks(predicted)}, {regret:.0f} % slower than the best; its times are off by "
        f"{off:.0f} % on average."
    )
    return text if frame["correct"].all() else text + " Some results were WRONG."


def _chunks(row: "pd.Series[Any]") -> str:
    return "1 chunk" if row["chunks"] == 1 else f"{row['chunks']} chunks"


def explain_phases(frame: pd.DataFrame) -> str:
    """A sentence on a block's time by step size (``phases_frame``)."""
    if frame.empty:
        return ""
    small, large = frame.iloc[0], frame.iloc[-1]
    text = f"{_step(small)}: {small['exposed_pct']:.0f} % of {small['total_us'] / 1e3:.2f} ms is exposed communication"
    if len(frame) > 1:
        text += (
            f"; {_step(large)}: {large['exposed_pct']:.0f} % of {large['total_us'] / 1e3:.2f} ms. Computation and "
            f"bytes both grow with the tokens; the latency of two all-reduces does not"
        )
    text += "."
    return text if frame["correct"].all() else text + " Some results were WRONG."


def _step(row: "pd.Series[Any]") -> str:
    return "A decode step" if row["tokens"] == 1 else f"{row['tokens']:,} tokens"


def explain_pipeline(simulated: Trace, measured: Trace) -> str:
    """Sentences on a run of a schedule beside its simulation: makespan, bubble, and the most a rank held."""
    name, wanted = measured.schedule.name, int(simulated.is_compute.sum())
    done = int(measured.is_compute.sum())
    if not done:
        return ""
    if done < wanted:
        return f"{name}: {done:,} of {wanted:,} computations so far."
    text = (
        f"{name}: {measured.makespan_s * 1e3:.0f} ms measured, {simulated.makespan_s * 1e3:.0f} ms simulated, a ratio "
        f"of {measured.makespan_s / simulated.makespan_s:.3f}. The ranks were idle for {measured.idle_over_total:.1%} "
        f"of the time (simulated: {simulated.idle_over_total:.1%}), which is {measured.idle_over_work:.1%} of the work."
    )
    if measured.schedule.is_inference:
        return text
    held = measured.peak_activations_per_rank
    return text + f" At its peak rank 0 held {held[0]:g} micro-batches, the last rank {held[-1]:g}."


def explain_serving(frame: pd.DataFrame) -> str:
    """Sentences on an inference pipeline (frame of a plan in ``tplab.pipeline.serving``): what fills it, what costs."""
    if frame.empty:
        return ""
    off = frame["error_pct"].abs()
    if "in_flight" in frame:
        first, needed = frame.iloc[0], int(frame["needed"].iloc[0])
        text = (
            f"With {first['in_flight']} in flight {first['steps_per_s']:.0f} micro-batches get a token per second, "
            f"{first['of_best']:.0%} of what the slowest stage allows; the ring is full from k = {needed}"
        )
        full = frame[frame["full"]]
        text += f", measured {full['of_best'].iloc[0]:.0%}." if len(full) else "."
    elif "chunks" in frame:
        first, best = frame.iloc[0], frame.iloc[int(frame["measured_ms"].argmin())]
        text = (
            f"The prompt in one piece takes {first['measured_ms']:.0f} ms, for all stages but one wait; in "
            f"{_chunks(best)} {best['measured_ms']:.0f} ms, the least measured. The model says "
            f"{_chunks(frame.iloc[int(frame['simulated_ms'].argmin())])}: below, stages wait; above, each chunk costs "
            f"more than it fills."
        )
    else:
        first, last = frame.iloc[0], frame.iloc[-1]
        text = (
            f"One micro-batch takes {first['measured_ms']:.0f} ms and leaves the ranks idle for "
            f"{first['idle_over_total']:.0%}; {last['micro_batches']} take {last['measured_ms']:.0f} ms, "
            f"{last['per_micro_batch_ms']:.0f} ms each, {last['idle_over_total']:.0%} idle."
        )
    return text + f" Measurement and simulation differ by {off.median():.1f} % (median), {off.max():.1f} % at most."
