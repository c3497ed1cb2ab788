"""Links of a machine as a heat map, and which of its GPUs a layout takes as a graph."""

import math
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from tplab.lab import style
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.machine.machine import Link, Machine
from tplab.topology.machine.placement import Placement

_CELLS_LABELLED = 16
"""GPUs up to which every cell has its text."""
_SCALE = [[0.0, "#F3F6FA"], [0.35, style.DECODE], [1.0, style.FORWARD]]
_DARK_FROM = 0.62  # of the scale: white text from here on


def link_frame(machine: Machine) -> pd.DataFrame:
    """One row per ordered pair of GPUs, over all nodes: ``gpu``, ``peer``, ``kind``, ``label``, ``bandwidth_GBps``,
    ``latency_us``."""
    rows = []
    for i in range(machine.num_gpus):
        for j in range(machine.num_gpus):
            if i != j:
                link = machine.link(i, j)
                rows.append(
                    {
                        "gpu": i,
                        "peer": j,
                        "kind": link.kind,
                        "label": link.label or link.kind,
                        "bandwidth_GBps": link.bandwidth_GBps,
                        "latency_us": link.latency_us,
                    }
                )
    return pd.DataFrame(rows, columns=["gpu", "peer", "kind", "label", "bandwidth_GBps", "latency_us"])


def measured_links_frame(calibration: Calibration) -> pd.DataFrame:
    """The columns of :func:`link_frame` from what ``calibrate`` measured: the smallest message's time is the latency,
    the largest one's bytes over its time the bandwidth. Both directions of a pair are one measurement."""
    rows = []
    for sends in calibration.sends:
        for i, j in ((sends.source, sends.target), (sends.target, sends.source)):
            rows.append(
                {
                    "gpu": i,
                    "peer": j,
                    "kind": calibration.backend,
                    "label": calibration.backend,
                    "bandwidth_GBps": sends.nbytes[-1] / sends.p50_us[-1] / 1e3,
                    "latency_us": sends.p50_us[0],
                }
            )
    return pd.DataFrame(rows, columns=["gpu", "peer", "kind", "label", "bandwidth_GBps", "latency_us"])


