"""What ranks cost before they do anything: the start, and a call to ranks that are warm."""

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from tplab.checks import check_count
from tplab.cluster.hello import all_reduce_hello

if TYPE_CHECKING:
    from tplab.cluster.cluster import Cluster


def launch_phases(cluster: "Cluster") -> pd.DataFrame:
    """Where the seconds of the ranks' last start went; waits until they are ready.

    Returns one row per ``rank`` and ``phase`` (see :attr:`Cluster.launches`), in order: ``start_s``, since their
    processes were started, ``seconds``, and the provenance columns. A rank that comes early to the process group waits
    there for the others: the ``last`` one's is what connecting takes.
    """
    cluster.start()
    columns, launch = cluster.provenance.columns(), cluster.launches[-1]
    last = last_rank(launch)
    rows: list[dict[str, object]] = []
    for rank, phases in launch.items():
        start_s = 0.0
        for phase, seconds in phases.items():
            row = {"rank": rank, "phase": phase, "start_s": start_s, "seconds": seconds, "last": rank == last}
            rows.append(row | columns)
            start_s += seconds
    return pd.DataFrame(rows)


def last_rank(launch: Mapping[int, Mapping[str, float]]) -> int:
    """The rank for which the others of a start waited: the last that was ready to connect."""

    def arrival(rank: int) -> float:
        phases = launch[rank]
        return math.fsum(phases.get(phase, 0.0) for phase in ("interpreter", "import torch", "context"))

    return max(launch, key=arrival)


def measure_calls(cluster: "Cluster", num_calls: int = 30) -> pd.DataFrame:
    """Call warm ranks ``num_calls`` times with a one-element all-reduce.

    Returns one row per ``call``: ``call_ms``, from the call until the values are in the kernel; ``function_ms``, what
    the function took on the slowest rank; ``overhead_ms``, the difference; and the provenance columns.
    """
    num_calls = check_count("num_calls", num_calls, least=1)
    cluster.run(all_reduce_hello)  # warm
    rows: list[dict[str, object]] = []
    columns = cluster.provenance.columns()
    for call in range(num_calls):
        began = time.perf_counter()
        run = cluster.submit(all_reduce_hello)
        run.result()
        call_s = time.perf_counter() - began
        assert run.rank_s is not None
        function_s = max(run.rank_s)
        rows.append(
            {
                "call": call,
                "call_ms": call_s * 1e3,
                "function_ms": function_s * 1e3,
                "overhead_ms": (call_s - function_s) * 1e3,
                **columns,
            }
        )
    return pd.DataFrame(rows)
