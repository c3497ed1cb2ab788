"""What is done with a sharded vocabulary equals what torch does with the whole one.

The columns that stand for no token are filled with values that would win, or spoil, whatever looked at them. Argmax,
gathered logits and the sampled tokens of any number of ranks are compared bitwise; losses and gradients within the
rounding of float32, in which they are computed; the distribution of samples by chi-square with a fixed seed.
"""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tplab import Cluster
from tplab.cluster import RankError
from tplab.layers.comm import NullComm
from tplab.layers.shards import VocabShard
from tplab.layers.vocabulary import (
    ParallelLMHead,
    VocabParallelEmbedding,
    gather_logits,
    parallel_argmax,
    parallel_cross_entropy,
    parallel_sample,
)

VOCABS = [1, 3, 5, 101]  # on 4 ranks: three ranks of padding only, one, one, and three padded columns
JUNK = [math.inf, math.nan, 1e30]
# Chi-square of at most 6 degrees of freedom exceeds this once in a million.
CHI_SQUARE = 38.0


def shard_of(full: torch.Tensor, rank: Any, junk: float = math.inf) -> tuple[torch.Tensor, VocabShard]:
    """This rank's columns, with ``junk`` where there is no token."""
    vocab = VocabShard.of(full.shape[-1], rank.index, rank.world_size)
    mine = full[..., vocab.start : vocab.end]
    return torch.cat([mine, mine.new_full((*mine.shape[:-1], vocab.padding), junk)], dim=-1), vocab


def lowest_of_the_largest(full: torch.Tensor) -> torch.Tensor:
    """The argmax by its definition: torch's own leaves open which of several equal ones it returns."""
    size = full.shape[-1]
    return torch.where(full == full.amax(-1, keepdim=True), torch.arange(size), size).amin(-1)


def argmax_cases(rank: Any, vocab_size: int) -> list[str]:
    generator = torch.Generator().manual_seed(vocab_size)
    shape = (40, vocab_size)
    random = torch.randn(shape, dtype=torch.float64, generator=generator)
    cases = {
        "random": random,
        "nearly equal": 1.0 + 1e-15 * random,
        "ties": torch.randint(-2, 1, shape, generator=generator).float(),
        "all equal": torch.full(shape, -3.5),
        "negative": -1e4 - random.abs(),
        "bfloat16": random.bfloat16(),
        "float16": random.half(),
        "minus infinity": torch.full(shape, -torch.inf),
        "one finite": torch.full(shape, -torch.inf).index_fill(1, torch.tensor([vocab_size - 1]), -1e30),
        "batch and sequence": random.view(5, 8, vocab_size).float(),
        "no rows": random[:0].float(),
    }
    wrong = []
    for name, full in cases.items():
        want = lowest_of_the_largest(full) if full.numel() else torch.empty(0, dtype=torch.int64)
        for junk in JUNK:
            got = parallel_argmax(*shard_of(full, rank, min(junk, torch.finfo(full.dtype).max)), rank.group)
            if got.dtype is not torch.int64 or not torch.equal(got, want):
                wrong.append(f"{name}, padded with {junk}")
    return wrong


@pytest.mark.parametrize("vocab", VOCABS)
def test_argmax(ranks: Cluster, vocab: int) -> None:
    assert ranks.run(argmax_cases, vocab) == [[]] * ranks.num_ranks


def argmax_of_nan(rank: Any) -> tuple[list[int], list[int]]:
    full = torch.zeros(4, 11)
    full[0, 10] = full[1, 3] = full[1, 7] = full[2, 0] = math.nan
    full[3] = math.nan
    return parallel_argmax(*shard_of(full, rank), rank.group).tolist(), full.argmax(-1).tolist()


def test_nan_wins_the_argmax_as_in_torch(ranks: Cluster) -> None:
    """As documentation: a model that has gone wrong gives the token of its first NaN, the same on every rank."""
    for got, want in ranks.run(argmax_of_nan):
        assert got == want == [10, 3, 0, 0]


