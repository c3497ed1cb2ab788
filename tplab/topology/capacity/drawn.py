"""An answer of ``fits`` as people see it: a bar of one GPU in a terminal, the bar in HTML, a table of GPUs."""

import textwrap
from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

from tplab.shown import as_GB
from tplab.topology.capacity.fit import Change, Fit, memory_text
from tplab.topology.machine.names import name_of

_NARROWEST, _WIDEST = 24, 100
"""Characters of a bar."""


class Part(NamedTuple):
    """A piece of the bar."""

    name: str
    nbytes: float
    block: str
    """Character of it, and where only ASCII is shown."""
    plain: str
    ansi: str
    """Colour in a terminal, and in HTML."""
    colour: str


_RESET: Final = "\x1b[0m"
_EDGE: Final = ("┃", "|")


class DrawnFit(Fit):
    """An answer that notebooks show as a bar."""

    def _repr_html_(self) -> str:
        return fit_html(self)


def parts_of(fit: Fit) -> list[Part]:
    """What the fullest GPU holds, and what is left of what the engine may take."""
    rank, known = fit.rank, fit.question is not None
    cache = f"cache of {'one user' if fit.users == 1 else f'{fit.users:,} users'}"
    return [
        Part("weights", rank.weights, "█", "#", "\x1b[34m", "#0B3D84"),
        *([Part(cache, rank.kv, "▓", "=", "\x1b[36m", "#74C1FB")] if known else []),
        Part("engine", rank.activations + rank.workspace, "▒", "+", "\x1b[33m", "#FFC813"),
        *([Part("free", rank.free, "·", ".", "\x1b[2m", "#8884")] if rank.free >= 0 else []),
    ]


def bar_text(fit: Fit, width: int, *, blocks: bool = True, colours: bool = False) -> str:
    """The bar and its legend, for a terminal.

    Args:
        fit: the answer.
        width: of the terminal, in characters.
        blocks: whether block characters can be shown; if not, plain ASCII.
        colours: whether escape sequences for colours can.
    """
    parts = parts_of(fit)
    cells = max(_NARROWEST, min(_WIDEST, width - 6))
    whole = max(fit.rank.usable, fit.rank.total)
    line, at, drawn = "", 0.0, 0
    edge = round(cells * fit.rank.usable / whole)
    for part in parts:
        at += part.nbytes
        until = min(cells, round(cells * at / whole))
        piece = (part.block if blocks else part.plain) * max(0, until - drawn)
        line += _dyed(piece, part.ansi, colours)
        drawn = max(drawn, until)
    over = fit.rank.free < 0
    legend = "  ".join(
        f"{_dyed(part.block if blocks else part.plain, part.ansi, colours)} {part.name} {as_GB(part.nbytes)}"
        for part in parts
    )
    left, right = ("▕", "▏") if blocks else ("[", "]")
    lines = [f"  {left}{line}{right}"]
    if over:
        mark = f"{'▲' if blocks else '^'} {as_GB(fit.rank.usable)}: {as_GB(-fit.rank.free)} too much"
        start = edge + 2 if edge + 2 + len(mark) <= cells + 4 else cells + 4 - len(mark)
        lines.append(" " * max(2, start) + mark)
    each = "Each GPU" if fit.tp * fit.pp > 1 else "The GPU"
    engine = fit.engine_name
    lines.append(f"  {legend}")
    last = f"{each} has {memory_text(fit.gpu)}; {engine} may take {as_GB(fit.rank.usable)}" + (
        "" if not fit.max_tokens else f", and its cache would hold {fit.max_tokens:,} tokens"
    )
    lines.append(textwrap.fill(last, max(cells + 4, 40), initial_indent="  ", subsequent_indent="  "))
    return "\n".join(lines)


