"""How a server settles with so many requests running, and what both phases of a request then take. Pure.

R requests run at once in a closed loop: each is prefilled, decodes for s rounds, leaves, and the next one takes its
place (a round is a step where there is no pipeline). While one is there, from admission to its last token, each of the
R places is taken once more: so R prompts are computed in that time, its own among them. With n rounds until the first
token, there are s + n rounds, and in each of them

    (R - 1)/(s + n) prompts of others begin, and (R - 1)·s/(s + n) others decode                (the invariant)

A request takes what its rounds take; throughput is R over that (Little's law). Nothing has to be iterated: n is the
number of the request's own chunks and half of the round under way, or, where prompts need more than the budget of all
these rounds, as many as bring R prompts through: R·ISL/budget - s. A round takes a mean of steps, and no step grows
faster than what is in it: so more requests never lower the throughput, and better hardware does not either.

How prompts get their turn is the engine's policy (``workload.PREFILL_POLICIES``); where their time is booked follows:

mixed
    Chunks of prompts share the rounds, up to the engine's budget, so most others' prompts come between the tokens.
    Requests that end in one step are replaced in one step, so a few prompts come ``together``, and benchmarks start
    with all requests at once, so the first of them queue (``first_wave``): both move time from between the tokens to
    before the first one, and add none.
prefill-first, static
    Waiting prompts run in steps of their own before the next decode step, in which then all R decode. Requests of one
    length that start together also end together, and so do those that take their places: they stay in step. First all
    prompts, then all tokens. Under prefill-first a request waits for the prompts before it ahead of its first token,
    and for those behind it between the first and the second; in a static batch for all of them ahead of the first.
    Where requests arrive at a rate instead, nothing keeps them in step under prefill-first: a prompt waits for the step
    under way, and then stops all the others.
"""

from dataclasses import dataclass

import numpy as np

from tplab.pipeline.formulas import forward_makespan, prefill_share
from tplab.topology.advisor.allreduce import Floats
from tplab.topology.advisor.steps import Steps, total


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """The steady state; arrays that broadcast against N layouts, in us."""

    token: dict[str, Floats]
    """Terms of the time per token (``served.TERMS``)."""
    first: dict[str, Floats]
    """Terms of the time from admission to the first token: all of ``served.TTFT_TERMS`` but the queue."""
    requests_per_us: Floats
    """Requests per replica that leave in a microsecond."""
    micro_batches: Floats
    """k."""


def settle(steps: Steps, running: Floats, asked: "Floats | float", in_step: bool = True) -> Settled:
    """The steady state of ``running`` requests on each replica.

    Args:
        steps: what steps take.
        running: R, at least 1.
        asked: requests in flight on the replica, those that wait for admission included.
        in_step: whether requests that start together stay together: so in a closed loop, not where they arrive at a
            rate.
    """
    running = np.asarray(running, dtype=np.float64) * np.ones(len(steps.layouts))
    if steps.policy == "mixed":
        return _mixed(steps, running, asked, in_step)
    return _between(steps, running, asked, in_step or steps.policy == "static")


def _between(steps: Steps, running: Floats, asked: "Floats | float", in_step: bool) -> Settled:
    """Prompts in steps of their own."""
    own, rounds = steps.own_prompt, steps.decode_steps
    alone, others = total(own), (running - 1) / running
    none = np.zeros_like(running)
    token, around, k = steps.mean_round(running, asked, none, none)
    at_once = max(1.0, steps.budget / steps.prompt_tokens)
    prompts, under_way = steps.prompts(running), np.zeros(1)
    if steps.policy == "static" or not rounds:  # without a second token none waits for others' prompts
        first = prompts
    elif in_step:  # in batches that begin anywhere among them
        first = prompts * (1 - (running - 1) / (running - 1 + at_once) / 2)
    else:  # as many in one pass as come while the others decode
        together = np.clip(running / rounds, 1.0, np.minimum(running, at_once))
        first = steps.prompts(together)
        prompts = first * running / together * prefill_share(steps.at_once, together * steps.prompt_in_passes)
        under_way = 0.5 * others * around / k
    first = np.maximum(np.minimum(first, prompts), alone)
    token["prefill"] = np.maximum(prompts - first, 0.0) / rounds if rounds else np.zeros(1)
    return _settled(steps, running, token, {"prompts ahead": first - alone, "step under way": under_way, **own}, k)


def _mixed(steps: Steps, running: Floats, asked: "Floats | float", in_step: bool) -> Settled:
    """Prompts in the steps of others."""
    own, rounds, stages = steps.own_prompt, steps.decode_steps, steps.at_once
    chunks, under_way = max(1.0, steps.prompt_tokens / steps.budget), 0.5 * (running - 1) / running
    own_rounds = 1 + (chunks - 1) / stages
    through = running * steps.prompt_tokens / (steps.in_flight(running, asked) * steps.budget) - rounds
    first_rounds = np.maximum(own_rounds + under_way, through)
    prompts = (running - 1) / (rounds + first_rounds)  # of others, in each round
    beside = rounds * prompts
    k = steps.in_flight(1 + beside, asked)

    # Of the others' prompts, what the budget leaves room for is in the own prompt's steps, the rest elsewhere.
    chunk = np.full(len(steps.layouts), steps.prompt_tokens / chunks)
    with_own = np.minimum(prompts * steps.prompt_tokens / k, steps.budget - chunk)
    left, rest = (running - 1) - own_rounds * with_own * k / steps.prompt_tokens, rounds + first_rounds - own_rounds
    elsewhere = np.divide(left, rest, out=np.zeros_like(rest), where=rest > 0)
    passes = (asked * np.ones_like(running) if in_step else prompts) * steps.prompt_in_passes
    token, _, micro_batches = steps.mean_round(1 + beside, asked, elsewhere, passes)
    waiting, around, _ = steps.mean_round(beside, asked, elsewhere, passes)
    added, around = token["prefill"], around - waiting["prefill"]
    ahead = (first_rounds - own_rounds) * waiting["prefill"]
    ahead = ahead + np.maximum(first_rounds - own_rounds - under_way, 0.0) * around
    moved = token["prefill"] = np.zeros(1)
    if rounds and in_step:
        of_one = np.divide(added, elsewhere, out=np.zeros_like(added), where=elsewhere > 0)
        together = (steps.constants.together - 1) * np.maximum(0.0, 1 - 2 / running)  # of two or fewer none do
        moved = np.minimum(rounds * added, together * of_one)
        moved = moved + 0.5 * steps.constants.first_wave * (rounds * added - moved)
    if rounds:
        token["prefill"] = added - moved / rounds
    in_own = total(steps.step(beside / k, chunk + with_own)) - total(steps.step(np.zeros_like(chunk), chunk))
    first = {
        "prompts ahead": ahead + moved,
        "step under way": under_way * around / k + np.maximum(forward_makespan(in_own, in_own / stages, chunks), 0.0),
        **own,
    }
    return _settled(steps, running, token, first, micro_batches)


def _settled(steps: Steps, running: Floats, around: dict[str, Floats], first: dict[str, Floats], k: Floats) -> Settled:
    token = {name: time / steps.accepted for name, time in around.items()}
    whole = total(first) + (steps.workload.output_length - 1) * total(token)
    return Settled(token=token, first=first, requests_per_us=running / whole, micro_batches=k)
