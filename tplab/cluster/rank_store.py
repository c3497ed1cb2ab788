"""The rank's side of the store: what torch calls when it makes a process group, as messages to the kernel.

Imported on ranks only, because it needs torch.
"""

import itertools
import queue
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from tplab.cluster.wire import StoreCall, StoreReply

_SHORTEST_S = 0.05  # a wait of no time at all still asks the kernel


class KernelStore(dist.Store):  # type: ignore[misc,name-defined]  # torch's stubs do not have it
    """A ``torch.distributed.Store`` whose keys are in the kernel (see ``store``).

    torch calls it from its own threads, too. Calls that bring nothing back are not waited for: the socket keeps their
    order.
    """

    def __init__(self, send: Callable[[StoreCall], None], timeout: timedelta) -> None:
        super().__init__()
        self._send = send
        self._timeout = timeout
        self._call_ids = itertools.count(1)
        self._replies: dict[int, queue.SimpleQueue[StoreReply]] = {}

    def deliver(self, reply: StoreReply) -> None:
        """Called by the thread that reads the socket; nobody waits any more for a reply that comes too late."""
        waiting = self._replies.get(reply.call_id)
        if waiting is not None:
            waiting.put(reply)

    def _ask(self, operation: str, *arguments: Any, waits: bool = False, limit: timedelta | None = None) -> Any:
        """``limit``: on the wait for the reply; None: none."""
        call = StoreCall(next(self._call_ids), operation, arguments, waits)
        replies = self._replies[call.call_id] = queue.SimpleQueue()
        try:
            self._send(call)
            reply = replies.get(timeout=None if limit is None else max(limit.total_seconds(), _SHORTEST_S))
        except queue.Empty:
            assert limit is not None
            keys = f" for {', '.join(arguments[0])}" if waits else ""
            seconds = limit.total_seconds()
            raise dist.DistStoreError(f"waited {seconds:g} s{keys}: not every rank has come this far") from None
        finally:
            del self._replies[call.call_id]
        if reply.error:
            raise dist.DistStoreError(reply.error)
        return reply.value

    def _tell(self, operation: str, *arguments: Any) -> None:
        self._send(StoreCall(0, operation, arguments, waits=False))

    @property
    def timeout(self) -> timedelta:
        """How long ``get`` and ``wait`` wait for a key."""
        return self._timeout

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout = timeout

    def set(self, key: str, value: str | bytes) -> None:
        self._tell("set", {key: _as_bytes(value)})

    def multi_set(self, keys: list[str], values: list[str | bytes]) -> None:
        self._tell("set", dict(zip(keys, map(_as_bytes, values), strict=True)))

    def append(self, key: str, value: str | bytes) -> None:
        self._tell("append", key, _as_bytes(value))

    def get(self, key: str) -> bytes:
        return self.multi_get([key])[0]

    def multi_get(self, keys: list[str]) -> list[bytes]:
        values: list[bytes] = self._ask("get", list(keys), waits=True, limit=self._timeout)
        return values

    def get_all(self, keys: list[str]) -> list[bytes]:
        """Like ``multi_get``, but without a time limit: a run has one of its own, and can be stopped."""
        values: list[bytes] = self._ask("get", list(keys), waits=True)
        return values

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        self._ask("wait", list(keys), waits=True, limit=self._timeout if timeout is None else timeout)

    def add(self, key: str, amount: int) -> int:
        return int(self._ask("add", key, amount, limit=self._timeout))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        value: bytes = self._ask("compare_set", key, _as_bytes(expected), _as_bytes(desired), limit=self._timeout)
        return value

    def check(self, keys: list[str]) -> bool:
        return bool(self._ask("check", list(keys), limit=self._timeout))

    def delete_key(self, key: str) -> bool:
        return bool(self._ask("delete_key", key, limit=self._timeout))

    def num_keys(self) -> int:
        return int(self._ask("num_keys", limit=self._timeout))

    def list_keys(self) -> list[str]:
        keys: list[str] = self._ask("list_keys", limit=self._timeout)
        return keys

    def has_extended_api(self) -> bool:
        """append, multi_get and multi_set."""
        return True

    def clone(self) -> "KernelStore":
        """The same store: any thread may use it."""
        return self

    # The names by which torch's C++ side looks these two up.
    getNumKeys = num_keys
    deleteKey = delete_key


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
