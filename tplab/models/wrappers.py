"""The language model inside a model of images, sound or both: where its keys stand, and which class reads them.

Nested, ``text_config`` and its like hold only what differs from the defaults of a class, which they may not even name:
then it is the one of the wrapper. Flat, as files from before the towers had objects of their own, the wrapper's name
stands for that of its language model. Pure: no torch.

Sources: configuration classes of transformers 5.23 (``sub_configs`` and what ``__post_init__`` makes of a missing
``model_type``), with which the tests compare; for models with code of their own, the files beside their checkpoints on
Hugging Face.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from tplab.checks import ArgumentError
from tplab.models.families import FAMILIES
from tplab.models.keys import Config, Family, Keys, mapping, text, texts
from tplab.shown import listed, shown

_INSIDE = (
    *("thinker_config", "text_config", "llm_config", "language_config", "language_model_config", "lm_config"),
    *("llm_cfg", "vlm_config", "decoder_config", "llm", "decoder"),
)
"""Objects that hold a language model, or another wrapper of one."""
_NAMED_ELSEWHERE = ("text_model_id", "language_model_path", "llm_path", "base_model_name_or_path")
"""Keys of files that say where their language model is, and not what it is: Ultravox, adapters of LoRA."""
_SHARED = ("quantization_config", "compression_config", "tie_word_embeddings")
"""Keys of the wrapper that are meant for the language model where it has none of its own."""
_TOWER = re.compile(r"vision|visual|image|img_|audio|speech|video|vq_|talker|2wav|encoder|vit_|codec|qformer|perceiver")
"""Names of objects that are no language model."""
_TOWER_NAMES = ("mm_vision_tower", "vision_tower", "mm_audio_tower", "speech_encoder")
"""Keys that name a tower, and do not describe it."""
_TEXT_CLASS: Mapping[str, str] = {
    wrapper: family
    for family, wrappers in {
        "llama": "llava llava_next llava_next_video idefics3 smolvlm video_llava vipllava perception_lm voxtral glmasr "
        "deepseek_vl deepseek_vl_hybrid janus multi_modality internvl_chat",
        "qwen2": "audioflamingo3 musicflamingo fast_vlm got_ocr2 internvl llava_onevision ovis ovis2 pp_chart2table "
        "qwen2_audio vibevoice vibevoice_asr video_llama_3",
        "qwen3": "fun_asr_nano lighton_ocr moss_transcribe_diarize qianfan_ocr qwen3_asr",
        "mistral": "idefics2 mistral3 pixtral",
        "gemma": "paligemma",
        "gemma3_text": "gemma3 shieldgemma2",
        "cohere2": "aya_vision cohere2_vision",
        "granite": "granite_speech granite_speech_plus",
        "opt": "blip-2 instructblip instructblipvideo",
        "persimmon": "fuyu",
        "exaone4": "exaone4_5",
        "qwen2_vl_text": "qwen2_vl",
        "qwen2_5_vl_text": "qwen2_5_vl",
        "qwen2_5_omni_text": "qwen2_5_omni qwen2_5_omni_thinker",
        "qwen3_vl_text": "qwen3_vl",
        "glm4v_text": "glm4v glm46v",
        "glm_ocr_text": "glm_ocr",
        "paddleocr_vl_text": "paddleocr_vl",
        "voxtral_realtime_text": "voxtral_realtime",
        "emu3_text_model": "emu3",
        "granite4_vision_text": "granite4_vision",
        "granite_docling_text": "granite_docling",
        "hunyuan_vl_text": "hunyuan_vl",
        "hyperclovax": "hyperclovax_vision_v2",
    }.items()
    for wrapper in wrappers.split()
}
"""``model_type`` of a wrapper -> of its language model, where the file does not name it."""
_FLAT: Mapping[str, str] = {
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "phi3_v": "phi3",
    "phi4mm": "phi3",
    "phi4_multimodal": "phi3",
    "llava": "llama",
    "llava_llama": "llama",
    "llava_llama3": "llama",
    "llava_qwen": "qwen2",
    "llava_qwen2": "qwen2",
    "llava_mistral": "mistral",
    "llava_gemma": "gemma",
    "llava_phi": "phi",
    "llava_phi3": "phi3",
    "bunny-llama": "llama",
    "bunny-qwen2": "qwen2",
    "bunny-phi": "phi",
    "bunny-phi3": "phi3",
    "bunny-stablelm": "stablelm",
    "mplug_owl2": "llama",
    "internlmxcomposer2": "internlm2",
    "internlm2_vl": "internlm2",
    "kimi_audio": "qwen2",
    "fuyu": "persimmon",
    "minicpmo": "qwen2",
    "videollama2_qwen2": "qwen2",
    "videollama3_qwen2": "qwen2",
}
"""``model_type`` of a flat wrapper -> of its language model."""
_OWN_CODE = ("internlm", "internlm2", "qwen", "chatglm", "minicpm", "baichuan", "Yi", "orion", "exaone", "phi-msft")
"""Families whose defaults are not known, only what their files say."""
_MINICPMV = ((4.5, "qwen3"), (4.0, "llama"), (2.6, "qwen2"), (2.5, "llama"))
"""Flat MiniCPM-V: from which ``version`` on, and the language model."""
_RENAMED = {"gemma3": "gemma3_text", "qwen2_vl": "qwen2_vl_text", "qwen2_5_vl": "qwen2_5_vl_text"}
"""What a language model inside is called in some files."""
_MERGED: Mapping[str, Config] = {
    "voxtral": {"vocab_size": 131072, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 30,
                "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072, "rope_theta": 1e8},
    "glmasr": {"vocab_size": 59264, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
               "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 8192},
    "qwen3_asr": {"tie_word_embeddings": True},
    "fun_asr_nano": {"tie_word_embeddings": True},
}  # fmt: skip
"""Wrappers -> what they take for keys of the language model that are left out, other than its class does."""
_VL: dict[str, Any] = {
    "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    "vocab_size": 152064, "intermediate_size": 29568, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
    "rope_theta": 1e6, "sliding_window": 4096, "max_window_layers": 80,
}  # fmt: skip
_GLM4V: dict[str, Any] = {
    "num_hidden_layers": 40, "num_key_value_heads": 2, "vocab_size": 151552, "intermediate_size": 13696,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
}  # fmt: skip
_BIASES = {"attention_bias": False, "mlp_bias": False}
TEXT_FAMILIES: Mapping[str, Family] = {
    "qwen2_vl_text": Family(defaults=_VL, qkv_bias=True, switched_window=True),
    "qwen2_5_vl_text": Family(defaults=_VL, qkv_bias=True, switched_window=True),
    "qwen2_5_omni_text": Family(
        defaults=_VL | {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
                        "num_key_value_heads": 4, "intermediate_size": 18944, "rms_norm_eps": 1e-6,
                        "max_window_layers": 28},
        qkv_bias=True, switched_window=True,
    ),
    "qwen3_vl_text": Family(
        defaults={"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "head_dim": 128,
                  "max_position_embeddings": 128000, "rope_theta": 5e5, "attention_bias": False},
        qk_norm=True,
    ),
    "glm4v_text": Family(defaults=_GLM4V, norms=4, qkv_bias=True, out_bias=False, mlp_bias=False),
    "glm_ocr_text": Family(
        defaults=_GLM4V | {"hidden_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16,
                           "num_key_value_heads": 8, "vocab_size": 59392, "intermediate_size": 4096,
                           "max_position_embeddings": 131072},
        norms=4, qkv_bias=False, out_bias=False, mlp_bias=False,
    ),
    "paddleocr_vl_text": Family(
        defaults={"hidden_size": 1024, "num_hidden_layers": 18, "num_attention_heads": 16, "num_key_value_heads": 2,
                  "head_dim": 128, "vocab_size": 103424, "intermediate_size": 3072, "rms_norm_eps": 1e-5,
                  "max_position_embeddings": 131072, "rope_theta": 5e5, "tie_word_embeddings": True,
                  "use_bias": False},
        qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias",
    ),
    "hunyuan_vl_text": Family(
        defaults={"num_key_value_heads": 32, "vocab_size": 290943, "rms_norm_eps": 1e-5, "attention_bias": False,
                  "tie_word_embeddings": True},
        mlp_bias=False, qk_norm=True,
    ),
    "hyperclovax": Family(defaults=_BIASES | {"num_key_value_heads": 32}, norms=4),
    "granite4_vision_text": Family(defaults=_BIASES | {"num_key_value_heads": 32}),
    "granite_docling_text": Family(
        defaults=_BIASES | {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
                            "num_key_value_heads": 4, "vocab_size": 133800, "intermediate_size": 2048,
                            "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    ),
    # Every layer has 64·D more, of a norm that follows the delay.
    "voxtral_realtime_text": Family(
        defaults={"hidden_size": 3072, "num_hidden_layers": 26, "num_key_value_heads": 8, "head_dim": 128,
                  "intermediate_size": 9216, "vocab_size": 131072, "sliding_window": 8192, "rope_theta": 1e6,
                  "max_position_embeddings": 131072, "tie_word_embeddings": True},
        qkv_bias=False, out_bias=False, mlp_bias=False,
    ),
    "emu3_text_model": Family(
        defaults=_BIASES | {"num_key_value_heads": 8, "vocab_size": 184622, "intermediate_size": 14336,
                            "max_position_embeddings": 9216, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
    ),
    "molmo2_text": Family(
        defaults={"num_hidden_layers": 36, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
                  "intermediate_size": 12288, "max_position_embeddings": 36864, "qkv_bias": False,
                  "use_qk_norm": True},
        qkv_bias="qkv_bias", out_bias=False, mlp_bias=False, qk_norm="use_qk_norm",
    ),
    "molmo": Family(
        defaults={"qkv_bias": True, "attention_layer_norm": False},
        names={"tie_word_embeddings": "weight_tying", "vocab_size": "embedding_size"},
        rewrite=lambda keys: {"intermediate_size": keys.size("intermediate_size") // 2},  # of gate and up together
        qkv_bias="qkv_bias", out_bias=False, mlp_bias=False,
    ),
}  # fmt: skip
"""Families that are only found in wrappers: in transformers, or (Molmo) with code beside the checkpoint."""


class Inside(NamedTuple):
    """What a file holds of a language model."""

    family: str
    values: Config
    nested: bool
    """Whether it stands in an object of its own, of a class that is named: missing keys are then that class's."""


