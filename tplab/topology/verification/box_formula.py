"""NCCL's all-reduces of a box beside the advisor's formula for such a machine: what is out of line stands out at once,
while the machine is still there to look."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from tplab.shown import bytes_text, time_text
from tplab.topology.calibration.from_nccl import formula_of
from tplab.topology.machine.machine import Machine


def with_formula(frame: pd.DataFrame, machine: Machine) -> pd.DataFrame:
    """A sweep of the library's all-reduces over ranks of that machine, with ``formula_us`` by its spec sheet."""
    made = frame.assign(formula_us=float("nan"))
    for (_, mode), rows in frame.groupby(["num_ranks", "launch_mode"]):
        formula = formula_of(machine, int(rows["num_ranks"].iloc[0]), graph=mode == "graph")
        if formula is not None:
            made.loc[rows.index, "formula_us"] = [float(formula(float(nbytes))[0]) for nbytes in rows["bytes"]]
    return made


def formula_words(frame: pd.DataFrame) -> Iterator[str]:
    """A sentence for each number of ranks and launch mode of a frame of :func:`with_formula`: how far from the formula
    the measured times are, and where they are farthest."""
    beside = frame[frame["formula_us"].notna()]
    for (num_ranks, mode), rows in beside.groupby(["num_ranks", "launch_mode"]):
        measured, formula = (rows[name].to_numpy(float) for name in ("p50_us", "formula_us"))
        times = measured / formula
        worst = int(np.argmax(np.abs(np.log(times))))
        yield (
            f"all-reduces of {num_ranks} ranks, {mode}: measured {times.min():.2f} to {times.max():.2f} times the "
            f"advisor's formula; farthest at {bytes_text(rows['bytes'].iloc[worst])}, {time_text(measured[worst])} "
            f"measured and {time_text(formula[worst])} by formula"
        )
