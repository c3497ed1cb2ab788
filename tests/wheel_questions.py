"""What ``test_wheel`` asks of an installation, in its own interpreter, which has no pytest."""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

ROOMS = [
    "tplab",
    *(f"tplab.{room}" for room in ("cluster", "measure", "collectives", "layers", "pipeline", "models", "topology")),
    "tplab.lab",
    *(f"tplab.lab.{room}" for room in ("claims", "exercises", "figures", "grading", "panels", "recorded")),
]
COMMANDS = {
    "advise": ("--model llama-3.1-70b --machine h100 --gpus 8", 0),
    "fits": ("llama-3.1-8b --gpu h100", 0),
    "claims": ("C9", 0),
    "crossover": ("--recorded 4xH200-2026-11-26", 0),
    "doctor": ("", 0),
    "progress": ("", 0),
    "lab": ("--copy-only copy", 0),
    "validate": ("nothing", 2),
    "read-nccl": ("nothing", 2),
    "demo": ("", "demo"),
    "sweep": ("", "run"),
    "pipeline": ("1f1b", "run"),
    "calibrate": ("", "run"),
    "box": ("box", "run"),
    "grade": ("copy", "run,notebook"),
    "size": ("", "run,notebook"),
    "solutions": ("out", "notebook"),
    "export": ("otter out", "notebook"),
}
"""Command -> its arguments, and its exit status with the core alone, or the layers that it says to install."""


def load_names() -> dict[str, str]:
    """Every public name of every room, and what its import said."""
    said = {}
    for room in map(import_module, ROOMS):
        for name in room.__all__:
            try:
                getattr(room, name)
                said[f"{room.__name__}.{name}"] = ""
            except Exception as error:
                said[f"{room.__name__}.{name}"] = f"{type(error).__name__}: {error}"
    return said


def call_commands() -> dict[str, tuple[int, str]]:
    """Exit status of every command, and its last line of errors."""
    from tplab import cli

    said = {}
    for name, (arguments, _) in COMMANDS.items():
        errors = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            status = cli.main([name, *arguments.split()])
        said[name] = (status, errors.getvalue().strip())
    return said


def show_panels() -> dict[str, str]:
    """Panels that need no ranks, made and redrawn."""
    from tplab import lab

    said = {}
    for name in ("MemoryWall", "LinkPanel", "ScheduleStudio", "ChunkModel", "ShardPainter", "PlayHead", "WillItFit"):
        try:
            getattr(lab, name)()
            said[name] = ""
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def plan() -> dict[str, float]:
    """A schedule simulated, and why no ranks start."""
    import tplab
    from tplab.pipeline import Costs, build_schedule, simulate

    costs = Costs(forward_s=0.01, input_grad_s=0.01, weight_grad_s=0.01)
    try:
        tplab.Cluster(2)
    except ImportError as error:
        refused = str(error)
    return {"makespan_s": simulate(build_schedule("1f1b", 4, 8), costs).makespan_s, "cluster": refused}


def absent() -> dict[str, bool]:
    """Which of the large packages are not to be found."""
    return {name: find_spec(name) is None for name in ("torch", "jupyterlab", "ipywidgets", "IPython", "psutil")}


QUESTIONS: dict[str, Callable[[], Any]] = {
    each.__name__: each for each in (load_names, call_commands, show_panels, plan, absent)
}


if __name__ == "__main__":
    print(json.dumps(QUESTIONS[sys.argv[1]]()))
