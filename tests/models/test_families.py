"""Families of ``families.FAMILIES`` that transformers has, against its own modules; others by what is published.

A file names as little as it may, so that what is left out counts, and then all that transformers writes.
"""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from tplab.models.families import FAMILIES, keys_of
from tplab.models.hf import described
from tplab.models.keys import COMMON, CORE
from tplab.models.shards import Layout, weight_bytes
from tplab.models.spec import ModelConfig, ModelSpec

SIZES = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 144, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 8}
GROUPED = SIZES | {"num_key_value_heads": 2}
GPT = {"vocab_size": 320, "n_embd": 64, "n_layer": 3, "n_head": 8, "n_positions": 48}
NEO = {"vocab_size": 320, "hidden_size": 64, "num_layers": 4, "num_heads": 8, "max_position_embeddings": 48}
NEO |= {"attention_types": [[["global", "local"], 2]]}
FALCON = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8}
OPT = {"vocab_size": 320, "hidden_size": 64, "ffn_dim": 144, "num_hidden_layers": 3, "num_attention_heads": 8}
OPT |= {"max_position_embeddings": 48, "word_embed_proj_dim": 64}
BLOOM = {"vocab_size": 320, "hidden_size": 64, "n_layer": 3, "n_head": 8}
MPT = {"vocab_size": 320, "d_model": 64, "n_layers": 3, "n_heads": 8, "max_seq_len": 48}
XGLM = {"vocab_size": 320, "d_model": 64, "num_layers": 3, "attention_heads": 8, "ffn_dim": 144}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
BIASED, WIDE = {"attention_bias": True}, {"head_dim": 12}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, SIZES) for name in ("llama", "gpt_neox", "phi", "persimmon", "biogpt", "olmo", "olmo2", "cohere")),
    *((name, SIZES) for name in ("glm", "glm4", "cohere2", "smollm3", "ernie4_5", "jais2")),
    *((name, GROUPED) for name in ("starcoder2", "phi", "phi3", "nemotron", "apertus", "cohere", "olmo3", "seed_oss")),
    *(
        (name, GROUPED)
        for name in ("arcee", "bitnet", "nanochat", "internlm3", "exaone4", "granite", "gemma2", "vaultgemma")
    ),
    *((name, GROUPED | UNTIED) for name in ("starcoder2", "smollm3", "cohere", "ernie4_5", "olmo")),
    *((name, GROUPED | TIED) for name in ("phi3", "nemotron", "olmo2", "stablelm", "exaone4", "apertus")),
    *((name, GROUPED | BIASED) for name in ("cohere", "olmo", "olmo2", "nemotron", "apertus", "smollm3")),
    *((name, GROUPED | BIASED) for name in ("arcee", "bitnet", "nanochat", "glm")),
    *((name, GROUPED | WIDE) for name in ("nemotron", "cohere2", "ministral", "ministral3", "hunyuan_v1_dense")),
    *((name, GROUPED | WIDE) for name in ("seed_oss", "ernie4_5", "arcee", "jais2", "glm")),
    ("starcoder2", GROUPED | {"use_bias": False}),
    ("phi", GROUPED | {"qk_layernorm": True}),
    ("persimmon", SIZES | {"qk_layernorm": False}),
    ("cohere", GROUPED | {"use_qk_norm": True}),
    ("stablelm", GROUPED | {"use_qkv_bias": True, "use_parallel_residual": True}),
    ("seed_oss", GROUPED | {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True}),
    ("ernie4_5", GROUPED | {"use_bias": True}),
    ("internlm3", GROUPED | {"qkv_bias": True, "bias": True, "head_dim": 8}),
    ("hunyuan_v1_dense", GROUPED | WIDE | BIASED),
    ("stablelm", GROUPED),
    ("helium", GROUPED | {"head_dim": 8, "mlp_bias": True, "attention_bias": True}),
    ("jais2", GROUPED | {"attention_bias": False, "mlp_bias": False}),
    ("arcee", GROUPED | {"mlp_bias": True}),
    ("nemotron", GROUPED | {"mlp_bias": True, "head_dim": None}),
    ("glm", GROUPED | {"attention_bias": False}),
    (
        "exaone4",
        GROUPED | {"sliding_window": 16, "layer_types": ["full_attention"] * 3, "sliding_window_pattern": "LG"},
    ),
    ("falcon", FALCON),
    ("falcon", FALCON | {"multi_query": False}),
    ("falcon", FALCON | {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True}),
    ("falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": False}),
    ("falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    ("falcon", FALCON | {"ffn_hidden_size": 100, "tie_word_embeddings": False}),
    ("opt", OPT),
    ("opt", OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    ("opt", OPT | {"word_embed_proj_dim": 16, "tie_word_embeddings": False}),
    ("opt", OPT | {"enable_bias": False, "_remove_final_layer_norm": True}),
    ("bloom", BLOOM),
    ("bloom", BLOOM | UNTIED),
    ("mpt", MPT),
    *((name, GPT) for name in ("gpt2", "gpt_bigcode", "gptj", "codegen", "openai-gpt")),
    *((name, GPT | {"n_inner": 100}) for name in ("gptj", "codegen")),
    ("gpt_neo", NEO),
    ("gpt_neo", NEO | {"intermediate_size": 100}),
    ("xglm", XGLM),
]
MORE = {"apertus": 2 * 3, "bitnet": 3 * (144 - 64)}
"""Numbers of an xIELU in each block; a norm that is I wide, and counted as D wide."""


def whole(family: str, keys: dict[str, Any]) -> Any:
    """transformers' configuration, with stop tokens that fit the small vocabulary."""
    return transformers.CONFIG_MAPPING[family](**keys | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})


