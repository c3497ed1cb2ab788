"""Does a table run, and right? Every cell, every dependency, every message, every circle of waits, and the memory.

Why not torch's ``_validate_schedule``: it counts computations per stage, so it lets pass what keeps the count (an
action twice, an id out of range), and says nothing of messages; its ``_simulate_comms_compute`` matches messages by
name, in whatever order they are on the link, and lets every send go on at once, which gloo's and large ones of NCCL do
not.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tplab.moved import say_new_names
from tplab.pipeline.faults import MOST_FAULTS, Fault, ScheduleError, action_at, fault_at
from tplab.pipeline.misread import misread
from tplab.pipeline.progress import run_through
from tplab.pipeline.schedule import CODES, Action, Op, Schedule
from tplab.pipeline.table import NONE, Bools, Ints, Table, arrows_of, table_of

_SENDS = (Op.SEND_F, Op.SEND_B)
_RECVS = (Op.RECV_F, Op.RECV_B)


def validate(
    schedule: Schedule,
    *,
    max_activations: float | Sequence[float] | None = None,
    blocking_sends: bool = True,
) -> None:
    """Raise ``ScheduleError`` unless ``schedule`` is complete, in a right order, and free of deadlocks.

    Args:
        max_activations: the most micro-batches a rank may hold (one for all ranks, or one each); a chunk's count 1/v.
        blocking_sends: in a table with sends and receives, a send does not go on until its receive has been posted,
            as gloo's and NCCL's do for large messages; receives never block, the computation that needs them does.
            False: every send goes on at once.

    Raises:
        ScheduleError: a ``ValueError`` with all ``faults`` found and the table around the first of them.
    """
    found = faults(schedule, max_activations=max_activations, blocking_sends=blocking_sends)
    if found:
        raise ScheduleError(schedule, found)


def faults(
    schedule: Schedule,
    *,
    max_activations: float | Sequence[float] | None = None,
    blocking_sends: bool = True,
) -> list[Fault]:
    """All faults, none for a schedule that is right; of each sort the first thousand. Waits and memory are looked at
    once everything else is right."""
    table = table_of(schedule)
    found = cell_faults(schedule, table)
    if not found:
        found = _wait_faults(schedule, table, blocking_sends)
    if not found and max_activations is not None:
        found = _memory_faults(schedule, max_activations)
    return found


def cell_faults(schedule: Schedule, table: Table) -> list[Fault]:
    """Faults of cells: out of range, on the wrong rank, twice, missing; out of order on their own rank; messages that
    do not pair, or pass one another on a link. What depends on other ranks' progress is not among them. Where one
    thing explains all of them, it stands alone (``misread``)."""
    finder = _Finder(schedule, table)
    finder.micro_batches()
    finder.places()
    finder.missing_computations()
    if schedule.has_communication:
        finder.pairs()
    finder.order()
    if schedule.has_communication and not finder.found:
        finder.link_order()
    found = sorted(finder.found, key=lambda f: (f.step is None, f.rank, f.step or 0))
    explains = misread(schedule) if found else None
    return found if explains is None else [explains]


class _Finder:
    """The checks of cells; each adds to ``found``."""

    def __init__(self, schedule: Schedule, table: Table) -> None:
        self.schedule, self.table, self.columns = schedule, table, schedule.columns
        self.found: list[Fault] = []

    def add(self, kind: str, positions: Ints, text: str) -> None:
        """A fault at each position; ``text`` may name ``{action}``."""
        self.found += [fault_at(self.schedule, kind, position, text) for position in positions[:MOST_FAULTS].tolist()]

    def add_missing(self, kind: str, op: Op, where: Bools, text: str) -> None:
        """A fault for each stage and micro-batch in ``where``."""
        for stage, micro_batch in np.argwhere(where)[:MOST_FAULTS].tolist():
            action = Action(stage, op, micro_batch)
            rank = int(self.table.flow.rank_of[stage])
            self.found.append(Fault(kind=kind, rank=rank, step=None, action=action, text=text.format(action=action)))

    def micro_batches(self) -> None:
        """What the description of inference micro-batches says of itself."""
        m, taken = self.schedule.num_micro_batches, dict[int, int]()
        for i, micro_batch in enumerate(self.schedule.micro_batches):
            for what, other in (("kv_from", micro_batch.kv_from), ("token_from", micro_batch.token_from)):
                if other is not None and (not 0 <= other < m or other == i):
                    self._describe(i, f"{what}={other} of micro-batch {i} must be another id below m={m}")
            token_from = micro_batch.token_from
            if token_from is not None and taken.setdefault(token_from, i) != i:
                self._describe(
                    i, f"micro-batches {taken[token_from]} and {i} both take in the tokens of micro-batch {token_from}"
                )

    def _describe(self, i: int, text: str) -> None:
        self.found.append(Fault(kind="micro-batch", rank=0, step=None, action=Action(0, Op.F, i), text=text))

    def places(self) -> None:
        schedule, table, columns = self.schedule, self.table, self.columns
        last = f"stages 0 to {schedule.total_stages - 1}, micro-batches 0 to {schedule.num_micro_batches - 1}"
        self.add("out of range", np.flatnonzero(~table.inside), "{action} is not within " + last)
        home = table.flow.rank_of[np.where(table.inside, columns.stage, 0)]
        lost = np.flatnonzero(table.inside & (home != columns.rank))
        for position in lost[:MOST_FAULTS].tolist():
            self.add("wrong rank", np.array([position]), f"{{action}} belongs on rank {home[position]}")
        self.add("duplicate", np.flatnonzero(table.again), "{action} stands here a second time")

    def missing_computations(self) -> None:
        at = {op: position != NONE for op, position in self.table.at.items()}
        self.add_missing("missing", Op.F, ~at[Op.F], "{action} is missing")
        if self.schedule.is_inference:
            return
        whole, split = at[Op.B], at[Op.I] | at[Op.W]
        self.add_missing("missing", Op.B, ~whole & ~split, "{action} (or its I and W) is missing")
        self.add_missing("missing", Op.I, ~whole & split & ~at[Op.I], "{action} is missing beside its W")
        self.add_missing("missing", Op.W, ~whole & split & ~at[Op.W], "{action} is missing beside its I")
        twice = self.table.at[Op.B][whole & split]
        self.add("two backwards", twice, "{action} is a whole backward, and the same stands as I or W too")

    def pairs(self) -> None:
        """Each message has one SEND and one RECV, and there are no others."""
        at = self.table.at
        for op in (*_SENDS, *_RECVS):
            needed, there = self.table.needs(op), at[op] != NONE
            side = "receives it" if op in _SENDS else "sends it"
            self.add("needless message", at[op][there & ~needed], "{action} has no partner: nobody " + side)
        for send, recv in zip(_SENDS, _RECVS, strict=True):
            partner = self.table.consumer(send, recv)
            needed, sent, received = self.table.needs(send), at[send] != NONE, partner != NONE
            self.add("send without receive", at[send][needed & sent & ~received], "nobody receives what {action} sends")
            self.add("receive without send", partner[needed & ~sent & received], "nobody sends what {action} receives")
            self.add_missing(
                "message missing", send, needed & ~sent & ~received, "{action} and its receive are both missing"
            )

    def order(self) -> None:
        """What must come earlier on the same rank does."""
        at, table = self.table.at, self.table
        backward = table.backward
        self._before(at[Op.F], at[Op.B], "its forward")
        self._before(at[Op.F], at[Op.I], "its forward")
        self._before(at[Op.I], at[Op.W], "its I")
        kv = np.flatnonzero(table.kv_from != NONE)
        self._before(at[Op.F][:, table.kv_from[kv]], at[Op.F][:, kv], "the micro-batch whose keys and values it needs")
        if self.schedule.has_communication:
            self._before(at[Op.F], at[Op.SEND_F], "the forward whose output it sends")
            self._before(backward, at[Op.SEND_B], "the backward whose gradient it sends")
            self._before(at[Op.RECV_F], at[Op.F], "the receive of its input")
            self._before(at[Op.RECV_B], backward, "the receive of its gradient")

    def _before(self, earlier: Ints, later: Ints, what: str) -> None:
        wrong = (later != NONE) & (earlier > later)
        earlier, later, ranks = earlier[wrong], later[wrong], self.columns.rank
        self.add("order", later[ranks[earlier] == ranks[later]], "{action} comes before " + what)

    def link_order(self) -> None:
        """Messages from one rank to another are received in the order in which they are sent."""
        sends, recvs = [], []
        for send, recv in zip(_SENDS, _RECVS, strict=True):
            at, partner = self.table.at[send], self.table.consumer(send, recv)
            sends.append(at[at != NONE])
            recvs.append(partner[at != NONE])
        sent, received = np.concatenate(sends), np.concatenate(recvs)
        ranks = self.columns.rank
        link = ranks[sent] * self.schedule.num_stages + ranks[received]
        as_sent = np.lexsort((sent, link))
        as_received = np.lexsort((received, link))
        wrong = np.flatnonzero(as_sent != as_received)[:1]
        if len(wrong):
            next_sent, got = action_at(self.schedule, int(sent[as_sent[wrong[0]]])), received[as_received[wrong]]
            source = int(ranks[sent[as_sent[wrong[0]]]])
            self.add(
                "order on a link",
                got,
                f"{{action}} stands where the next message from rank {source} is that of {next_sent}: "
                f"it would take in the wrong data",
            )


def _wait_faults(schedule: Schedule, table: Table, blocking_sends: bool) -> list[Fault]:
    """Ranks that wait for each other in a circle, so that none goes on."""
    columns = schedule.columns
    arrows = arrows_of(schedule, table, rendezvous=blocking_sends)
    nothing = np.zeros(len(columns.op))
    progress = run_through(arrows, nothing, nothing, nothing, overlap=True)
    stuck = progress.stuck(arrows)
    if not stuck:
        return []
    waits = {rank: progress.reached[rank] for rank in stuck}
    finder = _Finder(schedule, table)
    path, rank = list[int](), stuck[0]
    while rank not in path:
        path.append(rank)
        rank = int(columns.rank[arrows.waits_for[waits[rank]]])
    circle = path[path.index(rank) :]
    blocked = any(columns.op[waits[r]] in (CODES[Op.SEND_F], CODES[Op.SEND_B]) for r in circle)
    kind = "deadlock of blocking sends" if blocked else "circular wait"
    for r in circle:
        needed = int(arrows.waits_for[waits[r]])
        awaited, elsewhere = action_at(schedule, needed), columns.rank[needed]
        finder.add(
            kind,
            np.array([waits[r]]),
            f"{kind}: {{action}} waits for {awaited}, which rank {elsewhere} does not reach",
        )
    return finder.found


def held(schedule: Schedule) -> NDArray[np.float64]:
    """Micro-batches whose activations the action's rank holds while it runs, per action; a chunk's count 1/v.

    No times needed: a rank makes and gives up its own activations in its own order. In inference nothing is kept.
    """
    columns = schedule.columns
    if schedule.is_inference:
        return np.where(columns.op == CODES[Op.F], 1.0 / schedule.num_chunks, 0.0)
    takes = columns.op == CODES[Op.F]
    gives = np.isin(columns.op, [CODES[Op.B], CODES[Op.W]])
    after = np.cumsum(takes.astype(np.int64) - gives)
    first = np.searchsorted(columns.rank, np.arange(schedule.num_stages))
    before_rank = np.concatenate([[0], after])[first]
    counts: NDArray[np.float64] = (after + gives - before_rank[columns.rank]) / schedule.num_chunks
    return counts


def peak_held(schedule: Schedule) -> tuple[float, ...]:
    """Most micro-batches that each rank holds, as :func:`held` counts."""
    most = np.zeros(schedule.num_stages)
    np.maximum.at(most, schedule.columns.rank, held(schedule))
    return tuple(float(value) for value in most)


def _memory_faults(schedule: Schedule, max_activations: float | Sequence[float]) -> list[Fault]:
    cap = np.asarray(max_activations, dtype=np.float64)
    if cap.ndim > 1 or (cap.ndim == 1 and len(cap) != schedule.num_stages):
        raise ValueError(f"max_activations must be a number or one per rank ({schedule.num_stages}); got {cap.shape}")
    cap = np.broadcast_to(cap, (schedule.num_stages,))
    holds, columns = held(schedule), schedule.columns
    over = np.flatnonzero(holds > cap[columns.rank] + 1e-9)
    finder = _Finder(schedule, table_of(schedule))
    for rank in np.unique(columns.rank[over]).tolist():
        first = over[columns.rank[over] == rank][:1]
        most = holds[over[columns.rank[over] == rank]].max()
        finder.add(
            "memory",
            first,
            f"{{action}} makes rank {rank} hold {holds[first[0]]:g} micro-batches (at its peak {most:g}); "
            f"the memory cap allows {cap[rank]:g}",
        )
    return finder.found


say_new_names(__name__)
