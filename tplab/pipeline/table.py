"""A schedule seen by stage and micro-batch: where each action stands, and what each waits for, as arrays.

What ``validate`` and ``simulate`` share. Positions are indices into ``schedule.columns``, rank after rank, so that for
two actions of one rank the smaller is the earlier.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tplab.pipeline.schedule import CODES, OPS, Op, Schedule

NONE = -1
"""Marks, in arrays of positions, that there is no such action."""

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Table:
    """Positions by op, stage and micro-batch, and which messages the schedule calls for."""

    at: dict[Op, Ints]
    """Op -> array (p·v, m) of the action's position, the first one if there are several."""
    inside: Bools
    """Whether the stage and micro-batch of each action are in range. The others are not in ``at``."""
    again: Bools
    """Whether the same action stands earlier, for each action."""
    rank_of: Ints
    """Rank of each stage."""
    token_from: Ints
    """The micro-batch whose sampled tokens each micro-batch takes in; ``NONE`` without one."""
    next_step: Ints
    """The micro-batch that takes in each one's sampled tokens: the inverse of ``token_from``."""
    kv_from: Ints
    """The micro-batch whose keys and values come just before each one's; ``NONE`` without one."""

    trains: bool
    """Whether there are backwards, so that gradients are messages too."""

    @property
    def backward(self) -> Ints:
        """(p·v, m): position of B, or of I where there is no B."""
        return np.where(self.at[Op.B] != NONE, self.at[Op.B], self.at[Op.I])

    def needs(self, op: Op) -> Bools:
        """(p·v, m): whether ``op``, a SEND or RECV, must be there for stage and micro-batch."""
        stages, m = self.at[op].shape
        crosses = self.rank_of[:-1] != self.rank_of[1:]
        needed = np.zeros((stages, m), dtype=np.bool_)
        if op in (Op.SEND_B, Op.RECV_B) and not self.trains:
            return needed
        if op in (Op.RECV_F, Op.SEND_B):
            needed[1:] = crosses[:, None]
        else:
            needed[:-1] = crosses[:, None]
        if self.rank_of[0] != self.rank_of[-1]:
            if op is Op.RECV_F:
                needed[0] = self.token_from != NONE
            elif op is Op.SEND_F:
                needed[-1] = self.next_step != NONE
        return needed

    def consumer(self, op: Op, of_op: Op) -> Ints:
        """(p·v, m): position of action ``of_op`` at the stage that gets what ``op`` of this stage and micro-batch
        makes or sends: the next stage, forward, the one before, backward; stage 0 of the next step for the last one."""
        target = self.backward if of_op in (Op.B, Op.I) else self.at[of_op]
        result = np.full_like(target, NONE)
        if op in (Op.F, Op.SEND_F):
            result[:-1] = target[1:]
            result[-1] = np.where(self.next_step != NONE, target[0, self.next_step], NONE)
        else:
            result[1:] = target[:-1]
        return result


def table_of(schedule: Schedule) -> Table:
    """The schedule's :class:`Table`; of any schedule, however wrong."""
    stages, m = schedule.total_stages, schedule.num_micro_batches
    columns = schedule.columns
    stage, micro_batch, op = columns.stage, columns.micro_batch, columns.op
    inside = (stage >= 0) & (stage < stages) & (micro_batch >= 0) & (micro_batch < m)
    key = (op * stages + np.where(inside, stage, 0)) * m + np.where(inside, micro_batch, 0)
    flat = np.full(len(OPS) * stages * m, NONE, dtype=np.int64)
    backwards = np.flatnonzero(inside)[::-1]
    flat[key[backwards]] = backwards  # the last assignment stays: the first action
    again = inside & (flat[key] != np.arange(len(op)))
    by_op = flat.reshape(len(OPS), stages, m)
    token_from = _ids([micro_batch.token_from for micro_batch in schedule.micro_batches], m)
    next_step = np.full(m, NONE, dtype=np.int64)
    taken = np.flatnonzero(token_from != NONE)
    next_step[token_from[taken]] = taken
    return Table(
        at={op: by_op[CODES[op]] for op in OPS},
        inside=inside,
        again=again,
        rank_of=np.array([schedule.stage_to_rank(stage) for stage in range(stages)], dtype=np.int64),
        token_from=token_from,
        next_step=next_step,
        kv_from=_ids([micro_batch.kv_from for micro_batch in schedule.micro_batches], m),
        trains=not schedule.is_inference,
    )


def _ids(ids: list[int | None], m: int) -> Ints:
    """Ids as an array; a missing id, or one out of range, is ``NONE``."""
    values = np.array([NONE if i is None or not 0 <= i < m else i for i in ids], dtype=np.int64)
    return values if len(values) else np.full(m, NONE, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Arrows:
    """Per action: what it waits for, and which link it puts a message on."""

    first: list[int]
    """Position of each rank's first action; the last entry is the number of all actions."""
    waits_for: Ints
    """Position of the action that must end, or whose message must arrive, before each action; ``NONE`` without one."""
    link: Ints
    """Link ``from·p + to`` of the message that leaves when each action ends; ``NONE`` without one."""


def arrows_of(schedule: Schedule, table: Table, *, rendezvous: bool) -> Arrows:
    """What waits for what in a schedule without faults in its cells.

    Args:
        rendezvous: a SEND does not go on before its RECV has been posted (a *blocking* send); otherwise it always does.
    """
    columns, p = schedule.columns, schedule.num_stages
    n = len(columns.op)
    waits_for = np.full(n, NONE, dtype=np.int64)
    receiver = np.full(n, NONE, dtype=np.int64)  # rank the message goes to
    written = schedule.has_communication
    for forward in (True, False):
        made = table.at[Op.F] if forward else table.backward
        taken = table.consumer(Op.F, Op.F) if forward else table.consumer(Op.B, Op.B)
        recv = Op.RECV_F if forward else Op.RECV_B
        send = Op.SEND_F if forward else Op.SEND_B
        pairs = (made != NONE) & (taken != NONE)
        source, target = made[pairs], taken[pairs]
        crosses = columns.rank[source] != columns.rank[target]
        if written:
            sends, recvs = table.at[send], table.consumer(send, recv)
            source = np.where(crosses, sends[pairs], source)
            posted = (sends != NONE) & (recvs != NONE)
            receiver[sends[posted]] = columns.rank[recvs[posted]]
            if rendezvous:
                waits_for[sends[posted]] = recvs[posted]
        else:
            receiver[source[crosses]] = columns.rank[target[crosses]]
        waits_for[target] = source
    first = np.searchsorted(columns.rank, np.arange(p + 1)).tolist()
    link = np.where(receiver != NONE, columns.rank * p + receiver, NONE)
    return Arrows(first=first, waits_for=waits_for, link=link)
