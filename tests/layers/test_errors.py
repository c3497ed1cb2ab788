"""What cannot work is refused, naming the argument, the numbers and the way out."""

from typing import Any

import pytest
import torch
from torch import nn

from tplab import Cluster
from tplab.cluster import RankError
from tplab.layers.attention import ParallelAttention
from tplab.layers.block import ParallelBlock, ParallelMLP, run_blocks
from tplab.layers.comm import NullComm, as_comm
from tplab.layers.core_attention import GrowingCache, KVCache
from tplab.layers.emulated_comm import EmulatedComm
from tplab.layers.linear import ColumnParallelLinear, RowParallelLinear
from tplab.layers.plain import MLP, Attention, Block
from tplab.layers.regions import gather_tokens
from tplab.layers.strategies import BatchSplit, Blocking, Chunked, Int8, SequenceParallel, set_strategy
from tplab.layers.vocabulary import ParallelLMHead, VocabParallelEmbedding

# One rank's part of four that never talk: what is wrong with sizes shows without ranks.
OF_FOUR = NullComm(1, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ColumnParallelLinear(8, 30, OF_FOUR),
            r"out_features=30 does not divide over 4 ranks \(remainder 2\): use 1, 2, .*15 ranks, or out_features=28",
        ),
        (
            lambda: RowParallelLinear(30, 8, OF_FOUR),
            r"in_features=30 does not divide over 4 ranks .*in_features=28 or 32",
        ),
        (
            lambda: ParallelMLP(8, 30, OF_FOUR),
            r"intermediate_size=30 does not divide over 4 ranks .*intermediate_size=28 or 32",
        ),
        (lambda: ParallelAttention(12, 6, 2, OF_FOUR), r"num_heads=6 does not divide over 4 ranks .*num_heads=4 or 8"),
        (
            lambda: ColumnParallelLinear(8, 3, OF_FOUR),
            r"out_features=3 does not divide .*use 1, 3 ranks, or out_features=4",
        ),
        (lambda: Attention(12, 6, 4), "num_kv_heads must divide num_heads=6; got 4"),
        (lambda: Attention(13, 6), "num_heads must divide hidden_size=13, or head_dim be given; got 6"),
    ],
)
def test_sizes_that_do_not_divide_say_which_by_what_and_what_would(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_they_do_on_real_ranks_too(clusters: dict[int, Cluster]) -> None:
    with pytest.raises(RankError, match=r"intermediate_size=34 does not divide over 4 ranks"):
        clusters[4].run(lambda rank: ParallelMLP(8, 34, rank.group))


def subset(rank: Any, make: Any) -> str:
    """What a rank is told that is not in the group, or that it is in it."""
    import torch.distributed as dist

    group = dist.new_group([0])
    try:
        make(group)
    except ValueError as error:
        return str(error)
    finally:
        if rank.index == 0:
            dist.destroy_process_group(group)
    return "made"


@pytest.mark.parametrize(
    "make",
    [
        lambda group: ColumnParallelLinear(8, 8, group),
        lambda group: RowParallelLinear.from_module(nn.Linear(8, 8), group),
        lambda group: ParallelMLP(8, 8, group),
        lambda group: ParallelAttention(8, 2, 2, group),
        lambda group: VocabParallelEmbedding(11, 8, group),
    ],
    ids=["column", "row", "mlp", "attention", "embedding"],
)
def test_a_group_that_this_rank_is_not_in(clusters: dict[int, Cluster], make: Any) -> None:
    inside, outside = clusters[2].run(subset, make)
    assert inside == "made"
    assert outside == "group: this rank is not in it; build the layer only on the ranks that are"


def test_none_stands_for_a_rank_alone_only(clusters: dict[int, Cluster]) -> None:
    with pytest.raises(RankError, match="group must be given: there are 2 ranks, and None stands for a rank alone"):
        clusters[2].run(lambda rank: ParallelMLP(8, 8))
    clusters[1].run(lambda rank: ParallelMLP(8, 8) and None)


def bare_emulated(rank: Any) -> None:
    from tplab.collectives.emulated import EmulatedGroup
    from tplab.collectives.emulated_link import EmulatedLink

    ParallelMLP(8, 8, EmulatedGroup(rank.group, EmulatedLink(latency_us=1, bandwidth_GBps=1)))


def test_an_emulated_group_must_be_wrapped(clusters: dict[int, Cluster]) -> None:
    with pytest.raises(RankError, match=r"wrap it once per rank, EmulatedComm\(group\), and share that"):
        clusters[2].run(bare_emulated)


def test_only_an_emulated_group_can_be(clusters: dict[int, Cluster]) -> None:
    with pytest.raises(ValueError, match="group must be an EmulatedGroup; got None"):
        EmulatedComm(None)  # type: ignore[arg-type]


def misnamed_algorithm(rank: Any) -> None:
    from tplab.collectives.emulated import EmulatedGroup
    from tplab.collectives.emulated_link import EmulatedLink

    EmulatedComm(EmulatedGroup(rank.group, EmulatedLink(latency_us=1, bandwidth_GBps=1)), "rings")


def test_an_algorithm_that_there_is_not(clusters: dict[int, Cluster]) -> None:
    with pytest.raises(RankError, match=r"algorithm must be one of ring, .*; got 'rings'"):
        clusters[2].run(misnamed_algorithm)


@pytest.mark.parametrize("group", ["tp", 2, object()])
def test_what_is_no_group(group: Any) -> None:
    with pytest.raises(ValueError, match="group must be a process group, a Comm, or None for a rank alone; got"):
        as_comm(group)


class OnGPUs(NullComm):
    device_types = frozenset({"cuda"})


def test_parameters_that_the_group_cannot_reach() -> None:
    with pytest.raises(ValueError, match=r"module is on cpu, but this group's collectives need cuda: move it with .to"):
        ParallelMLP(8, 8, OnGPUs(0, 2))


def mixed(module: nn.Module, name: str, kind: Any) -> nn.Module:
    owner, _, attribute = name.rpartition(".")
    parameter = module.get_parameter(name)
    setattr(module.get_submodule(owner), attribute, nn.Parameter(parameter.detach().to(kind)))
    return module


@pytest.mark.parametrize("kind", [torch.bfloat16, "meta"])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: (ColumnParallelLinear, nn.Linear(8, 8)), "bias"),
        (lambda: (RowParallelLinear, nn.Linear(8, 8)), "bias"),
        (lambda: (ParallelMLP, MLP(8, 8)), "gate_proj.weight"),
        (lambda: (ParallelMLP, MLP(8, 8)), "down_proj.weight"),
        (lambda: (ParallelAttention, Attention(8, 4)), "v_proj.weight"),
        (lambda: (ParallelAttention, Attention(8, 4, qk_norm=True)), "k_norm.weight"),
        (lambda: (ParallelBlock, Block(Attention(8, 4), MLP(8, 8))), "mlp.up_proj.weight"),
        (lambda: (ParallelLMHead, nn.Linear(8, 11)), "bias"),
    ],
)
def test_mixed_dtypes_or_devices(make: Any, name: str, kind: Any) -> None:
    parallel, module = make()
    mixed(module, name, kind)
    with pytest.raises(
        ValueError, match=r"module has parameters of mixed dtypes or devices \(.*torch.float32 on cpu.*\)"
    ):
        parallel.from_module(module, OF_FOUR)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: ColumnParallelLinear(8, 8, OF_FOUR),
        lambda: RowParallelLinear(8, 8, OF_FOUR, input_is_parallel=False),
        lambda: ParallelMLP(8, 8, OF_FOUR),
        lambda: ColumnParallelLinear(8, 8, OF_FOUR, strategy=SequenceParallel()),
    ],
    ids=["column", "row", "mlp", "sequence parallel"],
)
def test_an_x_of_another_kind_or_width(layer: Any) -> None:
    layer = layer()
    with pytest.raises(ValueError, match=r"x is torch.float64 on cpu, the weight torch.float32 on cpu"):
        layer(torch.ones(2, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"x is torch.float32 on meta, the weight torch.float32 on cpu"):
        layer(torch.ones(2, 8, device="meta"))
    with pytest.raises(ValueError, match=r"x has 9 features, this rank's part of the layer takes 8 \(in_features=8, 4"):
        layer(torch.ones(2, 9))


def test_a_row_layer_takes_its_own_features_only() -> None:
    with pytest.raises(ValueError, match=r"x has 8 features, this rank's part of the layer takes 2 \(in_features=8, 4"):
        RowParallelLinear(8, 8, OF_FOUR)(torch.ones(2, 8))


@pytest.mark.parametrize("grad", [False, True])
def test_more_chunks_than_tokens(grad: bool) -> None:
    layer = ParallelMLP(8, 8, OF_FOUR, strategy=Chunked(4))
    with torch.set_grad_enabled(grad):
        assert layer(torch.ones(4, 8)).shape == (4, 8)
        with pytest.raises(ValueError, match="num_chunks=4 is more than the 3 tokens of this call: use at most 3, or"):
            layer(torch.ones(1, 3, 8))


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)])
def test_no_tokens_in_chunks_are_no_tokens(chunks: int, shape: tuple[int, ...]) -> None:
    for layer in (ParallelMLP(8, 8, OF_FOUR, strategy=Chunked(chunks)), ParallelMLP(8, 8, strategy=Chunked(chunks))):
        assert layer(torch.ones(shape)).shape == shape


