"""One attempt to start the ranks: what they say of themselves on the way, and the keys through which they meet."""

import time
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tplab.cluster.store import KeyValueStore

_LINES_KEPT = 200
_ATTEMPTS = 4


class State(Enum):
    """What the ranks of a cluster are doing."""

    DOWN = "down"
    """No processes; the next run starts them."""
    STARTING = "starting"
    READY = "ready"
    RUNNING = "running"
    CLOSED = "closed"


@dataclass(slots=True)
class Launch:
    """One start of the ranks: the time from starting their processes until they are replaced."""

    number: int = 1
    """Which attempt this is, from 1: ranks are started again when another user came between them."""
    spoiled: str = ""
    """Why the attempt before was given up."""
    began: float = field(default_factory=time.monotonic)
    facts: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Rank -> what it said of itself when it became ready."""
    output: deque[str] = field(default_factory=lambda: deque(maxlen=_LINES_KEPT))
    """The last lines that ranks wrote outside of any run, each with its rank in front."""
    keys: KeyValueStore = field(default_factory=KeyValueStore)

    @property
    def is_last(self) -> bool:
        return self.number >= _ATTEMPTS

    def again(self, reason: str) -> "Launch":
        """The next attempt: fresh ranks have other ports."""
        return Launch(number=self.number + 1, spoiled=reason)

    def phases(self) -> dict[int, dict[str, float]]:
        """Rank -> phase -> seconds. The monotonic clock is one for all processes of a machine."""
        found: dict[int, dict[str, float]] = {}
        for rank, facts in sorted(self.facts.items()):
            before, found[rank] = self.began, {}
            for name, at in facts["phases"]:
                found[rank][name], before = at - before, at
        return found
