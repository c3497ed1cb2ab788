"""The checkers, against the reference, an empty answer and planted wrong answers."""

import pytest
import torch
import torch.distributed as dist

from tplab.cluster import Cluster
from tplab.lab import check_reduction

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def cluster(cluster2) -> Cluster:
    return cluster2


def product(rank, x):
    dist.all_reduce(x, op=dist.ReduceOp.PRODUCT, group=rank.group)
    return x


def total(rank, x):
    dist.all_reduce(x, group=rank.group)
    return x


def constant(rank, x):
    return torch.full_like(x, 6.0)


def only_rank_1(rank, x):
    dist.reduce(x, dst=1, op=dist.ReduceOp.PRODUCT, group=rank.group)
    return x


def nothing(rank, x):
    dist.all_reduce(x, op=dist.ReduceOp.PRODUCT, group=rank.group)


def empty(rank, x):
    return x[:0]


def raises(rank, x):
    raise NameError("x is not what you think")


def by_logarithms(rank, x):
    """Right but for the last bits."""
    sign, size = x.sign(), x.abs().log() * 1.000001
    dist.all_reduce(sign, op=dist.ReduceOp.PRODUCT, group=rank.group)
    dist.all_reduce(size, group=rank.group)
    return (sign * size.exp()).tolist()


@pytest.mark.parametrize("right", [product, by_logarithms])
def test_right_answers_pass(cluster: Cluster, right: object) -> None:
    verdict = check_reduction(cluster, right)  # type: ignore[arg-type]
    assert verdict.passed, verdict.message


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (total, "the product, 6; rank 0 holds 5"),
        (constant, "has asked nobody"),
        (only_rank_1, "rank 0"),
        (nothing, "returned None"),
        (empty, "0 elements"),
        (raises, "NameError"),
    ],
)
def test_wrong_answers_fail_and_say_why(cluster: Cluster, wrong: object, says: str) -> None:
    verdict = check_reduction(cluster, wrong)  # type: ignore[arg-type]
    assert not verdict.passed
    assert says in verdict.message
