"""What a layout of a model costs on a machine, which layout to run, and why. Pure: no torch, no process group.

In this room "kernel" is always a CUDA kernel.

Public names load on first use.
"""

from typing import TYPE_CHECKING

from tplab.lazy import lazy_names

if TYPE_CHECKING:
    from tplab.models.shards import Layout as Layout
    from tplab.models.spec import ModelSpec as ModelSpec
    from tplab.topology.advisor.advice import Advice as Advice
    from tplab.topology.advisor.advice import advise as advise
    from tplab.topology.advisor.article import CommunicationTopology as CommunicationTopology
    from tplab.topology.advisor.article import beside_claimed as beside_claimed
    from tplab.topology.advisor.calibration import Calibration as Calibration
    from tplab.topology.advisor.fitting import feasible_choices as feasible_choices
    from tplab.topology.advisor.layouts import Choice as Choice
    from tplab.topology.advisor.layouts import all_choices as all_choices
    from tplab.topology.advisor.prediction import Prediction as Prediction
    from tplab.topology.advisor.prediction import predict as predict
    from tplab.topology.advisor.workload import EnginePolicy as EnginePolicy
    from tplab.topology.advisor.workload import Workload as Workload

__getattr__, __dir__, __all__ = lazy_names(__name__)
