"""How much time the steps of ``measure_box`` have, where there is an end: a machine that is lent goes back at a set
time, whatever it is doing.

Not a time for each step that a user would set: how long one takes on a machine is not known before. Each gets a share
of what is left when it begins, so that what an early step does not need the later ones have. A step is made of parts,
the most telling first; another one begins while the share has room for it, taken to last as long as the longest before
it. What has begun may go on beyond the share, until the step has had twice as much or half of all that was left.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from tplab.checks import check_number
from tplab.cluster import Cluster, ClusterError, RankTimeout
from tplab.cluster.launched import Launched

T = TypeVar("T")
_MOST_MINUTES = 1_000_000
_NAMED = 6
"""Most parts that are named where some are left out."""


class OutOfTime(ClusterError):
    """There is no time left to begin anything."""


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
        if minutes is not None:
            minutes = check_number("minutes", minutes, above=0, most=_MOST_MINUTES)
        self._ends_s = None if minutes is None else clock() + 60 * minutes
        self._shares = dict(shares)
        self._step = ""
        self._room_until_s = self._latest_s = 0.0
        self._part_tells = True

    def begin(self, step: str) -> None:
        """The step begins: from now on parts and limits are its own."""
        self._step = step
        if self._ends_s is None:
            return
        now, mine = self._clock(), self._shares.pop(step)
        left_s, others = self._ends_s - now, sum(self._shares.values())
        share_s = left_s * mine / (mine + others)
        self._room_until_s = now + share_s
        self._latest_s = now + max(share_s, min(2 * share_s, left_s / 2)) if others else self._ends_s

    @property
    def is_over(self) -> bool:
        """Whether nothing more can begin."""
        return self._ends_s is not None and self._clock() >= self._ends_s

    def limit_s(self, cluster: Cluster, most: float | None = None) -> float | None:
        """Longest time in seconds of what begins now on these ranks. Ranks that are not there, as after a fault, are
        waited for first.

        A limit ends all of torchrun's ranks, and the command with them: there only the end of everything is one.

        Args:
            cluster: the ranks.
            most: longest time in any case; None: no limit, where there is no end.

        Raises:
            OutOfTime: there is no time left.
        """
        if self._ends_s is None:
            return most
        cluster.start()
        left_s = (self._ends_s if isinstance(cluster, Launched) else self._latest_s) - self._clock()
        if left_s <= 0:
            raise OutOfTime("there is no time left")
        return left_s if most is None else min(left_s, most)

    def parts(self, parts: Sequence[T], label: Callable[[T], str]) -> Iterator[T]:
        """Yield those of the step's parts that there is time for, one after the other; say which are left out.

        Args:
            parts: the most telling first.
            label: words for one.
        """
        longest_s = 0.0
        for place, part in enumerate(parts):
            began_s = self._clock()
            no_room = place and began_s + longest_s >= self._room_until_s
            if self._ends_s is not None and (no_room or began_s >= self._latest_s):
                left_out = parts[place:]
                more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
                self._say(f"{self._step}: left out for want of time: {'; '.join(map(label, left_out[:_NAMED]))}{more}")
                return
            self._part_tells = True
            yield part
            if self._part_tells:
                longest_s = max(longest_s, self._clock() - began_s)

    def came_to_nothing(self) -> None:
        """The part that runs was stopped or failed: how long it took says nothing of the next one."""
        self._part_tells = False

    def is_no_fault(self, error: Exception | None) -> bool:
        """Whether it is only that the time was up."""
        return isinstance(error, OutOfTime) or (self._ends_s is not None and isinstance(error, RankTimeout))

    def why(self, error: Exception) -> str:
        """What to say of an error. Of ranks that were stopped because the time was up, only who kept others waiting; of
        others that ran out of time the first line, since where each of them was is a page."""
        if not isinstance(error, RankTimeout):
            return str(error)
        if self._ends_s is None:
            return str(error).partition("\n")[0]
        waited = error.hang is not None and error.hang.reason != "slow"
        return "stopped for want of time" + (f" ({error.hang.sentence})" if error.hang and waited else "")
