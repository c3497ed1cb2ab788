"""The same numbers as torch's own tensor parallelism: DTensor's ColwiseParallel and RowwiseParallel."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tplab import Cluster
from tplab.layers.attention import ParallelAttention
from tplab.layers.block import ParallelMLP
from tplab.layers.core_attention import RotaryEmbedding
from tplab.layers.plain import MLP, Attention

TOLERANCE = 1e-12
HIDDEN = 96
MLP_PLAN = {"gate_proj": ColwiseParallel(), "up_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
ATTENTION_PLAN = {f"{name}_proj": ColwiseParallel() for name in "qkv"} | {"o_proj": RowwiseParallel()}


@pytest.fixture(params=[2, 4], ids=lambda n: f"n={n}")
def pair(request: pytest.FixtureRequest, clusters: dict[int, Cluster]) -> Cluster:
    return clusters[request.param]


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max()) if got.shape == want.shape else float("inf")


def beside(dtensor: nn.Module, ours: Any, shape: tuple[int, int]) -> tuple[dict[str, float], dict[str, int]]:
    """How far ours is off, and how many calls each made in its forward."""
    torch.manual_seed(3)
    x = torch.randn(*shape, HIDDEN, dtype=torch.float64)
    outputs, gradients, calls = [], [], {}
    for name, module in (("DTensor", dtensor), ("tplab", ours)):
        mine = x.clone().requires_grad_()
        with CommDebugMode() as counter:
            y = module(mine)
        calls[name] = counter.get_total_counts()
        y.backward(torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))
        outputs.append(y.detach())
        gradients.append(mine.grad)
    errors = {"forward": off(outputs[1], outputs[0]), "input gradient": off(gradients[1], gradients[0])}
    full = {}
    for name, parameter in dtensor.named_parameters():
        assert isinstance(parameter.grad, DTensor)
        full[name] = parameter.grad.full_tensor()
    for name, shards in ours.plan.items():
        wanted = torch.cat([shard.take(full[shard.source]) for shard in shards])
        errors[name] = off(ours.get_parameter(name).grad, wanted)
    return errors, calls


def mlp(rank: Any, shape: tuple[int, int], activation: str, bias: bool) -> tuple[dict[str, float], dict[str, int]]:
    torch.manual_seed(1)
    plain = MLP(HIDDEN, 132, activation=activation, bias=bias).double()
    plan = {name: style for name, style in MLP_PLAN.items() if hasattr(plain, name)}
    dtensor = parallelize_module(copy.deepcopy(plain), rank.mesh()["tp"], plan)
    return beside(dtensor, ParallelMLP.from_module(plain, rank.group), shape)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 17)], ids=str)
def test_mlp(pair: Cluster, shape: tuple[int, int], activation: str, bias: bool) -> None:
    for errors, calls in pair.run(mlp, shape, activation, bias):
        assert {name: error for name, error in errors.items() if not error < TOLERANCE} == {}
        assert calls == {"DTensor": 1, "tplab": 1}


def attention(
    rank: Any, shape: tuple[int, int], heads: tuple[int, int], options: dict[str, bool]
) -> tuple[dict[str, float], dict[str, int]]:
    torch.manual_seed(1)
    plain = Attention(HIDDEN, *heads, rope=RotaryEmbedding(HIDDEN // heads[0]), **options).double()
    dtensor = copy.deepcopy(plain)
    # As in torch's tutorial: what the projections give are local heads.
    dtensor.num_heads //= rank.world_size
    dtensor.num_kv_heads //= rank.world_size
    dtensor = parallelize_module(dtensor, rank.mesh()["tp"], ATTENTION_PLAN)
    return beside(dtensor, ParallelAttention.from_module(plain, rank.group), shape)


@pytest.mark.parametrize("options", [{}, {"bias": True, "out_bias": True}], ids=["bare", "bias"])
@pytest.mark.parametrize("heads", [(8, 8), (8, 4), (12, 4)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17)], ids=str)
def test_attention(pair: Cluster, shape: tuple[int, int], heads: tuple[int, int], options: dict[str, bool]) -> None:
    for errors, calls in pair.run(attention, shape, heads, options):
        assert {name: error for name, error in errors.items() if not error < TOLERANCE} == {}
        assert calls == {"DTensor": 1, "tplab": 1}
