"""A ``config.json`` for the advisor: by name or file, the language model inside, and what engines make of it.

What the keys mean is read in ``hf``.
"""

import os
from collections.abc import Mapping
from typing import Any

from tplab.models.experts import dense_member, experts_in
from tplab.models.families import keys_of
from tplab.models.hf import described, file_of, object_in
from tplab.models.keys import REFUSED, Config, mapping, text, texts
from tplab.models.precision import precisions
from tplab.models.presets import HUGGING_FACE, MODELS
from tplab.shown import check_depth, listed, nearest, shown

_LONGEST_NAME = 200


def read_spec(
    source: "str | os.PathLike[str] | Config", weight_precision: str | None, kv_precision: str | None
) -> dict[str, Any]:
    """Fields of a ``ModelSpec``; see ``ModelSpec.from_config``."""
    values, where, name, folder = _load(source)
    check_depth(values, where)
    _refuse_encoders(mapping(values, where), where)
    notes: list[str] = []
    whole = values
    family, values = _language_model(values, notes)
    if experts := experts_in(whole, family, where):
        raise ValueError(f"{where} has a mixture of experts ({experts}): the advisor models dense decoders only")
    family, values = dense_member(values, family)
    _refuse(values, where)
    keys = keys_of(values, family, where, core=family == "gemma3_text")
    made = described(keys)
    if not values.get("model_type") and family == "llama" and keys.find("max_position_embeddings")[0] not in values:
        made["max_positions"] = None  # sizes written by hand, not a Llama file that leaves its 2048 out
    notes += keys.notes
    how = mapping(values.get("quantization_config") or {}, "quantization_config", keys.at)
    served = precisions(how, made["num_layers"], made["dtype"], weight_precision, kv_precision, notes)
    return made | served | {"name": name, "source": folder, "notes": tuple(notes)}


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
    heads = ("CausalLM", "LMHead", "ForConditionalGeneration", "ChatGLMModel")
    if found and not any(head in each for each in found for head in heads):
        raise ValueError(
            f"{where} does not generate text (architectures={shown(found)}, none of which names "
            f"{', '.join(heads[:2])} or {heads[2]}): the advisor models decoders only. Leave the key out if it is one"
        )


def _language_model(values: Config, notes: list[str]) -> tuple[str, Config]:
    """``model_type`` and keys of the language model inside, with what stands outside for it."""
    family = text(values, "model_type") or ("gpt2" if "n_embd" in values else "llama")
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
