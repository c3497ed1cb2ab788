"""A serving engine's loop, step by step: which requests a step holds, and when each gets its tokens. Pure.

Not a second model of time: how long a step takes is asked for (``EngineLoop.step``). What is here is the queue: when
requests arrive, who is admitted, how prompts get their turn (``workload.PREFILL_POLICIES``), who has ended. That is
what percentiles need and means do not.

Steps without prompts are alike until a request ends or arrives, so they are taken all at once: the loop turns a few
times per request, and once per chunk of a long prompt.

First come, first served: a request that finds no room keeps all behind it waiting. On a pipeline a step is a round of
all micro-batches, in which every decoding request gets a token.

Known to be wrong: requests are never thrown out again (preemption), and each is counted with the cache of
``EngineLoop.reserves`` throughout; a step costs the same whatever the lengths of the requests in it; with speculative
decoding every step brings the same number of tokens.
"""

import heapq
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tplab.checks import check_one_of
from tplab.topology.advisor.workload import PREFILL_POLICIES

Floats = NDArray[np.float64]
_GRID = 40
"""Points per axis of a table of step times."""


StepTimes: TypeAlias = Callable[[float, float, int], tuple[float, float]]
"""(requests, prompt tokens, requests that wait to be admitted) -> time until the next step starts, and how much later
the prompts are through: a pipeline goes on before it is empty; in us. See ``tabulated``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLoop:
    """How one replica's engine fills its steps."""

    step: StepTimes
    """Times of a step in which so many requests decode once and so many tokens of prompts are computed besides."""
    prefill: StepTimes | None = None
    """Times of a step of prompts alone for which so many requests wait that decode; None: as ``step`` with none."""
    policy: str = "mixed"
    """How prompts get their turn: one of ``PREFILL_POLICIES`` but ``auto``."""
    token_budget: float = math.inf
    """Most tokens in a step, those of decoding requests included; of a pipeline: in each micro-batch."""
    micro_batches: float = 1.0
    """Most micro-batches of a round; prompts alone go in one after another."""
    tokens_per_sequence: float = 1.0
    """Tokens that a decoding request takes of it."""
    largest_batch: float = math.inf
    """Most requests at once."""
    capacity_tokens: float = math.inf
    """Tokens that the cache holds."""
    reserves: bool = False
    """Whether a request takes the cache of its last token from the start; if not, that of half its output."""
    cached_prefix: float = 0.0
    """Share of each prompt that is cached already: neither computed nor kept anew."""
    tokens_per_step: float = 1.0
    """Tokens that a decoding request gets in a step, on average: more than one with speculative decoding."""

    def __post_init__(self) -> None:
        check_one_of("policy", self.policy, PREFILL_POLICIES[1:])


@dataclass(frozen=True, kw_only=True, slots=True)
class Requests:
    """Requests in the order in which they come."""

    arrival_us: ArrayLike
    """When each arrives, ascending; fewer than there are lengths in a closed loop, where each request that ends brings
    the next one."""
    input_tokens: ArrayLike
    output_tokens: ArrayLike


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """What happened to each request, in us; NaN where the run ended before."""

    arrival: Floats
    start: Floats
    """When it was admitted."""
    first: Floats
    """When its first token came."""
    last: Floats
    """When its last token came."""


def run_loop(loop: EngineLoop, requests: Requests) -> Times:
    """Serve all requests on one replica, from an empty engine until the last one has ended."""
    run = _Run(loop, requests)
    advance = {"mixed": run.mixed, "prefill-first": run.prefill_first, "static": run.static}[loop.policy]
    while run.ended < len(run.last):
        advance()
    return Times(
        arrival=np.array(run.arrival), start=np.array(run.start), first=np.array(run.first), last=np.array(run.last)
    )


