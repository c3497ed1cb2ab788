"""GPUs and the link of every pair, and which of them a layout takes.

Public names load on first use.
"""

from typing import TYPE_CHECKING

from tplab.lazy import lazy_names

if TYPE_CHECKING:
    from tplab.topology.machine.grouping import placement_of as placement_of
    from tplab.topology.machine.machine import Gpu as Gpu
    from tplab.topology.machine.machine import Link as Link
    from tplab.topology.machine.machine import Machine as Machine
    from tplab.topology.machine.placement import Placement as Placement
    from tplab.topology.machine.placement import place as place

__getattr__, __dir__, __all__ = lazy_names(__name__)