def argmax_needs_no_gradient(rank: Any) -> bool:
    full = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mine, vocab = shard_of(full, rank)
    with torch.inference_mode():
        inside = parallel_argmax(mine.clone(), vocab, rank.group)
    outside = parallel_argmax(mine, vocab, rank.group)
    return torch.equal(inside, outside) and torch.equal(outside, full.argmax(-1))


def test_argmax_with_gradients_and_in_inference_mode(clusters: dict[int, Cluster]) -> None:
    assert all(clusters[3].run(argmax_needs_no_gradient))


def allowed(full: torch.Tensor, temperature: float, top_k: int | None, top_p: float | None) -> torch.Tensor:
    """Probability of each token after the settings, (V,) float64, by the book and one row at a time."""
    scores = (full.double() / temperature).tolist()
    order = sorted(range(len(scores)), key=lambda token: -scores[token])
    if top_k is not None and top_k < len(order):
        last = scores[order[top_k - 1]]
        order = [token for token in order if scores[token] >= last]
    weights = {token: math.exp(scores[token] - scores[order[0]]) for token in order}
    if top_p is not None:
        total, so_far, kept = sum(weights.values()), 0.0, []
        for token in order:
            if so_far >= top_p * total:
                break
            kept.append(token)
            so_far += weights[token]
        weights = {token: weights[token] for token in kept}
    out = torch.zeros(len(scores), dtype=torch.float64)
    for token, weight in weights.items():
        out[token] = weight / sum(weights.values())
    return out


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"temperature": 0},
    {"top_k": 1},
    {"top_k": 2},
    {"top_k": 40},
    {"top_k": 10_000},
    {"top_p": 1e-9},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_p": 1.0},
    {"top_k": 40, "top_p": 0.7, "temperature": 2.0},
    {"top_k": 3, "top_p": 0.999},
]


def sample_all(rank: Any, vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(vocab_size)
    full = 2 * torch.randn(60, vocab_size, generator=generator)
    draws = torch.Generator().manual_seed(3)
    return [
        parallel_sample(*shard_of(full, rank, junk), rank.group, generator=draws, **settings).tolist()
        for settings in SETTINGS
        for junk in (math.inf, math.nan)
    ]


@pytest.mark.parametrize("vocab", VOCABS)
def test_the_same_samples_on_any_number_of_ranks(clusters: dict[int, Cluster], vocab: int) -> None:
    """Bitwise, on every rank, draw after draw: the noise belongs to the token, not to the shard."""
    want = clusters[1].run(sample_all, vocab)[0]
    if vocab > 1:
        assert len({tuple(draw) for draw in want}) > 3, "the draws must differ for this to say anything"
    for n in (2, 3, 4):
        assert clusters[n].run(sample_all, vocab) == [want] * n


def sample_and_check(rank: Any, vocab_size: int) -> list[str]:
    full = 2 * torch.randn(30, vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    argmax = full.argmax(-1)
    wrong = []
    for settings in SETTINGS:
        temperature = settings.get("temperature", 1.0)
        generator = torch.Generator().manual_seed(9)
        seen = [parallel_sample(*shard_of(full, rank), rank.group, generator=generator, **settings) for _ in range(8)]
        greedy = temperature == 0 or settings.get("top_k") == 1 or settings.get("top_p") == 1e-9
        if greedy and not all(torch.equal(tokens, argmax) for tokens in seen):
            wrong.append(f"{settings} is not the argmax")
        if temperature == 0:
            continue
        for row, tokens in enumerate(torch.stack(seen, dim=1)):
            may = allowed(full[row], temperature, settings.get("top_k"), settings.get("top_p"))
            if not bool((may[tokens] > 0).all()):
                wrong.append(f"{settings}, row {row}: a token that is not allowed")
    return wrong


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("vocab", VOCABS)
def test_samples_stay_in_the_allowed_set(ranks: Cluster, vocab: int) -> None:
    assert ranks.run(sample_and_check, vocab) == [[]] * ranks.num_ranks


DISTRIBUTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 4.0},
    {"top_k": 3},
    {"top_k": 6},
    {"top_p": 0.8},
    {"top_k": 5, "top_p": 0.9, "temperature": 2.0},
]
LOGITS = torch.tensor([0.3, -1.0, 1.2, 0.0, -0.4, 1.0, -2.0])
NUM_DRAWS = 20_000


