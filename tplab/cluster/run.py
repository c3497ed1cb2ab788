"""The handle of one run on a cluster."""

import contextvars
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from typing import Any, Generic, NamedTuple, TypeVar

from tplab.cluster import naming, wire
from tplab.cluster.engine import Stream
from tplab.cluster.errors import ClusterError, RankError
from tplab.cluster.own_thread import OwnThread
from tplab.cluster.screen import Screen
from tplab.cluster.surroundings import Surroundings

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")

_run_ids = count(1)
_OUTPUT_LINES_KEPT = 1000
_OUTPUT_CHARACTERS_KEPT = 1 << 23
_STOP_WAIT_S = 5.0


class Report(NamedTuple):
    """Fields that a rank sent through ``rank.report``."""

    rank: int
    fields: dict[str, Any]


class Run(Future[list[T]], Generic[T]):
    """One function on every rank, under way or done: a ``concurrent.futures.Future`` of the values in rank order.

    Everything a Future does works: ``done()``, ``add_done_callback()``, ``asyncio.wrap_future(run)``. Callbacks are
    called on the cluster's own thread: they must be quick, and must not wait for a run.

    Args:
        owner: the thread that owns the ranks.
        stop: called with the run to end it.
        name: the function's name, for messages.
        num_ranks: how many ranks run it, the first ones.
        payload: the pickled call; None to wait for the ranks only.
        surroundings: the kernel's, when the run was asked for.
        timeout: seconds the ranks have; None: no limit.
        on_report: called with each :class:`Report`.
        on_output: called with each line that ranks write, instead of printing it.
        keep_alive: held until the run is over, as the cluster that it runs on.
    """

    def __init__(
        self,
        owner: OwnThread,
        stop: "Callable[[Run[Any]], None]",
        *,
        name: str,
        num_ranks: int,
        payload: bytes | None,
        surroundings: Surroundings,
        timeout: float | None,
        on_report: Callable[[Report], None] | None = None,
        on_output: Callable[[str], None] | None = None,
        keep_alive: object = None,
    ) -> None:
        super().__init__()
        self.id = next(_run_ids)
        self.name = name
        """The function's name."""
        self.num_ranks = num_ranks
        """How many ranks run it: the first ones of the cluster."""
        self.payload = payload
        """The pickled call, until it is handed over; None for a run that only waits for the ranks to be ready."""
        self.surroundings = surroundings
        """Modules, import path, folder and environment of the kernel, when the run was asked for."""
        self.hosts: tuple[str, ...] = ()
        """Name of each rank's host; empty where all are on this machine."""
        self.timeout = timeout
        """Seconds the ranks have, from the moment they are handed the call; None: no limit."""
        self.reports: list[Report] = []
        """What ``rank.report`` sent, in order of arrival; also of a run that failed or was stopped, and of its threads
        that went on afterwards. In the place of a field that cannot be rebuilt here stands the ``RankError`` that says
        why."""
        self.output: deque[str] = deque(maxlen=_OUTPUT_LINES_KEPT)
        """The last lines the ranks wrote, each with its rank in front; also those that its threads printed later."""
        self.elapsed_s: float | None = None
        """Seconds from the hand-over to the ranks until the last answer arrived; None before that."""
        self.rank_s: list[float] | None = None
        """Seconds that the function itself took on each rank; None unless the run succeeded."""
        self._owner, self._stop = owner, stop
        self._on_report = on_report
        self._missed: set[str] = set()  # fields of reports that cannot be rebuilt
        self._on_output = on_output
        self._context = contextvars.copy_context()
        self.screen = Screen()
        """Where lines appear that no callback takes."""
        # `Cluster(2).submit(fn)` leaves no other reference: without this one the cluster would close under the run.
        self._keep_alive = keep_alive
        self.add_done_callback(Run._release)

    def result(self, timeout: float | None = None) -> list[T]:
        """The values in rank order.

        Raises the run's fault (``RankError``, ``RankDied``, ``RankTimeout``, ``RunStopped``, ``ClusterClosed``).
        ``timeout`` limits the waiting only: when it passes, ``TimeoutError`` is raised and the run goes on. An
        interrupt (Ctrl-C, the kernel's Stop button) stops the run.
        """
        __tracebackhide__ = True
        if not self.done():
            self._owner.check_owner()
            if threading.current_thread() is self._owner.thread:
                raise ClusterError(
                    "result() was called on the cluster's own thread (in a callback): it would wait for itself"
                )
        try:
            return super().result(timeout)
        except KeyboardInterrupt as interrupt:
            self.stop()
            try:
                fault = self.exception(_STOP_WAIT_S)
            except TimeoutError:
                fault = None
            if fault is not None:
                interrupt.add_note(str(fault))
            raise

    def stop(self) -> None:
        """End the run, without waiting for it to end. Ranks that are inside a collective are replaced."""
        self._stop(self)

    def cancel(self) -> bool:
        """Future's name for ``stop``; False when the run was over."""
        if self.done():
            return False
        self.stop()
        return True

    def map(self, build: "Callable[[Run[T]], R]") -> "DerivedRun[R]":
        """A handle whose result is ``build(run)``, once this run is over without a fault."""
        return DerivedRun(self, build)

    def deliver_report(self, rank: int, packed: wire.Bulk) -> None:
        """Called by the supervisor with fields that ``wire.pack_fields`` packed. What comes after the end is kept, and
        nobody is called."""
        fields, errors = wire.unpack_fields(packed)
        for name, error in errors.items():
            fields[name] = self._not_rebuilt(rank, name, error)
        report = Report(rank, fields)
        self.reports.append(report)
        if self._on_report is not None and not self.done():
            self.screen.flush()  # what it prints comes after what was printed before
            self._context.run(self._on_report, report)

    def _not_rebuilt(self, rank: int, field: str, error: BaseException) -> RankError:
        """What stands for a field of a report that cannot be had here. The first time the reader is told."""
        text = (
            f"the field {field!r} of a report of rank {rank} in {self.name}() cannot be rebuilt here: {error!r}. "
            "Report plain values or tensors, or make its class importable in the kernel"
        )
        if field not in self._missed:
            self._missed.add(field)
            self.say(f"tplab: {text}")
        fault = RankError(text, rank=rank)
        fault.__cause__ = error
        return fault

    def deliver_output(self, rank: int, stream: Stream, line: str, *, quietly: bool = False) -> None:
        """Called by the supervisor; ``quietly`` keeps the line without printing it."""
        text = self._keep(rank, line)
        if quietly:
            return
        if self._on_output is not None:
            self._context.run(self._on_output, text)
        else:
            self.screen.write(text, stream)

    def deliver_open(self, rank: int, stream: Stream, text: str) -> None:
        """Called by the supervisor with what stands in a line that has no end yet."""
        if self._on_output is None:
            self.screen.open(rank, stream, text, naming.label(rank, self.hosts))

    def deliver_late(self, rank: int, stream: Stream, line: str) -> None:
        """Called by the supervisor with a line that a thread printed when the run was over."""
        text = self._keep(rank, line)
        if self._on_output is None:
            self.screen.write(text, stream)

    def _keep(self, rank: int, line: str) -> str:
        text = f"{naming.label(rank, self.hosts)} {line}"
        self.output.append(text)
        if len(text) > _OUTPUT_CHARACTERS_KEPT // _OUTPUT_LINES_KEPT:  # few lines are so long that this need be counted
            while len(self.output) > 1 and sum(map(len, self.output)) > _OUTPUT_CHARACTERS_KEPT:
                self.output.popleft()
        return text

    @property
    def prints(self) -> bool:
        """Whether lines are printed, not handed to a callback."""
        return self._on_output is None

    def say(self, text: str, stream: Stream = "stderr") -> None:
        """Print a line now, where the caller's own output goes. Called by the supervisor."""
        self.screen.write(text, stream)
        self.screen.flush()

    @staticmethod
    def _release(run: "Future[Any]") -> None:
        assert isinstance(run, Run)
        run._keep_alive = None


class DerivedRun(Future[R], Generic[R]):
    """A run whose values or reports become one result, under way or done: a ``Future`` of that result."""

    def __init__(self, run: Run[Any], build: Callable[[Run[Any]], R]) -> None:
        super().__init__()
        self.run = run
        """The run on the cluster: ``reports``, ``output``, ``elapsed_s``."""
        self._build = build
        run.add_done_callback(self._follow)

    def result(self, timeout: float | None = None) -> R:
        """What was made of the run. Raises the run's fault. An interrupt stops the run."""
        __tracebackhide__ = True
        self.run.result(timeout)
        return super().result(timeout)

    def partial(self) -> R:
        """What can be made of the reports so far; also of a run that was stopped. (Of values there are none yet.)"""
        return self._build(self.run)

    def stop(self) -> None:
        """End it, without waiting for it to end."""
        self.run.stop()

    def map(self, build: Callable[[R], S]) -> "DerivedRun[S]":
        """A handle whose result is made of this one's."""
        return DerivedRun(self.run, lambda run: build(self._build(run)))

    def _follow(self, run: Future[list[Any]]) -> None:
        try:
            fault = run.exception()
            if fault is not None:
                raise fault
            made = self.partial()
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(made)
