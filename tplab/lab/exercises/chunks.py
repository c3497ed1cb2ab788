"""Notebook 05: a prompt cut into chunks that get dearer with their prefix.

Judged by the simulated pipeline: stages are alike, so chunks of times t_j take ``Σ t_j + (p-1)·max t_j``. What is
possible comes from dynamic programming over a grid of chunk ends: for each of many limits on the dearest chunk, the
least sum.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from tplab.lab.exercises.answers import as_count, as_numbers
from tplab.lab.exercises.trial import check_function
from tplab.lab.exercises.verdict import NotYetError, Verdict, checker, not_yet_for
from tplab.pipeline.build import build_schedule
from tplab.pipeline.costs import Costs
from tplab.pipeline.simulation import simulate
from tplab.shown import counted, duration, shown

ALLOWED = 1.05
"""Makespan over the least possible one that is accepted."""
_GRID = 256
"""Ends of chunks among which the least possible makespan is searched: so many, evenly spread."""
_LIMITS = 80
"""Limits on the dearest chunk that are tried."""

ChunkCost = Callable[[int, int], float]
"""``cost(tokens, prefix)``: seconds that a stage takes for a chunk of so many tokens after so many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A prompt, and what its chunks cost on each of the stages."""

    num_tokens: int
    """Tokens of the prompt."""
    num_stages: int
    """Stages p, all alike."""
    overhead_s: float = 8e-3
    """Seconds for a chunk of any length."""
    per_token_s: float = 2e-5
    """Seconds for a token, without attention to others."""
    per_pair_s: float = 4e-9
    """Seconds for a token's attention to one token before it."""
    least_tokens: int = 0
    """A chunk of fewer tokens takes as long as one of so many: weights must be read whatever they are multiplied by."""

    def cost(self, tokens: int, prefix: int) -> float:
        """Seconds of one chunk on one stage: overhead, matmuls, and attention to the prefix and to itself."""
        pairs = tokens * (prefix + tokens / 2)
        return self.overhead_s + max(tokens, self.least_tokens) * self.per_token_s + pairs * self.per_pair_s

    def times(self, lengths: Sequence[int]) -> list[float]:
        """Seconds of each chunk on a stage."""
        ends = accumulate(lengths, initial=0)
        return [self.cost(end - start, start) for start, end in pairwise(ends)]

    def makespan_s(self, lengths: Sequence[int]) -> float:
        """Seconds until the last chunk has left the last stage, simulated."""
        schedule = build_schedule("chunked-prefill", self.num_stages, len(lengths))
        return simulate(schedule, Costs(forward_s=[self.times(lengths)] * self.num_stages)).makespan_s

    def best(self) -> list[int]:
        """Lengths of chunks with the least makespan, as far as the grids of ends and of limits tell them apart."""
        ends = np.unique(np.linspace(0, self.num_tokens, min(_GRID, self.num_tokens) + 1).round().astype(int))
        last = len(ends) - 1
        costs = np.array([[self.cost(int(end - start), int(start)) for end in ends] for start in ends])
        least = max(costs[i, i + 1] for i in range(last))
        found: list[tuple[float, list[int]]] = []
        for limit in np.geomspace(least, max(least, costs[0, last]), _LIMITS):
            sums, came_from = np.zeros(last + 1), np.zeros(last + 1, dtype=int)
            for j in range(1, last + 1):
                through = np.where(costs[:j, j] <= limit, sums[:j] + costs[:j, j], np.inf)
                came_from[j] = through.argmin()
                sums[j] = through[came_from[j]]
            cuts = [last]
            while cuts[-1]:
                cuts.append(int(came_from[cuts[-1]]))
            lengths = [int(ends[a] - ends[b]) for a, b in pairwise(cuts)][::-1]
            times = self.times(lengths)
            found.append((sum(times) + (self.num_stages - 1) * max(times), lengths))
        return min(found)[1]

    def __str__(self) -> str:
        return f"{counted(self.num_tokens, 'token')} on {counted(self.num_stages, 'stage')}"


