"""Pipelines in closed form: what the article's claims C10 to C14 and C19 should say (see docs/article.md).

Pure: numbers in, numbers out.

Letters: p ranks, m micro-batches, v chunks per rank, k micro-batches in flight; F, I, W seconds of one rank's share of
one micro-batch, B = I + W; t_s seconds of stage s. A bubble has two names: idle over total (a fraction of the makespan)
and idle over work (Megatron's ratio); with the first x, the second is x / (1 - x).

Known to be wrong: hops are free but where an argument says otherwise, and stages are alike but where times come by
stage. ``tplab.pipeline.simulate`` knows better, and the tests hold these against it.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tplab.checks import check_count, check_one_of

BALANCED = ("gpipe", "1f1b", "interleaved", "zb-h1", "forward-only")
"""Schedules that have a formula for alike stages."""


def idle_s(
    name: str,
    p: int,
    m: int,
    v: int = 1,
    *,
    forward_s: float = 1.0,
    input_grad_s: float = 1.0,
    weight_grad_s: float = 1.0,
) -> float:
    """Seconds that each rank idles until all are done; its work is ``m·(F + I + W)``, or ``m·F`` forward only.

    ==============  ======================================================================================
    gpipe, 1f1b     ``(p - 1)(F + B)``, whatever the ratio of B to F
    interleaved     ``(p - 1)(F + B)/v``; p divides m
    zb-h1           ``(p - 1)(F + I - W)`` where W is at most F and at most I, else ``(p - 1)·max(F, I)``; m at
                    least p
    forward-only    ``(p - 1)F``
    ==============  ======================================================================================

    Args:
        name: a schedule of ``BALANCED``.
        p, m, v: ranks, micro-batches, chunks per rank.
        forward_s, input_grad_s, weight_grad_s: F, I and W: seconds of one rank's share of one micro-batch.

    Sources: Huang and others 2019; Narayanan and others 2021, section 2.2; Qi and others 2023, table 1.

    Raises ``ValueError`` outside what a formula holds for.
    """
    _check(name, p, m, v)
    backward_s = input_grad_s + weight_grad_s
    match name:
        case "forward-only":
            each = forward_s
        case "zb-h1":
            if m < p:
                raise ValueError(f"m={m} must be at least p={p}: the idle time of zb-h1 has no formula below")
            each = max(forward_s, input_grad_s, forward_s + input_grad_s - weight_grad_s)
        case _:
            each = (forward_s + backward_s) / v
    return (p - 1) * each


def makespan_s(
    name: str,
    p: int,
    m: int,
    v: int = 1,
    *,
    forward_s: float = 1.0,
    input_grad_s: float = 1.0,
    weight_grad_s: float = 1.0,
) -> float:
    """Work plus :func:`idle_s`.

    Args:
        name: a schedule of ``BALANCED``.
        p, m, v: ranks, micro-batches, chunks per rank.
        forward_s, input_grad_s, weight_grad_s: F, I and W: seconds of one rank's share of one micro-batch.
    """
    idle = idle_s(name, p, m, v, forward_s=forward_s, input_grad_s=input_grad_s, weight_grad_s=weight_grad_s)
    work = forward_s if name == "forward-only" else forward_s + input_grad_s + weight_grad_s
    return m * work + idle


def idle_over_total(name: str, p: int, m: int, v: int = 1, **times: float) -> float:
    """The bubble as a fraction: ``(p-1)/(m+p-1)`` for gpipe, 1f1b and forward-only, ``(p-1)/(vm+p-1)`` interleaved."""
    return idle_s(name, p, m, v, **times) / makespan_s(name, p, m, v, **times)


def idle_over_work(name: str, p: int, m: int, v: int = 1, **times: float) -> float:
    """The bubble as Megatron's ratio: ``(p-1)/m``, interleaved ``(p-1)/(vm)``."""
    idle = idle_s(name, p, m, v, **times)
    return idle / (makespan_s(name, p, m, v, **times) - idle)


