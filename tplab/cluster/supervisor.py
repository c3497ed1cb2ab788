"""The fault policy: one thread that owns the ranks of a cluster.

It hands runs to the ranks one after the other, gathers answers in whatever order they come (waiting in rank order hangs
when a later rank raised and rank 0 sits in the collective), and ends a run as soon as it cannot succeed any more. Ranks
stay for the next run if all of them answered and are in step; otherwise they are killed, because a rank blocked inside
a collective cannot be interrupted, and the next run starts fresh ones.
"""

import math
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from tplab.cluster import naming, wire
from tplab.cluster.channel import encode
from tplab.cluster.engine import Broke, Engine, Event, Exited, Opened, Received, Wrote
from tplab.cluster.errors import ClusterError, closed
from tplab.cluster.idle import IdleClock
from tplab.cluster.interrupts import interrupts_held
from tplab.cluster.launch import Launch, State
from tplab.cluster.own_thread import OwnThread
from tplab.cluster.run import Run
from tplab.cluster.screen import Screens
from tplab.cluster.verdict import Cause, Evidence, judge, kernel_failed, not_started, rebuild_values

# How long the others may still answer once a run cannot succeed: long enough for a death to follow the connection
# errors it causes on other ranks, short enough not to be noticed.
_GRACE_S = 0.3
_STOP_GRACE_S = 0.6  # for ranks that were stopped to leave the function, before they are killed
# Gloo's C++ announces every connection on stdout, past any log level.
_NOISE = ("[Gloo] Rank ",)


