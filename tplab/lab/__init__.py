"""What people see: figures, panels, the preflight table, exercises.

style       colours, the figure card, the badge
figures/    tidy frame in, plotly figure out
panels/     ipywidgets around the public functions
checks      what this machine can do, and what is wrong with it
predict     the learner commits a number before anything runs
exercises   stubs' checkers
"""

from tplab.lab.checks import preflight, preflight_table
from tplab.lab.exercises import (
    check_attention,
    check_chunk_choice,
    check_int8_all_reduce,
    check_kv_bytes,
    check_mlp,
    check_reduction,
    check_schedule,
    check_score,
)
from tplab.lab.panels.advisor import AdvisorPanel
from tplab.lab.panels.generation import GenerationPanel
from tplab.lab.panels.hello import HelloPanel
from tplab.lab.panels.layers import ChunkModel, OverlapPanel, PhasesPanel
from tplab.lab.panels.links import LinkPanel
from tplab.lab.panels.memory_wall import MemoryWall, ShardsPanel
from tplab.lab.panels.painter import ShardPainter
from tplab.lab.panels.pipeline import PipelinePanel, ServingPanel
from tplab.lab.panels.pool import Pool
from tplab.lab.panels.ring import RingStepper
from tplab.lab.panels.schedule_studio import ScheduleStudio
from tplab.lab.panels.sweep import SweepPanel
from tplab.lab.panels.verification import CalibrationPanel, VerifyPanel
from tplab.lab.predict import Predict

__all__ = [
    "AdvisorPanel",
    "CalibrationPanel",
    "ChunkModel",
    "GenerationPanel",
    "HelloPanel",
    "LinkPanel",
    "MemoryWall",
    "OverlapPanel",
    "PhasesPanel",
    "PipelinePanel",
    "Pool",
    "Predict",
    "RingStepper",
    "ScheduleStudio",
    "ServingPanel",
    "ShardPainter",
    "ShardsPanel",
    "SweepPanel",
    "VerifyPanel",
    "check_attention",
    "check_chunk_choice",
    "check_int8_all_reduce",
    "check_kv_bytes",
    "check_mlp",
    "check_reduction",
    "check_schedule",
    "check_score",
    "preflight",
    "preflight_table",
]
