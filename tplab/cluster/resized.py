"""Some of a cluster's ranks as a cluster of their own, for runs on fewer ranks without starting any.

Not a second set of processes: starting those takes seconds, and on GPUs each would take half a gigabyte for its CUDA
context. And not a process group that functions are handed beside ``rank.group``: whatever uses the default group,
torch's device meshes among it, would wait for ranks that have no part in the run. So the ranks switch worlds (see
``worlds``).
"""

import weakref
from typing import Any

from tplab.checks import ArgumentError, check_count
from tplab.cluster.backends import RankDevices
from tplab.cluster.cluster import Cluster
from tplab.cluster.errors import ClusterClosed
from tplab.cluster.launch import State
from tplab.cluster.run import Run


class Resized(Cluster):
    """The first ``n`` ranks of ``whole``; made by :meth:`Cluster.resized`."""

    def __init__(self, whole: Cluster, n: int) -> None:
        # Not the base class's: that one starts ranks, and ends them when it goes.
        if check_count("n", n, least=1) > whole.num_ranks:
            there = f"must be at most the {whole.num_ranks} ranks that there are: for more, make a Cluster({n})"
            raise ArgumentError("n", n, there)
        self._whole = whole  # which ends its ranks when nobody holds it
        self._n = n
        self._started_at = whole._started_at
        self._supervisor = whole._supervisor
        self._runs: weakref.WeakSet[Run[Any]] = weakref.WeakSet()
        self._closed = False

    @property
    def _placement(self) -> RankDevices:
        return self._whole._placement.first(self._n)

    def close(self) -> None:
        """End the runs on these ranks, and refuse others. The ranks stay: they are the whole cluster's."""
        self._closed = True
        for run in list(self._runs):
            if not run.done():
                run.stop()

    @property
    def whole(self) -> Cluster:
        return self._whole

    @property
    def state(self) -> State:
        """What the ranks of the whole cluster are doing now."""
        return State.CLOSED if self._closed else self._whole.state

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of these ranks, in rank order; empty when they are down."""
        return self._whole.pids[: self.num_ranks]

    @property
    def launches(self) -> list[dict[int, dict[str, float]]]:
        """For each start of the ranks so far: rank -> phase -> seconds, as of the whole cluster."""
        return [
            {rank: phases for rank, phases in launch.items() if rank < self.num_ranks}
            for launch in self._whole.launches
        ]

    def _enqueue(self, run: Run[Any]) -> None:
        if self._closed:
            run.set_exception(ClusterClosed("these ranks were given back: ask their cluster for resized(n) again"))
            return
        self._runs.add(run)
        super()._enqueue(run)

    def __repr__(self) -> str:
        return f"<the first {self.num_ranks} of {self._whole.num_ranks} {self.backend} ranks, {self.state.value}>"
