"""The text of a schedule: one row per rank, one cell per action, as torch, spreadsheets and programs write it.

torch's tables have words for what costs nothing here, because parameters are whole on every rank: ``0UNSHARD``,
``0RESHARD`` and ``0REDUCE_GRAD`` (of FSDP, and of data parallelism) are left out. ``(3F1;0B0)OVERLAP_F_B``, by which
DualPipe-V runs a forward and a backward at once, is read as the two, one after the other. Notes say how many.

Source: ``_Action`` and ``_dump_csv`` in torch/distributed/pipelining/schedules.py, torch 2.11 to 2.13.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from tplab.frames import separator_of, separator_said
from tplab.pipeline.actions import Action
from tplab.shown import listed, shown

MAX_RANKS = 4096
"""Most ranks of a table."""
MAX_CELLS = 1 << 19
"""Most cells of a table in a file."""
_SAMPLE = 1 << 16  # characters that tell what separates
_LONGEST_HINTED = 1000
_PRINTED = re.compile(r"Rank \d+:? +\S|Step +\d+:")
_BRACKETS = re.compile(r"\([^()]*\)")
_FREE = re.compile(r"\d+(UNSHARD|RESHARD|REDUCE_GRAD)\d*", re.ASCII)
_PAIR = re.compile(r"\(([^()]*)\)OVERLAP_F_B", re.ASCII)

Row = tuple[Action | None, ...]


class Cell(NamedTuple):
    """Where an action stands in the text."""

    action: Action
    rank: int
    column: int
    """Counted from 0, as the rank."""

    def __str__(self) -> str:
        return f"row {self.rank + 1} (rank {self.rank}), column {self.column + 1}: {self.action}"


class Written(NamedTuple):
    """What a text holds."""

    rows: tuple[Row, ...]
    """One per rank."""
    cells: list[Cell]
    """Every action, rank after rank."""
    notes: tuple[str, ...]
    """What was left out, and what reads otherwise here."""


def write_table(rows: Iterable[Row]) -> str:
    """Comma-separated, one line per rank; an empty cell is an empty field, and ``""`` a rank without any action."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(
        ["" if action is None else str(action) for action in row] if any(row) else [""] for row in rows
    )
    return text.getvalue()


def read_table(text: str) -> Written:
    """The actions behind a text whose cells are separated by commas, semicolons or tabs. Lines without anything are no
    rows, nor are rows of empty cells at the end, which spreadsheets add; ``""`` is a rank without an action.

    Raises ``ValueError`` for a cell that is no action, with its row and column, and for too many cells.
    """
    raw = _raw_rows(text)
    free: Counter[str] = Counter()
    rows, cells = list[Row](), list[Cell]()
    for rank, fields in enumerate(raw):
        row: list[Action | None] = []
        for column, field in enumerate(fields):
            try:
                actions = _actions_in(field, free)
            except ValueError as error:
                raise ValueError(
                    f"row {rank + 1} (rank {rank}), column {column + 1}: {error}{_hint(raw, rank, column)}"
                ) from None
            row += actions
            cells += [Cell(action, rank, column) for action in actions if action is not None]
        rows.append(tuple(row))
    if not cells:
        raise ValueError("text must hold one line of actions per rank, such as 0F0,0B0; it holds no action")
    return Written(tuple(rows), cells, tuple(_notes(free)))


def _raw_rows(text: str) -> list[list[str]]:
    text = text.removeprefix("\ufeff")
    first, _, rest = text.partition("\n")
    said = separator_said(first)
    if said is not None:
        text = rest
    separator = said or separator_of(text[:_SAMPLE].splitlines())
    if separator == ";":  # ... which stands inside OVERLAP_F_B, too
        text = _BRACKETS.sub(lambda found: found[0].replace(";", "|"), text)
    lines, rows, num_cells = csv.reader(io.StringIO(text, newline=""), delimiter=separator), list[list[str]](), 0
    while True:
        try:
            fields = next(lines, None)
        except csv.Error as error:  # a cell of more than 128 KiB
            raise ValueError(f"row {len(rows) + 1} (rank {len(rows)}): {error}") from None
        if fields is None:
            break
        if not fields or (len(fields) == 1 and fields[0].isspace()):
            continue
        num_cells += len(fields)
        if len(rows) == MAX_RANKS or num_cells > MAX_CELLS:
            raise ValueError(
                f"row {len(rows) + 1}: the table has more than {MAX_RANKS:,} rows, or {MAX_CELLS:,} cells: one row per "
                f"rank, one cell per action"
            )
        rows.append([] if fields == [""] else fields)
    while rows and len(rows[-1]) > 1 and not any(map(str.strip, rows[-1])):
        rows.pop()
    return rows


def _actions_in(field: str, free: Counter[str]) -> list[Action | None]:
    """What a cell says: an action, the two of a pair, or nothing; ``free`` counts torch's other words."""
    text = field.strip()
    if text in ("", "None"):
        return [None]
    if word := _FREE.fullmatch(text):
        free[word[1]] += 1
        return []
    pair = _PAIR.fullmatch(text)
    if pair is None:
        return [Action.parse(text)]
    free["OVERLAP_F_B"] += 1
    both = [Action.parse(part) for part in re.split(r"[;|]", pair[1])]
    if len(both) != 2 or not all(action.op.is_compute for action in both):
        raise ValueError(f"OVERLAP_F_B holds two computations, such as (3F1;0B0)OVERLAP_F_B; got {shown(text)}")
    return [*both]


def _notes(free: Counter[str]) -> list[str]:
    pairs = free.pop("OVERLAP_F_B", 0)
    notes = []
    if free:
        words = listed(f"{count} {word}" for word, count in sorted(free.items()))
        notes.append(f"left out, because nothing is sharded over data-parallel ranks here: {words}")
    if pairs:
        notes.append(f"read as a forward and then a backward, which do not overlap here: {pairs} OVERLAP_F_B")
    return notes


def _hint(raw: list[list[str]], rank: int, column: int) -> str:
    """What the cell may be instead, where it is no action."""
    cell = raw[rank][column][:_LONGEST_HINTED].strip("| ")
    parts, written = re.split(r"[\s|]+", cell), "".join(cell.split()).upper()
    if len(parts) > 1 and all(map(_is_action, parts)):
        return ". Separate the actions by commas"
    if _PRINTED.match(cell.lstrip()):
        return ". That is an order as torch prints it: give the file that its schedule's _dump_csv writes"
    if _is_action(written):
        return f". It is written {written}"
    if rank == 0 and len(raw) > 1 and not any(map(_is_action, raw[0])) and any(map(_is_action, raw[1])):
        return ". No cell of row 1 is an action: leave a header out, every row is a rank"
    if column == 0 and all(row and not _is_action(row[0]) and any(map(_is_action, row[1:])) for row in raw):
        return ". No cell of column 1 is an action: leave an index out, every cell is an action"
    return ""


def _is_action(field: str) -> bool:
    try:
        return bool(_actions_in(field, Counter()) != [None])
    except ValueError:
        return False
