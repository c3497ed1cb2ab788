"""A run that hangs, caught: what its error says of who waits for whom, as a sentence, a table and a figure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from tplab.checks import check_number
from tplab.cluster import Cluster, ClusterError, Diagnosis
from tplab.cluster.calls import BETWEEN_TWO, Call
from tplab.cluster.hang_words import describe
from tplab.cluster.naming import capital
from tplab.lab.panels import html
from tplab.shown import number

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, slots=True)
class Hang:
    """How a run ended that hung, or failed while ranks waited for each other."""

    name: str
    """The function that ran."""
    error: ClusterError
    """What the run raised."""
    seconds: float
    """Time from the beginning of the run to the error."""
    badge: str
    """Where it was measured."""

    @property
    def diagnosis(self) -> Diagnosis | None:
        """Who waits for whom; None where no rank waited for another."""
        return self.error.hang

    @property
    def sentence(self) -> str:
        """The reason in one sentence; the error's own first line where nobody waited for anybody."""
        said = str(self.error).partition("\n")[0] if self.diagnosis is None else self.diagnosis.sentence
        return f"{capital(said)}."

    @property
    def frame(self) -> pd.DataFrame:
        """``rank``, ``call``, ``label``, ``state``: a row for each of the last calls of each rank."""
        return hang_frame(self.diagnosis)

    @property
    def figure(self) -> "go.Figure":
        """Who came where."""
        from tplab.lab.figures.hang import hang_figure

        ranks = [view.rank for view in self.diagnosis.ranks] if self.diagnosis is not None else []
        return hang_figure(self.frame, title=f"{self.name}(): who came where", badge=self.badge, ranks=ranks)

    @property
    def table(self) -> str:
        """A row for each rank, as HTML."""
        rows = [
            (
                f"rank {view.rank}",
                f"<b>{escape(view.state)}</b>" if view.state in ("waits", "missing") else escape(view.state),
                escape(view.doing),
                escape(", ".join(f"rank {rank}" for rank in view.waits_for)) or "nobody",
                escape(", ".join(map(describe, view.calls))) or "none known",
            )
            for view in (self.diagnosis.ranks if self.diagnosis is not None else ())
        ]
        return html.table(("", "", "what it does", "waits for", "last calls, newest first"), rows)

    def _repr_html_(self) -> str:
        took = f"{type(self.error).__name__} after {number(self.seconds)} s (measured)"
        return f"<p><b>{escape(self.sentence)}</b></p>{self.table}{html.quiet(took)}"

    def __repr__(self) -> str:
        return self.sentence if self.diagnosis is None else str(self.diagnosis)


def catch_hang(cluster: Cluster, fn: Callable[..., Any], *args: Any, timeout: float = 2.0) -> Hang | None:
    """Run a function of which one expects that it hangs; None if it returns on every rank.

    Args:
        cluster: the ranks; whatever becomes of them, the next run has fresh ones.
        fn, args: as for ``cluster.run``.
        timeout: seconds until the run is given up.
    """
    check_number("timeout", timeout, above=0)
    # What a rank has said that ends stands in the error, too.
    run = cluster.submit(fn, *args, timeout=timeout, on_output=lambda line: None)
    try:
        run.result()
    except KeyboardInterrupt:
        run.stop()
        raise
    except ClusterError as error:
        return Hang(getattr(fn, "__name__", "fn"), error, run.elapsed_s or 0.0, cluster.badge)
    return None


def hang_frame(diagnosis: Diagnosis | None) -> pd.DataFrame:
    """``rank``, ``call``, ``label``, ``state`` (``done``, ``called``, ``waits`` or ``missing``): the last calls of each
    rank, and where it is missing. Rows whose ``call`` is the same belong to the same collective or message."""
    rows = [] if diagnosis is None else list(_rows(diagnosis))
    frame = pd.DataFrame(rows, columns=["rank", "call", "label", "state"])
    order: list[str] = []
    for _, own in frame.groupby("rank"):
        after = -1
        for call in own["call"]:
            if call not in order:
                order.insert(after + 1, call)
            after = order.index(call)
    place = frame["call"].map({call: index for index, call in enumerate(order)})
    return frame.assign(place=place).sort_values(["place", "rank"]).drop(columns="place").reset_index(drop=True)


def _rows(diagnosis: Diagnosis) -> Iterator[tuple[int, str, str, str]]:
    for view in diagnosis.ranks:
        for call in view.calls[::-1]:
            yield view.rank, _meeting(view.rank, call, diagnosis), describe(call), call.state
        for other in diagnosis.ranks:
            call_of_other = diagnosis.waiting.get(other.rank)
            if call_of_other is not None and view.rank in other.waits_for:
                met = _meeting(other.rank, call_of_other, diagnosis)
                if all(_meeting(view.rank, call, diagnosis) != met for call in view.calls):
                    yield view.rank, met, "missing", "missing"
                    break


def _meeting(rank: int, call: Call, diagnosis: Diagnosis) -> str:
    """The same words for calls of several ranks that meet."""
    if call.kind in BETWEEN_TWO:
        ends = (rank, call.peer) if call.kind == "send" else (call.peer, rank)
        return f"message #{call.number} from rank {ends[0]} to rank {ends[1]}, tag {call.tag}"
    group = diagnosis.groups.get(call.group, "")
    return f"#{call.number}{f' of {group}' if group else ''}"
