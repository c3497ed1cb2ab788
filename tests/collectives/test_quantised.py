"""The int8 all-reduce: bytes by the formula, errors under the bound, the same bits everywhere; and the naive one's
overflow."""

import math
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab import Cluster
from tplab.collectives.counter import CommCounter
from tplab.collectives.quantised import (
    dequantise,
    error_bound,
    int8_all_reduce,
    naive_int8_all_reduce,
    quantise,
)
from tplab.collectives.quantised_sweep import compare_quantised
from tplab.collectives.volumes import chunk_lengths, int8_sent_bytes, sent_bytes


@pytest.fixture(scope="module", autouse=True)
def functions_travel_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@given(st.integers(1, 300), st.integers(1, 70), st.floats(-30, 30), st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_a_round_trip_is_off_by_half_a_step(length: int, scale_group: int, log10: float, seed: int) -> None:
    x = torch.randn(length, generator=torch.Generator().manual_seed(seed)) * 10.0**log10
    message = quantise(x, scale_group)
    assert message.numel() == length + 4 * math.ceil(length / scale_group)
    error = (dequantise(message, length, scale_group).double() - x.double()).abs()
    for start in range(0, length, scale_group):
        part = slice(start, start + scale_group)
        half_step = float(x[part].abs().max()) / 254
        assert float(error[part].max()) <= half_step * (1 + 1e-5)


def test_zeros_stay_zero_and_the_largest_stays_itself() -> None:
    x = torch.tensor([0.0, 0.0, 0.0, -3.0, 1.0, 0.0])
    back = dequantise(quantise(x, 3), 6, 3)
    assert back[:3].tolist() == [0, 0, 0]
    assert back[3] == -3
    assert back[5] == 0


def run_all(rank: Any, lengths: list[int], dtype: torch.dtype, scale_group: int) -> list[dict[str, Any]]:
    outcomes = []
    for length in lengths:
        addends = [
            (torch.randn(length, generator=torch.Generator().manual_seed(index)) * 10.0**index).to(dtype)
            for index in range(rank.world_size)
        ]
        x = addends[rank.index].clone()
        with CommCounter() as counter:
            int8_all_reduce(x, rank.group, scale_group=scale_group)
        exact = torch.stack([a.double() for a in addends]).sum(0)
        parts = chunk_lengths(length, rank.world_size)
        bound = torch.cat(
            [
                error_bound([a.split(parts)[owner] for a in addends], owner, scale_group, dtype=dtype)
                for owner in range(rank.world_size)
            ]
        )
        outcomes.append(
            {
                "bits": x.view(torch.uint8).numpy().tobytes(),
                "over": bool(((x.double() - exact).abs() > bound).any()),
                "off": bool((x.double() != exact).any()),
                "sent": counter.total("send").num_bytes,
                "formula": int8_sent_bytes(rank.index, length, rank.world_size, scale_group),
            }
        )
    return outcomes


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("scale_group", [1, 16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_bytes_bound_and_bits(clusters: dict[int, Cluster], n: int, dtype: torch.dtype, scale_group: int) -> None:
    per_rank = clusters[n].run(run_all, [0, 1, 2, 5, 64, 1000, 4097], dtype, scale_group)
    for outcomes in zip(*per_rank, strict=True):
        assert len({outcome["bits"] for outcome in outcomes}) == 1, "ranks differ"
        assert not any(outcome["over"] for outcome in outcomes)
        assert [outcome["sent"] for outcome in outcomes] == [outcome["formula"] for outcome in outcomes]
    assert per_rank[0][-1]["off"], "an exact result would mean that nothing was quantised"


@pytest.mark.parametrize("n", [2, 4, 8])
def test_at_most_0_55_of_bfloat16s_bytes(n: int) -> None:
    elements = 1 << 20
    bf16 = sent_bytes("all-reduce", "ring", 2 * elements, n).sent_max
    assert max(int8_sent_bytes(rank, elements, n, 64) for rank in range(n)) <= 0.55 * bf16
    assert int8_sent_bytes(0, elements, n, 4) > 0.55 * bf16, "small groups do cost more"


def poisoned(rank: Any) -> list[bool]:
    x = torch.ones(64)
    if rank.index == 1:
        x[3] = math.inf
    if rank.index == 0:
        x[40] = math.nan
    int8_all_reduce(x, rank.group, scale_group=8)
    return x.isfinite().tolist()


def test_what_is_not_finite_shows(clusters: dict[int, Cluster]) -> None:
    for finite in clusters[2].run(poisoned):
        bad = {index for index, good in enumerate(finite) if not good}
        assert {3, 40} <= bad
        assert bad <= set(range(8)) | set(range(40, 48))


def not_contiguous(rank: Any) -> float:
    base = torch.zeros(6, 8)
    x = base.t()[::2]
    x += rank.index + 1.0
    int8_all_reduce(x, rank.group)
    return float((x - 3.0).abs().max()) + float(base.t()[1::2].abs().max())


def test_views_are_written_and_what_lies_between_is_not(clusters: dict[int, Cluster]) -> None:
    assert max(clusters[2].run(not_contiguous)) < 3 / 127


def naive(rank: Any) -> tuple[list[float], float]:
    x = torch.tensor([100.0, 1.0, -100.0, 50.0])
    y = x.clone()
    naive_int8_all_reduce(x, rank.group)
    int8_all_reduce(y, rank.group)
    return x.tolist(), float((y - torch.tensor([200.0, 2.0, -200.0, 100.0])).abs().max())


def test_adding_up_int8_overflows(clusters: dict[int, Cluster]) -> None:
    """127 + 127 is -2 in int8: two hundreds add up to less than nothing."""
    for (largest, small, negative, _), off in clusters[2].run(naive):
        assert largest < 0 < negative
        assert small == pytest.approx(2, abs=1)
        assert off <= 200 / 127


def test_compared_with_bfloat16(clusters: dict[int, Cluster]) -> None:
    frame = compare_quantised(clusters[2], tokens=32, hidden=256).set_index("method")
    assert frame["same_bits"].all()
    assert frame.loc["int8, 64 per scale", "ratio_to_bf16"] <= 0.55
    assert frame.loc["float32", "ratio_to_bf16"] == 2
    errors = frame["error_pct"]
    assert errors["float32"] < errors["bfloat16"] < errors["int8, 32 per scale"] < errors["int8, 256 per scale"]
    assert errors["int8, 256 per scale"] < 2
    assert errors["int8 added up as int8"] > 2 * errors["int8, 256 per scale"]
    assert frame.loc["int8 added up as int8", "worst_pct"] > 50 > 5 > frame.loc["int8, 256 per scale", "worst_pct"]
    int8 = frame[frame.index.str.contains("per scale")]
    assert (int8["worst_over_bound"] <= 1).all()
    assert (int8["worst_over_bound"] > 0.05).all(), "a bound that nothing comes near says nothing"


def test_alone_nothing_changes() -> None:
    x = torch.randn(7)
    y = x.clone()
    int8_all_reduce(y, None)
    assert torch.equal(x, y)


@pytest.mark.parametrize("scale_group", [0, -1, 2.5, True])
def test_bad_scale_groups(scale_group: Any) -> None:
    with pytest.raises(ValueError, match="scale_group must be a whole number of at least 1"):
        int8_all_reduce(torch.ones(3), None, scale_group=scale_group)


def test_whole_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tensor must hold floating-point numbers.*torch.int64"):
        int8_all_reduce(torch.ones(3, dtype=torch.int64), None)