def is_wrapper(values: Config) -> bool:
    """Whether a file is of more than a language model."""
    return any(isinstance(values.get(name), Mapping) for name in _INSIDE) or bool(_towers(values))


def language_model(values: Config, where: str, notes: list[str]) -> Inside:
    """Family and keys of the language model in a file, with what stands outside for it.

    Args:
        values: the file.
        where: what stands before errors.
        notes: a note on what is left out is added.

    Raises:
        ValueError: the language model is described in another file, or there is an encoder beside the decoder.
    """
    inside, path, towers = values, [], _towers(values)
    wrappers = [text(values, "model_type", f"{where}: ")]
    while (name := _next(inside, where)) is not None:
        child = mapping(inside[name], name, f"{where}: ")
        shared = [*_SHARED]
        outside, tied = inside.get("tie_word_embeddings"), child.get("tie_word_embeddings")
        if None not in (outside, tied) and outside != tied:
            notes.append(
                f"tie_word_embeddings is {shown(tied)} in {name}, which is taken, and {shown(outside)} outside, which "
                f"transformers 5 takes where the checkpoint leaves it open"
            )
        if not (child.get("dtype") or child.get("torch_dtype")):
            shared += ["dtype", "torch_dtype"]
        left_open = {key for key in shared if child.get(key) is None and inside.get(key) is not None}
        inside = {**child, **{key: inside[key] for key in left_open}}
        path.append(name)
        wrappers.append(text(inside, "model_type", f"{where}: {'.'.join(path)}."))
        towers |= _towers(inside)
    family = _family(values, inside, wrappers)
    if path:
        inside = {**_MERGED.get(wrappers[0], {}), **inside}
    if path or towers or family in TEXT_FAMILIES or wrappers[0] in _FLAT:
        of = ".".join(path) or f"as {family}"
        said = listed([_said(name, tower) for name, tower in towers.items()]) or "a tower of images or sound"
        notes.append(f"only the language model is counted ({of}); on top come: {said}")
    if not path and not values.get("hidden_size"):
        for name in _NAMED_ELSEWHERE:
            if isinstance(values.get(name), str):
                raise ValueError(
                    f"{where} names its language model by {name}={shown(values[name])} and does not describe it: give "
                    f"that model's config.json"
                )
    inside = {key: value for key, value in inside.items() if key not in towers}
    return Inside(family, inside, bool(path) and any(wrappers))


