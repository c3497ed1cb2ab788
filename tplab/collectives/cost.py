"""How long a collective takes: formulas by algorithm, and what can be fitted to measured times. Pure; microseconds.

Two kinds of model, and neither replaces the other. A *formula* says how time follows from latency, bandwidth and the
number of ranks: it explains, and extends to machines nobody has measured. A *curve* through measured points says how
long it takes here. One alpha-beta line does not, since libraries change algorithm and protocol on the way: over 154
published series of all-reduce times (AIConfigurator, Vidur and others) it is off by 10 % on average and by 34 % at its
worst size (medians; an ordinary fit by 32 and 90 %), a curve that must guess every second point by 5 and 17 %. The line
is for teaching, and always has its error beside it (``errors``).

Letters: M bytes of the full tensor (S in ``volumes``), n ranks, a the latency of one message in microseconds, B the
bandwidth of one rank in one direction, in GB/s = 1e9 bytes per second = 1000 bytes per microsecond.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tplab.checks import check_count, check_number
from tplab.collectives.volumes import check_algorithm, lower_bound_bytes, sent_bytes

Floats = NDArray[np.float64]
_BYTES_PER_US = 1e3  # at 1 GB/s


class Model(Protocol):
    """Anything that gives a time for a size."""

    def time_us(self, nbytes: float) -> float: ...


def busbw_factor(collective: str, n: int) -> float:
    """Bus bandwidth over algorithm bandwidth: 2(n-1)/n for all-reduce, (n-1)/n for all-gather and reduce-scatter, 1 for
    broadcast and point-to-point; 0 on one rank, where nothing moves.

    Source: NCCL-tests, doc/PERFORMANCE.md. It makes times comparable over n and with the link's speed.

    Known to be wrong: with sums made in the switch (NVLS, SHARP), bus bandwidth can exceed the link's.
    """
    least = lower_bound_bytes(collective, 1, n)
    return 1.0 if least and collective in ("broadcast", "point-to-point") else least


def algbw_GBps(nbytes: float, us: float) -> float:
    """Algorithm bandwidth S/t in GB/s; S as in ``volumes``."""
    return check_number("nbytes", nbytes, least=0) / (check_number("us", us, above=0, most=math.inf) * _BYTES_PER_US)


def busbw_GBps(collective: str, nbytes: float, us: float, n: int) -> float:
    """Bus bandwidth in GB/s: ``algbw · busbw_factor``."""
    return algbw_GBps(nbytes, us) * busbw_factor(collective, n)


@dataclass(frozen=True, kw_only=True, slots=True)
class AlphaBeta:
    """The line t = a + M/B, Hockney's model of one message; over a whole collective, the teaching model."""

    alpha_us: float
    """Time of an empty message, in us."""
    beta_GBps: float
    """Bandwidth that an endless message reaches, in GB/s; papers call its inverse beta. Infinite if size costs
    nothing."""

    def __post_init__(self) -> None:
        check_number("alpha_us", self.alpha_us, least=0)
        check_number("beta_GBps", self.beta_GBps, above=0, most=math.inf)

    def time_us(self, nbytes: float) -> float:
        return self.alpha_us + self.transfer_us(nbytes)

    def transfer_us(self, nbytes: float) -> float:
        """What the bytes add to the latency."""
        return check_number("nbytes", nbytes, least=0) / (self.beta_GBps * _BYTES_PER_US)


