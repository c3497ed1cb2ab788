"""cloudpickle, but for torch's tensors and storages, in whose places the pickle has nothing (see ``packing``).

Of its own module, since it needs cloudpickle when it loads, and the kernel that plans and predicts has none.
"""

import importlib
import operator
import pickle
import sys
import types
from functools import _lru_cache_wrapper, lru_cache, partial
from itertools import accumulate
from typing import IO, TYPE_CHECKING, Any

import cloudpickle

if TYPE_CHECKING:
    import torch


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is not typed
    """Leaves a place in the pickle for each tensor and storage; ``given`` is what belongs there, in order.

    A quantised tensor that spans more than ``spread_kept`` times its elements is compacted.
    """

    def __init__(self, file: IO[bytes], spread_kept: float) -> None:
        self._spread_kept = spread_kept
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
            elif obj.is_quantized and obj.untyped_storage().nbytes() > self._spread_kept * obj.nbytes:
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
