"""The advisor's answer as figures: what a step is made of, the front, where the choice flips."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from tplab.lab import style
from tplab.lab.figures import marks
from tplab.shown import duration, fixed, number
from tplab.topology.advisor.advice import Advice
from tplab.topology.machine.machine import Link, Machine
from tplab.topology.machine.placement import place

_TERMS = {
    "weights": ("weights", style.FORWARD, ""),
    "lm_head": ("output head", "#3E6BB0", ""),
    "kv_cache": ("KV cache", style.DECODE, ""),
    "activations": ("activations", "#B9DFFD", ""),
    "kernels": ("kernel start-up", "#9AA3AE", "."),
    "all_reduce": ("all-reduces", style.COLLECTIVE, "/"),
    "hops": ("pipeline hops", style.POINT_TO_POINT, "\\"),
    "host": ("engine overhead (CPU)", "#6E7781", ""),
    "launch": ("launches", "#C9CFD6", "x"),
    "prefill": ("other requests' prefill", style.BACKWARD, ""),
    "bubble": ("waiting stages", style.IDLE, "-"),
}
"""Name, colour and pattern of each term of a step."""
_LAYOUT_LOOKS = (
    (style.FORWARD, "circle"),
    (style.COLLECTIVE, "square"),
    (style.WEIGHT_GRADIENT, "diamond"),
    (style.POINT_TO_POINT, "triangle-up"),
    ("#B07B00", "triangle-down"),
    (style.DECODE, "pentagon"),
    (style.MUTED, "star"),
    (style.INK, "cross"),
)


_MS = "%{x:,.3~r} ms"
_LABEL_ENDS = 0.6
"""Share of the width up to which a bar may reach and have its label beside it on the right."""


def waterfall_figure(frame: pd.DataFrame, *, title: str, badge: str) -> go.Figure:
    """Time per token, term by term from the top, and the sum. Next to each bar where its number comes from.

    Args:
        frame: as ``Advice.waterfall`` gives it: ``term``, ``ms``, ``share_pct``, ``provenance``.
    """
    shown = frame[frame["ms"] > 0]
    total = float(frame["ms"].sum())
    starts = (shown["ms"].cumsum() - shown["ms"]).tolist()
    order = []
    figure = go.Figure()
    level: dict[str, Any] = {"orientation": "h", "showlegend": False}
    edge = {"color": style.MUTED, "width": 0.5}
    for row, start in zip(shown.to_dict("records"), starts, strict=True):
        name, colour, pattern = _TERMS.get(row["term"], (row["term"], style.MUTED, ""))
        order.append(name)
        ms, source = float(row["ms"]), str(row["provenance"])
        hover = f"{number(ms)} ms, {row['share_pct']:.0f} %<br>{source}"
        marks.bars(figure, [ms], [name], name, colour, pattern, hover=hover, base=[start], marker_line=edge, **level)
        # Where there is room: to the right, to the left, or inside.
        left = start + ms > _LABEL_ENDS * total
        inside = left and start < (1 - _LABEL_ENDS) * total
        on_bar = style.text_on(colour)
        marks.note(
            figure,
            start if left and not inside else start + ms,
            name,
            f"<b>{number(ms)}</b>  {_short(source)}",
            colour=on_bar if inside else style.INK,
            xanchor="right" if left else "left",
            xshift=-6 if left else 6,
            bgcolor=colour if inside else None,
        )
    order.append("time per token")
    level |= {"text": [f"{number(total)} ms"], "textposition": "inside", "insidetextanchor": "end"}
    marks.bars(
        figure, [total], order[-1:], order[-1], style.INK, hover="%{x:,.3~r} ms", textfont_color="white", **level
    )
    figure.update_layout(barmode="overlay", bargap=0.25)
    figure.update_xaxes(title="milliseconds per output token", range=[0, 1.02 * total if total else 1])
    figure.update_yaxes(categoryorder="array", categoryarray=order[::-1], type="category")
    style.card(figure, title=title, badge=badge, height=170 + 34 * len(order))
    return figure


def _short(provenance: str) -> str:
    """A few words of where a term comes from; hovering shows all."""
    for start, words in (
        ("measured", "measured here"),
        ("interpolated", "between measurements"),
        ("formula on", "formula"),
        ("spec sheet", "spec sheet"),
        ("engine", "served tables" if "generic" not in provenance else "assumption"),
        ("follows", "follows"),
        ("assumption", "assumption"),
    ):
        if provenance.startswith(start):
            return words
    return provenance.split(",")[0].split(" (")[0]


def front_figure(frame: pd.DataFrame, *, best: str, badge: str, tpot_limit_ms: float | None = None) -> go.Figure:
    """Time per token against tokens per second and GPU, a line per layout along its load; what nothing beats is marked.

    Args:
        frame: as ``Advice.front`` gives it.
        best: the layout that is recommended, drawn thick.
        tpot_limit_ms: drawn as a dashed line.
    """
    figure = go.Figure()
    on_front = frame[frame["on_front"]]
    layouts = list(dict.fromkeys([best, *on_front["layout"]]))
    looks = dict(zip(layouts, _LAYOUT_LOOKS, strict=False))
    others = frame[~frame["layout"].isin(list(looks))]
    if len(others):
        _other_layouts(figure, others)
    for layout in reversed(list(looks)):
        rows = frame[frame["layout"] == layout].sort_values("concurrency")
        colour, symbol = looks[layout]
        sizes = [10 if yes else 4 for yes in rows["on_front"]]
        marks.line(
            figure,
            rows["tpot_ms"],
            rows["tokens_per_s_per_gpu"],
            layout,
            colour,
            width=3 if layout == best else 1.5,
            marker={"symbol": symbol, "size": sizes, "color": colour, "line": {"color": "white", "width": 1}},
            customdata=rows[["concurrency", "ttft_ms"]],
            hover="%{customdata[0]} in flight: %{x:,.3~r} ms per token, %{y:,.3~r} tokens/s per GPU, first after "
            "%{customdata[1]:,.3~r} ms",
        )
    figure.update_xaxes(title="milliseconds per output token", type="log", **style.log_ticks(frame["tpot_ms"]))
    throughput = frame["tokens_per_s_per_gpu"]
    figure.update_yaxes(title="tokens/s per GPU", type="log", **style.log_ticks(throughput))
    if tpot_limit_ms is not None:
        figure.add_vline(x=tpot_limit_ms, line={"dash": "dash", "color": style.INK, "width": 2})
        _beside_line(figure, tpot_limit_ms, 0.0, f"limit, {number(tpot_limit_ms)} ms", xanchor="left")
    style.card(figure, title="Latency against throughput, along the load", badge=badge, height=480)
    figure.update_xaxes(range=[np.log10(frame["tpot_ms"].min()) - 0.05, np.log10(frame["tpot_ms"].max()) + 0.05])
    return figure


def _other_layouts(figure: go.Figure, frame: pd.DataFrame) -> None:
    lines = [rows for _, rows in frame.sort_values("concurrency").groupby("layout", sort=False)]
    figure.add_scatter(
        x=marks.apart(rows["tpot_ms"] for rows in lines),
        y=marks.apart(rows["tokens_per_s_per_gpu"] for rows in lines),
        text=marks.apart(rows["layout"] + rows["concurrency"].map(", {} in flight".format) for rows in lines),
        hoverinfo="text",
        mode="lines",
        name="others",
        line={"color": "#C9CFD6", "width": 1},
    )


def _beside_line(figure: go.Figure, at: float, y: float, text: str, **more: Any) -> None:
    """Words at an upright line over a logarithmic axis, from the share ``y`` of the plot's height upwards."""
    marks.note(figure, math.log10(at), y, text, yref="paper", yanchor="bottom", **more)


