"""Checkers of notebooks 01 and 07, against a reference, an empty answer and planted wrong answers."""

import pytest

from tplab.cluster import Cluster
from tplab.lab.exercises import check_kv_bytes, check_score
from tplab.lab.exercises.memory import CacheConfig, allocated
from tplab.lab.exercises.topology import judged
from tplab.topology import Link, Machine, ModelSpec, place

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def cluster(cluster2) -> Cluster:
    return cluster2


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


def right_as_table(cfg, tp):
    """Whole numbers of NumPy, which are no int, in a table of pandas."""
    import pandas as pd

    return pd.DataFrame(right_in_rows(cfg, tp), dtype="int64")


def right_as_tensor(cfg, tp):
    import torch

    return torch.tensor(right(cfg, tp)).view(-1, tp)  # a row per stage


def right_in_rows(cfg, tp):
    numbers = right(cfg, tp)
    return [tuple(numbers[start : start + tp]) for start in range(0, len(numbers), tp)]


def right_one_by_one(cfg, tp):
    return (number for number in right(cfg, tp))


def place_by_place(cfg, tp):
    numbers = right(cfg, tp)
    return [numbers[stage * tp + place] for place in range(tp) for stage in range(len(cfg.layers_of_stage))]


def reversed_stages(cfg, tp):
    numbers = right(cfg, tp)
    return [number for start in range(0, len(numbers), tp) for number in numbers[start : start + tp]][::-1]


@pytest.mark.parametrize(
    "answer", [right, right_as_array, right_as_table, right_as_tensor, right_in_rows, right_one_by_one]
)
def test_kv_bytes_reference(cluster, answer):
    verdict = check_kv_bytes(cluster, answer)
    assert verdict.passed, verdict.message
    assert "11 models and layouts" in verdict.message


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda cfg, tp: None, "a list with a number for each rank, here 1; it returned None"),
        (lambda cfg, tp: [], "returned 0 numbers"),
        (lambda cfg, tp: "12", "it returned '12'"),
        (lambda cfg, tp: [None] * tp * len(cfg.layers_of_stage), "what it returned for rank 0 is no number: None"),
        (raises, "line 2 of raises: NotImplementedError: write me"),
        (place_by_place, "in another order: first all places of stage 0"),
        (reversed_stages, "bytes a token, you say"),
        (lambda cfg, tp: [True] * tp * len(cfg.layers_of_stage), "is no number: True"),
        (lambda cfg, tp: [float("nan")] * tp * len(cfg.layers_of_stage), "is no number: nan"),
        (lambda cfg, tp: dict(enumerate(right(cfg, tp))), "it returned {0:"),
        (cut_evenly, "share a key-value head: it needs key-value heads 0 to 0, whole"),
        (rounded_up, "it needs key-value heads 0 to 1, whole"),
        (query_heads, "bytes a token, you say"),
        (keys_only, "Half: there are keys and values, and a number takes 2 bytes"),
        (lambda cfg, tp: right(cfg, tp)[0], "must return a list with a number for each rank, here 1; it returned 2048"),
        (all_layers, "of its own stage's layers only, here 5"),
        (average_stage, "this one has 5 layers, not the average"),
        (largest_only, "a number for each"),
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


MODEL = ModelSpec.from_config("llama-3.1-70b")