def link_figure(
    frame: pd.DataFrame, *, title: str, badge: str, value: str = "bandwidth_GBps", what: str = "GPU"
) -> go.Figure:
    """A cell per pair of GPUs: the link's name and bandwidth, coloured on a logarithmic scale.

    Args:
        frame: as :func:`link_frame` or :func:`measured_links_frame` gives it.
        value: ``bandwidth_GBps`` or ``latency_us``.
        what: what is joined: GPU, rank.
    """
    unit = {"bandwidth_GBps": "GB/s", "latency_us": "µs"}[value]
    n = int(max(frame["gpu"].max(), frame["peer"].max())) + 1 if len(frame) else 1
    grid: list[list[float | None]] = [[None] * n for _ in range(n)]
    texts, hover = [[""] * n for _ in range(n)], [[""] * n for _ in range(n)]
    names = frame["label"].nunique() > 1 or value == "bandwidth_GBps"
    for row in frame.to_dict("records"):
        number, i, j = float(row[value]), int(row["gpu"]), int(row["peer"])
        grid[i][j] = math.log10(max(number, 1e-9))
        texts[i][j] = f"{row['label']}<br>{number:.3g}" if names else f"{number:.3g}"
        hover[i][j] = (
            f"{what} {i} and {j}: {row['label']}, {row['bandwidth_GBps']:.3g} GB/s, {row['latency_us']:.3g} µs"
        )
    numbers = [number for line in grid for number in line if number is not None]
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    if high - low < 0.5:  # nearly alike: one colour, not noise drawn large
        low, high = high - 1.0, high + 0.2
    axis = [str(i) for i in range(n)]
    ticks = style.log_ticks([10**low, 10**high])
    inside = [
        (at, text)
        for at, text in ((math.log10(v), t) for v, t in zip(ticks["tickvals"], ticks["ticktext"], strict=True))
        if low <= at <= high
    ]
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
        )
    )
    style.card(figure, title=title, badge=badge, height=int(min(720, 210 + max(46 if n <= 8 else 34, 14) * n)))
    if n <= _CELLS_LABELLED:
        for i, line in enumerate(grid):
            for j, cell in enumerate(line):
                if cell is not None:
                    dark = (cell - low) / (high - low) > _DARK_FROM
                    figure.add_annotation(
                        x=axis[j],
                        y=axis[i],
                        text=texts[i][j],
                        showarrow=False,
                        font={"size": 11 if n <= 8 else 9, "color": "white" if dark else style.INK},
                    )
    figure.update_xaxes(title=what, type="category", showgrid=False, ticks="", side="bottom", constrain="domain")
    figure.update_yaxes(title=what, type="category", autorange="reversed", showgrid=False, ticks="")
    figure.update_layout(margin={"r": 90, "b": 60})
    return figure


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
    x_of, y_of, names = [], [], []
    for replica, chain in enumerate(placement.groups):
        top = -replica * (box_h + gap_h)
        for stage, group in enumerate(chain):
            left = stage * (box_w + gap_w)
            link = placement.tp_links[replica][stage]
            slow = link is not None and link.bandwidth_GBps < fastest / 2
            figure.add_shape(
                type="rect",
                x0=left,
                x1=left + box_w,
                y0=top - box_h,
                y1=top,
                line={"color": style.COLLECTIVE if slow else style.FORWARD, "width": 2},
                fillcolor="#FBEDEC" if slow else "#EEF3FA",
                layer="below",
            )
            figure.add_annotation(
                x=left + box_w / 2,
                y=top - 0.03,
                yanchor="top",
                text=_inside(link, placement.ring_links[replica][stage]),
                showarrow=False,
                font={"size": 11, "color": style.COLLECTIVE if slow else style.INK},
            )
            for place, gpu in enumerate(group):
                x_of.append(left + 0.75 + place % wide)
                y_of.append(top - 1.05 - place // wide)
                names.append(gpu)
            if stage:
                hop = placement.hop_links[replica][stage - 1]
                figure.add_annotation(
                    x=left - 0.05,
                    ax=left - gap_w + 0.05,
                    y=top - box_h / 2,
                    ay=top - box_h / 2,
                    xref="x",
                    axref="x",
                    yref="y",
                    ayref="y",
                    text="",
                    showarrow=True,
                    arrowhead=2,
                    arrowwidth=2,
                    arrowcolor=style.POINT_TO_POINT,
                )
                figure.add_annotation(
                    x=left - gap_w / 2,
                    y=top - box_h / 2 + 0.05,
                    yanchor="bottom",
                    text=f"{hop.label or hop.kind}<br>{hop.bandwidth_GBps:.3g}",
                    showarrow=False,
                    font={"size": 11},
                )
    bottom = -(rows * (box_h + gap_h))
    used = len(names)
    for place, gpu in enumerate(placement.idle):
        x_of.append(0.75 + place)
        y_of.append(bottom - 0.5)
        names.append(gpu)
    _gpus(figure, machine, x_of, y_of, names, used)
    right = max(stages * (box_w + gap_w) - gap_w, len(placement.idle) + 0.5)
    low = bottom - (1.1 if placement.idle else -gap_h)
    height = int(min(760, max(240, 150 + 58 * (0.3 - low))))
    style.card(figure, title=title, badge=badge, height=height)
    figure.update_xaxes(visible=False, range=[-0.3, max(right, 8.0) + 0.3])
    figure.update_yaxes(visible=False, range=[low - 0.1, 0.3])
    figure.update_layout(showlegend=True, margin={"b": 60}, legend_y=-0.02)
    return figure


def _inside(link: Link | None, ring: Link | None) -> str:
    if link is None:
        return "one GPU"
    text = f"{link.label or link.kind} {link.bandwidth_GBps:.3g} GB/s"
    if ring is not None and ring.bandwidth_GBps > link.bandwidth_GBps:
        text += f", ring {ring.label or ring.kind} {ring.bandwidth_GBps:.3g}"
    return text


def _gpus(
    figure: go.Figure, machine: Machine, x: Sequence[float], y: Sequence[float], gpus: Sequence[int], used: int
) -> None:
    colours = (style.FORWARD, style.WEIGHT_GRADIENT, style.POINT_TO_POINT, style.INK)
    what = "rank" if machine.gpu.kind == "cpu" else "GPU"
    for node in range(machine.nodes):
        mine = [k for k in range(used) if machine.node_of(gpus[k]) == node]
        if not mine:
            continue
        figure.add_scatter(
            x=[x[k] for k in mine],
            y=[y[k] for k in mine],
            mode="markers+text",
            text=[str(gpus[k]) for k in mine],
            textfont={"color": "white", "size": 12},
            marker={"size": 26, "color": colours[node % len(colours)], "line": {"color": "white", "width": 1}},
            name=f"{what} of node {node}" if machine.nodes > 1 else what,
            hovertemplate=f"{what} %{{text}}<extra></extra>",
        )
    if used < len(gpus):
        figure.add_scatter(
            x=list(x[used:]),
            y=list(y[used:]),
            mode="markers+text",
            text=[str(gpu) for gpu in gpus[used:]],
            textfont={"color": style.INK, "size": 12},
            marker={"size": 26, "color": style.IDLE, "line": {"color": style.MUTED, "width": 1}},
            name="idle",
            hovertemplate=f"{what} %{{text}} is idle<extra></extra>",
        )