def test_a_cache_of_another_dtype() -> None:
    cache = KVCache(1, 1, 8, 2, dtype=torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"the cache holds torch.bfloat16, the new keys and values are torch.float32: make the cache"
    ):
        ParallelAttention(8, 4, 4, OF_FOUR)(torch.ones(1, 3, 8), cache=cache)


def test_more_chunks_than_tokens_on_a_rank_alone_too() -> None:
    with pytest.raises(ValueError, match="num_chunks=2 is more than the 1 tokens"):
        ParallelMLP(8, 8, strategy=Chunked(2))(torch.ones(1, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Chunked(0), "num_chunks must be a whole number of at least 1; got 0"),
        (lambda: Chunked(2.0), "num_chunks must be a whole number of at least 1; got 2.0"),  # type: ignore[arg-type]
        (lambda: Chunked(True), "num_chunks must be a whole number of at least 1; got True"),
        (lambda: BatchSplit(1), "num_parts must be a whole number of at least 2; got 1"),
        (lambda: BatchSplit(2, by="layer"), "by must be one of None, batch, sequence; got 'layer'"),
        (lambda: Int8(0), "scale_group must be a whole number of at least 1; got 0"),
    ],
)
def test_strategies_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("strategy", ["chunked", Chunked, 4])
def test_what_is_no_strategy(strategy: Any) -> None:
    with pytest.raises(
        ValueError, match=r"strategy must be one of tplab.layers' strategies, such as Chunked\(4\); got"
    ):
        set_strategy(ParallelMLP(8, 8), strategy)
    for make in (
        lambda: ColumnParallelLinear(8, 8, strategy=strategy),
        lambda: RowParallelLinear.from_module(nn.Linear(8, 8), None, strategy=strategy),
        lambda: ParallelMLP(8, 8, strategy=strategy),
        lambda: ParallelAttention(8, 4, strategy=strategy),
        lambda: VocabParallelEmbedding(8, 8, strategy=strategy),
        lambda: ParallelBlock.from_module(Block(Attention(8, 4), MLP(8, 8)), None, strategy=strategy),
    ):
        with pytest.raises(ValueError, match=r"strategy must be one of tplab.layers' strategies"):
            make()


