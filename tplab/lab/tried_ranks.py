"""Ranks that are started for ``tplab doctor`` to all-reduce: an installed package says little about a working one."""

from collections.abc import Callable

from tplab.cluster import Cluster, ClusterError
from tplab.cluster.hello import all_reduce_hello, contribution
from tplab.lab.finding import Check


def try_ranks(name: str, start: Callable[[], Cluster], reinstall: str) -> Check:
    """Start ranks, let them all-reduce, end them.

    Args:
        name: of the finding.
        start: makes the cluster.
        reinstall: what to do about a wrong result, as a clause.
    """
    try:
        with start() as cluster:
            values = cluster.run(all_reduce_hello)
            badge = cluster.badge
    except (ClusterError, ValueError, OSError) as error:
        return Check(
            name=name,
            found="failed",
            status="problem",
            meaning=first_line(error),
            cure="Mend the problems above first; if there are none, report this with the output of `tplab doctor`.",
        )
    if not all(value["correct"] for value in values):
        return Check(
            name=name,
            found=f"wrong result: {[value['got'] for value in values]}",
            status="problem",
            meaning="All ranks must hold the sum of what each of them brought.",
            cure=f"{reinstall}; if it stays, report this with the output of `tplab doctor`.",
        )
    brought = [f"{contribution(index):g}" for index in range(len(values))]
    terms = " and ".join(brought) if len(brought) < 3 else f"{brought[0]} to {brought[-1]}"
    return Check(name=name, found=f"all-reduce of {terms} gives {values[0]['got']:g} ({badge})")


def first_line(error: Exception) -> str:
    """The first line of an exception's message, without a full stop."""
    lines = str(error).strip().splitlines() or [repr(error)]
    return lines[0].rstrip(".")
