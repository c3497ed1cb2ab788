"""Samples: warm-ups, ranks lined up, one time each. Runs on the ranks.

Counts are fixed and the same on every rank: a count that each rank tuned for itself would deadlock a collective.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from tplab.measure.clock import device_us, synchronize, timed
from tplab.measure.graph import replayed

if TYPE_CHECKING:
    from tplab.cluster import Rank

Timer = Callable[[], float]
"""A function that returns one time in microseconds."""
K = TypeVar("K")
T = TypeVar("T")

WARM_UPS = 2
"""Samples of everything that are thrown away first."""
# Busy time put in front of a sample on the GPU, so that everything is queued before the first event fires and the
# sample does not contain the host's launch overhead: half a millisecond, several times what a host takes for it.
_SPIN_CYCLES = 1_000_000
# For each message that must be queued before a chain of them begins: 100 us.
_SPIN_CYCLES_PER_MESSAGE = 200_000
# There and back so often in one sample on the GPU, as long as it does not take longer than this many bytes do.
_MOST_TRIPS = 8
_CHAIN_BYTES = 1 << 23
_LARGE_BYTES = 1 << 25  # from here on a third of the samples will do


def line_up(rank: "Rank") -> None:
    """Returns on all ranks of ``rank.group`` at about the same time, with nothing left to do on their devices."""
    dist.barrier(group=rank.group)
    synchronize(rank.device)


def collective_sampler(
    rank: "Rank", call: Callable[[], Any], *, before: Callable[[], Any] = lambda: None, graph: bool = False
) -> Timer:
    """Times of a call that all ranks of ``rank.group`` make together, a collective.

    On a GPU by its own clock, behind a spin kernel and a first all-reduce that lines the GPUs up. Lined up by the
    hosts' barrier alone they start tens of microseconds apart, and the early one's wait would count as its collective's
    time: 40 us for an all-reduce of 1 KiB on two H100s that takes 11.

    Args:
        before: not timed: refills what the call overwrites.
        graph: replay the call from a CUDA graph.

    Raises:
        ValueError: a graph without a GPU.
    """
    if rank.device.type != "cuda":
        if graph:
            raise ValueError(f"graph=True needs a GPU to capture the call on; this rank computes on {rank.device}")

        def sample() -> float:
            before()
            line_up(rank)
            return timed(call)[0]

        return sample
    if graph:
        before()
        call = replayed(call)
    token = torch.zeros(1, device=rank.device)

    def sample_on_gpu() -> float:
        before()
        line_up(rank)
        torch.cuda._sleep(_SPIN_CYCLES)  # type: ignore[no-untyped-call]
        dist.all_reduce(token, group=rank.group)
        return device_us(call)

    return sample_on_gpu


def lone_sampler(calls: Sequence[Callable[[], Any]], device: torch.device) -> Timer:
    """Times of calls that this rank makes by itself, one after the other: the mean of one.

    On a GPU replayed from a CUDA graph, by the GPU's own clock: launches are not in it.
    """
    run = partial(_one_after_the_other, calls)
    if device.type != "cuda":
        return lambda: timed(run)[0] / len(calls)
    replay = replayed(run)
    return lambda: device_us(replay) / len(calls)


def take_turns(
    rank: "Rank",
    works: Mapping[K, Callable[[], T]],
    rounds: int,
    check: Callable[[K, T], bool] = lambda key, result: True,
) -> None:
    """Time every work once a round, after rounds to warm up; report each round, so that a stop keeps what there is.

    By the host's clock, launches and all: how the work runs. In turns, so that a busy spell of the machine spoils a few
    samples of everything, which a median forgives, and not most samples of one.

    Args:
        works: key -> call that all ranks make together.
        rounds: samples of each.
        check: whether a result is right. Not timed.
    """
    for turn in range(-WARM_UPS, rounds):
        samples, correct = {}, True
        for key, work in works.items():
            line_up(rank)
            samples[key], result = timed(work, rank.device)
            correct = check(key, result) and correct
        done = {"done": max(0, turn + 1), "total": rounds}
        if turn < 0:
            rank.report(phase="warm-up", **done)
        else:
            rank.report(phase="measure", samples=samples, correct=correct, **done)


def ping_pong(
    rank: "Rank",
    pairs: Iterable[tuple[int, int]],
    sizes: Sequence[int],
    iterations: int,
    exchange: Callable[[Sequence[Any], Sequence[Any]], Any],
) -> None:
    """Messages there and back between every two ranks in turn, the others idle.

    The source reports ``("send", source, target, bytes)``: microseconds of one way, half of there and back. On a GPU by
    its own clock, over a chain of trips that was queued behind a spin kernel and a first trip, so that neither the
    host's share of each call nor the other rank's start is in it.

    Args:
        pairs: (source, target) of each link; the same on every rank.
        sizes: bytes of the messages.
        iterations: samples of each; a third, of messages from 32 MiB on.
        exchange: takes messages to send and to receive, as (tensor, rank) each, and returns what can be waited for: a
            transport's (``tplab.collectives.transport``).
    """
    for source, target in pairs:
        dist.barrier(group=rank.group)
        if rank.index not in (source, target):
            continue
        first, peer = rank.index == source, target if rank.index == source else source
        for nbytes in sizes:
            message = torch.ones(nbytes, dtype=torch.uint8, device=rank.device)
            send = partial(_pass, exchange, [(message, peer)], [])
            receive = partial(_pass, exchange, [], [(message, peer)])
            steps = [send, receive] if first else [receive, send]
            sample = _trip_sampler(steps, nbytes, rank.device)
            samples = iterations if nbytes < _LARGE_BYTES else -(-iterations // 3)
            us = [sample() / 2 for _ in range(WARM_UPS + samples)]
            if first:
                rank.report(samples={("send", source, target, nbytes): us[WARM_UPS:]})
    dist.barrier(group=rank.group)


def _pass(exchange: Callable[..., Any], sends: Sequence[Any], receives: Sequence[Any]) -> None:
    exchange(sends, receives).wait()


def _trip_sampler(steps: Sequence[Callable[[], Any]], nbytes: int, device: torch.device) -> Timer:
    """Times of a trip there and back."""
    if device.type != "cuda":
        return lambda: timed(partial(_one_after_the_other, steps))[0]
    trips = max(1, min(_MOST_TRIPS, _CHAIN_BYTES // nbytes))
    chain = partial(_one_after_the_other, [*steps] * trips)

    def sample() -> float:
        torch.cuda._sleep(_SPIN_CYCLES + _SPIN_CYCLES_PER_MESSAGE * 2 * trips)  # type: ignore[no-untyped-call]
        _one_after_the_other(steps)  # back from there: the other GPU is here, too
        return device_us(chain) / trips

    return sample


def _one_after_the_other(calls: Sequence[Callable[[], Any]]) -> None:
    for call in calls:
        call()
