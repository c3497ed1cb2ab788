"""Formulas held against the simulation, over random sizes and times; and the article's claims C10 to C14 and C19."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.collectives.volumes import pp_forward_bytes
from tplab.pipeline import Costs, build_schedule, simulate
from tplab.pipeline import formulas as f
from tplab.pipeline.schedule import Op
from tplab.pipeline.validation import peak_held

times = st.floats(0.05, 4.0)
stage_times = st.lists(st.floats(0.1, 3.0), min_size=1, max_size=6)


def costs(forward_s: float, input_grad_s: float, weight_grad_s: float) -> dict[str, float]:
    return {"forward_s": forward_s, "input_grad_s": input_grad_s, "weight_grad_s": weight_grad_s}


@settings(deadline=None)
@given(
    name=st.sampled_from(f.BALANCED),
    p=st.integers(1, 7),
    m=st.integers(1, 14),
    v=st.integers(1, 4),
    parts=st.tuples(times, times, times),
)
def test_makespan_and_bubbles(name: str, p: int, m: int, v: int, parts: tuple[float, float, float]) -> None:
    if name == "interleaved":
        m *= p
    else:
        v = 1
    if name == "zb-h1":
        m += p - 1
    trace = simulate(build_schedule(name, p, m, v), Costs(**costs(*parts)))
    assert trace.makespan_s == pytest.approx(f.makespan_s(name, p, m, v, **costs(*parts)))
    assert trace.idle_s == pytest.approx([f.idle_s(name, p, m, v, **costs(*parts))] * p, abs=1e-9)
    assert trace.idle_over_total == pytest.approx(f.idle_over_total(name, p, m, v, **costs(*parts)), abs=1e-9)
    assert trace.idle_over_work == pytest.approx(f.idle_over_work(name, p, m, v, **costs(*parts)), abs=1e-9)


@settings(deadline=None)
@given(p=st.integers(1, 16), m=st.integers(1, 64), v=st.integers(1, 4), parts=st.tuples(times, times, times))
def test_bubbles_of_the_literature(p: int, m: int, v: int, parts: tuple[float, float, float]) -> None:
    """C10: the same fraction for GPipe and 1F1B, whatever a backward takes; interleaved divides it."""
    for name in ("gpipe", "1f1b"):
        assert f.idle_over_total(name, p, m, **costs(*parts)) == pytest.approx((p - 1) / (m + p - 1))
        assert f.idle_over_work(name, p, m, **costs(*parts)) == pytest.approx((p - 1) / m)
    m *= p
    assert f.idle_over_total("interleaved", p, m, v, **costs(*parts)) == pytest.approx((p - 1) / (v * m + p - 1))


def test_zb_h1_idles_p_minus_1_times_f_plus_i_minus_w() -> None:
    assert f.idle_s("zb-h1", 4, 8, forward_s=3, input_grad_s=4, weight_grad_s=2) == 3 * (3 + 4 - 2)
    assert f.idle_s("zb-h1", 4, 8, forward_s=3, input_grad_s=4, weight_grad_s=9) == 3 * 4, "W can hide no more"
    with pytest.raises(ValueError, match="m=3 must be at least p=4"):
        f.idle_s("zb-h1", 4, 3)


def test_the_articles_gpipe_bubble_is_nobodys() -> None:
    """C11: at p=4, m=8 it claims 15.8 %; GPipe has 27.3 %, and the claim is interleaved 1F1B's at v = 2."""
    claimed = f.claimed_gpipe_bubble(4, 8)
    assert claimed == pytest.approx(3 / 19)
    assert simulate(build_schedule("gpipe", 4, 8)).idle_over_total == pytest.approx(3 / 11)
    assert simulate(build_schedule("interleaved", 4, 8, 2)).idle_over_total == pytest.approx(claimed)


