"""The keys that ranks exchange to find each other, kept in the kernel and served over the sockets they have anyway.

Not torch's ``TCPStore``: it listens on a port and asks nobody who they are, so another user of the machine could read
where ranks listen, put an address of his own there, join a group, and send a pickle. Here nothing listens. And not a
file in a private folder: an agent on another host can pass these messages on, a file it could not.

``KeyValueStore`` is the kernel's side: no sockets, no clock. The rank's side is ``rank_store``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tplab.cluster.wire import StoreCall, StoreReply

Reply = tuple[int, StoreReply]
"""Which rank the reply is for, and the reply."""


@dataclass(slots=True)
class KeyValueStore:
    """Byte values under text keys. Calls that wait for keys are answered when the last of these is there.

    A waiting rank keeps its own time limit: a reply that comes too late is for it to drop.
    """

    values: dict[str, bytes] = field(default_factory=dict)
    _waiting: list[tuple[int, StoreCall]] = field(default_factory=list)

    def handle(self, rank: int, call: StoreCall) -> list[Reply]:
        """Carry out a call of ``rank``; returns the replies that are due now, its own or those that waited for it."""
        if call.waits and not self._complete(call):
            self._waiting.append((rank, call))
            return []
        replies = [self._reply(rank, call)]
        due = [entry for entry in self._waiting if self._complete(entry[1])] if self._waiting else []
        if due:
            self._waiting = [entry for entry in self._waiting if entry not in due]
            replies += [self._reply(*entry) for entry in due]
        return [(rank, reply) for rank, reply in replies if reply.call_id]

    def _complete(self, call: StoreCall) -> bool:
        return all(key in self.values for key in call.arguments[0])

    def _reply(self, rank: int, call: StoreCall) -> Reply:
        operation: Callable[..., Any] = getattr(self, f"_{call.operation}")
        try:
            return rank, StoreReply(call.call_id, operation(*call.arguments), "")
        except (TypeError, ValueError) as error:  # a number was asked for where there is none
            return rank, StoreReply(call.call_id, None, f"{call.operation} of {call.arguments!r} failed: {error}")

    def _wait(self, keys: list[str]) -> None:
        """All are there: see ``handle``."""

    def _get(self, keys: list[str]) -> list[bytes]:
        return [self.values[key] for key in keys]

    def _set(self, pairs: dict[str, bytes]) -> None:
        self.values.update(pairs)

    def _append(self, key: str, value: bytes) -> None:
        self.values[key] = self.values.get(key, b"") + value

    def _add(self, key: str, amount: int) -> int:
        number = int(self.values.get(key, b"0")) + amount
        self.values[key] = str(number).encode()
        return number

    def _compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        """Set ``key`` if it holds ``expected``; returns what it holds then. As in torch's own stores, the empty value
        is expected of a key that is absent, and an absent key of which something else is expected stays absent and
        returns ``expected``."""
        now = self.values.get(key)
        if now == expected or (now is None and not expected):
            self.values[key] = now = desired
        return expected if now is None else now

    def _check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def _delete_key(self, key: str) -> bool:
        return self.values.pop(key, None) is not None

    def _num_keys(self) -> int:
        return len(self.values)

    def _list_keys(self) -> list[str]:
        return list(self.values)
