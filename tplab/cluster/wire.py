"""What crosses the socket between kernel and rank: pickled calls, values and faults.

Functions go by cloudpickle, since plain pickle cannot carry one that was defined in a notebook cell. Values and
exceptions are pickled into bytes of their own inside each message: one that cannot be rebuilt then spoils its own
answer and not the connection.
"""

import gc
import linecache
import pickle
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import CodeType, FrameType, TracebackType
from typing import Any

from tplab.cluster.calls import NO_CALLS, Calls, Frame
from tplab.cluster.engine import Stream
from tplab.cluster.packing import pack, unpack
from tplab.cluster.sources import Versions
from tplab.moved import say_new_names

Bulk = bytes | bytearray | pickle.PickleBuffer
"""Bytes that may be many: sent as a ``PickleBuffer`` they travel beside the message (see ``channel``)."""
_MANY = 1 << 16


def bulk(data: Bulk) -> Bulk:
    """``data`` as it is best sent."""
    return data if isinstance(data, pickle.PickleBuffer) or len(data) < _MANY else pickle.PickleBuffer(data)


# From kernel to rank.


@dataclass(frozen=True, slots=True)
class Call:
    """Run a pickled ``(fn, args)``."""

    run_id: int
    num_ranks: int
    """How many ranks run it: so many first ones are then the world."""
    payload: Bulk
    sys_path: tuple[str, ...]
    """The kernel's import path, so that a module beside the notebook imports on the ranks too."""
    folder: str
    """The kernel's working directory; empty where it has none."""
    modules: Versions | None
    """What the kernel has loaded of the user's modules; None: what it had in the call before."""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Raise KeyboardInterrupt in the run, if it is still the one running."""

    run_id: int


@dataclass(frozen=True, slots=True)
class AskStack:
    """Say where the run is and what it called; a rank that is done with it says the latter."""

    run_id: int


@dataclass(frozen=True, slots=True)
class StoreReply:
    """What a StoreCall came to."""

    call_id: int
    value: Any
    error: str
    """What went wrong; empty if nothing did."""


# From rank to kernel.


@dataclass(frozen=True, slots=True)
class StoreCall:
    """An operation on the keys through which ranks find each other (see ``store``)."""

    call_id: int
    """Number that the reply repeats; 0 if no reply is wanted."""
    operation: str
    arguments: tuple[Any, ...]
    waits: bool
    """Whether to answer only once all keys of the first argument exist."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The process group is up."""

    facts: dict[str, Any]
    """``torch_version``, ``nccl_version``, ``device_name`` and ``phases``: (name, monotonic seconds) pairs."""
    sequences: dict[str, int]
    """How many operations each process group has been handed so far."""


@dataclass(frozen=True, slots=True)
class RankFault:
    """An exception on a rank, in a form that any process can read."""

    type_name: str
    text: str
    """The exception's own lines, as at the end of a traceback."""
    frames: tuple[Frame, ...]
    pickled: Bulk | None
    """The exception itself, where it can be pickled."""
    before: "tuple[RankFault, str] | None" = None
    """The exception this one came from or happened in, and the sentence that says which."""
    members: "tuple[RankFault, ...]" = ()
    """The exceptions that an ``ExceptionGroup`` holds, as far as they are shown."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How the run ended on this rank."""

    run_id: int
    value: Bulk | None
    """The pickled return value; None if the function failed."""
    fault: RankFault | None
    seconds: float
    """Seconds that the function itself took."""
    sequences: dict[str, int]
    """How many operations each process group has been handed so far: ranks that disagree are out of step."""
    fit: bool = True
    """Whether the rank still works: after a CUDA error of the sticky kind only a new process does."""
    calls: Calls = NO_CALLS
    """What the rank called, if the function failed."""


@dataclass(frozen=True, slots=True)
class ReportMessage:
    """Fields handed to ``rank.report``, by the run or by a thread that outlived it."""

    run_id: int
    fields: Bulk
    """What ``pack_fields`` made of them."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the run has to say beside its output; once, however many ranks say it."""

    key: str
    text: str


@dataclass(frozen=True, slots=True)
class LateLine:
    """A line that a thread printed after the run that started it was over."""

    run_id: int
    stream: Stream
    line: str


