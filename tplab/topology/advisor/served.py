"""What serving a workload in many layouts comes to, and the terms of its times: a column per layout."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
TERMS = (
    "weights",
    "lm_head",
    "kv_cache",
    "activations",
    "kernels",
    "all_reduce",
    "hops",
    "host",
    "launch",
    "drafts",
    "prefill",
    "bubble",
)
"""Terms of the time per token: the blocks' matmuls, the last one, reading the cache, reading and writing activations,
starting and draining kernels, tensor-parallel communication, pipeline communication, the engine's own work, launches
without CUDA graphs, guessing tokens (speculative decoding), the prompts of others in between, stages waiting for the
slowest one."""
TERM_NAMES = {
    "lm_head": "the output head",
    "kv_cache": "KV cache",
    "kernels": "kernel start-up",
    "all_reduce": "all-reduces",
    "hops": "pipeline hops",
    "host": "engine overhead",
    "prefill": "other requests' prefill",
    "bubble": "waiting stages",
}
"""What people call the terms that are not called so already."""
TTFT_TERMS = (
    "queue",
    "prompts ahead",
    "step under way",
    "weights",
    "attention",
    "activations",
    "kernels",
    "lm_head",
    "all_reduce",
    "hops",
    "host",
    "launch",
)
"""Terms of the time to the first token: waiting for capacity in the cache or for admission, for prompts that came at
the same time, for the step that is running and for what else is in the own prompt's steps; from ``weights`` on, the
request's own prompt as if it were alone, launches without CUDA graphs included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What came out, arrays of N (or of loads x N)."""

    tpot_us: Floats
    ttft_us: Floats
    queue_us: Floats
    """Part of ``ttft_us`` spent waiting for capacity in the cache or for admission."""
    prefill_us: Floats
    """Part of ``ttft_us`` spent on the request's own prompt."""
    requests_per_s: Floats
    """Requests per second over all replicas."""
    running: Floats
    """Requests per replica that are admitted and that the cache has capacity for."""
    admitted: Floats
    """How many of them may run at once, so that the limit on the time per token is kept; inf where nothing is capped:
    without a limit, where all keep it, where no number does, and where the others would wait past the limit on the
    first token for it, by more."""
    decoding: Floats
    """Mean number of running requests in the decode phase."""
    micro_batches: Floats
    e2e_us: Floats
    """Mean time of a whole request, queueing included."""
    terms: dict[str, Floats]
    """Name of ``TERMS`` -> us; they add up to ``tpot_us``."""
    ttft_terms: dict[str, Floats]
    """Name of ``TTFT_TERMS`` -> us; they add up to ``ttft_us``."""
    most_per_s: Floats | None = None
    """Requests per second that the layout can serve at most, infinite where that is more than the rate that was asked
    for; None where the workload gives a concurrency."""


def either(first: "NDArray[np.bool_]", one: Served, other: Served) -> Served:
    """``one`` where ``first`` says so, elsewhere the ``other``."""

    def of(a: Any, b: Any) -> Any:
        return {key: of(a[key], b[key]) for key in a} if isinstance(a, dict) else np.where(first, a, b)

    values = {
        f.name: of(getattr(one, f.name), getattr(other, f.name)) for f in fields(Served) if f.name != "most_per_s"
    }
    return Served(**values)
