"""A second simulation, written apart from tplab's: ranks, links and mailboxes as objects, events in order of time.

It runs any table, right or wrong, and keeps what a run would keep: outputs, gradients, messages on links. So it also
says whether a table runs at all, which ``validate`` is held against.
"""

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import pytest

from tplab import Cluster
from tplab.pipeline import Action, Op, Schedule


class Broken(Exception):
    """The table does not run to its end, or not right."""


@dataclass
class Link:
    """Messages from one rank to another, first in, first out."""

    free_s: float = 0.0
    sent: list[Any] = field(default_factory=list)
    """What was sent, in order, and the action that did."""
    posted: list[Any] = field(default_factory=list)
    """What receives were posted for, in order."""
    matched: int = 0
    """How many of both have met."""


class World:
    """All ranks of a schedule, on one clock."""

    def __init__(
        self,
        schedule: Schedule,
        seconds: Callable[[Action], float],
        wire_s: Callable[[Action], float],
        hop_s: Callable[[int, int], float],
        *,
        overlap: bool,
        rendezvous: bool,
    ) -> None:
        self.schedule, self.seconds, self.wire_s, self.hop_s = schedule, seconds, wire_s, hop_s
        self.overlap, self.rendezvous = overlap, rendezvous
        self.written = any(not a.op.is_compute for _, _, a in schedule.actions())
        self.lists = [[a for a in row if a is not None] for row in schedule.ranks]
        self.at = [0] * len(self.lists)
        self.busy = [False] * len(self.lists)
        self.done: list[set[Any]] = [set() for _ in self.lists]  # computations, by rank
        self.mail: list[set[Any]] = [set() for _ in self.lists]  # data that arrived
        self.links: dict[Any, Link] = defaultdict(Link)
        self.events: list[Any] = []
        self.count = itertools.count()
        self.spans: dict[Action, tuple[float, float]] = {}
        self.now = 0.0
        self.ever_posted: list[set[Any]] = [set() for _ in self.lists]
        self.micro_batches = schedule.micro_batches
        self.last = schedule.num_stages * schedule.num_chunks - 1

    # What is needed and who gets it, in words of data: ("out", stage, mb) and ("grad", stage, mb).

    def home(self, stage: int) -> int:
        return stage % self.schedule.num_stages

    def needs(self, a: Action) -> Any:
        if a.op is Op.F:
            if a.stage:
                return ("out", a.stage - 1, a.micro_batch)
            token = self.micro_batches[a.micro_batch].token_from if self.micro_batches else None
            return None if token is None else ("out", self.last, token)
        if a.op in (Op.B, Op.I) and a.stage < self.last:
            return ("grad", a.stage + 1, a.micro_batch)
        return None

    def goes_to(self, what: Any) -> int | None:
        kind, stage, mb = what
        if kind == "grad":
            return self.home(stage - 1) if stage else None
        if stage < self.last:
            return self.home(stage + 1)
        takers = [i for i, other in enumerate(self.micro_batches) if other.token_from == mb]
        return self.home(0) if takers else None

    def later(self, delay: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + delay, next(self.count), do))

    def run(self) -> dict[Action, tuple[float, float]]:
        for rank in range(len(self.lists)):
            self.later(0.0, lambda rank=rank: self.step(rank))  # type: ignore[misc]
        while self.events:
            self.now, _, do = heapq.heappop(self.events)
            do()
        self.check_end()
        return self.spans

    def step(self, rank: int) -> None:
        """Start the next action of an idle rank, if it can start."""
        if self.busy[rank] or self.at[rank] == len(self.lists[rank]):
            return
        a = self.lists[rank][self.at[rank]]
        self.check_cell(rank, a)
        if a.op.is_compute:
            needed = self.needs(a)
            travels = needed is not None and self.written and self.home(needed[1]) != rank
            if travels and needed not in self.ever_posted[rank]:
                raise Broken(f"{a} runs before its receive")
            if needed is not None and needed not in self.mail[rank]:
                return
            self.check_own(rank, a)
            self.busy[rank] = True
            self.spans[a] = (self.now, self.now + self.seconds(a))
            self.later(self.seconds(a), lambda: self.computed(rank, a))
        elif a.op.is_recv:
            self.post(rank, a)
            self.finish(rank)
        else:
            what = ("out" if a.op is Op.SEND_F else "grad", a.stage, a.micro_batch)
            if ("F" if a.op is Op.SEND_F else "B", a.stage, a.micro_batch) not in self.done[rank]:
                raise Broken(f"{a} sends what is not there")
            to = self.goes_to(what)
            if to is None or to == rank:
                raise Broken(f"{a} has nobody to send to")
            self.busy[rank] = True
            link = self.links[rank, to]
            link.sent.append((what, a))
            if not self.rendezvous:
                self.put_on_wire(rank, to, what, a)
                if self.overlap:
                    self.finish(rank)
            self.match(rank, to)

    def post(self, rank: int, a: Action) -> None:
        needed = self.needs(Action(a.stage, Op.F if a.op is Op.RECV_F else Op.B, a.micro_batch))
        if needed is None or self.home(needed[1]) == rank:
            raise Broken(f"{a} has nobody to receive from")
        if needed in self.ever_posted[rank]:
            raise Broken(f"{a} a second time")
        self.ever_posted[rank].add(needed)
        self.links[self.home(needed[1]), rank].posted.append(needed)
        self.match(self.home(needed[1]), rank)

    def match(self, source: int, target: int) -> None:
        """Hold what has been sent against what has been asked for, in order."""
        link = self.links[source, target]
        while link.matched < min(len(link.sent), len(link.posted)):
            (what, a), wanted = link.sent[link.matched], link.posted[link.matched]
            if what != wanted:
                raise Broken(f"{what} sent where {wanted} is received")
            link.matched += 1
            if self.rendezvous:
                self.put_on_wire(source, target, what, a)
                if self.overlap:
                    self.finish(source)

    def put_on_wire(self, source: int, target: int, what: Any, a: Action) -> None:
        link = self.links[source, target]
        begins = max(self.now, link.free_s)
        link.free_s = begins + self.wire_s(a)
        arrives = link.free_s + self.hop_s(source, target)

        def arrived() -> None:
            self.mail[target].add(what)
            if not self.overlap:
                self.finish(source)
            self.step(target)

        heapq.heappush(self.events, (arrives, next(self.count), arrived))

    def finish(self, rank: int) -> None:
        self.busy[rank] = False
        self.at[rank] += 1
        self.later(0.0, lambda: self.step(rank))

    def computed(self, rank: int, a: Action) -> None:
        self.done[rank].add((a.op.value if a.op is not Op.I else "B", a.stage, a.micro_batch))
        if a.op is not Op.W:
            what = ("out" if a.op is Op.F else "grad", a.stage, a.micro_batch)
            to = self.goes_to(what)
            if to == rank:
                self.mail[rank].add(what)
            elif to is not None and not self.written:
                self.put_on_wire(rank, to, what, a)
                if not self.overlap:
                    return
        self.finish(rank)

    def check_cell(self, rank: int, a: Action) -> None:
        if not (0 <= a.stage <= self.last and 0 <= a.micro_batch < self.schedule.num_micro_batches):
            raise Broken(f"{a} does not exist")
        if self.home(a.stage) != rank:
            raise Broken(f"rank {rank} has no stage {a.stage}")

    def check_own(self, rank: int, a: Action) -> None:
        done, stage, mb = self.done[rank], a.stage, a.micro_batch
        name = a.op.value if a.op is not Op.I else "B"
        if (name, stage, mb) in done or a in self.spans:
            raise Broken(f"{a} a second time")
        if a.op in (Op.B, Op.I) and ("F", stage, mb) not in done:
            raise Broken(f"{a} without forward")
        if a.op is Op.W and Action(stage, Op.I, mb) not in self.spans:
            raise Broken(f"{a} without its I")
        if a.op is Op.F and self.micro_batches:
            prefix = self.micro_batches[mb].kv_from
            if prefix is not None and ("F", stage, prefix) not in done:
                raise Broken(f"{a} without its prefix")

    def check_end(self) -> None:
        if any(self.at[rank] < len(row) for rank, row in enumerate(self.lists)):
            raise Broken("deadlock")
        if any(len(link.sent) != len(link.posted) for link in self.links.values() if self.written):
            raise Broken("messages left over")
        train = any(a.op in (Op.B, Op.I, Op.W) for a in self.spans)
        for stage, mb in itertools.product(range(self.last + 1), range(self.schedule.num_micro_batches)):
            done = self.done[self.home(stage)]
            split = Action(stage, Op.I, mb) in self.spans
            for name in ("F", *(("B",) if train else ()), *(("W",) if split else ())):
                if (name, stage, mb) not in done:
                    raise Broken(f"{name} of stage {stage}, micro-batch {mb} never ran")


