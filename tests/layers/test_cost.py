"""The model of overlap against a simulation that knows no formula, and the collectives of a block."""

import heapq
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tplab.collectives.volumes import sent_bytes
from tplab.layers.cost import STRATEGIES, Overlap, block_collectives, chunked_us, pipelined_us, wire_bytes

times = st.floats(0, 1e6)
pairs = st.lists(st.tuples(times, times), max_size=12)


def simulated(compute: list[float], comm: list[float]) -> float:
    """A processor and a channel, event by event: whatever is free takes the next that is ready."""
    events: list[tuple[float, int, str]] = []  # when, chunk, what has ended
    ready: list[int] = []
    now, processor, channel, to_compute = 0.0, True, True, 0
    while True:
        if processor and to_compute < len(compute):
            heapq.heappush(events, (now + compute[to_compute], to_compute, "compute"))
            processor, to_compute = False, to_compute + 1
        if channel and ready:
            chunk = ready.pop(0)
            heapq.heappush(events, (now + comm[chunk], chunk, "comm"))
            channel = False
        if not events:
            return now
        now, chunk, what = heapq.heappop(events)
        if what == "compute":
            processor = True
            ready.append(chunk)
        else:
            channel = True


@given(pairs)
@example([(0.0, 0.0)])
@example([(3.0, 1.0), (1.0, 5.0)])
def test_the_formula_is_what_a_simulation_gives(chunks: list[tuple[float, float]]) -> None:
    compute, comm = [c for c, _ in chunks], [m for _, m in chunks]
    assert pipelined_us(compute, comm) == pytest.approx(simulated(compute, comm))


@given(pairs)
def test_pipelined_lies_between_the_bound_and_one_after_the_other(chunks: list[tuple[float, float]]) -> None:
    compute, comm = [c for c, _ in chunks], [m for _, m in chunks]
    total = pipelined_us(compute, comm)
    assert total <= (sum(compute) + sum(comm)) * (1 + 1e-9)
    assert total >= max(sum(compute), sum(comm)) * (1 - 1e-9)
    if chunks:  # nothing hides the last chunk's communication, nor the first one's computation
        assert total >= (sum(compute) + comm[-1]) * (1 - 1e-9)
        assert total >= (compute[0] + sum(comm)) * (1 - 1e-9)


def test_one_piece_hides_nothing_and_many_free_ones_nearly_all() -> None:
    def total(k: int) -> float:
        return chunked_us(1000, k, lambda tokens: 2.0 * tokens, lambda tokens: 1.5 * tokens)

    assert total(1) == 3500
    assert [total(k) for k in (2, 4, 10)] == [2000 + 750, 2000 + 375, 2000 + 150]
    assert total(1000) == 2001.5


def test_a_latency_per_message_makes_too_many_chunks_worse() -> None:
    def total(k: int) -> float:
        return chunked_us(1024, k, lambda tokens: 1.0 * tokens, lambda tokens: 100 + 1.0 * tokens)

    best = min(range(1, 1025), key=total)
    assert 1 < best < 16
    assert total(1024) > total(1)


@given(st.integers(1, 300), st.data())
def test_chunks_are_of_all_tokens_as_torch_cuts_them(tokens: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, tokens))
    seen: list[int] = []

    def compute(part: int) -> float:
        seen.append(part)
        return float(part)

    assert chunked_us(tokens, k, compute, lambda _: 0.0) == tokens
    assert (len(seen), sum(seen)) == (k, tokens)
    assert max(seen) - min(seen) <= 1
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("k", [0, -1, 18])
def test_a_chunk_count_over_the_tokens_is_named(k: int) -> None:
    with pytest.raises(ValueError, match=r"num_chunks must be a whole number from 1 to 17; got (0|18|-1)"):
        chunked_us(17, k, float, float)


def test_lists_that_differ_in_length_are_named() -> None:
    with pytest.raises(ValueError, match="as long as each other; got 2, 1"):
        pipelined_us([1, 2], [1])


