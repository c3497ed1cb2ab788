"""A pipeline that decodes: how long a round takes, and how full it is. Pure.

In a *round* every running sequence gets one token. The batch is cut into k micro-batches that follow one another over p
stages; the next token of a sequence cannot start before its last one has come back to the first stage. So

    round = max(Σ stages + p·hop,  k·slowest stage,  k·host)

The first is one micro-batch's own trip; if it is the larger, the stages wait for each other (the pipe is not full). Not
"p times the throughput": at concurrency 1 that is 144 to 645 % too much (AIConfigurator's pull request 1459, PP 2-8),
because with k = 1 the stages take turns. And weights are streamed once per micro-batch, not once per batch.

Letters: p stages, k micro-batches in flight, C requests in flight.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def micro_batches(stages: ArrayLike, running: ArrayLike, engine: ArrayLike | None = None) -> Floats:
    """k = min(p, C, what the engine keeps in flight), at least 1; an average, so not always whole.

    ``engine`` None: as many as there are stages.
    """
    most = np.asarray(stages, dtype=np.float64)
    if engine is not None:
        most = np.minimum(most, engine)
    return np.asarray(np.maximum(1.0, np.minimum(most, np.floor(running))), dtype=np.float64)


def round_us(
    all_stages_us: ArrayLike, slowest_us: ArrayLike, hops_us: ArrayLike, k: ArrayLike, host_us: ArrayLike = 0.0
) -> Floats:
    """Time until every micro-batch has been through all stages once.

    Args:
        all_stages_us: Σ over stages of one micro-batch's time, with what the host adds to a step.
        slowest_us: of the slowest stage.
        hops_us: all p hand-overs, the tokens' way back to the first stage included.
        k: micro-batches.
        host_us: what one host must do for every micro-batch, one after another.
    """
    k = np.asarray(k, dtype=np.float64)
    trip = np.asarray(all_stages_us, dtype=np.float64) + np.asarray(hops_us, dtype=np.float64)
    busy = k * np.maximum(np.asarray(slowest_us, dtype=np.float64), np.asarray(host_us, dtype=np.float64))
    return np.asarray(np.maximum(trip, busy), dtype=np.float64)


def full_from(all_stages_us: float, slowest_us: float, hops_us: float) -> int:
    """The least k that keeps the slowest stage busy all the time: p or more, since hops must be hidden too."""
    return int(np.ceil((all_stages_us + hops_us) / slowest_us - 1e-9))


def prefill_share(stages: ArrayLike, k: ArrayLike, prefills: ArrayLike) -> Floats:
    """How much of a prompt's time over all stages a token of another request waits for it, on average.

    Where every micro-batch carries one (``prefills`` per round, k or more), k of them go through side by side: 1/k.
    Where few do, what follows waits behind it at one stage, 1/p, and those in the same micro-batch, one in k, for the
    whole trip. 1 without a pipeline, and with one micro-batch, for then the stages take turns.
    """
    p, k = np.asarray(stages, dtype=np.float64), np.asarray(k, dtype=np.float64)
    carrying = np.minimum(1.0, np.asarray(prefills, dtype=np.float64) / k)
    alone = 1 / p + (1 - 1 / p) / k
    return np.asarray(carrying / k + (1 - carrying) * alone, dtype=np.float64)


def prefill_us(all_stages_us: ArrayLike, stages: ArrayLike, chunks: ArrayLike, hops_us: ArrayLike) -> Floats:
    """A prompt in ``chunks`` equal chunks: they follow each other over the stages, and only the first pays the trip.

    ``Σ/c + (c-1)·Σ/(c·p) + hops``, with Σ its time over all stages. Known to be too fast for many chunks: later ones
    look back at more tokens.
    """
    total, c = np.asarray(all_stages_us, dtype=np.float64), np.asarray(chunks, dtype=np.float64)
    p, hops = np.asarray(stages, dtype=np.float64), np.asarray(hops_us, dtype=np.float64)
    return np.asarray(total / c * (1 + (c - 1) / p) + hops, dtype=np.float64)
