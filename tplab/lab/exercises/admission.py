"""Notebook 05: which requests a decoding ring takes in, and in how many micro-batches, under a limit on TPOT (the time
per output token).

Judged by the simulated ring: round by round, once it has filled. What is possible is the best that a search over the
number of requests and of micro-batches finds, requests dealt so that micro-batches take alike; it comes within a few
percent of what no dealing can beat.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tplab.lab.exercises.answers import as_count
from tplab.lab.exercises.trial import check_function
from tplab.lab.exercises.verdict import NotYetError, Verdict, checker, not_yet_for
from tplab.pipeline import formulas
from tplab.pipeline.build import build_schedule
from tplab.pipeline.costs import Costs
from tplab.pipeline.serving import steady_round
from tplab.pipeline.simulation import simulate
from tplab.shown import counted, duration, fixed, shown

ASKED = 0.95
"""Share of the possible tokens per second that is asked."""
_STEPS = 9
"""Tokens of each micro-batch that are simulated."""
_MOST_PER_STAGE = 4
"""Micro-batches for every stage up to which the search for what is possible goes."""

Groups = list[list[int]]
"""Micro-batches: places in the queue of the requests of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeRing:
    """A pipeline that decodes: what a step costs, and how long a token may take."""

    weights_s: tuple[float, ...]
    """Seconds that each stage takes for a step whatever the micro-batch: weights are read from memory."""
    per_request_s: float
    """Seconds that each stage takes in addition for every request of a micro-batch."""
    per_context_token_s: float
    """The same for every token in the caches of its requests."""
    hop_s: float
    """Latency of a message from a stage to the next, and of the token's way back to the first, seconds."""
    tpot_limit_s: float
    """Longest time between two tokens of a request, seconds."""

    @property
    def num_stages(self) -> int:
        """Stages p."""
        return len(self.weights_s)

    def step_s(self, contexts: Sequence[int]) -> list[float]:
        """Seconds of each stage for one step of a micro-batch whose requests have these contexts, in tokens."""
        own = len(contexts) * self.per_request_s + sum(contexts) * self.per_context_token_s
        return [weights + own for weights in self.weights_s]

    def __str__(self) -> str:
        return f"{counted(self.num_stages, 'stage')} and at most {duration(self.tpot_limit_s * 1e3)} per token"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Load:
    ring: DecodeRing
    queue: tuple[int, ...]

    def times(self, groups: Groups) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """(micro-batches, stages): seconds of a step."""
        return np.array([self.ring.step_s([self.queue[i] for i in group]) for group in groups])

    def round_s(self, groups: Groups) -> tuple[float, float]:
        """Seconds between two tokens of a request, and the stages' idle share, simulated."""
        k, times = len(groups), self.times(groups)
        table = build_schedule("decode-ring", self.ring.num_stages, k * _STEPS, num_in_flight=k)
        costs = Costs(forward_s=np.tile(times, (_STEPS, 1)).T, hop_s=self.ring.hop_s)
        return steady_round(simulate(table, costs), k)

    def dealt(self, count: int, k: int) -> Groups:
        """The first ``count`` requests in k micro-batches that take nearly alike: the dearest first, each to the
        micro-batch that has least so far."""
        groups: Groups = [[] for _ in range(k)]
        load = [0.0] * k
        for i in sorted(range(count), key=lambda i: -self.queue[i]):
            j = load.index(min(load))
            groups[j].append(i)
            load[j] += self.ring.per_request_s + self.queue[i] * self.ring.per_context_token_s
        return groups

    def tpot_s(self, groups: Groups) -> float:
        """Seconds between two tokens of a request by the formula: a token's way round, or the slowest stage's work."""
        times, p = self.times(groups), self.ring.num_stages
        trip = times.sum(axis=1).max() + (p * self.ring.hop_s if p > 1 else 0)
        return float(max(trip, times.sum(axis=0).max()))

    def best(self) -> Groups:
        """Micro-batches with the most tokens per second that keep the limit; none where nothing does.

        For each number of micro-batches as many requests as the limit allows: every further one adds a token to a round
        and less than its share of the weights' time.
        """
        best: tuple[float, Groups] = 0.0, []
        for k in range(1, min(len(self.queue), _MOST_PER_STAGE * self.ring.num_stages) + 1):
            low, high = k - 1, len(self.queue)
            while low < high:
                middle = (low + high + 1) // 2
                kept = self.tpot_s(self.dealt(middle, k)) <= self.ring.tpot_limit_s
                low, high = (middle, high) if kept else (low, middle - 1)
            groups = self.dealt(low, k)
            if low >= k and low / self.tpot_s(groups) > best[0]:
                best = low / self.tpot_s(groups), groups
        return best[1]

    def __str__(self) -> str:
        return f"{counted(len(self.queue), 'request')}, {self.ring}"


