"""Notebook 05: a pipeline schedule that is right, as fast as 1F1B, and holds no more than it has to."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from tplab.cluster import Cluster, ClusterError
from tplab.lab.exercises.trial import check_cluster, check_function
from tplab.lab.exercises.verdict import NotYetError, Verdict, checker, not_yet_for
from tplab.pipeline import formulas
from tplab.pipeline.build import build_schedule
from tplab.pipeline.costs import Costs
from tplab.pipeline.faults import Fault
from tplab.pipeline.run import run_schedule
from tplab.pipeline.schedule import OPS, Action, Op, Schedule
from tplab.pipeline.simulation import simulate
from tplab.pipeline.trace import Trace
from tplab.pipeline.validation import faults
from tplab.shown import counted

_SIZES = ((4, 8), (2, 2), (3, 5), (4, 2), (1, 3), (5, 16))
"""p and m: also odd ones, fewer micro-batches than ranks, and a single rank."""
_TIMES = ((1.0, 1.0, 1.0), (2.0, 0.5, 1.0))
"""F, I and W: a backward longer than a forward, and a shorter one."""
_RUN_S = 0.005
_MOST_CELLS = 10_000
"""Longest row that is read, waits included."""


@checker("05-schedule")
def check_schedule(schedule: Callable[[int, int], Any], cluster: Cluster | None = None) -> Verdict:
    """``schedule(p, m)``: one row of actions per rank, rank r being stage r: ``[["0F0", "0F1", "0B0", ...], ...]``.

    Actions are text (``2F0``: stage 2, forward, micro-batch 0) or :class:`Action`; a :class:`Schedule` will do, too.
    Every forward and backward once, in an order that neither waits in a circle nor takes longer than 1F1B, with at most
    ``min(m, p - r)`` micro-batches held on rank r.

    Args:
        cluster: run the table of as many ranks for real, too, with emulated compute.
    """
    check_function(schedule)
    if cluster is not None:
        check_cluster(cluster)
    for p, m in _SIZES:
        _check(schedule, p, m)
    if cluster is not None:
        _run(cluster, schedule)
    ran = "" if cluster is None else f", and it ran on {cluster.num_ranks} real ranks"
    return Verdict(True, f"valid, as fast as 1F1B and no more in flight, for {len(_SIZES)} sizes{ran}.")


def _check(schedule: Callable[[int, int], Any], p: int, m: int) -> Schedule:
    """The table made. Raises ``NotYetError`` for one that is not right."""
    context = f"With p={p}, m={m}"
    try:
        made = schedule(p, m)
    except Exception as error:
        not_yet_for(error, schedule, context)
    try:
        table = _table(made, p, m)
    except ValueError as error:
        raise NotYetError(f"{context}: {error}") from None
    fault = _fault(table, p, m)
    if fault:
        raise NotYetError(f"{context}: {fault}")
    return table


def _table(made: Any, p: int, m: int) -> Schedule:
    """What was returned as a table. Raises ``ValueError`` in the learner's words."""
    rows = _listed_out(made.ranks if isinstance(made, Schedule) else made)
    if rows is None or len(rows) != p:
        got = f"{made!r:.60}" if rows is None else counted(len(rows), "row")
        raise ValueError(f"it must return one row of actions for each of the {p} ranks; got {got}.")
    cells = [_listed_out(row.split() if isinstance(row, str) else row) for row in rows]
    for rank, row in enumerate(cells):
        if row is None:
            raise ValueError(
                f"rank {rank}: its row must be a list of actions such as '{rank}F0'; got {rows[rank]!r:.60}."
            )
    table = [[_action(cell, rank, step) for step, cell in enumerate(row or ())] for rank, row in enumerate(cells)]
    for rank, actions in enumerate(table):
        elsewhere = next((action for action in actions if action is not None and action.stage != rank), None)
        if elsewhere is not None:
            step = actions.index(elsewhere)
            raise ValueError(
                f"rank {rank}, step {step}: {elsewhere} is of stage {elsewhere.stage}, and rank {rank} holds stage "
                f"{rank}."
            )
    return Schedule(
        name="yours",
        num_stages=p,
        num_micro_batches=m,
        ranks=tuple(map(tuple, table)),
    )


def _listed_out(made: Any) -> list[Any] | None:
    """The members of a list, tuple, array or generator, or of a dict that is keyed 0, 1, ...; None for anything else.
    Not more than any table has, of a generator without an end."""
    if isinstance(made, Mapping):
        made = [made[key] for key in range(len(made))] if set(made) == set(range(len(made))) else None
    if isinstance(made, str) or not isinstance(made, Iterable):
        return None
    return list(islice(made.tolist() if hasattr(made, "tolist") else made, _MOST_CELLS))


def _action(cell: Any, rank: int, step: int) -> Action | None:
    if cell is None or cell == "" or isinstance(cell, Action):
        return cell or None
    try:
        return Action.parse(cell.strip().upper())
    except (TypeError, ValueError, AttributeError):
        raise ValueError(f"rank {rank}, step {step}: {cell!r} is no action; write such as '{rank}F0'.") from None


