"""What nccl-tests measured, as a sweep: for people who may run nothing else on a machine.

Their times are means over iterations launched one after the other, of rank 0 or averaged over ranks (-a), where
``sweep`` has medians of the slowest rank; bus bandwidth is the same (doc/PERFORMANCE.md). Sizes are bytes of the full
tensor, as in ``volumes``; of ``sendrecv_perf`` what each rank sends to the next while it receives as much.

Known to be wrong: with sums in the switch (NVLS), which NCCL uses by itself on Hopper, large all-reduces are faster
than a ring's formula; ``notes`` say what is known of it.
"""

import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import pandas as pd

from tplab.checks import check_one_of
from tplab.cluster import Provenance
from tplab.collectives.nccl_checks import (
    COLLECTIVES,
    SUMS,
    circumstances,
    collective_of,
    consistent,
    nothing,
    ranks,
    sound,
)
from tplab.collectives.nccl_text import Half, Raw, Row, read_raw
from tplab.files import read_bytes, text_of
from tplab.measure import provenance_columns
from tplab.shown import listed

_MOST_BYTES = 16 << 20
_DTYPES = {"float": "float32", "half": "float16", "double": "float64", "char": "int8", "int": "int32"}


@dataclass(frozen=True, kw_only=True, slots=True)
class NcclTest:
    """One run of one of its programs."""

    collective: str
    """A value of ``COLLECTIVES``."""
    num_ranks: int
    """n; one GPU each."""
    num_hosts: int | None
    """Hosts that they are on; None where not all ranks have a line."""
    device: str
    """The GPU, as the driver calls it; empty where no line names it."""
    graph: bool
    """Whether it was captured in a CUDA graph (-G)."""
    iterations: int
    """Calls that each time is the mean of; 0 where that is not said."""
    versions: dict[str, str]
    """Name -> version, of nccl-tests and NCCL, as far as they are said."""
    started: str
    """When, in local time; empty where that is not said."""
    rows: tuple[Row, ...]
    """Rows whose results were right, rising by size; times in us."""
    notes: tuple[str, ...]
    """What was left out, assumed or missing, one sentence each."""

    @property
    def badge(self) -> str:
        """``RECORDED nccl-tests · 8 x NVIDIA H100 80GB HBM3 · 1 host``."""
        hosts = "" if self.num_hosts is None else f" · {self.num_hosts} host{'s' * (self.num_hosts > 1)}"
        return f"RECORDED nccl-tests · {self.num_ranks} x {self.device or 'GPUs without a name'}{hosts}"

    @property
    def curve(self) -> dict[int, float]:
        """Bytes -> us, rising, out of place (in place where that is all there is): the mean of each size, in the dtype
        that engines send, where there are several."""
        order = ("bfloat16", "half", "float")
        kinds = Counter((row.dtype, row.redop) for row in self.rows)
        usual = min(kinds, key=lambda kind: (order.index(kind[0]) if kind[0] in order else 9, kind[1] != "sum"))
        times: dict[int, list[float]] = {}
        for row in self.rows:
            if (row.dtype, row.redop) == usual:
                times.setdefault(row.nbytes, []).append(_half(row).time)
        return {size: median(each) for size, each in sorted(times.items())}

    def frame(self) -> pd.DataFrame:
        """Tidy, with the columns of ``sweep_frame``, whose figures take it: a row per size, dtype, operation and root.

        ``p50_us``, ``p95_us`` and ``min_us`` are the one mean there is, out of place; ``in_place_us`` is beside it, and
        ``collective``, ``redop`` and ``root`` in front.
        """
        link = f"{self.num_ranks} GPUs" + ("" if self.num_hosts is None else f" on {self.num_hosts} host(s)")
        provenance = Provenance(
            backend="nccl",
            num_ranks=self.num_ranks,
            device=self.device or "not named",
            num_devices=self.num_ranks,
            link=link,
            launch_mode="graph" if self.graph else "eager",
            num_cores=0,
            torch_version="",
            nccl_version=self.versions.get("nccl", ""),
            python_version="",
            num_hosts=self.num_hosts or 1,
            started_at=self.started,
        )
        kinds = {(row.redop, row.root) for row in self.rows}
        return pd.DataFrame(
            [{**_columns(self, row, len(kinds) > 1), **provenance_columns(provenance)} for row in _once(self.rows)]
        )


def _half(row: Row) -> Half:
    half = row.out_of_place or row.in_place
    assert half is not None, "rows without times are left out"
    return half


