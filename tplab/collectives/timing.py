"""The rank's side of a sweep: time one all-reduce after the other, and check every result.

Imported by the ranks.
"""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tplab.collectives import peer_memory, symmetric
from tplab.collectives.limits import Limits, limits_key
from tplab.collectives.one_shot import one_shot_all_reduce
from tplab.collectives.quantised import int8_all_reduce
from tplab.collectives.recursive_doubling import recursive_doubling_all_reduce
from tplab.collectives.ring import ring_all_reduce
from tplab.collectives.sweep_plan import ITEMSIZES, ON_SYMMETRIC_MEMORY, PUSHED, Point
from tplab.collectives.two_shot import two_shot_all_reduce
from tplab.measure.sampler import WARM_UPS, collective_sampler

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from tplab.cluster import Rank

AllReduce = Callable[[torch.Tensor, Any], Any]
"""Sums a tensor in place, over a process group; those of ``PUSHED`` over a ``PeerMemory``."""
_LARGEST_ROUNDING = {"int8-two-shot": 1 / 127, "pushed-int8": 1 / 127, "pushed-fp8": 1 / 28}
"""Quantised algorithms: a step of int8, or half a step of e4m3, over the largest number of a group."""


def _library(tensor: torch.Tensor, group: "ProcessGroup") -> None:
    dist.all_reduce(tensor, group=group)


IMPLEMENTATIONS: dict[str, AllReduce] = {
    "library": _library,  # gloo's or NCCL's own choice
    "ring": ring_all_reduce,
    "two-shot": two_shot_all_reduce,
    "one-shot": one_shot_all_reduce,
    "recursive-doubling": recursive_doubling_all_reduce,
    "int8-two-shot": int8_all_reduce,
    "symmetric-one-shot": symmetric.symmetric_one_shot,
    "symmetric-two-shot": symmetric.symmetric_two_shot,
    "pushed-one-shot": peer_memory.one_shot,
    "pushed-two-shot": peer_memory.two_shot,
    "pushed-int8": peer_memory.quantised_two_shot,
    "pushed-fp8": partial(peer_memory.quantised_two_shot, narrow="fp8"),
}

_ROUNDS = 3


def time_points(rank: "Rank", points: list[Point]) -> None:
    """Warm up every point, then time them in rounds; reports ``samples`` by index into ``points``, and ``correct``.

    Each round takes a share of every point's samples: a busy spell of the machine then spoils a few samples of many
    points, which a median forgives, and not most samples of one. Everything comes through ``rank.report``, so that a
    sweep that is stopped, or loses a rank, keeps what it has.
    """
    inputs = _Inputs(rank, points)
    samplers = []
    for index, point in enumerate(points):
        samplers.append(_sampler(rank, point, inputs))
        for _ in range(WARM_UPS):
            samplers[-1]()
        rank.report(phase="warm-up", done=index + 1, total=len(points))
    done, total = 0, _ROUNDS * len(points)
    times: list[list[float]] = [[] for _ in points]
    for turn in range(_ROUNDS):
        for index, (point, sample) in enumerate(zip(points, samplers, strict=True)):
            sample()  # the other points have taken this one's buffers out of the caches
            share = (point.iterations + turn) // _ROUNDS  # the shares of all rounds add up to all iterations
            samples = {index: [sample() for _ in range(share)]}
            times[index] += samples[index]
            done += 1
            rank.report(phase="measure", done=done, total=total, samples=samples, correct=inputs.check(point))
    _keep_limits(rank, points, times)


