"""What the intervals are made from: standard deviations of predictions by cause, and what was checked.

``refit`` computes both; ``advisor.validated`` has them, and must follow every new fit of the constants.

The numbers minimise the interval score (Gneiting and Raftery, 2007: the width, and 20 times what a measurement lies
outside), in which neither a wide nor a narrow interval pays. Every split counts alike, in proportion to its
cells below ``FEW``; a split of more cells whose share inside leaves ``COVERAGE`` is charged for it. What no split
tells apart, such as GPUs of another generation, is only as sure as the few cells that have it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement, product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tplab.topology.advisor.interval import ASPECTS, NINETY, PARTS, Checked, Spread, Standing, touched
from tplab.topology.published.tables import Case

Floats = NDArray[np.float64]
FEW = 40
"""Cells of a split from which on its coverage is looked at by itself."""
COVERAGE = (0.86, 0.94)
"""Least and most part of a split that its intervals should hold."""
_OUTSIDE = 2 / 0.1
"""Weight of what lies outside an interval that should hold nine of ten."""
_LEAST_CELLS = 10
"""Measurements from which on a configuration counts as checked, and a deviation is fitted."""
_FACTORS = (0.5, 0.7, 0.85, 0.95, 1.05, 1.18, 1.4, 2.0)
_LEAST, _MOST = 0.01, 2.0
FLOORS: Mapping[str, float] = {
    "overheads": 0.2, "model": 0.08, "engine": 0.15, "GPU": 0.12, "precision": 0.05, "links": 0.5, "pipeline": 0.1,
}  # fmt: skip
"""Part or aspect -> its least deviation: assumptions. The tables have two models and three engines, all served while
the model's structure was found, none of it small, and one machine without NVLink: that a fit finds nothing there does
not mean that there is nothing elsewhere. Links without NVLink: boxes of L40S add up 2 to 10 times slower than another
maker's of the same links."""


def log_ratio(rows: pd.DataFrame) -> Floats:
    """ln(measured / predicted) time per token, or the other way round of throughput where only that was measured."""
    tpot = np.log(rows["measured_tpot_ms"].to_numpy(float) / rows["predicted_tpot_ms"].to_numpy(float))
    tok_s = np.log(rows["predicted_tok_s"].to_numpy(float) / rows["measured_tok_s"].to_numpy(float))
    return np.asarray(np.where(np.isnan(tpot), tok_s, tpot), dtype=np.float64)


def fit_spread(rows: pd.DataFrame, start: Spread) -> Spread:
    """The standard deviations that suit rows of ``scoreboard.predictions`` best; ``calibrated`` stays.

    What is new in fewer than ``_LEAST_CELLS`` rows keeps its number.
    """
    ratio = np.abs(log_ratio(rows))
    told = [aspect for aspect in ASPECTS if sum(aspect in each for each in rows["new"]) >= _LEAST_CELLS]
    shares = {part: rows[f"share_{part}"].to_numpy(float) for part in PARTS}
    columns = [np.ones(len(rows)), *shares.values()]
    columns += [touched(aspect, shares) * [aspect in each for each in rows["new"]] for aspect in told]
    squares = np.stack(columns) ** 2
    split = pd.factorize(rows["split"])[0]
    sizes = np.bincount(split).astype(np.float64)
    weight = np.minimum(sizes, FEW) / FEW

    def loss(sigma: Floats) -> float:
        half = NINETY * np.sqrt(sigma**2 @ squares)
        score = 2 * half + _OUTSIDE * np.maximum(0.0, ratio - half)
        held = np.bincount(split, ratio <= half) / sizes
        off = np.maximum(0.0, COVERAGE[0] - held) + np.maximum(0.0, held - COVERAGE[1])
        return float(np.sum(weight * np.bincount(split, score) / sizes) + 10 * np.sum(off[sizes >= FEW]))

    least = np.array([FLOORS.get(name, _LEAST) for name in ("base", *PARTS, *told)])
    # Downhill along one number or two at a time: the share inside makes steps, which have no slope.
    sigma = np.array([start.base, *(start.parts[part] for part in PARTS), *(start.new[aspect] for aspect in told)])
    sigma = np.maximum(sigma, least)
    best, before = loss(sigma), np.inf
    while best < before * (1 - 1e-4):
        before = best
        for i, j in combinations_with_replacement(range(len(sigma)), 2):
            for first, second in product(_FACTORS, _FACTORS):
                tried = sigma.copy()
                tried[i] *= first
                tried[j] *= second
                tried = np.clip(tried, least, _MOST)
                if (found := loss(tried)) < best:
                    best, sigma = found, tried
    values = [round(float(value), 3) for value in sigma]
    return replace(
        start,
        base=values[0],
        parts=dict(zip(PARTS, values[1:], strict=False)),
        new={**start.new, **dict(zip(told, values[1 + len(PARTS) :], strict=True))},
    )


