"""Panels: ipywidgets around public functions. A button does nothing that a method of the panel cannot do."""

from tplab.lab.panels.base import RunPanel
from tplab.lab.panels.hello import HelloPanel
from tplab.lab.panels.pool import Pool
from tplab.lab.panels.ring import RingStepper
from tplab.lab.panels.sweep import SweepPanel

__all__ = ["HelloPanel", "Pool", "RingStepper", "RunPanel", "SweepPanel"]