def terms(tp, pp, machine, workload):
    """The notebook's solution."""
    gpu = machine.gpu
    copies = min(machine.num_gpus // (tp * pp), workload.concurrency)
    room = (0.9 * gpu.memory_GB * 1e9 * tp * pp - MODEL.weight_bytes) / MODEL.kv_bytes_per_token
    batch = min(workload.concurrency / copies, max(1, room / workload.context_length))
    micro_batches = min(pp, batch)
    each = batch / micro_batches
    bytes_per_us, flops_per_us = 0.8 * gpu.hbm_GBps * 1e3, 0.5 * gpu.bf16_TFLOPS * 1e6
    stream = MODEL.weight_bytes / tp / bytes_per_us
    multiply = 2 * MODEL.total_params / tp / flops_per_us
    cache = MODEL.kv_bytes_per_token * workload.mean_context / tp / bytes_per_us
    sums, start, send = 2 * MODEL.num_layers, 0, 0
    if tp > 1:
        link = place(machine, tp, 1).slowest_ring_link.bandwidth_GBps
        start, send = 10, 2 * (tp - 1) / tp * MODEL.hidden_size * 2 / (0.6 * link * 1e3)
    step = max(stream, each * multiply) + each * cache + sums * (start + each * send) + 40 * MODEL.num_layers
    round_us = max(step, micro_batches * step / pp) + 20 * pp
    prompt = workload.input_length * (multiply + sums * send) / pp
    return copies / (workload.output_length * round_us / batch + prompt)


def largest_tp(tp, pp, machine, workload):
    return tp - 0.1 * pp


def smallest(tp, pp, machine, workload):
    return -tp * pp


def the_same_for_all(tp, pp, machine, workload):
    return 0.0


def most_room(tp, pp, machine, workload):
    return machine.num_gpus // (tp * pp) * (0.9 * machine.gpu.memory_GB * 1e9 * tp * pp - MODEL.weight_bytes)


def as_if_nvlink(tp, pp, machine, workload):
    fast = Link(kind="nvlink", bandwidth_GBps=450.0, latency_us=2.0)
    made = Machine.uniform(machine.gpu, machine.gpus_per_node, fast, nodes=machine.nodes, network=machine.network)
    return terms(tp, pp, made, workload)


def per_copy(tp, pp, machine, workload):
    return terms(tp, pp, machine, workload) / min(machine.num_gpus // (tp * pp), workload.concurrency)


def upside_down(tp, pp, machine, workload):
    return -terms(tp, pp, machine, workload)


class Counting:
    """Would win if it were asked about the best layout last."""

    def __init__(self):
        self.asked = 0

    def __call__(self, tp, pp, machine, workload):
        self.asked += 1
        return -self.asked


def test_score_reference():
    for _ in range(5):  # two of its machines are drawn anew
        verdict = check_score(terms)
        assert verdict.passed, verdict.message
    assert "12 machines" in verdict.message


@pytest.mark.parametrize(
    "answer",
    [largest_tp, smallest, the_same_for_all, most_room, as_if_nvlink, per_copy, upside_down, Counting()],
    ids=lambda answer: getattr(answer, "__name__", "counting"),
)
def test_score_wrong_answers(answer):
    verdict = check_score(answer)
    assert not verdict.passed
    assert "rank correlation" in verdict.message
    assert "you take" in verdict.message


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            lambda tp, pp, machine, workload: None,
            "must return a finite number; for TP 1 × PP 2 on 8 x h100, 1 request in flight it gave None",
        ),
        (lambda tp, pp, machine, workload: float("nan"), "it gave nan"),
        (lambda tp, pp, machine, workload: "1", "it gave '1'"),
        (lambda tp, pp, machine, workload: 10**400, "it gave a whole number of some"),
        (
            lambda tp, pp, machine, workload: 1 / 0,
            "line 1 of <lambda>: ZeroDivisionError: division by zero (for TP 1 × PP 2 on 8 x h100, 1 req",
        ),
        (lambda tp, pp: 1.0, "takes 2 positional arguments but 4 were given"),
    ],
)
def test_scores_that_are_none(answer, said):
    verdict = check_score(answer)
    assert not verdict.passed
    assert said in verdict.message


def test_equal_scores_get_the_worst_layout():
    assert judged([1.0, 1.0, 0.0], [10.0, 5.0, 20.0]) == (pytest.approx(-0.866, abs=0.001), 0.75, 1)
    assert judged([0.0, 0.0], [1.0, 2.0])[:2] == (0.0, 0.5)
    assert judged([3.0, 2.0, 1.0], [9.0, 4.0, 1.0]) == (pytest.approx(1.0), 0.0, 0)