def _prompts() -> Iterator[Prompt]:
    yield Prompt(num_tokens=16_384, num_stages=4)
    yield Prompt(num_tokens=12_000, num_stages=8, overhead_s=1.5e-2, per_pair_s=2e-8)
    yield Prompt(num_tokens=4_000, num_stages=4, per_pair_s=0.0)  # equal chunks are best
    yield Prompt(num_tokens=8_192, num_stages=1)  # nothing to overlap with: one chunk
    yield Prompt(num_tokens=1, num_stages=4)
    yield Prompt(num_tokens=16_384, num_stages=6, per_pair_s=2e-8, least_tokens=512)
    draw = random.Random()
    for _ in range(2):
        yield Prompt(
            num_tokens=draw.randrange(5_000, 20_000),
            num_stages=draw.randrange(2, 9),
            overhead_s=draw.uniform(5e-3, 2e-2),
            per_pair_s=draw.uniform(4e-9, 2e-8),
        )


@checker("05-chunks")
def check_chunks(chunks: Callable[[int, int, ChunkCost], Any]) -> Verdict:
    """``chunks(num_tokens, num_stages, cost)``: lengths of the chunks of a prompt, in order.

    ``cost(tokens, prefix)`` is the seconds that each stage takes for a chunk of ``tokens`` after ``prefix`` tokens.
    Passes if the chunks make up the prompt and the last one leaves the last stage at most 5 % later than possible, for
    8 prompts and costs, two of them drawn anew each time.
    """
    check_function(chunks)
    count, worst = 0, 1.0
    for prompt in _prompts():
        try:
            made = chunks(prompt.num_tokens, prompt.num_stages, prompt.cost)
        except Exception as error:
            not_yet_for(error, chunks, f"For {prompt}")
        try:
            lengths = _lengths(made, prompt.num_tokens)
        except ValueError as error:
            raise NotYetError(f"For {prompt}: {error}") from None
        best = prompt.best()
        took, enough = prompt.makespan_s(lengths), prompt.makespan_s(best)
        if took > ALLOWED * enough:
            raise NotYetError(f"For {prompt}: {_slow(prompt, lengths, best, took, enough)}")
        count, worst = count + 1, max(worst, took / enough)
    return Verdict(True, f"{count} prompts, each at most {worst - 1:.1%} slower than possible.")


def _lengths(made: Any, num_tokens: int) -> list[int]:
    """What was returned, as numbers. Raises ``ValueError`` in the learner's words."""
    values = as_numbers(made)
    if values is None:
        raise ValueError(f"it must return a list of chunk lengths, such as [600, 400]; it returned {shown(made)}.")
    lengths: list[int] = []
    for j, value in enumerate(values):
        number = as_count(value)
        if number is None or number < 1:
            raise ValueError(f"chunk {j} has {shown(value)} tokens: every length must be a whole number, 1 at least.")
        lengths.append(number)
    if sum(lengths) != num_tokens:
        raise ValueError(
            f"it returned {counted(sum(lengths), 'token')} in {counted(len(lengths), 'chunk')}, and the prompt has "
            f"{num_tokens:,}."
        )
    return lengths


def _slow(prompt: Prompt, lengths: list[int], best: list[int], took: float, enough: float) -> str:
    """How much too slow, and which part of the makespan holds it up."""
    times, best_times = prompt.times(lengths), prompt.times(best)
    waits = (prompt.num_stages - 1) * (max(times) - max(best_times))
    work = sum(times) - sum(best_times)
    said = (
        f"in your {counted(len(lengths), 'chunk')} it takes {duration(took * 1e3)}, and {duration(enough * 1e3)} is "
        f"possible ({took / enough - 1:.0%} more; at most {ALLOWED - 1:.0%} is asked)."
    )
    if work > waits:
        return (
            f"{said} The chunks are {duration(work * 1e3)} more work for a stage than they need to be: each costs "
            f"something of its own, however short it is."
        )
    if len(lengths) == 1:
        return f"{said} With a single chunk one stage works at a time, and the others wait."
    slow = times.index(max(times))
    quick = times.index(min(times))
    text = (
        f"{said} Every stage but one waits for the dearest chunk, number {slow + 1} of {len(lengths)}: "
        f"{lengths[slow]:,} tokens after {sum(lengths[:slow]):,} take {duration(times[slow] * 1e3)}"
    )
    if times[quick] < 0.9 * times[slow]:
        text += f", while number {quick + 1} takes {duration(times[quick] * 1e3)}"
    return f"{text}."
