"""What computing costs here: matmuls with cold weights, copies, attention over a long cache, light CUDA kernels.

Runs on the ranks. Weights are cold as in a decode step: each GEMM takes the next part of a buffer that is larger
than any cache, since a block's weights are gone from the caches before its next turn. On a GPU everything is timed
inside CUDA graphs, so that launches are not in it; they are a term of their own.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
import torch.distributed as dist
from torch.nn import functional as F

from tplab.cluster import Rank
from tplab.layers.core_attention import attend
from tplab.layers.strategies import few_tokens_linear
from tplab.measure.sampler import Timer, lone_sampler
from tplab.models.checkpoint import torch_dtype
from tplab.topology.calibration.plan import HEAD_DIM

if TYPE_CHECKING:
    from tplab.topology.calibration.plan import BlockShapes, CalibrationPlan

_TIMED_PARAMS = 1 << 22
"""Parameters multiplied in one sample, about, where a block has fewer: enough to outweigh reading the clock."""
COLD_PARAMS = 64 << 20
_CACHES = 4
_PROMPT_TOKENS = 1024
"""Tokens from which on GEMMs are limited by arithmetic, and a GPU by its power."""
_SUSTAINED_S = 0.2
_MOST_POOL_BYTES = 1 << 30


@torch.inference_mode()
def time_matmuls(rank: Rank, plan: "CalibrationPlan") -> None:
    """Time a block's GEMMs, mean of one: keys ``("matmul", ranks at once, tokens, which block)``.

    By the function that the layers use, which treats few tokens and tall weights differently. In rounds over all of
    them, so that a busy spell spoils a few samples of many. With several ranks at once they start each sample together.
    """
    busy = rank.index < max(plan.computing)
    pool = _Pool(rank, plan) if busy else None
    points = [(tokens, place) for tokens in plan.tokens for place in range(len(plan.blocks))]
    for at_once in plan.computing:
        for _ in range(plan.rounds):
            for tokens, place in points:
                if at_once > 1:
                    dist.barrier(group=rank.group)
                if rank.index >= at_once or pool is None:
                    continue
                sample = _products(pool, tokens, plan.blocks[place])
                _warm_up(rank, sample, tokens)
                rank.report(samples={("matmul", at_once, tokens, place): [sample(), sample()]})
        dist.barrier(group=rank.group)


def _warm_up(rank: Rank, sample: Timer, tokens: int) -> None:
    """Sample once. GEMMs of a prompt are repeated until a GPU has come down to the clock that it can hold at its power
    limit: the first milliseconds are a quarter faster than the rest of a long prefill."""
    sample()
    if rank.device.type != "cuda" or tokens < _PROMPT_TOKENS:
        return
    until = time.monotonic() + _SUSTAINED_S
    while time.monotonic() < until:
        sample()


def _last_level_cache_bytes() -> int:
    """Bytes of the last-level caches of all cores together, as Linux reports them; 0 elsewhere."""
    found = {}
    for folder in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index3"):
        try:
            text = (folder / "size").read_text().strip()
            found[(folder / "shared_cpu_list").read_text()] = int(text.removesuffix("K")) << 10
        except (OSError, ValueError):
            continue
    return sum(found.values())


class _Pool:
    """Random numbers, several times what the caches hold, handed out as weights from one end to the other."""

    def __init__(self, rank: Rank, plan: "CalibrationPlan") -> None:
        dtype = torch_dtype(plan.dtype)
        nbytes = plan.pool_bytes
        if rank.device.type == "cpu":
            free = psutil.virtual_memory().available // (4 * rank.world_size)
            nbytes = max(nbytes, min(_CACHES * _last_level_cache_bytes(), _MOST_POOL_BYTES, free))
        largest = max(sum(n * k for n, k in block) for block in plan.blocks)
        small = torch.randn(1 << 20, device=rank.device).mul_(0.1).to(dtype)
        self.numbers = small.repeat(-(-max(nbytes // dtype.itemsize, largest) // small.numel()))
        self._position = 0

    def weight(self, n: int, k: int) -> torch.Tensor:
        """(n, k), the longest untouched."""
        if self._position + n * k > self.numbers.numel():
            self._position = 0
        self._position += n * k
        return self.numbers[self._position - n * k : self._position].view(n, k)


def _products(pool: _Pool, tokens: int, block: "BlockShapes") -> Timer:
    """One GEMM after the other as in a block, each with the next weights of the pool; microseconds of one."""
    numbers = pool.numbers
    # Random, not ones: on equal numbers few bits switch, and a GPU at its power limit is a third faster on them.
    inputs = {k: torch.randn(tokens, k, device=numbers.device).to(numbers.dtype) for _, k in block}
    params = sum(n * k for n, k in block)

    def calls(num_blocks: int) -> list[Callable[[], torch.Tensor]]:
        each: list[Callable[[], torch.Tensor]] = []
        each += [partial(few_tokens_linear, inputs[k], pool.weight(n, k)) for n, k in block * num_blocks]
        return each

    if numbers.device.type == "cuda":  # replayed again and again: the graph's weights themselves must not fit the cache
        return lone_sampler(calls(-(-COLD_PARAMS // params)), numbers.device)
    blocks = max(1, _TIMED_PARAMS // (params * min(tokens, 8)))
    return lambda: lone_sampler(calls(blocks), numbers.device)()


@torch.inference_mode()
def time_kernels(rank: Rank, plan: "CalibrationPlan") -> None:
    """Time on rank 0 alone; keys ``("copy", bytes)``, ``("attention", cached bytes)`` twice, ``("light",)``, ``("prompt
    attention", tokens)``."""
    if rank.index == 0:
        for key, sample in _kernels(rank, plan).items():
            _warm_up(rank, sample, plan.prompt_tokens if key[0] == "prompt attention" else 1)
            rank.report(samples={key: [sample() for _ in range(3 * plan.rounds)]})
    dist.barrier(group=rank.group)


def _kernels(rank: Rank, plan: "CalibrationPlan") -> dict[Any, Timer]:
    dtype = torch_dtype(plan.dtype)
    source = torch.ones(plan.pool_bytes // 2 // dtype.itemsize, dtype=dtype, device=rank.device)
    target = torch.empty_like(source)
    x = torch.ones(1, 1, 1024, dtype=dtype, device=rank.device)
    weight = torch.ones(1024, dtype=dtype, device=rank.device)
    made: dict[Any, Timer] = {("copy", 2 * source.nbytes): lone_sampler([lambda: target.copy_(source)], rank.device)}
    for length in (16, plan.cache_tokens):
        key, calls = _attention(rank, plan, length)
        made[key] = lone_sampler(calls, rank.device)
    prompt = torch.randn(1, plan.cache_shape[2], plan.prompt_tokens, HEAD_DIM, device=rank.device).to(dtype)
    made[("prompt attention", plan.prompt_tokens)] = lone_sampler([lambda: attend(prompt, prompt, prompt)], rank.device)
    made[("light",)] = lone_sampler([lambda: F.rms_norm(x, (1024,), weight)] * 20, rank.device)
    return made


def _attention(rank: Rank, plan: "CalibrationPlan", length: int) -> tuple[tuple[str, int], list[Callable[[], Any]]]:
    """One token of each sequence over caches of ``length`` tokens, each time over others."""
    batch, groups, heads = plan.cache_shape
    kind: dict[str, Any] = {"dtype": torch_dtype(plan.dtype), "device": rank.device}
    q = torch.randn(batch, heads, 1, HEAD_DIM, **kind)
    caches = [torch.randn(2, batch, groups, length, HEAD_DIM, **kind)]
    copies = max(2, min(8, plan.pool_bytes // caches[0].nbytes))
    caches += [caches[0].clone() for _ in range(copies - 1)]
    return ("attention", caches[0].nbytes), [partial(attend, q, cache[0], cache[1]) for cache in caches]
