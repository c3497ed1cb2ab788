"""What an all-reduce does cost: a sweep over sizes, dtypes and algorithms on a cluster.

Every sample is the slowest rank's, because a collective is over when its last rank is; then the median over samples.
The 95th percentile and the minimum are kept, and the median of the fastest rank: what lies between the two is waiting,
not transfer.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tplab.cluster import Cluster, Provenance, Report, Run
from tplab.collectives.cost import algbw_GBps, busbw_GBps
from tplab.shown import shown

if TYPE_CHECKING:
    from tplab.cluster import Rank

ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8, "int32": 4}
MODES = ("eager", "graph")
_MOST_BYTES = 1 << 40
"""Most bytes of a message on the command line: beyond the memory of any rank."""
ON_SYMMETRIC_MEMORY = ("symmetric-one-shot", "symmetric-two-shot")
"""torch's CUDA kernels over memory that GPUs share; they need one GPU per rank."""
_SYMMETRIC_BYTES = 128
"""Bytes that sizes are a multiple of for those kernels: they move 16 bytes of every rank's part, and a host has up to
8 GPUs."""
ALGORITHMS = (
    *("library", "ring", "two-shot", "one-shot", "recursive-doubling", "int8-two-shot"),
    *ON_SYMMETRIC_MEMORY,
)
"""Names of all-reduces: the backend's own choice, ours, and torch's symmetric-memory kernels."""
_DTYPES_OF = {
    "int8-two-shot": ("float32", "bfloat16", "float16", "float64"),
    **dict.fromkeys(ON_SYMMETRIC_MEMORY, ("bfloat16", "float32")),
}
"""Dtypes of the algorithms that do not take all."""
DEFAULT_SIZES = tuple(1 << power for power in range(10, 27))
"""Sizes in bytes: 1 KiB to 64 MiB in powers of two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One row of a sweep: what to time, and how often."""

    algorithm: str
    """One of ``ALGORITHMS``."""
    dtype: str
    """Name of a torch dtype."""
    num_elements: int
    """Elements of the message."""
    iterations: int
    """Number of samples."""
    mode: str
    """``eager`` or ``graph``."""


