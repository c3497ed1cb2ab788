"""Checkers of 05-chunks and 05-admit, against references, empty answers and planted wrong answers."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations, cycle
from typing import Any

import numpy as np
import pytest
import torch

from tplab.checks import ArgumentError
from tplab.lab.exercises import check_admit, check_chunks, check_place, check_schedule, check_score
from tplab.lab.exercises.admission import _judged, _Load, _loads, _ring
from tplab.lab.exercises.chunks import Prompt

pytestmark = pytest.mark.timeout(120)


def makespan(lengths: list[int], num_stages: int, cost: Callable[[int, int], float]) -> float:
    times = [cost(length, sum(lengths[:j])) for j, length in enumerate(lengths)]
    return sum(times) + (num_stages - 1) * max(times)


def equal(num_tokens: int, num_stages: int, cost: Callable[[int, int], float]) -> list[int]:
    """The best number of chunks of the same length."""
    cuts = [np.linspace(0, num_tokens, k + 1).round().astype(int) for k in range(1, min(num_tokens, 64) + 1)]
    return min((np.diff(cut).tolist() for cut in cuts), key=lambda lengths: makespan(lengths, num_stages, cost))


def shrinking(num_tokens: int, num_stages: int, cost: Callable[[int, int], float]) -> list[int]:
    """Chunks that take alike, for the best limit: another way than the notebook's, and as right."""
    best: list[int] = [num_tokens]
    for k in (2, 3, 4, 6, 8, 11, 16, 22, 32, 45, 64, 90, 128):
        low, high = 0.0, cost(num_tokens, 0)
        for _ in range(20):
            limit = (low + high) / 2
            lengths = filled(num_tokens, limit, cost, most=k)
            low, high = (low, limit) if lengths else (limit, high)
        best = min(best, filled(num_tokens, high, cost, most=k), key=lambda each: makespan(each, num_stages, cost))
    return best


def filled(num_tokens: int, limit: float, cost: Callable[[int, int], float], most: int) -> list[int]:
    """Chunks each as long as ``limit`` allows; none where more than ``most`` would be needed."""
    lengths: list[int] = []
    start = 0
    while start < num_tokens and len(lengths) < most:
        low, high = 0, num_tokens - start
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if cost(middle, start) <= limit else (low, middle - 1)
        if not low:
            return []
        lengths.append(low)
        start += low
    return lengths if start == num_tokens else []


def test_what_is_possible_is_what_trying_all_cuts_finds() -> None:
    for num_stages, per_pair_s in ((1, 1e-6), (3, 1e-4), (5, 1e-3)):
        prompt = Prompt(num_tokens=9, num_stages=num_stages, overhead_s=1e-3, per_token_s=1e-3, per_pair_s=per_pair_s)
        cuts = [(0, *inner, 9) for k in range(9) for inner in combinations(range(1, 9), k)]
        least = min(makespan(np.diff(cut).tolist(), num_stages, prompt.cost) for cut in cuts)
        assert prompt.makespan_s(prompt.best()) == pytest.approx(least, rel=0.03)  # limits lie 3 % apart at most


def test_chunks_that_take_alike_pass_in_every_form() -> None:
    forms = cycle((np.array, torch.tensor, tuple, lambda lengths: [float(length) for length in lengths]))
    verdict = check_chunks(lambda *given: next(forms)(shrinking(*given)))
    assert verdict.passed, verdict.message
    assert "8 prompts" in verdict.message