def text_keys(found: Inside, where: str) -> Keys:
    """The keys of the language model, to be read as its family has them; see ``Keys``."""
    kind = TEXT_FAMILIES.get(found.family) or FAMILIES.get(found.family)
    core = found.family == "gemma3_text" or (found.nested and found.family not in _OWN_CODE)
    return Keys(found.values, found.family, kind, where, core=core)


def _next(values: Config, where: str) -> str | None:
    """The object of ``values`` that holds the language model; None: it stands there itself."""
    for name in _INSIDE:
        value = values.get(name)
        if value is None or (name in ("llm", "decoder") and not isinstance(value, Mapping)):
            continue
        if isinstance(value, str):
            rule = "must be an object: where it names another model or folder, give the config.json there"
            raise ArgumentError(f"{where}: {name}", value, rule)
        if name.startswith("decoder") and isinstance(values.get("encoder" + name[len("decoder") :]), Mapping):
            raise ValueError(f"{where} has an encoder beside its decoder: the advisor models dense decoders only")
        return name
    return None


def _family(values: Config, inside: Config, wrappers: list[str]) -> str:
    """The family of the language model ``inside``, by its name, or that of the wrappers around it."""
    *around, named = wrappers
    if not around:
        if named in ("minicpmv", "minicpmo") and "version" in values:
            version = values["version"]
            version = float(version) if isinstance(version, int | float) else 0.0
            return next((family for since, family in _MINICPMV if version >= since), "minicpm")
        return _FLAT.get(named, named) or ("gpt2" if "n_embd" in values else "llama")
    known = next((_TEXT_CLASS[wrapper] for wrapper in reversed(around) if wrapper in _TEXT_CLASS), "")
    if named and known not in TEXT_FAMILIES:  # a wrapper with a class of its own for it asks nobody
        return _RENAMED.get(named, named)
    if known:
        return known
    found = inside.get("architectures") or []
    for each in texts([found] if isinstance(found, str) else found, "architectures"):
        if (family := each.removesuffix("ForCausalLM").lower()) in FAMILIES:
            return family
    return next((f"{wrapper}_text" for wrapper in reversed(around) if wrapper), "llama")


