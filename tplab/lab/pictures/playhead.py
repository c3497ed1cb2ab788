"""A play head over a Gantt chart: micro-batches that move through the ranks, memory that fills and empties.

Of any trace, simulated or measured. The page gets the trace once, as columns; moving the head asks no kernel.
"""

from typing import Any, ClassVar

import numpy as np
import traitlets

from tplab.checks import ArgumentError, check_number
from tplab.lab.figures.pipeline import title_of
from tplab.lab.pictures.picture import Picture
from tplab.pipeline.build import build_schedule
from tplab.pipeline.schedule import CODES, OPS, Action, Op
from tplab.pipeline.simulation import simulate
from tplab.pipeline.table import Flow
from tplab.pipeline.trace import Trace

MOST_COMPUTATIONS = 1 << 14
"""Most computations of a trace: the page keeps them all."""
_SENDS = (CODES[Op.SEND_F], CODES[Op.SEND_B])


class PlayHead(Picture):
    """``PlayHead(trace)``: play, pause, scrub, step from event to event; ``show(trace)`` draws another.

    Tokens are micro-batches, at work in a rank's box, waiting beside it, or on their way; blocks below are those whose
    activations the rank holds. By default the trace is a simulated 1F1B of 4 ranks and 8 micro-batches.

    Args:
        trace: what ran when.
        title: above the picture; by default the schedule's name and sizes.
        unit: what a second of the trace stands for, such as ``units of F``; by default times are shown as such.
        lane: what a lane is of: ``stage``, where a stage has several ranks.
        max_activations: a memory cap in micro-batches, drawn into each rank's memory.

    Raises:
        ValueError: a trace of no computation, or of too many to be drawn.
    """

    module: ClassVar[str] = "playhead"
    caption: ClassVar[str] = "Play head over a pipeline schedule"

    trace = traitlets.Dict(help="the trace as columns, as `columns_of` makes them").tag(sync=True)

    def __init__(
        self,
        trace: Trace | None = None,
        *,
        title: str = "",
        unit: str = "",
        lane: str = "rank",
        max_activations: float | None = None,
        **widget: Any,
    ) -> None:
        super().__init__(**widget)
        if trace is None:
            trace, unit = simulate(build_schedule("1f1b", 4, 8)), "units of F"
        self.show(trace, title=title, unit=unit, lane=lane, max_activations=max_activations)

    def show(
        self,
        trace: Trace,
        *,
        title: str = "",
        unit: str = "",
        lane: str = "rank",
        max_activations: float | None = None,
    ) -> None:
        """Draw another trace, from its start; arguments and errors as for the class.

        Args:
            trace: what ran when.
            title, unit, lane: words.
            max_activations: a memory cap.
        """
        computations = int(trace.is_compute.sum())
        if not 0 < computations <= MOST_COMPUTATIONS:
            rule = f"must hold 1 to {MOST_COMPUTATIONS:,} computations for a play head: take fewer micro-batches"
            raise ArgumentError("trace", f"{computations:,} computations", rule)
        if max_activations is not None:
            check_number("max_activations", max_activations, least=0)
        self.trace = columns_of(trace, unit) | {
            "title": title or title_of(trace),
            "badge": trace.badge,
            "lane": lane,
            "cap": max_activations,
        }


def columns_of(trace: Trace, unit: str = "") -> dict[str, Any]:
    """The trace as the page takes it: columns of the computations in seconds from the first one's start, rounded to a
    millionth of the whole; messages as ``[action, from rank, to rank, start, end]``; which micro-batch needs which."""
    schedule, compute = trace.schedule, trace.is_compute
    zero, end = float(trace.start_s[compute].min()), float(trace.end_s.max())
    decimals = max(0, 7 - int(np.floor(np.log10(end - zero)))) if end > zero else 0

    def seconds(values: Any) -> list[float]:
        rounded: list[float] = np.round(np.maximum(values - zero, 0.0), decimals).tolist()
        return rounded

    letters = np.asarray([str(op) for op in OPS])
    shown, factor = (unit, 1.0) if unit else ("ms", 1e3) if end - zero < 10 else ("s", 1.0)
    return {
        "p": trace.num_ranks,
        "v": schedule.num_chunks,
        "m": schedule.num_micro_batches,
        "trains": not schedule.is_inference,
        "rank": trace.rank[compute].tolist(),
        "stage": trace.stage[compute].tolist(),
        "op": letters[trace.op[compute]].tolist(),
        "micro": trace.micro_batch[compute].tolist(),
        "start": seconds(trace.start_s[compute]),
        "end": seconds(trace.end_s[compute]),
        "sent": _messages(trace, seconds),
        "needs": [list(each) for each in schedule.micro_batches],
        "unit": shown,
        "factor": factor,
    }


def _messages(trace: Trace, seconds: Any) -> list[list[Any]]:
    flow = Flow(trace.schedule)
    which = np.flatnonzero(np.isin(trace.op, _SENDS))
    starts, ends = seconds(trace.start_s[which]), seconds(trace.end_s[which])
    messages = []
    for span, start, end in zip((trace.spans[i] for i in which), starts, ends, strict=True):
        send = Action(span.stage, span.op, span.micro_batch)
        taker = flow.recv_of(send)
        messages.append([str(flow.made(send)), span.rank, int(flow.rank_of[taker.stage]), start, end])
    return messages
