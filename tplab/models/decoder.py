"""One rank's part of a decoder-only model: the layers of its pipeline stage, its slices of each, the batch's padding.

Made on the meta device and then filled slice by slice: no rank ever holds a tensor that it does not keep, let alone the
model. Not a full model that is cut afterwards (that is what limits the size of model one can start), nor hooks on
transformers' own classes: the layers are the ones of ``tplab.layers``, and their plans say what to read.

Legend: B batch, S sequence, T places of the cache, D hidden, E head dimension; V vocabulary, v rows of it per rank.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from tplab.layers.block import ParallelBlock, run_blocks
from tplab.layers.comm import Comm, as_comm
from tplab.layers.core_attention import KVCache
from tplab.layers.decode import decode_blocks, sum_and_norm, why_not_decode
from tplab.layers.plain import MLP, Attention, Block
from tplab.layers.shards import Shard, VocabShard, prefixed
from tplab.layers.strategies import Blocking, set_strategy
from tplab.layers.vocabulary import ParallelLMHead, VocabParallelEmbedding
from tplab.models.rotary import LengthRotary, make_rotary
from tplab.models.shards import StageSpec
from tplab.models.spec import ModelConfig

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Padding:
    """Prompts of different lengths in one batch, padded on the left; positions and masks that make it invisible.

    On the left, because then all sequences write their next token at the same place of the cache: one slice, static
    shapes, and the last position of a prefill is every prompt's last token. It costs nothing in exactness: positions
    count from a prompt's own first token, and a masked key has the weight exp(-inf) = 0 exactly, so padding adds zeros
    to the sums of attention. What remains is the order in which kernels (of CPU or GPU) add, as between any two batch
    sizes.

    Args:
        lengths: tokens of each prompt.
        max_length: places in the cache.
        longest: tokens of the longest prompt of the whole request, where these are only some of its prompts.
    """

    def __init__(
        self, lengths: Sequence[int], max_length: int, device: torch.device, *, longest: int | None = None
    ) -> None:
        self.lengths = tuple(lengths)
        self.longest = max(lengths)
        self.device = device
        self.padded = min(lengths) < self.longest
        self.shorter = torch.tensor(max(0, (longest or 0) - self.longest), dtype=torch.int32, device=device)
        """Tokens by which the longest of these is shorter than the longest of the request: frequencies that depend on a
        length are to be the same in all micro-batches."""
        self.start_B = torch.tensor([self.longest - length for length in lengths], device=device)
        self._places_T = torch.arange(max_length, device=device)
        self._real_BT = self._places_T >= self.start_B[:, None]

    def ids(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """(B, S): the prompts with zeros in front. Any token would do; 0 is in every vocabulary."""
        rows = [[0] * (self.longest - len(prompt)) + list(prompt) for prompt in prompts]
        return torch.tensor(rows, dtype=torch.int64, device=self.device)

    def positions(self, past: int, seq: int) -> torch.Tensor:
        """(S,), or (B, S) where there is padding: of the tokens in places ``past`` to ``past + seq``."""
        places_S = self._places_T[past : past + seq]
        return (places_S - self.start_B[:, None]).clamp_min(0) if self.padded else places_S.clone()

    def mask(self, past: int, seq: int, window: int | None) -> torch.Tensor | None:
        """(B, 1, S, past + S) bool: what each token sees. None where attention knows by itself: without padding.

        A padding token sees itself: a row without any key would be NaN, and NaN times zero is NaN for everybody.
        """
        if not self.padded:
            return None
        total = past + seq
        real_B1T = self._real_BT[:, None, :total]
        if seq == 1 and (window is None or window >= total):
            return real_B1T[:, None]
        key_T, query_S1 = self._places_T[:total], self._places_T[past:total, None]
        seen_ST = key_T <= query_S1
        if window is not None:
            seen_ST = seen_ST & (key_T > query_S1 - window)
        return ((seen_ST & real_B1T) | (key_T == query_S1))[:, None]


class PlainRMSNorm(nn.RMSNorm):
    """RMSNorm for inference. On the CPU torch's own is nine operations in a row; in a decode step that is a tenth of
    the time, and these five are half of it. Elsewhere, and in narrow dtypes, torch's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu" or x.dtype is not torch.float32:
            return super().forward(x)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(self.eps or 0.0).rsqrt_()
        y: torch.Tensor = (x * scale).mul_(self.weight)
        return y


