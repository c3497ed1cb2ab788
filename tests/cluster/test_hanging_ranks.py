"""What real ranks say that hang: the recorder on a rank, its way to the kernel, and the exception."""

import ctypes
import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from tplab.cluster import RankDied, RankError, RankTimeout

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def hang(cluster):
    """Run a function that hangs; the diagnosis."""

    def check(fn, *args, expect=RankTimeout):
        with pytest.raises(expect) as info:
            cluster.run(fn, *args, timeout=1.0)
        assert info.value.hang is not None, str(info.value)
        assert info.value.hang.sentence in str(info.value)
        assert expect is RankDied or "recorder.py" not in str(info.value)
        return info.value.hang

    return check


def test_one_rank_returns_early(hang):
    """What earlier runs called does not count."""

    def early(rank):
        dist.barrier()
        if rank == 0:
            dist.all_reduce(torch.ones(4096))

    found = hang(early)
    assert found.sentence.startswith("rank 0 waits in all_reduce #2 (4,096 float32, test_hanging_ranks.py:")
    assert found.sentence.endswith("; rank 1 never came: it has returned from the function")
    assert [call.kind for call in found.ranks[1].calls] == ["barrier"]


@pytest.mark.parametrize("how", ["stopped", "holding the GIL"])
def test_one_rank_cannot_answer(hang, how):
    def mute(rank, how):
        dist.barrier()
        if rank == 1 and how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif rank == 1:
            ctypes.PyDLL(None).sleep(60)
        dist.all_gather([torch.ones(5)] * 2, torch.ones(5))

    found = hang(mute, how)
    assert found.sentence.startswith("rank 0 waits in all_gather #2 (5 float32")
    assert found.missing == (1,)
    assert "rank 1 did not even say where" in found.sentence


def test_two_groups_in_another_order(hang):
    def cross(rank):
        groups = [dist.new_group([0, 1]), dist.new_group([0, 1])]
        for group in groups if rank == 0 else groups[::-1]:
            dist.all_reduce(torch.ones(8), group=group)

    found = hang(cross)
    assert found.reason == "circle"
    assert "rank 0 waits in all_reduce #1 of the first group of ranks 0, 1" in found.sentence
    assert "rank 1 waits in all_reduce #1 of the second group of ranks 0, 1" in found.sentence


def test_a_send_of_a_batch_that_nobody_receives(hang):
    def batch(rank):
        ops = [dist.P2POp(dist.isend, torch.ones(4), 1 - rank)]
        if rank == 0:
            ops.append(dist.P2POp(dist.irecv, torch.ones(4), 1))
        for work in dist.batch_isend_irecv(ops):
            work.wait()

    assert hang(batch).sentence.startswith("rank 0 waits in send #1 to rank 1 (4 float32")


def test_different_sizes(hang):
    """Gloo ends the process of the rank that expects less; the sizes are named all the same."""

    def sizes(rank):
        dist.all_reduce(torch.ones(1024 if rank == 0 else 1000))

    found = hang(sizes, expect=RankDied)
    assert found.reason == "mismatch"
    assert "rank 1 was sent" in found.sentence
    assert "rank 0 gives 1,024 float32 in all_reduce #1" in found.sentence


def test_what_is_timed_is_not_written_down(hang):
    """It would be part of what is measured."""

    def times(rank):
        from tplab.measure.clock import timed

        x = torch.ones(8)
        for _ in range(3):
            timed(lambda: dist.all_reduce(x))
        if rank == 0:
            dist.all_reduce(x)
        else:
            time.sleep(60)

    assert hang(times).sentence.startswith("rank 0 waits in all_reduce #1 (8 float32")


def test_nobody_hangs(cluster):
    with pytest.raises(RankTimeout) as info:
        cluster.run(lambda rank: dist.barrier() or time.sleep(60), timeout=1.0)
    assert info.value.hang is None


