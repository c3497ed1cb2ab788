"""The shard painter: one block's four matrices painted by rank, and the collectives that the painting forces.

Attention flows down on the left, the MLP on the right, so that text stands beside its arrow and fits a narrow page; one
long row would leave each label 60 pixels. Every gap has the same height, with or without a collective, so that nothing
jumps when a choice changes.

A matrix is drawn as W in y = x·W: inputs down, outputs across, all four at one scale. Column splits it upright, row
across. Key-value heads that several ranks hold, and replicated matrices, are hatched.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from plotly.colors import find_intermediate_color, hex_to_rgb

from tplab.lab import style
from tplab.lab.figures import marks
from tplab.layers.plan import BlockPlan, Step
from tplab.shown import bytes_text

WIDTH, HEIGHT = 665.0, 620.0
"""Size of the drawing in its own units, which are about pixels where it is 700 px wide."""
_LONGEST = 165.0  # the longest side of a matrix
_GAP, _BOX, _OUT = 58.0, 24.0, 34.0  # arrow between two elements, an operation's height, the last arrow
_TOP = 22.0
_SEAM = 4.0  # between the parts of a fused matrix
_LEFT_AXIS, _RIGHT_AXIS, _MIDDLE = 70.0, 395.0, 292.0
_EVERYWHERE, _SEVERAL = "on every rank", "on several ranks"

_WORDS = {"replicated": "replicated", "split": "split", "partial": "partial sums"}
_BOXES = {"attention": "attention", "activation": "SwiGLU", "add + norm": "+ residual, norm", "add": "+ residual"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """One rectangle of a fused matrix, in drawing units."""

    x: float
    y: float
    width: float
    height: float
    copied: bool = False
    """Whether several ranks hold this part although the matrix is split."""


def painter_figure(plan: BlockPlan, *, badge: str = "MODEL") -> go.Figure:
    """The block as ``plan`` splits it: matrices to scale, layouts on the arrows, forced collectives in red."""
    figure = go.Figure()
    scale = _LONGEST / max(max(step.in_features, _drawn_width(plan, step)) for step in plan.steps if step.choice)
    for rank in range(plan.n if set(plan.choices.values()) != {"replicated"} else 0):
        _legend_entry(figure, f"rank {rank}", rank_colour(rank, plan.n))
    if "replicated" in plan.choices.values():
        _legend_entry(figure, _EVERYWHERE, style.IDLE, hatch="/")
    if any(_copies(plan, step) for step in plan.steps):
        _legend_entry(figure, _SEVERAL, style.IDLE, hatch="x")
    left_end = _column(figure, plan, plan.steps[:4], _LEFT_AXIS, scale, first="block input")
    right_end = _column(figure, plan, plan.steps[4:], _RIGHT_AXIS, scale, first="")
    _elbow(figure, left_end)
    _shaft(figure, _RIGHT_AXIS, right_end, _RIGHT_AXIS, right_end + _OUT)
    _text(figure, _RIGHT_AXIS + 10, right_end + _OUT / 2, f"{_WORDS[plan.steps[-1].output_layout]}, to the next block")
    _arrow_heads(figure)
    _collective_marks(figure)
    _totals(figure, plan, left_end + 46)
    figure.update_xaxes(visible=False, range=[0, WIDTH], constrain="domain", constraintoward="left")
    figure.update_yaxes(
        visible=False, range=[HEIGHT, 0], scaleanchor="x", scaleratio=1, constrain="domain", constraintoward="top"
    )
    ranks = f"{plan.n} ranks" if plan.n > 1 else "1 rank"
    style.card(figure, title=f"One block on {ranks}: {plan.summary}", badge=badge, height=740)
    figure.update_layout(margin={"l": 12, "r": 12, "t": 72, "b": 44}, legend={"y": -0.005, "font": {"size": 12}})
    figure.update_xaxes(automargin=False)
    figure.update_yaxes(automargin=False)
    return figure


def rank_colour(rank: int, n: int) -> str:
    """The colour of a rank: from dark blue for the first to light blue for the last."""
    ends = [f"rgb{hex_to_rgb(colour)}" for colour in (style.FORWARD, style.DECODE)]
    return str(find_intermediate_color(*ends, rank / max(1, n - 1), colortype="rgb"))


def short_bytes(nbytes: float) -> str:
    """The bytes in the unit that suits them, with three digits."""
    return bytes_text(nbytes)


def _flops_text(flops: int) -> str:
    power = min(4, max(2, (len(str(flops)) - 1) // 3))
    return f"{flops / 1000**power:,.3g} {'MGT'[power - 2]}FLOP"


def _column(
    figure: go.Figure, plan: BlockPlan, steps: tuple[Step, ...], axis: float, scale: float, first: str
) -> float:
    """Draw steps downwards, each with the arrow before it; the y where the last one ends."""
    y = _TOP
    for step in steps:
        _shaft(figure, axis, y, axis, y + _GAP)
        _input_labels(figure, step, axis, y, first)
        y, first = y + _GAP, ""
        if step.choice is None:
            _box(figure, _BOXES[step.name], axis, y)
            y += _BOX
        else:
            y += _matrix(figure, plan, step, axis, y, scale)
    return y


def _input_labels(figure: go.Figure, step: Step, axis: float, y: float, first: str) -> None:
    """The layout on the arrow; with a conversion, before it and after it."""
    arrives = f"{first}, {step.arrives}" if first else _arrival_word(step)
    if step.conversion is None:
        _text(figure, axis + 10, y + _GAP / 2, arrives)
        return
    _text(figure, axis + 10, y + 10, arrives)
    _text(figure, axis + 10, y + 48, _WORDS[step.input_layout] + (" by heads" if step.name == "attention" else ""))
    if step.conversion == "slice":
        _text(figure, axis + 10, y + 29, "<i>local slice, free</i>", hover=step.why)
        return
    text, name = f"<b>{step.conversion} {short_bytes(step.payload_bytes)}</b>", f"collective before {step.name}"
    pill: dict[str, Any] = {
        "xanchor": "left",
        "bgcolor": style.COLLECTIVE,
        "borderpad": 2,
        "hovertext": step.why,
        "name": name,
    }
    marks.note(figure, axis + 10, y + 29, text, colour="white", **pill)


def _arrival_word(step: Step) -> str:
    by_heads = step.arrives == "split" and step.name in ("attention", "out")
    return _WORDS[step.arrives] + (" by heads" if by_heads else "")


def _matrix(figure: go.Figure, plan: BlockPlan, step: Step, axis: float, top: float, scale: float) -> float:
    """Draw a matrix under the arrow, with its name beside it; its height."""
    parts = _parts(plan, step, axis, top, scale)
    size = f"{step.in_features:,} × {step.out_features:,}"
    held = f"{short_bytes(step.weight_bytes)} per rank"
    shared = [part for part in parts if step.choice == "replicated" or part.copied]
    split = [part for part in parts if part not in shared]
    if shared:
        name, hatch = (_EVERYWHERE, "/") if step.choice == "replicated" else (_SEVERAL, "x")
        what = step.name if step.choice == "replicated" else "k, v heads"
        _polygons(figure, shared, f"{what} {name}, {held}", name, style.IDLE, hatch=hatch)
    for rank in range(plan.n if split else 0):
        stripes = [_stripe(part, rank, plan.n, step.choice == "column") for part in split]
        text = f"{step.name}, split by {step.choice}: rank {rank} holds {short_bytes(step.weight_bytes)}"
        _polygons(figure, stripes, text, f"rank {rank}", rank_colour(rank, plan.n))
        wide = [stripe for stripe in stripes if min(stripe.width, stripe.height) >= 14] if plan.n > 1 else []
        for stripe in wide:
            colour = "white" if rank < plan.n * 0.6 else style.INK
            middle = (stripe.x + stripe.width / 2, stripe.y + stripe.height / 2)
            _text(figure, *middle, str(rank), colour=colour, centred=True)
    right, bottom = max(part.x + part.width for part in parts), max(part.y + part.height for part in parts)
    choice = "replicated" if step.choice == "replicated" else f"by {step.choice}"
    name = {"up": "gate + up", "qkv": "q, k, v"}.get(step.name, step.name)
    lines = f"<b>{name}: {choice}</b><br>{size}<br>{held}"
    _text(figure, right + 8, (top + bottom) / 2, lines, colour=style.INK)
    return bottom - top


def _drawn_width(plan: BlockPlan, step: Step) -> int:
    """Features across: gate and up lie one above the other."""
    return plan.intermediate if step.name == "up" else step.out_features


def _copies(plan: BlockPlan, step: Step) -> bool:
    """Whether ranks hold the same key-value heads of a split matrix."""
    return step.name == "qkv" and step.choice == "column" and plan.kv_heads_per_rank * plan.n > plan.num_kv_heads


def _parts(plan: BlockPlan, step: Step, axis: float, top: float, scale: float) -> list[_Part]:
    height = step.in_features * scale
    if step.name == "up":
        width, x = plan.intermediate * scale, axis - plan.intermediate * scale / 2
        return [_Part(x=x, y=y, width=width, height=height) for y in (top, top + height + _SEAM)]
    if step.name != "qkv":
        width = step.out_features * scale
        return [_Part(x=axis - width / 2, y=top, width=width, height=height)]
    copied = _copies(plan, step)
    x, parts = axis - (step.out_features * scale + 2 * _SEAM) / 2, []
    for heads, shared in ((plan.num_heads, False), (plan.num_kv_heads, copied), (plan.num_kv_heads, copied)):
        width = heads * plan.head_dim * scale
        parts.append(_Part(x=x, y=top, width=width, height=height, copied=shared))
        x += width + _SEAM
    return parts


def _stripe(part: _Part, rank: int, n: int, upright: bool) -> _Part:
    width, height = (part.width / n, part.height) if upright else (part.width, part.height / n)
    x, y = (part.x + rank * width, part.y) if upright else (part.x, part.y + rank * height)
    return _Part(x=x, y=y, width=width, height=height)


def _polygons(
    figure: go.Figure, parts: list[_Part], text: str, name: str, colour: str, *, hatch: str | None = None
) -> None:
    """One trace of rectangles: shapes would neither hatch nor hover."""
    corners = [(part.x, part.y, part.x + part.width, part.y + part.height) for part in parts]
    figure.add_scatter(
        x=marks.apart((left, right, right, left, left) for left, _, right, _ in corners),
        y=marks.apart((top, top, bottom, bottom, top) for _, top, _, bottom in corners),
        fill="toself",
        mode="lines",
        line={"color": style.MUTED if hatch else "white", "width": 0.7},
        hoveron="fills",
        text=text,
        hoverinfo="text",
        name=name,
        legendgroup=name,
        showlegend=False,
        **_fill(colour, hatch),
    )


def _legend_entry(figure: go.Figure, name: str, colour: str, *, hatch: str | None = None) -> None:
    figure.add_scatter(
        x=[None],
        y=[None],
        fill="toself",
        mode="none",
        name=name,
        legendgroup=name,
        hoverinfo="skip",
        **_fill(colour, hatch),
    )


def _fill(colour: str, hatch: str | None) -> dict[str, object]:
    if hatch is None:
        return {"fillcolor": colour}
    return {"fillpattern": {"shape": hatch, "bgcolor": colour, "fgcolor": style.MUTED, "size": 5, "solidity": 0.2}}


def _box(figure: go.Figure, text: str, axis: float, top: float) -> None:
    half = 58 if len(text) > 10 else 42
    figure.add_shape(
        type="rect",
        x0=axis - half,
        x1=axis + half,
        y0=top,
        y1=top + _BOX,
        fillcolor="#F5F6F8",
        line={"color": "#AEB6C1", "width": 1},
    )
    _text(figure, axis, top + _BOX / 2, text, colour=style.INK, centred=True)


def _shaft(figure: go.Figure, x0: float, y0: float, x1: float, y1: float, *, head: bool = True) -> None:
    """Below all else: an annotation's arrow would be drawn over the marks."""
    line = {"color": style.MUTED, "width": 1.5}
    figure.add_shape(
        type="line", layer="below", x0=x0, y0=y0, x1=x1, y1=y1, line=line, name="arrow" if head else "line"
    )


