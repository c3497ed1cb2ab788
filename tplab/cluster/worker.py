"""The rank's side: a main loop in a fresh interpreter.

Two threads. The main thread joins the process group and runs the functions, because signals and most libraries want
the main thread. The control thread reads the socket, so that a rank deep in a run still answers "where are you?",
still takes an interrupt, still hears what other ranks have put into the store, and still ends when the kernel is gone.
"""

import faulthandler
import os
import platform
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from tplab.cluster import wire
from tplab.cluster.backends import Share
from tplab.cluster.calls import NO_CALLS, Frame
from tplab.cluster.channel import RankChannel, encode
from tplab.cluster.context import begin_context
from tplab.cluster.follow import Follower
from tplab.cluster.late import Ledger, tag_output
from tplab.cluster.neighbours import Intruder, check_all, guard_groups
from tplab.cluster.packing import unpack
from tplab.cluster.text_bars import bars_are_text

if TYPE_CHECKING:
    import torch

    from tplab.cluster.rank_store import KernelStore
    from tplab.cluster.recorder import Recorder
    from tplab.cluster.worlds import Worlds


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """All a rank needs to know before it starts; the first thing sent over its socket."""

    index: int
    """The rank's number among all of the cluster's."""
    share: Share
    """Those of its host."""
    backend: str
    device: str
    start_timeout: float
    shares_gpus: bool
    """Whether NCCL goes through sockets, which are then looked at after each run."""


