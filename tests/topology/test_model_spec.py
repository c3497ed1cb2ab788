"""Models as numbers: presets against published counts, config.json key by key, workloads."""

import json
from dataclasses import replace

import pytest

from tplab.models.config import ModelConfig
from tplab.topology import EnginePolicy, ModelSpec, Workload
from tplab.topology.model_spec import ITEMSIZE
from tplab.topology.presets import MODELS

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as the model cards and checkpoints' indices count them
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("llama-2-7b", 6_738_415_616),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-72b", 72_706_203_648),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-32b", 32_762_123_264),
        ("mistral-7b", 7_248_023_552),
        ("mistral-small-24b", 23_572_403_200),
        ("mistral-large-123b", 122_610_069_504),
        ("gemma-2-9b", 9_241_705_984),
        ("gemma-2-27b", 27_227_128_320),
    ],
)
def test_presets_have_the_published_parameters(name, parameters):
    assert ModelSpec.from_config(name).total_params == parameters


def test_gpt3_is_175_billion():
    spec = ModelSpec.from_config("gpt-3-175b")
    assert spec.total_params == pytest.approx(175e9, rel=0.005)
    assert spec.num_kv_heads == spec.num_heads
    assert not spec.gated_mlp


def test_articles_figures():
    """70B in 16 bits: 140 GB decimal, 131 GiB."""
    spec = ModelSpec.from_config("llama-3.1-70b")
    assert spec.weight_bytes / 1e9 == pytest.approx(141, abs=0.2)
    assert spec.weight_bytes / 2**30 == pytest.approx(131.4, abs=0.2)
    assert spec.kv_bytes_per_token == 2 * 80 * 8 * 128 * 2


@pytest.mark.parametrize("name", MODELS)
def test_parts_add_up(name):
    spec = ModelSpec.from_config(name)
    head = 0 if spec.tied_embeddings else spec.lm_head_params
    parts = spec.num_layers * spec.block_params + spec.embedding_params + head + spec.norm_params
    assert spec.total_params == parts
    assert spec.block_params == spec.block_matmul_params + spec.block_small_params
    assert spec.weight_bytes == spec.total_params * 2
    assert spec.name == name


@pytest.mark.parametrize("extra", [{}, {"attention_bias": True}, {"mlp_bias": True}, {"tie_word_embeddings": True},
                                   {"model_type": "qwen2"}, {"model_type": "qwen3"}, {"model_type": "gemma"},
                                   {"head_dim": 24}, {"model_type": "mistral", "sliding_window": None}])  # fmt: skip
