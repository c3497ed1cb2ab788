"""Layers over emulated links: the same numbers as the plain modules, whatever the strategy; collectives in order."""

from typing import Any

import pytest
import torch
from torch import nn

from tplab import Cluster
from tplab.cluster import RankError
from tplab.collectives.emulated import EmulatedGroup
from tplab.collectives.emulated_link import EmulatedLink
from tplab.layers.attention import ParallelAttention
from tplab.layers.block import ParallelBlock, ParallelMLP, run_blocks
from tplab.layers.comm import Comm, as_comm
from tplab.layers.core_attention import RotaryEmbedding
from tplab.layers.emulated_comm import EmulatedComm
from tplab.layers.overlap import linked_comm
from tplab.layers.plain import MLP, Attention, Block
from tplab.layers.strategies import BatchSplit, Blocking, Chunked, Int8, SequenceParallel, set_strategy
from tplab.layers.vocabulary import ParallelLMHead, parallel_argmax

HIDDEN = 48
TOLERANCE = 1e-11
FAST = EmulatedLink(latency_us=5, bandwidth_GBps=50)


@pytest.fixture(params=[2, 3, 4], ids=lambda n: f"n={n}")
def several(request: pytest.FixtureRequest, clusters: dict[int, Cluster]) -> Cluster:
    return clusters[request.param]


def emulated(rank: Any) -> Comm:
    comm = linked_comm(rank, FAST)
    assert isinstance(comm, EmulatedComm)
    return comm


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max()) if got.shape == want.shape else float("inf")


def make_block(seed: int = 0) -> Block:
    torch.manual_seed(seed)
    return Block(Attention(HIDDEN, 12, 2, rope=RotaryEmbedding(4)), MLP(HIDDEN, 132)).double()


