"""Measurements that were made on machines most readers do not have, as ``tplab.topology.verification.box`` wrote them.

A folder per machine and day, ``2xH100-2026-11-24`` (with ``_`` for a blank); a file per step. Figures made from them
wear a RECORDED badge.
"""

from importlib.resources import as_file, files
from importlib.resources.abc import Traversable

import pandas as pd

from tplab.checks import check_one_of
from tplab.measure import newest_spelling
from tplab.pipeline.schedule import Schedule
from tplab.pipeline.trace import Trace
from tplab.topology.advisor.calibration import Calibration

__all__ = ["recorded", "recorded_badge", "recorded_calibration", "recorded_trace", "recordings"]


def recordings() -> list[str]:
    """Names of all recordings."""
    return sorted(each.name for each in files(__name__).iterdir() if each.is_dir() and each.name[0].isdigit())


def recorded(name: str, step: str) -> pd.DataFrame:
    """The frame of one step, such as ``recorded("2xH100-2026-11-24", "sweep")``, with its provenance in its columns.

    Raises ``ValueError`` for a recording or step that there is not, with those there are.
    """
    with _file(name, step, "csv").open(encoding="utf-8") as file:
        frame = pd.read_csv(file)
    if "layout" in frame:
        frame["layout"] = frame["layout"].str.replace(" x ", " × ")  # as layouts are written now
    if "num_hosts" not in frame:
        frame["num_hosts"] = 1
    return frame.assign(link=frame["link"].map(newest_spelling))


def recorded_calibration(name: str) -> Calibration:
    """What ``calibrate`` found there. Raises ``ValueError`` as :func:`recorded` does."""
    return Calibration.from_json(_file(name, "calibration", "json").read_text(encoding="utf-8"))


def recorded_trace(name: str, schedule: Schedule) -> Trace:
    """The run of a schedule on that machine's GPUs: ``forward-only``, ``gpipe`` or ``1f1b``, as many stages as there
    are GPUs and twice as many micro-batches, of real blocks.

    Raises ``ValueError`` as :func:`recorded` does, and for a schedule of another size.
    """
    with as_file(_file(name, f"pipeline-{schedule.name}", "json")) as path:
        return Trace.from_perfetto(path, schedule, badge=recorded_badge(name))


def _file(name: str, step: str, ending: str) -> Traversable:
    check_one_of("name", name, recordings())
    folder = files(__name__) / name
    found = {each.name.removesuffix(".gz"): each for each in sorted(folder.iterdir(), key=lambda each: each.name)}
    steps = sorted(file.removesuffix(f".{ending}") for file in found if file.endswith(f".{ending}"))
    check_one_of(f"step of {name}", step, steps)
    return found[f"{step}.{ending}"]


def recorded_badge(name: str) -> str:
    """``RECORDED 2xH100 2026-11-24``."""
    machine, _, day = name.partition("-")
    return f"RECORDED {machine.replace('_', ' ')} {day}"
