"""A Hugging Face ``config.json`` read as a ``ModelSpec``.

Every key is used, known to change neither size nor speed, or named: in an error where the advisor has no model of what
it stands for, in ``notes`` where it is approximated or unknown. transformers would read it too, but would have to be
there, knows thousands of architectures that the advisor does not, and fills in missing keys by defaults that nobody
asked for. Its defaults are used here only where published configurations rely on them (``_LEFT_OUT``, ``_GEMMA3``).
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tplab.files import read_json
from tplab.models.keys import MOST_BYTES, flag, kv_heads, layer_types, mapping, number, text, texts, whole
from tplab.models.presets import HUGGING_FACE, MODELS
from tplab.models.spec import ITEMSIZE, ModelSpec
from tplab.shown import check_depth, listed, nearest, shown

Config = Mapping[str, Any]

_REFUSED = {
    "a mixture of experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "ffn_config"),
    "latent attention (MLA)": ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim"),
    "state-space or linear-attention layers": (
        *("ssm_cfg", "mamba_d_state", "mamba_d_ssm", "state_size", "linear_num_key_heads", "full_attention_interval"),
        *("hybrid_override_pattern", "attn_layer_period", "rwkv_version"),
    ),
    "an encoder beside its decoder": ("is_encoder_decoder", "encoder_layers"),
    "cross-attention to images": ("cross_attention_layers",),
    "blocks that differ from each other": ("block_configs", "num_kv_shared_layers", "layers_block_type"),
}
"""What the advisor has no model of, and the keys that betray it unless they are null, 0, 1, false or empty."""

_KNOWN_KEYS = """
_name_or_path _attn_implementation architectures attention_dropout attn_pdrop resid_pdrop embd_pdrop
attention_probs_dropout_prob hidden_dropout hidden_dropout_prob hidden_activation activation_function
attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar auto_map bos_token_id eos_token_id pad_token_id
unk_token_id sep_token_id cache_implementation classifier_dropout finetuned_from hidden_act initializer_range
layer_norm_epsilon layer_norm_eps rms_norm_eps norm_eps pretraining_tp rope_scaling rope_theta rope_parameters
rope_local_base_freq rotary_pct rotary_emb_base partial_rotary_factor tokenizer_class transformers_version use_cache
id2label label2id n_ctx scale_attn_weights summary_activation summary_first_dropout summary_proj_to_labels
summary_type summary_use_proj task_specific_params reorder_and_upcast_attn scale_attn_by_inverse_layer_idx
model_type torch_dtype dtype name max_window_layers use_bidirectional_attention original_max_position_embeddings
sliding_window_pattern _sliding_window_pattern layer_types use_sliding_window quantization_config text_config
attention_bias mlp_bias bias head_dim num_key_value_heads tie_word_embeddings sliding_window use_qk_norm qk_norm
max_position_embeddings n_positions n_inner parallel_attn use_parallel_residual chunk_size_feed_forward
output_attentions output_hidden_states return_dict gradient_checkpointing is_decoder add_cross_attention
router_aux_loss_coef attention_multiplier embedding_multiplier logits_scaling residual_multiplier problem_type
mup_width_multiplier multi_query attention_softmax_in_fp32 scale_attention_softmax_in_fp32 inference_runner
max_batch_size pad_key_length pre_allocate_kv_cache validate_runner_input max_sequence_length seq_length max_seq_len
"""
_NO_EFFECT = frozenset(_KNOWN_KEYS.split())
"""Keys that are read below, or that change neither a size nor a time."""


def read_config(
    config: "str | os.PathLike[str] | Config", *, weight_precision: str | None = None, kv_precision: str | None = None
) -> ModelSpec:
    """See :meth:`ModelSpec.from_config`."""
    name, values, source = _load(config)
    check_depth(values, name)
    mapping(values, name)
    notes: list[str] = []
    _refuse_encoders(name, values)
    family, values = _language_model(values, notes)
    _refuse(name, values)
    gpt2 = family in ("gpt2", "gpt_bigcode") or "n_embd" in values
    neox = family == "gpt_neox"
    if family not in _FAMILIES and not gpt2:
        notes.append(
            f"model_type {family!r} is not known here: taken as a Llama of these sizes (gated MLP, RMSNorm, no biases "
            f"but those named)"
        )
    hidden = _size(values, "hidden_size", "n_embd")
    heads = _size(values, "num_attention_heads", "n_head")
    layers = _size(values, "num_hidden_layers", "n_layer")
    inner = _optional(values, "n_inner") if gpt2 else None
    usual_head_dim, usual_kv_heads = _LEFT_OUT.get(family, (None, None))
    head_dim = _optional(values, "head_dim") or usual_head_dim
    if head_dim is None:
        if hidden % heads:
            raise ValueError(
                f"{name}: hidden_size={hidden} is no multiple of num_attention_heads={heads}, and there is no head_dim"
            )
        head_dim = hidden // heads
    window, windowed = _window(values, family, layers)
    if windowed:
        notes.append(
            f"sliding window of {window} tokens on {windowed} of {layers} layers: cache and attention of those layers "
            f"are counted up to the window, and as spread evenly over the stages"
        )
    if gpt2 or neox:
        notes.append("counted with biases on every matrix and LayerNorm, as GPT-2 and GPT-NeoX have them")
    unknown = sorted(set(values) - _NO_EFFECT - _USED - {key for keys in _REFUSED.values() for key in keys})
    if unknown:
        notes.append(f"keys without meaning here, taken to change neither size nor speed: {listed(unknown, 20)}")
    how = _mapping(values, "quantization_config")
    weights, cache, activation = _precisions(values, how, weight_precision, notes)
    return ModelSpec(
        name=name,
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=(inner or 4 * hidden) if gpt2 else _size(values, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=_kv_heads(values, family, heads, usual_kv_heads, fixed=gpt2 or neox),
        head_dim=head_dim,
        vocab_size=_size(values, "vocab_size"),
        tied_embeddings=_flag(values, "tie_word_embeddings", gpt2 or family.startswith("gemma")),
        gated_mlp=not (gpt2 or neox),
        qkv_bias=_flag(values, "attention_bias", gpt2 or neox or family == "qwen2"),
        out_bias=_flag(values, "attention_bias", gpt2 or neox),
        mlp_bias=_flag(values, "mlp_bias", gpt2 or neox),
        qk_norm=_flag(values, "use_qk_norm") or _flag(values, "qk_norm") or family in ("qwen3", "gemma3_text"),
        norms_per_block=4 if family in ("gemma2", "gemma3_text") else 2,
        norm_bias=gpt2 or neox,
        num_positions=_size(values, "n_positions") if gpt2 else 0,
        parallel_residual=neox and _flag(values, "use_parallel_residual", True),
        sliding_window=window if windowed else None,
        windowed_layers=windowed,
        max_length=_longest(values, family, learned=gpt2),
        weight_precision=weights,
        kv_precision=kv_precision or cache,
        activation_precision=activation,
        source=source,
        quant_method=_text(how, "quant_method") or _text(how, "quant_algo") or "unknown" if how else None,
        notes=tuple(notes),
    )


_FAMILIES = frozenset(
    (
        *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_bigcode", "gpt_neox"),
        *("granite", "phi3"),
    )
)
"""Parameters are counted exactly for these: the tests compare with transformers' own modules."""
_LEFT_OUT: Mapping[str, tuple[int | None, int | None]] = {
    "mistral": (None, 8),
    "qwen2": (None, 32),
    "qwen3": (128, 32),
    "gemma": (256, 16),
    "gemma2": (256, 4),
}
"""Size of a head and number of key-value heads where the configuration leaves them out: the defaults of transformers'
configuration classes of these families (version 5), which then hold."""
_GEMMA3: Mapping[str, Any] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
"""Gemma 3 as published leaves out whatever is the default of ``Gemma3TextConfig`` (transformers 5,
models/gemma3/configuration_gemma3.py): the vocabulary always, of the 4B model also its heads."""
_LONGEST_NAME = 200
_LARGEST_STRETCH = 1000  # by rope scaling
_USED = frozenset(
    ("hidden_size", "n_embd", "num_attention_heads", "n_head", "num_hidden_layers", "n_layer", "intermediate_size")
) | {"vocab_size"}