RECORD = """
import json, time
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.device_mesh import init_device_mesh
from tplab.cluster.recorder import Recorder
from tplab.collectives.counter import CommCounter

dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
x = torch.ones(6)

def plain(num=300):
    began = time.perf_counter()
    for _ in range(num):
        dist.all_reduce(x)
    return (time.perf_counter() - began) / num

plain()
before = min(plain() for _ in range(20))
recorder = Recorder()
recorder.install()

def record(*steps):
    recorder.begin(1)
    for step in steps:
        step()
    said = recorder.snapshot()
    return [[call.kind, call.number, call.num_elements, call.peer, call.state] for call in said.calls]

def counted():
    with CommCounter():
        functional.all_reduce(x, "sum", dist.group.WORLD).wait()

def refused():
    try:
        dist.all_reduce("no tensor")
    except (TypeError, ValueError):
        pass

def redistributed():
    mesh = init_device_mesh("cpu", (1,))
    (distribute_tensor(x, mesh, [Shard(0)]) + 1).full_tensor()

def alone(num=300):
    # What the recorder adds to a call: around a method and a wait that do nothing.
    work, group = object(), dist.group.WORLD
    method = recorder._around_method(lambda group, *args: work, "all_reduce", 0, None)
    wait = recorder._around_wait(lambda work: True)
    began = time.perf_counter()
    for _ in range(num):
        method(group, [x])
        wait(work)
    return (time.perf_counter() - began) / num

def tags(num):
    for tag in range(num):
        recorder._note(dist.group.WORLD, "send", x, 0, tag, None)
    return len(recorder.snapshot().exchanged)

works = []
print(json.dumps({
    "native": record(
        lambda: dist.all_reduce(x),
        lambda: dist.all_gather([torch.ones(6)], x),
        lambda: dist.all_gather_into_tensor(torch.ones(6), x),
        lambda: dist.reduce_scatter(torch.ones(6), [x]),
        lambda: dist.reduce_scatter_tensor(torch.ones(6), x),
        lambda: dist.broadcast(x, 0),
        lambda: dist.reduce(x, 0),
        lambda: dist.gather(x, [torch.ones(6)], 0),
        lambda: dist.scatter(torch.ones(6), [x], 0),
        lambda: dist.all_to_all_single(torch.ones(6), x),
        lambda: dist.barrier(),
        lambda: dist.monitored_barrier(),
    ),
    "functional": record(
        lambda: functional.all_reduce(x, "sum", dist.group.WORLD).wait(),
        lambda: functional.all_gather_tensor(x, 0, dist.group.WORLD) + 1,
        lambda: works.append(functional.reduce_scatter_tensor(x, "sum", 0, dist.group.WORLD)),
        counted,
    ),
    "dtensor": record(redistributed),
    "waited for or not": record(
        lambda: works.append(dist.all_reduce(x, async_op=True)),
        lambda: dist.all_reduce(x, async_op=True).wait(),
    ),
    "refused": record(refused, lambda: dist.barrier()),
    # As where another group has come to the address of the one that was called.
    "destroyed group": [record(lambda: dist.all_reduce(x), recorder._groups.clear), len(recorder.snapshot().groups)],
    "tags": [record() or tags(3000), record() or tags(30_000)],
    "call_s": before,
    "record_s": min(alone() for _ in range(20)),
}))
"""


def test_recorder(script):
    """Every way into a process group, once each; and a mode around an operator does not count it twice."""
    seen = script(RECORD).read()
    kinds = ["all_reduce", *["all_gather"] * 2, *["reduce_scatter"] * 2]
    rooted = ["broadcast", "reduce", "gather", "scatter"]
    assert [each[0] for each in seen["native"]] == [*kinds, *rooted, "all_to_all", "barrier", "barrier"]
    assert [each[1] for each in seen["native"]] == list(range(1, 13))
    assert {each[2] for each in seen["native"]} == {6, None}
    assert [each[3] for each in seen["native"]] == [None] * 5 + [0] * 4 + [None] * 3
    assert {each[4] for each in seen["native"]} == {"done"}
    assert [(each[0], each[4]) for each in seen["functional"]] == [
        ("all_reduce", "done"),
        ("all_gather", "done"),
        ("reduce_scatter", "called"),
        ("all_reduce", "done"),
    ]
    assert seen["dtensor"], "nothing seen of DTensor"
    assert [each[4] for each in seen["waited for or not"]] == ["called", "done"]
    assert seen["refused"] == [["barrier", 1, None, None, "done"]]
    assert seen["destroyed group"] == [[["all_reduce", 1, 6, None, "done"]], 1]
    assert seen["tags"][0] == 3000
    assert 256 <= seen["tags"][1] <= 4096
    # Some 1.3 us beside 10, the least that a call takes where no other process has a part in it.
    assert seen["record_s"] < 0.5 * seen["call_s"], (seen["record_s"], seen["call_s"])


def test_a_receive_that_nobody_waits_for_costs_the_ranks(cluster):
    """Its message would stay in the connection, and the next collective wait for ever; the numbers of calls agree."""

    def let_go(rank):
        if rank == 0:
            dist.send(torch.ones(4), dst=1)
        else:
            dist.irecv(torch.ones(4), src=0)
        raise KeyError("between")

    pids = cluster.start().pids
    with pytest.raises(RankError):
        cluster.run(let_go, timeout=20)
    assert cluster.run(lambda rank: dist.barrier() or int(rank), timeout=40) == [0, 1]
    assert not {*cluster.pids} & {*pids}
