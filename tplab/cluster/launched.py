"""The ranks that ``torchrun`` started, as a cluster that rank 0 uses: whatever measures on a ``Cluster`` does it here.

Rank 0 is a rank and the caller in one process: it hands the call to the others, runs it itself, and gathers values and
reports. The others only serve. Not every rank going through the same program: what it does next may depend on what one
has measured, on a file that only rank 0 reads, or on a disk that is full.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Self, TypeVar, cast

from tplab.checks import ArgumentError, check_count
from tplab.cluster import wire
from tplab.cluster.backends import RankDevices, describe_link
from tplab.cluster.cluster import Cluster, check_call
from tplab.cluster.errors import ClusterError
from tplab.cluster.launch import State
from tplab.cluster.own_thread import OwnThread
from tplab.cluster.packing import unpack
from tplab.cluster.provenance import Provenance
from tplab.cluster.run import Report, Run
from tplab.cluster.surroundings import Surroundings
from tplab.cluster.torchrun import Attached, attached

T = TypeVar("T")

_ALWAYS = timedelta(days=365)


@contextmanager
def launched(backend: str = "auto") -> "Iterator[Launched | None]":
    """On rank 0 a cluster of all ranks that ``torchrun`` started; on the others None, once rank 0 is done with it.

    ::

        with launched() as cluster:
            if cluster is not None:
                print(cluster.run(fn))

    Whatever fails on a rank, or on rank 0 between two runs, ends all ranks. Raises like ``torchrun.attached``.
    """
    with attached(backend) as ranks:
        served = _Served(ranks)
        if ranks.rank.index:
            served.serve()
            served.close()
            yield None
            return
        yield Launched(served, ranks.rank.world_size)
        served.hand_over(None)
        served.close()


class _Served:
    """One of the ranks, and how a call reaches it."""

    def __init__(self, ranks: Attached) -> None:
        import torch.distributed as dist
        from torch._C._distributed_c10d import PrefixStore

        from tplab.cluster.worlds import Worlds

        self.ranks = ranks
        # Of its own, over TCP: calls are not counted among a run's collectives, and a rank may wait long for the next.
        self._calls = dist.new_group(backend="gloo", timeout=_ALWAYS)
        self._worlds = Worlds(ranks.rank, PrefixStore("tplab", ranks.store), ranks.placement.backend, ranks.share)

    def serve(self) -> None:
        """Run what rank 0 hands over until that is nothing any more."""
        while (call := self.hand_over(None)) is not None:
            run_id, num_ranks, payload = call
            reports: list[bytes] = []
            value = None
            if self.ranks.rank.index < num_ranks:
                value = wire.pack_value(self.execute(run_id, num_ranks, payload, partial(_pack_report, reports)))
            self.gather((value, reports))

    def close(self) -> None:
        """No more calls; end the groups that fewer ranks made."""
        self._worlds.close()

    def hand_over(self, call: "tuple[int, int, bytes] | None") -> "tuple[int, int, bytes] | None":
        """Rank 0's call, on every rank."""
        import torch.distributed as dist

        box = [call]
        dist.broadcast_object_list(box, src=0, group=self._calls)
        return box[0]

    def execute(
        self, run_id: int, num_ranks: int, payload: bytes, send_report: Callable[[dict[str, Any]], None]
    ) -> Any:
        """Run the call among the first ``num_ranks``; what it returns."""
        import torch

        rank = self._worlds.enter(num_ranks, run_id)
        try:
            fn, args = unpack(payload)
            value = fn(rank.in_run(send_report), *args)
            if rank.device.type == "cuda":
                torch.cuda.synchronize(rank.device)  # what fails does so in the run that launched it
            return value
        finally:
            self._worlds.leave()
            self._worlds.enter(self.ranks.rank.world_size, run_id)

    def gather(self, mine: Any) -> list[Any]:
        """What every rank brings, on rank 0 in rank order; elsewhere nothing."""
        import torch.distributed as dist

        first = self.ranks.rank.index == 0
        gathered: list[Any] | None = [None] * self.ranks.rank.world_size if first else None
        dist.gather_object(mine, gathered, dst=0, group=self._calls)
        return gathered or []


