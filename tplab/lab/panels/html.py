"""The HTML pieces of panels. Colours come from JupyterLab's theme variables, with fallbacks for other front ends."""

import traceback
from collections.abc import Iterable, Sequence
from html import escape

from tplab.cluster import ClusterClosed, ClusterError, HostLost, NoRoom, RankDied, RankError, RankTimeout, RunStopped
from tplab.cluster.naming import capital, several
from tplab.lab import style

_TEXT = "color:var(--jp-ui-font-color1,#1F2430)"
_QUIET = f"{_TEXT};opacity:0.75"  # JupyterLab's own second colour is too pale for small letters
_BORDER = "var(--jp-border-color2,#CBD0D8)"


def heading(text: str) -> str:
    return f'<div style="font-size:15px;font-weight:600;{_TEXT}">{escape(text)}</div>'


def quiet(text: str) -> str:
    return f'<div style="font-size:12px;line-height:1.4;{_QUIET}">{escape(text)}</div>'


def pill(text: str, colour: str) -> str:
    """A badge: white on a colour, readable in both themes."""
    return (
        f'<span style="display:inline-block;background:{colour};color:white;border-radius:10px;padding:1px 10px;'
        f'font-size:12px;font-weight:600;line-height:20px;white-space:nowrap">{escape(text)}</span>'
    )


def ribbon(text: str) -> str:
    """A warning strip: the figure does not show what the controls say."""
    return (
        f'<div style="background:{style.BACKWARD};color:{style.INK};padding:4px 10px;border-radius:3px;'
        f'font-size:12px;line-height:1.45;font-weight:600">{escape(text)}</div>'
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A plain table; cells are HTML already. Its first column, the names of the rows, is not broken into lines."""
    cell = f"padding:3px 14px 3px 0;border-bottom:1px solid {_BORDER};text-align:left;vertical-align:top"
    head = "".join(f'<th style="{cell};font-weight:600">{escape(name)}</th>' for name in header)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{cell}{"" if i else ";white-space:nowrap"}">{value}</td>' for i, value in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return (
        f'<table style="border-collapse:collapse;font-size:13px;line-height:1.45;{_TEXT}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def error_card(error: BaseException) -> str:
    """What happened in plain words, what to do, and the ranks' own words folded below, where they spoke."""
    what, cure = explain(error)
    if isinstance(error, RankError | RankDied | RankTimeout):
        return _card(what, cure, "What the ranks said", str(error))
    told = isinstance(error, NoRoom | ClusterClosed | RunStopped | ValueError | TypeError)
    return _card(what, cure, "" if told else "Details", str(error))


def undrawn_card(error: Exception) -> str:
    """A run whose numbers could not be drawn."""
    text = "".join(traceback.format_exception(error))
    return _card("The figure could not be drawn.", "What was measured is kept in the panel.", "Details", text)


def _card(what: str, cure: str, summary: str, details: str) -> str:
    folded = (
        f'<details style="margin-top:6px"><summary style="cursor:pointer;{_QUIET}">{escape(summary)}</summary>'
        f'<pre style="white-space:pre-wrap;font-size:12px;margin:6px 0 0;{_TEXT}">{escape(details)}</pre></details>'
    )
    return (
        f'<div role="alert" style="border-left:4px solid {style.COLLECTIVE};background:var(--jp-layout-color2,#F5F6F8);'
        f'padding:8px 12px;font-size:13px;{_TEXT}"><b>{escape(what)}</b><br>{escape(cure)}'
        f"{folded if summary else ''}</div>"
    )


def explain(error: BaseException) -> tuple[str, str]:
    """A fault in plain words: what happened, and what to do."""
    match error:
        case RunStopped():
            return "Stopped.", "What was measured until then is shown. Press Run to start again."
        case HostLost():
            return f"Nothing is heard of host {error.host}.", "Press Run: fresh ranks start on the hosts that are left."
        case RankDied():
            return (
                f"Rank {error.rank} died during the run.",
                _of_hang(error) or "The other ranks were ended with it. Press Run: fresh ranks start by themselves.",
            )
        case RankTimeout():
            return (
                f"No answer in time from {several(error.ranks)}.",
                _of_hang(error)
                or "They may wait for a rank that never comes, or need longer. Try a smaller setting, then Run again.",
            )
        case RankError():
            return f"Rank {error.rank} raised an error.", "The ranks' own words below say where. Then press Run again."
        case NoRoom():
            return "Too little memory for these ranks.", str(error)
        case ClusterClosed():
            return "The pool was stopped.", "Press Start in the pool, or Run again: either starts fresh ranks."
        case ValueError() | TypeError():
            return "A setting cannot work.", str(error)
        case _:
            return f"{type(error).__name__}.", "Press Run to try again; the details are below."


def _of_hang(error: ClusterError) -> str:
    """Who waited for whom; empty where nobody did."""
    return "" if error.hang is None else f"{capital(error.hang.sentence)}. Press Run: fresh ranks start by themselves."
