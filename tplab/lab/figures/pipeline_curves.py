"""Pipelines in numbers: bubbles against micro-batches, prefills by their pieces, decoding rings by what is in flight.

Each has formula, simulation and, where there is one, measurement on the same axes.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from tplab.lab import style
from tplab.lab.figures import marks
from tplab.pipeline import formulas
from tplab.pipeline.build import build_schedule
from tplab.pipeline.schedule import Schedule
from tplab.pipeline.simulation import simulate
from tplab.pipeline.trace import Trace
from tplab.shown import counted
from tplab.topology.machine.names import name_of

_LINES = {
    "1f1b": (style.FORWARD, "solid", "circle"),
    "interleaved": (style.DECODE, "dash", "square"),
    "zb-h1": (style.WEIGHT_GRADIENT, "dashdot", "diamond"),
    "gpipe": (style.BACKWARD, "longdash", "triangle-up"),
    "forward-only": (style.POINT_TO_POINT, "longdashdot", "triangle-down"),
}


def bubble_frame(
    p: int, micro_batches: Sequence[int], schedules: Sequence[tuple[str, int]] = (("1f1b", 1), ("interleaved", 2))
) -> pd.DataFrame:
    """Bubbles (idle over total) by formula and by simulation, F = I = W, free messages.

    Args:
        schedules: names, each with its number of chunks; m that a schedule cannot do is left out.

    Returns:
        Rows of ``schedule``, ``chunks``, ``num_stages``, ``micro_batches``, ``formula``, ``simulated``.
    """
    rows = []
    for name, v in schedules:
        for m in micro_batches:
            try:
                schedule = build_schedule(name, p, m, v)
                formula = formulas.idle_over_total(name, p, m, v)
            except ValueError:
                continue
            rows.append((name, v, p, m, formula, simulate(schedule).idle_over_total))
    return pd.DataFrame(rows, columns=["schedule", "chunks", "num_stages", "micro_batches", "formula", "simulated"])


def bubble_figure(frame: pd.DataFrame, *, claimed: bool = True) -> go.Figure:
    """Bubbles against micro-batches: lines are formulas, marks are simulated.

    Args:
        frame: as :func:`bubble_frame` gives it.
        claimed: draw what the article says of GPipe, too.
    """
    figure = go.Figure()
    p = int(frame["num_stages"].iloc[0]) if len(frame) else 0
    hover = "m = %{x}: %{y:.1f} %"
    for _, rows in frame.groupby(["schedule", "chunks"], sort=False):
        name, v = str(rows["schedule"].iloc[0]), int(rows["chunks"].iloc[0])
        colour, dash, symbol = _LINES.get(name, (style.MUTED, "solid", "circle"))
        label = name_of(name) + (f", {v} chunks" if v > 1 else "")
        m, by_formula, simulated = rows["micro_batches"], 100 * rows["formula"], 100 * rows["simulated"]
        marks.line(figure, m, by_formula, f"{label}, formula", colour, dash, hover=hover)
        marks.points(figure, m, simulated, f"{label}, simulated", colour, symbol, size=9, edge="white", hover=hover)
    if claimed and len(frame):
        x = list(range(int(frame["micro_batches"].min()), int(frame["micro_batches"].max()) + 1))
        y, name = [100 * formulas.claimed_gpipe_bubble(p, m) for m in x], "what the article claims for GPipe"
        marks.line(figure, x, y, name, style.COLLECTIVE, "dot", hover=f"{hover}<extra>claimed for GPipe</extra>")
    figure.update_xaxes(title="micro-batches m")
    figure.update_yaxes(title="bubble: idle / total", ticksuffix=" %", rangemode="tozero")
    return style.card(figure, title=f"The bubble shrinks with micro-batches, {p} ranks", badge="MODEL", height=440)


def few_micro_batches_frame(p: int, chunks: Sequence[int], micro_batches: Sequence[int]) -> pd.DataFrame:
    """What ``(p-1)/(v·m)`` says below m = p, where it does not hold; what a table takes; and the least there can be.

    A micro-batch crosses all p·v stages one after the other, forward and backward, which takes the time of p ranks'
    work on it; so idle over work is at least ``p/m - 1``, whatever the chunks.

    Args:
        p: ranks.
        chunks: numbers of chunks per rank, v.
        micro_batches: m.

    Returns:
        Rows of ``num_stages``, ``chunks``, ``micro_batches``, ``plotted`` (the formula), ``simulated`` (all forwards,
        chunk after chunk, then all backwards, F = I = W) and ``least``, all idle over work.
    """
    rows = []
    for v in chunks:
        for m in micro_batches:
            forwards = [[f"{r + p * c}F{i}" for c in range(v) for i in range(m)] for r in range(p)]
            backwards = [[f"{r + p * c}B{i}" for c in reversed(range(v)) for i in range(m)] for r in range(p)]
            text = "\n".join(",".join(f + b) for f, b in zip(forwards, backwards, strict=True))
            made = simulate(Schedule.from_text(text, name=f"all forwards first, {v} chunks"))
            rows.append((p, v, m, (p - 1) / (v * m), made.idle_over_work, max(0.0, p / m - 1)))
    names = ["num_stages", "chunks", "micro_batches", "plotted", "simulated", "least"]
    return pd.DataFrame(rows, columns=names)


def few_micro_batches_figure(frame: pd.DataFrame) -> go.Figure:
    """:func:`few_micro_batches_frame`: the formula as lines, what a table takes as marks, the least as a shade below.

    Args:
        frame: as that function gives it.
    """
    figure = go.Figure()
    p = int(frame["num_stages"].iloc[0]) if len(frame) else 0
    hover = "m = %{x}: %{y:.0f} %"
    colours = (style.FORWARD, style.WEIGHT_GRADIENT, style.POINT_TO_POINT, style.INK)
    for at, (v, rows) in enumerate(frame.groupby("chunks", sort=False)):
        m, colour = rows["micro_batches"], colours[at % len(colours)]
        if not at:
            fill = {"fill": "tozeroy", "fillcolor": style.IDLE}
            marks.line(figure, m, 100 * rows["least"], "cannot be: below p/m - 1", style.MUTED, "dot", width=1, **fill)
        name = counted(int(str(v)), "chunk")
        marks.line(figure, m, 100 * rows["plotted"], f"(p-1)/(v·m), {name}", colour, hover=hover)
        marks.points(figure, m, 100 * rows["simulated"], f"simulated, {name}", colour, size=8, hover=hover)
    figure.update_xaxes(title="micro-batches m", type="log", tickvals=sorted(set(frame["micro_batches"])))
    figure.update_yaxes(title="bubble: idle / work", ticksuffix=" %", rangemode="tozero")
    title = f"Where the formula does not hold: {p} ranks, few micro-batches"
    return style.card(figure, title=title, badge="MODEL", height=440)


def prefill_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """Makespan of a prefill against the number of micro-batches, or of one prompt against that of its chunks.

    Args:
        frame: as ``measure_serving`` gives it for a ``PrefillPlan`` or a ``ChunkedPrefillPlan``.
    """
    chunked = "chunks" in frame
    pieces = frame["chunks" if chunked else "micro_batches"] if len(frame) else pd.Series(dtype=int)
    labels = [str(count) for count in pieces]
    figure = go.Figure()
    if len(frame):
        idle = frame["idle_over_total"]
        _measured(figure, labels, frame["measured_ms"], style.FORWARD, "", "%{y:.1f} ms", idle=idle)
        _modelled(figure, labels, frame["formula_ms"], frame["simulated_ms"], "%{y:.1f} ms")
    if chunked and len(frame) and _is_complete(frame):
        best = int(frame["simulated_ms"].argmin())
        _note(
            figure, best, max(frame["measured_ms"].iloc[best], frame["formula_ms"].iloc[best]), "fewest ms by the model"
        )
    what = "chunks of the prompt" if chunked else "micro-batches m"
    figure.update_layout(bargap=0.45)
    figure.update_xaxes(title=what, type="category")
    figure.update_yaxes(title="makespan, milliseconds", rangemode="tozero")
    title = "One prompt in chunks: fill the pipeline, or pay per chunk" if chunked else "Prefill: makespan"
    return style.card(figure, title=title, badge=badge, height=430)


def decode_figure(frame: pd.DataFrame, *, badge: str) -> go.Figure:
    """Throughput of a decoding ring against what is in flight: below the needed k, the cliff.

    Args:
        frame: as ``measure_serving`` gives it for a ``DecodePlan``.
    """
    figure = go.Figure()
    labels = [str(k) for k in frame["in_flight"]] if len(frame) else []
    if len(frame):
        hover = "%{y:.1f} per second"
        measured, idle = frame["steps_per_s"], frame["measured_idle"]
        formula, simulated = (frame["in_flight"] / frame[f"{kind}_ms"] * 1e3 for kind in ("formula", "simulated"))
        _measured(figure, labels, measured, style.DECODE, ".", hover, idle=idle)
        _modelled(figure, labels, formula, simulated, hover)
        needed = int(frame["needed"].iloc[0])
        if str(needed) in labels:
            at = labels.index(str(needed))
            _note(figure, at, max(each.iloc[at] for each in (measured, formula, simulated)), f"full from k = {needed}")
    figure.update_layout(bargap=0.45)
    figure.update_xaxes(title="micro-batches in flight k", type="category")
    figure.update_yaxes(title="micro-batch steps per second", rangemode="tozero")
    return style.card(figure, title="Decoding ring: the cliff below a full ring", badge=badge, height=430)


def _measured(
    figure: go.Figure, labels: Sequence[str], values: Any, colour: str, pattern: str, hover: str, *, idle: Any
) -> None:
    inside = {"textposition": "inside", "insidetextanchor": "start", "textangle": 0}
    inside |= {"text": [f"{share:.0%} idle" for share in idle], "textfont": {"color": style.text_on(colour)}}
    name, hover = "measured, and its idle share", hover + ", %{text}<extra>measured</extra>"
    marks.bars(figure, labels, values, name, colour, pattern, hover=hover, **inside)


def _modelled(figure: go.Figure, labels: Sequence[str], formula: Any, simulated: Any, hover: str) -> None:
    marks.line(figure, labels, formula, "formula", style.INK, "dash", hover=hover)
    marks.predictions(figure, labels, simulated, "simulated", hover=hover)


def _note(figure: go.Figure, position: int, height: float, text: str) -> None:
    """On a category axis, where plotly takes a label made of digits for a position."""
    figure.add_annotation(
        **{"x": position, "y": height, "text": text, "showarrow": True, "arrowhead": 2, "arrowcolor": style.INK},
        **{"ax": 0, "ay": -34, "font": {"size": 12, "color": style.INK}, "bgcolor": "white"},
    )


def explain_serving(frame: pd.DataFrame) -> str:
    """Sentences on an inference pipeline (frame of a plan in ``tplab.pipeline.serving``): what fills it, what costs. No
    verdict before all of it is measured."""
    if frame.empty:
        return ""
    off = frame["error_pct"].abs()
    if not _is_complete(frame):
        return f"{len(frame)} of {frame['cases'].iloc[0]} measured so far."
    if "in_flight" in frame:
        first, needed = frame.iloc[0], int(frame["needed"].iloc[0])
        text = (
            f"With {int(first['in_flight'])} in flight {first['steps_per_s']:.0f} micro-batches get a token per "
            f"second, {first['of_best']:.0%} of what the slowest stage allows; by the formula the ring is "
            f"full from k = {needed}"
        )
        full = frame[frame["full"]]
        text += f", measured {full['of_best'].iloc[0]:.0%}." if len(full) else ", more than was tried."
    elif "chunks" in frame:
        text = _chunks_in_words(frame)
    else:
        first, last = frame.iloc[0], frame.iloc[-1]
        counts = [counted(int(row["micro_batches"]), "micro-batch", "micro-batches") for row in (first, last)]
        text = (
            f"{counts[0]} in {first['measured_ms']:.0f} ms: the ranks are "
            f"idle for {first['idle_over_total']:.0%}; {counts[1]} in "
            f"{last['measured_ms']:.0f} ms, {last['per_micro_batch_ms']:.0f} ms each: idle for "
            f"{last['idle_over_total']:.0%}."
        )
    return text + f" Measurement and simulation differ by {off.median():.1f} % (median), {off.max():.1f} % at most."


def explain_hops(free: Trace, over: Trace, simulated: Trace, waiting: Trace, hop_s: float) -> str:
    """Sentences on what messages cost a prefill: one per boundary where a stage goes on while they are on their way.

    Args:
        free: a run in which messages take no time.
        over: a run of the same table in which each takes ``hop_s``.
        simulated: what ``free`` is by simulation.
        waiting: the table simulated with stages that wait until what they sent has arrived.
        hop_s: seconds of a message.
    """
    p, m = over.num_ranks, over.schedule.num_micro_batches
    longer_s, wait_s = over.makespan_s - free.makespan_s, waiting.makespan_s - simulated.makespan_s
    text = (
        f"{m} micro-batches on {p} stages: {_ms(free.makespan_s)} with free messages, {_ms(over.makespan_s)} where "
        f"each takes {_ms(hop_s)}. Each boundary carries {m}; the prefill is longer by the "
        f"time of {longer_s / hop_s:.1f}, and the formula says {p - 1}, one per boundary"
    )
    hidden = longer_s < (p - 1 + (m - 1) / 2) * hop_s
    text += ": the others are on their way while their sender computes. " if hidden else ": here they were waited for. "
    return text + (
        f"Stages that waited for what they send would make it longer by the time of {wait_s / hop_s:.1f} (simulated)."
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms"


def _chunks_in_words(frame: pd.DataFrame) -> str:
    """A prompt in chunks: the fastest measured, the fastest by the model, and what lies on each side of that."""
    first, best = frame.iloc[0], frame.iloc[int(frame["measured_ms"].argmin())]
    modelled = int(frame["simulated_ms"].argmin())
    text = f"The prompt in {counted(int(first['chunks']), 'chunk')} takes {first['measured_ms']:.0f} ms; "
    if best["chunks"] == first["chunks"]:
        text += "that is the fastest measured. "
    else:
        text += f"the fastest measured is {counted(int(best['chunks']), 'chunk')}, {best['measured_ms']:.0f} ms. "
    text += f"The model's fastest is {counted(int(frame.iloc[modelled]['chunks']), 'chunk')}"
    if len(frame) == 1:
        return text + "."
    if modelled == 0:
        return text + ": what each further chunk costs by itself is more than it fills."
    if modelled == len(frame) - 1:
        return text + ", the most that were tried: each still fills more than it costs."
    return text + ": with fewer, stages wait longer; with more, each chunk costs more than it fills."


def _is_complete(frame: pd.DataFrame) -> bool:
    """Whether all cases of a plan are in; a frame that does not say how many there are counts as whole."""
    return "cases" not in frame or len(frame) >= int(frame["cases"].iloc[0])