def _towers(values: Config) -> dict[str, Any]:
    """What stands beside a language model: objects by their names, and names of models."""
    return {
        name: value
        for name, value in values.items()
        if (isinstance(value, Mapping) and value and isinstance(name, str) and _TOWER.search(name))
        or (name in _TOWER_NAMES and isinstance(value, str))
    }


def _said(name: str, tower: Any) -> str:
    """The tower, and what it weighs if its object says enough; an estimate: its blocks, without what comes between."""
    if not isinstance(tower, Mapping):
        return f"{name} {shown(tower)} (not counted)"

    def first(*keys: str) -> int:
        found = [tower[key] for key in keys if type(tower.get(key)) is int and 0 < tower[key] < 1 << 20]
        return found[0] if found else 0

    width = first("embed_dim", "d_model", "width", "hidden_size")
    depth = first("num_hidden_layers", "depth", "layers", "encoder_layers", "num_layers")
    ratio = tower.get("mlp_ratio")
    inner = first("intermediate_size", "encoder_ffn_dim", "mlp_dim")
    if not inner and isinstance(ratio, int | float) and 0 < ratio < 100:
        inner = int(ratio * width)
    if not (width and depth and inner):
        return f"{name} (not counted: its configuration does not say enough)"
    matrices = 3 if tower.get("hidden_act") in ("silu", "swiglu") else 2
    return f"{name} (some {depth * (4 * width**2 + matrices * width * inner) / 1e9:.2f} B parameters)"
