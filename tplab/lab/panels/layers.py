"""The live panels of notebooks 03 and 04: where a block spends its time, and what chunks hide."""

from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from tplab.cluster import Cluster, Run
from tplab.collectives.emulated_link import EmulatedLink
from tplab.lab import style
from tplab.lab.figures.layers import chunk_lanes_figure, overlap_figure, phases_figure
from tplab.lab.panels import html
from tplab.lab.panels.base import RunPanel, Settings
from tplab.lab.panels.figure_view import FigureView
from tplab.lab.panels.pool import Pool
from tplab.lab.words import explain_chunks, explain_phases
from tplab.layers.overlap import ChunkPlan, chunks_frame, submit_chunks
from tplab.layers.phases import PhasePlan, phases_frame, submit_phases
from tplab.measure import joined_badge, link_text

LINKS = {
    "the ranks' own": None,
    "0.2 ms, 0.05 GB/s": EmulatedLink(latency_us=200, bandwidth_GBps=0.05),
    "0.2 ms, 0.2 GB/s": EmulatedLink(latency_us=200, bandwidth_GBps=0.2),
    "2 ms, 0.05 GB/s": EmulatedLink(latency_us=2000, bandwidth_GBps=0.05),
}
"""Slow enough that gloo hardly shows, in the ratios to a CPU's matmuls that PCIe and InfiniBand have to a GPU's."""

_WIDE = {"layout": widgets.Layout(width="auto"), "style": {"description_width": "76px"}}


def _choose(control: Any, name: str, value: Any) -> None:
    """Set a control to one of its options. Raises ``ValueError`` naming them."""
    offered = [option[1] if isinstance(option, tuple) else option for option in control.options]
    if isinstance(control, widgets.SelectMultiple) and not isinstance(value, list | tuple):
        raise ValueError(
            f"{name} takes several: pass a list or tuple out of {', '.join(map(str, offered))}; got {value!r}"
        )
    for item in value if isinstance(control, widgets.SelectMultiple) else [value]:
        if item not in offered:
            raise ValueError(f"{name} must be out of {', '.join(map(str, offered))}; got {item!r}")
    control.value = value


class _LayerPanel(RunPanel):
    """What both panels share: named controls that ``configure`` sets, and the last frame."""

    def __init__(self, pool: Pool, *, title: str, named: dict[str, Any], height: int) -> None:
        self._named = named
        self.frame: pd.DataFrame | None = None
        super().__init__(pool, title=title, controls=list(named.values()), height=height)

    def settings(self) -> Settings:
        return {name: control.value for name, control in self._named.items()}

    def configure(self, **settings: Any) -> "_LayerPanel":
        """Set controls by name. Raises ``ValueError`` naming the setting and what the panel offers."""
        for name, value in settings.items():
            if name not in self._named:
                raise ValueError(f"{name} is not a setting of this panel; it has {', '.join(self._named)}")
            _choose(self._named[name], name, value)
        return self


class PhasesPanel(_LayerPanel):
    """One block from decode to prefill: computation against exposed communication.

    ``frame`` holds the measurement of the last run, also of one that was stopped or failed.
    """

    def __init__(self, pool: Pool) -> None:
        steps = (1, 4, 16, 64, 128, 256, 512, 1024)
        super().__init__(
            pool,
            title="One block, decode to prefill",
            named={
                "tokens": widgets.SelectMultiple(
                    options=steps, value=(1, 16, 128, 512), rows=len(steps), description="Tokens", **_WIDE
                ),
                "hidden": widgets.Dropdown(options=(256, 512, 1024), value=512, description="Hidden", **_WIDE),
                "link": widgets.Dropdown(options=list(LINKS), description="Link", **_WIDE),
            },
            height=420,
        )
        self._plan = PhasePlan()

    def submit(self, cluster: Cluster, settings: Settings) -> Run[None]:
        hidden = settings["hidden"]
        if not settings["tokens"]:
            raise ValueError("Tokens: choose at least one step size.")
        self._plan = PhasePlan(
            tokens=tuple(sorted(settings["tokens"])),
            hidden=hidden,
            intermediate=3 * hidden,
            link=LINKS[settings["link"]],
        )
        return submit_phases(cluster, self._plan, on_report=self.on_report)

    def draw(self, run: Run[Any], cluster: Cluster) -> tuple[go.Figure, str]:
        self.frame = phases_frame(self._plan, run.reports, cluster.provenance)
        badge = linked_badge(cluster.badge, self._plan.link)
        return phases_figure(self.frame, badge=badge), html.quiet(explain_phases(self.frame))