@pytest.mark.parametrize(("m", "percent"), [(4, 42.9), (8, 27.3), (16, 15.8)])
def test_how_large_a_bubble_of_four_stages_is(m: int, percent: float) -> None:
    """C12: 30 to 40 % only from m = 5 to 7."""
    assert 100 * f.idle_over_total("1f1b", 4, m) == pytest.approx(percent, abs=0.05)
    assert [i for i in range(1, 40) if 0.3 <= f.idle_over_total("1f1b", 4, i) <= 0.4] == [5, 6, 7]


@settings(deadline=None)
@given(p=st.integers(1, 12), bubble=st.floats(0.01, 0.95))
def test_micro_batches_for_a_bubble(p: int, bubble: float) -> None:
    m = f.micro_batches_for_bubble(p, bubble)
    assert f.idle_over_total("1f1b", p, m) <= bubble + 1e-9
    assert m == 1 or f.idle_over_total("1f1b", p, m - 1) > bubble - 1e-9


@settings(deadline=None)
@given(name=st.sampled_from(f.BALANCED), p=st.integers(1, 7), m=st.integers(1, 14), v=st.integers(1, 4))
def test_peaks(name: str, p: int, m: int, v: int) -> None:
    m, v = (m * p, v) if name == "interleaved" else (m, 1)
    want = [f.peak_activations(name, p, m, v, rank=rank) for rank in range(p)]
    assert peak_held(build_schedule(name, p, m, v)) == pytest.approx(want)


def test_peak_of_interleaved_on_rank_0() -> None:
    assert f.peak_activations("interleaved", 4, 8, 2) == 4 + 3 / 2
    assert f.peak_activations("interleaved", 4, 4, 2) == 4, "no more than there are"


@settings(deadline=None)
@given(stages=stage_times, m=st.integers(1, 12), hop=st.floats(0, 2))
def test_prefill_of_uneven_stages(stages: list[float], m: int, hop: float) -> None:
    trace = simulate(build_schedule("forward-only", len(stages), m), Costs(forward_s=stages, hop_s=hop))
    assert trace.makespan_s == pytest.approx(f.prefill_makespan_s(stages, m, hop))


@settings(deadline=None)
@given(stages=stage_times, k=st.integers(1, 9), hop=st.floats(0, 2))
def test_decode_rounds_of_uneven_stages(stages: list[float], k: int, hop: float) -> None:
    """In the steady state batch 0 comes out of the last stage once per round."""
    rounds, warm = 60, 40
    schedule = build_schedule("decode-ring", len(stages), k * rounds, num_in_flight=k)
    trace = simulate(schedule, Costs(forward_s=stages, hop_s=hop))
    done = {s.micro_batch: s.end_s for s in trace.spans if s.op is Op.F and s.stage == len(stages) - 1}
    took = (done[k * (rounds - 1)] - done[k * warm]) / (rounds - 1 - warm)
    assert took == pytest.approx(f.decode_round_s(stages, k, hop))


@settings(deadline=None)
@given(stages=stage_times, hop=st.floats(0, 2))
def test_how_many_in_flight_fill_the_ring(stages: list[float], hop: float) -> None:
    k = f.decode_in_flight_needed(stages, hop)
    assert f.decode_round_s(stages, k, hop) == pytest.approx(k * max(stages))
    assert k == 1 or f.decode_round_s(stages, k - 1, hop) > (k - 1) * max(stages)


def test_the_cliff_of_few_requests() -> None:
    """With C requests in a pipeline of p alike stages, C of p ranks work at a time."""
    idle = [f.decode_idle_over_total([1.0] * 4, c) for c in (1, 2, 3, 4, 8)]
    assert idle == pytest.approx([3 / 4, 1 / 2, 1 / 4, 0, 0])
    assert f.decode_in_flight_needed([1.0] * 4) == 4
    assert f.decode_in_flight_needed([1.0] * 4, hop_s=0.1) == 5
    long = build_schedule("decode-ring", 4, 400, num_in_flight=2)
    assert simulate(long).idle_over_total == pytest.approx(1 / 2, abs=0.01)


