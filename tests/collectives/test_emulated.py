"""The emulated link: exact data, never early, and about as late as declared.

Times are relations with slack: the machine is shared, and a rank may lose its core for milliseconds, which only ever
adds time. So the links are slow beside gloo, the least of several times is compared, and the median printed. Early is
wrong whatever the machine does.
"""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest
import torch
import torch.distributed as dist

from tplab import Cluster
from tplab.cluster import RankError
from tplab.collectives.emulated import ALGORITHMS, EmulatedGroup, EmulatedLink, LinkTable
from tplab.collectives.emulated_sweep import measure_emulated
from tplab.measure import link_text

SLOW = EmulatedLink(latency_us=4000, bandwidth_GBps=0.05)
FAST = EmulatedLink(latency_us=0, bandwidth_GBps=float("inf"))
REPEATS = 7
MOST_OVER = 1.25
CLOCK_GRAIN_US = 1.0


@pytest.fixture(scope="module", autouse=True)
def functions_travel_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


def check(what: str, measured_us: list[float], declared_us: float) -> None:
    median, least = statistics.median(measured_us), min(measured_us)
    print(f"\n{what}: declared {declared_us:.0f} us, median {median:.0f} us, least {least:.0f} us")
    assert least >= declared_us - CLOCK_GRAIN_US, "early"
    assert least <= declared_us * MOST_OVER


def reduce_everything(rank: Any, links: Any) -> list[str]:
    wrong = []
    emulated = EmulatedGroup(rank.group, links)
    for algorithm in ALGORITHMS:
        for num_elements in (0, 1, 2, 7, 1009, 50_021):
            x = torch.arange(num_elements, dtype=torch.float32).remainder(100) + rank.index
            want = torch.arange(num_elements, dtype=torch.float32).remainder(100) * 3 + 3
            emulated.all_reduce(x, algorithm)
            if not torch.equal(x, want):
                wrong.append(f"{algorithm} of {num_elements}")
    x = torch.ones(50_021, dtype=torch.bfloat16)
    emulated.all_reduce(x, "ring", segment_bytes=1000)
    return wrong if x.eq(3).all() else [*wrong, "ring in segments"]


def test_all_reduces_run_over_the_links(cluster3: Cluster) -> None:
    links = LinkTable(default=FAST, overrides={(0, 1): EmulatedLink(latency_us=300, bandwidth_GBps=10)})
    assert cluster3.run(reduce_everything, links) == [[]] * 3


def one_way(rank: Any, links: Any, sizes: list[int], repeats: int) -> dict[int, list[float]]:
    """Rank 0 to rank 1: size -> microseconds from the send's call until the receive's wait has returned."""
    emulated = EmulatedGroup(rank.group, links)
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for size in sizes:
        x = torch.full((size,), 7, dtype=torch.uint8) if rank.index == 0 else torch.zeros(size, dtype=torch.uint8)
        for _ in range(repeats):
            sent = torch.zeros(1, dtype=torch.int64)
            receive = emulated.irecv(x, 0) if rank.index == 1 else None
            dist.barrier(group=rank.group)
            if receive is None:
                sent[0] = time.monotonic_ns()
                emulated.isend(x, 1).wait()
            else:
                receive.wait()
            done_ns = time.monotonic_ns()
            dist.broadcast(sent, 0, group=rank.group)
            times[size].append((done_ns - int(sent)) / 1e3)
        assert x.eq(7).all()
    return times


def test_one_message_takes_latency_and_bytes_over_bandwidth(cluster2: Cluster) -> None:
    sizes = [0, 1 << 10, 100_000, 1 << 20]
    for size, us in cluster2.run(one_way, SLOW, sizes, REPEATS)[1].items():
        check(f"{size} bytes", us, SLOW.message_us(size))


def test_each_direction_has_its_own_link(cluster2: Cluster) -> None:
    links = LinkTable(default=FAST, overrides={(0, 1): SLOW})
    [forth] = cluster2.run(one_way, links, [1 << 10], REPEATS)[1].values()
    check("the slow direction", forth, SLOW.message_us(1 << 10))
    links = LinkTable(default=FAST, overrides={(1, 0): SLOW})
    [forth] = cluster2.run(one_way, links, [1 << 10], REPEATS)[1].values()
    print(f"the other direction: {statistics.median(forth):.0f} us")
    assert min(forth) < SLOW.latency_us / 2


