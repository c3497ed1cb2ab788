"""Tensor-parallel layers: what communication costs beside computation, and what hiding it gains."""

import math

import pandas as pd
import plotly.graph_objects as go

from tplab.collectives.volumes import chunk_lengths
from tplab.lab import style

_KINDS = {
    "computation": (style.FORWARD, ""),
    "hidden communication": ("#E3A39C", ""),  # a tint of the collective's colour: the same bytes, but they cost nothing
    "exposed communication": (style.COLLECTIVE, "/"),
}


def overlap_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """A row-parallel layer at several chunk counts: computation, and the communication it did not hide.

    Bars are measured; diamonds are the model (chunks pipelined over matmul and link). The dashed line is the bound: no
    way of hiding gets below the larger of computation and communication.

    Args:
        frame: as ``chunks_frame`` gives it.
    """
    figure = go.Figure()
    labels = [str(k) for k in frame["chunks"]]
    _time_bars(figure, labels, frame)
    figure.add_scatter(
        x=labels,
        y=frame["predicted_us"] / 1e3,
        mode="markers",
        name="predicted",
        marker={"symbol": "diamond", "size": 11, "color": style.BACKWARD, "line": {"color": style.INK, "width": 1}},
        customdata=frame["hidden_share"] * 100,
        hovertemplate="predicted %{y:.1f} ms; measured: %{customdata:.0f} % of what can be hidden is<extra></extra>",
    )
    if len(frame):
        bound = float(frame["bound_us"].iloc[0]) / 1e3
        figure.add_scatter(
            x=labels,
            y=[bound] * len(labels),
            mode="lines",
            name=f"bound: the larger of computation and communication, {bound:.1f} ms",
            line={"dash": "dash", "color": style.INK, "width": 2},
            hoverinfo="skip",
        )
    figure.update_layout(barmode="stack", bargap=0.45)
    figure.update_xaxes(title="chunks", type="category")
    figure.update_yaxes(title="milliseconds", rangemode="tozero")
    return style.card(figure, title="Chunked all-reduce: what stays exposed", badge=badge, height=460)


def strategies_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """A stack of blocks by strategy: computation, and exposed communication.

    Args:
        frame: as ``measure_strategies`` gives it.
    """
    figure = go.Figure()
    _time_bars(figure, list(frame["strategy"]), frame)
    figure.update_layout(barmode="stack", bargap=0.45)
    figure.update_yaxes(title="milliseconds", rangemode="tozero")
    return style.card(figure, title="Ways to communicate, on the same blocks", badge=badge, height=440)


def _time_bars(figure: go.Figure, labels: list[str], frame: pd.DataFrame) -> None:
    for name, column in (("computation", "compute_us"), ("exposed communication", "exposed_us")):
        colour, pattern = _KINDS[name]
        figure.add_bar(
            x=labels,
            y=frame[column] / 1e3,
            name=name,
            marker=style.bar_marker(colour, pattern),
            text=[f"{value / 1e3:.1f}" for value in frame[column]],
            textposition="inside",
            insidetextanchor="middle",
            hovertemplate="%{y:.2f} ms<extra>" + name + "</extra>",
        )
    figure.update_layout(uniformtext={"minsize": 10, "mode": "hide"})


