"""Our tables through torch's own runtime, on four ranks: outputs, losses and gradients of the unsplit model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tplab import Cluster
from tplab.pipeline import Action, Op, Schedule, add_communication, build_schedule

P, M, WIDTH = 4, 8, 6


def make_stage(index: int) -> nn.Module:
    torch.manual_seed(40 + index)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()).double()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    x, y = torch.randn(2, 2 * M, WIDTH, generator=generator, dtype=torch.float64)
    return x, y


def squares(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A sum, so that the losses of micro-batches add up to the whole batch's."""
    return (output - target).square().sum()


def run_in_torch(rank: Any, text: str, form: str, num_stages: int, trains: bool) -> dict[str, Any]:
    import tempfile
    from pathlib import Path

    from torch.distributed.pipelining import PipelineStage
    from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

    stages = [
        PipelineStage(make_stage(index), index, num_stages, torch.device("cpu"), group=rank.group)
        for index in range(rank.index, num_stages, rank.world_size)
    ]
    runtime = _PipelineScheduleRuntime(stages, M, loss_fn=squares if trains else None, scale_grads=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_text(text)
        runtime._load_csv(str(path), format=form)
    x, y = batch()
    losses: list[torch.Tensor] = []
    has_last = any(stage.is_last for stage in stages)
    with torch.set_grad_enabled(trains):
        output = runtime.step(
            *((x,) if rank.index == 0 else ()),
            target=y if trains and has_last else None,
            losses=losses if trains and has_last else None,
        )
    return {
        "output": output,
        "losses": losses,
        "grads": {stage.stage_index: [w.grad for w in stage.submod.parameters()] for stage in stages},
    }


@pytest.mark.parametrize("form", ["compute_only", "compute_comms"])
@pytest.mark.parametrize(("name", "v"), [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zb-h1", 1)])
def test_training(cluster_of: Callable[[int], Cluster], name: str, v: int, form: str) -> None:
    schedule = build_schedule(name, P, M, v)
    table = schedule if form == "compute_only" else add_communication(schedule)
    values = cluster_of(P).run(run_in_torch, table.to_text(), form, P * v, True, timeout=60)

    x, y = batch()
    stages = [make_stage(index) for index in range(P * v)]
    want = nn.Sequential(*stages)(x)
    squares(want, y).backward()
    torch.testing.assert_close(values[-1]["output"].detach(), want.detach())
    torch.testing.assert_close(
        torch.stack(values[-1]["losses"]).detach(),
        torch.stack([squares(a, b) for a, b in zip(want.chunk(M), y.chunk(M), strict=True)]).detach(),
    )
    grads = {index: grad for value in values for index, grad in value["grads"].items()}
    assert sorted(grads) == list(range(P * v))
    for index, stage in enumerate(stages):
        for got, weight in zip(grads[index], stage.parameters(), strict=True):
            torch.testing.assert_close(got, weight.grad)


@pytest.mark.parametrize("name", ["forward-only", "chunked-prefill"])
def test_forward_only(cluster_of: Callable[[int], Cluster], name: str) -> None:
    """Padded with backwards, which the runtime's validator wants, and then does not run for want of a loss."""
    schedule = build_schedule(name, P, M)
    rows = tuple((*row, *(Action(r, Op.B, i) for i in range(M))) for r, row in enumerate(schedule.ranks))
    padded = Schedule(name=name, num_stages=P, num_micro_batches=M, ranks=rows)
    values = cluster_of(P).run(run_in_torch, padded.to_text(), "compute_only", P, False, timeout=60)
    want = nn.Sequential(*(make_stage(index) for index in range(P)))(batch()[0])
    torch.testing.assert_close(values[-1]["output"], want.detach())
    assert all(grad is None for value in values for grads in value["grads"].values() for grad in grads)
