"""How a server settles with so many requests running: how many of them decode, and what both phases then take. Pure.

R requests run at once in a closed loop: each is prefilled, decodes, leaves, and the next one takes its place. How
prompts get their turn is the engine's policy (``workload.PREFILL_POLICIES``); where their time is booked follows from
it:

mixed
    Chunks of prompts share the decode steps. With D of the R requests decoding, each for s rounds, D/s prompts come per
    round, so a round carries their tokens besides, up to the engine's budget. A prompt waits for those that came before
    it: of the other requests, (R - D)(R - 1)/R are at theirs (the arrival theorem, as in mean value analysis of closed
    queueing networks). That gives the time of a round T(D), the time to a first token F(D) and the throughput X(D) =
    D/(s·T(D)). D is where all requests are accounted for:

        D + X(D)·F(D) = R                                                              (the invariant)

    There is one such D, and it is bracketed. Not computed in turns, "D from T, T from D": where prompts are long that
    swings for ever. Requests that end in one step are replaced in one step, so a few prompts come ``together``, and
    benchmarks start with all requests at once, so the first of them queue (``first_wave``): both move time from between
    the tokens to before the first one, and add none.
prefill-first, static
    Waiting prompts run in steps of their own before the next decode step. Requests of one length that start together
    also end together, and so do those that take their places: they stay in step. First all prompts, then all tokens.
    Under prefill-first a request waits for the prompts before it ahead of its first token, and for those behind it
    between the first and the second; in a static batch for all of them ahead of the first. Where requests arrive at a
    rate instead, nothing keeps them in step under prefill-first: a prompt waits for the step under way, and then stops
    all the others.

The invariant holds for every policy: requests that run are throughput times the time from admission to the last token.

Letters: R requests that run, D of them decode, s rounds per request, T, F and X as above; a round is a step where there
is no pipeline.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tplab.topology.advisor.allreduce import Floats
from tplab.topology.advisor.steps import Steps, total

_MOST_TURNS = 100
_CLOSE = 1e-10
"""Share of R by which the invariant may be missed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """The steady state; arrays that broadcast against N layouts, in us."""

    token: dict[str, Floats]
    """Terms of the time per token (``served.TERMS``)."""
    first: dict[str, Floats]
    """Terms of the time from admission to the first token: all of ``served.TTFT_TERMS`` but the queue."""
    requests_per_us: Floats
    """X, per replica."""
    micro_batches: Floats
    """k."""


def settle(steps: Steps, running: Floats, asked: "Floats | float", in_step: bool = True) -> Settled:
    """The steady state of ``running`` requests on each replica.

    Args:
        steps: what steps take.
        running: R, at least 1.
        asked: requests in flight on the replica, those that wait for admission included.
        in_step: whether requests of prefill-first that start together stay together: so in a closed loop, not where
            they arrive at a rate.
    """
    running = np.asarray(running, dtype=np.float64) * np.ones(len(steps.layouts))
    if steps.policy == "static" or (steps.policy == "prefill-first" and in_step) or not steps.decode_steps:
        return _all_together(steps, running, asked)
    return _one_by_one(steps, running, asked, in_step)


def _all_together(steps: Steps, running: Floats, asked: "Floats | float") -> Settled:
    k = steps.in_flight(running, asked)
    own, prompts = steps.prompt_terms(1.0), steps.prompts(running)
    batches = running / np.minimum(running, max(1.0, steps.budget / steps.prompt_tokens))
    if not steps.decode_steps:  # no second token for which prompts would wait: who is done makes room at once
        first, token = prompts, steps.decode(np.ones_like(running), np.ones_like(running))[0]
        token["prefill"] = np.zeros(1)
    else:
        first = prompts if steps.policy == "static" else prompts * (1 + 1 / batches) / 2
        token, _ = steps.decode(running, k)
        token["prefill"] = (prompts - first) / steps.decode_steps
    ahead = np.maximum(first - total(own), 0.0)
    each = _per_token(steps, token)
    whole = total(own) + ahead + (steps.workload.output_length - 1) * total(each)
    return Settled(
        token=each,
        first={"prompts ahead": ahead, "step under way": np.zeros(1), **own},
        requests_per_us=running / whole,
        micro_batches=k,
    )