def with_links_scaled(machine: Machine, factor: float) -> Machine:
    """The machine with every link inside a node ``factor`` times as wide; latencies as they are."""
    if factor == 1:
        return machine

    def scaled(link: Link | None) -> Link | None:
        return link and replace(link, bandwidth_GBps=link.bandwidth_GBps * factor)

    links = tuple(tuple(scaled(link) for link in row) for row in machine.links)
    return replace(machine, links=links, notes=(*machine.notes, f"links {number(factor)} times as wide"))


def flip_frame(advice: Advice, *, spread: float = 32.0, points: int = 21) -> pd.DataFrame:
    """What the layouts that are ever best along the link bandwidth would do there: ``link_GBps``, ``layout``,
    ``output_tokens_per_s``, ``tpot_ms``.

    Only bandwidth moves, of all links inside nodes alike; 1 on the way is the machine as it is.
    """
    here = reference_GBps(advice)
    winners = {advice.best.layout}
    for flip in advice.flips:
        if flip.quantity == "link bandwidth":
            winners |= {flip.below, flip.above}
    frame = advice.along_links(np.geomspace(1 / spread, spread, points))
    kept = frame[frame["layout"].isin([str(layout) for layout in winners])].reset_index(drop=True)
    return kept.assign(link_GBps=here * kept["links"])[["link_GBps", "layout", "output_tokens_per_s", "tpot_ms"]]


