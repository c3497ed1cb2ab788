"""From a Hugging Face ``config.json`` to a :class:`ModelConfig`, and back.

Three kinds of keys: those that are honoured; those that change nothing in inference, which are listed here; and all
others, which are refused by name. A key that is silently dropped gives a model that runs and is wrong, which is the one
fault nobody notices. A key unknown here that is null, false or empty switches something off, and is passed over.

Sources: the configuration classes of transformers 5 (``configuration_llama.py`` and its neighbours) for keys and
defaults; ``modeling_rope_utils.py`` for rotary scaling.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tplab.files import read_json
from tplab.models import keys as check
from tplab.models.config import DTYPES, MODEL_TYPES, DType, ModelConfig, RopeScaling
from tplab.shown import check_depth, listed, shown

_INERT = frozenset(
    """
    architectures auto_map attention_dropout bos_token_id pad_token_id sep_token_id decoder_start_token_id
    forced_bos_token_id forced_eos_token_id initializer_range model_type transformers_version use_cache torch_dtype
    dtype _name_or_path name_or_path _commit_hash attn_implementation _attn_implementation _attn_implementation_autoset
    return_dict output_hidden_states output_attentions chunk_size_feed_forward id2label label2id num_labels
    pretraining_tp problem_type task_specific_params tokenizer_class prefix finetuning_task is_encoder_decoder
    torchscript max_length min_length do_sample temperature top_k top_p typical_p repetition_penalty length_penalty
    num_beams num_beam_groups diversity_penalty early_stopping no_repeat_ngram_size num_return_sequences
    encoder_no_repeat_ngram_size bad_words_ids remove_invalid_values unsloth_version unsloth_fixed
    """.split()  # noqa: SIM905
)
"""Keys that change nothing in the forward pass of inference. (``is_encoder_decoder`` true would be another model, and
another ``model_type``.)"""

_HONOURED = frozenset(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters attention_bias mlp_bias
    tie_word_embeddings sliding_window use_sliding_window max_window_layers layer_types hidden_act hidden_activation
    eos_token_id partial_rotary_factor use_bidirectional_attention original_max_position_embeddings
    """.split()  # noqa: SIM905
)

_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"vocab_size": 32000, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
              "max_position_embeddings": 2048, "eos_token_id": 2},
    "mistral": {"vocab_size": 32000, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096,
                "eos_token_id": 2},
    "qwen2": {"vocab_size": 151936, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
              "num_key_value_heads": 32, "max_position_embeddings": 32768},
    "qwen3": {"vocab_size": 151936, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
              "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768},
    "gemma": {"vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
              "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192,
              "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True, "eos_token_id": 1},
}  # fmt: skip
"""What transformers' classes take for a key that is missing, where it differs from ``_COMMON``."""

_COMMON: dict[str, Any] = {
    "hidden_size": 4096,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "use_bidirectional_attention": False,
    "max_window_layers": 28,
}

_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "max_position_embeddings",
)
_FLAGS = ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window", "use_bidirectional_attention")

_NULLABLE = ("sliding_window", "eos_token_id", "num_key_value_heads", "head_dim")
"""Null is a setting of its own here (no window, no stop token, as many as query heads, D/H), and not the default."""

_KINDS = {
    "mixture of experts": ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "dbrx", "gpt_oss", "llama4"),
    "multi-head latent attention": ("deepseek_v2", "deepseek_v3", "kimi_k2", "minicpm3"),
}
"""Families that are asked for most, by what they would need."""


def read_config(source: "str | Path | Mapping[str, Any]") -> ModelConfig:
    """See :meth:`ModelConfig.from_hf`."""
    if isinstance(source, Mapping):
        return _from_keys(dict(source), "the config")
    path = Path(source)
    path = path / "config.json" if os.path.isdir(path) else path
    try:
        keys = read_json(path, limit=check.MOST_BYTES)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no config.json at {path}: give a folder with a Hugging Face checkpoint, or the file"
        ) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    if not isinstance(keys, dict):
        raise ValueError(f"{path} must hold a JSON object; it holds a {type(keys).__name__}")
    return _from_keys(keys, str(path))


