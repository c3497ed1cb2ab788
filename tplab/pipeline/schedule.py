"""Schedules as data: who computes what, and when it sends and receives, one list of actions per rank.

The text is that of ``torch.distributed.pipelining``: ``2F0`` is the forward of micro-batch 0 on stage 2, ``1SEND_F2``
sends what stage 1 made of micro-batch 2 to the next stage. One CSV row per rank, so that torch can judge and run our
tables, and we can read its.

Why not torch's own classes: they need torch, which the notebook's kernel does without, and they build their tables
inside objects that already hold modules and a process group. Here a table is a value: it is built, printed, mutated,
checked, simulated and run by functions that know nothing of each other.

Letters: p ranks (``num_stages``, as in the article), v chunks per rank (``num_chunks``), p·v stages, m micro-batches.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tplab.checks import check_count, check_length, check_one_of
from tplab.files import read_text, write_text
from tplab.shown import shown


class Op(StrEnum):
    """What an action does; the letters are torch's."""

    F = "F"
    """Forward of one stage."""
    B = "B"
    """Whole backward: gradients of the input and of the weights, I and W in one."""
    I = "I"  # noqa: E741  (torch's letter)
    """Gradient of the stage's input, which the stage before waits for."""
    W = "W"
    """Gradient of the stage's weights, which nobody waits for."""
    SEND_F = "SEND_F"
    """Send the stage's output on: to the next stage, or from the last one (the sampled token) to the first."""
    RECV_F = "RECV_F"
    """Receive the stage's input."""
    SEND_B = "SEND_B"
    """Send the gradient of the stage's input to the stage before."""
    RECV_B = "RECV_B"
    """Receive the gradient of the stage's output from the stage after."""

    @property
    def is_compute(self) -> bool:
        """F, B, I or W."""
        return self in COMPUTE

    @property
    def is_send(self) -> bool:
        return self in (Op.SEND_F, Op.SEND_B)

    @property
    def is_recv(self) -> bool:
        return self in (Op.RECV_F, Op.RECV_B)


COMPUTE = frozenset({Op.F, Op.B, Op.I, Op.W})
OPS = tuple(Op)
"""All ops in the order of their codes: ``OPS[schedule.columns.op[i]]``."""
CODES = {op: code for code, op in enumerate(OPS)}
_BY_LETTERS = {op.value: op for op in OPS}

MAX_RANKS = 4096
"""Most ranks of a table."""
MAX_PAIRS = 1 << 20
"""Most stages times micro-batches: 64 ranks with 16 chunks each and 1,024 micro-batches."""
MAX_CELLS = 1 << 19
"""Most cells of a table in a file."""
_MOST_DIGITS = 9
_MOST_BYTES = 16 << 20

_CELL = re.compile(r"(\d+)(" + "|".join(sorted(OPS, key=len, reverse=True)) + r")(\d+)", re.ASCII)


class Action(NamedTuple):
    """One thing a rank does, for one stage and one micro-batch."""

    stage: int
    """Stage, 0 to p·v - 1."""
    op: Op
    micro_batch: int
    """Micro-batch id, 0 to m - 1."""

    def __str__(self) -> str:
        return f"{self.stage}{self.op.value}{self.micro_batch}"

    @classmethod
    def parse(cls, text: str) -> "Action":
        """The action that ``str`` writes as ``text``. Raises ``ValueError`` for anything else."""
        match = _CELL.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"text must be an action such as 2F0 or 1SEND_F2, stage, op ({', '.join(OPS)}) and micro-batch; "
                f"got {shown(text)}"
            )
        if max(len(match[1]), len(match[3])) > _MOST_DIGITS:
            raise ValueError(f"ids of stages and micro-batches have at most {_MOST_DIGITS} digits; got {shown(text)}")
        return cls(int(match[1]), _BY_LETTERS[match[2]], int(match[3]))


class MicroBatch(NamedTuple):
    """What a micro-batch of an inference pipeline is, and which others it needs."""

    phase: Literal["prefill", "decode"] = "prefill"
    kv_from: int | None = None
    """The micro-batch with the tokens just before: its keys and values must be in the cache of the same stage."""
    token_from: int | None = None
    """The micro-batch whose sampled tokens this one takes in: the back edge from the last stage to the first."""


