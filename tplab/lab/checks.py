"""What this machine can do for the lab, and what is wrong with it: ``tplab doctor`` and notebook 00's first table.

Each check looks at the thing itself (imports it, binds the port, runs the all-reduce), because an installed package
says little about a working one. A finding that is not ``ok`` carries a plain sentence and its cure.
"""

import platform
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import pandas as pd

from tplab.cluster import Cluster
from tplab.cluster.admission import THIS_MACHINE, free_memory
from tplab.cluster.backends import LOOPBACK, num_cores, num_gpus
from tplab.cluster.sockets import can_tell
from tplab.lab.finding import Check
from tplab.lab.install import install_checks, kernel_check, layer_checks
from tplab.lab.tried_ranks import try_ranks
from tplab.needs import MissingLayer, missing, needed_by

T = TypeVar("T")
Look = Callable[[], Check | Iterable[Check]]

OLDEST_TORCH = (2, 11)
NEWEST_TORCH_TRIED = (2, 13)
_IN_SHORT = ("torch", "CPU cores", "memory", "GPUs")  # of all that is well, what the one line says
_RANK_GB = 0.3  # a gloo rank after its first all-reduce, with its share of the pages it has to itself


def preflight(*, ranks: bool = False) -> list[Check]:
    """Look at everything; ``ranks=True`` also starts a kernel, and two ranks that all-reduce (some seconds)."""
    looks: list[Look] = [_python, _system, _torch, _cores, _memory, _gpus, _links, _loopback, _others]
    looks += [layer_checks, _front_end, _lab_extensions, install_checks]
    looks += [kernel_check, _all_reduce] if ranks else []
    return [check for look in looks for check in _seen(look)]


def _seen(look: Look) -> Iterable[Check]:
    """What a check finds; nothing where it lacks a layer, which ``layer_checks`` says."""
    try:
        with needed_by(look.__name__):
            found = look()
            return [found] if isinstance(found, Check) else list(found)
    except MissingLayer:
        return ()


def preflight_frame(checks: list[Check]) -> pd.DataFrame:
    """One row per check."""
    return pd.DataFrame([{name: getattr(check, name) for name in Check.__slots__} for check in checks])


class PreflightTable:
    """The checks as a table in the page; a plain one in a terminal."""

    def __init__(self, checks: list[Check]) -> None:
        self.checks = checks

    def __repr__(self) -> str:
        marks = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            lines.append(f"{marks[check.status]}  {check.name:<{width}}  {check.found}")
            lines += [f"{'':{width + 11}}{text}" for text in (check.meaning, check.cure) if text]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from tplab.lab import style
        from tplab.lab.panels import html

        colours = {"ok": style.WEIGHT_GRADIENT, "note": style.FORWARD, "problem": style.COLLECTIVE}

        def table(checks: list[Check]) -> str:
            rows = [
                (
                    html.pill(check.status, colours[check.status]),
                    escape(check.name),
                    escape(check.found),
                    escape(" ".join(filter(None, (check.meaning, check.cure)))),
                )
                for check in checks
            ]
            return html.table(("", "what", "found here", "what it means"), rows)

        # What needs no attention takes one line; what does, stands below it.
        well = [check for check in self.checks if check.status == "ok"]
        others = [check for check in self.checks if check.status != "ok"]
        noun = "check" if len(well) == 1 else "checks"
        about = ", ".join(f"{check.name} {check.found}" for check in well if check.name in _IN_SHORT)
        return (
            f'<details><summary style="cursor:pointer">{html.pill("ok", colours["ok"])}&nbsp; {len(well)} {noun}: '
            f"{escape(about)}</summary>{table(well)}</details>{table(others) if others else ''}"
        )


def preflight_table(*, ranks: bool = False) -> PreflightTable:
    """:func:`preflight` as a table for a notebook."""
    return PreflightTable(preflight(ranks=ranks))


def _python() -> Check:
    where = "in a virtual environment" if sys.prefix != sys.base_prefix else "not in a virtual environment"
    return Check(name="Python", found=f"{platform.python_version()} ({where})")


def _system() -> Check:
    found = f"{platform.system()} {platform.machine()}"
    if sys.platform == "linux":
        return Check(name="system", found=found)
    if sys.platform == "darwin":
        return Check(
            name="system",
            found=found,
            status="note",
            meaning="macOS runs every notebook with gloo on the CPU; NCCL needs Linux.",
        )
    return Check(
        name="system",
        found=found,
        status="problem",
        meaning="Ranks need POSIX sessions and signals.",
        cure="On Windows, install and open the lab inside WSL.",
    )


def _torch() -> Iterator[Check]:
    try:
        import torch
        import torch.distributed as dist
    except ImportError as error:
        if error.name == "torch":
            raise
        yield Check(
            name="torch",
            found="cannot be imported",
            status="problem",
            meaning=str(error),
            cure="Install it again: pip install --force-reinstall 'torch>=2.11'.",
        )
        return
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    found = f"{torch.__version__} ({'CUDA ' + torch.version.cuda if torch.version.cuda else 'CPU build'})"
    if release < OLDEST_TORCH:
        yield Check(
            name="torch",
            found=found,
            status="problem",
            meaning="tplab needs torch 2.11 or newer.",
            cure="pip install --upgrade 'torch>=2.11'.",
        )
    elif release > NEWEST_TORCH_TRIED:
        yield Check(
            name="torch",
            found=found,
            status="note",
            meaning="Newer than the releases tplab was tried with (2.11 to 2.13).",
            cure="If something breaks: pip install -c constraints.txt torch.",
        )
    else:
        yield Check(name="torch", found=found)
    if dist.is_available() and dist.is_gloo_available():
        yield Check(name="gloo", found="available")
    else:
        yield Check(
            name="gloo",
            found="missing",
            status="problem",
            meaning="This torch build has no gloo, so no ranks on the CPU.",
            cure="Install torch from its official wheels or from conda-forge.",
        )
    if dist.is_available() and dist.is_nccl_available():
        yield Check(name="NCCL", found=".".join(map(str, torch.cuda.nccl.version())))  # type: ignore[no-untyped-call]
    else:
        yield Check(name="NCCL", found="not in this build (gloo is used)")


