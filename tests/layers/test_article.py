"""The article's two layers: its signatures, positionally, and the results that its code should have had.

Weights are compared bitwise (each rank holds a slice of the full layer's), results allclose in float64: a matmul of
another width may round in another order. 1e-12 of the largest element.
"""

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import nn

from tplab import Cluster
from tplab.cluster import RankError
from tplab.layers import TensorParallelAttention, TensorParallelLinear
from tplab.layers.plain import Attention

TOLERANCE = 1e-12


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference, in units of the largest wanted element."""
    if got.shape != want.shape:
        return float("inf")
    return float((got - want).abs().max() / want.abs().max())


def x_of(width: int) -> torch.Tensor:
    return torch.randn(3, 5, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def positional(layer: type) -> list[str]:
    parameters = inspect.signature(layer).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def test_signatures_are_the_articles() -> None:
    assert positional(TensorParallelLinear) == [
        "in_features",
        "out_features",
        "tp_rank",
        "tp_world_size",
        "gather_output",
    ]
    assert inspect.signature(TensorParallelLinear).parameters["gather_output"].default is True
    assert positional(TensorParallelAttention) == ["hidden_size", "num_heads", "tp_rank", "tp_world_size"]


def linear(rank: Any, gather: bool, bias: bool) -> dict[str, float]:
    n, r = rank.world_size, rank.index
    torch.manual_seed(3)
    plain = nn.Linear(10, 60, bias=bias, dtype=torch.float64)
    torch.manual_seed(3)
    layer = TensorParallelLinear(10, 60, r, n, gather, bias=bias, dtype=torch.float64)
    mine = slice(r * 60 // n, (r + 1) * 60 // n)
    assert tuple(layer.weight.shape) == (60 // n, 10)
    assert torch.equal(layer.weight, plain.weight[mine])
    x_plain, x = x_of(10).requires_grad_(), x_of(10).requires_grad_()
    want, got = plain(x_plain), layer(x)
    errors = {"forward": off(got, want if gather else want[..., mine])}
    weights = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (want * weights).sum().backward()
    (got * (weights if gather else weights[..., mine])).sum().backward()
    errors["input gradient"] = off(x.grad, x_plain.grad)
    errors["weight gradient"] = off(layer.weight.grad, plain.weight.grad[mine])
    if bias:
        assert torch.equal(layer.bias, plain.bias[mine])
        errors["bias gradient"] = off(layer.bias.grad, plain.bias.grad[mine])
    return errors


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gather", [True, False])
def test_linear(ranks: Cluster, gather: bool, bias: bool) -> None:
    for errors in ranks.run(linear, gather, bias):
        assert max(errors.values()) < TOLERANCE, errors


def gathers_by_default(rank: Any) -> tuple[torch.Size, bool, bool]:
    torch.manual_seed(0)
    plain = nn.Linear(7, 24)
    torch.manual_seed(0)
    layer = TensorParallelLinear(7, 24, rank.index, rank.world_size)
    x = torch.ones(2, 7)
    return layer(x).shape, torch.allclose(layer(x), plain(x), atol=1e-6), layer.bias is not None


def test_linear_with_the_articles_four_arguments(ranks: Cluster) -> None:
    assert ranks.run(gathers_by_default) == [(torch.Size([2, 24]), True, True)] * ranks.num_ranks


def attention(rank: Any, num_kv_heads: int | None, causal: bool) -> dict[str, float]:
    torch.manual_seed(3)
    plain = Attention(48, 12, num_kv_heads, causal=causal, dtype=torch.float64)
    how: dict[str, Any] = {} if num_kv_heads is None else {"num_kv_heads": num_kv_heads}
    torch.manual_seed(3)
    layer = TensorParallelAttention(48, 12, rank.index, rank.world_size, causal=causal, dtype=torch.float64, **how)
    x_plain, x = x_of(48).requires_grad_(), x_of(48).requires_grad_()
    want, got = plain(x_plain), layer(x)
    weights = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (want * weights).sum().backward()
    (got * weights).sum().backward()
    errors = {"forward": off(got, want), "input gradient": off(x.grad, x_plain.grad)}
    full = dict(plain.named_parameters())
    for name, parameter in layer.named_parameters():
        shards = layer.plan[name]
        assert torch.equal(parameter, torch.cat([shard.take(full[shard.source]) for shard in shards]))
        errors[name] = off(parameter.grad, torch.cat([shard.take(full[shard.source].grad) for shard in shards]))
    with torch.no_grad():
        cache = layer.make_cache(3, 5)
        steps = torch.cat([layer(part, cache=cache) for part in x.split([3, 1, 1], dim=1)], dim=1)
    if causal:
        errors["decoded"] = off(steps, want)
    return errors


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("num_kv_heads", [None, 12, 2, 1])
def test_attention(ranks: Cluster, num_kv_heads: int | None, causal: bool) -> None:
    for errors in ranks.run(attention, num_kv_heads, causal):
        assert max(errors.values()) < 1e-11, errors


def by_hand(rank: Any) -> float:
    """Against the formula written out, and not our own plain module: causal by default, heads attended one by one."""
    torch.manual_seed(5)
    plain = Attention(24, 12, dtype=torch.float64)
    torch.manual_seed(5)
    layer = TensorParallelAttention(24, 12, rank.index, rank.world_size, dtype=torch.float64)
    x = x_of(24)
    heads = []
    for head in range(12):
        rows = slice(2 * head, 2 * head + 2)
        q, k, v = (x @ proj.weight[rows].T for proj in (plain.q_proj, plain.k_proj, plain.v_proj))
        scores = (q @ k.transpose(1, 2)) / 2**0.5
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ v)
    return off(layer(x), torch.cat(heads, dim=-1) @ plain.o_proj.weight.T)


def test_attention_is_the_formula(ranks: Cluster) -> None:
    assert max(ranks.run(by_hand)) < TOLERANCE


def in_subgroups(rank: Any) -> list[float]:
    """Two tensor-parallel pairs, each with the rank's place in its pair; neighbours, then every other rank."""
    errors = []
    mesh = rank.mesh(tp=2, pp=2)
    for axis in ("tp", "pp"):
        group, index = mesh[axis].get_group(), mesh.get_local_rank(axis)
        torch.manual_seed(4)
        plain = nn.Linear(6, 8, dtype=torch.float64)
        torch.manual_seed(4)
        layer = TensorParallelLinear(6, 8, index, 2, group=group, dtype=torch.float64)
        # Each pair has an input of its own: a sum or gather over all four would mix them.
        x = x_of(6) * (1 + mesh.get_local_rank("pp" if axis == "tp" else "tp"))
        errors.append(off(layer(x), plain(x)))
        torch.manual_seed(4)
        plain_attention = Attention(12, 4, dtype=torch.float64)
        torch.manual_seed(4)
        attention = TensorParallelAttention(12, 4, index, 2, group=group, dtype=torch.float64)
        x = x_of(12) * (1 + mesh.get_local_rank("pp" if axis == "tp" else "tp"))
        errors.append(off(attention(x), plain_attention(x)))
    return errors


