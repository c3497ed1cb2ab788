"""What tensor-parallel layers should cost: their collectives and bytes, and the time that overlap leaves. Pure.

Letters: T tokens, D hidden; n ranks; k chunks; C time of the computation, M of the communication.

Not one formula for "overlap": what can be hidden at best is ``min(C, M)``, and how much of it is depends on the chunks;
both are here, and notebook 04 draws them together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tplab.checks import check_count, check_one_of
from tplab.collectives.volumes import chunk_lengths, sent_bytes

STRATEGIES = ("blocking", "chunked", "batch split", "sequence parallel")
"""Strategies whose bytes follow from the formulas here; those of int8 are ``int8_sent_bytes``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """The collectives of one layer in one forward pass."""

    layer: str
    """Name of the layer in a block, such as ``mlp.down``."""
    kind: str
    """``all-reduce``, ``all-gather`` or ``reduce-scatter``."""
    num_calls: int
    """Number of calls."""
    payload_bytes: int
    """S of all calls together, see ``tplab.collectives.volumes``."""


def block_collectives(
    *, tokens: int, hidden: int, itemsize: int, n: int, strategy: str = "blocking", parts: int = 1
) -> tuple[Expected, ...]:
    """The collectives of one transformer block, forward.

    Two sums of S = T·D·itemsize: after the attention's output projection and after the MLP's down projection. Chunked
    or split into ``parts``, each is so many calls on as many tokens; under sequence parallelism each is a
    reduce-scatter, with an all-gather before the next column-parallel layer, on T rounded up to a multiple of n.

    Args:
        tokens: T.
        hidden: D.
        itemsize: bytes of an element.
        n: ranks.
        strategy: one of ``STRATEGIES``.
        parts: chunks of a chunked layer, or parts of a split batch.

    Source: Megatron-LM (2019), section 3; Korthikanti and others (2022), section 4.2.2.
    """
    tokens, hidden = check_count("tokens", tokens), check_count("hidden", hidden, least=1)
    itemsize, parts = check_count("itemsize", itemsize, least=1), check_count("parts", parts, least=1)
    check_one_of("strategy", strategy, STRATEGIES)
    if check_count("n", n, least=1) == 1:
        return ()
    if strategy == "sequence parallel":
        nbytes = -(-tokens // n) * n * hidden * itemsize
        return tuple(
            Expected(layer=layer, kind=kind, num_calls=1, payload_bytes=nbytes)
            for layer, kind in (
                ("self_attn.qkv", "all-gather"),
                ("self_attn.o", "reduce-scatter"),
                ("mlp.gate_up", "all-gather"),
                ("mlp.down", "reduce-scatter"),
            )
        )
    nbytes = tokens * hidden * itemsize
    calls = 1 if strategy == "blocking" else parts
    return tuple(
        Expected(layer=layer, kind="all-reduce", num_calls=calls, payload_bytes=nbytes)
        for layer in ("self_attn.o", "mlp.down")
    )


def wire_bytes(kind: str, payload_bytes: float, n: int, backend: str = "ring") -> float:
    """Bytes each rank sends for a payload, on average: by ring, or as gloo does it (whose reduce-scatter is an
    all-reduce)."""
    algorithm = "gloo" if backend == "gloo" and kind == "reduce-scatter" else "ring"
    return sent_bytes(kind, algorithm, round(payload_bytes), n).sent_mean


def pipelined_us(compute_us: Sequence[float], comm_us: Sequence[float]) -> float:
    """Time of chunks that are computed one after another, each communicated as soon as it is computed and its
    predecessor's communication is over.

    ``end_i = max(C_1 + ... + C_i, end_{i-1}) + M_i``: a two-machine flow shop, whose two lanes never slow each other
    down. Known to be wrong where they do: a GPU's communication kernels take processors from the matmul, a CPU's
    threads cores.
    """
    if len(compute_us) != len(comm_us):
        raise ValueError(f"compute_us and comm_us must be as long as each other; got {len(compute_us)}, {len(comm_us)}")
    computed = ended = 0.0
    for compute, comm in zip(compute_us, comm_us, strict=True):
        computed += compute
        ended = max(computed, ended) + comm
    return max(computed, ended)


def chunked_us(
    tokens: int, num_chunks: int, compute_us: Callable[[int], float], comm_us: Callable[[int], float]
) -> float:
    """Time of a row-parallel matmul in chunks of tokens: ``pipelined_us`` with the times for a chunk's tokens.

    Args:
        compute_us, comm_us: time of the matmul, and of the all-reduce of its result, for a number of tokens. With a
            latency per message and a start-up per matmul in them, more chunks are not always better.
    """
    check_count("num_chunks", num_chunks, least=1, most=check_count("tokens", tokens))
    lengths = chunk_lengths(tokens, num_chunks)
    return pipelined_us([compute_us(t) for t in lengths], [comm_us(t) for t in lengths])


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """What became of the communication of a layer, from three measured times."""

    compute_us: float
    """C: time with the communication deleted, in us."""
    comm_us: float
    """M: time of the communication alone, in us."""
    total_us: float
    """Time of the layer as it runs, in us."""

    @property
    def exposed_us(self) -> float:
        """Communication that computation did not hide: ``total - C``, at least 0."""
        return max(0.0, self.total_us - self.compute_us)

    @property
    def hidden_us(self) -> float:
        """Communication that ran under computation: ``C + M - total``, at least 0."""
        return max(0.0, self.compute_us + self.comm_us - self.total_us)

    @property
    def hideable_us(self) -> float:
        """The most that can be hidden: ``min(C, M)``."""
        return min(self.compute_us, self.comm_us)

    @property
    def bound_us(self) -> float:
        """The least time with all of that hidden: ``max(C, M)``."""
        return max(self.compute_us, self.comm_us)

    @property
    def hidden_share(self) -> float:
        """Hidden over hideable: 1 is perfect overlap."""
        return self.hidden_us / self.hideable_us if self.hideable_us else 0.0

    @property
    def overlap_ratio(self) -> float:
        """Time both run over communication time."""
        return self.hidden_us / self.comm_us if self.comm_us else 0.0
