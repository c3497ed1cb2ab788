"""Values into bytes and back: cloudpickle for what Python has, and torch's tensors and storages by their bytes.

torch pickles a tensor together with its whole storage, each view once more, and cannot pickle an untyped storage or a
tensor whose type has no typed storage (float8, the wider unsigned integers). Here the pickle holds only a place for
each; what stands there follows behind it: the bytes that its elements span, whatever their type. What overlaps in
memory overlaps again after the trip, if it went in one message, as ``torch.save`` has it. A view whose elements lie
far apart (a column) goes as a compact copy, unless the memory around it goes anyway.

torch is imported for values that hold its objects, and for no others.
"""

import ctypes
import io
import pickle
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tplab.needs import needed_by

if TYPE_CHECKING:
    import torch

_LENGTHS = struct.Struct("!QQ")
"""Length of the table of tensors, which may be none, and of the pickle; both and the tensors' bytes follow."""
_SPREAD_KEPT = 1.05  # a view that spans more than so many times its elements is compacted
_WORDS = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}  # types of these sizes that can be copied; float4 cannot


def pack(value: Any, *, to_cpu: bool) -> bytes:
    """``value`` as bytes, for ``unpack`` in another process of this machine.

    Tensors keep their type, sizes, strides, class, attributes and ``requires_grad``, without the graph and ``grad``.

    Args:
        value: anything that cloudpickle can carry.
        to_cpu: bring tensors and storages of other devices to the CPU: the receiver may have no GPU, and must not open
            a context on the sender's one.

    Raises whatever an object raises that cannot be pickled.
    """
    buffer = io.BytesIO()
    with needed_by("a call on ranks"):
        from tplab.cluster.pickler import Pickler  # whoever only plans has no cloudpickle

    pickler = Pickler(buffer, _SPREAD_KEPT)
    pickler.dump(value)
    table, pieces = _collect(pickler.given, to_cpu) if pickler.given else (b"", [])
    return b"".join([_LENGTHS.pack(len(table), buffer.tell()), table, buffer.getbuffer(), *pieces])


def unpack(data: Any) -> Any:
    """The value behind ``pack``. Raises ``MemoryError`` where its bytes arrived empty."""
    view = memoryview(data)
    if not len(view):
        raise MemoryError("no memory to receive it")
    of_table, of_pickle = _LENGTHS.unpack_from(view)
    begin = _LENGTHS.size + of_table
    end = begin + of_pickle
    given = _restore(view[_LENGTHS.size : begin], view[end:]) if of_table else []
    return pickle.loads(view[begin:end], buffers=given)


@dataclass(slots=True)
class _Span:
    """Bytes ``begin`` to ``end`` of a storage, and which of them is in which piece of memory that travels."""

    storage: "torch.UntypedStorage"
    begin: int
    end: int
    element_size: int = 1
    sparse: bool = False
    """Whether most of the bytes are of no element."""
    piece: int = -1


@dataclass(slots=True)
class _Piece:
    storage: "torch.UntypedStorage"
    begin: int
    end: int


def _collect(given: Sequence[Any], to_cpu: bool) -> tuple[bytes, list[Any]]:
    """The table of the tensors, and the pieces of memory that they lie in."""
    import torch

    things = list(given)
    spans = [_span(thing) for thing in things]
    pieces = _pieces([span for span in spans if not span.sparse])
    whole: dict[Any, list[int]] = {}  # of each storage, the pieces in which other tensors may lie
    for index, piece in enumerate(pieces):
        whole.setdefault(_place_of(piece.storage), []).append(index)
    for index, span in enumerate(spans):
        if not span.sparse:
            continue
        inside = [i for i in whole.get(_place_of(span.storage), ()) if _holds(pieces[i], span)]
        if inside:
            span.piece = inside[0]
        else:
            things[index] = _compact(things[index])
            spans[index] = _span(things[index])
            spans[index].piece = len(pieces)
            pieces.append(_Piece(spans[index].storage, 0, spans[index].end))
    rows = []
    for thing, span in zip(things, spans, strict=True):
        if isinstance(thing, torch.UntypedStorage):
            rows.append((span.piece, 0, (), (), None))
        else:
            first = (span.begin - pieces[span.piece].begin) // thing.element_size() if span.piece >= 0 else 0
            rows.append((span.piece, first, tuple(thing.shape), thing.stride(), thing.dtype))
    devices = ["cpu" if to_cpu else str(piece.storage.device) for piece in pieces]
    sizes = [piece.end - piece.begin for piece in pieces]
    return pickle.dumps((list(zip(sizes, devices, strict=True)), rows)), [_bytes_of(piece) for piece in pieces]


