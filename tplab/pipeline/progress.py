"""Each rank as far as it gets: the one loop under ``simulate`` (with times) and ``validate`` (without)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tplab.pipeline.table import NONE, Arrows

Seconds = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Progress:
    """Where every rank stopped, and when its actions ran."""

    reached: list[int]
    """Per rank: position of the action it could not start; beyond its last one if it ran them all."""
    start_s: Seconds
    end_s: Seconds
    sent_s: Seconds
    """Of the action's message: start on the link."""
    arrived_s: Seconds
    """Of the action's message; of an action without one, its end."""

    def stuck(self, arrows: Arrows) -> list[int]:
        """Ranks that did not get to the end of their list."""
        return [rank for rank, position in enumerate(self.reached) if position < arrows.first[rank + 1]]


def run_through(arrows: Arrows, duration_s: Seconds, wire_s: Seconds, latency_s: Seconds, *, overlap: bool) -> Progress:
    """Run every rank until it waits for what is not there yet, and go on with those that waited when it is.

    Args:
        duration_s, wire_s, latency_s: per action: its own time, and its message's on the link and after it.
        overlap: a rank goes on while its message travels; if not, when it has arrived.
    """
    first, n = arrows.first, len(duration_s)
    waits_for, link = arrows.waits_for.tolist(), arrows.link.tolist()
    duration, wire, latency = duration_s.tolist(), wire_s.tolist(), latency_s.tolist()
    start, sent, arrived = [0.0] * n, [0.0] * n, [-1.0] * n
    p = len(first) - 1
    link_free = [0.0] * (p * p)
    clock = [0.0] * p
    at = first[:-1]
    waiting = [NONE] * n  # by action: the rank that waits for it
    ready = list(range(p))
    while ready:
        rank = ready.pop()
        i, last, now = at[rank], first[rank + 1], clock[rank]
        while i < last:
            needed = waits_for[i]
            if needed >= 0:
                there = arrived[needed]
                if there < 0.0:
                    waiting[needed] = rank
                    break
                if there > now:
                    now = there
            start[i] = now
            now += duration[i]
            channel = link[i]
            if channel >= 0:
                free = link_free[channel]
                leaves = free if free > now else now
                sent[i] = leaves
                leaves += wire[i]
                link_free[channel] = leaves
                leaves += latency[i]
                arrived[i] = leaves
                if not overlap:
                    now = leaves
            else:
                arrived[i] = now
            if waiting[i] >= 0:
                ready.append(waiting[i])
            i += 1
        at[rank], clock[rank] = i, now
    starts = np.array(start)
    return Progress(
        reached=at,
        start_s=starts,
        end_s=starts + duration_s,
        sent_s=np.array(sent),
        arrived_s=np.array(arrived),
    )
