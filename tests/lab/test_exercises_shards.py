"""Checkers of what is computed from shards, 03's fused QKV weight and 08's argmax: right answers of several kinds, an
empty one and planted wrong ones."""

import math
import re

import pytest
import torch
import torch.distributed as dist

from tplab import Cluster
from tplab.checks import ArgumentError
from tplab.lab.exercises import check_argmax, check_qkv

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", params=[2, 4], ids=lambda n: f"n={n}")
def cluster(request, clusters) -> Cluster:
    return clusters[request.param]


def sizes(rank, fused, num_heads, num_kv_heads):
    """Rows of a head, query heads and key-value heads of a rank, and the first of its key-value heads."""
    head = fused.get_shape()[0] // (num_heads + 2 * num_kv_heads)
    queries = num_heads // rank.world_size
    return head, queries, max(1, num_kv_heads // rank.world_size), rank.index * queries * num_kv_heads // num_heads


def qkv(rank, fused, num_heads, num_kv_heads, *, order="QKV", kv_of=None, read=lambda fused, a, b: fused[a:b]):
    e, h, g, kv = sizes(rank, fused, num_heads, num_kv_heads)
    kv = kv if kv_of is None else kv_of
    first = {"Q": rank.index * h, "K": num_heads + kv, "V": num_heads + num_kv_heads + kv}
    count = {"Q": h, "K": g, "V": g}
    return torch.cat([read(fused, first[part] * e, (first[part] + count[part]) * e) for part in order])


def head_by_head(rank, fused, num_heads, num_kv_heads):
    """One read per head, with both indices given, on the rank's device."""
    e, h, g, kv = sizes(rank, fused, num_heads, num_kv_heads)
    heads = [rank.index * h + i for i in range(h)]
    heads += [num_heads + kv + i for i in range(g)] + [num_heads + num_kv_heads + kv + i for i in range(g)]
    return torch.cat([fused[i * e : (i + 1) * e, :] for i in heads]).to(rank.device)


def by_half_columns(rank, fused, num_heads, num_kv_heads):
    half = fused.get_shape()[1] // 2

    def read(fused, a, b):
        return torch.cat([fused[a:b, :half], fused[a:b, half:]], 1)

    return qkv(rank, fused, num_heads, num_kv_heads, read=read)


@pytest.mark.parametrize("right", [qkv, head_by_head, by_half_columns])
def test_qkv_right(cluster: Cluster, right) -> None:
    verdict = check_qkv(cluster, right)
    assert verdict.passed, verdict


def stub(rank, *arguments):
    raise NotImplementedError("write me")


def nothing(rank, *arguments):
    return None


def in_one_piece(rank, fused, num_heads, num_kv_heads):
    rows = fused.get_shape()[0] // rank.world_size
    return fused[rank.index * rows : (rank.index + 1) * rows]


def all_then_slice(rank, fused, num_heads, num_kv_heads):
    full = fused[:]
    return qkv(rank, fused, num_heads, num_kv_heads, read=lambda _, a, b: full[a:b])


def keys_twice(rank, fused, num_heads, num_kv_heads):
    e, _, g, kv = sizes(rank, fused, num_heads, num_kv_heads)
    _ = fused[(num_heads + kv) * e : (num_heads + kv + g) * e]
    return qkv(rank, fused, num_heads, num_kv_heads)


def kv_head_in_turns(rank, fused, num_heads, num_kv_heads):
    """Rank r takes key-value head r mod G: right where there are as many."""
    g = max(1, num_kv_heads // rank.world_size)
    return qkv(rank, fused, num_heads, num_kv_heads, kv_of=rank.index * g % num_kv_heads)


def the_first_kv_head(rank, fused, num_heads, num_kv_heads):
    return qkv(rank, fused, num_heads, num_kv_heads, kv_of=0)


def all_kv_heads(rank, fused, num_heads, num_kv_heads):
    e, h, _, _ = sizes(rank, fused, num_heads, num_kv_heads)
    return torch.cat([fused[rank.index * h * e : (rank.index + 1) * h * e], fused[num_heads * e :]])


def no_sharing(rank, fused, num_heads, num_kv_heads):
    """Fewer key-value heads than ranks: none for some."""
    e, h, _, _ = sizes(rank, fused, num_heads, num_kv_heads)
    g = num_kv_heads // rank.world_size
    return torch.cat(
        [
            fused[rank.index * h * e : (rank.index + 1) * h * e],
            fused[(num_heads + rank.index * g) * e : (num_heads + (rank.index + 1) * g) * e],
            fused[
                (num_heads + num_kv_heads + rank.index * g) * e : (num_heads + num_kv_heads + (rank.index + 1) * g) * e
            ],
        ]
    )


def values_first(rank, fused, num_heads, num_kv_heads):
    return qkv(rank, fused, num_heads, num_kv_heads, order="QVK")


def keys_for_values(rank, fused, num_heads, num_kv_heads):
    return qkv(rank, fused, num_heads, num_kv_heads, order="QKK")


def in_float32(rank, fused, num_heads, num_kv_heads):
    return qkv(rank, fused, num_heads, num_kv_heads).float()


def in_three(rank, fused, num_heads, num_kv_heads):
    return qkv(rank, fused, num_heads, num_kv_heads).tensor_split(3)


def made_up(rank, fused, num_heads, num_kv_heads):
    return qkv(rank, fused, num_heads, num_kv_heads) * 0.5


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (stub, "NotImplementedError: write me"),
        (nothing, r"must return its rows of the file, a tensor of shape .* and bfloat16; it returned None"),
        (
            in_one_piece,
            r"rows 0 to \d+ in one piece: that is \d heads of Q, \d heads of K, 0 heads of V.*\[Q \| K \| V\]",
        ),
        (all_then_slice, r"right, but .* bytes were read of the file, \d.*That is the whole of it: fused\[:\] reads"),
        (keys_twice, r"right, but .* 1.33 times"),
        (the_first_kv_head, r"rank 1: K: expected heads? \[\d.*came \[0.*Query head q uses key-value head q // 1"),
        (all_kv_heads, r"rank 0: K: expected heads? \[0.*came \[0, 1, 2"),
        (no_sharing, r"With \d+ heads and \d key-value heads? on . ranks: rank 0: K: expected head \[0\] .*came \[\]"),
        (values_first, "the right rows in another order"),
        (keys_for_values, r"K: expected heads? .* came"),
        (in_float32, "and float32"),
        (in_three, "it returned three"),
        (made_up, "not in the file"),
    ],
)
def test_qkv_wrong(cluster: Cluster, wrong, says: str) -> None:
    verdict = check_qkv(cluster, wrong)
    assert not verdict.passed
    assert re.search(says, verdict.message), verdict.message


