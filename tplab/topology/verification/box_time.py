"""How much time the steps of ``measure_box`` have, where there is an end: a machine that is lent goes back at a set
time, whatever it is doing.

Not a time for each step that a user would set: how long one takes on a machine is not known before. Each gets a share
of what is left when it begins, so that what an early step does not need the later ones have. A step is made of parts,
the most telling first; another one begins while the share has room for it, taken to last as long as the longest before
it. What has begun may go on beyond the share, until that turn of the step has had twice as much, but not more than half
of all that was left unless that is its share; then it is stopped, and not tried again. When every step had its turn,
those that had no room for all of their parts share what is left.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from tplab.checks import check_number
from tplab.cluster import Cluster, ClusterError, DerivedRun, RankTimeout
from tplab.cluster.launched import Launched

T = TypeVar("T")
_MOST_MINUTES = 1_000_000
_NAMED = 6
"""Most parts that are named where some are left out."""


class Step(Protocol):
    """A step that is made of parts."""

    @property
    def name(self) -> str:
        """As in the shares."""

    def go_on(self) -> bool:
        """Call ``begin``, and go on until there is no room for another part; whether parts are left."""


class OutOfTime(ClusterError):
    """There is no time left for the step."""


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
        self._shares = shares
        self._waiting = dict(shares)
        self._num_begun = 0
        self._takes_all = self._is_last_turn = False
        self._step = ""
        self._room_until_s = self._latest_s = 0.0
        self._part_tells = self._limit_is_its_own = True

    def run(self, steps: Sequence[Step]) -> None:
        """Let the steps have their turns, and those that had no room for all of their parts further ones, as long as
        any part finds room."""
        waiting = []
        for step in steps:
            if self.is_over:
                self._say(f"{step.name}: left out for want of time")
            elif step.go_on():
                waiting.append(step)
        while waiting:
            self._waiting = {step.name: self._shares[step.name] for step in waiting}
            begun = self._num_begun
            waiting = [step for step in waiting if step.go_on()]
            if self._num_begun == begun:  # no share is large enough for another part: one step may take them all
                self._is_last_turn, self._takes_all = self._takes_all, True

    def begin(self, step: str) -> None:
        """A turn of the step begins: from now on parts and limits are its own."""
        self._step = step
        if self._ends_s is None:
            return
        now, mine = self._clock(), self._waiting.pop(step)
        left_s, others = self._ends_s - now, sum(self._waiting.values())
        share_s = left_s * mine / (mine + others)
        if self._takes_all or not others:
            self._room_until_s = self._latest_s = self._ends_s
        else:
            self._room_until_s = now + share_s
            self._latest_s = now + max(share_s, min(2 * share_s, left_s / 2))

    @property
    def is_over(self) -> bool:
        """Whether nothing more can begin."""
        return self._ends_s is not None and self._clock() >= self._ends_s

    def limit_s(self, cluster: Cluster, most: float | None = None) -> float | None:
        """Longest time in seconds of what begins now on these ranks. Ranks that are not there, as after a fault, are
        waited for first.

        A limit ends all of torchrun's ranks, and the command with them: there a step's share is none.

        Args:
            cluster: the ranks.
            most: longest time in any case; None: no limit, where there is no end.

        Raises:
            OutOfTime: there is no time left for the step.
        """
        self._limit_is_its_own = True
        if self._ends_s is None:
            return most
        if not self.is_over:
            cluster.start()
        left_s = (self._ends_s if isinstance(cluster, Launched) else self._latest_s) - self._clock()
        if left_s <= 0:
            raise OutOfTime("its share of the time is over")
        if most is not None and most < left_s:
            return most
        self._limit_is_its_own = False
        return left_s

    def parts(self, parts: Sequence[T], label: Callable[[T], str]) -> Iterator[T | None]:
        """Yield the step's parts, one after the other, and None while there is no room for the next one: then the turn
        is over. In the last turn say which are left out.

        Args:
            parts: the most telling first.
            label: words for one.
        """
        longest_s = 0.0
        for place, part in enumerate(parts):
            while not self._has_room(longest_s if place else 0.0):
                if self._is_last_turn:
                    left_out = parts[place:]
                    more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
                    named = "; ".join(map(label, left_out[:_NAMED]))
                    self._say(f"{self._step}: left out for want of time: {named}{more}")
                    return
                yield None
            self._num_begun += 1
            self._part_tells, began_s = True, self._clock()
            yield part
            if self._part_tells:
                longest_s = max(longest_s, self._clock() - began_s)

    def _has_room(self, seconds: float) -> bool:
        now = self._clock()
        return self._ends_s is None or (now < self._latest_s and (seconds == 0.0 or now + seconds < self._room_until_s))

    def came_to_nothing(self) -> None:
        """The part that runs was stopped or failed: how long it took says nothing of the next one."""
        self._part_tells = False

    def is_no_fault(self, error: Exception | None) -> bool:
        """Whether it is only that the time was up, and not that a part took longer than such a part may."""
        return isinstance(error, OutOfTime) or (isinstance(error, RankTimeout) and not self._limit_is_its_own)

    def why(self, error: Exception) -> str:
        """What to say of an error. Of ranks that were stopped because the time was up, only what would never have
        ended; of others that ran out of time the first line, since where each of them was is a page."""
        if not isinstance(error, RankTimeout):
            return str(error)
        if self._limit_is_its_own:
            return str(error).partition("\n")[0]
        never = error.hang is not None and error.hang.reason in ("mismatch", "circle")
        return "stopped for want of time" + (f" ({error.hang.sentence})" if error.hang and never else "")


def as_far_as_it_came(run: DerivedRun[T]) -> tuple[T, ClusterError | None]:
    """Wait for a run: its result, or what can be made of its reports until the fault that ended it."""
    try:
        return run.result(), None
    except ClusterError as fault:
        return run.partial(), fault
