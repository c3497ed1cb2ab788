"""What ranks measured beside what the advisor said: layouts, and the all-reduces and messages they are made of."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from tplab.lab import style
from tplab.lab.figures import marks
from tplab.measure.columns import EMULATED_LINK
from tplab.topology.advisor.calibration import Calibration


def verification_figure(
    frame: pd.DataFrame, *, badge: str, measure: str = "tpot_ms", title: str = "Predicted beside measured"
) -> go.Figure:
    """Predicted beside measured, a pair per layout, by setting.

    Args:
        frame: of a ``Verification``, or of ``verify.box_layouts``, which also has predictions by spec sheet.
        measure: ``tpot_ms``, ``ttft_ms`` or ``output_tokens_per_s``.
    """
    figure = go.Figure()
    settings = [setting.split(EMULATED_LINK)[-1] for setting in frame["setting"]]
    several = len(set(settings)) > 1
    x = [settings, frame["layout"].tolist()] if several else frame["layout"].tolist()
    measured, predicted, told = (frame.get(f"{kind}_{measure}") for kind in ("measured", "predicted", "spec_sheet"))
    hover = "%{y:.3g} measured<extra>%{x}</extra>"
    marks.bars(figure, x, measured, "measured", style.WEIGHT_GRADIENT, hover=hover)
    name = "predicted" if told is None else "predicted, calibrated"
    off, hover = frame[f"{measure}_error_pct"], "%{y:.3g} predicted, %{customdata:+.0f} %<extra>%{x}</extra>"
    marks.predictions(figure, x, predicted, name, size=12, customdata=off, hover=hover)
    if told is not None:
        name, hover = "predicted by spec sheet", "%{y:.3g} by spec sheet<extra>%{x}</extra>"
        marks.points(figure, x, told, name, style.INK, "diamond-open", size=11, marker_line_width=1.5, hover=hover)
    names = {
        "tpot_ms": "milliseconds per output token",
        "ttft_ms": "milliseconds to the first token",
        "output_tokens_per_s": "output tokens/s",
    }
    figure.update_layout(bargap=0.4)
    figure.update_xaxes(title="layout")
    figure.update_yaxes(title=names[measure], rangemode="tozero")
    height = 460 if several else 400
    style.card(figure, title=title, badge=badge, height=height)
    if several:  # their names stand below those of the layouts
        figure.update_layout(margin_b=150, legend_y=-118 / (height - 220))
    return figure


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
    for number, sends in enumerate(calibration.sends):
        entry = {"legendgroup": "message", "showlegend": number == 0}
        hover = f"{said}<extra>{sends.source} to {sends.target}</extra>"
        marks.line(
            figure, sends.nbytes, sends.p50_us, "message", style.POINT_TO_POINT, "dot", width=1.5, hover=hover, **entry
        )
    measured = [(sweep.nbytes, sweep.p50_us) for sweep in calibration.all_reduce]
    measured += [(sends.nbytes, sends.p50_us) for sends in calibration.sends]
    kept = sorted({size for sizes, _ in measured for size in sizes})
    figure.update_xaxes(
        title="bytes", type="log", tickvals=kept, ticktext=[style.bytes_text(int(size)) for size in kept]
    )
    figure.update_yaxes(
        title="microseconds", type="log", **style.log_ticks(us for _, times in measured for us in times)
    )
    return style.card(figure, title="What calibration measured", badge=badge, height=440)
