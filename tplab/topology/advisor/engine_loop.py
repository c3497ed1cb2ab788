"""A serving engine's loop, step by step: which requests a step holds, and when each gets its tokens. Pure.

Not a second model of time: how long a step takes is asked for (``EngineLoop.step_us``). What is here is the queue: when
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tplab.checks import check_one_of
from tplab.topology.advisor.workload import PREFILL_POLICIES

Floats = NDArray[np.float64]
_GRID = 40
"""Points per axis of a table of step times."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLoop:
    """How one replica's engine fills its steps."""

    step_us: Callable[[float, float], float]
    """(decoding requests, prompt tokens) -> time of a step that holds them, in us; see ``tabulated``."""
    policy: str = "mixed"
    """How prompts get their turn: one of ``PREFILL_POLICIES`` but ``auto``."""
    token_budget: float = math.inf
    """Most tokens in a step, one per decoding request included."""
    largest_batch: float = math.inf
    """Most requests at once."""
    capacity_tokens: float = math.inf
    """Tokens that the cache holds."""
    reserves: bool = False
    """Whether a request takes the cache of its last token from the start; if not, that of half its output."""
    cached_prefix: float = 0.0
    """Share of each prompt that is cached already: neither computed nor kept anew."""
    tokens_per_step: float = 1.0
    """Tokens that a request gets in a step, on average: more than one with speculative decoding."""

    def __post_init__(self) -> None:
        check_one_of("policy", self.policy, PREFILL_POLICIES[1:])


@dataclass(frozen=True, kw_only=True, slots=True)
class Requests:
    """Requests in the order in which they come."""

    arrival_us: Sequence[float]
    """When each arrives, ascending; fewer than there are lengths in a closed loop, where each request that ends brings
    the next one."""
    input_tokens: Sequence[int]
    output_tokens: Sequence[int]


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
    step_us: Callable[[Floats, Floats], Floats], largest_batch: float, most_tokens: float
) -> Callable[[float, float], float]:
    """``step_us``, asked once on a grid (arrays that broadcast) and interpolated from then on: a call per step of some
    thousand requests would take seconds.

    Args:
        step_us: (decoding requests, prompt tokens) -> us.
        largest_batch: most decoding requests that will be asked for.
        most_tokens: most prompt tokens. Beyond both ends, the last line goes on.
    """
    batches, tokens = _axis(largest_batch), _axis(most_tokens)
    grid = np.array(tokens)[None, :] * np.ones((len(batches), 1))
    table = np.broadcast_to(step_us(np.array(batches)[:, None] * np.ones_like(grid), grid), grid.shape).tolist()
    known: dict[tuple[float, float], float] = {}

    def interpolated(decoding: float, prompt: float) -> float:
        if (decoding, prompt) not in known:
            i = min(bisect_right(batches, decoding), len(batches) - 1) - 1
            j = min(bisect_right(tokens, prompt), len(tokens) - 1) - 1
            x = (decoding - batches[i]) / (batches[i + 1] - batches[i])
            y = (prompt - tokens[j]) / (tokens[j + 1] - tokens[j])
            (a, b), (c, d) = table[i][j : j + 2], table[i + 1][j : j + 2]
            known[decoding, prompt] = (1 - x) * ((1 - y) * a + y * b) + x * ((1 - y) * c + y * d)
        return known[decoding, prompt]

    return interpolated


def _axis(most: float) -> list[float]:
    return [0.0, *np.unique(np.round(np.geomspace(1.0, max(2.0, most), _GRID))).tolist()]


class _Run:
    """The state of a run."""

    def __init__(self, loop: EngineLoop, requests: Requests) -> None:
        self.loop = loop
        count = len(requests.input_tokens)
        self.arrival = [*map(float, requests.arrival_us), *[math.nan] * (count - len(requests.arrival_us))]
        self.start, self.first, self.last = ([math.nan] * count for _ in range(3))
        self.ended = 0
        self._now, self._rounds = 0.0, 0
        self._arrived = len(requests.arrival_us)
        self._next = 0
        """The first request that is not admitted yet: all before it are."""
        self._prompts: deque[int] = deque()
        """Admitted requests whose prompts are not done."""
        self._decoding: list[tuple[int, int]] = []
        """Round after which a request has its last token, and the request: a heap."""
        self._held = 0.0
        out, kept = np.array(requests.output_tokens), 1.0 if loop.reserves else 0.5
        prompt = np.maximum(1, np.round((1 - loop.cached_prefix) * np.array(requests.input_tokens)))
        self._left = prompt.tolist()
        self._needs = (prompt + kept * out).tolist()
        self._rounds_of = np.ceil((out - 1) / loop.tokens_per_step).astype(int).tolist()

    def mixed(self) -> None:
        """Prompts share the steps of those that decode."""
        self._admit()
        decoding = len(self._decoding)
        if self._prompts:
            self._prefill(max(1.0, self.loop.token_budget - decoding), decoding)
        else:
            self._decode(decoding, until_arrival=True)

    def prefill_first(self) -> None:
        """Nobody decodes while a prompt is left that could be admitted."""
        self._admit()
        if self._prompts:
            self._prefill(self.loop.token_budget, 0)
        else:
            self._decode(len(self._decoding), until_arrival=True)

    def static(self) -> None:
        """All that wait start together; the next ones start when the last of them has ended, whose places in the steps
        nobody else takes."""
        self._admit()
        while self._prompts:
            self._prefill(self.loop.token_budget, 0)
        size = len(self._decoding)
        while self._decoding:
            self._decode(size, until_arrival=False)

    def _admit(self) -> None:
        """Those that have arrived, as far as there is room; to an empty engine the next one, whatever it needs."""
        loop, arrival = self.loop, self.arrival
        running = len(self._prompts) + len(self._decoding)
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

    def _prefill(self, room: float, decoding: int) -> None:
        """One step with so many tokens of prompts at most, beside those that decode."""
        taken, whole = 0.0, []
        while self._prompts and taken < room:
            request = self._prompts[0]
            part = min(self._left[request], room - taken)
            taken += part
            self._left[request] -= part
            if self._left[request] <= 0:
                whole.append(self._prompts.popleft())
        self._now += self.loop.step_us(decoding, taken)
        if decoding:
            self._rounds += 1
            self._end()
        for request in whole:
            self.first[request] = self._now
            heapq.heappush(self._decoding, (self._rounds + self._rounds_of[request], request))
        self._end()

    def _decode(self, size: int, until_arrival: bool) -> None:
        """Steps of ``size`` decoding requests until one ends, or arrives and could be admitted."""
        step = self.loop.step_us(size, 0)
        rounds = self._decoding[0][0] - self._rounds
        if until_arrival and self._next < self._arrived and self.arrival[self._next] > self._now:
            rounds = min(rounds, math.ceil((self.arrival[self._next] - self._now) / step))
        self._now += rounds * step
        self._rounds += rounds
        self._end()

    def _end(self) -> None:
        """Those that have their last token leave; in a closed loop each brings the next request."""
        while self._decoding and self._decoding[0][0] <= self._rounds:
            request = heapq.heappop(self._decoding)[1]
            self.last[request] = self._now
            self._held -= self._needs[request]
            self.ended += 1
            if self._arrived < len(self.arrival):
                self.arrival[self._arrived] = self._now
                self._arrived += 1
