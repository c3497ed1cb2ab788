"""What ranks measured beside what the advisor said: layouts, and the all-reduces and messages they are made of."""

from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go

from tplab.lab import style
from tplab.lab.figures import marks
from tplab.measure.columns import EMULATED_LINK
from tplab.shown import bytes_text, number
from tplab.topology.advisor.calibration import Calibration

if TYPE_CHECKING:
    from tplab.topology.verification.run import Verification


_BY = "<br><i>advised and best: by output tokens/s</i>"


def verification_figure(
    frame: pd.DataFrame, *, badge: str, measure: str = "tpot_ms", title: str = "Predicted beside measured"
) -> go.Figure:
    """Predicted beside measured, a pair per layout, by setting. Where a setting has several layouts, its bars say which
    one is advised and which was the best: of most output tokens/s, predicted and measured.

    Args:
        frame: of a ``Verification``, or of ``verify.box_layouts``, which also has predictions by spec sheet.
        measure: ``tpot_ms``, ``ttft_ms`` or ``output_tokens_per_s``.
    """
    figure = go.Figure()
    settings = [setting.split(EMULATED_LINK)[-1] for setting in frame["setting"]]
    several = len(set(settings)) > 1
    x = [settings, frame["layout"].tolist()] if several else frame["layout"].tolist()
    measured, predicted, told = (frame.get(f"{kind}_{measure}") for kind in ("measured", "predicted", "spec_sheet"))
    hover = "%{y:,.3~r} measured<extra>%{x}</extra>"
    words: dict[str, Any] = {
        "text": _chosen(frame),
        "textposition": "auto",  # above a bar that is too low for it
        "insidetextanchor": "start",
        "textangle": 0,
    }
    words |= {"insidetextfont": {"color": style.text_on(style.WEIGHT_GRADIENT)}, "constraintext": "none"}
    words |= {"outsidetextfont": {"color": style.INK}, "cliponaxis": False}
    marks.bars(figure, x, measured, "measured", style.WEIGHT_GRADIENT, hover=hover, **words)
    name = "predicted" if told is None else "predicted, calibrated"
    off, hover = frame[f"{measure}_error_pct"], "%{y:,.3~r} predicted, %{customdata:+.0f} %<extra>%{x}</extra>"
    marks.predictions(figure, x, predicted, name, size=12, customdata=off, hover=hover)
    if told is not None:
        name, hover = "predicted by spec sheet", "%{y:,.3~r} by spec sheet<extra>%{x}</extra>"
        marks.points(figure, x, told, name, style.INK, "diamond-open", size=11, marker_line_width=1.5, hover=hover)
    names = {
        "tpot_ms": f"milliseconds per output token{_BY}",
        "ttft_ms": f"milliseconds to the first token{_BY}",
        "output_tokens_per_s": "output tokens/s",
    }
    figure.update_layout(bargap=0.4)
    figure.update_xaxes(title="layout")
    figure.update_yaxes(title=names[measure], rangemode="tozero")
    return style.card(figure, title=title, badge=badge, height=460 if several else 400)


def _chosen(frame: pd.DataFrame) -> list[str]:
    """``advised``, ``best``, both or nothing, for each row."""
    words: dict[Any, list[str]] = {row: [] for row in frame.index}
    for _, group in frame.groupby("setting", sort=False):
        if len(group) > 1:
            words[group["predicted_output_tokens_per_s"].idxmax()].append("advised")
            words[group["measured_output_tokens_per_s"].idxmax()].append("best")
    return ["<br>".join(words[row]) for row in frame.index]


