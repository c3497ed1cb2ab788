"""A config.json means here what it means to transformers, or is refused by name."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tplab.models.rope import RopeScaling
from tplab.models.rotary import LengthRotary, make_rotary
from tplab.models.spec import ModelConfig

CLASSES = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "gemma": transformers.GemmaConfig,
}
LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}


@pytest.mark.parametrize("name", CLASSES)
def test_what_transformers_writes_is_read_with_its_values(name: str, families: dict[str, dict[str, Any]]) -> None:
    theirs = CLASSES[name](**{k: v for k, v in families[name].items() if k != "model_type"})
    ours = ModelConfig.from_hf(theirs.to_dict())
    assert ours == ModelConfig.from_hf(families[name])
    assert (ours.num_kv_heads, ours.head_dim) == (theirs.num_key_value_heads, theirs.head_dim if "head_dim" in
            theirs.to_dict() else theirs.hidden_size // theirs.num_attention_heads)  # fmt: skip
    assert ours.tied_embeddings == theirs.tie_word_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps


@pytest.mark.parametrize("name", CLASSES)
def test_a_missing_key_has_the_default_of_transformers(name: str) -> None:
    assert ModelConfig.from_hf({"model_type": name}) == ModelConfig.from_hf(CLASSES[name]().to_dict())


@pytest.mark.parametrize("name", CLASSES)
def test_written_and_read_again(name: str, families: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    config = ModelConfig.from_hf(families[name])
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    assert ModelConfig.from_hf(tmp_path) == ModelConfig.from_hf(str(tmp_path / "config.json")) == config


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 1e6},
        {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8192, "rope_theta": 5e5},
        {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.5, "high_freq_factor": 7.0,
         "original_max_position_embeddings": 100, "rope_theta": 1e4},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4},
        {"rope_type": "yarn", "factor": 40, "rope_theta": 1e6, "original_max_position_embeddings": 4096,
         "beta_fast": 16, "beta_slow": 2.5, "truncate": False, "mscale": 1.0, "mscale_all_dim": 0.707},
        {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 7,
         "attention_factor": 0.75, "beta_fast": 0, "mscale": 1.0},
        {"rope_type": "yarn", "factor": None, "rope_theta": 1e4, "original_max_position_embeddings": 32},
        {"rope_type": "dynamic", "factor": 3.3, "rope_theta": 1e4},
        {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64,
         "short_factor": [1.0 + i / 9 for i in range(32)], "long_factor": [1.5 + i for i in range(32)]},
        {"rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0, "attention_factor": 1.25,
         "short_factor": [1.0] * 32, "long_factor": [1.5 + i for i in range(32)]},
    ],
    ids=lambda rope: f"{rope['rope_type']}, {len(rope)} keys",
)  # fmt: skip
def test_rotary_frequencies_are_bitwise_those_of_transformers(rope: dict[str, Any]) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    keys = LLAMA | {"head_dim": 64, "rope_parameters": rope, "max_position_embeddings": 256}
    theirs = LlamaRotaryEmbedding(
        transformers.LlamaConfig(**copy.deepcopy({k: v for k, v in keys.items() if k != "model_type"}))
    )
    config = ModelConfig.from_hf(keys)
    ours = make_rotary(config)
    assert torch.equal(ours.frequencies, theirs.inv_freq)
    assert ModelConfig.from_hf(config.to_hf()) == config
    for length in (5, 64, 65, 256, 257, 700, 1024):  # of some kinds the frequencies depend on it, in both directions
        places = torch.arange(length)
        if isinstance(ours, LengthRotary):
            ours.follow(torch.tensor([length], dtype=torch.int32))
        cos, sin = theirs(torch.zeros(1), places[None])
        for got, want in zip(ours.tables(length, torch.float32, places.device), (cos[0], sin[0]), strict=True):
            assert torch.equal(got[:length], want[:, : want.shape[1] // 2])


def test_the_keys_of_older_files_mean_the_same() -> None:
    older = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}, "torch_dtype": "bfloat16"}
    newer = {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}, "dtype": "bfloat16"}
    assert ModelConfig.from_hf(LLAMA | older) == ModelConfig.from_hf(LLAMA | newer)
    assert ModelConfig.from_hf(LLAMA | older).rope_scaling == RopeScaling(kind="linear", factor=4.0)
    assert ModelConfig.from_hf(LLAMA | older).dtype == "bfloat16"
    assert ModelConfig.from_hf(LLAMA | older | newer) == ModelConfig.from_hf(LLAMA | newer)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "mixtral"}, "mixtral' (mixture of experts) is not supported; supported are llama, mistral"),
        ({"model_type": "deepseek_v3"}, "deepseek_v3' (multi-head latent attention) is not supported"),
        ({"model_type": "gpt2"}, "model_type='gpt2' is not supported"),
        ({}, "model_type=None is not supported"),
        (LLAMA | {"num_experts": 8}, "num_experts=8 is not known here"),
        (LLAMA | {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not known here"),
        (LLAMA | {"quantization_config": {"bits": 4}}, "quantised checkpoints are not supported"),
        (LLAMA | {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported for llama"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        (LLAMA | {"rope_scaling": {"type": "su", "factor": 4.0}}, "rope_scaling of type 'su' is not supported"),
        (LLAMA | {"rope_scaling": {"type": "yarn"}}, "of type yarn needs factor"),
        (
            LLAMA | {"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_parameters": {"rope_theta": 1e6}},
            "rope_scaling and rope_parameters say different things",
        ),
        (
            LLAMA | {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {}}},
            "rope_parameters that differ by kind of layer are not supported",
        ),
        (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 1e3}}, "dynamic with alpha is not supp"),
        (LLAMA | {"rope_scaling": {"type": "yarn", "factor": 2.0, "attn_factor": 1.5}}, "yarn with attn_factor is not"),
        (LLAMA | {"rope_theta": 1.0, "rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_theta=1 is not supported"),
        (
            LLAMA | {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 8}},
            "of type longrope needs 8 numbers in short_factor and in long_factor",
        ),
        (
            LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": None},
            "of type dynamic needs max_position_embeddings",
        ),
        (LLAMA | {"rope_scaling": {"type": "linear"}}, "of type linear needs factor"),
        (LLAMA | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 2]}}, "mrope_section is not"),
        (LLAMA | {"sliding_window": 12}, "sliding_window=12 is not a key of llama's"),
        (LLAMA | {"layer_types": ["sliding_attention"] * 32}, "must all be full_attention"),
        (LLAMA | {"num_key_value_heads": 3}, "num_key_value_heads=3 must divide num_attention_heads=4"),
        (LLAMA | {"hidden_size": 66}, "num_attention_heads=4 does not divide hidden_size=66"),
        (LLAMA | {"vocab_size": 0}, "vocab_size must be a whole number from 1 to 268,435,456; got 0"),
        (LLAMA | {"torch_dtype": "int8"}, "dtype='int8' is not supported"),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias=True is not supported for mistral"),
        (
            {"model_type": "mistral", "sliding_window": 0},
            "sliding_window must be a whole number from 1 to 10,000,000,000,000,000; got 0",
        ),
        ({"model_type": "qwen2", "layer_types": ["linear_attention"] * 32}, "layer_types must be 32 times"),
        ({"model_type": "gemma", "use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    ],
)
def test_what_would_change_the_mathematics_is_refused_by_name(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelConfig.from_hf(keys)


def test_keys_that_change_nothing_are_passed_over() -> None:
    extra = {
        "_name_or_path": "x",
        "use_cache": True,
        "attention_dropout": 0.1,
        "some_future_switch": False,
        "more": None,
    }
    assert ModelConfig.from_hf(LLAMA | extra) == ModelConfig.from_hf(LLAMA)


@pytest.mark.parametrize("name", ["mistral", "qwen2", "llama"])
def test_null_is_what_transformers_makes_of_it(name: str) -> None:
    null = {"num_key_value_heads": None, "sliding_window": None, "eos_token_id": None, "head_dim": None}
    if name == "mistral":
        del null["num_key_value_heads"]  # transformers refuses it
    ours = ModelConfig.from_hf({"model_type": name} | null)
    assert ours == ModelConfig.from_hf(CLASSES[name](**null).to_dict())
    assert (ours.windows, ours.stop_tokens) == ((), ())
    assert name == "mistral" or ours.num_kv_heads == ours.num_heads


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"no config.json at {tmp_path}")):
        ModelConfig.from_hf(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        ModelConfig.from_hf(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        ModelConfig.from_hf(tmp_path)
