"""What the notebook's kernel uses of pipelines does without torch, and without pandas until a frame is asked for."""

import subprocess
import sys

import tplab.pipeline

PURE = """
import sys
from tplab.pipeline import (
    Costs, PipelineConfig, PipelineScheduler, Schedule, add_communication, build_schedule, grid_text, simulate, validate
)
import tplab.pipeline.formulas, tplab.pipeline.mistakes
for name, v in (("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("decode-ring", 1)):
    schedule = add_communication(build_schedule(name, 4, 8, v))
    validate(schedule)
    grid_text(schedule)
    assert Schedule.from_text(schedule.to_text(), micro_batches=schedule.micro_batches).ranks == schedule.ranks
    trace = simulate(schedule, Costs(hop_s=0.1))
    trace.perfetto(), trace.idle_over_total, trace.peak_activations_per_rank
PipelineScheduler(PipelineConfig(), 0).get_schedule()
print([name for name in ("torch", "pandas") if name in sys.modules])
"""


def test_no_torch_in_the_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", PURE], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_public_names_resolve() -> None:
    for name in tplab.pipeline.__all__:
        assert getattr(tplab.pipeline, name) is not None
    assert not isinstance(tplab.pipeline.simulate, type(sys)), "a function, and not a module of that name"
    assert set(tplab.pipeline.__all__) <= set(dir(tplab.pipeline))
