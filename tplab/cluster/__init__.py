"""Ranks behind a notebook kernel: start them, run a function on every one, stop them, survive their faults.

In this room "kernel" is always the notebook kernel.

errors      what can go wrong, as the caller sees it
provenance  where a number came from, and the badge made of it
backends    gloo or NCCL, which device each rank gets, and the environment it needs
channel     messages over a socket
wire        what crosses the socket between kernel and rank
store       the keys through which ranks find each other, kept in the kernel; rank_store: the rank's side
sockets     who owns the other end of a connection; neighbours: nobody else joins a process group
late        what threads print after their run is over
worker      the rank's side: a main loop in a fresh interpreter
engine      the small protocol between the supervisor and whatever hosts the ranks
output      an output stream of a rank, cut into lines
keeper      the process between kernel and ranks, which outlives both
local       the engine that starts ranks as subprocesses of this kernel
verdict     from what the ranks said to the one exception
launch      one start of the ranks
own_thread  a thread that owns something; supervisor: the one that owns the ranks, with the fault policy
interrupts  Ctrl-C held back for a moment
run         the handle of one run, and of what is made of it
cluster     the public face
torchrun    the same measurement where torchrun starts the ranks
"""

from tplab.cluster.cluster import Cluster
from tplab.cluster.errors import ClusterClosed, ClusterError, RankDied, RankError, RankTimeout, RunStopped
from tplab.cluster.launch import State
from tplab.cluster.provenance import Provenance
from tplab.cluster.rank import Rank
from tplab.cluster.run import DerivedRun, Report, Run

__all__ = [
    "Cluster",
    "ClusterClosed",
    "ClusterError",
    "DerivedRun",
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