class Columns(NamedTuple):
    """The actions of all ranks as arrays, rank after rank, each in its order; empty cells left out."""

    rank: NDArray[np.int64]
    step: NDArray[np.int64]
    """Position in the rank's list, empty cells counted."""
    stage: NDArray[np.int64]
    op: NDArray[np.int64]
    """Index into ``OPS``."""
    micro_batch: NDArray[np.int64]
    ops: frozenset[Op]
    """Ops that occur in the schedule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A table of actions. Any table: whether it is a right one is for ``tplab.pipeline.validate`` to say.

    Two forms: computations only, where what one rank needs of another travels as soon as it is made, or with
    communication (``tplab.pipeline.add_communication``), where it travels when the table says.
    """

    name: str
    """Name of the schedule, such as ``1f1b``."""
    num_stages: int
    """p, the number of ranks, each of which holds v of the p·v stages. (The article's word.)"""
    num_micro_batches: int
    """m: micro-batch ids are 0 to m - 1. A decoding ring gives every step of a batch an id of its own."""
    num_chunks: int = 1
    """v, chunks per rank."""
    ranks: tuple[tuple[Action | None, ...], ...]
    """One list per rank. ``None`` is a cell left empty, which means nothing: ranks go on when they can."""
    placement: Literal["loop", "v"] = "loop"
    """``loop``: stage s is on rank s mod p (interleaved). ``v``: down the ranks and back up, stage p on rank p - 1,
    as in ZB-V and DualPipe-V, with v = 2."""
    micro_batches: tuple[MicroBatch, ...] = ()
    """One per id in inference; empty in training. Not part of the text form: torch has no word for it."""
    _columns: Columns | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_count("num_stages", self.num_stages, least=1, most=MAX_RANKS)
        check_count("num_chunks", self.num_chunks, least=1, most=MAX_PAIRS // self.num_stages)
        check_count("num_micro_batches", self.num_micro_batches, least=1, most=MAX_PAIRS // self.total_stages)
        check_length("ranks", self.ranks, self.num_stages, "num_stages")
        check_one_of("placement", self.placement, ("loop", "v"))
        if self.micro_batches:
            check_length("micro_batches", self.micro_batches, self.num_micro_batches, "micro-batches")

    @property
    def total_stages(self) -> int:
        """p·v."""
        return self.num_stages * self.num_chunks

    def stage_to_rank(self, stage: int) -> int:
        """The rank that holds ``stage``."""
        lap, place = divmod(stage, self.num_stages)
        return place if self.placement == "loop" or lap % 2 == 0 else self.num_stages - 1 - place

    @property
    def is_inference(self) -> bool:
        """No action is a backward's."""
        return not (self.columns.ops & {Op.B, Op.I, Op.W})

    @property
    def has_communication(self) -> bool:
        """The table says when to send and receive."""
        return bool(self.columns.ops - COMPUTE)

    @property
    def has_back_edge(self) -> bool:
        """Some micro-batch takes in what another's last stage sampled."""
        return any(micro_batch.token_from is not None for micro_batch in self.micro_batches)

    @property
    def num_actions(self) -> int:
        """Cells that are not empty."""
        return len(self.columns.rank)

    @property
    def columns(self) -> Columns:
        """The table as arrays, made once."""
        if self._columns is None:
            object.__setattr__(self, "_columns", _columns_of(self.ranks))
        assert self._columns is not None
        return self._columns

    def actions(self) -> Iterator[tuple[int, int, Action]]:
        """Rank, position in the rank's list and action of every cell that is not empty."""
        for rank, row in enumerate(self.ranks):
            for step, action in enumerate(row):
                if action is not None:
                    yield rank, step, action

    def to_text(self) -> str:
        """Comma-separated, one line per rank; an empty cell is an empty field."""
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(
            ["" if action is None else str(action) for action in row] for row in self.ranks
        )
        return text.getvalue()

    def to_csv(self, path: str | Path) -> None:
        """Write the text form, as ``torch.distributed.pipelining`` reads it; the file is whole or not there.

        Raises ``OSError`` like ``files.replacing``.
        """
        write_text(path, self.to_text())

    @classmethod
    def from_text(
        cls,
        text: str,
        *,
        name: str = "table",
        num_micro_batches: int | None = None,
        num_chunks: int | None = None,
        micro_batches: Iterable[MicroBatch] = (),
    ) -> Self:
        """The table that ``to_text`` wrote: as many ranks as lines, placement as found.

        Args:
            name: of the schedule.
            num_micro_batches, num_chunks: m and v; by default the least that hold every id in the table.
            micro_batches: what the text does not carry of an inference schedule.

        Raises:
            ValueError: a cell that is no action, with its row and column; a table that is too large, with the action
                that makes it so.
        """
        rows = _read_rows(text)
        if not any(action for row in rows for action in row):
            raise ValueError("text must hold one line of actions per rank, such as 0F0,0B0; it holds no action")
        actions = [(rank, action) for rank, row in enumerate(rows) for action in row if action is not None]
        micro_batches = tuple(micro_batches)
        _, top = max(actions, key=lambda each: each[1].stage)
        _, last = max(actions, key=lambda each: each[1].micro_batch)
        stages, m = max(len(rows), top.stage + 1), last.micro_batch + 1
        if stages * m > MAX_PAIRS:
            raise ValueError(
                f"{top if stages > m else last} makes it a table of {stages:,} stages and {m:,} micro-batches, more "
                f"than the {MAX_PAIRS:,} pairs of the largest: is the id mistyped?"
            )
        looped = all(rank == action.stage % len(rows) for rank, action in actions)
        bent = {
            "name": name,
            "num_stages": len(rows),
            "num_chunks": num_chunks or top.stage // len(rows) + 1,
            "num_micro_batches": num_micro_batches or len(micro_batches) or m,
            "ranks": rows,
            "micro_batches": micro_batches,
        }
        schedule = cls(**bent, placement="v")  # type: ignore[arg-type]
        fits_v = not looped and all(rank == schedule.stage_to_rank(action.stage) for rank, action in actions)
        return schedule if fits_v else cls(**bent, placement="loop")  # type: ignore[arg-type]

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        *,
        name: str | None = None,
        num_micro_batches: int | None = None,
        num_chunks: int | None = None,
        micro_batches: Iterable[MicroBatch] = (),
    ) -> Self:
        """The table in a file, see :meth:`from_text`; it is called as the file is unless ``name`` is given.

        Args:
            path: the file.
            name: name of the schedule; by default the file's.
            num_micro_batches, num_chunks: m and v; by default what the table shows.
            micro_batches: in inference, what each needs of others: the text form has no word for it.

        Raises ``ValueError`` also for a file that is no text, and ``OSError`` for one that cannot be opened.
        """
        return cls.from_text(
            read_text(path, limit=_MOST_BYTES),
            name=Path(path).stem if name is None else name,
            num_micro_batches=num_micro_batches,
            num_chunks=num_chunks,
            micro_batches=micro_batches,
        )


def _read_rows(text: str) -> tuple[tuple[Action | None, ...], ...]:
    rows: list[tuple[Action | None, ...]] = []
    lines, num_cells = csv.reader(io.StringIO(text, newline="")), 0
    while True:
        try:
            cells = next(lines, None)
        except csv.Error as error:  # a cell of more than 128 KiB
            raise ValueError(f"row {len(rows) + 1} (rank {len(rows)}): {error}") from None
        if cells is None:
            return tuple(rows)
        num_cells += len(cells)
        if len(rows) == MAX_RANKS or num_cells > MAX_CELLS:
            raise ValueError(
                f"row {len(rows) + 1}: the table has more than {MAX_RANKS:,} rows, or {MAX_CELLS:,} cells: one row per "
                f"rank, one cell per action"
            )
        rows.append(_read_row(len(rows), cells))


def _read_row(row: int, cells: list[str]) -> tuple[Action | None, ...]:
    actions: list[Action | None] = []
    for column, cell in enumerate(cells):
        try:
            actions.append(Action.parse(cell) if cell.strip() else None)
        except ValueError as error:
            raise ValueError(f"row {row + 1} (rank {row}), column {column + 1}: {error}") from None
    return tuple(actions)


def _columns_of(ranks: tuple[tuple[Action | None, ...], ...]) -> Columns:
    lengths = np.array([len(row) for row in ranks], dtype=np.int64)
    cells = [action for row in ranks for action in row]
    rank = np.repeat(np.arange(len(ranks)), lengths)
    step = np.arange(len(cells)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    if None in cells:
        full = np.array([action is not None for action in cells], dtype=np.bool_)
        rank, step = rank[full], step[full]
    actions = [action for action in cells if action is not None]
    n, (stage, ops, micro_batch) = len(actions), (map(itemgetter(place), actions) for place in range(3))
    op = np.fromiter(map(CODES.__getitem__, ops), dtype=np.int64, count=n)
    return Columns(
        rank=rank.astype(np.int64),
        step=step.astype(np.int64),
        stage=_ids(stage, n),
        op=op,
        micro_batch=_ids(micro_batch, n),
        ops=frozenset(OPS[code] for code in np.flatnonzero(np.bincount(op, minlength=len(OPS)))),
    )


def _ids(ids: Iterable[int], n: int) -> NDArray[np.int64]:
    try:
        return np.fromiter(ids, dtype=np.int64, count=n)
    except OverflowError:
        raise ValueError("ranks hold an action whose stage or micro-batch has more than 64 bits") from None
