"""A ``config.json`` for the advisor: by name or file, the language model inside, and what engines make of it.

What the keys mean is read in ``hf``.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tplab.files import instead_of
from tplab.models.experts import dense_member, experts_in
from tplab.models.hf import described, file_of, object_in
from tplab.models.keys import REFUSED, Config, mapping, texts
from tplab.models.precision import precisions, quantisation
from tplab.models.presets import HUGGING_FACE, MODELS
from tplab.models.wrappers import is_wrapper, language_model, text_keys
from tplab.shown import check_depth, listed, nearest, shown

_LONGEST_NAME = 200
_QUANTISED_BESIDE = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""ModelOpt's, AutoGPTQ's and AutoAWQ's own files (vLLM, ``get_config_filenames`` of each method)."""
_HEADS = ("CausalLM", "LMHead", "ForConditionalGeneration", "ChatGLMModel")
_OTHER_TASKS = re.compile(r"For\w*(Classification|Retrieval|Answering|MaskedLM|Embedding|Ranking|Detection)|Reward")


def read_spec(
    source: "str | os.PathLike[str] | Config", weight_precision: str | None, kv_precision: str | None
) -> dict[str, Any]:
    """Fields of a ``ModelSpec``; see ``ModelSpec.from_config``."""
    values, where, name, folder = _load(source)
    check_depth(values, where)
    _refuse_encoders(mapping(values, where), where)
    notes: list[str] = []
    found = language_model(values, where, notes)
    if experts := experts_in(values, found.values, found.family, where):
        raise ValueError(f"{where} has a mixture of experts ({experts}): the advisor models dense decoders only")
    family, values = dense_member(found.values, found.family)
    _refuse(values, where)
    keys = text_keys(found._replace(family=family, values=values), where)
    made = described(keys)
    by_hand = family == "llama" and not (found.nested or values.get("model_type"))
    if by_hand and keys.find("max_position_embeddings")[0] not in values:
        made["max_positions"] = None  # sizes written by hand, not a Llama file that leaves its 2048 out
    notes += keys.notes
    how = quantisation(values, keys.at) or _quantisation_beside(where, notes)
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
            raise ValueError(f"there is no file {path}{instead_of(path)}") from None
        raise ValueError(f"no model preset or file is called {str(source)!r}: {nearest(as_name, MODELS)}") from None
    folder = path.parent if path.parent.name else path.parent.resolve()  # not "."
    return values, str(path), _name(values, "_name_or_path") or path.resolve().parent.name, str(folder)


def _quantisation_beside(where: str, notes: list[str]) -> Config:
    """What a file beside the ``config.json`` says of quantised weights, where engines look for it; empty for none."""
    for name in _QUANTISED_BESIDE if os.path.isfile(where) else ():
        path = Path(where).parent / name
        try:
            found = object_in(path)
        except FileNotFoundError:
            continue
        check_depth(found, str(path))
        notes.append(f"quantised as {name} beside the configuration says")
        return quantisation({"quantization_config": found}, f"{path}: ")
    return {}


def _name(values: Config, key: str) -> str | None:
    found = values.get(key)  # only a name, and not worth an error
    return found[-_LONGEST_NAME:] if isinstance(found, str) else None


def _refuse_encoders(values: Config, where: str) -> None:
    found = values.get("architectures") or []
    found = texts([found] if isinstance(found, str) else found, "architectures", f"{where}: ")
    # What has towers generates text whatever its class is called, unless that says another thing.
    others = _OTHER_TASKS if is_wrapper(values) else re.compile("")
    if found and not any(head in each for each in found for head in _HEADS) and all(map(others.search, found)):
        raise ValueError(
            f"{where} does not generate text (architectures={shown(found)}, none of which names "
            f"{', '.join(_HEADS[:2])} or {_HEADS[2]}): the advisor models decoders only. Leave the key out if it is one"
        )


def _refuse(values: Config, where: str) -> None:
    for what, keys in REFUSED.items():
        found = [key for key in keys if values.get(key) is True or values.get(key) not in (None, 0, 1, [], {})]
        if found:
            raise ValueError(
                f"{where} has {what} ({listed(f'{key}={shown(values[key])}' for key in found)}): the advisor "
                f"models dense decoders only"
            )
