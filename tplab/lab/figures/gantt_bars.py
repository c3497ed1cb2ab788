"""The traces of a Gantt chart: bars of idle time, work and messages, and the memory lane, from a trace's arrays."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tplab.lab import style
from tplab.lab.figures import marks
from tplab.pipeline.schedule import CODES, OPS, Op
from tplab.pipeline.trace import KINDS, Trace
from tplab.shown import number
from tplab.topology.machine.names import name_of

_LABELLED = 64
"""Most actions per lane for which bars get labels."""
_SPELLED = 20
"""Most actions per lane for which a label has the letter of the action besides the micro-batch."""

_LOOK = {
    "forward": (style.FORWARD, ""),
    "decode": (style.DECODE, "."),
    "backward": (style.BACKWARD, "/"),
    "input gradient": (style.BACKWARD, "\\"),
    "weight gradient": (style.WEIGHT_GRADIENT, "x"),
    "point-to-point": (style.POINT_TO_POINT, ""),
}
CALLED = {
    "input gradient": "backward (input)",
    "weight gradient": "backward (weights)",
    "point-to-point": "message",
}
"""What the legend calls a kind, where not by its own name."""
_LATER_CHUNK = {style.FORWARD: style.DECODE, style.BACKWARD: "#FFE79A", style.WEIGHT_GRADIENT: "#7FC4AE"}
"""Colour of a kind's last chunk; the chunks between go from the kind's own colour towards it."""
_DARK = {"forward", "weight gradient"}

PLOT_WIDTH_PX = 560
"""Width of the narrowest plot that labels are made for; a figure does not know its page."""
_CHARACTER_PX = 6
_PAD_PX = 6
"""What plotly leaves free beside the text in a bar."""
_LINE_PX = 10


class Scale(NamedTuple):
    """Scale of the time axis and of a rank's lanes, in pixels."""

    unit: str
    """What times are shown in, such as ``ms``."""
    factor: float
    """How many ``unit`` make one second."""
    px_per_s: float
    """Pixels of a second, where the plot is as narrow as labels are made for."""
    lane_px: float
    """Height of a rank's lanes."""
    decimals: int
    """Decimals of times in ``unit``, as many as can be seen: a figure sends them all."""


class Lanes(NamedTuple):
    """Where things lie within the height 1 of a rank, from its top."""

    compute: float
    compute_height: float
    sends: float
    sends_height: float


WITH_SENDS = Lanes(0.34, 0.56, 0.79, 0.28)
WITHOUT = Lanes(0.5, 0.8, 0.0, 0.0)
SENDS = (CODES[Op.SEND_F], CODES[Op.SEND_B])


def bars_of(trace: Trace, other: Trace | None, lanes: Lanes, scale: Scale) -> list[dict[str, Any]]:
    """Idle, then one bar trace per kind."""
    factor = scale.factor
    result = [_idle(trace, lanes, scale)]
    kinds = np.asarray(trace.kinds(), dtype=object)
    sends = np.isin(trace.op, SENDS)
    drawn = trace.is_compute | sends  # a receive is a wait, which is idle time already
    per_lane = np.bincount(trace.rank[trace.is_compute], minlength=trace.num_ranks).max(initial=0)
    both = (trace.op == SENDS[0]).any() and (trace.op == SENDS[1]).any()
    told, hover = _hover(trace, other, scale)
    for kind in KINDS:
        which = np.flatnonzero((kinds == kind) & drawn)
        if not len(which):
            continue
        messages = kind == "point-to-point"
        y, width = trace.rank[which] + lanes.compute, lanes.compute_height
        if messages:
            width = lanes.sends_height / (2 if both else 1)
            back = np.where(trace.op[which] == SENDS[1], 0.5, -0.5) if both else 0.0
            y = trace.rank[which] + lanes.sends + back * width
        begin_s, length_s = trace.start_s[which], (trace.end_s - trace.start_s)[which]
        begins, lengths = (np.round(each * factor, scale.decimals) for each in (begin_s, length_s))
        bars = _bars(kind, begins, lengths, y, width, _marker(kind, trace, which), hover)
        bars["customdata"] = [told[i] for i in which.tolist()]
        if not messages and per_lane <= _LABELLED and width * scale.lane_px >= _LINE_PX:
            room = (length_s * scale.px_per_s - _PAD_PX) / _CHARACTER_PX
            bars |= {
                "text": _labels(trace, which, room.tolist(), letters=per_lane <= _SPELLED),
                "textposition": "inside",
                "insidetextanchor": "middle",
                "textangle": 0,
                "constraintext": "inside",  # with `uniformtext` of the layout: those that have no room are hidden
                "textfont": {"size": 11, "color": _text_colours(kind, trace, which)},
            }
        result.append(bars)
    if trace.collectives:
        result.append(_collectives(trace, lanes, scale))
    return result


