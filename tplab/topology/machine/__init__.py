"""GPUs and the link of every pair, and which of them a layout takes."""

from tplab.moved import say_new_names
from tplab.topology.machine.grouping import placement_of
from tplab.topology.machine.machine import Gpu, Link, Machine
from tplab.topology.machine.placement import Placement, place

__all__ = [
    "Gpu",
    "Link",
    "Machine",
    "Placement",
    "place",
    "placement_of",
]

say_new_names(__name__)