def _from_keys(keys: dict[str, Any], where: str) -> ModelConfig:
    check_depth(keys, where)
    kind = keys.get("model_type")
    if kind not in MODEL_TYPES:
        needs = next((f" ({what})" for what, names in _KINDS.items() if kind in names), "")
        raise ValueError(
            f"{where}: model_type={shown(kind)}{needs} is not supported; supported are {', '.join(MODEL_TYPES)}"
        )
    _refuse_unknown(keys, where)
    full = {**_COMMON, **_DEFAULTS[kind], **{k: v for k, v in keys.items() if v is not None or k in _NULLABLE}}
    at = f"{where}: "
    flags = {name: check.flag(full[name], name, at) for name in _FLAGS}
    for name, kinds in (
        ("use_bidirectional_attention", ()),
        ("attention_bias", ("llama", "qwen3", "gemma")),
        ("mlp_bias", ("llama",)),
    ):
        if flags[name] and kind not in kinds:
            raise ValueError(f"{where}: {name}=True is not supported for {kind}; false is")
    sizes = {name: check.whole(full[name], name, at) for name in _SIZES}
    hidden, num_heads = sizes["hidden_size"], sizes["num_attention_heads"]
    kv_heads, head_dim = full.get("num_key_value_heads"), full.get("head_dim")
    kv_heads = num_heads if kv_heads is None else check.whole(kv_heads, "num_key_value_heads", at)
    if head_dim is None and hidden % num_heads:
        raise ValueError(
            f"{where}: num_attention_heads={num_heads} does not divide hidden_size={hidden}; give head_dim"
        )
    theta, scaling = _rope(keys, sizes["max_position_embeddings"], at)
    return ModelConfig(
        model_type=kind,
        vocab_size=sizes["vocab_size"],
        hidden_size=hidden,
        intermediate_size=sizes["intermediate_size"],
        num_layers=sizes["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=check.kv_heads(kv_heads, num_heads, at),
        head_dim=hidden // num_heads if head_dim is None else check.whole(head_dim, "head_dim", at),
        max_positions=sizes["max_position_embeddings"],
        norm_eps=check.number(full["rms_norm_eps"], "rms_norm_eps", at),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=flags["attention_bias"] or kind == "qwen2",
        out_bias=flags["attention_bias"],
        mlp_bias=flags["mlp_bias"],
        qk_norm=kind == "qwen3",
        tied=flags["tie_word_embeddings"],
        windows=_windows(kind, keys, full, where),
        gate=_gate(kind, full, where),
        norm_offset=1.0 if kind == "gemma" else 0.0,
        embedding_scale=hidden**0.5 if kind == "gemma" else 1.0,
        dtype=_dtype(keys, where),
        stop_tokens=check.tokens(full.get("eos_token_id"), "eos_token_id", at),
    )


def _refuse_unknown(keys: dict[str, Any], where: str) -> None:
    active = {name for name, value in keys.items() if value not in (None, False, [], {}, "")}
    if "quantization_config" in active or "compression_config" in active:
        raise ValueError(
            f"{where}: quantization_config: quantised checkpoints are not supported; float32, bfloat16 and float16 are"
        )
    unknown = sorted(active - _INERT - _HONOURED)
    if unknown:
        raise ValueError(
            f"{where}: {listed(f'{name}={shown(keys[name])}' for name in unknown)} is not known here and may change "
            f"what the model computes, so it is not passed over. Delete the key if it changes nothing. Honoured are "
            f"{', '.join(sorted(_HONOURED))}"
        )


def _gate(kind: str, full: dict[str, Any], where: str) -> Any:
    if kind == "gemma":
        # "gelu" in Gemma's first files means the tanh approximation; transformers reads it so.
        activation = full["hidden_act"]
        if activation in ("gelu", "gelu_pytorch_tanh") and full.get("hidden_activation", activation) in (
            "gelu",
            "gelu_pytorch_tanh",
        ):
            return "gelu_tanh"
        raise ValueError(f"{where}: hidden_act={shown(activation)} is not supported for gemma; gelu_pytorch_tanh is")
    if "hidden_activation" in full:
        raise ValueError(
            f"{where}: hidden_activation={shown(full['hidden_activation'])} is a key of gemma's; use hidden_act"
        )
    if full["hidden_act"] not in ("silu", "swish"):
        raise ValueError(f"{where}: hidden_act={shown(full['hidden_act'])} is not supported for {kind}; silu is")
    return "silu"


def _windows(kind: str, keys: dict[str, Any], full: dict[str, Any], where: str) -> tuple[int | None, ...]:
    layers, at = full["num_hidden_layers"], f"{where}: "
    types = keys.get("layer_types")
    if types is not None:
        types = check.layer_types(types, layers, at)
    window = full["sliding_window"]
    if window is not None:
        check.whole(window, "sliding_window", at)
    if kind in ("llama", "gemma") and keys.get("sliding_window") is not None:
        raise ValueError(f"{where}: sliding_window={window} is not a key of {kind}'s")
    if kind in ("qwen2", "qwen3"):
        if not full["use_sliding_window"]:
            window = None
        if types is None:
            from_layer = check.whole(full["max_window_layers"], "max_window_layers", at, least=0)
            types = ["sliding_attention" if layer >= from_layer else "full_attention" for layer in range(layers)]
        elif window is None and "sliding_attention" in types:
            raise ValueError(f"{where}: layer_types has sliding_attention, but use_sliding_window is off")
        windows = tuple(window if each == "sliding_attention" else None for each in types)
    else:
        window = window if kind == "mistral" else None
        wanted = "full_attention" if window is None else "sliding_attention"
        if types is not None and set(types) != {wanted}:
            raise ValueError(
                f"{where}: layer_types of a {kind} model with sliding_window={window} must all be {wanted}"
            )
        windows = (window,) * layers
    return windows if any(window is not None for window in windows) else ()


def _rope(keys: dict[str, Any], positions: int, at: str) -> tuple[float, RopeScaling | None]:
    """Theta and scaling: from ``rope_parameters`` (transformers 5), or ``rope_theta`` and ``rope_scaling`` (before)."""
    given = {name: keys[name] for name in ("rope_parameters", "rope_scaling") if keys.get(name) is not None}
    found = {name: check.mapping(value, name, at) for name, value in given.items()}
    name = "rope_parameters" if found.get("rope_parameters") else "rope_scaling"
    settings = dict(found.get(name, {}))
    theta = settings.pop("rope_theta", keys.get("rope_theta"))
    theta = 10_000.0 if theta is None else check.number(theta, "rope_theta", at)
    kind = check.text(settings.pop("rope_type", settings.get("type", "default")), f"rope_type of {name}", at)
    settings.pop("type", None)
    for place in (keys, settings):
        part = place.get("partial_rotary_factor")
        if part is not None and check.number(part, "partial_rotary_factor", at) != 1.0:
            raise ValueError(f"{at}partial_rotary_factor={part} is not supported; all of a head is turned")
    settings.pop("partial_rotary_factor", None)
    wanted = {
        "default": set(),
        "linear": {"factor"},
        "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    }
    if kind not in wanted:
        raise ValueError(f"{at}{name} of type {shown(kind)} is not supported; default, linear and llama3 are")
    if kind == "default":
        settings.pop("factor", None)  # of no effect without a scaling
    missing = sorted(wanted[kind] - settings.keys())
    if missing == ["original_max_position_embeddings"]:
        # transformers takes the top-level key, else the model's own length.
        settings["original_max_position_embeddings"] = keys.get("original_max_position_embeddings", positions)
    elif missing:
        raise ValueError(f"{at}{name} of type {kind} needs {', '.join(missing)}")
    extra = sorted(key for key in settings.keys() - wanted[kind] if settings[key] is not None)
    if kind == "linear":
        extra = [key for key in extra if key != "original_max_position_embeddings"]  # of no effect there
    if extra:
        raise ValueError(f"{at}{name} of type {kind} with {listed(extra)} is not supported")
    if kind == "default":
        return theta, None
    numbers = {
        key: check.number(settings[key], f"{key} of {name}", at) for key in wanted[kind] if key.endswith("factor")
    }
    if kind == "linear":
        return theta, RopeScaling(kind="linear", factor=numbers["factor"])
    original = settings["original_max_position_embeddings"]
    scaling = RopeScaling(
        kind="llama3",
        original_max_positions=check.whole(original, f"original_max_position_embeddings of {name}", at),
        **numbers,
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise ValueError(
            f"{at}{name}: high_freq_factor={scaling.high_freq_factor} must be more than "
            f"low_freq_factor={scaling.low_freq_factor}"
        )
    return theta, scaling


def _dtype(keys: dict[str, Any], where: str) -> DType:
    key = next((key for key in ("dtype", "torch_dtype") if keys.get(key) is not None), None)
    if key is None:
        return "float32"
    for dtype in DTYPES:
        if keys[key] in (dtype, f"torch.{dtype}"):
            return dtype
    raise ValueError(f"{where}: {key}={shown(keys[key])} is not supported; {', '.join(DTYPES)} are")


_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
}


def config_json(config: ModelConfig) -> dict[str, Any]:
    """See :meth:`ModelConfig.to_hf`."""
    kind = config.model_type
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_positions,
            }
    keys: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "gelu_pytorch_tanh" if config.gate == "gelu_tanh" else "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tied,
        "torch_dtype": config.dtype,
        "bos_token_id": None,
        "pad_token_id": None,
        "eos_token_id": list(config.stop_tokens) or None,
    }
    if kind == "mistral":
        keys["sliding_window"] = config.window(0)
    if kind in ("qwen2", "qwen3"):
        sliding = [window for window in config.windows if window is not None]
        keys["use_sliding_window"] = bool(sliding)
        keys["sliding_window"] = sliding[0] if sliding else None
        keys["layer_types"] = [
            "full_attention" if config.window(layer) is None else "sliding_attention"
            for layer in range(config.num_layers)
        ]
    if kind in ("llama", "qwen3", "gemma"):
        keys["attention_bias"] = config.out_bias
    if kind == "llama":
        keys["mlp_bias"] = config.mlp_bias
    if _from_keys(keys, "the config") != config:
        raise ValueError(f"a {kind} model in a config.json cannot be this: {config}")
    return keys