def _collectives(trace: Trace, lanes: Lanes, scale: Scale) -> dict[str, Any]:
    """Below the computations that they are part of, where messages lie."""
    rank, start_s, end_s = (np.asarray(column) for column in zip(*trace.collectives, strict=True))
    hover = f"in a collective for %{{customdata:,.3~r}} {scale.unit}"
    lengths = (end_s - start_s) * scale.factor
    marker = style.bar_marker(style.COLLECTIVE)
    return _bars("collectives", start_s * scale.factor, lengths, rank + lanes.sends, lanes.sends_height, marker, hover)


def _bars(
    kind: str, base: Any, lengths: Any, y: Any, width: float, marker: dict[str, Any], hover: str
) -> dict[str, Any]:
    name = CALLED.get(kind, kind)
    return {
        "type": "bar",
        "orientation": "h",
        "base": base,
        "x": lengths,
        "customdata": lengths,
        "y": y,
        "width": width,
        "name": name,
        "legendgroup": name,
        "marker": marker,
        "hovertemplate": f"{hover}<extra></extra>",
    }


def _labels(trace: Trace, which: NDArray[np.int64], room: Sequence[float], *, letters: bool) -> list[str]:
    """``F3`` or ``3``, or nothing where not even that has room; ``room`` in characters."""
    labels = []
    for code, micro_batch, most in zip(trace.op[which].tolist(), trace.micro_batch[which].tolist(), room, strict=True):
        label = str(micro_batch)
        if letters and len(label) + 1 <= most:
            label = OPS[code].value + label
        labels.append(label if len(label) <= most else "")
    return labels


def _idle(trace: Trace, lanes: Lanes, scale: Scale) -> dict[str, Any]:
    """Where a rank does not compute, from the first computation on any rank to the last."""
    base, length, y = [], [], []
    compute = trace.is_compute
    begin = float(trace.start_s[compute].min()) if compute.any() else 0.0
    end = begin + trace.makespan_s
    for rank in range(trace.num_ranks):
        mine = np.flatnonzero(compute & (trace.rank == rank))
        order = mine[np.argsort(trace.start_s[mine])]
        free_from = np.concatenate([[begin], trace.end_s[order]])
        gap = np.concatenate([trace.start_s[order], [end]]) - free_from
        wide = gap > 1e-9 * max(end, 1e-9)
        base.append(free_from[wide])
        length.append(gap[wide])
        y.append(np.full(int(wide.sum()), rank + lanes.compute))
    begins, lengths = (np.round(np.concatenate(each) * scale.factor, scale.decimals) for each in (base, length))
    hover = f"idle for %{{customdata:,.4~r}} {scale.unit}"
    return _bars("idle", begins, lengths, np.concatenate(y), lanes.compute_height, {"color": style.IDLE}, hover)


def _shade(colour: str, chunk: int, num_chunks: int) -> str:
    if num_chunks == 1 or colour not in _LATER_CHUNK:
        return colour
    near, far = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in (colour, _LATER_CHUNK[colour]))
    mixed = near + (far - near) * (chunk / (num_chunks - 1))
    return "#" + "".join(f"{round(part):02X}" for part in mixed)


def _marker(kind: str, trace: Trace, which: NDArray[np.int64]) -> dict[str, Any]:
    colour, pattern = _LOOK[kind]
    marker = style.bar_marker(colour, pattern, line={"color": "white", "width": 0.5 if len(trace.rank) < 2000 else 0})
    v = trace.schedule.num_chunks
    if v > 1 and colour in _LATER_CHUNK:
        shades = [_shade(colour, chunk, v) for chunk in range(v)]
        # With a colour for each bar plotly takes black for the lines, whatever it is told.
        marker |= {"pattern": marker["pattern"] | {"fgopacity": 0.2}} if pattern else {}
        marker["color"] = [shades[chunk] for chunk in _chunks(trace, which)]
    return marker


def _text_colours(kind: str, trace: Trace, which: NDArray[np.int64]) -> Any:
    if kind not in _DARK:
        return style.INK_ON_FILL
    v = trace.schedule.num_chunks
    if v == 1:
        return "white"
    return ["white" if chunk / (v - 1) < 0.6 else style.INK_ON_FILL for chunk in _chunks(trace, which)]