def test_a_module_without_parallel_layers_has_no_strategy() -> None:
    with pytest.raises(ValueError, match="module: no layer below Linear is parallel"):
        set_strategy(nn.Linear(8, 8), Blocking())


def test_sequence_parallelism_wants_flat_tokens_that_ranks_can_share() -> None:
    attention = ParallelAttention(8, 4, None, OF_FOUR, strategy=SequenceParallel())
    with pytest.raises(ValueError, match=r"shape=\(batch, sequence\) must be given under sequence parallelism"):
        attention(torch.ones(2, 8))
    with pytest.raises(ValueError, match=r"shape=\(2, 3\) has 6 tokens, 8 with padding; .* 4 ranks hold 12"):
        attention(torch.ones(3, 8), shape=(2, 3))
    row = RowParallelLinear(8, 8, OF_FOUR, strategy=SequenceParallel())
    for x in (torch.ones(1, 4, 2), torch.ones(5, 2)):
        with pytest.raises(
            ValueError, match=r"is not a number of tokens that 4 ranks can share.*as scatter_tokens does"
        ):
            row(x)
    with pytest.raises(ValueError, match=r"shape=\(3, 5\) has 15 tokens, 16 with padding; .* 4 ranks hold 12"):
        gather_tokens(torch.ones(3, 8), OF_FOUR, (3, 5))


def test_a_sequence_is_split_only_where_attention_is_causal() -> None:
    plain = Block(Attention(8, 4, causal=False), MLP(8, 8))
    block = ParallelBlock.from_module(plain, None, strategy=BatchSplit(2))
    with pytest.raises(ValueError, match=r"BatchSplit\(2\) .*causal=False needs BatchSplit\(by='batch'\)"):
        block(torch.ones(1, 6, 8))
    with torch.no_grad():
        x = torch.randn(2, 6, 8)
        assert torch.allclose(block(x), plain(x), atol=1e-6), "two sequences: nothing to refuse"
        set_strategy(block, BatchSplit(2, by="batch"))
        assert torch.allclose(block(x[:1]), plain(x[:1]), atol=1e-6), "the way out"


def test_a_growing_cache_has_no_rows_to_split() -> None:
    block = ParallelBlock.from_module(Block(Attention(8, 4), MLP(8, 8)), None, strategy=BatchSplit(2))
    with pytest.raises(ValueError, match="a GrowingCache cannot be split by batch: give one of make_cache"):
        block(torch.ones(2, 3, 8), cache=GrowingCache())


def test_a_stack_takes_one_cache_per_block() -> None:
    blocks = [ParallelBlock.from_module(Block(Attention(8, 4), MLP(8, 8)), OF_FOUR) for _ in range(2)]
    with pytest.raises(ValueError, match="cache is for a stack of one block; for 2 give caches, one per block"):
        run_blocks(blocks, torch.ones(1, 1, 8), cache=blocks[0].self_attn.make_cache(1, 4))
