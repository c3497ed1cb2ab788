"""Links of a machine as a heat map, and which of its GPUs a layout takes as a graph."""

import math
from collections.abc import Hashable
from itertools import combinations, permutations
from typing import Any, TypeAlias

import pandas as pd
import plotly.graph_objects as go

from tplab.lab import style
from tplab.lab.figures import marks
from tplab.shown import number, time_text
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.machine.machine import Link, Machine, slowest
from tplab.topology.machine.placement import Placement

_CELLS_LABELLED = 16
"""GPUs up to which every cell has its text."""
_SCALE = [[0.0, "#F3F6FA"], [0.35, style.DECODE], [1.0, style.FORWARD]]
_UNITS = {"bandwidth_GBps": "GB/s", "latency_us": "µs"}
_MOST_BARS = 6
"""Ordered pairs up to which links are bars: those of three GPUs."""
_Places: TypeAlias = dict[int, tuple[float, float]]
"""Where each GPU is drawn."""
_COLUMNS = ["gpu", "peer", "kind", "label", "bandwidth_GBps", "latency_us"]


def link_frame(machine: Machine) -> pd.DataFrame:
    """One row per ordered pair of GPUs, over all nodes: ``gpu``, ``peer``, ``kind``, ``label``, ``bandwidth_GBps``,
    ``latency_us``."""
    rows = []
    for i, j in permutations(range(machine.num_gpus), 2):
        link = machine.link(i, j)
        rows.append((i, j, link.kind, link.label or link.kind, link.bandwidth_GBps, link.latency_us))
    return pd.DataFrame(rows, columns=_COLUMNS)


def measured_links_frame(calibration: Calibration) -> pd.DataFrame:
    """The columns of :func:`link_frame` from what ``calibrate`` measured: the smallest message's time is the latency,
    the largest one's bytes over its time the bandwidth. Both directions of a pair are one measurement."""
    kind, rows = calibration.backend, []
    for sends in calibration.sends:
        label = f"{kind} between hosts" if sends.nodes > 1 else kind
        bandwidth, latency = sends.nbytes[-1] / sends.p50_us[-1] / 1e3, sends.p50_us[0]
        for i, j in permutations((sends.source, sends.target)):
            rows.append((i, j, kind, label, bandwidth, latency))
    return pd.DataFrame(rows, columns=_COLUMNS)


def link_figure(
    frame: pd.DataFrame, *, title: str, badge: str, value: str = "bandwidth_GBps", what: str = "GPU"
) -> go.Figure:
    """A cell per pair of GPUs: the link's name and bandwidth, coloured on a logarithmic scale. Of two or three GPUs a
    bar for each pair.

    Args:
        frame: as :func:`link_frame` or :func:`measured_links_frame` gives it.
        value: ``bandwidth_GBps`` or ``latency_us``.
        what: what is joined: GPU, rank.
    """
    if 0 < len(frame) <= _MOST_BARS:
        return _pairs(frame, title=title, badge=badge, what=what)
    unit = _UNITS[value]
    n = int(max(frame["gpu"].max(), frame["peer"].max())) + 1 if len(frame) else 1
    grid: list[list[float | None]] = [[None] * n for _ in range(n)]
    hover, texts = [[""] * n for _ in range(n)], [[""] * n for _ in range(n)]
    powers = []
    names = frame["label"].nunique() > 1 or value == "bandwidth_GBps"
    told = {}  # a machine has few different links, and many pairs
    for row in frame.to_dict("records"):
        reached, i, j = float(row[value]), int(row["gpu"]), int(row["peer"])
        grid[i][j] = power = math.log10(max(reached, 1e-9))
        powers.append(power)
        link = row["label"], row["bandwidth_GBps"], row["latency_us"]
        if link not in told:
            told[link] = f"{link[0]}<br>{number(reached)}" if names else number(reached), f"{link[0]}, {_measures(row)}"
        texts[i][j] = told[link][0]
        hover[i][j] = f"{what} {i} and {j}: {told[link][1]}"
    low, high = (min(powers), max(powers)) if powers else (0.0, 1.0)
    if high - low < 0.5:  # nearly alike: one colour, not noise drawn large
        low, high = high - 1.0, high + 0.2
    axis = [str(i) for i in range(n)]
    ticks = style.log_ticks([10**low, 10**high])
    places = [(math.log10(v), text) for v, text in zip(ticks["tickvals"], ticks["ticktext"], strict=True)]
    inside = [(at, text) for at, text in places if low <= at <= high]
    # The cells' words are the heat map's own: a note for each would take plotly a tenth of a second.
    look = {"text": texts, "texttemplate": "%{text}", "textfont": {"size": 11 if n <= 8 else 9}}
    figure = go.Figure(
        go.Heatmap(
            x=axis,
            y=axis,
            z=grid,
            zmin=low,
            zmax=high,
            colorscale=_SCALE,
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            xgap=2,
            ygap=2,
            colorbar={
                "title": {"text": unit, "side": "right"},
                "tickvals": [at for at, _ in inside],
                "ticktext": [text for _, text in inside],
                "thickness": 14,
                "outlinewidth": 0,
            },
            **(look if n <= _CELLS_LABELLED else {}),
        )
    )
    style.card(figure, title=title, badge=badge, height=int(min(720, 210 + max(46 if n <= 8 else 34, 14) * n)))
    figure.update_xaxes(title=what, type="category", showgrid=False, ticks="", side="bottom", constrain="domain")
    figure.update_yaxes(title=what, type="category", autorange="reversed", showgrid=False, ticks="")
    figure.update_layout(margin={"r": 90, "b": 60})
    return figure