def claimed_gpipe_bubble(p: int, m: int) -> float:
    """``(p-1)/(p-1+2m)``: the article's GPipe (C11), which is nobody's bubble but interleaved 1F1B's at v = 2."""
    return (check_count("p", p, least=1) - 1) / (p - 1 + 2 * check_count("m", m, least=1))


def peak_activations(name: str, p: int, m: int, v: int = 1, *, rank: int = 0) -> float:
    """The most micro-batches whose activations ``rank`` holds; one chunk's count 1/v.

    gpipe m; 1f1b ``min(m, p - r)``; interleaved ``min(m, p + (p - 1 - 2r)/v)``, on rank 0 ``p + (p-1)/v``, for one
    more chunk is held than its warm-up of ``(v-1)p + 2(p-1-r)``; zb-h1 ``min(m, p)`` on every rank; forward-only 1.

    Args:
        name: a schedule of ``BALANCED``.
        p, m, v: ranks, micro-batches, chunks per rank.
        rank: r, the rank that is asked about.
    """
    _check(name, p, m, v)
    check_count("rank", rank, most=p - 1)
    match name:
        case "gpipe":
            return float(m)
        case "1f1b":
            return float(min(m, p - rank))
        case "interleaved":
            return min(float(m), ((v - 1) * p + 2 * (p - 1 - rank) + 1) / v)
        case "zb-h1":
            return float(min(m, p))
        case _:
            return 1.0


def boundary_messages_ratio(p: int, v: int) -> float:
    """Messages of the interleaved schedule over those of 1F1B: ``(pv-1)/(p-1)``, 2.33 at p=4, v=2 (C19)."""
    check_count("p", p, least=2)  # a single rank sends nothing, with or without chunks
    return (p * check_count("v", v, least=1) - 1) / (p - 1)


def forward_makespan(trip: ArrayLike, slowest: ArrayLike, m: ArrayLike) -> NDArray[np.float64]:
    """Time of m micro-batches forward over all stages: one's ``trip``, hops included, then the ``slowest`` stage's time
    for each further one. Elementwise over arrays."""
    return np.asarray(trip + (np.asarray(m) - 1) * np.asarray(slowest), dtype=np.float64)


def decode_round(trip: ArrayLike, slowest: ArrayLike, k: ArrayLike) -> NDArray[np.float64]:
    """Time in which each of k micro-batches in flight has been once around the stages: ``max(trip, k·slowest)``, with
    the hop back to the first stage in the ``trip``. Elementwise over arrays."""
    return np.maximum(trip, np.asarray(k, dtype=np.float64) * np.asarray(slowest, dtype=np.float64))


def prefill_makespan_s(stage_s: Sequence[float], m: int, hop_s: float = 0.0) -> float:
    """Forward only, stages uneven: ``Σ t_s + (m-1)·max t_s + (p-1)·hop`` (C13).

    The first micro-batch goes through all stages, and then one comes out every ``max t_s``. Known to be wrong where
    the messages of one link cannot follow one another that fast (bytes / bandwidth above ``max t_s``).
    """
    _check_stages(stage_s, hop_s)
    trip = sum(stage_s) + (len(stage_s) - 1) * hop_s
    return float(forward_makespan(trip, max(stage_s), check_count("m", m, least=1)))


def decode_round_s(stage_s: Sequence[float], k: int, hop_s: float = 0.0) -> float:
    """Seconds in which each of k micro-batches in flight gets one token: ``max(Σ t_s + p·hop, k·max t_s)`` (C13).

    Either a token's way round the ring, with a hop from each stage and the one back to the first, or the slowest
    stage's work for all of them.
    """
    _check_stages(stage_s, hop_s)
    hops = len(stage_s) if len(stage_s) > 1 else 0
    return float(decode_round(sum(stage_s) + hops * hop_s, max(stage_s), check_count("k", k, least=1)))