def many(rank: Any, links: Any, size: int, chunks: int, both: bool, repeats: int) -> list[float]:
    """All chunks at once, from 0 to 1 or both ways: microseconds from the sender's first call to the last arrival."""
    emulated = EmulatedGroup(rank.group, links)
    peer, sending, receiving = 1 - rank.index, both or rank.index == 0, both or rank.index == 1
    x, y = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    times = []
    for _ in range(repeats):
        receives = [emulated.irecv(part, peer) for part in y.chunk(chunks)] if receiving else []
        dist.barrier(group=rank.group)
        began_ns = time.monotonic_ns()
        sends = [emulated.isend(part, peer) for part in x.chunk(chunks)] if sending else []
        for receive in receives[::-1]:  # in any order: a link's times follow from the order of the sends
            receive.wait()
        done_ns = time.monotonic_ns()
        for send in sends:
            send.wait()
        starts: list[int] = [0, 0]
        dist.all_gather_object(starts, began_ns, group=rank.group)
        if receiving:
            times.append((done_ns - starts[peer]) / 1e3)
    assert not receiving or y.eq(1).all()
    return times


@pytest.mark.parametrize("both", [False, True], ids=["one way", "both ways at once"])
def test_chunks_queue_on_the_link_and_share_the_latency(cluster2: Cluster, both: bool) -> None:
    size = 1 << 20
    for index, us in enumerate(cluster2.run(many, SLOW, size, 8, both, REPEATS)):
        if us:
            # The chunks' latencies overlap; a link used from both ends is no slower.
            check(f"8 chunks to rank {index}", us, SLOW.message_us(size))


def compute_meanwhile(rank: Any, links: Any, busy_s: float, repeats: int) -> list[tuple[float, float]]:
    """Microseconds in the calls of isend or irecv, and in all until the end of wait."""
    emulated = EmulatedGroup(rank.group, links)
    x, times = torch.ones(1 << 20, dtype=torch.uint8), []
    for _ in range(repeats):
        dist.barrier(group=rank.group)
        began = time.monotonic()
        handle = emulated.isend(x, 1) if rank.index == 0 else emulated.irecv(x, 0)
        started = time.monotonic()
        while time.monotonic() < started + busy_s:
            pass
        handle.wait()
        times.append(((started - began) * 1e6, (time.monotonic() - began) * 1e6))
    return times


def test_transfer_overlaps_with_computation(cluster2: Cluster) -> None:
    transfer_us = SLOW.message_us(1 << 20)  # 25 ms
    busy_s = 0.8 * transfer_us / 1e6
    for times in cluster2.run(compute_meanwhile, SLOW, busy_s, REPEATS):
        called, everything = (min(column) for column in zip(*times, strict=True))
        print(
            f"\ncomputing {busy_s * 1e6:.0f} us beside {transfer_us:.0f} us: {everything:.0f} us, calls {called:.0f} us"
        )
        assert called < transfer_us / 5
        assert everything < (transfer_us + busy_s * 1e6) / 1.3


