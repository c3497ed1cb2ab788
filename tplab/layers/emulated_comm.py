"""Collectives over emulated links, as layers use them."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from tplab.checks import check_one_of
from tplab.collectives.direct import direct_all_gather, direct_reduce_scatter
from tplab.collectives.emulated import ALGORITHMS, EmulatedGroup
from tplab.collectives.transport import Transport
from tplab.layers.comm import Pending


class _Queued:
    __slots__ = ("future", "target")

    def __init__(self, future: "Future[None]", target: torch.Tensor) -> None:
        self.future = future
        self.target = target

    def wait(self) -> torch.Tensor:
        self.future.result()
        return self.target


class EmulatedComm:
    """Collectives over emulated links, one after another on a thread of their own, as on a GPU's communication stream.

    Make one per :class:`~tplab.collectives.emulated.EmulatedGroup` and share it between all layers: two would mix
    their messages. All-reduce is a ring by default (``algorithm``: any of ``tplab.collectives.emulated.ALGORITHMS``);
    all-gather and reduce-scatter go by direct exchange.

    Not seen by ``CommCounter``, which counts the calling thread.
    """

    device_types = frozenset({"cpu"})
    is_capturable = False

    def __init__(self, group: EmulatedGroup, algorithm: str = "ring") -> None:
        if not isinstance(group, EmulatedGroup):
            raise ValueError(f"group must be an EmulatedGroup; got {group!r}")
        check_one_of("algorithm", algorithm, ALGORITHMS)
        self._emulated = group
        self._algorithm = algorithm
        self._queue = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tplab-emulated")
        self.index = group.index
        self.size = group.size

    @property
    def transport(self) -> Transport:
        # Its messages go from the calling thread, over the same links: not among those of a collective under way.
        self._queue.submit(lambda: None).result()
        return self._emulated

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return self.start_all_reduce(x).wait()

    def all_reduce_max(self, x: torch.Tensor) -> torch.Tensor:
        every = self.start_all_gather(x.reshape(1, -1)).wait()
        return x.copy_(every.amax(0).view_as(x))

    def start_all_reduce(self, x: torch.Tensor) -> Pending:
        return self._start(lambda: self._emulated.all_reduce(x, self._algorithm), x)

    def start_all_gather(self, x: torch.Tensor) -> Pending:
        out = x.new_empty((self.size * x.shape[0], *x.shape[1:]))
        return self._start(lambda: direct_all_gather(out, x, self._emulated), out)

    def start_reduce_scatter(self, x: torch.Tensor) -> Pending:
        out = x.new_empty((x.shape[0] // self.size, *x.shape[1:]))
        return self._start(lambda: direct_reduce_scatter(out, x, self._emulated), out)

    def _start(self, collective: Callable[[], None], target: torch.Tensor) -> Pending:
        inference = torch.is_inference_mode_enabled()  # modes belong to a thread

        def run() -> None:
            with torch.inference_mode(inference), torch.no_grad():
                collective()

        return _Queued(self._queue.submit(run), target)
