"""A ``config.json`` as an engine serves the model: by name or file, the language model inside, in which precisions.

What the keys mean is read in ``hf``; here is what the advisor needs besides.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tplab.checks import ArgumentError
from tplab.models.hf import described, file_of, object_in
from tplab.models.keys import REFUSED, Config, Keys, mapping, text, texts
from tplab.models.presets import HUGGING_FACE, MODELS
from tplab.models.spec import ITEMSIZE, PRECISIONS, ModelConfig, ModelSpec
from tplab.shown import check_depth, listed, nearest, shown

_LONGEST_NAME = 200


def read_spec(
    source: "str | os.PathLike[str] | Config | ModelConfig",
    *,
    weight_precision: str | None = None,
    kv_precision: str | None = None,
) -> ModelSpec:
    """See :meth:`ModelSpec.from_config`."""
    notes: list[str] = []
    if isinstance(source, ModelConfig):
        made = {each.name: getattr(source, each.name) for each in fields(ModelConfig)}
        quantised: Config = {}
        folder = None
    else:
        values, where, name, folder = _load(source)
        check_depth(values, where)
        _refuse_encoders(mapping(values, where), where)
        family, values = _language_model(values, notes)
        _refuse(values, where)
        keys = Keys(values, family, where, core=family == "gemma3_text")
        made = described(keys) | {"name": name}
        notes += keys.notes
        quantised = mapping(values.get("quantization_config") or {}, "quantization_config", keys.at)
    return ModelSpec(
        **made,
        **_precisions(quantised, made["dtype"], weight_precision, kv_precision, notes),
        source=folder,
        notes=tuple(notes),
    )


def _load(source: "str | os.PathLike[str] | Config") -> tuple[Config, str, str, str | None]:
    """Contents, what stands before errors, a name, and what an engine is to load."""
    if isinstance(source, Mapping):
        return source, "the config", _name(source, "name") or _name(source, "_name_or_path") or "model", None
    as_name = str(source).strip().lower().replace("_", "-").replace(" ", "-")
    if as_name in MODELS:
        return MODELS[as_name], as_name, as_name, HUGGING_FACE.get(as_name)
    path = file_of(source)
    try:
        values = object_in(path)
    except FileNotFoundError:
        if path.suffix == ".json" or len(path.parts) > 2:
            raise ValueError(f"there is no file {path}") from None
        raise ValueError(f"no model preset or file is called {str(source)!r}: {nearest(as_name, MODELS)}") from None
    folder = path.parent if path.parent.name else path.parent.resolve()  # not "."
    return values, str(path), _name(values, "_name_or_path") or path.resolve().parent.name, str(folder)


def _name(values: Config, key: str) -> str | None:
    found = values.get(key)  # only a name, and not worth an error
    return found[-_LONGEST_NAME:] if isinstance(found, str) else None


def _refuse_encoders(values: Config, where: str) -> None:
    found = values.get("architectures") or []
    found = texts([found] if isinstance(found, str) else found, "architectures", f"{where}: ")
    heads = ("CausalLM", "LMHead", "ForConditionalGeneration")
    if found and not any(head in each for each in found for head in heads):
        raise ValueError(
            f"{where} does not generate text (architectures={shown(found)}, none of which names "
            f"{', '.join(heads[:2])} or {heads[2]}): the advisor models decoders only. Leave the key out if it is one"
        )


def _language_model(values: Config, notes: list[str]) -> tuple[str, Config]:
    """``model_type`` and keys of the language model inside, with what stands outside for it."""
    family = text(values, "model_type") or "llama"
    if "text_config" in values:
        inside = mapping(values["text_config"], "text_config")
        shared = ["quantization_config", "tie_word_embeddings"]
        if not (inside.get("dtype") or inside.get("torch_dtype")):
            shared += ["dtype", "torch_dtype"]
        values = {key: values[key] for key in shared if key in values} | dict(inside)
        family = text(values, "model_type") or (family if family == "gemma3" else "llama")
        notes.append("only the language model is counted (text_config): an image or audio tower comes on top")
    return "gemma3_text" if family == "gemma3" else family, values


def _refuse(values: Config, where: str) -> None:
    for what, keys in REFUSED.items():
        found = [key for key in keys if values.get(key) is True or values.get(key) not in (None, 0, 1, [], {})]
        if found:
            raise ValueError(
                f"{where} has {what} ({listed(f'{key}={shown(values[key])}' for key in found)}): the advisor "
                f"models dense decoders only"
            )


def _precisions(
    how: Config, dtype: str | None, weights: str | None, cache: str | None, notes: list[str]
) -> dict[str, Any]:
    """Fields of a :class:`~tplab.models.spec.ModelSpec`: precisions of weights, cache and activations, and how the
    checkpoint is quantised.

    Args:
        how: the ``quantization_config``; empty where there is none.
        dtype: type of the numbers that are not quantised, where the configuration says so.
        weights, cache: what is asked for.
        notes: what was assumed is added.
    """
    quantised, given = _weights_of(how), weights
    if how and quantised is None and given is None:
        method = shown(how.get("quant_method"))
        rule = f"must be one of {', '.join(ITEMSIZE)} for a quantization_config not known here (quant_method={method})"
        raise ArgumentError("weight_precision", given, rule)
    activation = PRECISIONS[dtype or "bfloat16"]
    weights = given or quantised or activation
    if given == "fp32":  # everything: engines have one type for what is not quantised
        activation = "fp32"
    elif dtype is None:
        notes.append("the configuration names no dtype: bf16 is assumed")
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
    cache_fp8 = how.get("kv_cache_scheme") or text(how, "kv_cache_quant_algo").upper() == "FP8"
    return {
        "weight_precision": weights,
        "kv_precision": cache or ("fp8" if cache_fp8 else activation),
        "activation_precision": activation,
        "quant_method": text(how, "quant_method") or text(how, "quant_algo") or "unknown" if how else None,
    }


def _weights_of(how: Config) -> str | None:
    """Precision of the weights by a ``quantization_config``, of the usual kinds; None for another, or none."""
    method = text(how, "quant_method")
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
    if "fp8" in method or text(how, "quant_algo").upper().startswith("FP8"):
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
