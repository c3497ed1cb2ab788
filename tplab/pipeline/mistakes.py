"""Pipeline schedules done wrong, in the ways that tutorials do it, for notebook 05 and the tests; never to be used.

The mistakes are those of the article (its system S6, see docs/article.md), written anew. Both tables run and compute
the right gradients, which is why nothing but a look at the memory, or at the table, finds them.
"""

from typing import TYPE_CHECKING

from tplab.moved import say_new_names
from tplab.pipeline.build import build_schedule
from tplab.pipeline.faults import ScheduleError
from tplab.pipeline.schedule import Action, Op, Schedule
from tplab.pipeline.simulation import simulate
from tplab.pipeline.validation import peak_held, validate

if TYPE_CHECKING:
    import pandas as pd


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


def mistakes_frame(num_stages: int = 4, num_micro_batches: int = 8) -> "pd.DataFrame":
    """Both mistakes beside what they should have been, with F = I = W = 1.

    Returns a row per mistake: ``system``, ``mistake``, ``wrong_makespan`` and ``right_makespan`` (in units of F),
    ``wrong_peak`` and ``right_peak`` (micro-batches held, by rank), ``caught`` (what the check with the right peaks as
    caps says of it; empty where it says nothing), ``why``.
    """
    import pandas as pd

    pairs = (
        (
            one_micro_batch_too_many(num_stages, num_micro_batches),
            build_schedule("1f1b", num_stages, num_micro_batches),
            "warms up with one forward more than the first backward waits for: one more micro-batch is kept alive",
        ),
        (
            interleaved_in_name_only(num_stages, num_micro_batches),
            build_schedule("interleaved", num_stages, num_micro_batches, 2),
            "one chunk per rank is 1F1B: the bubble stays what it was; it has to be seen in the time, for it is right",
        ),
    )
    return pd.DataFrame(
        {
            "system": "S6",
            "mistake": wrong.name,
            "wrong_makespan": simulate(wrong).makespan_s,
            "right_makespan": simulate(right).makespan_s,
            "wrong_peak": peak_held(wrong),
            "right_peak": peak_held(right),
            "caught": _caught(wrong, peak_held(right)),
            "why": why,
        }
        for wrong, right, why in pairs
    )


def _caught(wrong: Schedule, caps: tuple[float, ...]) -> str:
    try:
        validate(wrong, max_activations=caps)
    except ScheduleError as error:
        return str(error.faults[0])
    return ""


say_new_names(__name__)
