"""tplab: tensor and pipeline parallelism you can predict, run and measure.

Public names load on first use, not on ``import tplab``: every rank imports this package before torch, and a rank that
also imported the widgets would start half a second later.
"""

from typing import TYPE_CHECKING, Any

from tplab.lazy import lazy_names
from tplab.moved import find_moved_modules

if TYPE_CHECKING:
    from tplab.cluster import Cluster as Cluster
    from tplab.layers import TensorParallelAttention as TensorParallelAttention
    from tplab.layers import TensorParallelLinear as TensorParallelLinear
    from tplab.models import ModelSpec as ModelSpec
    from tplab.models import generate as generate
    from tplab.pipeline import PipelineConfig as PipelineConfig
    from tplab.pipeline import PipelineScheduler as PipelineScheduler
    from tplab.topology import CommunicationTopology as CommunicationTopology
    from tplab.topology import Machine as Machine
    from tplab.topology import Workload as Workload
    from tplab.topology import advise as advise
    from tplab.topology import calibrate as calibrate
    from tplab.topology import fits as fits
    from tplab.topology import predict as predict
    from tplab.topology import verify as verify

__version__ = "0.3.0"

__getattr__, __dir__, __all__ = lazy_names(__name__)
__all__ += ["__version__"]


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext tplab``: cells that run on every rank, ``%%ranks``."""
    from tplab.lab.ranks import RanksMagics

    if RanksMagics.__name__ not in shell.magics_manager.registry:  # it would forget its ranks
        shell.register_magics(RanksMagics)


find_moved_modules()
