"""Memory of every rank of a layout, and how many tokens and requests fit beside the weights.

Weights and cache are exact (``tplab.models.shards``). Activations and workspace are estimates, and say what of; what an
engine takes of a GPU is in ``engine_memory``. Where versions of an engine differ, the estimate is on the careful side.

Known to be wrong: engines pad head counts and vocabulary to multiples of their own, keep quantised layers' scales in
formats of their own, and round the cache to pages (``CACHE_PAGE`` here); windowed layers are taken as spread evenly.
The draft model of speculative decoding is not counted. vLLM up to 0.4 takes gigabytes more per GPU under TP than later
versions: ``EnginePolicy(name="vllm-0.4")``. ``published.engine_logs`` holds all this beside what engines reported.

Letters as in ``tplab.models.spec``.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property

from tplab.layers.ranges import kv_heads_by_rank, vocab_rows
from tplab.models.shards import Layout, kv_bytes_per_token, weight_bytes
from tplab.models.spec import ModelSpec
from tplab.topology.advisor.constants import DEFAULT, EngineConstants
from tplab.topology.advisor.engine_memory import HOST_BYTES, EngineMemory, engine_memory
from tplab.topology.advisor.workload import MOST, EnginePolicy, Workload
from tplab.topology.machine.machine import Gpu

CACHE_PAGE = 16
"""Tokens in a page of the cache: vLLM's and SGLang's usual block. A request's last page is partly empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMemory:
    """What one rank holds, in bytes."""

    stage: int
    index: int
    """Stage and place in its tensor-parallel group."""
    weights: float
    kv: float
    """KV cache of the requests in flight."""
    activations: float
    """Largest activations that are alive at once within one step."""
    workspace: float
    """CUDA context, kernels, buffers of collectives."""
    kv_per_token: float
    """Bytes that one more cached token adds."""
    usable: float
    """Bytes of the GPU's memory that the engine may take."""

    @property
    def total(self) -> float:
        return self.weights + self.kv + self.activations + self.workspace

    @property
    def free(self) -> float:
        """Bytes that are left; negative if they are missing."""
        return self.usable - self.total


def activation_bytes(
    spec: ModelSpec, layout: Layout, engine: EngineMemory, *, tokens: int, sampled: int, last_stage: bool
) -> float:
    """Largest activations alive at once in one forward pass without gradients; an estimate.

    Per token, while the MLP runs: the embedding, the residual stream, the block's input, the MLP's output and, with TP,
    its sum over the ranks, all of them whole on every rank; of the MLP's inside all widths at once (gate, up and their
    product), cut by t. Attention's inside counts where it is larger. Stages of a pipeline hold what they received
    besides, two streams. Kernels of 4-bit weights widen one matrix at a time for long prompts (GPTQ, AWQ). On the last
    stage sampling follows, with the hidden states still there: the larger of the two counts.

    Args:
        spec, layout: the model, and how it is cut.
        engine: for what sampling takes.
        tokens: in the pass, over all its requests.
        sampled: tokens whose logits are wanted: one per request.
        last_stage: whether the stage samples.
    """
    tp = layout.tp
    attention = 2 * spec.q_size / tp + 2 * spec.kv_heads_per_rank(tp) * spec.head_dim
    mlp = spec.mlp_matrices * spec.intermediate_size / tp
    streams = 4 + (tp > 1) + 2 * (layout.pp > 1)
    inside = tokens * (streams * spec.hidden_size + max(attention, mlp)) * spec.activation_itemsize
    if spec.weight_itemsize < 1:
        inside += (spec.mlp_matrices - 1) * spec.hidden_size * spec.intermediate_size / tp * spec.activation_itemsize
    if engine.keeps_summed and tp > 1:
        summed = spec.all_reduces_per_block * max(layout.layers_of_stage)
        inside += summed * tokens * spec.hidden_size * spec.activation_itemsize
    if not last_stage:
        return inside
    hidden = tokens * spec.hidden_size * spec.activation_itemsize
    gathered = vocab_rows(spec.vocab_size, tp) * spec.activation_itemsize * sampled if tp > 1 else 0
    return max(inside, hidden + engine.rows_bytes(spec.vocab_size, sampled) + gathered)


