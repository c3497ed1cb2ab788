"""Which all-reduce is the fastest for which size on a machine, and what engines' fixed limits cost beside it. Pure.

A sweep measures every algorithm at every size; here it becomes a map: the winner of each size, the sizes at which the
winner changes, and, for a decode step of a model, what an engine loses that follows the sizes in its code
(``engine_thresholds``) instead of this machine. Frames in, frames out: a recorded sweep serves as well as one of now.

A winner must beat the noise, or limits would be drawn by chance. The noise of a comparison is how far the two medians
lie above their fastest samples: what others do on the machine only adds time, so below the median lies the jitter of
the thing itself. Not the 95th percentile, which one busy spell sets.

Known to be wrong: only algorithms that were measured can win; between two measured sizes times are joined in log size
and log time, so a protocol change there is smeared; the fastest kernel here with the same steps stands for that of an
engine, so that the choice of steps is compared and not its implementation (torch's one-shot kernel needs a copy after
it, 1 to 2 us, where engines' own do not: as long as it is the only one measured, one step looks worse than it is).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from tplab.checks import check_count
from tplab.collectives.cost import Curve
from tplab.collectives.engine_thresholds import KINDS, EngineRule, engine_rules
from tplab.collectives.sweep_plan import INEXACT, ITEMSIZES
from tplab.shown import algorithm_text, listed

_ONE_OF = ("num_ranks", "launch_mode", "dtype", "backend", "device", "link")
"""Columns in which the rows of a comparison agree."""
_BF16_BYTES = 2
_Rows = dict[str, dict[str, Any]]
"""Algorithm -> its row, of one size."""
_FASTEST_COLUMNS = ("bytes", "winner", "p50_us", "runner_up", "runner_up_us", "margin_us", "noise_us", "decided")
_LOSS_COLUMNS = (
    *("engine", "batch", "bytes", "kind", "algorithm", "engine_us", "best", "best_us", "lost_us_per_call"),
    *("calls", "lost_ms_per_step", "note"),
)


def comparable(
    frame: pd.DataFrame, *, num_ranks: int | None = None, launch_mode: str | None = None, dtype: str | None = None
) -> pd.DataFrame:
    """The rows of a sweep that can be held against each other: exact algorithms, right results, one machine and launch.

    Args:
        frame: as ``sweep_frame`` gives it, perhaps of several sizes of cluster.
        num_ranks: by default the most there are.
        launch_mode: by default ``graph`` where it was measured with several algorithms, else ``eager``.
        dtype: by default the narrowest there is, as messages of inference are.

    Raises:
        ValueError: no such rows, with what there is.
    """
    kept = frame[frame["correct"].astype(bool) & ~frame["algorithm"].isin(INEXACT)]
    there = sorted({*zip(kept["num_ranks"].tolist(), kept["launch_mode"], kept["dtype"], strict=True)})
    if len(kept):
        num_ranks = int(kept["num_ranks"].max()) if num_ranks is None else num_ranks
        kept = kept[kept["num_ranks"] == num_ranks]
    if launch_mode is None:
        launch_mode = "graph" if kept[kept["launch_mode"] == "graph"]["algorithm"].nunique() > 1 else "eager"
    kept = kept[kept["launch_mode"] == launch_mode]
    if dtype is None and len(kept):
        dtype = min(kept["dtype"].unique(), key=lambda name: (ITEMSIZES.get(name, 8), name))
    kept = kept[kept["dtype"] == dtype]
    if kept.empty:
        asked = ", ".join(str(each) for each in (num_ranks, launch_mode, dtype) if each is not None)
        found = [f"{n} ranks {mode} {kind}" for n, mode, kind in there]
        raise ValueError(f"the sweep has no exact, right results for {asked}; it has {listed(found) or 'none'}")
    return kept.reset_index(drop=True)


def fastest(frame: pd.DataFrame) -> pd.DataFrame:
    """The winner of each size: a row per size, rising.

    ``bytes``; ``winner`` and its ``p50_us``; ``runner_up`` and ``runner_up_us`` (the winner itself and infinity where
    it ran alone); ``margin_us`` between the two; ``noise_us``, see the module; ``decided``: the margin is larger.

    Args:
        frame: rows that :func:`comparable` gives.

    Raises:
        ValueError: rows of several machines, numbers of ranks, launches or dtypes, or a size measured twice.
    """
    _check(frame)
    rows = []
    for nbytes, at in frame.groupby("bytes", sort=True):
        ranked: list[Any] = at.sort_values("p50_us", kind="stable").to_dict("records")
        first, second = ranked[0], ranked[1] if len(ranked) > 1 else None
        margin = math.inf if second is None else second["p50_us"] - first["p50_us"]
        noise = 0.0 if second is None else max(_jitter(first), _jitter(second))
        values = (
            *(nbytes, first["algorithm"], first["p50_us"]),
            *((first["algorithm"], math.inf) if second is None else (second["algorithm"], second["p50_us"])),
            *(margin, noise, margin > noise),
        )
        rows.append(dict(zip(_FASTEST_COLUMNS, values, strict=True)))
    return pd.DataFrame(rows, columns=list(_FASTEST_COLUMNS))


def crossovers(frame: pd.DataFrame) -> pd.DataFrame:
    """Which algorithm to take from which size on: bands that cover all sizes, a row each, rising.

    ``algorithm``; ``from_bytes``, 0 for the first; ``to_bytes``, infinite for the last; ``measured``, how many of the
    sweep's sizes are in the band. Each band is as long as can be: its algorithm is the one that stays within the noise
    of the winner for the most sizes in a row, so that two that are equally fast do not take turns. The size at which
    the next one draws level is interpolated in log size and log time; one that was not measured beyond ends with its
    largest message, for which alone it may be made.

    Args:
        frame: rows that :func:`comparable` gives.

    Raises:
        ValueError: as :func:`fastest`.
    """
    sizes = fastest(frame)["bytes"].tolist()
    by_size: dict[float, _Rows] = {}
    records: list[Any] = frame.to_dict("records")
    for row in records:
        by_size.setdefault(row["bytes"], {})[row["algorithm"]] = row
    algorithms = list(dict.fromkeys(frame["algorithm"]))
    bands: list[dict[str, Any]] = []
    start = 0
    while start < len(sizes):
        reach = {name: _unbeaten(name, [by_size[size] for size in sizes[start:]]) for name in algorithms}
        longest = max(reach.values())
        alike = [name for name in algorithms if reach[name] == longest]
        name = min(alike, key=lambda each: sum(by_size[s][each]["p50_us"] for s in sizes[start : start + longest]))
        limit = 0.0
        if bands:
            held, before = bands[-1]["algorithm"], sizes[start - 1]
            ends = not any(held in by_size[size] for size in sizes[start:])
            limit = before + 1 if ends else _equal_at(by_size, before, sizes[start], held, name)
            bands[-1]["to_bytes"] = limit
        bands.append({"algorithm": name, "from_bytes": limit, "to_bytes": math.inf})
        start += longest
    for band in bands:
        band["measured"] = sum(band["from_bytes"] <= size < band["to_bytes"] for size in sizes)
    return pd.DataFrame(bands, columns=["algorithm", "from_bytes", "to_bytes", "measured"])


def best_for(bands: pd.DataFrame, nbytes: float) -> str:
    """The algorithm that ``bands`` of :func:`crossovers` name for a message."""
    within = bands[(bands["from_bytes"] <= nbytes) & (nbytes < bands["to_bytes"])]
    return str(within["algorithm"].iloc[0])


def rules_beside(frame: pd.DataFrame, hidden: int) -> list[EngineRule]:
    """The engines' rules for the GPU and the ranks of a frame of :func:`comparable`.

    Args:
        hidden: width of the model.
    """
    row = frame.iloc[0]
    shares_gpus = row["backend"] == "nccl" and row["num_devices"] != row["num_ranks"]
    return engine_rules(str(row["device"]), int(row["num_ranks"]), hidden, own_gpus=not shares_gpus)


def engine_losses(
    frame: pd.DataFrame, rules: Iterable[EngineRule], *, hidden: int, num_layers: int, batches: Sequence[int]
) -> pd.DataFrame:
    """What each engine's fixed choice loses in a decode step beside the machine's own: a row per engine and batch.

    A step has 2·L all-reduces of B·h·2 bytes. ``kind`` is what the engine takes, ``algorithm`` the fastest one here
    that takes the same steps and ``engine_us`` its time; ``best`` by :func:`crossovers`, ``best_us``;
    ``lost_us_per_call`` and ``lost_ms_per_step`` the difference, once and ``calls`` times, never below 0; ``note``
    where there is nothing to compare, which leaves the times empty.

    Args:
        frame: rows that :func:`comparable` gives.
        rules: see ``engine_rules``.
        hidden: h, the model's width.
        num_layers: L.
        batches: B, sequences that decode together.
    """
    check_count("hidden", hidden, least=1)
    calls = 2 * check_count("num_layers", num_layers, least=1)
    curves = {name: Curve(rows["bytes"], rows["p50_us"]) for name, rows in frame.groupby("algorithm", sort=False)}
    bands, most = crossovers(frame), frame["bytes"].max()
    rows = []
    for rule in rules:
        for batch in batches:
            nbytes = check_count("batches", batch, least=1) * hidden * _BF16_BYTES
            kind, best = rule.kind_at(nbytes), best_for(bands, nbytes)
            times = {
                name: curve.time_us(nbytes)
                for name, curve in curves.items()
                if nbytes <= curve.sizes[-1] or curve.sizes[-1] == most  # what ends early is not to be had beyond
            }
            alike = {name: us for name, us in times.items() if kind is not None and name in KINDS[kind]}
            algorithm = min(alike, key=alike.__getitem__, default=None)
            taken = math.nan if algorithm is None else alike[algorithm]
            lost = max(0.0, taken - times[best]) if algorithm is not None else math.nan
            note = rule.note if kind is None or alike else f"takes {kind}, which was not measured here"
            values = (
                rule.engine,
                batch,
                nbytes,
                kind,
                algorithm,
                taken,
                best,
                times[best],
                lost,
                calls,
                lost * calls / 1e3,
            )
            rows.append(dict(zip(_LOSS_COLUMNS, (*values, note), strict=True)))
    return pd.DataFrame(rows, columns=list(_LOSS_COLUMNS))


def explain_crossovers(frame: pd.DataFrame) -> str:
    """A sentence or two: what to take up to which size, and in how many sizes nobody won by more than the noise."""
    bands, best = crossovers(frame), fastest(frame)
    parts = []
    for band in bands.to_dict("records"):
        until = "" if math.isinf(band["to_bytes"]) else f" up to {_size(band['to_bytes'])}"
        until = until or (" above" if len(bands) > 1 else " for every size")
        parts.append(f"{algorithm_text(band['algorithm'])}{until}")
    close = int((~best["decided"].astype(bool)).sum())
    said = f"Fastest here: {', '.join(parts)}."
    return f"{said} In {close} of {len(best)} sizes the first two are within each other's noise." if close else said


def _size(nbytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024 or unit == "GiB":
            break
        nbytes /= 1024
    return f"{nbytes:.3g} {unit}"


def _jitter(row: dict[str, Any]) -> float:
    return max(0.0, float(row["p50_us"] - row["min_us"]))  # a median below the least would beat even itself


def _check(frame: pd.DataFrame) -> None:
    for column in _ONE_OF:
        values = frame[column].unique().tolist()
        if len(values) > 1:
            raise ValueError(f"a comparison needs rows of one {column}, got {listed(values)}: use comparable()")
    if frame.empty or frame.duplicated(["algorithm", "bytes"]).any():
        raise ValueError("a comparison needs rows, and each algorithm once per size: use comparable()")


def _unbeaten(name: str, sizes: "Sequence[_Rows]") -> int:
    """For how many sizes in a row no other algorithm is faster by more than the noise."""
    for count, at in enumerate(sizes):
        winner = min(at.values(), key=lambda row: float(row["p50_us"]))
        own = at.get(name)
        if own is None or own["p50_us"] - winner["p50_us"] > max(_jitter(own), _jitter(winner)):
            return count
    return len(sizes)


def _equal_at(by_size: "dict[float, _Rows]", before: float, after: float, held: str, rival: str) -> float:
    """Size between the two at which both algorithms take equally long, by straight lines in log size and log time; the
    lower size where the rival is ahead there already."""
    if any(name not in by_size[size] for name in (held, rival) for size in (before, after)):
        return math.sqrt(before * after)
    behind, ahead = (math.log(by_size[s][held]["p50_us"] / by_size[s][rival]["p50_us"]) for s in (before, after))
    return before if behind >= 0 else before * math.exp(math.log(after / before) * -behind / (ahead - behind))
