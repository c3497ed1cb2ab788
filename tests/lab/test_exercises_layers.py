"""Checkers of notebooks 03 and 04, against a reference, an empty answer and planted wrong answers."""

import re
from collections.abc import Iterator

import cloudpickle
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from tplab.cluster import Cluster
from tplab.collectives.quantised import int8_all_reduce, naive_int8_all_reduce
from tplab.lab.exercises import check_attention, check_chunk_choice, check_int8_all_reduce, check_mlp

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module", autouse=True)
def functions_travel_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture(scope="module", params=[2, 4], ids=lambda n: f"n={n}")
def cluster(request, clusters) -> Cluster:
    return clusters[request.param]


def mlp(rank, x, gate, up, down):
    each = gate.shape[0] // rank.world_size
    mine = slice(rank.index * each, (rank.index + 1) * each)
    y = F.linear(F.silu(F.linear(x, gate[mine])) * F.linear(x, up[mine]), down[:, mine])
    dist.all_reduce(y, group=rank.group)
    return y


def mlp_everywhere(rank, x, gate, up, down):
    y = F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down) / rank.world_size
    dist.all_reduce(y, group=rank.group)
    return y


def mlp_alone(rank, x, gate, up, down):
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def mlp_reduces_too_early(rank, x, gate, up, down):
    """Sums before the activation, which is no sum."""
    each = x.shape[-1] // rank.world_size
    mine = slice(rank.index * each, (rank.index + 1) * each)
    both = torch.cat([F.linear(x[..., mine], gate[:, mine]), F.linear(x[..., mine], up[:, mine])], -1)
    dist.all_reduce(both, group=rank.group)
    g, u = both.chunk(2, -1)
    return F.linear(F.silu(g) * u, down)


def mlp_stacked(rank, x, gate, up, down):
    """Cuts [gate | up] as one: rank 0 of 2 gets all of gate."""
    part = torch.cat([gate, up]).chunk(rank.world_size)[rank.index]
    g, u = F.linear(x, part).chunk(2, -1)
    y = F.linear(F.silu(g) * u, down.chunk(rank.world_size, 1)[rank.index])
    dist.all_reduce(y, group=rank.group)
    return y


def mlp_no_sum(rank, x, gate, up, down):
    each = gate.shape[0] // rank.world_size
    mine = slice(rank.index * each, (rank.index + 1) * each)
    return F.linear(F.silu(F.linear(x, gate[mine])) * F.linear(x, up[mine]), down[:, mine])


def mlp_columns_twice(rank, x, gate, up, down):
    y = mlp_alone(rank, x, gate, up, down.chunk(rank.world_size)[rank.index])
    dist.all_reduce(y, group=rank.group)
    return y


def nothing(rank, *tensors):
    return None


def raises(rank, *tensors):
    raise NotImplementedError("write me")


def test_mlp_reference(cluster: Cluster) -> None:
    verdict = check_mlp(cluster, mlp)
    assert verdict.passed, verdict.message


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (mlp_everywhere, "times its share"),
        (mlp_alone, "exactly one collective.*counted: none"),
        (mlp_reduces_too_early, "the all-reduce was handed|times its share"),
        (mlp_stacked, "off by"),
        (mlp_no_sum, "off by"),
        (mlp_columns_twice, "has shape"),
        (nothing, "must return a tensor"),
        (raises, "write me"),
    ],
)
def test_mlp_wrong(cluster: Cluster, wrong, says: str) -> None:
    verdict = check_mlp(cluster, wrong)
    assert not verdict.passed
    assert re.search(says, verdict.message), verdict.message


