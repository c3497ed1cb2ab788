"""Notebook 08: the token of the largest logit, where every rank has the logits of a part of the vocabulary.

Gathering the logits first is right and worth nothing: at 128,000 tokens of vocabulary it moves more per step than all
layers of a small model. So bytes are counted besides the tokens. Ties are in every try: logits in bfloat16 tie often,
and a layout whose ties go to another token gives another text.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tplab.checks import ArgumentError
from tplab.cluster import Cluster
from tplab.lab.exercises.on_ranks import as_tensor, described
from tplab.lab.exercises.trial import Seen, Trial, check_cluster
from tplab.lab.exercises.verdict import NotYetError, Verdict, checker
from tplab.shown import counted

if TYPE_CHECKING:
    import torch

    from tplab.cluster import Rank

_BYTES_PER_TOKEN = 16
"""What a rank may send for a row, times n: a number and a token, each of 8 bytes."""
_FRAME_BYTES = 128
"""What it may send in a call besides, times n: what ``all_gather_object`` puts around a list."""
_KINDS = ("drawn", "ties", "masked on all other ranks", "the same everywhere", "masked everywhere")
"""What the rows of logits are, in turns."""


@checker("08-argmax")
def check_argmax(
    cluster: Cluster, my_argmax: "Callable[[Rank, torch.Tensor, int], torch.Tensor]", *, timeout: float = 20.0
) -> Verdict:
    """``my_argmax(rank, logits, start)``: logits (T, v), of tokens ``start`` to ``start + v - 1``.

    It must return the token of the largest logit of every row, (T,) whole numbers, the same on every rank, and where
    several tie the lowest: what ``torch.argmax`` says of the rows in full. A rank may send at most 16 · n bytes per
    row.

    Shards differ in length, and where the vocabulary is short the last may have no token at all. Logits may be -inf
    (tokens that are ruled out), a whole row may be: then all tie. None is NaN, which a model that works does not give.

    Args:
        cluster: two ranks or more.
        my_argmax: the learner's.
        timeout: seconds that a call may take.
    """
    check_cluster(cluster)
    n = cluster.num_ranks
    if n < 2:
        raise ArgumentError("cluster", n, "must have two ranks or more, to share a vocabulary: Cluster(2)")
    trial = Trial(cluster, my_argmax, timeout=timeout)
    short = 1 if n == 2 else n + 1  # the last rank has nothing
    for tokens, vocabulary, dtype in ((40, 1003, "float32"), (40, 4003, "bfloat16"), (10, short, "float32")):
        context = f"With {counted(vocabulary, 'token')} of vocabulary over {n} ranks"
        seen = trial.run(_prepare, _judge, tokens, vocabulary, dtype, context=context)
        if fault := _fault(seen, tokens, vocabulary):
            raise NotYetError(f"{context}: {fault}")
    return Verdict(
        True,
        f"the same tokens as in one process, ties included, on all {n} ranks, and no rank sends more than "
        f"{_BYTES_PER_TOKEN * n} bytes per row of logits.",
    )


def _bounds(rank: int, n: int, vocabulary: int) -> tuple[int, int]:
    from tplab.layers.ranges import VocabShard

    shard = VocabShard.of(vocabulary, rank, n)
    return shard.start, shard.end


def _prepare(rank: "Rank", seed: int, tokens: int, vocabulary: int, dtype: str) -> tuple[Any, ...]:
    start, end = _bounds(rank.index, rank.world_size, vocabulary)
    full = _logits(rank.world_size, seed, tokens, vocabulary, dtype)
    return full[:, start:end].clone().to(rank.device), start


def _logits(n: int, seed: int, tokens: int, vocabulary: int, dtype: str) -> "torch.Tensor":
    import torch

    generator = torch.Generator().manual_seed(seed)
    full = torch.randn(tokens, vocabulary, generator=generator).to(getattr(torch, dtype))
    for row in range(tokens):
        kind = _KINDS[row % len(_KINDS)]
        if kind == "ties":
            full[row] = torch.randint(-3, 4, (vocabulary,), generator=generator).to(full.dtype)
        elif kind == "masked on all other ranks":
            start, end = _bounds(row // len(_KINDS) % n, n, vocabulary)
            full[row, :start] = full[row, end:] = -torch.inf
        elif kind == "the same everywhere":
            full[row] = 0.0
        elif kind == "masked everywhere":
            full[row] = -torch.inf
    return full


def _judge(rank: "Rank", seed: int, got: Any, tokens: int, vocabulary: int, dtype: str) -> dict[str, Any]:
    import torch

    got = as_tensor(got)
    whole = isinstance(got, torch.Tensor) and not got.dtype.is_floating_point and got.dtype != torch.bool
    if not whole or tuple(got.shape) != (tokens,):
        return {"returned": described(got)}
    n = rank.world_size
    full = _logits(n, seed, tokens, vocabulary, dtype)
    mine = got.detach().cpu().long()
    told: dict[str, Any] = {"tokens": mine.tolist()}
    wrong = (mine != full.argmax(-1)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        told |= {"row": row, "fault": _look(full[row], int(mine[row]), rank.index, n)}
    return told


def _look(row: "torch.Tensor", got: int, rank: int, n: int) -> str:
    """What a wrong token probably is."""
    want, vocabulary = int(row.argmax()), len(row)
    shards = [_bounds(each, n, vocabulary) for each in range(n)]
    owner = next(each for each, (start, end) in enumerate(shards) if start <= want < end)
    largest = f"the largest logit is {row[want]:.4g}, of token {want}"
    if not 0 <= got < vocabulary:
        return f"token {got} does not exist; {largest}. Does a rank without tokens, or a masked row, win?"
    if row[got] == row[want]:
        return (
            f"tokens {want} and {got} tie, with {row[want]:.4g} each: the lowest one wins, {want}; it says {got}. Of "
            f"several ranks with the same largest logit, whose token do you take?"
        )
    if got == want - shards[owner][0]:
        return f"{largest}, which is number {got} in the shard of rank {owner}: add its start to it."
    if shards[rank][0] <= got < shards[rank][1] and row[got] == row[slice(*shards[rank])].max():
        return f"{largest}; it says {got}, the best of this rank's own shard. Compare with the other ranks."
    return (
        f"{largest}; it says {got}, whose logit is {row[got]:.4g}. Do value and token of a rank stay together, and is "
        f"a token exact in the dtype that it travels in (bfloat16 rounds from 256 on)?"
    )


def _fault(seen: Sequence[Seen], tokens: int, vocabulary: int) -> str | None:
    n = len(seen)
    for each in seen:
        if "returned" in each.value:
            return (
                f"rank {each.rank} must return one token per row, ({tokens},) whole numbers; it returned "
                f"{each.value['returned']}."
            )
    silent = not any(each.calls for each in seen)
    for each in seen:
        if "fault" in each.value:
            alone = " No rank has communicated." if silent else ""
            return f"rank {each.rank}, row {each.value['row']}: {each.value['fault']}{alone}"
    for each in seen:
        if not each.calls:
            return (
                f"right, but no communication was counted on rank {each.rank}, which cannot know the other ranks' "
                f"logits: use torch's collectives or messages."
            )
        sent = sum(call.wire_bytes for call in each.calls)
        if sent > n * (_BYTES_PER_TOKEN * tokens + _FRAME_BYTES):
            logits = f", and its logits are {4 * vocabulary // n:,}" if sent >= 2 * tokens * vocabulary / n else ""
            return (
                f"right, but rank {each.rank} sends {sent / tokens:,.0f} bytes per row; at most {_BYTES_PER_TOKEN} · n "
                f"= {_BYTES_PER_TOKEN * n} are asked{logits}. Find the best of the shard first, and send that and its "
                f"token."
            )
    return None
