"""Where a step's time goes, term by term: measured from its kernels, beside what the advisor predicts."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tplab.lab import style
from tplab.lab.figures import marks
from tplab.shown import number

_LOOK = {
    "weights": (style.FORWARD, ""),
    "head": (style.FORWARD, "/"),
    "attention": (style.WEIGHT_GRADIENT, ""),
    "norms and elementwise": (style.DECODE, ""),
    "all-reduce": (style.COLLECTIVE, ""),
    "hops": (style.POINT_TO_POINT, ""),
    "sampling": (style.BACKWARD, ""),
    "other": (style.MUTED, "x"),
    "gaps": (style.IDLE, ""),
}


def profile_figure(frame: pd.DataFrame, *, title: str, badge: str) -> go.Figure:
    """Terms of a prefill (left) and of a decode step (right): bars as measured, diamonds as predicted.

    Args:
        frame: as ``StepProfile.frame`` gives it.
        title: of the figure.
    """
    frame = frame[(frame["measured_ms"] > 0) | (frame["predicted_ms"] > 0)]
    phases = list(dict.fromkeys(frame["phase"]))
    names = {"prefill": "prefill", "decode": "one decode step"}
    heads = [f"{names[phase]}, {number(_wall(frame, phase))} ms" for phase in phases]
    figure = make_subplots(rows=1, cols=len(phases), subplot_titles=heads, shared_yaxes=True, horizontal_spacing=0.06)
    for column, phase in enumerate(phases, 1):
        rows = frame[frame["phase"] == phase]
        looks = [_LOOK[term] for term in rows["term"]]
        marker = style.bar_marker("", pattern="")
        marker |= {
            "color": [colour for colour, _ in looks],
            "pattern": {"shape": [pattern for _, pattern in looks], "fillmode": "overlay", "fgcolor": "white"},
            "line": {"color": style.MUTED, "width": 0.5},
        }
        figure.add_bar(
            x=rows["measured_ms"],
            y=rows["term"],
            orientation="h",
            marker=marker,
            name="measured",
            showlegend=False,
            customdata=rows[["share_pct", "calls", "names"]].to_numpy(),
            hovertemplate="%{y}: %{x:.3f} ms, %{customdata[0]:.0f} % of the step<br>%{customdata[1]} kernels: "
            "%{customdata[2]}<extra></extra>",
            row=1,
            col=column,
        )
        known = rows[rows["predicted_ms"].notna()]
        if len(known):
            hover = "%{y}: %{x:.3f} ms predicted"
            x, y = known["predicted_ms"], known["term"]
            marks.predictions(figure, x, y, "predicted", hover=hover, showlegend=column == 1, row=1, col=column)
        figure.update_xaxes(title="milliseconds", rangemode="tozero", row=1, col=column)
    figure.update_yaxes(
        autorange="reversed",
        type="category",
        categoryorder="array",
        categoryarray=[term for term in _LOOK if term in set(frame["term"])],
    )
    card = style.card(figure, title=title, badge=badge, height=460)
    card.update_layout(margin={"t": 100}, bargap=0.3)
    for head in card.layout.annotations[: len(phases)]:
        head.update(font={"size": 13}, yshift=2)
    card.layout.annotations[-1].update(yshift=26)  # the badge, above the headings
    return card


def explain_profile(frame: pd.DataFrame) -> str:
    """Two or three sentences: what takes most of each step, which prediction is furthest off, and what nobody knows."""
    said = []
    for phase, rows in frame.groupby("phase", sort=False):
        most = rows.sort_values("measured_ms").iloc[-1]
        what = "The prefill" if phase == "prefill" else "The decode step"
        said.append(f"{what} takes {number(most['wall_ms'])} ms, {most['share_pct']:.0f} % of it {most['term']}.")
        known = rows[rows["difference_ms"].notna()]
        if len(known):
            off = known.loc[known["difference_ms"].abs().sort_values().index[-1]]
            way = "too little" if off["difference_ms"] < 0 else "too much"
            said.append(
                f"The advisor is furthest off in {off['term']}: {number(off['predicted_ms'])} ms beside "
                f"{number(off['measured_ms'])}, {number(abs(off['difference_ms']))} {way}."
            )
    other = frame[(frame["term"] == "other") & (frame["calls"] > 0)]
    if len(other):
        said.append(f"Not known by name: {', '.join(dict.fromkeys(other['names']))}.")
    return " ".join(said)


def _wall(frame: pd.DataFrame, phase: str) -> float:
    return float(frame.loc[frame["phase"] == phase, "wall_ms"].iloc[0])
