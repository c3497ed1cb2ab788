"""What a decoder-only model is, as numbers: everything that changes its mathematics, and nothing else.

Not transformers' own configuration classes: importing them takes seconds and torch, which the notebook's kernel does
without, and they carry a hundred keys of which a dozen matter. Pure: no torch.

Letters: D hidden, I intermediate; H query heads, G key-value heads, E head dimension; V vocabulary; L layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tplab.models.keys import whole

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma")
"""What ``model_type`` in a config.json may be."""

DType: TypeAlias = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[DType, ...] = ("float32", "bfloat16", "float16")
ITEMSIZES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per element."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """How the rotary frequencies of a longer context are made from the trained ones."""

    kind: Literal["linear", "llama3"]
    """``linear`` divides all frequencies by ``factor``; ``llama3`` the low ones, with a smooth passage."""
    factor: float
    """By how much the context is stretched."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    """Wavelengths above ``original_max_positions`` / low are stretched, those below the same / high are not."""
    original_max_positions: int = 8192
    """Context the model was trained with, in tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A decoder-only transformer: pre-norm blocks, RMSNorm, rotary positions, gated MLP.

    Raises:
        ValueError: sizes that contradict each other.
    """

    model_type: str
    """One of ``MODEL_TYPES``: whose class transformers would use."""
    vocab_size: int
    """V."""
    hidden_size: int
    """D."""
    intermediate_size: int
    """I."""
    num_layers: int
    """L."""
    num_heads: int
    """H."""
    num_kv_heads: int
    """G, which divides H."""
    head_dim: int
    """E; H·E need not be D."""
    max_positions: int
    """Longest sequence, prompt and new tokens together."""
    norm_eps: float = 1e-6
    """Added to the mean square in every RMSNorm."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """None: none."""
    qkv_bias: bool = False
    """Of the query, key and value projections."""
    out_bias: bool = False
    """Of attention's output projection."""
    mlp_bias: bool = False
    """Of the three matrices of the MLP."""
    qk_norm: bool = False
    """RMSNorm over each query and key head, as in Qwen3."""
    tied: bool = False
    """Whether the output head is the embedding."""
    windows: tuple[int | None, ...] = ()
    """Per layer, how many tokens back a token sees, itself included; None for all. Empty: None everywhere."""
    gate: Literal["silu", "gelu_tanh"] = "silu"
    """What is applied to the gate of the MLP."""
    norm_offset: float = 0.0
    """Added to the weights of every norm: 1 in Gemma, whose checkpoints hold the difference from 1."""
    embedding_scale: float = 1.0
    """Embeddings are multiplied by it: √D in Gemma."""
    dtype: DType = "float32"
    """In which the checkpoint was trained and should run."""
    stop_tokens: tuple[int, ...] = ()
    """A sequence ends with any of these."""

    def __post_init__(self) -> None:
        if self.model_type not in MODEL_TYPES:
            raise ValueError(f"model_type must be one of {', '.join(MODEL_TYPES)}; got {self.model_type!r}")
        for name in (
            *("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"),
            *("head_dim", "max_positions"),
        ):
            whole(getattr(self, name), name)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary positions turn pairs")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}")
        if self.windows and len(self.windows) != self.num_layers:
            raise ValueError(f"windows must be one per layer: {self.num_layers}; got {len(self.windows)}")

    @classmethod
    def from_hf(cls, source: "str | Path | Mapping[str, Any]") -> "ModelConfig":
        """From a Hugging Face ``config.json``: its path, its folder's, or its contents.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another architecture, or a key that changes the mathematics in a way not supported here; both
                are named, with what is supported.
        """
        from tplab.models.hf_config import read_config

        return read_config(source)

    def to_hf(self) -> dict[str, Any]:
        """The contents of a ``config.json`` that transformers, and :meth:`from_hf`, read as this model."""
        from tplab.models.hf_config import config_json

        return config_json(self)

    def window(self, layer: int) -> int | None:
        """How many tokens back a token of this layer sees; None: all."""
        return self.windows[layer] if self.windows else None

    def layer_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Tensors of one block in a checkpoint: name -> shape."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, wide = self.hidden_size, self.intermediate_size
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        shapes: dict[str, tuple[int, ...]] = {f"model.layers.{layer}.input_layernorm.weight": (hidden,)}
        for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            shapes[f"{attention}{name}.weight"] = (rows, hidden)
            if self.qkv_bias:
                shapes[f"{attention}{name}.bias"] = (rows,)
        shapes[f"{attention}o_proj.weight"] = (hidden, q)
        if self.out_bias:
            shapes[f"{attention}o_proj.bias"] = (hidden,)
        if self.qk_norm:
            shapes |= {f"{attention}{name}.weight": (self.head_dim,) for name in ("q_norm", "k_norm")}
        shapes[f"model.layers.{layer}.post_attention_layernorm.weight"] = (hidden,)
        for name, rows, columns in (
            ("gate_proj", wide, hidden),
            ("up_proj", wide, hidden),
            ("down_proj", hidden, wide),
        ):
            shapes[f"{mlp}{name}.weight"] = (rows, columns)
            if self.mlp_bias:
                shapes[f"{mlp}{name}.bias"] = (rows,)
        return shapes

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a checkpoint of this model: Hugging Face's name -> shape of the full tensor."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_layers):
            shapes |= self.layer_shapes(layer)
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes
