"""The public face of a cluster: arguments checked, calls packed, the rest left to the supervisor."""

import weakref
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tplab import needs
from tplab.checks import check_count, check_number, check_one_of
from tplab.cluster import backends, wire
from tplab.cluster.engine import Engine
from tplab.cluster.hosts import build
from tplab.cluster.idle import IdleClock, check_minutes
from tplab.cluster.interrupts import interrupts_held
from tplab.cluster.launch import State
from tplab.cluster.local import LocalEngine
from tplab.cluster.provenance import Provenance
from tplab.cluster.run import Report, Run
from tplab.cluster.supervisor import Supervisor
from tplab.cluster.surroundings import Surroundings

T = TypeVar("T")

ENGINES = ("local", "ipyparallel")
MAX_LOCAL_RANKS = 64
_LONGEST_S = 10**8  # three years; the operating system's clocks overflow somewhere beyond


def check_call(fn: object, timeout: float | None) -> None:
    """Raise for what ``submit`` cannot run."""
    if not callable(fn):
        raise TypeError(f"fn must be a function that takes a rank first; got {fn!r}")
    if timeout is not None:
        check_number("timeout", timeout, above=0, most=_LONGEST_S)


class Cluster:
    """``n`` ranks behind this kernel, warm between runs.

    ::

        with Cluster(4) as cluster:
            values = cluster.run(fn, *args, timeout=60)

    runs ``fn(rank, *args)`` on every rank and returns the values in rank order. ``fn`` may be defined in a notebook
    cell; ``rank`` is a :class:`~tplab.cluster.rank.Rank`. The ranks start in the background as soon as the cluster is
    made. All methods may be called from any thread: runs wait for their turn.

    Args:
        n: number of ranks, 1 to 64.
        backend: ``gloo`` (CPU), ``nccl`` (one GPU per rank, or several ranks on a GPU where there are too few), or
            ``auto``: nccl where torch can use a GPU, else gloo.
        engine: ``local``, subprocesses of this kernel; or ``ipyparallel``, ranks on the hosts of a running ipyparallel
            cluster, of which one engine on each host is the agent that starts them. ``n`` may then be left out.
        client: an ``ipyparallel.Client`` of that cluster, or a started ``ipyparallel.Cluster``.
        profile: or the IPython profile that it was started with.
        cluster_file: or the path of its ``ipcontroller-client.json``. Without any of the three: the default profile.
        ranks_per_host: ranks on each host; by default ``n`` evenly, or one for each GPU (without GPUs one).
        interface: network interface that joins the hosts, as ``eth0`` or as a dict from host to interface; by default
            the one by which a host reaches the others.
        start_timeout: seconds the ranks have to start.
        idle_minutes: end the ranks after so many minutes without a run; the next one starts them again, with an empty
            ``rank.store``, and says so. A cell that runs in the notebook counts as use. None or 0: never.

    Raises:
        ValueError: an argument that cannot work, with what would.
        MissingLayer: what ranks need is not installed: ``pip install "tplab[run]"``.

    Faults of a run are raised by ``run`` and ``result``: ``RankError`` (the function raised), ``RankDied``,
    ``RankTimeout``, ``RunStopped``, ``ClusterClosed``, and by what starts ranks ``NoRoom`` (too little memory). Each
    names the rank, where there is one, leaves no process behind unless all ranks are fit for the next run, and that run
    works in any case.

    Modules that the kernel has loaded again (``importlib.reload``, ``%autoreload``) are loaded again on the ranks
    before the next run. Where that cannot be, or the environment has changed, the run says so; ``restart()`` starts
    ranks that have everything as it is now. For runs on fewer ranks there is ``resized(n)``, which starts none.
    """

    def __init__(
        self,
        n: int | None = None,
        backend: str = "auto",
        engine: str = "local",
        *,
        client: Any = None,
        profile: str | None = None,
        cluster_file: str | Path | None = None,
        ranks_per_host: int | None = None,
        interface: str | Mapping[str, str] | None = None,
        start_timeout: float = 120.0,
        idle_minutes: float | None = None,
    ) -> None:
        on_hosts = check_one_of("engine", engine, ENGINES) == "ipyparallel"
        where = {"client": client, "profile": profile, "cluster_file": cluster_file}
        if not on_hosts:
            build.refuse_without_hosts(**where, ranks_per_host=ranks_per_host, interface=interface)
            n = check_count("n", n, least=1, most=MAX_LOCAL_RANKS)  # type: ignore[arg-type]  # None is refused
        check_number("start_timeout", start_timeout, above=0, most=_LONGEST_S)
        idle = IdleClock(check_minutes(idle_minutes))
        needs.check("Cluster", "torch", "cloudpickle", "psutil", "pynvml")
        ranks: Engine
        if on_hosts:
            options = {"ranks_per_host": ranks_per_host, "interface": interface, "start_timeout": start_timeout}
            ranks = build.engine_on_hosts(n, backend, **where, **options)  # type: ignore[arg-type]
        else:
            assert n is not None
            ranks = LocalEngine(backends.devices_of(n, backend), start_timeout=start_timeout)
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            with interrupts_held():  # at no moment is there a thread or a process that nobody would end
                self._supervisor = Supervisor(ranks, start_timeout=start_timeout, idle=idle)
                # Also runs when the cluster is dropped, and at interpreter exit. It must not hold the cluster itself.
                self._finalizer = weakref.finalize(self, Supervisor.close, self._supervisor)
                self._supervisor.start()
        except KeyboardInterrupt:
            if hasattr(self, "_finalizer"):  # else there is nothing yet
                self.close()  # nobody gets to hold this cluster, but the traceback does
            raise

    @classmethod
    def attach(
        cls,
        client: Any = None,
        profile: str | None = None,
        cluster_file: str | Path | None = None,
        idle_minutes: float | None = None,
    ) -> Self:
        """Go on, after the kernel was restarted, with the ranks of an ipyparallel cluster: fresh ones, under the agents
        that are still there, as many and in the same places as the last ``Cluster`` of this ipyparallel cluster had.

        Arguments as of :class:`Cluster`. Waits until the ranks are ready. Raises ``ClusterError`` where no agent
        remembers a cluster.
        """
        settings = build.remembered_settings(client, profile, cluster_file)
        made = cls(
            engine="ipyparallel",
            client=client,
            profile=profile,
            cluster_file=cluster_file,
            idle_minutes=idle_minutes,
            **settings,
        )
        return made.start()

    def run(self, fn: Callable[..., T], *args: Any, timeout: float | None = 60.0) -> list[T]:
        """Run ``fn(rank, *args)`` on every rank and return the values in rank order.

        Args:
            fn: the function; anything cloudpickle can carry.
            args: further arguments, the same for every rank.
            timeout: seconds the ranks have once the run has begun; None: no limit.

        Raises:
            TypeError: ``fn`` or an argument cannot be pickled.
            ClusterError: see the class.

        Every run finds what a fresh rank has. Put back after it are torch's defaults (device, types, threads, modes,
        precision, deterministic algorithms), CUDA device and stream, the default process group, signal handlers and
        timers, output streams, working directory (the kernel's), Python's hooks and limits, and variables of the
        environment that were there or that torch reads. What stays: ``rank.store``, random generators, imported
        modules, printing options, other new variables. What cannot be put back is said, and the ranks are replaced.

        ``init_process_group`` of a pasted script finds the ranks connected, and gives it their group; one that asks for
        other ranks or another backend gets a group of its own, for the length of the run. The variables RANK,
        LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE are those of ``torchrun``.

        What the ranks print appears line by line, with the rank in front. Tensors of any type travel, also in closures
        and reports, and views with their own elements alone; what overlaps in memory overlaps again. CUDA tensors come
        back on the CPU.
        """
        __tracebackhide__ = True
        run: Run[T] | None = None
        try:
            run = self.submit(fn, *args, timeout=timeout)
            return run.result()
        except KeyboardInterrupt:
            if run is not None:
                run.stop()  # also where the interrupt came before result() could take it
            raise

    def submit(
        self,
        fn: Callable[..., T],
        *args: Any,
        timeout: float | None = 60.0,
        on_report: Callable[[Report], None] | None = None,
        on_output: Callable[[str], None] | None = None,
    ) -> Run[T]:
        """Like :meth:`run`, without waiting: a handle with ``result()``, ``stop()``, ``reports`` and ``output``.

        Args:
            on_report: called with each :class:`Report` that a rank sends through ``rank.report``.
            on_output: called with each line the ranks write, instead of printing it under the calling cell.
        """
        check_call(fn, timeout)
        run: Run[T] = Run(
            self._supervisor,
            self._supervisor.stop,
            name=getattr(fn, "__name__", type(fn).__name__),
            num_ranks=self.num_ranks,
            payload=wire.pack_call(fn, args),
            surroundings=Surroundings.now(),
            timeout=timeout,
            on_report=on_report,
            on_output=on_output,
            keep_alive=self,
        )
        try:
            self._enqueue(run)
        except KeyboardInterrupt:
            run.stop()  # nobody gets to hold it
            raise
        return run

    def resized(self, n: int) -> "Cluster":
        """The first ``n`` of these ranks, as a cluster: nothing is started, and the other ranks idle meanwhile.

        On these ranks ``rank.world_size`` is ``n``, and the default process group, ``rank.group`` and ``rank.mesh`` are
        theirs alone; they connect in the first run on so many ranks. ``rank.store`` is the rank's, whatever the size:
        what a run on all ranks loaded is there. Runs of all sizes wait for each other's end, and a fault that replaces
        ranks replaces them all. Closing it leaves the ranks to the cluster that it came from.

        Raises ``ValueError`` for more ranks than there are: those would have to be started, as ``Cluster(n)`` does.
        """
        from tplab.cluster.resized import Resized

        return Resized(self, n)

    def start(self) -> Self:
        """Wait until the ranks are ready, starting them if they are down. Raises like :meth:`run`."""
        __tracebackhide__ = True
        try:
            self._wait_ready()
        except KeyboardInterrupt:
            del self  # IPython keeps the traceback: ranks that nobody else holds would stay with it
            raise
        return self

    def restart(self) -> Self:
        """Replace the ranks by fresh ones (a run under way is stopped) and wait until they are ready."""
        __tracebackhide__ = True
        self._supervisor.restart()
        return self.start()

    def close(self) -> None:
        """End the ranks and any run. Closing twice does no harm; a closed cluster refuses to run."""
        self._supervisor.close()
        self._finalizer.detach()

    def _wait_ready(self) -> list[dict[str, Any]]:
        ready: Run[dict[str, Any]] = Run(
            self._supervisor,
            self._supervisor.stop,
            name="start",
            num_ranks=self.num_ranks,
            payload=None,
            surroundings=Surroundings.now(),
            timeout=None,
            keep_alive=self,
        )
        self._enqueue(ready)
        try:
            return ready.result()
        except KeyboardInterrupt:
            del self  # see start
            raise

    def _enqueue(self, run: Run[Any]) -> None:
        self._supervisor.submit(run)

    def kill_rank(self, rank: int) -> None:
        """Kill the process of one rank (SIGKILL), as the system does when memory runs out: to see what follows.

        It is the cluster's own process that is killed, whatever has its number meanwhile; where there is none, nothing
        is. A run under way ends with ``RankDied``, a start likewise; between two runs the ranks go down, and the next
        run starts fresh ones. Raises ``ValueError`` for a rank that there is not.
        """
        self._supervisor.kill_rank(check_count("rank", rank, least=0, most=self.num_ranks - 1))

    def watch(
        self, callback: Callable[[State], None], on_exit: Callable[[int, int | None], None] | None = None
    ) -> None:
        """Call ``callback(state)`` now and at every change of state, on the cluster's own thread; it must be quick.

        Args:
            callback: what to call.
            on_exit: called with rank and exit code (negative: a signal's number; None: unknown) as soon as a rank's
                process has ended by itself or was killed. Ranks that the cluster ends are not told: the state says it.
        """
        self._supervisor.watch(callback, on_exit)

    @property
    def whole(self) -> "Cluster":
        """The cluster whose ranks these are: itself, or the one that it was resized from."""
        return self

    @property
    def _placement(self) -> backends.RankDevices:
        return self._supervisor.engine.placement

    @property
    def num_ranks(self) -> int:
        return self._placement.num_ranks

    @property
    def hosts(self) -> tuple[str, ...]:
        """Name of each rank's host, in rank order; empty where all are on this machine."""
        return self._placement.hosts

    @property
    def backend(self) -> str:
        """``gloo`` or ``nccl``: what ``auto`` came to."""
        return self._placement.backend

    @property
    def shares_gpus(self) -> bool:
        """Whether there are more NCCL ranks than GPUs."""
        return self._placement.shares_gpus

    @property
    def own_gpus(self) -> bool:
        """Whether every rank has a GPU of its own, over NCCL."""
        return self.backend == "nccl" and not self.shares_gpus

    @property
    def peer_memory(self) -> bool:
        """Whether every rank has a GPU of its own, and all of these read and write each other's memory."""
        one_host = self._placement.num_hosts == 1
        return self.own_gpus and one_host and backends.gpus_reach_each_other(self.num_ranks)

    @property
    def state(self) -> State:
        """What the ranks are doing now."""
        return self._supervisor.state

    @property
    def why_down(self) -> str:
        """Why there are no ranks, where no run's fault was the reason: too little memory, idle for too long, a start
        that failed, or a rank that was lost between two runs."""
        return self._supervisor.why_down

    @property
    def closed(self) -> bool:
        return self.state is State.CLOSED

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the ranks, in rank order; empty when they are down."""
        return self._supervisor.engine.pids

    @property
    def launches(self) -> list[dict[int, dict[str, float]]]:
        """For each start of the ranks so far: rank -> phase -> seconds, in order: ``interpreter``, ``import torch``,
        ``process group``. On GPUs ``context`` before that (what was left of it, for it is made while torch is imported)
        and ``first collective`` after it, in which NCCL connects the ranks."""
        return list(self._supervisor.launches)

    @property
    def provenance(self) -> Provenance:
        """The origin of this cluster's measurements, as columns and badge. Waits until the ranks are ready."""
        facts = self._supervisor.facts
        if len(facts) < self.num_ranks:
            self._wait_ready()
            facts = self._supervisor.facts
        return Provenance(
            backend=self.backend,
            num_ranks=self.num_ranks,
            device=facts[0]["device_name"],
            num_devices=self._placement.num_devices,
            link=backends.describe_link(self._placement),
            num_cores=backends.num_cores(),
            torch_version=facts[0]["torch_version"],
            nccl_version=facts[0]["nccl_version"],
            python_version=facts[0]["python_version"],
            num_hosts=self._placement.num_hosts,
            started_at=self._started_at,
        )

    @property
    def badge(self) -> str:
        """``LIVE gloo · 2 ranks``: for every figure made from this cluster's numbers."""
        return self.provenance.badge

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        num_hosts = len(set(self.hosts))
        where = f" on {num_hosts} host{'s' * (num_hosts > 1)}" if num_hosts else ""
        return f"<Cluster of {self.num_ranks} {self.backend} ranks{where}, {self.state.value}>"

    def __reduce__(self) -> str:
        raise TypeError("a Cluster lives in the kernel and cannot be sent to its ranks; pass values, not the cluster")
