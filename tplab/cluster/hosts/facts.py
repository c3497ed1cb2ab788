"""What a host says of itself. Runs in the host's engine; imports neither torch nor what a host may lack."""

import os
import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import tplab
from tplab.cluster.backends import num_cores, visible_gpus

PACKAGES = ("tplab", "torch", "ipyparallel", "cloudpickle", "numpy")


def describe() -> dict[str, Any]:
    """Plain values only, so that any Python can read them: ``hostname``, ``boot_id`` and ``network`` (together they say
    which host this is), ``pid``, ``user``, ``python``, ``executable``, ``versions`` (of packages), ``num_cores``,
    ``num_gpus`` and ``gpu_names``, ``interface`` (what GLOO_SOCKET_IFNAME says)."""
    gpus = visible_gpus()
    return {
        "hostname": socket.gethostname(),
        "boot_id": _read("/proc/sys/kernel/random/boot_id"),
        "network": _link("/proc/self/ns/net"),
        "pid": os.getpid(),
        "user": os.getuid(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "versions": {name: _version(name) for name in PACKAGES},
        "num_cores": num_cores(),
        "num_gpus": len(gpus),
        "gpu_names": [gpu.name for gpu in gpus],
        "interface": os.environ.get("GLOO_SOCKET_IFNAME", ""),
    }


def host_key(facts: Mapping[str, Any]) -> tuple[str, str, str]:
    """What is the same of two that are on one host."""
    return facts["hostname"], facts["boot_id"], facts["network"]


def host_names(told: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for the host of each: its own, with a number where several hosts go by it."""
    names: dict[tuple[str, ...], str] = {}
    for key in map(host_key, told):
        if key not in names:
            same = sum(other[0] == key[0] for other in names)
            names[key] = f"{key[0]}-{same + 1}" if same else key[0]
    return [names[host_key(each)] for each in told]


def _version(package: str) -> str:
    if package == "tplab":
        return str(tplab.__version__)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
