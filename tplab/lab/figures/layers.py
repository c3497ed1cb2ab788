"""Tensor-parallel layers: what communication costs beside computation, and what hiding it gains."""

import math
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tplab.collectives.volumes import chunk_lengths
from tplab.lab import style
from tplab.lab.figures import marks
from tplab.shown import number

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
    _time_bars(figure, [str(k) for k in frame["chunks"]], frame)
    hidden = frame["hidden_share"].clip(upper=1) * 100
    hover = "predicted %{y:.1f} ms; measured: %{customdata:.0f} % of what can be hidden is<extra></extra>"
    beside = [place + 0.36 for place in range(len(frame))]  # on a bar they would cover its label
    marks.predictions(figure, beside, frame["predicted_us"] / 1e3, "predicted", customdata=hidden, hover=hover)
    if len(frame):
        bound = float(frame["bound_us"].iloc[0]) / 1e3
        name = f"bound: the larger of computation and communication, {bound:.1f} ms"
        marks.line(figure, [-0.5, len(frame) - 0.5], [bound] * 2, name, style.INK, "dash")
    figure.update_xaxes(title="number of chunks")
    figure.update_yaxes(title="time of the layer, ms", rangemode="tozero")
    return style.card(figure, title="Chunked all-reduce: what stays exposed", badge=badge, height=460)


def strategies_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """A stack of blocks by strategy: computation, and exposed communication.

    Args:
        frame: as ``measure_strategies`` gives it.
    """
    figure = go.Figure()
    _time_bars(figure, [way_in_words(strategy) for strategy in frame["strategy"]], frame)
    figure.update_yaxes(title="time of the blocks, ms", rangemode="tozero")
    return style.card(figure, title="Ways to communicate, on the same blocks", badge=badge, height=440)


_WAYS = {
    "Blocking": "plain all-reduce",
    "Chunked": "{} chunks",
    "BatchSplit": "batch in {} parts",
    "SequenceParallel": "sequence parallel",
    "Int8": "int8",
    "OneKernel": "one kernel, {}",
    "WaitsAtOnce": "asynchronous, waited for at once",
}


def way_in_words(strategy: str) -> str:
    """``4 chunks`` for ``Chunked(4)``: a strategy, as frames hold it, for people. One that is not known stays."""
    name, _, argument = strategy.rstrip(")").partition("(")
    return _WAYS[name].format(argument.strip("'")) if name in _WAYS else strategy


def _time_bars(figure: go.Figure, labels: list[str], frame: pd.DataFrame) -> None:
    """Milliseconds, what is exposed said above its bar: few milliseconds of it leave no room inside."""
    places = list(range(len(frame)))
    _stacked_bars(figure, places, frame, 1e3, ("{:.1f}", ""), hover="%{y:.2f} ms")
    total, exposed = (frame["compute_us"] + frame["exposed_us"]) / 1e3, frame["exposed_us"] / 1e3
    said = [f"{value:.1f}" for value in exposed]  # and no word, which on a phone is wider than its bar
    more = {"mode": "text", "text": said, "textposition": "top center", "showlegend": False, "hoverinfo": "skip"}
    figure.add_scatter(x=places, y=total, name="exposed, ms", textfont={"color": style.COLLECTIVE}, **more)
    figure.update_layout(bargap=0.5, uniformtext={"minsize": 10, "mode": "hide"})
    lines = ["<br>".join(wrap(label, 12, break_on_hyphens=False)) for label in labels]
    figure.update_xaxes(tickvals=places, ticktext=lines, tickangle=0, range=[-0.6, len(frame) - 0.4])
    if len(frame):
        figure.update_yaxes(range=[0, 1.12 * max(total)])  # room for what is said above the highest


def _stacked_bars(
    figure: go.Figure, x: Sequence[Any], frame: pd.DataFrame, whole: Any, texts: tuple[str, str], *, hover: str
) -> None:
    """Computation and exposed communication over ``whole``, each with its milliseconds in the form of ``texts``."""
    for text, kind, column in zip(
        texts, ("computation", "exposed communication"), ("compute_us", "exposed_us"), strict=True
    ):
        inside: dict[str, Any] = {"textposition": "inside", "insidetextanchor": "middle", "textangle": 0}
        said = [text.format(value / 1e3) for value in frame[column]]
        marks.bars(figure, x, frame[column] / whole, kind, *_KINDS[kind], hover=hover, text=said, **inside)
    figure.update_layout(barmode="stack")


