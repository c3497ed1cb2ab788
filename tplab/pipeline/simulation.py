"""A schedule's timing from the costs of its parts: numpy and plain Python, fast enough to follow a slider.

Why no event queue: every rank runs its list in order, and every link carries its sender's messages in the order they
are sent. So nothing is ever chosen by time; each start is the maximum of times known before, and any order of
evaluation that respects the arrows gives the same answer. One pass, each rank as far as it gets, does it.

What is modelled: a computation starts when its rank is free and what it needs has arrived. A message starts when it is
sent and its link is free of those before it; it occupies the link for bytes / bandwidth, and arrives a latency later.
In a table with sends the SEND starts the message, otherwise the end of the computation does; receives take no time.
Without overlap the sender waits for the arrival, and in a table with receives first for the RECV.

Known to be wrong: links that share a wire, computation that slows down while messages travel (copies on a CPU, NCCL's
blocks on a GPU), the time to launch anything.
"""

import numpy as np

from tplab.pipeline.costs import Costs, durations, grid, links, stage_bytes
from tplab.pipeline.faults import ScheduleError
from tplab.pipeline.progress import Seconds, run_through
from tplab.pipeline.schedule import CODES, Op, Schedule
from tplab.pipeline.table import NONE, Arrows, arrows_of, table_of
from tplab.pipeline.trace import Trace
from tplab.pipeline.validation import cell_faults, validate

_SEND_F, _SEND_B, _FORWARD = CODES[Op.SEND_F], CODES[Op.SEND_B], (CODES[Op.F], CODES[Op.SEND_F])


def simulate(schedule: Schedule, costs: Costs | None = None) -> Trace:
    """When everything in ``schedule`` starts and ends under ``costs`` (by default F = I = W = 1 s and free messages).

    The trace holds the computations and, where messages take time, a span per message from its start on the link to its
    arrival. Its ``peak_activations_per_rank`` needs no costs.

    Raises:
        ValueError: costs of the wrong shape; ``ScheduleError`` for a table that cannot run, as ``validate`` says.
    """
    costs = Costs() if costs is None else costs
    table = table_of(schedule)
    if found := cell_faults(schedule, table):
        raise ScheduleError(schedule, found)
    duration = durations(schedule, costs)
    arrows = arrows_of(schedule, table, rendezvous=not costs.overlap)
    wire, latency = _message_times(schedule, costs, arrows)
    progress = run_through(arrows, duration, wire, latency, overlap=costs.overlap)
    if progress.stuck(arrows):
        validate(schedule, blocking_sends=not costs.overlap)
        raise AssertionError(f"schedule {schedule.name!r} is stuck, and validate finds nothing wrong with it")
    columns = schedule.columns
    compute = np.flatnonzero(columns.op < _SEND_F)
    hops = np.flatnonzero((arrows.link != NONE) & (progress.arrived_s > progress.sent_s))
    both = np.concatenate([compute, hops])
    send_op = np.where(np.isin(columns.op[hops], _FORWARD), _SEND_F, _SEND_B)
    return Trace(
        schedule=schedule,
        rank=columns.rank[both],
        stage=columns.stage[both],
        op=np.concatenate([columns.op[compute], send_op]),
        micro_batch=columns.micro_batch[both],
        start_s=np.concatenate([progress.start_s[compute], progress.sent_s[hops]]),
        end_s=np.concatenate([progress.end_s[compute], progress.arrived_s[hops]]),
        measured=False,
        activation_bytes=stage_bytes(schedule, costs),
    )


def _message_times(schedule: Schedule, costs: Costs, arrows: Arrows) -> tuple[Seconds, Seconds]:
    """Seconds on the link and of latency after it, per action."""
    columns, p = schedule.columns, schedule.num_stages
    wire, latency = np.zeros(len(columns.op)), np.zeros(len(columns.op))
    senders = np.flatnonzero(arrows.link != NONE)
    hop, per_byte = links(schedule, costs)
    source, target = np.divmod(arrows.link[senders], p)
    latency[senders] = hop[source, target]
    stage, micro_batch = columns.stage[senders], columns.micro_batch[senders]
    forward = np.isin(columns.op[senders], _FORWARD)
    made_by = np.where(forward, stage, stage - 1)  # a gradient is as large as what the stage before had sent
    nbytes = grid(schedule, "message_bytes", costs.message_bytes, shared=False)[made_by, micro_batch]
    back = (stage == schedule.total_stages - 1) & forward
    if back.any():
        tokens = grid(schedule, "token_bytes", costs.token_bytes, shared=False)
        nbytes = np.where(back, tokens[stage, micro_batch], nbytes)
    wire[senders] = nbytes * per_byte[source, target]
    return wire, latency
