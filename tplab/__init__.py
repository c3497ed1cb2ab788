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

__version__ = "0.1.0"

_HOME_OF = {
    "Cluster": "tplab.cluster",
    # As the article calls them.
    "TensorParallelAttention": "tplab.layers",
    "TensorParallelLinear": "tplab.layers",
}

__all__ = ["Cluster", "TensorParallelAttention", "TensorParallelLinear", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tplab' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
