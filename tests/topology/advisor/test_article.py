"""The article's advisor: its signature, its cases, right answers."""

import inspect
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.topology import CommunicationTopology
from tplab.topology.advisor.article import beside_claimed, claimed_gpus

recommend = CommunicationTopology.recommend_parallel_strategy


def test_signature():
    """Names, order and defaults of the article; ours come after, by name only."""
    parameters = list(inspect.signature(recommend).parameters.values())
    theirs = [each for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert [each.name for each in theirs] == [
        "num_gpus",
        "gpu_memory_gb",
        "model_size_gb",
        "nvlink_bandwidth_gbps",
        "pcie_bandwidth_gbps",
    ]
    assert [each.default for each in theirs[3:]] == [600, 64]
    assert CommunicationTopology().recommend_parallel_strategy(1, 80, 10) == recommend(1, 80, 10)


@pytest.mark.parametrize(
    ("arguments", "strategy", "tp", "pp", "replicas", "idle"),
    [
        ((8, 80, 56), "TP-first", 1, 1, 8, 0),  # an exact fit is not two GPUs
        ((8, 80, 112), "TP-first", 2, 1, 4, 0),  # nor is this three
        ((8, 80, 113), "TP-first", 4, 1, 2, 0),
        ((8, 80, 140), "TP-first", 4, 1, 2, 0),  # three are needed, heads divide by four
        ((4, 24, 16.8), "TP-first", 1, 1, 4, 0),  # 0.7 · 24 in floating point is a hair less
        ((8, 80, 448), "TP-first", 8, 1, 1, 0),
        ((16, 80, 840), "TP-first", 8, 2, 1, 0),  # 15 GPUs needed: not tp 15, and no fault of NVLink's
        ((8, 80, 140, 64, 64), "PP-first", 1, 4, 2, 0),  # not TP 4 over PCIe
        ((8, 80, 140, 0), "PP-first", 1, 4, 2, 0),
        ((2, 80, 112, 0), "PP-first", 1, 2, 1, 0),  # no more stages than GPUs
        ((8, 80, 140, 300), "TP-first", 4, 1, 2, 0),
        ((8, 80, 140, 299), "PP-first", 1, 4, 2, 0),
        ((8, 80, 140, 0, 400), "TP-first", 4, 1, 2, 0),  # the faster link counts, whatever its name
        ((3, 80, 140), "PP-first", 1, 3, 1, 0),  # no power of two of three GPUs holds it
        ((5, 80, 140), "TP-first", 4, 1, 1, 1),
        ((1, 80, 20), "TP-first", 1, 1, 1, 0),
    ],
)
def test_cases(arguments, strategy, tp, pp, replicas, idle):
    answer = recommend(*arguments)
    assert (answer["strategy"], answer["tp_degree"], answer["pp_degree"]) == (strategy, tp, pp)
    assert (answer["replicas"], answer["idle_gpus"]) == (replicas, idle)


@settings(max_examples=300, deadline=None)
@given(
    num_gpus=st.integers(1, 72),
    memory=st.floats(8, 300),
    model=st.floats(0.1, 2000),
    nvlink=st.sampled_from([0, 50, 299, 300, 900]),
    pcie=st.sampled_from([0, 16, 64]),
    usable=st.floats(0.3, 1),
    node=st.sampled_from([1, 4, 8]),
)
def test_always_a_layout_that_fits_divides_and_uses_the_gpus(num_gpus, memory, model, nvlink, pcie, usable, node):
    room = memory * usable
    if model > num_gpus * room * (1 + 1e-9):
        with pytest.raises(ValueError, match="does not fit"):
            recommend(num_gpus, memory, model, nvlink, pcie, usable_fraction=usable, gpus_per_node=node)
        return
    answer = recommend(num_gpus, memory, model, nvlink, pcie, usable_fraction=usable, gpus_per_node=node)
    tp, pp, replicas = answer["tp_degree"], answer["pp_degree"], answer["replicas"]
    assert model <= tp * pp * room * (1 + 1e-8)
    assert math.log2(tp).is_integer()
    assert tp <= node
    assert tp * pp * replicas + answer["idle_gpus"] == num_gpus
    assert answer["idle_gpus"] < tp * pp
    assert answer["weights_per_gpu_gb"] == pytest.approx(model / (tp * pp))
    if max(nvlink, pcie) < 300:
        assert tp == 1
        assert answer["strategy"] == "PP-first"
        needed = math.ceil(model / room * (1 - 1e-9))
        assert all(num_gpus % p >= answer["idle_gpus"] for p in range(max(1, needed), num_gpus + 1))
    if answer["strategy"] == "TP-first" and pp > 1:  # stages only where TP alone cannot, or would leave more idle
        alone = [t for t in (1, 2, 4, 8) if t <= min(node, num_gpus) and t * room >= model]
        assert all(num_gpus % t > answer["idle_gpus"] for t in alone)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((8, 80, 56), "fit one GPU"),
        ((8, 80, 140), "NVLink at 600 GB/s carries"),
        ((8, 80, 140, 0), "PCIe at 64 GB/s is below the 300 GB/s"),
        ((8, 80, 140, 100), "NVLink at 100 GB/s is below"),
        ((16, 80, 840), "too large for that alone, so 2 stages"),
        ((5, 80, 140), "1 GPU left over"),
    ],
)
def test_reasons(arguments, words):
    assert words in recommend(*arguments)["reason"]