def _cores() -> Check:
    cores = num_cores()
    if cores >= 2:
        return Check(name="CPU cores", found=str(cores))
    return Check(
        name="CPU cores",
        found="1",
        status="note",
        meaning="Two ranks take turns on one core: results are right, times are not those of two machines.",
    )


def _memory() -> Check:
    free = free_memory()
    found = f"{free.num_bytes / 1e9:.1f} GB free" + (f" ({free.where})" if free.where != THIS_MACHINE else "")
    room = int(free.num_bytes / 1e9 / _RANK_GB)
    if room >= 4:
        return Check(name="memory", found=found)
    return Check(
        name="memory",
        found=found,
        status="problem" if room < 2 else "note",
        meaning=f"A rank takes about {_RANK_GB} GB with what it computes: there is room for about {room}.",
        cure="Close other notebooks (each keeps its kernel and ranks), or use fewer ranks.",
    )


def _gpus() -> Iterator[Check]:
    names = _nvml(_gpu_names) or []
    if not names:
        yield Check(name="GPUs", found="none (ranks run on the CPU with gloo)")
        return
    usable = num_gpus()
    found = ", ".join(names)
    if usable == 0:
        yield Check(
            name="GPUs",
            found=found,
            status="problem",
            meaning="The driver sees GPUs, but this torch cannot use them.",
            cure="Install a CUDA build of torch (pip install 'torch>=2.11'), and look at CUDA_VISIBLE_DEVICES.",
        )
    elif usable == 1:
        yield Check(
            name="GPUs",
            found=found,
            status="note",
            meaning="One GPU for all ranks: NCCL is real and runs over its socket transport; every result says so.",
        )
    else:
        yield Check(name="GPUs", found=f"{found} ({usable} visible to torch)")


def _links() -> Check:
    links = _nvml(_gpu_links) or []
    if not links:
        return Check(name="links", found="TCP over loopback")
    return Check(name="links", found="; ".join(links))


def _nvml(read: Callable[[], T]) -> T | None:
    """Call ``read`` with NVML initialised; None where there is no NVIDIA driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return read()
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _gpu_names() -> list[str]:
    import pynvml

    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    return [f"{pynvml.nvmlDeviceGetName(h)} {pynvml.nvmlDeviceGetMemoryInfo(h).total / 1e9:.0f} GB" for h in handles]


def _gpu_links() -> list[str]:
    """``GPU0-GPU1 NVLink`` for every pair."""
    import pynvml

    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    links = []
    for a, first in enumerate(handles):
        for b in range(a + 1, len(handles)):
            status = pynvml.nvmlDeviceGetP2PStatus(first, handles[b], pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
            links.append(f"GPU{a}-GPU{b} {'NVLink' if status == pynvml.NVML_P2P_STATUS_OK else 'PCIe'}")
    return links


def _loopback() -> Check:
    try:
        with socket.create_server((LOOPBACK, 0)) as server, socket.create_connection(server.getsockname(), timeout=2):
            return Check(name="loopback", found="connects")
    except OSError as error:
        return Check(
            name="loopback",
            found="does not connect",
            status="problem",
            meaning=f"Ranks talk over {LOOPBACK}, and that failed: {error}.",
            cure="Allow local TCP connections (a firewall or a sandbox refuses them).",
        )


def _others() -> Check:
    if can_tell():
        return Check(name="other users", found="kept out of the ranks' ports")
    return Check(
        name="other users",
        found="not kept out of the ranks' ports",
        status="note",
        meaning="This system does not say who is at the other end of a connection.",
        cure="On a machine that you share with people you do not trust, read SECURITY.md first.",
    )


def _front_end() -> Iterator[Check]:
    for package in ("jupyterlab", "ipywidgets", "plotly", "anywidget"):
        with suppress(PackageNotFoundError):
            yield Check(name=package, found=version(package))


def _lab_extensions() -> Check | Iterable[Check]:
    """Packages can be there while their JupyterLab halves are not: then widgets show as text and figures not at all."""
    if missing(["jupyterlab"]):
        return ()
    from jupyter_core.paths import jupyter_path

    wanted = {"@jupyter-widgets/jupyterlab-manager": "ipywidgets", "jupyterlab-plotly": "plotly"}
    folders = [Path(path) for path in jupyter_path("labextensions")]
    without = [package for name, package in wanted.items() if not any((folder / name).is_dir() for folder in folders)]
    if not without:
        return Check(name="lab extensions", found="widgets and plotly")
    return Check(
        name="lab extensions",
        found=f"missing for {', '.join(without)}",
        status="problem",
        meaning="JupyterLab would show text in place of panels or figures.",
        cure=f"pip install --force-reinstall {' '.join(without)} jupyterlab-widgets, then restart JupyterLab.",
    )


def _all_reduce() -> Check:
    return try_ranks("two ranks", lambda: Cluster(2), "Reinstall torch")
