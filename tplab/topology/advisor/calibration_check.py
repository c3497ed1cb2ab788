"""Whether a calibration can be of a machine: numbers of one GPU must not be taken for another's without a word.

Refuses only what is certain. A calibration has the name that the driver gives the device, a machine that of a spec
sheet or again the driver's; what is known of neither may be the same thing under two names, and passes.
"""

from tplab.checks import ArgumentError
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.machine.gpu_names import gpus_called
from tplab.topology.machine.machine import Machine


def check_calibration(calibration: Calibration, machine: Machine) -> None:
    """Does nothing where ``calibration`` may have been made on ``machine``.

    The number of ranks is not asked for: a calibration of four GPUs says much of two of them.

    Raises:
        ValueError: it was made on other GPUs, both known by their spec sheets, or on a CPU and the machine has GPUs, or
            the other way round. Names both, and the way out.
    """
    made_on, used_on = gpus_called(calibration.device), gpus_called(machine.gpu.name)
    on_gpu = calibration.backend == "nccl" or bool(made_on)
    if on_gpu == (machine.gpu.kind == "gpu") and (not made_on or not used_on or made_on & used_on):
        return
    where = calibration.device if on_gpu else f"{calibration.device}, a processor ({calibration.backend})"
    what = "GPUs" if machine.gpu.kind == "gpu" else "ranks"
    raise ArgumentError(
        "machine",
        f"{machine.name}, whose {what} are {machine.gpu.name}",
        f"must be what the calibration is of, {where}: leave it out to take that, or run tplab calibrate on the other",
    )
