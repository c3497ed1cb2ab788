"""The int8 strategy: not exact, by no more than its bound; the same bits everywhere; gradients as if it were exact."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tplab import Cluster
from tplab.collectives.quantised import error_bound
from tplab.collectives.transport import split_evenly
from tplab.layers.block import ParallelBlock, ParallelMLP, run_blocks
from tplab.layers.core_attention import RotaryEmbedding
from tplab.layers.linear import RowParallelLinear
from tplab.layers.plain import MLP, Attention, Block
from tplab.layers.strategies import Blocking, Int8, set_strategy

HIDDEN = 96


@pytest.fixture(params=[2, 3, 4], ids=lambda n: f"n={n}")
def several(request: pytest.FixtureRequest, clusters: dict[int, Cluster]) -> Cluster:
    return clusters[request.param]


def rms_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


def row(rank: Any, shape: tuple[int, int], scale_group: int, dtype: torch.dtype) -> tuple[bool, bool, float]:
    """Whether every element is within the bound, whether some are not exact, and the RMS error."""
    torch.manual_seed(0)
    plain = nn.Linear(HIDDEN, 60, bias=False, dtype=dtype)
    x = torch.randn(*shape, HIDDEN, dtype=dtype)
    each = HIDDEN // rank.world_size
    mine = x[..., rank.index * each : (rank.index + 1) * each]
    layer = RowParallelLinear.from_module(plain, rank.group, strategy=Int8(scale_group))
    with torch.no_grad():
        got = layer(mine).double().flatten()
        partial = nn.functional.linear(mine, layer.weight).flatten()
    partials = [torch.empty_like(partial) for _ in range(rank.world_size)]
    dist.all_gather(partials, partial, group=rank.group)
    exact = torch.stack(partials).double().sum(0)
    inside = True
    for owner, (start, end) in enumerate(split_evenly(exact.numel(), rank.world_size)):
        bound = error_bound([part[start:end] for part in partials], owner, scale_group, dtype=dtype)
        inside = inside and bool(((got - exact)[start:end].abs() <= bound).all())
    return inside, not torch.equal(got, exact), rms_error(got, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale_group", [7, 64, 100_000])
@pytest.mark.parametrize("shape", [(1, 1), (3, 17)], ids=str)
def test_no_element_is_off_by_more_than_the_bound(
    several: Cluster, shape: tuple[int, int], scale_group: int, dtype: torch.dtype
) -> None:
    for inside, inexact, error in several.run(row, shape, scale_group, dtype):
        assert inside
        assert inexact
        assert error < 0.02


def make_block(seed: int = 0) -> Block:
    torch.manual_seed(seed)
    return Block(Attention(HIDDEN, 12, 4, rope=RotaryEmbedding(8)), MLP(HIDDEN, 132))


def stack(rank: Any) -> tuple[float, bool, bytes]:
    plains = [make_block(seed) for seed in range(2)]
    blocks = [ParallelBlock.from_module(plain, rank.group, strategy=Int8()) for plain in plains]
    x = torch.randn(3, 17, HIDDEN, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = plains[1](plains[0](x))
        got, again = run_blocks(blocks, x), run_blocks(blocks, x)
    return rms_error(got, want), torch.equal(got, again), got.numpy().tobytes()


def test_a_stack_is_two_percent_off_at_most_and_has_the_same_bits_everywhere(several: Cluster) -> None:
    outcomes = several.run(stack)
    for error, repeats, _ in outcomes:
        assert 1e-5 < error < 0.02
        assert repeats
    assert len({bits for *_, bits in outcomes}) == 1


def finer(rank: Any) -> list[float]:
    """Errors by elements per scale."""
    plain = make_block()
    x = 10 ** torch.randn(3, 17, HIDDEN, generator=torch.Generator().manual_seed(1))
    errors = []
    with torch.no_grad():
        want = plain(x)
        for scale_group in (8, 64, 4096):
            block = ParallelBlock.from_module(plain, rank.group, strategy=Int8(scale_group))
            errors.append(rms_error(block(x) - x, want - x))
    return errors


def test_finer_scales_are_nearer(several: Cluster) -> None:
    for errors in several.run(finer):
        assert errors == sorted(errors)
        assert errors[0] < errors[-1] / 2


def gradients(rank: Any) -> dict[str, float]:
    """Of a linear loss, whose gradient at the output does not depend on the output."""
    torch.manual_seed(0)
    plain = MLP(HIDDEN, 132).double()
    x = torch.randn(3, 17, HIDDEN, dtype=torch.float64)
    weights = torch.randn(3, 17, HIDDEN, dtype=torch.float64)
    found = []
    for strategy in (Blocking(), Int8()):
        layer = ParallelMLP.from_module(plain, rank.group, strategy=strategy)
        mine = x.clone().requires_grad_()
        (layer(mine) * weights).sum().backward()
        found.append({"x": mine.grad} | {name: p.grad for name, p in layer.named_parameters()})
    return {name: float((found[0][name] - found[1][name]).abs().max()) for name in found[0]}


def test_gradients_pass_as_if_the_sum_were_exact(several: Cluster) -> None:
    for errors in several.run(gradients):
        assert set(errors) == {"x", "gate_up.weight", "down.weight"}
        assert max(errors.values()) == 0.0


def train(rank: Any, strategy: Blocking, steps: int = 30) -> list[float]:
    plain = make_block()
    block = ParallelBlock.from_module(plain, rank.group)
    set_strategy(block, strategy)
    generator = torch.Generator().manual_seed(1)
    x, target = (torch.randn(2, 9, HIDDEN, generator=generator) for _ in range(2))
    optimizer = torch.optim.Adam(block.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = (block(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_training_through_it_falls_as_exact_training_does(clusters: dict[int, Cluster]) -> None:
    exact, other = (clusters[2].run(train, strategy)[0] for strategy in (Blocking(), Int8()))
    assert exact[-1] < exact[0] / 2
    assert other[-1] < other[0] / 2
    assert other != exact
    assert other == pytest.approx(exact, rel=0.02)


def alone(rank: Any) -> float:
    plain = make_block()
    x = torch.randn(1, 5, HIDDEN)
    with torch.no_grad():
        return rms_error(ParallelBlock.from_module(plain, rank.group, strategy=Int8())(x), plain(x))


def test_a_rank_alone_quantises_nothing(clusters: dict[int, Cluster]) -> None:
    assert clusters[1].run(alone)[0] < 1e-6
