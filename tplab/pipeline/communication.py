"""Where what one rank makes for another is sent and received: two passes over a table.

Why a table with sends in it at all, when what a computation needs says everything: because the order of messages on a
link is the pipeline's most common deadlock, and what is in the table can be checked.
"""

from dataclasses import replace

from tplab.pipeline.schedule import Action, Op, Schedule
from tplab.pipeline.table import Flow


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
    flow = Flow(schedule)
    left = [iter([action for action in row if action is not None]) for row in schedule.ranks]
    rows: list[list[Action]] = [[] for _ in left]
    heads = [next(actions, None) for actions in left]
    done: set[Action | None] = {None}  # what needs nothing of others can go on
    while any(heads):
        stuck = True
        for rank, action in enumerate(heads):
            if action is None or flow.maker(action) not in done:
                continue
            stuck = False
            rows[rank].append(action)
            done.add(action if action.op is not Op.I else action._replace(op=Op.B))
            message = flow.message(action)
            if message is not None:
                send, recv = message
                rows[rank].append(send)
                rows[schedule.stage_to_rank(recv.stage)].append(recv)
            heads[rank] = next(left[rank], None)
        if stuck:
            waiting = ", ".join(f"rank {rank} at {action}" for rank, action in enumerate(heads) if action)
            raise ValueError(f"schedule {schedule.name!r} cannot run: every rank waits ({waiting}); validate says why")
    return replace(schedule, ranks=tuple(tuple(row) for row in rows))


def drop_communication(schedule: Schedule) -> Schedule:
    """Return the schedule without sends, receives and empty cells."""
    return replace(
        schedule,
        ranks=tuple(
            tuple(action for action in row if action is not None and action.op.is_compute) for row in schedule.ranks
        ),
    )
