"""Gantt charts of pipelines, from traces alone: what was simulated and what was measured look the same.

One bar trace per kind of work and chart, not one per action: a table of 8,192 actions is half a dozen traces, which is
what keeps a slider smooth. All charts of a figure share one time axis, so that the pointer marks the same moment in
each, and what an action's label says of one trace it says of the other too.
"""

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from tplab.checks import check_length
from tplab.lab import style
from tplab.lab.figures.gantt_bars import PLOT_WIDTH_PX, SENDS, WITH_SENDS, WITHOUT, Lanes, Scale, bars_of, memory_of
from tplab.pipeline.schedule import CODES
from tplab.pipeline.trace import Trace
from tplab.shown import counted, number
from tplab.topology.machine.names import name_of

_TOP_PX, _BOTTOM_PX = 70, 96  # margins of style.card
_CAPTION_PX, _SECOND_LINE_PX = 26, 15
_CAPTION_CHARACTERS = 76  # have room in the output of a cell in a window of 1000 pixels
_MEMORY_PX = 24


def gantt(
    *traces: Trace,
    title: str = "",
    badge: str = "",
    names: Sequence[str] = (),
    max_activations: float | None = None,
    memory: bool | None = None,
    lane_px: int | None = None,
    unit: str = "",
    lane: str = "rank",
) -> go.Figure:
    """One chart per trace, the first on top, all on one time axis; below, what each rank holds over time.

    In a chart rank 0 is on top; computations lie on a full lane, messages on one of half that height below (forward in
    its upper half, backward in its lower, where both occur), and there, too, the collectives that are part of a
    computation, where the trace knows them. Labels say which micro-batch, where there are up to 64 actions per lane,
    each as long as it has room in its bar. The caption of a chart has the makespan and the bubble under both names,
    and the peak of every rank where no memory lane has it.
    The memory lane has the first trace filled, and the others as lines.

    Args:
        traces: of equally many ranks, such as a simulation and the run below it.
        badge: of the numbers; by default that of the last measured trace, or MODEL.
        names: of the traces, in captions; by default ``simulated`` and ``measured``, or the schedule's.
        max_activations: a cap in micro-batches, drawn into the memory lane.
        memory: whether to draw it; by default in training, for in inference a rank holds nothing between forwards.
        lane_px: height of a rank's lanes.
        unit: what a second of the traces stands for, such as ``units of F`` where a forward takes 1; by default times
            are seconds, shown as such or as milliseconds.
        lane: what a lane is of: ``stage``, where a stage has several ranks.

    Raises:
        ValueError: no trace, or of different numbers of ranks.
    """
    if not traces:
        raise ValueError("traces must hold at least one trace; got none")
    p = traces[0].num_ranks
    if any(trace.num_ranks != p for trace in traces):
        raise ValueError(f"traces must have equally many ranks; got {[trace.num_ranks for trace in traces]}")
    if memory is None:
        memory = not all(trace.schedule.is_inference for trace in traces)
    names = list(names) or _names(traces)
    check_length("names", names, len(traces), "traces")
    end_s = max((float(trace.end_s.max()) for trace in traces if len(trace.end_s)), default=1.0)
    shown_in, factor = _unit(end_s, unit)
    lanes = _lanes(traces)
    each_px = lane_px or max(10, min(40, 480 // (p * len(traces))))
    heights = [p * each_px] * len(traces) + [p * max(10, min(_MEMORY_PX, 200 // p))] * memory
    captions = [caption(trace, name, unit, peaks=not memory) for trace, name in zip(traces, names, strict=True)]
    if memory:
        held = f"; filled: {names[0]}, line: {', '.join(names[1:])}" if len(traces) > 1 else ""
        captions.append(f"<b>memory</b> · micro-batches held{held}; right: peak")
    two_lines = max(len(text) - len("<b></b>") for text in captions) > _CAPTION_CHARACTERS
    if two_lines:
        captions = [text.replace(" · idle", "<br>idle", 1) for text in captions]
    spots, plot_px = _spots(heights, _CAPTION_PX + _SECOND_LINE_PX * two_lines)

    data: list[dict[str, Any]] = []
    shown: set[str] = set()
    decimals = max(0, 6 - math.ceil(math.log10(end_s * factor))) if end_s else 0
    px_per_s = PLOT_WIDTH_PX / end_s if end_s else 0.0
    scale = Scale(shown_in, factor, px_per_s=px_per_s, lane_px=each_px, decimals=decimals)
    for index, trace in enumerate(traces):
        other = traces[1 if index == 0 else 0] if len(traces) > 1 else None
        for bars in bars_of(trace, other, lanes, scale):
            kind = bars["name"]
            bars |= {"yaxis": _axis("y", index), "xaxis": "x", "showlegend": kind not in shown}
            shown.add(kind)
            data.append(bars)
    if memory:
        data += memory_of(traces, names, _axis("y", len(traces)), scale, end_s, max_activations)

    layout = _card(badge or _badge(traces), plot_px + _TOP_PX + _BOTTOM_PX)
    layout["title"]["text"] = title or title_of(traces[0])
    _lay_out(layout, p, spots, captions, shown_in, end_s * factor, lane)
    return go.Figure(data, layout)


def small_multiples(
    traces: Sequence[Trace], *, names: Sequence[str] = (), title: str = "", unit: str = ""
) -> go.Figure:
    """Schedules one above the other on one time axis, the same ranks and micro-batches in each; thin lanes. ``unit`` as
    for :func:`gantt`."""
    traces = list(traces)
    p = traces[0].num_ranks if traces else 1
    return gantt(
        *traces,
        names=names or [schedule_name(trace) for trace in traces],
        title=title or "The same work under every schedule",
        memory=False,
        lane_px=max(6, min(16 if _lanes(traces) is WITHOUT else 26, 120 // p)),
        unit=unit,
    )


def caption(trace: Trace, name: str, unit: str = "", *, peaks: bool = True) -> str:
    """Makespan, both bubbles, time in collectives, and the peaks (in micro-batches), in a line; ``unit`` as for
    :func:`gantt`. ``peaks=False``: without these, for a figure whose memory lane has them."""
    shown_in, factor = _unit(trace.makespan_s, unit)
    parts = [
        f"<b>{name}</b>",
        f"makespan {_four_digits(trace.makespan_s * factor)} {shown_in}",
        f"idle/total {trace.idle_over_total:.1%}",
        f"idle/work {trace.idle_over_work:.1%}",
    ]
    if trace.collectives:
        parts.append(f"collectives/total {trace.collective_over_total:.1%}")
    if peaks and not trace.schedule.is_inference:
        parts.append(f"peak {_peaks_text(trace.peak_activations_per_rank)}")
    return " · ".join(parts)


def _lanes(traces: Sequence[Trace]) -> Lanes:
    below = any(trace.collectives or np.isin(trace.op, SENDS).any() for trace in traces)
    return WITH_SENDS if below else WITHOUT


def _unit(end_s: float, unit: str) -> tuple[str, float]:
    """What times up to ``end_s`` are shown in, and how many of it make a second."""
    if unit:
        return unit, 1.0
    return ("ms", 1e3) if end_s < 10 else ("s", 1.0)


def _names(traces: Sequence[Trace]) -> list[str]:
    words = ["measured" if trace.measured else "simulated" for trace in traces]
    return words if len(set(words)) == len(words) else [schedule_name(trace) for trace in traces]


def schedule_name(trace: Trace) -> str:
    """Its schedule as people call it."""
    v = trace.schedule.num_chunks
    return name_of(trace.schedule.name) + (f", {v} chunks" if v > 1 else "")


def _four_digits(value: float) -> str:
    return number(value, max(4, len(str(int(value)))))


def title_of(trace: Trace) -> str:
    """``1F1B: 4 ranks, 8 micro-batches``."""
    m = counted(trace.schedule.num_micro_batches, "micro-batch", "micro-batches")
    return f"{schedule_name(trace)}: {counted(trace.num_ranks, 'rank')}, {m}"


def _badge(traces: Sequence[Trace]) -> str:
    measured = [trace.badge for trace in traces if trace.measured]
    return measured[-1] if measured else traces[0].badge


def _peaks_text(peaks: Sequence[float]) -> str:
    if len(peaks) > 8:
        return f"at most {number(max(peaks))}"
    return ", ".join(map(number, peaks))


def _axis(letter: str, index: int) -> str:
    return letter + (str(index + 1) if index else "")


def _spots(heights: Sequence[int], caption_px: int) -> tuple[list[tuple[float, float]], int]:
    """The vertical domain of each chart, captions between them, and the plot's height in pixels."""
    plot_px = sum(heights) + caption_px * len(heights)
    spots, top = [], plot_px
    for height in heights:
        top -= caption_px
        spots.append(((top - height) / plot_px, top / plot_px))
        top -= height
    return spots, plot_px


def _card(badge: str, height: int) -> dict[str, Any]:
    """The layout of a card. Made once for each badge and height: it takes plotly longer than all else here."""
    return copy.deepcopy(_card_once(badge, height))


@functools.lru_cache(maxsize=64)
def _card_once(badge: str, height: int) -> dict[str, Any]:
    figure = style.card(go.Figure(), title="", badge=badge, height=height)
    layout: dict[str, Any] = figure.layout.to_plotly_json()
    return layout


def _lay_out(
    layout: dict[str, Any],
    p: int,
    spots: Sequence[tuple[float, float]],
    captions: Sequence[str],
    unit: str,
    end: float,
    lane: str,
) -> None:
    every = max(1, p // 8)
    ranks = list(range(0, p, every))
    for index, spot in enumerate(spots):
        layout[_axis("yaxis", index)] = {
            "domain": spot,
            "range": [p, 0],
            "tickvals": [rank + 0.5 for rank in ranks],
            "ticktext": [f"{lane} {rank}" for rank in ranks],
            "showgrid": False,
            "zeroline": False,
            "linecolor": "#AEB6C1",
            "ticks": "",
            "automargin": True,
            "fixedrange": True,
        }
    layout["annotations"] = [
        *layout["annotations"],
        *(
            {
                **{"text": text, "xref": "paper", "yref": "paper", "x": 0.0, "y": spot[1], "xanchor": "left"},
                **{
                    "yanchor": "bottom",
                    "yshift": 2,
                    "showarrow": False,
                    "align": "left",
                    "font": {"size": 12, "color": style.INK},
                },
            }
            for text, spot in zip(captions, spots, strict=True)
        ),
    ]
    layout |= {"barmode": "overlay", "hovermode": "closest", "uniformtext": {"mode": "hide", "minsize": 9}}
    layout["xaxis"] |= {
        "title": layout["xaxis"]["title"] | {"text": {"ms": "milliseconds", "s": "seconds"}.get(unit, unit)},
        "range": [0, 1.06 * end],
        "anchor": _axis("y", len(spots) - 1),
        # The same moment in every chart.
        **{"showspikes": True, "spikemode": "across", "spikesnap": "cursor", "spikethickness": 1},
        **{"spikecolor": style.MUTED, "spikedash": "dot"},
    }


def explain_pipeline(simulated: Trace, measured: Trace) -> str:
    """Sentences on a run of a schedule beside its simulation: makespan, bubble, and the most a rank held."""
    name, wanted = name_of(measured.schedule.name), int(simulated.is_compute.sum())
    done = int(measured.is_compute.sum())
    if not done:
        return ""
    if done < wanted:
        return f"{name}: {done:,} of {wanted:,} computations so far."
    text = (
        f"{name}: {measured.makespan_s * 1e3:.0f} ms measured, {simulated.makespan_s * 1e3:.0f} ms simulated, a ratio "
        f"of {measured.makespan_s / simulated.makespan_s:.3f}. The ranks were idle for {measured.idle_over_total:.1%} "
        f"of the time (simulated: {simulated.idle_over_total:.1%}), which is {measured.idle_over_work:.1%} of the work."
    )
    sends = np.isin(measured.op, [code for op, code in CODES.items() if op.is_send])
    if sends.any() and "emulated" not in str(measured.provenance.get("link", "")):
        took_s = float(np.median((measured.end_s - measured.start_s)[sends]))
        text += f" Half of the messages took less than {took_s * 1e3:.1f} ms to be received; the simulation has none."
    if measured.schedule.is_inference:
        return text
    held = measured.peak_activations_per_rank
    return text + f" At its peak rank 0 held {number(held[0])} micro-batches, the last rank {number(held[-1])}."
