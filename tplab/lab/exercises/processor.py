"""A processor that is emulated: products take as long as on one of so many operations a second.

A mode of torch's dispatcher, so that a learner writes ``F.linear`` and nothing else. Rank side: imports torch.
"""

import time
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tplab.collectives.emulated import sleep_until


class Processor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside ``with Processor(...)``, on this thread: products of matrices return when they would be done.

    Args:
        start_ms: what each takes however small it is.
        whole_ms, whole_flops: so many operations in one product take so long besides.
    """

    def __init__(self, start_ms: float, whole_ms: float, whole_flops: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._start_ns = start_ms * 1e6
        self._ns_per_flop = whole_ms * 1e6 / whole_flops
        self._overslept_ns = 0.0
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
            due_ns = round(began_ns + self._start_ns + flops * self._ns_per_flop - self._overslept_ns)
            sleep_until(due_ns)
            ended_ns = time.monotonic_ns()
            self._overslept_ns = ended_ns - due_ns
            self.flops += flops
            self.products.append((began_ns / 1e6, ended_ns / 1e6))
        return out