class _State(NamedTuple):
    """What so many decoding requests make of a round, and of the wait for a first token; us."""

    token: dict[str, Floats]
    round_us: Floats
    ahead_us: Floats
    under_way_us: Floats
    micro_batches: Floats


def _one_by_one(steps: Steps, running: Floats, asked: "Floats | float", in_step: bool) -> Settled:
    own = steps.prompt_terms(1.0)
    alone, rounds, others = total(own), steps.decode_steps, (running - 1) / running
    # A few of many come together; of two or fewer none do.
    together = 1 + (steps.constants.together - 1 if in_step else 0.0) * np.maximum(0.0, 1 - 2 / running)
    first_wave = steps.constants.first_wave if in_step else 0.0

    def state(decoding: Floats) -> _State:
        k = steps.in_flight(decoding, asked)
        seen = decoding + 1 - decoding / running  # by one that decodes: itself and its share of the others
        token, decode = steps.decode(seen, np.minimum(k, seen))
        waves = asked * np.ones_like(decoding) if in_step else decoding / rounds
        passes = waves * steps.prompt_tokens / steps.budget
        prompts = decoding / rounds * (1 - together / running)
        at_once = 1 + (running - decoding) * others + (together - 1) * decoding / running
        if steps.policy == "mixed":
            token["prefill"] = steps.mixed_in(seen, prompts, passes, k)
            first = steps.beside(decoding * others, at_once, k)
        else:
            token["prefill"] = steps.between(prompts, passes, k)
            first = steps.prompts(at_once)
        ahead = np.maximum(first - alone, 0.0)
        return _State(token, decode + token["prefill"], ahead, 0.5 * others * decode / k, k)

    def unaccounted(decoding: Floats) -> Floats:
        at = state(decoding)
        first = alone + at.ahead_us + at.under_way_us
        return decoding + decoding * first / (rounds * at.round_us) - running

    decoding = _root(unaccounted, running, running)
    at = state(decoding)
    token, moved = dict(at.token), 0.5 * first_wave * at.token["prefill"]
    token["prefill"] = token["prefill"] - moved
    return Settled(
        token=_per_token(steps, token),
        first={"prompts ahead": at.ahead_us + rounds * moved, "step under way": at.under_way_us, **own},
        requests_per_us=decoding / (rounds * at.round_us),
        micro_batches=at.micro_batches,
    )


def _per_token(steps: Steps, around: dict[str, Floats]) -> dict[str, Floats]:
    return {name: time / steps.accepted for name, time in around.items()}


def _root(f: Callable[[Floats], Floats], most: Floats, scale: Floats) -> Floats:
    """Where ``f``, which grows, is 0, between 0 and ``most``; ``most`` where it is still below.

    Regula falsi with the retained end's value halved (the Illinois method): bracketed, and a few turns in all.
    """
    low, high = np.zeros_like(most), most.copy()
    at_low, at_high = -scale * np.ones_like(most), f(most)
    over = at_high > 0
    found, side = np.where(over, low, high), np.zeros_like(most)
    for _ in range(_MOST_TURNS):
        if not over.any():
            break
        step = np.divide(at_high, at_high - at_low, out=np.full_like(most, 0.5), where=at_high > at_low)
        found = np.where(over, high - (high - low) * step, found)
        value = f(found)
        up = value > 0
        at_low = np.where(up, np.where(side > 0, at_low / 2, at_low), value)
        at_high = np.where(up, value, np.where(side < 0, at_high / 2, at_high))
        low, high, side = np.where(up, low, found), np.where(up, found, high), np.where(up, 1.0, -1.0)
        over = over & (np.abs(value) > _CLOSE * scale)
    return found