def cached_tokens(spec: ModelSpec, context: int) -> int:
    """Tokens of cache that a request of ``context`` tokens takes in an average layer: whole pages, no more than the
    window in layers that have one."""
    return math.ceil(spec.kept_tokens(context) / CACHE_PAGE) * CACHE_PAGE


def workspace_bytes(spec: ModelSpec, gpu: Gpu, layout: Layout, engine: EngineMemory) -> float:
    """Bytes that a process takes before any request, besides weights: CUDA's and NCCL's, and the table of rotations. An
    estimate. CUDA graphs are not in it: engines leave them to the part of memory that they do not claim."""
    if gpu.kind == "cpu":
        return HOST_BYTES
    rotations = (spec.max_length or 0) * spec.head_dim * spec.activation_itemsize
    return engine.runtime_bytes + engine.collective_bytes(gpu, layout.tp, layout.pp) + rotations


def usable_bytes(
    gpu: Gpu, policy: EnginePolicy, engine: EngineMemory, *, weights: float, activations: float, workspace: float
) -> float:
    """Bytes that the engine may take of one GPU in all, for weights, cache, activations and workspace.

    Args:
        gpu: the card.
        policy: says which share of the memory.
        engine: says of what.
        weights, activations, workspace: what the rank holds.
    """
    share, memory = policy.gpu_memory_utilization, gpu.memory_bytes
    if engine.share == "left":
        return share * memory + (1 - share) * (weights + activations + workspace)
    if engine.share == "static":
        return min(memory, share * (memory - workspace) + workspace + activations)
    return share * memory


def tokens_in_step(workload: Workload, engine: EngineMemory, requests: float = 1) -> int:
    """Tokens of the largest forward pass that the engine reserves memory for: a full chunk of prefill, whether or not
    prompts fill it, or without chunks the longest request and what the engine takes together by default. An engine
    that tries nothing: a whole prompt, and in any case one token per request."""
    chunk = workload.engine.chunked_prefill
    if engine.tries:
        return max(workload.context_length, _usual(workload).max_num_tokens) if chunk is None else chunk
    return max(workload.input_length if chunk is None else chunk, math.ceil(requests))


def sampled_in_step(gpu: Gpu, workload: Workload, engine: EngineMemory, requests: float = 1) -> int:
    """Sequences whose tokens are sampled at once: of an engine that tries it when it starts, its largest batch."""
    if not engine.tries:
        return math.ceil(requests)
    most = workload.engine.max_num_seqs or _usual(workload).largest_batch(gpu)
    return min(most, tokens_in_step(workload, engine))


def _usual(workload: Workload) -> EngineConstants:
    """The engine's defaults."""
    return DEFAULT.engines.get(workload.engine.name, DEFAULT.engines["generic"])