def plan_sweep(
    *,
    sizes: Sequence[int] = DEFAULT_SIZES,
    dtypes: Sequence[str] = ("float32",),
    algorithms: Sequence[str] = ("library",),
    mode: str = "eager",
    iterations: int | None = None,
    backend: str = "gloo",
    shares_gpus: bool = False,
) -> list[Point]:
    """The rows of a sweep, in the order they are measured. Raises ``ValueError`` naming a bad argument.

    Args:
        sizes: message sizes in bytes, rising.
        dtypes: names of torch dtypes.
        algorithms: ``library`` (the backend's own all-reduce) or one of ours.
        mode: ``eager`` or, on GPUs, ``graph``: the all-reduce captured in a CUDA graph.
        iterations: samples of every point; by default 50 for small messages down to 7 for large ones.
        backend: of the cluster it is for.
        shares_gpus: whether ranks share GPUs; the default ``iterations`` is then a quarter, as each call waits for the
            GPU to switch between processes.
    """
    _check_names("dtypes", dtypes, ITEMSIZES)
    _check_names("algorithms", algorithms, ALGORITHMS)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    if mode == "graph" and backend != "nccl":
        raise ValueError(
            f"mode='graph' needs CUDA graphs, so the nccl backend; this cluster runs {backend}: use 'eager'"
        )
    if mode == "graph" and not set(algorithms) <= {"library", *ON_SYMMETRIC_MEMORY}:
        raise ValueError(
            f"mode='graph' captures the backend's own all-reduce and the symmetric-memory kernels only: use algorithms "
            f"out of library, {', '.join(ON_SYMMETRIC_MEMORY)}"
        )
    shared = sorted(set(algorithms) & set(ON_SYMMETRIC_MEMORY))
    if shared and (backend != "nccl" or shares_gpus):
        where = "ranks that share a GPU" if backend == "nccl" else f"the {backend} backend"
        raise ValueError(f"algorithms {', '.join(shared)} need a GPU per rank; this cluster has {where}")
    for algorithm in algorithms:
        known = _DTYPES_OF.get(algorithm, dtypes)
        if unknown := sorted(set(dtypes) - set(known)):
            raise ValueError(
                f"dtypes for algorithms={algorithm} must be out of {', '.join(known)}; got {', '.join(unknown)}"
            )
    if iterations is not None and (not isinstance(iterations, int) or iterations < 1):
        raise ValueError(f"iterations must be a positive integer; got {iterations!r}")
    sizes = list(sizes)
    if not sizes:
        raise ValueError("sizes must hold at least one message size in bytes; it is empty")
    largest = max(ITEMSIZES[dtype] for dtype in dtypes)
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise ValueError(f"sizes must be positive numbers of bytes; got {size!r}")
        if size % largest:
            raise ValueError(f"sizes must be multiples of the largest dtype's {largest} bytes; got {size}")
        if shared and size % _SYMMETRIC_BYTES:
            raise ValueError(f"sizes must be multiples of {_SYMMETRIC_BYTES} bytes for {', '.join(shared)}; got {size}")
    if any(after <= before for before, after in pairwise(sizes)):
        raise ValueError(f"sizes must rise: each larger than the one before; got {sizes}")
    return [
        Point(
            algorithm=algorithm,
            dtype=dtype,
            num_elements=int(size) // ITEMSIZES[dtype],
            iterations=iterations or max(7, default_iterations(int(size)) // (4 if shares_gpus else 1)),
            mode=mode,
        )
        for algorithm in algorithms
        for dtype in dtypes
        for size in sizes
    ]


def parse_bytes(argument: str, text: str) -> int:
    """``512B``, ``64KiB``, ``2MiB`` or a plain number of bytes. Raises ``ValueError`` naming ``argument``."""
    match = re.fullmatch(r"\s*(\d{1,15})\s*(|B|KiB|MiB|GiB)\s*", text)
    size = 0 if match is None else int(match[1]) << {"": 0, "B": 0, "KiB": 10, "MiB": 20, "GiB": 30}[match[2]]
    if not 0 < size <= _MOST_BYTES:
        raise ValueError(
            f"{argument} must be a positive size such as 512B, 64KiB, 2MiB or 1GiB, and at most "
            f"{_MOST_BYTES >> 30}GiB; got {shown(text)}"
        )
    return size


def default_iterations(nbytes: int) -> int:
    """50 samples up to 64 KiB, then fewer, down to 7 at 8 MiB and above: a sweep to 64 MiB takes seconds."""
    return max(7, min(50, int(50 * ((1 << 16) / nbytes) ** 0.4)))


def time_points(rank: "Rank", points: list[Point]) -> None:
    """Runs on the ranks. Imported only there: the notebook kernel, which plans a sweep, does without torch."""
    from tplab.collectives import timing

    timing.time_points(rank, points)


def submit_sweep(cluster: Cluster, points: list[Point], **callbacks: Any) -> Run[None]:
    """Start a planned sweep; :func:`sweep_frame` makes the frame of what it has measured so far."""
    return cluster.submit(time_points, points, timeout=None, **callbacks)


def sweep_all_reduce(
    cluster: Cluster,
    sizes: Sequence[int] = DEFAULT_SIZES,
    dtypes: Sequence[str] = ("float32",),
    algorithms: Sequence[str] = ("library",),
    mode: str = "eager",
    iterations: int | None = None,
) -> pd.DataFrame:
    """Measure all-reduce on ``cluster``: one row per algorithm, dtype and size, see :func:`sweep_frame`.

    Arguments as in :func:`plan_sweep`. Raises its ``ValueError``, and the cluster's faults.

    Args:
        cluster: the ranks.
        sizes: bytes of the messages.
        dtypes: names of torch dtypes.
        algorithms: names of all-reduces, as in ``ALGORITHMS``.
        mode: ``eager``, or ``graph`` on GPUs.
        iterations: samples per size; by default fewer for large messages.
    """
    points = plan_sweep(
        sizes=sizes,
        dtypes=dtypes,
        algorithms=algorithms,
        mode=mode,
        iterations=iterations,
        backend=cluster.backend,
        shares_gpus=cluster.shares_gpus,
    )
    run = submit_sweep(cluster, points)
    run.result()
    return sweep_frame(points, run.reports, cluster.provenance)


def sweep_frame(points: Sequence[Point], reports: Iterable[Report], provenance: Provenance) -> pd.DataFrame:
    """Tidy frame of what every rank has reported so far.

    Columns: ``algorithm``, ``dtype``, ``bytes``, ``iterations``; of the slowest rank's samples ``p50_us``, ``p95_us``,
    ``min_us``; ``fastest_rank_p50_us``; ``algbw_GBps`` = bytes / p50; ``busbw_GBps`` = algbw · 2(n-1)/n; ``correct``
    (on every rank); then the provenance.
    """
    by_row: dict[int, dict[int, list[dict[str, Any]]]] = {}
    for report in list(reports):
        if "row" in report.fields:
            by_row.setdefault(report.fields["row"], {}).setdefault(report.rank, []).append(report.fields)
    n = provenance.num_ranks
    rows = []
    for row, by_rank in sorted(by_row.items()):
        if len(by_rank) < n:
            continue
        rounds = min(len(reported) for reported in by_rank.values())  # those that all ranks have finished
        samples = np.array([np.concatenate([part["us"] for part in by_rank[rank][:rounds]]) for rank in range(n)])
        if samples.size == 0:
            continue
        point = points[row]
        nbytes = point.num_elements * ITEMSIZES[point.dtype]
        slowest = samples.max(axis=0)
        p50 = float(np.median(slowest))
        rows.append(
            {
                "algorithm": point.algorithm,
                "dtype": point.dtype,
                "bytes": nbytes,
                "iterations": samples.shape[1],
                "p50_us": p50,
                "p95_us": float(np.quantile(slowest, 0.95)),
                "min_us": float(slowest.min()),
                "fastest_rank_p50_us": float(np.median(samples.min(axis=0))),
                "algbw_GBps": algbw_GBps(nbytes, p50),
                "busbw_GBps": busbw_GBps("all-reduce", nbytes, p50, n),
                "correct": all(part["correct"] for rank in range(n) for part in by_rank[rank][:rounds]),
                **provenance.columns(),
                "launch_mode": point.mode,
            }
        )
    return pd.DataFrame(rows, columns=[*_COLUMNS, *provenance.columns()])


_COLUMNS = (
    *("algorithm", "dtype", "bytes", "iterations", "p50_us", "p95_us", "min_us", "fastest_rank_p50_us"),
    *("algbw_GBps", "busbw_GBps", "correct"),
)


def _check_names(argument: str, names: Sequence[str], known: Iterable[str]) -> None:
    known = list(known)
    if isinstance(names, str) or not names:
        raise ValueError(f"{argument} must be a list of names out of {', '.join(known)}; got {names!r}")
    for name in names:
        if name not in known:
            raise ValueError(f"{argument} must be out of {', '.join(known)}; got {name!r}")
