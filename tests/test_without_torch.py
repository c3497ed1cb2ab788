"""What the notebook's kernel does, it does without torch: plan, predict, draw, show panels, start ranks.

One interpreter, in which torch cannot be imported, does it all; a test for each thing that it did. The first things do
without pandas, plotly and widgets too: ranks import those packages, and would start half a second later.
"""

import ast
import importlib
import importlib.abc
import importlib.util
import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec as Spec
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[1] / "tplab"
REFUSED = ["torch", "transformers"]
HEAVY = ["pandas", "plotly", "ipywidgets"]
WITHOUT_TORCH = ["cli", "lab", "topology/machine", "topology/advisor", "topology/published"]
"""Rooms where no module imports torch when it loads."""


def import_tplab() -> None:
    import tplab

    assert tplab.__version__


def run_on_ranks() -> None:
    from tplab import Cluster

    with Cluster(1, "gloo") as cluster:
        assert cluster.run(lambda rank: rank.index) == [0]
        assert cluster.provenance.torch_version


def plan_a_pipeline() -> None:
    from tplab import pipeline as p

    for name, v in (("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("decode-ring", 1)):
        schedule = p.add_communication(p.build_schedule(name, 4, 8, v))
        p.validate(schedule)
        p.grid_text(schedule)
        assert p.Schedule.from_text(schedule.to_text(), micro_batches=schedule.micro_batches).ranks == schedule.ranks
        trace = p.simulate(schedule, p.Costs(hop_s=0.1))
        assert trace.perfetto()
        assert trace.idle_over_total > 0
        assert trace.peak_activations_per_rank
    assert p.PipelineScheduler(p.PipelineConfig(), 0).get_schedule()


def take_a_layout() -> None:
    from tplab.topology import Machine, ModelSpec, Workload, feasible_choices, place

    machine, spec = Machine.preset("h100"), ModelSpec.from_config("llama-3.1-70b")
    assert feasible_choices(spec, machine, Workload(input_length=9, output_length=9, concurrency=1))
    assert place(machine, 2, 2)
    Machine.detect()


def predict_and_advise() -> None:
    from tplab import Machine, ModelSpec, Workload, advise, predict

    machine, spec = Machine.preset("h100"), ModelSpec.from_config("llama-3.1-70b")
    workload = Workload(input_length=9, output_length=9, concurrency=1)
    assert predict(spec, machine, workload, tp=8, pp=1).tpot_ms > 0
    assert advise(spec, machine, workload).flips is not None


def ask_for_measurements() -> None:
    from tplab.collectives import compare_quantised, measure_emulated, measure_point_to_point, plan_sweep
    from tplab.collectives import sweep_all_reduce as sweep
    from tplab.measure import samples_of
    from tplab.models import generate
    from tplab.pipeline import run_schedule, submit_serving
    from tplab.topology import calibrate, read_vllm, verify

    assert plan_sweep(algorithms=["ring"])
    assert samples_of([]) == {}
    assert all(map(callable, (compare_quantised, measure_emulated, measure_point_to_point, sweep)))
    assert all(map(callable, (calibrate, generate, read_vllm, run_schedule, submit_serving, verify)))


def show_panels() -> None:
    from tplab import lab
    from tplab.lab.claims import claims
    from tplab.lab.panels.generation import example_model

    pool = lab.Pool(2, backend="gloo")
    lab.MemoryWall().show(tp=8)
    links = lab.LinkPanel()
    links.show(source="detect")
    lab.AdvisorPanel(links).show(view="flips")
    calibration = lab.CalibrationPanel(pool)
    for panel in (lab.VerifyPanel(calibration), lab.ShardsPanel(pool), lab.PhasesPanel(pool), lab.OverlapPanel(pool)):
        assert panel
    assert lab.ChunkModel()
    assert lab.LedgerPanel(pool).recompute() == {}
    assert lab.claim_cards(*claims())._repr_html_()
    assert lab.ShardPainter()
    assert lab.ScheduleStudio()
    assert example_model()


LIGHT: list[Callable[[], None]] = [import_tplab, run_on_ranks, plan_a_pipeline]
"""Without what is heavy, too."""
DONE = [*LIGHT, take_a_layout, predict_and_advise, ask_for_measurements, show_panels]


def imports_torch(module: Path) -> bool:
    """Whether it does itself, when it loads."""
    names: list[str] = []
    for node in ast.parse(module.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            names += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return any(name.split(".")[0] == "torch" for name in names)


def modules() -> dict[str, str]:
    """Dotted name of each module that does not import torch itself -> its file below ``tplab``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[-1] != "__main__" and not imports_torch(path):
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = str(path.relative_to(PACKAGE))
    return found


ROOMS = sorted({file.split("/")[0] for file in modules().values() if "/" in file})


class Refusal(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Torch is there, for who looks for it; who imports it gets an error, which is noted even where it is caught."""

    def __init__(self) -> None:
        self.by: list[str] = []

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Spec | None:
        if name not in REFUSED:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None:
            spec.loader = self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        ours = [frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(PACKAGE)]
        chain = [f"{Path(frame.filename).relative_to(PACKAGE)}:{frame.lineno}" for frame in ours]
        self.by.append(f"{module.__name__} imported by {' -> '.join(chain)}")
        raise ImportError(self.by[-1])


def do_all() -> dict[str, Any]:
    """What went wrong in each thing and each module: in the interpreter without torch."""
    refusal = Refusal()
    sys.meta_path.insert(0, refusal)
    report: dict[str, Any] = {}

    def note(name: str, what: Callable[[], object], refused: Sequence[str]) -> None:
        refusal.by.clear()
        try:
            what()
        except Exception as error:
            report[name] = [*refusal.by] or ["".join(traceback.format_exception(error))]
        else:
            report[name] = [*refusal.by, *(f"{heavy} was imported" for heavy in refused if heavy in sys.modules)]

    for each in DONE:
        note(each.__name__, each, HEAVY if each in LIGHT else [])
    for module, file in modules().items():
        note(file, lambda name=module: importlib.import_module(name), [])
    return report


@pytest.fixture(scope="module")
def report() -> dict[str, list[str]]:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    made: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return made


@pytest.mark.parametrize("what", [each.__name__ for each in DONE])
def test_the_kernel_does_it_without_torch(report: dict[str, list[str]], what: str) -> None:
    assert report[what] == []


@pytest.mark.parametrize("room", ROOMS)
def test_what_does_not_import_torch_imports_none_that_does(report: dict[str, list[str]], room: str) -> None:
    loaded = {file: wrong for file, wrong in report.items() if file.startswith(f"{room}/")}
    assert loaded
    assert {file: wrong for file, wrong in loaded.items() if wrong} == {}


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_rooms_of_the_kernel_alone(room: str) -> None:
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    assert [str(path) for path in files if imports_torch(path)] == []


if __name__ == "__main__":
    print(json.dumps(do_all()))
