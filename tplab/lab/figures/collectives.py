"""All-reduce: latency, bus bandwidth, bytes per rank, and a measured race."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tplab.collectives.cost import AlphaBeta, Curve, errors, fit_line, leave_out_error, lower_bound_us, time_us
from tplab.lab import style
from tplab.lab.figures import marks
from tplab.moved import say_new_names
from tplab.shown import algorithm_text, bytes_text, number, time_text

_SERIES_COLOURS = (style.COLLECTIVE, style.FORWARD, style.WEIGHT_GRADIENT, style.POINT_TO_POINT, style.MUTED)
_SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up")
_TIMES: dict[str, Any] = {"row": 1, "col": 1}
_PALE = "rgba(116, 193, 251, 0.45)"
_ERRORS: dict[str, Any] = {"row": 2, "col": 1}
"""The two plots of :func:`latency_figure`."""


def latency_figure(
    frame: pd.DataFrame,
    *,
    badge: str,
    link: AlphaBeta | None = None,
    beside: Mapping[str, Callable[[float], float]] | None = None,
) -> go.Figure:
    """Time against size, log-log, with residuals below.

    Points are medians of the slowest rank, whiskers (the thin vertical lines) reach to the 95th percentile. Of the
    first series: the alpha-beta line (the teaching model), the interpolated curve, and the lower bound of any algorithm
    on this link.

    Args:
        frame: as ``sweep_frame`` gives it, or ``NcclTest.frame`` of another collective.
        link: one link's alpha and beta, for the lower bound; without it the bound is not drawn.
        beside: further curves by name, each microseconds by bytes, such as the advisor's formula.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.72, 0.28], vertical_spacing=0.06)
    for (name, rows), colour, symbol in zip(_series(frame), _SERIES_COLOURS, _SYMBOLS, strict=False):
        above, none = rows["p95_us"] - rows["p50_us"], [0.0] * len(rows)
        whiskers = {"type": "data", "array": above, "arrayminus": none, "width": 3}
        hover = "%{x} bytes: %{y:.1f} µs<extra>" + name + "</extra>"
        x, y, name = rows["bytes"], rows["p50_us"], f"measured: {name}"
        marks.points(figure, x, y, name, colour, symbol, error_y=whiskers, hover=hover, **_TIMES)
    series = _series(frame)
    if series and len(series[0][1]) >= 3:
        _add_models(figure, series[0][1], link)
    sizes = frame["bytes"] if len(frame) else pd.Series([1024, 1 << 20])
    dense = np.geomspace(sizes.min(), sizes.max(), 200)
    for (name, us), colour in zip((beside or {}).items(), (style.FORWARD, style.POINT_TO_POINT), strict=False):
        marks.line(figure, dense, [us(size) for size in dense], name, colour, "longdash", **_TIMES)
    figure.update_xaxes(type="log", **_byte_ticks(sizes))
    figure.update_xaxes(title="message size S (bytes of the tensor on each rank)", row=2, col=1)
    figure.update_yaxes(title="time of one call, µs", type="log", row=1, col=1, **style.log_ticks(frame["p50_us"]))
    figure.update_yaxes(title="model − measured, %", ticksuffix=" %", row=2, col=1)
    measured = frame["collective"].iloc[0] if "collective" in frame and len(frame) else "all-reduce"
    return style.card(figure, title=f"{measured.capitalize()} latency", badge=badge, height=560)


def add_recorded(figure: go.Figure, rows: pd.DataFrame, *, column: str, name: str) -> go.Figure:
    """A recorded sweep as a pale curve behind a figure of this machine's; returns the same figure.

    Args:
        figure: from ``latency_figure`` or ``busbw_figure``.
        rows: one algorithm on one number of ranks.
        column: ``p50_us`` or ``busbw_GBps``, as the figure has it.
        name: what the legend calls it.
    """
    rows = rows.sort_values("bytes")
    hover = "%{x} bytes: %{y:,.3~r}" + (" µs" if column == "p50_us" else " GB/s")
    marks.line(figure, rows["bytes"], rows[column], name, _PALE, width=12, hover=hover)
    figure.data = (figure.data[-1], *figure.data[:-1])  # behind the others
    if column == "p50_us":
        both = [value for trace in figure.data if trace.yaxis in (None, "y") for value in trace.y]
        figure.update_yaxes(row=1, col=1, **style.log_ticks(both))
    return figure


