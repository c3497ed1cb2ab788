"""Values into bytes and back: cloudpickle for what Python has, and torch's tensors and storages by their bytes.

torch pickles a tensor together with its whole storage, each view once more, and cannot pickle an untyped storage or a
tensor whose type has no typed storage (float8, the wider unsigned integers). Here the pickle holds only a place for
each; what stands there follows behind it: the bytes that its elements span, whatever their type. What overlaps in
memory overlaps again after the trip, if it went in one message, as ``torch.save`` has it. A view whose elements lie
far apart (a column) goes as a compact copy, unless the memory around it goes anyway.

torch is imported for values that hold its objects, and for no others.
"""

import ctypes
import importlib
import io
import operator
import pickle
import struct
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import _lru_cache_wrapper, lru_cache, partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import cloudpickle

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
    pickler = _Pickler(buffer)
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


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is not typed
    """Leaves a place in the pickle for each tensor and storage; ``given`` is what belongs there, in order."""

    def __init__(self, file: io.BytesIO) -> None:
        self.given: list[Any] = []
        self._waiting: dict[int, tuple[pickle.PickleBuffer, Any]] = {}
        # Not a method of this object: it would hold itself, and with it the value, until the next garbage collection.
        super().__init__(file, protocol=5, buffer_callback=partial(_is_inside, self._waiting, self.given))

    def _place(self, thing: Any) -> pickle.PickleBuffer:
        place = pickle.PickleBuffer(bytearray())  # of memory that can be written, or it would be taken for bytes
        self._waiting[id(place)] = place, thing
        return place

    def reducer_override(self, obj: Any) -> Any:
        torch = sys.modules.get("torch")
        kinds = getattr(torch, "Tensor", ()), getattr(torch, "UntypedStorage", ()), getattr(torch, "TypedStorage", ())
        if torch is not None and all(kinds) and issubclass(type(obj), kinds):
            tensor, untyped, _ = kinds
            if type(obj) is untyped:
                return _as_it_is, (self._place(obj),)
            if not issubclass(type(obj), tensor):
                if not issubclass(type(obj), untyped):
                    return _typed_storage, (obj._untyped_storage, obj.dtype)
            elif _has_elements(obj):
                return self._reduce_tensor(obj)
            elif obj.is_quantized and obj.untyped_storage().nbytes() > _SPREAD_KEPT * obj.nbytes:
                return obj.clone().__reduce_ex__(5)
        if type(obj) is _lru_cache_wrapper and not _is_importable(obj):
            return _cached, (obj.__wrapped__, obj.cache_parameters())
        if issubclass(type(obj), types.ModuleType) and type(obj) is not types.ModuleType:
            return _reduce_module(obj) or super().reducer_override(obj)
        return super().reducer_override(obj)

    def _reduce_tensor(self, obj: "torch.Tensor") -> Any:
        import torch

        with torch._C.DisableTorchFunctionSubclass():
            plain = obj.detach().resolve_conj().resolve_neg()
            finish = _tensor, (self._place(plain), obj.requires_grad)
        state = torch._utils._get_obj_state(obj)  # type: ignore[no-untyped-call]
        if type(obj) is torch.Tensor and not state:
            return finish
        return torch._tensor._rebuild_from_type_v2, (finish[0], type(obj), finish[1], state)


def _is_inside(
    waiting: dict[int, tuple[pickle.PickleBuffer, Any]], given: list[Any], buffer: pickle.PickleBuffer
) -> bool:
    """Called as the pickle comes to a buffer: whether it is one of the value's own, NumPy's for example."""
    if id(buffer) not in waiting:
        return True
    given.append(waiting[id(buffer)][1])
    return False


def _has_elements(obj: "torch.Tensor") -> bool:
    """Whether it is a view of a storage and nothing else. Others (parameters, sparse, nested, quantised, on the meta
    device, of classes made of tensors) consist of such ones, or of storages, in torch's own pickles."""
    import torch

    kind = type(obj)
    return bool(
        kind.__reduce_ex__ is torch.Tensor.__reduce_ex__
        and kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__
        and obj.layout is torch.strided
        and obj.device.type != "meta"
        and not (obj.is_quantized or obj.is_nested)
        and not torch._C._functorch.is_functorch_wrapped_tensor(obj)
    )


def _reduce_module(module: types.ModuleType) -> Any:
    """For modules of classes of their own, which cloudpickle does not carry: ``torch.backends.cudnn`` is one."""
    is_there = sys.modules.get(module.__name__) is module
    return (importlib.import_module, (module.__name__,)) if is_there else None


def _is_importable(function: Any) -> bool:
    """Whether a cached function is found by its name: not where a notebook or a function made it, nor where its module
    was loaded again since, or travels by value."""
    name = function.__module__
    packages = accumulate(name.split("."), "{}.{}".format)
    if name == "__main__" or not cloudpickle.list_registry_pickle_by_value().isdisjoint(packages):
        return False
    try:
        return operator.attrgetter(function.__qualname__)(sys.modules[name]) is function
    except (AttributeError, KeyError):
        return False


# What the pickles call: their names must stay where they are.


def _cached(function: Any, parameters: dict[str, Any]) -> Any:
    """With an empty cache."""
    return lru_cache(**parameters)(function)


def _as_it_is(thing: Any) -> Any:
    return thing


def _tensor(plain: "torch.Tensor", requires_grad: bool) -> "torch.Tensor":
    return plain.requires_grad_() if requires_grad else plain


def _typed_storage(untyped: "torch.UntypedStorage", dtype: "torch.dtype") -> "torch.TypedStorage":
    import torch

    return torch.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]


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
