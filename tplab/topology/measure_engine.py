"""What the lab's own engine adds to kernels and messages: per block, per step, per hand-over. Runs on the ranks.

From models so narrow that their arithmetic is nothing: what is left of a step is the engine. Two depths tell what a
block costs from what a step costs; two stages, against as many layers on one rank, what a hand-over costs.
"""

import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tplab.cluster import Rank
from tplab.layers.comm import Alone
from tplab.models.config import ModelConfig
from tplab.models.engine import Engine
from tplab.models.loading import Loaded
from tplab.models.request import Request
from tplab.models.stages import Layout
from tplab.topology.calibrate_plan import DEEP, SHALLOW, narrow
from tplab.topology.rigging import Hops, in_layout, load_random

if TYPE_CHECKING:
    from tplab.topology.calibrate_plan import CalibrationPlan
    from tplab.topology.measure_links import Note

_PROMPT, _NEW = 8, 17


def time_engine(rank: Rank, plan: "CalibrationPlan", note: "Note") -> None:
    """Keys ``("step", layers)``: time per token of each depth on rank 0; ``("pipeline", layers)``: of two stages;
    and ``("block launches",)``."""
    _time_launches(rank, plan, note)
    dtype = plan.dtype
    shallow, deep = narrow(SHALLOW, dtype), narrow(DEEP, dtype)
    alone = Layout.of(SHALLOW), Layout.of(DEEP)
    piped = Layout.of(DEEP, 1, 2)
    hops = Hops(rank, range(rank.world_size), plan.links)

    def loaded(config: ModelConfig, layout: Layout, place: int) -> Loaded:
        return load_random(config, layout, place, Alone(), dtype=dtype, device=rank.device)

    ready = [(SHALLOW, loaded(shallow, alone[0], 0)), (DEEP, loaded(deep, alone[1], 0))] if rank.index == 0 else []
    half = loaded(deep, piped, rank.index) if plan.num_ranks > 1 and rank.index < 2 else None
    for turn in range(plan.rounds + 1):
        for layers, each in ready:
            times = _token_us(in_layout(rank, 0, 1, hops), each)
            if turn:  # the first one warms up
                note(("step", layers), times)
        dist.barrier(group=rank.group)
        if half is not None:
            times = _token_us(in_layout(rank, rank.index, 2, hops), half)
            if turn and rank.index == 1:  # the last stage has the tokens
                note(("pipeline", DEEP), times)
        dist.barrier(group=rank.group)


def _token_us(member: Rank, loaded: Loaded) -> list[float]:
    """Intervals between the tokens of one generation, without the first ones."""
    prompts = [[1] * _PROMPT]
    engine = Engine(member, loaded, Request.of(prompts, max_new_tokens=_NEW), prompts)
    engine.run()
    known_s = engine.token_s[0]
    return [(after - before) * 1e6 for before, after in pairwise(known_s[2:])]


@torch.inference_mode()
def _time_launches(rank: Rank, plan: "CalibrationPlan", note: "Note") -> None:
    """Host time to launch one block of one token without waiting for the GPU: on rank 0 of a GPU. On a CPU
    the block's own time has it."""
    if rank.index == 0 and rank.device.type == "cuda":
        config = narrow(SHALLOW, plan.dtype)
        loaded = load_random(config, Layout.of(SHALLOW), 0, Alone(), dtype=plan.dtype, device=rank.device)
        blocks: Sequence[Any] = list(loaded.stage.layers)
        caches = [block.self_attn.make_cache(1, 64) for block in blocks]
        x = torch.zeros(1, 1, config.hidden_size, dtype=next(loaded.stage.parameters()).dtype, device=rank.device)
        positions = torch.zeros(1, dtype=torch.int64, device=rank.device)
        samples = []
        for _ in range(8 * plan.rounds):
            for cache in caches:
                cache.reset()
            torch.cuda.synchronize()
            began = time.perf_counter()
            for block, cache in zip(blocks, caches, strict=True):
                x = block(x, cache=cache, positions=positions)
            samples.append((time.perf_counter() - began) * 1e6 / len(blocks))
        note(("block launches",), [median(samples[2:])])
    dist.barrier(group=rank.group)