class Worker:
    """One rank: its socket, its process group, and the run it is in."""

    def __init__(self, channel: RankChannel) -> None:
        self._channel = channel
        self._pid = os.getpid()
        self._send_lock = threading.Lock()  # answers come from the main thread, stacks from the control thread
        self._calls: queue.SimpleQueue[wire.Call] = queue.SimpleQueue()
        self._store: KernelStore | None = None
        self._ledger = Ledger()
        self._shares_gpus = False
        self._groups_made: dict[str, int] = {}
        self._running: int | None = None
        self._begins = threading.Lock()  # an interrupt comes before a run begins, or while it goes on
        self._stopped: int | None = None  # ... the run that is not to begin
        self._recorder: Recorder | None = None
        self._sending = False  # the main thread is inside a message, which an interrupt would cut in two
        self._next: deque[object] = deque()  # ... and what is sent from in there follows it
        self._interrupted = False  # ... so one that came in there is raised when the message is out

    def serve(self) -> None:
        """Join the group, then run calls until the kernel hangs up. Never returns."""
        phases = [("interpreter", time.monotonic())]
        setup: Setup = self._channel.recv()
        self._shares_gpus = setup.shares_gpus
        signal.signal(signal.SIGINT, self._on_interrupt)
        tag_output(self._ledger, lambda stream, run_id, line: self._send(wire.LateLine(run_id, stream, line)))
        bars_are_text()
        threading.Thread(target=self._listen, name="tplab-control", daemon=True).start()
        try:
            worlds = self._join(setup, phases)
        except BaseException as error:
            self._send(wire.Spoiled(str(error)) if isinstance(error, Intruder) else wire.describe_fault(error))
            raise
        self._ledger.ignore(threading.enumerate())
        while True:
            # An interrupt can come just as a run ends: its answer is out then, or the supervisor ends this rank.
            with suppress(KeyboardInterrupt):
                self._execute(worlds, setup.device, self._calls.get())

    def _join(self, setup: Setup, phases: list[tuple[str, float]]) -> "Worlds":
        on_gpu = setup.device != "cpu"
        context = begin_context(setup.device) if on_gpu else None
        import torch

        from tplab.cluster.baseline import Baseline
        from tplab.cluster.rank import Rank
        from tplab.cluster.rank_store import KernelStore
        from tplab.cluster.recorder import Recorder
        from tplab.cluster.worlds import Worlds, join

        phases.append(("import torch", time.monotonic()))
        device = torch.device(setup.device)
        if context is not None:
            context.join()
            torch.cuda.set_device(device)
            phases.append(("context", time.monotonic()))
        self._store = KernelStore(self._send, timedelta(seconds=setup.start_timeout))
        self._groups_made = guard_groups(self._store, spans_hosts=setup.share.spans_hosts)
        group = join(setup.backend, self._store, setup.index, setup.share.world_size, device)
        phases.append(("process group", time.monotonic()))
        if on_gpu:  # NCCL connects now: a bad link is an error of the start, and the first run need not wait for it
            torch.distributed.all_reduce(torch.zeros(1, device=device))
            _settle(setup.device)
            if setup.shares_gpus:
                check_all()
            phases.append(("first collective", time.monotonic()))
        nccl = torch.cuda.nccl.version() if setup.backend == "nccl" else ()  # type: ignore[no-untyped-call]
        facts = {
            "torch_version": str(torch.__version__),  # the bare TorchVersion would import torch in the kernel
            "nccl_version": ".".join(map(str, nccl)),
            "python_version": platform.python_version(),
            "device_name": device_name(device),
            "phases": phases,
        }
        rank = Rank(
            index=setup.index, world_size=setup.share.world_size, group=group, device=device, send_report=_no_run
        )
        worlds = Worlds(rank, self._store, setup.backend, setup.share)
        self._follower = Follower(rank.store)
        self._follower.listen()
        self._baseline = Baseline(device)
        self._recorder = Recorder()
        self._recorder.install()
        self._send(wire.Ready(facts, self._sequences(worlds)))
        return worlds

    def _execute(self, worlds: "Worlds", device: str, call: wire.Call) -> None:
        sys.path[:] = dict.fromkeys([*call.sys_path, *sys.path])
        self._baseline.enter(call.folder)
        value: wire.Bulk | None = None
        fault: wire.RankFault | None = None
        fit = True
        began = time.perf_counter()
        seconds = 0.0
        assert self._recorder is not None
        self._recorder.begin(call.run_id)
        run_id = call.run_id
        try:
            with self._begins:
                self._running = run_id
            if self._stopped == run_id:
                raise KeyboardInterrupt
            rank = worlds.enter(call.num_ranks, run_id)
            self._notice(self._follower.follow(call.modules))
            fn, args = _unpack_call(call.payload)
            del call  # what came with it may be large
            began = time.perf_counter()
            with self._baseline.settings(kept=getattr(fn, "keeps_settings", False)):
                result = fn(rank.in_run(partial(self._send_report, run_id)), *args)
            self._end_copy(None)
            _settle(device)
            if self._shares_gpus:
                check_all()
            seconds = time.perf_counter() - began
            try:
                value = wire.bulk(wire.pack_value(result))
            except Exception as error:
                reason = str(error) or repr(error)
                raise TypeError(
                    f"the value that it returned cannot be sent to the kernel: {reason}. Return plain values or "
                    "tensors; what cannot be pickled (locks, files, generators, coroutines) stays in rank.store"
                ) from error
        except BaseException as error:  # SystemExit and KeyboardInterrupt end the run, not the rank
            self._end_copy(error)
            seconds = seconds or time.perf_counter() - began
            fault = wire.describe_any_fault(error, skip_frames=1)
            fit = _settles(device) and not self._recorder.has_unfinished
        finally:
            self._running = None
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # the function has closed it, or put something else in its place
                stream.flush()
        if broken := self._tidy(worlds):
            fit = False
            replaced = "the ranks are replaced by fresh ones for the next run, with an empty rank.store"
            self._notice([(broken, f"{broken}: {replaced}.")])
        self._ledger.close_run(run_id)
        calls = NO_CALLS if fault is None else self._recorder.snapshot()
        self._send(wire.Answer(run_id, value, fault, seconds, self._sequences(worlds), fit, calls))

    def _tidy(self, worlds: "Worlds") -> str:
        """Put back what the run has changed of the rank as a whole; returns what could not be."""
        try:
            self._notice(self._follower.differences())
            return worlds.leave() or self._baseline.restore()
        except Exception as error:
            return f"the state of the rank could not be put back ({error!r})"

    def _notice(self, notices: Iterable[tuple[str, str]]) -> None:
        for key, text in notices:
            self._send(wire.Notice(key, text))

    def _sequences(self, worlds: "Worlds") -> dict[str, int]:
        return worlds.sequences() | self._groups_made

    def _end_copy(self, error: BaseException | None) -> None:
        """End a process that the function forked and that came back from it: the rank answers, not its copy."""
        if os.getpid() == self._pid:
            return
        code = 0
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            traceback.print_exception(error)
            code = 1
        else:
            print("tplab: a forked copy of this rank came back from the function, and was ended", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code)

    def _send_report(self, run_id: int, fields: dict[str, Any]) -> None:
        """``run_id``: of the run that the reporting ``Rank`` was given to. On the main thread it is the one that runs,
        so that an object which was made in an earlier run and keeps its ``Rank`` reports for the run that calls it."""
        if threading.current_thread() is threading.main_thread():
            if self._running is None:
                return
            run_id = self._running
        self._send(wire.ReportMessage(run_id, wire.bulk(wire.pack_fields(fields))))

    def _send(self, message: object) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                "this process was forked from a rank and cannot speak for it: report, print and make groups on the rank"
            )
        on_main = threading.current_thread() is threading.main_thread()
        if on_main and self._sending:  # a signal handler, or a finalizer, in the midst of a message
            self._next.append(message)
            return
        if on_main:
            self._sending = True
        try:
            parts = encode(message)  # may run anybody's code, so not under the lock
            with self._send_lock:
                self._channel.send(parts)
        finally:
            if on_main:
                self._sending = False
        while on_main and self._next:
            self._send(self._next.popleft())
        if on_main and self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    def _listen(self) -> None:
        try:
            while True:
                self._take(self._channel.recv())
        except (EOFError, OSError):
            pass
        except BaseException:  # nobody would learn it from the exit code
            os.write(2, traceback.format_exc().encode(errors="replace"))
        finally:
            # The kernel hung up or died: take along whatever this rank has started (it leads its process group).
            os.killpg(0, signal.SIGKILL)

    def _take(self, message: Any) -> None:
        """A message from the kernel. In a function of its own, so that a large one is not held until the next."""
        main_thread = threading.main_thread()
        assert main_thread.ident is not None
        if isinstance(message, wire.Call):
            self._calls.put(message)
        elif isinstance(message, wire.StoreReply):
            if self._store is not None:
                self._store.deliver(message)
        elif isinstance(message, wire.Interrupt):
            with self._begins:
                if message.run_id == self._running:
                    # A real signal, not only a flag: it also wakes time.sleep and other system calls.
                    signal.pthread_kill(main_thread.ident, signal.SIGINT)
                else:  # it is over, or its call waits to be taken up
                    self._stopped = message.run_id
        elif message.run_id != self._running:
            # The run that it speaks of is over here, but others may still wait for what this rank never called.
            if isinstance(message, wire.AskStack) and self._recorder and self._recorder.run_id == message.run_id:
                self._send(wire.Stack(message.run_id, (), self._recorder.snapshot()))
        else:
            frames: tuple[Frame, ...] = ()
            with suppress(Exception):  # whatever a look at a running thread comes to, the rank lives on
                frames = wire.stack_of(main_thread.ident)
            own = next((i for i, entry in enumerate(frames) if entry[2] == "_execute"), -1)
            calls = self._recorder.snapshot() if self._recorder is not None else NO_CALLS
            self._send(wire.Stack(message.run_id, frames[own + 1 :], calls))

    def _on_interrupt(self, number: int, frame: object) -> None:
        if self._sending:
            self._interrupted = self._running is not None
        elif self._running is not None:
            raise KeyboardInterrupt


