"""The frame of every panel that runs something on ranks.

Controls on the left, figure on the right. Run hands the work to the pool's cluster and returns at once, so the kernel
stays free: Stop works, other cells run, and results are drawn as they come, on the cluster's own thread. What a run
measured before it failed or was stopped stays on the page.
"""

import threading
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import ipywidgets as widgets
import plotly.graph_objects as go

from tplab.cluster import Cluster, Report, Run, RunStopped
from tplab.lab.choice import Choice
from tplab.lab.panels import html
from tplab.lab.panels.controls import NamedControls, Settings, panel
from tplab.lab.panels.figure_view import FigureView
from tplab.lab.panels.pool import Pool
from tplab.lab.still import AFTER_A_MOVE_S, Part, Stilled, settings_line

_DRAW_EVERY_S = 1.0
_UNLESS_WAITED_FOR_S = 0.3  # then the waiting cell does it: what another thread sends belongs to another cell


class RunPanel(Stilled, widgets.VBox):
    """Controls, Run, Stop, progress, ribbon, error area and figure; a subclass says what runs and how it is drawn.

    ``run()`` is what the Run button does, then waits; ``stop()`` is the Stop button. ``figure`` is the last figure.

    Args:
        pool: the ranks that it runs on.
        title: heading of the panel.
        named: controls of the left column, by the name of their setting.
        views: what can be drawn, for a choice above the figure; none by default.
        height: height of the figure in pixels.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        title: str,
        named: Mapping[str, Any],
        views: Sequence[str] = (),
        height: int = 400,
    ) -> None:
        self.pool = pool
        self._named = NamedControls(named)
        self._look = widgets.ToggleButtons(options=views)
        self._look.observe(lambda _: self.redraw(), names="value")
        self._run: Run[Any] | None = None
        self._cluster: Cluster | None = None  # the one the run is on; the pool may have moved on
        self._ended = threading.Event()
        self._settings_of_run: Settings | None = None
        self._suited = ""
        self._drawn_at = 0.0
        self._run_button = widgets.Button(description="Run", icon="play", button_style="primary")
        self._stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        for button in (self._run_button, self._stop_button):
            button.layout.width = "48%"
        self._progress = widgets.FloatProgress(min=0.0, max=1.0, layout=widgets.Layout(width="auto"))
        self._phase = widgets.HTML(html.quiet("Not run yet."))
        self._ribbon = widgets.HTML()
        self._error = widgets.HTML()
        self._below = widgets.HTML()
        self._view = FigureView(min_height=height)
        self._run_button.on_click(lambda _: self._begin())
        self._stop_button.on_click(lambda _: self.stop())
        for control in self._named.values():
            control.observe(lambda _: self._mark_stale(), names="value")
        buttons = widgets.HBox(
            [self._run_button, self._stop_button], layout=widgets.Layout(justify_content="space-between")
        )
        left = [*self._named.values(), buttons, self._progress, self._phase]
        right = [self._ribbon, self._error, *([self._look] if views else []), self._view, self._below]
        super().__init__(panel(title, left, right))
        pool.on_choice(self._choose)
        # For user style sheets and for tests that look at the page.
        self.add_class("tplab-panel")
        for widget, name in (
            (self._run_button, "tplab-run"),
            (self._stop_button, "tplab-stop"),
            (self._phase, "tplab-phase"),
            (self._ribbon, "tplab-ribbon"),
            (self._error, "tplab-error"),
            (self._below, "tplab-below"),
        ):
            widget.add_class(name)

    def settings(self) -> Settings:
        """What the controls say now."""
        return self._named.settings()

    def configure(self, **settings: Any) -> Self:
        """Set controls by name. Raises ``ArgumentError`` naming the setting and what the panel offers."""
        self._named.check(settings)
        self._named.put(settings)
        return self

    def suit(self, choice: Choice) -> None:
        """Offer what suits the pool's ranks: called at the beginning, and when the pool's chip changes between a GPU
        for each rank, GPUs that they share, and the CPU. (Another number of ranks leaves what the reader has set.)"""

    def _choose(self, choice: Choice) -> None:
        kind = choice.pick(cpu="cpu", shared="shared", own="own")
        if kind != self._suited:
            self._suited = kind
            self.suit(choice)

    @abstractmethod
    def submit(self, cluster: Cluster, settings: Settings) -> Run[Any]:
        """Start the work; pass ``on_report=self.on_report``."""

    @abstractmethod
    def draw(self, run: Run[Any], cluster: Cluster) -> tuple[go.Figure, str]:
        """Figure and HTML below it, from what the run on ``cluster`` has reported and returned so far; it may have
        failed."""

    @property
    def figure(self) -> go.Figure | None:
        """The last figure drawn."""
        return self._view.figure

    def run(self) -> Any:
        """Press Run and wait. Returns what the ranks returned; raises what the panel would show as an error."""
        self._begin(raise_errors=True)
        assert self._run is not None
        values = self._run.result()
        self._ended.wait()  # the drawing follows the result
        self.settled()  # within this cell: who executes a notebook hears nothing after its last
        return values

    def stop(self) -> None:
        """Press Stop: end the run; what it measured stays."""
        if self._run is not None:
            self._run.stop()

    def _begin(self, raise_errors: bool = False) -> None:
        if self._run is not None and not self._ended.is_set():
            return
        self._error.value = self._ribbon.value = ""
        try:
            settings = self.settings()
            self._cluster = cluster = self.pool.cluster
            self._ended.clear()
            self._run = self.submit(cluster, settings)
        except Exception as error:
            self._ended.set()
            self._error.value = html.error_card(error)
            if raise_errors:
                raise
            return
        self._settings_of_run = settings
        self._run_button.disabled, self._stop_button.disabled = True, False
        self._progress.bar_style, self._progress.value = "", 0.0
        if not cluster.launches:
            self._phase.value = html.quiet("Starting the ranks …")
        self._run.add_done_callback(self._finish)

    def on_report(self, report: Report) -> None:
        """Progress and partial results, as they come. Called on the cluster's thread."""
        fields = report.fields
        if {"phase", "done", "total"} <= fields.keys():
            self._progress.value = fields["done"] / max(1, fields["total"])
            self._phase.value = html.quiet(f"{fields['phase']}: {fields['done']:,} of {fields['total']:,}")
        # Drawing costs the browser more than measuring costs the ranks: progress is often, pictures are seldom.
        now = time.monotonic()
        if self._run is not None and now - self._drawn_at > _DRAW_EVERY_S:
            self._drawn_at = now
            self._show(self._run)

    def redraw(self) -> None:
        """Draw the last run again, after a change of view."""
        if self._run is not None and self._run.reports:
            self._show(self._run)
            self.settled(after_s=AFTER_A_MOVE_S)

    def _show(self, run: Run[Any]) -> None:
        assert self._cluster is not None
        figure, below = self.draw(run, self._cluster)
        self._view.show(figure)
        self._below.value = below

    def _finish(self, run: Any) -> None:
        error = run.exception()
        try:
            if error is None or run.reports:
                self._show(run)
            if error is None:
                self._progress.value, self._progress.bar_style = 1.0, "success"
                self._phase.value = html.quiet(f"Done in {run.elapsed_s:.2f} s.")
            else:
                self._progress.bar_style = "warning" if isinstance(error, RunStopped) else "danger"
                self._phase.value = html.quiet("Stopped." if isinstance(error, RunStopped) else "Failed.")
                self._error.value = html.error_card(error)
        finally:
            self._run_button.disabled, self._stop_button.disabled = False, True
            self._ended.set()
            self._mark_stale()
            self.settled(after_s=_UNLESS_WAITED_FOR_S)

    def still(self) -> Sequence[Part]:
        """Heading, settings of the run, words and figure."""
        of_run = self._settings_of_run
        heading, *rest = super().still()
        return [heading, settings_line("" if of_run is None else self._named.said(of_run)), *rest]

    def _mark_stale(self) -> None:
        if self._settings_of_run is None or not self._ended.is_set() or self._view.figure is None:
            return
        stale = self.settings() != self._settings_of_run
        self._ribbon.value = html.ribbon("Settings changed since this run: press Run to measure them.") if stale else ""