def too_many(num_tokens: int, num_stages: int, cost: Any) -> list[int]:
    return [length for length in [*[100] * (num_tokens // 100), num_tokens % 100] if length]


def as_many_as_stages(num_tokens: int, num_stages: int, cost: Any) -> list[int]:
    return np.diff(np.linspace(0, num_tokens, min(num_stages, num_tokens) + 1).round().astype(int)).tolist()


def growing(num_tokens: int, num_stages: int, cost: Any) -> list[int]:
    return shrinking(num_tokens, num_stages, cost)[::-1]


def without_pipeline(num_tokens: int, num_stages: int, cost: Any) -> list[int]:
    """Right but for a single stage, where cutting is of no use."""
    return shrinking(num_tokens, num_stages, cost) if num_stages > 1 else too_many(num_tokens, num_stages, cost)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (equal, r"For 16,384 tokens on 4 stages: in your \d+ chunks .* possible \(\d+% more.*dearest chunk, "
                r"number (\d+) of \1.*while number 1 takes"),
        (growing, r"dearest chunk, number \d+ of \d+.*while number"),
        (as_many_as_stages, "in your 4 chunks .*dearest chunk, number 4 of 4"),
        (too_many, r"in your 164 chunks .*more work for a stage .*each costs something of its own"),
        (without_pipeline, "8,192 tokens on 1 stage: in your 82 chunks .*each costs something of its own"),
        (lambda n, p, cost: [n], "in your 1 chunk .*With a single chunk one stage works at a time"),
        (lambda n, p, cost: [n - 1], "16,383 tokens in 1 chunk, and the prompt has 16,384"),
        (lambda n, p, cost: [n, 1], "16,385 tokens in 2 chunks, and the prompt has 16,384"),
        (lambda n, p, cost: [n, 0], "chunk 1 has 0 tokens"),
        (lambda n, p, cost: [n / 3] * 3, "chunk 0 has 5461.33.* tokens: every length must be a whole number"),
        (lambda n, p, cost: [float("nan")], "chunk 0 has nan tokens"),
        (lambda n, p, cost: [True] * n, "chunk 0 has True tokens"),
        (lambda n, p, cost: torch.tensor([[n - 1, 0]]), "chunk 1 has 0 tokens"),
        (lambda n, p, cost: [torch.tensor([n - 1, 1]), n], "16,384 tokens.*32,768 tokens in 3 chunks"),
        (lambda n, p, cost: ["16384"], "chunk 0 has '16384' tokens"),
        (lambda n, p, cost: 8, "must return a list of chunk lengths.*it returned 8"),
        (lambda n, p, cost: None, "it returned None"),
        (lambda n, p, cost: "16384", "it returned '16384'"),
        (lambda n, p, cost: [], "0 tokens in 0 chunks"),
        (lambda n, p, cost: cost(n), "line 1 of <lambda>: TypeError"),
    ],
)  # fmt: skip
def test_wrong_chunks(wrong: Any, says: str) -> None:
    verdict = check_chunks(wrong)
    assert not verdict.passed
    assert re.search(says, verdict.message), verdict.message


def admitted(queue: list[int], ring: Any, numbers: Iterable[int]) -> list[list[int]]:
    """The most tokens per second in one of these ``numbers`` of micro-batches, dealt by their contexts."""
    best: tuple[float, list[list[int]]] = 0.0, []
    for k in numbers:
        for count in range(len(queue), k - 1, -1):
            by_context = sorted(range(count), key=lambda i: queue[i])
            groups = [by_context[j::k] for j in range(k)]
            times = [ring.step_s([queue[i] for i in group]) for group in groups]
            tpot = max(max(map(sum, times)) + ring.num_stages * ring.hop_s, *map(sum, zip(*times, strict=True)))
            if tpot <= ring.tpot_limit_s:
                best = max(best, (count / tpot, groups))
                break
    return best[1]


def any_number(queue: list[int], ring: Any) -> list[list[int]]:
    return admitted(queue, ring, range(1, min(len(queue), 3 * ring.num_stages) + 1))


def test_the_best_of_all_admissions_passes_in_every_form() -> None:
    forms = cycle((list, lambda groups: tuple(map(np.array, groups)), lambda groups: [map(float, g) for g in groups]))
    verdict = check_admit(lambda *given: next(forms)(any_number(*given)))
    assert verdict.passed, verdict.message
    assert "7 loads, every limit kept" in verdict.message


def test_right_answers_have_room_below_the_bound() -> None:
    """Dealt like cards, one to each micro-batch in turn: well above the 95 % that are asked, whatever is drawn."""
    shares = [_judged(load, any_number(list(load.queue), load.ring))[0] for _ in range(2) for load in _loads()]
    assert min(shares) > 0.96


def test_what_is_possible_is_near_what_no_dealing_can_beat() -> None:
    for load in _loads():
        ring, bound = load.ring, 0.0
        for count in range(1, len(load.queue) + 1):
            own = count * ring.per_request_s + sum(load.queue[:count]) * ring.per_context_token_s
            for k in range(1, count + 1):
                hops = ring.num_stages * ring.hop_s if ring.num_stages > 1 else 0
                trip = sum(ring.weights_s) + ring.num_stages * own / k + hops
                took = max(trip, k * max(ring.weights_s) + own)
                bound = max(bound, count / took if took <= ring.tpot_limit_s else 0)
        best = load.best()
        assert sum(map(len, best)) / load.round_s(best)[0] > 0.97 * bound, str(load)


def fixed_number(k: Callable[[Any], int]) -> Any:
    return lambda queue, ring: admitted(queue, ring, [min(k(ring), len(queue))])


def ignores_the_limit(queue: list[int], ring: Any) -> list[list[int]]:
    return any_number(queue, replace(ring, tpot_limit_s=10.0))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (fixed_number(lambda ring: 1), r"in 1 micro-batch give .*Too few in flight: the stages wait 7\d%"),
        (fixed_number(lambda ring: 2), r"in 2 micro-batches give .*Too few in flight: the stages wait 5\d%"),
        (fixed_number(lambda ring: ring.num_stages), "at most 70.0 ms.*in 4 micro-batches .*Too few in flight"),
        (fixed_number(lambda ring: ring.num_stages + 1), "in 5 micro-batches .*Every micro-batch makes each"),
        (lambda queue, ring: [list(range(len(queue)))], "200 requests in 1 micro-batch a token takes .*too many at "
                                                        "once. With a single micro-batch"),
        (lambda queue, ring: [[i] for i in range(len(queue))], "in 200 micro-batches a token takes .*too many at once"),
        (lambda queue, ring: [[i] for i in range(min(4, len(queue)))], "4 requests in 4 micro-batches give .*room for"),
        (ignores_the_limit, "and the limit is 48.0 ms: too many at once. Some have to wait"),
        (lambda queue, ring: [], "admits no request at all"),
        (lambda queue, ring: [[0], []], "micro-batch 1 has no request"),
        (lambda queue, ring: [[0, 1], [1]], "request 1 is admitted more than once"),
        (lambda queue, ring: [sorted(range(len(queue)), key=lambda i: queue[i])[:20]], r"request \d+ is passed over"),
        (lambda queue, ring: [[200]], "200 is no place in the queue: they go from 0 to 199"),
        (lambda queue, ring: [[True]], "True is no place in the queue"),
        (lambda queue, ring: torch.tensor([[[0, 1]]]), r"tensor\(\[0, 1\]\) is no place in the queue"),
        (lambda queue, ring: [[0.5]], "0.5 is no place in the queue"),
        (lambda queue, ring: [0, 1, 2], r"must return a list of micro-batches such as .* got \[0, 1, 2\]"),
        (lambda queue, ring: None, "got None"),
        (lambda queue, ring: queue[0] / 0, "line 1 of <lambda>: ZeroDivisionError"),
    ],
)  # fmt: skip
def test_wrong_admissions(wrong: Any, says: str) -> None:
    verdict = check_admit(wrong)
    assert not verdict.passed
    assert re.search(says, verdict.message), verdict.message


@pytest.mark.parametrize("check", [check_chunks, check_admit, check_place, check_score, check_schedule])
def test_what_is_no_function_is_refused(check: Any) -> None:
    for wrong in (5, None, "my_answer"):
        with pytest.raises(ArgumentError, match="function must be your function itself, without parentheses"):
            check(wrong)


def test_micro_batches_that_take_unlike_are_named() -> None:
    """All long contexts in one micro-batch: what follows it waits."""
    load = _Load(ring=_ring(4, 0.2), queue=tuple([60_000] * 8 + [200] * 24))
    in_order = [list(range(first, first + 8)) for first in (0, 8, 16, 24)]
    share, fault = _judged(load, in_order)
    assert share < 0.95
    assert "Micro-batch 0 takes 13.2 ms on a stage, the mean is 9.61 ms" in fault  # 8 + 8 · (0.05 + 60,000 · 1e-5) ms
    assert "Micro-batch 0 takes" in _judged(replace(load, ring=_ring(4, 0.05)), in_order)[1]
