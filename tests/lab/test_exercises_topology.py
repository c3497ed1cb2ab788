"""Checkers of notebooks 01 and 07, against a reference, an empty answer and planted wrong answers."""

from collections.abc import Iterator

import pytest

from tplab.cluster import Cluster
from tplab.lab.exercises import check_kv_bytes
from tplab.lab.exercises.memory import CacheConfig, allocated

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(2, "gloo") as cluster:
        yield cluster


def per_rank(cfg, tp, heads):
    """``heads(place)`` key-value heads on each rank."""
    return [
        2 * layers * heads(place) * cfg.head_dim * cfg.bytes_per_number
        for layers in cfg.layers_of_stage
        for place in range(tp)
    ]


def right(cfg, tp):
    each, group = cfg.num_heads // tp, cfg.num_heads // cfg.num_kv_heads
    return per_rank(cfg, tp, lambda r: len({head // group for head in range(r * each, (r + 1) * each)}))


def right_as_array(cfg, tp):
    import numpy as np

    return np.array(right(cfg, tp), dtype=float)


def cut_evenly(cfg, tp):
    return per_rank(cfg, tp, lambda r: cfg.num_kv_heads / tp)


def rounded_up(cfg, tp):
    """Right where heads divide or are copied evenly; 2 heads on 3 ranks need 2 in the middle."""
    return per_rank(cfg, tp, lambda r: -(-cfg.num_kv_heads // tp))


def query_heads(cfg, tp):
    return per_rank(cfg, tp, lambda r: cfg.num_heads // tp)


def keys_only(cfg, tp):
    return [nbytes / 2 for nbytes in right(cfg, tp)]


def all_layers(cfg, tp):
    return [
        nbytes * sum(cfg.layers_of_stage) / cfg.layers_of_stage[rank // tp]
        for rank, nbytes in enumerate(right(cfg, tp))
    ]


def average_stage(cfg, tp):
    return [nbytes / len(cfg.layers_of_stage) for nbytes in all_layers(cfg, tp)]


def largest_only(cfg, tp):
    return max(right(cfg, tp))


def first_stage_only(cfg, tp):
    return right(cfg, tp)[:tp]


def bf16_always(cfg, tp):
    return [nbytes * 2 / cfg.bytes_per_number for nbytes in right(cfg, tp)]


def one_too_many(cfg, tp):
    return [nbytes + (rank == tp * len(cfg.layers_of_stage) - 1) for rank, nbytes in enumerate(right(cfg, tp))]


def raises(cfg, tp):
    raise NotImplementedError("write me")


@pytest.mark.parametrize("answer", [right, right_as_array])
def test_kv_bytes_reference(cluster, answer):
    verdict = check_kv_bytes(cluster, answer)
    assert verdict.passed, verdict.message
    assert "11 models and layouts" in verdict.message


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda cfg, tp: None, "one number for each of the 1 ranks; it returned None"),
        (lambda cfg, tp: [], "returned 0 numbers"),
        (lambda cfg, tp: "12", "it returned '12'"),
        (lambda cfg, tp: [None] * tp * len(cfg.layers_of_stage), "you say None"),
        (raises, "raised NotImplementedError: write me"),
        (cut_evenly, "share a key-value head: it needs key-value heads 0 to 0, whole"),
        (rounded_up, "it needs key-value heads 0 to 1, whole"),
        (query_heads, "bytes a token, you say"),
        (keys_only, "Half: there are keys and values"),
        (all_layers, "of its own stage's layers only, here 5"),
        (average_stage, "this one has 5 layers, not the average"),
        (largest_only, "one number for each"),
        (first_stage_only, "there are 4 ranks"),
        (bf16_always, "you say"),
        (one_too_many, "allocated"),
    ],
)
def test_kv_bytes_wrong_answers(cluster, answer, said):
    verdict = check_kv_bytes(cluster, answer)
    assert not verdict.passed
    assert said in verdict.message


def test_what_is_allocated_is_what_heads_need(cluster):
    cfg = CacheConfig(num_heads=6, num_kv_heads=2, head_dim=8, layers_of_stage=(3, 1), bytes_per_number=2)
    assert allocated(cluster, cfg, 3) == [96, 192, 96, 32, 64, 32]


def test_every_drawn_case_can_be_built():
    from tplab.lab.exercises.memory import _drawn

    for cfg, tp in _drawn(300):
        assert cfg.num_heads % cfg.num_kv_heads == 0
        assert cfg.num_heads % tp == 0
