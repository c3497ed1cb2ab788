"""Models as numbers: presets against published counts, config.json key by key, workloads."""

import json
from dataclasses import replace

import pytest

from tplab.models.hf import MODEL_TYPES
from tplab.models.precision import ITEMSIZE
from tplab.models.presets import HUGGING_FACE, MODELS
from tplab.models.spec import ModelConfig
from tplab.topology import EnginePolicy, ModelSpec, Workload

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


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name]["model_type"] in MODEL_TYPES])
def test_presets_can_be_run(name):
    """A preset is a description of the whole model: written as a config.json, ``generate`` reads it."""
    spec = ModelSpec.from_config(name)
    config = ModelConfig.from_hf(spec.to_hf())
    assert replace(config, name=name) == spec.in_dtype(spec.dtype)
    assert config.weight_bytes == spec.weight_bytes


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
    assert spec.block_params_of_rank(0, 1) == (spec.block_matmul_params, spec.block_params - spec.block_matmul_params)
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
        ("gpt_bigcode", {}),
        ("gpt_bigcode", {"multi_query": False}),
        ("gpt_neox", {}),
    ],
)  # fmt: skip
def test_parameters_of_transformers_own_modules(family, extra):
    """From the configuration that transformers writes, defaults and all, as many as its module then has."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = {key: value for key, value in LLAMA.items() if key not in ("architectures", "model_type", "torch_dtype")}
    if family in ("gpt2", "gpt_bigcode"):
        sizes = {"n_embd": 64, "n_layer": 3, "n_head": 8, "n_positions": 128, "vocab_size": 1000}
    if family.startswith("gemma"):
        del sizes["tie_word_embeddings"]
    config = transformers.CONFIG_MAPPING[family](**sizes | {"bos_token_id": 1, "eos_token_id": 2} | extra)
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config)
    spec = ModelSpec.from_config(config.to_dict())
    assert spec.total_params == sum(parameter.numel() for parameter in module.parameters())
    assert not any("not known" in note for note in spec.notes)


GEMMA3 = {  # text_config as published: what is the class's default is left out
    "4b": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34},
    "12b": {"hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48, "num_attention_heads": 16,
            "num_key_value_heads": 8},
    "27b": {"hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62, "num_attention_heads": 32,
            "num_key_value_heads": 16, "head_dim": 128, "query_pre_attn_scalar": 168},
}  # fmt: skip


@pytest.mark.parametrize(("size", "heads", "windowed"), [("4b", (8, 4, 256), 29), ("12b", (16, 8, 256), 40),
                                                         ("27b", (32, 16, 128), 52)])  # fmt: skip
def test_gemma3_as_published(size, heads, windowed):
    scaling = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "torch_dtype": "bfloat16"}
    text = GEMMA3[size] | scaling | {"model_type": "gemma3_text"}
    spec = ModelSpec.from_config(outer | {"text_config": text, "vision_config": {}})
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == heads
    assert (spec.vocab_size, spec.max_length, spec.tied_embeddings) == (262208, 131072, True)
    assert (spec.sliding_window, spec.windowed_layers) == (1024, windowed)
    del text["model_type"]
    assert ModelSpec.from_config(outer | {"text_config": text}) == spec
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.Gemma3TextConfig(**text)
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config)
    assert spec.total_params == sum(parameter.numel() for parameter in module.parameters())
    assert spec.windowed_layers == config.layer_types.count("sliding_attention")


def test_one_key_value_head_for_all():
    """StarCoder's multi-query attention: gpt_bigcode's default."""
    starcoder = {"model_type": "gpt_bigcode", "architectures": ["GPTBigCodeForCausalLM"], "n_embd": 6144, "n_head": 48,
                 "n_layer": 40, "n_inner": 24576, "n_positions": 8192, "vocab_size": 49152}  # fmt: skip
    spec = ModelSpec.from_config(starcoder | {"multi_query": True})
    assert (spec.num_kv_heads, spec.max_length) == (1, 8192)
    assert spec.total_params == pytest.approx(15.5e9, rel=0.01)
    assert spec == ModelSpec.from_config(starcoder)
    assert ModelSpec.from_config(starcoder | {"multi_query": False}).num_kv_heads == 48


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
    assert from_file.source == str(folder)
    assert replace(from_file, name="model", source=None) == ModelSpec.from_config(LLAMA)
    assert from_file.notes == ()


def test_fp32_when_asked_for_is_all_of_it():
    spec = ModelSpec.from_config("llama-3.1-8b", weight_precision="fp32")
    assert (spec.weight_precision, spec.activation_precision, spec.kv_precision) == ("fp32", "fp32", "fp32")


@pytest.mark.parametrize(
    ("file", "contents", "precision", "method"),
    [
        (
            "hf_quant_config.json",
            {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}},
            "fp8",
            "modelopt",
        ),
        ("quantize_config.json", {"bits": 4, "group_size": 8, "desc_act": False}, "int4", "gptq"),
        ("quant_config.json", {"zero_point": True, "q_group_size": 8, "w_bit": 4, "version": "GEMM"}, "int4", "awq"),
    ],
)
def test_how_weights_are_quantised_is_read_beside_the_config(tmp_path, file, contents, precision, method):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / file).write_text(json.dumps(contents))
    spec = ModelSpec.from_config(tmp_path)
    assert (spec.weight_precision, spec.quant_method) == (precision, method)
    assert f"quantised as {file} beside the configuration says" in spec.notes
    (tmp_path / file).write_text("[4]")
    with pytest.raises(ValueError, match=f"{file} must hold a JSON object"):
        ModelSpec.from_config(tmp_path)


def test_what_an_engine_is_to_load(tmp_path, monkeypatch):
    """The user's own folder, whatever the trainer's was called; a preset's repository."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"_name_or_path": "trainer/out"}))
    spec = ModelSpec.from_config(tmp_path)
    assert (spec.name, spec.source) == ("trainer/out", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert ModelSpec.from_config("config.json").source == str(tmp_path)
    assert ModelSpec.from_config("llama-3.1-70b").source == "meta-llama/Llama-3.1-70B"
    assert ModelSpec.from_config("gpt-3-175b").source is None
    assert set(MODELS) - set(HUGGING_FACE) == {"gpt-3-175b"}
    assert set(HUGGING_FACE) <= set(MODELS)


def test_defaults_that_configurations_leave_out():
    config = {key: value for key, value in LLAMA.items() if key not in ("num_key_value_heads", "torch_dtype")}
    spec = ModelSpec.from_config(config)
    assert spec.num_kv_heads == spec.num_heads
    mistral = ModelSpec.from_config(config | {"model_type": "mistral", "num_attention_heads": 32})
    assert mistral.num_kv_heads == 8
    assert spec.head_dim == 8
    assert spec.activation_precision == "bf16"
    assert ModelSpec.from_config(LLAMA | {"dtype": "torch.float16"}).weight_precision == "fp16"


def precisions(spec):
    return spec.weight_precision, spec.kv_precision, spec.activation_precision


def test_float32_configurations():
    """Kept, and said; with other weights, cache and activations have 16 bits as in engines."""
    config = LLAMA | {"torch_dtype": "float32"}
    spec = ModelSpec.from_config(config)
    assert precisions(spec) == ("fp32", "fp32", "fp32")
    assert "with bf16 as the precision of its weights" in spec.notes[0]
    asked = ModelSpec.from_config(config, weight_precision="fp32")
    assert (precisions(asked), asked.notes) == (precisions(spec), ())
    for weights, others in (("bf16", "bf16"), ("fp16", "fp16"), ("int4", "bf16")):
        narrow = ModelSpec.from_config(config, weight_precision=weights)
        assert (precisions(narrow), narrow.notes) == ((weights, others, others), ())
    assert precisions(ModelSpec.from_config(config, weight_precision="bf16", kv_precision="fp8"))[1] == "fp8"
    awq = ModelSpec.from_config(config | {"quantization_config": {"quant_method": "awq", "bits": 4}})
    assert precisions(awq) == ("int4", "bf16", "bf16")
    outside = {"text_config": {key: LLAMA[key] for key in LLAMA if key != "torch_dtype"}, "dtype": "float16"}
    assert precisions(ModelSpec.from_config(outside)) == ("fp16", "fp16", "fp16")


@pytest.mark.parametrize(
    ("extra", "longest"),
    [
        ({}, 2048),
        ({"max_position_embeddings": None}, None),
        ({"rope_scaling": None}, 2048),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256}}, 2048),
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}, 2048),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, 8192),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.5}}, 5120),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 2048),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4, "original_max_position_embeddings": 512}}, 2048),
        # as Qwen's cards switch it on, and as DeepSeek and gpt-oss publish it
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}}, 8192),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}}, 2048),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 8192),
    ],
)
def test_longest_context(extra, longest):
    assert ModelSpec.from_config(LLAMA | extra).max_length == longest


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
    assert spec.quant_method == quantization["quant_method"]
    mine = ModelSpec.from_config(LLAMA | {"quantization_config": quantization}, weight_precision="bf16")
    assert (mine.weight_precision, mine.kv_precision) == ("bf16", cache)
    assert mine.notes == (f"weights counted as bf16, where quantization_config says {weights}",)