def changes_text(fit: Fit) -> str:
    """What to change, a line each, with the engine's words; empty where there is nothing."""
    if not fit.changes:
        return ""
    wide = max(len(change.words) for change in fit.changes)
    rows = [f"  {each.words.ljust(wide)}  {_means(each)}".rstrip() for each in fit.changes]
    return "\n".join([f"{_heading(fit)}:", *rows])


def offers_text(answers: Sequence[Fit], *, blocks: bool = True) -> str:
    """A table: each kind of GPU, how many of them it takes, and what they hold."""
    rows = [("GPU", "memory", "GPUs", "layout", "users", "longest context")]
    for fit in answers:
        layout = " × ".join(f"{name} {n}" for name, n in (("TP", fit.tp), ("PP", fit.pp)) if n > 1) or "-"
        memory = f"{fit.gpu.memory_GB:.1f} GB"
        if fit.fits is False:
            rows.append((name_of(fit.gpu.name), memory, f"more than {fit.gpus}", "-", "-", "-"))
        else:
            users = "?" if fit.max_users is None else f"{fit.max_users:,}"
            longest = "?" if fit.max_context is None else f"{fit.max_context:,}"
            rows.append((name_of(fit.gpu.name), memory, str(fit.tp * fit.pp), layout, users, longest))
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i in (0, 3) else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, wide, strict=True))
        )
        for row in rows
    ]
    text = "\n".join(line.rstrip() for line in lines)
    return text if blocks else text.replace("×", "x")


def fit_html(fit: Fit) -> str:
    """The sentence, the bar and what to change. Everything that came from outside is escaped."""
    whole = max(fit.rank.usable, fit.rank.total)
    edge = 100 * fit.rank.usable / whole
    pieces, legend = [], []
    for part in parts_of(fit):
        said = f"{part.name} {as_GB(part.nbytes)}"
        pieces.append(
            f'<div title="{escape(said)}" style="width:{100 * part.nbytes / whole:.2f}%;background:{part.colour}">'
            f"</div>"
        )
        legend.append(
            f'<span style="white-space:nowrap;margin-right:1em"><span style="display:inline-block;width:.8em;'
            f'height:.8em;background:{part.colour};border:1px solid #8888"></span> {escape(said)}</span>'
        )
    if fit.rank.free < 0:
        legend.append(f'<span style="white-space:nowrap">{as_GB(-fit.rank.free)} too much</span>')
    mark = (
        f'<div style="position:absolute;left:{edge:.2f}%;top:-3px;bottom:-3px;border-left:3px solid #B21405;'
        f'outline:1px solid #fff" title="{escape(as_GB(fit.rank.usable))}"></div>'
        if edge < 100
        else ""
    )
    rows = "".join(f"<li>{escape(change.words)}{_aside(change)}</li>" for change in fit.changes)
    ways = f"<div>{_heading(fit)}:</div><ul style='margin:.2em 0'>{rows}</ul>" if rows else ""
    notes = "".join(f"<div style='opacity:.75;font-size:90%'>{escape(note)}</div>" for note in fit.notes)
    return (
        f'<div style="max-width:48em"><div style="margin-bottom:.6em">{escape(fit.sentence)}</div>'
        f'<div style="position:relative"><div style="display:flex;height:1.6em;border:1px solid #8888">'
        f'{"".join(pieces)}</div>{mark}</div><div style="margin:.5em 0">{" ".join(legend)}</div>{ways}{notes}</div>'
    )


def _heading(fit: Fit) -> str:
    return "What to change, each by itself enough" + (" for the weights" if fit.question is None else "")


def _aside(change: Change) -> str:
    flag = f' <code style="white-space:nowrap">{escape(change.flag)}</code>' if change.flag else ""
    return flag + (f"; {escape(change.needs)}" if change.needs else "")


def _means(change: Change) -> str:
    return "; ".join(filter(None, (change.flag, change.needs)))


def _dyed(text: str, ansi: str, colours: bool) -> str:
    return f"{ansi}{text}{_RESET}" if colours and text else text
