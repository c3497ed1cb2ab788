"""Whether what nccl-tests printed can be, and what it is of: by every figure beside the others.

Bandwidths follow from time, size and ranks (doc/PERFORMANCE.md), so a row that was torn, a unit, a number of ranks or a
test that is not named shows. Notes are for what was left out, assumed or missing.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from tplab.checks import ArgumentError
from tplab.collectives.cost import busbw_factor
from tplab.collectives.nccl_text import MOST_RANKS, Half, Raw, Row
from tplab.shown import listed

COLLECTIVES = {
    "all_reduce": "all-reduce",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "broadcast": "broadcast",
    "reduce": "reduce",
    "alltoall": "all-to-all",
    "alltoallv": "all-to-all",
    "sendrecv": "point-to-point",
    "gather": "gather",
    "scatter": "scatter",
    "hypercube": "hypercube",
}
"""Programs of nccl-tests, less ``_perf``, and what they measure."""
SUMS = ("all-reduce", "all-gather", "reduce-scatter")
"""What NVLink switches can do by themselves."""
_SWITCHED = re.compile(r"\bG?[HB]\d{2,3}\b")
"""GPUs whose switches can, Hopper and later, as the driver calls them."""
_APART = 0.1
"""Relative difference from which a bandwidth is not the one that time and size give."""
_LEAST_US, _MOST_US = 1e-3, 1e12
"""Range of times in us: what lies beyond was not measured."""
_LEAST_BW = 1.0
"""Bandwidth in GB/s from which its two digits after the point say that."""


def nothing(raw: Raw) -> str:
    """What a test without rows holds instead."""
    if raw.other:
        return f"the output of {raw.other}, which is not read: run all_reduce_perf and sendrecv_perf of nccl-tests"
    if len({device.pid for device in raw.devices if device.rank == 0}) > 1:
        return (
            "no rows, and several processes that are each rank 0: they formed no group. Build nccl-tests with MPI=1, "
            "or run one process (-g 8)"
        )
    if raw.failure:
        return f"no rows of a table: the test failed ({raw.failure})"
    if raw.damaged:
        return f"{raw.damaged} rows, and none of them whole: paste the lines as they were printed"
    if raw.headers or raw.devices or raw.name:
        return "the beginning of a run of nccl-tests and no rows: it was cut off"
    return (
        "no table of nccl-tests: expected rows such as '1048576  262144  float  sum  -1  27.76  37.78  66.11  0', as "
        "all_reduce_perf prints them, or the JSON of -J"
    )


def sound(raw: Raw, where: str, notes: list[str]) -> list[Row]:
    """Rows with a time and right results."""
    if raw.cpu_time:
        raise ValueError(f"{where} holds the host's times (-C 1), not those of the transfers: run it without")
    if raw.damaged:
        notes.append(f"{raw.damaged} lines begin as rows and are not whole: left out")
    timed = [row for row in raw.rows if row.nbytes > 0 and _timed(row.out_of_place or row.in_place)]
    if len(timed) < len(raw.rows):
        notes.append(f"{len(raw.rows) - len(timed)} rows of no bytes or no time left out")
    if not timed:
        raise ValueError(f"{where} holds {len(raw.rows)} rows, all of them without a time or without bytes")
    right = [row for row in timed if not _wrong(row, raw.counts_wrong)]
    if len(right) < len(timed):
        bad = listed(dict.fromkeys(f"{row.nbytes:,} bytes" for row in timed if _wrong(row, raw.counts_wrong)))
        notes.append(f"WRONG results left out: {bad}")
    if not right:
        raise ValueError(f"{where}: every result is wrong (#wrong above 0): NCCL does not work there")
    if raw.out_of_bounds:
        notes.append(f"the test says FAILED: {raw.out_of_bounds:,} values out of bounds")
    return right


def _timed(half: Half | None) -> bool:
    return half is not None and math.isfinite(half.time) and _LEAST_US <= half.time < _MOST_US


def _wrong(row: Row, counted: bool) -> bool:
    """By the out-of-place half, whose time is used. A deviation (old versions) is wrong where it is no number."""
    half = row.out_of_place or row.in_place
    wrong = half.wrong if half is not None else None
    return wrong is not None and (wrong > 0 if counted else not math.isfinite(wrong) or wrong > 1)


def ranks(raw: Raw, rows: Sequence[Row], where: str, notes: list[str]) -> int:
    """n: by the lines of the ranks, what else states it, or the factor between the bandwidths."""
    factor = _factor(rows)
    if factor == 0:
        raise ValueError(
            f"{where}: bus bandwidth is 0, so every process ran alone, with itself. Build nccl-tests with MPI=1, or "
            f"run one process with all GPUs (-g 8)"
        )
    by_group = Counter(device.group for device in raw.devices)
    listed_ranks = max((device.rank for device in raw.devices), default=-1) + 1
    n = raw.stated_ranks or listed_ranks
    if len(by_group) > 1:
        n = max(by_group.values())
        notes.append(f"{len(by_group)} groups ran at once, of {n} ranks each")
    n = max(n, listed_ranks) if len(by_group) <= 1 else n
    if not n:
        n = _by_factor(rows) or max(1, raw.threads) * max(1, raw.gpus) * (raw.headers > 0)
        if n < 2 and factor == 1:
            n = 2
            notes.append("no line says how many ranks take part: 2 are assumed")
    if n == 1:
        raise ValueError(f"{where}: one GPU takes part, and sends nothing: run it on two or more (-g 2)")
    if n < 1:
        raise ValueError(
            f"{where}: nothing says how many ranks take part, and bandwidths have too few digits to tell: paste the "
            f"lines '#  Rank  0 ...', too"
        )
    return min(n, MOST_RANKS)


def _by_factor(rows: Sequence[Row]) -> int:
    """The one number of ranks for which the bandwidths, to their digits, stand so to each other; 0 if several do."""
    largest = max((half for row in rows if (half := row.out_of_place)), key=lambda half: half.algbw, default=None)
    if largest is None or largest.algbw < _LEAST_BW:
        return 0
    factor = largest.busbw / largest.algbw
    digits = 0.5 * 10.0 ** (len(f"{largest.busbw:.0f}") - 5)  # at most five are printed, two after the point
    unsure = factor * max(digits, 0.005) * (1 / largest.busbw + 1 / largest.algbw)
    if abs(factor - 1) <= unsure or factor + unsure >= 2 or factor <= unsure:
        return 0
    low, high = (2 / (2 - each) if factor > 1 else 1 / (1 - each) for each in (factor - unsure, factor + unsure))
    able = [n for n in range(math.floor(low), math.ceil(high) + 1) if low <= n <= high][:2]
    return able[0] if len(able) == 1 else 0


def _factor(rows: Sequence[Row]) -> float | None:
    """Bus bandwidth over algorithm bandwidth, where they have enough digits; None where none has."""
    halves = [row.out_of_place for row in rows if row.out_of_place is not None]
    known = [half.busbw / half.algbw for half in halves if half.algbw >= _LEAST_BW]
    if not known:
        return None
    largest = sorted(halves, key=lambda half: half.algbw)[-1]
    return 0.0 if median(known) < 1e-3 else round(largest.busbw / largest.algbw, 4)


def collective_of(raw: Raw, rows: Sequence[Row], n: int, where: str, filename: str, asked: str | None) -> str:
    """What was measured.

    Args:
        raw, rows, n: the test, its sound rows, and its ranks.
        where: what stands before errors.
        filename: which may be called after the program.
        asked: goes before what the text, the file's name or the columns say.
    """
    if asked is not None:
        return asked
    named = COLLECTIVES.get(_squeezed(raw.name))
    if named is None:
        stem = filename.lower().replace("-", "_")
        named = next((COLLECTIVES[name] for name in COLLECTIVES if f"{name}_perf" in stem), None)
    return named or _told(rows, n, where)


def _squeezed(name: str) -> str:
    return next((known for known in COLLECTIVES if known.replace("_", "") == name.replace("_", "")), name)


def _told(rows: Sequence[Row], n: int, where: str) -> str:
    """By reduction, root and the factor between the bandwidths."""
    row, factor = rows[-1], _factor(rows)
    reduces = row.redop not in ("", "none")
    checked = any(each.out_of_place is not None and each.out_of_place.wrong is not None for each in rows)
    in_place = [each.in_place for each in rows if each.in_place is not None]
    unchecked = checked and bool(in_place) and all(half.wrong is None for half in in_place)  # it is not what these do
    candidates = {
        "all-reduce": reduces and row.root < 0 and not unchecked,
        "reduce-scatter": reduces and row.root < 0 and not unchecked,
        "point-to-point": row.root < 0 and (unchecked or not checked) and reduces,
        "all-gather": not reduces and row.root < 0 and not unchecked,
        "all-to-all": not reduces and row.root < 0 and (unchecked or not checked),
        "broadcast": not reduces and row.root >= 0,
        "reduce": reduces and row.root >= 0,
    }
    fits = [
        name
        for name, may in candidates.items()
        if may and (factor is None or abs(_factor_of(name, n) - factor) <= 0.02 * max(factor, 1e-9))
    ]
    if len(fits) != 1:
        raise ArgumentError(
            "collective",
            None,
            f"must be given for {where}, which does not say which test it is of: one of "
            f"{', '.join(dict.fromkeys(COLLECTIVES.values()))}",
        )
    return fits[0]


def _factor_of(collective: str, n: int) -> float:
    """Bus bandwidth over algorithm bandwidth (doc/PERFORMANCE.md); all-to-all, gather and scatter (n-1)/n there."""
    if collective in ("reduce", "hypercube"):
        return 1.0
    if collective in ("all-to-all", "gather", "scatter"):
        return (n - 1) / n
    return busbw_factor(collective, n)


def consistent(rows: list[Row], collective: str, n: int, where: str, notes: list[str]) -> list[Row]:
    """Rows whose bandwidths are those of their time, size and number of ranks; times in us.

    Args:
        rows: of one test.
        collective, n: what it is, and its ranks.
        where: what stands before errors.
        notes: what was left out is added.
    """
    clear = [row for row in rows if (half := row.out_of_place) is not None and half.algbw >= _LEAST_BW]
    scale = 1.0
    if clear:
        ratio = median(
            row.nbytes / row.out_of_place.time / 1e3 / row.out_of_place.algbw for row in clear if row.out_of_place
        )
        scale = next((each for each in (1.0, 1e3, 1e6) if abs(ratio / each - 1) < _APART), 0.0)
        if scale == 0.0:
            raise ValueError(f"{where}: size / time is {ratio:.3g} times the bandwidth that is printed: in which unit?")
        if scale > 1:
            notes.append(f"times are in {'milliseconds' if scale == 1e3 else 'seconds'}, and were turned into us")
    made = [row if scale == 1.0 else _scaled(row, scale) for row in rows]
    kept = [row for row in made if _agrees(row)]
    if len(kept) < len(made):
        bad = listed(f"{row.nbytes:,} bytes" for row in made if not _agrees(row))
        notes.append(f"left out, since size / time is not the bandwidth that is printed: {bad}")
    if not kept:
        raise ValueError(f"{where}: in no row is size / time the bandwidth that is printed")
    factor, wanted = _factor(kept), _factor_of(collective, n)
    if factor is not None and collective != "hypercube" and abs(factor / wanted - 1) > 0.02:
        raise ValueError(
            f"{where}: bus bandwidth is {factor:.4g} times algorithm bandwidth, and in a {collective} of {n} ranks it "
            f"is {wanted:.4g}: lines about ranks are missing, or it is another test"
        )
    return kept


def _scaled(row: Row, scale: float) -> Row:
    halves = {
        key: replace(half, time=half.time * scale)
        for key in ("out_of_place", "in_place")
        if (half := getattr(row, key)) is not None
    }
    return replace(row, **halves)


def _agrees(row: Row) -> bool:
    half = row.out_of_place or row.in_place
    if half is None or half.algbw < _LEAST_BW:
        return True
    return abs(row.nbytes / half.time / 1e3 / half.algbw - 1) < _APART


def circumstances(raw: Raw, in_switch: bool) -> list[str]:
    """What of the run one must know beside other figures; ``in_switch``: NVLink switches could do it."""
    notes = []
    agg = raw.counts.get("agg iters", 1)
    if agg > 1:
        notes.append(f"{agg} operations in one group call (-m): each time is that of the group over {agg}")
    if raw.blocking:
        notes.append("the host waits for each call (-z): times are longer than those of calls in a row")
    off = raw.variables.get("NCCL_NVLS_ENABLE") == "0"
    if raw.nvls and not off:
        notes.append("NCCL sums in the switch (NVLS) here: large all-reduces are faster than the formula says")
    elif in_switch and not off and raw.nvls is None and _may_switch(raw):
        notes.append("whether NCCL summed in the switch (NVLS) is not said; on Hopper and later it does by itself")
    if raw.variables:
        notes.append(f"run with {listed((f'{key}={value}' for key, value in sorted(raw.variables.items())), 8)}")
    if not raw.ended:
        notes.append("the lines after the table are missing: it was cut off, or only a part was pasted")
    return notes


def _may_switch(raw: Raw) -> bool:
    """Whether switches of these GPUs may sum: where no line names them, too."""
    return not raw.devices or any(_SWITCHED.search(device.name) or not device.name for device in raw.devices)
