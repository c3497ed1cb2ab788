"""Timelines: spans cut into computation, hidden and exposed communication; and one pass as it ran."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tplab import Cluster
from tplab.collectives.emulated_link import EmulatedLink
from tplab.layers.mistakes import WaitsAtOnce
from tplab.layers.overlap import StackPlan, measure_strategies
from tplab.layers.strategies import BatchSplit, Blocking, Chunked, Int8, SequenceParallel
from tplab.layers.timeline import overlap_ratio, record_timeline, split_spans

COMPUTE, HIDDEN, EXPOSED = "computation", "hidden communication", "exposed communication"


def wait(start: float, end: float) -> tuple[str, str, float, float]:
    return "collective", "down", start, end


def talk(start: float, end: float, name: str = "down") -> tuple[str, str, float, float]:
    return "in flight", name, start, end


@pytest.mark.parametrize(
    ("spans", "pieces"),
    [
        ([], [(COMPUTE, "", 0, 10)]),
        ([talk(2, 5)], [(COMPUTE, "", 0, 10), (HIDDEN, "down", 2, 5)]),
        ([talk(2, 5), wait(2, 5)], [(COMPUTE, "", 0, 2), (COMPUTE, "", 5, 10), (EXPOSED, "down", 2, 5)]),
        (  # waited for from the middle on
            [talk(2, 6), wait(4, 6)],
            [(COMPUTE, "", 0, 4), (COMPUTE, "", 6, 10), (HIDDEN, "down", 2, 4), (EXPOSED, "down", 4, 6)],
        ),
        (  # still running after the wait for another has ended
            [talk(1, 3, "a"), wait(2, 3), talk(3, 7, "b"), wait(5, 7)],
            [
                *((COMPUTE, "", 0, 2), (COMPUTE, "", 3, 5), (COMPUTE, "", 7, 10)),
                *((HIDDEN, "a", 1, 2), (EXPOSED, "a", 2, 3), (HIDDEN, "b", 3, 5), (EXPOSED, "b", 5, 7)),
            ],
        ),
        (  # two waits within one collective, and computation between them
            [talk(0, 9), wait(1, 2), wait(4, 5)],
            [
                *((COMPUTE, "", 0, 1), (COMPUTE, "", 2, 4), (COMPUTE, "", 5, 10)),
                *((HIDDEN, "down", 0, 1), (EXPOSED, "down", 1, 2), (HIDDEN, "down", 2, 4), (EXPOSED, "down", 4, 5)),
                (HIDDEN, "down", 5, 9),
            ],
        ),
        ([wait(0, 10), talk(0, 10)], [(EXPOSED, "down", 0, 10)]),
        ([wait(3, 3)], [(COMPUTE, "", 0, 3), (COMPUTE, "", 3, 10)]),
    ],
)
def test_spans_are_cut_where_waiting_begins_and_ends(spans: list[Any], pieces: list[Any]) -> None:
    assert split_spans(spans, 0, 10) == pieces


def in_order(numbers: list[int]) -> list[tuple[float, float]]:
    """Spans that follow one another."""
    cuts = sorted(numbers)
    return [(float(a), float(b)) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]


numbers = st.lists(st.integers(0, 100), max_size=16)


def length(pieces: list[tuple[float, float]]) -> float:
    return sum(end - start for start, end in pieces)


def common(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> float:
    return sum(max(0.0, min(e, f) - max(s, t)) for s, e in a for t, f in b)


@given(numbers, numbers)
def test_nothing_is_lost_or_counted_twice(waiting: list[int], talking: list[int]) -> None:
    waits, talks = in_order(waiting), in_order(talking)
    pieces = split_spans([wait(*w) for w in waits] + [talk(*t) for t in talks], 0.0, 100.0)
    of = {kind: [(s, e) for k, _, s, e in pieces if k == kind] for kind in (COMPUTE, HIDDEN, EXPOSED)}
    assert length(of[COMPUTE]) + length(waits) == 100
    assert length(of[HIDDEN]) + length(of[EXPOSED]) == length(talks)
    assert common(of[EXPOSED], of[COMPUTE]) == 0
    assert common(of[HIDDEN], of[COMPUTE]) == length(of[HIDDEN])
    assert common(of[EXPOSED], waits) == length(of[EXPOSED])


def test_the_ratio_is_hidden_over_all_communication() -> None:
    frame = pd.DataFrame([(COMPUTE, 0, 10), (HIDDEN, 0, 3), (EXPOSED, 3, 4)], columns=["kind", "start_us", "end_us"])
    assert overlap_ratio(frame) == 0.75
    assert overlap_ratio(frame[:2]) == 1
    assert overlap_ratio(frame[2:]) == 0
    assert overlap_ratio(frame[:1]) == 0


LINK = EmulatedLink(latency_us=2000, bandwidth_GBps=0.2)
PLAN = StackPlan(batch=2, seq=48, hidden=192, num_heads=8, num_kv_heads=4, intermediate=384, depth=2, link=LINK)
SUMS = {f"{block}.{layer}" for block in range(2) for layer in ("self_attn.o", "mlp.down")}


def communications(rank: pd.DataFrame) -> pd.DataFrame:
    return rank[rank["kind"] != COMPUTE].sort_values("start_us")


@pytest.mark.parametrize(
    ("strategy", "names"),
    [
        (Blocking(), SUMS),
        (Chunked(3), SUMS),
        (BatchSplit(2), SUMS),
        (
            SequenceParallel(),
            {*SUMS, *(f"{b}.{layer}" for b in range(2) for layer in ("self_attn.qkv", "mlp.gate_up"))},
        ),
        (Int8(), SUMS),
    ],
    ids=str,
)
def test_a_recorded_pass_adds_up(clusters: dict[int, Cluster], strategy: Blocking, names: set[str]) -> None:
    frame = record_timeline(clusters[2], strategy, PLAN)
    assert set(frame["kind"]) <= {COMPUTE, HIDDEN, EXPOSED}
    assert frame["strategy"].unique().tolist() == [str(strategy)]
    assert frame["link"].unique().tolist() == [f"emulated link {LINK}"]
    assert set(frame["rank"]) == {0, 1}
    assert frame["start_us"].min() == 0
    assert (frame["end_us"] > frame["start_us"]).all()
    assert 0 <= overlap_ratio(frame) <= 1
    for _, rank in frame.groupby("rank"):
        talking = communications(rank)
        assert names <= set(talking["name"])
        spans = list(zip(talking["start_us"], talking["end_us"], strict=True))
        assert all(before[1] <= after[0] + 0.01 for before, after in pairwise(spans))  # one channel
        # At least a latency for each of the four sums, hidden or not.
        assert length(spans) > 4 * LINK.latency_us
        of = {
            kind: [(s, e) for k, s, e in zip(rank["kind"], rank["start_us"], rank["end_us"], strict=True) if k == kind]
            for kind in (COMPUTE, HIDDEN, EXPOSED)
        }
        assert common(of[COMPUTE], of[EXPOSED]) < 0.01
        inside = [(s, min(e, rank[rank["kind"] == COMPUTE]["end_us"].max())) for s, e in of[HIDDEN]]
        assert common(of[COMPUTE], of[HIDDEN]) == pytest.approx(length(inside), abs=0.1)


def test_blocking_hides_nothing_and_a_split_batch_something(clusters: dict[int, Cluster]) -> None:
    blocking, split = (overlap_ratio(record_timeline(clusters[2], how, PLAN)) for how in (Blocking(), BatchSplit(2)))
    assert blocking < 0.01
    assert split > 0.1


def test_a_wait_right_after_an_asynchronous_sum_hides_nothing(clusters: dict[int, Cluster]) -> None:
    # A busy machine may put a rank to sleep between the start and the wait, but not in every pass.
    frame = min((record_timeline(clusters[2], WaitsAtOnce(), PLAN) for _ in range(3)), key=overlap_ratio)
    assert overlap_ratio(frame) < 0.05
    assert set(communications(frame)["name"]) >= SUMS
    assert (
        measure_strategies(clusters[2], [WaitsAtOnce()], PLAN)["error"].iloc[0] < 1e-4
    )  # it is right, only not faster


def test_gloos_own_link_is_recorded_too(clusters: dict[int, Cluster]) -> None:
    plan = StackPlan(batch=1, seq=8, hidden=96, num_heads=6, num_kv_heads=3, intermediate=96, depth=1)
    frame = record_timeline(clusters[3], Chunked(2), plan)
    assert set(frame["rank"]) == {0, 1, 2}
    assert {"0.self_attn.o", "0.mlp.down"} <= set(frame["name"])
    assert not frame["link"].str.contains("emulated").any()


def test_a_rank_alone_only_computes(clusters: dict[int, Cluster]) -> None:
    plan = StackPlan(batch=1, seq=8, hidden=64, num_heads=4, num_kv_heads=4, intermediate=64, depth=1, link=LINK)
    for strategy in (Blocking(), BatchSplit(2), SequenceParallel(), Int8()):
        frame = record_timeline(clusters[1], strategy, plan)
        assert set(frame["kind"]) == {COMPUTE}
        assert overlap_ratio(frame) == 0


def test_a_declared_link_between_gpus_is_refused() -> None:
    cluster: Any = SimpleNamespace(backend="nccl")
    with pytest.raises(ValueError, match=r"must be gloo for emulated links, as of Cluster\(n, 'gloo'\)"):
        record_timeline(cluster, Blocking(), PLAN)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_pass_on_gpus_is_told_by_events() -> None:
    plan = StackPlan(batch=2, seq=512, hidden=1024, num_heads=8, num_kv_heads=4, intermediate=4096, depth=2)
    with Cluster(2, "nccl") as cluster:
        blocking = record_timeline(cluster, Blocking(), plan)
        split = record_timeline(cluster, BatchSplit(2), plan)
        eight_bits = record_timeline(cluster, Int8(), plan)
    for frame in (blocking, split, eight_bits):
        assert set(frame["rank"]) == {0, 1}
        assert (frame["end_us"] >= frame["start_us"]).all()
        assert set(frame[frame["kind"] != COMPUTE]["name"]) >= SUMS
        assert frame[frame["kind"] == COMPUTE].groupby("rank")["end_us"].max().min() > 0
    assert overlap_ratio(blocking) < 0.01
    assert overlap_ratio(split) > 0.01
