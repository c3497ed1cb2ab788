"""What a layout of a model costs on a machine, which layout to run, and why. Pure: no torch, no process group.

In this room "kernel" is always a CUDA kernel.
"""

from tplab.models.shards import Layout
from tplab.models.spec import ModelSpec
from tplab.moved import say_new_names
from tplab.topology.advisor.advice import Advice, advise
from tplab.topology.advisor.article import CommunicationTopology, beside_claimed
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.fitting import feasible_choices
from tplab.topology.advisor.layouts import Choice, all_choices
from tplab.topology.advisor.prediction import Prediction, predict
from tplab.topology.advisor.workload import EnginePolicy, Workload

__all__ = [
    "Advice",
    "Calibration",
    "Choice",
    "CommunicationTopology",
    "EnginePolicy",
    "Layout",
    "ModelSpec",
    "Prediction",
    "Workload",
    "advise",
    "all_choices",
    "beside_claimed",
    "feasible_choices",
    "predict",
]

say_new_names(__name__)