def test_qkv_shared_heads_in_turns(clusters) -> None:
    """With two ranks that share the one key-value head it is right; with four that share two it is not."""
    assert check_qkv(clusters[2], kv_head_in_turns).passed
    verdict = check_qkv(clusters[4], kv_head_in_turns)
    assert re.search(
        r"With 8 heads and 2 key-value heads on 4 ranks: rank 1: K: expected head \[0\] .*, came \[1\].*q // 4",
        verdict.message,
    ), verdict


def argmax(rank, logits, start, *, tie_last=False, dtype=torch.float64, offset=True, empty=-torch.inf):
    """One all-gather of each rank's largest logit and its token; what can be done wrong as arguments."""
    rows = logits.shape[0]
    if logits.shape[1]:
        best, place = logits.max(-1)
        if tie_last:
            place = logits.shape[1] - 1 - logits.flip(-1).max(-1).indices
        mine = torch.stack([best.to(dtype), (place + start * offset).to(dtype)], -1)
    else:
        mine = torch.full((rows, 2), empty, dtype=dtype, device=logits.device)
    every = [torch.empty_like(mine) for _ in range(rank.world_size)]
    dist.all_gather(every, mine, group=rank.group)
    best, token = torch.stack(every).unbind(-1)
    if tie_last:
        best, token = best.flip(0), token.flip(0)
    return token.gather(0, best.argmax(0, keepdim=True)).squeeze(0).long()


