"""Tables that a user gives as CSV, as spreadsheets and programs of all countries write them.

Excel separates by semicolons and writes ``1,5`` where the comma is the decimal mark, which is half of Europe; pastes
out of it are separated by tabs. What a comma means is read off the file, or asked: never guessed.
"""

import csv
import os
import re
from collections.abc import Iterable
from io import StringIO
from typing import TYPE_CHECKING, Any

from tplab.files import read_text
from tplab.shown import listed, shown

if TYPE_CHECKING:
    import pandas as pd

MAX_COLUMNS = 1000
"""Most columns of a table."""
_MOST_TABLE_BYTES = 8 << 20
_HINT = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]*"|\([^()]*\)')
_IN_CELL = r'(?:(?<=[;\t])|^)[ ]*"?(?:{})"?[ ]*(?=[;\t]|$)'
_COMMA = re.compile(_IN_CELL.format(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?"), re.MULTILINE)
_POINT = re.compile(_IN_CELL.format(r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?"), re.MULTILINE)
_GROUPED = re.compile(
    _IN_CELL.format(r"[+-]?\d{1,3}(?:(?:,\d{3}){2,}|(?:\.\d{3}){2,}|(?:,\d{3})+\.\d+|(?:\.\d{3})+,\d+)"), re.MULTILINE
)
_QUOTED_GROUPS = re.compile(r'"\d{1,3}(?:,\d{3})+(?:\.\d+)?"')


def separator_of(lines: Iterable[str]) -> str:
    """What separates the cells of ``lines``: comma, semicolon or tab, whichever is most frequent outside of quotation
    marks and parentheses; a comma where none is."""
    text = _QUOTED.sub("", "\n".join(lines))
    return max(",;\t", key=text.count)


def separator_said(line: str) -> str | None:
    """What separates the cells by Excel's own first line (``sep=;``); None where that is not what ``line`` says."""
    said = _HINT.fullmatch(line)
    return said[1] if said else None


def read_frame(path: str | os.PathLike[str], *, comment: str | None = None, rows: int | None = None) -> "pd.DataFrame":
    """The table in a CSV file, or its first ``rows``; lines that begin with ``comment`` are left out.

    Cells are separated by commas, semicolons or tabs, as the header is. Empty columns at the end are left out.

    Raises ``ValueError`` that names the file, also where it cannot be opened, and where a number may mean two things.
    """
    import pandas as pd

    try:
        text = read_text(path, limit=_MOST_TABLE_BYTES)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    lines = [line for line in text.split("\n") if line.strip() and not (comment and line.startswith(comment))]
    said = separator_said(lines[0]) if lines else None
    if said:
        del lines[0]
        text = "\n".join(lines)
    separator = said or separator_of(lines[:1])
    try:
        columns, cells = (len(next(csv.reader([line], delimiter=separator))) for line in [*lines[:2], "", ""][:2])
    except csv.Error as error:  # a cell of more than 128 KiB
        raise ValueError(f"{path} cannot be read as a table: {error}") from None
    if columns > MAX_COLUMNS:
        raise ValueError(f"{path} cannot be read as a table: it has {columns:,} columns, more than {MAX_COLUMNS:,}")
    decimal = decimal_of(path, "\n".join(lines), separator)
    options: dict[str, Any] = {"comment": comment, "nrows": rows, "sep": separator, "decimal": decimal}
    try:
        frame: pd.DataFrame = pd.read_csv(StringIO(text), skipinitialspace=True, **options)
        if lines and cells > columns and len(frame):  # pandas takes the first cells for names of rows
            if not frame.iloc[:, columns - cells :].isna().all(axis=None):
                raise ValueError(f"line 2 has {cells:,} cells, the header {columns:,}")
            frame = pd.read_csv(StringIO(text), skipinitialspace=True, index_col=False, **options)
    except (ValueError, OverflowError, MemoryError) as error:  # empty, or rows of unequal length
        raise ValueError(f"{path} cannot be read as a table: {str(error).strip()}") from None
    empty = [name for name in frame.columns if str(name).startswith("Unnamed: ") and frame[name].isna().all()]
    return frame.drop(columns=empty).rename(columns=lambda name: str(name).strip())


def decimal_of(path: str | os.PathLike[str], text: str, separator: str) -> str:
    """The decimal mark of the table in ``text``, whose file is ``path``. Raises ``ValueError`` where a comma or a point
    may be something else."""
    if separator == ",":
        if doubtful := _QUOTED_GROUPS.search(text):
            raise ValueError(f"{path}: {doubtful[0]} may be a number in thousands or with decimals: write it plainly")
        return "."
    grouped, comma, point = _GROUPED.search(text), _COMMA.search(text), _POINT.search(text)
    if grouped:
        raise ValueError(f"{path}: {shown(grouped[0].strip())} has its thousands marked: write it plainly")
    if comma and point:
        both = listed(shown(found[0].strip(' "')) for found in (comma, point))
        raise ValueError(f"{path}: {both} stand in one table: write all decimals with a point, or all with a comma")
    return "," if comma else "."
