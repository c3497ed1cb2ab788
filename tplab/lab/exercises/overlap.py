"""Notebook 04: choose the chunk count by prediction, then measure."""

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tplab.cluster import Cluster
from tplab.lab.exercises.answers import as_count
from tplab.lab.exercises.trial import check_cluster, check_function
from tplab.lab.exercises.verdict import NotYetError, Verdict, checker, not_yet_for
from tplab.shown import counted

MOST_CHUNKS = 64
"""The largest chunk count that may be chosen."""
_REGRET = 0.10
"""Largest accepted regret: how much slower than the best count."""


class _Layer(NamedTuple):
    """The arguments of the learner's function."""

    compute_us: float
    comm_us: float
    start_us: float
    latency_us: float

    def total_us(self, num_chunks: int) -> float:
        """In equal chunks, by the notebook's model."""
        from tplab.layers.cost import pipelined_us

        share = 1 / num_chunks
        compute = self.start_us + (self.compute_us - self.start_us) * share
        comm = self.latency_us + (self.comm_us - self.latency_us) * share
        return pipelined_us([compute] * num_chunks, [comm] * num_chunks)


_CASES = (
    _Layer(30_000.0, 24_000.0, 200.0, 500.0),
    _Layer(2_000.0, 2_000.0, 20.0, 1_500.0),  # a link of long latency: one or two
    _Layer(5_000.0, 5_000.0, 1.0, 1.0),  # chunks cost nothing: many
    _Layer(100.0, 30.0, 40.0, 25.0),  # a decode step: leave it whole
    _Layer(40_000.0, 4_000.0, 3_000.0, 100.0),  # start-ups of the matmul
)


@checker("04-chunks")
def check_chunk_choice(cluster: Cluster, num_chunks: Callable[..., Any]) -> Verdict:
    """``num_chunks(compute_us, comm_us, start_us, latency_us)``: into how many chunks to cut a layer.

    The layer computes for ``compute_us`` and then communicates for ``comm_us``, in one piece; every chunk pays
    ``start_us`` of the one and ``latency_us`` of the other in full and its share of the rest. Asked about layers that
    the learner has not seen, before anything of them is measured: at most 10 % slower than the best count, by the
    model. Then the choice for a layer on the ranks, over an emulated link, is set beside what was measured there; that
    does not count, for other work on the machine disturbs it. 1 to 64 chunks.
    """
    check_cluster(cluster)
    check_function(num_chunks)
    for layer in (*_CASES, *_drawn(4)):
        described = (
            f"With a matmul of {layer.compute_us:,.0f} µs, an all-reduce of {layer.comm_us:,.0f} µs, a start-up of "
            f"{layer.start_us:,.0f} µs and a latency of {layer.latency_us:,.0f} µs"
        )
        chosen = _asked(num_chunks, layer, described)
        best = min(range(1, MOST_CHUNKS + 1), key=layer.total_us)
        regret = layer.total_us(chosen) / layer.total_us(best) - 1
        if regret > _REGRET:
            raise NotYetError(
                f"{described}, {counted(chosen, 'chunk')} take{'s' * (chosen == 1)} {layer.total_us(chosen):,.0f} µs, "
                f"the best ({best}) {layer.total_us(best):,.0f} µs: {regret:.0%} slower, at most {_REGRET:.0%} is "
                f"asked. "
                + (
                    "Every chunk pays the latency and the start-up once more."
                    if chosen > best
                    else "The last chunk's all-reduce has nothing left to hide behind, and it is large."
                )
            )
    measured = _measured(cluster, num_chunks)
    return Verdict(
        True, f"at most {_REGRET:.0%} slower than the best on {len(_CASES) + 4} layers, by the model. {measured}"
    )


def _asked(num_chunks: Callable[..., Any], layer: _Layer, described: str) -> int:
    try:
        got = num_chunks(*layer)
    except Exception as error:
        not_yet_for(error, num_chunks, described)
    count = as_count(got)
    if count is None or not 1 <= count <= MOST_CHUNKS:
        raise NotYetError(
            f"{described}: it must return a whole number of chunks, 1 to {MOST_CHUNKS}; it returned {got!r:.60}."
        )
    return count


def _drawn(count: int) -> Iterator[_Layer]:
    draw = random.Random()
    for _ in range(count):
        compute, comm = (10 ** draw.uniform(2, 5) for _ in range(2))
        yield _Layer(compute, comm, compute * 10 ** draw.uniform(-3, -0.5), comm * 10 ** draw.uniform(-3, -0.3))


def _measured(cluster: Cluster, num_chunks: Callable[..., Any]) -> str:
    """The choice for a real layer, made before it is measured in chunks, beside the measurement."""
    from dataclasses import replace

    from tplab.collectives.emulated_link import EmulatedLink
    from tplab.layers.overlap import ChunkPlan, measure_chunks

    if cluster.backend != "gloo":
        return "Links are emulated over gloo, so nothing was measured on these ranks."
    draw = random.Random()
    link = EmulatedLink(latency_us=draw.choice([100.0, 300.0, 1000.0]), bandwidth_GBps=draw.choice([0.05, 0.1]))
    plan = ChunkPlan(tokens=256, in_features=1024, out_features=512, chunks=(1,), link=link, iterations=3)
    whole = measure_chunks(cluster, plan).iloc[0]
    layer = _Layer(float(whole["compute_us"]), float(whole["comm_us"]), 0.0, link.latency_us)
    chosen = _asked(num_chunks, layer, "With the measured layer")
    counts = tuple(sorted({1, 2, 4, 8, 16, chosen}))
    times = measure_chunks(cluster, replace(plan, chunks=counts)).set_index("chunks")["total_us"]
    best = counts[int(times.to_numpy().argmin())]
    return (
        f"Measured here, over an emulated link of {link.latency_us:,.0f} µs and {link.bandwidth_GBps:g} GB/s: your "
        f"{counted(chosen, 'chunk')} {times[chosen] / 1e3:.1f} ms, the best ({best}) {times[best] / 1e3:.1f} ms."
    )
