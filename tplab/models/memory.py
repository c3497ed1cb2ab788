"""Bytes of weights and of keys and values on each rank, before anything is allocated; equal to what then is.

Pure: no torch. What it leaves out: activations, the buffers of collectives, and what torch and the allocator take.

Letters: t tensor-parallel degree, p stages; D hidden, I intermediate; h and g query and key-value heads of a rank, E
head dimension; V vocabulary.
"""

from tplab.layers.ranges import HeadShard, VocabShard, even_range
from tplab.models.config import ITEMSIZES, ModelConfig
from tplab.models.stages import Layout


def weight_bytes(config: ModelConfig, layout: Layout, rank: int, dtype: str | None = None) -> int:
    """Weights on ``rank``.

    Per layer ``D·(h+2g)·E + h·E·D + 3·D·I/t + 2·D`` elements and the biases and head norms there are; the first stage
    ``ceil(V/t)·D`` for the embedding, the last as many for the head (none where both are one tied tensor) and ``D``.

    Args:
        dtype: in which the weights are held; the config's by default.

    Raises:
        ValueError: heads or intermediate size that t does not divide, or a rank that there is not.
    """
    stage, index = layout.place(rank)
    spec = layout.spec(stage)
    elements = spec.num_layers * layer_elements(config, index, layout.tp)
    table = VocabShard.of(config.vocab_size, index, layout.tp).rows * config.hidden_size
    if spec.first:
        elements += table
    if spec.last:
        elements += config.hidden_size + (0 if config.tied and spec.first else table)
    return elements * itemsize(dtype or config.dtype)


def layer_elements(config: ModelConfig, index: int, tp: int) -> int:
    """Weights of one layer on tensor-parallel rank ``index`` of ``tp``, in elements."""
    heads = HeadShard.of(config.num_heads, config.num_kv_heads, index, tp)
    start, end = even_range("intermediate_size", config.intermediate_size, index, tp)
    hidden, size, wide = config.hidden_size, config.head_dim, end - start
    qkv_rows = (heads.num_q + 2 * heads.num_kv) * size
    return (
        qkv_rows * (hidden + config.qkv_bias)
        + hidden * (heads.num_q * size + config.out_bias)
        + 2 * wide * (hidden + config.mlp_bias)
        + hidden * (wide + config.mlp_bias)
        + 2 * hidden
        + 2 * size * config.qk_norm
    )


def kv_bytes(
    config: ModelConfig, layout: Layout, rank: int, *, batch: int, max_length: int, dtype: str | None = None
) -> int:
    """Keys and values on ``rank`` for ``batch`` sequences of ``max_length`` tokens: 2·layers·batch·length·g·E elements.

    ``max_length`` is the longest prompt plus the new tokens less one: the last is never an input. Micro-batches are
    padded each to its own longest prompt: add them up.
    """
    stage, index = layout.place(rank)
    heads = HeadShard.of(config.num_heads, config.num_kv_heads, index, layout.tp)
    per_token = 2 * layout.spec(stage).num_layers * heads.num_kv * config.head_dim
    return batch * max_length * per_token * itemsize(dtype or config.dtype)


def checkpoint_bytes(config: ModelConfig, dtype: str | None = None) -> int:
    """The tensors of a checkpoint on disk, without the headers."""
    elements = 0
    for shape in config.tensor_shapes().values():
        size = 1
        for length in shape:
            size *= length
        elements += size
    return elements * itemsize(dtype or config.dtype)


def itemsize(dtype: str) -> int:
    """Bytes per element. Raises ``ValueError`` for a dtype that models here do not come in."""
    if dtype not in ITEMSIZES:
        raise ValueError(f"dtype must be one of {', '.join(ITEMSIZES)}; got {dtype!r}")
    return ITEMSIZES[dtype]
