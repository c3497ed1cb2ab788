"""Whether a ``config.json`` is of a mixture of experts, whatever its keys are called and wherever they stand.

Read as dense, such a model is wrong by a factor of ten, and nothing in its size gives it away. So everything that names
experts, routers or a MoE counts, in any nested object but towers; and a family is known by its name, since a file need
not repeat what its class takes for the number of experts. Dense is what the family's class says is dense. Pure: no
torch.

Sources: configuration and modelling classes of transformers 5.23; for Hunyuan, Grok-1, Arctic and MiniCPM the code and
files beside the checkpoints on Hugging Face.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tplab.models.keys import Config, texts
from tplab.shown import listed, shown

_COUNT = re.compile(r"(^|_)(num|n)_(\w+_)?experts?$|(^|_)experts?_num$")
"""Keys that say how many experts there are."""
_BESIDE = re.compile(r"shared|zero|group|_per_|activated|active|selected|top_?k")
"""Keys that say how many of them, or what else there is."""
_TELLS = re.compile(r"expert|router|(^|_)moe(_|$)", re.IGNORECASE)
_WITHOUT_EFFECT = ("router_aux_loss_coef", "router_z_loss_coef", "router_jitter_noise", "output_router_logits")
"""Settings of training that files of dense models have, too."""
_ELSEWHERE = re.compile(
    r"vision|visual|image|audio|speech|video|talker|code2wav|token2wav|quantization|compression|rope|lora|label"
)
"""Objects whose experts are not the language model's."""
_NAMED = re.compile(r"moe|mixtral|mixture_?of_?experts|gptoss|grok|dbrx|llama4|deepseekv[234]|kimik2", re.IGNORECASE)
"""Marks of such a family in a ``model_type`` or an architecture, both without ``_`` and ``-``."""
_OTHERS = frozenset(
    """
    arctic aria aria_text axk1 axk2 bailing_hybrid deepseek_v32 flex_olmo hy_v3 hy_v4 kimi_linear laguna longcat_flash
    mellum mimo_v2_flash minimax minimax_m1 minimax_m2 minimax_text_01 mistral4 openai_privacy_filter qwen3_next
    qwen4_exp_text solar_open step3 step3_text step3p5 zaya kimi_k25 deepseek_vl_v2
    """.split()  # noqa: SIM905
)
"""Families of nothing else, whose names do not say so."""
_DENSE: Mapping[str, tuple[str, int | None, str]] = {
    "qwen2_moe": ("num_experts", 0, "qwen2"),
    "qwen3_moe": ("num_experts", 0, "qwen3"),
    "granitemoehybrid": ("num_local_experts", 0, "granite"),
    "hunyuan": ("num_experts", 1, "hunyuan_v1_dense"),
    "deepseek": ("n_routed_experts", None, "llama"),
}
"""Families with dense members: the key that says so, which the file must have, the most that it may be there, and what
the member then is."""
_DEEPEST = 8


def experts_in(values: Config, inside: Config, family: str, where: str) -> str:
    """What betrays a mixture of experts, in words; empty where the model is dense.

    Args:
        values: the file, towers and all.
        inside: the keys of the language model in it.
        family: its ``model_type``.
        where: what stands before errors.
    """
    found = dict(_walk(values)) | dict(_walk(inside))
    if _is_dense(found, family):
        return ""
    counts = {name: value for name, value in found.items() if _COUNT.search(name) and not _BESIDE.search(name)}
    many = [name for name, value in counts.items() if _most(value) > 1]
    if not many and not any(value is not None for value in counts.values()):
        many = [name for name, value in _walk(inside) if name not in counts and _is_active(value)]
    if many:
        return listed(f"{name}={shown(found[name])}" for name in many)
    if _is_named(family):
        return f"model_type={shown(family)}"
    for each in (values, inside):
        classes = each.get("architectures") or []
        classes = texts([classes] if isinstance(classes, str) else classes, "architectures", f"{where}: ")
        if named := [name for name in classes if _is_named(name)]:
            return f"architectures={shown(named)}"
    return ""


def dense_member(values: Config, family: str) -> tuple[str, Config]:
    """The family and the keys of a dense member of a family of experts; of any other file as they are."""
    if not _is_dense(values, family):
        return family, values
    if family == "granitemoehybrid":  # whose one expert that is left is the shared one
        kinds = values.get("layer_types") or ["mamba"]  # left out: the class's
        if any(kind not in ("attention", "full_attention") for kind in texts(kinds, "layer_types")):
            return family, values
        shared = {"intermediate_size": values.get("shared_intermediate_size")}
        idle = ("layer_types", "mamba_")  # files name sizes of the layers that it has not
        values = {name: value for name, value in values.items() if not name.startswith(idle)} | shared
    return _DENSE[family][2], values


def _is_dense(values: Config, family: str) -> bool:
    if family not in _DENSE:
        return False
    key, most, _ = _DENSE[family]
    value = values.get(key, values.get("num_local_experts", ""))  # as transformers 5 writes some of these keys
    return value is most if most is None or value is None else isinstance(value, int) and value <= most


def _walk(values: Config, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every key with something of experts, of the file and of the objects in it."""
    for name, value in values.items():
        if not isinstance(name, str):
            continue
        if _TELLS.search(name) and name not in _WITHOUT_EFFECT:
            yield name, value
        if isinstance(value, Mapping) and depth < _DEEPEST and not _ELSEWHERE.search(name):
            yield from _walk(value, depth + 1)


def _most(value: Any) -> float:
    """The largest number of a value: files have one, or one per layer. What is no number is taken for many."""
    numbers = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return max((each if isinstance(each, int | float) else math.inf for each in numbers), default=0)


def _is_active(value: Any) -> bool:
    return value is True or value not in (None, 0, 1, "", [], {}, ())


def _is_named(name: str) -> bool:
    return name in _OTHERS or _NAMED.search(re.sub(r"[_-]", "", name)) is not None
