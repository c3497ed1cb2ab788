"""What must hold of every prediction, whatever is asked: each property finds what breaks it in one case.

A property compares a case with a neighbour (one request more, 1 % of hardware) or looks at its terms. ``violations``
asks all of them; ``shrunk`` looks for the simplest case that breaks one.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from operator import itemgetter
from typing import TypeVar

from tests.topology.advisor.inputs import Case, saturated
from tplab.topology import EnginePolicy, Machine, ModelSpec, Prediction, Workload
from tplab.topology.advisor.prediction import serve_all
from tplab.topology.advisor.steps import engine_constants

ROUNDING = 1e-3
"""Share that a rate or a time may move the wrong way."""
JUMP = 0.1
"""Share that a time or a rate may move between neighbours."""
CONVERSIONS_US = 150.0
"""Time to read a block's weights, half of which is surely more than the kernels that convert activations take, with
their launches where prompts are not replayed from a CUDA graph."""
MANY = 16
"""Requests, tokens and largest batches from which on one more is a small step."""


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One case that breaks a property."""

    property: str
    case: Case
    change: str
    """What differs in the neighbour; empty where the case is looked at alone."""
    amount: float
    """By how much, over what is allowed or as a share."""
    values: str
    """What came out, before and after."""

    def __str__(self) -> str:
        return f"{self.property}: {self.case}{self.change and f' -> {self.change}'}: {self.values}"


Found = Iterator[Violation]
Property = Callable[[Case, Prediction], Found]
_T = TypeVar("_T")
_ALL = ContextVar("_ALL", default=False)
"""Whether all neighbours of a case are asked instead of a few of them."""


def _few(case: Case, of: Sequence[_T], most: int = 1) -> Sequence[_T]:
    """Some of the neighbours of a case, the same ones every time."""
    return of if _ALL.get() else random.Random(str(case)).sample(of, min(most, len(of)))


def _keeps_up(made: Prediction) -> bool:
    return not (made.reason or "").startswith("cannot keep up")


def _worse(before: Prediction, after: Prediction, case: Case) -> tuple[float, str]:
    """Share of throughput that is lost; where as many leave as arrive, of the time of a request that is added."""
    if case.workload.request_rate is not None and _keeps_up(before) and _keeps_up(after):
        return after.e2e_ms / before.e2e_ms - 1, f"end to end {before.e2e_ms:.5g} -> {after.e2e_ms:.5g} ms"
    return (
        1 - after.output_tokens_per_s / before.output_tokens_per_s,
        f"{before.output_tokens_per_s:.6g} -> {after.output_tokens_per_s:.6g} tokens/s",
    )


def _never_worse(name: str, case: Case, before: Prediction, other: Case, change: str) -> Found:
    amount, values = _worse(before, other.predict(), case)
    if amount > ROUNDING:
        yield Violation(property=name, case=case, change=change, amount=amount, values=values)


def _no_jump(name: str, case: Case, before: Prediction, after: Prediction, change: str, expected: float = 0.0) -> Found:
    """Args: ``expected``: logarithm of what a rate may change by in any case."""
    for what, one, other in (
        ("TPOT", before.tpot_ms, after.tpot_ms),
        ("end to end", before.e2e_ms, after.e2e_ms),
        ("tokens/s", before.output_tokens_per_s, after.output_tokens_per_s),
    ):
        if one == other:
            continue
        moved = abs(math.log(other / one))
        if moved > math.log1p(JUMP) + expected:
            yield Violation(
                property=name,
                case=case,
                change=change,
                amount=math.expm1(moved),
                values=f"{what} {one:.5g} -> {other:.5g}",
            )
            return


def _hardware(case: Case, factor: float) -> dict[str, Case]:
    gpu = case.machine.gpu
    peaks = {
        key: value * factor
        for key in ("bf16_TFLOPS", "fp8_TFLOPS", "int8_TOPS", "fp4_TFLOPS")
        if (value := getattr(gpu, key)) is not None
    }
    made = {"HBM": case.gpu(hbm_GBps=gpu.hbm_GBps * factor), "FLOP/s": case.gpu(**peaks)}
    if case.tp * case.pp > 1 and case.calibrated is None:  # measured links do not change
        made |= {"links": case.links(bandwidth_GBps=factor), "latency": case.links(latency_us=1 / factor)}
    return made


