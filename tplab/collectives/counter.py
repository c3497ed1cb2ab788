"""Count the collective and point-to-point calls a rank issues, and their payload bytes.

A dispatch mode, like torch's ``CommDebugMode``, and not a wrapper around ``torch.distributed``'s functions: it sees the
calls whoever makes them, a backward pass and DTensor included. Not ``CommDebugMode`` itself, because that counts calls
only, no bytes, and no sends and receives, which is most of what this lab talks about.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from tplab.checks import check_one_of


@dataclass(frozen=True, kw_only=True, slots=True)
class CommRecord:
    """One call on this rank."""

    kind: str
    """``all-reduce``, ``all-gather``, ``reduce-scatter``, ``broadcast``, ``reduce``, ``gather``, ``scatter``,
    ``all-to-all``, ``send``, ``recv`` or ``barrier``."""
    num_bytes: int
    """Bytes of the payload, see :class:`CommCounter`."""
    dtype: torch.dtype
    """Dtype of the payload; of its first tensor if there are several."""
    group_size: int
    """Number of ranks in the group."""
    peer: int | None = None
    """The other rank's index in the group, for ``send`` and ``recv``; None where it can be any."""
    op: str
    """Name of the operator, such as ``c10d::allreduce_``."""
    where: str = ""
    """What the counter's ``where`` said when the call was made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommTotal:
    """Several calls together."""

    num_calls: int
    """Number of calls."""
    num_bytes: int
    """Bytes of their payloads together."""


class CommCounter:
    """Counts communication from ``with CommCounter() as counter:`` to the end of the block, on this rank.

    ::

        with CommCounter() as counter:
            ring_all_reduce(x, rank.group)
        counter.total("send").num_bytes

    The payload of a call is the S of the cost formulas, not the bytes on the wire, which depend on the algorithm:

    ==============  ==========================================================
    all-reduce      the buffer
    all-gather      the output: the pieces of all ranks
    reduce-scatter  the input: the pieces for all ranks
    broadcast       the buffer
    reduce          the buffer
    gather          the pieces of all ranks, also counted where only one goes out
    scatter         the pieces for all ranks, also counted where only one comes in
    all-to-all      the input, this rank's piece for itself included
    send, recv      the message
    barrier         nothing
    ==============  ==========================================================

    Counted once each: a coalesced call over several tensors (one call, the sum of their bytes), a functional collective
    (not again the native one under it), an asynchronous call (when it is made, not when it is waited for), each message
    of ``batch_isend_irecv``. The backward pass counts when it runs inside the block.

    Not seen: calls of other threads, replays of CUDA graphs, kernels that read a peer's memory themselves (symmetric
    memory), and calls that raised. Object collectives (``broadcast_object_list`` and so on) appear as the tensor
    collectives that they are made of.

    A counter can be entered again and goes on counting; counters can be nested, and each counts.

    Args:
        where: asked at every call; what it says is kept with the record. For counting by layer.
    """

    def __init__(self, where: Callable[[], str] | None = None) -> None:
        self.records: list[CommRecord] = []
        """Every call, in order."""
        self._where = where
        self._modes: list[_Mode] = []

    def __enter__(self) -> "CommCounter":
        mode = _Mode(self.records, self._where)
        mode.__enter__()  # type: ignore[no-untyped-call]
        self._modes.append(mode)
        return self

    def __exit__(self, *fault: Any) -> None:
        self._modes.pop().__exit__(*fault)  # type: ignore[no-untyped-call]

    def total(self, kind: str | None = None) -> CommTotal:
        """All calls of a kind; of every kind without one. A kind that did not occur counts zero."""
        if kind is not None:
            check_one_of("kind", kind, KINDS)
        mine = [record for record in self.records if kind in (None, record.kind)]
        return CommTotal(num_calls=len(mine), num_bytes=sum(record.num_bytes for record in mine))

    def frame_rows(self, *, by_where: bool = False) -> list[dict[str, Any]]:
        """One row per kind, dtype and group size, in order of first appearance: made for ``pandas.DataFrame``.

        Columns ``kind``, ``dtype``, ``group_size``, ``calls``, ``bytes``; with ``by_where`` first ``where``, and a row
        for each.
        """
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        for record in self.records:
            row: dict[str, Any] = {"where": record.where} if by_where else {}
            row |= {
                "kind": record.kind,
                "dtype": str(record.dtype).removeprefix("torch."),
                "group_size": record.group_size,
            }
            row = rows.setdefault(tuple(map(str, row.values())), {**row, "calls": 0, "bytes": 0})
            row["calls"] += 1
            row["bytes"] += record.num_bytes
        return list(rows.values())

    def reset(self) -> None:
        """Forget what was counted."""
        self.records.clear()

    def __repr__(self) -> str:
        counted = (f"{row['calls']} {row['kind']} ({row['bytes']} bytes)" for row in self.frame_rows())
        return f"<CommCounter: {', '.join(counted) or 'nothing'}>"


Payload = Callable[[dict[str, Any], Any, int], Any]
"""A function of the arguments by name, the result and the group size, to the tensors whose bytes count. A factor on one
side is expressed by repeating the tensor."""


def _argument(*names: str) -> Payload:
    return lambda arguments, _out, _n: [arguments[name] for name in names]


def _times_n(name: str) -> Payload:
    return lambda arguments, _out, n: [arguments[name]] * n


def _result(_arguments: dict[str, Any], out: Any, _n: int) -> Any:
    return out


def _nothing(_arguments: dict[str, Any], _out: Any, _n: int) -> Any:
    return []


# Operator -> kind and payload. Names and arguments as registered in torch 2.11 to 2.13; what a version lacks is not
# looked up, so a name too many does no harm.
_NATIVE: dict[str, tuple[str, Payload]] = {
    "allreduce_": ("all-reduce", _argument("tensors")),
    "allreduce_coalesced_": ("all-reduce", _argument("tensors")),
    "allgather_": ("all-gather", _argument("output_tensors")),
    "_allgather_base_": ("all-gather", _argument("output_tensor")),
    "allgather_coalesced_": ("all-gather", _argument("output_lists")),
    "allgather_into_tensor_coalesced_": ("all-gather", _argument("outputs")),
    "reduce_scatter_": ("reduce-scatter", _argument("input_tensors")),
    "_reduce_scatter_base_": ("reduce-scatter", _argument("input_tensor")),
    "reduce_scatter_tensor_coalesced_": ("reduce-scatter", _argument("inputs")),
    "broadcast_": ("broadcast", _argument("tensors")),
    "reduce_": ("reduce", _argument("tensors")),
    "gather_": ("gather", _times_n("input_tensors")),
    "scatter_": ("scatter", _times_n("output_tensors")),
    "alltoall_": ("all-to-all", _argument("input_tensors")),
    "alltoall_base_": ("all-to-all", _argument("input")),
    "send": ("send", _argument("tensors")),
    "recv_": ("recv", _argument("tensors")),
    "recv_any_source_": ("recv", _argument("tensors")),
    "barrier": ("barrier", _nothing),
    "monitored_barrier_": ("barrier", _nothing),
}
_FUNCTIONAL: dict[str, tuple[str, Payload]] = {
    "all_reduce": ("all-reduce", _argument("input")),
    "all_reduce_": ("all-reduce", _argument("input")),
    "all_reduce_coalesced": ("all-reduce", _argument("inputs")),
    "all_reduce_coalesced_": ("all-reduce", _argument("inputs")),
    "all_gather_into_tensor": ("all-gather", _result),
    "all_gather_into_tensor_out": ("all-gather", _result),
    "all_gather_into_tensor_coalesced": ("all-gather", _result),
    "reduce_scatter_tensor": ("reduce-scatter", _argument("input")),
    "reduce_scatter_tensor_out": ("reduce-scatter", _argument("input")),
    "reduce_scatter_tensor_coalesced": ("reduce-scatter", _argument("inputs")),
    "broadcast": ("broadcast", _argument("input")),
    "broadcast_": ("broadcast", _argument("input")),
    "all_to_all_single": ("all-to-all", _argument("input")),
    "isend": ("send", _argument("tensor")),
    "irecv": ("recv", _argument("tensor")),
}
# The older c10d_functional ones are made of these.
_FUNCTIONAL_NAMESPACES = ("_c10d_functional", "_c10d_functional_autograd")
_OPERATORS = {
    **{f"c10d::{name}": what for name, what in _NATIVE.items()},
    **{f"{space}::{name}": what for space in _FUNCTIONAL_NAMESPACES for name, what in _FUNCTIONAL.items()},
}
_NATIVE_NAMES = frozenset(f"c10d::{name}" for name in _NATIVE)  # functional ones give peers as global ranks
_BATCHES = tuple(f"{space}::batch_p2p_ops" for space in _FUNCTIONAL_NAMESPACES)
KINDS = tuple(dict.fromkeys(kind for kind, _ in _OPERATORS.values()))
"""All kinds of calls."""


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes a record per operator. What an operator calls inside is not seen: the mode is off meanwhile."""

    def __init__(self, records: list[CommRecord], where: Callable[[], str] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._records = records
        self._where = where

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        dtensor = sys.modules.get("torch.distributed.tensor")  # importing it would cost a rank half a second
        if dtensor is not None and any(issubclass(kind, dtensor.DTensor) for kind in types):
            return NotImplemented  # DTensor first turns itself into plain tensors and collectives
        out = func(*args, **(kwargs or {}))
        if isinstance(func, torch._ops.OpOverload):
            name = func._schema.name
            if name in _OPERATORS or name in _BATCHES:
                names = [argument.name for argument in func._schema.arguments]
                arguments = dict(zip(names, args, strict=False)) | (kwargs or {})
                records = _batch(name, arguments) if name in _BATCHES else [_record(name, arguments, out)]
                if self._where is not None:
                    records = [replace(record, where=self._where()) for record in records]
                self._records += records
        return out


def _record(name: str, arguments: dict[str, Any], out: Any) -> CommRecord:
    kind, payload = _OPERATORS[name]
    group = _group(arguments)
    tensors = list(_tensors(payload(arguments, out, group.size())))
    # A barrier has no payload, only a tensor that picks the device; an empty list has no dtype at all.
    first = next(iter(tensors or _tensors(list(arguments.values()))), torch.empty(0))
    peer = arguments.get("dst", arguments.get("src")) if kind in ("send", "recv") else None
    return CommRecord(
        kind=kind,
        num_bytes=sum(map(_num_bytes, tensors)),
        dtype=first.dtype,
        group_size=group.size(),
        peer=peer if peer is None or name in _NATIVE_NAMES else dist.get_group_rank(group, peer),
        op=name,
    )


def _batch(name: str, arguments: dict[str, Any]) -> list[CommRecord]:
    group = _group(arguments)
    calls = zip(arguments["op_list"], arguments["peer_list"], arguments["tensors"], strict=True)
    return [
        CommRecord(
            kind="send" if "send" in call else "recv",
            num_bytes=_num_bytes(tensor),
            dtype=tensor.dtype,
            group_size=group.size(),
            peer=dist.get_group_rank(group, peer),
            op=name,
        )
        for call, peer, tensor in calls
    ]


def _group(arguments: dict[str, Any]) -> dist.ProcessGroup:
    """Native operators carry the group itself, functional ones its name (from 2.13 on either)."""
    group = arguments.get("process_group", arguments.get("group_name"))
    if isinstance(group, str):
        resolve: Callable[[str], dist.ProcessGroup] = torch._C._distributed_c10d._resolve_process_group  # type: ignore[assignment]
        return resolve(group)
    if isinstance(group, torch.ScriptObject):
        return dist.ProcessGroup.unbox(group)
    assert isinstance(group, dist.ProcessGroup)
    return group


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
