"""The frame of every panel that runs something on ranks.

Controls on the left, figure on the right. Run hands the work to the pool's cluster and returns at once, so the kernel
stays free: Stop works, other cells run, and results are drawn as they come, on the cluster's own thread. What a run
measured before it failed or was stopped stays on the page. All that is said about it comes from one ``RunState``.
"""

import contextvars
import threading
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, ClassVar, Self

import ipywidgets as widgets
import plotly.graph_objects as go

from tplab.cluster import Cluster, Report, Run
from tplab.cluster.launch import State
from tplab.lab.choice import Choice
from tplab.lab.panels import html, run_state
from tplab.lab.panels.controls import NamedControls, Settings, panel, toggles
from tplab.lab.panels.figure_view import FigureView
from tplab.lab.panels.pool import Pool
from tplab.lab.panels.run_state import RunState, Work
from tplab.lab.panels.run_status import RunStatus
from tplab.lab.still import AFTER_A_MOVE_S, Part, Stilled, settings_line

_DRAW_EVERY_S = 1.0
_DRAWN_S = 30.0  # longer than any drawing takes
_UNLESS_WAITED_FOR_S = 0.3  # then the waiting cell does it: what another thread sends belongs to another cell
Submitted = Run[Any] | tuple[Run[Any], Any]
"""A run, or a run and what its drawing has to know of it."""
Drawing = tuple[go.Figure | None, str]
"""A figure (None while nothing is measured) and the HTML below it."""


