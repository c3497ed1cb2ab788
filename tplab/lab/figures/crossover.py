"""The crossover map of an all-reduce: what is fastest for which size, beside what engines take by fixed limits."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tplab.collectives.crossover import crossovers, fastest
from tplab.collectives.engine_thresholds import KINDS, EngineRule
from tplab.lab import style
from tplab.lab.figures import marks
from tplab.shown import algorithm_text, bytes_text, number

HERE = "this machine"
_MEASURED = "as measured"
_COLOURS = (style.FORWARD, style.DECODE, style.BACKWARD, style.WEIGHT_GRADIENT, style.POINT_TO_POINT, style.COLLECTIVE)
_PATTERNS = ("", "/", "x", ".", "\\", "-")
_MOST_TIMES = 2.0
"""Slowdown from which cells of the map are all equally pale."""


def crossover_figure(frame: pd.DataFrame, rules: Sequence[EngineRule], *, badge: str) -> go.Figure:
    """Sizes x algorithms, how many times as long as the winner each takes; below, who takes what at which size.

    Winners that beat the noise have a frame; where the first two are within each other's noise nobody has. A strip is
    drawn for the machine that was measured and for each engine that has a threshold for it.

    Args:
        frame: rows that ``comparable`` gives.
        rules: as ``engine_rules`` gives them.
    """
    known = [rule for rule in rules if rule.bands]
    algorithms = list(dict.fromkeys(frame["algorithm"]))
    heights = [len(algorithms) + 1.0, len(known) + 1.5]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.08)
    _add_map(figure, frame, algorithms)
    edges = frame["bytes"].min() / math.sqrt(2), frame["bytes"].max() * math.sqrt(2)
    bands = crossovers(frame).to_dict("records")
    strips = [(_MEASURED, [(band["to_bytes"], band["algorithm"]) for band in bands])]
    for rule in known:
        strips.append((rule.engine, [(band.to_bytes, _stand_in(band.kind, algorithms)) for band in rule.bands]))
    seen: set[str] = set()
    for name, pieces in strips:
        _add_strip(figure, name, pieces, edges, algorithms, seen)
    powers = range(math.ceil(math.log2(edges[0])), math.floor(math.log2(edges[1])) + 1)
    ticks = [1 << power for power in powers if power % 2 == 0]
    labels = [bytes_text(tick) for tick in ticks]
    span = [math.log10(edge) for edge in edges]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=labels, range=span)
    figure.update_xaxes(title="message size S", row=2, col=1)
    for row in (1, 2):
        figure.update_yaxes(autorange="reversed", type="category", row=row, col=1)
    figure.update_layout(barmode="stack", bargap=0.35)
    n = int(frame["num_ranks"].iloc[0])
    title = f"All-reduce over {n} ranks: the fastest for each size"
    return style.card(figure, title=title, badge=badge, height=240 + 30 * (len(algorithms) + len(strips) + 2))


def _add_map(figure: go.Figure, frame: pd.DataFrame, algorithms: list[str]) -> None:
    best = fastest(frame)
    table = frame.pivot(index="algorithm", columns="bytes", values="p50_us").reindex(algorithms)
    times = table.div(table.min(axis=0), axis=1)
    sizes = [float(size) for size in table.columns]
    labels = [algorithm_text(algorithm) for algorithm in algorithms]
    figure.add_heatmap(
        x=sizes,
        y=labels,
        z=times.clip(upper=_MOST_TIMES).to_numpy(),
        zmin=1.0,
        zmax=_MOST_TIMES,
        colorscale=[[0.0, style.FORWARD], [0.12, style.DECODE], [1.0, style.IDLE]],
        showscale=False,
        xgap=2,
        ygap=2,
        text=[[_times(value) for value in row] for row in times.to_numpy()],
        texttemplate="%{text}" if len(sizes) <= 24 else None,
        textfont={"size": 10},
        customdata=table.to_numpy(),
        hovertemplate="%{y}, %{x} bytes: %{customdata:.1f} µs, %{text} the fastest<extra></extra>",
        row=1,
        col=1,
    )
    won = best[best["decided"].astype(bool)]
    winners = [algorithm_text(winner) for winner in won["winner"]]
    hover = "%{y} wins at %{x} bytes by %{customdata:.1f} µs"
    marks.points(
        figure,
        won["bytes"],
        winners,
        "wins by more than the noise",
        "rgba(0,0,0,0)",
        "square",
        size=20,
        edge=style.COLLECTIVE,
        hover=hover,
        customdata=won["margin_us"],
        row=1,
        col=1,
    )


def _add_strip(
    figure: go.Figure,
    name: str,
    pieces: list[tuple[float, str]],
    edges: tuple[float, float],
    algorithms: list[str],
    seen: set[str],
) -> None:
    """One row of coloured pieces over the sizes; on a log axis a bar cannot be stacked, so pieces are thick lines."""
    start = edges[0]
    for limit, algorithm in pieces:
        end = min(limit, edges[1])
        if end <= start:
            continue
        place = algorithms.index(algorithm) if algorithm in algorithms else len(algorithms)
        until = "and above" if limit >= edges[1] else f"up to {bytes_text(limit)}"
        line: dict[str, Any] = {"color": _COLOURS[place % len(_COLOURS)], "width": 16}
        figure.add_scatter(
            x=[start, end],
            y=[name, name],
            mode="lines",
            line=line,
            name=algorithm_text(algorithm),
            legendgroup=algorithm,
            showlegend=algorithm not in seen,
            hovertemplate=f"{name}: {algorithm_text(algorithm)} {until}<extra></extra>",
            row=2,
            col=1,
        )
        seen.add(algorithm)
        if limit < edges[1]:
            marks.note(figure, math.log10(limit), name, bytes_text(limit), yshift=15, row=2, col=1)
        start = end


def losses_figure(losses: pd.DataFrame, *, title: str, badge: str) -> go.Figure:
    """Milliseconds that a decode step loses by each engine's fixed choice, by batch.

    Args:
        losses: as ``engine_losses`` gives them; engines without a time have no bars.
        title: of the figure.
    """
    figure = go.Figure()
    engines = list(dict.fromkeys(losses["engine"]))
    for engine, colour, pattern in zip(engines, _COLOURS, _PATTERNS, strict=False):
        rows = losses[(losses["engine"] == engine) & losses["lost_ms_per_step"].notna()]
        hover = "batch %{x}: %{y:.2f} ms per step, %{customdata[0]:.1f} µs per call (%{customdata[1]})"
        more = rows[["lost_us_per_call", "kind"]].to_numpy()
        batches = [str(batch) for batch in rows["batch"]]
        marks.bars(figure, batches, rows["lost_ms_per_step"], engine, colour, pattern, hover=hover, customdata=more)
    figure.update_layout(barmode="group", bargap=0.4)
    figure.update_xaxes(title="sequences that decode together", type="category")
    figure.update_yaxes(title="ms per decode step lost to fixed limits", rangemode="tozero")
    return style.card(figure, title=title, badge=badge, height=420)


def explain_losses(losses: pd.DataFrame) -> str:
    """A sentence per engine: the most it loses, or why there is nothing to say."""
    notes = list(dict.fromkeys(losses["note"]))
    if losses["lost_ms_per_step"].isna().all() and len(notes) == 1:
        return f"vLLM, SGLang and TensorRT-LLM: {notes[0]}."
    said = []
    for engine, rows in losses.groupby("engine", sort=False):
        timed = rows[rows["lost_ms_per_step"].notna()]
        if timed.empty:
            said.append(f"{engine}: {rows['note'].iloc[0]}.")
            continue
        most = timed.sort_values("lost_ms_per_step").iloc[-1]
        if most["lost_ms_per_step"] == 0:
            said.append(f"{engine} loses nothing here.")
            continue
        said.append(
            f"{engine} loses at most {most['lost_ms_per_step']:.2f} ms per step, {most['lost_us_per_call']:.1f} µs per "
            f"call, at batch {most['batch']}: {most['kind']} where {algorithm_text(most['best'])} is faster."
        )
    return " ".join(said)


def _stand_in(kind: str, algorithms: Sequence[str]) -> str:
    return next((name for name in KINDS[kind] if name in algorithms), KINDS[kind][0])


def _times(value: float) -> str:
    return "" if math.isnan(value) else "1" if value < 1.005 else f"×{number(value)}"
