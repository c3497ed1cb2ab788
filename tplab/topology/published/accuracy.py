"""The page that says how accurate the advisor is (``docs/accuracy.md``), written by ``tplab validate --report``.

Nothing on it is typed in by hand: tables, what they are of, errors, what was left out, what could not be scored and why
come from the rows of ``scoreboard.predictions``, so that the page can be made again after every change of a constant.
Another tool's predictions of the same cells (``read_beside``) stand beside ours where both have one.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from tplab import __version__
from tplab.frames import read_frame
from tplab.shown import fixed, listed, table
from tplab.topology.published.memory_page import memory_section
from tplab.topology.published.scoreboard import IN_USE, ONE_STAGE, RULES, layout_choice
from tplab.topology.published.tables import CELL, Tables

_PREDICTED = ("predicted_tpot_ms", "predicted_ttft_ms", "predicted_tok_s")
_MODEL_OUT = "without model "
_WORDS = {"model": "model", "gpu": "GPU", "engine": "engine", "length": "length of the requests"}
_HEADINGS = ("cells", "TPOT", "bias", "whole request", "TTFT, median", "throughput", "in 90 %")
_WORST = 8
ENGINE_NAMES = {
    "vllm": "vLLM",
    "trtllm": "TensorRT-LLM",
    "sglang": "SGLang",
    "fastertransformer": "FasterTransformer",
}
_GROUPS = {
    "model": "Model",
    "gpu": "GPU",
    "engine": "Engine",
    "tp": "TP",
    "pp": "PP",
    "load": "Requests in flight",
}
"""Columns by which errors are told apart -> heading."""
_LONGEST = 300
"""Characters of a reason."""
_FEW = 10
"""Least number of cells of which a share of intervals is worth a figure."""


_HEAD = f"""# How accurate the advisor is

<!-- Written by tplab validate FOLDER --report docs/accuracy.md --beside FILE.csv. Change the code
(tplab/topology/published/accuracy.py) and make it again; do not change the page. -->

*Measured* is what others published, on machines that we have not seen. *Predicted* is what tplab {__version__} computes
from the model's configuration, the GPU's data sheet and its constants, with nothing calibrated on the machine itself;
no GPU was used for this page. The tables are not part of this project: `tplab validate` reads them from a folder that
you give it, and makes this page anew.

Errors are mean absolute errors of the prediction, in percent of what was measured, unless a heading says otherwise.
**TPOT** is the time per output token after the first, **TTFT** the time to the first one, queueing included, **whole
request** TTFT and all further tokens, **throughput** output tokens per second where only that was measured. **Bias** is
the mean signed error: above 0 predicts too long, or for throughput too much. **In 90 %** is how many of the
measurements lie in the interval that comes with each prediction: 90 would be right, less means that it promises too
much, more that it is too wide to be of use. A cell is one measurement: a model on a layout under a load.

What the tables do not say is assumed: the cache is in fp8 where the weights are in 8 or 4 bits, all of a prompt is
computed (where a part of it was cached already, predictions come out too long), and largest batch, token budget and
share of memory are the engine's defaults."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """Predictions of the same cells by another tool."""

    source: str
    """Name and version of the tool."""
    rows: pd.DataFrame
    """One row per cell: the columns ``tables.CELL``, times in ms and output tokens per second; nan where it failed."""
    failures: dict[str, int]
    """Reason -> number of cells of which it has no prediction, the most frequent reason first."""
    notes: dict[str, int]
    """What it says with a prediction -> number of cells."""


def read_beside(path: "str | os.PathLike[str]") -> Beside:
    """What ``tests/benchmarks/bench_aiconfigurator.py`` writes: the columns ``tables.CELL``, ``source``,
    ``predicted_tpot_ms``, ``predicted_ttft_ms``, ``predicted_tok_s`` and ``failure``, and ``note`` if present.

    Raises:
        ValueError: a file that cannot be read, lacks a column, has no rows, or times that are no numbers.
    """
    frame = read_frame(path)
    missing = [name for name in (*CELL, "source", *_PREDICTED, "failure") if name not in frame.columns]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
    if frame.empty:
        raise ValueError(f"{path} has no rows")
    for name in _PREDICTED:
        numbers = pd.to_numeric(frame[name], errors="coerce")
        if (numbers.isna() & frame[name].notna()).any() or (numbers <= 0).any():
            raise ValueError(f"{path}: {name} must be numbers above 0, or empty where there is no prediction")
        frame[name] = numbers
    failures, notes = (
        dict(
            Counter(
                " ".join(str(text).split())[:_LONGEST] for text in frame.get(name, pd.Series()).dropna()
            ).most_common()
        )
        for name in ("failure", "note")
    )
    return Beside(source=listed(frame["source"].astype(str).unique()), rows=frame, failures=failures, notes=notes)