def tabulated(
    times: Callable[[Floats, Floats, int], tuple[Floats, Floats]], largest_batch: float, most_tokens: float
) -> StepTimes:
    """``times``, asked on a grid and interpolated from then on, once for no request that waits and once for each power
    of four of them: a call per step of some thousand requests would take seconds.

    Args:
        times: as a ``StepTimes``, of arrays of one shape.
        largest_batch: most requests that will be asked for.
        most_tokens: most prompt tokens. Beyond both ends, the last line goes on.
    """
    batches, tokens = _axis(largest_batch), _axis(most_tokens)
    requests, prompts = np.meshgrid(batches, tokens, indexing="ij")

    @cache
    def table(level: int) -> list[list[tuple[float, float]]]:
        step, lag = np.broadcast_arrays(*times(requests, prompts, 4 ** (level - 1) if level else 0), requests)[:2]
        rows: list[list[tuple[float, float]]] = np.stack([step, lag], axis=2).tolist()
        return rows

    @cache
    def interpolated(requests: float, prompt: float, level: int) -> tuple[float, float]:
        i = min(bisect_right(batches, requests), len(batches) - 1) - 1
        j = min(bisect_right(tokens, prompt), len(tokens) - 1) - 1
        x = (requests - batches[i]) / (batches[i + 1] - batches[i])
        y = (prompt - tokens[j]) / (tokens[j + 1] - tokens[j])
        corners = zip(*table(level)[i][j : j + 2], *table(level)[i + 1][j : j + 2], strict=True)
        step, lag = ((1 - x) * ((1 - y) * a + y * b) + x * ((1 - y) * c + y * d) for a, b, c, d in corners)
        return step, lag

    return lambda requests, prompt, waiting: interpolated(requests, prompt, (waiting.bit_length() + 1) // 2)


def _axis(most: float) -> list[float]:
    return [0.0, *np.unique(np.round(np.geomspace(1.0, max(2.0, most), _GRID))).tolist()]


class _Run:
    """The state of a run."""

    def __init__(self, loop: EngineLoop, requests: Requests) -> None:
        self.loop = loop
        count, known = np.size(requests.input_tokens), np.asarray(requests.arrival_us, dtype=np.float64)
        self.arrival = [*known.tolist(), *[math.nan] * (count - len(known))]
        self.start, self.first, self.last = ([math.nan] * count for _ in range(3))
        self.ended = 0
        self._now, self._rounds = 0.0, 0
        self._arrived = len(known)
        self._next = 0
        """The first request that is not admitted yet: all before it are."""
        self._prompts: deque[int] = deque()
        """Admitted requests whose prompts are not done."""
        self._ready: deque[int] = deque()
        """Requests whose first token is under way in the pipeline, or made."""
        self._decoding: list[tuple[int, int]] = []
        """Round after which a request has its last token, and the request: a heap."""
        self._held = 0.0
        out, kept = np.asarray(requests.output_tokens), 1.0 if loop.reserves else 0.5
        prompt = np.maximum(1, np.round((1 - loop.cached_prefix) * np.asarray(requests.input_tokens)))
        self._left = prompt.tolist()
        self._needs = (prompt + kept * out).tolist()
        self._rounds_of = np.ceil((out - 1) / loop.tokens_per_step).astype(int).tolist()

    def mixed(self) -> None:
        """Prompts share the steps of those that decode."""
        self._begin()
        loop, decoding = self.loop, len(self._decoding)
        if self._prompts:
            batches = max(1.0, min(loop.micro_batches, decoding))
            room = batches * loop.token_budget - loop.tokens_per_sequence * decoding
            self._prefill(max(1.0, room), shared=decoding > 0)
        else:
            self._decode(decoding, for_others=True)

    def prefill_first(self) -> None:
        """Nobody decodes while a prompt is left that could be admitted."""
        self._begin()
        if self._prompts:
            self._prefill(self.loop.token_budget)
        else:
            self._decode(len(self._decoding), for_others=True)

    def static(self) -> None:
        """All that wait start together; the next ones start when the last of them has ended, whose places in the steps
        nobody else takes."""
        self._begin()
        while self._prompts:
            self._prefill(self.loop.token_budget)
        size = len(self._ready)
        while self._ready or self._decoding:
            self._join()
            self._decode(size, for_others=False)

    def _begin(self) -> None:
        """Those that have arrived are admitted, as far as there is room; to an empty engine the next one, whatever it
        needs."""
        self._join()
        if self._next == self._arrived:
            return
        loop, arrival = self.loop, self.arrival
        running = len(self._prompts) + len(self._ready) + len(self._decoding)
        if not running and self._now < arrival[self._next]:
            self._now = arrival[self._next]
        while self._next < self._arrived and arrival[self._next] <= self._now:
            needs = self._needs[self._next]
            if running and (running + 1 > loop.largest_batch or self._held + needs > loop.capacity_tokens):
                return
            self.start[self._next] = self._now
            self._held += needs
            self._prompts.append(self._next)
            running += 1
            self._next += 1

    def _join(self) -> None:
        """Those with a first token decode from now on. Where no further prompt follows, all wait until the last one is
        through, or the next request arrives."""
        if self._ready and not self._prompts:
            self._now = max(self._now, min([self.first[self._ready[-1]], *self._next_arrival()]))
        while self._ready and self.first[self._ready[0]] <= self._now:
            request = self._ready.popleft()
            heapq.heappush(self._decoding, (self._rounds + self._rounds_of[request], request))
        self._end()

    def _prefill(self, room: float, shared: bool = False) -> None:
        """One step with so many tokens of prompts at most: ``shared`` with those that decode, or alone."""
        taken, whole = 0.0, []
        while self._prompts and taken < room:
            request = self._prompts[0]
            part = min(self._left[request], room - taken)
            taken += part
            self._left[request] -= part
            if self._left[request] <= 0:
                whole.append(self._prompts.popleft())
        waiting = self._waiting() + len(self._prompts)
        if shared or self.loop.prefill is None:
            step, lag = self.loop.step(len(self._decoding) if shared else 0, taken, waiting)
        else:
            step, lag = self.loop.prefill(len(self._decoding), taken, waiting)
        self._now += step
        if shared:
            self._rounds += 1
            self._end()
        if whole:
            latest = self.first[self._ready[-1]] if self._ready else 0.0
            made = max(latest, self._now + lag)
            for request in whole:
                self.first[request] = made
            self._ready.extend(whole)

    def _decode(self, size: int, for_others: bool) -> None:
        """Steps of ``size`` decoding requests until one ends, or another arrives; none while prompts are under way."""
        if self._ready or not self._decoding:
            return
        step, _ = self.loop.step(size, 0, self._waiting())
        rounds = self._decoding[0][0] - self._rounds
        for event in self._next_arrival() if for_others else []:
            rounds = min(rounds, max(1, math.ceil((event - self._now) / step)))
        self._now += rounds * step
        self._rounds += rounds
        self._end()

    def _waiting(self) -> int:
        return bisect_right(self.arrival, self._now, self._next, self._arrived) - self._next

    def _next_arrival(self) -> list[float]:
        """When the next request arrives, if it is not waiting already."""
        ahead = self._next < self._arrived and self.arrival[self._next] > self._now
        return [self.arrival[self._next]] if ahead else []

    def _end(self) -> None:
        """Those that have their last token leave; in a closed loop each brings the next request."""
        while self._decoding and self._decoding[0][0] <= self._rounds:
            request = heapq.heappop(self._decoding)[1]
            self.last[request] = self._now if self._rounds_of[request] else self.first[request]
            self._held -= self._needs[request]
            self.ended += 1
            if self._arrived < len(self.arrival):
                self.arrival[self._arrived] = self.last[request]
                self._arrived += 1