def test_groups_within_the_ranks(clusters: dict[int, Cluster]) -> None:
    for errors in clusters[4].run(in_subgroups):
        assert max(errors) < TOLERANCE


def alone_among_others(rank: Any) -> bool:
    torch.manual_seed(rank.index)
    layer = TensorParallelLinear(6, 8, 0, 1, dtype=torch.float64)
    torch.manual_seed(rank.index)
    plain = nn.Linear(6, 8, dtype=torch.float64)
    return torch.equal(layer(x_of(6)), plain(x_of(6)))


def test_a_world_of_one_needs_no_group_even_where_there_is_one(clusters: dict[int, Cluster]) -> None:
    assert all(clusters[3].run(alone_among_others))


def test_a_world_of_one_needs_no_process_group() -> None:
    torch.manual_seed(0)
    layer = TensorParallelAttention(12, 4, 0, 1, dtype=torch.float64)
    torch.manual_seed(0)
    plain = Attention(12, 4, dtype=torch.float64)
    assert off(layer(x_of(12)), plain(x_of(12))) < TOLERANCE
    assert off(copy.deepcopy(layer)(x_of(12)), plain(x_of(12))) < TOLERANCE


@pytest.mark.parametrize("make", [TensorParallelLinear, TensorParallelAttention])
def test_several_ranks_without_a_process_group(make: Any) -> None:
    with pytest.raises(ValueError, match=r"tp_world_size=2 needs a process group: .*init_process_group"):
        make(8, 4, 0, 2)


@pytest.mark.parametrize("make", [TensorParallelLinear, TensorParallelAttention])
@pytest.mark.parametrize(("tp_rank", "tp_world_size"), [(-1, 2), (2, 2), (5, 4), (0, 0), (0, -1), (1, 1)])
def test_ranks_that_cannot_be(make: Any, tp_rank: int, tp_world_size: int) -> None:
    with pytest.raises(ValueError, match=rf"got tp_rank={tp_rank} of {tp_world_size}"):
        make(8, 4, tp_rank, tp_world_size)


def build(rank: Any, name: str, size: int, place: tuple[int, int]) -> None:
    made = {"linear": TensorParallelLinear, "attention": TensorParallelAttention}[name]
    index, n = place[0] + rank.index, place[1] + rank.world_size
    made(12 * 7 * 5, size, index % n, n)


@pytest.mark.parametrize("name", ["linear", "attention"])
@pytest.mark.parametrize("place", [(1, 0), (0, 1)], ids=["another rank", "another world size"])
def test_ranks_that_are_not_the_groups(clusters: dict[int, Cluster], name: str, place: tuple[int, int]) -> None:
    with pytest.raises(RankError, match=r"tp_rank=\d of tp_world_size=\d is not this rank's place in the group, \d of"):
        clusters[3].run(build, name, 12, place)


def test_sizes_that_do_not_divide(clusters: dict[int, Cluster]) -> None:
    with pytest.raises(RankError, match=r"out_features=14 does not divide over 4 ranks .*: use 1, 2, 7, 14 ranks"):
        clusters[4].run(build, "linear", 14, (0, 0))
    with pytest.raises(RankError, match=r"num_heads=14 does not divide over 4 ranks .*or num_heads=12 or 16"):
        clusters[4].run(build, "attention", 14, (0, 0))