def _fault(table: Schedule, p: int, m: int) -> str:
    """What is wrong, in words; empty if nothing is."""
    if table.is_inference and table.num_actions:
        return "there are no backwards: write such as '0B0' for them."
    found = faults(table)
    if found:
        return _listed(found)
    for forward_s, input_grad_s, weight_grad_s in _TIMES:
        costs = Costs(forward_s=forward_s, input_grad_s=input_grad_s, weight_grad_s=weight_grad_s)
        took = simulate(table, costs).makespan_s
        enough = formulas.makespan_s(
            "1f1b", p, m, forward_s=forward_s, input_grad_s=input_grad_s, weight_grad_s=weight_grad_s
        )
        if took > enough * (1 + 1e-9):
            backward_s = input_grad_s + weight_grad_s
            return (
                f"valid, but slow: with F={forward_s:g} and B={backward_s:g} it takes {took:g} units of time where "
                f"{enough:g} are enough. {_held_up(table, costs)}"
            )
    return _held_too_long(table, p, m)


def _held_too_long(table: Schedule, p: int, m: int) -> str:
    """Which rank holds more than it has to, and why; empty if none does."""
    peaks = simulate(table).peak_activations_per_rank
    whole = simulate(_with_whole_backwards(table)).peak_activations_per_rank
    for rank, peak in enumerate(peaks):
        allowed = formulas.peak_activations("1f1b", p, m, rank=rank)
        if peak <= allowed:
            continue
        text = f"valid and fast, but rank {rank} holds {peak:g} micro-batches at its peak, where {allowed:g} will do"
        if whole[rank] <= allowed:
            return (
                f"{text}: what a micro-batch holds is freed by W, the gradient of its weights, and not by I already. "
                f"Each W that is put off keeps one more."
            )
        one = " One less to warm up with will do." if peak == allowed + 1 else ""
        return f"{text}: the backward of a micro-batch can run as soon as the next stage has sent its gradient.{one}"
    return ""


def _with_whole_backwards(table: Schedule) -> Schedule:
    """The same with each I made a B, and without W."""
    rows = tuple(
        tuple(
            Action(cell.stage, Op.B, cell.micro_batch) if cell.op is Op.I else cell
            for cell in row
            if cell is not None and cell.op is not Op.W
        )
        for row in table.ranks
    )
    return Schedule(name=table.name, num_stages=table.num_stages, num_micro_batches=table.num_micro_batches, ranks=rows)


def _held_up(table: Schedule, costs: Costs) -> str:
    """Where the table falls behind 1F1B first, and who waits for it, from the simulation of both.

    The first action that starts later than in 1F1B had all it needs in time; so its own rank did something else before.
    """
    mine = _starts(simulate(table, costs))
    theirs = _starts(simulate(build_schedule("1f1b", table.num_stages, table.num_micro_batches), costs))
    late = [key for key in mine if mine[key][0] > theirs[key][0] + 1e-9]
    if not late:
        return "No action starts late, but one takes more time than it has to: is a backward cut in two?"
    stage, backward, micro_batch = key = min(late, key=lambda each: (mine[each][0], each))
    action = _name(table, *key)
    before = [each for each in mine if each[0] == stage and mine[each][0] < mine[key][0]]
    instead = max(
        (each for each in before if theirs[each][0] >= theirs[key][0] - 1e-9),
        key=lambda each: mine[each][0],
        default=max(before, key=lambda each: mine[each][0], default=key),
    )
    first = _name(table, *instead)
    if instead[1] and not backward:
        last = stage == table.num_stages - 1
        first += "" if last else f", which must wait for {_name(table, stage + 1, True, instead[2])},"
        others = "" if last else f", while rank {stage + 1} waits for {action}"
        return f"Rank {stage} turns to a backward too early: it puts {first} before {action}{others}."
    if backward:
        waits = f", while rank {stage - 1} waits with {_name(table, stage - 1, True, micro_batch)}" if stage else ""
        if not instead[1]:
            return f"Rank {stage} comes to {action} too late: it puts {first} before it{waits}."
    else:
        waits = f", while rank {stage + 1} waits" if stage + 1 < table.num_stages else ""
    return f"Rank {stage} takes the wrong one first: {first} before {action}{waits}."


_Key = tuple[int, bool, int]
"""Stage, whether a backward (its half that others wait for), micro-batch."""


def _starts(trace: Trace) -> dict[_Key, tuple[float, float]]:
    """Start and end of every forward, and of every backward or I."""
    found: dict[_Key, tuple[float, float]] = {}
    for stage, code, micro_batch, start, end in zip(
        trace.stage, trace.op, trace.micro_batch, trace.start_s, trace.end_s, strict=True
    ):
        op = OPS[code]
        if op in (Op.F, Op.B, Op.I):
            found[int(stage), op is not Op.F, int(micro_batch)] = float(start), float(end)
    return found


def _name(table: Schedule, stage: int, backward: bool, micro_batch: int) -> str:
    """As the learner wrote it."""
    if not backward:
        return f"{stage}F{micro_batch}"
    whole = Action(stage, Op.B, micro_batch)
    return str(whole if any(whole in row for row in table.ranks) else Action(stage, Op.I, micro_batch))


def _listed(found: Sequence[Fault]) -> str:
    more = f" And {len(found) - 1} more." if len(found) > 1 else ""
    return f"{found[0]}.{more}"


def _run(cluster: Cluster, schedule: Callable[[int, int], Any]) -> None:
    p = cluster.num_ranks
    table = _check(schedule, p, 2 * p)
    costs = Costs(forward_s=_RUN_S, input_grad_s=_RUN_S, weight_grad_s=_RUN_S, message_bytes=4096)
    try:
        run_schedule(cluster, table, costs, timeout=30)
    except (ClusterError, ValueError) as error:
        raise NotYetError(f"On {p} real ranks: {error}") from None
