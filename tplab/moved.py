"""Modules and names under what they were called before: an import of theirs still works, or says where to look.

A module that moved loads from its old path too, with a warning that names the new one: notebooks and scripts of others
import deep paths. A class or function that was renamed, because another one has its name with another meaning, is not
silently the new one: importing the old name fails, and the error gives the new name.

Not files of one line at the old paths, which would fill the rooms with some sixty of them.
"""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES: Mapping[str, str] = {
    "tplab.cli_advise": "tplab.cli.advise",
    "tplab.cli_topology": "tplab.cli.measure",
    "tplab.cli_words": "tplab.cli.words",
    "tplab.topology.admission": "tplab.topology.advisor.admission",
    "tplab.topology.allreduce": "tplab.topology.advisor.allreduce",
    "tplab.topology.article": "tplab.topology.advisor.article",
    "tplab.topology.box": "tplab.topology.verification.box",
    "tplab.topology.box_layouts": "tplab.topology.verification.box_layouts",
    "tplab.topology.calibrate_plan": "tplab.topology.calibration.plan",
    "tplab.topology.calibrated": "tplab.topology.calibration.assemble",
    "tplab.topology.calibrating": "tplab.topology.calibration.run",
    "tplab.topology.calibration_check": "tplab.topology.advisor.calibration_check",
    "tplab.topology.columns": "tplab.topology.advisor.layouts",
    "tplab.topology.constants": "tplab.topology.advisor.constants",
    "tplab.topology.detect": "tplab.topology.machine.detect",
    "tplab.topology.fit": "tplab.topology.published.fit",
    "tplab.topology.flips": "tplab.topology.advisor.flips",
    "tplab.topology.hf_config": "tplab.models.hf",
    "tplab.topology.latency": "tplab.topology.advisor.latency",
    "tplab.topology.launch_commands": "tplab.topology.advisor.launch_commands",
    "tplab.topology.layouts": "tplab.topology.advisor.layouts",
    "tplab.topology.measure_compute": "tplab.topology.calibration.compute",
    "tplab.topology.measure_engine": "tplab.topology.calibration.engine",
    "tplab.topology.measure_layouts": "tplab.topology.verification.layouts",
    "tplab.topology.measure_links": "tplab.topology.calibration.links",
    "tplab.topology.measure_memory": "tplab.topology.verification.memory",
    "tplab.topology.memory": "tplab.topology.advisor.memory",
    "tplab.topology.model_spec": "tplab.models.spec",
    "tplab.topology.pipeline_fill": "tplab.pipeline.formulas",
    "tplab.topology.placement": "tplab.topology.machine.placement",
    "tplab.topology.prediction": "tplab.topology.advisor.prediction",
    "tplab.topology.prediction_notes": "tplab.topology.advisor.prediction",
    "tplab.topology.presets": "tplab.topology.machine.presets",
    "tplab.topology.rigging": "tplab.topology.calibration.copies",
    "tplab.topology.roofline": "tplab.topology.advisor.roofline",
    "tplab.topology.scoreboard": "tplab.topology.published.scoreboard",
    "tplab.topology.sharding": "tplab.models.shards",
    "tplab.topology.static_batch": "tplab.topology.verification.static_batch",
    "tplab.topology.tables": "tplab.topology.published.tables",
    "tplab.topology.topo_text": "tplab.topology.machine.topo_text",
    "tplab.topology.verify_plan": "tplab.topology.verification.plan",
    "tplab.topology.verifying": "tplab.topology.verification.run",
    "tplab.topology.vllm_bench": "tplab.topology.published.vllm_bench",
    "tplab.topology.wording": "tplab.shown",
    "tplab.topology.workload": "tplab.topology.advisor.workload",
}
"""Old dotted path of a module: the new one."""

NAMES: Mapping[str, str] = {}
"""Old dotted name of a class or function, where its module is now: the new one."""


class _MovedModules(MetaPathFinder, Loader):
    """Asked last, when no module of that name was found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        old, new = module.__name__, MODULES[module.__name__]
        warnings.warn(f"{old} has moved: import {new}", FutureWarning, stacklevel=2)
        sys.modules[old] = import_module(new)


def find_moved_modules() -> None:
    """From now on, modules that moved are found under their old paths."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())


def renamed(module: str) -> Callable[[str], Any]:
    """``__getattr__`` for a module some names of which are called otherwise now.

    ::

        __getattr__ = renamed(__name__)
    """

    def find(name: str) -> Any:
        if now := NAMES.get(f"{module}.{name}"):
            raise ImportError(f"{name} of {module} is now called {now}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find
