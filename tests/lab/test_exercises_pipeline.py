"""The checker of notebook 05, against references, an empty answer and planted wrong answers."""

import re
from collections.abc import Callable
from itertools import repeat
from typing import Any

import numpy as np
import pytest

from tplab.checks import ArgumentError
from tplab.cluster import Cluster
from tplab.lab.exercises import check_schedule
from tplab.lab.exercises.pipeline import _SIZES
from tplab.pipeline import Action, Op, Schedule, build_schedule, validate
from tplab.pipeline.mistakes import one_micro_batch_too_many

pytestmark = pytest.mark.timeout(60)


def reference(p: int, m: int) -> list[list[str]]:
    rows = []
    for r in range(p):
        warm_up = min(m, p - 1 - r)
        row = [f"{r}F{i}" for i in range(warm_up)]
        for i in range(m):
            if warm_up + i < m:
                row.append(f"{r}F{warm_up + i}")
            row.append(f"{r}B{i}")
        rows.append(row)
    return rows


def as_actions(p: int, m: int) -> list[list[Action]]:
    return [[Action.parse(cell) for cell in row] for row in reference(p, m)]


def split_backward(p: int, m: int) -> list[list[str]]:
    """I, and W right after it: the same as B."""
    return [
        [
            part
            for cell in row
            for part in ((cell.replace("B", "I"), cell.replace("B", "W")) if "B" in cell else (cell,))
        ]
        for row in reference(p, m)
    ]


@pytest.mark.parametrize(
    "right",
    [
        reference,
        as_actions,
        split_backward,
        lambda p, m: build_schedule("1f1b", p, m),
        lambda p, m: np.array(reference(p, m)),
        lambda p, m: (iter(row) for row in reference(p, m)),
        lambda p, m: {r: " ".join(row).lower() for r, row in enumerate(reference(p, m))},
    ],
    ids=["reference", "actions", "split backward", "a Schedule", "an array", "generators", "text by rank"],
)
def test_right_answers_in_every_form(right: Callable[[int, int], Any]) -> None:
    verdict = check_schedule(right)
    assert verdict.passed, verdict.message
    assert f"{len(_SIZES)} sizes" in verdict.message


def gpipe(p: int, m: int) -> Any:
    return build_schedule("gpipe", p, m)


def one_at_a_time(p: int, m: int) -> list[list[str]]:
    """F0 B0 F1 B1 on every rank: a rank holds one, and all but one wait."""
    return [[f"{r}{op}{i}" for i in range(m) for op in "FB"] for r in range(p)]


def deadlock(p: int, m: int) -> list[list[str]]:
    """The first two forwards of the last rank swapped, while the others wait for the backward of the first."""
    rows = one_at_a_time(p, m)
    if m > 1:
        rows[-1][:4] = [rows[-1][i] for i in (2, 3, 0, 1)]
    return rows


def backward_first(p: int, m: int) -> list[list[str]]:
    rows = reference(p, m)
    rows[-1][:2] = rows[-1][1::-1]
    return rows


def forgets_the_last(p: int, m: int) -> list[list[str]]:
    return [[cell for cell in row if not cell.endswith(f"B{m - 1}")] for row in reference(p, m)]


def twice(p: int, m: int) -> list[list[str]]:
    return [[*row, row[0]] for row in reference(p, m)]


def other_stage(p: int, m: int) -> list[list[str]]:
    return reference(p, m)[::-1]


def only_even(p: int, m: int) -> list[list[str]]:
    """Right for the sizes in the notebook's text, wrong elsewhere."""
    return reference(p, m) if m % 2 == 0 else reference(p, m - 1)


def zero_bubble(p: int, m: int) -> Any:
    return build_schedule("zb-h1", p, m)


def warm_up_of(p: int, m: int, forwards: Callable[[int], int]) -> list[list[str]]:
    """So many ``forwards(r)`` on rank r, then a forward and a backward in turns."""
    rows = []
    for r in range(p):
        warm_up = min(m, forwards(r))
        row = [f"{r}F{i}" for i in range(warm_up)]
        for i in range(m):
            row += [f"{r}F{warm_up + i}"] * (warm_up + i < m) + [f"{r}B{i}"]
        rows.append(row)
    return rows


def short_warm_up(p: int, m: int) -> list[list[str]]:
    return warm_up_of(p, m, lambda r: max(0, p - 2 - r))


def all_warm_up_alike(p: int, m: int) -> list[list[str]]:
    return warm_up_of(p, m, lambda r: p - 1)


