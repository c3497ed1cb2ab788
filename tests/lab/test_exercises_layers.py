"""Checkers of notebook 03, against right answers in several forms, an empty answer and planted wrong ones."""

import re

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from tplab.cluster import Cluster
from tplab.lab.exercises import check_attention, check_mlp

pytestmark = pytest.mark.timeout(90)


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


def mlp_dealt(rank, x, gate, up, down):
    """Features in turns, and the way from NumPy: another right answer."""
    mine = slice(rank.index, None, rank.world_size)
    y = F.linear(F.silu(F.linear(x, gate[mine])) * F.linear(x, up[mine]), down[:, mine])
    dist.all_reduce(y, group=rank.group)
    return y.cpu().numpy()


def mlp_from_the_last(rank, x, gate, up, down):
    """Functional collectives, tokens in a row, a tuple of one: right."""
    import torch.distributed._functional_collectives as funcol

    gate, up, down = (w.chunk(rank.world_size, dim)[-1 - rank.index] for w, dim in ((gate, 0), (up, 0), (down, 1)))
    flat = x.flatten(0, 1)
    y = (F.silu(flat @ gate.T) * (flat @ up.T)) @ down.T
    return (funcol.all_reduce(y, "sum", rank.group).view(x.shape),)


def mlp_by_einsum(rank, x, gate, up, down):
    """Everything on every rank, by an operator that no count of matmuls sees."""
    h = F.silu(torch.einsum("bsd,id->bsi", x, gate)) * torch.einsum("bsd,id->bsi", x, up)
    y = torch.einsum("bsi,di->bsd", h, down) / rank.world_size
    dist.all_reduce(y, group=rank.group)
    return y


def mlp_by_elements(rank, x, gate, up, down):
    def times(a, w):
        return (a.unsqueeze(-2) * w).sum(-1)

    y = times(F.silu(times(x, gate)) * times(x, up), down) / rank.world_size
    dist.all_reduce(y, group=rank.group)
    return y


def mlp_on_rank_0(rank, x, gate, up, down):
    y = torch.zeros_like(x) if rank.index else mlp_alone(rank, x, gate, up, down)
    dist.all_reduce(y, group=rank.group)
    return y


def mlp_with_weights_of_others(rank, x, gate, up, down):
    """Fetches what it has not, and multiplies everything."""
    for w in (gate, up, down):
        w.nan_to_num_(0.0)
        dist.all_reduce(w, group=rank.group)
    return mlp_alone(rank, x, gate, up, down)


def mlp_in_two_reduces(rank, x, gate, up, down):
    y = mlp_no_sum(rank, x, gate, up, down)
    for half in y.chunk(2, -1):
        part = half.contiguous()
        dist.all_reduce(part, group=rank.group)
        half.copy_(part)
    return y


def mlp_swapped(rank, x, gate, up, down):
    return mlp(rank, x, up, gate, down)


def mlp_in_bf16(rank, x, gate, up, down):
    y = mlp_no_sum(rank, x, gate, up, down).bfloat16()
    dist.all_reduce(y, group=rank.group)
    return y.float()


def mlp_behind_the_counter(rank, x, gate, up, down):
    """Right, with the collective where torch's modes do not see it."""
    from torch.utils._python_dispatch import _disable_current_modes

    y = mlp_no_sum(rank, x, gate, up, down)
    with _disable_current_modes():
        dist.all_reduce(y, group=rank.group)
    return y


def of_all(times):
    """With zeros for the weights of others: right, and no work saved, by operators that are no matmuls."""

    def wrong(rank, x, gate, up, down):
        gate, up, down = (weight.nan_to_num() for weight in (gate, up, down))
        y = times(F.silu(times(x, gate)) * times(x, up), down)
        dist.all_reduce(y, group=rank.group)
        return y

    return wrong


mlp_by_elements_of_all = of_all(lambda a, w: (a.unsqueeze(-2) * w).sum(-1))
mlp_by_convolutions_of_all = of_all(lambda a, w: F.conv1d(a.mT, w.unsqueeze(-1)).mT.contiguous())


def mlp_by_elements_of_its_own(rank, x, gate, up, down):
    each = gate.shape[0] // rank.world_size
    mine = slice(rank.index * each, (rank.index + 1) * each)
    gate, up, down = (weight.unsqueeze(0) for weight in (gate[mine], up[mine], down[:, mine]))
    h = F.silu((x.unsqueeze(-2) * gate).sum(-1)) * (x.unsqueeze(-2) * up).sum(-1)
    y = (h.unsqueeze(-2) * down).sum(-1)
    dist.all_reduce(y, group=rank.group)
    return y


@pytest.mark.parametrize("right", [mlp, mlp_dealt, mlp_from_the_last, mlp_by_elements_of_its_own])
def test_mlp_right(cluster: Cluster, right) -> None:
    verdict = check_mlp(cluster, right)
    assert verdict.passed, verdict.message


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (mlp_everywhere, "multiplies with them.*rows 0 to"),
        (mlp_alone, "multiplies with them"),
        (mlp_by_einsum, "multiplies with them"),
        (mlp_by_elements, "multiplies with them"),
        (mlp_by_elements_of_all, "multiplied [24][.\\d]* times its share"),
        (mlp_by_convolutions_of_all, "multiplied [24][.\\d]* times its share"),
        (mlp_on_rank_0, "multiplies with them"),
        (mlp_with_weights_of_others, "exactly one collective.*all-reduce, all-reduce, all-reduce"),
        (mlp_in_two_reduces, "exactly one collective"),
        (mlp_reduces_too_early, "multiplies with them"),
        (mlp_stacked, "off by.*Look at which rows"),
        (mlp_no_sum, "No collective was counted.*one term of a sum"),
        (mlp_swapped, "gate and up are swapped"),
        (mlp_in_bf16, "off by"),
        (mlp_columns_twice, "has shape"),
        (mlp_behind_the_counter, "more operations, 1, than could be counted, 0"),
        (nothing, "must return a tensor; it returned None"),
        (raises, "line 2 of raises: NotImplementedError: write me"),
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