class OverlapPanel(_LayerPanel):
    """A row-parallel layer in chunks: what stays exposed, beside the prediction and the bound.

    ``frame`` holds the measurement of the last run, also of one that was stopped or failed.
    """

    def __init__(self, pool: Pool) -> None:
        chunks = (1, 2, 4, 8, 16, 32)
        super().__init__(
            pool,
            title="Chunked all-reduce",
            named={
                "chunks": widgets.SelectMultiple(
                    options=chunks, value=(1, 2, 4, 8, 16), rows=len(chunks), description="Chunks", **_WIDE
                ),
                "tokens": widgets.Dropdown(options=(256, 512, 1024, 2048), value=2048, description="Tokens", **_WIDE),
                "in_features": widgets.Dropdown(
                    options=(1024, 2048, 4096, 8192), value=8192, description="Features in", **_WIDE
                ),
                "link": widgets.Dropdown(options=list(LINKS), value="0.2 ms, 0.05 GB/s", description="Link", **_WIDE),
            },
            height=460,
        )
        self._plan = ChunkPlan()

    def submit(self, cluster: Cluster, settings: Settings) -> Run[None]:
        self._plan = ChunkPlan(
            chunks=tuple(sorted({1, *settings["chunks"]})),
            tokens=settings["tokens"],
            in_features=settings["in_features"],
            link=LINKS[settings["link"]],
            iterations=5,
        )
        return submit_chunks(cluster, self._plan, on_report=self.on_report)

    def draw(self, run: Run[Any], cluster: Cluster) -> tuple[go.Figure, str]:
        self.frame = chunks_frame(self._plan, run.reports, cluster.provenance)
        badge = linked_badge(cluster.badge, self._plan.link)
        return overlap_figure(self.frame, badge=badge), html.quiet(explain_chunks(self.frame))


def linked_badge(badge: str, link: EmulatedLink | None) -> str:
    """The cluster's badge, with the emulated link that its messages went over."""
    return joined_badge(badge, link_text(link))


class ChunkModel(widgets.VBox):
    """The model behind the chunk count, as two lanes. Analytic: it follows its sliders and runs nothing.

    ``show(num_chunks=, compute_ms=, comm_ms=, overhead_ms=, latency_ms=)`` sets the sliders; ``figure`` is the figure.
    """

    def __init__(self) -> None:
        def slider(value: float, low: float, high: float, text: str, step: float = 0.5) -> Any:
            return widgets.FloatSlider(value=value, min=low, max=high, step=step, description=text, **_WIDE)

        self._named = {
            "num_chunks": widgets.IntSlider(value=4, min=1, max=32, description="chunks", **_WIDE),
            "compute_ms": slider(30, 2, 100, "matmul"),
            "comm_ms": slider(24, 2, 100, "all-reduce"),
            "overhead_ms": slider(0.2, 0, 2, "per matmul", 0.1),
            "latency_ms": slider(0.5, 0, 2, "per send", 0.1),
        }
        self._view = FigureView(min_height=300)
        for control in self._named.values():
            control.observe(lambda _: self._draw(), names="value")
        left = widgets.VBox(
            list(self._named.values()),
            layout=widgets.Layout(width=style.PANEL_CONTROLS_WIDTH, flex=f"0 0 {style.PANEL_CONTROLS_WIDTH}"),
        )
        body = widgets.HBox([left, self._view], layout=widgets.Layout(flex_flow="row wrap", grid_gap="18px"))
        super().__init__([widgets.HTML(html.heading("Chunks, modelled (milliseconds)")), body])
        self.add_class("tplab-chunk-model")
        self._draw()

    def show(self, **settings: float) -> "ChunkModel":
        """Set sliders by name. Raises ``ValueError`` for a name or value that there is not."""
        for name, value in settings.items():
            control = self._named.get(name)
            if control is None:
                raise ValueError(f"{name} is not a slider of this panel; it has {', '.join(self._named)}")
            if not control.min <= value <= control.max:
                raise ValueError(f"{name} must be {control.min:g} to {control.max:g}; got {value!r}")
            if isinstance(control, widgets.IntSlider) and value != int(value):
                raise ValueError(f"{name} must be a whole number; got {value!r}")
            control.value = value
        return self

    @property
    def figure(self) -> object:
        """The figure shown."""
        return self._view.figure

    def _draw(self) -> None:
        values = {name: control.value for name, control in self._named.items()}
        # A start-up or a latency cannot be more than the whole.
        values["overhead_ms"] = min(values["overhead_ms"], values["compute_ms"])
        values["latency_ms"] = min(values["latency_ms"], values["comm_ms"])
        self._view.show(chunk_lanes_figure(**values))
