"""The article's pipeline scheduler (S5 and S6, see docs/article.md), with its names and right results.

What one stage does is a list of dicts. What the article's code did instead is in ``tplab.pipeline.mistakes``. For
anything but reading the order, the table of ``tplab.pipeline.build_schedule`` is the better thing to have: it knows all
ranks.
"""

from dataclasses import dataclass
from typing import Any

from tplab.checks import check_count, check_one_of
from tplab.pipeline.build import build_schedule
from tplab.pipeline.schedule import Op, Schedule

CHOICES = ("1f1b", "gpipe", "interleaved")


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """What to schedule. Unlike the lab's other dataclasses it takes positions, as the article's does."""

    num_stages: int = 4
    """p, ranks in the pipeline."""
    num_micro_batches: int = 8
    """m, micro-batches."""
    pipeline_schedule: str = "1f1b"
    """``1f1b``, ``gpipe`` or ``interleaved``."""
    num_chunks: int | None = None
    """v, chunks per rank: by default 2 for ``interleaved``, and 1 for the others, which allow no more."""

    def __post_init__(self) -> None:
        check_one_of("pipeline_schedule", self.pipeline_schedule, CHOICES)  # build_schedule has more
        self.build()

    def build(self) -> Schedule:
        """The table of all ranks."""
        default = 2 if self.pipeline_schedule == "interleaved" else 1
        return build_schedule(
            self.pipeline_schedule,
            self.num_stages,
            self.num_micro_batches,
            default if self.num_chunks is None else self.num_chunks,
        )


class PipelineScheduler:
    """The work of one rank.

    Args:
        config: the pipeline.
        stage_id: the rank, 0 to ``config.num_stages - 1``. (With chunks it holds more than one stage.)

    Raises:
        ValueError: a rank that is not in the pipeline.
    """

    def __init__(self, config: PipelineConfig, stage_id: int) -> None:
        check_count("stage_id", stage_id, most=config.num_stages - 1)
        self.config = config
        self.stage_id = stage_id

    def get_schedule(self) -> list[dict[str, Any]]:
        """The order of work: ``type`` (``forward`` or ``backward``) and ``micro_batch``; with ``1f1b`` and
        ``interleaved`` also ``action`` (``compute_forward`` or ``compute_backward``), with ``interleaved`` ``chunk``,
        0 to v - 1, the rank's stage being ``chunk·p + stage_id``."""
        name, p = self.config.pipeline_schedule, self.config.num_stages
        steps = []
        for action in self.config.build().ranks[self.stage_id]:
            assert action is not None
            kind = "forward" if action.op is Op.F else "backward"
            step: dict[str, Any] = {"type": kind, "micro_batch": action.micro_batch}
            if name != "gpipe":
                step["action"] = f"compute_{kind}"
            if name == "interleaved":
                step["chunk"] = action.stage // p
            steps.append(step)
        return steps
