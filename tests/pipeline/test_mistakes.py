"""The article's two wrong schedules: they run, and what is wrong with them shows elsewhere."""

import pytest

from tplab.pipeline import build_schedule, simulate, validate
from tplab.pipeline.mistakes import interleaved_in_name_only, mistakes_frame, one_micro_batch_too_many
from tplab.pipeline.validation import faults, peak_held


@pytest.mark.parametrize(("p", "m"), [(1, 1), (2, 4), (3, 2), (4, 8), (8, 16)])
def test_one_micro_batch_too_many(p: int, m: int) -> None:
    wrong, right = one_micro_batch_too_many(p, m), build_schedule("1f1b", p, m)
    validate(wrong)
    assert sorted(wrong.ranks[-1]) == sorted(right.ranks[-1]), "the same work, in another order"
    assert peak_held(wrong) == tuple(min(m, p - rank + 1) for rank in range(p))
    assert simulate(wrong).makespan_s == simulate(right).makespan_s
    if m > 1:
        assert {fault.kind for fault in faults(wrong, max_activations=peak_held(right))} == {"memory"}


def test_in_name_only() -> None:
    wrong = interleaved_in_name_only(4, 8)
    validate(wrong)
    assert wrong.num_chunks == 1
    assert simulate(wrong).idle_over_work == 2 * simulate(build_schedule("interleaved", 4, 8, 2)).idle_over_work


def test_demonstration() -> None:
    frame = mistakes_frame().set_index("mistake")
    memory = frame.loc["1f1b, one micro-batch too many"]
    assert memory.wrong_peak == (5, 4, 3, 2)
    assert memory.right_peak == (4, 3, 2, 1)
    assert memory.wrong_makespan == memory.right_makespan == 33
    assert "0F4 makes rank 0 hold 5" in memory.caught
    chunks = frame.loc["interleaved, in name only"]
    assert (chunks.wrong_makespan, chunks.right_makespan) == (33, 28.5)
    assert chunks.caught == "", "memory says nothing against it"
