"""Formulas, fits and curves: planted parameters come back, bounds hold, points are hit, bad input is named."""

import math
from collections.abc import Callable
from random import Random
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.collectives.cost import (
    AlphaBeta,
    Curve,
    algbw_GBps,
    busbw_factor,
    busbw_GBps,
    errors,
    fit_ends,
    fit_line,
    leave_out_error,
    lower_bound_us,
    time_us,
)
from tplab.collectives.volumes import ALGORITHMS, COLLECTIVES

OCTAVES = [2.0**k for k in range(10, 31)]
ALL_REDUCES = ALGORITHMS["all-reduce"]
ONE_AT_A_TIME = ["ring", "tree", "recursive-doubling"]

latencies = st.floats(0.01, 1e4)
bandwidths = st.floats(0.01, 1e4)
num_ranks = st.integers(1, 64)
num_bytes = st.integers(0, 2**40)


# Bandwidths


@pytest.mark.parametrize(
    ("collective", "factor"),
    [
        ("all-reduce", 1.75),
        ("all-gather", 0.875),
        ("reduce-scatter", 0.875),
        ("broadcast", 1),
        ("point-to-point", 1),
    ],
)
def test_busbw_factor_is_that_of_nccl_tests(collective: str, factor: float) -> None:
    assert busbw_factor(collective, 8) == factor
    assert busbw_factor(collective, 1) == 0


def test_bandwidth_is_decimal_gigabytes_per_second() -> None:
    assert algbw_GBps(10**9, 1e6) == 1
    assert busbw_GBps("all-reduce", 32 * 2**20, 135, 8) == pytest.approx(435, abs=1)


# Formulas


def test_formulas_written_out() -> None:
    """a = 5 us, B = 100 GB/s, 1e6 bytes: 10 us to send it once."""

    def at(algorithm: str, n: int) -> float:
        return time_us(algorithm, 1_000_000, n, alpha_us=5, beta_GBps=100)

    assert at("one-shot", 8) == pytest.approx(5 + 7 * 10)
    assert at("two-shot", 8) == pytest.approx(2 * 5 + 1.75 * 10)
    assert at("ring", 8) == pytest.approx(14 * 5 + 1.75 * 10)
    assert at("recursive-doubling", 8) == pytest.approx(3 * (5 + 10))
    assert at("recursive-doubling", 6) == pytest.approx(4 * (5 + 10))
    assert at("recursive-doubling", 3) == pytest.approx(3 * (5 + 10))
    assert at("tree", 8) == pytest.approx(6 * 5 + 2 * 10)
    assert at("tree", 2) == pytest.approx(2 * 5 + 10)


def test_formulas_with_a_link_for_every_pair() -> None:
    """a = 1 ms, B = 0.1 GB/s, 1e6 bytes, 4 ranks: 10 ms to send it once, 2.5 ms a quarter."""

    def at(algorithm: str, ports: int) -> float:
        return time_us(algorithm, 1_000_000, 4, alpha_us=1000, beta_GBps=0.1, ports=ports)

    assert at("two-shot", 1) == pytest.approx(2 * 1000 + 1.5 * 10_000)
    assert at("two-shot", 3) == at("two-shot", 8) == pytest.approx(2 * (1000 + 2500))
    assert at("one-shot", 3) == pytest.approx(1000 + 10_000)
    for algorithm in ("ring", "tree", "recursive-doubling"):
        assert at(algorithm, 3) == at(algorithm, 1)


def test_formulas_of_other_collectives() -> None:
    def at(collective: str, algorithm: str) -> float:
        return time_us(algorithm, 1_000_000, 8, alpha_us=5, beta_GBps=100, collective=collective)

    assert at("all-gather", "ring") == pytest.approx(7 * 5 + 8.75)
    assert at("reduce-scatter", "direct") == pytest.approx(5 + 8.75)
    assert at("reduce-scatter", "gloo") == pytest.approx(14 * 5 + 17.5)
    assert at("broadcast", "tree") == pytest.approx(3 * (5 + 10))
    assert at("broadcast", "flat") == pytest.approx(5 + 70)
    assert at("point-to-point", "direct") == pytest.approx(15)


