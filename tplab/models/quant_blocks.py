"""Which weights of a quantised checkpoint share a scale, and so what tensor parallelism may not cut. Pure.

A rank's share of a matrix must be whole groups: a scale belongs to ``inputs`` neighbouring weights of a row, or to a
block of ``outputs`` x ``inputs`` weights, and engines give each rank the scales of its own share. What is cut:

    columns  rows of q, k, v, gate and up, each for itself, in blocks of ``outputs``; k and v by whole heads
    rows     inputs of o (H·E/t) and down (I/t), in groups of ``inputs``

Engines refuse other shares, or compute nonsense. vLLM (0.6 to 0.24): "The input size is not aligned with the quantized
weight shape" (quantization/gptq.py, awq.py), "Weight input_size_per_partition = 14784 is not divisible by min_thread_k"
(utils/marlin_utils.py), "... is not divisible by weight quantization block_k" (utils/fp8_utils.py,
validate_fp8_block_shape; its pull request 52915, which would pad, is open), "Prequant BitsAndBytes models with tensor
parallelism is not supported" (bitsandbytes_loader.py). SGLang 0.4: the same check of blocks (its issue 3345), and text
that is garbage from GPTQ groups cut in two (auto-round's issue 643). TensorRT-LLM 0.6: scales of another shape than the
rank's (its issue 648). Padding the checkpoint before it is quantised is the way out that Qwen's documentation gives.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tplab.checks import ArgumentError, check_count
from tplab.models.keys import Config, mapping, text, texts
from tplab.shown import shown

ROLES: Mapping[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj"),
    "out": ("self_attn.o_proj",),
    "gate-up": ("mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj"),
    "down": ("mlp.down_proj",),
}
"""Matrices of a block, and how checkpoints call them."""
_SUPER_BLOCK = 256
"""Weights of a GGUF super-block (Q2_K to Q6_K, IQ4_XS; ggml/src/ggml-common.h, QK_K)."""
_WEIGHTS_ALONE = ("gptq", "gptq_marlin", "marlin", "compressed-tensors", "auto-round")
"""Methods whose integers are multiplied with 16-bit activations, unless their configuration quantises those."""
_USUAL = {"NVFP4": 16, "MXFP4": 32, "W4A16_AWQ": 128, "W4A8_AWQ": 128, "mxfp4": 32, "gguf": _SUPER_BLOCK}
"""Groups of algorithms (ModelOpt's ``quant_algo``) and methods whose configuration need not say them."""
_MARLIN, _MACHETE = 128, 64
"""Inputs of the smallest tile of the kernels for integers beside bf16: Marlin's (vLLM, marlin_utils.py:
GPTQ_MARLIN_MIN_THREAD_K), and Machete's, which has no groups of less than 128. "Failed to find a kernel ... 8256 is not
divisible by min_thread_k" (llm-compressor's issue 1489); AWQ falls back on kernels of its own."""
_NOT_CONVERTED = (
    *("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules", "llm_int8_skip_modules"),
    *("skip_modules", "exclude"),
)
"""Names for the same thing: fp8, AWQ and fbgemm; compressed-tensors; vLLM; ModelOpt; bitsandbytes; HQQ; Quark."""
_ELSEWHERE = re.compile("vision|visual|multi_modal|audio")
"""Modules outside the language model."""
_AROUND = re.compile(r"^.*\blayers\.(?=\d)")
"""What stands around the layers of a language model inside another: ``model.language_model.layers.``."""
_MOST_PATTERNS = 32
_MOST_GROUPS = 100
_MOST_GROUP = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantBlock:
    """Weights that share a scale, in some matrices of every block."""

    roles: tuple[str, ...]
    """Keys of ``ROLES``: the matrices that are quantised so."""
    inputs: int = 1
    """Neighbouring weights of one row that share a scale; 1: a row has one scale, or is not cut into any."""
    outputs: int = 1
    """Rows that do."""
    tile: int = 1
    """Inputs of a rank are a multiple of this besides, as kernels want them."""
    whole: bool = False
    """Whether the checkpoint cannot be cut at all (bitsandbytes: scales of the flattened matrix)."""
    what: str
    """What this comes from, in words."""


def not_converted(how: Config) -> list[str]:
    """Modules, or patterns of them, that a ``quantization_config`` leaves as they are."""
    names: list[str] = []
    for key in _NOT_CONVERTED:
        names += texts(how.get(key) or [], f"{key} in quantization_config")
    dynamic = how.get("dynamic")  # GPTQModel: "-:pattern" is left out
    if isinstance(dynamic, Mapping):
        names += [f"re:{name[2:]}" for name in map(str, dynamic) if name.startswith("-:")]
    return names


def quant_blocks(how: Config, num_layers: int, precision: str, act: str) -> tuple[QuantBlock, ...]:
    """What a ``quantization_config`` says of groups and blocks; empty where a whole row or matrix has one scale.

    Args:
        how: the ``quantization_config``; empty where there is none.
        num_layers: of the model; names of modules have their layer in them.
        precision: of the weights, a key of ``ITEMSIZE``.
        act: precision of activations, since other kernels go with bf16.

    Raises:
        ValueError: a group or block that is no whole number of at least 1, named.
    """
    method = text(how, "quant_method").lower()
    ignored, made = _sorted_out(not_converted(how)), []
    alone = method in _WEIGHTS_ALONE and not re.search(r'"input_activations": *\{', json.dumps(how, default=str))
    by_marlin = alone and precision in ("int4", "int8")
    kept = {role: _quantised(role, num_layers, ignored) for role in ROLES}
    for inputs, outputs, targets, what in _schemes(how, method):
        wanted = _sorted_out(targets)
        # What cannot be told is taken as quantised: fewer degrees, but none that engines refuse.
        of_all = (
            not targets or "Linear" in targets or len(wanted[1]) == _MOST_PATTERNS or not all(map(_short, wanted[1]))
        )
        roles = tuple(role for role, names in kept.items() if names and (of_all or _matches(names, wanted)))
        tile = (_MACHETE if inputs == 1 else _MARLIN) if by_marlin and act == "bf16" else 1
        whole = method == "bitsandbytes"
        if roles and (whole or max(inputs, outputs, tile) > 1):
            made.append(QuantBlock(roles=roles, inputs=inputs, outputs=outputs, tile=tile, whole=whole, what=what))
    return tuple(made)


def _schemes(how: Config, method: str) -> Iterator[tuple[int, int, list[str], str]]:
    """Inputs and outputs that share a scale, the modules that it is said of (none: all), and where it is said."""
    groups = mapping(how.get("config_groups") or {}, "config_groups in quantization_config")
    if len(groups) > _MOST_GROUPS:
        rule = f"must be at most {_MOST_GROUPS}, of modules that are quantised alike"
        raise ArgumentError("config_groups in quantization_config", len(groups), rule)
    for name, group in groups.items():
        where = f"config_groups.{name} in quantization_config"
        group = mapping(group, where)
        weights = mapping(group.get("weights") or {}, f"weights in {where}")
        targets = group.get("targets") or []
        targets = texts([targets] if isinstance(targets, str) else targets, f"targets in {where}")
        block = _block(weights.get("block_structure"), f"block_structure in {where}")
        if block is not None:
            yield block[1], block[0], targets, f"{method or 'compressed-tensors'}, blocks of {block[0]}x{block[1]}"
        else:
            size = _group(weights.get("group_size"), f"group_size in {where}")
            yield size, 1, targets, f"{method or 'compressed-tensors'}, group_size {size}"
    if groups:
        return
    block = _block(how.get("weight_block_size"), "weight_block_size in quantization_config")
    algorithm = text(how, "quant_algo").upper()
    if block is None and algorithm.startswith("FP8_PB"):
        block = (128, 128)
    if block is not None:
        yield block[1], block[0], [], f"{method or 'fp8'}, weight_block_size {block[0]}x{block[1]}"
        return
    inner = how.get("quant_config")  # HQQ
    params = inner.get("weight_quant_params") if isinstance(inner, Mapping) else None
    quark = how.get("global_quant_config")
    quark = quark.get("weight") if isinstance(quark, Mapping) else None
    ao = how.get("quant_type")  # torchao; before its objects, names and arguments
    ao = ao.get("default") if isinstance(ao, Mapping) else {"_data": how.get("quant_type_kwargs")}
    ao = ao.get("_data") if isinstance(ao, Mapping) else None
    found = next((each for each in (params, quark, ao) if isinstance(each, Mapping)), how)
    said = [found[key] for key in ("group_size", "q_group_size") if found.get(key) is not None]
    usual = _USUAL.get(algorithm) or _USUAL.get(method)
    group = _group(said[0] if said else usual, "group_size in quantization_config")
    packed = 8 if method == "awq" else 1  # eight outputs in one 32-bit word
    whole = method == "bitsandbytes"
    yield group, packed, [], method if whole else f"{method or algorithm.lower()}, group_size {group}"


def _group(size: Any, name: str) -> int:
    """-1 and 0 stand for a whole row."""
    return 1 if size in (None, -1, 0) else check_count(name, size, least=1, most=_MOST_GROUP)


def _block(size: Any, name: str) -> tuple[int, int] | None:
    """Outputs and inputs of a block, from a list of two, or ``"128x128"``."""
    if size is None:
        return None
    parts = size.lower().split("x") if isinstance(size, str) else size
    if not isinstance(parts, list | tuple) or len(parts) != 2:
        raise ValueError(f"{name} must be two whole numbers, outputs and inputs; got {shown(size)}")
    numbers: list[Any] = [int(each) if re.fullmatch(r" *\d{1,7} *", str(each)) else each for each in parts]
    outputs, inputs = (check_count(name, number, least=1, most=_MOST_GROUP) for number in numbers)
    return outputs, inputs


def _sorted_out(patterns: list[str]) -> tuple[set[str], list[str]]:
    """Names of modules of the blocks, and patterns of them."""
    of_blocks = [pattern for pattern in patterns if not _ELSEWHERE.search(pattern)]
    wild = [pattern for pattern in of_blocks if pattern.startswith("re:") or "*" in pattern]
    return {_AROUND.sub("model.layers.", pattern) for pattern in of_blocks} - set(wild), wild[:_MOST_PATTERNS]


def _quantised(role: str, num_layers: int, ignored: tuple[set[str], list[str]]) -> list[str]:
    """Matrices of this role that are not left out, of the layers at the ends, which often are, and in the middle."""
    kept = []
    for layer in sorted({0, 1, num_layers // 2, num_layers - 2, num_layers - 1} & set(range(num_layers))):
        names = [f"model.layers.{layer}.{module}" for module in ROLES[role]]
        split = [name for name in names if "qkv" not in name and "gate_up" not in name]
        fused = [name for name in names if name not in split]
        kept += [name for name in split if not _matches([name, *fused], ignored)]
    return kept


def _matches(names: list[str], patterns: tuple[set[str], list[str]]) -> bool:
    plain, wild = patterns
    for name in names:
        parts = name.split(".")  # "self_attn" and "q_proj" stand for all below them, or so called
        runs = {".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)}
        if plain & (runs - {"model", "layers", "model.layers"}):
            return True
    return any(
        _found(pattern, f"{around}{name}") for pattern in wild for name in names for around in ("", "language_model.")
    )


def _short(pattern: str) -> bool:
    """Whether a pattern is soon tried, whatever the name."""
    return len(pattern) <= 200 and len(re.findall(r"[*+{?]", pattern)) <= 4 and not re.search(r"\)[*+{]", pattern)


def _found(pattern: str, name: str) -> bool:
    """Whether a regular expression (``re:``) or one with ``*`` fits; one that could take long never does."""
    if not _short(pattern):
        return False
    if not pattern.startswith("re:"):
        pattern = ".*".join(map(re.escape, pattern.split("*")))
    pattern = pattern.removeprefix("re:")
    try:
        return re.match(pattern, name) is not None
    except re.error:
        return False
