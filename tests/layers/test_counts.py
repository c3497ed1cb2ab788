"""What layers communicate: calls and bytes, by torch's CommDebugMode and by our counter, beside the formula."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor.debug import CommDebugMode

from tplab import Cluster
from tplab.collectives.volumes import sent_bytes
from tplab.layers.block import ParallelBlock, ParallelMLP
from tplab.layers.cost import block_collectives, wire_bytes
from tplab.layers.counting import count_block, count_by_layer, layer_table, watch_layers
from tplab.layers.plain import MLP, Attention, Block
from tplab.layers.regions import scatter_tokens
from tplab.layers.strategies import BatchSplit, Blocking, Chunked, Int8, SequenceParallel

HIDDEN, INTERMEDIATE, ITEMSIZE = 48, 132, 4
CALLS = {"allreduce": "all-reduce", "allgather": "all-gather", "reducescatter": "reduce-scatter"}

Counted = tuple[dict[str, int], list[tuple[str, str, int, int]]]
"""CommDebugMode's calls by kind; ours as (layer, kind, calls, bytes)."""


def by_torch(mode: CommDebugMode) -> dict[str, int]:
    counts: dict[str, int] = {}
    for op, calls in mode.get_comm_counts().items():
        kind = next((ours for theirs, ours in CALLS.items() if theirs in str(op).replace("_", "")), str(op))
        counts[kind] = counts.get(kind, 0) + calls
    return counts


def both(module: nn.Module, work: Any, parts: int = 1) -> Counted:
    # CommDebugMode cannot watch modules that are called twice (IndexError in its tracker, torch 2.11 to 2.13).
    theirs = CommDebugMode() if parts == 1 else nullcontext()
    with theirs as mode, count_by_layer(module) as counter:
        work()
    rows = counter.frame_rows(by_where=True)
    return {} if mode is None else by_torch(mode), [
        (row["where"], row["kind"], row["calls"], row["bytes"]) for row in rows
    ]


def mlp(rank: Any, strategy: Blocking, tokens: int, backward: bool) -> Counted:
    torch.manual_seed(0)
    parallel = ParallelMLP.from_module(MLP(HIDDEN, INTERMEDIATE), rank.group, strategy=strategy)
    x = torch.randn(tokens, HIDDEN, requires_grad=backward)
    if not backward:
        with torch.no_grad():
            return both(parallel, lambda: parallel(x))
    y = parallel(x)
    return both(parallel, lambda: y.sum().backward())


@pytest.mark.parametrize("tokens", [1, 17])
def test_an_mlp_has_one_all_reduce(ranks: Cluster, tokens: int) -> None:
    for theirs, ours in ranks.run(mlp, Blocking(), tokens, False):
        if ranks.num_ranks == 1:
            assert (theirs, ours) == ({}, [])
        else:
            assert theirs == {"all-reduce": 1}
            assert ours == [("down", "all-reduce", 1, tokens * HIDDEN * ITEMSIZE)]


def test_its_backward_has_one_more_counted_as_backward(ranks: Cluster) -> None:
    for theirs, ours in ranks.run(mlp, Blocking(), 17, True):
        if ranks.num_ranks == 1:
            assert (theirs, ours) == ({}, [])
        else:
            assert theirs == {"all-reduce": 1}
            assert ours == [("backward", "all-reduce", 1, 17 * HIDDEN * ITEMSIZE)]


@pytest.mark.parametrize("chunks", [1, 2, 5, 17])
def test_chunks_are_as_many_calls_and_the_same_bytes(ranks: Cluster, chunks: int) -> None:
    for theirs, ours in ranks.run(mlp, Chunked(chunks), 17, False):
        if ranks.num_ranks == 1:
            assert (theirs, ours) == ({}, [])
        else:
            assert theirs == {"all-reduce": chunks}
            assert ours == [("down", "all-reduce", chunks, 17 * HIDDEN * ITEMSIZE)]


def make_block(num_kv_heads: int = 12) -> Block:
    torch.manual_seed(0)
    return Block(Attention(HIDDEN, 12, num_kv_heads), MLP(HIDDEN, INTERMEDIATE))


