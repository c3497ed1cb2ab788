"""Families of decoders as data: what the keys of their files are called, what one left out means, and what their blocks
hold. ``hf`` reads every file by this table, and no family has code of its own but those whose keys need arithmetic.

Sources: configuration and modelling classes of transformers 5 (``configuration_falcon.py``, ``modeling_falcon.py`` and
their neighbours), with which the tests compare; for families whose code is in the repository of the checkpoint on
Hugging Face, that code and the published number of parameters. Pure: no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tplab.checks import ArgumentError
from tplab.models.keys import CORE, HONOURED, INERT, PLAIN, Config, Family, Keys, mapping, number


def _one_head(flag: str) -> Callable[[Keys], Config]:
    """Multi-query attention behind a flag: one key-value head with it, as many as query heads without."""
    return lambda keys: {"num_key_value_heads": 1 if keys.flag(flag) else None}


def _santacoder(keys: Keys) -> dict[str, Any]:
    return {"num_key_value_heads": 1 if keys.values.get("attention_head_type") == "multiquery" else None}


def _falcon(keys: Keys) -> dict[str, Any]:
    """Falcon 40B and 180B have groups of queries, and two norms before attention and MLP; 7B has one of each."""
    before = keys.family != "falcon" and keys.optional("num_key_value_heads") is not None  # transformers had a class
    if before or keys.flag("new_decoder_architecture"):
        return {"parallel_attn": True, "shared_norm": keys.values.get("num_ln_in_parallel_attn") == 1}
    side_by_side = keys.flag("parallel_attn")
    return {"shared_norm": side_by_side, "num_key_value_heads": 1 if keys.flag("multi_query") else None}


def _mpt(keys: Keys) -> dict[str, Any]:
    """The width of the MLP is a factor, and attention has an object of its own."""
    attention = mapping(keys.values.get("attn_config") or {}, "attn_config", keys.at)
    ratio = keys.values.get("expansion_ratio")
    wide = keys.size("hidden_size") * (4 if ratio is None else number(ratio, "expansion_ratio", keys.at))
    heads = 1 if attention.get("attn_type") == "multiquery_attention" else attention.get("kv_n_heads")
    return {"intermediate_size": int(wide), "num_key_value_heads": heads}


def _opt(keys: Keys) -> dict[str, Any]:
    """There is no last norm where norms come after the sum, and in some old files."""
    return {"outer_norms": int(keys.flag("do_layer_norm_before") and not keys.flag("_remove_final_layer_norm"))}


def _gate_and_up(keys: Keys) -> dict[str, Any]:
    """The key counts gate and up together."""
    return {"intermediate_size": keys.size("intermediate_size") // 2}


def _hf_olmo(keys: Keys) -> dict[str, Any]:
    """As ``_gate_and_up``, by a factor where the size is null."""
    ratio = keys.optional("mlp_ratio") or 4
    return {"intermediate_size": (keys.optional("intermediate_size") or ratio * keys.size("hidden_size")) // 2}


def _chatglm(keys: Keys) -> dict[str, Any]:
    """From ChatGLM2 on, GLM-4 included."""
    if "inner_hidden_size" in keys.values or "position_encoding_2d" in keys.values:
        rule = "is a key of the first ChatGLM-6B, which is built otherwise than ChatGLM2 to GLM-4, and not counted"
        raise ValueError(f"{keys.at}inner_hidden_size {rule}")
    return {} if keys.flag("multi_query_attention") else {"num_key_value_heads": None}


def _gpt_neo(keys: Keys) -> dict[str, Any]:
    """Which layers look back on a window only: [[[kinds], how often], ...]."""
    layers = keys.size("num_hidden_layers")
    given = keys.values.get("attention_types") or [[["global", "local"], layers // 2]]
    named = {"global": "full_attention", "local": "sliding_attention"}
    try:
        if sum(len(kinds) * max(times, 0) for kinds, times in given) != layers:
            raise ValueError
        return {"layer_types": [named[kind] for kinds, times in given for kind in kinds * times]}
    except (TypeError, ValueError, KeyError):
        rule = f"must be a list of [[kinds, each global or local], how often], for {layers} layers in all"
        raise ArgumentError(f"{keys.at}attention_types", given, rule) from None


def _exaone4(keys: Keys) -> dict[str, Any]:
    """The pattern may be letters: L local, G global."""
    pattern = keys.values.get("sliding_window_pattern")
    return {"sliding_window_pattern": len(pattern) or None} if isinstance(pattern, str) else {}


_LAYER_NORM = (True, True)
_BIASED: dict[str, Any] = {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "norm": _LAYER_NORM}
_SIDE_BY_SIDE: dict[str, Any] = {"parallel": True, "shared_norm": True}
_COHERE_NAMES = {"max_position_embeddings": "model_max_length"}  # 128k, beside the 8k that it was trained with
_GPT_NAMES = {
    "hidden_size": "n_embd", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner", "max_position_embeddings": "n_positions", "hidden_act": "activation_function",
}  # fmt: skip
_BIAS = {"attention_bias": False}
_BIASES = {"attention_bias": False, "mlp_bias": False}
_QWEN: dict[str, Any] = {
    "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768,
    "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip
_GEMMA: dict[str, Any] = {
    "vocab_size": 256000, "head_dim": 256, "max_position_embeddings": 8192, "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True, "eos_token_id": 1, "attention_bias": False,
}  # fmt: skip
_GEMMA2 = _GEMMA | {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "sliding_window": 4096, "sliding_window_pattern": 2,
}  # fmt: skip
_GPT: dict[str, Any] = {
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "hidden_act": "gelu_new",
}  # fmt: skip
_PHI = {"rms_norm_eps": 1e-5, "hidden_act": "gelu_new", "qk_layernorm": False}
_PHI_FACTS: dict[str, Any] = _BIASED | _SIDE_BY_SIDE | {"gated": False, "head_bias": True, "qk_norm": "qk_layernorm"}
_GPTJ = Family(
    defaults=_GPT | {"tie_word_embeddings": False, "max_position_embeddings": 2048}, names=_GPT_NAMES, widens=4,
    gated=False, norm=_LAYER_NORM, parallel=True, shared_norm=True, qkv_bias=False, out_bias=False, mlp_bias=True,
    head_bias=True,
)  # fmt: skip
_FALCON = Family(
    defaults={"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "multi_query": True, "parallel_attn": True,
              "new_decoder_architecture": False, "bias": False, "hidden_act": "gelu", "num_ln_in_parallel_attn": None},
    names={"hidden_size": "n_embed", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer",
           "num_key_value_heads": "num_kv_heads n_head_kv", "intermediate_size": "ffn_hidden_size",
           "hidden_act": "activation"},
    rewrite=_falcon, widens=4, gated=False, norm=_LAYER_NORM, parallel="parallel_attn", one_sum="parallel_attn",
    shared_norm="shared_norm", qkv_bias="bias", out_bias="bias", mlp_bias="bias",
)  # fmt: skip
_STABLELM = Family(
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "use_qkv_bias": False,
              "qk_layernorm": False, "use_parallel_residual": False},
    norm=_LAYER_NORM, parallel="use_parallel_residual", shared_norm="use_parallel_residual", qkv_bias="use_qkv_bias",
    out_bias=False, mlp_bias=False, qk_norm="qk_layernorm", qk_norm_heads=True,
)  # fmt: skip
_PLAIN = Family(defaults={"max_position_embeddings": None}, qkv_bias=False, out_bias=False, mlp_bias=False)
_GLM = Family(
    defaults={"num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131072, "attention_bias": True},
    out_bias=False,
)  # fmt: skip

_SIZES: Mapping[str, tuple[int, ...]] = {
    "gpt2": (768, 12, 12, 0, 50257), "gpt_bigcode": (768, 12, 12, 0, 50257),
    "gpt_neox": (6144, 64, 44, 24576, 50432), "phi3": (3072, 32, 32, 8192, 32064),
    "starcoder2": (3072, 24, 30, 12288, 49152), "phi": (2048, 32, 24, 8192, 51200),
    "nemotron": (6144, 48, 32, 24576, 256000), "apertus": (4096, 32, 32, 14336, 131072),
    "cohere": (8192, 64, 40, 22528, 256000), "cohere2": (8192, 64, 40, 22528, 256000),
    "smollm3": (2048, 16, 36, 11008, 128256), "falcon": (4544, 71, 32, 0, 65024), "opt": (768, 12, 12, 3072, 50272),
    "bloom": (64, 8, 2, 0, 250880), "mpt": (2048, 16, 24, 0, 50368), "gptj": (4096, 16, 28, 0, 50400),
    "codegen": (4096, 16, 28, 0, 50400), "gpt_neo": (2048, 16, 24, 0, 50257),
    "stablelm": (2560, 32, 32, 6912, 50304), "olmo": (4096, 32, 32, 11008, 50304),
    "olmo2": (4096, 32, 32, 11008, 50304), "olmo3": (4096, 32, 32, 11008, 50304),
    "exaone4": (4096, 32, 32, 16384, 102400), "hunyuan_v1_dense": (4096, 32, 32, 11008, 290943),
    "seed_oss": (4096, 80, 64, 27648, 155136), "ernie4_5": (1024, 16, 18, 3072, 103424),
    "helium": (2560, 20, 24, 7040, 48000), "bitnet": (2560, 20, 30, 6912, 128256),
    "persimmon": (4096, 64, 36, 16384, 262144), "xglm": (1024, 16, 24, 4096, 256008),
    "biogpt": (1024, 16, 24, 4096, 42384), "openai-gpt": (768, 12, 12, 0, 40478),
    "arcee": (2560, 32, 32, 18432, 32000), "jais2": (3328, 26, 32, 26624, 150272),
    "nanochat": (768, 6, 12, 8192, 50304), "glm": (4096, 32, 40, 13696, 151552),
    "glm4": (4096, 32, 40, 13696, 151552), "ministral": (4096, 32, 32, 14336, 32000),
    "ministral3": (4096, 32, 34, 14336, 131072), "internlm3": (4096, 32, 48, 10240, 128512),
}  # fmt: skip
"""Defaults of the classes for ``CORE``, where they are not ``COMMON``'s; 0: the class has none."""