def _load(config: "str | os.PathLike[str] | Config") -> tuple[str, Config, str | None]:
    """Name, contents, and what an engine is to load."""
    if isinstance(config, Mapping):
        return _name(config, "name") or _name(config, "_name_or_path") or "model", config, None
    as_name = str(config).strip().lower().replace("_", "-").replace(" ", "-")
    if as_name in MODELS:
        return as_name, MODELS[as_name], HUGGING_FACE.get(as_name)
    path = Path(config)
    path = path / "config.json" if os.path.isdir(path) else path
    try:
        values = read_json(path, limit=MOST_BYTES)
    except FileNotFoundError:
        if path.suffix == ".json" or len(path.parts) > 2:
            raise ValueError(f"there is no file {path}") from None
        raise ValueError(f"no model preset or file is called {str(config)!r}: {nearest(as_name, MODELS)}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a JSON {type(values).__name__}, not an object with the model's sizes")
    folder = path.parent if path.parent.name else path.parent.resolve()  # not "."
    return _name(values, "_name_or_path") or path.resolve().parent.name, values, str(folder)


def _name(values: Config, key: str) -> str | None:
    found = values.get(key)  # only a name, and not worth an error
    return found[-_LONGEST_NAME:] if isinstance(found, str) else None


def _refuse_encoders(name: str, values: Config) -> None:
    found = values.get("architectures") or []
    found = texts([found] if isinstance(found, str) else found, "architectures")
    heads = ("CausalLM", "LMHead", "ForConditionalGeneration")
    if found and not any(head in each for each in found for head in heads):
        raise ValueError(
            f"{name} does not generate text (architectures={shown(found)}, none of which names "
            f"{', '.join(heads[:2])} or {heads[2]}): the advisor models decoders only. Leave the key out if it is one"
        )