def written(theirs: Any) -> dict[str, Any]:
    return json.loads(theirs.to_json_string())


@pytest.mark.parametrize(("family", "keys"), CASES)
def test_as_many_parameters_as_transformers_own_modules(family: str, keys: dict[str, Any]) -> None:
    theirs = whole(family, keys)
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(theirs)
    count = sum(parameter.numel() for parameter in module.parameters()) - MORE.get(family, 0)
    for file in (keys | {"model_type": family}, written(theirs)):
        spec = ModelSpec.from_config(file)
        assert spec.total_params == count
        assert weight_bytes(spec, Layout.of(spec), 0, 0) == spec.weight_bytes
        shapes = {name: tuple(each.shape) for name, each in module.named_parameters()}
        assert (spec.vocab_size, spec.table_width) in shapes.values()
        assert not any("is not known here" in note for note in spec.notes)


def test_every_family_is_held_by_a_case() -> None:
    elsewhere = {"mistral", "qwen2", "qwen3", "gemma", "gemma3_text"}  # test_reader
    same = {"moss": "codegen", "xverse": "baichuan", "aquila": "baichuan", "skywork": "baichuan"}
    for name, other in same.items():
        assert replace(FAMILIES[name], defaults={}) == replace(FAMILIES[other], defaults={})
    assert {family for family, _ in CASES} | set(PUBLISHED) | elsewhere | set(same) >= set(FAMILIES)


def test_a_wrapper_s_text_model_that_says_nothing_is_its_class_s() -> None:
    for family, count in {
        "phi3": 3_821_079_552,
        "opt": 125_239_296,
        "gpt2": 124_439_808,
        "falcon": 6_921_720_704,
    }.items():
        made = described(keys_of({"model_type": family}, family, "the config"))
        assert ModelSpec.from_config(ModelConfig(**made)).total_params == count


@pytest.mark.parametrize("family", [family for family in FAMILIES if family in transformers.CONFIG_MAPPING])
def test_defaults_are_the_class_s(family: str) -> None:
    """Of keys that old files and wrappers leave out, and that change how much there is."""
    theirs, kind = transformers.CONFIG_MAPPING[family], FAMILIES[family]
    defaults = COMMON | dict(kind.defaults)
    for key in CORE:
        names = (*kind.names.get(key, "").split(), theirs.attribute_map.get(key, key))
        name = next((each for each in names if each in theirs.__dataclass_fields__), None)
        if name is not None and theirs.__dataclass_fields__[name].default:
            assert defaults[key] == theirs.__dataclass_fields__[name].default, key
    for key in ("num_key_value_heads", "head_dim", "tie_word_embeddings", "max_position_embeddings", "sliding_window"):
        names = (*kind.names.get(key, "").split(), theirs.attribute_map.get(key, key))
        name = next((each for each in names if each in theirs.__dataclass_fields__), None)
        if name is not None:
            assert (defaults.get(key) or None) == (theirs.__dataclass_fields__[name].default or None), key


