"""What every rank of a layout holds, against what its card has; and shards really built beside the formula."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from tplab.lab import style
from tplab.lab.figures import marks
from tplab.models.shards import Layout, can_cut
from tplab.models.spec import ModelSpec
from tplab.shown import number
from tplab.topology.advisor.fitting import smallest_fit
from tplab.topology.advisor.memory import RankMemory, all_ranks, fullest_rank, max_requests
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.machine import Gpu
from tplab.topology.machine.names import name_of

_MOST_TP = 8
"""GPUs that share layers in a usual node."""

PARTS = {
    "weights": ("weights", style.FORWARD, ""),
    "kv": ("KV cache", style.DECODE, "/"),
    "activations": ("activations", style.BACKWARD, "x"),
    "workspace": ("workspace", "#9AA3AE", "."),
}
"""Name, colour and pattern of each part of a bar."""
_EDGE = {"color": "white", "width": 0.5}
_LABELLED = 32
"""Bars that can be told apart, each with its label."""


def memory_frame(spec: ModelSpec, gpu: Gpu, workload: Workload, layout: Layout, *, requests: float) -> pd.DataFrame:
    """One row per rank of one replica: ``label``, ``stage``, ``index``, ``layers``, ``weights_GB``, ``kv_GB``,
    ``activations_GB``, ``workspace_GB``, ``total_GB``, ``free_GB``, ``usable_GB`` and ``card_GB``.

    Args:
        spec, gpu, workload: the model, the card, and what is asked of it.
        layout: how the model is cut.
        requests: requests in flight per replica.
    """
    ranks = all_ranks(spec, gpu, workload, layout, requests=requests)
    several = layout.tp > 1 and layout.pp > 1
    labels = [
        f"{rank.stage}·{rank.index}" if several else f"{rank.stage if layout.pp > 1 else rank.index}" for rank in ranks
    ]
    return _frame(labels, ranks, gpu).assign(layers=[layout.layers_of_stage[rank.stage] for rank in ranks])


def degrees_frame(
    spec: ModelSpec, gpu: Gpu, workload: Workload, layout: Layout, *, along: str, requests: float
) -> pd.DataFrame:
    """The fullest rank at each degree of ``tp`` or ``pp`` (1, 2, 4, 8, 16, and ``layout``'s own) with the other degree
    as in ``layout``; columns as in :func:`memory_frame`. Degrees that the model cannot be cut by are left out.

    Args:
        spec, gpu, workload: the model, the card, and what is asked of it.
        layout: the layout whose other degree is kept.
        along: ``tp`` or ``pp``.
        requests: requests in flight per replica.
    """
    degrees = sorted({1, 2, 4, 8, 16, layout.tp if along == "tp" else layout.pp})
    labels, ranks = [], []
    for degree in degrees:
        tp, pp = (degree, layout.pp) if along == "tp" else (layout.tp, degree)
        if can_cut(spec, tp, pp):
            labels.append(f"{along.upper()} {degree}")
            ranks.append(fullest_rank(spec, gpu, workload, Layout.of(spec, tp, pp), requests=requests))
    return _frame(labels, ranks, gpu)


def asked_frame(bars: Mapping[str, RankMemory], gpu: Gpu) -> pd.DataFrame:
    """A row per bar, of ranks that somebody else asked about; columns as in :func:`memory_frame`."""
    return _frame(list(bars), list(bars.values()), gpu)


def _frame(labels: list[str], ranks: list[RankMemory], gpu: Gpu) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "label": labels,
            "stage": [rank.stage for rank in ranks],
            "index": [rank.index for rank in ranks],
            **{f"{part}_GB": [getattr(rank, part) / 1e9 for rank in ranks] for part in PARTS},
            "total_GB": [rank.total / 1e9 for rank in ranks],
            "free_GB": [rank.free / 1e9 for rank in ranks],
            "usable_GB": [rank.usable / 1e9 for rank in ranks],
            "card_GB": gpu.memory_GB,
        }
    )


def by_stage(frame: pd.DataFrame, *, most: int = _LABELLED) -> pd.DataFrame:
    """The rows of ``memory_frame``, or where there are more than ``most`` the fullest rank of each stage, labelled by
    stage; where there are more stages than that, too, the emptiest and the fullest rank of all. ``ranks`` is how many
    ranks a row stands for.

    Args:
        frame: as :func:`memory_frame` gives it.
        most: bars that can be told apart.
    """
    if len(frame) <= most:
        return frame.assign(ranks=1)
    stages = frame.loc[frame.groupby("stage")["free_GB"].idxmin()]
    if len(stages) <= most:
        counts = frame.groupby("stage").size()
        return stages.assign(label=stages["stage"].astype(str), ranks=stages["stage"].map(counts))
    ends = frame.loc[[frame["free_GB"].idxmax(), frame["free_GB"].idxmin()]]
    return ends.assign(label=["emptiest rank", "fullest rank"], ranks=len(frame))


def memory_figure(frame: pd.DataFrame, *, title: str, badge: str, axis: str = "rank") -> go.Figure:
    """A stacked bar per rank: weights, KV cache, activations, workspace; lines for the card and for what an engine
    takes of it. Ranks over the second line are named in red above their bars. Where no bar reaches a third of that
    line, the axis ends above the bars, and words say how far away the lines are.

    Args:
        frame: as :func:`memory_frame`, :func:`degrees_frame` or :func:`by_stage` gives it.
        axis: what a bar is.
    """
    figure = go.Figure()
    labels = frame["label"].tolist()
    for part, (name, colour, pattern) in PARTS.items():
        hover = "%{y:,.3~r} GB<extra>" + name + ", " + axis + " %{x}</extra>"
        marks.bars(figure, labels, frame[f"{part}_GB"], name, colour, pattern, marker_line=_EDGE, hover=hover)
    top = None
    if len(frame):
        card, usable = float(frame["card_GB"].iloc[0]), float(frame["usable_GB"].iloc[0])
        fullest = float(frame["total_GB"].max())
        limits = (f"engine limit ({usable / card:.0%}), {number(usable)} GB", f"card, {number(card)} GB")
        if fullest < usable / 3:
            top = 1.3 * fullest
            _above(figure, f"{limits[0]}; {limits[1]}: the fullest bar is {fullest / usable:.0%} of the limit")
        else:
            top = 1.15 * max(card, fullest)
            _capacity(figure, labels, card, limits[1], "solid")
            _capacity(figure, labels, usable, limits[0], "dash")
        _over(figure, frame[frame["free_GB"] < 0], named=len(labels) <= _LABELLED)
    figure.update_layout(barmode="stack", bargap=0.3 if len(labels) > 2 else 0.7)
    figure.update_xaxes(title=axis, type="category", categoryorder="array", categoryarray=labels)
    figure.update_yaxes(title="GB on one GPU", range=None if top is None else [0, top])
    return style.card(figure, title=title, badge=badge, height=460)


def _over(figure: go.Figure, over: pd.DataFrame, *, named: bool) -> None:
    """Name in red by how much bars pass the limit."""
    figure.add_scatter(
        x=over["label"],
        y=over["total_GB"],
        mode="markers+text" if named else "markers",
        marker={"symbol": "x", "size": 9, "color": style.COLLECTIVE},
        text=[f"+{number(-free)} GB" for free in over["free_GB"]],
        textposition="top center",
        textfont={"color": style.COLLECTIVE, "size": 12},
        name="over by",
        showlegend=len(over) > 0,
        cliponaxis=False,
        hoverinfo="skip",
    )


def _above(figure: go.Figure, words: str) -> None:
    """Words at the upper edge of the plot, about what lies beyond it."""
    place = {"xref": "paper", "yref": "paper", "xanchor": "right", "yanchor": "top", "showarrow": False}
    figure.add_annotation(x=1, y=1, text=f"↑ {words}", font={"size": 12, "color": style.MUTED}, **place)


def _capacity(figure: go.Figure, labels: list[str], height: float, name: str, dash: str) -> None:
    line = {"dash": dash, "color": style.INK, "width": 2}
    figure.add_shape(type="line", xref="paper", x0=0, x1=1, y0=height, y1=height, line=line)
    # A shape has no entry in the legend, and a line over one category no length: so both.
    figure.add_scatter(x=labels[:1], y=[None], mode="lines", name=name, line=line)


def shards_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """Shards as allocated: bars of weights and cache per rank; diamonds are the formula.

    Args:
        frame: as ``shards_frame`` gives it.
    """
    figure = go.Figure()
    # In two lines: a layout of one rank is as wide as its bar.
    layouts = frame["layout"].str.replace(" [x×] ", "<br>× ", regex=True)
    places = [layouts.tolist(), [str(rank) for rank in frame["rank"]]]
    for part, column in (("weights", "weight_bytes"), ("kv", "kv_bytes")):
        name, colour, pattern = PARTS[part]
        y, told = frame[column] / 1e6, frame[f"told_{column}"] / 1e6
        hover = "%{y:.3f} MB allocated, %{customdata:.3f} MB by the formula<extra>" + name + ", rank %{x}</extra>"
        name = f"{name}, allocated"
        marks.bars(figure, places, y, name, colour, pattern, customdata=told, marker_line=_EDGE, hover=hover)
    weights, cache = frame["told_weight_bytes"], frame["told_kv_bytes"]
    for name, values, colour in (
        ("weights, formula", weights, "white"),
        ("with the cache, formula", weights + cache, style.BACKWARD),
    ):
        y, hover = values / 1e6, "%{y:.3f} MB"
        marks.points(figure, places, y, name, colour, "diamond", size=9, edge=style.INK, hover=hover)
    figure.update_layout(barmode="stack", bargap=0.3)
    figure.update_xaxes(title="rank, by layout")
    figure.update_yaxes(title="MB", rangemode="tozero")
    return style.card(figure, title="Shards as they were built, and the formula", badge=badge, height=480)


def explain_memory(frame: pd.DataFrame, spec: ModelSpec, gpu: Gpu, workload: Workload, layout: Layout) -> str:
    """Whether a layout holds the batch, or why not and what would (``memory_frame`` of every rank).

    Args:
        frame: rows of ``memory_frame``.
        spec, gpu, workload, layout: what it was made from.
    """
    fullest = frame.iloc[int(frame["free_GB"].argmin())]
    batch, context = workload.concurrency or 1, workload.context_length
    most = max_requests(spec, gpu, workload, layout)
    requests = f"{batch:,} request{'s' * (batch > 1)} of {context:,} tokens"
    where = "The fullest rank" if layout.gpus_per_replica > 1 else "The card"
    if layout.pp > 1:
        where += f" (stage {fullest['stage']}, {fullest['layers']} layers)"
    held, usable = number(fullest["total_GB"]), number(fullest["usable_GB"])
    if fullest["free_GB"] >= 0:
        text = (
            f"{where} holds {held} GB of the {usable} GB that an engine may take with {requests}; {most:,} would fit."
        )
    else:
        parts = ", ".join(
            f"{name} {number(fullest[f'{key}_GB'])}"
            for name, key in (
                ("weights", "weights"),
                ("KV cache", "kv"),
                ("activations", "activations"),
                ("workspace", "workspace"),
            )
        )
        text = (
            f"{where} needs {held} GB ({parts}) for {requests}, {number(-fullest['free_GB'])} GB more than the "
            f"{usable} GB that an engine may take. "
        )
        text += f"{most:,} such requests would fit. " if most else "Not even one request fits. "
        text += _what_would(spec, gpu, workload, batch)
    return f"{text} {_what_is_cut(spec, layout)}"


def _what_would(spec: ModelSpec, gpu: Gpu, workload: Workload, batch: int) -> str:
    one = smallest_fit(spec, gpu, workload, most_tp=_MOST_TP, most_gpus=1024)
    if one is None:
        return f"No number of {name_of(gpu.name)} holds one request of this length."
    text = f"The fewest {name_of(gpu.name)} with room for one: {one.gpus_per_replica}, as {one}"
    if batch == 1:
        return f"{text}."
    for stages in range(1, 65):
        for tp in (1, 2, 4, 8):
            if spec.num_heads % tp or spec.intermediate_size % tp or stages > spec.num_layers:
                continue
            layout = Layout.of(spec, tp, stages)
            if max_requests(spec, gpu, workload, layout) >= batch:
                return f"{text}; for all {batch:,}: {layout}."
    return f"{text}."


def _what_is_cut(spec: ModelSpec, layout: Layout) -> str:
    """What TP and PP leave whole."""
    t, heads = layout.tp, spec.num_kv_heads
    words = []
    if t > heads:
        words.append(
            f"TP {t} has more ranks than the {heads} key-value heads: each is on {-(-t // heads)} ranks, and the cache "
            f"per rank is as large as with TP {heads}"
        )
    elif spec.kv_heads_per_rank(t) * t != heads:
        words.append(
            f"TP {t} does not divide the {heads} key-value heads evenly: some rank keeps "
            f"{spec.kv_heads_per_rank(t)} of them, more than {heads}/{t}"
        )
    if len(set(layout.layers_of_stage)) > 1:
        words.append(
            f"{spec.num_layers} layers over {layout.pp} stages: {'-'.join(map(str, layout.layers_of_stage))}, so the "
            f"ranks differ"
        )
    elif layout.pp > 1:
        words.append("The first stage has the embedding besides, the last the output head: PP does not cut those")
    return "".join(f"{text}. " for text in words).strip()


def explain_shards(frame: pd.DataFrame) -> str:
    """A sentence or two on shards that were built (``shards_frame``)."""
    if frame.empty:
        return ""
    wrong = int((~frame["exact"]).sum())
    last = frame[frame["layout"] == frame["layout"].iloc[-1]]
    per_token = last["kv_bytes_per_token"]
    text = (
        f"{len(frame)} shards built, weights and cache equal the formula, byte for byte"
        if not wrong
        else f"{wrong} of {len(frame)} shards DIFFER from the formula"
    )
    spread = f"{per_token.min():,.0f} to " if per_token.min() != per_token.max() else ""
    text += f". {last['layout'].iloc[0]}: a token takes {spread}{per_token.max():,.0f} bytes of cache on a rank"
    whole = frame[frame["tp"] * frame["pp"] == 1]
    if len(whole) and len(last) > 1:
        ratio = last["kv_bytes"].sum() / whole["kv_bytes"].iloc[0]
        text += f"; all {len(last)} together hold {number(ratio)} times the cache of one rank alone"
    return text + "."
