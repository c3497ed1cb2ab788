"""The engine's loop: against queueing theory, against a loop that takes every step by itself, and its rules."""

import itertools

import numpy as np
import pytest

from tplab.topology.advisor.engine_loop import EngineLoop, Requests, run_loop, tabulated

POLICIES = ("mixed", "prefill-first", "static")


def step_us(decoding, prompt):
    return 100.0 + 2.0 * decoding + 3.0 * prompt


def step(decoding, prompt, waiting):
    return step_us(decoding, prompt), 0.0


def random_requests(seed, count=300, mean_gap_us=4000.0):
    random = np.random.default_rng(seed)
    return Requests(
        arrival_us=np.cumsum(random.exponential(mean_gap_us, count)),
        input_tokens=random.integers(1, 200, count),
        output_tokens=random.integers(1, 60, count),
    )


def one_at_a_time(loop, requests):
    """``mixed`` and ``prefill-first`` without steps taken at once: a plain loop over steps and lists."""
    now, waiting, prompts, decoding = 0.0, list(range(len(requests.input_tokens))), [], {}
    left, made, first, last = list(requests.input_tokens), {}, {}, {}
    needs = np.array(requests.input_tokens) + np.array(requests.output_tokens) * (1.0 if loop.reserves else 0.5)
    while len(last) < len(left):
        if not prompts and not decoding:
            now = max(now, requests.arrival_us[waiting[0]])
        while waiting and requests.arrival_us[waiting[0]] <= now:
            inside = [*prompts, *decoding]
            full = len(inside) >= loop.largest_batch
            if inside and (full or sum(needs[i] for i in [*inside, waiting[0]]) > loop.capacity_tokens):
                break
            prompts.append(waiting.pop(0))
        shared = loop.policy == "mixed" or not prompts
        at_once = list(decoding) if shared else []
        room = max(1, loop.token_budget - len(at_once)) if prompts else 0
        taken = 0
        for i in prompts:
            part = min(left[i], room - taken)
            left[i], taken = left[i] - part, taken + part
        now += step_us(len(at_once), taken)
        for i in at_once:
            made[i] += 1
        for i in [i for i in prompts if left[i] == 0]:
            prompts.remove(i)
            decoding[i], made[i], first[i] = None, 1, now
        for i in [i for i in decoding if made[i] == requests.output_tokens[i]]:
            del decoding[i]
            last[i] = now
    return [np.array([of[i] for i in range(len(left))]) for of in (first, last)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_server_waits_as_pollaczek_and_khinchine_say(policy, load):
    """M/D/1: requests of one step each, one at a time, wait load / (2 (1 - load)) steps in the mean."""
    count = 60_000
    arrival = np.cumsum(np.random.default_rng(1).exponential(1 / load, count))
    loop = EngineLoop(step=lambda *load: (1.0, 0.0), policy=policy, largest_batch=1)
    times = run_loop(loop, Requests(arrival_us=arrival, input_tokens=[9] * count, output_tokens=[1] * count))
    waits = times.start - times.arrival
    slack = np.concatenate([[0.0], np.cumsum(1.0 - np.diff(arrival))])  # Lindley: the longest run of work behind time
    assert waits == pytest.approx(slack - np.minimum.accumulate(slack), abs=1e-6)
    assert np.mean(waits) == pytest.approx(load / (2 * (1 - load)), rel=0.1)
    assert times.last - times.start == pytest.approx(1.0)


@pytest.mark.parametrize("policy", ["mixed", "prefill-first"])
@pytest.mark.parametrize("seed", range(4))
def test_steps_taken_at_once_are_the_same_steps(policy, seed):
    requests = random_requests(seed)
    limits = {"token_budget": (64, 128, 1000, 40)[seed], "largest_batch": (300, 16, 24, 12)[seed]}
    limits |= {"capacity_tokens": (1e9, 1500, 900, 1e9)[seed], "reserves": seed % 2 == 0}
    loop = EngineLoop(step=step, policy=policy, **limits)
    times, (first, last) = run_loop(loop, requests), one_at_a_time(loop, requests)
    assert times.first == pytest.approx(first)
    assert times.last == pytest.approx(last)
    assert np.median(times.start - times.arrival) < 0.1 * np.max(times.start - times.arrival)  # some wait, others not


def test_chunks_share_steps_with_those_that_decode():
    """Prompts of 4 and 20 tokens with 8 in a step: 4 + 4, then 7 beside one that decodes, twice, the last 2, and two
    more steps."""
    loop = EngineLoop(step=step, policy="mixed", token_budget=8)
    times = run_loop(loop, Requests(arrival_us=[0, 0], input_tokens=[4, 20], output_tokens=[6, 2]))
    steps = np.cumsum([step_us(0, 8), step_us(1, 7), step_us(1, 7), step_us(1, 2), step_us(2, 0), step_us(1, 0)])
    assert times.first.tolist() == [steps[0], steps[3]]
    assert times.last.tolist() == [steps[5], steps[4]]


def test_nobody_decodes_while_a_prompt_waits_its_turn():
    loop = EngineLoop(step=step, policy="prefill-first", token_budget=8)
    times = run_loop(loop, Requests(arrival_us=[0, 0], input_tokens=[4, 20], output_tokens=[6, 2]))
    assert times.first.tolist() == [step_us(0, 8), 3 * step_us(0, 8)]
    assert times.last[1] == 3 * step_us(0, 8) + step_us(2, 0)


def test_a_static_batch_ends_before_the_next_one_starts():
    loop = EngineLoop(step=step, policy="static")
    times = run_loop(loop, Requests(arrival_us=[0, 0, 1], input_tokens=[4, 6, 8], output_tokens=[2, 4, 2]))
    assert times.first[:2].tolist() == [step_us(0, 10)] * 2
    assert times.last[:2].tolist() == [step_us(0, 10) + n * step_us(2, 0) for n in (1, 3)]  # no place is given up
    assert times.start[2] == times.last[1]


@pytest.mark.parametrize(("policy", "seed"), [*itertools.product(POLICIES, range(3))])
def test_limits_are_kept_and_nobody_overtakes(policy, seed):
    requests = random_requests(seed, mean_gap_us=1500.0)
    loop = EngineLoop(step=step, policy=policy, largest_batch=12, capacity_tokens=1800, reserves=True)
    times = run_loop(loop, requests)
    assert (np.diff(times.start) >= 0).all()
    assert (times.arrival <= times.start).all()
    assert (times.start < times.first).all()
    assert (times.first <= times.last).all()
    needs = np.asarray(requests.input_tokens) + np.asarray(requests.output_tokens)
    inside = (times.start[:, None] >= times.start) & (times.start[:, None] < times.last)
    assert inside.sum(axis=1).max() <= 12
    assert (inside @ needs).max() <= 1800


def test_a_request_larger_than_the_cache_runs_alone():
    loop = EngineLoop(step=step, capacity_tokens=50)
    times = run_loop(loop, Requests(arrival_us=[0, 0, 0], input_tokens=[10, 90, 10], output_tokens=[4] * 3))
    assert times.start[1] == times.last[0]
    assert times.start[2] == times.last[1]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_closed_loop_keeps_as_many_in_flight(policy):
    count, at_once = 200, 10
    requests = Requests(arrival_us=[0.0] * at_once, input_tokens=[50] * count, output_tokens=[20] * count)
    times = run_loop(EngineLoop(step=step, policy=policy, token_budget=64), requests)
    assert sorted(times.arrival[at_once:]) == sorted(times.last)[: count - at_once]


def test_cached_prefixes_and_guessed_tokens_take_fewer_steps():
    requests = Requests(arrival_us=[0], input_tokens=[100], output_tokens=[31])
    plain, cached, guessed = (
        run_loop(EngineLoop(step=step, **how), requests)
        for how in ({}, {"cached_prefix": 0.75}, {"tokens_per_step": 3.0})
    )
    assert plain.first - cached.first == [3.0 * 75]
    assert guessed.first == plain.first
    assert (guessed.last - guessed.first) * 3 == plain.last - plain.first
    everything = run_loop(EngineLoop(step=step, cached_prefix=1.0), requests)
    assert everything.first == [step_us(0, 1)]


def test_a_table_of_steps_is_asked_for_once():
    asked = []

    def smooth(decoding, prompt, waiting):
        asked.append(waiting)
        return 50.0 + np.hypot(4.0 * decoding, 100.0), prompt**1.1

    made = tabulated(smooth, 500, 8192)
    for decoding, prompt in itertools.product((0, 1, 3, 77, 499), (0, 1, 100, 5000, 8192)):
        assert made(decoding, prompt, 0) == pytest.approx((50 + np.hypot(4.0 * decoding, 100), prompt**1.1), rel=0.01)
    assert asked == [0]
    assert made(2000, 0, 0)[0] == pytest.approx(50 + 4.0 * 2000, rel=0.01)