def test_a_prompts_chunk_delays_every_decode() -> None:
    """C13's mix: while a prompt is prefilled, a round gains a chunk's time, and what is lost because a long chunk holds
    up the short steps behind it on every stage; chunks as short as a step lose nothing (Sarathi's point)."""
    schedule = build_schedule("prefill-decode", 4, 12 * 5, num_in_flight=4, num_prefill_chunks=6)
    prefills = {i for i, micro_batch in enumerate(schedule.micro_batches) if micro_batch.phase == "prefill"}

    def rounds(chunk_s: float) -> list[float]:
        trace = simulate(schedule, Costs(forward_s=lambda stage, i: chunk_s if i in prefills else 1.0))
        done = {s.micro_batch: s.end_s for s in trace.spans if s.stage == 3 and s.op is Op.F}
        return [done[5 * (turn + 1)] - done[5 * turn] for turn in range(11)]

    assert rounds(1.0) == [5.0] * 11
    long = rounds(5.0)
    assert sum(long[:5]) / 5 > 4 + 5
    assert long[8:] == [5.0] * 3, "the prompt decodes with the others, five steps a round"


@settings(deadline=None)
@given(p=st.integers(2, 12), v=st.integers(1, 5))
def test_interleaved_sends_more(p: int, v: int) -> None:
    """C19: bubble time divided by v, messages times ``(pv-1)/(p-1)``."""
    ratio = f.boundary_messages_ratio(p, v)
    assert ratio == pytest.approx(pp_forward_bytes(1, 1, 1, p * v) / pp_forward_bytes(1, 1, 1, p))
    plain = simulate(build_schedule("1f1b", p, p), Costs(hop_s=1.0))
    chunks = simulate(build_schedule("interleaved", p, p, v), Costs(hop_s=1.0))
    assert (~chunks.is_compute).sum() == pytest.approx(ratio * (~plain.is_compute).sum())
    assert f.idle_s("interleaved", p, p, v) == pytest.approx(f.idle_s("1f1b", p, p) / v)


def test_c19_at_four_stages() -> None:
    assert f.boundary_messages_ratio(4, 2) == pytest.approx(2.33, abs=0.005)


@settings(deadline=None)
@given(p=st.integers(1, 8), work=st.floats(0.0, 100), overhead=st.floats(0.0, 5), most=st.integers(1, 60))
def test_the_best_number_of_micro_batches(p: int, work: float, overhead: float, most: int) -> None:
    """C14: no other m is faster, by the simulation's count."""

    def makespan(m: int) -> float:
        return f.prefill_makespan_s([work / m + overhead] * p, m)

    best = f.best_num_micro_batches(p, work, overhead, most)
    assert 1 <= best <= most
    assert makespan(best) <= min(makespan(m) for m in range(1, most + 1)) * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: f.idle_s("zb-v", 4, 8), "name must be one of gpipe, 1f1b"),
        (lambda: f.idle_s("1f1b", 0, 8), "p must be a whole number of at least 1; got 0"),
        (lambda: f.idle_s("1f1b", 4, 8, 2), "v must be 1 for 1f1b, got 2"),
        (lambda: f.idle_s("interleaved", 4, 6, 2), "m=6 must be a multiple of p=4"),
        (lambda: f.peak_activations("1f1b", 4, 8, rank=4), "rank must be a whole number from 0 to 3; got 4"),
        (lambda: f.boundary_messages_ratio(1, 2), "p must be a whole number of at least 2; got 1"),
        (lambda: f.prefill_makespan_s([], 3), "stage_s must have a time"),
        (lambda: f.prefill_makespan_s([1.0, -1.0], 3), "must not be negative, got -1"),
        (lambda: f.decode_round_s([1.0], 0), "k must be a whole number of at least 1; got 0"),
        (lambda: f.micro_batches_for_bubble(4, 0.0), "must lie between 0 and 1, got 0"),
        (lambda: f.best_num_micro_batches(4, -1.0, 1.0, 8), "must not be negative"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
