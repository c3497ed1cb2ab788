"""A mixture of experts is never read as dense, whatever its keys are called; a dense model with such keys is read."""

from typing import Any

import pytest
import torch
import transformers

from tplab.models.spec import ModelSpec

SIZES: dict[str, Any] = {
    **{"vocab_size": 320, "hidden_size": 64, "intermediate_size": 144, "num_hidden_layers": 3},
    **{"num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": False},
}
MIXTURES: list[dict[str, Any]] = [
    {"model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    {"model_type": "qwen3_moe"},  # its class takes 128
    {"model_type": "mixtral", "num_local_experts": 1},  # a router and one expert, which is no dense model
    {"model_type": "gpt_oss"},
    {"model_type": "llama4_text"},
    {"model_type": "jetmoe"},
    {"model_type": "phimoe"},
    {"model_type": "minimax_m2"},
    {"model_type": "arctic", "num_local_experts": 128, "moe_layer_frequency": 2},
    {"model_type": "grok-1", "num_experts": 8, "num_experts_per_token": 2},
    {"model_type": "dbrx", "ffn_config": {"ffn_act_fn": {"name": "silu"}, "moe_num_experts": 16, "moe_top_k": 4}},
    {"model_type": "llama", "moe": {"num_experts": 8, "num_experts_per_tok": 2}},
    {"model_type": "llama", "moe_config": {"expert_num": 4}},
    {"model_type": "llama", "num_experts": [1, 16, 16]},
    {"model_type": "llama", "num_experts": "8"},
    {"model_type": "llama", "n_shared_experts": 2},
    {"model_type": "llama", "num_experts_per_tok": 4},
    {"model_type": "llama", "num_experts": None, "moe_intermediate_size": 512},
    {"model_type": "llama", "router_scaling_factor": 2.5},
    {"model_type": "phi-msft", "num_local_experts": 4, "num_experts_per_tok": 2},
    {"model_type": "ernie4_5", "moe_num_experts": 64, "moe_k": 6},
    {"model_type": "hunyuan", "num_experts": 16, "moe_topk": 1},
    {"model_type": "minicpm", "num_experts": 8},
    {"model_type": "deepseek", "n_routed_experts": 64, "first_k_dense_replace": 1},
    {"model_type": "llama", "architectures": ["BailingMoeV2ForCausalLM"]},
    {"model_type": "llama", "text_config": {"deeper": 1, "ffn": {"num_routed_experts": 32}}},
]


@pytest.mark.parametrize("keys", MIXTURES, ids=lambda keys: "-".join(map(str, keys)))
def test_a_mixture_of_experts_is_called_one(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"the config has a mixture of experts \(.+\): the advisor models dense"):
        ModelSpec.from_config(SIZES | keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"num_experts": 0, "num_experts_per_tok": 2},
        {"num_local_experts": 1},
        {"num_local_experts": None},
        {"n_routed_experts": None, "moe_intermediate_size": None},
        {"router_aux_loss_coef": 0.001, "output_router_logits": False},
        {"vision_config": {"num_experts": 8}},
        {"quantization_config": {"quant_method": "fp8", "experts": "int8"}},
    ],
    ids=str,
)
def test_keys_that_say_there_is_none_leave_it_dense(keys: dict[str, Any]) -> None:
    want = ModelSpec.from_config(SIZES | {"model_type": "llama"}).total_params
    assert ModelSpec.from_config(SIZES | keys | {"model_type": "llama"}).total_params == want


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("qwen2_moe", {"num_experts": 0}),
        ("qwen3_moe", {"num_experts": 0, "head_dim": 16}),
        (
            "granitemoehybrid",
            {"num_local_experts": 0, "layer_types": ["attention"] * 3, "shared_intermediate_size": 100},
        ),
    ],
)
def test_a_dense_member_of_a_family_of_experts_is_counted_as_its_class_does(family: str, keys: dict[str, Any]) -> None:
    config = transformers.AutoConfig.for_model(family, **SIZES | keys)
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(config)
    want = sum(weight.numel() for weight in theirs.parameters())
    assert ModelSpec.from_config(SIZES | keys | {"model_type": family}).total_params == want
    assert ModelSpec.from_config(config.to_dict()).total_params == want  # with all that transformers writes


def test_kinds_of_layers_that_are_no_list_are_refused_by_a_sentence() -> None:
    keys = {"model_type": "granitemoehybrid", "num_local_experts": 0, "layer_types": 3}
    with pytest.raises(ValueError, match="layer_types must be a list of names"):
        ModelSpec.from_config(SIZES | keys)


def test_dense_members_with_code_of_their_own() -> None:
    llama = ModelSpec.from_config(SIZES | {"model_type": "llama"}).total_params
    keys = {"n_routed_experts": None, "moe_intermediate_size": 1407, "first_k_dense_replace": 0}
    assert ModelSpec.from_config(SIZES | keys | {"model_type": "deepseek"}).total_params == llama
    hunyuan = ModelSpec.from_config(SIZES | {"model_type": "hunyuan", "num_experts": 1, "moe_topk": 1})
    assert hunyuan.total_params == llama + 3 * 2 * 8, "a norm of each of queries and keys"