def _unpack_call(payload: wire.Bulk) -> Any:
    try:
        return unpack(payload)
    except (ImportError, AttributeError) as error:
        if isinstance(error, ImportError) or str(error).startswith("Can't get attribute"):
            text = (
                f"{error}. What a module defines travels by name: the ranks import it from its file, on the kernel's "
                "sys.path. Of a module that has no file, or none any more, it can travel by value: "
                "cloudpickle.register_pickle_by_value(module)"
            )
            error.args = (text,)
            if isinstance(error, ImportError):
                error.msg = text
        raise


def _settle(device: str) -> None:
    """Wait for the device: work that fails, or hangs, does so in the run that launched it, not in the next."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)


def _settles(device: str) -> bool:
    try:
        _settle(device)
    except Exception:
        return False
    return True


def _no_run(fields: dict[str, Any]) -> None:
    """The report of a ``Rank`` that no run was given."""


def device_name(device: "torch.device") -> str:
    """The GPU's or the CPU's name, as the vendor writes it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def main(fd: int) -> None:
    """Entry of a rank's interpreter: serve the socket on file descriptor ``fd``."""
    faulthandler.enable()
    os.set_inheritable(fd, False)  # what this rank starts must neither hold the connection open nor write to it
    channel = RankChannel(fd)
    os.register_at_fork(after_in_child=channel.forsake)
    Worker(channel).serve()
