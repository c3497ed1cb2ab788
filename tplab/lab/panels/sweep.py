"""Notebook 02's panel: sweep an all-reduce over sizes, and set models beside the measurement."""

from typing import Any

import ipywidgets as widgets
import pandas as pd

from tplab.cluster import Cluster
from tplab.collectives.cost import AlphaBeta
from tplab.collectives.sweep import submit_sweep, sweep_frame
from tplab.collectives.sweep_plan import ALGORITHMS, MODES, ON_SYMMETRIC_MEMORY, plan_sweep
from tplab.lab.choice import Choice
from tplab.lab.figures.collectives import add_recorded, busbw_figure, explain_beside, explain_sweep, latency_figure
from tplab.lab.panels import html
from tplab.lab.panels.base import Drawing, RunPanel, Submitted
from tplab.lab.panels.check_boxes import CheckBoxes
from tplab.lab.panels.controls import Settings, wide
from tplab.lab.panels.pool import Pool
from tplab.lab.panels.run_state import Work
from tplab.lab.predict import Predict
from tplab.lab.recorded import recorded, recorded_badge
from tplab.shown import bytes_text

_SIZES = [(bytes_text(1 << power), 1 << power) for power in range(8, 29)]
_TEXTS = {
    "library": "the library's own",
    "ring": "ring",
    "two-shot": "two-shot",
    "one-shot": "one-shot",
    "recursive-doubling": "recursive doubling",
    "int8-two-shot": "two-shot in int8",
    "symmetric-one-shot": "torch's one-shot kernel",
    "symmetric-two-shot": "torch's two-shot kernel",
    "pushed-one-shot": "our one-shot kernel",
    "pushed-two-shot": "our two-shot kernel",
    "pushed-int8": "our kernel in int8",
    "pushed-fp8": "our kernel in fp8",
}
"""What the algorithms are called in the boxes."""
_RECORDING, _WHERE = "4xH200-2026-11-26", "Four H200, NVLink"
_DTYPES = ("float32", "bfloat16", "float16", "float64")


class SweepPanel(RunPanel):
    """Sizes, dtypes, algorithms, eager or graph; latency and bus bandwidth of what was measured.

    ``frame`` holds the measurement of the last run, also of one that was stopped or failed. ``link``, when set, draws
    the lower bound of any algorithm on that link.

    Args:
        pool: the ranks.
        link: of these ranks.
        after: a prediction of the time: the recorded curve can be chosen once it was made.
    """

    def __init__(self, pool: Pool, *, link: AlphaBeta | None = None, after: Predict | None = None) -> None:
        named: dict[str, Any] = {
            "sizes": widgets.SelectionRangeSlider(
                options=_SIZES,
                value=(1 << 10, 1 << 24),
                description="Sizes",
                **wide(34),  # the readout needs the room
            ),
            "dtypes": CheckBoxes(_DTYPES, value=("float32",), description="Types of numbers"),
            "algorithms": CheckBoxes(
                [(_TEXTS[name], name) for name in ALGORITHMS], value=("library",), description="Algorithms"
            ),
            "mode": widgets.Dropdown(options=MODES, description="Launch", **wide(76)),
        }
        named["mode"].observe(lambda _: self._withhold(), names="value")
        named["beside"] = widgets.Checkbox(description=f"{_WHERE} behind it (recorded)", indent=False)
        named["beside"].observe(lambda _: self.redraw(), names="value")
        self._cover = None
        if after is not None:
            named["beside"].disabled = True
            self._cover = after.afterwards(self._uncover)
        self.link = link
        self.frame: pd.DataFrame | None = None
        self._own_gpus = False
        super().__init__(pool, title="All-reduce sweep", named=named, views=("Latency", "Bus bandwidth"), height=560)

    def suit(self, choice: Choice) -> None:
        """Offer what these ranks have: kernels over other GPUs' memory need a GPU each, CUDA graphs NCCL."""
        self._own_gpus = choice.own_gpus
        graphs = [("eager", "eager"), ("in a CUDA graph", "graph")]
        self._named["mode"].options = graphs if choice.on_gpus else [("eager; graphs need GPUs", "eager")]
        self._named["mode"].disabled = not choice.on_gpus
        self._withhold()

    def _uncover(self) -> None:
        self._named["beside"].disabled = False

    def measures(self, settings: Settings) -> Settings:
        """All but what stands behind the points."""
        return {name: value for name, value in settings.items() if name != "beside"}

    def _withhold(self) -> None:
        reasons = {} if self._own_gpus else dict.fromkeys(ON_SYMMETRIC_MEMORY, "Need a GPU per rank")
        if self._named["mode"].value == "graph":
            captured = ("library", *ON_SYMMETRIC_MEMORY)
            reasons |= {name: "Not in CUDA graphs" for name in ALGORITHMS if name not in captured}
        self._named["algorithms"].refuse(reasons)

    def submit(self, cluster: Cluster, settings: Settings) -> Submitted:
        low, high = settings["sizes"]
        asked = self.measures(settings) | {"sizes": [size for _, size in _SIZES if low <= size <= high]}
        points = plan_sweep(**asked, backend=cluster.backend, shares_gpus=cluster.shares_gpus)
        return submit_sweep(cluster, points, on_report=self.on_report), points

    def draw(self, work: Work) -> Drawing:
        frame = sweep_frame(work.plan, work.run.reports, work.provenance)
        if frame.empty:
            return None, ""
        self.frame = frame
        badge = work.badge if work.plan[0].mode == "eager" else f"{work.badge} · CUDA graph"
        latency = self._look.value == "Latency"
        figure = latency_figure(frame, badge=badge, link=self.link) if latency else busbw_figure(frame, badge=badge)
        words = explain_sweep(frame)
        if self._named["beside"].value:
            rows = recorded(_RECORDING, "sweep")
            rows = rows[(rows.num_ranks == 4) & (rows.algorithm == "library") & (rows.launch_mode == "eager")]
            column = "p50_us" if latency else "busbw_GBps"
            here = rows[rows["bytes"].between(frame["bytes"].min(), frame["bytes"].max())]
            add_recorded(figure, here, column=column, name=f"{_WHERE}, {recorded_badge(_RECORDING)}")
            words = f"{words} {explain_beside(frame, rows, _WHERE)}"
        return figure, html.quiet(words)