def stack(rank: Any, strategy: Blocking, shape: tuple[int, int], grad: bool) -> dict[str, float]:
    plains = nn.Sequential(*[make_block(seed) for seed in range(2)])
    comm = emulated(rank)
    parallels = [ParallelBlock.from_module(plain, comm, strategy=strategy) for plain in plains]
    assert all(block.mlp.down.comm is comm for block in parallels)
    x = torch.randn(*shape, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if not grad:
        with torch.inference_mode():
            return {"forward": off(run_blocks(parallels, x), plains(x))}
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [plains(inputs[0]), run_blocks(parallels, inputs[1])]
    errors = {"forward": off(outputs[1], outputs[0])}
    for y in outputs:
        y.square().sum().backward()
    errors["input gradient"] = off(inputs[1].grad, inputs[0].grad)
    for index, (plain, parallel) in enumerate(zip(plains, parallels, strict=True)):
        full = dict(plain.named_parameters())
        for name, shards in parallel.plan.items():
            wanted = torch.cat([shard.take(full[shard.source].grad) for shard in shards])
            errors[f"{index}.{name}"] = off(parallel.get_parameter(name).grad, wanted)
    return errors


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("shape", [(1, 3), (3, 17)], ids=str)
@pytest.mark.parametrize(
    "strategy",
    [Blocking(), Chunked(1), Chunked(3), BatchSplit(2), BatchSplit(3, by="sequence"), SequenceParallel()],
    ids=str,
)
def test_every_strategy_equals_the_plain_stack(
    several: Cluster, strategy: Blocking, shape: tuple[int, int], grad: bool
) -> None:
    for errors in several.run(stack, strategy, shape, grad):
        assert {name: error for name, error in errors.items() if not error < TOLERANCE} == {}


def int8(rank: Any) -> tuple[float, bytes]:
    plain = make_block()
    x = torch.randn(3, 17, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    block = ParallelBlock.from_module(plain, emulated(rank), strategy=Int8())
    with torch.no_grad():
        got, want = block(x), plain(x)
    return float((got - want).norm() / want.norm()), got.numpy().tobytes()


def test_int8_goes_over_the_link_too(several: Cluster) -> None:
    outcomes = several.run(int8)
    assert all(1e-5 < error < 0.02 for error, _ in outcomes)
    assert len({bits for _, bits in outcomes}) == 1


def int8_beside_others(rank: Any) -> list[float]:
    """The MLP of one part of the batch, while the attention of the other is being summed."""
    comm = EmulatedComm(EmulatedGroup(rank.group, EmulatedLink(latency_us=500, bandwidth_GBps=0.1)))
    plain = make_block()
    block = ParallelBlock.from_module(plain, comm, strategy=BatchSplit(2))
    set_strategy(block.mlp, Int8())
    x = torch.randn(4, 17, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = plain(x)
        return [off(block(x), want) for _ in range(3)]


def test_int8_waits_for_what_is_on_the_links(several: Cluster) -> None:
    for errors in several.run(int8_beside_others, timeout=30):
        assert max(errors) < 0.05


def layers(rank: Any) -> dict[str, float]:
    comm = emulated(rank)
    torch.manual_seed(0)
    x = torch.randn(2, 5, HIDDEN, dtype=torch.float64)
    mlp, attention = (
        MLP(HIDDEN, 132, activation="gelu", bias=True).double(),
        Attention(HIDDEN, 12, out_bias=True).double(),
    )
    head = nn.Linear(HIDDEN, 101).double()
    with torch.no_grad():
        shard = ParallelLMHead.from_module(head, comm)
        picked = parallel_argmax(shard(x), shard.vocab, comm)
        return {
            "mlp": off(ParallelMLP.from_module(mlp, comm)(x), mlp(x)),
            "attention": off(ParallelAttention.from_module(attention, comm)(x), attention(x)),
            "argmax": float((picked != head(x).argmax(-1)).sum()),
        }


def test_layers_by_themselves(several: Cluster) -> None:
    for errors in several.run(layers):
        assert set(errors) == {"mlp", "attention", "argmax"}
        assert max(errors.values()) < TOLERANCE


def collectives(rank: Any, link: EmulatedLink | None) -> dict[str, list[float]]:
    """Several under way at once, waited for in another order."""
    comm = as_comm(rank.group) if link is None else linked_comm(rank, link)
    n, r = rank.world_size, rank.index
    mine = torch.arange(2.0 * n) + 100 * r
    sums = [comm.start_all_reduce(mine + number) for number in range(3)]
    gathered, scattered = comm.start_all_gather(mine[:2].clone()), comm.start_reduce_scatter(mine.clone())
    largest = comm.all_reduce_max(torch.tensor([float(r), -float(r)]))
    return {
        "scattered": scattered.wait().tolist(),
        "gathered": gathered.wait().tolist(),
        **{f"sum {number}": sums[number].wait().tolist() for number in (2, 0, 1)},
        "largest": largest.tolist(),
        "target": sums[0].target.tolist(),
    }


@pytest.mark.parametrize("link", [None, FAST], ids=["gloo", "emulated"])
def test_several_collectives_under_way(several: Cluster, link: EmulatedLink | None) -> None:
    n = several.num_ranks
    ranks = range(n)
    total = [n * i + 100.0 * sum(ranks) for i in range(2 * n)]
    for r, found in enumerate(several.run(collectives, link)):
        assert found["sum 0"] == found["target"] == total
        assert found["sum 2"] == [value + 2 * n for value in total]
        assert found["gathered"] == [value + 100 * q for q in ranks for value in (0, 1)]
        assert found["scattered"] == total[2 * r : 2 * r + 2]
        assert found["largest"] == [n - 1, 0]


def alone(rank: Any) -> bool:
    comm = EmulatedComm(EmulatedGroup(rank.group, FAST))
    plain = MLP(HIDDEN, 132).double()
    x = torch.randn(2, 5, HIDDEN, dtype=torch.float64)
    with torch.no_grad():
        return all(
            off(ParallelMLP.from_module(plain, comm, strategy=strategy)(x.flatten(0, 1)), plain(x).flatten(0, 1))
            < 1e-12
            for strategy in (Blocking(), Chunked(2), SequenceParallel(), Int8())
        )


def test_one_rank_over_its_link_to_nobody(clusters: dict[int, Cluster]) -> None:
    assert clusters[1].run(alone) == [True]


def test_an_error_on_the_queue_is_raised_where_it_is_waited_for(clusters: dict[int, Cluster]) -> None:
    cluster = clusters[2]
    with pytest.raises(RankError, match=r"is on meta|device"):
        cluster.run(lambda rank: emulated(rank).start_all_reduce(torch.zeros(2, device="meta")).wait() and None)
    # The queue goes on.
    assert len(cluster.run(collectives, FAST)) == 2
