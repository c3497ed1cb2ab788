"""Types of numbers: how models are computed, how engines keep their weights and cache, and bytes of each.

Which ones an engine serves a checkpoint in follows from its ``dtype`` and ``quantization_config``, and from what is
asked for.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from tplab.checks import ArgumentError, check_one_of
from tplab.models.keys import Config, mapping, text
from tplab.models.quant_blocks import QuantBlock as QuantBlock
from tplab.models.quant_blocks import not_converted, quant_blocks
from tplab.shown import shown

DType: TypeAlias = Literal["float32", "bfloat16", "float16"]
PRECISIONS: Mapping[str, str] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""torch's names of the types that models are computed in, and the advisor's."""
_PER_GROUP = {"fp4": 1.0, "int4": 2.5}
"""Bytes that each group of 4-bit numbers has besides: an 8-bit scale; a 16-bit scale and a 4-bit zero point."""
ITEMSIZE: Mapping[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "fp4": 0.5 + _PER_GROUP["fp4"] / 16,
    "int4": 0.5 + _PER_GROUP["int4"] / 128,
}
"""Bytes per number. fp8 and int8 leave out their scales (one per channel or tensor: under 0.1 %). fp4 is counted in
groups of 16 (NVFP4), int4 in groups of 128 (AWQ's and GPTQ's usual one), where the checkpoint does not say others."""


def itemsize(dtype: str | None) -> int:
    """Bytes per number. Raises ``ValueError`` for a type that ``tplab.models`` does not compute in."""
    check_one_of("dtype", dtype, PRECISIONS)
    return int(ITEMSIZE[PRECISIONS[str(dtype)]])


def scaled_itemsize(precision: str, blocks: Sequence[QuantBlock]) -> float:
    """Bytes per weight of a checkpoint with such groups, its scales and zero points included."""
    group = next((block.inputs for block in blocks if block.inputs > 1 and not block.whole), None)
    if group is None or precision not in _PER_GROUP:
        return ITEMSIZE[precision]
    return 0.5 + _PER_GROUP[precision] / group


_METHODS = {
    **dict.fromkeys(("load_in_4bit", "load_in_8bit"), "bitsandbytes"),
    **{"w_bit": "awq", "desc_act": "gptq"},
}
"""Keys, and the method that has them."""


def quantisation(values: Config, where: str) -> Config:
    """The ``quantization_config`` of a file, as vLLM and transformers look for it; empty where there is none.

    llm-compressor's first releases called it ``compression_config``; ModelOpt's own has all in ``quantization``; and
    files from before there was a choice do not name their method.
    """
    name = next((name for name in ("quantization_config", "compression_config") if values.get(name)), None)
    how = {} if name is None else mapping(values[name], name, where)
    if isinstance(inner := how.get("quantization"), Mapping):
        how = {"quant_method": "modelopt", **how, **inner}
    if how and not how.get("quant_method"):
        method = next((method for key, method in _METHODS.items() if how.get(key) is not None), None)
        how = {**how, "quant_method": method} if method else how
    return how


def precisions(
    how: Config, num_layers: int, dtype: str | None, weights: str | None, cache: str | None, notes: list[str]
) -> dict[str, Any]:
    """Fields of a ``ModelSpec``: precisions of weights, cache and activations, and how the checkpoint is quantised.

    Args:
        how: the ``quantization_config``; empty where there is none.
        num_layers: of the model.
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
            "with bf16 as the precision of its weights it is counted so"
        )
    if quantised and weights != quantised:
        notes.append(f"weights counted as {weights}, where quantization_config says {quantised}")
    if len(several := _of_groups(how)) > 1:
        notes.append(
            f"config_groups in quantization_config hold {' and '.join(several)} weights: all are counted as {weights}"
        )
    left = [name for name in not_converted(how) if not _NOT_IN_BLOCKS.search(name)]
    if left and ITEMSIZE.get(weights, 2) < 2:
        notes.append(
            f"quantization_config leaves out {len(left)} modules or patterns, first {shown(left[0])}: "
            f"counted as {weights}, too"
        )
    if how.get("desc_act") is True and how.get("group_size") not in (None, -1):
        notes.append(
            "activation order (desc_act): with tensor parallelism every rank keeps all scales of what is cut by rows, "
            "and only Marlin's kernels take it"
        )
    ours = bool(how) and quantised in (None, weights)
    cache_fp8 = how.get("kv_cache_scheme") or text(how, "kv_cache_quant_algo").upper() == "FP8"
    return {
        "weight_precision": weights,
        "kv_precision": cache or ("fp8" if cache_fp8 else activation),
        "activation_precision": activation,
        "quant_method": text(how, "quant_method") or text(how, "quant_algo") or "unknown" if how else None,
        "quant_blocks": quant_blocks(how, num_layers, weights, activation) if ours else (),
    }


_NAMED = {"int4": "int4", "int8": "int8", "float8": "fp8", "fp8": "fp8", "fp4": "fp4"}
"""Parts of names of types, and what weights are: torchao names activations, too, which have more bits."""


def _said_by(how: Config, method: str) -> str:
    """How Quark and torchao call the type of the weights; empty for others."""
    if method == "torchao":
        return json.dumps(how.get("quant_type"), default=str)[:2000].lower()
    quark = how.get("global_quant_config")
    weight = quark.get("weight") if method == "quark" and isinstance(quark, Mapping) else None
    return str(weight.get("dtype")).lower() if isinstance(weight, Mapping) else ""


def _of_groups(how: Config) -> list[str]:
    """Precisions of the weights in ``config_groups``, each once."""
    kinds = []
    for name, group in mapping(how.get("config_groups") or {}, "config_groups in quantization_config").items():
        weights = group.get("weights") or {} if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            raise ValueError(
                f"config_groups in quantization_config must hold objects with an object weights, got "
                f"{name}: {shown(group)}"
            )
        if weights.get("num_bits") in (4, 8):
            kinds.append(f"{'fp' if weights.get('type') == 'float' else 'int'}{weights['num_bits']}")
    return list(dict.fromkeys(kinds))


def _weights_of(how: Config) -> str | None:
    """Precision of the weights by a ``quantization_config``, of the usual kinds; None for another, or none."""
    method = text(how, "quant_method")
    hqq = how.get("quant_config")
    params = hqq.get("weight_quant_params") if isinstance(hqq, Mapping) else None
    bits = how.get("bits") or how.get("w_bit") or (params.get("nbits") if isinstance(params, Mapping) else None)
    if grouped := _of_groups(how):
        return grouped[0]
    if kind := next((kind for name, kind in _NAMED.items() if name in _said_by(how, method)), None):
        return kind
    if "fp8" in method or text(how, "quant_algo").upper().startswith("FP8"):
        return "fp8"
    # Before the search for "fp4": bitsandbytes writes bnb_4bit_quant_type="fp4" beside load_in_8bit, too.
    if bits == 4 or how.get("load_in_4bit") or text(how, "quant_algo").upper().startswith("W4A"):
        return "int4"
    if bits == 8 or how.get("load_in_8bit"):
        return "int8"
    return "fp4" if "fp4" in json.dumps(how, default=str).lower() else None


_NOT_IN_BLOCKS = re.compile("lm_head|embed|norm|vision|visual|multi_modal|audio")
"""Modules that are counted unquantised anyway, or not at all."""