def _arrow_heads(figure: go.Figure) -> None:
    """All in one trace, at the lower ends."""
    shafts = [shape for shape in figure.layout.shapes if shape.name == "arrow"]
    x, y = [shaft.x1 for shaft in shafts], [shaft.y1 - 4 for shaft in shafts]
    marks.points(figure, x, y, "arrows", style.MUTED, "triangle-down", size=9, showlegend=False)


def _elbow(figure: go.Figure, left_end: float) -> None:
    """Draw the arrow from below the attention to above the MLP."""
    down, up = left_end + 18, 8.0
    points = [(_LEFT_AXIS, left_end), (_LEFT_AXIS, down), (_MIDDLE, down), (_MIDDLE, up), (_RIGHT_AXIS, up)]
    for (x0, y0), (x1, y1) in pairwise([*points, (_RIGHT_AXIS, _TOP)]):
        _shaft(figure, x0, y0, x1, y1, head=False)


def _collective_marks(figure: go.Figure) -> None:
    """A red diamond on the arrow at each label."""
    labels = [item for item in figure.layout.annotations if (item.name or "").startswith("collective")]
    marks.points(
        figure,
        [label.x - 10 for label in labels],
        [label.y for label in labels],
        "forced collective",
        style.COLLECTIVE,
        "diamond",
        size=11,
        edge="white",
        text=[label.hovertext for label in labels],
        hover="%{text}<extra></extra>",
        showlegend=bool(labels),
    )


def _totals(figure: go.Figure, plan: BlockPlan, top: float) -> None:
    lines = (
        "<b>Each rank, per block</b>",
        f"sends {short_bytes(plan.sent_bytes)} (rings)",
        f"holds {short_bytes(plan.weight_bytes)} of weights",
        f"keeps {plan.kv_heads_per_rank} of {plan.num_kv_heads} key-value heads",
        f"does {_flops_text(plan.flops)} in matrices",
    )
    _text(figure, 10, top, "<br>".join(lines), colour=style.INK, size=12, top=True)


def _text(
    figure: go.Figure,
    x: float,
    y: float,
    text: str,
    *,
    colour: str = style.MUTED,
    size: int = 11,
    centred: bool = False,
    top: bool = False,
    hover: str | None = None,
) -> None:
    side, level = "center" if centred else "left", "top" if top else "middle"
    place = {"align": side, "xanchor": side, "yanchor": level}
    marks.note(figure, x, y, text, size=size, colour=colour, hovertext=hover, **place)
