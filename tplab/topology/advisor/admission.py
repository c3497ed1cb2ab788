"""How many requests to admit at once, so that a limit on the time per token is kept. Pure.

The number that an engine is given as its most sequences: the others queue. Not found by halving alone, since the time
per token does not only rise with the number of requests: a kernel for small batches may end in between
(``small_batch_slowdown``). So many numbers are tried, from the most down, and only between two neighbours it is halved.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tplab.topology.advisor.allreduce import Floats, Ints

_TRIED = 64
"""How many numbers of requests are tried before the one that just keeps the limit is narrowed down."""
LOADS_AT_ONCE = 8
"""Number of loads tried at once: few, to stop early and to stay in the processor's cache."""


def most_within(
    full_tpot_us: Callable[[Ints], Callable[[Floats], Floats]],
    running: Floats,
    over: "NDArray[np.bool_]",
    limit_us: float,
) -> Floats:
    """The most whole requests below ``running`` whose time per token is within the limit; inf where none is, and where
    the limit is not missed with all that run.

    Args:
        full_tpot_us: for the layouts at these places, a function from requests running on each replica, with others in
            the queue, to the time per token, elementwise.
        running: how many there would be without a limit, by load (if there are several) and layout.
        over: where that misses the limit.
        limit_us: in microseconds.
    """
    columns, column = np.unique(np.nonzero(over)[-1], return_inverse=True)
    running_of = running[over]
    tried = np.unique(np.round(np.geomspace(1.0, max(2.0, float(np.max(running))), _TRIED)))
    least, largest = np.full(len(columns), np.inf), np.zeros(len(columns))
    np.minimum.at(least, column, running_of)
    np.maximum.at(largest, column, running_of)
    within = np.zeros((len(tried), len(columns)), dtype=np.bool_)
    for start in range(len(tried) - 1, -1, -LOADS_AT_ONCE):  # until every layout has one that all its loads reach
        part = slice(max(0, start + 1 - LOADS_AT_ONCE), start + 1)
        open_ = ~(within & (tried[:, None] < least)).any(axis=0) & (tried[part][0] < largest)
        if open_.any():
            rows = tried[part, None]
            times = full_tpot_us(columns[open_])(rows * np.ones(np.sum(open_)))
            within[part, open_] = (times <= limit_us) & (rows < largest[open_])
    last = np.maximum.accumulate(np.where(within, np.arange(len(tried))[:, None], -1))
    last = np.vstack([np.full(len(columns), -1), last])[np.searchsorted(tried, running_of), column]
    beyond = np.minimum(tried[np.minimum(last + 1, len(tried) - 1)], np.ceil(running_of))
    # Each layout between two numbers once, however many loads end there.
    cases, case = np.unique(np.stack([column, last, beyond]), axis=1, return_inverse=True)
    last, beyond = cases[1].astype(np.intp), cases[2]
    most, tpot_us = tried[last], full_tpot_us(columns[cases[0].astype(np.intp)])
    while (beyond - most > 1).any():
        middle = np.floor((most + beyond) / 2)
        less = tpot_us(middle) <= limit_us
        most, beyond = np.where(less, middle, most), np.where(less, beyond, middle)
    admitted = np.full(running.shape, np.inf)
    admitted[over] = np.where(last >= 0, most, np.inf)[case.ravel()]
    return admitted
