"""One attempt to start the ranks: what they say of themselves on the way, and the keys through which they meet."""

import os
import time
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from tplab.cluster import wire
from tplab.cluster.sources import Versions
from tplab.cluster.store import KeyValueStore
from tplab.cluster.surroundings import describe_changes

if TYPE_CHECKING:
    from tplab.cluster.run import Run

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
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    """The kernel's, when the ranks were started."""
    said: set[str] = field(default_factory=set)
    """Keys of the notices that runs on these ranks have given."""
    told: dict[int, Versions] = field(default_factory=dict)
    """Rank -> what it was last told of the kernel's modules."""

    def call(self, run: "Run[Any]") -> wire.Call:
        """What the ranks are sent for a run, which gives its payload away."""
        around, ranks = run.surroundings, range(run.num_ranks)
        news = None if all(self.told.get(rank) is around.modules for rank in ranks) else around.modules
        self.told |= dict.fromkeys(ranks, around.modules)
        assert run.payload is not None
        payload, run.payload = wire.bulk(run.payload), b""  # a handle that is kept must not keep it, too
        return wire.Call(run.id, run.num_ranks, payload, around.sys_path, around.folder, news)

    def say(self, run: "Run[Any]", key: str, text: str) -> None:
        """Print a notice under the run's cell, unless a run on these ranks has given it before."""
        if key not in self.said:
            self.said.add(key)
            run.say(f"tplab: {text}")

    def say_changes(self, run: "Run[Any]") -> None:
        """Say which variables of the environment the ranks do not have as the kernel has them."""
        key, text = describe_changes(self.environment, run.surroundings.environment)
        if text:
            self.say(run, key, text)

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
