"""Notebook 09's exercise: right answers pass, and each planted fault is told what it is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tplab.cluster import Cluster
from tplab.lab.exercises.exchange import check_exchange

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def cluster(no_ranks_left: None) -> Any:
    with Cluster(2, "gloo") as cluster:
        yield cluster


def in_turns(rank: Any, x: torch.Tensor) -> torch.Tensor:
    other = 1 - rank.index
    length = torch.tensor([x.numel()])
    theirs = torch.empty(1, dtype=torch.int64)
    if rank == 0:
        dist.send(length, other)
        dist.recv(theirs, other)
    else:
        dist.recv(theirs, other)
        dist.send(length, other)
    got = torch.empty(int(theirs))
    for work in [dist.isend(x, other), dist.irecv(got, other)]:
        work.wait()
    return got


def by_objects(rank: Any, x: torch.Tensor) -> torch.Tensor:
    everything: list[Any] = [None, None]
    dist.all_gather_object(everything, x)
    return everything[1 - rank.index]


def same_length(rank: Any, x: torch.Tensor) -> torch.Tensor:
    other, got = 1 - rank.index, torch.empty_like(x)
    for work in [dist.isend(x, other), dist.irecv(got, other)]:
        work.wait()
    return got


def keeps_its_own(rank: Any, x: torch.Tensor) -> torch.Tensor:
    in_turns(rank, x)
    return x


def both_send(rank: Any, x: torch.Tensor) -> torch.Tensor:
    other, got = 1 - rank.index, torch.empty_like(x)
    dist.send(x, other)
    dist.recv(got, other)
    return got


@pytest.mark.parametrize("right", [in_turns, by_objects])
def test_right(cluster: Cluster, right: Callable[..., Any]) -> None:
    verdict = check_exchange(cluster, right)
    assert verdict.passed, verdict.message


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (both_send, "who sends while the other sends, too, waits for ever"),
        (same_length, "With 3 numbers on rank 0 and 8 on rank 1"),
        (keeps_its_own, "returned its own tensor"),
        (lambda rank, x: None, "my_exchange() returned"),
    ],
)
def test_wrong(cluster: Cluster, wrong: Callable[..., Any], says: str) -> None:
    verdict = check_exchange(cluster, wrong, timeout=2.0)
    assert not verdict.passed
    assert says in verdict.message


def test_two_ranks_are_needed(clusters: Any) -> None:
    assert "use Pool(num_ranks=2)" in check_exchange(clusters[1], in_turns).message
