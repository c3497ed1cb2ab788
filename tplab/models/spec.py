"""A dense decoder as the advisor sees it: sizes and precisions, and what follows from them.

No weights and no torch: seven sizes and a few yes-or-no questions settle how many parameters there are, how many bytes
of keys and values a token leaves behind, and how many numbers each collective moves. ``tplab.models`` builds the real
thing; ``tplab.topology.advisor.memory`` says what a rank of any layout holds of it.

Letters: L layers, h hidden size, f intermediate size, H query heads, K key-value heads, d head size, V vocabulary, t
ranks that share a layer. Bytes are bytes; GB is 1e9 of them.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tplab.models.keys import whole

ITEMSIZE: Mapping[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "fp4": 0.5 + 1 / 16,
    "int4": 0.5 + 2.5 / 128,
}
"""Bytes per number. fp8 and int8 leave out their scales (one per channel or tensor: under 0.1 %). fp4 counts one 8-bit
scale per 16 numbers (NVFP4), int4 a 16-bit scale and a 4-bit zero point per 128 (AWQ's and GPTQ's usual group)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """Sizes of a dense decoder-only transformer, and the precision of its weights and its cache."""

    name: str
    """What to call it in tables."""
    num_layers: int
    """L, transformer blocks."""
    hidden_size: int
    """h, width of the residual stream."""
    intermediate_size: int
    """f, width inside the MLP."""
    num_heads: int
    """H, query heads."""
    num_kv_heads: int
    """K, key-value heads; divides H."""
    head_dim: int
    """d, width of one head. H·d need not be h."""
    vocab_size: int
    """V, true size; padding comes with the layout."""
    tied_embeddings: bool = False
    """Whether the lm_head is the embedding. A pipeline's first and last stage then both hold it."""
    gated_mlp: bool = True
    """Gate, up and down (SwiGLU, GeGLU), or up and down only."""
    qkv_bias: bool = False
    """Bias on the query, key and value projections."""
    out_bias: bool = False
    """Bias on attention's output projection."""
    mlp_bias: bool = False
    """Bias on every matrix of the MLP."""
    qk_norm: bool = False
    """A norm of d weights on each query and key head (Qwen3, Gemma 3)."""
    norms_per_block: int = 2
    """Norms of h weights: before attention and before the MLP; Gemma 2 and 3 also have one after each."""
    norm_bias: bool = False
    """LayerNorm with weight and bias instead of RMSNorm."""
    num_positions: int = 0
    """Rows of a learned position embedding (GPT-2, GPT-3); 0 with rotary positions."""
    parallel_residual: bool = False
    """Attention and MLP side by side (GPT-J, Falcon): one all-reduce per block instead of two."""
    sliding_window: int | None = None
    """Tokens that a windowed layer looks back on; None: every layer sees all."""
    windowed_layers: int = 0
    """Layers with that window. Taken as spread evenly over the depth, so every stage has its share."""
    max_length: int | None = None
    """Longest context the model was made for in tokens, rope scaling included, where the configuration says so."""
    weight_precision: str = "bf16"
    """Of the blocks' matrices, a key of ``ITEMSIZE``. Embedding, lm_head, norms and biases stay in
    ``activation_precision``, as in published fp8, AWQ and GPTQ checkpoints."""
    kv_precision: str = "bf16"
    """Of cached keys and values."""
    activation_precision: str = "bf16"
    """Of activations, so of the messages; and of the weights that are not quantised."""
    source: str | None = None
    """What an engine is to load: the folder that the configuration was read from, or a preset's id on Hugging Face."""
    quant_method: str | None = None
    """How the checkpoint itself is quantised (``quant_method`` of its ``quantization_config``: "awq", "fp8", ...)."""
    notes: tuple[str, ...] = ()
    """Approximations made on the way here, one sentence each. To be shown with every result."""

    def __post_init__(self) -> None:
        for key in _SIZES:
            whole(getattr(self, key), key)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}: every key-value head serves "
                f"as many query heads"
            )
        for key in ("weight_precision", "kv_precision", "activation_precision"):
            if getattr(self, key) not in ITEMSIZE:
                raise ValueError(f"{key}={getattr(self, key)!r} is not known: use one of {', '.join(ITEMSIZE)}")
        if not 0 <= self.windowed_layers <= self.num_layers:
            raise ValueError(f"windowed_layers={self.windowed_layers} must lie in 0..num_layers={self.num_layers}")
        for key in ("sliding_window", "max_length"):
            if getattr(self, key) is not None:
                whole(getattr(self, key), key)
        whole(self.num_positions, "num_positions", least=0)

    @classmethod
    def from_config(
        cls,
        config: "str | os.PathLike[str] | Mapping[str, Any]",
        *,
        weight_precision: str | None = None,
        kv_precision: str | None = None,
    ) -> "ModelSpec":
        """From a Hugging Face ``config.json`` (its path or its folder's), the dict in it, or the name of a preset.

        Args:
            config: path, dict, or a name such as ``"llama-3.1-70b"`` (see ``tplab.models.presets.MODELS``).
            weight_precision: of the blocks' matrices; by default what the configuration says, else bf16. A float32
                configuration stays fp32 unless another is given here: then activations and cache have 16 bits.
            kv_precision: of the cache; by default that of the activations.

        Raises:
            ValueError: unknown name (with the nearest ones), a file that cannot be read, missing or malformed key
                (which), or an architecture the advisor has no model of (mixture of experts, latent attention, state
                space, encoder-decoder, encoder).
        """
        from tplab.models.hf import read_config

        return read_config(config, weight_precision=weight_precision, kv_precision=kv_precision)

    def with_layers(self, num_layers: int) -> "ModelSpec":
        """As deep as that, with the same share of windowed layers, rounded down."""
        windowed = self.windowed_layers * num_layers // self.num_layers
        return replace(self, num_layers=num_layers, windowed_layers=windowed)

    @property
    def weight_itemsize(self) -> float:
        """Bytes per parameter of the blocks' matrices."""
        return ITEMSIZE[self.weight_precision]

    @property
    def kv_itemsize(self) -> float:
        """Bytes per cached number."""
        return ITEMSIZE[self.kv_precision]

    @property
    def activation_itemsize(self) -> float:
        """Bytes per activation: e of the collectives' ``b·h·e``."""
        return ITEMSIZE[self.activation_precision]

    @property
    def q_size(self) -> int:
        """H·d."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """K·d: width of the keys, and of the values."""
        return self.num_kv_heads * self.head_dim

    @property
    def all_reduces_per_block(self) -> int:
        """In a forward pass under tensor parallelism."""
        return 1 if self.parallel_residual else 2

    @property
    def attention_matmul_params(self) -> int:
        """Query, key, value and output projections of one block."""
        return 2 * self.hidden_size * (self.q_size + self.kv_size)

    @property
    def mlp_matmul_params(self) -> int:
        """Matrices of one block's MLP."""
        return (3 if self.gated_mlp else 2) * self.hidden_size * self.intermediate_size

    @property
    def block_matmul_params(self) -> int:
        """What a token multiplies with in one block, and what quantisation shrinks."""
        return self.attention_matmul_params + self.mlp_matmul_params

    @property
    def block_small_params(self) -> int:
        """Norms and biases of one block."""
        biases = self.qkv_bias * (self.q_size + 2 * self.kv_size) + self.out_bias * self.hidden_size
        if self.mlp_bias:
            biases += (2 if self.gated_mlp else 1) * self.intermediate_size + self.hidden_size
        norms = self.norms_per_block * self.norm_params + self.qk_norm * 2 * self.head_dim
        return biases + norms

    @property
    def norm_params(self) -> int:
        """Of one norm over the hidden size."""
        return self.hidden_size * (2 if self.norm_bias else 1)

    @property
    def block_params(self) -> int:
        """All parameters of one block."""
        return self.block_matmul_params + self.block_small_params

    @property
    def embedding_params(self) -> int:
        """Token embedding, and learned positions if any."""
        return (self.vocab_size + self.num_positions) * self.hidden_size

    @property
    def lm_head_params(self) -> int:
        """Of the last matmul, whether or not its weights are the embedding's."""
        return self.vocab_size * self.hidden_size

    @property
    def total_params(self) -> int:
        """All parameters, a tied lm_head counted once."""
        head = 0 if self.tied_embeddings else self.lm_head_params
        return self.num_layers * self.block_params + self.embedding_params + head + self.norm_params

    @property
    def weight_bytes(self) -> float:
        """Of the whole model on one GPU."""
        matmul = self.num_layers * self.block_matmul_params
        return matmul * self.weight_itemsize + (self.total_params - matmul) * self.activation_itemsize

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of one token over all layers on one GPU: 2·L·K·d·e. See ``kv_heads_per_rank`` for t > 1."""
        return 2 * self.num_layers * self.kv_size * self.kv_itemsize

    def kv_heads_of_rank(self, rank: int, tp: int) -> int:
        """Distinct key-value heads that the query heads of rank ``rank`` of ``tp`` use.

        Every rank keeps the keys and values of all of them: 6 query heads with 2 key-value heads on 3 ranks give the
        middle rank one query head of either group, so both key-value heads.

        Raises:
            ValueError: ``tp`` does not divide the query heads.
        """
        if tp < 1 or self.num_heads % tp:
            fitting = ", ".join(map(str, divisors(self.num_heads)))
            raise ValueError(f"tp={tp} does not divide num_heads={self.num_heads}: use one of {fitting}")
        each, group = self.num_heads // tp, self.num_heads // self.num_kv_heads
        return ((rank + 1) * each - 1) // group - rank * each // group + 1

    def kv_heads_per_rank(self, tp: int) -> int:
        """The most that any rank of ``tp`` holds: it sets the cache's size, since all ranks hold as many tokens."""
        return max(self.kv_heads_of_rank(rank, tp) for rank in range(tp))

    def kept_tokens(self, context: float) -> float:
        """Of ``context`` tokens, how many an average layer keeps and looks at: fewer where some layers are windowed."""
        if self.sliding_window is None:
            return context
        share = self.windowed_layers / self.num_layers
        return (1 - share) * context + share * min(context, self.sliding_window)


def divisors(number: int) -> list[int]:
    """In order. Looks no further than the square root."""
    low = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return low + [number // n for n in reversed(low) if n * n != number]


_SIZES = (
    "num_layers",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "vocab_size",
    "norms_per_block",
)
