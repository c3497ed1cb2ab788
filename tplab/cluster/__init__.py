"""Ranks behind a notebook kernel: start them, run a function on every one, stop them, survive their faults.

In this room "kernel" is always the notebook kernel.

errors      what can go wrong, as the caller sees it
provenance  where a number came from, and the badge made of it
backends    gloo or NCCL, which device each rank gets, and the environment it needs
admission   whether there is memory for them; idle: when ranks that nobody uses are ended
channel     messages over a socket
wire        what crosses the socket between kernel and rank
store       the keys through which ranks find each other, kept in the kernel; rank_store: the rank's side
sockets     who owns the other end of a connection; neighbours: nobody else joins a process group
late        what threads print after their run is over
worker      the rank's side: a main loop in a fresh interpreter; context: its CUDA context, made meanwhile
cells       a notebook's cell on the ranks, in a namespace that lives there
engine      the small protocol between the supervisor and whatever hosts the ranks
output      an output stream of a rank, cut into lines
keeper      the process between kernel and ranks, which outlives both
local       the engine that starts ranks as subprocesses of this kernel
naming      how ranks are called in what people read
calls       what a rank says of its collectives, sends and receives; recorder: how it writes that down; entrances: where
hang        who waits in which of them, and who is missing; hang_words: how that is told
verdict     from what the ranks said to the one exception; last_words: what a crashed rank had printed
launch      one start of the ranks
own_thread  a thread that owns something; supervisor: the one that owns the ranks, with the fault policy
interrupts  Ctrl-C held back for a moment
run         the handle of one run, and of what is made of it
cluster     the public face; resized: some of its ranks as a cluster, worlds: the rank's side of that
hosts       the engine whose ranks are on several machines, under agents in an ipyparallel cluster
torchrun    ranks that torchrun started; launched: those as a cluster that rank 0 uses

Public names load on first use.
"""

from typing import TYPE_CHECKING

from tplab.lazy import lazy_names

if TYPE_CHECKING:
    from tplab.cluster.cluster import Cluster as Cluster
    from tplab.cluster.errors import ClusterClosed as ClusterClosed
    from tplab.cluster.errors import ClusterError as ClusterError
    from tplab.cluster.errors import HostLost as HostLost
    from tplab.cluster.errors import NoRoom as NoRoom
    from tplab.cluster.errors import RankDied as RankDied
    from tplab.cluster.errors import RankError as RankError
    from tplab.cluster.errors import RankTimeout as RankTimeout
    from tplab.cluster.errors import RunStopped as RunStopped
    from tplab.cluster.hang import Diagnosis as Diagnosis
    from tplab.cluster.latency import launch_phases as launch_phases
    from tplab.cluster.latency import measure_calls as measure_calls
    from tplab.cluster.launch import State as State
    from tplab.cluster.provenance import Provenance as Provenance
    from tplab.cluster.rank import Rank as Rank
    from tplab.cluster.run import DerivedRun as DerivedRun
    from tplab.cluster.run import Report as Report
    from tplab.cluster.run import Run as Run

__getattr__, __dir__, __all__ = lazy_names(__name__)
