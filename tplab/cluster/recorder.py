"""A rank's record of its collectives, sends and receives: which, how large, on which group, from which line.

It is written where Python hands a call to a process group: in the methods of torch's ``ProcessGroup``, and in the
operators of its functional collectives, through which DTensor and compiled code go. Not torch's own flight recorder:
for gloo (torch 2.13) it has no sends, receives or roots, calls a reduce-scatter an all-reduce, and the first reading of
its lines of code takes a second, longer than a run that fails may keep anybody waiting. What this costs a call is in
``docs/hangs.md``.

Not written down: what ``tplab.measure`` times (:func:`unrecorded`). Not seen: what C++ calls by itself (the backward of
a functional collective, a replayed CUDA graph), and kernels that read a peer's memory. They are missing on every rank
alike, so the numbers still agree.

Imported on ranks only, because it needs torch.
"""

import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ProcessGroup, Work, _resolve_process_group
from torch.distributed import distributed_c10d

from tplab.cluster.calls import BETWEEN_TWO, Call, Calls, GroupFacts
from tplab.cluster.entrances import FUNCTIONAL, METHODS, NAMES_OF_ROOTS, NAMES_OF_TENSORS, SPACES

_KEPT = 256  # calls
_PENDING = 4096  # works that nobody has waited for; pairs of peer and tag in a group
_TORCH = os.path.dirname(torch.__file__) + os.sep
# Types that stand for tensors while a graph is traced: nothing is communicated then.
_TRACED = ("FakeTensor", "FunctionalTensor")
_SAYS_NOTHING = ("", "undefined", "default_pg")


class _Group:
    """A group in this run."""

    __slots__ = ("count", "exchanged", "facts", "ref")

    def __init__(self, group: ProcessGroup) -> None:
        self.ref = weakref.ref(group)
        self.count = 0
        self.exchanged: dict[tuple[str, int | None, int], int] = {}
        members = distributed_c10d._world.pg_group_ranks.get(group) or {rank: rank for rank in range(group.size())}
        says = group.group_desc
        self.facts = GroupFacts(
            name=group.group_name,
            description="" if says in _SAYS_NOTHING else says,
            ranks=tuple(sorted(members, key=members.__getitem__)),
            is_default=group is distributed_c10d._world.default_pg,
            returns_early="nccl" in str(distributed_c10d._world.pg_map.get(group, ("",))[0]),
        )


_Entry = list[Any]
"""A call: state, kind, group, number, elements, dtype, peer, tag, code, place in it. A list: no object is as quick."""
_STATE, _KIND, _GROUP, _NUMBER, _ELEMENTS, _DTYPE, _PEER, _TAG, _CODE, _AT = range(10)


_timing: list[None] = []  # not empty meanwhile; of this process, as torch's methods are


@contextmanager
def unrecorded() -> Iterator[None]:
    """For what is timed: its calls are torch's alone. All ranks of a group must do it around the same calls."""
    _timing.append(None)
    try:
        yield
    finally:
        del _timing[-1:]