_FAMILIES: Mapping[str, Family] = {
    "llama": Family(defaults=_BIASES | {"eos_token_id": 2}),
    "mistral": Family(defaults={"intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": 4096,
                                "max_position_embeddings": 131072, "eos_token_id": 2}),
    "qwen2": Family(defaults=_QWEN, qkv_bias=True, switched_window=True),
    "qwen3": Family(defaults=_QWEN | _BIAS | {"head_dim": 128}, qk_norm=True, switched_window=True),
    "gemma": Family(defaults=_GEMMA | {"hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
                                       "num_attention_heads": 16, "num_key_value_heads": 16}, gemma=True),
    "gemma2": Family(defaults=_GEMMA2, norms=4, gemma=True),
    "vaultgemma": Family(defaults=_GEMMA2, gemma=True),
    "gemma3_text": Family(defaults=_GEMMA2 | {"vocab_size": 262208, "max_position_embeddings": 131072,
                                              "sliding_window_pattern": 6, "rope_theta": 1e6},
                          norms=4, qk_norm=True, gemma=True),
    "gpt2": Family(defaults=_GPT | {"attention_head_type": None}, names=_GPT_NAMES, rewrite=_santacoder, widens=4,
                   gated=False, positions=0, **_BIASED),
    "gpt_bigcode": Family(defaults=_GPT | {"multi_query": True}, names=_GPT_NAMES, widens=4, gated=False, positions=0,
                          rewrite=_one_head("multi_query"), **_BIASED),
    "gpt_neox": Family(defaults={"attention_bias": True, "rms_norm_eps": 1e-5, "use_parallel_residual": True},
                       names={"rope_theta": "rotary_emb_base"}, gated=False, norm=_LAYER_NORM, mlp_bias=True,
                       rewrite=lambda keys: {"num_key_value_heads": None}, parallel="use_parallel_residual"),
    "granite": Family(defaults=_BIASES),
    "phi3": Family(defaults={"max_position_embeddings": 4096, "sliding_window": None, "rms_norm_eps": 1e-5}),
    # No Llamas, in transformers:
    "starcoder2": Family(defaults={"num_key_value_heads": 2, "max_position_embeddings": 4096, "sliding_window": None,
                                   "tie_word_embeddings": True, "use_bias": True, "rms_norm_eps": 1e-5},
                         gated=False, norm=_LAYER_NORM, qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias"),
    "phi": Family(defaults=_PHI, **_PHI_FACTS),
    "nemotron": Family(defaults=_BIASES | {"max_position_embeddings": 4096, "head_dim": None, "rms_norm_eps": 1e-5},
                       gated=False, norm=_LAYER_NORM),
    "apertus": Family(defaults=_BIAS | {"max_position_embeddings": 65536, "rope_theta": 12e6, "rms_norm_eps": 1e-5},
                      gated=False, mlp_bias=False, qk_norm=True),
    "cohere": Family(defaults=_BIAS | {"max_position_embeddings": 8192, "tie_word_embeddings": True,
                                       "rope_theta": 5e5, "use_qk_norm": False},
                     names=_COHERE_NAMES, mlp_bias=False, qk_norm="use_qk_norm", qk_norm_heads=True, **_SIDE_BY_SIDE),
    "cohere2": Family(defaults=_BIAS | {"max_position_embeddings": 8192, "tie_word_embeddings": True,
                                        "sliding_window": 4096, "sliding_window_pattern": 4},
                      names=_COHERE_NAMES, mlp_bias=False, **_SIDE_BY_SIDE),
    "smollm3": Family(defaults=_BIASES | {"num_key_value_heads": 4, "max_position_embeddings": 32768,
                                          "rope_theta": 2e6, "tie_word_embeddings": True, "sliding_window": None,
                                          "max_window_layers": None}, switched_window=True),
    "falcon": _FALCON,
    "opt": Family(defaults=_GPT | {"max_position_embeddings": 2048, "enable_bias": True, "hidden_act": "relu",
                                   "layer_norm_elementwise_affine": True, "do_layer_norm_before": True,
                                   "_remove_final_layer_norm": False},
                  names={"intermediate_size": "ffn_dim", "hidden_act": "activation_function",
                         "embedding_width": "word_embed_proj_dim"}, rewrite=_opt,
                  gated=False, norm=_LAYER_NORM, positions=2, qkv_bias="enable_bias", out_bias="enable_bias",
                  mlp_bias="enable_bias"),
    "bloom": Family(defaults={"tie_word_embeddings": True, "max_position_embeddings": None, "rms_norm_eps": 1e-5},
                    names={"hidden_size": "n_embed n_embd", "num_attention_heads": "n_head",
                           "num_hidden_layers": "n_layer"}, widens=4, gated=False, outer_norms=2, **_BIASED),
    "mpt": Family(defaults={"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "attn_config": None,
                            "expansion_ratio": None},
                  names={"hidden_size": "d_model", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers",
                         "max_position_embeddings": "max_seq_len"}, rewrite=_mpt, gated=False, qkv_bias=False,
                  out_bias=False, mlp_bias=False),
    "gptj": _GPTJ,
    "codegen": _GPTJ,
    "gpt_neo": Family(defaults=_GPT | {"max_position_embeddings": 2048, "sliding_window": 256, "attention_types": None},
                      names=_GPT_NAMES | {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers",
                                          "sliding_window": "window_size"},
                      rewrite=_gpt_neo, widens=4, positions=0, gated=False, **_BIASED | {"qkv_bias": False}),
    "stablelm": _STABLELM,
    "olmo": Family(defaults=_BIAS, mlp_bias=False, norm=(False, False)),
    "olmo2": Family(defaults=_BIAS | {"rms_norm_eps": 1e-5}, mlp_bias=False, qk_norm=True, qk_norm_heads=True),
    "olmo3": Family(defaults=_BIAS | {"rms_norm_eps": 1e-5, "sliding_window": 4096, "sliding_window_pattern": 4,
                                      "rope_theta": 5e5}, mlp_bias=False, qk_norm=True, qk_norm_heads=True),
    "exaone4": Family(defaults={"num_key_value_heads": 32, "rms_norm_eps": 1e-5, "sliding_window": 4096,
                                "sliding_window_pattern": 4},
                      rewrite=_exaone4, qk_norm=True, qkv_bias=False, out_bias=False, mlp_bias=False),
    "hunyuan_v1_dense": Family(defaults=_BIAS | {"rms_norm_eps": 1e-5}, names={"head_dim": "attention_head_dim"},
                               mlp_bias=False, qk_norm=True),
    "seed_oss": Family(defaults={"num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 524288,
                                 "attention_bias": True, "attention_out_bias": False, "mlp_bias": False},
                       out_bias="attention_out_bias"),
    "ernie4_5": Family(defaults={"num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131072,
                                 "rms_norm_eps": 1e-5, "rope_theta": 5e5, "tie_word_embeddings": True,
                                 "use_bias": False}, qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias"),
    "helium": Family(defaults=_BIASES | {"num_key_value_heads": 20, "head_dim": 128, "max_position_embeddings": 4096,
                                         "rope_theta": 1e5}, out_bias=False),
    # Two norms more, one of them I wide.
    "bitnet": Family(defaults=_BIAS | {"num_key_value_heads": 5, "rms_norm_eps": 1e-5, "rope_theta": 5e5}, norms=4,
                     mlp_bias=False),
    "persimmon": Family(defaults={"max_position_embeddings": 16384, "rms_norm_eps": 1e-5, "qk_layernorm": True},
                        gated=False, qk_norm="qk_layernorm", **_BIASED),
    "xglm": Family(defaults=_GPT | {"max_position_embeddings": 2048},
                   names={"hidden_size": "d_model", "num_attention_heads": "attention_heads",
                          "num_hidden_layers": "num_layers", "intermediate_size": "ffn_dim",
                          "hidden_act": "activation_function"}, gated=False, **_BIASED),
    "biogpt": Family(defaults=_GPT, positions=2, gated=False, **_BIASED),
    "openai-gpt": Family(defaults=_GPT | {"max_position_embeddings": 512}, names=_GPT_NAMES | {"hidden_act": "afn"},
                         widens=4, positions=0, outer_norms=0, gated=False, **_BIASED),
    "arcee": Family(defaults=_BIASES | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}, gated=False),
    "jais2": Family(defaults={"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "attention_bias": True,
                              "mlp_bias": True}, gated=False, norm=_LAYER_NORM),
    "nanochat": Family(defaults=_BIAS, gated=False, mlp_bias=False, norm=(False, False), qk_norm=True),
    "glm": _GLM,
    "glm4": Family(defaults=_GLM.defaults, out_bias=False, norms=4),
    "ministral": Family(defaults={"num_key_value_heads": 8, "sliding_window": 4096,
                                  "max_position_embeddings": 131072}, qkv_bias=False, out_bias=False, mlp_bias=False),
    "ministral3": Family(defaults={"num_key_value_heads": 8, "head_dim": 128, "sliding_window": None,
                                   "max_position_embeddings": 262144}, qkv_bias=False, out_bias=False, mlp_bias=False),
    "internlm3": Family(defaults=_BIASES | {"num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1e-5,
                                            "max_position_embeddings": 32768},
                        names={"attention_bias": "qkv_bias", "mlp_bias": "bias"}),
    # With code of their own beside the checkpoint:
    "qwen": Family(defaults={"max_position_embeddings": 8192, "no_bias": True},
                   names={"head_dim": "kv_channels", "max_position_embeddings": "seq_length"},
                   rewrite=_gate_and_up, qkv_bias=True, out_bias="!no_bias", mlp_bias="!no_bias"),
    "baichuan": _PLAIN,
    "Yi": _PLAIN,
    "xverse": _PLAIN,
    "aquila": _PLAIN,
    "skywork": _PLAIN,
    "orion": Family(qkv_bias=False, out_bias=False, mlp_bias=False, norm=_LAYER_NORM),
    "internlm": Family(defaults={"bias": True}, qkv_bias="bias", out_bias="bias", mlp_bias=False),
    "internlm2": Family(defaults={"bias": True}, qkv_bias="bias", out_bias="bias", mlp_bias=False),
    "exaone": Family(names={"num_hidden_layers": "num_layers", "hidden_act": "activation_function"}, qkv_bias=False,
                     out_bias=False, mlp_bias=False),
    "minicpm": Family(defaults=_BIAS | {"tie_word_embeddings": True}, mlp_bias=False),
    "chatglm": Family(defaults={"multi_query_attention": False, "add_bias_linear": False, "add_qkv_bias": False},
                      names={"num_hidden_layers": "num_layers", "intermediate_size": "ffn_hidden_size",
                             "head_dim": "kv_channels", "num_key_value_heads": "multi_query_group_num",
                             "vocab_size": "padded_vocab_size", "max_position_embeddings": "seq_length"},
                      rewrite=_chatglm, qkv_bias="add_qkv_bias add_bias_linear", out_bias="add_bias_linear",
                      mlp_bias="add_bias_linear"),
    "phi-msft": Family(defaults=_PHI, names=_GPT_NAMES | {"num_key_value_heads": "n_head_kv"}, widens=4, **_PHI_FACTS),
    "mixformer-sequential": Family(defaults=_PHI, names=_GPT_NAMES, widens=4, **_PHI_FACTS),
    "moss": _GPTJ,
    "RefinedWeb": _FALCON,
    "RefinedWebModel": _FALCON,
    "stablelm_epoch": _STABLELM,
    "hf_olmo": Family(defaults={"tie_word_embeddings": True, "mlp_ratio": None},
                      names={"hidden_size": "d_model", "num_attention_heads": "n_heads",
                             "num_hidden_layers": "n_layers", "intermediate_size": "mlp_hidden_size",
                             "vocab_size": "embedding_size", "tie_word_embeddings": "weight_tying",
                             "max_position_embeddings": "max_sequence_length"},
                      rewrite=_hf_olmo, qkv_bias=False, out_bias=False, mlp_bias=False,
                      norm=(False, False)),
}  # fmt: skip


def _with_sizes(family: Family, sizes: tuple[int, ...]) -> Family:
    told = {key: size or None for key, size in zip(CORE, sizes, strict=True)}
    return replace(family, defaults=told | {**family.defaults})


FAMILIES: Mapping[str, Family] = {
    name: _with_sizes(family, _SIZES[name]) if name in _SIZES else family for name, family in _FAMILIES.items()
}
"""``model_type`` -> its family. Parameters are counted exactly for those of transformers, but for BitNet's second norm
and Apertus' two numbers per layer; the tests compare with transformers' own modules."""
TELLING = (
    frozenset(name for family in FAMILIES.values() for name in family.keys() - family.defaults.keys() | family.facts())
    | {"mlp_type", "norm_type", "use_gated_activation", "use_parallel_block"}
) - {*INERT, *HONOURED, *PLAIN}
"""Keys by which families differ from a Llama: where no ``model_type`` says which it is, one of them leaves it open."""


def keys_of(values: Config, family: str, where: str, *, core: bool = True) -> Keys:
    """The keys of one file, to be read as its family has them; see ``Keys``."""
    return Keys(values, family, FAMILIES.get(family), where, core=core)