def histograms(rank: Any) -> list[list[int]]:
    full = LOGITS.expand(NUM_DRAWS, -1)
    counts = []
    for seed, settings in enumerate(DISTRIBUTIONS):
        generator = torch.Generator().manual_seed(seed)
        tokens = parallel_sample(*shard_of(full, rank), rank.group, generator=generator, **settings)
        counts.append(tokens.bincount(minlength=len(LOGITS)).tolist())
    return counts


def test_samples_follow_the_distribution(ranks: Cluster) -> None:
    for counts in ranks.run(histograms):
        for settings, seen in zip(DISTRIBUTIONS, counts, strict=True):
            want = NUM_DRAWS * allowed(
                LOGITS, settings.get("temperature", 1.0), settings.get("top_k"), settings.get("top_p")
            )
            got = torch.tensor(seen, dtype=torch.float64)
            assert not got[want == 0].any(), settings
            possible = want > 0
            distance = float(((got - want)[possible] ** 2 / want[possible]).sum())
            assert distance < CHI_SQUARE, (settings, seen, want.tolist())


def ties_at_the_last_place(rank: Any) -> list[int]:
    full = torch.tensor([1.0, 0.0, 1.0, -1.0, 1.0]).expand(2000, -1)
    generator = torch.Generator().manual_seed(0)
    tokens = parallel_sample(*shard_of(full, rank), rank.group, generator=generator, top_k=2)
    return tokens.bincount(minlength=5).tolist()


def test_top_k_keeps_those_that_tie_with_the_last(ranks: Cluster) -> None:
    for counts in ranks.run(ties_at_the_last_place):
        assert counts[1] == counts[3] == 0
        assert min(counts[0], counts[2], counts[4]) > 550  # of 667 expected


def rows_and_batches(rank: Any) -> tuple[bool, bool, bool]:
    full = torch.zeros(6, 4, 101)
    generators = [torch.Generator().manual_seed(1) for _ in range(3)]
    settings: list[dict[str, Any]] = [{}, {"temperature": 0}, {"top_k": 2, "top_p": 0.5}]
    drawn = [
        parallel_sample(*shard_of(full, rank), rank.group, generator=generator, **how)
        for generator, how in zip(generators, settings, strict=True)
    ]
    states = [generator.get_state() for generator in generators]
    return (
        drawn[0].shape == (6, 4),
        len(set(drawn[0].flatten().tolist())) > 10,
        all(torch.equal(state, states[0]) for state in states),
    )


def test_each_row_has_noise_of_its_own_and_settings_do_not_change_how_much_is_drawn(ranks: Cluster) -> None:
    assert ranks.run(rows_and_batches) == [(True, True, True)] * ranks.num_ranks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_sample_takes_logits_of_any_precision(dtype: torch.dtype) -> None:
    full = torch.full((50, 9), -100.0, dtype=dtype)
    full[:, 4] = 0
    tokens = parallel_sample(full, VocabShard.of(9, 0, 1), NullComm(), generator=torch.Generator().manual_seed(0))
    assert tokens.tolist() == [4] * 50


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-42, 1e-50, 1e-300, 1e-320])
def test_ever_colder_is_ever_more_the_argmax(temperature: float) -> None:
    full = 0.1 * torch.randn(200, 11, generator=torch.Generator().manual_seed(0))
    full[:, 0] = 1.0  # positive ones below the largest: they must not become as infinite as that
    full[:, 7] = 2.0
    tokens = parallel_sample(
        full, VocabShard.of(11, 0, 1), None, generator=torch.Generator().manual_seed(0), temperature=temperature
    )
    assert tokens.tolist() == [7] * 200
    nucleus = parallel_sample(
        full, VocabShard.of(11, 0, 1), None, generator=torch.Generator(), temperature=temperature, top_p=0.9
    )
    assert nucleus.tolist() == [7] * 200


