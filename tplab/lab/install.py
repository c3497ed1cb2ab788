"""Checks of an installation beside those of the machine: a fresh kernel, write access, disk; and the verdict in a line.

What a room full of people runs into: the kernel of another environment, notebooks in a folder that they may not write
to, a full disk, a container whose shared memory is too small for NCCL.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tplab
from tplab.cluster.backends import num_gpus
from tplab.lab.finding import Check, Status
from tplab.lab.shipped import CHECKOUT
from tplab.lab.shipped.copying import default_folder, find_workplace
from tplab.needs import LAYERS, missing

_WITHOUT = {
    "run": "No ranks start here, so that nothing can be measured; plans and predictions need none.",
    "notebook": "A notebook shows no panels.",
    "lab": "There is no JupyterLab here for `tplab lab`.",
}
"""What is not to be had without a layer."""
_DISK_GB = 1.0
_SHARED_GB = 0.25
"""Shared memory below which NCCL's own transport between processes is known to fail; Docker gives 0.064."""
_KERNEL_S = 60.0
_LOOK = "import sys, tplab.lab; print(sys.executable, tplab.__file__, sep='\\n')"


def layer_checks() -> list[Check]:
    """The layers of packages: what those that are not here would bring. One of which a part is here is a problem."""
    found = []
    for layer, without in _WITHOUT.items():
        lacking = missing(LAYERS[layer])
        whole = len(lacking) == len(LAYERS[layer])
        if lacking:
            named = "not installed" if whole else f"{', '.join(lacking)} missing"
            cure = f'pip install "tplab[{layer}]"'
            status: Status = "note" if whole else "problem"
            found.append(Check(name=f"tplab[{layer}]", found=named, status=status, meaning=without, cure=cure))
    return found


def install_checks() -> list[Check]:
    """Those that take no time: write access, disk, shared memory."""
    folder = _notebooks()
    return [_writable(folder), _disk(folder), *_shared_memory()]


def verdict(checks: Sequence[Check], onward: str = "") -> str:
    """All of it in one line; ``onward`` is what to do next where all is well (default: to open the lab)."""
    problems = [check.name for check in checks if check.status == "problem"]
    notes = sum(check.status == "note" for check in checks)
    if problems:
        noun = "problem" if len(problems) == 1 else "problems"
        return f"NOT READY: {len(problems)} {noun} ({', '.join(problems)}). What to do stands beside each."
    noted = f", {notes} to know of" if notes else ""
    if not onward:
        onward = "`tplab lab` and go" if not missing(["jupyterlab"]) else "`tplab --help` lists what there is"
    return f"READY: no problems found in {len(checks)} checks{noted}. {onward}."


def kernel_check() -> Check:
    """Start a fresh notebook kernel, as JupyterLab would, and import the lab in it."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    try:
        manager.start_kernel(extra_arguments=["--log-level=ERROR"])  # not its warnings, on this terminal
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=_KERNEL_S)
        said: list[str] = []
        reply = client.execute_interactive(
            _LOOK,
            timeout=_KERNEL_S,
            output_hook=lambda message: said.append(message["content"].get("text", "")),
        )
        client.stop_channels()
    except Exception as error:  # of many kinds: no kernelspec, a kernel that dies, a firewall on loopback
        return Check(
            name="kernel",
            found="does not start",
            status="problem",
            meaning=f"A fresh notebook kernel failed: {str(error).splitlines()[0] if str(error) else repr(error)}",
            cure="pip install --force-reinstall ipykernel in this environment, then restart JupyterLab.",
        )
    finally:
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)
    lines = "".join(said).split("\n")
    if reply["content"]["status"] != "ok":
        return Check(
            name="kernel",
            found="cannot import tplab",
            status="problem",
            meaning=f"{reply['content'].get('ename')}: {reply['content'].get('evalue')}",
            cure=f"The kernel 'python3' is another environment's: {sys.executable} -m ipykernel install --sys-prefix.",
        )
    if lines[:2] != [sys.executable, str(tplab.__file__)]:
        return Check(
            name="kernel",
            found=f"runs {lines[0]}",
            status="note",
            meaning=f"Notebooks use another Python than this command ({sys.executable}).",
            cure=f"If that is not meant: {sys.executable} -m ipykernel install --sys-prefix.",
        )
    return Check(name="kernel", found="a fresh one starts and imports tplab")


def _notebooks() -> Path:
    """Where a learner's notebooks are: here, in a notebook's kernel; else below, or in the clone; else they are to come
    here."""
    found = (find_workplace(each) for each in (default_folder(), CHECKOUT))
    return next((place.path for place in found if place is not None), Path())


def _named(folder: Path) -> str:
    """A folder in words: that in which this runs without its path, which stored notebooks would tell everybody."""
    return "this folder" if folder.resolve() == Path().resolve() else str(folder.resolve())


def _writable(folder: Path) -> Check:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Check(name="notebooks' folder", found=f"{_named(folder)} may be written")
    except OSError as error:
        return Check(
            name="notebooks' folder",
            found=f"{_named(folder)}: {error.strerror}",
            status="problem",
            meaning="Notebooks, and the progress kept beside them, cannot be saved there.",
            cure="Open them in a folder of your own, which gets a copy: tplab lab ~/tplab-lab",
        )


def _disk(folder: Path) -> Check:
    places = dict.fromkeys((folder.resolve(), Path(tempfile.gettempdir())))
    free = {place: shutil.disk_usage(place).free / 1e9 for place in places}
    least = min(free, key=lambda place: free[place])
    found = ", ".join(f"{gb:.1f} GB free in {_named(place)}" for place, gb in free.items())
    if free[least] >= _DISK_GB:
        return Check(name="disk", found=found)
    return Check(
        name="disk",
        found=found,
        status="problem" if free[least] < 0.1 else "note",
        meaning=f"Notebook 08 writes checkpoints and traces, which may fail with less than {_DISK_GB:g} GB there.",
        cure="Make room there, or set TMPDIR to a folder on another disk.",
    )


def _shared_memory() -> list[Check]:
    shared = Path("/dev/shm")
    if not shared.is_dir() or num_gpus() < 2:
        return []
    size = shutil.disk_usage(shared).total / 1e9
    if size >= _SHARED_GB:
        return [Check(name="shared memory", found=f"{size:.1f} GB in {shared}")]
    return [
        Check(
            name="shared memory",
            found=f"{size:.2f} GB in {shared}",
            status="note",
            meaning="NCCL passes data between processes through it, and may fail to connect.",
            cure="In Docker: --shm-size=1g; in Kubernetes: an emptyDir of medium Memory at /dev/shm.",
        )
    ]
