"""Schedules as data: who computes what, and when it sends and receives, one list of actions per rank.

The text is that of ``torch.distributed.pipelining``: ``2F0`` is the forward of micro-batch 0 on stage 2, ``1SEND_F2``
sends what stage 1 made of micro-batch 2 to the next stage. One CSV row per rank, so that torch can judge and run our
tables, and we can read its.

Why not torch's own classes: they need torch, which the notebook's kernel does without, and they build their tables
inside objects that already hold modules and a process group. Here a table is a value: it is built, printed, mutated,
checked, simulated and run by functions that know nothing of each other.

Letters: p ranks (``num_stages``, as in the article), v chunks per rank (``num_chunks``), p·v stages, m micro-batches.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tplab.checks import check_count, check_length, check_one_of
from tplab.files import read_text, write_text
from tplab.pipeline.actions import CODES as CODES
from tplab.pipeline.actions import COMPUTE as COMPUTE
from tplab.pipeline.actions import OPS as OPS
from tplab.pipeline.actions import Action as Action
from tplab.pipeline.actions import Op as Op
from tplab.pipeline.schedule_text import MAX_RANKS, read_table, write_table

MAX_PAIRS = 1 << 20
"""Most stages times micro-batches: 64 ranks with 16 chunks each and 1,024 micro-batches."""
_MOST_BYTES = 16 << 20


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
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What the text that it was read from says and this does not; none for a schedule that was built here."""
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
        """Comma-separated, one line per rank; an empty cell is an empty field, and ``""`` a rank without actions."""
        return write_table(self.ranks)

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
        """The table that ``to_text`` or torch wrote: as many ranks as lines, placement as found.

        Cells are separated by commas, semicolons or tabs. Of torch's words, those that cost nothing here are left out,
        and an overlapped pair is two actions: ``notes`` says so.

        Args:
            name: of the schedule.
            num_micro_batches, num_chunks: m and v; by default the least that hold every id in the table.
            micro_batches: what the text does not carry of an inference schedule.

        Raises:
            ValueError: a cell that is no action, or whose id makes the table too large, with its row and column.
        """
        rows, cells, notes = read_table(text)
        micro_batches, p = tuple(micro_batches), len(rows)
        top = max(cells, key=lambda cell: cell.action.stage)
        last = max(cells, key=lambda cell: cell.action.micro_batch)
        stages, m = max(p, top.action.stage + 1), last.action.micro_batch + 1
        if stages * m > MAX_PAIRS:
            raise ValueError(
                f"{top if stages > m else last} makes it a table of {stages:,} stages and {m:,} micro-batches, more "
                f"than the {MAX_PAIRS:,} pairs of the largest: is the id mistyped?"
            )
        bent = {
            "name": name,
            "num_stages": p,
            "num_chunks": num_chunks or top.action.stage // p + 1,
            "num_micro_batches": num_micro_batches or len(micro_batches) or m,
            "ranks": rows,
            "micro_batches": micro_batches,
            "notes": notes,
        }
        found = cls(**bent, placement="loop"), cls(**bent, placement="v")  # type: ignore[arg-type]
        fitting = (each for each in found if all(cell.rank == each.stage_to_rank(cell.action.stage) for cell in cells))
        return next(fitting, found[0])

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