def test_a_model_merely_large_is_no_fault_of_the_link():
    assert "below" not in recommend(16, 80, 840)["reason"]


def test_named_parameter():
    assert recommend(8, 80, 70)["tp_degree"] == 2
    assert recommend(8, 80, 70, usable_fraction=0.9)["tp_degree"] == 1
    assert recommend(16, 80, 840, gpus_per_node=16)["tp_degree"] == 16


def test_nothing_fits():
    with pytest.raises(ValueError, match=r"model_size_gb=500 does not fit: .* 52 GB too few. Use at least 9 such GPUs"):
        recommend(8, 80, 500)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 80, 50), "num_gpus must be a whole number of at least 1; got 0"),
        ((2.5, 80, 50), "num_gpus must be a whole number"),
        ((8, 0, 50), "gpu_memory_gb must be a finite number above 0; got 0"),
        ((8, 80, -1), "model_size_gb must be a finite number above 0"),
        ((8, 80, math.nan), "model_size_gb must be a finite number above 0"),
        ((8, 80, 50, -1), "nvlink_bandwidth_gbps must be a finite number of at least 0"),
        ((8, 80, 50, 600, math.inf), "pcie_bandwidth_gbps must be a finite number of at least 0"),
    ],
)
def test_numbers_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        recommend(*arguments)
    with pytest.raises(ValueError, match="usable_fraction must be a number above 0"):
        recommend(8, 80, 50, usable_fraction=0)


def test_the_claimed_degree_beside_the_right_one():
    """56 and 112 GB fit exactly on one and two cards of 56 GB of room; 140 and 810 GB give 3 and 15."""
    cases = [(8, 80, size) for size in (50, 56, 112, 140, 300)] + [(16, 80, 810), (2, 80, 140), (4, 24, 16.8)]
    frame = beside_claimed(cases)
    assert frame["claimed_tp"].tolist() == [1, 2, 3, 3, 6, 15, 3, 2]
    assert frame["wrong"].tolist() == [
        "",
        "1 would do",
        "2 would do, no power of two",
        "no power of two",
        "no power of two",
        "no power of two",
        "no power of two, there are 2",
        "1 would do",
    ]
    assert frame["right"].tolist() == [
        "TP 1 × PP 1 × 8",
        "TP 1 × PP 1 × 8",
        "TP 2 × PP 1 × 4",
        "TP 4 × PP 1 × 2",
        "TP 8 × PP 1 × 1",
        "TP 8 × PP 2 × 1",
        "does not fit",
        "TP 1 × PP 1 × 4",
    ]
    with pytest.raises(ValueError, match="model_size_gb"):
        claimed_gpus(80, 0)