def better_hardware_is_never_slower(case: Case, made: Prediction) -> Found:
    """More bandwidth or arithmetic, at the same memory."""
    for factor in (1.01, *_few(case, (1.25, 3.0))):
        better = _hardware(case, factor)
        for what, other in better.items() if factor == 1.01 else _few(case, sorted(better.items(), key=itemgetter(0))):
            yield from _never_worse(f"a: better {what}", case, made, other, f"{what} x {factor:g}")


def more_memory_is_never_slower(case: Case, made: Prediction) -> Found:
    for factor in (1.01, *_few(case, (1.2, 2.0))):
        other = case.gpu(memory_GB=case.machine.gpu.memory_GB * factor)
        yield from _never_worse("a: more memory", case, made, other, f"memory x {factor:g}")


def more_requests_are_never_fewer_tokens(case: Case, made: Prediction) -> Found:
    """A closed loop's."""
    asked = case.workload.concurrency
    if asked is None:
        return
    for more in (asked + 1, *_few(case, (asked + 2, 2 * asked, 10 * asked))):
        yield from _never_worse("b: more requests", case, made, case.load(concurrency=more), f"C {more}")


def longer_requests_never_end_sooner(case: Case, made: Prediction) -> Found:
    w = case.workload
    for key, name in (("input_length", "prompts"), ("output_length", "outputs")):
        now = getattr(w, key)
        if name == "outputs" and now == 1:
            continue  # prompts alone have no decode steps that they might fill
        for longer in (now + 1, *_few(case, (2 * now, 8 * now))):
            after = case.load(**{key: longer}).predict()
            amount = 1 - after.e2e_ms / made.e2e_ms
            if amount > ROUNDING and _keeps_up(made) and _keeps_up(after):
                values = f"end to end {made.e2e_ms:.5g} -> {after.e2e_ms:.5g} ms"
                yield Violation(
                    property=f"c: longer {name}", case=case, change=f"{key} {longer}", amount=amount, values=values
                )


def neighbours_are_near(case: Case, made: Prediction) -> Found:
    """No jumps: one request, one token, 1 % of hardware, one more in the largest batch, 1 % of cached prefix."""
    w, e = case.workload, case.workload.engine
    if w.request_rate is not None and w.request_rate > 0.5 * saturated(case).requests_per_s:
        return  # near saturation any queue is as steep as this
    steps: dict[str, Case] = {}
    if w.concurrency is not None and w.concurrency >= MANY * case.replicas:
        steps["request"] = case.load(concurrency=w.concurrency + 1)
    if w.input_length >= MANY:
        steps["prompt token"] = case.load(input_length=w.input_length + 1)
    if w.output_length >= MANY:
        steps["output token"] = case.load(output_length=w.output_length + 1)
    if e.max_num_seqs is not None and e.max_num_seqs >= MANY:
        steps["largest batch"] = case.engine(max_num_seqs=e.max_num_seqs + 1)
    if w.cached_prefix and w.cached_prefix <= 0.98 and w.output_length >= MANY:
        steps["prefix"] = case.load(cached_prefix=w.cached_prefix + 0.01)
    steps |= _hardware(case, 1.01)
    for what, other in steps.items():
        # Of the share that is computed, 1 % of the prompt may be much.
        expected = math.log((1 - w.cached_prefix) / (0.99 - w.cached_prefix)) if what == "prefix" else 0.0
        yield from _no_jump(f"d: jump, {what}", case, made, other.predict(), f"{what} + 1", expected)
    larger, batch = case.gpu(memory_GB=case.machine.gpu.memory_GB * 1.01), engine_constants(e.name).largest_batch
    alike = batch(larger.machine.gpu) == batch(case.machine.gpu)  # an engine may run more at once on large GPUs
    if case.memory().max_requests >= MANY and alike:
        after = larger.predict()
        # What the weights leave may grow by far more than 1 %.
        expected = math.log(after.capacity_tokens / made.capacity_tokens)
        yield from _no_jump("d: jump, memory", case, made, after, "memory x 1.01", expected)