def accuracy_page(tables: Tables, rows: pd.DataFrame, beside: Beside | None = None) -> str:
    """The page, in Markdown.

    Args:
        tables: what was read.
        rows: of ``predictions`` on them.
        beside: another tool's predictions of the same cells.
    """
    parts = [_HEAD, *_sources(tables, rows), *_in_short(rows), *_splits(rows), *_groups(rows), *_pipelines(rows)]
    parts += _choices(rows)
    if beside is not None:
        parts += _side_by_side(rows, beside)
    parts += _left_aside(tables, rows)
    parts += memory_section()
    return "\n\n".join(parts) + "\n"


def _sources(tables: Tables, rows: pd.DataFrame) -> Iterator[str]:
    yield "## What was measured, and by whom"
    once = rows[rows["split"] == IN_USE]
    for origin, group in once.groupby("table", sort=True):
        engines = ", ".join(_named(name) for name in sorted(group["engine"].unique()))
        models = ", ".join(sorted({f"{m} in {p}" for m, p in zip(group["model"], group["precision"], strict=True)}))
        degrees = f"TP {_span(group['tp'])}, PP {_span(group['pp'])}"
        fitted = int(group["seen"].sum())
        yield (
            f"**{origin}**: {len(group)} cells, {fitted or 'none'} of which the constants were fitted on. {models}; "
            f"{', '.join(sorted(group['gpu'].unique()))}; {engines}; {degrees}. Its own words:\n\n"
            + "\n".join(f"> {line}" for line in tables.comments.get(str(origin), ()) or ("(none)",))
        )


def _in_short(rows: pd.DataFrame) -> Iterator[str]:
    yield "## In short"
    used = rows[rows["split"] == IN_USE]
    parts = {"in use, cells they were fitted on": used[used["seen"]], "in use, other cells": used[~used["seen"]]}
    parts |= {f"fitted without the {word}": _left_out(rows, what) for what, word in _WORDS.items()}
    parts[f"{ONE_STAGE}, pipelines predicted"] = rows[rows["split"] == ONE_STAGE]
    found = {name: _figures(part) for name, part in parts.items() if len(part)}
    if (out := found.get("fitted without the model")) is not None:
        yield (
            f"With constants that have not seen its model, TPOT of a cell is {out[1]} % off and a whole request "
            f"{out[3]} %; {out[6]} % of the measurements lie in their interval."
        )
    yield table(("constants", *_HEADINGS), [(name, *figures) for name, figures in found.items()])


def _splits(rows: pd.DataFrame) -> Iterator[str]:
    yield "## What was left out, one by one"
    yield (
        "The constants were fitted again without one model, GPU, engine or length of requests, and then predicted it. "
        "An engine of which nothing is left to fit keeps what its documentation says (largest batch, how prompts get "
        "their turn, which kernels sum over GPUs), and its own times are those of any engine. That is: left out of the "
        "fit. Those who wrote the formulas had seen all of these tables."
    )
    used = rows[rows["split"] == IN_USE]
    known = used[used["seen"]]
    for split, group in rows[rows["split"].str.startswith(_MODEL_OUT)].groupby("split", sort=False):
        model = str(split).removeprefix(_MODEL_OUT)
        alone = sorted(set(group["engine"]) - set(known[known["model"] != model]["engine"]))
        if alone:
            yield f"Without {model} nothing is left of {', '.join(map(_named, alone))}: predicted in that way."
    made = [
        (str(split).removeprefix("without "), *_figures(group))
        for split, group in rows[~rows["split"].isin((IN_USE, ONE_STAGE))].groupby("split", sort=False)
    ]
    yield table(("left out", *_HEADINGS), made)
    yield "The same for models, by engine:"
    out = _left_out(rows, "model")
    yield table(
        ("model left out", "engine", *_HEADINGS),
        [(str(key[0]), _named(key[1]), *_figures(group)) for key, group in out.groupby(["model", "engine"])],
    )


