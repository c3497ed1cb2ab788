"""Each rank as far as it gets: the loop under ``simulate`` (with times) and ``validate`` (without).

There are two of it, by rank and in waves, which give the same numbers: Python's is the faster for few ranks, numpy's
for many.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tplab.pipeline.table import NONE, Arrows

Seconds = NDArray[np.float64]

_MANY_RANKS = 16
_NOT_YET = -1.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Progress:
    """Where every rank stopped, and when its actions ran."""

    reached: list[int]
    """Position of the action that each rank could not start; beyond its last one if it ran them all."""
    start_s: Seconds
    end_s: Seconds
    sent_s: Seconds
    """Time at which the action's message starts on the link, in seconds."""
    arrived_s: Seconds
    """Time at which the action's message arrives, in seconds; the action's end where it sends none."""

    def stuck(self, arrows: Arrows) -> list[int]:
        """Ranks that did not get to the end of their list."""
        return [rank for rank, position in enumerate(self.reached) if position < arrows.first[rank + 1]]


def run_through(arrows: Arrows, duration_s: Seconds, wire_s: Seconds, latency_s: Seconds, *, overlap: bool) -> Progress:
    """Run every rank until it waits for what is not there yet, and go on with those that waited when it is.

    Args:
        duration_s, wire_s, latency_s: per action: its own time, and its message's on the link and after it, both 0
            where there is no message.
        overlap: a rank goes on while its message travels; if not, when it has arrived.
    """
    run = run_in_waves if len(arrows.first) - 1 >= _MANY_RANKS else run_by_rank
    return run(arrows, duration_s, wire_s, latency_s, overlap=overlap)


def run_by_rank(arrows: Arrows, duration_s: Seconds, wire_s: Seconds, latency_s: Seconds, *, overlap: bool) -> Progress:
    """One rank at a time, as far as it gets, in plain Python: some 1 us per action.

    Args:
        arrows: what each action waits for.
        duration_s: time of each action.
        wire_s, latency_s: time of each action's message on its link, and until it has arrived.
        overlap: whether a rank goes on while what it sends travels.
    """
    first, n = arrows.first, len(duration_s)
    waits_for, link = arrows.waits_for.tolist(), arrows.link.tolist()
    duration, wire, latency = duration_s.tolist(), wire_s.tolist(), latency_s.tolist()
    start, sent = [0.0] * n, [0.0] * n
    arrived = [_NOT_YET] * n + [0.0]  # the last is what those that wait for NONE = -1 find
    p = len(first) - 1
    link_free, clock, at = [0.0] * (p * p), [0.0] * p, first[:-1]
    waiting: dict[int, list[int]] = {}  # by action: the ranks that wait for it
    ready = list(range(p))
    while ready:
        rank = ready.pop()
        now = clock[rank]
        for i in range(at[rank], first[rank + 1]):
            there = arrived[waits_for[i]]
            if there > now:
                now = there
            elif there < 0.0:
                waiting.setdefault(waits_for[i], []).append(rank)
                break
            start[i] = now
            now += duration[i]
            channel = link[i]
            if channel >= 0:
                leaves = link_free[channel]
                if leaves < now:
                    leaves = now
                sent[i] = leaves
                leaves += wire[i]
                link_free[channel] = leaves
                leaves += latency[i]
                arrived[i] = leaves
                if not overlap:
                    now = leaves
            else:
                arrived[i] = now
            if i in waiting:
                ready += waiting.pop(i)
        else:
            i = first[rank + 1]
        at[rank], clock[rank] = i, now
    return _progress(at, np.array(start), duration_s, np.array(sent), np.array(arrived))


def run_in_waves(
    arrows: Arrows, duration_s: Seconds, wire_s: Seconds, latency_s: Seconds, *, overlap: bool
) -> Progress:
    """All ranks at once, an action of each that can go on, in numpy: some 20 us per wave, which pays from about 16
    ranks. The same numbers to the last bit, for they are the same sums and maxima.

    Args:
        arrows: what each action waits for.
        duration_s: time of each action.
        wire_s, latency_s: time of each action's message on its link, and until it has arrived.
        overlap: whether a rank goes on while what it sends travels.
    """
    n, p = len(duration_s), len(arrows.first) - 1
    last, at = np.array(arrows.first[1:]), np.array(arrows.first[:-1])
    no_link = p * p
    link = np.where(arrows.link == NONE, no_link, arrows.link)
    start, sent = np.zeros(n), np.zeros(n)
    arrived = np.full(n + 1, _NOT_YET)
    arrived[NONE] = 0.0
    link_free, clock = np.zeros(no_link + 1), np.zeros(p)
    running = np.flatnonzero(at < last)
    while True:
        i = at[running]
        there = arrived[arrows.waits_for[i]]
        going = np.flatnonzero(there >= 0.0)
        if not len(going):
            break
        ranks, i = running[going], i[going]
        now = np.maximum(clock[ranks], there[going])
        start[i] = now
        now += duration_s[i]
        channel = link[i]
        leaves = np.maximum(link_free[channel], now)
        sent[i] = leaves
        leaves += wire_s[i]
        link_free[channel] = leaves
        link_free[no_link] = 0.0
        leaves += latency_s[i]
        arrived[i] = leaves
        clock[ranks] = now if overlap else leaves
        at[ranks] = i + 1
        if (at[ranks] == last[ranks]).any():
            running = np.flatnonzero(at < last)
    return _progress(at.tolist(), start, duration_s, sent, arrived)


def _progress(at: list[int], start: Seconds, duration_s: Seconds, sent: Seconds, arrived: Seconds) -> Progress:
    return Progress(reached=at, start_s=start, end_s=start + duration_s, sent_s=sent, arrived_s=arrived[:-1])