def test_tokens_ruled_out_by_minus_infinity_are_never_drawn() -> None:
    full = torch.full((500, 6), -torch.inf)
    full[:, 2] = full[:, 5] = 1.0
    for settings in [{}, {"temperature": 1e6}, {"top_k": 4}, {"top_p": 0.9}, {"top_k": 4, "top_p": 0.9}]:
        tokens = parallel_sample(
            full, VocabShard.of(6, 0, 1), None, generator=torch.Generator().manual_seed(0), **settings
        )
        assert set(tokens.tolist()) == {2, 5}, settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": -3}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
    ],
    ids=str,
)
def test_bad_settings_of_sample(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parallel_sample(torch.zeros(2, 5), VocabShard.of(5, 0, 1), None, generator=torch.Generator(), **settings)


@pytest.mark.parametrize("columns", [1, 2, 4, 6])
@pytest.mark.parametrize("what", ["argmax", "sample", "top_k", "top_p", "cross-entropy", "gather"])
def test_logits_that_are_not_this_ranks_shard(what: str, columns: int) -> None:
    """One column is the trap: it broadcasts."""
    logits, vocab = torch.zeros(3, columns), VocabShard.of(5, 0, 1)
    generator = torch.Generator()
    calls = {
        "argmax": lambda: parallel_argmax(logits, vocab, None),
        "sample": lambda: parallel_sample(logits, vocab, None, generator=generator),
        "top_k": lambda: parallel_sample(logits, vocab, None, generator=generator, top_k=2),
        "top_p": lambda: parallel_sample(logits, vocab, None, generator=generator, top_p=0.5),
        "cross-entropy": lambda: parallel_cross_entropy(logits, torch.zeros(3, dtype=torch.long), vocab, None),
        "gather": lambda: gather_logits(logits, vocab, None),
    }
    with pytest.raises(ValueError, match=f"must have 5 columns.*got {columns}"):
        calls[what]()


def losses(rank: Any, name: str) -> dict[str, float]:
    """How far loss and gradient are from those of torch in float64, over every way to reduce."""
    generator = torch.Generator().manual_seed(5)
    full = 3 * torch.randn(4, 6, 101, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, 101, (4, 6), generator=generator)
    ignore, junk = -100, math.inf
    targets[1, 2] = targets[3, 3] = ignore
    if name == "bfloat16":
        full = full.bfloat16()
    elif name == "float32 of 1e4":
        full = (full * 1e4 / 3).float()
    elif name == "float32 of -1e4":
        full = (full.abs() * -1e4).float()
    elif name == "shifted by 1e4":
        full = (full + 1e4).float()
    elif name == "a token is ignored":
        ignore = 7
        targets[targets == -100] = 7
        targets[0] = 7
    elif name == "minus infinity":
        full[..., 3:90] = -torch.inf
        targets = targets.where(targets < 0, targets % 3)
    elif name == "all ignored":
        targets[:] = ignore
    elif name == "padded with NaN":
        junk = math.nan
    errors = {}
    for reduction in ("mean", "sum", "none"):
        plain = full.double().clone().requires_grad_()
        want = F.cross_entropy(plain.flatten(0, 1), targets.flatten(), ignore_index=ignore, reduction=reduction)
        mine, vocab = shard_of(full, rank, junk)
        mine = mine.detach().requires_grad_()
        got = parallel_cross_entropy(mine, targets, vocab, rank.group, ignore_index=ignore, reduction=reduction)
        assert got.dtype is torch.float32
        assert got.shape == (targets.shape if reduction == "none" else ())
        # Each token with a weight of its own, so that a gradient of the wrong token shows.
        weights = torch.arange(1.0, 25.0) if reduction == "none" else torch.tensor(2.0)
        (want * weights).sum().backward()
        (got.flatten() * weights).sum().backward()
        assert mine.grad is not None
        assert plain.grad is not None
        assert mine.grad.dtype is full.dtype
        assert not mine.grad[..., vocab.end - vocab.start :].any(), "a padded column has a gradient"
        wanted = plain.grad[..., vocab.start : vocab.end]
        distance = (mine.grad[..., : vocab.end - vocab.start].double() - wanted).abs()
        scale = want.abs().nan_to_num().max().clamp_min(1.0)
        both_nan = got.isnan().flatten() & want.isnan().flatten()
        errors[f"{reduction} loss"] = float(((got.flatten() - want).abs() / scale).masked_fill(both_nan, 0).max())
        errors[f"{reduction} gradient"] = float(distance.max()) / float(plain.grad.abs().max().clamp_min(1e-9))
        if wanted.numel() == 0:
            errors[f"{reduction} gradient"] = 0.0
    return errors


@pytest.mark.parametrize(
    "name",
    [
        "float64",
        "bfloat16",
        "float32 of 1e4",
        "float32 of -1e4",
        "shifted by 1e4",
        "a token is ignored",
        "minus infinity",
        "all ignored",
        "padded with NaN",
    ],
)
def test_cross_entropy_of_odd_logits(ranks: Cluster, name: str) -> None:
    """Losses within float32's rounding of a sum of 101; bfloat16 gradients within half of its last bit."""
    for errors in ranks.run(losses, name):
        for what, error in errors.items():
            assert error < (2**-8 if name == "bfloat16" and "gradient" in what else 3e-6), (what, error)


def all_ignored_sums(rank: Any) -> tuple[float, list[float], bool]:
    mine, vocab = shard_of(torch.randn(3, 5), rank)
    targets = torch.full((3,), -100)
    calls = {
        kind: parallel_cross_entropy(mine, targets, vocab, rank.group, reduction=kind)
        for kind in ("mean", "sum", "none")
    }
    return float(calls["sum"]), calls["none"].tolist(), math.isnan(float(calls["mean"]))


def test_loss_where_all_is_ignored(ranks: Cluster) -> None:
    """The mean of nothing is NaN, as in torch."""
    assert ranks.run(all_ignored_sums) == [(0.0, [0.0, 0.0, 0.0], True)] * ranks.num_ranks


def bad_targets(rank: Any) -> list[str]:
    mine, vocab = shard_of(torch.zeros(2, 5), rank)
    embedding = VocabParallelEmbedding.from_module(nn.Embedding(5, 4), rank.group)
    wrong = []
    # 5, 6 and 7 are padded columns on 2, 3 and 4 ranks.
    for index in (5, 6, 7, 8, -1, -99, 10**12):
        with pytest.raises(IndexError, match=r"targets must be 0 to 4"):
            parallel_cross_entropy(mine, torch.tensor([1, index]), vocab, rank.group)
        with pytest.raises(IndexError, match=r"ids must be 0 to 4; got"):
            embedding(torch.tensor([[1, index]]))
    if embedding(torch.empty((2, 0), dtype=torch.long)).shape != (2, 0, 4):
        wrong.append("no ids at all")
    return wrong


def test_ids_and_targets_out_of_range(ranks: Cluster) -> None:
    assert ranks.run(bad_targets) == [[]] * ranks.num_ranks


def test_bad_reduction() -> None:
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none; got 'max'"):
        parallel_cross_entropy(
            torch.zeros(1, 5), torch.zeros(1, dtype=torch.long), VocabShard.of(5, 0, 1), None, reduction="max"
        )


def gather(rank: Any, vocab_size: int) -> tuple[bool, bool, bool]:
    full = torch.randn(2, 3, vocab_size, generator=torch.Generator().manual_seed(0))
    mine, vocab = shard_of(full, rank, math.nan)
    mine.requires_grad_()
    got = gather_logits(mine, vocab, rank.group)
    weights = torch.arange(float(full.numel())).view_as(full) + 1
    (got * weights).sum().backward()
    wanted = F.pad(weights[..., vocab.start : vocab.end], (0, vocab.padding))
    with torch.inference_mode():
        again = gather_logits(mine, vocab, rank.group)
    return torch.equal(got, full), torch.equal(mine.grad, wanted), torch.equal(again, full)


@pytest.mark.parametrize("vocab", VOCABS)
def test_gather_logits_is_bitwise_and_its_gradient_too(ranks: Cluster, vocab: int) -> None:
    assert ranks.run(gather, vocab) == [(True, True, True)] * ranks.num_ranks


def tied(rank: Any, vocab_size: int) -> tuple[bool, float, float]:
    """One weight as embedding and as head: its gradient is the sum of both, as in the plain model."""
    torch.manual_seed(0)
    plain = nn.Embedding(vocab_size, 12, padding_idx=vocab_size - 1).double()
    plain_head = nn.Linear(12, vocab_size, bias=False).double()
    plain_head.weight = plain.weight
    embedding = VocabParallelEmbedding.from_module(plain, rank.group)
    head = ParallelLMHead.from_module(plain_head, rank.group, tied=embedding)
    ids, targets = torch.randint(0, vocab_size, (2, 3, 7)).unbind(0)
    want = F.cross_entropy(plain_head(plain(ids)).flatten(0, 1), targets.flatten())
    got = parallel_cross_entropy(head(embedding(ids)), targets, head.vocab, rank.group)
    want.backward()
    got.backward()
    shard = embedding.plan["weight"][0]
    distance = (embedding.weight.grad - shard.take(plain.weight.grad)).abs().max() / plain.weight.grad.abs().max()
    return head.weight is embedding.weight, float((got - want).abs()), float(distance)


@pytest.mark.parametrize("vocab", [5, 101])
def test_tied_embedding_and_head(ranks: Cluster, vocab: int) -> None:
    """Within float32, in which the loss is computed."""
    for same, loss, gradient in ranks.run(tied, vocab):
        assert same
        assert loss < 1e-6
        assert gradient < 1e-6


def tied_with_bias(rank: Any, vocab_size: int) -> bool:
    plain, plain_head = nn.Embedding(vocab_size, 12), nn.Linear(12, vocab_size)
    with torch.no_grad():
        plain_head.bias.copy_(torch.arange(vocab_size) + 1.0)
    embedding = VocabParallelEmbedding.from_module(plain, rank.group)
    head = ParallelLMHead.from_module(plain_head, rank.group, tied=embedding)
    wanted = head.plan["bias"][0].take(plain_head.bias)
    return head.weight is embedding.weight and torch.equal(head.bias, wanted)


@pytest.mark.parametrize("vocab", [5, 101])
def test_a_tied_head_has_its_own_bias(ranks: Cluster, vocab: int) -> None:
    assert all(ranks.run(tied_with_bias, vocab))


def test_tied_shards_of_another_shape_are_refused() -> None:
    embedding = VocabParallelEmbedding(5, 4)
    with pytest.raises(ValueError, match=r"tied: the embedding's shard is \(5, 4\), the head's \(6, 4\)"):
        ParallelLMHead.from_module(nn.Linear(4, 6), None, tied=embedding)


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}], ids=str)
def test_embeddings_that_need_the_whole_table_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"module has {next(iter(option))}="):
        VocabParallelEmbedding.from_module(nn.Embedding(5, 4, **option), None)


def constructed(rank: Any) -> tuple[bool, bool]:
    torch.manual_seed(4)
    plain = nn.Embedding(101, 6)
    torch.manual_seed(4)
    embedding = VocabParallelEmbedding(101, 6, rank.group)
    torch.manual_seed(4)
    plain_head = nn.Linear(6, 101)
    torch.manual_seed(4)
    head = ParallelLMHead(6, 101, rank.group)
    ids, x = torch.arange(101), torch.ones(1, 6)
    return (
        torch.equal(embedding(ids), plain(ids)),
        torch.allclose(gather_logits(head(x), head.vocab, rank.group), plain_head(x)),
    )


def test_constructors_draw_the_full_modules_weights(ranks: Cluster) -> None:
    try:
        outcomes = ranks.run(constructed)
    except RankError as error:
        pytest.fail(f"a vocabulary of 101 must do on any number of ranks: {error}")
    assert outcomes == [(True, True)] * ranks.num_ranks
