"""The rank's side of checkers: the learner's function between what prepares its input and what judges its result.

Three runs, so that nothing lies on a rank that the function must not see: the first draws the input from a secret seed
and keeps what is this rank's; the second calls the function; the third is told the seed once more, and compares. What
the function communicates goes to the kernel call by call, where it cannot be taken back.

Imports neither panels nor figures: ranks load this module.
"""

import importlib.util
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

from tplab.cluster import Rank

KEY = "tplab exercise"
"""Where in ``rank.store`` the input and the result wait for the next run."""
Meter: TypeAlias = Callable[[], AbstractContextManager[Callable[[], Any]]]
"""Measures something else while the function runs: entered around it, it gives what reads the measurement."""


def warm(rank: Rank, function: Callable[..., Any], modules: Sequence[str], meter: "Meter | None") -> None:
    """All that is slow the first time: imports, also those that ``function`` needed to come here, connections, and what
    torch only imports when an operator runs under a counter."""
    import torch
    import torch.distributed as dist
    from torch.nn import functional as F

    for name in modules:
        importlib.import_module(name)
    x = torch.zeros(1, 1, 2, 2, device=rank.device)
    with _counted(lambda **_: None), meter() if meter else nullcontext():
        dist.all_reduce(F.silu(F.scaled_dot_product_attention(x, x @ x, x, is_causal=True)), group=rank.group)


def prepare(rank: Rank, make: Callable[..., tuple[Any, ...]], seed: int, case: tuple[Any, ...]) -> None:
    """Keep ``make(rank, seed, *case)``: what the function is called with."""
    rank.store[KEY] = make(rank, seed, *case)


def attempt(rank: Rank, function: Callable[..., Any], meter: "Meter | None") -> tuple[int, Any]:
    """Call the function, report what it communicates, keep what it returns. Returns the operations that its process
    groups were handed, and what ``meter`` read."""
    given = rank.store.pop(KEY)
    before = _operations()
    with _counted(rank.report), meter() if meter else nullcontext() as read:
        got = function(rank, *given)
    rank.store[KEY] = (got,)
    return _operations() - before, read() if read else None


def judge(rank: Rank, look: Callable[..., Any], seed: int, case: tuple[Any, ...]) -> Any:
    """``look(rank, seed, got, *case)`` of what the function returned."""
    (got,) = rank.store.pop(KEY)
    return look(rank, seed, got, *case)


def described(value: Any) -> str:
    """A value that is no tensor of the shape asked for, in a few words."""
    import torch

    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {str(value.dtype).removeprefix('torch.')}"
    return "None" if value is None else f"{value!r:.60} ({type(value).__name__})"


def as_tensor(value: Any) -> Any:
    """A tensor out of what people return in the place of one: a NumPy array, a list, a tuple of one; else as it is."""
    import torch

    if isinstance(value, tuple) and len(value) == 1:
        return as_tensor(value[0])
    if isinstance(value, torch.Tensor) or value is None or isinstance(value, str | bytes | bool):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return value


class _Sent(list[Any]):
    """Records that are reported when they are made."""

    def __init__(self, report: Callable[..., None]) -> None:
        super().__init__()
        self._report = report

    def __iadd__(self, records: Any) -> "_Sent":  # type: ignore[misc]  # lists say the same of their own
        for record in records:
            dtype = str(record.dtype).removeprefix("torch.")
            self._report(call=(record.kind, record.num_bytes, dtype, record.peer, record.group_size, record.op))
        return self


@contextmanager
def _counted(report: Callable[..., None]) -> Iterator[None]:
    """Count on this thread and on those that are started meanwhile, with a counter of its own: a copy of the module
    that nothing else has seen, so that what an earlier answer did to ``CommCounter`` does not matter."""
    spec = importlib.util.find_spec("tplab.collectives.counter")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def counter() -> Any:
        made = module.CommCounter()
        made.records = _Sent(report)
        return made

    begin = threading.Thread._bootstrap_inner  # type: ignore[attr-defined]

    def begin_counted(thread: threading.Thread) -> None:
        with counter():
            begin(thread)

    threading.Thread._bootstrap_inner = begin_counted  # type: ignore[attr-defined]
    try:
        with counter():
            yield
    finally:
        threading.Thread._bootstrap_inner = begin  # type: ignore[attr-defined]


def _operations() -> int:
    """What all process groups of this rank were handed so far, by their own count: gloo's collectives and messages,
    NCCL's collectives. Asked of the groups themselves, which also know of calls that no Python code saw."""
    from torch.distributed import distributed_c10d

    total = 0
    for group in [
        *distributed_c10d._world.pg_names.keys()
    ]:  # the length of the dict itself is no length in resized worlds
        number = getattr(group, "_get_sequence_number_for_group", None)
        total += number() if number else 0
    return total
