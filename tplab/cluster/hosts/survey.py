"""What ``tplab doctor --cluster`` asks a host: one function for each thing it looks at. Runs in the host's engine.

Plain values only, so that any Python can read the answers. torch is not imported: an engine that has imported it keeps
its memory for as long as it lives, and it will never run a rank.
"""

import os
import re
import secrets
import socket
import time
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tplab.cluster.admission import free_memory
from tplab.cluster.backends import num_cores, visible_gpus

FIRST_LOOK = '''
def tplab_first_look():
    """Text that any Python can run, because the host may lack tplab, or have another Python than the kernel."""
    import importlib, os, platform, socket, sys
    from importlib import metadata

    def read(function, path):
        try:
            return function(path)
        except OSError:
            return ""

    def version(package):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return ""

    def text(path):
        with open(path) as file:
            return file.read().strip()

    versions, error = {name: version(name) for name in PACKAGES}, ""
    try:
        import tplab
        versions["tplab"] = str(tplab.__version__)
        import tplab.cluster.hosts.remote
    except Exception as problem:
        error = "%s: %s" % (type(problem).__name__, problem)
    return {
        "hostname": socket.gethostname(),
        "boot_id": read(text, "/proc/sys/kernel/random/boot_id"),
        "network": read(os.readlink, "/proc/self/ns/net"),
        "executable": sys.executable,
        "python": platform.python_version(),
        "versions": versions,
        "error": error,
    }
'''.replace("PACKAGES", repr(("torch", "ipyparallel", "cloudpickle", "numpy")))
"""Defines ``tplab_first_look``: which host this is, its versions, and whether tplab can be imported there."""

SCHEDULERS = {
    "SLURM_JOB_ID": "Slurm job",
    "PBS_JOBID": "PBS job",
    "LSB_JOBID": "LSF job",
    "JOB_ID": "SGE job",
    "OMPI_COMM_WORLD_SIZE": "Open MPI, number of processes",
    "PMI_SIZE": "MPI, number of processes",
    "KUBERNETES_SERVICE_HOST": "Kubernetes, at",
}
"""Variables by which batch systems say that they started a process, and what their value is."""
_SLOW_FOLDERS_S = 2.0  # NFS shows another host's new file when its copy of the folder has aged


def clock() -> float:
    """Seconds since 1970, by this host's clock."""
    return time.time()


def built_with() -> dict[str, str]:
    """``CUDA`` and ``NCCL`` of torch's build, and the GPUs' ``driver``; empty where there is none."""
    return {"CUDA": _cuda_of_torch(), "NCCL": _nccl_of_torch(), "driver": _driver()}


def capacity() -> dict[str, Any]:
    """``cores``, ``free_bytes`` of memory and what limits it (``where``), ``gpus`` as (name, bytes of memory)."""
    free = free_memory()
    return {
        "cores": num_cores(),
        "free_bytes": free.num_bytes,
        "where": free.where,
        "gpus": [(gpu.name, gpu.memory_bytes) for gpu in visible_gpus()],
    }


def limits() -> dict[str, int]:
    """``files`` that a process may open, and bytes of memory that it may lock (``locked``); -1: as many as it likes."""
    import resource  # not on Windows, where there is no engine that starts ranks

    found = {}
    for name, what in (("files", resource.RLIMIT_NOFILE), ("locked", resource.RLIMIT_MEMLOCK)):
        soft = resource.getrlimit(what)[0]
        found[name] = -1 if soft == resource.RLIM_INFINITY else soft
    return found


def own_name() -> tuple[str, list[str]]:
    """The hostname, and the addresses that it stands for here; none where it does not resolve."""
    name = socket.gethostname()
    with suppress(OSError):
        return name, sorted({str(entry[4][0]) for entry in socket.getaddrinfo(name, None)})
    return name, []


def nccl_view() -> dict[str, Any]:
    """``variables`` (NCCL_*, of the environment and of NCCL's files) and ``devices`` (InfiniBand and RoCE, by name)."""
    variables = {}
    for file in (Path("/etc/nccl.conf"), Path(os.environ.get("NCCL_CONF_FILE") or Path.home() / ".nccl.conf")):
        with suppress(OSError, UnicodeDecodeError):
            for line in file.read_text().splitlines():
                name, _, value = line.partition("=")
                if name.strip().startswith("NCCL_"):
                    variables[name.strip()] = value.strip()
    variables |= {name: value for name, value in os.environ.items() if name.startswith("NCCL_")}
    return {"variables": variables, "devices": _fast_devices()}


def scheduler() -> dict[str, str]:
    """Of the variables in ``SCHEDULERS`` those that are set."""
    return {name: os.environ[name] for name in SCHEDULERS if name in os.environ}


def leave_token(folder: str) -> tuple[str, str]:
    """Write a file of its own into ``folder``; returns its name, and what it says."""
    name, text = f".tplab-{secrets.token_hex(8)}", secrets.token_hex(8)
    with open(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return name, text


def read_token(folder: str, name: str) -> str | None:
    """What that file says here; None where there is none, also after a while."""
    until = time.monotonic() + (_SLOW_FOLDERS_S if Path(folder).is_dir() else 0)
    while True:
        with suppress(OSError):
            os.listdir(folder)  # has NFS ask again
            return Path(folder, name).read_text()
        if time.monotonic() > until:
            return None
        time.sleep(0.05)


def remove_token(folder: str, name: str) -> None:
    """Take the file away."""
    Path(folder, name).unlink(missing_ok=True)


def _cuda_of_torch() -> str:
    """From the file in which torch's build says it."""
    found = find_spec("torch")
    with suppress(OSError):
        if found is not None and found.origin is not None:
            text = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
            said = re.search(r"^cuda\b[^=]*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
            return said[1] if said else ""
    return ""


def _nccl_of_torch() -> str:
    """Of the wheel that torch's wheel for CUDA asks for."""
    for each in metadata.distributions():
        name = str(each.metadata["Name"] or "")
        if name.startswith("nvidia-nccl-cu"):
            return str(each.version)
    return ""


def _driver() -> str:
    try:
        import pynvml as nvml

        nvml.nvmlInit()
    except Exception:  # no package, no driver
        return ""
    try:
        return str(nvml.nvmlSystemGetDriverVersion())
    finally:
        nvml.nvmlShutdown()


def _fast_devices() -> list[str]:
    """``mlx5_0 (InfiniBand, 4: ACTIVE)``, of every port that there is."""
    found = []
    with suppress(OSError):
        for device in sorted(Path("/sys/class/infiniband").iterdir()):
            for port in sorted((device / "ports").iterdir()):
                with suppress(OSError):
                    kind, state = ((port / name).read_text().strip() for name in ("link_layer", "state"))
                    found.append(f"{device.name} ({kind}, {state})")
    return found
