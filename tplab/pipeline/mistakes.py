"""Pipeline schedules done wrong, in the ways that tutorials do it, for notebook 05 and the tests; never to be used.

The mistakes are those of the article (its system S6), written anew. Both tables run and compute the right gradients,
which is why nothing but a look at the memory, or at the table, finds them.
"""

from tplab.pipeline.build import build_schedule
from tplab.pipeline.schedule import Action, Op, Schedule


def one_micro_batch_too_many(num_stages: int, num_micro_batches: int) -> Schedule:
    """1F1B that warms up with ``min(m, p - r)`` forwards, one more than the backward of the first micro-batch needs.

    Every rank then holds ``min(m, p - r + 1)`` micro-batches where ``min(m, p - r)`` do, and takes as long.
    ``validate(schedule, max_activations=...)`` catches it.
    """
    right = build_schedule("1f1b", num_stages, num_micro_batches)
    rows = []
    for rank in range(num_stages):
        warm_up = min(num_micro_batches, num_stages - rank)
        row = [Action(rank, Op.F, i) for i in range(warm_up)]
        for i in range(num_micro_batches):
            if warm_up + i < num_micro_batches:
                row.append(Action(rank, Op.F, warm_up + i))
            row.append(Action(rank, Op.B, i))
        rows.append(tuple(row))
    return Schedule(
        name="1f1b, one micro-batch too many",
        num_stages=right.num_stages,
        num_micro_batches=right.num_micro_batches,
        ranks=tuple(rows),
    )


def interleaved_in_name_only(num_stages: int, num_micro_batches: int) -> Schedule:
    """Plain 1F1B where interleaved was asked for: one chunk per rank, and 1F1B's bubble."""
    plain = build_schedule("1f1b", num_stages, num_micro_batches)
    return Schedule(
        name="interleaved, in name only",
        num_stages=plain.num_stages,
        num_micro_batches=plain.num_micro_batches,
        ranks=plain.ranks,
    )