def second_backward_first(p: int, m: int) -> list[list[str]]:
    """Every rank does the backward of micro-batch 1 before that of 0."""
    rows = reference(p, m)
    if m > 1:
        rows[-1][:4] = [f"{p - 1}{each}" for each in ("F0", "F1", "B1", "B0")]
        for r, row in enumerate(rows[:-1]):
            i, j = row.index(f"{r}B0"), row.index(f"{r}B1")
            row[i], row[j] = row[j], row[i]
    return rows


def newest_backward_first(p: int, m: int) -> list[list[str]]:
    """In groups of p: all forwards, then the backwards like a stack."""
    groups = [range(first, min(first + p, m)) for first in range(0, m, p)]
    return [
        [cell for group in groups for cell in [f"{r}F{i}" for i in group] + [f"{r}B{i}" for i in reversed(group)]]
        for r in range(p)
    ]


def weights_last(p: int, m: int) -> list[list[str]]:
    return [sorted(row, key=lambda cell: "W" in cell) for row in split_backward(p, m)]


def raises(p: int, m: int) -> Any:
    raise NotImplementedError("write me")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (gpipe, "rank 0 holds 8 micro-batches at its peak, where 4 will do"),
        (one_micro_batch_too_many, "rank 0 holds 5 micro-batches at its peak, where 4 will do.*One less to warm up"),
        (zero_bubble, "rank 1 holds 4 micro-batches at its peak, where 3 will do.*freed by W"),
        (deadlock, "p=4, m=8.*wait"),
        (
            one_at_a_time,
            "slow.*takes 96 units of time where 33 are enough.*Rank 0 turns to a backward too early: it puts "
            "0B0, which must wait for 1B0, before 0F1",
        ),
        (short_warm_up, "Rank 2 turns to a backward too early: it puts 2B0, which must wait for 3B0, before 2F1"),
        (all_warm_up_alike, "Rank 3 comes to 3B0 too late: it puts 3F3 before it, while rank 2 waits with 2B0"),
        (second_backward_first, "Rank 3 takes the wrong one first: 3B1 before 3B0, while rank 2 waits with 2B0"),
        (newest_backward_first, "Rank 3 takes the wrong one first: 3B2 before 3B1, while rank 2 waits with 2B1"),
        (
            weights_last,
            "rank 0 holds 8 micro-batches at its peak, where 4 will do: what a micro-batch holds is freed by W",
        ),
        (backward_first, "3B0"),
        (forgets_the_last, "0B7"),
        (twice, "0F0"),
        (other_stage, "rank 0, step 0: 3F0 is of stage 3, and rank 0 holds stage 0"),
        (only_even, "p=3, m=5.*F4"),
        (lambda p, m: [[f"{r}F{i}" for i in range(m)] for r in range(p)], "no backwards"),
        (lambda p, m: [[] for _ in range(p)], "0F0"),
        (lambda p, m: None, "one row of actions for each of the 4 ranks; got None"),
        (lambda p, m: "0F0,0B0", "one row of actions for each of the 4 ranks"),
        (lambda p, m: reference(p, m)[1:], "got 3 rows"),
        (lambda p, m: [["forward"]] * p, "rank 0, step 0: 'forward' is no action"),
        (lambda p, m: [[0]] * p, "rank 0, step 0: 0 is no action"),
        (lambda p, m: [5] * p, "rank 0: its row must be a list of actions such as '0F0'; got 5"),
        (lambda p, m: [repeat(None)] * p, "0F0"),
        (raises, r"^line 2 of raises: NotImplementedError: write me \(with p=4, m=8\)$"),
    ],
)
def test_wrong_answers(wrong: Callable[[int, int], Any], says: str) -> None:
    verdict = check_schedule(wrong)
    assert not verdict.passed
    assert re.search(says, verdict.message), verdict.message
    assert "\n" not in verdict.message


def test_with_a_cluster_it_runs_for_real(cluster2: Cluster) -> None:
    verdict = check_schedule(reference, cluster2)
    assert verdict.passed, verdict.message
    assert "ran on 2 real ranks" in verdict.message


def test_what_is_no_cluster_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"cluster must be a tplab\.Cluster"):
        check_schedule(reference, 4)  # type: ignore[arg-type]


def test_an_answer_that_is_wrong_only_on_the_cluster(cluster2: Cluster) -> None:
    verdict = check_schedule(lambda p, m: gpipe(p, m) if (p, m) == (2, 4) else reference(p, m), cluster2)
    assert not verdict.passed
    assert "With p=2, m=4: valid and fast, but rank 0 holds 4" in verdict.message


def test_the_planted_deadlock_does_deadlock() -> None:
    rows = tuple(tuple(Action.parse(cell) for cell in row) for row in deadlock(2, 2))
    assert {action.op for row in rows for action in row} == {Op.F, Op.B}
    with pytest.raises(ValueError, match="wait"):
        validate(Schedule(name="x", num_stages=2, num_micro_batches=2, ranks=rows))
