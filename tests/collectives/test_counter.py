"""The counter sees every call once, with the bytes of the formulas, as far as torch's own CommDebugMode can judge."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import cloudpickle
import pytest
import torch
import torch.distributed as dist

from tplab import Cluster
from tplab.collectives.counter import KINDS, CommCounter

N = 24
"""Elements of a float32 tensor; two ranks."""
S = 4 * N


@pytest.fixture(scope="module", autouse=True)
def functions_travel_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


# Calls under test. Each is called on both ranks as call(rank, x, peer), x of N elements.


def all_reduce(rank: Any, x: torch.Tensor, peer: int) -> None:
    dist.all_reduce(x, group=rank.group)


def all_reduce_async(rank: Any, x: torch.Tensor, peer: int) -> None:
    dist.all_reduce(x, group=rank.group, async_op=True).wait()


def all_reduce_coalesced(rank: Any, x: torch.Tensor, peer: int) -> None:
    dist.all_reduce_coalesced([x, x.clone()], group=rank.group)


def all_gather(rank: Any, x: torch.Tensor, peer: int) -> None:
    dist.all_gather([torch.empty(N), torch.empty(N)], x, group=rank.group)


def all_gather_into_tensor(rank: Any, x: torch.Tensor, peer: int) -> None:
    dist.all_gather_into_tensor(torch.empty(2 * N), x, group=rank.group)


def reduce_scatter(rank: Any, x: torch.Tensor, peer: int) -> None:
    dist.reduce_scatter(torch.empty(N // 2), list(x.chunk(2)), group=rank.group)


def reduce_scatter_tensor(rank: Any, x: torch.Tensor, peer: int) -> None:
    dist.reduce_scatter_tensor(torch.empty(N // 2), x, group=rank.group)


def broadcast(rank: Any, x: torch.Tensor, peer: int) -> None:
    dist.broadcast(x, 1, group=rank.group)


def reduce(rank: Any, x: torch.Tensor, peer: int) -> None:
    dist.reduce(x, 0, group=rank.group)


def gather(rank: Any, x: torch.Tensor, peer: int) -> None:
    dist.gather(x, [torch.empty(N), torch.empty(N)] if rank.index == 0 else None, dst=0, group=rank.group)


def scatter(rank: Any, x: torch.Tensor, peer: int) -> None:
    dist.scatter(torch.empty(N // 2), list(x.chunk(2)) if rank.index == 0 else None, src=0, group=rank.group)


def all_to_all_single(rank: Any, x: torch.Tensor, peer: int) -> None:
    dist.all_to_all_single(torch.empty(N), x, group=rank.group)


def send_and_receive(rank: Any, x: torch.Tensor, peer: int) -> None:
    for sender in (0, 1):
        if rank.index == sender:
            dist.send(x, peer, group=rank.group)
        else:
            dist.recv(torch.empty(N), peer, group=rank.group)


def batch_of_messages(rank: Any, x: torch.Tensor, peer: int) -> None:
    calls = [dist.P2POp(dist.isend, x, peer, rank.group), dist.P2POp(dist.irecv, torch.empty(N), peer, rank.group)]
    for work in dist.batch_isend_irecv(calls):
        work.wait()


def barrier(rank: Any, x: torch.Tensor, peer: int) -> None:
    dist.barrier(group=rank.group)


def functional_all_reduce(rank: Any, x: torch.Tensor, peer: int) -> None:
    import torch.distributed._functional_collectives as funcol

    assert (funcol.all_reduce(x, "sum", rank.group) + 0).shape == (N,)


def functional_all_gather(rank: Any, x: torch.Tensor, peer: int) -> None:
    import torch.distributed._functional_collectives as funcol

    assert (funcol.all_gather_tensor(x, 0, rank.group) + 0).shape == (2 * N,)


def functional_reduce_scatter(rank: Any, x: torch.Tensor, peer: int) -> None:
    import torch.distributed._functional_collectives as funcol

    assert (funcol.reduce_scatter_tensor(x, "sum", 0, rank.group) + 0).shape == (N // 2,)


def functional_coalesced(rank: Any, x: torch.Tensor, peer: int) -> None:
    import torch.distributed._functional_collectives as funcol

    for out in funcol.all_reduce_coalesced([x, x[: N // 2]], "sum", rank.group):
        out + 0


def functional_in_inference_mode(rank: Any, x: torch.Tensor, peer: int) -> None:
    import torch.distributed._functional_collectives as funcol

    with torch.inference_mode():
        assert (funcol.all_reduce(x, "sum", rank.group) + 0).shape == (N,)


def backward_of_all_gather(rank: Any, x: torch.Tensor, peer: int) -> None:
    import torch.distributed._functional_collectives as funcol

    leaf = x.clone().requires_grad_()
    # Squared: torch 2.11 cannot reduce-scatter the expanded gradient of a bare sum.
    funcol.all_gather_tensor_autograd(leaf, 0, rank.group).square().sum().backward()
    assert leaf.grad is not None


class CopyToRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad


def backward_of_own_function(rank: Any, x: torch.Tensor, peer: int) -> None:
    CopyToRanks.apply(x.clone().requires_grad_()).sum().backward()


def dtensor(rank: Any, x: torch.Tensor, peer: int) -> None:
    from torch.distributed.tensor import DTensor, Replicate, Shard

    sharded = DTensor.from_local(x, rank.mesh()["tp"], [Shard(0)], run_check=False)
    assert sharded.redistribute(placements=[Replicate()]).to_local().shape == (2 * N,)


# call -> records expected on rank 0, as (kind, bytes); on rank 1 in reverse order
EXPECTED: dict[Callable[[Any, torch.Tensor, int], None], list[tuple[str, int]]] = {
    all_reduce: [("all-reduce", S)],
    all_reduce_async: [("all-reduce", S)],
    all_reduce_coalesced: [("all-reduce", 2 * S)],
    all_gather: [("all-gather", 2 * S)],
    all_gather_into_tensor: [("all-gather", 2 * S)],
    reduce_scatter: [("reduce-scatter", S)],
    reduce_scatter_tensor: [("reduce-scatter", S)],
    broadcast: [("broadcast", S)],
    reduce: [("reduce", S)],
    gather: [("gather", 2 * S)],
    scatter: [("scatter", S)],
    all_to_all_single: [("all-to-all", S)],
    send_and_receive: [("send", S), ("recv", S)],
    batch_of_messages: [("send", S), ("recv", S)],
    barrier: [("barrier", 0)],
    functional_all_reduce: [("all-reduce", S)],
    functional_all_gather: [("all-gather", 2 * S)],
    functional_reduce_scatter: [("reduce-scatter", S)],
    functional_coalesced: [("all-reduce", S + S // 2)],
    functional_in_inference_mode: [("all-reduce", S)],
    backward_of_all_gather: [("all-gather", 2 * S), ("reduce-scatter", 2 * S)],
    backward_of_own_function: [("all-reduce", S)],
    dtensor: [("all-gather", 2 * S)],
}


def count(rank: Any, call: Callable[[Any, torch.Tensor, int], None]) -> tuple[list[Any], int]:
    """Records of our counter, and how many calls torch's own counts."""
    from torch.distributed.tensor.debug import CommDebugMode

    peer = 1 - rank.index
    call(rank, torch.ones(N), peer)  # DTensor's first call may exchange more
    with CommCounter() as counter:
        call(rank, torch.ones(N), peer)
    with CommDebugMode() as judge:
        call(rank, torch.ones(N), peer)
    return counter.records, judge.get_total_counts()


