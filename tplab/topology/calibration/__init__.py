"""What a machine's links, processors and the lab's engine really do, measured on the ranks of a cluster."""

from tplab.moved import say_new_names
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.calibration.from_nccl import calibration_of_nccl
from tplab.topology.calibration.run import calibrate, submit_calibrate

__all__ = [
    "Calibration",
    "calibrate",
    "calibration_of_nccl",
    "submit_calibrate",
]

say_new_names(__name__)
