"""Parallel layers equal the plain ones they were made from: forward, input gradient, every parameter's gradient.

In float64, where only rounding in another order can differ: 1e-11 of the largest element. What is bitwise is compared
so. One test for all strategies.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tplab import Cluster
from tplab.cluster import RankError
from tplab.layers.attention import ParallelAttention
from tplab.layers.block import ParallelBlock, ParallelMLP, run_blocks
from tplab.layers.comm import as_comm
from tplab.layers.core_attention import RotaryEmbedding
from tplab.layers.linear import ColumnParallelLinear, RowParallelLinear
from tplab.layers.plain import MLP, Attention, Block
from tplab.layers.regions import gather_tokens, scatter_tokens
from tplab.layers.strategies import BatchSplit, Blocking, Chunked, Int8, SequenceParallel, set_strategy
from tplab.layers.vocabulary import ParallelLMHead, VocabParallelEmbedding, gather_logits, parallel_cross_entropy

TOLERANCE = 1e-11
HIDDEN = 96
SHAPES = [(1, 1), (1, 17), (3, 1), (3, 17)]
HEADS = [(8, 8), (8, 2), (8, 1), (6, 2), (12, 4), (12, 3)]
STRATEGIES = [
    Blocking(),
    Chunked(1),
    Chunked(3),
    BatchSplit(2),
    BatchSplit(3, by="sequence"),
    BatchSplit(3, by="batch"),
    SequenceParallel(),
]


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference, in units of the largest wanted element."""
    if got.shape != want.shape:
        return float("inf")
    return float((got - want).detach().abs().max() / want.abs().max().clamp_min(1e-30)) if want.numel() else 0.0


def compare(
    plain: nn.Module,
    parallel: nn.Module,
    x: torch.Tensor,
    run: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    take: Callable[[torch.Tensor], torch.Tensor] = lambda y: y,
) -> dict[str, float]:
    """How far the parallel module is off: its output, the input's gradient, and each parameter's."""
    x_plain, x_parallel = (x.clone().requires_grad_() if x.is_floating_point() else x for _ in range(2))
    want = plain(x_plain)
    got = run(parallel, x_parallel)
    errors = {"forward": off(got, take(want))}
    weights = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    (want * weights).sum().backward()
    (got * take(weights)).sum().backward()
    if x.is_floating_point():
        errors["input gradient"] = off(x_parallel.grad, x_plain.grad)
    full = dict(plain.named_parameters())
    parameters = dict(parallel.named_parameters())
    assert set(parallel.plan) == set(parameters)
    for name, shards in parallel.plan.items():
        wanted = torch.cat([shard.take(full[shard.source].grad) for shard in shards])
        errors[name] = off(parameters[name].grad, wanted)
    with torch.no_grad():
        errors["no grad"] = off(run(parallel, x), take(want))
    with torch.inference_mode():
        errors["inference"] = off(run(parallel, x), take(want))
    return errors


def too_far(outcomes: list[dict[str, float]]) -> dict[str, float]:
    return {f"rank {r}: {k}": v for r, errors in enumerate(outcomes) for k, v in errors.items() if not v < TOLERANCE}


def seeded(batch: int, seq: int, width: int = HIDDEN) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(batch, seq, width, dtype=torch.float64)


def column(rank: Any, shape: tuple[int, int], bias: bool, gather: bool) -> dict[str, float]:
    x = seeded(*shape)
    plain = nn.Linear(HIDDEN, 60, bias=bias).double()
    parallel = ColumnParallelLinear.from_module(plain, rank.group, gather_output=gather)
    each = 60 // rank.world_size

    def take(y: torch.Tensor) -> torch.Tensor:
        return y if gather else y[..., rank.index * each : (rank.index + 1) * each]

    return compare(plain, parallel, x, lambda layer, x: layer(x), take)


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_column(ranks: Cluster, shape: tuple[int, int], bias: bool, gather: bool) -> None:
    assert too_far(ranks.run(column, shape, bias, gather)) == {}


def row(rank: Any, shape: tuple[int, int], bias: bool, strategy: Blocking) -> dict[str, float]:
    x = seeded(*shape)
    plain = nn.Linear(HIDDEN, 60, bias=bias).double()
    parallel = RowParallelLinear.from_module(plain, rank.group, input_is_parallel=False, strategy=strategy)
    return compare(plain, parallel, x, lambda layer, x: layer(x))