def terms_are_a_sum(case: Case, made: Prediction) -> Found:
    for name, terms, total in (("TPOT", made.terms, made.tpot_ms), ("TTFT", made.ttft_terms, made.ttft_ms)):
        for term in terms:
            if not -1e-12 * total <= term.ms < math.inf:
                yield Violation(
                    property="e: terms", case=case, change="", amount=1.0, values=f"{name} {term.name} {term.ms}"
                )
        if not abs(sum(term.ms for term in terms) - total) <= 1e-9 * total:
            values = f"{name} {total} is not the sum {sum(term.ms for term in terms)}"
            yield Violation(property="e: sum", case=case, change="", amount=1.0, values=values)
    numbers = ("ttft_ms", "tpot_ms", "queue_ms", "prefill_ms", "output_tokens_per_s", "running", "concurrency")
    for key in numbers:
        if not 0 <= getattr(made, key) < math.inf:
            values = f"{key} {getattr(made, key)}"
            yield Violation(property="e: numbers", case=case, change="", amount=1.0, values=values)


def graphs_are_never_slower(case: Case, made: Prediction) -> Found:
    if not case.workload.engine.cuda_graphs and case.calibrated is None:  # those were measured apart
        yield from _never_worse("f: graphs", case, made, case.engine(cuda_graphs=True), "CUDA graphs")


def fewer_bits_are_never_slower(case: Case, made: Prediction) -> Found:
    """Weights of fewer bits, where a block's are worth more than the kernels that convert its activations. Not those
    that are widened on the way in (int4; fp4 without units) against those that a GPU multiplies natively."""
    model, gpu, graphs = case.model, case.machine.gpu, case.workload.engine.cuda_graphs
    if case.calibrated is not None:
        return  # measured products may say otherwise
    narrow = {"bf16": ("fp8", "int8"), "fp16": ("fp8", "int8"), "fp8": ("fp4",) if gpu.fp4_TFLOPS else ()}
    large = model.block_matmul_params / case.tp > 50e6  # of small ones the host's launches are what counts
    stream_us = model.block_matmul_params * model.weight_itemsize / case.tp / gpu.hbm_GBps / 1e3
    for precision in (
        _few(case, narrow.get(model.weight_precision, ())) if large and stream_us > CONVERSIONS_US and graphs else ()
    ):
        other = replace(case, model=replace(model, weight_precision=precision))
        yield from _never_worse(f"f: {precision} weights", case, made, other, f"{precision} weights")
    if model.kv_precision == "bf16":
        other = replace(case, model=replace(model, kv_precision="fp8"))
        yield from _never_worse("f: fp8 cache", case, made, other, "fp8 cache")


def requests_are_conserved(case: Case, made: Prediction) -> Found:
    """Little's law, for all in flight, for those that run and for those that decode."""
    w = case.workload
    if w.concurrency is None:
        return
    flow = made.requests_per_s * made.e2e_ms / 1e3
    if not abs(flow / w.concurrency - 1) < 1e-6:
        values = f"{flow:.6g} requests in flight by throughput x end to end"
        yield Violation(property="g: Little", case=case, change="", amount=abs(flow / w.concurrency - 1), values=values)
    served = serve_all(case.machine, [case.memory()], calibration=case.calibration)[1]
    busy = min(case.replicas, w.concurrency)
    rate = float(served.requests_per_s[0]) / busy / 1e6
    running = rate * float(served.e2e_us[0] - served.queue_us[0])
    said, decoding = float(served.running[0]), float(served.decoding[0])
    if not abs(running / said - 1) < 1e-6:
        values = f"{running:.6g} run by flow, {said:.6g} said"
        yield Violation(property="g: running", case=case, change="", amount=abs(running / said - 1), values=values)
    # What the first requests of all wait for is between the tokens of none.
    least = rate * (w.output_length - 1) * float(served.tpot_us[0])
    if not least * (1 - 1e-6) <= max(decoding, 1e-9) <= said * (1 + 1e-6):
        values = f"{decoding:.6g} decode of {said:.6g} that run, {least:.6g} by flow"
        yield Violation(property="g: decoding", case=case, change="", amount=abs(decoding / least - 1), values=values)
    model = case.model
    tokens = max(1.0, w.input_length * (1 - w.cached_prefix)) + w.output_length - 1
    needed = rate * 1e6 * 2 * model.num_layers * model.block_matmul_params * tokens
    peak = 1e12 * case.machine.gpu.peak_TFLOPS(model.weight_precision) * case.tp * case.pp
    if needed > peak and case.calibrated is None:
        values = f"{needed:.4g} FLOP/s of {peak:.4g}"
        yield Violation(property="g: arithmetic", case=case, change="", amount=needed / peak - 1, values=values)