def _pairs(frame: pd.DataFrame, *, title: str, badge: str, what: str) -> go.Figure:
    rows = frame[frame["gpu"] < frame["peer"]].to_dict("records")
    figure = go.Figure()
    figure.add_bar(
        orientation="h",
        y=[f"{what}s {row['gpu']} and {row['peer']}" for row in rows],
        x=[row["bandwidth_GBps"] for row in rows],
        text=[f"{row['label']}: {_measures(row)}" for row in rows],
        textposition="inside",
        insidetextanchor="start",
        constraintext="none",
        textfont={"color": style.text_on(style.FORWARD), "size": 13},
        marker={"color": style.FORWARD},
        hoverinfo="skip",
        width=0.6,
        showlegend=False,
    )
    style.card(figure, title=title, badge=badge, height=170 + 40 * len(rows))
    figure.update_xaxes(title="GB/s", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", ticks="", showgrid=False)
    figure.update_layout(margin={"b": 60, "l": 100})
    return figure


def _measures(row: "dict[Hashable, Any]") -> str:
    return f"{number(row['bandwidth_GBps'])} GB/s, {time_text(row['latency_us'])}"


def placement_figure(machine: Machine, placement: Placement, *, title: str, badge: str) -> go.Figure:
    """Which GPUs share layers and which follow each other: a row per replica, a box per stage with its GPUs, on it the
    slowest link inside, on the arrows the slowest link to the next stage.

    A box in red has a link less than half as fast as the fastest of the machine inside.
    """
    rows, stages = len(placement.groups), max(len(chain) for chain in placement.groups)
    tp = len(placement.groups[0][0])
    wide = math.ceil(math.sqrt(tp)) if tp > 4 else tp
    high = math.ceil(tp / wide)
    box_w, box_h, gap_w, gap_h = wide + 0.5, high + 0.9, 1.7, 0.6
    figure = go.Figure()
    fastest = max((link.bandwidth_GBps for row in machine.links for link in row if link), default=0.0)
    used: _Places = {}
    for replica, chain in enumerate(placement.groups):
        top = -replica * (box_h + gap_h)
        for stage, group in enumerate(chain):
            left = stage * (box_w + gap_w)
            link = placement.tp_links[replica][stage]
            slow = link is not None and link.bandwidth_GBps < fastest / 2
            line, fill = (style.COLLECTIVE, "#FBEDEC") if slow else (style.FORWARD, "#EEF3FA")
            corners = {"x0": left, "x1": left + box_w, "y0": top - box_h, "y1": top}
            figure.add_shape(type="rect", **corners, line={"color": line, "width": 2}, fillcolor=fill, layer="below")
            text, ink = _inside(link, placement.ring_links[replica][stage]), style.COLLECTIVE if slow else style.INK
            marks.note(figure, left + box_w / 2, top - 0.03, text, colour=ink, yanchor="top")
            for place, gpu in enumerate(group):
                used[gpu] = (left + 0.75 + place % wide, top - 1.05 - place // wide)
            if stage:
                hop = placement.hop_links[replica][stage - 1]
                y = top - box_h / 2
                figure.add_annotation(
                    **{"x": left - 0.05, "y": y, "xref": "x", "yref": "y"},
                    **{"ax": left - gap_w + 0.05, "ay": y, "axref": "x", "ayref": "y"},
                    **{"text": "", "showarrow": True},
                    **{"arrowhead": 2, "arrowwidth": 2, "arrowcolor": style.POINT_TO_POINT},
                )
                text = f"{hop.label or hop.kind}<br>{number(hop.bandwidth_GBps)}"
                marks.note(figure, left - gap_w / 2, y + 0.05, text, yanchor="bottom")
    bottom = -(rows * (box_h + gap_h))
    idle = {gpu: (0.75 + place, bottom - 0.5) for place, gpu in enumerate(placement.idle)}
    _gpus(figure, machine, used, idle)
    right = max(stages * (box_w + gap_w) - gap_w, len(placement.idle) + 0.5)
    low = bottom - (1.1 if placement.idle else -gap_h)
    height = int(min(760, max(240, 150 + 58 * (0.3 - low))))
    style.card(figure, title=title, badge=badge, height=height)
    figure.update_xaxes(visible=False, range=[-0.3, max(right, 8.0) + 0.3])
    figure.update_yaxes(visible=False, range=[low - 0.1, 0.3])
    figure.update_layout(showlegend=True)
    return figure


def _inside(link: Link | None, ring: Link | None) -> str:
    if link is None:
        return "one GPU"
    text = f"{link.label or link.kind} {number(link.bandwidth_GBps)} GB/s"
    if ring is not None and ring.bandwidth_GBps > link.bandwidth_GBps:
        text += f", ring {ring.label or ring.kind} {number(ring.bandwidth_GBps)}"
    return text


def _gpus(figure: go.Figure, machine: Machine, used: _Places, idle: _Places) -> None:
    """GPUs as numbered discs, coloured by node, where they lie."""
    colours = (style.FORWARD, style.WEIGHT_GRADIENT, style.POINT_TO_POINT, style.INK)
    what = "rank" if machine.gpu.kind == "cpu" else "GPU"
    for node in range(machine.nodes):
        mine = {gpu: place for gpu, place in used.items() if machine.node_of(gpu) == node}
        name = f"{what} of node {node}" if machine.nodes > 1 else what
        _discs(figure, mine, name, f"{what} %{{text}}", colours[node % len(colours)], text="white", edge="white")
    _discs(figure, idle, "idle", f"{what} %{{text}} is idle", style.IDLE, text=style.INK, edge=style.MUTED)


def _discs(figure: go.Figure, places: _Places, name: str, hover: str, colour: str, *, text: str, edge: str) -> None:
    if places:
        figure.add_scatter(
            x=[x for x, _ in places.values()],
            y=[y for _, y in places.values()],
            mode="markers+text",
            text=[str(gpu) for gpu in places],
            textfont={"color": text, "size": 12},
            marker={"size": 26, "color": colour, "line": {"color": edge, "width": 1}},
            name=name,
            hovertemplate=f"{hover}<extra></extra>",
        )


def explain_links(machine: Machine) -> str:
    """What joins the GPUs of a machine, and what follows for groups that share layers."""
    pairs = list(combinations(range(machine.gpus_per_node), 2))
    what = "rank" if machine.gpu.kind == "cpu" else "GPU"
    if not pairs:
        text = f"One {what} a node: nothing to join."
    else:
        links = [machine.link(i, j) for i, j in pairs]
        fast, slow = max(links, key=lambda link: link.bandwidth_GBps), slowest(links)
        if fast.bandwidth_GBps == slow.bandwidth_GBps and fast.kind == slow.kind:
            text = (
                f"Every pair of {what}s has the same link: {_link(fast)}. Which of them share a layer does not matter."
            )
        else:
            ratio = fast.bandwidth_GBps / slow.bandwidth_GBps
            count = sum(link.bandwidth_GBps == fast.bandwidth_GBps for link in links)
            text = (
                f"{count} of {len(pairs)} pairs have the fastest link, {_link(fast)}; the slowest, {_link(slow)}, has "
                f"1/{number(ratio)} of its bandwidth. A group that shares layers is as slow as its slowest pair, so it "
                f"matters which {what}s form one."
            )
    if machine.network is not None:
        when = "while the others are silent" if machine.source == "measured" else "when all send at once"
        text += f" Between nodes each {what} gets {number(machine.network.bandwidth_GBps)} GB/s {when}."
    return " ".join([text, *(f"{note[:1].upper()}{note[1:]}." for note in machine.notes)])


def explain_placement(machine: Machine, placement: Placement) -> str:
    """Slowest links of a placement, beside those of GPUs taken in order."""
    tp, pp = len(placement.groups[0][0]), len(placement.groups[0])
    words = []
    inside = placement.slowest_tp_link
    if inside is not None:
        words.append(f"The slowest link inside a group is {_link(inside)}")
        ring = placement.slowest_ring_link
        if ring is not None and ring.bandwidth_GBps > inside.bandwidth_GBps:
            words[-1] += f", which a ring goes around: its slowest is {_link(ring)}"
        chosen, order = placement.groups, range(0, machine.gpus_per_node - tp + 1, tp)
        links = [machine.slowest_link(range(first, first + tp)) for first in list(order)[: len(chosen) * pp]]
        in_order = slowest([inside, *filter(None, links)])
        if in_order.bandwidth_GBps < inside.bandwidth_GBps:
            words[-1] += (
                f". GPUs in order (0-{tp - 1}, ...), as launchers take them, would have {_link(in_order)}: "
                f"{number(inside.bandwidth_GBps / in_order.bandwidth_GBps)} times slower"
            )
    hop = placement.slowest_hop_link
    if hop is not None:
        words.append(f"The slowest hop between stages is {_link(hop)}")
    if placement.idle:
        words.append(f"Idle: {', '.join(map(str, placement.idle))}")
    if not placement.exact:
        words.append("Found by growing groups and swapping members; not every choice was tried")
    return " ".join(f"{text}." for text in words) or "One GPU does everything."


def _link(link: Link) -> str:
    return f"{link.label or link.kind} with {number(link.bandwidth_GBps)} GB/s"