def _keep_limits(rank: "Rank", points: list[Point], times_us: list[list[float]]) -> None:
    """Where the library and both of our exact kernels were measured: leave their limits with the rank, for layers.

    By the slowest rank's medians, so that all ranks have the same; those in graphs go before eager ones.
    """
    raced = [index for index, point in enumerate(points) if point.algorithm in ("library", *PUSHED[:2])]
    if len({points[index].algorithm for index in raced}) < 3:
        return
    medians = torch.tensor([median(times_us[index]) for index in raced], device=rank.device)
    dist.all_reduce(medians, dist.ReduceOp.MAX, group=rank.group)
    by_algorithm: dict[str, dict[int, float]] = {}
    for index, us in zip(raced, medians.tolist(), strict=True):
        point = points[index]
        nbytes = point.num_elements * ITEMSIZES[point.dtype]
        best = by_algorithm.setdefault(point.algorithm, {})
        best[nbytes] = min(us, best.get(nbytes, us))  # of several dtypes
    key = limits_key(rank.world_size)
    if points[raced[0]].mode == "graph" or key not in rank.store:
        rank.store[key] = Limits.measured(by_algorithm)


class _Inputs:
    """Buffers shared by all points, and the result every rank must hold.

    Small whole numbers: their sums are exact in every dtype (bfloat16 is exact to 256) whatever the order of additions,
    so results are compared exactly. Rank r holds a common random vector from its place r on: every rank can compute
    the sum of all without being sent anything, and the many points of a sweep share one buffer.
    """

    def __init__(self, rank: "Rank", points: list[Point]) -> None:
        self._rank = rank
        self._buffers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for dtype in {point.dtype for point in points}:
            longest = max(point.num_elements for point in points if point.dtype == dtype)
            generator = torch.Generator().manual_seed(1234)
            high = 128 // rank.world_size if rank.world_size < 64 else 2
            common = torch.randint(
                -min(high, 8), min(high, 8) + 1, (longest + rank.world_size,), generator=generator, dtype=torch.int8
            )
            source = common.to(device=rank.device, dtype=getattr(torch, dtype))
            if any(point.algorithm in ON_SYMMETRIC_MEMORY for point in points):
                target = symmetric.empty(longest, source.dtype, rank.device, rank.group)  # NCCL takes it, too
            else:
                target = torch.empty_like(source[:longest])
            self._buffers[dtype] = source, target
        pushed = [point.num_elements * ITEMSIZES[point.dtype] for point in points if point.algorithm in PUSHED]
        self._memory = peer_memory.memory_of(rank, rank.group, max(pushed)) if pushed else None

    def group(self, point: Point) -> Any:
        """What ``point``'s algorithm runs over."""
        return self._memory if point.algorithm in PUSHED else self._rank.group

    def source(self, point: Point, index: int) -> torch.Tensor:
        """What rank ``index`` brings to ``point``."""
        return self._buffers[point.dtype][0][index : index + point.num_elements]

    def target(self, point: Point) -> torch.Tensor:
        """The buffer that is reduced in place."""
        return self._buffers[point.dtype][1][: point.num_elements]

    def check(self, point: Point) -> bool:
        """Whether this rank's buffer holds the sum over all ranks: exactly, or, quantised, to a step of its scale."""
        want = self.source(point, 0)
        for index in range(1, self._rank.world_size):
            want = want + self.source(point, index)
        if point.algorithm in _LARGEST_ROUNDING:
            # Numbers up to 8 from each rank: rounded each, and their sum.
            most = (self.target(point).float() - want.float()).abs().max()
            return bool(most <= 16 * self._rank.world_size * _LARGEST_ROUNDING[point.algorithm] + 0.1)
        return torch.equal(self.target(point), want)


def _sampler(rank: "Rank", point: Point, inputs: _Inputs) -> Callable[[], float]:
    """Refills the buffer, lines the ranks up, and gives one time in microseconds."""
    reduce, x, mine = IMPLEMENTATIONS[point.algorithm], inputs.target(point), inputs.source(point, rank.index)
    group = inputs.group(point)
    refill, call = (lambda: x.copy_(mine)), (lambda: reduce(x, group))
    return collective_sampler(rank, call, before=refill, graph=point.mode == "graph")
