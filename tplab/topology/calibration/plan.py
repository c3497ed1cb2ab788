"""What ``calibrate`` measures and how often. Pure: made in the notebook kernel, the same on every rank."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tplab.checks import check_count
from tplab.cluster import Provenance
from tplab.cluster.naming import spread
from tplab.collectives.emulated_link import EmulatedLink, LinkTable, check_backend
from tplab.measure import link_text
from tplab.models.spec import ModelConfig, ModelSpec

PHASES = ("all-reduces", "messages", "matmuls", "kernels", "engine")
"""What is measured, in that order."""
HEAD_DIM = 64
"""Head dimension of the attention that is timed."""
SHALLOW, DEEP = 2, 8
"""Layers of two tiny models whose GEMMs are negligible: their steps are engine overhead. A pipeline of two stages has
the deep one."""
BLOCK_WIDTHS = 1024, 8192
"""Hidden sizes of the blocks that are timed whole on a GPU: a norm of few rows takes as long as a row is wide."""
BLOCK_TOKENS, BLOCK_CONTEXT = 4, 128
"""Sequences of those blocks' decode step, and tokens in the cache of each: on one token and an empty cache CUDA
kernels take less time than they ever do in use."""
GPU_LAYERS = 24
"""Layers of the model that measures the engine on a GPU: enough for its CUDA kernels to outlast the host's work."""
_MIB = 1 << 20
BlockShapes = tuple[tuple[int, int], ...]
"""Shapes (n, k) of the weights of a block's GEMMs: query-key-value, output, gate-up, down."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationPlan:
    """What is measured and how often; the same on every rank."""

    num_ranks: int
    backend: str
    """Backend of the cluster that the plan is for."""
    shares_gpus: bool
    """Whether ranks share GPUs."""
    links: LinkTable | EmulatedLink | None
    """Declared links between the ranks; None for the backend's own."""
    dtype: str
    """Name of the torch dtype of weights and messages."""
    groups: tuple[tuple[int, ...], ...]
    """Ranks of each group whose all-reduces are timed."""
    launches: tuple[str, ...]
    """Launch modes: ``eager``, and on GPUs ``graph``."""
    sizes: tuple[int, ...]
    """Sizes of the all-reduces in bytes, rising."""
    pairs: tuple[tuple[int, int], ...]
    """Pairs of ranks between which messages are timed."""
    hosts: tuple[str, ...]
    """Name of every rank's host; empty where all are on one."""
    send_sizes: tuple[int, ...]
    """Sizes of the messages in bytes, rising."""
    computing: tuple[int, ...]
    """Numbers of ranks that compute at once: on a CPU they share its memory bandwidth."""
    tokens: tuple[int, ...]
    """Numbers of tokens, the rows of the GEMMs."""
    blocks: tuple[BlockShapes, ...]
    """GEMMs of transformer blocks of several sizes; those of one block, one after the other, are a sample."""
    pool_bytes: int
    """Least bytes of weights to go through; more than caches hold."""
    cache_shape: tuple[int, int, int]
    """Sequences, key-value heads and query heads of the attention that reads a cache."""
    cache_tokens: int
    """Length of that cache, in tokens."""
    prompt_tokens: int
    """Length of the prompt whose causal attention is timed, in tokens."""
    rounds: int
    """Rounds through everything; each adds samples."""
    iterations: int
    """Number of samples of each all-reduce."""
    notes: tuple[str, ...]
    """Sentences for whoever reads the calibration."""

    @property
    def cuda_graphs(self) -> bool:
        """Whether decode steps are replayed from CUDA graphs, as the engine does where each rank has a GPU."""
        return "graph" in self.launches

    def nodes(self, ranks: Iterable[int]) -> int:
        """How many hosts those ranks are on."""
        return len({self.hosts[rank] for rank in ranks}) if self.hosts else 1

    @property
    def iterations_over_links(self) -> int:
        """Samples of each all-reduce in one round, over emulated links."""
        return max(2, self.iterations // self.rounds)


_USUAL: Mapping[str, Mapping[str, Any]] = {
    "gloo": {
        "dtype": "float32",
        "widths": (256, 512, 1024, 2048),
        "tokens": (1, 2, 4, 8, 16, 32, 64, 128),
        "sizes": tuple(1 << power for power in range(11, 24, 2)),
        "pool_bytes": 96 * _MIB,
        "cache_shape": (1, 4, 8),
        "cache_tokens": 2048,
        "prompt_tokens": 512,
    },
    "nccl": {
        "dtype": "bfloat16",
        "widths": (1024, 2048, 4096, 8192),
        "tokens": (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096),
        "sizes": tuple(1 << power for power in range(11, 27, 2)),
        "pool_bytes": 512 * _MIB,
        "cache_shape": (16, 8, 32),
        "cache_tokens": 4096,
        "prompt_tokens": 4096,
    },
}
"""What is measured unless something else is asked for, by backend: on CPUs, and on GPUs."""


def plan_calibration(
    cluster: Provenance,
    *,
    links: LinkTable | EmulatedLink | None = None,
    rounds: int = 4,
    sizes: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    model: ModelSpec | None = None,
    shapes: Sequence[tuple[int, int]] | None = None,
    hosts: Sequence[str] = (),
) -> CalibrationPlan:
    """Plan a calibration; by default one that suits a CPU or a GPU and takes about half a minute.

    Args:
        cluster: which it is for.
        links: declared links between the ranks, on gloo.
        rounds: more of them take longer and forgive busier machines.
        sizes: bytes of all-reduces and messages.
        tokens: rows of the matmuls.
        widths: hidden sizes of the blocks whose matmuls are timed, two at least.
        model: time the matmuls of this model's blocks instead, as tensor parallelism cuts them.
        shapes: time single GEMMs with weights (n, k) instead of whole blocks.
        hosts: name of every rank's host, where there are several.

    Raises:
        ValueError: emulated links on NCCL, or an argument without what it needs.
    """
    check_backend(links, cluster.backend)
    check_count("rounds", rounds, least=1)
    usual, num_ranks, gpu = _USUAL[cluster.backend], cluster.num_ranks, cluster.backend == "nccl"
    blocks = _blocks(usual["widths"] if widths is None else widths, model, shapes, num_ranks)
    tokens = usual["tokens"] if tokens is None else tokens
    sizes = usual["sizes"] if sizes is None else sizes
    if not tokens or min(tokens) < 1 or not sizes or min(sizes) < 4:
        raise ValueError(f"tokens must be at least 1 and sizes at least 4 bytes; got {list(tokens)} and {list(sizes)}")
    most = 1 if gpu else min(num_ranks, cluster.num_cores)
    return CalibrationPlan(
        num_ranks=num_ranks,
        backend=cluster.backend,
        shares_gpus=cluster.shares_gpus,
        links=links,
        groups=groups_of(num_ranks),
        launches=("eager", "graph") if cluster.own_gpus else ("eager",),
        sizes=tuple(sorted(sizes)),
        pairs=tuple(combinations(range(num_ranks), 2)),
        hosts=tuple(hosts),
        send_sizes=tuple(sorted(sizes)),
        computing=tuple(sorted({1, most} | {1 << i for i in range(most.bit_length()) if 1 << i < most})),
        tokens=tuple(sorted(tokens)),
        blocks=blocks,
        rounds=rounds,
        iterations=8 * rounds,
        notes=(*_notes(cluster, most, links), *_of_hosts(hosts)),
        **{key: usual[key] for key in ("dtype", "pool_bytes", "cache_shape", "cache_tokens", "prompt_tokens")},
    )


def _blocks(
    widths: Sequence[int], model: ModelSpec | None, shapes: Sequence[tuple[int, int]] | None, num_ranks: int
) -> tuple[BlockShapes, ...]:
    if min(widths, default=0) < 8:
        raise ValueError(f"widths must be at least 8; got {list(widths)}")
    blocks = [llama_block(width) for width in widths] if model is None else model_blocks(model, num_ranks)
    if model is not None and len(blocks) < 2:
        blocks.append(llama_block(256))
    if shapes is not None:
        blocks = [(shape,) for shape in shapes]
    if len({mean_params(block) for block in blocks}) < 2:
        raise ValueError(
            f"widths and shapes must have at least two sizes, to tell start-up from rate; got {list(shapes or widths)}"
        )
    return tuple(blocks)


def _notes(cluster: Provenance, at_once: int, links: LinkTable | EmulatedLink | None) -> tuple[str, ...]:
    notes, num_ranks = [], cluster.num_ranks
    if num_ranks > cluster.num_cores and cluster.backend == "gloo":
        notes.append(
            f"{num_ranks} ranks share {cluster.num_cores} cores: matmuls are measured with at most {at_once} at once; "
            f"beyond, compute must be emulated"
        )
    if cluster.shares_gpus:
        notes.append(f"{num_ranks} ranks share GPUs: collectives go through sockets, rates are those of a GPU alone")
    return (*notes, *((link_text(links),) if links is not None else ()))


def _of_hosts(hosts: Sequence[str]) -> tuple[str, ...]:
    """What the reader must know of several hosts."""
    where = spread(hosts)
    if where and len({*Counter(hosts).values()}) > 1:
        where += "; not as many on each, so the advisor takes them for one machine"
    return (where,) if where else ()


def llama_block(hidden: int) -> BlockShapes:
    """The GEMMs of one block of hidden size ``hidden``, in Llama's proportions."""
    wide = hidden * 11 // 4
    return ((hidden * 3 // 2, hidden), (hidden, hidden), (2 * wide, hidden), (hidden, wide))


def model_blocks(model: ModelSpec, num_ranks: int) -> list[BlockShapes]:
    """The GEMMs of one block of ``model``, for every tensor-parallel degree that ranks and model allow."""
    made: list[BlockShapes] = []
    for t in range(1, num_ranks + 1):
        if num_ranks % t or model.num_heads % t or model.intermediate_size % t:
            continue
        h, q, wide = model.hidden_size, model.q_size // t, model.intermediate_size // t
        kv = model.kv_heads_per_rank(t) * model.head_dim
        made.append(((q + 2 * kv, h), (h, q), ((2 if model.gated_mlp else 1) * wide, h), (h, wide)))
    return made


def mean_params(block: BlockShapes) -> float:
    """Mean number of parameters of one GEMM of the block."""
    return sum(n * k for n, k in block) / len(block)


def groups_of(num_ranks: int) -> tuple[tuple[int, ...], ...]:
    """Neighbours, as tensor parallelism takes them: in every size that divides the ranks, or is a power of two."""
    sizes = [n for n in range(2, num_ranks + 1) if num_ranks % n == 0 or n & (n - 1) == 0]
    return tuple(tuple(range(first, first + n)) for n in sizes for first in range(0, num_ranks - n + 1, n))


def narrow(num_layers: int, dtype: str) -> ModelConfig:
    """A tiny Llama whose GEMMs are negligible: a step's time is engine overhead."""
    kind: Any = dtype
    return ModelConfig(
        model_type="llama",
        vocab_size=256,
        hidden_size=64,
        intermediate_size=64,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_positions=64,
        dtype=kind,
    )


def llama(num_layers: int, hidden: int, dtype: str) -> ModelConfig:
    """A Llama with the proportions of ``llama_block`` and a small vocabulary."""
    kind: Any = dtype
    return ModelConfig(
        model_type="llama",
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_layers=num_layers,
        num_heads=hidden // HEAD_DIM,
        num_kv_heads=hidden // HEAD_DIM // 4,
        head_dim=HEAD_DIM,
        max_positions=2 * BLOCK_CONTEXT,
        dtype=kind,
    )