@pytest.mark.parametrize("collective", COLLECTIVES)
def test_one_rank_takes_no_time(collective: str) -> None:
    for algorithm in ALGORITHMS[collective]:
        assert time_us(algorithm, 2**30, 1, 5, 100, collective) == 0
    assert lower_bound_us(2**30, 1, 5, 100) == 0


@settings(deadline=None)
@given(nbytes=num_bytes, n=num_ranks, alpha_us=latencies, beta_GBps=bandwidths)
def test_no_formula_beats_its_bound(nbytes: int, n: int, alpha_us: float, beta_GBps: float) -> None:
    at = {name: time_us(name, nbytes, n, alpha_us, beta_GBps) * (1 + 1e-12) for name in ALL_REDUCES}
    one_port = lower_bound_us(nbytes, n, alpha_us, beta_GBps)
    all_ports = lower_bound_us(nbytes, n, alpha_us, beta_GBps, ports=max(n - 1, 1))
    assert all(at[name] >= one_port for name in ONE_AT_A_TIME)
    assert all(time >= all_ports for time in at.values())
    assert one_port >= all_ports


def test_bound_has_the_rounds_and_the_bytes() -> None:
    assert [lower_bound_us(0, n, 5, 100) for n in (2, 3, 4, 5, 8, 9)] == [5, 10, 10, 15, 15, 20]
    assert [lower_bound_us(0, n, 5, 100, ports=2) for n in (3, 4, 9, 10)] == [5, 10, 10, 15]
    assert lower_bound_us(10**9, 8, 5, 100) == pytest.approx(17_500)
    assert time_us("one-shot", 0, 8, 5, 100) < lower_bound_us(0, 8, 5, 100)  # 7 messages at a time: another bound
    assert time_us("one-shot", 0, 8, 5, 100) == lower_bound_us(0, 8, 5, 100, ports=7)


# Fits


@settings(deadline=None)
@given(alpha_us=latencies, beta_GBps=bandwidths)
def test_planted_line_comes_back(alpha_us: float, beta_GBps: float) -> None:
    planted = AlphaBeta(alpha_us=alpha_us, beta_GBps=beta_GBps)
    sizes = [0.0, *(alpha_us * beta_GBps * 1e3 * 4.0**k for k in range(-5, 6))]  # around the knee, where both show
    times = [planted.time_us(size) for size in sizes]
    fitted = fit_line(sizes, times)
    assert fitted.alpha_us == pytest.approx(alpha_us, rel=1e-6)
    assert fitted.beta_GBps == pytest.approx(beta_GBps, rel=1e-6)
    assert errors(planted, sizes, times).max_pct == 0
    assert errors(fitted, sizes, times).max_pct < 1e-4


def test_fit_minds_small_messages() -> None:
    """20 us of latency, and a largest message 10 % too slow: an ordinary fit makes the latency negative."""
    planted = AlphaBeta(alpha_us=20, beta_GBps=200)
    times = [planted.time_us(size) for size in OCTAVES]
    times[-1] *= 1.1
    assert fit_line(OCTAVES, times).alpha_us == pytest.approx(20, rel=0.02)


@settings(deadline=None)
@given(times=st.lists(st.floats(0.1, 1e6), min_size=len(OCTAVES), max_size=len(OCTAVES)), nudge=st.floats(0.9, 1.1))
def test_fit_is_the_best_there_is(times: list[float], nudge: float) -> None:
    """Whatever the data: valid parameters, and no neighbour does better."""

    def loss(line: AlphaBeta) -> float:
        return sum((line.time_us(x) / t - 1) ** 2 for x, t in zip(OCTAVES, times, strict=True))

    fitted = fit_line(OCTAVES, times)
    assert fitted.alpha_us >= 0
    assert fitted.beta_GBps > 0
    steeper = AlphaBeta(alpha_us=fitted.alpha_us, beta_GBps=min(fitted.beta_GBps, 1e9) * nudge)
    higher = AlphaBeta(alpha_us=fitted.alpha_us * nudge, beta_GBps=fitted.beta_GBps)
    lifted = AlphaBeta(alpha_us=fitted.alpha_us + 0.01, beta_GBps=fitted.beta_GBps)
    assert loss(fitted) <= min(loss(steeper), loss(higher), loss(lifted)) * (1 + 1e-9) + 1e-9


