"""What a wrong table may be instead: one mistyped id, ids from 1, stages dealt out in their own way, or on its side.

Looked at once faults of cells are found, because each of these makes hundreds of them, and every one of those blames a
cell that is right.
"""

import numpy as np
from numpy.typing import NDArray

from tplab.pipeline.faults import Fault, fault_at
from tplab.pipeline.schedule import Schedule
from tplab.shown import listed

_RANKS_NAMED = 8


def misread(schedule: Schedule) -> Fault | None:
    """The one thing that explains the others; None where nothing does."""
    return _mistyped(schedule) or _from_one(schedule) or _on_its_side(schedule) or _placement(schedule)


def _mistyped(schedule: Schedule) -> Fault | None:
    """An id so large that most of those below it do not occur. (One that the schedule has no room for is out of
    range.)"""
    columns = schedule.columns
    for name, ids, room in (
        ("stage", columns.stage, schedule.total_stages),
        ("micro-batch", columns.micro_batch, schedule.num_micro_batches),
    ):
        largest, occur = int(ids.max(initial=-1)), len(np.unique(ids))
        if 2 * occur < largest + 1 <= room:
            text = f"{{action}}: of {largest + 1:,} {name} ids up to its own, {occur} occur: is it mistyped?"
            return fault_at(schedule, "mistyped", int(ids.argmax()), text)
    return None


def _from_one(schedule: Schedule) -> Fault | None:
    """Ids that start at 1, all of them. (A first rank without actions lacks stage 0 for that.)"""
    columns = schedule.columns
    for name, ids in (("stage", columns.stage), ("micro-batch", columns.micro_batch)):
        there = np.unique(ids)
        if len(there) and there[0] == 1 and there[-1] == len(there) and columns.rank[0] == 0:
            text = f"{{action}} is of the lowest {name}, and there is no {name} 0: do ids start at 1? They start at 0"
            return fault_at(schedule, "counted from 1", int(ids.argmin()), text)
    return None


def _on_its_side(schedule: Schedule) -> Fault | None:
    """Each stage in one column, and in several rows: one column per rank, and time runs down."""
    columns = schedule.columns
    if _single(columns.stage, columns.rank) or not _single(columns.stage, columns.step) or not columns.step.any():
        return None
    text = (
        f"stage {columns.stage[0]} stands in one column and several rows: is there a column per rank, and a row per "
        f"step? Transpose it: a row per rank, a cell per action"
    )
    return fault_at(schedule, "transposed", 0, text)


def _placement(schedule: Schedule) -> Fault | None:
    """Each stage on a rank of its own, but not on the one where ``loop`` or ``v`` has it."""
    columns, p = schedule.columns, schedule.num_stages
    stages = np.unique(columns.stage)
    if not len(stages) or len(stages) != stages[-1] + 1 or not _single(columns.stage, columns.rank):
        return None
    homes = np.array([columns.rank[columns.stage == stage][0] for stage in stages])
    expected = np.array([schedule.stage_to_rank(stage) for stage in stages.tolist()])
    if len(stages) == schedule.total_stages and (homes == expected).all():
        return None
    held = [listed(map(str, stages[homes == rank].tolist()), 4) or "none" for rank in range(min(p, _RANKS_NAMED))]
    listing = "; ".join(f"rank {rank} has {each}" for rank, each in enumerate(held))
    text = (
        f"this placement of stages is not supported: {listing}{'; ...' if p > _RANKS_NAMED else ''}. All ranks must "
        f"have equally many: stage s on rank s mod {p} (loop), or two each, down the ranks and back up (v)"
    )
    return fault_at(schedule, "placement", int((columns.rank == homes[-1]).argmax()), text)


def _single(keys: NDArray[np.int64], values: NDArray[np.int64]) -> bool:
    """Whether each key has one value."""
    return len(np.unique(np.stack([keys, values]), axis=1).T) == len(np.unique(keys))
