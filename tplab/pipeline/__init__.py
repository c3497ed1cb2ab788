"""Pipelines: schedules as data, checked, simulated and run.

What it is:
  schedule      actions, and tables of them, in torch's text form
What it should cost, and what it does cost:
  trace         what ran when, simulated or measured

Public names load on first use: the pure modules serve the notebook's kernel, which does without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tplab.pipeline.schedule import Action as Action
    from tplab.pipeline.schedule import MicroBatch as MicroBatch
    from tplab.pipeline.schedule import Op as Op
    from tplab.pipeline.schedule import Schedule as Schedule
    from tplab.pipeline.trace import Span as Span
    from tplab.pipeline.trace import Trace as Trace

_HOME_OF = {
    "Action": "schedule",
    "MicroBatch": "schedule",
    "Op": "schedule",
    "Schedule": "schedule",
    "Span": "trace",
    "Trace": "trace",
}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tplab.pipeline' has no attribute {name!r}")
    return getattr(import_module(f"tplab.pipeline.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