def test_fit_of_times_that_do_not_grow() -> None:
    assert fit_line([1024, 2048, 4096], [7, 7, 7]).alpha_us == pytest.approx(7)
    falling = fit_line([1024, 2048, 4096], [9, 8, 7])
    assert math.isinf(falling.beta_GBps)
    assert falling.time_us(2**40) == falling.alpha_us


GPU_SIZES = [2.0**k for k in range(10, 29, 3)]
CPU_SIZES = [2.0**k for k in (10, 14, 17, 20, 23)]


def switching(small: AlphaBeta, large: AlphaBeta, switch: float) -> Callable[[float], float]:
    """A link whose library changes protocol at a size."""
    return lambda size: (small if size <= switch else large).time_us(size)


LINE_NVLINK = AlphaBeta(alpha_us=10, beta_GBps=350)
LINKS = {
    "nvlink": (GPU_SIZES, LINE_NVLINK.time_us, 10, 350),
    "sockets": (GPU_SIZES, AlphaBeta(alpha_us=30, beta_GBps=2).time_us, 30, 2),
    "gloo": (CPU_SIZES, AlphaBeta(alpha_us=60, beta_GBps=2.5).time_us, 60, 2.5),
    "slow start": (GPU_SIZES, lambda size: 8 + size / 350e3 + 12 * (1 - math.exp(-size / 2e6)), 8, 350),
    "NCCL's protocols": (
        GPU_SIZES,
        switching(AlphaBeta(alpha_us=7, beta_GBps=20), AlphaBeta(alpha_us=12, beta_GBps=350), 1 << 16),
        7,
        350,
    ),
    "rendezvous": (
        CPU_SIZES,
        switching(AlphaBeta(alpha_us=60, beta_GBps=1), AlphaBeta(alpha_us=110, beta_GBps=2.5), 1 << 15),
        60,
        2.5,
    ),
}


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_both_ends_of_a_link_come_back(link: str, noise: float) -> None:
    """Within 10 % for the median of 100 noisy series, where times are up to some 6 % too long."""
    sizes, time_of, alpha_us, beta_GBps = LINKS[link]
    random = Random(3)
    fits = [
        fit_ends(sizes, [time_of(size) * (1 + noise * abs(random.gauss())) for size in sizes])
        for _ in range(100 if noise else 1)
    ]
    assert median(fit.alpha_us for fit in fits) == pytest.approx(alpha_us, rel=0.12 if link == "rendezvous" else 0.1)
    assert median(fit.beta_GBps for fit in fits) == pytest.approx(beta_GBps, rel=0.05)


def test_ends_in_the_numbers_of_the_docstring() -> None:
    sizes, time_of, *_ = LINKS["NCCL's protocols"]
    line = fit_line(sizes, map(time_of, sizes))
    assert (round(line.alpha_us, 1), round(line.beta_GBps)) == (8.3, 326)


def test_ends_of_a_link_without_latency_or_without_transfer() -> None:
    assert fit_ends([1e3, 1e6, 1e9], [1, 1e3, 1e6]).alpha_us == pytest.approx(0, abs=1e-6)
    flat = fit_ends([1e3, 1e6, 1e9], [7, 7, 7])
    assert flat.alpha_us == pytest.approx(7)
    two = fit_ends([1024, 2048], [3, 4])
    assert (two.alpha_us, two.beta_GBps) == (pytest.approx(2), pytest.approx(1.024))


# Curves


