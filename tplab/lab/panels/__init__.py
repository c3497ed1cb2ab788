"""Panels: ipywidgets around public functions. A button does nothing that a method of the panel cannot do."""

from typing import TYPE_CHECKING

from tplab.lazy import lazy_names

if TYPE_CHECKING:
    from tplab.lab.panels.base import RunPanel as RunPanel
    from tplab.lab.panels.hello import HelloPanel as HelloPanel
    from tplab.lab.panels.pool import Pool as Pool
    from tplab.lab.panels.race import RacePanel as RacePanel
    from tplab.lab.panels.sweep import SweepPanel as SweepPanel

__getattr__, __dir__, __all__ = lazy_names(__name__)