def _ring(stages: int, limit_s: float, hop_s: float = 5e-4, last: float = 1.0) -> DecodeRing:
    weights = (8e-3,) * (stages - 1) + (8e-3 * last,)
    return DecodeRing(
        weights_s=weights, per_request_s=5e-5, per_context_token_s=1e-8, hop_s=hop_s, tpot_limit_s=limit_s
    )


def _loads() -> Iterator[_Load]:
    draw = random.Random()

    def queue(count: int, least: int = 2_000, most: int = 6_000) -> tuple[int, ...]:
        return tuple(draw.randrange(least, most) for _ in range(count))

    yield _Load(ring=_ring(4, 0.048), queue=queue(200))
    yield _Load(ring=_ring(4, 0.07, hop_s=6e-3), queue=queue(240))  # more in flight than stages
    yield _Load(ring=_ring(2, 0.028, last=1.5), queue=tuple(sorted(queue(160), reverse=True)))
    yield _Load(ring=_ring(4, 0.2), queue=queue(3))  # fewer requests than stages
    yield _Load(ring=_ring(1, 0.02), queue=queue(180))
    for _ in range(2):
        stages, hop_s = draw.randrange(2, 7), draw.uniform(0, 5e-3)
        limit_s = stages * (8e-3 + hop_s) * draw.uniform(1.4, 2)
        yield _Load(ring=_ring(stages, limit_s, hop_s, draw.uniform(1, 1.4)), queue=queue(draw.randrange(150, 250)))


@checker("05-admit")
def check_admit(admit: Callable[[list[int], DecodeRing], Any]) -> Verdict:
    """``admit(queue, ring)``: the micro-batches to decode together, each a list of places in ``queue``.

    ``queue`` has the context of each waiting request in tokens, first come first; those that are left out must be the
    last ones. Passes with at least 95 % of the tokens per second that are possible and no token later than
    ``ring.tpot_limit_s`` after the one before, for 7 loads, drawn anew each time.
    """
    check_function(admit)
    count, least = 0, 1.0
    for load in _loads():
        try:
            made = admit(list(load.queue), load.ring)
        except Exception as error:
            not_yet_for(error, admit, f"For {load}")
        try:
            groups = _groups(made, len(load.queue))
        except ValueError as error:
            raise NotYetError(f"For {load}: {error}") from None
        share, fault = _judged(load, groups)
        if fault:
            raise NotYetError(f"For {load}: {fault}")
        count, least = count + 1, min(least, share)
    return Verdict(
        True, f"{count} loads, every limit kept, at least {least:.0%} of the tokens per second that are possible."
    )