@st.composite
def points(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    sizes = draw(st.lists(st.integers(1, 2**32), min_size=2, max_size=20, unique=True))
    times = draw(st.lists(st.floats(0.1, 1e6), min_size=len(sizes), max_size=len(sizes)))
    return [float(size) for size in sizes], times


@settings(deadline=None)
@given(points=points(), share=st.floats(0, 1), further=st.floats(0, 1))
def test_curve_hits_its_points_and_is_monotone_between(
    points: tuple[list[float], list[float]], share: float, further: float
) -> None:
    curve = Curve(*points)
    for size, us in zip(*points, strict=True):
        assert curve.time_us(size) == us
    assert errors(curve, *points).max_pct == 0
    low, high = sorted((share, further))
    for left, right in zip(curve.sizes, curve.sizes[1:], strict=False):
        ends = sorted((curve.time_us(left), curve.time_us(right)))
        rising = curve.time_us(right) >= curve.time_us(left)
        a, b = (curve.time_us(min(left + at * (right - left), right)) for at in (low, high))
        first, second = (a, b) if rising else (b, a)
        assert ends[0] * (1 - 1e-9) <= first <= second * (1 + 1e-9) <= ends[1] * (1 + 1e-8)


def test_curve_is_exact_on_a_power_law() -> None:
    times = [size**0.7 for size in OCTAVES]
    assert leave_out_error(OCTAVES, times).max_pct < 1e-9


def test_curve_beyond_its_ends() -> None:
    assert Curve([1000, 2000], [10, 15]).time_us(0) == 10
    assert Curve([1000, 2000], [10, 20]).time_us(8000) == pytest.approx(80)
    assert Curve([1000, 2000], [10, 90]).time_us(8000) == pytest.approx(360)  # slope held at 1
    assert Curve([1000, 2000], [10, 9]).time_us(8000) == 9  # and at 0
    assert Curve([1000, 4000], [10, 20]).time_us(16000) == pytest.approx(40)  # slope 1/2 goes on
    assert Curve([1000], [10]).time_us(3000) == pytest.approx(30)
    assert Curve([2000, 1000], [15, 10]) == Curve([1000, 2000], [10, 15])


def test_leave_out_predicts_what_it_did_not_see() -> None:
    times = [1.0, 10.0, 1.0, 1.0, 1.0]
    assert leave_out_error([1, 2, 4, 8, 16], times).max_pct == pytest.approx(90)  # 2 bytes, guessed from 1 and 4
    assert leave_out_error([1, 2, 4, 8, 16], times).mean_pct == pytest.approx(45)  # and 8, guessed right
    assert leave_out_error([1, 2, 4, 8], [1, 10, 1, 50]).max_pct < 91  # an even number of points: both ends are kept


def test_errors_are_percentages_of_what_was_measured() -> None:
    line = AlphaBeta(alpha_us=10, beta_GBps=1)
    found = errors(line, [0, 0], [20, 8])
    assert (found.mean_pct, found.max_pct) == (pytest.approx(37.5), pytest.approx(50))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: time_us("butterfly", 1, 2, 5, 100), r"one of ring, tree, .*got 'butterfly'"),
        (lambda: time_us("ring", 1, 2, 5, 100, "scan"), r"collective must be one of .*got 'scan'"),
        (lambda: time_us("ring", -1, 2, 5, 100), r"nbytes .*got -1"),
        (lambda: time_us("ring", 1, 0, 5, 100), r"n must be a whole number of at least 1; got 0"),
        (lambda: time_us("ring", 1, 2, -5, 100), r"alpha_us .*got -5"),
        (lambda: time_us("ring", 1, 2, 5, 0), r"beta_GBps must be a number above 0; got 0"),
        (lambda: time_us("ring", math.nan, 2, 5, 1), r"nbytes .*got nan"),
        (lambda: lower_bound_us(1, 2, 5, 100, ports=0), r"ports must be a whole number of at least 1; got 0"),
        (lambda: busbw_factor("scan", 2), r"got 'scan'"),
        (lambda: busbw_factor("broadcast", 0), r"n must be a whole number of at least 1; got 0"),
        (lambda: algbw_GBps(1, 0), r"us must be a number above 0; got 0"),
        (lambda: fit_line([1, 2], [1]), r"2 sizes and 1 times_us"),
        (lambda: fit_line([8, 8], [1, 2]), r"two different sizes, got 2 times 8 bytes"),
        (lambda: fit_line([1, 2], [1, 0]), r"times_us must be finite and above 0, got \[1.0, 0.0\]"),
        (lambda: fit_line([1, -2], [1, 1]), r"sizes must be finite and not negative, got \[1.0, -2.0\]"),
        (lambda: Curve([0, 2], [1, 2]), r"sizes must be above 0 and differ, got \[0.0, 2.0\]"),
        (lambda: Curve([2, 2], [1, 2]), r"sizes must be above 0 and differ"),
        (lambda: Curve([], []), r"at least 1 sizes"),
        (lambda: leave_out_error([1, 2], [1, 2]), r"at least 3 sizes"),
    ],
)
def test_bad_input_names_the_argument_and_the_number(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]
