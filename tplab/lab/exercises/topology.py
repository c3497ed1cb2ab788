"""Notebook 07: a score by which to choose a layout, judged on machines that the learner has not seen.

Judged as the advisor itself is: whether the order is right (rank correlation) and what taking the best-scored layout
would cost (regret). The judge is the advisor's full latency model, and no measurement; docs/accuracy.md says how far
the two are apart, and messages say who judges.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tplab.lab.exercises.answers import as_number
from tplab.lab.exercises.trial import check_function
from tplab.lab.exercises.verdict import NotYetError, Verdict, checker, not_yet_for
from tplab.models.spec import ModelSpec
from tplab.shown import counted, duration, fixed, shown
from tplab.topology.advisor.advice import Advice, advise
from tplab.topology.advisor.workload import EnginePolicy, Workload
from tplab.topology.machine.machine import Link, Machine
from tplab.topology.verification.run import spearman

LEAST_CORRELATION = 0.7
MOST_REGRET = 0.10
"""Largest accepted regret, as a fraction, in the mean over all machines."""
MOST_ON_ONE = 0.45
"""Largest accepted regret, as a fraction, on any one machine."""
SCORED_MODEL = "llama-3.1-70b"

Score = Callable[[int, int, Machine, Workload], float]


def _load(concurrency: int, tokens_in: int = 1024, tokens_out: int = 256) -> Workload:
    engine = EnginePolicy(name="vllm")
    return Workload(input_length=tokens_in, output_length=tokens_out, concurrency=concurrency, engine=engine)


def _slow(gbps: float) -> Machine:
    """Eight H100 whose pairs have such a link."""
    gpu = Machine.preset("h100").gpu
    link = Link(kind="node", bandwidth_GBps=gbps, latency_us=5.0)
    return Machine.uniform(gpu, 8, link, name=f"8 x h100 joined by {gbps:.3g} GB/s")


def _cases() -> Iterator[tuple[Machine, Workload]]:
    yield Machine.preset("h100"), _load(1)
    yield Machine.preset("h100"), _load(256)
    yield Machine.preset("l40s"), _load(4)
    yield Machine.preset("l40s"), _load(64)
    yield Machine.preset("a100-pcie"), _load(16)
    yield Machine.preset("dgx-1"), _load(8)
    yield Machine.preset("h200", gpus=4), _load(64, 4096)
    yield Machine.preset("h100", nodes=2), _load(32)
    yield _slow(3.0), _load(8)
    yield _slow(12.0), _load(128)
    draw = random.Random()
    for _ in range(2):
        yield _slow(2 ** draw.uniform(1, 8)), _load(2 ** draw.randint(0, 8))


@checker("07-score")
def check_score(score: Score) -> Verdict:
    """``score(tp, pp, machine, workload)``: larger for the layout with more output tokens per second.

    Of Llama-3.1 70B in bf16 on 12 machines and loads, two of them drawn anew each time; with ``num_gpus // (tp · pp)``
    copies side by side. Passes with a mean rank correlation of at least 0.7, a mean regret of at most 10 % and none
    above 45 %. The judge is the advisor's latency model, not a measurement.
    """
    check_function(score)
    model = ModelSpec.from_config(SCORED_MODEL)
    found: list[tuple[float, float, Advice, str]] = []
    for machine, workload in _cases():
        advice = advise(model, machine, workload)
        options = sorted(advice.options, key=lambda option: (option.layout.tp, option.layout.pp))  # not best first
        pairs = [(option.layout.tp, option.layout.pp) for option in options]
        scores: list[float] = []
        for tp, pp in pairs:
            try:
                value: Any = score(tp, pp, machine, workload)
            except Exception as error:
                not_yet_for(error, score, f"For TP {tp} × PP {pp} on {_where(advice)}")
            number = as_number(value)
            if number is None:
                raise NotYetError(
                    f"score must return a finite number; for TP {tp} × PP {pp} on {_where(advice)} it gave "
                    f"{shown(value)}."
                )
            scores.append(number)
        truth = [option.prediction.output_tokens_per_s for option in options]
        correlation, regret, chosen = judged(scores, truth)
        found.append((correlation, regret, advice, str(options[chosen].layout)))
    correlation = float(np.mean([each[0] for each in found]))
    regret = float(np.mean([each[1] for each in found]))
    worst = max(found, key=lambda each: (each[1], -each[0]))
    numbers = f"rank correlation {correlation:.2f}, regret {regret:.0%} on average over {len(found)} machines"
    numbers += ", by the advisor's latency model"
    if correlation >= LEAST_CORRELATION and regret <= MOST_REGRET and worst[1] <= MOST_ON_ONE:
        return Verdict(True, f"{numbers}; at worst {worst[1]:.0%}, on {_where(worst[2])}.")
    wanted = f"wanted: {LEAST_CORRELATION} at least, {MOST_REGRET:.0%} at most, {MOST_ON_ONE:.0%} on any one machine"
    raise NotYetError(f"{numbers}; {wanted}. {_look(*worst[1:])}")


def judged(scores: Sequence[float], truth: Sequence[float]) -> tuple[float, float, int]:
    """Rank correlation, regret, and the layout chosen; of equal scores the worst layout is taken, since a score that
    says nothing must not win by the order in which it was asked."""
    best = max(scores)
    tied = [i for i, value in enumerate(scores) if value == best]
    chosen = min(tied, key=lambda i: truth[i])
    correlation = spearman(scores, truth)
    return (0.0 if math.isnan(correlation) else correlation), 1 - truth[chosen] / max(truth), chosen


def _where(advice: Advice) -> str:
    return f"{advice.machine.name}, {counted(advice.workload.concurrency or 1, 'request')} in flight"


def _look(regret: float, advice: Advice, chosen: str) -> str:
    """The costliest case, and what it was made of."""
    best = advice.best
    if regret < 0.01:
        return "No choice is costly, but the order of the others is wrong: compare scores with advise(...).table()."
    option = next(option for option in advice.options if str(option.layout) == chosen)
    more = {
        term.name: term.ms - best.prediction.term_ms(term.name)
        for term in option.prediction.terms
        if term.ms > best.prediction.term_ms(term.name)
    }
    text = (
        f"Costliest on {_where(advice)}: you take {chosen}, and by the model {best.layout} gives "
        f"{fixed(1 / (1 - regret))} times as many tokens/s"
    )
    if more:
        term = max(more, key=lambda name: more[name])
        text += f"; a token has {duration(more[term])} more of {term.replace('_', ' ')}"
    if option.prediction.running < option.prediction.concurrency - 0.5:
        text += (
            f"; of {option.prediction.concurrency:.0f} requests a copy has room for "
            f"{option.prediction.running:.0f} in its cache"
        )
    if (advice.workload.concurrency or 1) < option.layout.replicas:
        text += "; copies without a request do nothing"
    return f"{text}."
