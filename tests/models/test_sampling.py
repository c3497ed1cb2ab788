"""Tokens chosen from logits cut over ranks: as from the full logits, ties included; a generator per row."""

from typing import Any

import pytest
import torch

from tplab.cluster import Rank
from tplab.layers.shards import VocabShard

VOCABULARIES = [1, 2, 3, 5, 101]


def scores(size: int) -> torch.Tensor:
    """(6, V) with many ties: logits are whole numbers."""
    generator = torch.Generator().manual_seed(size)
    return torch.randint(-3, 4, (6, size), generator=generator).float()


def choose(rank: Rank) -> list[tuple[torch.Tensor, torch.Tensor]]:
    from tplab.layers.comm import as_comm
    from tplab.models.sampling import argmax_and_margin

    out = []
    for size in VOCABULARIES:
        vocab = VocabShard.of(size, rank.index, rank.world_size)
        padded = torch.full((6, vocab.rows), 99.0)  # what stands in the padding must not matter
        padded[:, : vocab.end - vocab.start] = scores(size)[:, vocab.start : vocab.end]
        out.append(argmax_and_margin(padded, vocab, as_comm(rank.group)))
    return out


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_likeliest_and_its_margin(n: int, clusters: Any) -> None:
    for chosen in clusters[n].run(choose):
        for size, (tokens, margins) in zip(VOCABULARIES, chosen, strict=True):
            full = scores(size)
            assert torch.equal(tokens, full.argmax(-1)), "the lowest token of a tie"
            if size == 1:
                assert torch.isinf(margins).all()
            else:
                top = full.double().topk(2).values
                assert torch.equal(margins, top[:, 0] - top[:, 1])


def test_a_generator_per_row_draws_as_each_would_alone() -> None:
    from tplab.layers.vocabulary import parallel_sample

    vocab = VocabShard.of(50, 0, 1)
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(row) for row in range(4)]

    together = generators()
    draws = [parallel_sample(logits, vocab, None, generator=together, top_k=30) for _ in range(20)]
    for row, generator in enumerate(generators()):
        mine = logits[row : row + 1]
        alone = [parallel_sample(mine, vocab, None, generator=generator, top_k=30).item() for _ in range(20)]
        assert alone == [draw[row].item() for draw in draws]
    assert len({draw[0].item() for draw in draws}) > 5
    with pytest.raises(ValueError, match=r"generator: 4 of them for logits of shape \(3, 50\); one per row"):
        parallel_sample(logits[:3], vocab, None, generator=generators())


def test_a_row_draws_by_its_place_in_the_request_whatever_its_micro_batch() -> None:
    from tplab.layers.comm import NullComm
    from tplab.models.records import Request
    from tplab.models.sampling import Sampler

    vocab = VocabShard.of(50, 0, 1)
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(1)).expand(4, 50)
    request = Request.of([[1]] * 4, max_new_tokens=20, temperature=1.0, seed=5)

    def draws(start: int, end: int) -> list[list[int]]:
        sampler = Sampler(request, start, end, vocab, NullComm())
        steps = [sampler(logits[: end - start])[0].tolist() for _ in range(20)]
        return [[step[row] for step in steps] for row in range(end - start)]

    together = draws(0, 4)
    assert len({tuple(row) for row in together}) == 4, "the same logits, and each row draws its own tokens"
    assert draws(0, 2) + draws(2, 4) == together