class RunPanel(Stilled, widgets.VBox):
    """Controls, Run, Stop, progress, ribbon, error area and figure; a subclass says what runs and how it is drawn.

    ``run()`` is what the Run button does, then waits; ``stop()`` is the Stop button. ``figure`` is the last figure,
    ``state`` what the panel is at.

    Args:
        pool: the ranks that it runs on.
        title: heading of the panel.
        named: controls of the left column, by the name of their setting.
        views: what can be drawn, for a choice above the figure; none by default.
        above: widgets above the figure, and above that choice.
        height: height of the figure in pixels.
    """

    asks_ranks: ClassVar[bool] = False
    """Whether ``submit`` asks the ranks something and waits for the answer. The button then submits from a thread of
    its own, or the kernel would hang while other work has the ranks."""

    failed_whole: ClassVar[bool] = False
    """Whether what is drawn of a run that failed is the failure, so that nothing is missing in it."""

    def __init__(
        self,
        pool: Pool,
        *,
        title: str,
        named: Mapping[str, Any],
        views: Sequence[str] = (),
        above: Sequence[widgets.Widget] = (),
        height: int = 400,
    ) -> None:
        self.pool, self.title = pool, title
        self.state = RunState()
        self._named = NamedControls(named)
        self._look = toggles(views)
        self._look.observe(lambda _: self.redraw(), names="value")
        self._begun: Work | None = None  # the run under way; it may report before there is one
        self._cluster: Cluster | None = None  # of the run under way
        self._changing = threading.RLock()  # the kernel's thread and the cluster's both tell
        self._ended = threading.Event()
        self._suited = ""
        self._drawn_at = 0.0
        self._run_button = widgets.Button(description="Run", icon="play", button_style="primary")
        self._stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        for button in (self._run_button, self._stop_button):
            button.layout.width = "48%"
        self._status = RunStatus()
        self._ribbon, self._error, self._so_far, self._below, self._shown = (widgets.HTML() for _ in range(5))
        self._view = FigureView(min_height=height)
        self._run_button.on_click(lambda _: self._begin())
        self._stop_button.on_click(lambda _: self.stop())
        for control in self._named.values():
            control.observe(lambda _: self._settings_moved(), names="value")
        buttons = widgets.HBox(
            [self._run_button, self._stop_button], layout=widgets.Layout(justify_content="space-between")
        )
        left = [*self._named.values(), buttons, self._status]
        right = [self._ribbon, self._error, *above, self._so_far, *([self._look] if views else [])]
        super().__init__(panel(title, left, [*right, self._view, self._below, self._shown]))
        pool.on_choice(self._choose)
        pool.on_state(self._look_around)
        # For user style sheets and for tests that look at the page.
        self.add_class("tplab-panel")
        for widget, name in (
            (self._run_button, "tplab-run"),
            (self._stop_button, "tplab-stop"),
            (self._ribbon, "tplab-ribbon"),
            (self._error, "tplab-error"),
            (self._so_far, "tplab-so-far"),
            (self._below, "tplab-below"),
            (self._shown, "tplab-shown"),
        ):
            widget.add_class(name)
        self._become()

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
    def submit(self, cluster: Cluster, settings: Settings) -> Submitted:
        """Start the work with ``on_report=self.on_report``; beside the run, what ``draw`` has to know of it."""

    @abstractmethod
    def draw(self, work: Work) -> Drawing:
        """What a run has reported and returned so far, which may be all there will be: it may have been stopped.

        Also called for a run before the last, so that it must go by what stands in ``work``. While nothing is measured,
        the figure is None and what stood there stays; the words are then shown beside it.
        """

    def measures(self, settings: Settings) -> Settings:
        """Those settings that a run depends on: all of them. Others would only change how it is drawn."""
        return settings

    @property
    def shows_run(self) -> bool:
        """Whether the figure is of a run of this panel; not where the controls chose a recording."""
        return True

    @property
    def figure(self) -> go.Figure | None:
        """The last figure drawn."""
        return self._view.figure

    def run(self) -> Any:
        """Press Run and wait. Returns what the ranks returned; raises what the panel would show as an error, and
        ``RuntimeError`` while a run is under way here."""
        if self.state.busy:
            raise RuntimeError(f"{self.title} is running already: wait for it, or end it with stop()")
        self._begin(raise_errors=True)
        work = self.state.work
        assert work is not None
        try:
            values = work.run.result()
        finally:
            self._ended.wait(_DRAWN_S)  # the drawing follows the result
        self.settled()  # within this cell: who executes a notebook hears nothing after its last
        if self.state.unclear is not None:
            raise self.state.unclear
        return values

    def stop(self) -> None:
        """Press Stop: end the run; what it measured stays."""
        if self.state.busy:
            self._become(asked=True)
        if self._begun is not None:
            self._begun.run.stop()

    def _become(self, **changes: Any) -> None:
        """Move to another state, and say everything anew from it."""
        with self._changing:
            self.state = state = replace(self.state, **changes)
            share, outcome = run_state.bar(state)
            with self._status.hold_sync():
                self._status.share, self._status.outcome = share, outcome
                self._status.words = run_state.phase_words(state, failed_whole=self.failed_whole)
            self._run_button.disabled, self._stop_button.disabled = state.busy, not state.busy
            told = state if self.shows_run else replace(state, drawn=None)
            now = self.measures(self.settings())
            ribbon = run_state.ribbon_words(told, now, self._named.said, failed_whole=self.failed_whole)
            self._ribbon.value = html.ribbon(ribbon) if ribbon else ""
            self._error.value = run_state.error_html(state)
            shown = run_state.shown_words(told, self._in_words)
            self._shown.value = html.quiet(shown) if shown else ""
            if self._view.figure is None:
                self._view.alt = "No figure yet." if state.busy else "Press Run: the figure appears here."

    def _in_words(self, settings: Settings) -> str:
        return self._named.said(self.measures(settings))

    def _begin(self, raise_errors: bool = False) -> None:
        if self.state.busy:
            return
        self._ended.clear()
        self._begun, self._drawn_at = None, 0.0
        self._so_far.value = ""
        try:
            self._cluster = cluster = self.pool.cluster
        except Exception as error:
            self._refuse(error)
            if raise_errors:
                raise
            return
        fresh = bool(cluster.launches) or self.state.work is not None
        # Before it is submitted, for its reports do not wait.
        self._become(stage="starting", progress=None, error=None, unclear=None, asked=False, fresh=fresh)
        self._look_around()
        if raise_errors or not self.asks_ranks:
            self._submit(cluster, self.settings(), raise_errors)
        else:
            submit = partial(contextvars.copy_context().run, self._submit, cluster, self.settings(), False)
            threading.Thread(target=submit, daemon=True, name="tplab-panel").start()

    def _submit(self, cluster: Cluster, settings: Settings, raise_errors: bool) -> None:
        began_at = f"{datetime.now():%H:%M:%S}"
        try:
            made = self.submit(cluster, settings)
        except Exception as error:
            self._refuse(error)
            if raise_errors:
                raise
            return
        run, plan = made if isinstance(made, tuple) else (made, None)
        self._begun = work = Work(run=run, cluster=cluster, settings=settings, plan=plan, began_at=began_at)
        self._become(work=work)
        self.pool.queue(run, self.title)
        self._look_around()
        if self.state.asked:  # while it was submitted
            run.stop()
        run.add_done_callback(self._finish)

    def _refuse(self, error: Exception) -> None:
        self._become(stage="refused", progress=None, error=error, unclear=None)
        self._ended.set()

    def _look_around(self) -> None:
        """Say what the run is waiting for. Called whenever the ranks' state changes, also on the cluster's thread."""
        with self._changing:
            run = None if self._begun is None else self._begun.run
            if self._cluster is None or not self.state.busy or (run is not None and run.done()):
                return
            if run is not None and run.running():
                self._become(stage="running")
            elif ahead := self.pool.ahead_of(run):
                self._become(stage="waiting", waiting_for=ahead)
            elif self._cluster.state is State.RUNNING:
                self._become(stage="waiting", waiting_for="another cell")
            else:
                self._become(stage="starting")

    def on_report(self, report: Report) -> None:
        """Progress and partial results, as they come. Called on the cluster's thread."""
        fields = report.fields
        changes: dict[str, Any] = {}
        if {"phase", "done", "total"} <= fields.keys():
            changes["progress"] = (fields["phase"], fields["done"], fields["total"])
        if changes or self.state.stage != "running":
            self._become(stage="running", **changes)
        # Drawing costs the browser more than measuring costs the ranks: progress is often, pictures are seldom.
        now = time.monotonic()
        if self._begun is not None and now - self._drawn_at > _DRAW_EVERY_S:
            self._drawn_at = now
            self._begun = self._draw(self._begun)

    def redraw(self) -> None:
        """Draw what is shown again, after a change of view."""
        if self.state.drawn is not None:
            self._draw(self.state.drawn)
            self.settled(after_s=AFTER_A_MOVE_S)

    def _draw(self, work: Work) -> Work:
        """Draw a run, if it has measured anything; returns it with the origin of its numbers."""
        try:
            if work.made_on is None:  # ranks have reported: they are up
                work = replace(work, made_on=work.cluster.provenance)
            figure, words = self.draw(work)
        except Exception as error:
            self._become(unclear=error)
            return work
        with self._changing:
            latest = self._begun is not None and work.run is self._begun.run
            if figure is None:
                self._so_far.value = words
            else:
                self._so_far.value = "" if latest else self._so_far.value
                self._put(figure, words)
                self._become(drawn=work, work=work if latest else self.state.work, unclear=None)
        return work

    def _put(self, figure: go.Figure, words: str) -> None:
        self._view.show(figure, alt=words)
        self._below.value = words

    def _finish(self, run: Any) -> None:
        work, error = self._begun, run.exception()
        assert work is not None, "begun before it can end"
        try:
            if error is None or run.reports:
                self._draw(work)
        finally:
            try:
                with self._changing:
                    self._begun = None
                    self._become(stage=run_state.ended(error), error=error)
            finally:
                self._ended.set()  # who waits for the run must not wait for ever
            self.settled(after_s=_UNLESS_WAITED_FOR_S)

    def still(self) -> Sequence[Part]:
        """Heading, status, words and figure, and which run they are of."""
        heading, *rest = super().still()
        return [heading, settings_line(""), html.quiet(self._status.words), *rest]

    def _settings_moved(self) -> None:
        """A control was moved: what the figure shows may be other settings now."""
        self._become()