def largest_then_lowest(rank, logits, start):
    """Two all-reduces: the largest logit, then the lowest token that has it."""
    best = logits.new_full(logits.shape[:1], -torch.inf)
    if logits.shape[1]:
        best = logits.amax(-1)
    top = best.clone().float()
    dist.all_reduce(top, dist.ReduceOp.MAX, group=rank.group)
    token = torch.full(top.shape, 1 << 40, device=top.device)
    if logits.shape[1]:
        token = torch.where(best == top, logits.argmax(-1) + start, token)
    dist.all_reduce(token, dist.ReduceOp.MIN, group=rank.group)
    return token


def one_number(rank, logits, start):
    """Logit and token packed into one integer, whose order is theirs; one all-reduce of 8 bytes. As a NumPy array."""
    packed = torch.full(logits.shape[:1], -(1 << 62), device=logits.device)
    if logits.shape[1]:
        bits = logits.float().view(torch.int32).long()
        order = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
        tokens = torch.arange(start, start + logits.shape[1], device=logits.device)
        packed = ((order << 24) + ((1 << 24) - 1 - tokens)).amax(-1)
    dist.all_reduce(packed, dist.ReduceOp.MAX, group=rank.group)
    return ((1 << 24) - 1 - (packed & ((1 << 24) - 1))).int().cpu().numpy()


def one_decides(rank, logits, start):
    """Gathered by rank 0, which tells the others."""
    mine = torch.full((logits.shape[0], 2), -torch.inf, dtype=torch.float64, device=logits.device)
    if logits.shape[1]:
        best, place = logits.max(-1)
        mine = torch.stack([best.double(), (place + start).double()], -1)
    every = [torch.empty_like(mine) for _ in range(rank.world_size)] if rank.index == 0 else None
    dist.gather(mine, every, group=rank.group)
    token = torch.zeros(logits.shape[0], dtype=torch.int64, device=logits.device)
    if every is not None:
        best, tokens = torch.stack(every).unbind(-1)
        token = tokens.gather(0, best.argmax(0, keepdim=True)).squeeze(0).long()
    dist.broadcast(token, 0, group=rank.group)
    return token.tolist()


def as_objects(rank, logits, start):
    """Pickled pairs, whose frame is a few bytes more; the lowest of ties by Python's own order."""
    mine = [(-max(row), start + row.index(max(row))) if row else (math.inf, 1 << 40) for row in logits.tolist()]
    every = [None] * rank.world_size
    dist.all_gather_object(every, mine, group=rank.group)
    return [min(pairs)[1] for pairs in zip(*every, strict=True)]


@pytest.mark.parametrize("right", [argmax, largest_then_lowest, one_number, one_decides, as_objects])
def test_argmax_right(cluster: Cluster, right) -> None:
    verdict = check_argmax(cluster, right)
    assert verdict.passed, verdict


def gathers_the_logits(rank, logits, start):
    widest = torch.tensor([logits.shape[1]], device=logits.device)
    dist.all_reduce(widest, dist.ReduceOp.MAX, group=rank.group)
    padded = logits.new_full((logits.shape[0], int(widest)), -torch.inf)
    padded[:, : logits.shape[1]] = logits
    every = [torch.empty_like(padded) for _ in range(rank.world_size)]
    dist.all_gather(every, padded, group=rank.group)
    return torch.cat(every, -1).argmax(-1)


def sums_the_logits(rank, logits, start):
    """Zeros for what others have, and an all-reduce."""
    full = torch.zeros(logits.shape[0], 5000, device=logits.device)
    full[:, start : start + logits.shape[1]] = logits
    dist.all_reduce(full, group=rank.group)
    ends = torch.tensor([start + logits.shape[1]], device=logits.device)
    dist.all_reduce(ends, dist.ReduceOp.MAX, group=rank.group)
    return full[:, : int(ends)].argmax(-1)


def its_own(rank, logits, start):
    return logits.argmax(-1) + start if logits.shape[1] else torch.zeros(logits.shape[0], dtype=torch.int64)


def without_start(*arguments):
    return argmax(*arguments, offset=False)


def start_by_own_length(rank, logits, start):
    return argmax(rank, logits, rank.index * logits.shape[1])


def highest_of_ties(*arguments):
    return argmax(*arguments, tie_last=True)


