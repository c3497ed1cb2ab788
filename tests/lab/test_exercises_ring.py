"""The checker of notebook 02's ring, against right answers of several kinds, an empty one and planted wrong ones."""

import re

import pytest
import torch
import torch.distributed as dist

from tplab import Cluster
from tplab.checks import ArgumentError
from tplab.lab.exercises import check_ring

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def cluster(clusters) -> Cluster:
    return clusters[4]


def swap(rank, out, into, to, source, batched=False):
    """Send ``out``, receive ``into``, at the same time."""
    if batched:
        pairs = ((dist.isend, out, to), (dist.irecv, into, source))
        works = dist.batch_isend_irecv([dist.P2POp(*pair, group=rank.group) for pair in pairs])
    else:
        works = [dist.isend(out, to, group=rank.group), dist.irecv(into, source, group=rank.group)]
    for work in works:
        work.wait()


def go_round(rank, parts, *, step=1, batched=False, steps=None, adds=None, ahead=0):
    """The ring over ``parts``, in place; what can be done wrong as arguments."""
    n, r = rank.world_size, rank.index
    right, left = (r + step) % n, (r - step) % n
    place = r * step + ahead
    for s in range(2 * (n - 1) if steps is None else steps):
        out, into = parts[(place - s) % n], parts[(place - s - 1) % n]
        coming = torch.empty_like(into)
        swap(rank, out, coming, right, left, batched)
        if s < (n - 1 if adds is None else adds):
            into += coming
        else:
            into.copy_(coming)


def ring(rank, x):
    parts = list(x.clone().tensor_split(rank.world_size))
    go_round(rank, parts)
    return torch.cat(parts)


def to_the_left(rank, x):
    go_round(rank, list(x.tensor_split(rank.world_size)), step=-1)
    return x  # changed in place