def phases_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """Shares of a block's time by number of tokens: decode on the left, prefill on the right.

    Args:
        frame: rows of ``tokens``, ``compute_us``, ``exposed_us``.
    """
    figure = go.Figure()
    labels = [f"{tokens:,}" for tokens in frame["tokens"]]
    total = frame["compute_us"] + frame["exposed_us"]
    _stacked_bars(figure, labels, frame, total / 100, ("{:.2f} ms", "{:.2f} ms"), hover="%{y:.0f} %")
    figure.update_layout(bargap=0.35)
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
        lane, width = (0.0, 0.6) if kind == "computation" else (0.62, 0.3)
        lengths, y = (rows["end_us"] - rows["start_us"]) / 1e3, 1.5 * rows["rank"] + lane
        more = {"orientation": "h", "base": rows["start_us"] / 1e3, "width": width, "customdata": rows["name"]}
        marks.bars(figure, lengths, y, kind, colour, pattern, hover="%{customdata} %{x:.2f} ms", **more)
    figure.update_layout(barmode="overlay")
    figure.update_xaxes(title="time since the first rank began, ms")
    figure.update_yaxes(
        tickvals=[1.5 * rank + 0.2 for rank in ranks], ticktext=[f"rank {rank}" for rank in ranks], autorange="reversed"
    )
    strategy = way_in_words(timeline["strategy"].iloc[0]) if len(timeline) else ""
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
    spans: dict[str, list[tuple[float, float]]] = {kind: [] for kind in _KINDS}
    shares = [part / tokens for part in chunk_lengths(tokens, num_chunks)]
    computing = [overhead_ms + (compute_ms - overhead_ms) * share for share in shares]
    computed = sum(computing)
    clock = ended = 0.0
    for share, compute in zip(shares, computing, strict=True):
        spans["computation"].append((clock, compute))
        clock += compute
        start = max(clock, ended)
        ended = start + latency_ms + (comm_ms - latency_ms) * share
        hidden = max(0.0, min(ended, computed) - start)
        spans["hidden communication"].append((start, hidden))
        spans["exposed communication"].append((start + hidden, ended - start - hidden))
    figure = go.Figure()
    more: dict[str, Any] = {"orientation": "h", "marker_line": {"color": "white", "width": 1}, "hover": "%{x:.2f} ms"}
    for kind, (colour, pattern) in _KINDS.items():
        seen = [(start, length) for start, length in spans[kind] if length > 0 or kind == "computation"]
        starts, lengths = [start for start, _ in seen], [length for _, length in seen]
        lane = ["computation" if kind == "computation" else "communication"] * len(seen)
        marks.bars(figure, lengths, lane, kind, colour, pattern, base=starts, **more)
    bound = max(compute_ms, comm_ms)
    figure.add_vline(x=bound, line={"dash": "dash", "color": style.INK, "width": 2})
    figure.update_layout(barmode="overlay", bargap=0.35)
    figure.update_xaxes(title="time, ms", range=[0, 1.05 * (compute_ms + comm_ms)])
    figure.update_yaxes(categoryorder="array", categoryarray=["communication", "computation"])
    total = max(ended, computed)
    title = (
        f"{num_chunks} {'chunk' if num_chunks == 1 else 'chunks'}: {total:.1f} ms; in one piece "
        f"{compute_ms + comm_ms:.1f}, bound {bound:.1f} ms"
    )
    return style.card(figure, title=title, badge="MODEL", height=300)


