"""What computing costs here: matmuls with cold weights, copies, attention over a long cache, light kernels.

Runs on the ranks. Weights are cold as in a decode step: each product takes the next part of a buffer that is larger
than any cache, since a block's weights are gone from the caches before its next turn. On a GPU everything is timed
inside CUDA graphs, so that launches are not in it; they are a term of their own.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn import functional as F

from tplab.cluster import Rank
from tplab.layers.plain import attend
from tplab.models.checkpoint import torch_dtype
from tplab.topology.calibrate_plan import HEAD_DIM

if TYPE_CHECKING:
    from tplab.topology.calibrate_plan import CalibrationPlan
    from tplab.topology.measure_links import Note

Sample = Callable[[], float]
"""One time in microseconds per call."""
_CALLS_IN_GRAPH = 16


@torch.inference_mode()
def time_matmuls(rank: Rank, plan: "CalibrationPlan", note: "Note") -> None:
    """Products of (tokens, k) and (k, n): keys ``("matmul", ranks at once, tokens, n·k)``.

    In rounds over all of them, so that a busy spell spoils a few samples of many. With several ranks at once they start
    each sample together.
    """
    busy = rank.index < max(plan.computing)
    pool = _pool(rank, plan) if busy else None
    for at_once in plan.computing:
        points = [(tokens, shape) for tokens in plan.tokens for shape in plan.shapes]
        samplers = [_matmul(rank, pool, *point) for point in points] if pool is not None else []
        for turn in range(plan.rounds):
            for place, (tokens, (n, k)) in enumerate(points):
                if at_once > 1:
                    dist.barrier(group=rank.group)
                if rank.index >= at_once:
                    continue
                sample = samplers[place]
                if turn == 0:
                    sample()
                note(("matmul", at_once, tokens, n * k), [sample() for _ in range(2)])
        dist.barrier(group=rank.group)


def _pool(rank: Rank, plan: "CalibrationPlan") -> torch.Tensor:
    """Random numbers, more bytes than any cache holds."""
    dtype = torch_dtype(plan.dtype)
    elements = max(plan.pool_bytes // dtype.itemsize, 2 * max(n * k for n, k in plan.shapes))
    small = torch.empty(1 << 20, dtype=dtype, device=rank.device).uniform_(-0.1, 0.1)
    return small.repeat(-(-elements // small.numel()))


def _matmul(rank: Rank, pool: torch.Tensor, tokens: int, shape: tuple[int, int]) -> Sample:
    n, k = shape
    size = n * k
    x = torch.ones(tokens, k, dtype=pool.dtype, device=rank.device)
    windows = pool.numel() // size
    weights = [pool[i * size : (i + 1) * size].view(n, k) for i in range(windows)]
    if rank.device.type == "cuda":
        return _in_graph([partial(F.linear, x, weight) for weight in weights[:_CALLS_IN_GRAPH]])
    # Enough products per sample to be timed, few enough that none meets its weights again.
    inner = max(1, min(windows, (1 << 20) // (size * min(tokens, 8))))
    position = 0

    def sample() -> float:
        nonlocal position
        began = time.perf_counter()
        for _ in range(inner):
            F.linear(x, weights[position])
            position = (position + 1) % windows
        return (time.perf_counter() - began) * 1e6 / inner

    return sample


@torch.inference_mode()
def time_kernels(rank: Rank, plan: "CalibrationPlan", note: "Note") -> None:
    """On rank 0 alone: keys ``("copy", bytes)``, ``("attention", cached bytes)`` twice, ``("light",)``, ``("prompt
    attention", tokens)``."""
    if rank.index == 0:
        for key, sample in _kernels(rank, plan).items():
            sample()
            note(key, [sample() for _ in range(3 * plan.rounds)])
    dist.barrier(group=rank.group)


def _kernels(rank: Rank, plan: "CalibrationPlan") -> dict[Any, Sample]:
    dtype = torch_dtype(plan.dtype)
    source = torch.ones(plan.pool_bytes // 2 // dtype.itemsize, dtype=dtype, device=rank.device)
    target = torch.empty_like(source)
    x = torch.ones(1, 1, 1024, dtype=dtype, device=rank.device)
    weight = torch.ones(1024, dtype=dtype, device=rank.device)
    made: dict[Any, Sample] = {("copy", 2 * source.nbytes): _timed(rank, [lambda: target.copy_(source)])}
    for length in (16, plan.cache_tokens):
        key, calls = _attention(rank, plan, length)
        made[key] = _timed(rank, calls)
    prompt = torch.ones(1, plan.cache_shape[2], plan.prompt_tokens, HEAD_DIM, dtype=dtype, device=rank.device)
    made[("prompt attention", plan.prompt_tokens)] = _timed(rank, [lambda: attend(prompt, prompt, prompt)])
    made[("light",)] = _timed(rank, [lambda: F.rms_norm(x, (1024,), weight)] * 20)
    return made


def _attention(rank: Rank, plan: "CalibrationPlan", length: int) -> tuple[tuple[str, int], list[Callable[[], Any]]]:
    """One token of each sequence over caches of ``length`` tokens, each time over others."""
    batch, groups, heads = plan.cache_shape
    kind: dict[str, Any] = {"dtype": torch_dtype(plan.dtype), "device": rank.device}
    q = torch.ones(batch, heads, 1, HEAD_DIM, **kind)
    caches = [torch.ones(2, batch, groups, length, HEAD_DIM, **kind)]
    copies = max(2, min(8, plan.pool_bytes // caches[0].nbytes))
    caches += [caches[0].clone() for _ in range(copies - 1)]
    return ("attention", caches[0].nbytes), [partial(attend, q, cache[0], cache[1]) for cache in caches]


def _timed(rank: Rank, calls: Sequence[Callable[[], Any]]) -> Sample:
    if rank.device.type == "cuda":
        return _in_graph(calls)

    def sample() -> float:
        began = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - began) * 1e6 / len(calls)

    return sample


def _in_graph(calls: Sequence[Callable[[], Any]]) -> Sample:
    """Captured once; the time of a replay per call, on the GPU's clock."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the first calls choose algorithms and allocate, which must not be captured
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()

    def sample() -> float:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) * 1e3 / len(calls)

    return sample
