"""The rank's side of a sweep: time one all-reduce after the other, and check every result.

Imported by the ranks. Iteration counts are fixed in the plan and the same on every rank: a count that each rank tuned
for itself would deadlock the collective.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tplab.collectives import symmetric
from tplab.collectives.one_shot import one_shot_all_reduce
from tplab.collectives.quantised import int8_all_reduce
from tplab.collectives.recursive_doubling import recursive_doubling_all_reduce
from tplab.collectives.ring import ring_all_reduce
from tplab.collectives.sweep import ON_SYMMETRIC_MEMORY, Point
from tplab.collectives.two_shot import two_shot_all_reduce

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from tplab.cluster import Rank

AllReduce = Callable[[torch.Tensor, "ProcessGroup"], None]


def _library(tensor: torch.Tensor, group: "ProcessGroup") -> None:
    dist.all_reduce(tensor, group=group)


ALGORITHMS: dict[str, AllReduce] = {
    "library": _library,  # gloo's or NCCL's own choice
    "ring": ring_all_reduce,
    "two-shot": two_shot_all_reduce,
    "one-shot": one_shot_all_reduce,
    "recursive-doubling": recursive_doubling_all_reduce,
    "int8-two-shot": int8_all_reduce,
    "symmetric-one-shot": symmetric.one_shot_all_reduce,
    "symmetric-two-shot": symmetric.two_shot_all_reduce,
}

# Busy time put in front of a sample on the GPU, so that everything is queued before the first event fires and the
# sample does not contain the host's launch overhead: half a millisecond, several times what a host takes for it.
_SPIN_CYCLES = 1_000_000
_WARM_UPS = 2
_ROUNDS = 3


def time_points(rank: "Rank", points: list[Point]) -> None:
    """Warm up every point, then time them in rounds; reports ``row`` (index into ``points``), ``us`` and ``correct``.

    Each round takes a share of every point's samples: a busy spell of the machine then spoils a few samples of many
    points, which a median forgives, and not most samples of one. Everything comes through ``rank.report``, so that a
    sweep that is stopped, or loses a rank, keeps what it has.
    """
    inputs = _Inputs(rank, points)
    for index, point in enumerate(points):
        sample = _sampler(rank, point, inputs)
        for _ in range(_WARM_UPS):
            sample()
        rank.report(phase="warm-up", done=index + 1, total=len(points))
    samplers = [_sampler(rank, point, inputs) for point in points]
    done = 0
    for turn in range(_ROUNDS):
        for index, (point, sample) in enumerate(zip(points, samplers, strict=True)):
            sample()  # the other points have taken this one's buffers out of the caches
            share = (point.iterations + turn) // _ROUNDS  # the shares of all rounds add up to all iterations
            microseconds = [sample() for _ in range(share)]
            correct = inputs.check(point)
            done += 1
            total = _ROUNDS * len(points)
            rank.report(phase="measure", done=done, total=total, row=index, us=microseconds, correct=correct)


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

    def source(self, point: Point, index: int) -> torch.Tensor:
        """What rank ``index`` brings to ``point``."""
        return self._buffers[point.dtype][0][index : index + point.num_elements]

    def target(self, point: Point) -> torch.Tensor:
        """The buffer that is reduced in place."""
        return self._buffers[point.dtype][1][: point.num_elements]

    def check(self, point: Point) -> bool:
        """Whether this rank's buffer holds the sum over all ranks: exactly, or, in int8, to a step of its scale."""
        want = self.source(point, 0)
        for index in range(1, self._rank.world_size):
            want = want + self.source(point, index)
        if point.algorithm == "int8-two-shot":
            # Numbers up to 8 from each rank: half a step of at most 8/127 each, and of their sum's scale.
            most = (self.target(point).float() - want.float()).abs().max()
            return bool(most <= 16 * self._rank.world_size / 127 + 0.1)
        return torch.equal(self.target(point), want)


def _sampler(rank: "Rank", point: Point, inputs: _Inputs) -> Callable[[], float]:
    """A function that refills the buffer, lines the ranks up, and returns one time in microseconds."""
    reduce, x, mine = ALGORITHMS[point.algorithm], inputs.target(point), inputs.source(point, rank.index)
    if rank.device.type == "cuda":
        return _cuda_sampler(rank, lambda: reduce(x, rank.group), lambda: x.copy_(mine), graph=point.mode == "graph")

    def sample() -> float:
        x.copy_(mine)
        dist.barrier(group=rank.group)
        began = time.perf_counter()
        reduce(x, rank.group)
        return (time.perf_counter() - began) * 1e6

    return sample


def _cuda_sampler(
    rank: "Rank", reduce: Callable[[], Any], refill: Callable[[], Any], *, graph: bool
) -> Callable[[], float]:
    """Time on the GPU's own clock, behind a spin kernel and a first all-reduce that lines the GPUs up.

    Lined up by the hosts' barrier alone they start tens of microseconds apart, and the early one's wait would count as
    its collective's time: 40 us for an all-reduce of 1 KiB on two H100s that takes 11.
    """
    call = _captured(reduce, refill) if graph else reduce
    line_up = torch.zeros(1, device=rank.device)

    def sample() -> float:
        refill()
        start, end = _event(), _event()
        dist.barrier(group=rank.group)
        torch.cuda.synchronize()
        torch.cuda._sleep(_SPIN_CYCLES)  # type: ignore[no-untyped-call]
        dist.all_reduce(line_up, group=rank.group)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) * 1e3

    return sample


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _captured(reduce: Callable[[], Any], refill: Callable[[], Any]) -> Callable[[], None]:
    """The reduction as a CUDA graph: launched as one, without the host's share per call."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # NCCL sets up its channels in the first call, which must not be captured
        refill()
        reduce()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        reduce()
    return graph.replay
