"""Where the best layout changes: the link bandwidth, and the number of requests, at which another one takes over.

A recommendation is worth more with its edge: "TP 8 down to 37 GB/s" tells the owner of a 450 GB/s machine not to worry,
and that of a 40 GB/s one to measure. All layouts are computed at a grid of values at once; between two neighbours with
different winners the edge is found by halving.

Only the bandwidth moves, not the latency: a link that is slower in both flips earlier.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tplab.models.shards import Layout
from tplab.topology.advisor.constants import FAMILIES
from tplab.topology.advisor.latency import Floats, Layouts, Served, Server
from tplab.topology.advisor.wording import count, fixed
from tplab.topology.advisor.workload import Workload

_HALVINGS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip:
    """One change of the best layout along one quantity."""

    quantity: str
    """``link bandwidth`` (of all links inside a node) or ``concurrency``."""
    at: float
    """Value at which it changes: GB/s of the link that limits the recommended layout (else of the fastest), or
    requests."""
    below: Layout
    """Best layout below that value."""
    above: Layout
    """Best layout above that value."""
    here: float | None = None
    """Present value, in the same unit; None if unknown."""

    def __str__(self) -> str:
        wide = self.quantity == "link bandwidth"
        at, here = (None if x is None else fixed(x) if wide else count(math.ceil(x)) for x in (self.at, self.here))
        now = f" (here {here})" if here else ""
        return f"{self.below} below {at} {'GB/s' if wide else 'requests'}{now}, {self.above} above"


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
    alike."""

    def best(scales: Floats) -> list[int]:
        return [int(np.argmax(preference(_load(scaled(server, float(scale)))))) for scale in scales]

    scales = np.geomspace(1 / spread, spread, 25)
    return _edges("link bandwidth", scales, best, layouts, reference_GBps, here=reference_GBps)


def concurrency_flips(
    server: Server, layouts: Sequence[Layout], preference: Preference, most: int = 4096
) -> list[Flip]:
    """Flips from 1 to ``most`` requests in flight."""

    def best(loads: Floats) -> list[int]:
        served = server.serve(np.asarray(loads, dtype=np.float64)[:, None])
        return [int(i) for i in np.argmax(preference(served), axis=-1)]

    loads = np.unique(np.round(np.geomspace(1, most, 40)))
    return _edges("concurrency", loads, best, layouts, 1.0, here=server.workload.concurrency)


def scaled(server: Server, scale: float) -> Server:
    """The same server with all links inside nodes ``scale`` times as wide (where measured: all links that were)."""
    lay = server.layouts
    inside = lay.hop_family != FAMILIES.index("network")
    groups = replace(lay.groups, bandwidth_GBps=lay.groups.bandwidth_GBps * scale, width=lay.groups.width * scale)
    hops = np.where(inside, lay.hop_GBps * scale, lay.hop_GBps)
    made: Layouts = replace(lay, groups=groups, hop_GBps=hops)
    return replace(server, layouts=made)


def _load(server: Server) -> Served:
    w: Workload = server.workload
    if w.request_rate is not None:
        return server.at_rate(w.request_rate)[0]
    return server.serve(float(w.concurrency or 1))


def _edges(
    quantity: str,
    values: Floats,
    best: Callable[[Floats], list[int]],
    layouts: Sequence[Layout],
    unit: float,
    here: float | None,
) -> list[Flip]:
    winners = best(values)
    flips = []
    for i in range(len(values) - 1):
        if winners[i] == winners[i + 1]:
            continue
        low, high = float(values[i]), float(values[i + 1])
        below, above = winners[i], winners[i + 1]
        for _ in range(_HALVINGS):
            middle = np.sqrt(low * high)
            if best(np.array([middle]))[0] == below:
                low = float(middle)
            else:
                high = float(middle)
        change = {"below": layouts[below], "above": layouts[above]}
        flips.append(Flip(quantity=quantity, at=high * unit, here=here, **change))
    return flips
