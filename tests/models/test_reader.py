"""The one reader of config.json against transformers' configuration classes: every key left out, one at a time."""

from typing import Any

import pytest
import torch
import transformers

from tplab.models.hf import MODEL_TYPES
from tplab.models.spec import ModelConfig, ModelSpec

SIZES: dict[str, Any] = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 32,
    "max_position_embeddings": 300, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 3,
    "pad_token_id": 0, "dtype": "bfloat16",
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 5e5}
GROUPED = SIZES | {"num_key_value_heads": 16, "rms_norm_eps": 1e-3, "rope_parameters": ROPE}
BIASED = {"attention_bias": True}
WINDOWED = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1, "num_hidden_layers": 30}
GEMMA = GROUPED | BIASED | {"head_dim": 6, "tie_word_embeddings": False}
GPT = {"vocab_size": 300, "n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 128, "n_inner": 100,
       "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 3,
       "dtype": "bfloat16"}  # fmt: skip
FILES: dict[str, dict[str, Any]] = {
    "llama": GROUPED | BIASED | {"mlp_bias": True, "head_dim": 6},
    "mistral": GROUPED | {"sliding_window": 16, "head_dim": 6},
    "qwen2": GROUPED | WINDOWED,
    "qwen3": GROUPED | WINDOWED | BIASED | {"head_dim": 6},
    "gemma": GEMMA,
    "gemma2": GEMMA | {"sliding_window": 16},
    "gemma3_text": GEMMA
    | {"sliding_window": 16, "num_hidden_layers": 8, "sliding_window_pattern": 3, "num_key_value_heads": 8}
    | {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), GROUPED["rope_parameters"])},
    "gpt2": GPT,
    "gpt_bigcode": GPT | {"multi_query": False},
    "gpt_neox": SIZES | {"attention_bias": False, "layer_norm_eps": 1e-3, "use_parallel_residual": False},
    "granite": GROUPED | BIASED | {"mlp_bias": True},
    "phi3": GROUPED | {"sliding_window": 16},
}  # fmt: skip
"""Every key that is read, with another value than the default's."""
INERT = ("bos_token_id", "pad_token_id")
MATHS = ("eos_token_id", "dtype", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_parameters")
CORE = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size")
CORE_OF_GPT = ("n_embd", "n_head", "n_layer", "vocab_size")


def windows(theirs: Any) -> list[int | None]:
    """The window of each layer, as transformers' masks have it."""
    window = getattr(theirs, "sliding_window", None)
    types = getattr(theirs, "layer_types", None)
    layers = theirs.num_hidden_layers
    return [window if types is None or kind == "sliding_attention" else None for kind in types or [""] * layers]


def theta(theirs: Any) -> float | None:
    rope = getattr(theirs, "rope_parameters", None)
    return None if rope is None else rope.get("full_attention", rope)["rope_theta"]


def described(theirs: Any, has_rope: bool) -> dict[str, Any]:
    """What transformers makes of a file, under our names."""
    heads = theirs.num_attention_heads
    kv_heads = getattr(theirs, "num_key_value_heads", None)
    eps = [getattr(theirs, name, None) for name in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")]
    stops = theirs.eos_token_id
    return {
        "vocab_size": theirs.vocab_size,
        "hidden_size": theirs.hidden_size,
        "num_layers": theirs.num_hidden_layers,
        "num_heads": heads,
        "num_kv_heads": heads if kv_heads is None else kv_heads,
        "head_dim": getattr(theirs, "head_dim", None) or theirs.hidden_size // heads,
        "max_positions": theirs.max_position_embeddings,
        "tied_embeddings": theirs.tie_word_embeddings,
        "norm_eps": next(value for value in eps if value is not None),
        "dtype": None if theirs.dtype is None else str(theirs.dtype).removeprefix("torch."),
        "windows": windows(theirs),
        **({"rope_theta": theta(theirs)} if has_rope else {}),
        **({"stop_tokens": () if stops is None else (stops,)} if theirs.model_type in MODEL_TYPES else {}),
    }


def ours(model: ModelConfig, names: Any) -> dict[str, Any]:
    made = {name: getattr(model, name) for name in names}
    return made | {"windows": [model.window(layer) for layer in range(model.num_layers)]}


def left_out() -> list[tuple[str, str | None]]:
    return [(family, key) for family, file in FILES.items() for key in (None, *file) if key not in INERT]


@pytest.mark.parametrize(("family", "key"), left_out())
def test_a_key_left_out_means_what_transformers_takes_for_it(family: str, key: str | None) -> None:
    """Sizes, windows, precisions and the number of parameters, for ``generate`` and for the advisor."""
    file = {name: value for name, value in FILES[family].items() if name != key}
    theirs = transformers.CONFIG_MAPPING[family](**file)
    want = described(theirs, "rope_parameters" in FILES[family])
    read: list[ModelConfig] = []
    if family in MODEL_TYPES:
        read.append(ModelConfig.from_hf(file | {"model_type": family}))
    core = CORE_OF_GPT if family.startswith("gpt") and family != "gpt_neox" else CORE
    if key in core and family != "gemma3_text":  # the advisor makes up no model that somebody forgot to describe
        with pytest.raises(ValueError, match=f"the configuration has no ([a-z_]+ or )?{key}"):
            ModelSpec.from_config(file | {"model_type": family})
    else:
        read.append(ModelSpec.from_config(file | {"model_type": family}))
    for model in read:
        assert ours(model, want) == want
    if key in MATHS or (key in core and key != "vocab_size"):
        return  # no parameters; or so many that a module of them takes long to make
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(theirs)
    for model in read:
        assert model.total_params == sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("family", FILES)
def test_nothing_is_assumed_where_everything_is_said(family: str) -> None:
    notes = ModelSpec.from_config(FILES[family] | {"model_type": family}).notes
    assert all("window" in note or "counted with biases" in note for note in notes)


def test_readers_agreed_on_nothing_here() -> None:
    """Four files that ``generate`` and ``advise`` once took for different models."""
    thirty_two = FILES["qwen2"] | {"model_type": "qwen2", "num_hidden_layers": 32}
    no_start = {key: value for key, value in thirty_two.items() if key != "max_window_layers"}
    not_used = {key: value for key, value in thirty_two.items() if key != "use_sliding_window"}
    no_window = {key: value for key, value in FILES["mistral"].items() if key != "sliding_window"}
    for read in (ModelConfig.from_hf, ModelSpec.from_config):
        assert read(no_start).windows == (None,) * 28 + (16,) * 4
        assert read(not_used | {"max_window_layers": 8}).windows == ()
        assert read(no_window | {"model_type": "mistral"}).windows == (4096,) * 3
        no_dtype = read({key: value for key, value in thirty_two.items() if key != "dtype"})
        assert no_dtype.dtype is None
    assert no_dtype.activation_precision == no_dtype.weight_precision == "bf16"
    assert "the configuration names no dtype: bf16 is assumed" in no_dtype.notes


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("llama", {"sliding_window": 16}),
        ("granite", {"sliding_window": 16}),
        ("mistral", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", {"attention_bias": True}),
        ("qwen2", {"attention_bias": False}),
        ("gemma", {"mlp_bias": True}),
        ("phi3", {"attention_bias": True}),
        ("qwen2", {"max_window_layers": 0}),
        ("qwen2", {"num_key_value_heads": None}),
        ("qwen3", {"sliding_window": None}),
        ("gemma3_text", {"layer_types": ["sliding_attention", *["full_attention"] * 7]}),
    ],
)
def test_a_key_does_what_it_does_in_transformers(family: str, extra: dict[str, Any]) -> None:
    """Also nothing, where the class has no such key: then the advisor says so, and ``generate`` refuses."""
    file = FILES[family] | extra
    theirs = transformers.CONFIG_MAPPING[family](**file)
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(theirs)
    spec = ModelSpec.from_config(file | {"model_type": family})
    assert spec.total_params == sum(parameter.numel() for parameter in module.parameters())
    wanted = [None] * 3 if family in ("llama", "granite", "gemma") else windows(theirs)
    assert [spec.window(layer) for layer in range(spec.num_layers)] == wanted
    known = transformers.CONFIG_MAPPING[family]().to_dict()
    foreign = [key for key, value in extra.items() if value and key not in known]
    for key in foreign:
        assert f"{key} is not a key of {family}'s, and does nothing in transformers" in spec.notes
        if family in MODEL_TYPES:
            with pytest.raises(ValueError, match=key):
                ModelConfig.from_hf(FILES[family] | {"model_type": family, key: extra[key]})


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_use_sliding_window_is_a_key_of_qwens_only(family):
    """transformers' other classes pass it over."""
    config = {"model_type": family, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 100}
    theirs = transformers.AutoConfig.for_model(**config, use_sliding_window=False)
    ours = ModelSpec.from_config(config | {"use_sliding_window": False})
    assert ours.sliding_window == theirs.sliding_window == 4096


def test_llama3_scaling_needs_a_length():
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "vocab_size": 100, "rope_scaling": rope, "max_position_embeddings": None}
    with pytest.raises(ValueError, match="of type llama3 needs original_max_position_embeddings"):
        ModelConfig.from_hf(config)
