"""The engine of one generation, made ready on all ranks together: caches that fit, decode steps captured or not.

Apart from ``engine``, which knows one rank: here ranks agree, so that a fault or a shortage on one leaves none waiting.
"""

from typing import TYPE_CHECKING

import torch

from tplab.cluster.admission import free_memory
from tplab.collectives.transport import NullTransport, ProcessGroupTransport
from tplab.models.engine import GenerationEngine, most_in_caches, step_shapes, why_eager
from tplab.models.loading import Loaded
from tplab.models.records import Request
from tplab.models.together import ANOTHER_RANK, together
from tplab.shown import listed

if TYPE_CHECKING:
    from tplab.cluster import Rank


def ready_engine(rank: "Rank", loaded: Loaded, request: Request, prompts: list[list[int]]) -> GenerationEngine:
    """The engine, ready to run: with its caches, and with its decode steps captured where they are to be."""
    shapes = step_shapes(request, prompts)
    graphs = together(rank, lambda: why_eager(loaded, request)) is None
    # A rank that failed last time has none while others have, and capturing takes all that share a stage.
    if graphs and not together(rank, lambda: loaded.kept.has(shapes), all_of=True):
        loaded.kept.forget(shapes)
    engine = together(rank, lambda: _make_engine(rank, loaded, request, prompts))
    engine.warm_up()
    fault: list[Exception] = []

    def prepare() -> bool:
        try:
            engine.prepare()
        except Exception as error:
            if request.cuda_graphs or not graphs:
                raise
            fault.append(error)
        return not fault

    if not together(rank, prepare, all_of=True):
        what = listed([f"{type(each).__name__}: {each}" for each in fault]) or ANOTHER_RANK
        engine.give_up_graphs(f"capturing did not work ({what})")
        engine.prepare()
    return engine


def _make_engine(rank: "Rank", loaded: Loaded, request: Request, prompts: list[list[int]]) -> GenerationEngine:
    """The engine with its caches, after a look whether they fit."""
    needed, longest = _cache_bytes(loaded, request, prompts, to_capture=why_eager(loaded, request) is None)
    if needed > _free_bytes(rank):
        loaded.kept.drop()
    free = _free_bytes(rank)
    if needed > free:
        raise MemoryError(
            f"keys and values of {len(prompts)} sequences of {longest} tokens take "
            f"{needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free on {rank.device}: use fewer or shorter prompts, "
            f"a smaller max_new_tokens, or dtype='bfloat16'"
        )
    # A message at a time: NCCL then has a connection for every pair of ranks, and none waits for another's.
    p2p = ProcessGroupTransport(rank.group, batched=False) if rank.world_size > 1 else NullTransport()
    return GenerationEngine(loaded, request, prompts, p2p, report=rank.report if rank.index == 0 else None)


def _cache_bytes(loaded: Loaded, request: Request, prompts: list[list[int]], *, to_capture: bool) -> tuple[float, int]:
    """Bytes of the caches that are to be made, on all ranks that share this one's memory, and places of the longest."""
    if loaded.stage.why_no_decode() is None:
        shapes = step_shapes(request, prompts)
        if to_capture and loaded.kept.has(shapes):
            return 0.0, 0
        sizes = [(shape.batch, shape.capacity) for shape in shapes]
    else:
        parts = [prompts[start:end] for start, end in request.micro_batches()]
        sizes = [(len(part), most_in_caches(request, part)) for part in parts]
    places = sum(batch * length for batch, length in sizes)
    return loaded.kv_bytes_per_token * places, max(length for _, length in sizes)


def _free_bytes(rank: "Rank") -> float:
    if rank.device.type == "cuda":
        # What torch's allocator holds and nobody uses is free, too.
        held = torch.cuda.memory_reserved(rank.device) - torch.cuda.memory_allocated(rank.device)
        return torch.cuda.mem_get_info(rank.device)[0] + held
    return free_memory().num_bytes
