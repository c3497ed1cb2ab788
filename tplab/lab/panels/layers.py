"""The live panels of notebooks 03 and 04: where a block spends its time, and what chunks hide."""

from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from tplab.cluster import Cluster
from tplab.collectives.emulated_link import EmulatedLink
from tplab.lab.choice import Choice
from tplab.lab.figures.layers import (
    chunk_lanes_figure,
    explain_chunks,
    explain_lanes,
    explain_phases,
    overlap_figure,
    phases_figure,
)
from tplab.lab.panels import html
from tplab.lab.panels.analytic import AnalyticPanel
from tplab.lab.panels.base import Drawing, RunPanel, Submitted
from tplab.lab.panels.check_boxes import CheckBoxes
from tplab.lab.panels.controls import Settings, offer_links, wide
from tplab.lab.panels.pool import Pool
from tplab.lab.panels.run_state import Work
from tplab.layers.overlap import ChunkPlan, chunks_frame, submit_chunks
from tplab.layers.phases import PhasePlan, phases_frame, submit_phases
from tplab.measure import joined_badge, link_text

LINKS = {
    "the ranks' own": None,
    "0.2 ms, 0.05 GB/s": EmulatedLink(latency_us=200, bandwidth_GBps=0.05),
    "0.2 ms, 0.2 GB/s": EmulatedLink(latency_us=200, bandwidth_GBps=0.2),
    "2 ms, 0.05 GB/s": EmulatedLink(latency_us=2000, bandwidth_GBps=0.05),
}
"""Slow enough for gloo to add little to large messages, and for a CPU's matmuls to take about as long as they."""


_TOKENS = (256, 512, 1024, 2048, 4096, 8192, 16384)
_IN_FEATURES = (1024, 2048, 4096, 8192, 14336, 28672, 65536)
_OUT_FEATURES = (1024, 2048, 4096, 8192)


class PhasesPanel(RunPanel):
    """One block from decode to prefill: computation against exposed communication.

    ``frame`` holds the measurement of the last run, also of one that was stopped or failed.
    """

    def __init__(self, pool: Pool) -> None:
        steps = (1, 4, 16, 64, 128, 256, 512, 1024)
        super().__init__(
            pool,
            title="One block, decode to prefill",
            named={
                "tokens": CheckBoxes(steps, value=(1, 16, 128, 512), description="Tokens in a pass"),
                "hidden": widgets.Dropdown(options=(256, 512, 1024), value=512, description="Hidden", **wide(92)),
                "link": widgets.Dropdown(options=list(LINKS), description="Link", **wide(92)),
            },
            height=420,
        )
        self.frame: pd.DataFrame | None = None

    def suit(self, choice: Choice) -> None:
        offer_links(self._named["link"], list(LINKS), choice)

    def submit(self, cluster: Cluster, settings: Settings) -> Submitted:
        hidden = settings["hidden"]
        if not settings["tokens"]:
            raise ValueError("Tokens: choose at least one step size.")
        plan = PhasePlan(
            tokens=tuple(sorted(settings["tokens"])),
            hidden=hidden,
            intermediate=3 * hidden,
            link=LINKS[settings["link"]],
        )
        return submit_phases(cluster, plan, on_report=self.on_report), plan

    def draw(self, work: Work) -> Drawing:
        frame = phases_frame(work.plan, work.run.reports, work.provenance)
        if frame.empty:
            return None, ""
        self.frame = frame
        badge = linked_badge(work.badge, work.plan.link)
        return phases_figure(self.frame, badge=badge), html.quiet(explain_phases(self.frame))