def rates_and_loads_agree(case: Case, made: Prediction) -> Found:
    rate = case.workload.request_rate
    if rate is None:
        return
    for factor in _few(case, (1.02, 1.5)):
        after = case.load(request_rate=rate * factor).predict()
        amount = 1 - after.e2e_ms / made.e2e_ms
        if amount > ROUNDING:
            values = f"end to end {made.e2e_ms:.5g} -> {after.e2e_ms:.5g} ms"
            yield Violation(
                property="h: higher rate", case=case, change=f"rate x {factor}", amount=amount, values=values
            )
        if after.running < made.running * (1 - ROUNDING):
            values = f"running {made.running:.5g} -> {after.running:.5g}"
            yield Violation(property="h: utilisation", case=case, change=f"rate x {factor}", amount=1.0, values=values)
    in_flight = rate * made.e2e_ms / 1e3
    if not _keeps_up(made) or not 1.5 <= in_flight < 65536:
        return
    leaving = serve_all(case.machine, [case.memory()], calibration=case.calibration)[0].serve(in_flight).requests_per_s
    if abs(float(leaving[0]) / rate - 1) > 0.02:  # loads are interpolated
        values = f"{rate:.5g}/s, of {in_flight:.5g} in flight {float(leaving[0]):.5g}/s leave"
        amount = abs(float(leaving[0]) / rate - 1)
        yield Violation(property="h: closed loop", case=case, change="", amount=amount, values=values)


def what_helps_never_hurts(case: Case, made: Prediction) -> Found:
    """A longer cached prefix, drafts that are accepted more often or cost less; and no more run than the engine may."""
    w, e = case.workload, case.workload.engine
    for prefix in _few(case, (w.cached_prefix + 0.01, w.cached_prefix + 0.1, 1.0)):
        if prefix <= 1:
            yield from _never_worse(
                "j: longer prefix", case, made, case.load(cached_prefix=prefix), f"prefix {prefix:.3g}"
            )
    if e.speculative_tokens:
        better = case.engine(acceptance=(1 + e.acceptance) / 2)
        yield from _never_worse("j: acceptance", case, made, better, f"acceptance {(1 + e.acceptance) / 2:.3g}")
        yield from _never_worse("j: draft", case, made, case.engine(draft_cost=e.draft_cost / 2), "draft at half cost")
    most = e.max_num_seqs
    if most is None:
        return
    if made.running > most * (1 + 1e-9):
        values = f"{made.running:.6g} of {most} run"
        yield Violation(
            property="j: largest batch", case=case, change="", amount=made.running / most - 1, values=values
        )
    for larger in (most + 1, *_few(case, (2 * most, 8 * most))):
        other = case.engine(max_num_seqs=larger)
        # A larger batch has more logits: what they take, the cache lacks.
        if other.predict().capacity_tokens >= made.capacity_tokens * (1 - ROUNDING):
            yield from _never_worse("b: larger batch", case, made, other, f"max_num_seqs {larger}")


def alone_there_is_nothing_to_send(case: Case, made: Prediction) -> Found:
    idle = (["hops", "bubble"] if case.pp == 1 else []) + (["all_reduce"] if case.tp == 1 else [])
    for terms in (made.terms, made.ttft_terms):
        for term in terms:
            if term.name in idle and abs(term.ms) > 1e-12 * made.tpot_ms:
                values = f"{term.name} {term.ms}"
                yield Violation(property="i: alone", case=case, change="", amount=1.0, values=values)


