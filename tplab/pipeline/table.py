"""A schedule seen by stage and micro-batch: where each action stands, and what each waits for, as arrays.

What ``validate`` and ``simulate`` share. Positions are indices into ``schedule.columns``, rank after rank, so that for
two actions of one rank the smaller is the earlier.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tplab.pipeline.schedule import CODES, OPS, Action, Op, Schedule

NONE = -1
"""Marks, in arrays of positions, that there is no such action."""

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Flow:
    """Who takes in what a stage makes of a micro-batch, and whether that is a message: the rule, written once.

    A forward's output goes to the next stage; what the last stage makes, sampled tokens, goes to stage 0 as the input
    of the micro-batch whose ``token_from`` it is. A backward's gradient goes to the stage before. To another rank it
    goes as a message, a SEND and a RECV; between stages of one rank it is at hand. Who makes a gradient is written as
    B, whether the table has B or I there.
    """

    def __init__(self, schedule: Schedule) -> None:
        stages, m = schedule.total_stages, schedule.num_micro_batches
        self.rank_of: Ints = np.array([schedule.stage_to_rank(stage) for stage in range(stages)], dtype=np.int64)
        """Rank of each stage."""
        token_from = _ids([micro_batch.token_from for micro_batch in schedule.micro_batches], m)
        taken = np.flatnonzero(token_from != NONE)
        self._next_step = np.full(m, NONE, dtype=np.int64)
        self._next_step[token_from[taken]] = taken
        self._shape = stages, m
        self._others: dict[bool, tuple[Ints, Ints]] = {}

    def by_maker(self, of_taker: Ints, *, forward: bool) -> Ints:
        """(p·v, m): for whoever makes something what ``of_taker`` has for the stage and micro-batch that take it in;
        ``NONE`` where nobody does."""
        result = np.full_like(of_taker, NONE)
        if forward:
            result[:-1] = of_taker[1:]
            result[-1] = np.where(self._next_step != NONE, of_taker[0, self._next_step], NONE)
        else:
            result[1:] = of_taker[:-1]
        return result

    def sends(self, *, forward: bool) -> Bools:
        """(p·v, m): whether what is made goes to another rank."""
        ranks = np.repeat(self.rank_of[:, None], self._shape[1], axis=1)
        takers = self.by_maker(ranks, forward=forward)
        crosses: Bools = (takers != NONE) & (takers != ranks)
        return crosses

    def receives(self, *, forward: bool) -> Bools:
        """(p·v, m): whether what is taken in comes from another rank."""
        result = np.zeros(self._shape, dtype=np.bool_)
        result.flat[self._pairs(forward)[0][self.sends(forward=forward)]] = True
        return result

    def taker(self, made: Action) -> Action | None:
        """The computation that takes in what F, B or I makes; None where nobody does."""
        return None if made.op is Op.W else self._other(made, self._pairs(made.op is Op.F)[0])

    def maker(self, taker: Action) -> Action | None:
        """The computation whose result F, B or I takes in; None for an input of the pipeline, or a loss."""
        return None if taker.op is Op.W else self._other(taker, self._pairs(taker.op is Op.F)[1])

    def message(self, made: Action) -> tuple[Action, Action] | None:
        """The SEND and the RECV of what F, B or I makes; None where it stays on its rank."""
        taker = self.taker(made)
        if taker is None or self.rank_of[made.stage] == self.rank_of[taker.stage]:
            return None
        send, recv = (Op.SEND_F, Op.RECV_F) if made.op is Op.F else (Op.SEND_B, Op.RECV_B)
        return made._replace(op=send), taker._replace(op=recv)

    def made(self, message: Action) -> Action:
        """The computation whose result a SEND sends or a RECV receives."""
        computation = message._replace(op=Op.F if message.op in (Op.SEND_F, Op.RECV_F) else Op.B)
        maker = computation if message.op.is_send else self.maker(computation)
        assert maker is not None, f"{message} receives from nobody"
        return maker

    def recv_of(self, send: Action) -> Action:
        """The RECV that takes in what ``send`` sends."""
        message = self.message(self.made(send))
        assert message is not None, f"nobody receives what {send} sends"
        return message[1]

    def links(self, schedule: Schedule) -> list[tuple[int, int]]:
        """Directed pairs of ranks between which the table sends something, sorted."""
        sends = [action for _, _, action in schedule.actions() if action.op.is_send]
        return sorted({(int(self.rank_of[s.stage]), int(self.rank_of[self.recv_of(s).stage])) for s in sends})

    def _pairs(self, forward: bool) -> tuple[Ints, Ints]:
        """(p·v, m), twice: index of the taker for each maker, of the maker for each taker; ``NONE``."""
        if forward not in self._others:
            index = np.arange(self._shape[0] * self._shape[1]).reshape(self._shape)
            takers, makers = self.by_maker(index, forward=forward), np.full_like(index, NONE)
            makers.flat[takers[takers != NONE]] = index[takers != NONE]
            self._others[forward] = takers, makers
        return self._others[forward]

    def _other(self, action: Action, others: Ints) -> Action | None:
        stages, m = self._shape
        if not (0 <= action.stage < stages and 0 <= action.micro_batch < m):
            raise ValueError(f"{action} is not within stages 0 to {stages - 1}, micro-batches 0 to {m - 1}")
        other = int(others[action.stage, action.micro_batch])
        return None if other == NONE else Action(other // m, Op.F if action.op is Op.F else Op.B, other % m)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Table:
    """Positions by op, stage and micro-batch, and which messages the schedule calls for."""

    at: dict[Op, Ints]
    """Op -> array (p·v, m) of the action's position, the first one if there are several."""
    inside: Bools
    """Whether the stage and micro-batch of each action are in range. The others are not in ``at``."""
    again: Bools
    """Whether the same action stands earlier, for each action."""
    flow: Flow
    """Who takes in what a stage makes."""
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
        forward = op in (Op.SEND_F, Op.RECV_F)
        needed = self.flow.sends(forward=forward) if op.is_send else self.flow.receives(forward=forward)
        return needed & (forward or self.trains)

    def consumer(self, op: Op, of_op: Op) -> Ints:
        """(p·v, m): position of action ``of_op`` at the stage that gets what ``op`` of this stage and micro-batch
        makes or sends."""
        target = self.backward if of_op in (Op.B, Op.I) else self.at[of_op]
        return self.flow.by_maker(target, forward=op in (Op.F, Op.SEND_F))


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
    by_op = flat.reshape(len(OPS), stages, m)
    return Table(
        at={op: by_op[CODES[op]] for op in OPS},
        inside=inside,
        again=inside & (flat[key] != np.arange(len(op))),
        flow=Flow(schedule),
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