QWEN = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 22016}
QWEN |= {"vocab_size": 151936, "kv_channels": 128, "no_bias": True}
GLM = {"num_layers": 28, "hidden_size": 4096, "num_attention_heads": 32, "ffn_hidden_size": 13696, "kv_channels": 128}
GLM |= {"padded_vocab_size": 65024, "multi_query_attention": True, "multi_query_group_num": 2, "add_qkv_bias": True}
GLM |= {"add_bias_linear": False, "tie_word_embeddings": False}
LLAMA = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008}
PUBLISHED: dict[str, list[tuple[dict[str, Any], float]]] = {
    "qwen": [
        (QWEN, 7.72e9),
        (QWEN | {"num_hidden_layers": 24, "hidden_size": 2048, "num_attention_heads": 16, "intermediate_size": 11008},
         1.84e9),
        (QWEN | {"num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 40, "intermediate_size": 27392,
                 "vocab_size": 152064}, 14.17e9),
        (QWEN | {"num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64, "intermediate_size": 49152,
                 "vocab_size": 152064}, 72.3e9),
    ],
    "chatglm": [
        (GLM, 6.24e9),
        (GLM | {"num_layers": 40, "padded_vocab_size": 151552}, 9.40e9),
    ],
    "baichuan": [
        (LLAMA | {"vocab_size": 64000}, 7.00e9),
        (LLAMA | {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "intermediate_size": 13696,
                  "vocab_size": 125696}, 13.90e9),
    ],
    "Yi": [
        (LLAMA | {"hidden_size": 7168, "num_hidden_layers": 60, "num_attention_heads": 56, "num_key_value_heads": 8,
                  "intermediate_size": 20480, "vocab_size": 64000}, 34.39e9),
    ],
    "internlm": [(LLAMA | {"vocab_size": 103168, "bias": True}, 7.32e9)],
    "internlm2": [
        (LLAMA | {"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 92544, "bias": False}, 7.74e9),
        (LLAMA | {"hidden_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 48, "num_key_value_heads": 8,
                  "intermediate_size": 16384, "vocab_size": 92544, "bias": False}, 19.86e9),
    ],
    "exaone": [
        ({"num_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
          "intermediate_size": 14336, "vocab_size": 102400, "activation_function": "silu",
          "tie_word_embeddings": False}, 7.82e9),
        ({"num_layers": 30, "hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 80,
          "intermediate_size": 7168, "vocab_size": 102400, "activation_function": "silu",
          "tie_word_embeddings": True}, 2.41e9),
    ],
    "minicpm": [
        ({"hidden_size": 2304, "num_hidden_layers": 40, "num_attention_heads": 36, "num_key_value_heads": 36,
          "intermediate_size": 5760, "vocab_size": 122753}, 2.72e9),
    ],
    "orion": [
        ({"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "intermediate_size": 15360,
          "vocab_size": 84608, "tie_word_embeddings": False}, 14.5e9),
    ],
    "phi-msft": [({"n_embd": 2560, "n_layer": 32, "n_head": 32, "n_positions": 2048, "vocab_size": 51200}, 2.78e9)],
    "mixformer-sequential": [
        ({"n_embd": 2048, "n_layer": 24, "n_head": 32, "n_positions": 2048, "vocab_size": 51200}, 1.42e9)
    ],
    "RefinedWeb": [
        ({"hidden_size": 8192, "n_layer": 60, "n_head": 128, "n_head_kv": 8, "parallel_attn": True, "bias": False,
          "vocab_size": 65024}, 41.3e9),
    ],
    "RefinedWebModel": [
        ({"hidden_size": 4544, "n_layer": 32, "n_head": 71, "multi_query": True, "parallel_attn": True, "bias": False,
          "vocab_size": 65024}, 6.92e9),
        ({"hidden_size": 2048, "n_layer": 24, "n_head": 32, "multi_query": False, "parallel_attn": False,
          "bias": True, "alibi": True, "vocab_size": 50304}, 1.31e9),
    ],
    "stablelm_epoch": [
        ({"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
          "intermediate_size": 6912, "vocab_size": 50304, "norm_eps": 1e-5}, 2.795e9),
    ],
    "hf_olmo": [
        ({"d_model": 4096, "n_layers": 32, "n_heads": 32, "mlp_hidden_size": 22016, "embedding_size": 50304,
          "vocab_size": 50280, "weight_tying": False}, 6.89e9),
        ({"d_model": 2048, "n_layers": 16, "n_heads": 16, "mlp_ratio": 8, "embedding_size": 50304,
          "vocab_size": 50280, "weight_tying": True}, 1.18e9),
    ],
}  # fmt: skip
"""As the model cards and the checkpoints' indices say; transformers has no classes for them."""


@pytest.mark.parametrize(("family", "keys", "parameters"),
                         [(family, *each) for family, files in PUBLISHED.items() for each in files])  # fmt: skip
def test_as_many_parameters_as_published(family: str, keys: dict[str, Any], parameters: float) -> None:
    spec = ModelSpec.from_config(keys | {"model_type": family})
    assert spec.total_params == pytest.approx(parameters, rel=0.01)
    assert not any("is not known here" in note for note in spec.notes)


@pytest.mark.parametrize(
    ("family", "keys", "kv_heads", "windows", "all_reduces"),
    [
        ("falcon", FALCON, 1, [], 1),
        ("falcon", FALCON | {"multi_query": False, "parallel_attn": False}, 8, [], 2),
        ("falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}, 2, [], 1),
        ("RefinedWeb", {"hidden_size": 64, "n_layer": 2, "n_head": 8, "n_head_kv": 2, "vocab_size": 99}, 2, [], 1),
        ("mpt", MPT | {"attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": 2}}, 2, [], 2),
        ("gpt2", GPT | {"attention_head_type": "multiquery"}, 1, [], 2),
        ("gpt_neo", NEO | {"window_size": 9}, 8, [None, 9, None, 9], 2),
        ("cohere2", SIZES | {"num_hidden_layers": 4}, 8, [4096, 4096, 4096, None], 2),
        ("olmo3", SIZES | {"num_hidden_layers": 4, "sliding_window": 7}, 8, [7, 7, 7, None], 2),
        ("exaone4", GROUPED | {"num_hidden_layers": 4, "sliding_window": 7, "sliding_window_pattern": "LLLG"}, 2,
         [7, 7, 7, None], 2),
        ("exaone4", GROUPED | {"sliding_window": None}, 2, [], 2),
        ("smollm3", GROUPED | {"sliding_window": 7, "use_sliding_window": False}, 2, [], 2),
        ("starcoder2", GROUPED | {"sliding_window": 7}, 2, [7, 7, 7], 2),
        ("gptj", GPT, 8, [], 2),
        ("stablelm", GROUPED | {"use_parallel_residual": True}, 2, [], 2),
        ("chatglm", GLM | {"multi_query_attention": False}, 32, [], 2),
    ],
)  # fmt: skip
def test_what_the_advisor_reads_besides_the_count(
    family: str, keys: dict[str, Any], kv_heads: int, windows: list[int | None], all_reduces: int
) -> None:
    spec = ModelSpec.from_config(keys | {"model_type": family})
    assert (spec.num_kv_heads, list(spec.windows), spec.all_reduces_per_block) == (kv_heads, windows, all_reduces)


@pytest.mark.parametrize(
    ("extra", "doubt"),
    [
        ({"hidden_act": "relu2"}, "hidden_act='relu2'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"activation_function": "xielu"}, "activation_function='xielu'"),
        ({"mlp_type": "default"}, "mlp_type='default'"),
        ({"use_parallel_block": True}, "use_parallel_block=True"),
        ({"ffn_dim": 256}, "ffn_dim=256"),
        ({"use_bias": True}, "use_bias=True"),
        ({"qk_layernorm": True}, "qk_layernorm=True"),
    ],
)
def test_no_family_is_a_llama_for_want_of_better(extra: dict[str, Any], doubt: str) -> None:
    """Where the keys leave it open, it is refused by name, with the keys and the way out; and the way out works."""
    sizes = SIZES | {"tie_word_embeddings": False}
    for named in ({"model_type": "novel"}, {}):
        with pytest.raises(ValueError, match=f"built like a Llama .* is left open by {doubt}. Set model_type to") as no:
            ModelSpec.from_config(sizes | named | extra)
        assert ("model_type 'novel' is not known" in str(no.value)) == bool(named)
    assert ModelSpec.from_config(sizes | extra | {"model_type": "llama"}).gated_mlp


@pytest.mark.parametrize(
    ("family", "what"),
    [("bert", "an encoder"), ("t5", "an encoder"), ("rwkv", "state-space"), ("lfm2", "layers that differ from each")],
)
def test_families_of_another_kind_are_refused_by_it(family: str, what: str) -> None:
    with pytest.raises(ValueError, match=f"model_type '{family}' has {what}"):
        ModelSpec.from_config(SIZES | TIED | {"model_type": family})


@pytest.mark.parametrize(
    ("keys", "longest"),
    [
        (GROUPED | {"model_type": "cohere", "max_position_embeddings": 8192, "model_max_length": 131072}, 131072),
        (GROUPED | {"model_type": "baichuan", "model_max_length": 4096}, 4096),
        (GROUPED | {"model_type": "baichuan"}, None),
        (BLOOM | {"model_type": "bloom", "seq_length": 2048}, 2048),
        (GLM | {"model_type": "chatglm", "seq_length": 32768}, 32768),
    ],
)
def test_longest_sequence_under_other_names(keys: dict[str, Any], longest: int | None) -> None:
    assert ModelSpec.from_config(keys).max_length == longest


def test_an_architecture_is_not_overlooked() -> None:
    with pytest.raises(ValueError, match=r"no model_type, .* left open by architectures=\['CohereForCausalLM'\]"):
        ModelSpec.from_config(SIZES | {"architectures": ["CohereForCausalLM"]})
    assert ModelSpec.from_config(SIZES | {"architectures": ["LlamaForCausalLM"]}).gated_mlp
    assert ModelSpec.from_config(GLM | {"architectures": ["ChatGLMModel"], "model_type": "chatglm"}).num_kv_heads == 2
    with pytest.raises(ValueError, match="inner_hidden_size is a key of the first ChatGLM-6B"):
        ModelSpec.from_config(GLM | {"inner_hidden_size": 16384, "model_type": "chatglm"})


def test_unknown_families_say_all_that_makes_a_llama() -> None:
    sizes = SIZES | {"model_type": "novel", "hidden_act": "silu", "rms_norm_eps": 1e-5}
    with pytest.raises(ValueError, match="left open by tie_word_embeddings left out"):
        ModelSpec.from_config(sizes)
    with pytest.raises(ValueError, match="left open by altup_num_inputs=4"):
        ModelSpec.from_config(sizes | TIED | {"altup_num_inputs": 4})
    spec = ModelSpec.from_config(sizes | TIED | {"attention_bias": True})
    assert spec.qkv_bias
    assert any("model_type 'novel' is not known here: taken as a Llama" in note for note in spec.notes)


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [
        ("gpt_neo", NEO | {"attention_types": [["global", 3]]}, "attention_types must be a list of"),
        ("gpt_neo", NEO | {"attention_types": [[["far"], 4]]}, "attention_types must be a list of"),
        ("gpt_neo", NEO | {"attention_types": [[["global"], 3]]}, "attention_types must be a list of"),
        ("gpt_neo", NEO | {"attention_types": [[[], 10**15], [["local"] * 999, 10**15]]}, "attention_types must be a"),
        ("mpt", MPT | {"attn_config": 3}, "attn_config must be an object"),
        ("mpt", MPT | {"expansion_ratio": "4"}, "expansion_ratio must be a number"),
        ("opt", OPT | {"word_embed_proj_dim": 0}, "word_embed_proj_dim must be a whole number from 1"),
        ("falcon", FALCON | {"multi_query": "yes"}, "multi_query must be"),
        ("xglm", XGLM | {"attention_heads": 7}, "num_attention_heads=7 does not divide"),
        ("chatglm", GLM | {"num_layers": 10**6}, "num_layers must be a whole number from 1 to 10,000"),
        ("qwen", {"hidden_size": 64}, "has no intermediate_size"),
    ],
)
def test_keys_of_a_family_are_checked_by_their_own_names(family: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSpec.from_config(keys | {"model_type": family})


def test_keys_that_are_read_are_not_said_to_be_without_meaning() -> None:
    falcon = FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}
    olmo = {"model_type": "hf_olmo", "d_model": 64, "n_heads": 8, "n_layers": 3, "mlp_ratio": 8, "embedding_size": 320}
    for file in (falcon | {"model_type": "falcon"}, NEO | {"model_type": "gpt_neo", "intermediate_size": 256}, olmo):
        assert not any("without meaning" in note for note in ModelSpec.from_config(file).notes)
