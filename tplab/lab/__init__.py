"""What people see: figures, panels, the preflight table, exercises.

style       colours, the figure card, the badge
figures/    tidy frame in, plotly figure out
panels/     ipywidgets around the public functions
checks      what this machine can do, and what is wrong with it
predict     the learner commits a number before anything runs
exercises   stubs' checkers
"""

from tplab.lab.checks import preflight, preflight_table
from tplab.lab.exercises import check_reduction
from tplab.lab.panels.hello import HelloPanel
from tplab.lab.panels.pool import Pool
from tplab.lab.panels.ring import RingStepper
from tplab.lab.panels.sweep import SweepPanel
from tplab.lab.predict import Predict

__all__ = [
    "HelloPanel",
    "Pool",
    "Predict",
    "RingStepper",
    "SweepPanel",
    "check_reduction",
    "preflight",
    "preflight_table",
]
