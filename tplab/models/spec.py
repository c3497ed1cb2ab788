"""What a decoder-only model is, as numbers, and how an engine serves it. One description for everybody.

``generate`` builds a model from it, ``shards`` cuts one over ranks, ``advise`` sizes one. Seven sizes and a few
yes-or-no questions settle how many parameters there are, how many bytes of keys and values a token leaves behind, and
how many numbers each collective moves; a dozen more settle the mathematics.

Not transformers' own configuration classes: importing them takes seconds and torch, which the notebook's kernel does
without, and they carry a hundred keys of which two dozen matter. Pure: no torch.

Letters, the same in all of tplab: L layers, D hidden size, I intermediate size; H query heads, G key-value heads, E
size of a head; V vocabulary; t ranks that share a layer, p pipeline stages. Bytes are bytes; GB is 1e9 of them.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from tplab.checks import ArgumentError, check_divides, check_length, check_one_of
from tplab.layers.ranges import divisors, kv_heads_by_rank
from tplab.models.hf import config_json, read_config
from tplab.models.keys import whole
from tplab.models.precision import ITEMSIZE, DType, QuantBlock, itemsize, precisions, scaled_itemsize
from tplab.models.rope import RopeScaling

_SIZES = (
    *("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim", "vocab_size"),
    "norms_per_block",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A decoder-only transformer: its sizes and its mathematics.

    Raises:
        ValueError: sizes that contradict each other.
    """

    model_type: str = "llama"
    """Name of the family, whose class transformers would use."""
    vocab_size: int
    """V, true size; padding comes with the layout."""
    hidden_size: int
    """D, width of the residual stream."""
    intermediate_size: int
    """I, width inside the MLP."""
    num_layers: int
    """L, transformer blocks."""
    num_heads: int
    """H, query heads."""
    num_kv_heads: int
    """G, key-value heads; divides H."""
    head_dim: int
    """E, width of one head. H·E need not be D."""
    max_positions: int | None = None
    """Longest sequence before any stretch by rope scaling, prompt and new tokens together; None: not known."""
    norm_eps: float = 1e-6
    """Number added to the mean square in every norm."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """How the rotary frequencies are scaled; None if they are not."""
    qkv_bias: bool = False
    """Bias on the query, key and value projections."""
    out_bias: bool = False
    """Bias on attention's output projection."""
    mlp_bias: bool = False
    """Bias on every matrix of the MLP."""
    head_bias: bool = False
    """Bias on the output head (Phi, GPT-J)."""
    qk_norm: bool = False
    """A norm of E weights over each query and key head (Qwen3, Gemma 3)."""
    qk_norm_heads: bool = False
    """Whether that norm has weights of its own for each head (OLMo 2)."""
    tied_embeddings: bool = False
    """Whether the output head is the embedding. A pipeline's first and last stage then both hold it."""
    windows: tuple[int | None, ...] = ()
    """How many tokens back each layer sees, the token itself included; None for all. Empty: all layers see all."""
    gate: Literal["silu", "gelu_tanh"] = "silu"
    """Function applied to the gate of the MLP."""
    gated_mlp: bool = True
    """Whether the MLP has gate, up and down (SwiGLU, GeGLU), or up and down only."""
    norm_offset: float = 0.0
    """Number added to the weights of every norm: 1 in Gemma, whose checkpoints hold the difference from 1."""
    norms_per_block: int = 2
    """Number of norms of D weights: before attention and before the MLP; Gemma 2 and 3 also have one after each."""
    norm_weight: bool = True
    """Whether norms have weights (OLMo has none)."""
    norm_bias: bool = False
    """Whether norms are LayerNorms with weight and bias instead of RMSNorms."""
    outer_norms: int = 1
    """Norms outside the blocks: after the last one; in BLOOM also after the embedding, in some OPT none."""
    embedding_width: int | None = None
    """Width of embedding and head, where matrices beside them make D of it (OPT-350M); None: D."""
    num_positions: int = 0
    """Rows of a learned position embedding (GPT-2, GPT-3); 0 with rotary positions."""
    parallel_residual: bool = False
    """Whether attention and MLP run side by side (GPT-NeoX, Falcon, Command-R)."""
    one_sum: bool = False
    """Whether engines add these two up before an all-reduce of both: vLLM does for Falcon, not for GPT-NeoX or Phi."""
    embedding_scale: float = 1.0
    """Factor on the embeddings: √D in Gemma."""
    dtype: DType | None = "float32"
    """Type of the checkpoint's numbers, in which it should run; None: its configuration does not say."""
    stop_tokens: tuple[int, ...] = ()
    """Tokens any of which ends a sequence."""
    name: str = "model"
    """What to call it in tables."""

    def __post_init__(self) -> None:
        for key in _SIZES:
            whole(getattr(self, key), key)
        check_divides("num_kv_heads", self.num_kv_heads, "num_heads", self.num_heads)
        if self.dtype is not None:
            itemsize(self.dtype)
        if self.windows:
            check_length("windows", self.windows, self.num_layers, "layers")
        for key, value in (("max_positions", self.max_positions), *(("sliding_window", w) for w in set(self.windows))):
            if value is not None:
                whole(value, key)
        for key, least in (("num_positions", 0), ("outer_norms", 0), ("table_width", 1)):
            whole(getattr(self, key), key, least=least)

    @classmethod
    def from_hf(cls, source: "str | os.PathLike[str] | Mapping[str, Any]") -> "ModelConfig":
        """A model that ``tplab.models`` runs, from a ``config.json``: its path, its folder's, or its contents.

        Raises:
            FileNotFoundError: no such file.
            ValueError: an architecture, or a key that changes the mathematics, that is not supported; it is named.
        """
        return ModelConfig(**read_config(source))

    def to_hf(self) -> dict[str, Any]:
        """The contents of a ``config.json`` that transformers, and :meth:`from_hf`, read as this model."""
        keys = config_json(self)
        if replace(ModelConfig.from_hf(keys), name=self.name) != self.in_dtype(self.dtype):
            raise ValueError(f"a {self.model_type} model in a config.json cannot be this: {self}")
        return keys

    def in_dtype(self, dtype: str | None) -> "ModelConfig":
        """The model as ``tplab.models`` runs it: all of it in this type."""
        return ModelConfig(**_fields_of(self) | {"dtype": dtype})

    def window(self, layer: int) -> int | None:
        """How many tokens back a token of this layer sees; None: all."""
        return self.windows[layer] if self.windows else None

    @property
    def sliding_window(self) -> int | None:
        """Tokens that a windowed layer looks back on; None: every layer sees all."""
        return next((window for window in self.windows if window is not None), None)

    @property
    def windowed_layers(self) -> int:
        """Layers with a window."""
        return len(self.windows) - self.windows.count(None)

    @property
    def max_length(self) -> int | None:
        """Longest context in tokens, stretched by rope scaling as vLLM does it (``_get_and_verify_max_len``).

        ``max_position_embeddings`` already has the stretch in it with llama3 and longrope scaling, in Gemma 3, and
        where the original length is named beside. YaRN: the larger of it and original x factor, since those who switch
        it on as Qwen's model cards say leave ``max_position_embeddings`` as it was.
        """
        most, rope = self.max_positions, self.rope_scaling
        if most is None or rope is None or rope.kind not in ("linear", "dynamic", "yarn"):
            return most
        original = rope.original_max_positions
        if self.model_type == "gemma3_text" or (original and rope.kind != "yarn"):
            return most
        return max(most, int((original or most) * rope.factor))

    @property
    def weight_itemsize(self) -> float:
        """Bytes per parameter of the blocks' matrices."""
        return itemsize(self.dtype)

    @property
    def kv_itemsize(self) -> float:
        """Bytes per cached number."""
        return itemsize(self.dtype)

    @property
    def activation_itemsize(self) -> float:
        """Bytes per activation, and per parameter of embedding, head, norms and biases."""
        return itemsize(self.dtype)

    @property
    def q_size(self) -> int:
        """H·E, width of the queries."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """G·E: width of the keys, and of the values."""
        return self.num_kv_heads * self.head_dim

    @property
    def all_reduces_per_block(self) -> int:
        """All-reduces of one block in a forward pass under tensor parallelism."""
        return 1 if self.one_sum else 2

    @property
    def mlp_matrices(self) -> int:
        """Matrices of one block's MLP."""
        return 3 if self.gated_mlp else 2

    @property
    def norm_params(self) -> int:
        """Parameters of one norm over the hidden size."""
        return self.hidden_size * (self.norm_weight + self.norm_bias)

    @property
    def block_matmul_params(self) -> int:
        """What a token multiplies with in one block, and what quantisation shrinks."""
        return self.block_params_of_rank(0, 1)[0]

    @property
    def block_params(self) -> int:
        """All parameters of one block."""
        return sum(self.block_params_of_rank(0, 1))

    def block_params_of_rank(self, index: int, t: int) -> tuple[int, int]:
        """Parameters of one block on tensor-parallel rank ``index`` of ``t``: ``2·D·(h+g)·E + (3 or 2)·D·I/t`` in its
        matrices, and those of norms and biases. Norms, and biases added after the sum, are whole on every rank."""
        q, kv = self.q_size // t, self.kv_heads_of_rank(index, t) * self.head_dim
        inner = self.intermediate_size // t
        biases = self.qkv_bias * (q + 2 * kv) + self.out_bias * self.hidden_size
        biases += self.mlp_bias * ((self.mlp_matrices - 1) * inner + self.hidden_size)
        normed = (q + kv if self.qk_norm_heads else 2 * self.head_dim) * (self.norm_weight + self.norm_bias)
        norms = self.norms_per_block * self.norm_params + self.qk_norm * normed
        return 2 * self.hidden_size * (q + kv) + self.mlp_matrices * self.hidden_size * inner, biases + norms

    @property
    def table_width(self) -> int:
        """Width of the rows of embedding and head."""
        return self.embedding_width or self.hidden_size

    @property
    def end_params(self) -> int:
        """Parameters beside the table at each end: of the matrix between its width and D, where they differ."""
        return 0 if self.table_width == self.hidden_size else self.table_width * self.hidden_size

    @property
    def embedding_params(self) -> int:
        """Token embedding, and learned positions if any."""
        return self.vocab_size * self.table_width + self.end_params + self.num_positions * self.hidden_size

    @property
    def lm_head_params(self) -> int:
        """Parameters of the last matmul, whether or not its weights are the embedding's."""
        return self.vocab_size * self.table_width

    @property
    def total_params(self) -> int:
        """All parameters, a tied head counted once."""
        head = self.end_params + (0 if self.tied_embeddings else self.lm_head_params) + self.head_bias * self.vocab_size
        return self.num_layers * self.block_params + self.embedding_params + head + self.outer_norms * self.norm_params

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weights of the whole model on one GPU."""
        matmul = self.num_layers * self.block_matmul_params
        return matmul * self.weight_itemsize + (self.total_params - matmul) * self.activation_itemsize

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of one token's keys and values over all layers on one GPU: 2·L·G·E numbers."""
        return 2 * self.num_layers * self.kv_size * self.kv_itemsize

    def kv_heads_of_rank(self, index: int, t: int) -> int:
        """Distinct key-value heads that the query heads of rank ``index`` of ``t`` use: every rank keeps the keys and
        values of all of them. Raises ``ValueError`` where ``t`` does not divide the query heads."""
        heads = self._kv_heads(t)
        if not 0 <= index < t:
            raise ArgumentError("index", index, f"must be a rank of {t}, from 0 to {t - 1}")
        return heads[index]

    def kv_heads_per_rank(self, t: int) -> int:
        """The most that any rank of ``t`` holds: it sets the cache's size, since all ranks hold as many tokens."""
        return max(self._kv_heads(t))

    def _kv_heads(self, t: int) -> tuple[int, ...]:
        if t < 1 or self.num_heads % t:
            fitting = ", ".join(map(str, divisors(self.num_heads)))
            raise ArgumentError("tp", t, f"must divide num_heads={self.num_heads}: use one of {fitting}")
        return kv_heads_by_rank(self.num_heads, self.num_kv_heads, t)

    def kept_tokens(self, context: float) -> float:
        """How many of ``context`` tokens an average layer keeps and looks at: fewer where some layers are windowed."""
        if (window := self.sliding_window) is None:
            return context
        share = self.windowed_layers / self.num_layers
        return (1 - share) * context + share * min(context, window)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a checkpoint of a model that ``tplab.models`` runs: Hugging Face's name -> full shape."""
        hidden, wide = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for layer in range(self.num_layers):
            block = f"model.layers.{layer}."
            shapes[f"{block}input_layernorm.weight"] = (hidden,)
            for name, rows, columns, bias in (
                ("self_attn.q_proj", self.q_size, hidden, self.qkv_bias),
                ("self_attn.k_proj", self.kv_size, hidden, self.qkv_bias),
                ("self_attn.v_proj", self.kv_size, hidden, self.qkv_bias),
                ("self_attn.o_proj", hidden, self.q_size, self.out_bias),
                ("mlp.gate_proj", wide, hidden, self.mlp_bias),
                ("mlp.up_proj", wide, hidden, self.mlp_bias),
                ("mlp.down_proj", hidden, wide, self.mlp_bias),
            ):
                shapes[f"{block}{name}.weight"] = (rows, columns)
                if bias:
                    shapes[f"{block}{name}.bias"] = (rows,)
            if self.qk_norm:
                shapes |= {f"{block}self_attn.{name}.weight": (self.head_dim,) for name in ("q_norm", "k_norm")}
            shapes[f"{block}post_attention_layernorm.weight"] = (hidden,)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tied_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec(ModelConfig):
    """A model as an engine serves it: a description of it, and the precision of its weights and its cache."""

    dtype: DType | None = None
    weight_precision: str = "bf16"
    """Precision of the blocks' matrices, a key of ``ITEMSIZE``; all other weights have ``activation_precision``."""
    kv_precision: str = "bf16"
    """Precision of cached keys and values."""
    activation_precision: str = "bf16"
    """Precision of activations, so of the messages; and of the weights that are not quantised."""
    source: str | None = None
    """What an engine is to load: the folder that the configuration was read from, or a preset's id on Hugging Face."""
    quant_method: str | None = None
    """How the checkpoint itself is quantised (``quant_method`` of its ``quantization_config``: "awq", "fp8", ...)."""
    quant_blocks: tuple[QuantBlock, ...] = ()
    """Weights of it that share a scale, which tensor parallelism must leave whole."""
    notes: tuple[str, ...] = ()
    """Approximations made on the way here, one sentence each. To be shown with every result."""

    def __post_init__(self) -> None:
        ModelConfig.__post_init__(self)
        for key in ("weight_precision", "kv_precision", "activation_precision"):
            check_one_of(key, getattr(self, key), ITEMSIZE)

    @classmethod
    def from_config(
        cls,
        config: "str | os.PathLike[str] | Mapping[str, Any] | ModelConfig",
        *,
        weight_precision: str | None = None,
        kv_precision: str | None = None,
    ) -> "ModelSpec":
        """A model from a Hugging Face ``config.json`` (its path or its folder's), the dict in it, or a preset's name.

        Args:
            config: path, dict, a name such as ``"llama-3.1-70b"`` (see ``presets.MODELS``), or a ``ModelConfig``.
            weight_precision: of the blocks' matrices; by default what the configuration says, or a quantiser's file
                beside it, else bf16. float32 stays unless another is given: then activations and cache have 16 bits.
            kv_precision: of the cache; by default that of the activations.

        Raises:
            ValueError: unknown name (with the nearest ones), a file that cannot be read, missing or malformed key, or
                an architecture the advisor has no model of (mixture of experts, latent attention, encoder, ...).
        """
        from tplab.models.served import read_spec  # names and precisions, which ranks do without

        if not isinstance(config, ModelConfig):
            return cls(**read_spec(config, weight_precision, kv_precision))
        notes: list[str] = []
        served = precisions({}, config.num_layers, config.dtype, weight_precision, kv_precision, notes)
        return cls(**_fields_of(config), **served, notes=tuple(notes))

    def with_layers(self, num_layers: int) -> "ModelSpec":
        """The model with so many layers and the same share of windowed ones, rounded down and spread evenly."""
        n, deep, window = self.windowed_layers, self.num_layers, self.sliding_window
        windows = tuple(window if (i + 1) * n // deep > i * n // deep else None for i in range(num_layers))
        return replace(self, num_layers=num_layers, windows=windows if any(windows) else ())

    @property
    def weight_itemsize(self) -> float:
        return scaled_itemsize(self.weight_precision, self.quant_blocks)

    @property
    def kv_itemsize(self) -> float:
        return ITEMSIZE[self.kv_precision]

    @property
    def activation_itemsize(self) -> float:
        return ITEMSIZE[self.activation_precision]


def _fields_of(config: ModelConfig) -> dict[str, Any]:
    return {each.name: getattr(config, each.name) for each in fields(ModelConfig)}
