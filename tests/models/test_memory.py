"""Which layers a stage has, and bytes told beforehand: equal to what the modules and caches then are."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.layers.core_attention import KVCache
from tplab.models.decoder import Stage
from tplab.models.precision import PRECISIONS, itemsize
from tplab.models.shards import Layout, kv_bytes, weight_bytes
from tplab.models.spec import ModelConfig


class Place:
    """A rank's place in a group that is not there: enough to build a stage on the meta device."""

    device_types: frozenset[str] = frozenset()

    def __init__(self, index: int, size: int) -> None:
        self.index, self.size = index, size

    start_all_reduce = None


def deep(layers: int) -> ModelConfig:
    sizes: dict[str, Any] = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_heads"), 4)
    return ModelConfig(**sizes, num_kv_heads=4, head_dim=2, num_layers=layers)


@st.composite
def models(draw: st.DrawFn) -> tuple[ModelConfig, Layout]:
    tp = draw(st.sampled_from([1, 2, 3, 4]))
    layers = draw(st.integers(1, 5))
    pp = draw(st.integers(1, layers))
    kv_heads = draw(st.integers(1, 4))
    heads = kv_heads * draw(st.integers(1, 4)) * tp
    config = ModelConfig(
        model_type=draw(st.sampled_from(["llama", "qwen2", "qwen3"])),
        vocab_size=draw(st.integers(1, 40)),
        hidden_size=draw(st.integers(1, 20)),
        intermediate_size=tp * draw(st.integers(1, 9)),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 5)),
        max_positions=64,
        qkv_bias=draw(st.booleans()),
        out_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        tied_embeddings=draw(st.booleans()),
        dtype=draw(st.sampled_from([*PRECISIONS])),
    )
    return config, Layout.of(config, tp, pp)


@settings(deadline=None)  # 16 stages are built on the meta device
@given(models(), st.integers(1, 3), st.integers(1, 7))
def test_bytes_told_are_the_bytes_allocated(model: tuple[ModelConfig, Layout], batch: int, length: int) -> None:
    config, layout = model
    for rank in range(layout.gpus_per_replica):
        stage_index, index = layout.place(rank)
        comm: Any = Place(index, layout.tp)
        stage = Stage(config, layout.spec(stage_index), comm, dtype=getattr(torch, config.dtype))
        assert stage.weight_bytes == weight_bytes(config, layout, stage_index, index)
        caches = stage.make_caches(batch, length)
        assert all(isinstance(cache, KVCache) for cache in caches)
        told = kv_bytes(config, layout, stage_index, index, requests=batch, context=length)
        assert sum(cache.num_bytes for cache in caches) == told


@given(models())
def test_one_rank_holds_what_the_checkpoint_has(model: tuple[ModelConfig, Layout]) -> None:
    config, _ = model
    elements = sum(math.prod(shape) for shape in config.tensor_shapes().values())
    assert config.total_params == elements
    assert weight_bytes(config, Layout.of(config), 0, 0) == config.weight_bytes == elements * itemsize(config.dtype)


@given(st.integers(1, 40), st.data())
def test_stages_cover_the_layers_evenly(layers: int, data: st.DataObject) -> None:
    pp = data.draw(st.integers(1, layers))
    layout = Layout.of(deep(layers), 1, pp)
    covered = [layer for stage in range(pp) for layer in range(layout.spec(stage).start, layout.spec(stage).end)]
    assert covered == list(range(layers))
    assert max(layout.layers_of_stage) - min(layout.layers_of_stage) <= 1
    assert [layout.spec(stage).first for stage in range(pp)] == [True] + [False] * (pp - 1)
    assert [layout.spec(stage).last for stage in range(pp)] == [False] * (pp - 1) + [True]


def test_spare_layers_go_to_the_middle() -> None:
    assert Layout.of(deep(9), 1, 4).layers_of_stage == (2, 2, 3, 2)
    assert Layout.of(deep(6), 1, 4).layers_of_stage == (1, 2, 2, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tp": 0}, "tp must be a whole number of at least 1; got 0"),
        ({"pp": True}, "pp must be a whole number of at least 1; got True"),
        ({"pp": 5}, "pp must be at most 4"),
        ({"pp": 2, "layers_of_stage": (1, 2)}, r"add up to 4; got \[1, 2\]"),
        ({"pp": 2, "layers_of_stage": (0, 4)}, r"stages must be 2 positive numbers .* got \[0, 4\]"),
        ({"pp": 2, "layers_of_stage": (4,)}, r"got \[4\]"),
    ],
)
def test_layouts_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout.of(deep(4), **arguments)


def test_sizes_that_do_not_divide(families: dict[str, dict[str, Any]]) -> None:
    config = ModelConfig.from_hf(families["llama"])
    with pytest.raises(ValueError, match="tp must divide the model's 8 query heads: use 1, 2, 4 or 8"):
        Layout.of(config, 3)
    with pytest.raises(ValueError, match="tp must divide num_heads=8: use one of 1, 2, 4, 8; got 3"):
        config.kv_heads_of_rank(0, 3)
    with pytest.raises(ValueError, match="rank must be a whole number from 0 to 3"):
        Layout.of(config, 2, 2).place(4)
    with pytest.raises(ValueError, match="dtype must be one of"):
        config.in_dtype("int8")
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16; got None"):
        weight_bytes(config, Layout.of(config), 0, 0)
