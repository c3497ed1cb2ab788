"""A call captured in a CUDA graph: launched as one, without the host's share of each kernel. Runs on the ranks."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def capture(call: Callable[[], T], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, T]:
    """The graph of a call, not yet run, and what the call returned: memory that each replay writes.

    The call must have run before: libraries choose their algorithms and take their memory in the first one, and NCCL
    sets up its channels. Not by ``torch.cuda.graph``: that waits for the whole device, where messages to ranks that are
    themselves waiting may be under way.

    Args:
        pool: of ``torch.cuda.graph_pool_handle()``, for graphs that may share memory.
    """
    graph = torch.cuda.CUDAGraph()
    side, current = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.stream(side):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            result = call()
        except BaseException:
            with suppress(RuntimeError):  # of a capture that failed: the call's own error says more
                graph.capture_end()  # or else the rank could run nothing any more
            raise
        graph.capture_end()
    current.wait_stream(side)
    return graph, result


def replayed(call: Callable[[], Any]) -> Callable[[], None]:
    """The call as a replay of its graph, after a first run of it that is not captured."""
    call()
    torch.cuda.synchronize()
    graph, _ = capture(call)
    return graph.replay