class OverlapPanel(RunPanel):
    """A row-parallel layer in chunks: what stays exposed, beside the prediction and the bound.

    ``frame`` holds the measurement of the last run, also of one that was stopped or failed.
    """

    def __init__(self, pool: Pool) -> None:
        chunks, look = (1, 2, 4, 8, 16, 32), wide(92)
        super().__init__(
            pool,
            title="Chunked all-reduce",
            named={
                "chunks": CheckBoxes(chunks, value=(1, 2, 4, 8, 16), description="Numbers of chunks"),
                "tokens": widgets.Dropdown(options=_TOKENS, description="Tokens", **look),
                "in_features": widgets.Dropdown(options=_IN_FEATURES, description="Features in", **look),
                "out_features": widgets.Dropdown(options=_OUT_FEATURES, description="Features out", **look),
                "dtype": widgets.Dropdown(options=("float32", "bfloat16"), description="Dtype", **look),
                "link": widgets.Dropdown(options=list(LINKS), description="Link", **look),
            },
            height=460,
        )
        self.frame: pd.DataFrame | None = None

    def suit(self, choice: Choice) -> None:
        """Sizes at which there is something to hide: a matmul that takes about as long as its all-reduce, or, on GPUs
        of their own, the down projection of Llama-3.1 70B's shape (8192 x 28672)."""
        offer_links(self._named["link"], list(LINKS), choice, cpu="0.2 ms, 0.05 GB/s")
        names = "tokens", "in_features", "out_features", "dtype"
        cpu, shared = (2048, 8192, 1024, "float32"), (2048, 65536, 2048, "float32")
        chosen = choice.pick(cpu=cpu, shared=shared, own=(16384, 28672, 8192, "bfloat16"))
        self._named.put(dict(zip(names, chosen, strict=True)))

    def submit(self, cluster: Cluster, settings: Settings) -> Submitted:
        plan = ChunkPlan(
            chunks=tuple(sorted({1, *settings["chunks"]})),
            tokens=settings["tokens"],
            in_features=settings["in_features"],
            out_features=settings["out_features"],
            dtype=settings["dtype"],
            link=LINKS[settings["link"]],
            iterations=5,
        )
        return submit_chunks(cluster, plan, on_report=self.on_report), plan

    def draw(self, work: Work) -> Drawing:
        frame = chunks_frame(work.plan, work.run.reports, work.provenance)
        if frame.empty:
            return None, ""
        self.frame = frame
        badge = linked_badge(work.badge, work.plan.link)
        return overlap_figure(self.frame, badge=badge), html.quiet(explain_chunks(self.frame))


def linked_badge(badge: str, link: EmulatedLink | None) -> str:
    """The cluster's badge, with the emulated link that its messages went over."""
    return joined_badge(badge, link_text(link))


class ChunkModel(AnalyticPanel):
    """The model behind the chunk count, as two lanes. Analytic: it follows its sliders and runs nothing.

    ``show(num_chunks=, compute_ms=, comm_ms=, overhead_ms=, latency_ms=)`` sets the sliders; ``figure`` is the figure.
    """

    def __init__(self) -> None:
        def slider(value: float, low: float, high: float, text: str, step: float = 0.5) -> Any:
            return widgets.FloatSlider(value=value, min=low, max=high, step=step, description=text, **wide(92))

        super().__init__(
            title="Chunks, modelled (milliseconds)",
            named={
                "num_chunks": widgets.IntSlider(value=1, min=1, max=32, description="chunks", **wide(92)),
                "compute_ms": slider(30, 2, 100, "matmul"),
                "comm_ms": slider(24, 2, 100, "all-reduce"),
                "overhead_ms": slider(0.2, 0, 2, "per matmul", 0.1),
                "latency_ms": slider(0.5, 0, 2, "per send", 0.1),
            },
            min_height=300,
        )
        self.add_class("tplab-chunk-model")
        self._draw()

    def draw(self, values: Settings) -> tuple[go.Figure, str]:
        # A start-up or a latency cannot be more than the whole.
        values["overhead_ms"] = min(values["overhead_ms"], values["compute_ms"])
        values["latency_ms"] = min(values["latency_ms"], values["comm_ms"])
        return chunk_lanes_figure(**values), html.quiet(explain_lanes(**values))
