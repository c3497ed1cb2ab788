"""The advisor's answer as figures: what a step is made of, the front, where the choice flips."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from tplab.lab import style
from tplab.models.shards import Layout
from tplab.topology.advisor.advice import Advice
from tplab.topology.advisor.prediction import predict_all
from tplab.topology.machine.machine import Link, Machine

_TERM_LOOKS = {
    "weights": (style.FORWARD, ""),
    "lm_head": ("#3E6BB0", ""),
    "kv_cache": (style.DECODE, ""),
    "activations": ("#B9DFFD", ""),
    "kernels": ("#9AA3AE", "."),
    "all_reduce": (style.COLLECTIVE, "/"),
    "hops": (style.POINT_TO_POINT, "\\"),
    "host": ("#6E7781", ""),
    "launch": ("#C9CFD6", "x"),
    "prefill": (style.BACKWARD, ""),
    "bubble": (style.IDLE, "-"),
}
_TERM_NAMES = {
    "weights": "weights",
    "lm_head": "output head",
    "kv_cache": "KV cache",
    "activations": "activations",
    "kernels": "kernel start-up",
    "all_reduce": "all-reduces",
    "hops": "pipeline hops",
    "host": "engine on the host",
    "launch": "launches",
    "prefill": "prompts of others",
    "bubble": "waiting stages",
}
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


_LABEL_ENDS = 0.6
"""Share of the width up to which a bar may reach and have its label beside it on the right."""


def waterfall_figure(frame: pd.DataFrame, *, title: str, badge: str) -> go.Figure:
    """Time per token, term by term from the top, and the sum. Next to each bar where its number comes from.

    Args:
        frame: as ``Advice.waterfall`` gives it: ``term``, ``ms``, ``share_pct``, ``provenance``.
    """
    shown = frame[frame["ms"] > 0]
    total = float(frame["ms"].sum())
    names = [_TERM_NAMES.get(term, term) for term in shown["term"]]
    starts = (shown["ms"].cumsum() - shown["ms"]).tolist()
    figure = go.Figure()
    for name, row, start in zip(names, shown.to_dict("records"), starts, strict=True):
        colour, pattern = _TERM_LOOKS.get(row["term"], (style.MUTED, ""))
        ms, source = float(row["ms"]), str(row["provenance"])
        figure.add_bar(
            orientation="h",
            y=[name],
            x=[ms],
            base=[start],
            marker=style.bar_marker(colour, pattern, line={"color": style.MUTED, "width": 0.5}),
            showlegend=False,
            hovertemplate=f"{ms:.3g} ms, {row['share_pct']:.0f} %<br>{source}<extra>{name}</extra>",
        )
        # Where there is room: to the right, to the left, or inside.
        left = start + ms > _LABEL_ENDS * total
        inside = left and start < (1 - _LABEL_ENDS) * total
        quiet = style.text_on(colour) if inside else style.MUTED
        figure.add_annotation(
            x=start if left and not inside else start + ms,
            y=name,
            text=f"<b>{ms:.3g}</b>  <span style='color:{quiet}'>{_short(source)}</span>",
            showarrow=False,
            xanchor="right" if left else "left",
            xshift=-6 if left else 6,
            font={"size": 11, "color": style.text_on(colour) if inside else style.INK},
            bgcolor=colour if inside else None,
        )
    figure.add_bar(
        orientation="h",
        y=["time per token"],
        x=[total],
        marker=style.bar_marker(style.INK),
        text=[f"{total:.3g} ms"],
        textposition="inside",
        insidetextanchor="end",
        textfont={"color": "white"},
        showlegend=False,
        hovertemplate="%{x:.3g} ms<extra>time per token</extra>",
    )
    figure.update_layout(barmode="overlay", bargap=0.25)
    figure.update_xaxes(title="milliseconds per output token", range=[0, 1.02 * total if total else 1])
    order = [*names, "time per token"]
    figure.update_yaxes(categoryorder="array", categoryarray=order[::-1], type="category")
    style.card(figure, title=title, badge=badge, height=170 + 34 * len(order))
    figure.update_layout(margin_b=60)
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
        figure.add_scatter(**_gathered(others), mode="lines", name="others", line={"color": "#C9CFD6", "width": 1})
    for layout in reversed(list(looks)):
        rows = frame[frame["layout"] == layout].sort_values("concurrency")
        colour, symbol = looks[layout]
        figure.add_scatter(
            x=rows["tpot_ms"],
            y=rows["tokens_per_s_per_gpu"],
            mode="lines+markers",
            name=layout,
            line={"color": colour, "width": 3 if layout == best else 1.5},
            marker={
                "symbol": symbol,
                "size": [10 if yes else 4 for yes in rows["on_front"]],
                "color": colour,
                "line": {"color": "white", "width": 1},
            },
            customdata=rows[["concurrency", "ttft_ms"]],
            hovertemplate="%{customdata[0]} in flight: %{x:.3g} ms per token, %{y:.3g} tokens/s per GPU, first after "
            "%{customdata[1]:.3g} ms<extra>" + layout + "</extra>",
        )
    figure.update_xaxes(title="milliseconds per output token", type="log", **style.log_ticks(frame["tpot_ms"]))
    throughput = frame["tokens_per_s_per_gpu"]
    figure.update_yaxes(title="tokens/s per GPU", type="log", **style.log_ticks(throughput))
    if tpot_limit_ms is not None:
        figure.add_vline(x=tpot_limit_ms, line={"dash": "dash", "color": style.INK, "width": 2})
        figure.add_annotation(
            x=math.log10(tpot_limit_ms),
            y=0.0,
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            text=f"limit, {tpot_limit_ms:g} ms",
            showarrow=False,
            font={"size": 11},
        )
    style.card(figure, title="Latency against throughput, along the load", badge=badge, height=480)
    figure.update_xaxes(range=[np.log10(frame["tpot_ms"].min()) - 0.05, np.log10(frame["tpot_ms"].max()) + 0.05])
    return figure


def _gathered(frame: pd.DataFrame) -> dict[str, Any]:
    """Lines of all layouts as one trace: a trace each would take longer to draw than everything else."""
    x: list[Any] = []
    y: list[Any] = []
    text: list[Any] = []
    for layout, rows in frame.sort_values("concurrency").groupby("layout", sort=False):
        x += [*rows["tpot_ms"], None]
        y += [*rows["tokens_per_s_per_gpu"], None]
        text += [f"{layout}, {load} in flight" for load in rows["concurrency"]] + [None]
    return {"x": x, "y": y, "text": text, "hoverinfo": "text"}


def with_links_scaled(machine: Machine, factor: float) -> Machine:
    """The machine with every link inside a node ``factor`` times as wide; latencies as they are."""
    if factor == 1:
        return machine

    def scaled(link: Link | None) -> Link | None:
        return link and replace(link, bandwidth_GBps=link.bandwidth_GBps * factor)

    links = tuple(tuple(scaled(link) for link in row) for row in machine.links)
    return replace(machine, links=links, notes=(*machine.notes, f"links {factor:g} times as wide"))


def flip_frame(advice: Advice, *, spread: float = 32.0, points: int = 21) -> pd.DataFrame:
    """What the layouts that are ever best along the link bandwidth would do there: ``link_GBps``, ``layout``,
    ``output_tokens_per_s``, ``tpot_ms``.

    Only bandwidth moves, of all links inside nodes alike; 1 on the way is the machine as it is.
    """
    here = reference_GBps(advice)
    winners = [advice.best.layout]
    for flip in advice.flips:
        if flip.quantity == "link bandwidth":
            winners += [flip.below, flip.above]
    layouts: list[Layout] = list(dict.fromkeys(winners))
    rows = []
    for factor in np.geomspace(1 / spread, spread, points).tolist():
        machine = with_links_scaled(advice.machine, factor)
        for layout, made in zip(layouts, predict_all(advice.model, machine, advice.workload, layouts), strict=True):
            rows.append(
                {
                    "link_GBps": here * factor,
                    "layout": str(layout),
                    "output_tokens_per_s": made.output_tokens_per_s,
                    "tpot_ms": made.tpot_ms,
                }
            )
    return pd.DataFrame(rows)


def reference_GBps(advice: Advice) -> float:
    """Bandwidth of the link that limits the recommended layout, else of the fastest link; flips are given relative to
    it."""
    place = advice.placement
    link = place.slowest_ring_link or place.slowest_hop_link
    if link is not None:
        return link.bandwidth_GBps
    return max((each.bandwidth_GBps for row in advice.machine.links for each in row if each), default=1.0)


_LINE_PX = 14


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
        figure.add_scatter(
            x=rows["link_GBps"],
            y=rows["output_tokens_per_s"],
            mode="lines+markers",
            name=layout,
            line={"color": colour, "width": 2},
            marker={"symbol": symbol, "size": 6},
            customdata=rows["tpot_ms"],
            hovertemplate="%{x:.3g} GB/s: %{y:.4g} tokens/s, %{customdata:.3g} ms per token<extra>"
            + layout
            + "</extra>",
        )
    low, high = float(frame["link_GBps"].min()), float(frame["link_GBps"].max())
    shown = sorted((at, words) for at, words in flips if low <= at <= high)
    for place, (at, words) in enumerate(shown):
        figure.add_vline(x=at, line={"dash": "dash", "color": style.MUTED, "width": 1.5})
        figure.add_annotation(
            x=np.log10(at),
            y=1.0,
            yref="paper",
            yanchor="bottom",
            yshift=_LINE_PX * (place % 2),  # neighbours' words would run into each other
            text=words,
            showarrow=False,
            font={"size": 11},
        )
    above_px = _LINE_PX * min(len(shown), 2)
    figure.add_vline(x=here, line={"color": style.INK, "width": 2})
    figure.add_annotation(
        x=np.log10(here),
        y=0.0,
        yref="paper",
        yanchor="bottom",
        xanchor="left",
        xshift=4,
        text=f"this machine, {here:.3g} GB/s",
        showarrow=False,
        font={"size": 11, "color": style.INK},
        bgcolor="white",
    )
    ticks = {**style.log_ticks([low, high]), "range": [np.log10(low), np.log10(high)]}
    figure.update_xaxes(title="GB/s of the link that holds up the recommended layout", type="log", **ticks)
    figure.update_yaxes(title="output tokens/s, whole machine", rangemode="tozero")
    style.card(figure, title="Where the best layout changes", badge=badge, height=460)
    figure.layout.annotations[-1].update(yshift=6 + above_px)  # the badge: above the flips' words
    figure.update_layout(margin_t=70 + above_px)
    return figure
