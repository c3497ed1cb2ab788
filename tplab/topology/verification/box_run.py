"""What the steps of ``measure_box`` work with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd

from tplab.cluster import Cluster
from tplab.topology.verification.box_files import BoxFiles
from tplab.topology.verification.box_plan import BoxPlan
from tplab.topology.verification.box_time import BoxTime

Parts = Iterator[pd.DataFrame | None]
"""The parts of a step's table, and None while there is no room for the next one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxRun:
    """One call of ``measure_box``. A step yields ``Parts``, which ``measure_box`` puts into its file."""

    cluster: Cluster
    """All ranks."""
    plan: BoxPlan
    files: BoxFiles
    """Where tables, and what is written beside them, go."""
    time_left: BoxTime
    say: Callable[[str], None]
    """Called with lines about what goes on."""

    def lose(self, part: str, error: Exception) -> None:
        """Say what became of a part that failed or was stopped. It is not tried again."""
        self.time_left.came_to_nothing()
        self.say(f"{part}: left out: {self.time_left.why(error)}")
