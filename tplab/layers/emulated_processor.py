"""A processor that is emulated: products take as long as on one of so many operations a second.

A mode of torch's dispatcher, so that a learner writes ``F.linear`` and nothing else. The processor's clock goes on
while the host does something else than wait, as a GPU's does, whose work is queued: what a product overslept, and what
the system took from the process before the next one, is taken off that one. Rank side: imports torch.
"""

import time
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tplab.collectives.emulated import sleep_until

_MOST_NS = 30_000_000
"""What is made up for before one product; a process of a busy machine waits so long for its turn, not longer."""


class Processor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside ``with Processor(...)``, on this thread: products of matrices return when they would be done.

    Args:
        start_ms: what each takes however small it is.
        whole_ms, whole_flops: so many operations in one product take so long besides.
        waited_ns: how long the process has waited so far for others, which the processor cannot make up for.
    """

    def __init__(
        self, start_ms: float, whole_ms: float, whole_flops: int, waited_ns: Callable[[], int] = lambda: 0
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._start_ns = start_ms * 1e6
        self._ns_per_flop = whole_ms * 1e6 / whole_flops
        self._waited_ns = waited_ns
        self._due_ns, self._ended_ns, self._waited_before_ns = 0, 0, 0
        self.flops = 0
        """Operations so far."""
        self.products: list[tuple[float, float]] = []
        """When each began and ended, in milliseconds of the monotonic clock."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        began_ns = time.monotonic_ns()
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(getattr(func, "_overloadpacket", None))
        if count is not None:
            flops = count(*args, **(kwargs or {}), out_val=out)
            takes_ns = self._start_ns + flops * self._ns_per_flop
            self._due_ns = round(began_ns - self._late_ns(began_ns) + takes_ns)
            sleep_until(self._due_ns)
            self._ended_ns = time.monotonic_ns()
            self._waited_before_ns = self._waited_ns()
            self.flops += flops
            self.products.append((began_ns / 1e6, self._ended_ns / 1e6))
        return out

    def _late_ns(self, began_ns: int) -> int:
        """Since the last product was due, less what was waited for in between, but at least what was overslept."""
        if not self.products:
            return 0
        waited_ns = self._waited_ns() - self._waited_before_ns
        gone_ns = min(began_ns - self._due_ns - waited_ns, _MOST_NS)
        return max(gone_ns, self._ended_ns - self._due_ns)
