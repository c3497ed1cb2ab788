"""When and how the partial sums of a row-parallel layer become sums, and what layout tokens have in between.

One interface, so that a layer or a whole model changes its way of communicating by an argument, and one equivalence
test covers them all. A strategy is four functions without gradients, which ``linear`` puts together with theirs, and
the number of parts that a block is split into. Further ones subclass ``Blocking``: a decomposed matmul (one that sends
a tile while it computes the next) or a symmetric-memory kernel replaces ``reduce_matmul``.

Legend: T tokens (batch times sequence), I the features that are summed over, D the features of the result; n ranks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tplab.checks import check_count, check_one_of
from tplab.layers import kernels
from tplab.layers.comm import Comm, Done, Pending, RecordingComm
from tplab.layers.symmetric_comm import ALGORITHMS, symmetric_of


class Blocking:
    """All-reduce after the matmul, and wait for it. The reference that the others must equal."""

    name = "blocking"
    sequence_parallel = False
    """Whether tokens are sharded between the layers: norms and residuals see T/n of them."""
    num_parts = 1
    """How many parts of the batch or sequence a block interleaves."""

    def gather_input(self, x: torch.Tensor, comm: Comm) -> torch.Tensor:
        """What the column-parallel matmul multiplies: here the input itself, which every rank has."""
        return x

    def start_input_grad(self, grad: torch.Tensor, comm: Comm) -> Pending:
        """Backward of ``gather_input``: each rank has the gradient through its own columns; they are summed."""
        return comm.start_all_reduce(grad.contiguous())

    def reduce_matmul(self, x_TI: torch.Tensor, w_DI: torch.Tensor, comm: Comm) -> Pending:
        """The sum over ranks of ``x @ w.T``."""
        return self.reduce(few_tokens_linear(x_TI, w_DI), comm)

    def reduce(self, partial: torch.Tensor, comm: Comm) -> Pending:
        """The sum over ranks of ``partial``, which may be overwritten."""
        return Done(comm.all_reduce(partial))

    def gather_output_grad(self, grad: torch.Tensor, comm: Comm) -> torch.Tensor:
        """Backward of ``reduce``: every rank has the gradient of the sum, and it is that of each addend, too."""
        return grad

    def num_calls(self, batch: int, seq: int) -> int:
        """Into how many collectives each sum of a block is cut."""
        return 1

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Chunked(Blocking):
    """The matmul in chunks of tokens, each all-reduced while the next is computed.

    A matmul that is followed by its own all-reduce has nothing to hide it behind; cut by tokens it has: all but the
    last chunk's. The price is ``num_chunks`` times the latency, and smaller matmuls.

    Args:
        num_chunks: how many; the first ``T mod num_chunks`` are one token longer.

    Raises:
        ValueError: at the call, if there are fewer tokens than chunks (but some).
    """

    name = "chunked"

    def __init__(self, num_chunks: int) -> None:
        self.num_chunks = check_count("num_chunks", num_chunks, least=1)

    def reduce_matmul(self, x_TI: torch.Tensor, w_DI: torch.Tensor, comm: Comm) -> Pending:
        x = x_TI.reshape(-1, x_TI.shape[-1])
        tokens = x.shape[0]
        if 0 < tokens < self.num_chunks:
            raise ValueError(
                f"num_chunks={self.num_chunks} is more than the {tokens} tokens of this call: use at most {tokens}, or "
                f"another strategy for steps as short as this one"
            )
        if comm.size == 1:
            return Done(F.linear(x_TI, w_DI))
        out = x.new_empty((tokens, w_DI.shape[0]))
        w_ID = w_DI.t()
        pieces = []
        for x_part, out_part in zip(x.tensor_split(self.num_chunks), out.tensor_split(self.num_chunks), strict=True):
            torch.mm(x_part, w_ID, out=out_part)
            pieces.append(comm.start_all_reduce(out_part))
        return _All(pieces, out.view(*x_TI.shape[:-1], w_DI.shape[0]))

    def num_calls(self, batch: int, seq: int) -> int:
        return self.num_chunks

    def __repr__(self) -> str:
        return f"Chunked({self.num_chunks})"


class BatchSplit(Blocking):
    """Two (or more) parts of the batch go through a block in turns: while one is all-reduced, the other computes.

    Unlike chunks of one matmul, a part's all-reduce has a whole attention or MLP to hide behind. With one sequence in
    the batch the sequence is cut, and later parts attend to the earlier ones' keys and values (causal attention only).

    Only blocks do this (``ParallelBlock``, ``run_blocks``); a layer by itself behaves as with ``Blocking``. For
    prefill: parts must have tokens to be efficient.

    Args:
        num_parts: how many parts.
        by: ``batch``, ``sequence``, or None: by batch where it has as many sequences as parts.

    Source: Wang and others, "Domino: Eliminating Communication in LLM Training via Generic Tensor Slicing and
    Overlapping" (2024), for the batch; Xiao and Su, "ISO: Overlap of Computation and Communication within Sequence For
    LLM Inference" (2024), for the sequence.
    """

    name = "batch split"

    def __init__(self, num_parts: int = 2, by: str | None = None) -> None:
        self.num_parts = check_count("num_parts", num_parts, least=2)
        self.by = check_one_of("by", by, (None, "batch", "sequence"))

    def parts_of(self, batch: int, seq: int) -> tuple[str, int]:
        """What is cut, ``batch`` or ``sequence``, and into how many parts: no more than there are of it."""
        by = self.by or ("batch" if batch >= self.num_parts else "sequence")
        return by, min(self.num_parts, batch if by == "batch" else seq)

    def num_calls(self, batch: int, seq: int) -> int:
        return self.parts_of(batch, seq)[1]

    def reduce(self, partial: torch.Tensor, comm: Comm) -> Pending:
        return comm.start_all_reduce(partial)

    def __repr__(self) -> str:
        return f"BatchSplit({self.num_parts}{'' if self.by is None else f', by={self.by!r}'})"


class SequenceParallel(Blocking):
    """Reduce-scatter instead of all-reduce, by tokens, and all-gather before the next column-parallel layer.

    Norms and residuals then work on T/n tokens per rank, and activations between layers take 1/n of the memory. In a
    ring the bytes are the same: an all-reduce *is* a reduce-scatter and an all-gather. (gloo's own reduce-scatter moves
    as much as an all-reduce, so there it costs more.)

    Tokens are sharded flat, batch and sequence together, and padded with zeros to a multiple of n.

    Source: Korthikanti and others, "Reducing Activation Recomputation in Large Transformer Models" (2022), 4.2.2.
    """

    name = "sequence parallel"
    sequence_parallel = True

    def gather_input(self, x: torch.Tensor, comm: Comm) -> torch.Tensor:
        return comm.start_all_gather(x.contiguous()).wait()

    def start_input_grad(self, grad: torch.Tensor, comm: Comm) -> Pending:
        return comm.start_reduce_scatter(grad.contiguous())

    def reduce(self, partial: torch.Tensor, comm: Comm) -> Pending:
        if partial.dim() != 2 or partial.shape[0] % comm.size:
            raise ValueError(
                f"x of shape {tuple(partial.shape)} is not a number of tokens that {comm.size} ranks can share: pass "
                f"(tokens, features), padded as scatter_tokens does"
            )
        return comm.start_reduce_scatter(partial)

    def gather_output_grad(self, grad: torch.Tensor, comm: Comm) -> torch.Tensor:
        return comm.start_all_gather(grad.contiguous()).wait()


class Int8(Blocking):
    """Quantised two-shot all-reduce: int8 with a scale per group of elements, half the bytes of bfloat16.

    Not exact: ``tplab.collectives.quantised.error_bound`` says by how much at most, ``compare_quantised`` measures it.
    Gradients pass as if the sum were exact (rounding has none of its own), and are summed exactly themselves.

    Args:
        scale_group: elements per scale.
    """

    name = "int8"

    def __init__(self, scale_group: int = 64) -> None:
        self.scale_group = check_count("scale_group", scale_group, least=1)

    def reduce(self, partial: torch.Tensor, comm: Comm) -> Pending:
        if comm.size > 1:
            from tplab.collectives.quantised import SCALE_GROUP, int8_all_reduce

            symmetric = symmetric_of(comm) if self.scale_group == SCALE_GROUP else None
            if symmetric is not None and symmetric.memory.takes(partial, partial.nbytes):
                return OneKernel("int8").reduce(partial, comm)
            int8_all_reduce(partial, comm.transport, scale_group=self.scale_group)
        return Done(partial)

    def __repr__(self) -> str:
        return f"Int8({self.scale_group})"


class OneKernel(Blocking):
    """Every sum as one kernel that writes into the other GPUs' memory, by the way that is chosen here.

    With :class:`Blocking` over the same ranks the way follows from the message's size. For ranks with a GPU each; over
    a ``SymmetricComm``, as ``generate`` makes it.

    Args:
        algorithm: ``one-shot`` or ``two-shot``, which are exact; ``int8`` or ``fp8``, which are not (see :class:`Int8`
            for gradients, ``tplab.collectives.quantised.error_bound`` for the bound).

    Raises:
        ValueError: at the call, without such a ``Comm``.
    """

    name = "one kernel"

    def __init__(self, algorithm: str) -> None:
        self.algorithm = check_one_of("algorithm", algorithm, ALGORITHMS)

    def reduce(self, partial: torch.Tensor, comm: Comm) -> Pending:
        if comm.size == 1:
            return Done(partial)
        symmetric = symmetric_of(comm)
        if symmetric is None:
            raise ValueError(
                f"strategy {self} needs ranks with a GPU each that reach each other's memory, and a SymmetricComm of "
                f"tplab.layers over them; the group is a {type(comm).__name__}"
            )
        if isinstance(comm, RecordingComm):
            return Done(comm.timed(lambda: symmetric.all_reduce_by(self.algorithm, partial)))
        return Done(symmetric.all_reduce_by(self.algorithm, partial))

    def __repr__(self) -> str:
        return f"OneKernel({self.algorithm!r})"


def few_tokens_linear(x: torch.Tensor, w_OI: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``F.linear`` without gradients: equal up to the order of adding, (..., I) -> (..., O), contiguous.

    On a GPU, for up to ``kernels.most_vectors`` tokens, the product of a matrix and few vectors of
    ``tplab.layers.kernels``.

    Not ``F.linear`` for 2 to 8 tokens in float32, as in a decode step of a small batch: it has MKL multiply with the
    long side as rows, and reaches half of the memory's speed. The other way round the same GEMM takes 0.5 to 0.8 of
    the time where there are more output than input features (AMD EPYC, AVX2, one thread, torch 2.13, matrices of 1 to
    50 MB). With fewer, with one token and with more than eight there is no gain, or a loss.
    """
    out_features, in_features = w_OI.shape
    tokens = x.numel() // in_features
    fits = x.shape[-1] == in_features and x.dtype is w_OI.dtype  # F.linear says what is wrong where they do not
    if fits and kernels.usable(x) and tokens <= kernels.most_vectors(x.dtype) and w_OI.is_contiguous():
        from tplab.layers.kernels.gemv import gemv

        return gemv(x.contiguous(), w_OI, bias)
    gains = 2 <= tokens <= 8 and out_features > in_features
    if not gains or x.dtype is not torch.float32 or x.device.type != "cpu":
        return F.linear(x, w_OI, bias)
    y_TO = torch.mm(w_OI, x.reshape(tokens, in_features).t()).t().contiguous()
    y = y_TO.view(*x.shape[:-1], out_features)
    return y if bias is None else y.add_(bias)


class _All:
    __slots__ = ("_pieces", "target")

    def __init__(self, pieces: Sequence[Pending], target: torch.Tensor) -> None:
        self._pieces = pieces
        self.target = target

    def wait(self) -> torch.Tensor:
        for piece in self._pieces:
            piece.wait()
        return self.target


def as_strategy(strategy: Blocking | None) -> Blocking:
    """None: blocking. Raises ``ValueError`` for what is no strategy, a name for instance."""
    if strategy is None:
        return Blocking()
    if not isinstance(strategy, Blocking):
        raise ValueError(f"strategy must be one of tplab.layers' strategies, such as Chunked(4); got {strategy!r}")
    return strategy


def set_strategy(module: nn.Module, strategy: Blocking) -> nn.Module:
    """Change how every parallel layer below ``module`` communicates; returns the module.

    Raises:
        ValueError: ``strategy`` is not one, or nothing below ``module`` communicates.
    """
    strategy = as_strategy(strategy)
    layers: list[Any] = [layer for layer in module.modules() if hasattr(layer, "strategy")]
    if not layers:
        raise ValueError(f"module: no layer below {type(module).__name__} is parallel")
    for layer in layers:
        layer.strategy = strategy
    return module
