"""How many requests to admit at once, so that a limit on the time per token is kept. Pure.

What an engine is told as its most sequences: the others queue. Not found by halving alone, since the time per token
does not only rise with the number of requests: a kernel for small batches may end in between
(``small_batch_slowdown``).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_TRIED = 64
"""How many numbers of requests are tried before the one that just keeps the limit is narrowed down."""


def most_within(tpot_us: Callable[[Floats], Floats], running: Floats, limit_us: float) -> Floats:
    """The most whole requests, up to ``running``, whose time per token is within the limit; inf where none is.

    Args:
        tpot_us: of an array of numbers of requests that broadcasts against ``running``, elementwise.
        running: of each layout (and load): how many there would be without a limit; more than keep it.
        limit_us: in microseconds, like ``tpot_us``.
    """
    tried = np.unique(np.round(np.geomspace(1.0, max(2.0, float(np.max(running))), _TRIED)))
    within = tpot_us(tried.reshape(-1, *(1,) * running.ndim)) <= limit_us
    last = len(tried) - 1 - np.argmax(within[::-1], axis=0)
    most, beyond = tried[last], np.minimum(tried[np.minimum(last + 1, len(tried) - 1)], np.ceil(running))
    while (beyond - most > 1).any():
        middle = np.floor((most + beyond) / 2)
        less = tpot_us(middle) <= limit_us
        most, beyond = np.where(less, middle, most), np.where(less, beyond, middle)
    return np.asarray(np.where(within.any(axis=0), most, np.inf), dtype=np.float64)
