"""Memory of every rank of a layout, and how many tokens and requests fit beside the weights.

Weights and cache are exact (``tplab.models.shards``). Activations and workspace are estimates, and say what of.

Known to be wrong: engines pad head counts and vocabulary to multiples of their own, keep quantised layers' scales in
formats of their own, and round the cache to pages (``CACHE_PAGE`` here); windowed layers are taken as spread evenly.

Letters as in ``tplab.models.spec``.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from tplab.layers.ranges import kv_heads_by_rank, vocab_rows
from tplab.models.shards import Layout, kv_bytes_per_token, weight_bytes
from tplab.models.spec import ModelSpec
from tplab.topology.advisor.workload import EnginePolicy, Workload
from tplab.topology.machine.machine import Gpu

CACHE_PAGE = 16
"""Tokens in a page of the cache: vLLM's and SGLang's usual block. A request's last page is partly empty."""
CONTEXT_BYTES = 0.6 * 2**30
"""Bytes of one process's CUDA context, kernels and cuBLAS workspace, outside torch's allocator."""
COLLECTIVE_BYTES = {1: 0.0, 2: 342 * 2.0**20}
"""Bytes of NCCL's buffers by group size, and for any larger group ``COLLECTIVE_BYTES_LARGE`` (NVIDIA AIConfigurator's
system files, commit 095f58a: 342 MiB for 2 GPUs, 392 MiB for 4 and 8)."""
COLLECTIVE_BYTES_LARGE = 392 * 2.0**20
HOST_BYTES = 0.3e9
"""Bytes of a rank on a CPU core: interpreter and torch."""
LOGITS_ITEMSIZE = 4
"""Bytes per logit: they are sampled in fp32."""


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


def activation_bytes(spec: ModelSpec, tp: int, *, tokens: int, sampled: int, last_stage: bool) -> float:
    """Largest activations alive at once in one forward pass without gradients; an estimate.

    The residual stream and its norm are whole on every rank, the inside of attention or MLP is cut by t; only the
    larger of the two is alive. The last stage has the logits of the sampled tokens in fp32: each rank its part, and
    after the gathering all of them.

    Args:
        tokens: in the pass, over all its requests.
        sampled: tokens whose logits are wanted: one per request.
    """
    attention = 2 * spec.q_size / tp + 2 * spec.kv_heads_per_rank(tp) * spec.head_dim
    mlp = spec.mlp_matrices * spec.intermediate_size / tp
    inside = 2 * spec.hidden_size + max(attention, mlp)
    logits = sampled * (spec.vocab_size + (vocab_rows(spec.vocab_size, tp) if tp > 1 else 0)) * LOGITS_ITEMSIZE
    return tokens * inside * spec.activation_itemsize + (logits if last_stage else 0)


def cached_tokens(spec: ModelSpec, context: int) -> int:
    """Tokens of cache that a request of ``context`` tokens takes in an average layer: whole pages, no more than the
    window in layers that have one."""
    return math.ceil(spec.kept_tokens(context) / CACHE_PAGE) * CACHE_PAGE


def workspace_bytes(gpu: Gpu, layout: Layout) -> float:
    """Bytes that a process takes before any tensor; an estimate. CUDA graphs are not in it: engines leave them to the
    part of memory that they do not claim (``1 - gpu_memory_utilization``)."""
    if gpu.kind == "cpu":
        return HOST_BYTES
    buffers = COLLECTIVE_BYTES.get(layout.tp, COLLECTIVE_BYTES_LARGE)
    return CONTEXT_BYTES + buffers + (COLLECTIVE_BYTES[2] if layout.pp > 1 else 0.0)


def usable_bytes(gpu: Gpu, engine: EnginePolicy) -> float:
    """Bytes that the engine may take of one GPU."""
    return gpu.memory_bytes * engine.gpu_memory_utilization


def tokens_in_step(workload: Workload, requests: float = 1) -> int:
    """Tokens of the largest forward pass that the engine reserves memory for: a full chunk of prefill (engines try one
    when they start, whether or not prompts fill it), or a whole prompt; in any case one token per request."""
    chunk = workload.engine.chunked_prefill
    return max(workload.input_length if chunk is None else chunk, math.ceil(requests))


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
        spec, layout = self.spec, self.layout
        tokens, sampled = tokens_in_step(self.workload, requests), math.ceil(requests)
        inside, at_end = (
            activation_bytes(spec, layout.tp, tokens=tokens, sampled=sampled, last_stage=last) for last in (False, True)
        )
        kept = requests * cached_tokens(spec, self.workload.context_length)
        workspace, usable = workspace_bytes(self.gpu, layout), usable_bytes(self.gpu, self.workload.engine)
        return [
            RankMemory(
                stage=stage,
                index=index,
                weights=weights,
                kv=kept * kv_per_token,
                activations=at_end if stage == layout.pp - 1 else inside,
                workspace=workspace,
                kv_per_token=kv_per_token,
                usable=usable,
            )
            for (stage, index), weights, kv_per_token in zip(self.places, self.weights, self.kv_per_token, strict=True)
        ]

    def fullest(self, requests: float) -> RankMemory:
        """The rank with the least left."""
        return min(self.with_one if requests == 1 else self.ranks(requests), key=lambda rank: rank.free)

    @cached_property
    def with_one(self) -> tuple[RankMemory, ...]:
        """``ranks`` with a single request."""
        return tuple(self.ranks(1))

    @cached_property
    def max_requests(self) -> int:
        """Capacity of the replica, in requests of full length; 0 where not even one fits.

        On a rank the number is the n with ``fixed + n·each = usable``, where activations are those of a full chunk;
        past a chunk's tokens every request adds one token to the pass besides.
        """
        tokens = tokens_in_step(self.workload)
        per_token = activation_bytes(self.spec, self.layout.tp, tokens=1, sampled=0, last_stage=False)
        most = math.inf
        for empty, with_one in zip(self.ranks(0), self.with_one, strict=True):
            each = with_one.total - empty.total
            fitting = empty.free / each
            if fitting > tokens:
                fitting = (empty.free + tokens * per_token) / (each + per_token)
            most = min(most, fitting)
        return max(0, math.floor(most))

    def token_capacity(self, of_free: bool = False) -> float:
        """Capacity of the replica's cache, in tokens of whole pages, where no layer is windowed.

        Args:
            of_free: whether ``gpu_memory_utilization`` is a share of what the weights leave free, not of everything.
        """
        share = self.workload.engine.gpu_memory_utilization
        usable = self.gpu.memory_bytes if of_free else self.gpu.memory_bytes * share
        room = min((usable - (rank.total - rank.kv)) / rank.kv_per_token for rank in self.with_one)
        return max(0, int(room) // CACHE_PAGE * CACHE_PAGE) * (share if of_free else 1)


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
