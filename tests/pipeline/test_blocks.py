"""Stages of transformer blocks: the same work whatever the chunks, and the size that a rank's memory allows."""

from dataclasses import replace

import pytest
import torch

from tplab import Cluster
from tplab.checks import ArgumentError
from tplab.layers import StackPlan
from tplab.pipeline import BlockStages, block_stages, build_schedule
from tplab.pipeline.blocks import SIZES

pytestmark = pytest.mark.timeout(120)

SMALL = BlockStages(
    stack=StackPlan(batch=1, hidden=64, num_heads=4, num_kv_heads=2, intermediate=96, depth=2),
    tokens=16,
    model="a toy",
)


@pytest.mark.parametrize(("name", "chunks"), [("1f1b", 1), ("interleaved", 2), ("forward-only", 1)])
def test_a_run_computes_every_action(clusters: dict[int, Cluster], name: str, chunks: int) -> None:
    schedule = build_schedule(name, 2, 4, chunks)
    trace = SMALL.run(clusters[2], schedule)
    assert trace.is_compute.sum() == sum(action.op.is_compute for _, _, action in schedule.actions())
    assert "emulated" not in trace.badge
    assert (trace.losses is None) == schedule.is_inference
    assert trace.gradients is None, "large ones stay on their ranks"


def test_a_ranks_blocks_are_divided_among_its_chunks() -> None:
    class Here:
        device = torch.device("cpu")

    for chunks in (1, 2):
        assert len(replace(SMALL, chunks=chunks)(Here(), 0)) == 2 // chunks
    x = SMALL.inputs(Here(), 3)
    assert x.shape == (1, 16, 64)
    assert torch.equal(x, SMALL.inputs(Here(), 3))
    assert not torch.equal(x, SMALL.inputs(Here(), 4))
    with pytest.raises(ArgumentError, match="chunks must divide the 2 blocks of a rank; got 3"):
        replace(SMALL, chunks=3)


def test_the_largest_size_that_fits_is_taken() -> None:
    chosen = [block_stages(memory_GB).model for memory_GB in (0, 1, 15, 24, 80, 192)]
    assert [SIZES[0].model, SIZES[-1].model] == [chosen[-1], chosen[0]]
    order = [[size.model for size in SIZES].index(model) for model in chosen]
    assert order == sorted(order, reverse=True)
    assert block_stages(80).model == "Llama-3.1 8B"
    assert str(SMALL) == "2 blocks of a toy's shape in float32, 16 tokens a micro-batch"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_training_keeps_no_more_than_was_reckoned() -> None:
    from tplab.pipeline.blocks import _training_GB

    smallest = SIZES[-1]
    with Cluster(1, "nccl") as cluster:
        smallest.run(cluster, build_schedule("gpipe", 1, 8))
        (peak,) = cluster.run(lambda rank: torch.cuda.max_memory_allocated(rank.device))
    assert 0.5 * _training_GB(smallest) < peak / 1e9 < 1.3 * _training_GB(smallest)
