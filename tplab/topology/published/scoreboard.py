"""The scoreboard: how far the model is from published measurements, and whether it would have chosen well.

Two questions. *How wrong* is a prediction: mean absolute percentage error by model, GPU, engine and TP degree, once
with the constants in use and once for each model, GPU, engine and length with constants fitted without it, and for
pipelines with constants fitted on one stage alone. An engine of which nothing is left to fit then
has the times that any has (``fit.PRIORS``). *How costly* is
a choice made by it: among the measured TP degrees, take the one predicted to give most tokens per second per GPU within
a limit on the time per token, look up what it really gave, and compare with the best one and with the two rules that
need no model, always the largest TP and always the smallest.

The tables are read from a folder and never kept; their forms are described in ``tables``.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from tplab.checks import check_all_of, check_one_of
from tplab.topology.advisor.constants import DEFAULT, Constants
from tplab.topology.advisor.interval import shares_of
from tplab.topology.advisor.prediction import predict
from tplab.topology.published.fit import Bench, fit_engines
from tplab.topology.published.spread import checked_on, with_intervals
from tplab.topology.published.tables import Case, Tables, read_folder

IN_USE = "constants in use"
LEFT_OUT = ("model", "gpu", "engine", "length", "pp")
ONE_STAGE = "fitted on PP 1 alone"
LIMITS_MS = (8.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0, 40.0, 60.0, 100.0)
"""Limits on the time per token under which layouts are chosen."""
RULES = ("advisor", "largest TP", "smallest TP")


def validate(
    folder: "str | os.PathLike[str]",
    *,
    constants: Constants = DEFAULT,
    by: Sequence[str] = ("model", "gpu", "engine", "tp", "pp"),
    leave_out: Sequence[str] = LEFT_OUT,
) -> pd.DataFrame:
    """The scoreboard of the tables in ``folder``: one row per split and group.

    Columns: ``split`` (``constants in use``, ``without gpu h100``, ...), ``seen`` (whether the constants were fitted on
    such cells), those of ``by``, ``num_cases``, ``tpot_mape_pct``, ``tpot_bias_pct`` (mean signed error: above 0
    predicts too long), ``tpot_max_pct``, ``e2e_mape_pct`` (of a whole request, TTFT + (OSL - 1) x TPOT),
    ``ttft_median_pct`` (median absolute error), ``tok_s_mape_pct`` (of output tokens per second, where that is what was
    measured), ``within_pct`` (share of measurements within their interval of 90 %); nan where nothing was.

    Args:
        by: what to group by, of the columns of ``predictions``.
        leave_out: of ``LEFT_OUT``; each costs a fit per value.

    Raises:
        ValueError: no folder, no table of a known form in it, or none whose rows can be read (with the reasons).
    """
    return score(predictions(read_folder(folder), constants=constants, leave_out=leave_out), by)


def predictions(tables: Tables, *, constants: Constants = DEFAULT, leave_out: Sequence[str] = LEFT_OUT) -> pd.DataFrame:
    """One row per case and split: what it is, measured and predicted; ``seen`` (whether the constants were fitted on
    it), ``new`` (what was not checked, of ``interval.ASPECTS``), ``width`` (the interval's upper end over the
    prediction) and ``within`` (whether it holds the measurement).

    Raises:
        ValueError: a name in ``leave_out`` that is none of ``LEFT_OUT``, or tables without a row that can be read.
    """
    for what in leave_out:
        check_one_of("leave_out", what, LEFT_OUT)
    if not tables.cases:
        raise ValueError(f"nothing to score: {tables.skipped_in_words or 'the tables have no rows'}")
    frames = [_rows(tables.cases, constants, IN_USE)]
    for split, rest, out in _splits(tables.cases, leave_out):
        made = replace(fit_engines(rest, constants), checked=checked_on(rest))
        frames.append(_rows(out, made, split))
    return pd.concat(frames, ignore_index=True)


def _splits(cases: Sequence[Case], leave_out: Sequence[str]) -> Iterator[tuple[str, list[Case], list[Case]]]:
    """Name, cases to fit on and cases to predict, of everything that can be left out so that something is left."""
    fitted = [case for case in cases if case.kind == "served"]
    serving = [case for case in cases if not case.static]
    for what in leave_out:
        if what == "pp":
            deep = [case for case in serving if case.pp > 1]
            rest = [case for case in fitted if case.pp == 1]
            if deep and rest:
                yield ONE_STAGE, rest, deep
            continue
        for value in sorted({str(case.cell[what]) for case in fitted}):
            rest = [case for case in fitted if case.cell[what] != value]
            if rest:
                yield f"without {what} {value}", rest, [case for case in serving if case.cell[what] == value]


def score(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """``predictions`` summed up: see ``validate``.

    Raises:
        ValueError: a column that is not there.
    """
    by = check_all_of("by", by, rows.columns)
    grouped = rows.groupby(list(dict.fromkeys(["split", "seen", *by])), sort=False, dropna=False)
    error = {
        "num_cases": grouped.size(),
        "tpot_mape_pct": grouped["tpot_error_pct"].apply(lambda e: e.abs().mean()),
        "tpot_bias_pct": grouped["tpot_error_pct"].mean(),
        "tpot_max_pct": grouped["tpot_error_pct"].apply(lambda e: e.abs().max()),
        "e2e_mape_pct": grouped["e2e_error_pct"].apply(lambda e: e.abs().mean()),
        "ttft_median_pct": grouped["ttft_error_pct"].apply(lambda e: e.abs().median()),
        "tok_s_mape_pct": grouped["tok_s_error_pct"].apply(lambda e: e.abs().mean()),
        "within_pct": 100 * grouped["within"].mean(),
    }
    return pd.DataFrame(error).reset_index()


def layout_choice(rows: pd.DataFrame, limits_ms: Sequence[float] = LIMITS_MS) -> pd.DataFrame:
    """What choosing TP by prediction costs, beside the two trivial rules; one row per split and rule.

    For every model, GPU, engine, length and limit under which some measured degree meets the limit: a rule names a
    degree, which then runs at the best of its measured loads within the limit. Regret is the part of the best degree's
    tokens per second per GPU that is lost; all of it where no load of the degree meets the limit.

    Columns: ``split``, ``rule``, ``num_choices``, ``mean_regret_pct``, ``within_5pct`` (share of choices that lose at
    most that), ``missed_limit_pct``.

    Args:
        rows: of ``predictions``; only served cases without a pipeline count.
    """
    served = rows[(rows["kind"] == "served") & (rows["pp"] == 1)]
    found = []
    for key, group in served.groupby(["split", "model", "gpu", "engine", "length"], sort=False):
        if group["tp"].nunique() < 2:
            continue
        for limit in limits_ms:
            really = _best_by_tp(group, "measured_tpot_ms", "measured_tok_s_gpu", limit)
            if really.max() <= 0:
                continue
            guess = _best_by_tp(group, "predicted_tpot_ms", "predicted_tok_s_gpu", limit)
            fastest = group.groupby("tp")["predicted_tpot_ms"].min()
            picks = (guess.idxmax() if guess.max() > 0 else fastest.idxmin(), really.index.max(), really.index.min())
            for rule, tp in zip(RULES, picks, strict=True):
                found.append((key[0], rule, 100 * (1 - really[tp] / really.max())))
    regret = pd.DataFrame(found, columns=["split", "rule", "regret_pct"])
    grouped = regret.groupby(["split", "rule"], sort=False)["regret_pct"]
    summary = {
        "num_choices": grouped.size(),
        "mean_regret_pct": grouped.mean(),
        "within_5pct": grouped.apply(lambda r: 100 * (r <= 5).mean()),
        "missed_limit_pct": grouped.apply(lambda r: 100 * (r >= 100).mean()),
    }
    return pd.DataFrame(summary).reset_index()


def _rows(cases: Sequence[Case], constants: Constants, split: str) -> pd.DataFrame:
    made = []
    for case, (time, first, rate) in zip(cases, Bench(cases, constants).predict(constants).T, strict=True):
        served = predict(case.model, case.machine, case.workload, case.tp, case.pp, constants=constants)
        shares = shares_of({term.name: np.array([term.ms]) for term in served.terms})
        tpot, ttft, tok_s = (np.nan if x is None else x for x in (case.tpot_ms, case.ttft_ms, case.output_tokens_per_s))
        more = case.workload.output_length - 1
        made.append(
            {
                "split": split,
                "seen": split == IN_USE and case.kind != "saturated",
                **case.cell,
                "load": case.load,
                "fits": served.fits,
                "new": served.standing.new,
                **{f"share_{part}": float(share[0]) for part, share in shares.items()},
                "measured_tpot_ms": tpot,
                "predicted_tpot_ms": time,
                "tpot_error_pct": 100 * (time / tpot - 1),
                "measured_ttft_ms": ttft,
                "predicted_ttft_ms": first,
                "ttft_error_pct": 100 * (first / ttft - 1),
                "measured_e2e_ms": ttft + more * tpot,
                "predicted_e2e_ms": first + more * time,
                "e2e_error_pct": 100 * ((first + more * time) / (ttft + more * tpot) - 1),
                "measured_tok_s": tok_s,
                "predicted_tok_s": rate,
                "tok_s_error_pct": 100 * (rate / tok_s - 1),
                "measured_tok_s_gpu": _throughput(case, tpot, ttft),
                "predicted_tok_s_gpu": _throughput(case, time, first),
            }
        )
    return with_intervals(pd.DataFrame(made), constants.spread)


def _throughput(case: Case, tpot_ms: float, ttft_ms: float) -> float:
    """Tokens per second and GPU of a closed loop; without a time to the first token, of decoding alone."""
    w = case.workload
    first = ttft_ms if np.isfinite(ttft_ms) else tpot_ms
    total = first + tpot_ms * (w.output_length - 1)
    return (w.concurrency or 1) * w.output_length / total * 1e3 / (case.tp * case.pp)


def _best_by_tp(group: pd.DataFrame, tpot: str, value: str, limit: float) -> "pd.Series[float]":
    within = group.assign(value=np.where(group[tpot] <= limit, group[value], 0.0))
    return within.groupby("tp")["value"].max()
