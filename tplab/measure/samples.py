"""What ranks reported of a measurement, reduced. No torch.

Every sample is the slowest rank's, because a collective is over when its last rank is; then the median over samples.
The 95th percentile and the minimum are kept, and the median of the fastest rank: what lies between the two is waiting,
not transfer.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tplab.cluster import Report


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Samples:
    """Times of one thing in microseconds, the same number of samples on every rank that timed it."""

    us: NDArray[np.float64]
    """Times, (ranks, samples)."""
    correct: bool = True
    """Whether every rank found every result right."""

    @property
    def slowest_us(self) -> NDArray[np.float64]:
        """The slowest rank's time of every sample."""
        return np.asarray(self.us.max(axis=0), dtype=np.float64)

    @property
    def p50_us(self) -> float:
        """Median of the slowest rank's times."""
        return float(np.median(self.slowest_us))

    @property
    def p95_us(self) -> float:
        """95th percentile of the slowest rank's times."""
        return float(np.quantile(self.slowest_us, 0.95))

    @property
    def min_us(self) -> float:
        """Shortest of the slowest rank's times."""
        return float(self.slowest_us.min())

    @property
    def fastest_rank_p50_us(self) -> float:
        """Median of the fastest rank's times: without the time that others wait for the last."""
        return float(np.median(self.us.min(axis=0)))


def samples_of(reports: "Iterable[Report]", num_ranks: int | None = None) -> dict[Any, Samples]:
    """By key, the samples that all ranks have reported so far.

    Args:
        reports: those with a field ``samples`` count: key -> microseconds, a number or several. A field ``correct``
            speaks of all results of its report.
        num_ranks: how many ranks time everything: what some of them have not reported is left out. None: whoever
            reported a key is all there is.
    """
    times: dict[Hashable, dict[int, list[float]]] = {}
    wrong: set[Hashable] = set()
    for report in list(reports):
        for key, us in report.fields.get("samples", {}).items():
            times.setdefault(key, {}).setdefault(report.rank, []).extend(np.atleast_1d(us).tolist())
            if not report.fields.get("correct", True):
                wrong.add(key)
    made = {}
    for key, by_rank in times.items():
        complete = min(map(len, by_rank.values()))
        if complete and (num_ranks is None or len(by_rank) == num_ranks):
            us = np.array([by_rank[rank][:complete] for rank in sorted(by_rank)])
            made[key] = Samples(us=us, correct=key not in wrong)
    return made