@dataclass(frozen=True, slots=True)
class Spoiled:
    """Somebody else stood between the ranks while they started: they must be started again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stack:
    """Where the run is now; reply to AskStack."""

    run_id: int
    frames: tuple[Frame, ...]
    calls: Calls = NO_CALLS
    """Collectives, sends and receives of the rank."""


def pack_call(fn: Callable[..., Any], args: Sequence[Any]) -> bytes:
    """Pickle a call. Raises ``TypeError`` naming ``fn`` or the argument that cannot be pickled, and why."""
    try:
        return pack((fn, tuple(args)), to_cpu=False)
    except Exception as error:
        name = getattr(fn, "__name__", repr(fn))
        for what, value in [(f"fn ({name})", fn), *((f"args[{i}]", arg) for i, arg in enumerate(args))]:
            try:
                pack(value, to_cpu=False)
            except Exception as cause:
                raise TypeError(
                    f"{what} cannot be sent to the ranks: {cause}. Ranks are other processes: create what cannot be "
                    "pickled (locks, files, sockets, generators) inside the function, or keep it in rank.store"
                ) from error
        raise TypeError(f"fn ({name}) with these args cannot be sent to the ranks: {error}") from error


def import_path() -> list[str]:
    """This process's ``sys.path``, without the entries (Path objects, say) that Python itself passes over."""
    return [entry for entry in sys.path if isinstance(entry, str)]


def pack_value(value: Any) -> bytes:
    """Pickle what a rank sends back: the kernel may have no GPU."""
    return pack(value, to_cpu=True)


def pack_fields(fields: dict[str, Any]) -> bytes:
    """Pickle what a rank reports, each field by itself, so that one that cannot be rebuilt does not take others along.

    Raises ``TypeError`` naming the field that cannot be pickled, and why.
    """
    packed = {}
    for name, value in fields.items():
        try:
            packed[name] = pack_value(value)
        except Exception as error:
            raise TypeError(
                f"report({name}=...): the field {name!r} cannot be sent to the kernel: {error or repr(error)}. Report "
                "plain values or tensors; what cannot be pickled (locks, files, generators) stays in rank.store"
            ) from error
    return pack_value(packed)


def unpack_fields(data: Bulk) -> tuple[dict[str, Any], dict[str, BaseException]]:
    """The fields of a report that can be rebuilt here, and why others cannot."""
    fields, errors = {}, {}
    for name, packed in unpack(data).items():
        try:
            fields[name] = unpack(packed)
        except BaseException as error:  # rebuilding a value may raise anything, SystemExit included
            errors[name] = error
    return fields, errors


_CHAIN_KEPT = 20
_CAUSED = "The above exception was the direct cause of the following exception:"
_DURING = "During handling of the above exception, another exception occurred:"
_MEMBERS_SHOWN = 15
_LEVELS_SHOWN = 10


def describe_fault(
    error: BaseException, skip_frames: int = 0, _seen: frozenset[int] = frozenset(), _level: int = 0
) -> RankFault:
    """Take an exception apart on the rank; ``skip_frames`` outermost frames (the worker's own) are left out.

    Of the exceptions it came from, the nearest 20 are kept; ``raise error from error`` ends the chain (``_seen``). Of a
    group, the first 15 members are kept, and theirs, 10 levels deep (``_level``).
    """
    before = None
    seen = _seen | {id(error)}
    earlier, link = error.__cause__, _CAUSED
    if earlier is None and not error.__suppress_context__:
        earlier, link = error.__context__, _DURING
    if earlier is not None and id(earlier) not in seen and len(seen) < _CHAIN_KEPT:
        before = describe_fault(earlier, 0, seen, _level), link
    pickled = None
    with suppress(BaseException):  # the exception's own __reduce__ may raise anything
        pickled = bulk(pack_value(error)) if not _level else None
    frames = _frames_of(error.__traceback__)[skip_frames:]
    text = "".join(traceback.format_exception_only(error)).rstrip()
    members: list[RankFault] = []
    if isinstance(error, BaseExceptionGroup) and _level < _LEVELS_SHOWN:
        members = [describe_fault(member, 0, seen, _level + 1) for member in error.exceptions[:_MEMBERS_SHOWN]]
        if more := len(error.exceptions) - _MEMBERS_SHOWN:
            text += f"\nThe first {_MEMBERS_SHOWN} of them; {more} more are not shown" if more > 0 else ""
    return RankFault(type(error).__name__, text, frames, pickled, before, tuple(members))


