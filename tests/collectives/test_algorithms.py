"""Own all-reduces: right sums, the same bits everywhere, exactly the bytes of the formula.

Inputs are small whole numbers, so that sums are exact in every dtype and any order, and results compare exactly.
"""

from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest
import torch

from tplab import Cluster
from tplab.cluster import RankError
from tplab.collectives.one_shot import one_shot_all_reduce
from tplab.collectives.recursive_doubling import recursive_doubling_all_reduce
from tplab.collectives.ring import ring_all_reduce
from tplab.collectives.transport import split_evenly
from tplab.collectives.two_shot import two_shot_all_reduce

ALGORITHMS = {
    "ring": ring_all_reduce,
    "two-shot": two_shot_all_reduce,
    "recursive-doubling": recursive_doubling_all_reduce,
    "one-shot": one_shot_all_reduce,
}
SIZES = (0, 1, 2, 3, 5, 7, 12, 13, 60, 97, 1009, 5040)
DTYPES = (torch.float32, torch.bfloat16, torch.int32, torch.float64)


@pytest.fixture(scope="module", autouse=True)
def functions_travel_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture(scope="module", params=[1, 2, 3, 4, 5], ids=lambda n: f"n={n}")
def ranks(request: pytest.FixtureRequest, clusters: Any) -> Cluster:
    made: Cluster = clusters[request.param]
    return made


def addend(rank: int, num_elements: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + num_elements)
    return torch.randint(-8, 9, (num_elements,), generator=generator).to(dtype)


