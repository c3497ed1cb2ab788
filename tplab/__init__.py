"""tplab: tensor and pipeline parallelism you can predict, run and measure.

Public names load on first use, not on ``import tplab``: every rank imports this package before torch, and a rank that
also imported the widgets would start half a second later.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tplab.cluster import Cluster as Cluster
    from tplab.layers import TensorParallelAttention as TensorParallelAttention
    from tplab.layers import TensorParallelLinear as TensorParallelLinear
    from tplab.models import generate as generate
    from tplab.pipeline import PipelineConfig as PipelineConfig
    from tplab.pipeline import PipelineScheduler as PipelineScheduler
    from tplab.topology import CommunicationTopology as CommunicationTopology
    from tplab.topology import advise as advise

__version__ = "0.1.0"

_HOME_OF = {
    "Cluster": "tplab.cluster",
    "advise": "tplab.topology",
    "generate": "tplab.models",
    # As the article calls them.
    "CommunicationTopology": "tplab.topology",
    "PipelineConfig": "tplab.pipeline",
    "PipelineScheduler": "tplab.pipeline",
    "TensorParallelAttention": "tplab.layers",
    "TensorParallelLinear": "tplab.layers",
}

__all__ = sorted([*_HOME_OF, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tplab' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
