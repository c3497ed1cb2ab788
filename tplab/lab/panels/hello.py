"""Notebook 00's panel: an all-reduce on real ranks, checked and timed."""

from html import escape
from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from tplab.cluster import Cluster, Run
from tplab.cluster.hello import REDUCTIONS, all_reduce_hello, expected
from tplab.lab.figures import timings_figure
from tplab.lab.panels import html
from tplab.lab.panels.base import RunPanel, Settings
from tplab.lab.panels.pool import Pool
from tplab.measure import samples_of

_REPEATS = [("once", 1), ("10 times", 10), ("100 times", 100), ("1,000 times", 1000), ("until Stop", 10_000_000)]
_SIZES = {f"{4 * n:,} B" if n < 256 else f"{4 * n >> 10:,} KiB": n for n in (4**k for k in range(12))}


class HelloPanel(RunPanel):
    """Each rank brings its number plus one; all-reduce; every rank must hold the same result."""

    def __init__(self, pool: Pool) -> None:
        wide = {"layout": widgets.Layout(width="auto"), "style": {"description_width": "90px"}}
        self._reduction = widgets.Dropdown(options=REDUCTIONS, value="SUM", description="Reduction", **wide)
        self._size = widgets.SelectionSlider(options=list(_SIZES), value="4 B", description="Tensor", **wide)
        self._repeats = widgets.Dropdown(
            options=_REPEATS,
            value=100,
            description="Repeat",
            **wide,
        )
        super().__init__(pool, title="All-reduce hello", controls=[self._reduction, self._size, self._repeats])

    def settings(self) -> Settings:
        return {
            "num_elements": _SIZES[self._size.value],
            "reduction": self._reduction.value,
            "repeats": self._repeats.value,
        }

    def configure(self, *, reduction: str = "SUM", num_elements: int = 1, repeats: int = 100) -> "HelloPanel":
        """Set the controls. Raises ``ValueError`` for a value they do not offer."""
        sizes = {n: label for label, n in _SIZES.items()}
        choices = {value for _, value in _REPEATS}
        for name, value, allowed in (
            ("reduction", reduction, REDUCTIONS),
            ("num_elements", num_elements, sizes),
            ("repeats", repeats, choices),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, sorted(allowed)))}; got {value!r}")
        self._reduction.value, self._size.value, self._repeats.value = reduction, sizes[num_elements], repeats
        return self

    def submit(self, cluster: Cluster, settings: Settings) -> Run[dict[str, Any]]:
        return cluster.submit(
            all_reduce_hello,
            settings["num_elements"],
            settings["reduction"],
            settings["repeats"],
            timeout=None,
            on_report=self.on_report,
        )

    def draw(self, run: Run[dict[str, Any]], cluster: Cluster) -> tuple[go.Figure, str]:
        assert self._settings_of_run is not None
        settings = self._settings_of_run
        size = next(label for label, n in _SIZES.items() if n == settings["num_elements"])
        figure = timings_figure(
            slowest_per_repeat(run), title=f"All-reduce ({settings['reduction']}) of {size}", badge=cluster.badge
        )
        return figure, self._table(run, settings) if run.done() and run.exception() is None else ""

    @staticmethod
    def _table(run: Run[dict[str, Any]], settings: Settings) -> str:
        values = run.result()
        want = expected(len(values), settings["reduction"])
        rows = [
            (
                f"rank {value['rank']}",
                str(value["pid"]),
                escape(value["device"]),
                f"{value['had']:g}",
                f"<b>{value['got']:g}</b>",
                "✓ as expected" if value["correct"] else f"✗ expected {want:g}",
            )
            for value in values
        ]
        return html.table(("", "process id", "device", "had", "got", "checked"), rows)


def slowest_per_repeat(run: Run[dict[str, Any]]) -> pd.DataFrame:
    """``repeat``, ``max_us``: the slowest rank's time of every repetition that all ranks have reported so far."""
    slowest = [us for samples in samples_of(run.reports).values() for us in samples.slowest_us]
    return pd.DataFrame({"repeat": range(len(slowest)), "max_us": slowest})
