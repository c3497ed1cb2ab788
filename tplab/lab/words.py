"""Sentences generated from measurements: what the figures show, in numbers."""

from typing import Any

import pandas as pd

from tplab.collectives.cost import errors, fit_line, leave_out_error
from tplab.lab import style


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
