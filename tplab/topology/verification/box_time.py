"""How much time the steps of ``measure_box`` have, where there is an end: a machine that is lent goes back at a set
time, whatever it is doing.

Not a time for each step that a user would set: how long one takes on a machine is not known before. Each gets a share
of what is left when it begins, so that what an early step does not need the later ones have. A step is made of parts,
the most telling first; another one begins while the share has room for it, taken to last as long as the longest before
it. What has begun may go on beyond the share, but leaves half of all that is left to the steps after it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from tplab.checks import check_number
from tplab.cluster import Cluster, ClusterError, RankTimeout

T = TypeVar("T")
_NAMED = 6
"""Most parts that are named where some are left out."""


def brief(error: ClusterError | ValueError) -> str:
    """What happened. Of ranks that ran out of time only the first line: where each of them was is no news then."""
    return str(error).partition("\n")[0] if isinstance(error, RankTimeout) else str(error)


class BoxTime:
    """The time that is left, and how much of it the step that is running may take."""

    def __init__(
        self,
        minutes: float | None,
        shares: Mapping[str, float],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The time runs from now.

        Args:
            minutes: for everything; None: no end.
            shares: step -> its part of the time, in the steps' order; in proportion to each other.
            say: called with what is left out.
            clock: seconds that never go back.

        Raises:
            ValueError: minutes that are no positive number.
        """
        self._clock, self._say = clock, say
        self._ends_s = None if minutes is None else clock() + 60 * check_number("minutes", minutes, above=0)
        self._shares = dict(shares)
        self._step, self._step_ends_s = "", 0.0

    def begin(self, step: str) -> None:
        """The step begins: from now on parts and limits are its own."""
        self._step = step
        if self._ends_s is not None:
            now, share = self._clock(), self._shares.pop(step)
            self._step_ends_s = now + (self._ends_s - now) * share / (share + sum(self._shares.values()))

    @property
    def is_over(self) -> bool:
        """Whether nothing more can begin."""
        return self._ends_s is not None and self._clock() >= self._ends_s

    def limit_s(self, cluster: Cluster) -> float | None:
        """Longest time in seconds of what begins now; None where there is no end. Ranks that are not there, as after a
        fault, are waited for first."""
        if self._ends_s is None:
            return None
        cluster.start()
        left_s = max(0.1, self._ends_s - self._clock())  # no time at all would be no limit that ranks take
        return left_s / 2 if self._shares else left_s

    def parts(self, parts: Sequence[T], label: Callable[[T], str]) -> Iterator[T]:
        """Yield those of the step's parts that there is time for, one after the other; say which are left out.

        Args:
            parts: the most telling first.
            label: words for one.
        """
        longest_s = 0.0
        for place, part in enumerate(parts):
            began_s = self._clock()
            if self._ends_s is not None and began_s + longest_s >= self._step_ends_s:
                left_out = parts[place:]
                more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
                self._say(f"{self._step}: left out for want of time: {'; '.join(map(label, left_out[:_NAMED]))}{more}")
                return
            yield part
            longest_s = max(longest_s, self._clock() - began_s)