def _span(thing: Any) -> _Span:
    """Where in its storage a tensor's elements lie."""
    import torch

    if isinstance(thing, torch.UntypedStorage):
        return _Span(thing, 0, thing.nbytes())
    storage, size = thing.untyped_storage(), thing.element_size()
    if not thing.numel():
        return _Span(storage, 0, 0)
    elements = 1 + sum((length - 1) * stride for length, stride in zip(thing.shape, thing.stride(), strict=True))
    begin = thing.storage_offset() * size
    end = begin + elements * size
    if end > storage.nbytes():
        raise ValueError(
            f"a tensor of shape {tuple(thing.shape)} has elements beyond the {storage.nbytes():,} bytes of its "
            "storage, which was freed or made smaller"
        )
    return _Span(storage, begin, end, size, sparse=elements > _SPREAD_KEPT * thing.numel())


def _compact(tensor: "torch.Tensor") -> "torch.Tensor":
    """A copy without gaps, in the order that the elements have in memory."""
    import torch

    word = _WORDS.get(tensor.element_size())
    return tensor.clone() if word is None else tensor.view(getattr(torch, word)).clone().view(tensor.dtype)


def _pieces(spans: Sequence[_Span]) -> list[_Piece]:
    """One piece for what overlaps; each span learns which is its own."""
    pieces: list[_Piece] = []
    for span in sorted(spans, key=lambda span: (_place_of(span.storage), span.begin)):
        if span.begin == span.end:
            continue
        last = pieces[-1] if pieces else None
        if last is not None and _place_of(last.storage) == _place_of(span.storage) and span.begin < last.end:
            last.end = max(last.end, span.end)
        else:
            pieces.append(_Piece(span.storage, span.begin, span.end))
        span.piece = len(pieces) - 1
        pieces[-1].begin -= pieces[-1].begin % span.element_size  # an offset is a whole number of elements
    return pieces


def _holds(piece: _Piece, span: _Span) -> bool:
    """Whether all of a span is in a piece, a whole number of elements from its beginning."""
    return piece.begin <= span.begin and span.end <= piece.end and not (span.begin - piece.begin) % span.element_size


def _place_of(storage: "torch.UntypedStorage") -> tuple[str, int]:
    return str(storage.device), storage.data_ptr()


def _bytes_of(piece: _Piece) -> Any:
    """The piece's memory, on the CPU; not copied if it is there."""
    import torch

    storage, begin, length = piece.storage, piece.begin, piece.end - piece.begin
    if storage.device.type != "cpu":
        window = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage, begin, (length,), (1,))
        storage, begin = window.cpu().untyped_storage(), 0
    memory = (ctypes.c_char * length).from_address(storage.data_ptr() + begin)
    memory.owner = storage  # type: ignore[attr-defined]  # it lives as long as its memory is looked at
    return memory


def _restore(table: memoryview, memory: memoryview) -> list[Any]:
    """The tensors and storages that ``_collect`` took apart. Their memory is their own, and no part of the message."""
    import torch

    pieces, rows = pickle.loads(table)
    storages = list(_storages(pieces, memory))
    given: list[Any] = []
    for piece, first, shape, strides, dtype in rows:
        storage = storages[piece] if piece >= 0 else torch.UntypedStorage(0)  # type: ignore[no-untyped-call]
        if dtype is None:
            given.append(storage)
        else:
            given.append(torch.empty(0, dtype=dtype, device=storage.device).set_(storage, first, shape, strides))
    return given


def _storages(pieces: Sequence[tuple[int, str]], memory: memoryview) -> Iterator["torch.UntypedStorage"]:
    import torch

    begin = 0
    for length, device in pieces:
        copied = torch.UntypedStorage.from_buffer(memory[begin : begin + length], dtype=torch.uint8)
        begin += length
        yield cast("torch.UntypedStorage", copied if device == "cpu" else copied.to(device=torch.device(device)))