def _groups(made: Any, waiting: int) -> Groups:
    """What was returned, as places in the queue. Raises ``ValueError`` in the learner's words."""
    example = "[[0, 2], [1, 3]]: requests 0 and 2 in one micro-batch, 1 and 3 in another"
    try:
        groups = [[_place(place, waiting) for place in group] for group in made]
    except TypeError:
        raise ValueError(f"it must return a list of micro-batches such as {example}; got {shown(made)}.") from None
    places = [place for group in groups for place in group]
    if not places:
        raise ValueError("it admits no request at all.")
    if [] in groups:
        raise ValueError(f"micro-batch {groups.index([])} has no request.")
    twice = sorted({place for place in places if places.count(place) > 1})
    if twice:
        raise ValueError(f"request {twice[0]} is admitted more than once.")
    passed_over = min(set(range(waiting)) - set(places), default=waiting)
    if passed_over < max(places):
        raise ValueError(
            f"request {passed_over} is passed over, while request {max(places)}, which came later, is admitted: those "
            f"left out must be the last ones."
        )
    return groups


def _place(value: Any, waiting: int) -> int:
    number = as_count(value)
    if number is None or not 0 <= number < waiting:
        raise ValueError(f"{shown(value)} is no place in the queue: they go from 0 to {waiting - 1}.")
    return number


def _judged(load: _Load, groups: Groups) -> tuple[float, str]:
    """Share of the possible tokens per second, and what is wrong, in words; empty if nothing is."""
    ring, best = load.ring, load.best()
    count, k = sum(map(len, groups)), len(groups)
    took, idle = load.round_s(groups)
    chosen = f"{counted(count, 'request')} in {k} micro-batch{'es' if k > 1 else ''}"
    limit = duration(ring.tpot_limit_s * 1e3)
    if took > ring.tpot_limit_s * (1 + 1e-9):
        return 0.0, (
            f"with {chosen} a token takes {duration(took * 1e3)}, and the limit is {limit}: too many at once. "
            f"{_why_late(load, groups)}"
        )
    best_rate = sum(map(len, best)) / load.round_s(best)[0]
    share = count / took / best_rate
    if share >= ASKED:
        return share, ""
    gives = "gives" if count == 1 else "give"
    said = (
        f"{chosen} {gives} {fixed(count / took)} tokens/s, {fixed(best_rate)} are possible ({share:.0%}; "
        f"{ASKED:.0%} is asked)."
    )
    if uneven := _uneven(load, groups, 1.1 if took < 0.98 * ring.tpot_limit_s else 1.01):
        return share, f"{said} {uneven}"
    needed = formulas.decode_in_flight_needed(load.times(groups).mean(axis=0).tolist(), ring.hop_s)
    if k < min(needed, len(load.queue)) and idle > 0.1:
        return share, (
            f"{said} Too few in flight: the stages wait {idle:.0%} of the time for tokens that are still on their way "
            f"round."
        )
    if k > len(best):
        return share, (
            f"{said} Every micro-batch makes each stage read its weights once more: "
            f"{duration(k * ring.weights_s[0] * 1e3)} of the {duration(took * 1e3)} of a round."
        )
    return share, f"{said} A token takes {duration(took * 1e3)}, and may take {limit}: there is room for more."


def _why_late(load: _Load, groups: Groups) -> str:
    k, count, stages = len(groups), sum(map(len, groups)), load.ring.num_stages
    if k == 1 < min(stages, count):
        return "With a single micro-batch every stage works through all of them, one stage after the other."
    if k > 2 * stages:
        return "Every micro-batch makes each stage read its weights once more."
    return _uneven(load, groups, 1.1) or "Some have to wait."


def _uneven(load: _Load, groups: Groups, ratio: float) -> str:
    """What to say where a micro-batch takes more than ``ratio`` times the mean; empty where none does."""
    steps = load.times(groups).max(axis=1)
    if steps.max() <= ratio * steps.mean():
        return ""
    return (
        f"Micro-batch {steps.argmax()} takes {duration(steps.max() * 1e3)} on a stage, the mean is "
        f"{duration(steps.mean() * 1e3)}, and what follows waits for it: look at how the contexts are dealt out."
    )