def attention(rank, x, q, k, v, o, num_heads, num_kv_heads, *, causal=True, transpose=True, share=True):
    b, s, hidden = x.shape
    size = hidden // num_heads
    h = num_heads // rank.world_size
    first, last = rank.index * h, (rank.index + 1) * h
    group = num_heads // num_kv_heads
    low, high = first // group, (last - 1) // group + 1
    if not share:
        low, high = 0, num_kv_heads
    queries = F.linear(x, q[first * size : last * size]).view(b, s, h, size)
    keys, values = (F.linear(x, w[low * size : high * size]).view(b, s, high - low, size) for w in (k, v))
    index = [head // group - low for head in range(first, last)]
    keys, values = keys[:, :, index], values[:, :, index]
    if transpose:
        queries, keys, values = (t.transpose(1, 2) for t in (queries, keys, values))
    y = F.scaled_dot_product_attention(queries, keys, values, is_causal=causal)
    y = (y.transpose(1, 2) if transpose else y).reshape(b, s, h * size)
    y = F.linear(y, o[:, first * size : last * size])
    dist.all_reduce(y, group=rank.group)
    return y


def over_heads(*args):
    return attention(*args, transpose=False)


def not_causal(*args):
    return attention(*args, causal=False)


def all_keys(*args):
    return attention(*args, share=False)


def test_attention_reference(cluster: Cluster) -> None:
    verdict = check_attention(cluster, attention)
    assert verdict.passed, verdict.message


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (over_heads, "off by"),
        (not_causal, "nobody sees later tokens"),
        (all_keys, "times its share"),
        (nothing, "must return a tensor"),
    ],
)
def test_attention_wrong(cluster: Cluster, wrong, says: str) -> None:
    verdict = check_attention(cluster, wrong)
    assert not verdict.passed
    assert says in verdict.message


def test_other_numbers_of_ranks_are_refused(clusters) -> None:
    with pytest.raises(ValueError, match="made for 2 or 4 ranks; this one has 1"):
        check_mlp(clusters[1], mlp)


def int8(rank, x):
    int8_all_reduce(x, rank.group)
    return x


def int8_naive(rank, x):
    naive_int8_all_reduce(x, rank.group)
    return x


def int8_one_scale(rank, x):
    int8_all_reduce(x, rank.group, scale_group=len(x))
    return x


def int8_small_groups(rank, x):
    int8_all_reduce(x, rank.group, scale_group=4)
    return x


def exact(rank, x):
    dist.all_reduce(x, group=rank.group)
    return x


def in_bf16(rank, x):
    y = x.bfloat16()
    dist.all_reduce(y, group=rank.group)
    return y.float()


def int8_owner_keeps_its_own(rank, x):
    before = x.clone()
    int8_all_reduce(x, rank.group)
    lengths = [len(part) for part in x.tensor_split(rank.world_size)]
    start = sum(lengths[: rank.index])
    x[start : start + 1] += before[start].sign() * 1e-4
    return x


def test_int8_reference(cluster: Cluster) -> None:
    verdict = check_int8_all_reduce(cluster, int8)
    assert verdict.passed, verdict.message


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (int8_naive, "Do you add up int8 numbers"),
        (int8_one_scale, "one scale"),
        (int8_small_groups, "at most 0.55"),
        (exact, "at most 0.55"),
        (in_bf16, "at most 0.55"),
        (int8_owner_keeps_its_own, "different bits"),
        (nothing, "must return"),
        (raises, "write me"),
    ],
)
def test_int8_wrong(cluster: Cluster, wrong, says: str) -> None:
    verdict = check_int8_all_reduce(cluster, wrong)
    assert not verdict.passed
    assert says in verdict.message


FRAME = pd.DataFrame({"chunks": [1, 2, 4, 8], "total_us": [100.0, 80.0, 76.0, 90.0]})


@pytest.mark.parametrize(("choice", "passed"), [(1, False), (2, True), (4, True), (8, False)])
def test_chunk_choice(choice: int, passed: bool) -> None:
    assert check_chunk_choice(FRAME, choice).passed is passed


def test_chunk_choice_says_why() -> None:
    assert "latency once more" in check_chunk_choice(FRAME, 8).message
    assert "nothing left to hide behind" in check_chunk_choice(FRAME, 1).message
    assert "1, 2, 4, 8" in check_chunk_choice(FRAME, 3).message