def _groups(rows: pd.DataFrame) -> Iterator[str]:
    yield "## Where the error is"
    yield "With the constants in use, and in the last three columns with the model of the cell left out of the fit."
    used, out = rows[rows["split"] == IN_USE], _left_out(rows, "model")
    head = ("cells", "TPOT", "whole request", "throughput", "in 90 %", "cells", "TPOT", "whole request")
    for key, word in _GROUPS.items():
        made = []
        for value in _in_order(used[key]):
            mine, left = _figures(used[used[key] == value]), _figures(out[out[key] == value])
            shown = (mine[0], mine[1], mine[3], mine[5], mine[6], left[0], left[1], left[3])
            made.append((_named(value) if key == "engine" else str(value), *shown))
        yield table((word, *head), made)
    worst = (
        out.assign(off=out["tpot_error_pct"].abs())
        .groupby(["model", "precision", "gpu", "engine", "length"])["off"]
        .agg(["mean", "size"])
        .nlargest(_WORST, "mean")
        .reset_index()
    )
    if len(worst):
        yield "Farthest off in TPOT with their model left out:"
        yield table(
            ("model", "GPU", "engine", "tokens in/out", "cells", "TPOT"),
            [
                (f"{m} in {p}", gpu, _named(engine), length, str(size), _percent(mean))
                for m, p, gpu, engine, length, mean, size in worst.itertuples(index=False)
            ],
        )


def _pipelines(rows: pd.DataFrame) -> Iterator[str]:
    rated = rows[rows["measured_tok_s"].notna()]
    if rated.empty:
        return
    yield "## Pipelines, and servers with more requests than fit"
    yield (
        "What was measured is throughput, with all requests sent at once: how many ran at a time is not published, so "
        "it is the engine's default or what its cache holds. Tokens per second, and errors in percent."
    )
    deep = rated[rated["split"] == ONE_STAGE].set_index(list(CELL))["tok_s_error_pct"]
    made = []
    used = rated[rated["split"] == IN_USE]
    for _, row in used.sort_values(["model", "gpu", "tp", "pp", "length"]).iterrows():
        again = deep.get(tuple(row[list(CELL)]), np.nan)
        what = (f"{row['model']} in {row['precision']}", row["gpu"], str(row["tp"]), str(row["pp"]), row["length"])
        numbers = (fixed(row["measured_tok_s"]), fixed(row["predicted_tok_s"]))
        made.append((*what, *numbers, _percent(row["tok_s_error_pct"], signed=True), _percent(again, signed=True)))
    head = ("model", "GPU", "TP", "PP", "tokens in/out", "measured", "predicted", "error", ONE_STAGE)
    yield table(head, made)


def _choices(rows: pd.DataFrame) -> Iterator[str]:
    board = layout_choice(rows)
    if board.empty:
        return
    yield "## What choosing by prediction costs"
    yield (
        "Among the TP degrees that were measured, the advisor takes the one that it predicts to give most tokens per "
        "second and GPU within a limit on TPOT. **Lost** is the part of the best degree's throughput that the choice "
        "gives away, on average over models, GPUs, engines, lengths and limits; beside it stand two rules that need no "
        "model."
    )
    board = board.assign(kind=board["split"].str.extract(r"^without (\w+) ", expand=False).fillna(""))
    made = []
    for kind, rule in product(("", *_WORDS), RULES):
        part = board[(board["kind"] == kind) & (board["rule"] == rule)]
        if len(part):
            weights = part["num_choices"].to_numpy(float)
            lost, near = (np.average(part[key], weights=weights) for key in ("mean_regret_pct", "within_5pct"))
            name = f"fitted without the {_WORDS[kind]}" if kind else "in use"
            made.append((name, rule, f"{weights.sum():.0f}", _percent(lost), _percent(near)))
    yield table(("constants", "rule", "choices", "lost", "choices that lose at most 5 %"), made)


