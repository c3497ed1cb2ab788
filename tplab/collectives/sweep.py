"""What an all-reduce does cost: a sweep over sizes, dtypes and algorithms on a cluster."""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tplab.cluster import Cluster, DerivedRun, Provenance, Report, Run
from tplab.collectives.cost import algbw_GBps, busbw_GBps
from tplab.collectives.sweep_plan import DEFAULT_SIZES, ITEMSIZES, Point, plan_sweep
from tplab.files import MAX_WHOLE
from tplab.frames import read_frame
from tplab.measure import newest_spelling, provenance_columns, samples_of
from tplab.moved import say_new_names

if TYPE_CHECKING:
    from tplab.cluster import Rank


def sweep_on_rank(rank: "Rank", points: list[Point]) -> None:
    """What every rank does; see ``timing.time_points``."""
    from tplab.collectives.timing import time_points  # needs torch, which the notebook kernel does without

    time_points(rank, points)


def submit_sweep(cluster: Cluster, points: list[Point], *, timeout: float | None = None, **callbacks: Any) -> Run[None]:
    """Start a planned sweep; :func:`sweep_frame` makes the frame of what it has measured so far."""
    return cluster.submit(sweep_on_rank, points, timeout=timeout, **callbacks)


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
    return submit_all_reduce(
        cluster, sizes=sizes, dtypes=dtypes, algorithms=algorithms, mode=mode, iterations=iterations
    ).result()


def submit_all_reduce(cluster: Cluster, *, timeout: float | None = None, **settings: Any) -> DerivedRun[pd.DataFrame]:
    """Like :func:`sweep_all_reduce`, without waiting: with ``result()``, ``stop()`` and ``partial()``.

    Args:
        cluster: the ranks.
        timeout: seconds for everything; None: no limit.
        settings: the other arguments of :func:`plan_sweep`.
    """
    points = plan_sweep(**settings, backend=cluster.backend, shares_gpus=cluster.shares_gpus)
    run = submit_sweep(cluster, points, timeout=timeout)
    return run.map(lambda run: sweep_frame(points, run.reports, cluster.provenance))


def read_sweep(path: "str | os.PathLike[str]") -> pd.DataFrame:
    """A frame that was written as CSV, as ``tplab sweep`` does.

    Raises:
        ValueError: a file that cannot be read or is no table, without a column that comparisons need, or with times
            that are none.
    """
    frame = read_frame(path)
    if "num_hosts" not in frame:  # it was written when there was only one
        frame["num_hosts"] = 1
    needed = ("algorithm", "dtype", "bytes", "p50_us", "min_us", "correct", *Provenance.__dataclass_fields__)
    if missing := [name for name in needed if name not in frame]:
        raise ValueError(f"{path} is no sweep of all-reduces: it has no column {', '.join(missing)}")
    for name in ("bytes", "p50_us", "min_us", "num_ranks", "num_devices"):
        column = pd.to_numeric(frame[name], errors="coerce")
        if not ((column > 0) & (column < MAX_WHOLE)).all():
            raise ValueError(f"{path} is no sweep of all-reduces: its column {name} holds more than numbers above 0")
        frame[name] = column if name.endswith("_us") else column.astype("int64")
    for name in ("algorithm", "dtype", "backend", "device", "link", "launch_mode"):
        frame[name] = frame[name].map(str)  # an empty field was read as not a number
    correct = frame["correct"].astype(str).str.lower() == "true"
    return frame.assign(link=frame["link"].map(newest_spelling), correct=correct)


def sweep_frame(points: Sequence[Point], reports: Iterable[Report], provenance: Provenance) -> pd.DataFrame:
    """Tidy frame of what every rank has reported so far.

    Columns: ``algorithm``, ``dtype``, ``bytes``, ``iterations``; of the slowest rank's samples ``p50_us``, ``p95_us``,
    ``min_us``; ``fastest_rank_p50_us``; ``algbw_GBps`` = bytes / p50; ``busbw_GBps`` = algbw · 2(n-1)/n; ``correct``
    (on every rank); then the provenance.
    """
    rows = []
    for row, samples in sorted(samples_of(reports, provenance.num_ranks).items()):
        point = points[row]
        nbytes = point.num_elements * ITEMSIZES[point.dtype]
        rows.append(
            {
                "algorithm": point.algorithm,
                "dtype": point.dtype,
                "bytes": nbytes,
                "iterations": samples.us.shape[1],
                "p50_us": samples.p50_us,
                "p95_us": samples.p95_us,
                "min_us": samples.min_us,
                "fastest_rank_p50_us": samples.fastest_rank_p50_us,
                "algbw_GBps": algbw_GBps(nbytes, samples.p50_us),
                "busbw_GBps": busbw_GBps("all-reduce", nbytes, samples.p50_us, provenance.num_ranks),
                "correct": samples.correct,
                **provenance_columns(provenance, launch_mode=point.mode),
            }
        )
    return pd.DataFrame(rows, columns=[*_COLUMNS, *provenance.columns()])


_COLUMNS = (
    *("algorithm", "dtype", "bytes", "iterations", "p50_us", "p95_us", "min_us", "fastest_rank_p50_us"),
    *("algbw_GBps", "busbw_GBps", "correct"),
)


say_new_names(__name__)
