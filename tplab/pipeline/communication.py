"""Where what one rank makes for another is sent and received: two passes over a table.

Why a table with sends in it at all, when what a computation needs says everything: because the order of messages on a
link is the pipeline's most common deadlock, and what is in the table can be checked.
"""

from collections.abc import Iterator
from dataclasses import replace

from tplab.pipeline.schedule import Action, Op, Schedule


def source(schedule: Schedule, action: Action) -> Action | None:
    """The computation of *another stage* whose result ``action`` (F, B or I) takes in, None if it takes none.

    A backward's source is written as B, whether the table has B or I there.
    """
    stage, op, micro_batch = action
    if op is Op.F:
        if stage > 0:
            return Action(stage - 1, Op.F, micro_batch)
        sampled = schedule.micro_batches[micro_batch].token_from if schedule.micro_batches else None
        return None if sampled is None else Action(schedule.total_stages - 1, Op.F, sampled)
    if op in (Op.B, Op.I) and stage < schedule.total_stages - 1:
        return Action(stage + 1, Op.B, micro_batch)
    return None


class Messages:
    """Who sends what to whom in a schedule: a message is known by the RECV that takes it in.

    Between stages of one rank there is none: what is made is at hand.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._next_step = {
            micro_batch.token_from: i
            for i, micro_batch in enumerate(schedule.micro_batches)
            if micro_batch.token_from is not None
        }

    def recv_for(self, action: Action) -> Action | None:
        """The RECV that must come before this computation, if one must."""
        made = source(self._schedule, action)
        if made is None or self._same_rank(made.stage, action.stage):
            return None
        return Action(action.stage, Op.RECV_F if action.op is Op.F else Op.RECV_B, action.micro_batch)

    def send_after(self, action: Action) -> Action | None:
        """The SEND that must follow this computation, if one must."""
        if action.op not in (Op.F, Op.B, Op.I):
            return None
        send = Action(action.stage, Op.SEND_F if action.op is Op.F else Op.SEND_B, action.micro_batch)
        return None if self.recv_of(send) is None else send

    def recv_of(self, send: Action) -> Action | None:
        """The RECV that takes in what ``send`` sends; None where nobody does."""
        stage, op, micro_batch = send
        last = self._schedule.total_stages - 1
        if op is Op.SEND_B:
            recv = Action(stage - 1, Op.RECV_B, micro_batch) if stage > 0 else None
        elif stage < last:
            recv = Action(stage + 1, Op.RECV_F, micro_batch)
        else:
            step = self._next_step.get(micro_batch)
            recv = None if step is None else Action(0, Op.RECV_F, step)
        return None if recv is None or self._same_rank(stage, recv.stage) else recv

    def send_of(self, recv: Action) -> Action | None:
        """The SEND whose message ``recv`` takes in; None where there is none."""
        computation = Action(recv.stage, Op.F if recv.op is Op.RECV_F else Op.B, recv.micro_batch)
        made = source(self._schedule, computation)
        if made is None or self._same_rank(made.stage, recv.stage):
            return None
        return Action(made.stage, Op.SEND_F if recv.op is Op.RECV_F else Op.SEND_B, made.micro_batch)

    def _same_rank(self, stage: int, other: int) -> bool:
        return self._schedule.stage_to_rank(stage) == self._schedule.stage_to_rank(other)


def add_communication(schedule: Schedule) -> Schedule:
    """Return the schedule with every send and receive written down, and without empty cells.

    A result is sent as soon as it is made, and the receiver is given the receive at that moment of an imagined run in
    which ranks take turns. As that run is one in which every receive follows its send, the table cannot deadlock,
    however sends block. The same tables as torch's ``_add_send_recv``, and the back edge of a decoding ring besides.

    Raises:
        ValueError: the table has communication already, or the ranks wait for each other in a circle.
    """
    if schedule.has_communication:
        raise ValueError(f"schedule {schedule.name!r} has sends and receives already; drop_communication first")
    messages = Messages(schedule)
    left = [iter([action for action in row if action is not None]) for row in schedule.ranks]
    rows: list[list[Action]] = [[] for _ in left]
    heads = [next(actions, None) for actions in left]
    done: set[Action] = set()
    while any(heads):
        stuck = True
        for rank, action in enumerate(heads):
            if action is None or not _ready(schedule, messages, action, done):
                continue
            stuck = False
            rows[rank].append(action)
            done.add(action if action.op is not Op.I else action._replace(op=Op.B))
            send = messages.send_after(action)
            if send is not None:
                recv = messages.recv_of(send)
                assert recv is not None
                rows[rank].append(send)
                rows[schedule.stage_to_rank(recv.stage)].append(recv)
                done.add(recv)
            heads[rank] = next(left[rank], None)
        if stuck:
            waiting = ", ".join(f"rank {rank} at {action}" for rank, action in enumerate(heads) if action)
            raise ValueError(f"schedule {schedule.name!r} cannot run: every rank waits ({waiting}); validate says why")
    return replace(schedule, ranks=tuple(tuple(row) for row in rows))


def _ready(schedule: Schedule, messages: Messages, action: Action, done: set[Action]) -> bool:
    recv = messages.recv_for(action)
    if recv is not None:
        return recv in done
    made = source(schedule, action)
    return made is None or made in done


def drop_communication(schedule: Schedule) -> Schedule:
    """Return the schedule without sends, receives and empty cells."""
    return replace(schedule, ranks=tuple(tuple(_computations(row)) for row in schedule.ranks))


def _computations(row: tuple[Action | None, ...]) -> Iterator[Action]:
    return (action for action in row if action is not None and action.op.is_compute)
