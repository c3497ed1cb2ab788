"""What can be wrong with a schedule, and how it is shown: the grid with the faulty cells marked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tplab.pipeline.schedule import OPS, Action, Schedule

_AROUND = 5
"""Steps, and ranks, that are shown on either side of the first fault."""
_LISTED = 5
"""Most faults spelled out in one message."""
MOST_FAULTS = 1000
"""Most faults that one check lists: a table may lack a million actions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing that is wrong."""

    kind: str
    """Short name of the sort of fault, such as ``duplicate``."""
    rank: int
    """Rank on which the fault is."""
    step: int | None
    """Position in the rank's list; None for an action that is missing."""
    action: Action
    """The action that is wrong or missing."""
    text: str
    """What is wrong, in a sentence."""

    def __str__(self) -> str:
        place = f"rank {self.rank}" if self.step is None else f"rank {self.rank}, step {self.step}"
        return f"{place}: {self.text}"


def action_at(schedule: Schedule, position: int) -> Action:
    """The action at an index into ``schedule.columns``."""
    columns = schedule.columns
    return Action(int(columns.stage[position]), OPS[columns.op[position]], int(columns.micro_batch[position]))


def fault_at(schedule: Schedule, kind: str, position: int, text: str) -> Fault:
    """The fault of the action at an index into ``schedule.columns``; ``text`` may name ``{action}``."""
    action, columns = action_at(schedule, position), schedule.columns
    rank, step = int(columns.rank[position]), int(columns.step[position])
    return Fault(kind=kind, rank=rank, step=step, action=action, text=text.format(action=action))


class ScheduleError(ValueError):
    """A schedule that cannot run, or not as it should. ``faults`` has all that was found; the message the first few
    and the table around the first, faulty cells in brackets."""

    def __init__(self, schedule: Schedule, faults: Sequence[Fault]) -> None:
        self.schedule, self.faults = schedule, tuple(faults)
        listed = [str(fault) for fault in faults[:_LISTED]]
        if len(faults) > _LISTED:
            at_least = "at least " if len(faults) >= MOST_FAULTS else ""
            listed.append(f"and {at_least}{len(faults) - _LISTED} more")
        super().__init__(f"schedule {schedule.name!r}: " + "\n  ".join(listed) + "\n\n" + grid_text(schedule, faults))

    def __reduce__(self) -> tuple[type["ScheduleError"], tuple[Schedule, tuple[Fault, ...]]]:
        return ScheduleError, (self.schedule, self.faults)  # so that it can come from a rank


def grid_text(schedule: Schedule, faults: Iterable[Fault] = (), *, around: int | None = _AROUND) -> str:
    """The table as people read it, a line per rank and a column per step, each faulty cell as ``[0F3]``, a missing one
    as ``[0F3?]`` at the end of its rank.

    Args:
        around: show so many steps and ranks on either side of the first fault; None: everything.
    """
    faults = list(faults)
    cells = [["." if action is None else str(action) for action in row] for row in schedule.ranks]
    for fault in faults:
        if fault.step is not None:
            text = str(schedule.ranks[fault.rank][fault.step])
            cells[fault.rank][fault.step] = f"[{text}]"
    for fault in faults[:_LISTED]:
        if fault.step is None:
            cells[fault.rank].append(f"[{fault.action}?]")
    ranks, steps = range(len(cells)), range(max(len(row) for row in cells))
    if faults and around is not None:
        rank = faults[0].rank
        step = len(cells[rank]) - 1 if faults[0].step is None else faults[0].step
        ranks = range(max(0, rank - around), min(len(cells), rank + around + 1))
        steps = range(max(0, step - around), min(steps.stop, step + around + 1))
    head = [str(step) for step in steps]
    body = [[cells[rank][step] if step < len(cells[rank]) else "" for step in steps] for rank in ranks]
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    names = ["step", *(f"rank {rank}" for rank in ranks)]
    margin = max(len(name) for name in names)
    left = "... " if steps.start > 0 else ""
    lines = [
        f"{name:<{margin}}  {left}{' '.join(f'{cell:<{width}}' for cell, width in zip(line, widths, strict=True))}"
        for name, line in zip(names, [head, *body], strict=True)
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"
