"""What the lab's own engine adds to GEMMs and messages: per block, per step, per hand-over. Runs on the ranks.

Measured with models so narrow that their GEMMs are negligible: what is left of a step is the engine. Two depths
separate the cost of a block from that of a step; two stages, beside as many layers on one rank, give the cost of a
hand-over.

On a GPU a narrow model would measure launches, and nothing else. Where decode steps are replayed from CUDA
graphs, blocks of real widths are timed by the GPU's own clock, and the engine on a model that outlasts its host's work.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tplab.cluster import Rank
from tplab.collectives.transport import Transport
from tplab.layers.block import run_blocks
from tplab.layers.comm import NullComm
from tplab.layers.decode import decode_blocks
from tplab.measure.clock import synchronize, timed
from tplab.measure.sampler import lone_sampler
from tplab.models.engine import GenerationEngine
from tplab.models.loading import Loaded
from tplab.models.records import Request
from tplab.models.shards import Layout
from tplab.models.spec import ModelConfig
from tplab.topology.calibration.compute import COLD_PARAMS
from tplab.topology.calibration.copies import load_random, p2p_of
from tplab.topology.calibration.plan import (
    BLOCK_CONTEXT,
    BLOCK_TOKENS,
    BLOCK_WIDTHS,
    DEEP,
    GPU_LAYERS,
    SHALLOW,
    llama,
    narrow,
)

if TYPE_CHECKING:
    from tplab.topology.calibration.plan import CalibrationPlan

_PROMPT, _NEW = 8, 17


def time_engine(rank: Rank, plan: "CalibrationPlan") -> None:
    """Keys ``("step", layers)``: time per token of each model on rank 0; ``("pipeline", layers)``: of the last one in
    two stages; ``("block launches",)`` and ``("block", hidden size)`` on a GPU."""
    _time_launches(rank, plan)
    dtype, graphs = plan.dtype, plan.cuda_graphs
    if graphs:
        _time_blocks(rank, plan)
        models = [llama(GPU_LAYERS, BLOCK_WIDTHS[0], dtype)]
    else:
        models = [narrow(SHALLOW, dtype), narrow(DEEP, dtype)]
    p2p = p2p_of(rank, plan.links)

    def loaded(config: ModelConfig, num_stages: int) -> Loaded:
        layout = Layout.of(config, 1, num_stages)
        place = rank.index if num_stages > 1 else 0
        return load_random(config, layout, place, NullComm(), device=rank.device)

    ready = [loaded(config, 1) for config in models] if rank.index == 0 else []
    half = loaded(models[-1], 2) if plan.num_ranks > 1 and rank.index < 2 else None
    for turn in range(-1, plan.rounds):
        for config, each in zip(models, ready, strict=False):
            times = _token_us(each, p2p, graphs)
            if turn >= 0:
                rank.report(samples={("step", config.num_layers): times})
        dist.barrier(group=rank.group)
        if half is not None:
            times = _token_us(half, p2p, graphs)
            if turn >= 0 and rank.index == 1:  # the last stage has the tokens
                rank.report(samples={("pipeline", models[-1].num_layers): times})
        dist.barrier(group=rank.group)


def _token_us(loaded: Loaded, p2p: Transport, graphs: bool) -> list[float]:
    """Intervals between the tokens of one generation, without the first ones."""
    # With graphs as those blocks are timed.
    prompts = [[1] * (BLOCK_CONTEXT - _NEW)] * BLOCK_TOKENS if graphs else [[1] * _PROMPT]
    request = Request.of(prompts, max_new_tokens=_NEW, cuda_graphs=graphs)
    engine = GenerationEngine(loaded, request, prompts, p2p)
    engine.prepare()
    engine.run()
    known_s = engine.token_s[0]
    return [(after - before) * 1e6 for before, after in pairwise(known_s[2:])]


@torch.inference_mode()
def _time_launches(rank: Rank, plan: "CalibrationPlan") -> None:
    """Host time to launch one block of one token without waiting for the GPU: on rank 0 of a GPU. On a CPU
    the block's own time has it."""
    if rank.index == 0 and rank.device.type == "cuda":
        config = narrow(SHALLOW, plan.dtype)
        loaded = load_random(config, Layout.of(config), 0, NullComm(), device=rank.device)
        call = _blocks(loaded, rank.device, tokens=1, context=64)
        samples = []
        for _ in range(8 * plan.rounds):
            synchronize(rank.device)
            samples.append(timed(call)[0] / config.num_layers)
        rank.report(samples={("block launches",): [median(samples[2:])]})
    dist.barrier(group=rank.group)


@torch.inference_mode()
def _time_blocks(rank: Rank, plan: "CalibrationPlan") -> None:
    """Whole blocks of a small batch's decode step, in a graph, with cold weights: on rank 0."""
    for width in BLOCK_WIDTHS if rank.index == 0 else ():
        one = llama(1, width, plan.dtype)
        config = replace(one, num_layers=max(2, -(-COLD_PARAMS // one.block_matmul_params)))
        loaded = load_random(config, Layout.of(config), 0, NullComm(), device=rank.device)
        sample = lone_sampler([_blocks(loaded, rank.device)], rank.device)
        sample()
        rank.report(samples={("block", width): [sample() / config.num_layers for _ in range(8 * plan.rounds)]})
    dist.barrier(group=rank.group)


def _blocks(
    loaded: Loaded, device: torch.device, *, tokens: int = BLOCK_TOKENS, context: int = BLOCK_CONTEXT
) -> Callable[[], object]:
    """All blocks of a stage on the next token of some sequences, as a decode step calls them."""
    stage = loaded.stage
    blocks: list[Any] = list(stage.layers)
    caches = stage.make_caches(tokens, context)
    x_BD = torch.randn((tokens, stage.config.hidden_size), device=device).to(next(stage.parameters()).dtype)
    if stage.why_no_decode() is None:
        starts_B = torch.zeros(tokens, dtype=torch.int64, device=device)
        past = torch.full((1,), context - 1, dtype=torch.int32, device=device)
        return partial(decode_blocks, blocks, x_BD, caches, past=past, starts_B=starts_B)
    positions = torch.full((1,), context - 1, device=device)

    def call() -> object:
        for cache in caches:
            cache.length = context - 1
        return run_blocks(blocks, x_BD.unsqueeze(1), caches=caches, positions=positions)

    return call
