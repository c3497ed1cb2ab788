"""Which collectives a choice of column, row or replicated per weight matrix forces in one transformer block, and what
they cost. Pure: sizes in, a table of steps out.

An activation is in one of three layouts on n ranks, and every consumer takes some of them:

| consumer                     | takes             | gives                        |
|------------------------------|-------------------|------------------------------|
| matrix, split by column      | replicated        | split                        |
| matrix, split by row         | split             | partial                      |
| matrix, replicated           | replicated        | replicated                   |
| attention core, activation   | replicated, split | the same                     |
| residual add (and norm)      | replicated        | replicated                   |

Where a layout does not fit, the cheapest conversion to one that does comes before it: partial to replicated is an
all-reduce, split to replicated an all-gather, partial to split a reduce-scatter, replicated to split a local slice,
which is free. No conversion makes a partial sum, and nothing nonlinear takes one: f(a) + f(b) is not f(a + b).

The attention core is split by heads: a rank holds its H/n query heads and every key-value head that they need, copied
where these do not divide (``HeadShard``). Biases cost nothing: split with a column matrix, added once for a row matrix.

Why not a lookup table of known schemes: all 81 choices work, and it is by pricing the bad ones that one sees why
everybody uses the same. Not torch's DTensor either: it would find the same conversions, but needs ranks to do so.

Known to be wrong: the choice is greedy, so a reduce-scatter whose result must be gathered at once may lose to an
all-reduce where key-value heads are copied; sequence parallelism (a split by tokens around the norms) is no layout
here. Memory and operations are those of the four matrices: without norms, biases, and the attention core itself.

Sources: Shoeybi et al. 2019 (Megatron-LM), section 3; layouts as DTensor's ``Replicate``, ``Shard`` and ``Partial``.
Letters: n ranks; H query heads, G key-value heads; S bytes of the full tensor (``collectives.volumes``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from tplab.checks import ArgumentError, check_count, check_divides, check_one_of
from tplab.collectives.cost import time_us
from tplab.collectives.volumes import sent_bytes
from tplab.layers.ranges import kv_heads_by_rank
from tplab.moved import say_new_names

Sharding: TypeAlias = Literal["column", "row", "replicated"]
TensorPlacement: TypeAlias = Literal["replicated", "split", "partial"]
Conversion: TypeAlias = Literal["all-reduce", "all-gather", "reduce-scatter", "slice"]

MATRICES: tuple[str, ...] = ("qkv", "out", "up", "down")
"""The weight matrices in the order of the block. ``qkv`` and ``up`` are fused: query, key, value; gate, up."""
CHOICES: tuple[Sharding, ...] = ("column", "row", "replicated")
CANONICAL: dict[str, Sharding] = {"qkv": "column", "out": "row", "up": "column", "down": "row"}
"""Megatron-LM's choice: each pair starts by column and ends by row, so that only the two ends need a sum."""
_CONVERSIONS: dict[tuple[TensorPlacement, TensorPlacement], Conversion] = {
    ("partial", "replicated"): "all-reduce",
    ("split", "replicated"): "all-gather",
    ("partial", "split"): "reduce-scatter",
    ("replicated", "split"): "slice",
}
_TAKES: dict[str, tuple[TensorPlacement, ...]] = {
    "column": ("replicated",),
    "row": ("split",),
    "replicated": ("replicated",),
    "attention": ("split", "replicated"),
    "activation": ("split", "replicated"),
    "add + norm": ("replicated",),
    "add": ("replicated",),
}
_GIVES: dict[str, TensorPlacement] = {"column": "split", "row": "partial", "replicated": "replicated"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One matrix or operation of the block, and what must happen to its input before it can start."""

    name: str
    """``qkv``, ``attention``, ``out``, ``add + norm``, ``up``, ``activation``, ``down`` or ``add``."""
    choice: Sharding | None
    """How the matrix is split; None for an operation."""
    arrives: TensorPlacement
    """Layout in which the step before left the activation."""
    conversion: Conversion | None
    """What turns it into ``input_layout``; None where it fits already."""
    input_layout: TensorPlacement
    """Layout in which this step takes its input."""
    output_layout: TensorPlacement
    """Layout in which this step leaves its output."""
    in_features: int
    """Features of the full input, over all ranks."""
    out_features: int
    """Features of the full output, over all ranks."""
    activation_bytes: int
    """Bytes of output on the rank that holds most. A partial sum is as large as the whole."""
    payload_bytes: int
    """S, payload of the collective before this step: bytes of the full tensor. 0 without one."""
    sent_bytes: float
    """Bytes that this collective sends per rank as a ring, averaged over the ranks."""
    weight_bytes: int
    """Bytes of the matrix on the rank that holds most; 0 for an operation."""
    flops: int
    """Operations of the GEMM on that rank: 2 per weight and token."""
    why: str
    """Why the conversion is forced, in one sentence; empty without one."""

    @property
    def collective(self) -> str | None:
        """The conversion, where it is a collective: a local slice is none."""
        return None if self.conversion == "slice" else self.conversion


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockPlan:
    """A block on n ranks, forward: its steps, what they force, and the totals per block."""

    choices: dict[str, Sharding]
    """Matrix -> choice, in the order of the block."""
    hidden: int
    """Features of the residual stream."""
    intermediate: int
    """Features between up and down; ``up`` makes twice as many, gate and up."""
    num_heads: int
    """H, query heads."""
    num_kv_heads: int
    """G, key-value heads."""
    head_dim: int
    """E, features of a head."""
    tokens: int
    """Tokens of the pass: batch times sequence in prefill, sequences in a decode step."""
    itemsize: int
    """Bytes of an element, of weights and activations alike."""
    n: int
    """Number of ranks."""
    steps: tuple[Step, ...]
    """Steps of the block in the order in which they run."""

    @property
    def forced(self) -> tuple[Step, ...]:
        """The steps that need a collective first."""
        return tuple(step for step in self.steps if step.collective)

    @property
    def collectives(self) -> dict[str, int]:
        """How many of each kind; only kinds that occur."""
        kinds = [step.collective for step in self.steps]
        return {kind: kinds.count(kind) for kind in ("all-reduce", "all-gather", "reduce-scatter") if kind in kinds}

    @property
    def num_collectives(self) -> int:
        return len(self.forced)

    @property
    def payload_bytes(self) -> int:
        """Sum of S over the collectives."""
        return sum(step.payload_bytes for step in self.steps)

    @property
    def sent_bytes(self) -> float:
        """Sent per rank by rings, averaged over the ranks."""
        return sum(step.sent_bytes for step in self.steps)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the four matrices on the rank that holds most."""
        return sum(step.weight_bytes for step in self.steps)

    @property
    def flops(self) -> int:
        """Operations of the four GEMMs on that rank."""
        return sum(step.flops for step in self.steps)

    @property
    def kv_heads_per_rank(self) -> int:
        """Key-value heads whose cache the rank with most must keep: all G, unless attention is split by heads."""
        split = next(step for step in self.steps if step.name == "attention").input_layout == "split"
        return max(kv_heads_by_rank(self.num_heads, self.num_kv_heads, self.n)) if split else self.num_kv_heads

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in this block, on that rank."""
        return 2 * self.kv_heads_per_rank * self.head_dim * self.itemsize

    @property
    def is_canonical(self) -> bool:
        return self.choices == CANONICAL

    @property
    def summary(self) -> str:
        """``2 all-reduces, 1 all-gather`` or ``no collectives``."""
        counted = [f"{count} {kind}{'s' * (count > 1)}" for kind, count in self.collectives.items()]
        return ", ".join(counted) or "no collectives"

    def time_us(self, alpha_us: float, beta_GBps: float) -> float:
        """The collectives as rings, one after another, nothing hidden: ``collectives.cost.time_us`` of each."""
        return sum(
            time_us("ring", step.payload_bytes, self.n, alpha_us, beta_GBps, step.collective)
            for step in self.steps
            if step.collective
        )


def plan_block(
    choices: Mapping[str, str] | Sequence[str],
    *,
    hidden: int,
    intermediate: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int | None = None,
    tokens: int,
    itemsize: int,
    n: int,
) -> BlockPlan:
    """The steps of one block. On one rank every choice is the same, and there are no collectives.

    Args:
        choices: one of ``CHOICES`` for each of ``MATRICES``, as a mapping or in order.
        hidden, intermediate, num_heads, num_kv_heads: sizes of the block; n must divide what is split (``ValueError``).
        head_dim: E, by default hidden / num_heads.
        tokens, itemsize, n: tokens of the pass, bytes of an element, ranks.
    """
    chosen = _checked(choices)
    given = {"hidden": hidden, "intermediate": intermediate, "num_heads": num_heads, "num_kv_heads": num_kv_heads}
    given |= {"tokens": tokens, "itemsize": itemsize, "n": n}
    sizes = {name: check_count(name, value, least=1) for name, value in given.items()}
    hidden, intermediate, num_heads, num_kv_heads, tokens, itemsize, n = sizes.values()
    check_divides("num_kv_heads", num_kv_heads, "num_heads", num_heads)
    if head_dim is None and hidden % num_heads:
        raise ArgumentError("num_heads", num_heads, f"must divide hidden={hidden}, or head_dim be given")
    head_dim = hidden // num_heads if head_dim is None else check_count("head_dim", head_dim, least=1)
    _check_divides(chosen, sizes, n)

    kv_heads = kv_heads_by_rank(num_heads, num_kv_heads, n) if num_heads % n == 0 else ()
    x, heads = _even(hidden, n), _even(num_heads * head_dim, n, num_heads)
    fused = (num_heads + 2 * num_kv_heads) * head_dim
    qkv = _Width(
        full=fused,
        most=(num_heads // n + 2 * max(kv_heads)) * head_dim if kv_heads else None,
        total=(num_heads + 2 * sum(kv_heads)) * head_dim if kv_heads else None,
    )
    gated, inner = _even(2 * intermediate, n, intermediate), _even(intermediate, n)
    chain = (
        ("qkv", x, qkv),
        ("attention", qkv, heads),
        ("out", heads, x),
        ("add + norm", x, x),
        ("up", x, gated),
        ("activation", gated, inner),
        ("down", inner, x),
        ("add", x, x),
    )
    steps: list[Step] = []
    for name, into, outof in chain:
        steps.append(_step(name, chosen.get(name), into, outof, steps[-1] if steps else None, sizes))
    return BlockPlan(choices=chosen, head_dim=head_dim, steps=tuple(steps), **sizes)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Width:
    """Features of an activation."""

    full: int
    """Features without copies."""
    most: int | None
    """Features on the rank that holds most, when split; None where they cannot be split."""
    total: int | None
    """Features over all ranks when split: more than ``full`` where key-value heads are copied."""

    def on_rank(self, layout: TensorPlacement) -> int:
        if layout != "split":
            return self.full
        assert self.most is not None, "checked before"
        return self.most


def _even(features: int, n: int, units: int | None = None) -> _Width:
    """``features`` that are cut in whole ``units`` (each feature, unless given)."""
    splits = (features if units is None else units) % n == 0
    return _Width(full=features, most=features // n if splits else None, total=features if splits else None)


def _step(
    name: str, choice: Sharding | None, into: _Width, outof: _Width, before: Step | None, sizes: Mapping[str, int]
) -> Step:
    tokens, itemsize, n = sizes["tokens"], sizes["itemsize"], sizes["n"]
    arrives: TensorPlacement = "replicated" if before is None else before.output_layout
    options = {layout: _convert(arrives, layout, into, tokens * itemsize, n) for layout in _TAKES[choice or name]}
    if n == 1:
        options = {"replicated": (None, 0)}
    possible = {layout: found for layout, found in options.items() if found is not None}
    layout = min(possible, key=lambda key: (possible[key][0] is not None, _sent(possible[key], n)))
    conversion, payload = possible[layout]
    output: TensorPlacement = layout if choice is None or n == 1 else _GIVES[choice]
    # One of the two is whole: a matrix is split by its inputs or by its outputs.
    weights = 0 if choice is None else into.on_rank(layout) * outof.on_rank(output)
    return Step(
        name=name,
        choice=choice,
        arrives=arrives,
        conversion=conversion,
        input_layout=layout,
        output_layout=output,
        in_features=into.full,
        out_features=outof.full,
        activation_bytes=tokens * itemsize * outof.on_rank(output),
        payload_bytes=payload,
        sent_bytes=_sent((conversion, payload), n),
        weight_bytes=itemsize * weights,
        flops=2 * tokens * weights,
        why="" if conversion is None else _why(name, choice, conversion, into, before),
    )


_Converted: TypeAlias = tuple[Conversion | None, int]
"""A conversion and its payload in bytes; None, 0 where none is needed."""


def _convert(
    arrives: TensorPlacement, wanted: TensorPlacement, width: _Width, bytes_per_feature: int, n: int
) -> _Converted | None:
    """None where there is no way."""
    if arrives == wanted:
        return None, 0
    if wanted == "split" and width.total is None:
        return None
    conversion = _CONVERSIONS[arrives, wanted]
    if conversion == "slice":
        return conversion, 0
    features = width.total if conversion == "reduce-scatter" and width.total is not None else width.full
    return conversion, features * bytes_per_feature


def _sent(converted: _Converted, n: int) -> float:
    conversion, payload = converted
    return 0.0 if conversion in (None, "slice") else sent_bytes(conversion, "ring", payload, n).sent_mean


_NEEDS = {
    "attention": "the softmax of attention",
    "activation": "the activation function",
    "add + norm": "the residual add before the norm",
    "add": "the residual add",
}


def _why(name: str, choice: Sharding | None, conversion: Conversion, width: _Width, before: Step | None) -> str:
    maker = "" if before is None else before.name
    if conversion == "slice":
        return f"{name} is split by row and takes only its slice of the input, which every rank has: free."
    if conversion == "all-gather":
        if choice is None:
            return f"{maker} is split by column, so each rank has some of the features, but {_NEEDS[name]} needs all."
        asks = "split by column" if choice == "column" else "replicated"
        return f"{maker} left each rank with its own features, but {name} is {asks} and multiplies all of them."
    if conversion == "reduce-scatter":
        by = "head by head" if name == "attention" else "feature by feature"
        return (
            f"{maker} is split by row, so each rank has a partial sum, which {_NEEDS[name]} cannot take; it works "
            f"{by}, so each rank sums only its own, at half the price of an all-reduce."
        )
    partial = f"{maker} is split by row, so each rank has a partial sum"
    if name in ("attention", "activation"):
        units = "heads" if name == "attention" else "features"
        cause = (
            f"the {units} do not divide by the ranks"
            if width.total is None
            else "sums by head cost more with key-value heads copied"
        )
        return f"{partial}, which {_NEEDS[name]} cannot take; {cause}, so every rank gets the whole sum."
    return f"{partial}, but {_NEEDS[name]} needs the whole sum on every rank."


def _checked(choices: Mapping[str, str] | Sequence[str]) -> dict[str, Sharding]:
    offered = f"one of {', '.join(CHOICES)} for each of {', '.join(MATRICES)}"
    if not isinstance(choices, Mapping):
        if isinstance(choices, str) or len(choices) != len(MATRICES):
            raise ValueError(f"choices must be {offered}; got {choices!r}")
        choices = dict(zip(MATRICES, choices, strict=True))
    if set(choices) != set(MATRICES):
        raise ValueError(f"choices must be {offered}; got choices for {', '.join(map(str, choices)) or 'none'}")
    return {name: cast(Sharding, check_one_of(name, choices[name], CHOICES)) for name in MATRICES}


def _check_divides(choices: Mapping[str, Sharding], sizes: Mapping[str, int], n: int) -> None:
    """Every size that a choice splits divides by n."""
    inner = {"qkv": "num_heads", "out": "num_heads", "up": "intermediate", "down": "intermediate"}
    for name, choice in choices.items():
        what = inner[name] if CANONICAL[name] == choice else "hidden"  # the other choice cuts the side of the residual
        if choice == "replicated" or sizes[what] % n == 0:
            continue
        fitting = [ranks for ranks in range(1, min(sizes[what], 2 * n) + 1) if sizes[what] % ranks == 0]
        raise ValueError(
            f"{what}={sizes[what]} does not divide by n={n} ranks (remainder {sizes[what] % n}), and {name} split by "
            f"{choice} needs it: use n={', '.join(map(str, fitting))}, or make {name} replicated"
        )


say_new_names(__name__)