def phases_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """Shares of a block's time by number of tokens: decode on the left, prefill on the right.

    Args:
        frame: rows of ``tokens``, ``compute_us``, ``exposed_us``.
    """
    figure = go.Figure()
    labels = [f"{tokens:,}" for tokens in frame["tokens"]]
    total = frame["compute_us"] + frame["exposed_us"]
    for name, column in (("computation", "compute_us"), ("exposed communication", "exposed_us")):
        colour, pattern = _KINDS[name]
        figure.add_bar(
            x=labels,
            y=100 * frame[column] / total,
            name=name,
            marker=style.bar_marker(colour, pattern),
            text=[f"{value / 1e3:.2f} ms" for value in frame[column]],
            textposition="inside",
            insidetextanchor="middle",
            hovertemplate="%{y:.0f} %<extra>" + name + "</extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_xaxes(title="tokens in the step (1: decode; many: prefill)", type="category")
    figure.update_yaxes(title="share of the block's time", ticksuffix=" %", range=[0, 100])
    return style.card(figure, title="Where a tensor-parallel block spends its time", badge=badge, height=420)


def timeline_figure(timeline: pd.DataFrame, *, badge: str) -> go.Figure:
    """One pass as it ran: per rank a lane of computation and a half-height lane of communication below it.

    Args:
        timeline: as ``record_timeline`` gives it.
    """
    figure = go.Figure()
    ranks = sorted(timeline["rank"].unique())
    for kind, (colour, pattern) in _KINDS.items():
        rows = timeline[timeline["kind"] == kind]
        lane = 0.0 if kind == "computation" else 0.62
        figure.add_bar(
            orientation="h",
            base=rows["start_us"] / 1e3,
            x=(rows["end_us"] - rows["start_us"]) / 1e3,
            y=1.5 * rows["rank"] + lane,
            width=0.6 if kind == "computation" else 0.3,
            name=kind,
            marker=style.bar_marker(colour, pattern),
            customdata=rows["name"],
            hovertemplate="%{customdata} %{x:.2f} ms<extra>" + kind + "</extra>",
        )
    figure.update_layout(barmode="overlay")
    figure.update_xaxes(title="milliseconds")
    figure.update_yaxes(
        tickvals=[1.5 * rank + 0.2 for rank in ranks], ticktext=[f"rank {rank}" for rank in ranks], autorange="reversed"
    )
    strategy = timeline["strategy"].iloc[0] if len(timeline) else ""
    return style.card(figure, title=f"Timeline: {strategy}", badge=badge, height=200 + 90 * len(ranks))


def chunk_lanes_figure(
    num_chunks: int, *, compute_ms: float, comm_ms: float, overhead_ms: float, latency_ms: float, tokens: int = 512
) -> go.Figure:
    """The model of a chunked layer as two lanes: chunk i's all-reduce runs under chunk i+1's matmul.

    Args:
        compute_ms, comm_ms: of the whole, in one piece.
        overhead_ms, latency_ms: what each matmul and each message cost however small they are; both are part of
            ``compute_ms`` and ``comm_ms`` once.
    """
    starts: dict[str, list[float]] = {"computation": [], "hidden communication": [], "exposed communication": []}
    lengths: dict[str, list[float]] = {kind: [] for kind in starts}
    shares = [part / tokens for part in chunk_lengths(tokens, num_chunks)]
    computing = [overhead_ms + (compute_ms - overhead_ms) * share for share in shares]
    computed = sum(computing)
    clock = ended = 0.0
    for share, compute in zip(shares, computing, strict=True):
        starts["computation"].append(clock)
        lengths["computation"].append(compute)
        clock += compute
        start = max(clock, ended)
        ended = start + latency_ms + (comm_ms - latency_ms) * share
        hidden = max(0.0, min(ended, computed) - start)
        for kind, begin, length in (
            ("hidden communication", start, hidden),
            ("exposed communication", start + hidden, ended - start - hidden),
        ):
            if length > 0:
                starts[kind].append(begin)
                lengths[kind].append(length)
    figure = go.Figure()
    for kind, (colour, pattern) in _KINDS.items():
        figure.add_bar(
            orientation="h",
            base=starts[kind],
            x=lengths[kind],
            y=["computation" if kind == "computation" else "communication"] * len(starts[kind]),
            name=kind,
            marker=style.bar_marker(colour, pattern, line={"color": "white", "width": 1}),
            hovertemplate="%{x:.2f} ms<extra>" + kind + "</extra>",
        )
    bound = max(compute_ms, comm_ms)
    figure.add_vline(x=bound, line={"dash": "dash", "color": style.INK, "width": 2})
    figure.update_layout(barmode="overlay", bargap=0.35)
    figure.update_xaxes(title="milliseconds", range=[0, 1.05 * (compute_ms + comm_ms)])
    figure.update_yaxes(categoryorder="array", categoryarray=["communication", "computation"])
    total = max(ended, computed)
    title = (
        f"{num_chunks} {'chunk' if num_chunks == 1 else 'chunks'}: {total:.1f} ms; in one piece "
        f"{compute_ms + comm_ms:.1f}, bound {bound:.1f} ms"
    )
    return style.card(figure, title=title, badge="MODEL", height=300)


def error_bytes_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """All-reduces by what they send and how wrong they are.

    Args:
        frame: rows of ``method``, ``error_pct`` (of the exact sum's RMS), ``worst_pct``, ``ratio_to_bf16``.
    """
    figure = go.Figure()
    colours = (style.FORWARD, style.WEIGHT_GRADIENT, style.DECODE, style.BACKWARD, style.POINT_TO_POINT)
    columns = ("ratio_to_bf16", "error_pct", "worst_pct")
    rows = zip(frame["method"], *(frame[column].tolist() for column in columns), strict=True)
    for index, (method, ratio, error, worst) in enumerate(rows):
        wrong = worst > 10  # not rounding: a number is off by a tenth of the largest there is
        figure.add_scatter(
            x=[ratio],
            y=[max(error, 1e-6)],
            mode="markers",
            name=method,
            marker={
                "size": 13,
                "symbol": "x" if wrong else ("circle", "square", "diamond", "triangle-up", "triangle-down")[index % 5],
                "color": style.COLLECTIVE if wrong else colours[index % len(colours)],
            },
            hovertemplate="%{x:.2f} of bfloat16's bytes, %{y:.3g} % wrong<extra>" + method + "</extra>",
        )
    figure.update_xaxes(title="bytes sent, in units of the bfloat16 all-reduce's", rangemode="tozero")
    errors = frame["error_pct"].clip(lower=1e-6)
    figure.update_yaxes(
        title="error, % of the sum's RMS",
        type="log",
        tickvals=[10.0**p for p in range(-6, 4)],
        ticktext=["1e-6", "1e-5", "0.0001", "0.001", "0.01", "0.1", "1", "10", "100", "1,000"],
    )
    if len(frame):
        figure.update_yaxes(range=[math.log10(errors.min()) - 0.5, math.log10(errors.max()) + 0.7])
        figure.update_xaxes(range=[0, 1.25 * float(frame["ratio_to_bf16"].max())])
    return style.card(figure, title="What an all-reduce sends, and how wrong it is", badge=badge, height=440)
