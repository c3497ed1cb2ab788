"""Vocabularies sharded over ranks: embedding, output head, and what is done with the sharded logits.

Cross-entropy, argmax and sampling work on the shards and send a few numbers per token. Gathering the logits first
would send T·V of them: at 128,000 tokens of vocabulary more than all layers of a small model together.

Legend: B batch, S sequence, T tokens, D hidden; V vocabulary, v rows per rank (padding included); n ranks.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tplab.checks import check_count, check_number, check_one_of
from tplab.layers.comm import Comm, as_comm
from tplab.layers.linear import ColumnParallelLinear, Sharded, check_device
from tplab.layers.noise import NoiseByPlace
from tplab.layers.regions import gather_from_group, pad_tokens, reduce_from_group
from tplab.layers.shards import VocabShard, load_from, rows_plan, same_kind
from tplab.layers.strategies import Blocking, as_strategy

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class VocabParallelEmbedding(Sharded[nn.Embedding]):
    """Embedding with the vocabulary sharded over the ranks; any vocabulary size.

    ==========  ===========  =========================================================
    on rank r   shape        what
    ==========  ===========  =========================================================
    weight      (v, D)       rows r·v .. of the full table, v = ceil(V/n), zeros after V
    ids         (B, S)       the same on every rank
    y           (B, S, D)    the same on every rank (token shards, (ceil(T/n), D), under
                             sequence parallelism)
    ==========  ===========  =========================================================

    Equation: ``y = sum over r of W_r[ids] where r holds the id, else 0``: all but one addend are zero, so the sum is
    bitwise the plain embedding.

    Communication: forward one all-reduce of S = T·D·itemsize; backward none.

    Args:
        num_embeddings, embedding_dim: V and D of the full table.
        group: process group or ``Comm``.
        strategy: how the sum communicates; None: blocking.
        device, dtype: of the weights.

    Raises:
        ValueError: an embedding with ``max_norm``, ``scale_grad_by_freq`` or ``sparse``.
        IndexError: an id outside the vocabulary (on the CPU; a GPU would have to wait to see it).

    Source: Shoeybi and others, "Megatron-LM" (2019), section 3.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        group: "ProcessGroup | Comm | None" = None,
        *,
        strategy: Blocking | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        full = nn.Embedding(num_embeddings, embedding_dim, device=device, dtype=dtype)
        self._shard(full, as_comm(group), strategy)

    def _shard(self, full: nn.Embedding, comm: Comm, strategy: Blocking | None) -> None:
        for name in ("max_norm", "scale_grad_by_freq", "sparse"):
            if getattr(full, name):
                raise ValueError(f"module has {name}={getattr(full, name)}, which would need the whole table: unset it")
        super().__init__()
        dtype, device = same_kind(full)
        check_device(comm, device)
        self.comm, self.strategy = comm, as_strategy(strategy)
        self.vocab = vocab = VocabShard.of(full.num_embeddings, comm.index, comm.size)
        padding = full.padding_idx
        mine = padding is not None and vocab.start <= padding < vocab.end
        self._padding_idx = padding - vocab.start if padding is not None and mine else None
        self.weight = nn.Parameter(torch.empty((vocab.rows, full.embedding_dim), dtype=dtype, device=device))
        self.plan = rows_plan([("", vocab.start, vocab.end)], bias=False, padding=vocab.padding)
        load_from(full, self, self.plan)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        vocab = self.vocab
        if ids.device.type == "cpu" and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab.size:
            raise IndexError(f"ids must be 0 to {vocab.size - 1}; got {int(ids.min())} to {int(ids.max())}")
        if self.comm.size == 1:
            y = F.embedding(ids, self.weight, self._padding_idx)
            return y.flatten(0, -2) if self.strategy.sequence_parallel else y
        foreign = (ids < vocab.start) | (ids >= vocab.end)
        y = F.embedding((ids - vocab.start).masked_fill(foreign, 0), self.weight, self._padding_idx)
        y = y.masked_fill(foreign.unsqueeze(-1), 0)
        if self.strategy.sequence_parallel:
            y = pad_tokens(y.flatten(0, -2), self.comm.size)
        return reduce_from_group(y, self.comm, _exact(self.strategy))

    def extra_repr(self) -> str:
        return f"{self.vocab.size}, tokens {self.vocab.start} to {self.vocab.end}, {self.vocab.padding} padding"


