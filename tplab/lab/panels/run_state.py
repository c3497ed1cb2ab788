"""What a panel that runs something on ranks is at: one value, from which everything that it says is made.

Figure, settings and status are told from the same state, so they cannot contradict each other: which run the figure is
of, with which settings, whether it is whole, and what goes on now.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tplab.cluster import Cluster, ClusterClosed, Run, RunStopped
from tplab.cluster.provenance import Provenance
from tplab.lab.panels import html
from tplab.lab.panels.controls import Settings

Stage = Literal["idle", "waiting", "starting", "running", "done", "stopped", "failed", "refused"]
BUSY: tuple[Stage, ...] = ("waiting", "starting", "running")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Work:
    """One run of a panel, and what is needed to draw it at any later time."""

    run: Run[Any]
    """The run on the cluster: ``reports``, ``elapsed_s``, values."""
    cluster: Cluster
    """What it runs on; the pool may have another one by now, and this one may be closed."""
    settings: Settings
    """What the controls said when it began."""
    plan: Any = None
    """What the panel's ``submit`` gave beside the run."""
    began_at: str
    """Time of day."""
    made_on: Provenance | None = None
    """Origin of its numbers; None until ranks have reported."""

    @property
    def provenance(self) -> Provenance:
        """Origin of its numbers, as columns and badge."""
        return self.made_on if self.made_on is not None else self.cluster.provenance

    @property
    def badge(self) -> str:
        """The badge of its numbers."""
        return self.provenance.badge


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunState:
    """Everything that a panel shows besides its controls."""

    stage: Stage = "idle"
    """What goes on, or how it ended; ``refused``: a setting cannot work, so that nothing was started."""
    work: Work | None = None
    """The run that was begun last."""
    drawn: Work | None = None
    """The run whose measurement the figure shows; an earlier one where the last has measured nothing (yet)."""
    waiting_for: str = ""
    """What has the ranks now."""
    fresh: bool = False
    """Whether ranks are started again, not for the first time."""
    progress: tuple[str, int, int] | None = None
    """Phase, steps done, steps in all."""
    error: BaseException | None = None
    """Why it failed, was stopped or refused."""
    asked: bool = False
    """Whether Stop was pressed here."""
    unclear: Exception | None = None
    """Why the last drawing failed."""

    @property
    def busy(self) -> bool:
        """Whether a run is under way."""
        return self.stage in BUSY

    @property
    def shows_last(self) -> bool:
        """Whether the figure is of the run that was begun last."""
        return self.drawn is not None and self.drawn is self.work


def ended(error: BaseException | None) -> Stage:
    """How a run with this fault ended."""
    if error is None:
        return "done"
    return "stopped" if isinstance(error, RunStopped | ClusterClosed) else "failed"


def phase_words(state: RunState, *, failed_whole: bool = False) -> str:
    """The line under the buttons; ``failed_whole`` as for :func:`ribbon_words`."""
    if state.asked and state.busy:
        return "Stopping …"
    match state.stage:
        case "idle":
            return "Not run yet."
        case "waiting":
            return f"Waiting for {state.waiting_for} …"
        case "starting":
            return "Starting fresh ranks …" if state.fresh else "Starting the ranks …"
        case "running" if state.progress is not None:
            phase, done, total = state.progress
            return f"{phase}: {done:,} of {total:,}"
        case "running":
            return "Running …"
        case "done":
            assert state.work is not None
            seconds = f"Done in {state.work.run.elapsed_s or 0.0:.2f} s"
            return f"{seconds}, but it could not be drawn." if state.unclear else f"{seconds}."
        case "stopped":
            return f"{_stopped_by(state)} {_kept(state)}"
        case "failed":
            whole = failed_whole and state.shows_last
            return "It did not return. What is known of it is shown." if whole else f"Failed. {_kept(state)}"
        case _:
            settings = isinstance(state.error, ValueError | TypeError)
            return "Not run: a setting cannot work." if settings else "Not run."


def _stopped_by(state: RunState) -> str:
    if state.asked:
        return "Stopped."
    if isinstance(state.error, ClusterClosed):
        return "Ended: the pool was stopped or replaced."
    return "Ended: its ranks were restarted."


def _kept(state: RunState) -> str:
    if state.shows_last:
        return "What was measured until then is shown."
    return "Nothing was measured." + (" The figure is of an earlier run." if state.drawn is not None else "")


def bar(state: RunState) -> tuple[float, str]:
    """Share of the work that is done, and how the bar is coloured."""
    share = state.progress[1] / max(1, state.progress[2]) if state.progress else 0.0
    match state.stage:
        case "done":
            return 1.0, "danger" if state.unclear else "success"
        case "stopped":
            return share, "warning"
        case "failed":
            return share, "danger"
        case "running":
            return share, ""
        case _:
            return 0.0, ""


def ribbon_words(
    state: RunState, now: Settings, in_words: Callable[[Settings], str], *, failed_whole: bool = False
) -> str:
    """The strip above the figure: in what the figure is not what one would take it for; empty if in nothing.

    Args:
        state: the panel's.
        now: what the controls say, as far as a run depends on it.
        in_words: settings as people read them.
        failed_whole: whether the figure is of the failure, so that nothing is missing in it.
    """
    drawn = state.drawn
    if drawn is None:
        return ""
    was = {name: drawn.settings[name] for name in now}
    differing = {name: value for name, value in was.items() if value != now[name]}
    if not state.shows_last or state.stage in ("waiting", "starting"):  # its work comes once the ranks have it
        which = in_words(differing) or "the same settings"
        if state.busy:
            return f"Not of this run yet. Shown: the run before, of {drawn.began_at} ({which})."
        assert state.work is not None
        last = f"the run of {state.work.began_at}"
        why = f"{last[0].upper()}{last[1:]} could not be drawn" if state.unclear else f"Nothing was measured in {last}"
        return f"{why}. Shown: an earlier run, of {drawn.began_at} ({which})."
    parts = []
    fault = drawn.run.exception() if drawn.run.done() else None
    if fault is not None and not (failed_whole and ended(fault) == "failed"):
        parts.append(
            f"Only what was measured until the run {'was stopped' if ended(fault) == 'stopped' else 'failed'}."
        )
    if state.unclear is not None:
        parts.append("The figure could not be drawn again: this is the last one that could.")
    if differing and not state.busy:
        parts.append(f"Settings changed since this run ({in_words(differing)}): press Run to measure them.")
    return " ".join(parts)


def shown_words(state: RunState, in_words: Callable[[Settings], str]) -> str:
    """The line below the figure: which run it is of."""
    if state.drawn is None:
        return ""
    said = in_words(state.drawn.settings)
    return f"Run of {state.drawn.began_at} on {state.drawn.badge}{f': {said}' if said else ''}."


def error_html(state: RunState) -> str:
    """The card: what went wrong and what to do. A stop is no fault."""
    cards = []
    if state.error is not None and state.stage in ("failed", "refused"):
        cards.append(html.error_card(state.error))
    if state.unclear is not None:
        cards.append(html.undrawn_card(state.unclear))
    return "".join(cards)
