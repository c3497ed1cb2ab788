"""Measurements that were made on machines most readers do not have, as ``tplab.topology.box`` wrote them.

A folder per machine and day, ``2xH100-2026-11-24``; a file per step. Figures made from them wear a RECORDED badge.
"""

from importlib.resources import files

import pandas as pd


def recordings() -> list[str]:
    """Names of all recordings."""
    return sorted(each.name for each in files(__name__).iterdir() if each.is_dir() and each.name[0].isdigit())


def recorded(name: str, step: str) -> pd.DataFrame:
    """The frame of one step, such as ``recorded("2xH100-2026-11-24", "sweep")``, with its provenance in its columns.

    Raises ``ValueError`` for a recording or step that there is not, with those there are.
    """
    if name not in recordings():
        raise ValueError(f"name must be one of {', '.join(recordings())}; got {name!r}")
    folder = files(__name__) / name
    steps = sorted(each.name.removesuffix(".csv") for each in folder.iterdir() if each.name.endswith(".csv"))
    if step not in steps:
        raise ValueError(f"step must be one of {', '.join(steps)}; got {step!r}")
    with (folder / f"{step}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def recorded_badge(name: str) -> str:
    """``RECORDED 2xH100 2026-11-24``."""
    machine, _, day = name.partition("-")
    return f"RECORDED {machine} {day}"
