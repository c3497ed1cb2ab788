"""Tables over NCCL: one rank per GPU, or several ranks on one."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tplab import Cluster
from tplab.cluster import RankError
from tplab.pipeline import Action, Costs, Op, Schedule, build_schedule, run_schedule

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.timeout(150),
]

WIDTH = 64
CLOCK_S = 2e-4
"""How far the clocks of two GPUs may be apart, mapped onto the host's."""


@pytest.fixture(scope="module")
def gpus(no_ranks_left: None) -> Iterator[Callable[[int], Cluster]]:
    made: dict[int, Cluster] = {}

    def get(n: int) -> Cluster:
        if n not in made or made[n].closed:
            made[n] = Cluster(n, backend="nccl")
        return made[n]

    yield get
    for cluster in made.values():
        cluster.close()


def make_block(rank: Any, index: int) -> nn.Module:
    torch.manual_seed(100 + index)
    block = nn.Sequential(nn.Linear(WIDTH, 96), nn.Tanh(), nn.Linear(96, WIDTH)).double()
    return block if rank is None else block.to(rank.device)


@pytest.mark.parametrize(
    ("name", "p", "m", "v"),
    [("gpipe", 2, 3, 1), ("1f1b", 2, 5, 1), ("interleaved", 2, 4, 2), ("zb-h1", 2, 4, 1), ("1f1b", 3, 4, 1)],
)
def test_equals_the_unsplit_model(gpus: Callable[[int], Cluster], name: str, p: int, m: int, v: int) -> None:
    x, y = torch.randn(2, 2 * m, WIDTH, generator=torch.Generator().manual_seed(m), dtype=torch.float64)
    trace = run_schedule(
        gpus(p), build_schedule(name, p, m, v), make_block, inputs=x, targets=y, loss=F.mse_loss, warm_ups=1
    )
    stages = [make_block(None, index) for index in range(p * v)]
    want = nn.Sequential(*stages)(x)
    loss = F.mse_loss(want, y)
    loss.backward()
    assert trace.outputs is not None
    assert trace.gradients is not None
    torch.testing.assert_close(torch.cat(trace.outputs), want.detach())
    assert trace.loss == pytest.approx(loss.item())
    for index, stage in enumerate(stages):
        for key, weight in stage.named_parameters():
            torch.testing.assert_close(trace.gradients[index][key], weight.grad)
    assert trace.badge.startswith("LIVE nccl")

    spans = {Action(s.stage, s.op, s.micro_batch): s for s in trace.spans}
    for action, span in spans.items():
        assert span.start_s <= span.end_s
        if action.op is Op.F and action.stage:
            assert spans[action._replace(stage=action.stage - 1)].end_s <= span.start_s + CLOCK_S
        if action.op in (Op.B, Op.I):
            assert spans[action._replace(op=Op.F)].end_s <= span.start_s
    for rank in range(p):
        mine = sorted((s.start_s, s.end_s) for s in trace.spans if s.rank == rank and s.op.is_compute)
        assert all(end <= start + 1e-6 for (_, end), (start, _) in itertools.pairwise(mine))


def test_ranks_that_send_to_each_other_first(gpus: Callable[[int], Cluster]) -> None:
    """Large messages in both directions at once: in one queue of NCCL each would wait for the other."""
    table = Schedule.from_text("0F0,0F1,0F2,0B0,0B1,0B2\n1F0,1B0,1F1,1B1,1F2,1B2")
    costs = Costs(forward_s=2e-3, input_grad_s=1e-3, weight_grad_s=1e-3, message_bytes=32 << 20)
    trace = run_schedule(gpus(2), table, costs, timeout=60)
    assert int(trace.is_compute.sum()) == 12
    assert "emulated compute" in trace.badge


def test_a_ring_with_a_back_edge(gpus: Callable[[int], Cluster]) -> None:
    schedule = build_schedule("decode-ring", 2, 9, num_in_flight=3)

    class Next(nn.Module):
        def __init__(self, step):
            super().__init__()
            self.step = step

        def forward(self, ids):
            return ids * 2 + self.step

    trace = run_schedule(
        gpus(2),
        schedule,
        lambda rank, index: Next(index),
        inputs=lambda rank, micro_batch: torch.tensor([micro_batch]),
    )
    assert trace.outputs is not None
    want = [4 * b + 1 for b in range(3)]
    for _ in range(2):
        want += [4 * b + 1 for b in want[-3:]]
    assert [int(ids) for ids in trace.outputs] == want


def test_a_stage_that_fails_names_itself(gpus: Callable[[int], Cluster]) -> None:
    x = torch.zeros(4, WIDTH, dtype=torch.float64)

    def stage(rank: Any, index: int) -> nn.Module:
        return nn.Linear(3, 3).to(rank.device) if index else make_block(rank, index)

    with pytest.raises(RankError, match="stage 1 failed in 1F0 on float64"):
        run_schedule(gpus(2), build_schedule("1f1b", 2, 2), stage, inputs=x, loss=lambda y: y.mean(), timeout=60)
    good = run_schedule(gpus(2), build_schedule("1f1b", 2, 2), make_block, inputs=x, loss=lambda y: y.mean())
    assert good.loss is not None


def test_declared_times_without_bytes_still_wait_for_each_other(gpus: Callable[[int], Cluster]) -> None:
    """NCCL sends nothing for an empty tensor: with no bytes declared no rank would wait for the one before it."""
    costs = Costs(forward_s=0.01, input_grad_s=0.01, weight_grad_s=0.01)
    trace = run_schedule(gpus(2), build_schedule("1f1b", 2, 2), costs, timeout=60)
    assert trace.idle_over_total > 0.25  # 1/3