class Supervisor(OwnThread):
    """Owns an engine and its ranks. Public methods may be called from any thread."""

    def __init__(self, engine: Engine, *, start_timeout: float, idle: IdleClock) -> None:
        super().__init__("tplab-supervisor")
        self._idle = idle
        self.engine = engine
        """Where the ranks are. Any thread may ask for ``pids`` and ``placement``."""
        self._start_timeout = start_timeout
        self._queue: deque[Run[Any]] = deque()
        self._current: Run[Any] | None = None
        self._num_ranks = engine.placement.num_ranks
        self._evidence = Evidence("", self._num_ranks, start_timeout)
        self._launch = Launch()
        self._deadline: float | None = None
        self._handed_over = self._asked_at = 0.0
        self._replaced_while_idle = ""
        self._sequences: dict[int, dict[str, int]] = {}  # rank -> what it last said of its groups
        # Runs that are over and still in somebody's hands: what their threads say later is theirs.
        self._past: weakref.WeakValueDictionary[int, Run[Any]] = weakref.WeakValueDictionary()
        self._screens = Screens()
        self.state = State.DOWN
        self.why_down = ""  # why they were not started, or who ended them, where that was no run's fault
        self.launches: list[dict[int, dict[str, float]]] = []
        """Rank -> phase -> seconds, one dict for each start of the ranks."""
        self._watchers: list[tuple[Callable[[State], None], Callable[[int, int | None], None] | None]] = []

    # From any thread.

    @property
    def facts(self) -> dict[int, dict[str, Any]]:
        """Rank -> what it said of itself when it became ready."""
        return self._launch.facts

    def watch(self, callback: Callable[[State], None], on_exit: Callable[[int, int | None], None] | None) -> None:
        """Call ``callback`` with the state now and at every change, ``on_exit`` with rank and code of each exit."""

        def begin() -> None:
            self._watchers.append((callback, on_exit))
            self._guard(callback, self.state)

        self._post(begin)

    def kill_rank(self, rank: int) -> None:
        """Kill the process of one rank; what follows is as if anybody had."""
        self._post(lambda: self.engine.kill_rank(rank))

    def submit(self, run: Run[Any]) -> None:
        """Queue a run; it starts when those before it are done. On a closed cluster it fails at once."""
        if not self._post(lambda: self._queue.append(run)):
            run.set_exception(closed())

    def start(self) -> None:
        """Begin: from now on there is a thread, and ranks that start. To be called once, by whoever will ``close``."""
        self._posted.append(self._begin_spawn)
        self.thread.start()

    def stop(self, run: Run[Any]) -> None:
        """End a run, queued or under way."""
        with interrupts_held():  # a second Ctrl-C comes while the first is being carried out
            self._post(lambda: self._stop(run))

    def restart(self) -> None:
        """Replace the ranks once the runs posted before are done or stopped; ``rank.store`` is empty afterwards."""
        self._post(self._restart)

    def close(self) -> None:
        """End the ranks and every run. Safe to repeat, from any thread, and at interpreter exit."""
        if os.getpid() != self._owner_pid:
            return  # a forked child of the kernel: the ranks are not its own
        with interrupts_held():
            self._post(self._close_door)
        self._join()

    def _wake(self) -> None:
        self.engine.wake()

    # On the supervisor's thread.

    def _step(self) -> None:
        """Wait for events, then handle them, what was posted, and the clock. (A step ends before the next one waits, so
        that no variable of it holds a large answer meanwhile.)"""
        for event in self.engine.poll(self._time_left()):
            self._handle(event)
            self._check_deadline()  # printing a flood of output takes its time
        self._do_posted()
        self._check_deadline()
        self._hand_over()
        if self._idle.is_over():
            self.why_down, self._replaced_while_idle = self._idle.why_down, self._idle.notice
            self._kill()
        if self._current is not None:
            self._screens.touch(self._current.screen)
        self._screens.show(self._guard, time.monotonic())

    def _recover(self, error: BaseException) -> None:
        """The run under way, or the one that waited for the start, learns of it; the next one works."""
        run = self._current or (self._queue.popleft() if self._queue and self.state is State.STARTING else None)
        self._current = None
        self._kill()
        if run is not None:
            self._finish(run, kernel_failed(f"{run.name}()" if run.payload is not None else "", error))

    def _end(self, error: BaseException | None) -> None:
        reason: ClusterError = closed()
        if error is not None:
            reason = ClusterError(f"the cluster's supervisor failed: {error!r}; make a new Cluster")
        self._guard(self._kill)
        self._become(State.CLOSED)
        self._do_posted()  # posted before the closing: a submit among them must still learn that it is too late
        runs = [*([self._current] if self._current is not None else []), *self._queue]
        self._current = None
        self._queue.clear()
        for run in runs:
            self._finish(run, reason)
        self._screens.show(self._guard)
        self.engine.close()

    def _time_left(self) -> float | None:
        if self._posted or (self._queue and self.state in (State.READY, State.DOWN)):
            return 0.0  # there is something to do that nobody will wake this thread for
        due = min(self._screens.due, self._idle.due, math.inf if self._deadline is None else self._deadline)
        return None if due == math.inf else max(0.0, due - time.monotonic())

    def _handle(self, event: Event) -> None:
        match event:
            case Wrote(rank, stream, line):
                if line.startswith(_NOISE):
                    return
                if self._current is not None:
                    # Once a rank has failed, the libraries of the others complain at length that it is gone.
                    echo = stream == "stderr" and self._evidence.cause is not None
                    self._guard(self._current.deliver_output, rank, stream, line, quietly=echo)
                else:
                    self._launch.output.append(f"{self._label(rank)} {line}")
            case Opened(rank, stream, text) if self._current is not None:
                hidden = text.startswith(_NOISE) or (stream == "stderr" and self._evidence.cause is not None)
                self._guard(self._current.deliver_open, rank, stream, "" if hidden else text)
            case Broke(rank, reason) if self._takes_part(rank):
                self._evidence.broken[rank] = reason
                self._cannot_succeed("fault")
            case Broke(rank, reason) if self.state in (State.READY, State.RUNNING):
                self._replace_while_idle(f"rank {rank} sent what is no message ({reason})")
            case Exited(rank, exit_code, lost):
                self._on_exit(rank, exit_code, lost)
            case Received(rank, message):
                self._on_message(rank, message)

    def _on_message(self, rank: int, message: object) -> None:
        match message:
            case wire.Ready(facts, sequences) if self.state is State.STARTING:
                self.facts[rank], self._sequences[rank] = facts, sequences
                if len(self.facts) == self._num_ranks:
                    self.launches.append(self._launch.phases())
                    self._become(State.READY)
            case wire.RankFault() as fault if self.state is State.STARTING:
                self._evidence.start_faults[rank] = fault
                self._cannot_succeed("fault")
            case wire.Spoiled(reason) if self.state is State.STARTING:
                self._start_again(reason)
            case wire.StoreCall() as call:
                for receiver, reply in self._launch.keys.handle(rank, call):
                    self._send([receiver], reply)
            case wire.Answer(run_id) as answer if self._current is not None and run_id == self._current.id:
                self._evidence.answers[rank] = answer
                self._sequences[rank] = answer.sequences
                if self._evidence.complete:
                    self._conclude()
                elif answer.fault is not None:
                    self._cannot_succeed("fault")
            case wire.ReportMessage(run_id, fields):
                if (run := self._run(run_id)) is not None:
                    self._guard(run.deliver_report, rank, fields)
            case wire.Notice(key, text) if self._current is not None:
                self._guard(self._launch.say, self._current, key, text)
            case wire.LateLine(run_id, stream, line):
                if (run := self._run(run_id)) is not None:
                    self._guard(run.deliver_late, rank, stream, line)
                    self._screens.touch(run.screen)
                else:
                    self._screens.write_late(run_id, f"{self._label(rank)} {line}", stream)
            case wire.Stack(run_id, frames, calls) if self._current is not None and run_id == self._current.id:
                self._evidence.stacks[rank], self._evidence.calls[rank] = frames, calls

    def _run(self, run_id: int) -> Run[Any] | None:
        """The run under way, or one that is over and still in somebody's hands."""
        if self._current is not None and run_id == self._current.id:
            return self._current
        return self._past.get(run_id)

    def _takes_part(self, rank: int) -> bool:
        """Whether the start or the run under way needs this rank."""
        return self.state in (State.STARTING, State.RUNNING) and rank < self._evidence.world_size

    def _label(self, rank: int) -> str:
        return naming.label(rank, self.engine.placement.hosts)

    def _on_exit(self, rank: int, exit_code: int | None, lost: str) -> None:
        for on_exit in filter(None, (on_exit for _, on_exit in self._watchers)):
            self._guard(on_exit, rank, exit_code)
        if self._takes_part(rank):
            self._evidence.deaths[rank] = exit_code
            self._evidence.lost |= {rank: lost} if lost else {}
            if self._evidence.complete:
                self._conclude()
            else:
                self._cannot_succeed("fault")
        elif self.state in (State.READY, State.RUNNING):
            self._replace_while_idle(lost or f"rank {rank} {wire.describe_exit(exit_code)}")

    def _replace_while_idle(self, what: str) -> None:
        """A rank is lost that nobody needs now: a run on others goes on, and then all ranks are replaced."""
        when = "between two runs" if self.state is State.READY else "while a run on other ranks went on"
        self._replaced_while_idle = f"tplab: {what} {when}; the ranks were replaced, and rank.store is empty."
        self.why_down = f"{what} {when}"
        if self.state is State.READY:
            self._kill()

    def _cannot_succeed(self, cause: Cause, grace_s: float = _GRACE_S) -> bool:
        """Ask the others where they are and give them a moment to answer; False where that was done already."""
        if self._evidence.cause is not None:
            return False
        self._asked_at = time.monotonic()
        self._evidence.cause, self._deadline = cause, self._asked_at + grace_s
        if self._current is not None:
            self._send(self._evidence.reachable, wire.AskStack(self._current.id))
        return True

    def _check_deadline(self) -> None:
        if self._deadline is None or time.monotonic() < self._deadline or self._cannot_succeed("timeout"):
            return
        unsure = [rank for rank in self._evidence.missing if not self.engine.heard_since(rank, self._asked_at)]
        if unsure and self._evidence.cause != "stop":
            self._deadline = time.monotonic() + _GRACE_S  # what its host has to do with it is known soon
        else:
            self._conclude()

    def _conclude(self) -> None:
        """The run is over, or is made to be."""
        run, evidence = self._current, self._evidence
        if run is None:
            self._give_up(judge(evidence, self._launch.output, self._launch.spoiled))
            return
        run.elapsed_s = time.monotonic() - self._handed_over
        outcome: list[Any] | ClusterError = []
        if succeeded := evidence.succeeded:
            run.rank_s = [evidence.answers[rank].seconds for rank in range(run.num_ranks)]
        else:
            outcome = judge(evidence, run.output)
        if (evidence.fit if succeeded else evidence.in_step) and not self._replaced_while_idle:
            self._become(State.READY)
        else:
            self._kill()
        if succeeded:
            outcome = rebuild_values(evidence)
        self._current = None
        evidence.answers.clear()  # they may be large
        self._past[run.id] = run
        if run.prints:
            self._screens.keep(run.id, run.screen)
        self._finish(run, outcome)

    def _give_up(self, error: ClusterError) -> None:
        """Whoever waited for these ranks learns why there are none; a later run tries again."""
        self.why_down = str(error).partition("\n")[0]
        self._kill()
        if self._queue:
            self._finish(self._queue.popleft(), error)

    def _finish(self, run: Run[Any], outcome: list[Any] | BaseException) -> None:
        if run.done():
            return
        self._guard(run.screen.close)
        # Done callbacks are called in here, and a Future lets through what is no Exception.
        self._guard(run.set_exception if isinstance(outcome, BaseException) else run.set_result, outcome)

    def _hand_over(self) -> None:
        """Give the next run to the ranks, starting them first if need be."""
        if not self._queue:
            return
        self._begin_spawn()
        if self.state is not State.READY:
            return
        run = self._queue.popleft()
        if self._replaced_while_idle:
            self._guard(run.say, self._replaced_while_idle)
            self._replaced_while_idle = ""
        for text in self.engine.notices():
            self._guard(run.say, text)
        self._guard(self._launch.say_changes, run)
        run.set_running_or_notify_cancel()
        if run.payload is None:
            self._finish(run, [self.facts[rank] for rank in range(run.num_ranks)])
            return
        self._current = run
        self._become(State.RUNNING)
        aside = [self._sequences[rank] for rank in range(run.num_ranks, self._num_ranks)]
        hosts = self.engine.placement.hosts
        run.hosts = hosts[: run.num_ranks]
        self._evidence = Evidence(run.name, run.num_ranks, run.timeout, aside=aside, hosts=hosts)
        self._handed_over = time.monotonic()
        self._deadline = None if run.timeout is None else self._handed_over + run.timeout
        self._send(range(run.num_ranks), self._launch.call(run))

    def _send(self, ranks: Iterable[int], message: object) -> None:
        parts = encode(message)  # once: it may be large
        for rank in ranks:
            self.engine.send(rank, parts)

    def _begin_spawn(self, launch: Launch | None = None) -> None:
        """Start the ranks, unless they are up."""
        if self.state is State.DOWN:
            self._spawn(launch or Launch())

    def _start_again(self, reason: str) -> None:
        """Somebody else came between the ranks while they connected. (The start follows what is at hand of these.)"""
        if not self._launch.is_last:
            self._kill()
            self._posted.append(partial(self._begin_spawn, self._launch.again(reason)))
        else:
            self._give_up(not_started(reason, self._launch.number))

    def _spawn(self, launch: Launch) -> None:
        self._launch = launch
        self._become(State.STARTING)
        self._evidence = Evidence("", self._num_ranks, self._start_timeout)
        self._deadline = launch.began + self._start_timeout
        try:
            self.engine.spawn()
            self._evidence.hosts = self.engine.placement.hosts
        except (OSError, ClusterError) as error:  # no memory, no processes or descriptors left, no host
            self._give_up(not_started(error))

    def _stop(self, run: Run[Any]) -> None:
        if run is self._current:
            if self._cannot_succeed("stop", _STOP_GRACE_S):
                self._send(self._evidence.missing, wire.Interrupt(run.id))
        elif run in self._queue:
            self._queue.remove(run)
            self._finish(run, judge(Evidence(run.name, run.num_ranks, run.timeout, cause="stop")))

    def _restart(self) -> None:
        if self._closed:
            return
        if self._current is not None:
            self._evidence.cause = "stop"
            self._conclude()
        self._kill()
        self._begin_spawn()

    def _kill(self) -> None:
        for event in self.engine.kill():
            if isinstance(event, Wrote):
                self._handle(event)
        self._become(State.DOWN)

    def _become(self, state: State) -> None:
        self.state = state
        self._deadline = None
        self.why_down = self.why_down * (state is State.DOWN)
        (self._idle.begin if state is State.READY else self._idle.stop)()
        for watcher, _ in self._watchers:
            self._guard(watcher, state)