def test_unknown_quantisation():
    """The error's own remedy works."""
    for how in ({"quant_method": "vptq", "config_for_layers": {}}, {"quant_method": "hqq"}):
        config = LLAMA | {"quantization_config": how}
        with pytest.raises(
            ValueError, match=rf"weight_precision must be one of .*quant_method='{how['quant_method']}'"
        ):
            ModelSpec.from_config(config)
        spec = ModelSpec.from_config(config, weight_precision="int4")
        assert (spec.weight_precision, spec.quant_method, spec.notes) == ("int4", how["quant_method"], ())


@pytest.mark.parametrize(
    ("key", "names", "said"),
    [
        ("modules_to_not_convert", None, None),
        ("modules_to_not_convert", ["lm_head", "model.embed_tokens", "model.layers.0.input_layernorm"], None),
        ("ignore", ["re:.*lm_head", "re:vision_tower.*"], None),
        ("modules_to_not_convert", ["lm_head", "model.layers.0.mlp", "model.layers.1.mlp"],
         "leaves out 2 modules or patterns, first 'model.layers.0.mlp': counted as fp8, too"),
        ("ignore", ["lm_head", "re:.*self_attn.*"], "leaves out 1 modules or patterns, first 're:.*self_attn.*'"),
    ],
)  # fmt: skip
def test_modules_that_stay_as_they_are(key, names, said):
    config = LLAMA | {"quantization_config": {"quant_method": "fp8", key: names}}
    notes = ModelSpec.from_config(config).notes
    assert [said in note for note in notes] == [True] if said else not notes
    assert len(ModelSpec.from_config(config, weight_precision="bf16").notes) == 1  # only that it is another


