"""Computes the intervals anew: ``python -m tplab.topology.published.refit FOLDER [FILE]``.

After every new fit of the constants: their standard deviations, what was checked, and how the intervals then hold what
was left out are printed, and the first two written into the file, ``tplab/topology/advisor/validated.py``.
"""

import sys
from dataclasses import replace

import pandas as pd

from tplab.files import write_text
from tplab.topology.advisor.constants import DEFAULT, Constants
from tplab.topology.advisor.interval import Checked, Spread
from tplab.topology.published.scoreboard import IN_USE, predictions
from tplab.topology.published.spread import checked_on, coverage, fit_spread, module_of, with_intervals
from tplab.topology.published.tables import Tables, read_folder


def spread_of(tables: Tables, constants: Constants = DEFAULT) -> tuple[Spread, tuple[Checked, ...], pd.DataFrame]:
    """Standard deviations of the intervals, what was checked, and how the intervals then hold what was left out
    (``spread.coverage``).

    Saturated tables do not count as checked, since no constant is fitted to them; they tell what other processors and
    stages add.
    """
    fitted_on = [case for case in tables.cases if case.kind != "saturated"]
    rows = predictions(tables, constants=replace(constants, checked=checked_on(fitted_on)))
    apart = (rows["split"] == IN_USE) & (rows["kind"] == "saturated")
    rows["split"] = rows["split"].where(~apart, "saturated tables")
    spread = fit_spread(rows, constants.spread)
    return spread, checked_on(fitted_on, rows), coverage(with_intervals(rows, spread))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    try:
        found, told, held = spread_of(read_folder(sys.argv[1]))
    except ValueError as error:
        sys.exit(str(error))
    print(found, held.round(1).to_string(index=False), *told, sep="\n")
    for file in sys.argv[2:]:
        write_text(file, module_of(found, told))