def calibration_figure(calibration: Calibration, *, badge: str) -> go.Figure:
    """All-reduces by group size and messages, over their bytes, as ``calibrate`` measured them."""
    figure = go.Figure()
    colours = (style.COLLECTIVE, style.FORWARD, style.WEIGHT_GRADIENT, "#B07B00")
    sizes = sorted({sweep.num_ranks for sweep in calibration.all_reduce})
    seen: set[str] = set()
    said = "%{x:,.0f} bytes: %{y:,.0f} µs"
    for sweep in calibration.all_reduce:
        at = sizes.index(sweep.num_ranks)
        name = f"all-reduce of {sweep.num_ranks}" + (f", {sweep.launch}" if sweep.launch != "eager" else "")
        colour, symbol = colours[at % len(colours)], ("circle", "square", "diamond", "cross")[at % 4]
        entry: dict[str, Any] = {
            "legendgroup": name,
            "showlegend": name not in seen,
            "marker": {"symbol": symbol, "size": 7},
        }
        hover = f"{said}<extra>ranks {', '.join(map(str, sweep.gpus))}</extra>"
        marks.line(figure, sweep.nbytes, sweep.p50_us, name, colour, width=1.5, hover=hover, **entry)
        seen.add(name)
    for sends in calibration.sends:
        name, dash = ("message between hosts", "dash") if sends.nodes > 1 else ("message", "dot")
        entry = {"legendgroup": name, "showlegend": name not in seen}
        hover = f"{said}<extra>{sends.source} to {sends.target}</extra>"
        marks.line(
            figure, sends.nbytes, sends.p50_us, name, style.POINT_TO_POINT, dash, width=1.5, hover=hover, **entry
        )
        seen.add(name)
    measured = [(sweep.nbytes, sweep.p50_us) for sweep in calibration.all_reduce]
    measured += [(sends.nbytes, sends.p50_us) for sends in calibration.sends]
    kept = sorted({size for sizes, _ in measured for size in sizes})
    figure.update_xaxes(title="bytes", type="log", tickvals=kept, ticktext=[bytes_text(int(size)) for size in kept])
    figure.update_yaxes(
        title="microseconds", type="log", **style.log_ticks(us for _, times in measured for us in times)
    )
    return style.card(figure, title="What calibration measured", badge=badge, height=440)


def explain_verification(made: "Verification") -> str:
    """How good predictions were, and what following them would have cost."""
    if made.frame.empty:
        return ""
    choices = made.choices()
    chosen = "; ".join(
        f"advised {row['advised']}, best {row['best']}"
        + (f" (over {str(row['setting']).split(' · ')[-1]})" if len(choices) > 1 else "")
        for row in choices.to_dict("records")
    )
    return (
        f"{len(made.frame)} layouts run: time per token off by {made.mape_pct():.0f} % on average. By output tokens/s: "
        f"{chosen}; rank correlation {made.spearman:.2f}, regret {made.regret_pct:.1f} %."
    )


def explain_calibration(made: Calibration) -> str:
    """What was measured, in a sentence or two."""
    words = []
    if made.sends:
        first = [sends.p50_us[0] for sends in made.sends]
        rates = [sends.nbytes[-1] / sends.p50_us[-1] / 1e3 for sends in made.sends]
        pairs = f"{len(made.sends)} pair{'s' * (len(made.sends) > 1)}"
        words.append(f"{pairs}: a small message takes {_range(first, 'µs')}, a large one gets {_range(rates, 'GB/s')}")
    if made.all_reduce:
        by_size = {sweep.num_ranks: sweep.p50_us[0] for sweep in made.all_reduce}
        listed = ", ".join(f"{us:,.0f} µs of {n}" for n, us in sorted(by_size.items()))
        words.append(f"A small all-reduce: {listed}")
    if made.block_overhead_us is not None and made.step_overhead_us is not None:
        by_width = made.block_overhead_per_width_us
        wider = f" and {number(by_width * 1024, 2)} µs per 1,024 of its width" if by_width else ""
        if made.block_overhead_us >= 0.5 or wider:
            words.append(f"A block adds {made.block_overhead_us:,.0f} µs{wider} to its matmuls")
        if made.step_overhead_us >= 0.5:
            words.append(f"A step adds {made.step_overhead_us:,.0f} µs to its blocks")
    return " ".join(f"{text}." for text in (*words, *made.notes))


def _range(values: list[float], unit: str) -> str:
    low, high = (number(value) for value in (min(values), max(values)))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