def explain_beside(frame: pd.DataFrame, rows: pd.DataFrame, where: str) -> str:
    """A sentence that sets a sweep beside a recorded one: the smallest message and the bandwidth of the largest.

    Args:
        frame: this machine's sweep.
        rows: one algorithm of the recorded one.
        where: name of that machine.
    """
    mine = frame[frame["algorithm"] == frame["algorithm"].iloc[0]].sort_values("bytes")
    small = max(int(mine["bytes"].min()), int(rows["bytes"].min()))
    here, there = (
        Curve(each["bytes"], each["p50_us"]).time_us(small) for each in (mine.drop_duplicates("bytes"), rows)
    )
    large, largest = mine.iloc[-1], rows.sort_values("bytes").iloc[-1]
    return (
        f"Your {int(large['num_ranks'])} ranks: {bytes_text(small)} in {time_text(here)}, up to "
        f"{number(large['busbw_GBps'])} GB/s busbw. {where}: {time_text(there)}, and "
        f"{number(largest['busbw_GBps'])} GB/s at {bytes_text(int(largest['bytes']))}."
    )


def _add_models(figure: go.Figure, rows: pd.DataFrame, link: AlphaBeta | None) -> None:
    sizes, times = rows["bytes"].to_numpy(float), rows["p50_us"].to_numpy(float)
    line, curve = fit_line(sizes, times), Curve(sizes, times)
    dense = np.geomspace(sizes[0], sizes[-1], 200)
    n = int(rows["num_ranks"].iloc[0])
    formula = f"line: {line.alpha_us:.0f} µs + S / {line.beta_GBps:.2f} GB/s"
    models = [
        (formula, [line.time_us(s) for s in dense], "dash", style.INK),
        ("curve through the points", [curve.time_us(s) for s in dense], "solid", style.DECODE),
    ]
    if link is not None:
        bound = [lower_bound_us(s, n, link.alpha_us, link.beta_GBps, ports=n - 1) for s in dense]
        models.append(("lower bound on this link", bound, "dot", style.MUTED))
    for name, values, dash, colour in models:
        marks.line(figure, dense, values, name, colour, dash, **_TIMES)
    residuals = {
        "line": (np.array([line.time_us(s) for s in sizes]) / times - 1, style.INK, "diamond-open"),
        "curve, each point left out in turn": (leave_one_out(sizes, times) / times - 1, style.DECODE, "circle"),
    }
    hover = "%{x} bytes: %{y:+.0f} %<extra></extra>"
    for name, (relative, colour, symbol) in residuals.items():
        marks.points(figure, sizes, 100 * relative, f"error of the {name}", colour, symbol, hover=hover, **_ERRORS)
    figure.add_hline(y=0, line={"color": "#AEB6C1", "width": 1}, **_ERRORS)


def leave_one_out(sizes: np.ndarray, times: np.ndarray) -> np.ndarray:
    """What the curve through all other points says of each point; NaN at the ends, which it could only guess."""
    predicted = np.full(len(sizes), np.nan)
    for i in range(1, len(sizes) - 1):
        keep = np.arange(len(sizes)) != i
        predicted[i] = Curve(sizes[keep], times[keep]).time_us(sizes[i])
    return predicted


