"""From a Hugging Face ``config.json`` to a description of the model, and back: the one reader.

Every key is read, known to change nothing, or named: in an error where the model cannot be sized, in ``unsupported``
where it can be sized and not run, and then ``ModelConfig.from_hf`` refuses it. A key that is silently dropped gives a
model that runs and is wrong, which is the one fault nobody notices. A key unknown here that is null, false or empty
switches something off, and is passed over.

A key that is left out means what transformers takes for it (``families.FAMILIES``): it is the judge, and the tests ask
it. It is not imported, which would take seconds and torch.

Sources: the configuration classes of transformers 5 (``configuration_llama.py`` and its neighbours) for keys and
defaults.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tplab.checks import ArgumentError, check_text
from tplab.files import read_json
from tplab.models.families import TELLING, keys_of
from tplab.models.keys import (
    ACTIVATIONS,
    ALSO,
    HONOURED,
    INERT,
    KINDS,
    MOST_BYTES,
    PLAIN,
    REFUSED,
    SIZED,
    Config,
    Keys,
    texts,
    whole,
)
from tplab.models.precision import PRECISIONS, DType
from tplab.models.rope import read_rope, rope_json
from tplab.moved import say_new_names
from tplab.shown import check_depth, listed, shown

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma")
"""Values of ``model_type`` in a config.json that ``tplab.models`` runs; the advisor sizes others too."""


def read_config(source: "str | os.PathLike[str] | Config") -> dict[str, Any]:
    """Fields of a ``ModelConfig``; see ``ModelConfig.from_hf``."""
    if isinstance(source, Mapping):
        values, where = source, "the config"
    else:
        path = file_of(source)
        try:
            values, where = object_in(path), str(path)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no config.json at {path}: give a folder with a Hugging Face checkpoint, or the file"
            ) from None
    check_depth(values, where)
    kind = values.get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(f"{where}: {_not_run(kind)}")
    keys = keys_of(values, kind, where)
    made = described(keys)
    if keys.unsupported:
        raise ValueError(f"{where}: {keys.unsupported[0]}")
    return made


def file_of(source: "str | os.PathLike[str]") -> Path:
    """The file, or the ``config.json`` of the folder. Raises ``ArgumentError`` for what is no path."""
    if not isinstance(source, str | os.PathLike):
        raise ArgumentError("config", source, "must be a path, or the dict in a config.json")
    return Path(source) / "config.json" if os.path.isdir(source) else Path(source)


def object_in(path: Path) -> Config:
    """The object in a JSON file. Raises ``ValueError`` for anything else, ``FileNotFoundError`` where there is none."""
    try:
        values = read_json(path, limit=MOST_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object; it holds a {type(values).__name__}")
    return values


def described(keys: Keys) -> dict[str, Any]:
    """Fields of a ``ModelConfig``: what the keys mean."""
    at, kind = keys.at, keys.kind
    _look_for_doubt(keys)
    _look_for_unknown(keys)
    for key in ("attention_bias", "mlp_bias"):
        keys.switch(key)  # also where it does nothing: then that is said
    hidden, heads, layers = keys.size("hidden_size"), keys.size("num_attention_heads"), keys.size("num_hidden_layers")
    head_dim = keys.optional("head_dim")
    if head_dim is None and hidden % heads:
        raise ValueError(f"{at}num_attention_heads={heads} does not divide hidden_size={hidden}; give head_dim")
    kv_heads = keys.optional("num_key_value_heads") or heads
    if heads % kv_heads:
        raise ValueError(f"{at}num_key_value_heads={kv_heads} must divide num_attention_heads={heads}")
    stops = keys.find("eos_token_id")[1]
    if keys.flag("use_bidirectional_attention"):
        keys.unsupported.append(f"use_bidirectional_attention=True is not supported for {keys.family}; false is")
    positions = keys.optional("max_position_embeddings")
    if kind.positions is not None and positions is None:
        raise ValueError(f"{at}the configuration has no {' or '.join(keys.names('max_position_embeddings'))}")
    outer = keys.optional("outer_norms", least=0)
    wide = (
        (keys.optional("intermediate_size") or kind.widens * hidden) if kind.widens else keys.size("intermediate_size")
    )
    gate = _gate(keys)
    windows = _windows(keys, layers)
    theta, scaling = read_rope(keys, positions, head_dim or hidden // heads)
    return {
        "model_type": keys.family,
        "vocab_size": keys.size("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim or hidden // heads,
        "max_positions": positions,
        "norm_eps": keys.number("rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "qkv_bias": keys.told(kind.qkv_bias),
        "out_bias": keys.told(kind.out_bias),
        "mlp_bias": keys.told(kind.mlp_bias),
        "head_bias": keys.told(kind.head_bias),
        "qk_norm": keys.told(kind.qk_norm),
        "qk_norm_heads": kind.qk_norm_heads,
        "tied_embeddings": keys.flag("tie_word_embeddings"),
        "windows": windows,
        "gate": gate,
        "gated_mlp": keys.told(kind.gated),
        "norm_offset": 1.0 if kind.gemma else 0.0,
        "norms_per_block": 1 if keys.told(kind.shared_norm) else kind.norms,
        "norm_weight": kind.norm[0],
        "norm_bias": kind.norm[1],
        "outer_norms": kind.outer_norms if outer is None else outer,
        "num_positions": 0 if kind.positions is None or positions is None else positions + kind.positions,
        "embedding_width": keys.optional("embedding_width"),
        "parallel_residual": keys.told(kind.parallel),
        "one_sum": keys.told(kind.one_sum),
        "embedding_scale": hidden**0.5 if kind.gemma else 1.0,
        "dtype": _dtype(keys),
        "stop_tokens": tuple(  # -1 stands for none in some files
            whole(each, "eos_token_id", at, least=-1)
            for each in (stops if isinstance(stops, list | tuple) else () if stops is None else (stops,))
        ),
    }


def _not_run(kind: Any) -> str:
    needs = next((f" ({what})" for what, names in KINDS.items() if kind in names), "")
    return f"model_type={shown(kind)}{needs} is not supported; supported are {', '.join(MODEL_TYPES)}"


def _look_for_doubt(keys: Keys) -> None:
    """Refuse a family that is not known, unless its keys are a Llama's and no others.

    One read as a Llama for want of better is wrong by 5 to 40 %: by the gate that its MLP has not, or a tied output
    head. Sizes without ``model_type`` may have keys that say nothing here, and are a Llama's for the rest.
    """
    for what, names in KINDS.items():
        if keys.family in names:
            raise ValueError(
                f"{keys.at}model_type {shown(keys.family)} has {what}: the advisor models dense decoders only"
            )
    values, named = keys.values, keys.values.get("model_type")
    if keys.known and (named or keys.family != "llama"):
        return
    active = {name for name, value in values.items() if value not in (None, False, [], {}, "")} - set(ACTIVATIONS)
    doubts = [name for name in ACTIVATIONS if values.get(name) not in (None, "", "silu", "swish")]
    doubts += sorted(active & TELLING if keys.known else active - INERT - HONOURED - PLAIN)
    said = [f"{name}={shown(values[name])}" for name in doubts]
    found = values.get("architectures")
    if keys.known and found and "llama" not in str(found).lower():
        said.append(f"architectures={shown(found)}")
    if not keys.known and values.get("tie_word_embeddings") is None:
        said.append("tie_word_embeddings left out, of which classes differ")
    if said:
        who = "the keys name no model_type" if keys.known else f"model_type {shown(keys.family)} is not known here"
        raise ValueError(
            f"{keys.at}{who}, and whether it is built like a Llama (gated MLP, RMSNorm, no biases) is left open by "
            f"{listed(said)}. Set model_type to the family that it is built like (llama, or another of "
            f"tplab.models.families.FAMILIES) with that family's keys"
        )
    if not keys.known:
        keys.notes.append(
            f"model_type {keys.family!r} is not known here: taken as a Llama of these sizes (gated MLP, RMSNorm, no "
            f"biases but those named)"
        )


def _look_for_unknown(keys: Keys) -> None:
    values = keys.values
    active = {name for name, value in values.items() if value not in (None, False, [], {}, "")}
    if "quantization_config" in active or "compression_config" in active:
        keys.unsupported.append(
            f"quantization_config: quantised checkpoints are not supported; {', '.join(PRECISIONS)} are"
        )
    unknown = sorted(active - INERT - HONOURED)
    if unknown:
        keys.unsupported.append(
            f"{listed(f'{name}={shown(values[name])}' for name in unknown)} is not known here and may change what the "
            f"model computes, so it is not passed over. Delete the key if it changes nothing. Honoured are "
            f"{', '.join(sorted(HONOURED))}"
        )
    known = (
        INERT
        | HONOURED
        | SIZED
        | keys.kind.keys()
        | {key for names in (*REFUSED.values(), *ALSO.values()) for key in names}
    )
    if idle := sorted(set(values) - known):
        keys.notes.append(f"keys without meaning here, taken to change neither size nor speed: {listed(idle, 20)}")


def _gate(keys: Keys) -> str:
    act, other, tanh = keys.find("hidden_act")[1], keys.values.get("hidden_activation"), ("gelu", "gelu_pytorch_tanh")
    if keys.kind.gemma:
        # "gelu" in Gemma's first files means the tanh approximation; transformers reads it so.
        if act not in tanh or other not in (None, *tanh):
            keys.unsupported.append(f"hidden_act={shown(act)} is not supported for {keys.family}; gelu_pytorch_tanh is")
        return "gelu_tanh"
    if other is not None:
        keys.unsupported.append(f"hidden_activation={shown(other)} is a key of gemma's; use hidden_act")
    elif act not in ("silu", "swish"):
        keys.unsupported.append(f"hidden_act={shown(act)} is not supported for {keys.family}; silu is")
    return "silu"


def _windows(keys: Keys, layers: int) -> tuple[int | None, ...]:
    """The window of each layer; empty where none has one."""
    family, given = keys.family, keys.find("layer_types")[1]
    types = None if given is None else texts(given, "layer_types", keys.at)
    if types is not None and (len(types) != layers or not set(types) <= {"full_attention", "sliding_attention"}):
        raise ValueError(
            f"{keys.at}layer_types must be {layers} times full_attention or sliding_attention, one per layer; got "
            f"{len(types)} of {listed(sorted(set(types)))}"
        )
    qwen = keys.kind.switched_window
    off = not keys.flag("use_sliding_window", not qwen) and (qwen or not keys.known)  # a key of Qwen's
    window = keys.optional("sliding_window", least=0 if off else 1)
    if off:  # for which transformers writes 0, too
        window = None
    lacks = keys.known and "sliding_window" not in keys.defaults
    if lacks and window is not None:
        keys.unsupported.append(f"sliding_window={window} is not a key of {family}'s")
    if types is not None:
        windowed = [each == "sliding_attention" for each in types]
        if qwen and window is None and any(windowed):
            keys.unsupported.append("layer_types has sliding_attention, but use_sliding_window is off")
        if not qwen and not all(each == (window is not None and not lacks) for each in windowed):
            wanted = "full_attention" if window is None or lacks else "sliding_attention"
            keys.unsupported.append(
                f"layer_types of a {family} model with sliding_window={window} must all be {wanted}"
            )
    elif keys.lacks("sliding_window"):
        windowed = [False] * layers
    elif qwen:
        name, value = keys.find("max_window_layers")
        full = layers if value is None else whole(value, name, keys.at, least=0)
        windowed = [layer >= full for layer in range(layers)]
    else:  # one layer in so many sees everything
        pattern = keys.optional("sliding_window_pattern")
        windowed = [not pattern or (layer + 1) % pattern > 0 for layer in range(layers)]
    if window is None or not any(windowed):
        return ()
    keys.notes.append(
        f"sliding window of {window} tokens on {sum(windowed)} of {layers} layers: cache and attention of those layers "
        f"are counted up to the window, and as spread evenly over the stages"
    )
    return tuple(window if each else None for each in windowed)


def _dtype(keys: Keys) -> DType | None:
    key = next((key for key in ("dtype", "torch_dtype") if keys.values.get(key) is not None), None)
    if key is None:
        return None
    told = check_text(f"{keys.at}{key}", keys.values[key]).removeprefix("torch.")
    found = {"half": "float16", "float": "float32"}.get(told, told)
    if found not in PRECISIONS:
        raise ValueError(f"{keys.at}{key}={shown(told)} is not supported; {', '.join(PRECISIONS)} are")
    return cast(DType, found)


_SAME_NUMBERS = {
    "vocab_size": "vocab_size", "hidden_size": "hidden_size", "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim", "max_position_embeddings": "max_positions", "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tied_embeddings", "torch_dtype": "dtype",
}  # fmt: skip


def config_json(config: Any) -> dict[str, Any]:
    """The keys of a ``ModelConfig``; see ``ModelConfig.to_hf``."""
    kind = config.model_type
    keys: dict[str, Any] = {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        **{key: getattr(config, name) for key, name in _SAME_NUMBERS.items()},
        "hidden_act": "gelu_pytorch_tanh" if config.gate == "gelu_tanh" else "silu",
        "rope_parameters": rope_json(config.rope_theta, config.rope_scaling),
        **dict.fromkeys(("bos_token_id", "pad_token_id")),
        "eos_token_id": list(config.stop_tokens) or None,
    }
    if kind == "mistral":
        keys["sliding_window"] = config.window(0)
    if kind in ("qwen2", "qwen3"):
        keys |= {"use_sliding_window": config.windowed_layers > 0, "sliding_window": config.sliding_window}
        windowed = [config.window(layer) is not None for layer in range(config.num_layers)]
        keys["layer_types"] = ["sliding_attention" if each else "full_attention" for each in windowed]
    if kind in ("llama", "qwen3", "gemma"):
        keys["attention_bias"] = config.out_bias
    if kind == "llama":
        keys["mlp_bias"] = config.mlp_bias
    return keys


say_new_names(__name__)