def attention_by_hand(rank, x, q, k, v, o, num_heads, num_kv_heads, *, once=True):
    """Scores and softmax written out, head by head: right."""
    s, hidden = x.shape[1:]
    size, group, each = hidden // num_heads, num_heads // num_kv_heads, num_heads // rank.world_size
    y, shared = torch.zeros_like(x), {}
    later = torch.ones(s, s, dtype=torch.bool, device=x.device).triu(1)
    for head in range(rank.index * each, (rank.index + 1) * each):
        rows, both = (slice(i * size, (i + 1) * size) for i in (head, head // group))
        if not once or head // group not in shared:
            shared[head // group] = x @ k[both].T, x @ v[both].T
        keys, values = shared[head // group]
        scores = torch.einsum("bse,bte->bst", x @ q[rows].T, keys) / size**0.5
        y += scores.masked_fill(later, float("-inf")).softmax(-1) @ values @ o[:, rows].T
    dist.all_reduce(y, group=rank.group)
    return y


def keys_once_per_query_head(*args):
    return attention_by_hand(*args, once=False)


def attention_repeats(rank, x, q, k, v, o, num_heads, num_kv_heads):
    """Query head i of a rank with key-value head i mod the number of them: the groups of another model."""
    b, s, hidden = x.shape
    size, group, h = hidden // num_heads, num_heads // num_kv_heads, num_heads // rank.world_size
    first, last = rank.index * h, (rank.index + 1) * h
    low, high = first // group, (last - 1) // group + 1
    queries = F.linear(x, q[first * size : last * size]).view(b, s, h, size).transpose(1, 2)
    keys, values = (
        F.linear(x, w[low * size : high * size]).view(b, s, high - low, size).transpose(1, 2) for w in (k, v)
    )
    keys, values = (t.repeat(1, h // (high - low), 1, 1) for t in (keys, values))
    y = F.scaled_dot_product_attention(queries, keys, values, is_causal=True).transpose(1, 2).reshape(b, s, -1)
    y = F.linear(y, o[:, first * size : last * size])
    dist.all_reduce(y, group=rank.group)
    return y


def no_keys_where_shared(rank, x, q, k, v, o, num_heads, num_kv_heads):
    """One key-value head for several ranks, and this one takes none of it."""
    return attention(rank, x, q, k * (num_kv_heads >= rank.world_size), v, o, num_heads, num_kv_heads)


def everything_by_einsum(rank, x, q, k, v, o, num_heads, num_kv_heads):
    hidden = x.shape[-1]
    size = hidden // num_heads
    queries, keys, values = (
        torch.einsum("bsd,hed->bhse", x, w.view(-1, size, hidden)).repeat_interleave(times, 1)
        for w, times in ((q, 1), (k, num_heads // num_kv_heads), (v, num_heads // num_kv_heads))
    )
    y = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    y = torch.einsum("bhse,dhe->bsd", y, o.view(hidden, num_heads, size)) / rank.world_size
    dist.all_reduce(y, group=rank.group)
    return y


def scaled(by):
    def wrong(rank, x, q, k, v, o, num_heads, num_kv_heads):
        size = x.shape[-1] // num_heads
        return attention(rank, x, q * by(size), k, v, o, num_heads, num_kv_heads)

    return wrong


@pytest.mark.parametrize("right", [attention, attention_by_hand])
def test_attention_right(cluster: Cluster, right) -> None:
    verdict = check_attention(cluster, right)
    assert verdict.passed, verdict.message


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (over_heads, "off by.*heads come before the sequence"),
        (not_causal, "The causal mask is missing"),
        (scaled(lambda size: size**0.5), "divided by the square root of a head's size, which is not done"),
        (scaled(lambda size: size**-0.5), "not by its square root"),
        (attention_repeats, "heads 16, key-value heads 8.*which query heads share|heads 8, key-value heads 2.*share"),
        (no_keys_where_shared, "key-value heads 1, rank 0: the result is off|key-value heads 2, rank 0: .* off"),
        (all_keys, "times its share"),
        (keys_once_per_query_head, "times its share.*project a key-value head once"),
        (everything_by_einsum, "multiplies with them.*key-value heads 0"),
        (nothing, "must return a tensor"),
        (raises, "line 2 of raises"),
    ],
)
def test_attention_wrong(cluster: Cluster, wrong, says: str) -> None:
    verdict = check_attention(cluster, wrong)
    assert not verdict.passed
    assert re.search(says, verdict.message), verdict.message


def test_other_numbers_of_ranks_are_refused(clusters) -> None:
    with pytest.raises(ValueError, match="cluster must have 2 or 4 ranks"):
        check_mlp(clusters[1], mlp)
