"""The schedule editor: every action of a pipeline a tile, dragged about and judged at once. "Beat 1F1B".

The page validates and simulates by itself, so it needs no kernel; with one, Python is the judge of what it hands back:
``schedule`` is checked like any other table.
"""

from dataclasses import replace
from typing import Any, ClassVar

import traitlets

from tplab.checks import ArgumentError, check_number
from tplab.lab.pictures.picture import Picture
from tplab.pipeline.build import build_schedule
from tplab.pipeline.communication import drop_communication
from tplab.pipeline.costs import Costs
from tplab.pipeline.schedule import MicroBatch, Schedule
from tplab.pipeline.simulation import simulate
from tplab.pipeline.trace import Trace
from tplab.pipeline.validation import peak_held, validate

MOST_ACTIONS = 2048
"""Most actions of a table in the editor: each is a tile."""


class ScheduleEditor(Picture):
    """``ScheduleEditor("1f1b", 4, 8)``: drag tiles; what was drawn is ``schedule``, and ``trace`` its simulation.

    Args:
        schedule: a name that ``build_schedule`` knows, or a table; sends and receives in it are left out.
        p, m: ranks and micro-batches of a schedule by name; interleaved has 2 chunks per rank.
        forward, input_grad, weight_grad, hop: times of the parts of a rank's share, and of a message, in forwards.
        cap: the most micro-batches that a rank may hold; by default what 1F1B holds, or more where the table does.

    Raises:
        ValueError: a table that cannot run, or of too many actions; times that are no numbers.
    """

    module: ClassVar[str] = "editor"
    caption: ClassVar[str] = "Schedule editor: beat 1F1B"

    text = traitlets.Unicode(help="the table as torch.distributed.pipelining writes it, one line per rank").tag(
        sync=True
    )
    original = traitlets.Unicode(help="the table that the editor was made with").tag(sync=True)
    name = traitlets.Unicode(help="name of that table").tag(sync=True)
    needs = traitlets.List(help="of `original` in inference: phase, kv_from and token_from of each micro-batch").tag(
        sync=True
    )
    costs = traitlets.Dict(help="forward, input, weight, hop: times in forwards").tag(sync=True)
    cap = traitlets.Float(None, allow_none=True, help="most micro-batches that a rank may hold").tag(sync=True)
    result = traitlets.Dict(
        help="what the page says of the table: makespan, idle_over_total, peaks, over_cap, beats_1f1b"
    ).tag(sync=True)
    refusal = traitlets.Unicode(help="why the last move was refused; empty if it was not").tag(sync=True)

    def __init__(
        self,
        schedule: str | Schedule = "1f1b",
        p: int = 4,
        m: int = 8,
        *,
        forward: float = 1.0,
        input_grad: float = 1.0,
        weight_grad: float = 1.0,
        hop: float = 0.0,
        cap: float | None = None,
        **widget: Any,
    ) -> None:
        super().__init__(**widget)
        times = {"forward": forward, "input": input_grad, "weight": weight_grad, "hop": hop}
        for argument, value in zip(("forward", "input_grad", "weight_grad", "hop"), times.values(), strict=True):
            check_number(argument, value, least=0.0)
        if cap is not None:
            check_number("cap", cap, least=1)
        self.costs = times
        if isinstance(schedule, str):
            schedule = build_schedule(schedule, p, m, 2 if schedule == "interleaved" else 1)
        self.show(schedule)
        if cap is not None:
            self.cap = cap

    def show(self, schedule: Schedule) -> None:
        """Begin with another table; errors as for the class."""
        schedule = drop_communication(schedule)
        validate(schedule)
        if schedule.num_actions > MOST_ACTIONS:
            rule = f"must have at most {MOST_ACTIONS:,} actions for the editor: take fewer micro-batches"
            raise ArgumentError("schedule", f"{schedule.num_actions:,} actions", rule)
        with self.hold_sync():
            self.name = schedule.name
            self.needs = [list(each) for each in schedule.micro_batches]
            least = min(schedule.num_stages, schedule.num_micro_batches)
            self.cap = None if schedule.is_inference else max(float(least), *peak_held(schedule))
            self.text = self.original = schedule.to_text()

    @property
    def schedule(self) -> Schedule:
        """The table as it is drawn. Raises ``ScheduleError`` should the page have made one that cannot run."""
        schedule = Schedule.from_text(self.text, name="your schedule")
        if schedule.is_inference and self.needs:  # of the table that the editor was made with: all others train
            schedule = replace(schedule, micro_batches=tuple(MicroBatch(*each) for each in self.needs))
        validate(schedule, max_activations=None if schedule.is_inference else self.cap)
        return schedule

    @property
    def trace(self) -> Trace:
        """The simulation of ``schedule``, in forwards."""
        return simulate(self.schedule, self.in_seconds(1.0))

    def in_seconds(self, forward_s: float, **more: Any) -> Costs:
        """The editor's times where a forward takes ``forward_s``; ``more``: other fields of :class:`Costs`."""
        times = {name: value * forward_s for name, value in self.costs.items()}
        return Costs(
            forward_s=times["forward"],
            input_grad_s=times["input"],
            weight_grad_s=times["weight"],
            hop_s=times["hop"],
            **more,
        )