def decode_in_flight_needed(stage_s: Sequence[float], hop_s: float = 0.0) -> int:
    """The least k that keeps the slowest stage busy: ``(Σ t_s + p·hop)/max t_s``, rounded up; p where stages are alike
    and hops are free."""
    around = decode_round_s(stage_s, 1, hop_s)
    return math.ceil(around / max(stage_s) - 1e-9) if max(stage_s) else 1


def decode_idle_over_total(stage_s: Sequence[float], k: int, hop_s: float = 0.0) -> float:
    """Idle share of all ranks in the steady state of a decoding ring. With fewer requests than stages, each of them a
    micro-batch of its own (k = C), it is at least ``1 - C/p``: the cliff of a pipeline that few people use."""
    return 1.0 - k * sum(stage_s) / (len(stage_s) * decode_round_s(stage_s, k, hop_s))


def best_num_micro_batches(p: int, work_s: float, overhead_s: float, most: int) -> int:
    """The m with the least makespan if a stage takes ``work_s/m + overhead_s`` for one of m micro-batches (C14).

    Makespan ``(m + p - 1)(work_s/m + overhead_s)``, which is least at ``m = √((p-1)·work_s/overhead_s)``: below it the
    bubble costs more, above it the overhead (launches, small matmuls) does. ``most`` is how far a batch can be cut.
    """
    check_count("p", p, least=1)
    if work_s < 0 or overhead_s < 0:
        raise ValueError(f"work_s and overhead_s must not be negative, got {work_s} and {overhead_s}")
    most = check_count("most", most, least=1)
    if overhead_s == 0:
        return most if p > 1 else 1
    ideal = max(1.0, min(most, math.sqrt((p - 1) * work_s / overhead_s)))
    around = sorted({math.floor(ideal), math.ceil(ideal)})
    return min(around, key=lambda m: (m + p - 1) * (work_s / m + overhead_s))


def micro_batches_for_bubble(p: int, idle_over_total: float) -> int:
    """The least m whose 1F1B bubble is at most ``idle_over_total``: 1F1B's ``(p-1)/(m+p-1)`` solved for m (C12)."""
    if not 0 < idle_over_total < 1:
        raise ValueError(f"idle_over_total must lie between 0 and 1, got {idle_over_total}")
    stages = check_count("p", p, least=1) - 1
    return max(1, math.ceil(stages * (1 - idle_over_total) / idle_over_total - 1e-9))


def prefill_share(stages: ArrayLike, passes: ArrayLike) -> NDArray[np.float64]:
    """How much of a prompt's time over all stages a ring of decoding micro-batches stands still for it, where so many
    ``passes`` with prompts follow one another: ``1/passes + (1 - 1/passes)/p``.

    One pass alone costs its whole trip: at every stage all the others queue behind it. Those that follow at once cost
    a stage's share each, as in a forward-only pipeline. 1 without a pipeline. Below one pass as for one. Elementwise
    over arrays.
    """
    first = 1 / np.maximum(np.asarray(passes, dtype=np.float64), 1.0)
    return np.asarray(first + (1 - first) / np.asarray(stages, dtype=np.float64), dtype=np.float64)


def _check(name: str, p: int, m: int, v: int) -> None:
    check_one_of("name", name, BALANCED)
    for letter, value in (("p", p), ("m", m), ("v", v)):
        check_count(letter, value, least=1)
    if v > 1 and name != "interleaved":
        raise ValueError(f"v must be 1 for {name}, got {v}")
    if name == "interleaved" and m % p:
        raise ValueError(f"m={m} must be a multiple of p={p} for interleaved")


def _check_stages(stage_s: Sequence[float], hop_s: float) -> None:
    if not len(stage_s):
        raise ValueError("stage_s must have a time for at least one stage")
    if min(stage_s) < 0 or hop_s < 0:
        raise ValueError(f"stage_s and hop_s must not be negative, got {min(stage_s)} and {hop_s}")