def test_bitsandbytes_in_8_bits_names_4_bits_too():
    how = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False, "bnb_4bit_quant_type": "fp4"}
    assert ModelSpec.from_config(LLAMA | {"quantization_config": how}).weight_precision == "int8"


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
        (
            {"layer_types": ["full_attention", "linear_attention"]},
            r"layer_types must be 3 times .*; got 2 of full_attention, linear_attention",
        ),
        ({"hidden_size": "4096"}, r"hidden_size must be a whole number from 1 to 16,777,216; got '4096'"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers must be a whole number from 1 to 10,000; got 0"),
        ({"num_hidden_layers": True}, r"num_hidden_layers must be a whole number"),
        ({"vocab_size": None}, r"vocab_size must be a whole number from 1 to 268,435,456; got None"),
        ({"num_key_value_heads": 3}, r"num_key_value_heads=3 must divide num_attention_heads=8"),
        ({"num_key_value_heads": [2, 4]}, r"num_key_value_heads must be a whole number .* got \[2, 4\]"),
        ({"num_attention_heads": 7}, r"num_attention_heads=7 does not divide hidden_size=64; give head_dim"),
        ({"torch_dtype": "float8"}, r"torch_dtype='float8' is not supported; float32, bfloat16, float16 are"),
        ({"quantization_config": "fp8"}, r"quantization_config must be an object; got 'fp8'"),
        ({"model_type": 3}, "the config: model_type must be a text"),
        ({"quantization_config": {"config_groups": [1]}}, r"config_groups in quantization_config must be an object"),
        ({"quantization_config": {"config_groups": {"g": 8}}}, r"config_groups in .* must hold objects .* got g: 8"),
        ({"quantization_config": {"config_groups": {"g": {"weights": 8}}}}, r"config_groups .* \{'weights': 8\}"),
        ({"quantization_config": {"quant_method": "fp8", "ignore": "lm_head"}}, r"ignore in .* must be a list"),
        ({"text_config": 3}, r"text_config must be an object; got 3"),
        ({"architectures": ["BertModel"]}, r"does not generate text \(architectures=\['BertModel'\]"),
        ({"architectures": "BertForMaskedLM"}, r"architectures=\['BertForMaskedLM'\]"),
        ({"architectures": 3}, r"architectures must be a list of names; got 3"),
        ({"rope_scaling": "yarn"}, r"rope_scaling must be an object; got 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, r"factor of rope_scaling must be a number .* '4'"),
    ],
)
def test_what_is_refused_names_the_key(extra, message):
    with pytest.raises(ValueError, match=message):
        ModelSpec.from_config(LLAMA | extra)


def test_what_is_no_path_is_named():
    with pytest.raises(ValueError, match=r"config must be a path, or the dict in a config.json; got \[1\]"):
        ModelSpec.from_config([1])


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"]
)
def test_missing_key(key):
    with pytest.raises(ValueError, match=f"the configuration has no {key}"):
        ModelSpec.from_config({name: value for name, value in LLAMA.items() if name != key})


def test_experts_switched_off_are_no_experts():
    assert ModelSpec.from_config(LLAMA | {"num_local_experts": 1, "kv_lora_rank": None}).num_layers == 3