def busbw_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """Bus bandwidth against size: algbw · 2(n-1)/n, which a ring on this link cannot exceed.

    A series per algorithm, and per number of ranks where there are several; then algbw is drawn, too, dashed.
    """
    figure = go.Figure()
    several = frame["num_ranks"].nunique() > 1
    for (name, rows), colour, symbol in zip(_series(frame), _SERIES_COLOURS, _SYMBOLS, strict=False):
        look, hover = {"symbol": symbol, "size": 8}, "%{x} bytes: %{y:.2f} GB/s"
        marks.line(figure, rows["bytes"], rows["busbw_GBps"], f"busbw: {name}", colour, marker=look, hover=hover)
        if several:
            marks.line(figure, rows["bytes"], rows["algbw_GBps"], f"algbw: {name}", colour, "dash", hover=hover)
    sizes = frame["bytes"] if len(frame) else pd.Series([1024, 1 << 20])
    figure.update_xaxes(title="message size S (bytes of the tensor on each rank)", type="log", **_byte_ticks(sizes))
    figure.update_yaxes(title="busbw = S / t · 2(n−1)/n, GB/s", rangemode="tozero")
    return style.card(figure, title="All-reduce bus bandwidth", badge=badge, height=460)


def bytes_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """Bytes each rank sent, counted, beside the formula.

    Args:
        frame: rows of ``algorithm``, ``rank``, ``counted_bytes``, ``formula_bytes``.
    """
    figure = go.Figure()
    labels = [f"{algorithm_text(str(row.algorithm))}<br>rank {row.rank}" for row in frame.itertuples()]
    name, hover = "counted at the send calls", "%{y:,} bytes<extra>counted</extra>"
    marks.bars(figure, labels, frame["counted_bytes"], name, style.POINT_TO_POINT, hover=hover)
    figure.add_scatter(
        x=labels,
        y=frame["formula_bytes"],
        mode="markers",
        name="formula",
        marker={"symbol": "line-ew", "size": 34, "line": {"color": style.INK, "width": 3}},
        hovertemplate="%{y:,} bytes<extra>formula</extra>",
    )
    figure.update_yaxes(title="bytes sent by the rank", rangemode="tozero")
    return style.card(figure, title="Bytes on the wire, per rank", badge=badge, height=420)


def race_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """Algorithms side by side, measured and by formula.

    Args:
        frame: as ``race_frame`` gives it.
    """
    figure = go.Figure()
    names = [algorithm_text(name) for name in frame["algorithm"]]
    hover = "%{y:,.3~r} µs<extra>measured</extra>"
    marks.bars(figure, names, frame["p50_us"], "measured", style.COLLECTIVE, hover=hover)
    if frame["formula_us"].notna().all():
        figure.add_scatter(
            x=names,
            y=frame["formula_us"],
            mode="markers",
            name="formula with the link's α and β",
            marker={"symbol": "line-ew", "size": 44, "line": {"color": style.INK, "width": 3}},
            hovertemplate="%{y:,.3~r} µs<extra>formula</extra>",
        )
    figure.update_yaxes(title="time of one all-reduce, µs", rangemode="tozero")
    size, n = bytes_text(int(frame["bytes"].iloc[0])), int(frame["num_ranks"].iloc[0])
    return style.card(figure, title=f"All-reduce of {size} on {n} ranks", badge=badge, height=340)


def explain_race(frame: pd.DataFrame) -> str:
    """Sentences on a measured race (``race_frame``): who was the fastest, who should have been, and how far off the
    formulas are."""
    if frame.empty:
        return ""
    rows = frame.to_dict("records")
    first = min(rows, key=lambda row: row["p50_us"])
    text = [f"Fastest here: {algorithm_text(first['algorithm'])}, {time_text(first['p50_us'])}."]
    if frame["formula_us"].notna().all():
        least = frame["formula_us"].min()
        by_formula = [row["algorithm"] for row in rows if row["formula_us"] <= least * (1 + 1e-9)]
        named = " or ".join(map(algorithm_text, by_formula))
        agrees = "so does the formula" if first["algorithm"] in by_formula else f"the formula says {named}"
        text[0] = f"{text[0][:-1]}; {agrees}."
        times = [f"{algorithm_text(row['algorithm'])} {number(row['p50_us'] / row['formula_us'], 2)}" for row in rows]
        text.append(f"Times as long as its formula: {', '.join(times)}.")
    if not frame["correct"].all():
        text.append("Some results were WRONG.")
    return " ".join(text)