def _language_model(values: Config, notes: list[str]) -> tuple[str, Config]:
    """``model_type`` and keys of the language model inside, with what stands outside for it and defaults left out."""
    family = _text(values, "model_type") or "llama"
    if "text_config" in values:
        inside = mapping(values["text_config"], "text_config")
        shared = ["quantization_config", "tie_word_embeddings"]
        if not (inside.get("dtype") or inside.get("torch_dtype")):
            shared += ["dtype", "torch_dtype"]
        values = {key: values[key] for key in shared if key in values} | dict(inside)
        family = _text(values, "model_type") or (family if family == "gemma3" else "llama")
        notes.append("only the language model is counted (text_config): an image or audio tower comes on top")
    if family in ("gemma3", "gemma3_text"):
        return "gemma3_text", {**_GEMMA3, **values}
    return family, values


def _refuse(name: str, values: Config) -> None:
    for what, keys in _REFUSED.items():
        found = [key for key in keys if values.get(key) is True or values.get(key) not in (None, 0, 1, [], {})]
        if found:
            raise ValueError(
                f"{name} has {what} ({listed(f'{key}={shown(values[key])}' for key in found)}): the advisor "
                f"models dense decoders only"
            )
    kinds = values.get("layer_types")
    other = set() if kinds is None else set(texts(kinds, "layer_types")) - {"full_attention", "sliding_attention"}
    if other:
        raise ValueError(
            f"{name} has layers of a kind that the advisor has no model of (layer_types: {shown(sorted(other))})"
        )


def _size(values: Config, *keys: str) -> int:
    key = next((key for key in keys if key in values), None)
    if key is None:
        raise ValueError(f"the configuration has no {' or '.join(keys)}")
    return whole(values[key], key)


def _optional(values: Config, key: str, least: int = 1) -> int | None:
    value = values.get(key)
    return None if value is None else whole(value, key, least=least)


def _flag(values: Config, key: str, usual: bool = False) -> bool:
    value = values.get(key)
    return usual if value is None else flag(value, key)


def _text(values: Config, key: str) -> str:
    value = values.get(key)
    return "" if value is None else text(value, key)


def _mapping(values: Config, key: str) -> Config:
    value = values.get(key)
    return {} if value is None else mapping(value, key)


def _window(values: Config, family: str, layers: int) -> tuple[int | None, int]:
    """The window, and how many layers have it."""
    window = _optional(values, "sliding_window")
    kinds = None if values.get("layer_types") is None else layer_types(values["layer_types"], layers)
    if not _flag(values, "use_sliding_window", True) or window is None:
        return None, 0
    if kinds is not None:
        return window, kinds.count("sliding_attention")
    pattern = _optional(values, "sliding_window_pattern") or _optional(values, "_sliding_window_pattern")
    if pattern is None:
        pattern = {"gemma2": 2, "gemma3_text": 6}.get(family)
    if pattern:  # one layer in so many sees everything
        return window, layers - layers // pattern
    if family.startswith("qwen"):
        return window, max(layers - (_optional(values, "max_window_layers", 0) or layers), 0)
    return window, layers


def _dtype(values: Config) -> str:
    names = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "half": "fp16", "float": "fp32"}
    found = (_text(values, "dtype") or _text(values, "torch_dtype") or "bfloat16").removeprefix("torch.")
    if found not in names:
        raise ValueError(f"torch_dtype must be one of {', '.join(names)}, got {shown(found)}")
    return names[found]


def _kv_heads(values: Config, family: str, heads: int, usual: int | None, *, fixed: bool) -> int:
    if family == "gpt_bigcode":  # multi-query is the default of transformers' class
        return 1 if _flag(values, "multi_query", True) else heads
    return heads if fixed else kv_heads(_optional(values, "num_key_value_heads") or usual or heads, heads)