def _pack_report(reports: list[bytes], fields: dict[str, Any]) -> None:
    reports.append(wire.pack_fields(fields))


class Launched(Cluster):
    """The first ``n`` of torchrun's ranks. Calls are made from rank 0's main thread, and have ended when ``submit``
    returns; the reports of other ranks arrive then. What ranks print goes where ``torchrun`` lets it."""

    def __init__(self, served: _Served, n: int) -> None:
        # Not the base class's: that one starts ranks.
        self._served = served
        self._n = n
        self._whole = self

    def submit(
        self,
        fn: Callable[..., T],
        *args: Any,
        timeout: float | None = 60.0,
        on_report: Callable[[Report], None] | None = None,
        on_output: Callable[[str], None] | None = None,
    ) -> Run[T]:
        """Run ``fn`` on the ranks, and return when all have. A fault, or ``timeout``, ends all ranks."""
        check_call(fn, timeout)
        run: Run[T] = Run(
            cast(OwnThread, None),  # asked only for a run that is not over
            lambda run: None,
            name=getattr(fn, "__name__", type(fn).__name__),
            num_ranks=self.num_ranks,
            payload=None,
            surroundings=Surroundings.now(),
            timeout=timeout,
            on_report=on_report,
            on_output=on_output,
        )
        payload = bytes(wire.pack_call(fn, args))
        watch = self._served.ranks.watch
        watch.limit(timeout, f"{run.name}()")
        run.set_running_or_notify_cancel()
        began = time.perf_counter()
        try:
            self._served.hand_over((run.id, self.num_ranks, payload))
            value = self._served.execute(
                run.id, self.num_ranks, payload, lambda fields: run.deliver_report(0, wire.pack_fields(fields))
            )
            gathered = self._served.gather(None)
        except BaseException as error:
            watch.fail(error, in_run=True)
        watch.limit(None)
        run.elapsed_s = time.perf_counter() - began
        values = [unpack(wire.pack_value(value))]
        for index, (packed, reports) in enumerate(gathered[1 : self.num_ranks], 1):
            values.append(unpack(packed))
            for report in reports:
                run.deliver_report(index, report)
        run.set_result(values)
        return run

    def resized(self, n: int) -> "Launched":
        """The first ``n`` of these ranks, as a cluster; the others idle meanwhile."""
        if check_count("n", n, least=1) > self.num_ranks:
            raise ArgumentError("n", n, f"must be at most the {self.num_ranks} ranks that torchrun started")
        made = Launched(self._served, n)
        made._whole = self._whole
        return made

    def start(self) -> Self:
        """The ranks run already."""
        return self

    def restart(self) -> Self:
        """Raises ``ClusterError``: only torchrun starts ranks."""
        raise ClusterError("torchrun started these ranks, and only it can start them again")

    def kill_rank(self, rank: int) -> None:
        """Raises ``ClusterError``: nobody would start another one."""
        raise ClusterError("torchrun started these ranks, and only it can start them again: none is killed")

    def watch(
        self, callback: Callable[[State], None], on_exit: Callable[[int, int | None], None] | None = None
    ) -> None:
        """Call ``callback`` with the only state that there is."""
        callback(self.state)

    def close(self) -> None:
        """Nothing to do: the ranks end with the block of ``launched``."""

    @property
    def whole(self) -> Cluster:
        return self._whole

    @property
    def _placement(self) -> RankDevices:
        return self._served.ranks.placement.first(self._n)

    @property
    def state(self) -> State:
        """They are ready whenever rank 0 can ask."""
        return State.READY

    @property
    def why_down(self) -> str:
        """They are never down."""
        return ""

    @property
    def pids(self) -> tuple[int, ...]:
        """They are not this process's to end."""
        return ()

    @property
    def launches(self) -> list[dict[int, dict[str, float]]]:
        """torchrun's starts are not timed."""
        return []

    @property
    def provenance(self) -> Provenance:
        """The origin of what is measured on these ranks."""
        return replace(
            self._served.ranks.provenance,
            num_ranks=self.num_ranks,
            num_devices=self._placement.num_devices,
            num_hosts=self._placement.num_hosts,
            link=describe_link(self._placement),
        )

    def __repr__(self) -> str:
        return f"<{self.num_ranks} {self.backend} ranks that torchrun started>"
