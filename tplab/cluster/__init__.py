"""Ranks behind a notebook kernel: start them, run a function on every one, stop them, survive their faults.

errors      what can go wrong, as the caller sees it
provenance  where a number came from, and the badge made of it
backends    gloo or NCCL, which device each rank gets, and the environment it needs
wire        what crosses the socket between kernel and rank
worker      the rank's side: a main loop in a fresh interpreter
engine      the small protocol between the supervisor and whatever hosts the ranks
local       the engine that starts ranks as subprocesses of this kernel
supervisor  the fault policy: one thread that owns the ranks
run         the handle of one run
cluster     the public face
"""

from tplab.cluster.cluster import Cluster
from tplab.cluster.errors import ClusterClosed, ClusterError, RankDied, RankError, RankTimeout, RunStopped
from tplab.cluster.launch import State
from tplab.cluster.provenance import Provenance
from tplab.cluster.rank import Rank
from tplab.cluster.run import Report, Run

__all__ = [
    "Cluster",
    "ClusterClosed",
    "ClusterError",
    "Provenance",
    "Rank",
    "RankDied",
    "RankError",
    "RankTimeout",
    "Report",
    "Run",
    "RunStopped",
    "State",
]