def block(rank: Any, strategy: Blocking, shape: tuple[int, int], backward: bool, num_kv_heads: int = 12) -> Counted:
    """A block as in the middle of a stack: under sequence parallelism between token shards."""
    parallel = ParallelBlock.from_module(make_block(num_kv_heads), rank.group, strategy=strategy)
    x = torch.randn(*shape, HIDDEN)
    how: dict[str, Any] = {}
    if strategy.sequence_parallel:
        x, how = scatter_tokens(x, parallel.comm), {"shape": shape}
    if not backward:
        with torch.no_grad():
            return both(parallel, lambda: parallel(x, **how), strategy.num_parts)
    y = parallel(x.clone().requires_grad_(), **how)
    return both(parallel, lambda: y.sum().backward())


def formula(strategy: Blocking, shape: tuple[int, int], n: int, parts: int = 1) -> set[tuple[str, str, int, int]]:
    expected = block_collectives(
        tokens=shape[0] * shape[1], hidden=HIDDEN, itemsize=ITEMSIZE, n=n, strategy=strategy.name, parts=parts
    )
    return {(one.layer, one.kind, one.num_calls, one.payload_bytes) for one in expected}


@pytest.mark.parametrize(
    ("strategy", "parts"),
    [
        (Blocking(), 1),
        (Chunked(1), 1),
        (Chunked(3), 3),
        (BatchSplit(2), 2),
        (BatchSplit(3, by="sequence"), 3),
        (SequenceParallel(), 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(3, 17), (2, 3)], ids=str)
def test_a_block_communicates_what_the_formula_says(
    ranks: Cluster, strategy: Blocking, parts: int, shape: tuple[int, int]
) -> None:
    n = ranks.num_ranks
    for theirs, ours in ranks.run(block, strategy, shape, False):
        assert set(ours) == formula(strategy, shape, n, parts)
        if n == 1 or strategy.num_parts > 1:
            assert theirs == {}
        elif strategy.sequence_parallel:
            assert theirs == {"all-gather": 2, "reduce-scatter": 2}
        else:
            assert theirs == {"all-reduce": 2 * parts}


def test_sequence_parallel_bytes_are_those_of_padded_tokens(clusters: dict[int, Cluster]) -> None:
    _, ours = clusters[4].run(block, SequenceParallel(), (3, 17), False)[0]
    assert {nbytes for *_, nbytes in ours} == {52 * HIDDEN * ITEMSIZE}


@pytest.mark.parametrize("strategy", [Blocking(), Chunked(3)], ids=str)
def test_a_blocks_backward_has_two_all_reduces(ranks: Cluster, strategy: Blocking) -> None:
    for theirs, ours in ranks.run(block, strategy, (3, 17), True):
        if ranks.num_ranks == 1:
            assert (theirs, ours) == ({}, [])
        else:
            assert theirs == {"all-reduce": 2}
            assert ours == [("backward", "all-reduce", 2, 2 * 51 * HIDDEN * ITEMSIZE)]


def test_shared_key_value_heads_cost_one_more_in_backward_only(clusters: dict[int, Cluster]) -> None:
    for theirs, ours in clusters[4].run(block, Blocking(), (1, 5), True, 2):
        assert theirs == {"all-reduce": 3}
        heads = 2 * 2 * (HIDDEN // 12) * HIDDEN  # k and v: rows of two heads
        assert ours == [("backward", "all-reduce", 3, (2 * 5 * HIDDEN + heads) * ITEMSIZE)]
    for theirs, _ in clusters[4].run(block, Blocking(), (1, 5), False, 2):
        assert theirs == {"all-reduce": 2}


def test_sequence_parallel_backward_mirrors_its_forward(ranks: Cluster) -> None:
    for theirs, ours in ranks.run(block, SequenceParallel(), (3, 17), True):
        if ranks.num_ranks == 1:
            assert (theirs, ours) == ({}, [])
        else:
            padded = -(-51 // ranks.num_ranks) * ranks.num_ranks
            assert theirs == {"all-gather": 2, "reduce-scatter": 2, "all-reduce": 2}
            assert set(ours) == {
                ("backward", "all-gather", 2, 2 * padded * HIDDEN * ITEMSIZE),
                ("backward", "reduce-scatter", 2, 2 * padded * HIDDEN * ITEMSIZE),
                ("backward", "all-reduce", 2, 2 * HIDDEN * ITEMSIZE),  # the weights of the two norms
            }


def int8(rank: Any) -> Counted:
    parallel = ParallelMLP.from_module(MLP(HIDDEN, INTERMEDIATE), rank.group, strategy=Int8())
    with torch.no_grad():
        return both(parallel, lambda: parallel(torch.randn(17, HIDDEN)))


def test_int8_sends_messages_in_the_name_of_its_layer(clusters: dict[int, Cluster]) -> None:
    for theirs, ours in clusters[2].run(int8):
        assert theirs == {}  # CommDebugMode does not know sends
        elements = 17 * HIDDEN // 2
        each = elements + 4 * -(-elements // 64)
        assert ours == [("down", "recv", 2, 2 * each), ("down", "send", 2, 2 * each)]


def test_count_block_holds_counts_against_the_formula(ranks: Cluster) -> None:
    strategies = [Blocking(), Chunked(3), BatchSplit(2), BatchSplit(3, by="batch"), SequenceParallel(), Int8(32)]
    frame = count_block(
        ranks, strategies, hidden=HIDDEN, num_heads=12, num_kv_heads=12, intermediate=INTERMEDIATE, batch=2, seq=17
    )
    assert {"layer", "kind", "calls", "payload_bytes", "handed_bytes", "formula_calls", "strategy"} <= set(frame)
    if ranks.num_ranks == 1:
        assert frame.empty
        return
    assert list(dict.fromkeys(frame["strategy"])) == [str(strategy) for strategy in strategies]
    assert frame["agrees"].all()
    assert (frame["num_ranks"] == ranks.num_ranks).all()
    exact = frame[frame["strategy"] != "Int8(32)"]
    assert (exact["calls"] == exact["formula_calls"]).all()
    assert (exact["payload_bytes"] == exact["formula_bytes"]).all()
    assert exact["error"].max() < 1e-5
    inexact = frame[frame["strategy"] == "Int8(32)"]
    assert inexact["formula_calls"].isna().all()
    assert 1e-5 < inexact["error"].max() < 0.02
    gathers = frame[frame["kind"] == "all-gather"]
    assert (gathers["handed_bytes"] * ranks.num_ranks == gathers["payload_bytes"]).all()


def test_the_table_says_what_goes_over_the_wire() -> None:
    rows = [
        {"where": "a", "kind": kind, "calls": 1, "bytes": 1200}
        for kind in ("all-reduce", "all-gather", "reduce-scatter", "send", "recv", "broadcast")
    ]
    frame = layer_table(rows, 3, "gloo").set_index("kind")
    assert frame["handed_bytes"].to_dict() == {
        **{"all-reduce": 1200, "all-gather": 400, "reduce-scatter": 1200},
        **{"send": 1200, "recv": 0, "broadcast": 1200},
    }
    assert frame.loc["all-reduce", "wire_bytes"] == pytest.approx(2 * 2 / 3 * 1200)
    assert frame.loc["reduce-scatter", "ring_bytes"] == pytest.approx(2 / 3 * 1200)
    # gloo's reduce-scatter is an all-reduce.
    assert frame.loc["reduce-scatter", "wire_bytes"] == sent_bytes("reduce-scatter", "gloo", 1200, 3).sent_mean
    assert wire_bytes("reduce-scatter", 1200, 3, "nccl") == pytest.approx(2 / 3 * 1200)


def test_an_empty_table_has_its_columns() -> None:
    assert "layer" in layer_table([], 1, "gloo")


def test_watching_ends_with_its_block_and_nests() -> None:
    seen: list[tuple[str, ...]] = []

    class Spy(Blocking):
        def reduce_matmul(self, x: torch.Tensor, w: torch.Tensor, comm: Any) -> Any:
            seen.append(tuple(watcher() for watcher in watchers))
            return super().reduce_matmul(x, w, comm)

    parallel = ParallelMLP.from_module(MLP(8, 16), None, strategy=Spy())
    with watch_layers(parallel) as outer:
        with watch_layers(parallel) as inner:
            watchers = [outer, inner]
            parallel(torch.ones(1, 8))
            assert (outer(), inner()) == ("", "")
        parallel(torch.ones(1, 8))
    parallel(torch.ones(1, 8))
    assert seen == [("down", "down"), ("down", ""), ("", "")]
    for layer in parallel.modules():
        assert not {"forward", "start", "finish"} & set(vars(layer))


def test_watching_a_layer_that_raises_leaves_nothing_at_work() -> None:
    parallel = ParallelMLP.from_module(MLP(8, 16), None)
    with watch_layers(parallel) as at_work:
        with pytest.raises(ValueError, match="x has 9 features"):
            parallel(torch.ones(1, 9))
        assert at_work() == ""
