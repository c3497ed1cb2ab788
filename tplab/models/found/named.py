"""What model is meant: a preset, a file, a folder, a repository on Hugging Face. One question, whatever was written.

In this order: what is there as a file or folder; the name of a preset, or of a repository with a preset's sizes, in any
spelling; a repository of the local cache; of the network. What the network cannot be asked about is taken for the
preset of the same name, if there is one, and a note says so.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tplab.checks import ArgumentError
from tplab.files import instead_of
from tplab.models.found.folder import weights_in
from tplab.models.found.headers import StoredWeights, read_tensors, stored
from tplab.models.presets import HUGGING_FACE, MODELS
from tplab.models.spec import ModelConfig, ModelSpec
from tplab.shown import as_GB, nearest

_VARIANT = re.compile(r"-(instruct|chat|it|hf|base|pt|\d{4})(?=-|$)")
"""What fine-tuned models of the same sizes have in their names."""
_CLOSE_ENOUGH = (0.9, 1.1)
"""Bytes of the blocks in the files over those by the configuration: of the same model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundModel:
    """A model that somebody named."""

    name: str
    """What to call it."""
    spec: ModelSpec | None
    """Description of it; None where only its weights are known."""
    weights: StoredWeights | None
    """What its files hold; None where they were not to be had: then weights follow from the description."""
    unknown: str = ""
    """Why there is no description, in a sentence without a full stop; empty if there is one."""
    source: str = ""
    """Where it was found: ``preset``, a path, an address; empty for a description that was given."""
    notes: tuple[str, ...] = ()
    """What is to be said of the search."""
    config: "str | os.PathLike[str] | Mapping[str, Any] | ModelConfig | None" = None
    """What its description was made from."""
    files_count: bool = True
    """Whether the weights are wanted in the files' precision, so that what the files hold counts."""

    @property
    def counted(self) -> StoredWeights | None:
        """What the files hold, where it counts."""
        return self.weights if self.files_count else None

    @property
    def all_notes(self) -> tuple[str, ...]:
        """Sentences to be shown with every answer."""
        spec, weights = self.spec, self.counted
        if spec is None:
            return self.notes
        notes = [*self.notes, *spec.notes]
        if weights is not None and not spec.quant_method:
            ratio = weights.served_bytes(spec.activation_itemsize, "blocks") / blocks_bytes(spec)
            if not _CLOSE_ENOUGH[0] < ratio < _CLOSE_ENOUGH[1]:
                notes.append(
                    f"the files hold {as_GB(weights.total_bytes)} of weights, {ratio:.0%} of what the configuration "
                    f"says of the layers: the files count"
                )
        return tuple(notes)


def blocks_bytes(spec: ModelSpec) -> float:
    """Bytes of the weights of all layers by the description."""
    matmul, params = spec.num_layers * spec.block_matmul_params, spec.num_layers * spec.block_params
    return matmul * spec.weight_itemsize + (params - matmul) * spec.activation_itemsize


def find_model(
    model: "str | os.PathLike[str] | Mapping[str, Any] | ModelConfig | FoundModel | None",
    *,
    weight_precision: str | None = None,
    kv_precision: str | None = None,
) -> FoundModel:
    """The model that is meant.

    Args:
        model: a preset's name, a path of a ``config.json``, of a checkpoint's folder or of a safetensors file, a
            repository of Hugging Face (``owner/name``), the dict in a ``config.json``, a description, or what was found
            before, which is not looked for again.
        weight_precision, kv_precision: as in ``ModelSpec.from_config``; weights in another precision than the files'
            are counted by the description.

    Raises:
        ValueError: nothing is called so (with the nearest names), or it cannot be read, or only its weights are known
            and another precision is asked for.
    """
    config: Any
    if model is None:
        raise ArgumentError("model", model, "must be a name, a path, or the dict in a config.json")
    if isinstance(model, FoundModel):
        found, config = replace(model, spec=None), model.config
    elif not isinstance(model, str | os.PathLike):
        found, config = FoundModel(name="", spec=None, weights=None), model
    else:
        found, config = _called(os.fspath(model))
    if config is None:
        return _only_weights(found, "there is no config.json with them", weight_precision, kv_precision)
    return _described(replace(found, config=config), weight_precision, kv_precision)


def _called(text: str) -> tuple[FoundModel, Any]:
    """What a text names, and what it is described by."""
    if not text.strip():
        raise ArgumentError("model", text, "must not be empty")
    if os.path.exists(text) or text.endswith((".json", ".safetensors", ".gguf")) or text.startswith(("/", "./", "~")):
        return _of_path(Path(os.path.expanduser(text)))  # as it is where ~ is nobody's
    if preset := preset_called(text):
        return FoundModel(name=preset, spec=None, weights=None, source="preset"), preset
    return _of_hub(text.strip())


def preset_called(text: str, *, by_tail: bool = False) -> str | None:
    """The preset that a name means: its own, or that of a repository with its sizes, in any spelling; None for none.

    Args:
        text: what was written.
        by_tail: whether another owner's repository of the same name counts.
    """
    owner, _, tail = text.strip().rpartition("/")
    if owner and not by_tail:
        return next((name for name, repo in HUGGING_FACE.items() if repo.lower() == text.strip().lower()), None)
    known = {_key(repo.rpartition("/")[2]): name for name, repo in HUGGING_FACE.items()}
    return (known | {_key(name): name for name in MODELS}).get(_key(tail))