def _side_by_side(rows: pd.DataFrame, beside: Beside) -> Iterator[str]:
    yield f"## Beside {beside.source}"
    theirs = beside.rows.drop_duplicates(list(CELL))[[*CELL, *_PREDICTED]]
    frames = []
    for frame in (rows[rows["split"] == IN_USE], _left_out(rows, "model")):
        both = frame.merge(theirs, on=list(CELL), suffixes=("", "_theirs"))
        more = both["length"].str.partition("/")[2].astype(float) - 1
        tpot, ttft = both["predicted_tpot_ms_theirs"], both["predicted_ttft_ms_theirs"]
        frames.append(
            both.assign(
                theirs_tpot=100 * (tpot / both["measured_tpot_ms"] - 1),
                theirs_ttft=100 * (ttft / both["measured_ttft_ms"] - 1),
                theirs_e2e=100 * ((ttft + more * tpot) / both["measured_e2e_ms"] - 1),
                theirs_rate=100 * (both["predicted_tok_s_theirs"] / both["measured_tok_s"] - 1),
            )[both["predicted_tok_s_theirs"].notna()]
        )
    used, out = frames
    asked = int(rows[rows["split"] == IN_USE].merge(theirs[list(CELL)], on=list(CELL)).shape[0])
    failed = sum(beside.failures.values())
    yield (
        f"The same cells, asked of {beside.source} by `tests/benchmarks/bench_aiconfigurator.py`, which says how: one "
        f"estimate per cell at the published layout and load, not a search. Of {asked} cells that it was asked "
        f"{len(used)} are compared; on {failed} it failed"
        + (":" if failed else ".")
        + "".join(f"\n- {count} cells: {reason}" for reason, count in beside.failures.items())
    )
    for note, count in beside.notes.items():
        yield f"With {count} of the others it says: {note}."
    yield (
        "Each error of ours has its constants in use, and then those fitted without the cell's model. Theirs rests on "
        "kernels measured on these GPUs, and the tables of served models are its makers' own."
    )
    made = []
    for key, word in (("", "all"), *_GROUPS.items()):
        for value in _in_order(used[key]) if key else [""]:
            mine, left = (frame[frame[key] == value] if key else frame for frame in (used, out))
            name = word if not key else f"{word} {_named(value) if key == 'engine' else value}"
            cells = [str(len(mine))]
            for own, their in (("tpot_error_pct", "theirs_tpot"), ("e2e_error_pct", "theirs_e2e")):
                cells += [_percent(frame.abs().mean()) for frame in (mine[own], left[own], mine[their])]
            cells += [_percent(mine[name].abs().median()) for name in ("ttft_error_pct", "theirs_ttft")]
            cells += [_percent(mine[name].abs().mean()) for name in ("tok_s_error_pct", "theirs_rate")]
            made.append((name, *cells))
    head = ["", "cells"]
    head += [f"{what}: {who}" for what in ("TPOT", "whole request") for who in ("ours", "model left out", "theirs")]
    head += [f"{what}: {who}" for what in ("TTFT, median", "throughput") for who in ("ours", "theirs")]
    yield table(head, made)


def _left_aside(tables: Tables, rows: pd.DataFrame) -> Iterator[str]:
    yield "## What could not be scored, and what was refused"
    skipped = sum(tables.skipped.values())
    yield f"{skipped} rows of the tables could not be read:" if skipped else "Every row of the tables could be read."
    if skipped:
        yield table(("rows", "reason"), [(str(count), reason) for reason, count in tables.skipped.items()])
    used = rows[rows["split"] == IN_USE]
    refused = used[~used["fits"]]
    yield (
        f"{len(refused) or 'None'} of the {len(used)} measured cells would have been refused by `advise`, because the "
        f"model is said not to fit into memory. They are scored all the same."
    )


def _left_out(rows: pd.DataFrame, what: str) -> pd.DataFrame:
    return rows[rows["split"].str.startswith(f"without {what} ")]


def _figures(rows: pd.DataFrame) -> tuple[str, ...]:
    """What stands under ``_HEADINGS``."""
    tpot, rate, within = (rows[key].dropna() for key in ("tpot_error_pct", "tok_s_error_pct", "within"))
    return (
        f"{len(rows)}",
        _percent(tpot.abs().mean()),
        _percent((tpot if len(tpot) else rate).mean(), signed=True),
        _percent(rows["e2e_error_pct"].abs().mean()),
        _percent(rows["ttft_error_pct"].abs().median()),
        _percent(rate.abs().mean()),
        _percent(100 * within.mean() if len(within) >= _FEW else np.nan),
    )


def _percent(value: float, *, signed: bool = False) -> str:
    if not np.isfinite(value):
        return ""
    return f"{value:+.1f}" if signed else f"{value:.1f}"


def _named(engine: object) -> str:
    return ENGINE_NAMES.get(str(engine), str(engine))


def _in_order(values: "pd.Series[Any]") -> list[Any]:
    """Each value once: numbers by size, classes of load by their first number, other texts by letter."""

    def place(value: Any) -> tuple[float, str]:
        first = str(value).partition("-")[0].partition(" ")[0]
        return (float(first), "") if first.isdigit() else (np.inf, str(value))

    return sorted(values.unique(), key=place)


def _span(values: "pd.Series[int]") -> str:
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} to {high}"
