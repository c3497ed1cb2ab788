"""Notebook 00's panel: an all-reduce on real ranks, checked and timed."""

from html import escape
from typing import Any

import ipywidgets as widgets
import pandas as pd

from tplab.cluster import Cluster, Run
from tplab.cluster.hello import REDUCTIONS, all_reduce_hello, expected
from tplab.lab.figures import timings_figure
from tplab.lab.panels import html
from tplab.lab.panels.base import Drawing, RunPanel
from tplab.lab.panels.controls import Settings, wide
from tplab.lab.panels.pool import Pool
from tplab.lab.panels.run_state import Work
from tplab.measure import samples_of
from tplab.shown import number

_REPEATS = [("once", 1), ("10 times", 10), ("100 times", 100), ("1,000 times", 1000), ("until Stop", 10_000_000)]
_SIZES = [(f"{4 * n:,} B" if n < 256 else f"{4 * n >> 10:,} KiB", n) for n in (4**k for k in range(12))]


class HelloPanel(RunPanel):
    """Each rank brings its number plus one; all-reduce; every rank must hold the same result."""

    def __init__(self, pool: Pool) -> None:
        look = wide(90)
        super().__init__(
            pool,
            title="All-reduce hello",
            named={
                "reduction": widgets.Dropdown(options=REDUCTIONS, value="SUM", description="Reduction", **look),
                "num_elements": widgets.SelectionSlider(options=_SIZES, value=1, description="Tensor", **look),
                "repeats": widgets.Dropdown(options=_REPEATS, value=100, description="Repeat", **look),
            },
        )

    def submit(self, cluster: Cluster, settings: Settings) -> Run[dict[str, Any]]:
        return cluster.submit(
            all_reduce_hello,
            settings["num_elements"],
            settings["reduction"],
            settings["repeats"],
            timeout=None,
            on_report=self.on_report,
        )

    def draw(self, work: Work) -> Drawing:
        run, settings = work.run, work.settings
        times = slowest_per_repeat(run)
        if times.empty:
            return None, ""
        size = next(label for label, n in _SIZES if n == settings["num_elements"])
        figure = timings_figure(times, title=f"All-reduce ({settings['reduction']}) of {size}", badge=work.badge)
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
                f"{number(value['had'])}",
                f"<b>{number(value['got'])}</b>",
                "✓ as expected" if value["correct"] else f"✗ expected {number(want)}",
            )
            for value in values
        ]
        return html.table(("", "process id", "device", "had", "got", "checked"), rows)


def slowest_per_repeat(run: Run[dict[str, Any]]) -> pd.DataFrame:
    """``repeat``, ``max_us``: the slowest rank's time of every repetition that all ranks have reported so far."""
    slowest = [us for samples in samples_of(run.reports).values() for us in samples.slowest_us]
    return pd.DataFrame({"repeat": range(len(slowest)), "max_us": slowest})