@pytest.mark.parametrize("strategy", [Blocking(), Chunked(1), Chunked(3)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (3, 17)])
def test_row(ranks: Cluster, shape: tuple[int, int], bias: bool, strategy: Blocking) -> None:
    assert too_far(ranks.run(row, shape, bias, strategy)) == {}


def test_one_token_without_further_dimensions() -> None:
    """``nn.Linear`` takes (I,) too."""
    torch.manual_seed(0)
    plain = nn.Linear(HIDDEN, 60).double()
    for parallel in (ColumnParallelLinear.from_module(plain, None), RowParallelLinear.from_module(plain, None)):
        x = torch.randn(HIDDEN, dtype=torch.float64)
        errors = compare(plain, parallel, x, lambda layer, x: layer(x))
        plain.zero_grad()
        assert too_far([errors]) == {}


def mlp(rank: Any, shape: tuple[int, int], activation: str, bias: bool) -> dict[str, float]:
    x = seeded(*shape)
    plain = MLP(HIDDEN, 132, activation=activation, bias=bias).double()
    return compare(plain, ParallelMLP.from_module(plain, rank.group), x, lambda layer, x: layer(x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["swiglu", "geglu", "gelu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_mlp(ranks: Cluster, shape: tuple[int, int], activation: str, bias: bool) -> None:
    assert too_far(ranks.run(mlp, shape, activation, bias)) == {}


def attention(rank: Any, shape: tuple[int, int], heads: tuple[int, int], options: dict[str, Any]) -> dict[str, float]:
    x = seeded(*shape)
    options = dict(options)
    if options.pop("rope", False):
        options["rope"] = RotaryEmbedding(options["head_dim"])
    plain = Attention(HIDDEN, *heads, **options).double()
    return compare(plain, ParallelAttention.from_module(plain, rank.group), x, lambda layer, x: layer(x))


@pytest.mark.parametrize(
    "options",
    [
        {"head_dim": 8},
        {"head_dim": 10, "rope": True, "bias": True, "out_bias": True},
        {"head_dim": 8, "rope": True, "qk_norm": True, "sliding_window": 5},
        {"head_dim": 8, "causal": False},
    ],
    ids=["bare", "rope, bias", "qk norm, window", "not causal"],
)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17)])
def test_attention(ranks: Cluster, shape: tuple[int, int], heads: tuple[int, int], options: dict[str, Any]) -> None:
    if heads[0] % ranks.num_ranks:
        with pytest.raises(RankError, match=rf"num_heads={heads[0]} does not divide over {ranks.num_ranks} ranks"):
            ranks.run(attention, shape, heads, options)
    else:
        assert too_far(ranks.run(attention, shape, heads, options)) == {}


def make_block(heads: tuple[int, int], seed: int = 1) -> Block:
    torch.manual_seed(seed)
    block = Block(Attention(HIDDEN, *heads, head_dim=8, rope=RotaryEmbedding(8)), MLP(HIDDEN, 132)).double()
    for norm in (block.input_layernorm, block.post_attention_layernorm):
        nn.init.normal_(norm.weight)
    return block


def stack(
    rank: Any, shape: tuple[int, int], heads: tuple[int, int], strategy: Blocking, depth: int
) -> dict[str, float]:
    x = seeded(*shape)
    plains = nn.Sequential(*[make_block(heads, seed) for seed in range(depth)])
    parallels = nn.ModuleList([ParallelBlock.from_module(plain, rank.group) for plain in plains])
    set_strategy(parallels, strategy)
    parallels.plan = {
        f"{i}.{name}": tuple(
            type(s)(source=f"{i}.{s.source}", dim=s.dim, start=s.start, end=s.end, padding=s.padding) for s in shards
        )
        for i, block in enumerate(parallels)
        for name, shards in block.plan.items()
    }
    return compare(plains, parallels, x, run_blocks)


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("heads", [(12, 12), (12, 2)], ids=str)
@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (3, 17)])
def test_stack_with_every_strategy(
    ranks: Cluster, shape: tuple[int, int], heads: tuple[int, int], strategy: Blocking
) -> None:
    assert too_far(ranks.run(stack, shape, heads, strategy, 2)) == {}


