"""Notebook 05: a pipeline schedule that is right, as fast as 1F1B, and holds no more than it has to."""

from collections.abc import Callable, Sequence
from typing import Any

from tplab.cluster import Cluster, ClusterError
from tplab.lab.exercises.verdict import Verdict
from tplab.pipeline import formulas
from tplab.pipeline.costs import Costs
from tplab.pipeline.faults import Fault
from tplab.pipeline.run import run_schedule
from tplab.pipeline.schedule import Action, Schedule
from tplab.pipeline.simulation import simulate
from tplab.pipeline.validation import faults

_SIZES = ((4, 8), (2, 2), (3, 5), (4, 2), (1, 3), (5, 16))
"""p and m: also odd ones, fewer micro-batches than ranks, and a single rank."""
_TIMES = ((1.0, 1.0, 1.0), (2.0, 0.5, 1.0))
"""F, I and W: a backward longer than a forward, and a shorter one."""
_RUN_S = 0.005


def check_schedule(schedule: Callable[[int, int], Any], cluster: Cluster | None = None) -> Verdict:
    """``schedule(p, m)``: one row of actions per rank, rank r being stage r: ``[["0F0", "0F1", "0B0", ...], ...]``.

    Actions are text (``2F0``: stage 2, forward, micro-batch 0) or :class:`Action`; a :class:`Schedule` will do, too.
    Every forward and backward once, in an order that neither waits in a circle nor takes longer than 1F1B, with at most
    ``min(m, p - r)`` micro-batches held on rank r.

    Args:
        cluster: run the table of as many ranks for real, too, with emulated compute.
    """
    for p, m in _SIZES:
        try:
            made = schedule(p, m)
        except Exception as error:
            return _not_yet(p, m, f"it raised {type(error).__name__}: {error}")
        try:
            table = _table(made, p, m)
        except ValueError as error:
            return _not_yet(p, m, str(error))
        fault = _fault(table, p, m)
        if fault:
            return _not_yet(p, m, fault)
    if cluster is not None:
        fault = _run(cluster, schedule)
        if fault:
            return Verdict(False, fault)
    ran = "" if cluster is None else f", and it ran on {cluster.num_ranks} real ranks"
    return Verdict(True, f"valid, as fast as 1F1B and no more in flight, for {len(_SIZES)} sizes{ran}.")


def _not_yet(p: int, m: int, text: str) -> Verdict:
    return Verdict(False, f"With p={p}, m={m}: {text}")


def _table(made: Any, p: int, m: int) -> Schedule:
    """What was returned as a table. Raises ``ValueError`` in the learner's words."""
    rows = made.ranks if isinstance(made, Schedule) else made
    if not isinstance(rows, Sequence) or isinstance(rows, str) or len(rows) != p:
        got = f"{len(rows)} rows" if isinstance(rows, Sequence) and not isinstance(rows, str) else f"{made!r:.60}"
        raise ValueError(f"it must return one row of actions for each of the {p} ranks; got {got}.")
    return Schedule(
        name="yours",
        num_stages=p,
        num_micro_batches=m,
        ranks=tuple(tuple(_action(cell, rank, step) for step, cell in enumerate(row)) for rank, row in enumerate(rows)),
    )


def _action(cell: Any, rank: int, step: int) -> Action | None:
    if cell is None or cell == "" or isinstance(cell, Action):
        return cell or None
    try:
        return Action.parse(cell)
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
                f"valid, but slow: with F={forward_s:g} and B={backward_s:g} it takes {took:g} where {enough:g} is "
                f"enough. Look at the Gantt chart: which rank waits, and for whom? A rank that turns to its first "
                f"backward too early leaves those after it without work."
            )
    peaks = simulate(table).peak_activations_per_rank
    for rank, peak in enumerate(peaks):
        allowed = formulas.peak_activations("1f1b", p, m, rank=rank)
        if peak > allowed:
            one = " One less to warm up with will do." if peak == allowed + 1 else ""
            return (
                f"valid and fast, but rank {rank} holds {peak:g} micro-batches at its peak, where {allowed:g} will do: "
                f"the backward of a micro-batch can run as soon as the next stage has sent its gradient.{one}"
            )
    return ""


def _listed(found: Sequence[Fault]) -> str:
    more = f" And {len(found) - 1} more." if len(found) > 1 else ""
    return f"{found[0]}.{more}"


def _run(cluster: Cluster, schedule: Callable[[int, int], Any]) -> str:
    p = cluster.num_ranks
    m = 2 * p
    try:
        table = _table(schedule(p, m), p, m)
        fault = _fault(table, p, m)
        if fault:
            return f"With p={p}, m={m}: {fault}"
        costs = Costs(forward_s=_RUN_S, input_grad_s=_RUN_S, weight_grad_s=_RUN_S, message_bytes=4096)
        run_schedule(cluster, table, costs, timeout=30)
    except (ClusterError, ValueError) as error:
        return f"On {p} real ranks: {error}"
    return ""
