"""The article's scheduler: its names, and what each rank is told to do."""

from typing import Any

import pytest

from tplab.pipeline import Op, PipelineConfig, PipelineScheduler, build_schedule

CASES = [("1f1b", 4, 8), ("gpipe", 4, 8), ("interleaved", 4, 8), ("1f1b", 3, 2), ("gpipe", 1, 1), ("interleaved", 2, 2)]


def test_defaults_are_the_articles() -> None:
    config = PipelineConfig()
    assert (config.num_stages, config.num_micro_batches, config.pipeline_schedule) == (4, 8, "1f1b")
    assert PipelineConfig(2, 4, "gpipe").pipeline_schedule == "gpipe"


def test_the_first_steps_of_1f1b() -> None:
    steps = PipelineScheduler(PipelineConfig(num_stages=4, num_micro_batches=8), 3).get_schedule()
    assert steps[:3] == [
        {"type": "forward", "micro_batch": 0, "action": "compute_forward"},
        {"type": "backward", "micro_batch": 0, "action": "compute_backward"},
        {"type": "forward", "micro_batch": 1, "action": "compute_forward"},
    ]


def test_gpipe_has_type_and_micro_batch_only() -> None:
    steps = PipelineScheduler(PipelineConfig(2, 3, "gpipe"), 1).get_schedule()
    assert [step["micro_batch"] for step in steps] == [0, 1, 2, 2, 1, 0]
    assert all(step.keys() == {"type", "micro_batch"} for step in steps)


@pytest.mark.parametrize(("name", "p", "m"), CASES)
def test_every_rank_does_what_the_table_says(name: str, p: int, m: int) -> None:
    v = 2 if name == "interleaved" else 1
    table = build_schedule(name, p, m, v)
    for rank in range(p):
        steps = PipelineScheduler(PipelineConfig(p, m, name), rank).get_schedule()
        want = [(action.op is Op.F, action.micro_batch, action.stage // p) for action in table.ranks[rank] if action]
        assert [(s["type"] == "forward", s["micro_batch"], s.get("chunk", 0)) for s in steps] == want
        assert all(s.get("action", f"compute_{s['type']}") == f"compute_{s['type']}" for s in steps)


def test_interleaved_really_interleaves() -> None:
    steps = PipelineScheduler(PipelineConfig(4, 8, "interleaved"), 0).get_schedule()
    assert {step["chunk"] for step in steps} == {0, 1}
    assert [step["chunk"] for step in steps[:8]] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert len(steps) == 2 * 2 * 8
    assert {s["chunk"] for s in PipelineScheduler(PipelineConfig(2, 4, "interleaved", 3), 1).get_schedule()} == {
        0,
        1,
        2,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pipeline_schedule": "zb-h1"}, "pipeline_schedule must be one of 1f1b, gpipe, interleaved; got 'zb-h1'"),
        ({"num_stages": 0}, "num_stages must be a whole number of at least 1"),
        (
            {"num_micro_batches": 6, "pipeline_schedule": "interleaved"},
            "6 is not a multiple of 4; take num_micro_batches of 4 or 8",
        ),
        ({"num_chunks": 2}, "num_chunks must be 1 for 1f1b, got 2"),
    ],
)
def test_configs_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PipelineConfig(**arguments)


@pytest.mark.parametrize("stage_id", [-1, 4])
def test_ranks_that_are_not_there(stage_id: int) -> None:
    with pytest.raises(ValueError, match=f"stage_id must be a whole number from 0 to 3; got {stage_id}"):
        PipelineScheduler(PipelineConfig(), stage_id)