def error_bytes_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """All-reduces, one a row: what they send beside how wrong they are.

    Args:
        frame: rows of ``method``, ``error_pct`` (of the exact sum's RMS), ``worst_pct``, ``ratio_to_bf16``.
    """
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.1)
    errors, ratios = frame["error_pct"], frame["ratio_to_bf16"]
    # Not rounding: a number is off by a tenth of the largest there is.
    colours = [style.COLLECTIVE if worst > 10 else style.FORWARD for worst in frame["worst_pct"]]
    said = {"y": frame["method"], "cliponaxis": False, "hoverinfo": "skip"}
    sent = {"text": [f"{ratio:.2f} ×" for ratio in ratios], "textposition": "outside", "orientation": "h"}
    figure.add_bar(x=ratios, name="bytes", marker={"color": style.POINT_TO_POINT}, row=1, col=1, **said, **sent)
    wrong = {"text": [f"  {number(error, 2)} %" for error in errors], "textposition": "middle right"}
    symbols = ["x" if worst > 10 else "circle" for worst in frame["worst_pct"]]
    look = {"mode": "markers+text", "marker": {"color": colours, "size": 11, "symbol": symbols}}
    figure.add_scatter(x=errors, name="error", row=1, col=2, **said, **wrong, **look)
    figure.update_layout(showlegend=False, bargap=0.45)
    figure.update_yaxes(autorange="reversed", type="category")
    style.card(figure, title="What an all-reduce sends, and how wrong it is", badge=badge, height=170 + 40 * len(frame))
    figure.update_xaxes(title="bytes, × bfloat16's", title_font_size=13, rangemode="tozero", dtick=1, col=1)
    ticks = {name: values[:: -(len(values) // -3)] for name, values in style.log_ticks(errors).items()}  # 3 at most
    figure.update_xaxes(title="error, % of the RMS", title_font_size=13, type="log", tickangle=0, **ticks, col=2)
    if len(frame):
        figure.update_xaxes(range=[0, 1.25 * ratios.max()], col=1)
        figure.update_xaxes(range=[math.log10(errors.min()) - 0.5, math.log10(errors.max()) + 2], col=2)
    return figure


def explain_lanes(num_chunks: int, *, compute_ms: float, comm_ms: float, overhead_ms: float, latency_ms: float) -> str:
    """Sentences on the model of ``chunk_lanes_figure``: what a chunk computes and communicates, and what stays exposed.

    Args:
        num_chunks: into how many equal parts the tokens are cut.
        compute_ms, comm_ms, overhead_ms, latency_ms: as there.
    """
    compute = overhead_ms + (compute_ms - overhead_ms) / num_chunks
    comm = latency_ms + (comm_ms - latency_ms) / num_chunks
    each = f"each chunk computes {number(compute)} ms and communicates {number(comm)} ms"
    if num_chunks == 1:
        return f"One chunk: nothing to hide behind, all {number(comm)} ms are exposed."
    if compute >= comm:
        return f"{num_chunks} chunks: {each}. Only the last chunk's communication is exposed: {number(comm)} ms."
    exposed = num_chunks * comm - (num_chunks - 1) * compute
    return (
        f"{num_chunks} chunks: {each}, longer than the next one computes, so messages queue. Exposed: "
        f"{num_chunks} x {number(comm)} - {num_chunks - 1} x {number(compute)} = {number(exposed)} ms."
    )


_NOISE = 0.02
"""Differences below this share of a time are not called differences: medians of few samples move as much."""


def explain_chunks(frame: pd.DataFrame) -> str:
    """Sentences on chunk counts (``chunks_frame``): the best one, what it hides, how good the prediction was."""
    if frame.empty:
        return ""
    first, best = frame.iloc[0], frame.iloc[int(frame["total_us"].argmin())]
    predicted = frame.iloc[int(frame["predicted_us"].argmin())]
    off = 100 * (frame["predicted_us"] / frame["total_us"] - 1).abs().mean()
    regret = predicted["total_us"] / best["total_us"] - 1
    share = best["hidden_share"]
    hides = (
        "as good as the bound, within noise"
        if best["total_us"] < (1 + _NOISE) * best["bound_us"]
        else f"which hides {100 * share:.0f} % of what can be hidden"
    )
    followed = (
        "also the fastest measured"
        if predicted["chunks"] == best["chunks"]
        else "as fast as the best, within noise"
        if regret < _NOISE
        else f"{100 * regret:.0f} % slower than the best"
    )
    text = (
        f"In one piece {first['total_us'] / 1e3:,.1f} ms, of which {first['exposed_us'] / 1e3:,.1f} ms are exposed "
        f"communication; fastest in {_chunks(best)}: {best['total_us'] / 1e3:,.1f} ms, {hides}. "
        f"The model says {_chunks(predicted)}, {followed}; its times are off by {off:.0f} % on average."
    )
    return text if frame["correct"].all() else text + " Some results were WRONG."


def explain_phases(frame: pd.DataFrame) -> str:
    """Sentences on a block's time by step size (``phases_frame``), and whether the share of communication falls."""
    if frame.empty:
        return ""
    small, large = frame.iloc[0], frame.iloc[-1]
    text = f"{_step(small)}: {small['exposed_pct']:.0f} % of {small['total_us'] / 1e3:.2f} ms is exposed communication"
    if len(frame) > 1:
        text += f"; {_step(large)}: {large['exposed_pct']:.0f} % of {large['total_us'] / 1e3:.2f} ms. "
        change = large["exposed_pct"] - small["exposed_pct"]
        if change < -5:
            text += (
                "The share falls: the latency of two all-reduces does not grow with the tokens, the computation does"
            )
        elif change > 5:
            text += "The share rises: on this link the bytes of the tokens cost more than their computation"
        else:
            text += "The share hardly changes: computation and communication grow alike"
    text += "."
    return text if frame["correct"].all() else text + " Some results were WRONG."


def explain_strategies(frame: pd.DataFrame) -> str:
    """Sentences on ways to communicate, measured on the same blocks (``measure_strategies``; of a recording the rows of
    one number of tokens): what is exposed, which is fastest, and what int8 gains or costs."""
    if frame.empty:
        return ""
    plain = frame[frame["strategy"] == "Blocking()"].iloc[0]
    rounds = frame["strategy"].str.startswith("Int8")
    others = frame[(frame["strategy"] != "Blocking()") & ~rounds]
    exposed = 100 * plain["exposed_us"] / plain["total_us"]
    text = f"Plain all-reduce: {plain['total_us'] / 1e3:.1f} ms, {exposed:.0f} % of it exposed communication."
    if len(others):
        best = others.sort_values("total_us").iloc[0]
        times, way = best["total_us"] / plain["total_us"], way_in_words(best["strategy"])
        if times < 1 - _NOISE:
            text += f" Fastest of the exact ways: {way}, {100 * (1 - times):.0f} % faster."
        elif times <= 1 + _NOISE:
            text += f" No exact way is clearly faster; the next is {way}, within {100 * _NOISE:.0f} % of it."
        else:
            text += f" No exact way is faster; the next is {way}, {100 * (times - 1):.0f} % slower."
    for row in frame[rounds].to_dict("records"):
        times = row["total_us"] / plain["total_us"]
        said = f"{times:.2f} times as long as" if abs(times - 1) > _NOISE else "as long as"
        text += f" int8, with about half of the bytes, takes {said} the plain one."
    return text


def explain_overlap(timelines: Mapping[str, pd.DataFrame]) -> str:
    """A sentence per recorded pass: how much of its communication ran while something was computed.

    Args:
        timelines: as ``record_timeline`` gives them, by name.
    """
    said = []
    for name, timeline in timelines.items():
        length = (timeline["end_us"] - timeline["start_us"]).groupby(timeline["kind"]).sum() / 1e3
        hidden, exposed = length.get("hidden communication", 0.0), length.get("exposed communication", 0.0)
        share = hidden / (hidden + exposed) if hidden + exposed else 0.0
        waited = exposed / max(1, timeline["rank"].nunique())
        said.append(
            f"{name}: {100 * share:.0f} % of the communication ran under computation, {waited:.1f} ms per rank were "
            f"waited for."
        )
    return "\n".join(said)


def explain_quantised(frame: pd.DataFrame) -> str:
    """Sentences on int8 beside bfloat16 (``compare_quantised``): bytes, time, error, and what adding up int8 does."""
    if frame.empty:
        return ""
    methods = frame["method"]
    plain = frame[methods == "bfloat16"].iloc[0]
    int8 = frame[methods.str.contains("per scale")]
    best = int8.sort_values("p50_us").iloc[0]
    times = best["p50_us"] / plain["p50_us"]
    text = f"{best['method']}: {best['ratio_to_bf16']:.2f} of bfloat16's bytes, {times:.2f} of its time"
    if times > 1 + _NOISE:
        text += ": slower, since quantising costs more here than the bytes that it saves"
    elif times > best["ratio_to_bf16"] + 0.1:
        text += ": quantising takes a part of what the bytes save"
    errors = (number(frame["error_pct"], 2) for frame in (best, plain))
    text += ". Its error is {} % of the sums, bfloat16's own {} %.".format(*errors)
    naive = frame[methods.str.contains("added up")]
    if len(naive):
        worst = float(naive["worst_pct"].iloc[0])
        text += f" Added up as int8, the worst number is off by {worst:.0f} % of the largest."
    return text


def _step(row: "pd.Series[Any]") -> str:
    return "A decode step" if row["tokens"] == 1 else f"{row['tokens']:,} tokens"


def _chunks(row: "pd.Series[Any]") -> str:
    return "1 chunk" if row["chunks"] == 1 else f"{row['chunks']} chunks"
