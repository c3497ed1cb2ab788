"""The kernel's side of checkers: a learner's function on the ranks, within a time limit that is its own.

What is counted is counted whoever calls it: other threads, modes that were switched off, records that were wiped. An
answer runs in the same process as its counter, though, and who wants to can still get round it: by sending data through
the store, a file or a socket of its own, by resetting a process group's count, by reading the frames below its own, or
by changing torch itself, which lasts until the ranks are replaced. Grading starts fresh ranks for every answer.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tplab.checks import ArgumentError, check_number
from tplab.cluster import Cluster, ClusterError
from tplab.collectives.volumes import sent_bytes
from tplab.lab.exercises import on_ranks
from tplab.lab.exercises.verdict import NotYetError, not_yet_for

_OWN_S = 180.0
"""Limit on what is the checker's own: imports on a busy machine, drawing, comparing."""
_OWN_MODULES = ("torch.distributed", "torch.nn.functional", "tplab.collectives.counter")


class Call(NamedTuple):
    """A collective or a message that a rank issued."""

    kind: str
    """What it was, in the words of :class:`~tplab.collectives.CommRecord`: ``all-reduce``, ``send`` ..."""
    num_bytes: int
    """Bytes of the payload."""
    dtype: str
    """Type of the payload, such as ``float32``."""
    peer: int | None
    """The other rank of a ``send`` or ``recv``."""
    group_size: int
    """Ranks in its group."""
    op: str
    """Name of torch's operator."""

    @property
    def num_operations(self) -> int:
        """What the group counts it as: gloo makes two of a reduce-scatter of a list."""
        return 2 if self.op == "c10d::reduce_scatter_" else 1

    @property
    def wire_bytes(self) -> float:
        """What a rank sends for it, by a ring where it is a collective of all."""
        if self.kind in ("recv", "barrier"):
            return 0.0
        if self.kind in ("all-reduce", "all-gather", "reduce-scatter"):
            return sent_bytes(self.kind, "ring", self.num_bytes, self.group_size).sent_mean
        if self.kind in ("send", "broadcast", "reduce"):
            return float(self.num_bytes)
        return self.num_bytes * (self.group_size - 1) / self.group_size  # all-to-all, gather, scatter


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One rank's part in an attempt."""

    rank: int
    """Index of the rank."""
    value: Any
    """What the checker's ``judge`` returned on it."""
    calls: tuple[Call, ...]
    """What it communicated, in order."""
    metered: Any = None
    """What the trial's meter read on it."""

    def count(self, *kinds: str) -> int:
        """Calls of these kinds; of all without any."""
        return sum(not kinds or call.kind in kinds for call in self.calls)

    def num_bytes(self, *kinds: str) -> int:
        """Payload of the calls of these kinds; of all without any."""
        return sum(call.num_bytes for call in self.calls if not kinds or call.kind in kinds)


class Trial:
    """A learner's function, ready to be tried: the ranks are up, have imported what it takes, and are connected.

    Args:
        cluster: the ranks.
        function: the learner's; called as ``function(rank, *what prepare returned)``.
        timeout: seconds that one call of it may take.
        modules: further modules that ``prepare``, ``judge`` and ``meter`` import on the ranks.
        on_hang: where to look when a call does not end; follows what is known of it.
        meter: measures something besides communication, see :data:`~tplab.lab.exercises.on_ranks.Meter`.

    Raises:
        ArgumentError: no cluster, or nothing that can be called.
    """

    def __init__(
        self,
        cluster: Cluster,
        function: Callable[..., Any],
        *,
        timeout: float,
        modules: Sequence[str] = (),
        on_hang: str = "",
        meter: on_ranks.Meter | None = None,
    ) -> None:
        check_cluster(cluster)
        check_function(function)
        check_number("timeout", timeout, above=0)
        self.cluster, self.function, self._timeout = cluster, function, timeout
        self._on_hang, self._meter = on_hang, meter
        try:
            cluster.start()
            cluster.run(on_ranks.warm, function, (*_OWN_MODULES, *modules), meter, timeout=_OWN_S)
        except ClusterError as error:
            not_yet_for(error, function, "Before the first try")

    def run(
        self,
        prepare: Callable[..., tuple[Any, ...]],
        judge: Callable[..., Any],
        *case: Any,
        context: str = "",
        seed: int | None = None,
    ) -> list[Seen]:
        """One try on every rank.

        Args:
            prepare: ``prepare(rank, seed, *case)``, on every rank: the arguments of the learner's function after
                ``rank``. It must not leave on a rank what the function is not to see.
            judge: ``judge(rank, seed, got, *case)``, on every rank, after the function has returned on all: anything
                plain. The ranks may communicate in it.
            case: further arguments of both, the same on every rank.
            context: the input in words, for messages, such as ``With 7 elements``.
            seed: of the draw; another one each time without it.

        Raises:
            NotYetError: the function raised, hung, or hid what it communicated.
        """
        seed = secrets.randbits(62) if seed is None else seed
        self.cluster.run(on_ranks.prepare, prepare, seed, case, timeout=_OWN_S)
        run = self.cluster.submit(on_ranks.attempt, self.function, self._meter, timeout=self._timeout)
        try:
            ended = run.result()
        except KeyboardInterrupt:
            run.stop()
            raise
        except ClusterError as error:
            not_yet_for(error, self.function, context, on_hang=self._on_hang)
        calls: list[list[Call]] = [[] for _ in ended]
        for report in run.reports:
            if "call" in report.fields:
                calls[report.rank].append(Call(*report.fields["call"]))
        for rank, (made, _) in enumerate(ended):
            if made > sum(call.num_operations for call in calls[rank]):
                raise NotYetError(
                    f"{context + ': ' if context else ''}rank {rank} handed its process groups more operations, "
                    f"{made}, than could be counted, {len(calls[rank])}. Leave the counter and torch's modes alone."
                )
        values = self.cluster.run(on_ranks.judge, judge, seed, case, timeout=_OWN_S)
        return [
            Seen(rank=rank, value=value, calls=tuple(mine), metered=metered)
            for rank, (value, mine, (_, metered)) in enumerate(zip(values, calls, ended, strict=True))
        ]


def check_cluster(cluster: Any) -> None:
    """Raises ``ArgumentError`` for what is no cluster, a pool included."""
    if not isinstance(cluster, Cluster):
        way_out = "pass pool.cluster" if hasattr(cluster, "cluster") else "make one: Cluster(2)"
        raise ArgumentError("cluster", cluster, f"must be a tplab.Cluster: {way_out}")


def check_function(function: Any) -> None:
    """Raises ``ArgumentError`` for what cannot be called, such as what a function returned."""
    if not callable(function):
        raise ArgumentError("function", function, "must be your function itself, without parentheses behind it")