def _once(rows: Sequence[Row]) -> list[Row]:
    """Of rows that were measured several times, the one with the median time."""
    alike: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault((row.nbytes, row.dtype, row.redop, row.root), []).append(row)
    return [sorted(each, key=lambda row: _half(row).time)[(len(each) - 1) // 2] for each in alike.values()]


def _columns(test: NcclTest, row: Row, several: bool) -> dict[str, Any]:
    """``several``: operations or roots, which then are series of their own."""
    half = _half(row)
    which = f"{row.redop or 'of'} {row.root if row.root >= 0 else ''}".strip()
    return {
        "collective": test.collective,
        "redop": row.redop,
        "root": row.root,
        "algorithm": f"library ({which})" if several else "library",
        "dtype": _DTYPES.get(row.dtype, row.dtype),
        "bytes": row.nbytes,
        "iterations": test.iterations,
        **dict.fromkeys(("p50_us", "p95_us", "min_us", "fastest_rank_p50_us"), half.time),
        "in_place_us": row.in_place.time if row.in_place else math.nan,
        "algbw_GBps": half.algbw,
        "busbw_GBps": half.busbw,
        "correct": True,
    }


def read_nccl(path: "str | os.PathLike[str]", *, collective: str | None = None) -> list[NcclTest]:
    """The tests in a file: what nccl-tests or rccl-tests printed, whatever stands around it, or its JSON (-J).

    Args:
        path: the file; ``-`` for standard input.
        collective: what it measured, a value of ``COLLECTIVES``, where the text does not say it.

    Raises:
        ValueError: no table of nccl-tests in it, or none that is worth anything: processes that formed no group, one
            GPU, results that were wrong, times of nothing. Says which, and the way out.
        OSError: the file cannot be read.
    """
    name = os.fspath(path)
    text = text_of(sys.stdin.buffer.read(_MOST_BYTES) if name == "-" else read_bytes(path, limit=_MOST_BYTES), name)
    if collective is not None:
        check_one_of("collective", collective, dict.fromkeys(COLLECTIVES.values()))
    raws = read_raw(text, name)
    tests, refused = [], []
    for i, raw in enumerate(raws):
        where = name if len(raws) == 1 else f"{name}, test {i + 1} of {len(raws)}"
        try:
            tests.append(_judged(raw, where, os.path.basename(name), collective))
        except ValueError as error:
            refused.append(error)
    if not tests:
        raise refused[0]
    if refused:
        said = tuple(f"left out: {error}" for error in refused)
        tests[0] = replace(tests[0], notes=(*tests[0].notes, *said))
    return tests


def nccl_frame(tests: Iterable[NcclTest]) -> pd.DataFrame:
    """The frames of several tests, one under the other."""
    return pd.concat([test.frame() for test in tests], ignore_index=True)


def _judged(raw: Raw, where: str, filename: str, asked: str | None) -> NcclTest:
    notes: list[str] = []
    if not raw.rows:
        raise ValueError(f"{where} holds {nothing(raw)}")
    rows = sound(raw, where, notes)
    n = ranks(raw, rows, where, notes)
    collective = collective_of(raw, rows, n, where, filename, asked)
    rows = consistent(rows, collective, n, where, notes)
    hosts = list(dict.fromkeys(device.host for device in raw.devices))
    alone = raw.threads * raw.gpus >= n  # one process has them all
    complete = alone or len(raw.devices) >= n or (raw.stated_ranks == n and bool(raw.devices))
    names = Counter(device.name for device in raw.devices if device.name)
    if len(names) > 1:
        kinds = listed(f"{count} x {kind}" for kind, count in names.items())
        notes.append(f"GPUs of several kinds take part: {kinds}")
    if not names:
        notes.append("no line says which GPUs these are")
    elif not complete:
        notes.append(f"{len(raw.devices)} of {n} lines about ranks are there: on how many hosts they are is not known")
    notes += circumstances(raw, in_switch=collective in SUMS and n > 2)
    sizes = [row.nbytes for row in rows]
    if sizes != sorted(sizes):
        notes.append("sizes are not in order, and were put in order")
    if len(set(sizes)) == 1:
        notes.append("one size only: nothing can be fitted")
    return NcclTest(
        collective=collective,
        num_ranks=n,
        num_hosts=max(1, len(hosts)) if complete else None,
        device=" and ".join(names) if names else "",
        graph=raw.counts.get("graph", 0) > 0,
        iterations=raw.counts.get("iters", 0),
        versions=raw.versions,
        started=raw.started,
        rows=tuple(sorted(rows, key=lambda row: row.nbytes)),
        notes=tuple(notes),
    )