class Recorder:
    """Writes down what this rank's process hands to process groups; there is one on a rank."""

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque(maxlen=_KEPT)
        self._groups: dict[int, _Group] = {}
        self._named: dict[str, ProcessGroup] = {}
        self._pending: dict[int, _Entry] = {}
        self._in_operator = threading.local()
        self.run_id = 0

    def begin(self, run_id: int) -> None:
        """A run begins: count anew."""
        self.run_id = run_id
        for held in (self._entries, self._groups, self._named, self._pending, _timing):  # an interrupt may have left it
            held.clear()

    def snapshot(self) -> Calls:
        """What there is to say now. From any thread."""
        # Calls first, and their groups from them: others may be called meanwhile, or come to a destroyed one's address.
        entries = [entry for entry in [*self._entries] if entry[_NUMBER]]
        known = dict.fromkeys([*self._groups.values(), *(entry[_GROUP] for entry in entries)])
        groups = [group for group in known if group.count or group.exchanged]
        return Calls(
            groups=tuple(group.facts for group in groups),
            counts=tuple((group.facts.name, group.count) for group in groups),
            exchanged=tuple(
                (group.facts.name, kind, _member(group, peer), tag, count)
                for group in groups
                for (kind, peer, tag), count in group.exchanged.copy().items()
            ),
            calls=tuple(map(_call, entries)),
        )

    @property
    def has_unfinished(self) -> bool:
        """Whether a call of the run was begun, and nobody has waited for its end. A receive of gloo's that is let go so
        leaves its message in the connection for good, however well the ranks' numbers agree."""
        return any(entry[_NUMBER] and entry[_STATE] != "done" for entry in [*self._entries])

    def install(self) -> None:
        """Begin to see calls; for the life of the process."""
        for name, (kind, tensor, peer) in METHODS.items():
            if (method := getattr(ProcessGroup, name, None)) is not None:
                setattr(ProcessGroup, name, self._around_method(method, kind, tensor, peer))
        Work.wait = self._around_wait(Work.wait)  # type: ignore[method-assign]
        for space in SPACES:
            for name in (*FUNCTIONAL, "wait_tensor", "batch_p2p_ops"):
                packet = getattr(getattr(torch.ops, space), name, None)
                if packet is not None:
                    for one in (packet, *(getattr(packet, overload) for overload in packet.overloads())):
                        called = self._around_operator(one._op, name)
                        one._op = type("StandIn", (_StandIn,), {"__call__": called})(one._op)

    def _around_method(
        self, method: Callable[..., Any], kind: str, tensor: int | None, peer: int | None
    ) -> Callable[..., Any]:
        note, pending, timing = self._note, self._pending, _timing

        def called(group: ProcessGroup, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True  # it is none of the user's own lines
            __tracebackhide__ = True
            if timing:
                return method(group, *args, **kwargs)
            tensors = root = None
            tag = 0
            if tensor is not None:
                tensors = args[tensor] if len(args) > tensor else _named(kwargs, NAMES_OF_TENSORS)
            if peer is not None:
                root = args[peer] if len(args) > peer else _named(kwargs, NAMES_OF_ROOTS)
                if kind in BETWEEN_TWO:
                    tag = args[2] if len(args) > 2 else kwargs.get("tag", 0)
                else:
                    root = getattr(root, "rootRank", root)
            entry = note(group, kind, tensors, root, tag, sys._getframe(1))
            try:
                work = method(group, *args, **kwargs)
            except BaseException:
                _take_back(entry)
                raise
            if work is None:
                entry[_STATE] = "done"
            else:
                entry[_STATE] = "called"
                pending[id(work)] = entry
            return work

        return called

    def _around_wait(self, wait: Callable[..., Any]) -> Callable[..., Any]:
        pending = self._pending

        def waited(work: Work, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            __tracebackhide__ = True  # of the user's stack, where a rank waits
            entry = pending.pop(id(work), None)
            if entry is None:
                return wait(work, *args, **kwargs)
            entry[_STATE] = "waits"
            try:
                out = wait(work, *args, **kwargs)
            except BaseException:
                entry[_STATE] = "called"
                raise
            entry[_STATE] = "done"
            return out

        return waited

    def _around_operator(self, operator: Callable[..., Any], name: str) -> Callable[..., Any]:
        """A dispatch mode calls the operator once more from inside it: that is the same call."""
        inside = self._in_operator
        about = self._about_wait if name == "wait_tensor" else self._about_operator

        def called(_self: object, /, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            __tracebackhide__ = True
            if _timing or getattr(inside, "now", False) or not args or type(args[0]).__name__ in _TRACED:
                return operator(*args, **kwargs)
            inside.now = True
            entries = []
            try:
                entries = about(name, args, kwargs, sys._getframe(1))
                out = operator(*args, **kwargs)
            except BaseException:
                for entry in entries:
                    _take_back(entry)
                raise
            finally:
                inside.now = False
            for entry in entries:
                entry[_STATE] = "done" if name == "wait_tensor" else "called"
                if entry[_STATE] == "called":
                    self._pending[id(out[0] if isinstance(out, (list, tuple)) and out else out)] = entry
            return out

        return called

    def _about_wait(self, _name: str, args: tuple[Any, ...], _kwargs: object, _frame: FrameType) -> list[_Entry]:
        entry = self._pending.pop(id(args[0]), None)
        if entry is None:
            return []
        entry[_STATE] = "waits"
        return [entry]

    def _about_operator(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType
    ) -> list[_Entry]:
        group = self._resolve(kwargs.get("group_name", args[-1]))
        if name == "batch_p2p_ops":
            return [
                self._note(
                    group, "send" if "send" in op else "recv", tensor, dist.get_group_rank(group, peer), tag, frame
                )
                for op, peer, tag, tensor in zip(*args[:4], strict=True)
            ]
        kind, pieces, peer = FUNCTIONAL[name]
        root: Any = args[peer] if peer is not None else None
        tag = 0
        if kind in BETWEEN_TWO:
            root, tag = dist.get_group_rank(group, root), args[2]
        entry = self._note(group, kind, args[0], root, tag, frame)
        if pieces is not None and entry[_ELEMENTS]:
            entry[_ELEMENTS] //= args[pieces]
        return [entry]

    def _resolve(self, group: Any) -> ProcessGroup:
        if isinstance(group, str):
            if group not in self._named:
                self._named[group] = _resolve_process_group(group)  # type: ignore[arg-type]
            return self._named[group]
        if isinstance(group, torch.ScriptObject):
            return ProcessGroup.unbox(group)
        assert isinstance(group, ProcessGroup)
        return group

    def _note(
        self, group: ProcessGroup, kind: str, tensors: Any, peer: int | None, tag: int, frame: FrameType | None
    ) -> _Entry:
        known = self._groups.get(id(group))
        if known is None or known.ref() is not group:
            known = self._groups[id(group)] = _Group(group)
        if kind in BETWEEN_TWO:
            key = kind, peer, tag
            if len(known.exchanged) >= _PENDING and key not in known.exchanged:
                self._forget_tags(known)
            number = known.exchanged[key] = known.exchanged.get(key, 0) + 1
        else:
            known.count = number = known.count + 1
        if type(tensors) is list and len(tensors) == 1:
            tensors = tensors[0]
        elements: int | None
        dtype: torch.dtype | None
        if isinstance(tensors, torch.Tensor):
            elements, dtype = tensors.numel(), tensors.dtype
        else:
            elements, dtype = _measure(tensors)
        while frame is not None and frame.f_code.co_filename.startswith(_TORCH):
            frame = frame.f_back
        if frame is None:
            frame = sys._getframe(2)
        # The line itself would take longer than all the rest.
        entry = ["waits", kind, known, number, elements, dtype, peer, tag, frame.f_code, frame.f_lasti]
        if len(self._pending) > _PENDING:  # of works that nobody ever waited for
            self._pending.clear()
        self._entries.append(entry)
        return entry

    def _forget_tags(self, group: _Group) -> None:
        """Of a run that takes ever new tags, all but those of its last calls."""
        recent = {(entry[_KIND], entry[_PEER], entry[_TAG]) for entry in self._entries if entry[_GROUP] is group}
        group.exchanged = {key: count for key, count in group.exchanged.items() if key in recent}


class _StandIn:
    """What a functional operator calls in torch's stead: with its hash, by which torch's tables find the operator."""

    def __init__(self, operator: Any) -> None:
        self._operator = operator

    def __hash__(self) -> int:
        return hash(self._operator)

    def __eq__(self, other: object) -> bool:
        return self is other or self._operator == other

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operator, name)


def _take_back(entry: _Entry) -> None:
    """The call was refused: it does not count."""
    group = entry[_GROUP]
    if entry[_KIND] in BETWEEN_TWO:
        group.exchanged[entry[_KIND], entry[_PEER], entry[_TAG]] -= 1
    else:
        group.count -= 1
    entry[_NUMBER] = 0


def _measure(tensors: Any) -> tuple[int | None, torch.dtype | None]:
    """Elements and dtype of several tensors, in lists of lists."""
    found = [*_flat(tensors)]
    return (sum(tensor.numel() for tensor in found), found[0].dtype) if found else (None, None)


def _flat(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _flat(one)


def _named(kwargs: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((kwargs[name] for name in names if name in kwargs), None)


def _member(group: _Group, index: int | None) -> int | None:
    """The rank that a group knows by its own number."""
    ranks = group.facts.ranks
    return ranks[index] if isinstance(index, int) and 0 <= index < len(ranks) else None


def _line(code: CodeType, place: int) -> int:
    for begin, end, line in code.co_lines():
        if begin <= place < end and line is not None:
            return line
    return code.co_firstlineno


def _call(entry: _Entry) -> Call:
    return Call(
        kind=entry[_KIND],
        group=entry[_GROUP].facts.name,
        number=entry[_NUMBER],
        num_elements=entry[_ELEMENTS],
        dtype=str(entry[_DTYPE] or "").removeprefix("torch."),
        peer=_member(entry[_GROUP], entry[_PEER]),
        tag=entry[_TAG],
        where=(entry[_CODE].co_filename, _line(entry[_CODE], entry[_AT]), entry[_CODE].co_name, None),
        state=entry[_STATE],
    )