@pytest.mark.parametrize("call", EXPECTED, ids=lambda call: call.__name__)
def test_every_call_counts_once_with_its_payload(cluster2: Cluster, call: Callable[..., None]) -> None:
    for index, (records, judged) in enumerate(cluster2.run(count, call)):
        found = [(record.kind, record.num_bytes) for record in records]
        expected = EXPECTED[call]
        if call is send_and_receive and index == 1:
            expected = expected[::-1]
        assert found == expected
        assert all(record.group_size == 2 for record in records)
        assert all(record.dtype == torch.float32 for record in records if record.num_bytes)
        assert all(record.peer == 1 - index for record in records if record.kind in ("send", "recv"))
        # CommDebugMode does not count sends, receives and barriers.
        if {record.kind for record in records} <= {"send", "recv", "barrier"}:
            assert judged == 0
        else:
            assert judged == len(records)


def count_together(rank: Any) -> dict[str, Any]:
    from tplab.collectives.ring import ring_all_reduce

    counter = CommCounter()
    with counter, CommCounter() as outer:
        dist.all_reduce(torch.ones(8, dtype=torch.bfloat16), group=rank.group)
        with CommCounter() as inner:
            ring_all_reduce(torch.ones(N), rank.group)
        dist.all_reduce(torch.ones(8, dtype=torch.bfloat16), group=rank.group)
    dist.all_reduce(torch.ones(8), group=rank.group)  # outside
    with counter:
        dist.barrier(group=rank.group)
    return {
        "rows": counter.frame_rows(),
        "outer": outer.total().num_calls,
        "inner": inner.total().num_bytes,
        "text": repr(counter),
    }


def test_rows_add_up_by_kind_dtype_and_group(cluster2: Cluster) -> None:
    for seen in cluster2.run(count_together):
        both = {"dtype": "float32", "group_size": 2, "calls": 2, "bytes": S}
        messages = [row for row in seen["rows"] if row["kind"] in ("send", "recv")]
        assert sorted(row.pop("kind") for row in messages) == ["recv", "send"]
        assert messages == [both, both]
        first, *_, last = seen["rows"]
        assert first == {"kind": "all-reduce", "dtype": "bfloat16", "group_size": 2, "calls": 2, "bytes": 32}
        assert (last["kind"], last["calls"], last["bytes"]) == ("barrier", 1, 0)
        assert seen["outer"] == 6
        assert seen["inner"] == 2 * S
        assert "2 all-reduce (32 bytes)" in seen["text"]


def test_total_refuses_a_kind_that_does_not_exist() -> None:
    counter = CommCounter()
    assert [counter.total(kind).num_calls for kind in KINDS] == [0] * len(KINDS)
    with pytest.raises(ValueError, match=r"kind must be one of .*all-reduce.*got 'allreduce'"):
        counter.total("allreduce")


def fail_inside(rank: Any) -> tuple[int, int]:
    counter = CommCounter()
    with suppress(ZeroDivisionError), counter:
        dist.all_reduce(torch.ones(3), group=rank.group)
        raise ZeroDivisionError
    before = counter.total().num_calls
    dist.all_reduce(torch.ones(3), group=rank.group)
    return before, counter.total().num_calls


def test_counting_ends_with_the_block_even_if_it_raises(cluster2: Cluster) -> None:
    assert cluster2.run(fail_inside) == [(1, 1)] * 2
