"""Links that are declared: a latency and a bandwidth per direction and pair. Data only; ``emulated`` makes them felt.

A module of its own, because notebooks and panels declare links, and the notebook kernel does without torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tplab.checks import ArgumentError, check_number
from tplab.shown import counted, number


@dataclass(frozen=True, kw_only=True, slots=True)
class EmulatedLink:
    """One direction between two ranks: ``EmulatedLink(latency_us=100, bandwidth_GBps=1)``."""

    latency_us: float
    """Microseconds from the last byte leaving until it has arrived; paid by every message."""
    bandwidth_GBps: float
    """Bandwidth in one direction, in 1e9 bytes per second; ``float("inf")`` for a link of latency only."""

    def __post_init__(self) -> None:
        check_number("latency_us", self.latency_us, least=0)
        check_number("bandwidth_GBps", self.bandwidth_GBps, above=0, most=math.inf)

    @property
    def latency_ns(self) -> int:
        return round(self.latency_us * 1e3)

    def transmission_ns(self, num_bytes: int) -> int:
        """How long a message occupies the link."""
        return round(num_bytes / self.bandwidth_GBps)

    def message_us(self, num_bytes: int) -> float:
        """Microseconds from the send to the arrival of a message that is alone on the link."""
        return self.latency_us + num_bytes / self.bandwidth_GBps / 1e3

    def __str__(self) -> str:
        bandwidth = "no bandwidth limit" if math.isinf(self.bandwidth_GBps) else f"{number(self.bandwidth_GBps)} GB/s"
        return f"{number(self.latency_us)} us, {bandwidth}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkTable:
    """The link of every ordered pair of ranks."""

    default: EmulatedLink
    """The link of all pairs that are not named."""
    overrides: Mapping[tuple[int, int], EmulatedLink] = field(default_factory=dict)
    """``(source, destination)``, as indices in the group -> link. One direction each."""

    def __post_init__(self) -> None:
        for pair in self.overrides:
            if len(pair) != 2 or min(pair) < 0 or pair[0] == pair[1]:
                raise ValueError(f"overrides: a key is a pair of two different ranks (source, destination); got {pair}")

    def link(self, src: int, dst: int) -> EmulatedLink:
        """The link from ``src`` to ``dst``."""
        return self.overrides.get((src, dst), self.default)

    def __str__(self) -> str:
        count = len(self.overrides)
        return f"{self.default}, {counted(count, 'pair differs', 'pairs differ')}" if count else str(self.default)


def check_backend(link: "LinkTable | EmulatedLink | None", backend: str) -> None:
    """Raises ``ArgumentError`` for a declared link on another backend than gloo."""
    if link is not None and backend != "gloo":
        raise ArgumentError("backend", backend, "must be gloo for emulated links, as of Cluster(n, 'gloo')")