def _exact(strategy: Blocking) -> Blocking:
    """Embeddings are summed exactly whatever the strategy: there is one addend, and nothing to gain in prefill."""
    return strategy if strategy.sequence_parallel else Blocking()


class ParallelLMHead(ColumnParallelLinear):
    """Output projection with the vocabulary sharded over the ranks; any vocabulary size.

    ==========  ===========  =========================================================
    on rank r   shape        what
    ==========  ===========  =========================================================
    weight      (v, D)       rows r·v .. of the full weight, v = ceil(V/n), zeros after V
    x           (..., D)     the same on every rank (a token shard under sequence
                             parallelism)
    logits      (..., v)     of its tokens; columns beyond ``vocab`` are meaningless
    ==========  ===========  =========================================================

    ``logits[..., : vocab.end - vocab.start]`` are those of tokens ``vocab.start`` on; :func:`parallel_cross_entropy`,
    :func:`parallel_argmax`, :func:`parallel_sample` and :func:`gather_logits` take the shards as they are.

    Args:
        group: process group, ``Comm``, or None for a rank alone.
        tied: share this embedding's weight, of which the rows are the same.
    """

    vocab: VocabShard

    def __init__(
        self,
        in_features: int,
        out_features: int,
        group: "ProcessGroup | Comm | None" = None,
        *,
        bias: bool = True,
        strategy: Blocking | None = None,
        tied: VocabParallelEmbedding | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        full = nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self._shard(full, as_comm(group), strategy, tied=tied)

    def _shard(  # type: ignore[override]
        self,
        full: nn.Linear,
        comm: Comm,
        strategy: Blocking | None,
        *,
        tied: VocabParallelEmbedding | None = None,
    ) -> None:
        self.vocab = vocab = VocabShard.of(full.out_features, comm.index, comm.size)
        plan = rows_plan([("", vocab.start, vocab.end)], bias=full.bias is not None, padding=vocab.padding)
        features = full.in_features, full.out_features
        self._hold(comm, strategy, features, (vocab.rows, full.in_features), plan, full)
        if tied is None:
            return
        if tied.weight.shape != self.weight.shape:
            raise ValueError(
                f"tied: the embedding's shard is {tuple(tied.weight.shape)}, the head's {tuple(self.weight.shape)}"
            )
        self.weight = tied.weight


def _local(logits: torch.Tensor, vocab: VocabShard) -> torch.Tensor:
    """The logits of real tokens in this rank's shard."""
    if logits.shape[-1] != vocab.rows:
        raise ValueError(f"logits must have {vocab.rows} columns, this rank's shard; got {logits.shape[-1]}")
    return logits[..., : vocab.end - vocab.start]


def gather_logits(logits: torch.Tensor, vocab: VocabShard, group: "ProcessGroup | Comm | None") -> torch.Tensor:
    """(..., v) -> (..., V) on every rank: one all-gather of S = T·n·v·itemsize. Differentiable."""
    _local(logits, vocab)
    return gather_from_group(logits, as_comm(group))[..., : vocab.size]


def parallel_cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    vocab: VocabShard,
    group: "ProcessGroup | Comm | None",
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> torch.Tensor:
    """``F.cross_entropy`` of sharded logits: (..., v) and (...) -> a scalar, or (...) with ``reduction="none"``.

    ``loss = max + log(sum exp(logit - max)) - logit[target]``, in float32. Communication: a max of T numbers and a sum
    of 2·T, both all-reduces; backward none. Gradients go to the shards, ``softmax - onehot``.

    Args:
        logits: this rank's, (..., v).
        targets: ids of the right tokens, (...), the same on every rank.
        vocab: which tokens the logits are of.
        group: process group or ``Comm``.
        ignore_index: targets with this id count nothing.
        reduction: ``mean``, ``sum`` or ``none``.

    Source: Shoeybi and others, "Megatron-LM" (2019), section 3.
    """
    check_one_of("reduction", reduction, ("mean", "sum", "none"))
    _local(logits, vocab)
    kept = targets != ignore_index
    if targets.device.type == "cpu" and bool((kept & ((targets < 0) | (targets >= vocab.size))).any()):
        raise IndexError(f"targets must be 0 to {vocab.size - 1}, or {ignore_index} to be ignored")
    losses: torch.Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits, targets.masked_fill(~kept, 0), vocab, as_comm(group)
    )
    losses = losses.masked_fill(~kept, 0.0)
    if reduction == "none":
        return losses
    return losses.sum() / kept.sum() if reduction == "mean" else losses.sum()


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, vocab: VocabShard, comm: Comm) -> torch.Tensor:
        shifted = _local(logits, vocab).float()
        # A rank that holds padding only has nothing to offer.
        top = shifted.amax(-1) if shifted.shape[-1] else shifted.new_full(shifted.shape[:-1], -torch.inf)
        top = comm.all_reduce_max(top)
        shifted = shifted - top.unsqueeze(-1)
        exps = shifted.exp()
        foreign = (targets < vocab.start) | (targets >= vocab.end)
        places = (targets - vocab.start).masked_fill(foreign, 0)
        if shifted.shape[-1]:
            chosen = shifted.gather(-1, places.unsqueeze(-1)).squeeze(-1).masked_fill(foreign, 0.0)
        else:
            chosen = torch.zeros_like(top)
        both = comm.all_reduce(torch.stack([exps.sum(-1), chosen]))
        ctx.save_for_backward(exps / both[0].unsqueeze(-1), places, foreign)
        ctx.shape, ctx.dtype = logits.shape, logits.dtype
        return both[0].log() - both[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        softmax, places, foreign = ctx.saved_tensors
        out = torch.zeros(ctx.shape, dtype=softmax.dtype, device=softmax.device)
        width = softmax.shape[-1]
        if width:
            part = softmax * grad.unsqueeze(-1)
            mine = (grad * ~foreign).unsqueeze(-1)
            out[..., :width] = part.scatter_add(-1, places.unsqueeze(-1), -mine)
        return out.to(ctx.dtype), None, None, None


@torch.no_grad()
def parallel_argmax(logits: torch.Tensor, vocab: VocabShard, group: "ProcessGroup | Comm | None") -> torch.Tensor:
    """Token of the largest logit, (..., v) -> (...) int64, the same on every rank; the lowest token where several tie.

    One all-gather of 16 bytes per token and rank: each rank's largest logit and its token.
    """
    comm = as_comm(group)
    local = _local(logits, vocab)
    if local.shape[-1]:
        best, place = local.max(-1)
        pair = torch.stack([best.double(), (place + vocab.start).double()], dim=-1)  # float64 holds both exactly
    else:
        pair = torch.full((*local.shape[:-1], 2), -torch.inf, dtype=torch.float64, device=local.device)
    every = comm.start_all_gather(pair.unsqueeze(0).contiguous()).wait()  # (n, ..., 2), in order of tokens
    winner = every[..., 0].argmax(0, keepdim=True)
    return every[..., 1].gather(0, winner).squeeze(0).long()


@torch.no_grad()
def parallel_sample(
    logits: torch.Tensor,
    vocab: VocabShard,
    group: "ProcessGroup | Comm | None",
    *,
    generator: torch.Generator | Sequence[torch.Generator] | NoiseByPlace,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> torch.Tensor:
    """Sample a token per row, (T, v) -> (T,) int64, the same on every rank and for every number of ranks.

    The largest of ``logit / temperature + noise`` with Gumbel noise per token of the vocabulary: a draw from the
    softmax. Every rank draws the noise of all V tokens from ``generator``, which must be in the same state on all of
    them, and uses its own part; of a ``NoiseByPlace`` its own part only.

    Args:
        generator: on the CPU, so that the noise is the same on every device. Several: one per row, so that a row's
            tokens do not depend on which others are in the batch. Or ``tplab.layers.noise.NoiseByPlace`` of as many
            rows, on the logits' device: nothing comes from the host then, and a CUDA graph can hold the call.
        temperature: 0: the argmax, without noise.
        top_k: of the ``top_k`` likeliest only (those that tie with the last included); an all-gather of ``top_k``
            numbers per rank.
        top_p: of the fewest that together have this probability, after ``top_k``; gathers all logits.

    Raises:
        ValueError: a setting out of range, a generator that is not on the CPU, or not as many as rows.
    """
    check_number("temperature", temperature, least=0)
    if top_k is not None:
        check_count("top_k", top_k, least=1)
    if top_p is not None:
        check_number("top_p", top_p, above=0, most=1)
    comm = as_comm(group)
    _local(logits, vocab)
    # Drawn in any case: how far the generator gets must not depend on the settings.
    uniform = _drawn(generator, logits, vocab)
    if temperature == 0:
        return parallel_argmax(logits, vocab, comm)
    scores = logits.float()
    if top_k is not None and top_k < vocab.size:
        scores = scores.masked_fill(scores < _kth_largest(scores, vocab, comm, top_k), -torch.inf)
    if top_p is not None and top_p < 1:
        full = gather_logits(scores, vocab, comm)
        scores = scores.masked_fill(scores < _smallest_in_nucleus(full, temperature, top_p), -torch.inf)
    noise = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(torch.float64).tiny)))
    mine = F.pad(noise, (0, vocab.padding)).to(scores.device)
    # Below 1 the noise is shrunk instead of the scores blown up: over a temperature near zero they would be infinite,
    # and tie. Noise that vanishes leaves the argmax, as it should.
    return parallel_argmax(scores.double() / max(temperature, 1.0) + mine * min(temperature, 1.0), vocab, comm)