def _key(name: str) -> str:
    key = re.sub(r"[\s_-]+", "-", name.strip().lower())
    key = re.sub(r"^meta-(?=llama)", "", _VARIANT.sub("", key))
    return re.sub(r"^([a-z]+)-?(?=\d)", r"\1", key)  # llama-3.1 and llama3.1


def _of_path(path: Path) -> tuple[FoundModel, "Path | None"]:
    """What lies there, and the file of its configuration."""
    beside = path if path.is_dir() else path.parent
    config: Path | None = beside / "config.json"
    if path.suffix == ".gguf":
        raise ArgumentError("model", str(path), "must not be a GGUF file: give the config.json of the original model")
    if path.is_dir():
        weights = weights_in(path)
        if config is not None and not config.is_file():
            config = None
        if weights is None and config is None:
            raise ArgumentError("model", str(path), "must be a folder with a config.json or safetensors files")
    elif path.suffix == ".safetensors":
        if not path.exists():
            raise ArgumentError("model", str(path), f"must be a file that is there{instead_of(path)}")
        config = config if config is not None and config.is_file() else None
        weights = stored([read_tensors(path)]) if config is None else weights_in(beside)
    else:
        if not path.exists():
            raise ArgumentError("model", str(path), f"must be a file that is there{instead_of(path)}")
        config, weights = path, None
    own = path.is_file() and (config is None or (config == path and path.name != "config.json"))
    name = path.stem if own else beside.resolve().name
    return FoundModel(name=name, spec=None, weights=weights, source=str(path)), config


def _of_hub(text: str) -> tuple[FoundModel, "Mapping[str, Any] | str | None"]:
    """What the cache or the network has under that name."""
    from tplab.models.found.hub import ID, NotReached, NotThere, read_cached, read_hub, repo_in

    if "://" in text:
        text = repo_in(text) or text
    close = nearest(text.rpartition("/")[2].lower(), MODELS)
    if not ID.fullmatch(text):
        kinds = "a preset, a path, or OWNER/NAME of Hugging Face"
        raise ArgumentError("model", text, f"must be the name of a model that is known ({kinds}): {close}")
    try:
        there = read_cached(text)
        if there is None or (there.weights is None and _refused(there.config)):
            there = read_hub(text) if there is None else _completed(there, text)
    except NotReached as error:
        if preset := preset_called(text, by_tail=True):
            note = f"{error}: taken as the preset {preset}"
            return FoundModel(name=preset, spec=None, weights=None, source="preset", notes=(note,)), preset
        raise ArgumentError(
            "model", text, f"cannot be looked up: {error}. Give its config.json or its folder, or a preset: {close}"
        ) from None
    except NotThere as error:
        near = f"; {close}" if close.endswith("?") else ""
        raise ArgumentError("model", text, f"must be a repository that may be read: {error}{near}") from None
    found = FoundModel(name=text, spec=None, weights=there.weights, source=there.source, notes=there.notes)
    return found, there.config if there.config is None else {**there.config, "name": text}


def _completed(cached: Any, repo: str) -> Any:
    """What the network has besides the cache's configuration, if it can be asked: of a family that is not known here
    the weights tell."""
    from tplab.models.found.hub import NotReached, NotThere, read_hub

    try:
        return read_hub(repo)
    except (NotReached, NotThere):
        return cached


def _refused(config: "Mapping[str, Any] | None") -> bool:
    try:
        ModelSpec.from_config(config or {})
    except ValueError:
        return True
    return False


def _described(found: FoundModel, weight_precision: str | None, kv_precision: str | None) -> FoundModel:
    """With the description that the configuration gives."""
    config: Any = found.config
    try:
        if isinstance(config, ModelSpec) and weight_precision is kv_precision is None:
            spec = config
        else:
            spec = ModelSpec.from_config(config, weight_precision=weight_precision, kv_precision=kv_precision)
        as_it_is = spec
        if weight_precision is not None and found.weights is not None:
            as_it_is = ModelSpec.from_config(config)
    except ValueError as error:
        if found.weights is None and found.source and found.notes:  # a repository whose headers could not be read
            raise ValueError(f"{str(error).rstrip('.')}; {found.notes[0].partition(': they are counted')[0]}") from None
        if found.weights is None and "dense decoders only" in str(error):
            raise ValueError(
                f"{error}. Given its folder, or OWNER/NAME of Hugging Face, instead of the configuration, its weights "
                f"are counted all the same, by the headers of its files"
            ) from None
        if found.weights is None or isinstance(error, ArgumentError):
            raise
        return _only_weights(found, str(error).rstrip("."), weight_precision, kv_precision)
    name, same = found.name or spec.name, spec.weight_precision == as_it_is.weight_precision
    return replace(found, name=name, spec=spec, files_count=same)


def _only_weights(found: FoundModel, why: str, weight_precision: str | None, kv_precision: str | None) -> FoundModel:
    for argument, given in (("weight_precision", weight_precision), ("kv_precision", kv_precision)):
        if given is not None:
            raise ArgumentError(argument, given, f"must be left out where only the weights are known ({why})")
    return replace(found, spec=None, unknown=why)