class OffsetRMSNorm(nn.RMSNorm):
    """RMSNorm whose weights are stored less an offset, as Gemma's are less 1; in float32 until the end, as there."""

    offset: float = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.rms_norm(x.float(), self.normalized_shape, None, self.eps)
        return (y * (self.offset + self.weight.float())).to(x.dtype)


class Stage(nn.Module):
    """Layers ``spec.start`` to ``spec.end``; the embedding on the first stage, the last norm and the head on the last.

    ==================  ===========  ==========================================================
    on a rank           shape        what
    ==================  ===========  ==========================================================
    embed.weight        (v, D)       its rows of the embedding, on the first stage
    layers.i            its part     :class:`~tplab.layers.block.ParallelBlock`
    norm.weight         (D,)         on the last stage
    head.weight         (v, D)       its rows of the output head, on the last stage; tied: the
                                     embedding's own where both are on this rank, else a copy
    x                   (B, S)       token ids on the first stage
                        (B, S, D)    hidden states on the others, the same on all ranks of a stage
    y                   (B, S, D)    hidden states, before the last stage
                        (B, v)       logits of its tokens for the last position, on the last
    ==================  ===========  ==========================================================

    Communication, forward, within the stage: two all-reduces per layer, and one for the embedding, of B·S·D elements.

    Args:
        group: the ranks of this stage: process group, ``Comm``, or None for a rank alone.
        dtype: of the weights.

    The weights are on the meta device; ``checkpoint.fill`` gives them memory and values.

    Raises:
        ValueError: sizes that do not divide over the group.
    """

    def __init__(
        self, config: ModelConfig, spec: StageSpec, group: "ProcessGroup | Comm | None", *, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.comm = comm = as_comm(group)
        self.vocab = VocabShard.of(config.vocab_size, comm.index, comm.size)
        kind: dict[str, Any] = {"dtype": dtype, "device": "meta"}
        self.rope = rope = make_rotary(config)

        def block(layer: int) -> ParallelBlock:
            attention = Attention(
                config.hidden_size,
                config.num_heads,
                config.num_kv_heads,
                head_dim=config.head_dim,
                bias=config.qkv_bias,
                out_bias=config.out_bias,
                rope=rope,
                qk_norm=config.qk_norm,
                norm_eps=config.norm_eps,
                sliding_window=config.window(layer),
                **kind,
            )
            if config.qk_norm:
                attention.q_norm, attention.k_norm = (self._norm(kind, config.head_dim) for _ in range(2))
            activation = "swiglu" if config.gate == "silu" else "geglu"
            mlp = MLP(config.hidden_size, config.intermediate_size, activation=activation, bias=config.mlp_bias, **kind)
            plain = Block(attention, mlp, norm_eps=config.norm_eps, **kind)
            plain.input_layernorm, plain.post_attention_layernorm = (
                self._norm(kind, config.hidden_size) for _ in range(2)
            )
            return ParallelBlock.from_module(plain, comm)

        self.embed: VocabParallelEmbedding | None = None
        self.norm: nn.RMSNorm | None = None
        self.head: ParallelLMHead | None = None
        if spec.first:
            table = nn.Embedding(config.vocab_size, config.hidden_size, **kind)
            self.embed = VocabParallelEmbedding.from_module(table, comm)
        self.layers = nn.ModuleList(block(layer) for layer in range(spec.start, spec.end))
        if spec.last:
            self.norm = self._norm(kind, config.hidden_size)
            head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, **kind)
            self.head = ParallelLMHead.from_module(head, comm, tied=self.embed if config.tied_embeddings else None)
        # Neighbours with the same window share their mask, and go through as one stack.
        windows = [(config.window(layer), layer - spec.start) for layer in range(spec.start, spec.end)]
        self._runs = [
            (window, slice(places[0], places[-1] + 1))
            for window, run in groupby(windows, key=lambda each: each[0])
            for places in [[place for _, place in run]]
        ]
        self.eval().requires_grad_(False)

    def _norm(self, kind: dict[str, Any], size: int) -> nn.RMSNorm:
        config = self.config
        if not config.norm_offset:
            return PlainRMSNorm(size, eps=config.norm_eps, **kind)
        norm = OffsetRMSNorm(size, eps=config.norm_eps, **kind)
        norm.offset = config.norm_offset
        return norm

    @property
    def plan(self) -> dict[str, tuple[Shard, ...]]:
        """Every parameter, by its name here: the slices it consists of, by their names in a checkpoint."""
        plan: dict[str, tuple[Shard, ...]] = {}
        if self.embed is not None:
            plan |= prefixed(self.embed.plan, "embed.", "model.embed_tokens.")
        for place, block in enumerate(self.layers):
            plan |= prefixed(block.plan, f"layers.{place}.", f"model.layers.{self.spec.start + place}.")  # type: ignore[arg-type]
        if self.norm is not None:
            plan["norm.weight"] = (Shard(source="model.norm.weight"),)
        if self.head is not None and not self.shares_table:
            there = "model.embed_tokens." if self.config.tied_embeddings else "lm_head."
            plan |= prefixed(self.head.plan, "head.", there)
        return plan

    @property
    def shares_table(self) -> bool:
        """Whether embedding and head are one tensor on this rank."""
        return self.config.tied_embeddings and self.spec.first and self.spec.last

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights; ``shards.weight_bytes`` computes them beforehand."""
        return sum(weight.numel() * weight.element_size() for weight in self.parameters())

    def set(self, name: str, value: torch.Tensor) -> None:
        """Give a parameter its memory and values."""
        path, _, last = name.rpartition(".")
        parameter = nn.Parameter(value, requires_grad=False)
        setattr(self.get_submodule(path), last, parameter)
        if name == "embed.weight" and self.shares_table:
            assert self.head is not None
            self.head.weight = parameter

    def make_caches(self, batch: int, max_length: int) -> list[KVCache]:
        """Empty caches, one per layer."""
        return [block.self_attn.make_cache(batch, max_length) for block in self.layers]  # type: ignore[union-attr, operator]

    def set_strategy(self, strategy: Blocking) -> None:
        """Change how the layers communicate. The embedding and the head stay: they are exact, or for one token only."""
        set_strategy(self.layers, strategy)

    def forward(
        self,
        x: torch.Tensor,
        *,
        padding: Padding,
        caches: Sequence[KVCache],
        every_position: bool = False,
    ) -> torch.Tensor:
        """The next tokens of a batch, after those in the caches.

        Args:
            x: ids (B, S) or hidden states (B, S, D).
            padding: where the prompts begin.
            caches: from :meth:`make_caches`; the new tokens are added.
            every_position: logits (B, S, v) instead of the last position's.
        """
        x = self._embedded(x)
        past, seq = caches[0].length, x.shape[1]
        positions = padding.positions(past, seq)
        if isinstance(self.rope, LengthRotary):
            self.rope.follow(padding.shorter + (past + seq))
        blocks: list[ParallelBlock] = [*self.layers]
        for window, part in self._runs:
            mask = padding.mask(past, seq, window)
            x = run_blocks(blocks[part], x, caches=caches[part], positions=positions, mask=mask)
        if self.norm is None or self.head is None:
            return x
        if not every_position:
            x = x[:, -1]
        logits: torch.Tensor = self.head(self.norm(x))
        return logits

    def why_no_decode(self) -> str | None:
        """The reason why :meth:`decode` cannot run on this rank, in words; None where it can."""
        return why_not_decode([*self.layers])

    def decode(
        self, x: torch.Tensor, *, padding: Padding, caches: Sequence[KVCache], past: torch.Tensor
    ) -> torch.Tensor:
        """One token of each sequence, like :meth:`forward` for a step of decoding, with the fused kernels.

        Nothing is read from the host: a CUDA graph of the call is good for every ``past``. The caches' host lengths are
        neither read nor changed.

        Args:
            x: ids (B, 1) or hidden states (B, 1, D).
            padding: where the prompts begin.
            caches: from :meth:`make_caches`; the new tokens' keys and values are written at place ``past``.
            past: (1,) int32 on the device: tokens that are in the caches.
        """
        blocks: list[ParallelBlock] = [*self.layers]
        x_BD = self._embedded(x)[:, 0].contiguous()
        if isinstance(self.rope, LengthRotary):
            self.rope.follow(padding.shorter + past + 1)
        x_BD, part = decode_blocks(blocks, x_BD, caches, past=past, starts_B=padding.start_B)
        if self.norm is None or self.head is None:
            return (x_BD + self.comm.all_reduce(part)).unsqueeze(1)
        _, h_BD = sum_and_norm(self.comm, part, x_BD, self.norm)
        logits: torch.Tensor = self.head(h_BD)
        return logits

    def _embedded(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states of ids, on the first stage; on the others ``x`` is hidden states already."""
        if self.embed is None:
            return x
        x = self.embed(x)
        scale = self.config.embedding_scale
        # Rounded to the dtype first, as the trained model had it; on the host, as a CUDA graph takes nothing from it.
        return x if scale == 1.0 else x * float(torch.tensor(scale, dtype=x.dtype))