def describe_any_fault(error: BaseException, skip_frames: int = 0) -> RankFault:
    """Like ``describe_fault``, but also for an exception that fails when it is described: its parts may run any
    code."""
    try:
        return describe_fault(error, skip_frames)
    except BaseException as failure:
        text = f"an exception of {object.__repr__(type(error))}, which cannot be described: {failure!r}"
        return RankFault("an exception that cannot be described", text, (), None)


def format_fault(fault: RankFault, rank: int) -> str:
    """The rank's traceback, as Python would print it there."""
    parts = []
    if fault.before is not None:
        earlier, link = fault.before
        parts += [format_fault(earlier, rank), "", link, ""]
    if fault.frames:
        parts += [f"Traceback on rank {rank} (most recent call last):", format_frames(fault.frames)]
    parts.append(fault.text)
    for number, member in enumerate(fault.members, 1):
        head = f"+---------------- {number} of {len(fault.members)} in {fault.type_name} ----------------"
        parts.append(textwrap.indent(f"{head}\n{format_fault(member, rank)}", "  | ", lambda line: True))
    return "\n".join(parts)


def rebuild_exception(fault: RankFault) -> BaseException | None:
    """The rank's exception in this process, or None where its type cannot be had here."""
    if fault.pickled is None:
        return None
    try:
        error = unpack(fault.pickled)
    except BaseException:  # rebuilding it may raise anything, SystemExit included
        return None
    return error if isinstance(error, BaseException) else None


def stack_of(thread: int) -> tuple[Frame, ...]:
    """Where a thread is, given by its ``ident``, outermost first; it may run on meanwhile.

    CPython 3.11 makes the frame objects of a thread when they are asked for, and may collect garbage in the midst of
    that. Where a finalizer then lets the other thread run, the frame is gone by the time it is looked at: something
    else is found in its place, or the process is killed by SIGSEGV. So no garbage is collected meanwhile.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        shown = _shown(traceback.walk_stack(sys._current_frames()[thread]))
    finally:
        if collects:
            gc.enable()
    return _portable(shown)[::-1]


def format_frames(frames: Sequence[Frame]) -> str:
    """The frames as a traceback shows them. Source lines of notebook cells, which only the notebook kernel has, are
    looked up here."""
    summaries = [
        traceback.FrameSummary(file, number, name, line=line or linecache.getline(file, number).strip() or None)
        for file, number, name, line in frames
    ]
    return "".join(traceback.StackSummary.from_list(summaries).format()).rstrip()


def describe_exit(exit_code: int | None) -> str:
    """``was killed by SIGKILL``, ``exited with code 3``."""
    if exit_code is None:
        return "ended"
    if exit_code < 0:
        try:
            return f"was killed by {signal.Signals(-exit_code).name}"
        except ValueError:
            return f"was killed by signal {-exit_code}"
    return f"exited with code {exit_code}"


def _frames_of(tb: TracebackType | None) -> tuple[Frame, ...]:
    return _portable(_shown(traceback.walk_tb(tb)))


def _shown(frames: Iterable[tuple[FrameType, int]]) -> list[tuple[CodeType, int, dict[str, Any]]]:
    """Code, line number and globals of the frames, which are not held: they would keep what their variables hold.

    Without those that ask for it in pytest's and IPython's way, which is read off their code: ``f_locals`` of a frame
    that runs on another thread is not safe to ask for.
    """
    return [(frame.f_code, number or 0, frame.f_globals) for frame, number in frames if not _is_hidden(frame.f_code)]


def _portable(shown: Sequence[tuple[CodeType, int, dict[str, Any]]]) -> tuple[Frame, ...]:
    for name in {code.co_filename for code, _, _ in shown}:
        with suppress(Exception):
            linecache.checkcache(name)
    return tuple((code.co_filename, line, code.co_name, _source(code, line, names)) for code, line, names in shown)


def _is_hidden(code: CodeType) -> bool:
    return "__tracebackhide__" in code.co_varnames or "__tracebackhide__" in code.co_names


def _source(code: CodeType, number: int, names: dict[str, Any]) -> str | None:
    """None where there is none, or where it cannot be had now: another thread may be changing Python's cache."""
    with suppress(Exception):
        return linecache.getline(code.co_filename, number, names).strip() or None
    return None


say_new_names(__name__)