@pytest.fixture(scope="session")
def run_events() -> Callable[..., dict[Action, tuple[float, float]]]:
    """``run_events(schedule, seconds=, wire_s=, hop_s=, overlap=, rendezvous=)``: start and end of each computation.

    Raises the exception in its attribute ``Broken`` for a table that does not run.
    """

    def run(
        schedule: Schedule,
        *,
        seconds: Callable[[Action], float] = lambda a: 1.0,
        wire_s: Callable[[Action], float] = lambda a: 0.0,
        hop_s: Callable[[int, int], float] = lambda source, target: 0.0,
        overlap: bool = True,
        rendezvous: bool = False,
    ) -> dict[Action, tuple[float, float]]:
        return World(schedule, seconds, wire_s, hop_s, overlap=overlap, rendezvous=rendezvous).run()

    run.Broken = Broken  # type: ignore[attr-defined]
    return run


# Ranks, for the tests that run tables.


@pytest.fixture(scope="module", autouse=True)
def functions_travel_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture(scope="session")
def cluster_of(clusters: Any) -> Callable[[int], Cluster]:
    """``cluster_of(n)``: n warm ranks, for tests that leave them in step."""
    get: Callable[[int], Cluster] = clusters.__getitem__
    return get


@pytest.fixture(scope="session")
def fragile(no_ranks_left: None) -> Iterator[Cluster]:
    """Two ranks for tests that make them fail."""
    with Cluster(2, "gloo") as cluster:
        yield cluster