def _chunks(trace: Trace, which: NDArray[np.int64]) -> list[int]:
    chunks: list[int] = (trace.stage[which] // trace.num_ranks).tolist()
    return chunks


def _hover(trace: Trace, other: Trace | None, scale: Scale) -> tuple[list[list[Any]], str]:
    """What an action's label says, of this trace and of the other: what differs, by span, and plotly's template of it.
    (A sentence for each action would be most of what a figure sends.)"""
    word, other_word = ("" if each is None else "measured" if each.measured else "simulated" for each in (trace, other))
    if other is not None and word == other_word:
        word, other_word = (name_of(each.schedule.name) for each in (trace, other))
    partner = {} if other is None else {action: span for _, action, span in _actions(other)}
    told: list[list[Any]] = []
    for rank, action, (start_s, end_s) in _actions(trace):
        stage, op, micro_batch = action
        values = [
            f"{stage}{OPS[op].value}{micro_batch}",
            rank,
            stage,
            micro_batch,
            round((end_s - start_s) * scale.factor, 6),
        ]
        if other is not None:
            start, end = (value * scale.factor for value in partner.get(action, (0.0, 0.0)))
            also = f"<br>{other_word} {number(start, 4)} to {number(end, 4)} {scale.unit} ({number(end - start)})"
            values.append(also if action in partner else "")
        told.append(values)
    template = (
        "<b>%{customdata[0]}</b> rank %{customdata[1]}, stage %{customdata[2]}, micro-batch %{customdata[3]}"
        f"<br>{word} %{{base:,.4~r}} to %{{x:,.4~r}} {scale.unit} (%{{customdata[4]:,.3~r}})"  # x: where the bar ends
    )
    return told, template + ("" if other is None else "%{customdata[5]}")


def _actions(trace: Trace) -> list[tuple[int, tuple[int, int, int], tuple[float, float]]]:
    """Rank, action (stage, operation, micro-batch), and start and end in seconds, of all."""
    actions = zip(trace.stage.tolist(), trace.op.tolist(), trace.micro_batch.tolist(), strict=True)
    spans = zip(trace.start_s.tolist(), trace.end_s.tolist(), strict=True)
    return list(zip(trace.rank.tolist(), actions, spans, strict=True))


_LINES = (("solid", style.COLLECTIVE), ("dash", style.FORWARD), ("dot", style.WEIGHT_GRADIENT))


def memory_of(
    traces: Sequence[Trace],
    names: Sequence[str],
    axis: str,
    scale: Scale,
    end_s: float,
    max_activations: float | None,
) -> list[dict[str, Any]]:
    """A strip per rank, all to one scale; the first trace filled, the others as lines; the peaks as text.

    Args:
        traces, names: what is drawn, and the names in the legend.
        axis: plotly's name of the vertical axis.
        scale: of the time axis.
        end_s: end of the time axis in seconds.
        max_activations: a limit to draw, in micro-batches; None for none.
    """
    p, end = traces[0].num_ranks, end_s * scale.factor
    height = 0.86 / max([trace.peak_activations() for trace in traces] + [max_activations or 0.0, 1.0])
    on_axis = {"type": "scatter", "mode": "lines", "yaxis": axis, "xaxis": "x"}
    data: list[dict[str, Any]] = []
    for index, (trace, name) in enumerate(zip(traces, names, strict=True)):
        x: list[float] = []
        y: list[float] = []
        told: list[list[float]] = []
        for rank in range(p):
            times, held = trace.activations(rank)
            if not len(times):
                continue
            # Of what lies within a pixel, what is left behind: room is made, and taken again at once.
            lasts = np.append(np.diff(times) > end_s / PLOT_WIDTH_PX, True)
            times, held = times[lasts], held[lasts]
            times, held = np.append(times[:1], times), np.append(0.0, held)  # up from nothing
            x += [*np.round(times * scale.factor, scale.decimals).tolist(), float("nan")]
            y += [*np.round(rank + 0.95 - height * held, 5).tolist(), float("nan")]
            told += [[rank, value] for value in np.round(held, 4).tolist()] + [[rank, 0.0]]
        dash, colour = _LINES[(index - 1) % len(_LINES)]
        look: dict[str, Any] = (
            {"fill": "toself", "fillcolor": "#C9D6EA", "line": {"color": style.FORWARD, "width": 1, "shape": "hv"}}
            if index == 0
            else {"line": {"color": colour, "width": 1.5, "dash": dash, "shape": "hv"}}
        )
        holds = f"rank %{{customdata[0]}} holds %{{customdata[1]:,.3~r}} ({name}) from %{{x:,.4~r}} {scale.unit}"
        words = {
            "name": "held" if len(traces) == 1 else f"held, {name}",
            "customdata": told,
            "hovertemplate": f"{holds}<extra></extra>",
            "hoveron": "points",
        }
        data.append(on_axis | {"x": x, "y": y} | words | look)
    if max_activations is not None:
        cap = {
            "x": marks.apart([(0.0, end)] * p),
            "y": marks.apart([(rank + 0.95 - height * max_activations,) * 2 for rank in range(p)]),
            "name": f"cap: {number(max_activations)}",
            "line": {"color": style.INK, "width": 1, "dash": "dot"},
            "hoverinfo": "skip",
        }
        data.append(on_axis | cap)
    held_most = [trace.peak_activations_per_rank for trace in traces]
    peaks = {
        "x": [end * 1.01] * p,
        "y": [rank + 0.55 for rank in range(p)],
        "mode": "text",
        "text": [" / ".join(number(one[rank]) for one in held_most) for rank in range(p)],
        "textposition": "middle right",
        "textfont": {"size": 12, "color": style.INK},
        "name": "peaks",
        "showlegend": False,
        "hoverinfo": "skip",
        "cliponaxis": False,
    }
    return [*data, on_axis | peaks]