def total(n: int, num_elements: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.stack([addend(rank, num_elements, dtype).double() for rank in range(n)]).sum(0).to(dtype)


def reduce_all_sizes(rank: Any, name: str, options: dict[str, Any]) -> list[tuple[int, str]]:
    wrong = []
    for num_elements in SIZES:
        for dtype in DTYPES:
            x = addend(rank.index, num_elements, dtype)
            ALGORITHMS[name](x, rank.group, **options)
            if not torch.equal(x, total(rank.world_size, num_elements, dtype)):
                wrong.append((num_elements, str(dtype)))
    return wrong


@pytest.mark.parametrize("name", ALGORITHMS)
def test_sums_of_every_size_and_dtype_are_exact(ranks: Cluster, name: str) -> None:
    assert ranks.run(reduce_all_sizes, name, {}, timeout=90) == [[]] * ranks.num_ranks


@pytest.mark.parametrize("segment_bytes", [1, 17, 1000, None])
def test_ring_is_right_with_any_segment_length(ranks: Cluster, segment_bytes: int | None) -> None:
    assert all(ranks.run(ring_in_segments, segment_bytes, timeout=90))


def ring_in_segments(rank: Any, segment_bytes: int | None) -> bool:
    right = True
    for num_elements in (1, 7, 60, 97):
        x = addend(rank.index, num_elements, torch.float32)
        ring_all_reduce(x, rank.group, segment_bytes=segment_bytes)
        right = right and torch.equal(x, total(rank.world_size, num_elements, torch.float32))
    return right


def reduce_noise(rank: Any) -> dict[str, bytes]:
    """Rounding shows in numbers that are not whole: every rank must have rounded alike, NaN and infinity included."""
    out = {}
    for name, algorithm in ALGORITHMS.items():
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(1009, generator=torch.Generator().manual_seed(rank.index)).to(dtype)
            x[3], x[5 + rank.index] = float("nan"), float("inf")
            if dtype == torch.float32:  # a different NaN on every rank: which one survives depends on the order
                x.view(torch.int32)[4] = 0x7FC00001 + rank.index
            algorithm(x, rank.group)
            out[f"{name} {dtype}"] = x.view(torch.uint8).numpy().tobytes()
    return out


def test_every_rank_holds_the_same_bits(ranks: Cluster) -> None:
    first, *others = ranks.run(reduce_noise)
    for name, bits in first.items():
        assert all(other[name] == bits for other in others), name
    # Both add in rank order.
    assert first["two-shot torch.float32"] == first["one-shot torch.float32"]


def count_bytes(rank: Any, num_elements: int) -> dict[str, dict[str, int]]:
    from tplab.collectives.counter import CommCounter

    out = {}
    for name, algorithm in ALGORITHMS.items():
        with CommCounter() as counter:
            algorithm(addend(rank.index, num_elements, torch.float32), rank.group)
        out[name] = {kind: counter.total(kind).num_bytes for kind in ("send", "recv")} | {
            "other": counter.total().num_calls - counter.total("send").num_calls - counter.total("recv").num_calls
        }
    return out


def sent_by_formula(name: str, n: int, rank: int, num_elements: int) -> int:
    """Bytes of float32 that a rank sends."""
    whole = 4 * num_elements
    chunks = [4 * (end - start) for start, end in split_evenly(num_elements, n)]
    if n == 1:
        return 0
    if name == "ring":
        return 2 * whole - chunks[(rank + 1) % n] - chunks[(rank + 2) % n]
    if name == "two-shot":
        return whole - chunks[rank] + (n - 1) * chunks[rank]
    if name == "one-shot":
        return (n - 1) * whole
    p = 1 << (n.bit_length() - 1)
    if rank < 2 * (n - p):
        return whole if rank % 2 == 0 else (p.bit_length() - 1 + 1) * whole
    return (p.bit_length() - 1) * whole


@pytest.mark.parametrize("num_elements", [3, 5040])
def test_bytes_are_those_of_the_formula(ranks: Cluster, num_elements: int) -> None:
    n = ranks.num_ranks
    counted = ranks.run(count_bytes, num_elements)
    for rank, by_name in enumerate(counted):
        for name, got in by_name.items():
            assert got["send"] == sent_by_formula(name, n, rank, num_elements), (name, rank)
            assert got["other"] == 0, f"{name} used something else than sends and receives"
    for name in ALGORITHMS:
        assert sum(one[name]["send"] for one in counted) == sum(one[name]["recv"] for one in counted)
    if num_elements % n == 0:  # no padding
        exactly = 2 * (n - 1) * num_elements * 4 // n
        assert [one["ring"]["send"] for one in counted] == [exactly] * n
        assert [one["two-shot"]["send"] for one in counted] == [exactly] * n


def reduce_odd_tensors(rank: Any) -> list[str]:
    n, wrong = rank.world_size, []
    for name, algorithm in ALGORITHMS.items():
        base = addend(rank.index, 60, torch.float32).view(6, 10)
        want = total(n, 60, torch.float32).view(6, 10)
        # Column 3 on, every second row: and a transposed one, whose memory order is not its row order.
        whole = base.clone()
        algorithm(whole[::2, 3:], rank.group)
        expected = base.clone()
        expected[::2, 3:] = want[::2, 3:]
        if not torch.equal(whole, expected):
            wrong.append(f"{name}: strided, or elements beside it changed")
        # Ranks may store the same matrix in different orders.
        turned = base.t().contiguous().t() if rank.index % 2 else base.clone()
        algorithm(turned, rank.group)
        if not torch.equal(turned, want):
            wrong.append(f"{name}: transposed")
        single = torch.tensor(float(rank.index))
        algorithm(single, rank.group)
        if single.item() != n * (n - 1) / 2:
            wrong.append(f"{name}: without dimensions")
        parameter = torch.nn.Parameter(base.clone())
        algorithm(parameter, rank.group)
        if not torch.equal(parameter.data, want):
            wrong.append(f"{name}: parameter")
        complex_ = torch.complex(base, -base)
        algorithm(complex_, rank.group)
        if not torch.equal(complex_, torch.complex(want, -want)):
            wrong.append(f"{name}: complex")
        with torch.inference_mode():
            x = base.clone()
            algorithm(x, rank.group)
        if not torch.equal(x, want):
            wrong.append(f"{name}: inference mode")
    return wrong


def test_tensors_of_any_layout_are_reduced_in_place(ranks: Cluster) -> None:
    assert ranks.run(reduce_odd_tensors) == [[]] * ranks.num_ranks


def reduce_in_subgroups(rank: Any) -> tuple[dict[str, list[float]], str]:
    import torch.distributed as dist

    odd, even = dist.new_group([3, 1]), dist.new_group([0, 2])
    mine, other = (odd, even) if rank.index % 2 else (even, odd)
    out = {}
    for name, algorithm in ALGORITHMS.items():
        x = torch.full((5,), 10.0**rank.index)
        algorithm(x, mine)
        out[name] = x.tolist()
    try:
        ring_all_reduce(torch.ones(3), other)
    except ValueError as error:
        return out, str(error)
    return out, "accepted"


def test_subgroup_reduces_among_its_members_only(clusters: Any) -> None:
    for index, (by_name, refusal) in enumerate(clusters[4].run(reduce_in_subgroups)):
        for name, got in by_name.items():
            assert got == [1010.0 if index % 2 else 101.0] * 5, name
        assert "group" in refusal


@pytest.mark.parametrize("name", ALGORITHMS)
def test_rank_alone_needs_no_process_group(name: str) -> None:
    x = torch.arange(5.0)
    ALGORITHMS[name](x, None)
    assert x.tolist() == [0, 1, 2, 3, 4]


def call_badly(rank: Any, what: str) -> None:
    algorithm: Any = ring_all_reduce
    if what == "device":
        algorithm(torch.empty(3, device="meta"), rank.group)
    elif what == "expanded":
        algorithm(torch.ones(1).expand(4), rank.group)
    elif what == "no group":
        algorithm(torch.ones(3), None)
    elif what == "group":
        algorithm(torch.ones(3), "tp")
    elif what == "segment":
        algorithm(torch.ones(3), rank.group, segment_bytes=0)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("device", "tensor is on meta.*need it on cpu"),
        ("expanded", "tensor of shape .* is expanded"),
        ("no group", "group must be given: there are 2 ranks"),
        ("group", "group must be a process group.*'tp'"),
        ("segment", "segment_bytes must be a whole number of at least 1"),
    ],
)
def test_bad_input_names_the_argument(cluster2: Cluster, what: str, message: str) -> None:
    with pytest.raises(RankError, match=message):
        cluster2.run(call_badly, what)


def test_split_is_that_of_tensor_split() -> None:
    for length in (0, 1, 2, 5, 7, 12, 97):
        for parts in range(1, 8):
            want = [len(part) for part in torch.arange(length).tensor_split(parts)]
            assert [end - start for start, end in split_evenly(length, parts)] == want