def largest_then_highest(rank, logits, start):
    """As largest_then_lowest, but the highest token of those that tie."""
    top = logits.amax(-1).float()
    best = top.clone()
    dist.all_reduce(top, dist.ReduceOp.MAX, group=rank.group)
    token = torch.where(best == top, logits.argmax(-1) + start, torch.tensor(-1))
    dist.all_reduce(token, dist.ReduceOp.MAX, group=rank.group)
    return token


def tokens_in_the_logits_dtype(rank, logits, start):
    return argmax(rank, logits, start, dtype=logits.dtype)


def nothing_is_zero(rank, logits, start):
    """A rank without tokens says 0 with token 0 ... of a vocabulary in which 0 may be the largest."""
    return argmax(rank, logits, start, empty=99.0)


def fails_without_tokens(rank, logits, start):
    logits.max(-1)
    return argmax(rank, logits, start)


def by_its_own_softmax(rank, logits, start):
    return argmax(rank, logits.float().softmax(-1), start)


def on_rank_0_only(rank, logits, start):
    token = argmax(rank, logits, start)
    return token if rank.index == 0 else torch.zeros_like(token)


def through_the_store(rank, logits, start):
    store = dist.distributed_c10d._get_default_store()
    key = f"argmax {rank.world_size} {logits.dtype} {len(logits)}"
    best, place = logits.float().max(-1)
    store.set(f"{key} {rank.index}", repr([best.tolist(), (place + start).tolist()]).replace("inf", "1e999"))
    every = [eval(store.get(f"{key} {peer}")) for peer in range(rank.world_size)]
    best, token = (torch.tensor([each[i] for each in every]) for i in range(2))
    return token.gather(0, best.argmax(0, keepdim=True)).squeeze(0)


def as_floats(*arguments):
    return argmax(*arguments).double()


def with_the_logit(*arguments):
    return torch.stack([argmax(*arguments)] * 2, -1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (stub, "NotImplementedError: write me"),
        (nothing, r"must return one token per row, \(40,\) whole numbers; it returned None"),
        (
            gathers_the_logits,
            r"right, but rank 0 sends [\d,]+ bytes per row; at most 16 · n = \d+ are asked, and its logits",
        ),
        (sums_the_logits, "the largest logit|right, but rank 0 sends"),
        (its_own, r"rank \d, row \d: .*the best of this rank's own shard.*No rank has communicated"),
        (without_start, r"which is number \d+ in the shard of rank \d: add its start to it"),
        (start_by_own_length, "the largest logit is"),
        (highest_of_ties, r"tokens \d+ and \d+ tie, with .* each: the lowest one wins, (\d+)"),
        (largest_then_highest, r"tokens \d+ and \d+ tie"),
        (tokens_in_the_logits_dtype, "With 4,003 tokens.*bfloat16 rounds from 256 on"),
        (nothing_is_zero, r"With \d tokens? of vocabulary.*Does a rank without tokens, or a masked row, win"),
        (by_its_own_softmax, "the largest logit is|tie, with"),
        (on_rank_0_only, "rank 1, row 0: the largest logit is"),
        (through_the_store, "right, but no communication was counted on rank 0"),
        (as_floats, "and float64"),
        (with_the_logit, r"a tensor of shape \(40, 2\)"),
    ],
)
def test_argmax_wrong(cluster: Cluster, wrong, says: str) -> None:
    verdict = check_argmax(cluster, wrong)
    assert not verdict.passed
    assert re.search(says, verdict.message), verdict.message


def test_argmax_of_no_token(clusters) -> None:
    verdict = check_argmax(clusters[2], fails_without_tokens)
    assert verdict.message.startswith("line 2 of fails_without_tokens: IndexError")
    assert "with 1 token of vocabulary over 2 ranks" in verdict.message


def test_one_rank_is_refused(clusters) -> None:
    with pytest.raises(ArgumentError, match="cluster must have two ranks or more"):
        check_argmax(clusters[1], argmax)
    with pytest.raises(ArgumentError, match=r"cluster must have 2, 4 or 8 ranks.*; got 3"):
        check_qkv(clusters[3], qkv)