def with_intervals(rows: pd.DataFrame, spread: Spread) -> pd.DataFrame:
    """``rows`` with ``width`` (the interval's upper end over the prediction) and ``within`` (whether it holds the
    measurement)."""
    half = pd.Series(0.0, index=rows.index)
    for new in set(rows["new"]):
        group = rows[[each == new for each in rows["new"]]]
        shares = {part: group[f"share_{part}"].to_numpy(float) for part in PARTS}
        half[group.index] = Standing(spread=spread, nearest=None, new=new).half_width(shares)
    return rows.assign(width=np.exp(half), within=np.abs(log_ratio(rows)) <= half)


def coverage(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per split: ``num_cases``, ``within_pct`` (measurements inside their interval) and ``half_width_pct``, the
    median."""
    grouped = rows.groupby("split", sort=False)
    summary = {
        "num_cases": grouped.size(),
        "within_pct": 100 * grouped["within"].mean(),
        "half_width_pct": 100 * (grouped["width"].median() - 1),
    }
    return pd.DataFrame(summary).reset_index()


def checked_on(cases: Sequence[Case], rows: pd.DataFrame | None = None) -> tuple[Checked, ...]:
    """What ``cases`` are of: an entry for each model, GPU, engine and precision with ``_LEAST_CELLS`` or more.

    Args:
        rows: of ``scoreboard.predictions``, for the errors: with the model left out where there are such, else with the
            constants in use.
    """
    kinds: dict[tuple[str, ...], list[Case]] = {}
    for case in cases:
        kinds.setdefault((case.model.name, case.gpu, case.engine, case.model.weight_precision), []).append(case)
    return tuple(
        _checked(of, None if rows is None else _rows_of(rows, kind))
        for kind, of in kinds.items()
        if len(of) >= _LEAST_CELLS
    )


def _rows_of(rows: pd.DataFrame, kind: tuple[str, ...]) -> pd.DataFrame:
    keys = ("model", "gpu", "engine", "precision")
    return rows[np.all([rows[key] == value for key, value in zip(keys, kind, strict=True)], axis=0)]


def _checked(cases: Sequence[Case], rows: pd.DataFrame | None) -> Checked:
    model, error, how = cases[0].model, None, ""
    if rows is not None:
        apart = rows[rows["split"].str.startswith("without model")]
        of, how = (apart, "with this model left out") if len(apart) else (rows, "in sample")
        error = round(float(np.mean(np.abs(np.expm1(-log_ratio(of))))) * 100, 1)
    return Checked(
        model=model.name,
        params=float(f"{model.num_layers * model.block_matmul_params:.3g}"),
        gpu=cases[0].gpu,
        engine=cases[0].engine,
        precision=model.weight_precision,
        tps=tuple(sorted({case.tp for case in cases})),
        pps=tuple(sorted({case.pp for case in cases})),
        loads=_ends([case.workload.concurrency or 1 for case in cases]),
        inputs=_ends([case.workload.input_length for case in cases]),
        outputs=_ends([case.workload.output_length for case in cases]),
        num_cells=len(cases),
        error_pct=error,
        how=how,
    )


def _ends(values: Sequence[int]) -> tuple[int, int]:
    return min(values), max(values)


_MODULE = '''"""What ``constants.DEFAULT`` were checked on, how far off they were: written by ``published.refit``."""

from tplab.topology.advisor.interval import Checked, Spread

SPREAD = {spread!r}
CHECKED: tuple[Checked, ...] = {checked!r}
'''


def module_of(spread: Spread, checked: Sequence[Checked]) -> str:
    """The text of ``advisor.validated``, which ``ruff format`` breaks into lines."""
    return _MODULE.format(spread=spread, checked=tuple(checked))