def _series(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    if frame.empty:
        return []
    several = frame["num_ranks"].nunique() > 1
    groups = frame.groupby(["algorithm", "dtype", "num_ranks"], sort=False)
    return [
        (f"{algorithm_text(str(algorithm))}, {dtype}" + f", {n} ranks" * several, rows.sort_values("bytes"))
        for (algorithm, dtype, n), rows in groups
    ]


def _byte_ticks(sizes: Sequence[int] | pd.Series) -> dict[str, list[object]]:
    """Powers of four with binary units: a log axis' own ticks at powers of ten say nothing about buffers."""
    low, high = int(np.floor(np.log2(min(sizes)))), int(np.ceil(np.log2(max(sizes))))
    ticks = [1 << power for power in range(low - low % 2, high + 1, 2)]
    return {"tickvals": list(ticks), "ticktext": [bytes_text(tick) for tick in ticks]}


def algorithms_figure(
    n: int,
    alpha_us: float,
    beta_GBps: float,
    algorithms: Sequence[str] = ("one-shot", "two-shot", "recursive-doubling", "tree", "ring"),
) -> go.Figure:
    """The formulas of all-reduce algorithms on ``n`` ranks with equal links, and the lower bound of any."""
    sizes = np.geomspace(256, 1 << 30, 120)
    figure = go.Figure()
    for name, colour, dash in zip(
        algorithms, _SERIES_COLOURS, ("solid", "dash", "dot", "dashdot", "longdash"), strict=False
    ):
        times = [time_us(name, size, n, alpha_us, beta_GBps) for size in sizes]
        marks.line(figure, sizes, times, algorithm_text(name), colour, dash, hover="%{y:.1f} µs")
    bound = [lower_bound_us(size, n, alpha_us, beta_GBps, ports=n - 1) for size in sizes]
    marks.line(figure, sizes, bound, "lower bound", style.IDLE, width=6)
    figure.update_xaxes(
        title="message size S (bytes of the tensor on each rank)", type="log", **_byte_ticks([256, 1 << 30])
    )
    figure.update_yaxes(
        title="time of one all-reduce, µs", type="log", **style.log_ticks([alpha_us, 2 * (1 << 30) / beta_GBps / 1e3])
    )
    title = f"All-reduce formulas, {n} ranks, α = {number(alpha_us)} µs, β = {number(beta_GBps)} GB/s"
    return style.card(figure, title=title, badge="MODEL", height=460)


def explain_sweep(frame: pd.DataFrame) -> str:
    """Sentences on a sweep (``sweep_frame``): small messages, large ones, how well the line and the curve fit and which
    of the two is nearer, and whether results were right."""
    if frame.empty:
        return ""
    algorithm, dtype = frame["algorithm"].iloc[0], frame["dtype"].iloc[0]
    rows = frame[(frame["algorithm"] == algorithm) & (frame["dtype"] == dtype)].sort_values("bytes")
    small, large = rows.iloc[0], rows.iloc[-1]
    wrong = int((~frame["correct"]).sum())
    text = [
        f"{algorithm_text(algorithm)}, {dtype}: {bytes_text(int(small['bytes']))} takes {small['p50_us']:,.0f} µs, "
        f"{bytes_text(int(large['bytes']))} takes {large['p50_us']:,.0f} µs "
        f"({large['algbw_GBps']:.2f} GB/s algbw, {large['busbw_GBps']:.2f} GB/s busbw)."
    ]
    if len(rows) >= 5:
        line = fit_line(rows["bytes"], rows["p50_us"])
        off = errors(line, rows["bytes"], rows["p50_us"])
        left_out = leave_out_error(rows["bytes"], rows["p50_us"])
        text.append(
            f"The line {line.alpha_us:,.0f} µs + S / {line.beta_GBps:.2f} GB/s is off by {off.mean_pct:.0f} % on "
            f"average, {off.max_pct:.0f} % at worst; the curve, on every second size left out, by "
            f"{left_out.mean_pct:.0f} %: {_nearer(off.mean_pct, left_out.mean_pct)}."
        )
    checked = "Every result was checked on every rank" if not wrong else f"WRONG on some rank: {wrong} results"
    text.append(f"{checked}.")
    return " ".join(text)


def _nearer(line_pct: float, curve_pct: float) -> str:
    low, high = sorted((line_pct, curve_pct))
    if low > 0.75 * high or high < 5:
        return "neither is clearly better"
    return "the curve is nearer" if curve_pct < line_pct else "the line is nearer, for the points scatter"


def explain_busbw(frame: pd.DataFrame) -> str:
    """Sentences on the largest message that was swept (``sweep_frame``) on each number of ranks: which of the two
    bandwidths is the same on all."""
    if frame.empty:
        return ""
    size = int(min(rows["bytes"].max() for _, rows in frame.groupby("num_ranks")))
    largest = frame[frame["bytes"] == size].drop_duplicates("num_ranks").sort_values("num_ranks")
    each = [
        f"{row['num_ranks']} ranks: algbw {number(row['algbw_GBps'])}, busbw {number(row['busbw_GBps'])}"
        for row in largest.to_dict("records")
    ]
    text = f"{bytes_text(size)} in GB/s. {'; '.join(each)}."
    if len(largest) < 2:
        return text + (" On 2 ranks the factor is 1: both are the same." if largest["num_ranks"].iloc[0] == 2 else "")
    alg, bus = (100 * (largest[name].max() / largest[name].min() - 1) for name in ("algbw_GBps", "busbw_GBps"))
    text += f" Between the numbers of ranks algbw differs by {alg:.0f} %, busbw by {bus:.0f} %"
    if bus < alg and bus < 20:
        return f"{text}: busbw is nearly a property of the links."
    return f"{text}: busbw, too, depends on their number, so something else than the links binds."


def explain_growth(what: str, curve: Curve, nbytes: float) -> str:
    """A sentence that says whether a message is bound by latency or by bandwidth: how much longer twice the bytes take.

    Args:
        what: name of the message.
        curve: time by size.
        nbytes: size of the message.
    """
    us = curve.time_us(nbytes)
    times = curve.time_us(2 * nbytes) / us
    bound = "latency-bound" if times < 4 / 3 else "bandwidth-bound" if times > 5 / 3 else "in between"
    return f"{what}, {bytes_text(nbytes)}: {us:.0f} µs; twice the bytes take {times:.2f} times as long: {bound}"


def explain_emulated(frame: pd.DataFrame) -> str:
    """Sentences on all-reduces over a declared link (``measure_emulated``): how far from the formula, by size."""
    if frame.empty:
        return ""
    by_size = frame.assign(more_us=frame["p50_us"] - frame["formula_us"]).groupby("bytes")[["more_us", "error_pct"]]
    off = by_size.mean().reset_index()
    sizes = []
    for row in off.to_dict("records"):
        more = "more" if row["more_us"] >= 0 else "less"
        size = bytes_text(row["bytes"])
        sizes.append(f"{size} takes {abs(row['more_us']):,.0f} µs {more} ({row['error_pct']:+.0f} %)")
    text = f"Beside the formula, on average over the algorithms: {', '.join(sizes)}."
    if len(off) > 1:
        falls = all(before >= after for before, after in pairwise(off["error_pct"].abs()))
        text += (
            " The larger the message, the nearer it comes to the declared link."
            if falls
            else " That does not fall with the size: the cores were busy with something else."
        )
    return text if frame["correct"].all() else text + " Some results were WRONG."


say_new_names(__name__)
