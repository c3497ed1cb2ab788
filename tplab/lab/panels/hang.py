"""Notebook 09's panel: functions that hang, run for a few seconds, and what the error says of each."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ipywidgets as widgets

from tplab.checks import ArgumentError
from tplab.cluster import Cluster, ClusterError, Run
from tplab.lab.hangs import Hang
from tplab.lab.panels import html
from tplab.lab.panels.base import Drawing, RunPanel
from tplab.lab.panels.controls import Settings, wide
from tplab.lab.panels.pool import Pool
from tplab.lab.panels.run_state import Work


class HangPanel(RunPanel):
    """Runs one of some functions, and shows who waits in which collective and who is missing, as a figure and a table.

    ``run()`` returns the :class:`~tplab.lab.Hang`, which ``hang`` holds too; None if no rank waited for another.

    Args:
        pool: the ranks.
        functions: each called as ``fn(rank)``; chosen by their names.
    """

    failed_whole = True

    def __init__(self, pool: Pool, *functions: Callable[..., Any]) -> None:
        if not functions:
            raise ArgumentError("functions", functions, "must be at least one function: HangPanel(pool, my_hang)")
        self._functions = {getattr(fn, "__name__", f"function {place}"): fn for place, fn in enumerate(functions)}
        self.hang: Hang | None = None
        look = wide(80)
        super().__init__(
            pool,
            title="Hang clinic",
            named={
                "function": widgets.Dropdown(options=list(self._functions), description="Function", **look),
                "timeout_s": widgets.IntSlider(min=1, max=10, value=2, description="Limit in s", **look),
            },
            height=240,
        )

    def submit(self, cluster: Cluster, settings: Settings) -> Run[Any]:
        fn, limit = self._functions[settings["function"]], float(settings["timeout_s"])
        return cluster.submit(fn, timeout=limit, on_output=lambda line: None)

    def run(self) -> Hang | None:
        """Press Run and wait for the hang."""
        with suppress(ClusterError):
            super().run()
        return self.hang

    def draw(self, work: Work) -> Drawing:
        error = work.run.exception() if work.run.done() else None
        if not isinstance(error, ClusterError):
            return None, html.quiet("It returned on every rank: nothing hung.") if work.run.done() else ""
        self.hang = hang = Hang(work.settings["function"], error, work.run.elapsed_s or 0.0, work.badge)
        if hang.frame.empty:
            return None, html.quiet(hang.sentence)
        return hang.figure, hang.table

    def _finish(self, run: Any) -> None:
        self.hang = None
        if getattr(run.exception(), "hang", None) is not None and self._begun is not None:
            self._begun = self._draw(self._begun)
        super()._finish(run)
