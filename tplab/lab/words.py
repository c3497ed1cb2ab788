"""Sentences generated from measurements: what the figures show, in numbers."""

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
