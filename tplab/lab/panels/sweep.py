"""Notebook 02's panel: sweep an all-reduce over sizes, and set models beside the measurement."""

from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from tplab.cluster import Cluster, Run
from tplab.collectives.cost import AlphaBeta
from tplab.collectives.sweep import submit_sweep, sweep_frame
from tplab.collectives.sweep_plan import ALGORITHMS, MODES, Point, plan_sweep
from tplab.lab import style
from tplab.lab.figures.collectives import busbw_figure, latency_figure
from tplab.lab.panels import html
from tplab.lab.panels.base import RunPanel, Settings
from tplab.lab.panels.pool import Pool
from tplab.lab.words import explain_sweep

_SIZES = {style.bytes_text(1 << power): 1 << power for power in range(8, 29)}
_DTYPES = ("float32", "bfloat16", "float16", "float64")


class SweepPanel(RunPanel):
    """Sizes, dtypes, algorithms, eager or graph; latency and bus bandwidth of what was measured.

    ``frame`` holds the measurement of the last run, also of one that was stopped or failed. ``link``, when set, draws
    the lower bound of any algorithm on that link.
    """

    def __init__(self, pool: Pool, *, link: AlphaBeta | None = None) -> None:
        wide = {"layout": widgets.Layout(width="auto"), "style": {"description_width": "76px"}}
        self._sizes = widgets.SelectionRangeSlider(
            options=list(_SIZES),
            value=("1 KiB", "16 MiB"),
            description="Sizes",
            layout=wide["layout"],
            style={"description_width": "34px"},  # the readout needs the room
        )
        self._dtypes = widgets.SelectMultiple(options=_DTYPES, value=("float32",), rows=4, description="Dtypes", **wide)
        self._algorithms = widgets.SelectMultiple(
            options=list(ALGORITHMS), value=("library",), rows=len(ALGORITHMS), description="Algorithms", **wide
        )
        self._mode = widgets.Dropdown(options=MODES, description="Launch", **wide)
        self._look = widgets.ToggleButtons(options=["Latency", "Bus bandwidth"])
        self._look.observe(lambda _: self.redraw(), names="value")
        self.link = link
        self.frame: pd.DataFrame | None = None
        self._points: list[Point] = []
        super().__init__(
            pool,
            title="All-reduce sweep",
            controls=[self._sizes, self._dtypes, self._algorithms, self._mode],
            views=self._look,
            height=560,
        )

    def settings(self) -> Settings:
        low, high = (_SIZES[label] for label in self._sizes.value)
        return {
            "sizes": [size for size in _SIZES.values() if low <= size <= high],
            "dtypes": list(self._dtypes.value),
            "algorithms": list(self._algorithms.value),
            "mode": self._mode.value,
        }

    def configure(self, **settings: Any) -> "SweepPanel":
        """Set controls: ``sizes=(smallest, largest)`` in bytes, ``dtypes=[...]``, ``algorithms=[...]``, ``mode=``.

        Raises ``ValueError`` naming the setting and what the panel offers.
        """
        labels = {size: label for label, size in _SIZES.items()}
        offered = {"sizes": list(labels), "dtypes": _DTYPES, "algorithms": list(ALGORITHMS), "mode": MODES}
        for name, value in settings.items():
            if name not in offered:
                raise ValueError(f"{name} is not a setting of this panel; it has {', '.join(offered)}")
            for item in [value] if name == "mode" else value:
                if item not in offered[name]:
                    raise ValueError(f"{name} must be out of {', '.join(map(str, offered[name]))}; got {item!r}")
        if "sizes" in settings:
            self._sizes.value = tuple(labels[size] for size in settings["sizes"])
        for name, control in (("dtypes", self._dtypes), ("algorithms", self._algorithms)):
            if name in settings:
                control.value = tuple(settings[name])
        self._mode.value = settings.get("mode", self._mode.value)
        return self

    def submit(self, cluster: Cluster, settings: Settings) -> Run[None]:
        self._points = plan_sweep(**settings, backend=cluster.backend, shares_gpus=cluster.shares_gpus)
        return submit_sweep(cluster, self._points, on_report=self.on_report)

    def draw(self, run: Run[Any], cluster: Cluster) -> tuple[go.Figure, str]:
        self.frame = sweep_frame(self._points, run.reports, cluster.provenance)
        mode = self._points[0].mode
        badge = cluster.badge if mode == "eager" else f"{cluster.badge} · CUDA graph"
        if self._look.value == "Latency":
            figure = latency_figure(self.frame, badge=badge, link=self.link)
        else:
            figure = busbw_figure(self.frame, badge=badge)
        return figure, html.quiet(explain_sweep(self.frame))
