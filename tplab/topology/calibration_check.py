"""Whether a calibration can be of a machine: numbers of one GPU must not be taken for another's without a word.

Refuses only what is certain. A calibration has the name that the driver gives the device, a machine that of a spec
sheet or again the driver's; what is known of neither may be the same thing under two names, and passes.
"""

import re

from tplab.topology.calibration import Calibration
from tplab.topology.detect import preset_of
from tplab.topology.machine import Machine
from tplab.topology.presets import GPUS


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
    raise ValueError(
        f"the calibration is of {where}, and the {what} of {machine.name} are {machine.gpu.name}: leave out the "
        f"machine to take the one that was calibrated, or run tplab calibrate on the other"
    )


def gpus_called(name: str) -> frozenset[str]:
    """Names in ``presets.GPUS`` that a GPU may have which is called ``name`` there or by its driver; several where only
    its memory would tell them apart, none where there is no such spec sheet."""
    if name in GPUS:
        return frozenset({name})
    found = {gpu.name: gpu for size in GPUS.values() if (gpu := preset_of(name, size.memory_GB)) is not None}
    said = re.search(r"(\d+) ?GB", name)
    if said and found:
        nearest = min(abs(gpu.memory_GB - float(said[1])) for gpu in found.values())
        found = {key: gpu for key, gpu in found.items() if abs(gpu.memory_GB - float(said[1])) == nearest}
    return frozenset(found)
