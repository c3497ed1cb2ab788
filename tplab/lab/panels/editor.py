"""The schedule editor with ranks below it: what was drawn runs, measured under simulated."""

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as widgets

from tplab.checks import ArgumentError
from tplab.lab.choice import Choice
from tplab.lab.panels.controls import NamedControls, Settings, wide
from tplab.lab.panels.pipeline import MESSAGE_BYTES, ScheduleRunPanel, stages_control
from tplab.lab.panels.pool import Pool
from tplab.lab.pictures.editor import ScheduleEditor
from tplab.pipeline.costs import Costs
from tplab.pipeline.schedule import Schedule
from tplab.pipeline.validation import validate
from tplab.shown import counted


class _Controls(NamedControls):
    """The panel's controls; of a table it is said whether it is the one that is drawn now, and only one that can run
    is drawn."""

    def check(self, settings: Mapping[str, Any], offered: Mapping[str, Sequence[Any]] | None = None) -> None:
        super().check(settings, offered)
        if "table" in settings:
            validate(Schedule.from_text(settings["table"], name="table"))

    def said(self, settings: Mapping[str, Any]) -> str:
        table, words = self["table"].value, super().said(settings)
        another = ["another table"] if settings.get("table", table) != table else []
        return ", ".join([*another, *([words] if words else [])])


class EditorPanel(ScheduleRunPanel):
    """``editor`` is the :class:`~tplab.lab.pictures.ScheduleEditor`; Run runs ``editor.schedule`` on the pool's ranks.

    The table is a setting like any other: ``configure(table=text)`` draws one, and what is drawn after a run makes the
    figure below it one of an earlier table, which the panel says.

    Args:
        pool: the ranks that it runs on, as many as the table has.
        schedule: what the editor begins with: a name, or a table.
        m: micro-batches of a schedule by name.
    """

    def __init__(self, pool: Pool, schedule: str | Schedule = "1f1b", m: int = 8) -> None:
        self.editor = ScheduleEditor(schedule, pool.num_ranks, m)
        table = widgets.Textarea(value=self.editor.text, layout=widgets.Layout(display="none"))
        named = {
            "table": table,
            "stages": stages_control(),
            "forward_ms": widgets.IntSlider(value=20, min=2, max=100, description="forward ms", **wide(104)),
        }
        super().__init__(pool, title="Your schedule on real ranks", named=named)
        self._run_button.description = "Run it on the ranks"
        self._run_button.layout.width, self._stop_button.layout.width = "64%", "32%"
        self._named = _Controls(self._named)
        heading, body = self.children
        self.children: tuple[widgets.Widget, ...] = (self.editor, heading, body)
        # Not a link in the browser: without a page the two must agree, too.
        self.editor.observe(lambda change: setattr(table, "value", change["new"]), names="text")
        table.observe(lambda change: setattr(self.editor, "text", change["new"]), names="value")

    def suit(self, choice: Choice) -> None:
        super().suit(choice)
        own = "with the ranks' own messages" if choice.on_gpus else "messages take what the editor says"
        self._named["forward_ms"].tooltip = f"how long a forward lasts where stages wait; {own}"

    def schedule_of(self, settings: Settings, num_ranks: int) -> Schedule:
        schedule = self.editor.schedule
        if schedule.num_stages != num_ranks:
            rule = f"must have a row for each rank of the pool, which has {counted(num_ranks, 'rank')}"
            raise ArgumentError("table", f"{schedule.num_stages} rows", rule)
        return schedule

    def costs_of(self, settings: Settings) -> Costs:
        return self.editor.in_seconds(settings["forward_ms"] * 1e-3, message_bytes=MESSAGE_BYTES)
