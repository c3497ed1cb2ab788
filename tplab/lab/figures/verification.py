"""What ranks measured beside what the advisor said: layouts, and the all-reduces and messages they are made of."""

import pandas as pd
import plotly.graph_objects as go

from tplab.lab import style
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
    figure.add_bar(
        x=x,
        y=frame[f"measured_{measure}"],
        name="measured",
        marker=style.bar_marker(style.WEIGHT_GRADIENT),
        hovertemplate="%{y:.3g} measured<extra>%{x}</extra>",
    )
    figure.add_scatter(
        x=x,
        y=frame[f"predicted_{measure}"],
        mode="markers",
        name="predicted",
        marker={"symbol": "diamond", "size": 12, "color": style.BACKWARD, "line": {"color": style.INK, "width": 1}},
        customdata=frame[f"{measure}_error_pct"],
        hovertemplate="%{y:.3g} predicted, %{customdata:+.0f} %<extra>%{x}</extra>",
    )
    if f"spec_sheet_{measure}" in frame:
        figure.data[1].name = "predicted, calibrated"
        figure.add_scatter(
            x=x,
            y=frame[f"spec_sheet_{measure}"],
            mode="markers",
            name="predicted by spec sheet",
            marker={"symbol": "diamond-open", "size": 11, "color": style.INK, "line": {"width": 1.5}},
            hovertemplate="%{y:.3g} by spec sheet<extra>%{x}</extra>",
        )
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
    for sweep in calibration.all_reduce:
        at = sizes.index(sweep.num_ranks)
        name = f"all-reduce of {sweep.num_ranks}" + (f", {sweep.launch}" if sweep.launch != "eager" else "")
        figure.add_scatter(
            x=sweep.nbytes,
            y=sweep.p50_us,
            mode="lines+markers",
            name=name,
            legendgroup=name,
            showlegend=name not in seen,
            line={"color": colours[at % len(colours)], "width": 1.5},
            marker={"symbol": ("circle", "square", "diamond", "cross")[at % 4], "size": 7},
            hovertemplate="%{x:,.0f} bytes: %{y:,.0f} µs<extra>ranks " + ", ".join(map(str, sweep.gpus)) + "</extra>",
        )
        seen.add(name)
    for sends in calibration.sends:
        figure.add_scatter(
            x=sends.nbytes,
            y=sends.p50_us,
            mode="lines",
            name="message",
            legendgroup="message",
            showlegend="message" not in seen,
            line={"color": style.POINT_TO_POINT, "width": 1.5, "dash": "dot"},
            hovertemplate=f"%{{x:,.0f}} bytes: %{{y:,.0f}} µs<extra>{sends.source} to {sends.target}</extra>",
        )
        seen.add("message")
    points = [
        *((size, us) for sweep in calibration.all_reduce for size, us in zip(sweep.nbytes, sweep.p50_us, strict=True)),
        *((size, us) for sends in calibration.sends for size, us in zip(sends.nbytes, sends.p50_us, strict=True)),
    ]
    kept = sorted({size for size, _ in points})
    figure.update_xaxes(
        title="bytes", type="log", tickvals=kept, ticktext=[style.bytes_text(int(size)) for size in kept]
    )
    figure.update_yaxes(title="microseconds", type="log", **style.log_ticks(us for _, us in points))
    return style.card(figure, title="What calibration measured", badge=badge, height=440)