def one_block(rank: Any, strategy: Blocking) -> float:
    plain = make_block((12, 2))
    block = ParallelBlock.from_module(plain, rank.group, strategy=strategy)
    x = seeded(3, 17)
    want = plain(x)
    if not strategy.sequence_parallel:
        return off(block(x), want)
    comm = as_comm(rank.group)
    return off(gather_tokens(block(scatter_tokens(x, comm), shape=(3, 17)), comm, (3, 17)), want)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_one_block_by_its_forward(ranks: Cluster, strategy: Blocking) -> None:
    assert max(ranks.run(one_block, strategy)) < TOLERANCE


def embedding(rank: Any, vocab: int, strategy: Blocking) -> tuple[bool, bool, dict[str, float]]:
    torch.manual_seed(0)
    plain = nn.Embedding(vocab, HIDDEN).double()
    parallel = VocabParallelEmbedding.from_module(plain, rank.group, strategy=strategy)
    ids = torch.randint(0, vocab, (3, 17))
    ids[0, 0], ids[-1, -1] = 0, vocab - 1
    comm = as_comm(rank.group)

    def run(layer: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        y = layer(ids)
        return gather_tokens(y, comm, (3, 17)) if strategy.sequence_parallel else y

    bitwise = torch.equal(run(parallel, ids), plain(ids))
    errors = compare(plain, parallel, ids, run)
    padding = parallel.weight[parallel.weight.shape[0] - parallel.vocab.padding :]
    return bitwise, not bool(padding.any()), errors


@pytest.mark.parametrize("strategy", [Blocking(), SequenceParallel(), Int8()], ids=str)
@pytest.mark.parametrize("vocab", [101, 100, 3, 1])
def test_embedding_is_bitwise(ranks: Cluster, vocab: int, strategy: Blocking) -> None:
    outcomes = ranks.run(embedding, vocab, strategy)
    assert all(bitwise and zeros for bitwise, zeros, _ in outcomes)
    assert too_far([errors for _, _, errors in outcomes]) == {}


def head(rank: Any, vocab: int, bias: bool, strategy: Blocking) -> dict[str, float]:
    x = seeded(3, 17)
    plain = nn.Linear(HIDDEN, vocab, bias=bias).double()
    parallel = ParallelLMHead.from_module(plain, rank.group, strategy=strategy)
    comm = as_comm(rank.group)

    def run(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if not strategy.sequence_parallel:
            return gather_logits(layer(x), layer.vocab, rank.group)
        logits = gather_logits(layer(scatter_tokens(x, comm)), layer.vocab, rank.group)
        return logits[: 3 * 17].view(3, 17, -1)

    return compare(plain, parallel, x, run)


@pytest.mark.parametrize("strategy", [Blocking(), SequenceParallel()], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("vocab", [101, 3, 1])
def test_head(ranks: Cluster, vocab: int, bias: bool, strategy: Blocking) -> None:
    assert too_far(ranks.run(head, vocab, bias, strategy)) == {}


def cross_entropy(rank: Any, vocab: int, reduction: str) -> dict[str, float]:
    torch.manual_seed(0)
    full = 4 * torch.randn(23, vocab)
    targets = torch.randint(0, vocab, (23,))
    targets[5] = -100
    plain = nn.Linear(1, vocab)
    shard = ParallelLMHead.from_module(plain, rank.group).vocab
    want_logits = full.clone().requires_grad_()
    want = F.cross_entropy(want_logits, targets, reduction=reduction)
    mine = F.pad(full[:, shard.start : shard.end], (0, shard.padding)).requires_grad_()
    got = parallel_cross_entropy(mine, targets, shard, rank.group, reduction=reduction)
    want.sum().backward()
    got.sum().backward()
    gradient = F.pad(want_logits.grad[:, shard.start : shard.end], (0, shard.padding))
    # float32: a sum of `vocab` exponentials, rounded in another order.
    return {"loss": off(got, want) / 1e5, "gradient": float((mine.grad - gradient).abs().max()) / 1e5}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("vocab", [101, 3, 1])
def test_cross_entropy(ranks: Cluster, vocab: int, reduction: str) -> None:
    assert too_far(ranks.run(cross_entropy, vocab, reduction)) == {}