def ring_times(rank: Any, link: Any, sizes: list[int], repeats: int) -> dict[int, list[float]]:
    emulated = EmulatedGroup(rank.group, link)
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for size in sizes:
        x = torch.ones(size // 4)
        for _ in range(repeats):
            x.fill_(1)
            dist.barrier(group=rank.group)
            began = time.monotonic()
            emulated.all_reduce(x, "ring")
            times[size].append((time.monotonic() - began) * 1e6)
    return times


def test_ring_follows_the_textbook(cluster2: Cluster) -> None:
    sizes = [4 << 10, 1 << 20]
    by_rank = cluster2.run(ring_times, SLOW, sizes, REPEATS)
    for size in sizes:
        slowest = [max(both) for both in zip(*(times[size] for times in by_rank), strict=True)]
        check(f"ring of {size} bytes", slowest, 2 * SLOW.latency_us + size / SLOW.bandwidth_GBps / 1e3)


def tell_lateness(rank: Any, links: Any) -> tuple[float, list[Any]]:
    emulated = EmulatedGroup(rank.group, links)
    x = torch.ones(8 << 20, dtype=torch.uint8)
    handle = emulated.isend(x, 1) if rank.index == 0 else emulated.irecv(x, 0)
    assert handle.late_us is None
    handle.wait()
    handle.wait()  # again: nothing
    assert handle.late_us is not None
    return handle.late_us, list(emulated.deliveries)


def test_measured_all_reduces_follow_their_formulas(cluster3: Cluster) -> None:
    """Never sooner: each of three ranks sends two-shot's pieces over two links at once, and so says the formula."""
    frame = measure_emulated(cluster3, SLOW, sizes=[1 << 12, 1 << 18], algorithms=["ring", "two-shot"])
    assert frame["correct"].all()
    assert len(frame) == 4
    for row in frame.itertuples():
        print(f"\n{row.algorithm}, {row.bytes} bytes: {row.p50_us:.0f} us, by formula {row.formula_us:.0f} us")
        assert row.p50_us >= row.formula_us - CLOCK_GRAIN_US, "early"
    assert frame["error_pct"].min() < 100 * (MOST_OVER - 1)


def test_line_up_lets_all_go_at_once(cluster2: Cluster) -> None:
    def meet(rank: Any) -> list[float]:
        group = EmulatedGroup(rank.group, SLOW)
        times = []
        for _ in range(20):
            time.sleep(0.003 * rank.index)
            group.line_up()
            times.append(time.monotonic() * 1e6)
        return times

    apart = [abs(a - b) for a, b in zip(*cluster2.run(meet), strict=True)]
    print(f"\napart: median {statistics.median(apart):.0f} us, least {min(apart):.0f} us")
    assert min(apart) < 100


def test_link_faster_than_gloo_says_how_late_it_was(cluster2: Cluster) -> None:
    (sender, none), (receiver, [delivery]) = cluster2.run(tell_lateness, FAST)
    assert sender == 0
    assert none == []
    print(f"\n8 MiB over a link without limits: {receiver:.0f} us late")
    assert receiver > 500  # no gloo on loopback does 16 GB/s
    assert (delivery.src, delivery.num_bytes, delivery.late_us) == (0, 8 << 20, receiver)
    assert delivery.sent_s <= delivery.start_s <= delivery.due_s <= delivery.done_s


def call_badly(rank: Any, what: str) -> None:
    emulated = EmulatedGroup(rank.group, FAST)
    x = torch.ones(4)
    match what:
        case "algorithm":
            emulated.all_reduce(x, "tree")
        case "segment":
            emulated.all_reduce(x, "one-shot", segment_bytes=100)
        case "device":
            emulated.all_reduce(x.to("meta"))
        case "message device":
            emulated.isend(x.to("meta"), 1 - rank.index)
        case "contiguous":
            emulated.irecv(x[::2], 1 - rank.index)
        case "dst":
            emulated.isend(x, rank.index)
        case "src":
            emulated.irecv(x, 2)
        case "pair":
            EmulatedGroup(rank.group, LinkTable(default=FAST, overrides={(0, 2): FAST}))
        case "group":
            EmulatedGroup("all", FAST)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("algorithm", "algorithm must be one of ring, two-shot, recursive-doubling, one-shot; got 'tree'"),
        ("segment", "segment_bytes=100 is for algorithm='ring'"),
        ("device", "tensor is on meta"),
        ("message device", "tensor must be on the cpu"),
        ("contiguous", "tensor must be contiguous"),
        ("dst", "dst must be another rank"),
        ("src", "src must be another rank of the group, 0 to 1; rank . got 2"),
        ("pair", r"links: \(0, 2\) is not a pair"),
        ("group", "group must be a process group with the gloo backend; got 'all'"),
    ],
)
def test_bad_input_names_the_argument(cluster2: Cluster, what: str, message: str) -> None:
    with pytest.raises(RankError, match=message):
        cluster2.run(call_badly, what)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"latency_us": -1, "bandwidth_GBps": 1}, "latency_us"),
        ({"latency_us": float("nan"), "bandwidth_GBps": 1}, "latency_us"),
        ({"latency_us": 0, "bandwidth_GBps": 0}, "bandwidth_GBps"),
    ],
)
def test_link_refuses_what_no_link_can_be(arguments: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        EmulatedLink(**arguments)


def test_table_names_its_links() -> None:
    table = LinkTable(default=EmulatedLink(latency_us=100, bandwidth_GBps=1), overrides={(0, 1): SLOW})
    assert (table.link(0, 1), table.link(1, 0).latency_us) == (SLOW, 100)
    assert link_text(table) == "emulated link 100 us, 1 GB/s, 1 pair differs"
    with pytest.raises(ValueError, match="overrides"):
        LinkTable(default=FAST, overrides={(1, 1): FAST})