def _drawn(
    generator: torch.Generator | Sequence[torch.Generator] | NoiseByPlace, logits: torch.Tensor, vocab: VocabShard
) -> torch.Tensor:
    """(..., tokens of this rank) float64: this step's uniform numbers."""
    mine = slice(vocab.start, vocab.end)
    if isinstance(generator, torch.Generator):
        _check_on_cpu(generator)
        return torch.rand((*logits.shape[:-1], vocab.size), generator=generator, dtype=torch.float64)[..., mine]
    rows = generator.num_rows if isinstance(generator, NoiseByPlace) else len(generator)
    if logits.dim() != 2 or rows != logits.shape[0]:
        raise ValueError(f"generator: {rows} of them for logits of shape {tuple(logits.shape)}; one per row")
    if isinstance(generator, NoiseByPlace):
        uniform = generator.uniform(vocab.start, vocab.end)
        generator.advance()
        return uniform
    for each in generator:
        _check_on_cpu(each)
    draws = [torch.rand(vocab.size, generator=each, dtype=torch.float64) for each in generator]
    return torch.stack(draws)[..., mine]


def _check_on_cpu(generator: torch.Generator) -> None:
    if generator.device.type != "cpu":
        raise ValueError(f"generator must be on the cpu; it is on {generator.device}")


def _kth_largest(scores: torch.Tensor, vocab: VocabShard, comm: Comm, k: int) -> torch.Tensor:
    """(..., 1): the k-th largest score over all ranks."""
    local = _local(scores, vocab)
    top = local.topk(min(k, local.shape[-1])).values
    top = F.pad(top, (0, k - top.shape[-1]), value=-torch.inf)
    every = gather_from_group(top, comm)
    return every.topk(k).values[..., -1:]


def _smallest_in_nucleus(scores: torch.Tensor, temperature: float, p: float) -> torch.Tensor:
    """(..., 1): the smallest score among the fewest tokens that together have probability p or more."""
    ordered = scores.sort(-1, descending=True).values
    # Less the largest, which stays finite over any temperature: infinities would make the softmax NaN.
    probabilities = ((ordered - ordered[..., :1]).double() / temperature).softmax(-1)
    kept = probabilities.cumsum(-1) - probabilities < p
    return ordered.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
