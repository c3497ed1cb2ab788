"""What ranks cost before they do anything: the start, and a call to ranks that are warm."""

import time
from typing import TYPE_CHECKING

import pandas as pd

from tplab.checks import check_count
from tplab.cluster.hello import all_reduce_hello

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tplab.cluster.cluster import Cluster


def measure_launch(num_ranks: "Sequence[int]", backend: str = "auto") -> pd.DataFrame:
    """Start a cluster of each size, run one all-reduce, end it.

    Returns one row per ``num_ranks`` and ``phase`` with ``seconds`` (of the rank that came last; ``first all-reduce``
    is the whole first call), and the provenance columns.
    """
    from tplab.cluster.cluster import Cluster

    rows: list[dict[str, object]] = []
    for n in num_ranks:
        with Cluster(n, backend) as cluster:
            cluster.start()
            began = time.perf_counter()
            cluster.run(all_reduce_hello)
            first_call = time.perf_counter() - began
            phases = cluster.launches[-1]
            columns = cluster.provenance.columns()
        # The rank that was last to import torch: the others spend the difference waiting in the next phase.
        last = max(phases, key=lambda rank: phases[rank]["interpreter"] + phases[rank]["import torch"])
        rows += [{"phase": phase, "seconds": seconds, **columns} for phase, seconds in phases[last].items()]
        rows.append({"phase": "first all-reduce", "seconds": first_call, **columns})
    return pd.DataFrame(rows)


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