def test_unknown_keys_and_families_are_noted():
    spec = ModelSpec.from_config(LLAMA | {"model_type": "grandma"})
    assert any("model_type 'grandma' is not known here" in note for note in spec.notes)
    spec = ModelSpec.from_config(LLAMA | {"turbo_encabulator": 7, "zzz": 1})
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
    with pytest.raises(ValueError, match="is not valid JSON"):
        ModelSpec.from_config(path)
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="must hold a JSON object; it holds a list"):
        ModelSpec.from_config(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not valid JSON"):
        ModelSpec.from_config(path)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(ValueError, match=r"config\.json cannot be read: Permission denied"):
        ModelSpec.from_config(path)


def test_decoders_by_architecture():
    for names in (None, [], ["GPT2LMHeadModel"], ["XForConditionalGeneration"], "LlamaForCausalLM"):
        assert ModelSpec.from_config(LLAMA | {"architectures": names}).num_layers == 3


def test_precision_names():
    with pytest.raises(ValueError, match=r"weight_precision must be one of fp32, bf16, .*; got 'fp6'"):
        ModelSpec.from_config("qwen3-8b", weight_precision="fp6")
    with pytest.raises(ValueError, match=r"kv_precision must be one of .*; got 'q4'"):
        ModelSpec.from_config("qwen3-8b", kv_precision="q4")
    assert sorted(ITEMSIZE.values(), reverse=True) == list(ITEMSIZE.values())[:5] + sorted(
        (ITEMSIZE["fp4"], ITEMSIZE["int4"]), reverse=True
    )


def test_sizes_given_by_hand():
    with pytest.raises(ValueError, match="num_layers must be a whole number from 1 to 10,000; got 0"):
        replace(ModelSpec.from_config("qwen3-8b"), num_layers=0)
    with pytest.raises(ValueError, match=r"windows must have one for each of the 36 layers; got 40"):
        replace(ModelSpec.from_config("qwen3-8b"), windows=(4096,) * 40)
    with pytest.raises(ValueError, match=r"tp must divide num_heads=32: use one of 1, 2, 4, 8, 16, 32; got 3"):
        ModelSpec.from_config("qwen3-8b").kv_heads_of_rank(0, 3)


def test_one_all_reduce_where_engines_sum_attention_and_mlp_at_once():
    """vLLM does for Falcon with both side by side, and for GPT-NeoX it does not."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
    falcon = sizes | {"model_type": "falcon"}
    neox = ModelSpec.from_config(sizes | {"model_type": "gpt_neox", "intermediate_size": 256})
    assert ModelSpec.from_config(falcon).all_reduces_per_block == 1
    assert ModelSpec.from_config(falcon | {"parallel_attn": False}).all_reduces_per_block == 2
    assert (neox.parallel_residual, neox.all_reduces_per_block) == (True, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_length": 0}, "input_length must be a whole number from 1 to 1,000,000,000; got 0"),
        ({"concurrency": None}, "give either concurrency"),
        ({"request_rate": 3.0}, "give either concurrency"),
        ({"concurrency": 0}, "concurrency must be a whole number from 1"),
        ({"tpot_limit_ms": 0}, "tpot_limit_ms must be a number above 0"),
        ({"concurrency": None, "request_rate": -1}, "request_rate must be a number above 0"),
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
        ({"all_reduce": "magic"}, "all_reduce must be one of auto, .*; got 'magic'"),
        ({"pp_micro_batches": 0}, "pp_micro_batches must be a whole number of at least 1; got 0"),
        ({"chunked_prefill": 0}, "chunked_prefill must be a whole number of at least 1; got 0"),
        ({"gpu_memory_utilization": 1.1}, "gpu_memory_utilization must be a number above 0 and at most 1"),
    ],
)
def test_policies_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        EnginePolicy(**arguments)


def test_heads_of_a_rank_need_a_degree_that_divides_them():
    spec = ModelSpec.from_config("llama-3.1-8b")
    for tp in (0, 3):
        with pytest.raises(ValueError, match=rf"tp must divide num_heads=32: use one of 1, 2, 4, 8, 16, 32; got {tp}"):
            spec.kv_heads_per_rank(tp)
    with pytest.raises(ValueError, match="index must be a rank of 2, from 0 to 1; got 2"):
        spec.kv_heads_of_rank(2, 2)


def test_sizes_written_by_hand_have_no_longest_length():
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"vocab_size": 100}
    assert ModelSpec.from_config(sizes).max_length is None
    assert ModelSpec.from_config(sizes | {"max_position_embeddings": 512}).max_length == 512
    assert ModelSpec.from_config(sizes | {"model_type": "llama"}).max_length == 2048
