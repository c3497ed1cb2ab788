"""How a model is sharded over ranks, and the bytes of weights, keys and values on each, before anything is allocated.

The same arithmetic places weights on ranks, says beforehand what they take, and sizes layouts for the advisor. It is
exact: equal, byte for byte, to what ``tplab.models`` then allocates (the tests compare the two). What it leaves out:
activations, the buffers of collectives, and what torch and the allocator take. Pure: no torch.

Per rank of stage s, place r in its tensor-parallel group, with l layers there:

    weights     l · block(r) + embedding/t on the first stage + (head/t + norm) on the last
    block(r)    D·(2·h·E + 2·g·E) + (3 or 2)·D·I/t, h = H/t, in the weights' precision; biases and norms besides
    cache       2 · l · g · E numbers per token: g key-value heads that the rank's query heads use

Embedding and head are shared by t, not by p, with ceil(V/t) rows on each rank; where they are one tied tensor, a
pipeline holds it twice. Key and value projections of heads that several ranks need are on each of them. Biases of
row-cut matrices and norms are whole on every rank.

Letters as in ``spec``; p pipeline stages, t ranks that share a layer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tplab.checks import ArgumentError, check_count
from tplab.layers.ranges import divisors, vocab_rows
from tplab.models.spec import ModelConfig, ModelSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """The layers of one pipeline stage, and whether the two ends of the model belong to it."""

    start: int
    end: int
    """``start`` is the first layer, ``end`` the one after the last."""
    first: bool
    """Whether the stage holds the embedding."""
    last: bool
    """Whether the stage holds the last norm and the output head."""

    @property
    def num_layers(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """TP × PP x replicas: a model on tp x pp ranks, where neighbouring ranks share a stage, as in ``rank.mesh``."""

    tp: int
    """t, ranks that share every layer of a stage."""
    pp: int
    """p, stages."""
    replicas: int = 1
    """Copies of the model, each on t·p ranks, that share the requests."""
    layers_of_stage: tuple[int, ...]
    """Layers of each stage; they need not be equal."""

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        tp: int = 1,
        pp: int = 1,
        replicas: int = 1,
        layers_of_stage: Sequence[int] | None = None,
    ) -> "Layout":
        """A layout that the model can be cut to.

        Args:
            model: the model, for its heads and layers.
            tp, pp: ranks that share a layer, and stages.
            replicas: copies of the model.
            layers_of_stage: by default as even as possible, the longer ones in the middle, because the ends have the
                embedding and the output head besides.

        Raises:
            ValueError: heads, MLP or their quantised groups that ``tp`` does not divide, more stages than layers, or
                stages that do not add up.
        """
        if not isinstance(model, ModelConfig):
            raise ArgumentError("model", model, "must be a ModelConfig or a ModelSpec")
        for name, size in (("tp", tp), ("pp", pp), ("replicas", replicas)):
            check_count(name, size, least=1)
        if cannot := why_not(model, tp, pp):
            raise cannot
        if layers_of_stage is None:
            return cls.even(model, tp, pp, replicas)
        counts = [check_count("stages", count) for count in layers_of_stage]
        if len(counts) != pp or min(counts) < 1 or sum(counts) != model.num_layers:
            rule = f"must be {pp} positive numbers of layers (pp={pp}) that add up to {model.num_layers}"
            raise ArgumentError("stages", counts, rule)
        return cls(tp=tp, pp=pp, replicas=replicas, layers_of_stage=tuple(counts))

    @classmethod
    def even(cls, model: ModelConfig, tp: int, pp: int, replicas: int) -> "Layout":
        """The layout that ``of`` makes by default, of degrees that are known to be possible (``can_cut``)."""
        counts = [model.num_layers // pp] * pp
        if over := model.num_layers % pp:
            from_middle = sorted(range(pp), key=lambda stage: (abs(2 * stage - (pp - 1)), -stage))
            for stage in from_middle[:over]:
                counts[stage] += 1
        return cls(tp=tp, pp=pp, replicas=replicas, layers_of_stage=tuple(counts))

    @property
    def gpus_per_replica(self) -> int:
        """t·p."""
        return self.tp * self.pp

    @property
    def num_gpus(self) -> int:
        """t·p·replicas."""
        return self.gpus_per_replica * self.replicas

    def place(self, rank: int) -> tuple[int, int]:
        """Stage of a rank of one replica, and its place in its tensor-parallel group."""
        return divmod(check_count("rank", rank, most=self.gpus_per_replica - 1), self.tp)

    def spec(self, stage: int) -> StageSpec:
        """The layers of a stage."""
        start = sum(self.layers_of_stage[:stage])
        end = start + self.layers_of_stage[stage]
        return StageSpec(start=start, end=end, first=stage == 0, last=stage == self.pp - 1)

    def __str__(self) -> str:
        return f"TP {self.tp} × PP {self.pp}" + (f" × {self.replicas}" if self.replicas > 1 else "")


def can_cut(model: ModelConfig, tp: int, pp: int) -> bool:
    """Whether ``tp`` divides heads and MLP, and their quantised groups, and each of ``pp`` stages gets a layer."""
    return not (
        model.num_heads % tp
        or model.intermediate_size % tp
        or pp > model.num_layers
        or _cut_block(model, tp) is not None
    )


def why_not(model: ModelConfig, tp: int, pp: int) -> ArgumentError | None:
    """Why the model cannot be cut so, and what would do; None if it can."""
    if can_cut(model, tp, pp):
        return None
    if pp > model.num_layers and not (model.num_heads % tp or model.intermediate_size % tp):
        return ArgumentError("pp", pp, f"must be at most {model.num_layers}, the model's layers: a stage needs one")
    both = divisors(math.gcd(model.num_heads, model.intermediate_size))
    fitting = _either([t for t in both if _cut_block(model, t) is None])
    if model.num_heads % tp:
        return ArgumentError("tp", tp, f"must divide the model's {model.num_heads} query heads: use {fitting}")
    if model.intermediate_size % tp:
        return ArgumentError("tp", tp, f"must divide intermediate_size={model.intermediate_size}: use {fitting}")
    rule = f"must leave every rank whole groups of quantised weights: {_cut_block(model, tp)}: use {fitting}"
    return ArgumentError("tp", tp, rule)


def _cut_block(model: ModelConfig, tp: int) -> str | None:
    """What of the quantised weights ``tp`` ranks, which divide heads and MLP, cannot share out in whole groups, in
    words; None if they can, or each has all of them."""
    if tp == 1 or not isinstance(model, ModelSpec):
        return None
    q, kv, inner = model.q_size, model.kv_size, model.intermediate_size
    parts = {  # of each rank, beside the whole
        "qkv": [("H·E", q, q // tp), ("G·E", kv, model.kv_heads_per_rank(tp) * model.head_dim)],
        "out": [("H·E", q, q // tp)],
        "gate-up": [("intermediate_size", inner, inner // tp)],
        "down": [("intermediate_size", inner, inner // tp)],
    }
    for block in model.quant_blocks:
        if block.whole:
            return f"engines cut no matrix of a checkpoint in {block.what}, only its layers over stages (pp)"
        for role in block.roles:
            by_row = role in ("out", "down")
            group = block.inputs if by_row else block.outputs
            for name, size, share in parts[role]:
                if share % group:
                    count = f"{size // group}" if size % group == 0 else "no whole number of"
                    return (
                        f"{name}={size} is {count} groups of {group} ({block.what}), which {tp} ranks cannot share, "
                        f"and engines refuse it"
                    )
                if by_row and share % block.tile:
                    return f"{name}={size} is {share} a rank, and kernels for {block.what} take {block.tile} at once"
    return None


def _either(numbers: Sequence[int]) -> str:
    words = [str(n) for n in numbers]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def weight_bytes(model: ModelConfig, layout: Layout, stage: int, index: int) -> float:
    """Bytes of the weights on rank ``index`` of a stage; exact (see the table above)."""
    matmul, small = model.block_params_of_rank(index, layout.tp)
    num_layers = layout.layers_of_stage[stage]
    rows = vocab_rows(model.vocab_size, layout.tp)
    table = rows * model.table_width
    ends = 0
    if stage == 0:
        ends += table + model.end_params + model.num_positions * model.hidden_size
        ends += max(0, model.outer_norms - 1) * model.norm_params
    if stage == layout.pp - 1:
        ends += min(1, model.outer_norms) * model.norm_params + model.end_params + model.head_bias * rows
        ends += 0 if model.tied_embeddings and layout.pp == 1 else table
    return num_layers * matmul * model.weight_itemsize + (num_layers * small + ends) * model.activation_itemsize


def kv_bytes_per_token(model: ModelConfig, layout: Layout, stage: int, index: int) -> float:
    """Cache of one token on one rank, in bytes, where no layer is windowed; exact."""
    heads = model.kv_heads_of_rank(index, layout.tp)
    return 2 * layout.layers_of_stage[stage] * heads * model.head_dim * model.kv_itemsize


def kv_bytes(model: ModelConfig, layout: Layout, stage: int, index: int, *, requests: float, context: float) -> float:
    """Bytes of the cache of ``requests`` sequences of ``context`` tokens each on one rank.

    Args:
        model, layout: what is cut, and how.
        stage, index: which rank.
        requests: all of a replica: with the pipe full a stage works on one micro-batch, but keeps the cache of all p.
        context: tokens kept of each. In a static batch the longest prompt plus the new tokens less one: the last is
            never an input. Micro-batches are padded each to its own longest prompt: add them up.
    """
    return requests * context * kv_bytes_per_token(model, layout, stage, index)