def reference_GBps(advice: Advice) -> float:
    """Bandwidth of the link that limits the recommended layout, else of the fastest link; flips are given relative to
    it."""
    found, per_node = advice.placement, advice.machine.gpus_per_node
    if advice.best.layout.tp > per_node > 1:
        found = place(advice.machine, per_node, 1, 1)
    link = found.slowest_ring_link or found.slowest_hop_link
    if link is not None:
        return link.bandwidth_GBps
    return max((each.bandwidth_GBps for row in advice.machine.links for each in row if each), default=1.0)


_LINE_PX = 14
_FLIP_HOVER = "%{x:,.3~r} GB/s: %{y:,.4~r} tokens/s, %{customdata:,.3~r} ms per token"


def flip_figure(frame: pd.DataFrame, *, here: float, flips: Sequence[tuple[float, str]], badge: str) -> go.Figure:
    """Throughput along the link bandwidth, of the layouts that are best somewhere; dashed where the best one changes.

    Args:
        frame: as :func:`flip_frame` gives it.
        here: the machine's own bandwidth.
        flips: where, and in words which.
    """
    figure = go.Figure()
    for (colour, symbol), layout in zip(_LAYOUT_LOOKS, dict.fromkeys(frame["layout"]), strict=False):
        rows = frame[frame["layout"] == layout]
        look, hover = {"symbol": symbol, "size": 6}, _FLIP_HOVER
        x, y, tpot = rows["link_GBps"], rows["output_tokens_per_s"], rows["tpot_ms"]
        marks.line(figure, x, y, layout, colour, marker=look, customdata=tpot, hover=hover)
    low, high = float(frame["link_GBps"].min()), float(frame["link_GBps"].max())
    shown = sorted((at, words) for at, words in flips if low <= at <= high)
    for turn, (at, words) in enumerate(shown):
        figure.add_vline(x=at, line={"dash": "dash", "color": style.MUTED, "width": 1.5})
        # In two rows: neighbours' words would run into each other.
        _beside_line(figure, at, 1.0, words, yshift=_LINE_PX * (turn % 2))
    above_px = _LINE_PX * min(len(shown), 2)
    figure.add_vline(x=here, line={"color": style.INK, "width": 2})
    machine = f"this machine, {number(here)} GB/s"
    _beside_line(figure, here, 0.0, machine, xanchor="left", xshift=4, colour=style.INK, bgcolor="white")
    ticks = {**style.log_ticks([low, high]), "range": [np.log10(low), np.log10(high)]}
    figure.update_xaxes(title="GB/s of the link that holds up the recommended layout", type="log", **ticks)
    figure.update_yaxes(title="output tokens/s, whole machine", rangemode="tozero")
    style.card(figure, title="Where the best layout changes", badge=badge, height=460)
    figure.layout.annotations[-1].update(yshift=6 + above_px)  # the badge: above the flips' words
    figure.update_layout(margin_t=70 + above_px)
    return figure


def explain_advice(advice: Advice) -> str:
    """The recommendation in sentences: what, how sure, what binds, what is too close to call."""
    best, made = advice.best, advice.best.prediction
    low, high = made.tpot_range_ms
    text = (
        f"{best.layout}: {fixed(made.tpot_ms)} ms per token ({fixed(low)} to {fixed(high)}), the first after "
        f"{duration(made.ttft_ms)}, {made.output_tokens_per_s:,.0f} tokens/s. Bound by {made.binding}."
    )
    if made.admitted is not None:
        text += f" The others wait, {duration(made.queue_ms)} on average."
    if best.misses:
        text += f" No layout is within the limits; this one misses least: {'; '.join(best.misses)}."
    if best.choice.idle:
        text += f" {best.choice.idle} of {advice.machine.num_gpus} GPUs stay idle."
    if advice.close:
        names = ", ".join(str(option.layout) for option in advice.close)
        text += f" Too close to call without a measurement: {names}."
    return f"{text} {made.standing}"


def explain_flips(advice: Advice) -> str:
    """Where another layout takes over, along link bandwidth, latency and load."""
    if not advice.flips:
        return f"{advice.best.layout} stays the best at every link bandwidth, latency and load tried."
    return " ".join(f"Along {flip.quantity}: {flip}." for flip in advice.flips)