@given(times, times, st.floats(0, 1))
def test_between_bound_and_serial_all_time_is_accounted_for(compute: float, comm: float, share: float) -> None:
    bound, serial = max(compute, comm), compute + comm
    total = bound + share * (serial - bound)
    overlap = Overlap(compute_us=compute, comm_us=comm, total_us=total)
    assert overlap.bound_us == bound
    assert overlap.hideable_us == serial - bound or math.isclose(overlap.hideable_us, serial - bound, abs_tol=1e-6)
    assert -1e-6 <= overlap.hidden_us <= overlap.hideable_us + 1e-6
    assert overlap.exposed_us + overlap.hidden_us == pytest.approx(comm, abs=1e-6)
    if overlap.hideable_us > 1:
        assert overlap.hidden_share == pytest.approx(1 - share, abs=1e-6)
        assert overlap.overlap_ratio == pytest.approx(overlap.hidden_us / comm)


@given(times, times, times)
def test_no_measurement_gives_negative_times(compute: float, comm: float, total: float) -> None:
    overlap = Overlap(compute_us=compute, comm_us=comm, total_us=total)
    assert min(overlap.exposed_us, overlap.hidden_us, overlap.hidden_share, overlap.overlap_ratio) >= 0


def test_nothing_to_hide_is_no_share() -> None:
    assert Overlap(compute_us=5, comm_us=0, total_us=5).hidden_share == 0
    assert Overlap(compute_us=5, comm_us=0, total_us=5).overlap_ratio == 0


@given(st.integers(0, 500), st.integers(1, 64), st.sampled_from([1, 2, 4]), st.integers(2, 9))
def test_sequence_parallelism_pads_tokens_to_ranks(tokens: int, hidden: int, itemsize: int, n: int) -> None:
    plain = block_collectives(tokens=tokens, hidden=hidden, itemsize=itemsize, n=n)
    sharded = block_collectives(tokens=tokens, hidden=hidden, itemsize=itemsize, n=n, strategy="sequence parallel")
    assert [one.kind for one in sharded] == ["all-gather", "reduce-scatter"] * 2
    for one in sharded:
        padded, rest = divmod(one.payload_bytes, hidden * itemsize)
        assert rest == 0
        assert padded % n == 0
        assert tokens <= padded < tokens + n
    if tokens % n == 0:  # in a ring an all-reduce is a reduce-scatter and an all-gather
        assert sum(wire_bytes(one.kind, one.payload_bytes, n) for one in sharded) == pytest.approx(
            sum(wire_bytes(one.kind, one.payload_bytes, n) for one in plain)
        )


@pytest.mark.parametrize("strategy", ["chunked", "batch split"])
def test_parts_change_the_calls_and_not_the_bytes(strategy: str) -> None:
    sizes = {"tokens": 17, "hidden": 3, "itemsize": 2, "n": 3}
    for one in block_collectives(**sizes, strategy=strategy, parts=5):
        assert (one.kind, one.num_calls, one.payload_bytes) == ("all-reduce", 5, 17 * 3 * 2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_rank_communicates_nothing(strategy: str) -> None:
    assert block_collectives(tokens=5, hidden=4, itemsize=2, n=1, strategy=strategy) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "int8"}, "strategy must be one of blocking, chunked, batch split, sequence parallel; got 'int8'"),
        ({"tokens": -1}, "tokens must be a whole number of at least 0"),
        ({"hidden": 0}, "hidden must be a whole number of at least 1"),
        ({"itemsize": 0.5}, "itemsize must be a whole number"),
        ({"n": 0}, "n must be a whole number of at least 1"),
        ({"parts": 0}, "parts must be a whole number of at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        block_collectives(**{"tokens": 5, "hidden": 4, "itemsize": 2, "n": 2} | change)  # type: ignore[arg-type]


def test_wire_bytes_are_those_of_the_algorithm() -> None:
    assert wire_bytes("all-reduce", 1000, 4) == sent_bytes("all-reduce", "ring", 1000, 4).sent_mean
    assert wire_bytes("reduce-scatter", 1000, 4, "gloo") > wire_bytes("reduce-scatter", 1000, 4)