@dataclass(frozen=True, kw_only=True)
class LayoutMemory:
    """The ranks of one replica among which the fullest is, asked once for all numbers of requests."""

    spec: ModelSpec
    gpu: Gpu
    workload: Workload
    layout: Layout
    places: tuple[tuple[int, int], ...]
    """Stage and tensor-parallel place of each rank that is looked at."""
    weights: tuple[float, ...]
    """Bytes of weights of each of them."""
    kv_per_token: tuple[float, ...]
    """Bytes that one more cached token adds on each of them."""

    @classmethod
    def of(
        cls, spec: ModelSpec, gpu: Gpu, workload: Workload, layout: Layout, *, every_rank: bool = False
    ) -> "LayoutMemory":
        """The memory of a layout's ranks.

        Args:
            spec, gpu, workload, layout: the model, the card, what is asked, and how the model is cut.
            every_rank: look at all ranks; otherwise only at the first, the longest and the last stage, and there at the
                place with the most key-value heads, since no other rank is fuller.
        """
        if every_rank:
            places = [(stage, index) for stage in range(layout.pp) for index in range(layout.tp)]
        else:
            longest = max(range(layout.pp), key=layout.layers_of_stage.__getitem__)
            heads = kv_heads_by_rank(spec.num_heads, spec.num_kv_heads, layout.tp)
            index = layout.tp - 1 - heads[::-1].index(max(heads))
            places = [(stage, index) for stage in sorted({0, longest, layout.pp - 1})]
        return cls(
            spec=spec,
            gpu=gpu,
            workload=workload,
            layout=layout,
            places=tuple(places),
            weights=tuple(weight_bytes(spec, layout, *place) for place in places),
            kv_per_token=tuple(kv_bytes_per_token(spec, layout, *place) for place in places),
        )

    def ranks(self, requests: float) -> list[RankMemory]:
        """Memory of those ranks with ``requests`` in flight on the replica, each at its full length."""
        spec, layout, gpu, engine = self.spec, self.layout, self.gpu, self.engine
        tokens = tokens_in_step(self.workload, engine, requests)
        sampled = sampled_in_step(gpu, self.workload, engine, requests)
        inside, at_end = (
            activation_bytes(spec, layout, engine, tokens=tokens, sampled=sampled, last_stage=last)
            for last in (False, True)
        )
        kept = requests * cached_tokens(spec, self.workload.context_length)
        workspace = workspace_bytes(spec, gpu, layout, engine)
        made = []
        for (stage, index), weights, kv_per_token in zip(self.places, self.weights, self.kv_per_token, strict=True):
            activations = at_end if stage == layout.pp - 1 else inside
            held = {"weights": weights, "activations": activations, "workspace": workspace}
            made.append(
                RankMemory(
                    stage=stage,
                    index=index,
                    **held,
                    kv=kept * kv_per_token,
                    kv_per_token=kv_per_token,
                    usable=usable_bytes(gpu, self.workload.engine, engine, **held),
                )
            )
        return made

    @property
    def engine(self) -> EngineMemory:
        """How the workload's engine sizes its cache."""
        return engine_memory(self.workload.engine.name)

    def fullest(self, requests: float) -> RankMemory:
        """The rank with the least left."""
        return min(self.with_one if requests == 1 else self.ranks(requests), key=lambda rank: rank.free)

    @cached_property
    def with_one(self) -> tuple[RankMemory, ...]:
        """``ranks`` with a single request."""
        return tuple(self.ranks(1))

    @cached_property
    def max_requests(self) -> int:
        """Capacity of the replica, in requests of full length: as many as fit, and no more than the engine was told to
        run at once; 0 where not even one fits."""
        told = self.workload.engine.max_num_seqs or MOST
        if self.engine.tries:  # all but the cache is taken when it starts
            fitting = min((rank.free + rank.kv) / rank.kv for rank in self.with_one)
            return max(0, min(math.floor(fitting), told))
        return bisect_left(range(told), True, key=lambda n: self.fullest(n + 1).free < 0)

    def token_capacity(self) -> int:
        """Capacity of the replica's cache, in tokens of whole pages, where no layer is windowed."""
        room = min((rank.free + rank.kv) / rank.kv_per_token for rank in self.with_one)
        return max(0, int(room) // CACHE_PAGE * CACHE_PAGE)


def all_ranks(
    spec: ModelSpec, gpu: Gpu, workload: Workload, layout: Layout, *, requests: float = 1
) -> list[RankMemory]:
    """Every rank of one replica, stage by stage: rank = stage·t + place.

    Args:
        spec, gpu, workload, layout: the model, the card, what is asked, and how the model is cut.
        requests: requests in flight on the replica.
    """
    return LayoutMemory.of(spec, gpu, workload, layout, every_rank=True).ranks(requests)


def fullest_rank(spec: ModelSpec, gpu: Gpu, workload: Workload, layout: Layout, *, requests: float = 1) -> RankMemory:
    """The rank with the least left.

    Args:
        spec, gpu, workload, layout: the model, the card, what is asked, and how the model is cut.
        requests: requests in flight on the replica.
    """
    return LayoutMemory.of(spec, gpu, workload, layout).fullest(requests)


def max_requests(spec: ModelSpec, gpu: Gpu, workload: Workload, layout: Layout) -> int:
    """Capacity of one replica, in requests of full length; 0 where not even one fits.

    More make the engine keep them waiting, or throw out the cache of some and compute it again.
    """
    return LayoutMemory.of(spec, gpu, workload, layout).max_requests