@dataclass(frozen=True, init=False, slots=True)
class Curve:
    """Measured points, joined by straight lines in log size and log time.

    Exact at the points, monotone between two neighbours. Below the first point: its time (latency). Above the last: the
    slope of the last segment goes on, held between 0 and 1. Slope 1 is constant bandwidth; steeper is noise. (Always 1
    misses 2-5 times as far when published series are cut 4-64 times below their end: bandwidth still grows there.)

    Known to be wrong: one bad sample bends the curve up to its neighbours; a protocol change between two points is
    smeared over the gap; far above the last point a slope below 1 promises bandwidth that no link has.
    """

    sizes: tuple[float, ...]
    """Measured sizes in bytes, increasing, above 0."""
    times_us: tuple[float, ...]
    """Time at each size in us, above 0."""

    def __init__(self, sizes: Iterable[float], times_us: Iterable[float]) -> None:
        """Points in any order."""
        x, t = _points(sizes, times_us, least=1)
        if x[0] <= 0 or (np.diff(x) <= 0).any():
            raise ValueError(f"sizes must be above 0 and differ, got {x.tolist()}")
        object.__setattr__(self, "sizes", tuple(x.tolist()))  # frozen
        object.__setattr__(self, "times_us", tuple(t.tolist()))

    def time_us(self, nbytes: float) -> float:
        if check_number("nbytes", nbytes, least=0) <= self.sizes[0]:
            return self.times_us[0]
        if nbytes > self.sizes[-1]:
            return self.times_us[-1] * math.exp(self._last_slope * math.log(nbytes / self.sizes[-1]))
        right = bisect_left(self.sizes, nbytes)
        if nbytes == self.sizes[right]:
            return self.times_us[right]
        (x0, x1), (t0, t1) = self.sizes[right - 1 : right + 1], self.times_us[right - 1 : right + 1]
        return t0 * math.exp(math.log(t1 / t0) * math.log(nbytes / x0) / math.log(x1 / x0))

    @property
    def _last_slope(self) -> float:
        if len(self.sizes) == 1:
            return 1.0
        slope = math.log(self.times_us[-1] / self.times_us[-2]) / math.log(self.sizes[-1] / self.sizes[-2])
        return min(max(slope, 0.0), 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """How far a model is from measured times, as absolute percentages of the measured time."""

    mean_pct: float
    max_pct: float


def fit_line(sizes: Iterable[float], times_us: Iterable[float]) -> AlphaBeta:
    """The a ≥ 0 and 1/B ≥ 0 that minimise the sum of ((a + M/B - t)/t)².

    Relative, since sizes span six decades: an ordinary fit is ruled by the largest message and may miss the small ones,
    which are all that decode sends, by any factor. Needs two different sizes.

    Known to be wrong: see the module; also, relative squares punish too long more than too short, so the line lies low.
    """
    x, t = _points(sizes, times_us, least=2)
    if x[0] == x[-1]:
        raise ValueError(f"a line needs two different sizes, got {len(x)} times {x[0]:g} bytes")
    latency, transfer = 1 / t, x / t
    scale = float(np.linalg.norm(transfer))
    design = np.column_stack([latency, transfer / scale])
    inside = np.linalg.lstsq(design, np.ones_like(t), rcond=None)[0]
    flat = np.array([latency.sum() / (latency @ latency), 0.0])
    through_zero = np.array([0.0, design[:, 1].sum()])
    candidates = [inside] if (inside >= 0).all() else [flat, through_zero]
    # Two unknowns: the optimum is inside, or on one of two edges.
    alpha, scaled = min(candidates, key=lambda candidate: float(np.sum((design @ candidate - 1) ** 2)))
    slope = float(scaled) / scale
    beta = 1 / (slope * _BYTES_PER_US) if slope > 0 else math.inf
    return AlphaBeta(alpha_us=float(alpha), beta_GBps=beta)


def fit_ends(sizes: Iterable[float], times_us: Iterable[float]) -> AlphaBeta:
    """The line whose ends are right: alpha of short messages, beta of long ones, whatever lies between.

    Libraries change protocols on the way, and a link reaches its bandwidth late. Where short messages take 7 us at 20
    GB/s and long ones 12 us at 350, ``fit_line`` through sizes from 1 KiB to 256 MiB says 8.3 us and 326 GB/s; where
    times lie up to 10 % above a line, both lie some 7 % off. Here beta is the slope over the sizes that take longer to
    transfer than alpha, two at least, and alpha the median of what the others take beyond their bytes, of those an
    eighth as long.

    Known to be wrong: in between, by as much as the link differs from a line; with few sizes one bad time decides.
    """
    x, t = _points(sizes, times_us, least=2)
    line = fit_line(x, t)
    knee = math.inf if math.isinf(line.beta_GBps) else line.alpha_us * line.beta_GBps * _BYTES_PER_US
    upper = x >= min(knee, np.unique(x)[-2])
    beta = fit_line(x[upper], t[upper]).beta_GBps
    lower = x <= max(knee / 8, x[0])
    rest = np.median(t[lower] - x[lower] / (beta * _BYTES_PER_US))
    return AlphaBeta(alpha_us=max(0.0, float(rest)), beta_GBps=beta)


def errors(model: Model, sizes: Iterable[float], times_us: Iterable[float]) -> Errors:
    """How far ``model`` is from these points."""
    x, t = _points(sizes, times_us, least=1)
    off = [abs(model.time_us(size) - us) / us * 100 for size, us in zip(x.tolist(), t.tolist(), strict=True)]
    return Errors(mean_pct=math.fsum(off) / len(off), max_pct=max(off))


def leave_out_error(sizes: Iterable[float], times_us: Iterable[float]) -> Errors:
    """How far a ``Curve`` is from points it has not seen: every second point, never an end, is left out and predicted.

    That curve has gaps twice as wide as the one through all points, which is therefore better than this says.
    """
    x, t = _points(sizes, times_us, least=3)
    out = np.zeros(len(x), dtype=bool)
    out[1:-1:2] = True
    return errors(Curve(x[~out], t[~out]), x[out], t[out])


def time_us(
    algorithm: str,
    nbytes: float,
    n: int,
    alpha_us: float,
    beta_GBps: float,
    collective: str = "all-reduce",
    *,
    ports: int = 1,
) -> float:
    """Time of one call by formula: ``steps · a + bytes that follow one another / B``. 0 on one rank.

    | all-reduce         | time                         | known to be wrong                                        |
    |--------------------|------------------------------|----------------------------------------------------------|
    | one-shot           | a + (n-1)·M/B                | where links do not join every pair (PCIe, rings)         |
    | two-shot           | 2a + 2(n-1)/n·M/B            | the same                                                 |
    | ring               | 2(n-1)a + 2(n-1)/n·M/B       | for many ranks: each step waits for the slowest link     |
    | recursive-doubling | ceil(log2 n)·(a + M/B)       | where far partners share a link                          |
    | ... n not a 2^k    | (ceil(log2 n) + 1)·(a + M/B) |                                                          |
    | tree               | 2·ceil(log2 n)·a + 2M/B      | pipelined: the latency of its many small chunks is extra |

    The tree's 2M is 1.5M at n=3 and M at n=2. Other collectives: steps and busiest rank of ``sent_bytes``; a ring
    broadcast is pipelined. Taken for granted: both directions of a link at once, at B each, and nobody else's bytes on
    it; B is all that a rank sends, to one peer or many; sums are free; M splits evenly.

    Args:
        algorithm, collective: names as in ``volumes.ALGORITHMS``.
        nbytes: M, bytes of the full tensor.
        n: ranks.
        alpha_us: a, latency of one message.
        beta_GBps: B, bandwidth of one rank in one direction.
        ports: links of B each over which a rank sends at once, up to n-1 where every pair has its own: one-shot and
            two-shot then wait for their bytes that many times less.

    Sources: Thakur, Rabenseifner and Gropp 2005 (recursive doubling and the a, B notation); Patarasuk and Yuan 2009
    (ring); Sanders, Speck and Träff 2009 (two trees). One-shot and two-shot are sums of their sends.
    """
    check_algorithm(collective, algorithm)
    link = AlphaBeta(alpha_us=alpha_us, beta_GBps=beta_GBps)
    unit = sent_bytes(collective, algorithm, 1, n)  # all are linear in M
    per_byte = max(unit.sent_max, unit.received_max)
    if algorithm == "recursive-doubling":
        per_byte = unit.steps  # folding in and out load different directions, but never at the same time
    if algorithm in ("one-shot", "two-shot"):
        per_byte /= max(1, min(check_count("ports", ports, least=1), n - 1))
    return unit.steps * link.alpha_us + per_byte * link.transfer_us(nbytes)


def lower_bound_us(nbytes: float, n: int, alpha_us: float, beta_GBps: float, ports: int = 1) -> float:
    """No all-reduce is faster than max(rounds · a, 2(n-1)/n·M/B), if the ranks do the sums.

    ``rounds`` = ceil(log2 n) when a rank has one message under way at a time: what one rank knows can double its
    holders once per a. With ``ports`` at a time, ceil(log(n) to base ports + 1). **One-shot and two-shot send n-1 at a
    time**: compare them with ``ports=n - 1`` (one round), for they do beat the bound of one port.

    The larger of the two, not the sum: each is proven alone, and latency can hide under another message's transfer.

    Args:
        nbytes: M, bytes of the full tensor.
        n: ranks.
        alpha_us: a, latency of one message.
        beta_GBps: B, bandwidth of one rank in one direction.
        ports: messages that a rank has under way at a time.

    Sources: Chan, Heimlich, Purkayastha and van de Geijn 2007 (both bounds); Patarasuk and Yuan 2009 (bandwidth).
    Wrong with sums made in the switch.
    """
    link = AlphaBeta(alpha_us=alpha_us, beta_GBps=beta_GBps)
    ports, n = check_count("ports", ports, least=1), check_count("n", n, least=1)
    rounds, reached = 0, 1
    while reached < n:
        rounds, reached = rounds + 1, reached * (ports + 1)
    return max(rounds * link.alpha_us, lower_bound_bytes("all-reduce", 1, n) * link.transfer_us(nbytes))


def _points(sizes: Iterable[float], times_us: Iterable[float], least: int) -> tuple[Floats, Floats]:
    """Both as arrays, by size."""
    x, t = np.array(list(sizes), dtype=np.float64), np.array(list(times_us), dtype=np.float64)
    if len(x) != len(t) or len(x) < least:
        raise ValueError(f"need at least {least} sizes and as many times_us, got {len(x)} sizes and {len(t)} times_us")
    if not (np.isfinite(x) & (x >= 0)).all():
        raise ValueError(f"sizes must be finite and not negative, got {x.tolist()}")
    if not (np.isfinite(t) & (t > 0)).all():
        raise ValueError(f"times_us must be finite and above 0, got {t.tolist()}")
    order = np.argsort(x, kind="stable")
    return x[order], t[order]
