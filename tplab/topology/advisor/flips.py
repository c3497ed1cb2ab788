"""Where the best layout changes: the link bandwidth, the links' latency, and the number of requests, at which another
one takes over.

A recommendation is worth more with its edge: "TP 8 down to 37 GB/s" tells the owner of a 450 GB/s machine not to worry,
and that of a 40 GB/s one to measure. All layouts are computed at a grid of values at once; between two neighbours with
different winners the edge is narrowed down, between the two alone.

Bandwidth and latency move one at a time: a link that is slower in both flips earlier.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tplab.models.shards import Layout
from tplab.shown import amount, fixed
from tplab.topology.advisor.allreduce import Floats, Ints
from tplab.topology.advisor.latency import Server
from tplab.topology.advisor.layouts import Layouts
from tplab.topology.advisor.served import Served

_PARTS = 16, 8, 8
"""Numbers of parts that an edge is narrowed down to one of, one after the other."""
_UNITS = {"link bandwidth": "GB/s", "link latency": "us", "concurrency": "requests"}
_AT_ONCE = 500
"""Number of layouts computed at once, so that their numbers stay in the processor's cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip:
    """One change of the best layout along one quantity."""

    quantity: str
    """``link bandwidth``, ``link latency`` (of all links inside a node) or ``concurrency``: a key of ``_UNITS``."""
    at: float
    """Value at which it changes: GB/s or us of the link that limits the recommended layout (else of the fastest), or
    requests."""
    below: Layout
    """Best layout below that value."""
    above: Layout
    """Best layout above that value."""
    here: float | None = None
    """Present value, in the same unit; None if unknown."""

    def __str__(self) -> str:
        whole = self.quantity == "concurrency"
        at, here = (None if x is None else amount(math.ceil(x)) if whole else fixed(x) for x in (self.at, self.here))
        now = f" (here {here})" if here else ""
        return f"{self.below} below {at} {_UNITS[self.quantity]}{now}, {self.above} above"


Preference = Callable[[Served], Floats]
"""A function to values on whose last axis there is one per layout; larger is better."""


def bandwidth_flips(
    server: Server,
    layouts: Sequence[Layout],
    preference: Preference,
    reference_GBps: float,
    spread: float = 64.0,
) -> list[Flip]:
    """Flips from ``reference_GBps / spread`` to ``reference_GBps · spread``, with all links inside nodes scaled
    alike.

    Args:
        server: the latency model of the layouts.
        layouts: the same layouts, for the answer.
        preference: what the layouts are ranked by.
        reference_GBps: present bandwidth, in which the answer is given.
        spread: how far to look, as a factor down and up.
    """

    prefer = _with_links(server, preference, lambda columns, scales: columns.scaled(scales))
    scales = np.geomspace(1 / spread, spread, 25)
    return _edges("link bandwidth", scales, prefer, layouts, reference_GBps, here=reference_GBps)


def along_bandwidth(server: Server, scales: Floats) -> Served:
    """What all layouts would do with all links inside nodes so many times as wide: arrays of scales x layouts, one
    after the other."""
    at = np.tile(np.arange(len(server.layouts)), len(scales))
    some = server.take(at)
    return replace(some, layouts=some.layouts.scaled(np.repeat(scales, len(server.layouts)))).asked()


def latency_flips(
    server: Server, layouts: Sequence[Layout], preference: Preference, reference_us: float, most_us: float = 1e4
) -> list[Flip]:
    """Flips from ``reference_us`` to ``most_us``, with as much more latency on all links inside nodes.

    Args:
        server, layouts, preference: as in ``bandwidth_flips``.
        reference_us: present latency, in which the answer is given.
        most_us: how far to look.
    """
    least = max(reference_us, 0.1)
    prefer = _with_links(server, preference, lambda columns, us: columns.slower(us - least))
    return _edges("link latency", np.geomspace(least, most_us, 25), prefer, layouts, 1.0, here=reference_us)


def _with_links(
    server: Server, preference: Preference, changed: Callable[[Layouts, Floats], Layouts]
) -> Callable[[Floats, Ints], Floats]:
    """What layouts are worth with links that are changed by values, one for each layout."""

    def prefer(values: Floats, at: Ints) -> Floats:
        values, at = np.broadcast_arrays(values, at)
        parts = np.array_split(np.arange(at.size), max(1, at.size // _AT_ONCE))
        return np.concatenate([prefer_some(values.ravel()[part], at.ravel()[part]) for part in parts]).reshape(at.shape)

    def prefer_some(values: Floats, at: Ints) -> Floats:
        some = server.take(at)
        return preference(replace(some, layouts=changed(some.layouts, values)).asked())

    return prefer


def concurrency_flips(
    server: Server, layouts: Sequence[Layout], preference: Preference, most: int = 4096
) -> list[Flip]:
    """Flips from 1 to ``most`` requests in flight."""

    def prefer(loads: Floats, at: Ints) -> Floats:
        return preference(server.take(at).serve(loads))

    loads = np.unique(np.round(np.geomspace(1, most, 40)))
    return _edges("concurrency", loads, prefer, layouts, 1.0, here=server.workload.concurrency)


def _edges(
    quantity: str,
    values: Floats,
    prefer: Callable[[Floats, Ints], Floats],
    layouts: Sequence[Layout],
    unit: float,
    here: float | None,
) -> list[Flip]:
    """``prefer`` takes values, a row of them each, and the layouts of the columns."""
    everyone = np.arange(len(layouts))
    winners = np.argmax(prefer(values[:, None], everyone), axis=1)
    before = np.nonzero(winners[:-1] != winners[1:])[0]
    if not len(before):
        return []
    low, high, below, edge = values[before], values[before + 1], winners[before], np.arange(len(before))
    among = np.stack([below, winners[before + 1]], axis=1)
    for _ in layouts:
        among = np.sort(among, axis=1)
        lows, highs = low, high
        for parts in _PARTS:
            points = lows * (highs / lows) ** (np.arange(parts + 1)[:, None] / parts)
            inner = np.repeat(points[1:-1], among.shape[1], axis=1)
            best = np.argmax(prefer(inner, among.ravel()).reshape(parts - 1, *among.shape), axis=2)
            beyond = below != np.take_along_axis(among, best.T, axis=1).T
            first, last = np.zeros_like(edge), np.full_like(edge, parts)
            while (last - first > 1).any():
                middle = (first + last) // 2
                over = beyond[middle - 1, edge]
                first, last = np.where(over, first, middle), np.where(over, middle, last)
            lows, highs = points[first, edge], points[last, edge]
        winner = np.argmax(prefer(lows[:, None], everyone), axis=1)
        if (winner == below).all():
            break
        among = np.hstack([among, winner[:, None]])  # a third one wins in between: once more, with it
    return [
        Flip(quantity=quantity, at=float(at) * unit, here=here, below=layouts[b], above=layouts[a])
        for at, b, a in zip(highs, below, winners[before + 1], strict=True)
    ]