def _longest(values: Config, family: str, *, learned: bool) -> int | None:
    """Longest context in tokens, stretched by rope scaling as vLLM does it (``_get_and_verify_max_len``).

    ``max_position_embeddings`` already has the stretch in it with llama3 and longrope scaling, in Gemma 3, and where
    the original length is named beside. YaRN: the larger of it and original x factor, since those who switch it on as
    Qwen's model cards say leave ``max_position_embeddings`` as it was.
    """
    keys = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "max_seq_len")
    found = (_optional(values, key) for key in (("n_positions",) if learned else keys))
    configured = next((length for length in found if length), None)
    ropes = {key: _mapping(values, key) for key in ("rope_scaling", "rope_parameters")}
    key, rope = next(((key, rope) for key, rope in ropes.items() if rope), ("", {}))
    if configured is None or learned or family == "gemma3_text":
        return configured
    kind, factor = _text(rope, "rope_type") or _text(rope, "type"), rope.get("factor")
    if kind not in ("linear", "dynamic", "yarn") or factor is None:
        return configured
    if not 1 <= number(factor, f"factor in {key}") <= _LARGEST_STRETCH:
        raise ValueError(f"factor in {key} must be a number of at least 1, and at most 1,000; got {factor}")
    original = _optional(rope, "original_max_position_embeddings")
    if original and kind != "yarn":
        return configured
    return max(configured, int((original or configured) * factor))


def _precisions(values: Config, how: Config, given: str | None, notes: list[str]) -> tuple[str, str, str]:
    """Of weights, cache and activations; ``how`` is the ``quantization_config``, ``given`` what is asked for."""
    quantised = _weights_of(how)
    if how and quantised is None and given is None:
        raise ValueError(
            f"quantization_config is of a kind that is not known here "
            f"(quant_method={shown(how.get('quant_method'))}): give weight_precision=, one of {', '.join(ITEMSIZE)}"
        )
    activation = _dtype(values)
    weights = given or quantised or activation
    if given == "fp32":  # everything: engines have one type for what is not quantised
        activation = "fp32"
    if activation == "fp32" and weights != "fp32":
        # Engines' dtype=auto casts float32 checkpoints to 16 bits (vLLM: _resolve_auto_dtype in vllm/config/model.py,
        # to the platform's first type, bf16 on NVIDIA GPUs since Ampere; SGLang: its _get_and_verify_dtype, to fp16).
        activation = "fp16" if weights == "fp16" else "bf16"
    elif activation == "fp32" and given is None:
        notes.append(
            "counted in float32, as the configuration says; engines serve such a model in 16 bits: "
            "weight_precision='bf16' counts it so"
        )
    if quantised and weights != quantised:
        notes.append(f"weights counted as {weights}, where quantization_config says {quantised}")
    left = _left_alone(how)
    if left and ITEMSIZE.get(weights, 2) < 2:
        notes.append(
            f"quantization_config leaves out {len(left)} modules or patterns, first {shown(left[0])}: "
            f"counted as {weights}, too"
        )
    cache_fp8 = how.get("kv_cache_scheme") or _text(how, "kv_cache_quant_algo").upper() == "FP8"
    return weights, "fp8" if cache_fp8 else activation, activation


def _weights_of(how: Config) -> str | None:
    """Precision of the weights by a ``quantization_config``, of the usual kinds; None for another, or none."""
    method = _text(how, "quant_method")
    bits = how.get("bits") or how.get("w_bit")
    groups = mapping(how.get("config_groups") or {}, "config_groups in quantization_config")
    for name, group in groups.items():
        weights = group.get("weights") or {} if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            raise ValueError(
                f"config_groups in quantization_config must hold objects with an object weights, got "
                f"{name}: {shown(group)}"
            )
        bits = weights.get("num_bits", bits)
        if bits == 8:
            return "fp8" if weights.get("type") == "float" else "int8"
        if bits == 4:
            return "fp4" if weights.get("type") == "float" else "int4"
    if "fp8" in method or _text(how, "quant_algo").upper().startswith("FP8"):
        return "fp8"
    # Before the search for "fp4": bitsandbytes writes bnb_4bit_quant_type="fp4" beside load_in_8bit, too.
    if bits == 4 or how.get("load_in_4bit"):
        return "int4"
    if bits == 8 or how.get("load_in_8bit"):
        return "int8"
    return "fp4" if "fp4" in json.dumps(how, default=str).lower() else None


_NOT_CONVERTED = (
    *("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules", "llm_int8_skip_modules"),
    "skip_modules",
)
"""Names for the same thing: fp8, AWQ and fbgemm; compressed-tensors; vLLM; ModelOpt; bitsandbytes; HQQ."""
_NOT_IN_BLOCKS = re.compile("lm_head|embed|norm|vision|visual|multi_modal|audio")
"""Modules that are counted unquantised anyway, or not at all."""


def _left_alone(how: Config) -> list[str]:
    """Modules of the blocks, or patterns of them, that are not quantised."""
    names: list[str] = []
    for key in _NOT_CONVERTED:
        found = texts(how.get(key) or [], f"{key} in quantization_config")
        names += [each for each in found if not _NOT_IN_BLOCKS.search(each)]
    return names
