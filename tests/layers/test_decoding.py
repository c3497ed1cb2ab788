"""Token by token with a cache equals the whole sequence at once, whatever the heads and however the tokens come.

The reference is always the plain module over the whole sequence, without a cache. allclose on purpose, in float64: the
kernels for one query and for many add up in another order. 1e-11 of the largest element.
"""

from typing import Any

import pytest
import torch
from torch import nn

from tplab import Cluster
from tplab.cluster import RankError
from tplab.layers.attention import ParallelAttention
from tplab.layers.block import ParallelBlock, run_blocks
from tplab.layers.core_attention import KVCache, RotaryEmbedding, causal_mask
from tplab.layers.plain import MLP, Attention, Block
from tplab.layers.strategies import BatchSplit, Blocking, Chunked, SequenceParallel, set_strategy

TOLERANCE = 1e-11
HIDDEN = 24
SEQ = 9
# 12 query heads; 3 key-value heads on 4 ranks and 2 on 3 are cut inside a group, 1 and 2 on 4 are replicated.
KV_HEADS = [12, 4, 3, 2, 1]
OPTIONS: dict[str, dict[str, Any]] = {
    "bare": {},
    "rope, bias": {"rope": True, "bias": True, "out_bias": True},
    "rope, qk norm, window of 4": {"rope": True, "qk_norm": True, "sliding_window": 4},
    "window of 1": {"sliding_window": 1},
}
# How many tokens come at once.
ARRIVALS = {
    "token by token": [1] * SEQ,
    "prefill, then tokens": [5] + [1] * 4,
    "all at once": [SEQ],
    "prefill in chunks": [3, 1, 4, 1],
    "prefill in two": [2, 7],
}


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference, in units of the largest wanted element."""
    if got.shape != want.shape:
        return float("inf")
    return float((got - want).abs().max() / want.abs().max())


def make_attention(num_kv_heads: int, options: dict[str, Any]) -> Attention:
    torch.manual_seed(2)
    options = dict(options)
    if options.pop("rope", False):
        options["rope"] = RotaryEmbedding(6)
    plain = Attention(HIDDEN, 12, num_kv_heads, head_dim=6, **options).double()
    for norm in (plain.q_norm, plain.k_norm):
        if norm is not None:
            nn.init.normal_(norm.weight)
    return plain


def tokens_of(batch: int, seq: int = SEQ) -> torch.Tensor:
    return torch.randn(batch, seq, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))


def decode(rank: Any, num_kv_heads: int, name: str) -> dict[str, float]:
    plain = make_attention(num_kv_heads, OPTIONS[name])
    parallel = ParallelAttention.from_module(plain, rank.group)
    errors = {}
    with torch.inference_mode():
        for batch in (1, 3):
            x = tokens_of(batch)
            want = plain(x)
            plain_cache = KVCache(batch, num_kv_heads, SEQ, 6, dtype=torch.float64)
            plain(x, cache=plain_cache)
            heads = slice(parallel.heads.kv_start, parallel.heads.kv_end)
            for arrival, sizes in ARRIVALS.items():
                cache = parallel.make_cache(batch, SEQ)
                got = torch.cat([parallel(part, cache=cache) for part in x.split(sizes, dim=1)], dim=1)
                assert cache.length == SEQ
                errors[f"{batch} x {arrival}"] = off(got, want)
                errors[f"{batch} x {arrival}, keys"] = off(cache.k_BGSE, plain_cache.k_BGSE[:, heads])
                errors[f"{batch} x {arrival}, values"] = off(cache.v_BGSE, plain_cache.v_BGSE[:, heads])
    return errors


def too_far(outcomes: list[dict[str, float]]) -> dict[str, float]:
    return {f"rank {r}: {k}": v for r, errors in enumerate(outcomes) for k, v in errors.items() if not v < TOLERANCE}


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("num_kv_heads", KV_HEADS)
def test_decoding_equals_the_whole_sequence(ranks: Cluster, num_kv_heads: int, name: str) -> None:
    assert too_far(ranks.run(decode, num_kv_heads, name)) == {}


def make_blocks(num_kv_heads: int, group: Any, window: int | None = None) -> tuple[nn.Sequential, list[ParallelBlock]]:
    blocks = []
    for seed in range(2):
        attention = make_attention(num_kv_heads, {"rope": True, "sliding_window": window})
        torch.manual_seed(seed)
        for parameter in attention.parameters():
            nn.init.normal_(parameter, std=0.3)
        block = Block(attention, MLP(HIDDEN, 36)).double()
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            nn.init.normal_(norm.weight)
        blocks.append(block.double())
    return nn.Sequential(*blocks), [ParallelBlock.from_module(block, group) for block in blocks]


SPLITS = [
    Blocking(),
    Chunked(1),
    BatchSplit(2),
    BatchSplit(2, by="batch"),
    BatchSplit(8, by="batch"),
    BatchSplit(3, by="sequence"),
    SequenceParallel(),
]


def stack_with_caches(rank: Any, num_kv_heads: int, window: int | None) -> dict[str, float]:
    """Prefill in two parts, then decode, with every strategy: the outputs of the plain stack, and one set of caches."""
    plain, blocks = make_blocks(num_kv_heads, rank.group, window)
    errors = {}
    with torch.inference_mode():
        for batch in (1, 3):
            x = tokens_of(batch)
            want = plain(x)
            reference: list[KVCache] = []
            for strategy in SPLITS:
                for block in blocks:
                    set_strategy(block, strategy)
                caches = [block.self_attn.make_cache(batch, SEQ + 2) for block in blocks]
                got = [run_blocks(blocks, part, caches=caches) for part in x.split([5, 2, 1, 1], dim=1)]
                reference = reference or caches
                errors[f"{batch} x {strategy}"] = off(torch.cat(got, dim=1), want)
                for i, (cache, right) in enumerate(zip(caches, reference, strict=True)):
                    assert cache.length == SEQ, f"{strategy}: {cache.length} tokens in the cache of block {i}"
                    errors[f"{batch} x {strategy}, keys of block {i}"] = off(cache.k_BGSE, right.k_BGSE)
                    errors[f"{batch} x {strategy}, values of block {i}"] = off(cache.v_BGSE, right.v_BGSE)
    return errors


@pytest.mark.parametrize(("num_kv_heads", "window"), [(3, None), (2, 3)])
def test_every_strategy_fills_the_same_caches(ranks: Cluster, num_kv_heads: int, window: int | None) -> None:
    assert too_far(ranks.run(stack_with_caches, num_kv_heads, window)) == {}


def padded_batch(rank: Any) -> dict[str, float]:
    """Three prompts of different lengths, padded on the left, decoded together: each as if it were alone."""
    lengths, steps = [5, 3, 1], 3
    plain, blocks = make_blocks(2, rank.group)
    longest = max(lengths)
    alone = [tokens_of(1, length + steps) * (row + 1) for row, length in enumerate(lengths)]
    want = [plain(x) for x in alone]
    x = torch.zeros(3, longest + steps, HIDDEN, dtype=torch.float64)
    real = torch.zeros(3, longest + steps, dtype=torch.bool)
    for row, length in enumerate(lengths):
        x[row, longest - length :] = alone[row]
        real[row, longest - length :] = True
    positions = (real.cumsum(1) - 1).clamp_min(0)
    total = longest + steps
    # Padding sees itself, so that no row of the mask is empty.
    mask = causal_mask(total, total, None, x.device) & (real[:, None, :] | torch.eye(total, dtype=torch.bool))
    mask = mask.unsqueeze(1)  # (B, 1, S, S)
    errors = {}
    with torch.inference_mode():
        for strategy in [Blocking(), BatchSplit(2), BatchSplit(3, by="batch"), SequenceParallel()]:
            for block in blocks:
                set_strategy(block, strategy)
            caches = [block.self_attn.make_cache(3, total) for block in blocks]
            got, start = [], 0
            for size in [longest] + [1] * steps:
                end = start + size
                got.append(
                    run_blocks(
                        blocks,
                        x[:, start:end],
                        caches=caches,
                        positions=positions[:, start:end],
                        mask=mask[:, :, start:end, :end],
                    )
                )
                start = end
            y = torch.cat(got, dim=1)
            for row, length in enumerate(lengths):
                errors[f"{strategy}, row {row}"] = off(y[row, longest - length :], want[row][0])
    return errors


def test_positions_and_masks_by_sequence(ranks: Cluster) -> None:
    assert too_far(ranks.run(padded_batch)) == {}


def positions_in_all_shapes(rank: Any) -> dict[str, float]:
    plain = make_attention(3, {"rope": True})
    parallel = ParallelAttention.from_module(plain, rank.group)
    x = tokens_of(3, 5)
    far = torch.tensor([[0, 1, 2, 3, 4], [9, 8, 7, 6, 5], [100, 0, 50, 3, 3]])
    rows = torch.cat([plain(x[row : row + 1], positions=far[row]) for row in range(3)])
    same = plain(x, positions=far[1])
    assert off(rows, plain(x)) > 1e-3, "positions must matter for this to say anything"
    assert off(same, plain(x)) > 1e-3
    return {
        "(B, S)": off(parallel(x, positions=far), rows),
        "(S,)": off(parallel(x, positions=far[1]), same),
        "(1, S)": off(parallel(x, positions=far[1:2]), same),
        "by default": off(parallel(x, positions=torch.arange(5)), plain(x)),
    }


def test_positions(ranks: Cluster) -> None:
    assert too_far(ranks.run(positions_in_all_shapes)) == {}


def masks_in_all_shapes(rank: Any) -> dict[str, float]:
    plain, (block, _) = make_blocks(2, rank.group)
    plain = plain[0]
    x = tokens_of(3, 6)
    mask = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    mask |= torch.eye(6, dtype=torch.bool)
    rows = torch.cat([plain(x[row : row + 1], mask=mask[row : row + 1]) for row in range(3)])
    everyone = plain(x, mask=mask[:1])
    assert off(rows, plain(x)) > 1e-3, "the mask must matter for this to say anything"
    errors = {}
    for strategy in [Blocking(), BatchSplit(2, by="batch"), BatchSplit(3)]:
        set_strategy(block, strategy)
        errors[f"{strategy}, (B, 1, S, S)"] = off(block(x, mask=mask), rows)
        errors[f"{strategy}, (1, 1, S, S)"] = off(block(x, mask=mask[:1]), everyone)
    return errors


def test_masks(ranks: Cluster) -> None:
    assert too_far(ranks.run(masks_in_all_shapes)) == {}


def split_sequence_with(rank: Any, batch: int, seq: int, what: str) -> None:
    _, (block, _) = make_blocks(2, rank.group)
    set_strategy(block, BatchSplit(2, by="sequence"))
    how = {"positions": torch.arange(seq), "mask": torch.ones(1, 1, seq, seq, dtype=torch.bool)}
    block(tokens_of(batch, seq), **{what: how[what]})


@pytest.mark.parametrize("what", ["positions", "mask"])
def test_a_split_sequence_takes_neither_positions_nor_mask(clusters: dict[int, Cluster], what: str) -> None:
    with pytest.raises(RankError, match="positions and mask cannot be given where the sequence is split"):
        clusters[2].run(split_sequence_with, 1, 4, what)


@pytest.mark.parametrize("batch", [1, 3])
def test_where_there_is_nothing_to_split_positions_are_taken(clusters: dict[int, Cluster], batch: int) -> None:
    """A decode step of a model that splits its prefill by sequence: one token each, for one sequence or three."""
    clusters[2].run(split_sequence_with, batch, 1, "positions")


def overflow(rank: Any) -> dict[str, Any]:
    parallel = ParallelAttention.from_module(make_attention(4, {"rope": True}), rank.group)
    x = tokens_of(2, 9)
    seen: dict[str, Any] = {}
    with torch.inference_mode():
        cache = parallel.make_cache(2, 8)
        parallel(x[:, :5], cache=cache)
        before = cache.k_BGSE.clone(), cache.v_BGSE.clone()
        with pytest.raises(ValueError, match=r"the cache has room for 8 tokens; 5 are in it and 4 more came"):
            parallel(x[:, 5:], cache=cache)
        seen["untouched"] = cache.length == 5 and all(
            torch.equal(now, then) for now, then in zip((cache.k_BGSE, cache.v_BGSE), before, strict=True)
        )
        parallel(x[:, 5:8], cache=cache)
        seen["exactly full"] = cache.length == cache.max_length == 8
        with pytest.raises(ValueError, match=r"8 are in it and 1 more came"):
            parallel(x[:, 8:], cache=cache)
        other = parallel.make_cache(3, 8)
        with pytest.raises(ValueError, match=r"the cache is for batch 3 .*; got batch 2"):
            parallel(x[:, :1], cache=other)
        cache.reset()
        seen["reset"] = cache.length == 0 and cache.max_length == 8
        fresh = parallel(x[:, :8], cache=parallel.make_cache(2, 8))
        seen["as new"] = torch.equal(parallel(x[:, :8], cache=cache), fresh)
        seen["bytes"] = cache.num_bytes == 2 * 2 * parallel.heads.num_kv * 8 * 6 * 8
    return seen


def test_overflow_raises_and_leaves_the_cache_as_it_was(ranks: Cluster) -> None:
    for seen in ranks.run(overflow):
        assert all(seen.values()), seen


def test_rows_share_memory_and_have_a_length_of_their_own() -> None:
    cache = KVCache(4, 2, 5, 3, dtype=torch.float64)
    first = torch.randn(4, 2, 2, 3, dtype=torch.float64)
    cache.append(first, -first)
    rows = cache.rows(1, 3)
    assert rows.length == 2
    assert rows.max_length == 5
    new = torch.randn(2, 2, 1, 3, dtype=torch.float64)
    k, v = rows.append(new, 2 * new)
    assert torch.equal(k, torch.cat([first[1:3], new], dim=2))
    assert torch.equal(v, torch.cat([-first[1:3], 2 * new], dim=2))
    assert (rows.length, cache.length) == (3, 2)
    assert torch.equal(cache.k_BGSE[1:3, :, 2:3], new)
    assert torch.equal(cache.v_BGSE[1:3, :, 2:3], 2 * new)
    assert not cache.k_BGSE[[0, 3], :, 2:].any(), "a sequence of somebody else was written"
    with pytest.raises(ValueError, match="the cache is for batch 2"):
        rows.append(first, first)
    assert rows.rows(1, 2).k_BGSE.data_ptr() == cache.k_BGSE[2].data_ptr()


def test_cached_keys_are_views_not_copies() -> None:
    """A copy of the past at every step would cost more than the attention."""
    cache = KVCache(1, 1, 8, 2)
    for _ in range(3):
        k, v = cache.append(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
        assert k.data_ptr() == cache.k_BGSE.data_ptr()
        assert v.data_ptr() == cache.v_BGSE.data_ptr()


def test_caches_as_many_as_blocks() -> None:
    _, blocks = make_blocks(2, None)
    x = tokens_of(1)
    cache = blocks[0].self_attn.make_cache(1, 2 * SEQ)
    with torch.no_grad():
        with pytest.raises(ValueError, match="caches must have one for each of the 2 blocks; got 1"):
            run_blocks(blocks, x, caches=[cache])
        # Two blocks with one cache would attend to each other's keys.
        with pytest.raises(ValueError, match="cache"):
            run_blocks(blocks, x, cache=cache)


@pytest.mark.parametrize("strategy", [Blocking(), BatchSplit(2, by="batch"), BatchSplit(2, by="sequence")], ids=str)
def test_a_cache_for_another_batch_is_refused_by_every_strategy(strategy: Blocking) -> None:
    _, (block, _) = make_blocks(2, None)
    set_strategy(block, strategy)
    with torch.no_grad(), pytest.raises(ValueError, match="the cache is for batch 4"):
        block(tokens_of(3), cache=block.self_attn.make_cache(4, SEQ))


@pytest.mark.parametrize("strategy", [Blocking(), BatchSplit(2, by="batch"), BatchSplit(2, by="sequence")], ids=str)
def test_after_an_overflow_the_cache_is_as_before_with_every_strategy(strategy: Blocking) -> None:
    _, (block, _) = make_blocks(2, None)
    set_strategy(block, strategy)
    cache = block.self_attn.make_cache(2, SEQ - 2)
    with torch.no_grad(), pytest.raises(ValueError, match="the cache has room for 7 tokens"):
        block(tokens_of(2), cache=cache)
    assert cache.length == 0