def test_parameters_of_a_checkpoint(extra):
    """As many as ``tplab.models`` lists tensors for, from the same keys."""
    config = LLAMA | extra
    shapes = ModelConfig.from_hf(config).tensor_shapes().values()
    count = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes)
    assert ModelSpec.from_config(config).total_params == count


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"tie_word_embeddings": True}),
        *((family, {}) for family in ("mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite")),
        ("phi3", {"pad_token_id": 0}),
        ("gpt2", {}),
        ("gpt_neox", {}),
    ],
)  # fmt: skip
def test_parameters_of_transformers_own_modules(family, extra):
    """From the configuration that transformers writes, defaults and all, as many as its module then has."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = {key: value for key, value in LLAMA.items() if key not in ("architectures", "model_type", "torch_dtype")}
    if family == "gpt2":
        sizes = {"n_embd": 64, "n_layer": 3, "n_head": 8, "n_positions": 128, "vocab_size": 1000}
    if family.startswith("gemma"):
        del sizes["tie_word_embeddings"]
    config = transformers.CONFIG_MAPPING[family](**sizes | {"bos_token_id": 1, "eos_token_id": 2} | extra)
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config)
    spec = ModelSpec.from_config(config.to_dict())
    assert spec.total_params == sum(parameter.numel() for parameter in module.parameters())
    assert not any("not known" in note for note in spec.notes)


def test_precision_shrinks_blocks_only():
    sizes = [ModelSpec.from_config("qwen3-8b", weight_precision=each).weight_bytes for each in ("bf16", "fp8", "int4")]
    assert sizes[0] > 1.5 * sizes[1] > 2 * sizes[2]
    spec = ModelSpec.from_config("qwen3-8b", weight_precision="fp8", kv_precision="fp8")
    blocks = spec.num_layers * spec.block_matmul_params
    assert spec.weight_bytes == blocks + 2 * (spec.total_params - blocks)
    assert spec.kv_bytes_per_token == ModelSpec.from_config("qwen3-8b").kv_bytes_per_token / 2


def test_from_file_folder_and_dict(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    from_file = ModelSpec.from_config(folder / "config.json")
    assert from_file == ModelSpec.from_config(str(folder))
    assert from_file.name == "my-model"
    assert replace(from_file, name="model") == ModelSpec.from_config(LLAMA)
    assert from_file.notes == ()


def test_defaults_that_configurations_leave_out():
    config = {key: value for key, value in LLAMA.items() if key not in ("num_key_value_heads", "torch_dtype")}
    spec = ModelSpec.from_config(config)
    assert spec.num_kv_heads == spec.num_heads
    mistral = ModelSpec.from_config(config | {"model_type": "mistral", "num_attention_heads": 32})
    assert mistral.num_kv_heads == 8
    assert spec.head_dim == 8
    assert spec.activation_precision == "bf16"
    assert ModelSpec.from_config(LLAMA | {"torch_dtype": "float32"}).activation_itemsize == 4
    assert ModelSpec.from_config(LLAMA | {"dtype": "torch.float16"}).weight_precision == "fp16"


@pytest.mark.parametrize(
    ("quantization", "weights", "cache"),
    [
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8", "bf16"),
        ({"quant_method": "fbgemm_fp8"}, "fp8", "bf16"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4", "bf16"),
        ({"quant_method": "gptq", "bits": 8}, "int8", "bf16"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4", "bf16"),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, "fp8", "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "fp4", "bf16"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
                "kv_cache_scheme": {"num_bits": 8},
            },
            "fp8",
            "fp8",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8, "type": "int"}}}},
            "int8",
            "bf16",
        ),
    ],
)  # fmt: skip
def test_quantised_checkpoints(quantization, weights, cache):
    spec = ModelSpec.from_config(LLAMA | {"quantization_config": quantization})
    assert (spec.weight_precision, spec.kv_precision) == (weights, cache)
    mine = ModelSpec.from_config(LLAMA | {"quantization_config": quantization}, weight_precision="bf16")
    assert mine.weight_precision == "bf16"


def test_unknown_quantisation():
    with pytest.raises(ValueError, match=r"quant_method='exotic'\): give weight_precision="):
        ModelSpec.from_config(LLAMA | {"quantization_config": {"quant_method": "exotic"}})


def test_sliding_windows_are_stated():
    """Mistral: all layers; Gemma 2: every second; Qwen: those past max_window_layers; layer_types by name."""
    mistral = ModelSpec.from_config("mistral-7b-v0.1")
    assert (mistral.sliding_window, mistral.windowed_layers) == (4096, 32)
    assert "sliding window of 4096 tokens on 32 of 32 layers" in mistral.notes[0]
    assert mistral.kept_tokens(10_000) == 4096
    gemma = ModelSpec.from_config("gemma-2-9b")
    assert gemma.windowed_layers == 21
    assert gemma.kept_tokens(8192) == 0.5 * 8192 + 0.5 * 4096
    assert gemma.kept_tokens(1000) == 1000
    qwen = LLAMA | {"model_type": "qwen2", "sliding_window": 100, "max_window_layers": 2}
    assert ModelSpec.from_config(qwen | {"use_sliding_window": True}).windowed_layers == 1
    assert ModelSpec.from_config(qwen | {"use_sliding_window": False}).sliding_window is None
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert ModelSpec.from_config(LLAMA | {"sliding_window": 100, "layer_types": kinds}).windowed_layers == 2
    gemma3 = LLAMA | {"model_type": "gemma3_text", "sliding_window": 512, "num_hidden_layers": 13}
    assert ModelSpec.from_config(gemma3).windowed_layers == 11


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"num_local_experts": 8}, r"a mixture of experts \(num_local_experts=8\): the advisor models dense"),
        ({"n_routed_experts": 256}, r"a mixture of experts \(n_routed_experts=256\)"),
        ({"kv_lora_rank": 512}, r"latent attention \(MLA\) \(kv_lora_rank=512\)"),
        ({"mamba_d_state": 16}, r"state-space or linear-attention layers \(mamba_d_state=16\)"),
        ({"is_encoder_decoder": True}, r"an encoder beside its decoder"),
        ({"block_configs": [{}]}, r"blocks that differ from each other"),
        ({"layer_types": ["full_attention", "linear_attention"]}, r"layer_types: \['linear_attention'\]"),
        ({"hidden_size": "4096"}, r"hidden_size must be a whole number of at least 1, got '4096'"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers must be a whole number of at least 1, got 0"),
        ({"num_hidden_layers": True}, r"num_hidden_layers must be a whole number"),
        ({"vocab_size": None}, r"vocab_size must be a whole number of at least 1, got None"),
        ({"num_key_value_heads": 3}, r"num_kv_heads=3 must divide num_heads=8"),
        ({"num_key_value_heads": [2, 4]}, r"num_key_value_heads must be a whole number .* got \[2, 4\]"),
        ({"num_attention_heads": 7}, r"hidden_size=64 is no multiple of num_attention_heads=7"),
        ({"torch_dtype": "float8"}, r"torch_dtype must be one of .* got 'float8'"),
        ({"quantization_config": "fp8"}, r"quantization_config must be an object, got 'fp8'"),
        ({"text_config": 3}, r"text_config must be an object, got 3"),
    ],
)
def test_what_is_refused_names_the_key(extra, message):
    with pytest.raises(ValueError, match=message):
        ModelSpec.from_config(LLAMA | extra)


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"]
)
def test_missing_key(key):
    with pytest.raises(ValueError, match=f"the configuration has no {key}"):
        ModelSpec.from_config({name: value for name, value in LLAMA.items() if name != key})


def test_experts_switched_off_are_no_experts():
    assert ModelSpec.from_config(LLAMA | {"num_local_experts": 1, "kv_lora_rank": None}).num_layers == 3


def test_unknown_keys_and_families_are_noted():
    spec = ModelSpec.from_config(LLAMA | {"model_type": "grandma", "turbo_encabulator": 7, "zzz": 1})
    assert any("model_type 'grandma' is not known here" in note for note in spec.notes)
    assert any("turbo_encabulator, zzz" in note for note in spec.notes)


def test_multimodal_configuration():
    """The language model inside; its quantisation stands outside."""
    outer = {
        "model_type": "mistral3",
        "text_config": LLAMA,
        "vision_config": {},
        "quantization_config": {"quant_method": "fp8"},
    }
    spec = ModelSpec.from_config(outer)
    assert spec.num_layers == 3
    assert spec.weight_precision == "fp8"
    assert "only the language model is counted" in spec.notes[0]
    assert not spec.tied_embeddings
    inner = {key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"}
    tied = {"text_config": inner, "tie_word_embeddings": True}
    assert ModelSpec.from_config(tied).tied_embeddings


def test_unknown_names():
    with pytest.raises(ValueError, match=r"'llama-3.1-80b': did you mean .*llama-3.1-8"):
        ModelSpec.from_config("llama-3.1-80b")
    with pytest.raises(ValueError, match="use one of gemma-2-27b"):
        ModelSpec.from_config("xyzzy")
    with pytest.raises(ValueError, match="there is no file"):
        ModelSpec.from_config("some/where/config.json")
    assert ModelSpec.from_config("Llama 3.1 8B") == ModelSpec.from_config("llama-3.1-8b")


def test_broken_files(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"hidden_size": 64,')
    with pytest.raises(ValueError, match="is not JSON"):
        ModelSpec.from_config(path)
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="a JSON list, not an object"):
        ModelSpec.from_config(path)


def test_precision_names():
    with pytest.raises(ValueError, match=r"weight_precision='fp6' is not known: use one of fp32, bf16"):
        ModelSpec.from_config("qwen3-8b", weight_precision="fp6")
    with pytest.raises(ValueError, match="kv_precision='q4'"):
        ModelSpec.from_config("qwen3-8b", kv_precision="q4")
    assert sorted(ITEMSIZE.values(), reverse=True) == list(ITEMSIZE.values())[:5] + sorted(
        (ITEMSIZE["fp4"], ITEMSIZE["int4"]), reverse=True
    )


def test_sizes_given_by_hand():
    with pytest.raises(ValueError, match="num_layers must be a whole number of at least 1, got 0"):
        replace(ModelSpec.from_config("qwen3-8b"), num_layers=0)
    with pytest.raises(ValueError, match=r"windowed_layers=40 must lie in 0..num_layers=36"):
        replace(ModelSpec.from_config("qwen3-8b"), windowed_layers=40)
    with pytest.raises(ValueError, match=r"tp=3 does not divide num_heads=32: use one of 1, 2, 4, 8, 16, 32"):
        ModelSpec.from_config("qwen3-8b").kv_heads_of_rank(0, 3)


def test_one_all_reduce_with_a_parallel_residual():
    neox = {
        "model_type": "gpt_neox",
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    assert ModelSpec.from_config(neox).all_reduces_per_block == 1
    assert ModelSpec.from_config(neox | {"use_parallel_residual": False}).all_reduces_per_block == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_length": 0}, "input_length must be at least 1 token, got 0"),
        ({"concurrency": None}, "give either concurrency"),
        ({"request_rate": 3.0}, "give either concurrency"),
        ({"concurrency": 0}, "concurrency must be at least 1 request"),
        ({"tpot_limit_ms": 0}, "tpot_limit_ms must be above 0"),
        ({"concurrency": None, "request_rate": -1}, "request_rate must be above 0"),
    ],
)
def test_workloads_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        Workload(**({"input_length": 10, "output_length": 20, "concurrency": 1} | arguments))


def test_workload_lengths():
    workload = Workload(input_length=100, output_length=20, request_rate=2.5)
    assert workload.context_length == 120
    assert workload.mean_context == 110


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"all_reduce": "magic"}, "all_reduce='magic' is not known: use one of auto"),
        ({"pp_micro_batches": 0}, "pp_micro_batches must be at least 1 or None"),
        ({"chunked_prefill": 0}, "chunked_prefill must be at least 1 or None"),
        ({"gpu_memory_utilization": 1.1}, "gpu_memory_utilization must be above 0 and at most 1"),
    ],
)
def test_policies_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        EnginePolicy(**arguments)