def padded_in_batches(rank, x):
    n = rank.world_size
    each = -(-len(x) // n)
    y = torch.cat([x, x.new_zeros(n * each - len(x))]).view(n, each)
    go_round(rank, list(y), batched=True)
    return y.flatten()[: len(x)]


def last_chunk_longer(rank, x):
    n, each = rank.world_size, len(x) // rank.world_size
    y = x.clone()
    go_round(rank, [y[c * each : len(x) if c == n - 1 else (c + 1) * each] for c in range(n)])
    return y if x.dtype == torch.bfloat16 else y.numpy()


def both_ways(rank, x):
    """One half of every chunk to the right, the other to the left."""
    y = x.clone()
    halves = [part.tensor_split(2) for part in y.tensor_split(rank.world_size)]
    go_round(rank, [half[0] for half in halves])
    go_round(rank, [half[1] for half in halves], step=-1)
    dist.barrier(rank.group)
    return y


def blocking_in_turns(rank, x):
    """send and recv that block, even ranks the one first and odd ranks the other."""
    n, r = rank.world_size, rank.index
    parts = list(x.clone().tensor_split(n))
    for s in range(2 * (n - 1)):
        out, into = parts[(r - s) % n], parts[(r - s - 1) % n]
        coming = torch.empty_like(into)
        for send in (True, False) if r % 2 == 0 else (False, True):
            if send:
                dist.send(out, (r + 1) % n, group=rank.group)
            else:
                dist.recv(coming, (r - 1) % n, group=rank.group)
        into.copy_(into + coming if s < n - 1 else coming)
    return torch.cat(parts)


@pytest.mark.parametrize(
    "right", [ring, to_the_left, padded_in_batches, last_chunk_longer, both_ways, blocking_in_turns]
)
def test_right_answers_pass(cluster: Cluster, right) -> None:
    verdict = check_ring(cluster, right)
    assert verdict.passed, verdict


def stub(rank, x):
    raise NotImplementedError("cut x into rank.world_size chunks")


def nothing(rank, x):
    ring(rank, x)


def whole_tensors(rank, x):
    """As in many a tutorial."""
    n, r = rank.world_size, rank.index
    total, passed = x.clone(), x.clone()
    for _ in range(n - 1):
        coming = torch.empty_like(x)
        swap(rank, passed, coming, (r + 1) % n, (r - 1) % n)
        total += coming
        passed = coming
    return total


def whole_tensors_in_half_the_bits(rank, x):
    """1.5 times the bytes of x with four ranks, as a ring."""
    return whole_tensors(rank, x.bfloat16()).to(x.dtype)


def one_shot(rank, x):
    n, r = rank.world_size, rank.index
    coming = [torch.empty_like(x) for _ in range(n)]
    others = [peer for peer in range(n) if peer != r]
    works = [dist.isend(x, peer, group=rank.group) for peer in others]
    works += [dist.irecv(coming[peer], peer, group=rank.group) for peer in others]
    for work in works:
        work.wait()
    return x + sum(coming[peer] for peer in others)


def reduce_scatter_only(rank, x):
    parts = list(x.clone().tensor_split(rank.world_size))
    go_round(rank, parts, steps=rank.world_size - 1)
    return torch.cat(parts)


def a_step_too_few(rank, x):
    parts = list(x.clone().tensor_split(rank.world_size))
    go_round(rank, parts, steps=2 * rank.world_size - 3)
    return torch.cat(parts)


def adds_to_the_end(rank, x):
    parts = list(x.clone().tensor_split(rank.world_size))
    go_round(rank, parts, adds=2 * rank.world_size)
    return torch.cat(parts)


def in_rotated_order(rank, x):
    parts = list(x.clone().tensor_split(rank.world_size))
    go_round(rank, parts)
    return torch.cat([*parts[1:], parts[0]])


def never_adds(rank, x):
    parts = list(x.clone().tensor_split(rank.world_size))
    go_round(rank, parts, adds=0)
    return torch.cat(parts)


def sends_before_it_has_come(rank, x):
    """Reads what comes without waiting for it."""
    n, r = rank.world_size, rank.index
    parts = list(x.clone().tensor_split(n))
    works = []
    for s in range(2 * (n - 1)):
        out, into = parts[(r - s) % n], parts[(r - s - 1) % n]
        coming = torch.zeros_like(into)
        works += [dist.isend(out.clone(), (r + 1) % n, group=rank.group)]
        works += [dist.irecv(coming, (r - 1) % n, group=rank.group)]
        into.copy_(into + coming if s < n - 1 else coming)
    for work in works:
        work.wait()
    return torch.cat(parts)


def to_the_rank_after_next(rank, x):
    parts = list(x.clone().tensor_split(rank.world_size))
    go_round(rank, parts, step=2)
    return torch.cat(parts)


def in_another_order(rank, x):
    """A ring 0 -> 2 -> 1 -> 3 -> 0: right, and its messages cross."""
    order = [0, 2, 1, 3]
    n, place = rank.world_size, order.index(rank.index)
    parts = list(x.clone().tensor_split(n))
    for s in range(2 * (n - 1)):
        coming = torch.empty_like(parts[(place - s - 1) % n])
        swap(rank, parts[(place - s) % n], coming, order[(place + 1) % n], order[(place - 1) % n])
        into = parts[(place - s - 1) % n]
        into.copy_(into + coming if s < n - 1 else coming)
    return torch.cat(parts)


def along_a_line(rank, x):
    """Sums up to the last rank, chunk by chunk, and sends them back: neighbours and chunks only, but 2 S sent."""
    n, r = rank.world_size, rank.index
    y = x.clone()
    for part in y.tensor_split(n):
        if r > 0:
            coming = torch.empty_like(part)
            dist.recv(coming, r - 1, group=rank.group)
            part += coming
        if r < n - 1:
            dist.send(part, r + 1, group=rank.group)
    for part in y.tensor_split(n):
        if r < n - 1:
            dist.recv(part, r + 1, group=rank.group)
        if r > 0:
            dist.send(part, r - 1, group=rank.group)
    return y


def every_chunk_twice(rank, x):
    parts = list(x.clone().tensor_split(rank.world_size))
    go_round(rank, parts, steps=rank.world_size - 1)
    for _ in range(2):
        go_round(rank, parts, steps=rank.world_size - 1, adds=0, ahead=1)
    return torch.cat(parts)


def library(rank, x):
    dist.all_reduce(x, group=rank.group)
    return x


def gathers(rank, x):
    parts = [torch.empty_like(x) for _ in range(rank.world_size)]
    dist.all_gather(parts, x, group=rank.group)
    return torch.stack(parts).sum(0)


def with_chunk(rank, x):
    """torch.chunk of 3 elements in 4 gives 3."""
    parts = list(x.clone().chunk(rank.world_size))
    go_round(rank, parts)
    return torch.cat(parts)


def receives_into_a_chunk_like_the_one_that_goes(rank, x):
    n, r = rank.world_size, rank.index
    parts = list(x.clone().tensor_split(n))
    for s in range(2 * (n - 1)):
        coming, into = torch.empty_like(parts[(r - s) % n]), parts[(r - s - 1) % n]
        swap(rank, parts[(r - s) % n], coming, (r + 1) % n, (r - 1) % n)
        into.copy_(into + coming if s < n - 1 else coming)
    return torch.cat(parts)


def drops_the_rest(rank, x):
    each = len(x) // rank.world_size
    y = x.clone()
    go_round(rank, [y[c * each : (c + 1) * each] for c in range(rank.world_size)])
    return y


def mean(rank, x):
    return ring(rank, x) / rank.world_size


def only_its_chunk(rank, x):
    parts = list(x.clone().tensor_split(rank.world_size))
    go_round(rank, parts)
    return parts[rank.index]


def through_the_store(rank, x):
    """No message at all."""
    store = dist.distributed_c10d._get_default_store()
    store.set(f"ring {len(x)} {x.dtype} {rank.index}", x.view(torch.uint8).numpy().tobytes())
    total = torch.zeros_like(x)
    for peer in range(rank.world_size):
        data = bytearray(store.get(f"ring {len(x)} {x.dtype} {peer}"))
        total += torch.frombuffer(data, dtype=x.dtype)
    return total


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (stub, "NotImplementedError: cut x into"),
        (nothing, r"must return the sum, a tensor of shape \(4096,\) and float32; it returned None"),
        (whole_tensors, r"message of rank 0 has 16,384 bytes, the whole tensor; a chunk of the 16,384 has 4,096"),
        (whole_tensors_in_half_the_bits, "of 4,096 elements are wrong"),
        (one_shot, r"rank 0 sent to ranks 1, 2 and 3; .* two neighbours, ranks 3 and 1.*one-shot"),
        (reduce_scatter_only, "half of a ring: .*rank 0 chunk 1, rank 1 chunk 2, .*That is the reduce-scatter"),
        (a_step_too_few, "It holds the addend"),
        (adds_to_the_end, "2 times.*wanted: each of the 4 once"),
        (never_adds, "It holds the addend of rank . once|It holds the addend of rank .;"),
        (in_rotated_order, "in chunk 0 .* It is chunk 1 of the sum: in which order"),
        (sends_before_it_has_come, r"wrong.*read before wait\(\) has returned|wrong.*addend|wrong.*has come\?"),
        (to_the_rank_after_next, r"rank 0 sent to rank 2; in a ring of 4 it has two neighbours, ranks 3 and 1"),
        (in_another_order, "rank 0 sent to rank 2; in a ring of 4"),
        (along_a_line, r"rank 1 sends 32,768 bytes in 8 messages; 2\(n-1\) = 6 chunks are 24,576"),
        (every_chunk_twice, "in 9 messages; .* Which chunk goes out twice"),
        (library, "counted besides: all-reduce"),
        (gathers, "counted besides: all-gather"),
        (with_chunk, r"^line 7 of go_round: IndexError.*with 3 elements of float32"),
        (
            receives_into_a_chunk_like_the_one_that_goes,
            # On a busy machine another rank's lost connection may be known before the end of the one that lost it.
            r"With 1,003 elements of float64: .*(ended by gloo \(SIGABRT\).*as long as the one|[Cc]onnection)",
        ),
        (drops_the_rest, "With 1,003 elements of float64: rank 0: 3 of 1,003 elements are wrong"),
        (mean, "float32|are wrong"),
        (only_its_chunk, r"it returned a tensor of shape \(1024,\)"),
        (through_the_store, "sent nothing|takes fewer"),
    ],
)
def test_wrong_answers_fail_and_say_why(cluster: Cluster, wrong, says: str) -> None:
    verdict = check_ring(cluster, wrong)
    assert not verdict.passed
    assert re.search(says, verdict.message), verdict.message


def blocks(rank, x):
    """All ranks send first and wait for it: nobody receives."""
    n, r = rank.world_size, rank.index
    dist.send(x, (r + 1) % n, group=rank.group)
    dist.recv(x, (r - 1) % n, group=rank.group)
    return x


def test_a_hang_is_told_as_one(clusters) -> None:
    with Cluster(3, "gloo") as cluster:
        verdict = check_ring(cluster, blocks, timeout=2)
    assert not verdict.passed
    assert "did not answer within 2 s" in verdict.message
    assert "start both (isend, irecv" in verdict.message


def test_two_ranks_are_too_few(clusters) -> None:
    with pytest.raises(ArgumentError, match=r"cluster must have four ranks.*Cluster\(4, 'gloo'\); got 2"):
        check_ring(clusters[2], ring)