def replicas_share_evenly(case: Case, made: Prediction) -> Found:
    asked, machine = case.workload.concurrency, case.machine
    alike = len({link for row in machine.links for link in row if link}) <= 1 and machine.nodes == 1
    if case.replicas == 1 or asked is None or not alike or machine.gpu.kind == "cpu":
        return
    one = replace(case, replicas=1)
    many = case.load(concurrency=asked * case.replicas)
    single, together = one.predict(), many.predict()
    amount = abs(together.output_tokens_per_s / single.output_tokens_per_s / case.replicas - 1)
    amount = max(amount, abs(together.tpot_ms / single.tpot_ms - 1))
    if amount > 1e-6:
        values = f"{single.output_tokens_per_s:.6g} tokens/s alone, {together.output_tokens_per_s:.6g} together"
        yield Violation(property="i: replicas", case=many, change="one replica", amount=amount, values=values)


PROPERTIES: tuple[Property, ...] = (
    better_hardware_is_never_slower,
    more_memory_is_never_slower,
    more_requests_are_never_fewer_tokens,
    longer_requests_never_end_sooner,
    neighbours_are_near,
    terms_are_a_sum,
    graphs_are_never_slower,
    fewer_bits_are_never_slower,
    requests_are_conserved,
    rates_and_loads_agree,
    what_helps_never_hurts,
    alone_there_is_nothing_to_send,
    replicas_share_evenly,
)


def violations(case: Case) -> list[Violation]:
    """All that one case breaks. What does not fit in memory is asked only for its terms."""
    made = case.predict()
    asked = PROPERTIES if made.fits else (terms_are_a_sum, alone_there_is_nothing_to_send)
    return [each for ask in asked for each in ask(case, made)]


def shrunk(found: Violation, most: int = 60) -> Violation:
    """The simplest case near it that breaks the same property, by taking away one thing after the other."""
    token, best, left = _ALL.set(True), found, most
    ask = next((ask for ask in PROPERTIES if _breaks(ask, found.case, found.property)), None)
    if ask is None:  # a neighbour that is only asked among a few
        return found
    while left > 0:
        for simpler in _simpler(best.case):
            left -= 1
            if again := _breaks(ask, simpler, found.property):
                best = again
                break
            if left == 0:
                break
        else:
            break
    _ALL.reset(token)
    return best


def _breaks(ask: Property, case: Case, name: str) -> Violation | None:
    try:
        made = case.predict()
        if not made.fits:
            return None
        return max((v for v in ask(case, made) if v.property == name), key=lambda v: v.amount, default=None)
    except ValueError:
        return None


PLAIN = Workload(input_length=512, output_length=128, concurrency=64, engine=EnginePolicy(name="vllm"))


def _simpler(case: Case) -> Iterator[Case]:
    w, e = case.workload, case.workload.engine
    if case.calibrated is not None:
        yield replace(case, calibrated=None)
    for key in ("tp", "pp", "replicas"):
        if getattr(case, key) > 1:
            yield replace(case, **{key: 1})
            yield replace(case, **{key: getattr(case, key) // 2})
    for of, plain, put in ((e, EnginePolicy(name="vllm"), case.engine), (w, PLAIN, case.load)):
        for f in fields(of):
            value = getattr(plain, f.name)
            if f.name not in ("engine", "request_rate", "concurrency") and getattr(of, f.name) != value:
                yield put(**{f.name: value})
    h100 = Machine.preset("h100")
    for machine in (h100, Machine.preset("l40s")):
        if case.machine not in (h100, machine):
            yield replace(case, machine=machine)
    plain = [ModelSpec.from_config(name) for name in ("llama-3.1-8b", "llama-3.1-70b")]
    for model in plain:
        precision = {key: getattr(case.model, key) for key in ("weight_precision", "kv_precision")}
        if case.model.name not in [each.name for each in plain[: plain.index(model) + 1]]:
            yield replace(case, model=replace(model, **precision))
    for key in ("weight_precision", "kv_precision"):
        if getattr(case.model, key) != "bf16":
            yield replace(case, model=replace(case.model, **{key: "bf16"}))
    if w.concurrency and w.concurrency > 1:
        yield case.load(concurrency=w.concurrency // 2)
        yield case.load(concurrency=w.concurrency - 1)
