"""What the steps of ``measure_box`` work with."""

from collections.abc import Callable
from dataclasses import dataclass

from tplab.cluster import Cluster
from tplab.topology.verification.box_files import BoxFiles
from tplab.topology.verification.box_plan import BoxPlan
from tplab.topology.verification.box_time import BoxTime


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxRun:
    """One call of ``measure_box``. A step yields the parts of its table; ``measure_box`` puts them into its file."""

    cluster: Cluster
    """All ranks."""
    plan: BoxPlan
    files: BoxFiles
    """Where the files go that are written beside the tables."""
    time_left: BoxTime
    say: Callable[[str], None]
    """Called with lines about what goes on."""
