"""Configurations of well-known models, by name.

Sizes: the ``config.json`` of each model's repository on Hugging Face; GPT-3: Brown et al. 2020, table 2.1.
"""

from collections.abc import Mapping
from typing import Any


def _llama(h: int, layers: int, heads: int, kv: int, f: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": h,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": f,
        "vocab_size": vocab,
        "max_position_embeddings": 131072,
        "torch_dtype": "bfloat16",
    } | more


def _qwen3(h: int, layers: int, heads: int, f: int, tied: bool = False) -> dict[str, Any]:
    family = {"model_type": "qwen3", "head_dim": 128, "max_position_embeddings": 40960}
    return _llama(h, layers, heads, 8, f, 151936, tie_word_embeddings=tied) | family


_GEMMA2 = {"model_type": "gemma2", "sliding_window": 4096, "tie_word_embeddings": True, "max_position_embeddings": 8192}
_MISTRAL = {"model_type": "mistral", "head_dim": 128, "max_position_embeddings": 32768, "sliding_window": None}

MODELS: Mapping[str, Mapping[str, Any]] = {
    "llama-2-7b": _llama(4096, 32, 32, 32, 11008, 32000, max_position_embeddings=4096, torch_dtype="float16"),
    "llama-2-13b": _llama(5120, 40, 40, 40, 13824, 32000, max_position_embeddings=4096, torch_dtype="float16"),
    "llama-2-70b": _llama(8192, 80, 64, 8, 28672, 32000, max_position_embeddings=4096, torch_dtype="float16"),
    "llama-3.2-1b": _llama(2048, 16, 32, 8, 8192, 128256, head_dim=64, tie_word_embeddings=True),
    "llama-3.2-3b": _llama(3072, 28, 24, 8, 8192, 128256, head_dim=128, tie_word_embeddings=True),
    "llama-3.1-8b": _llama(4096, 32, 32, 8, 14336, 128256),
    "llama-3.1-70b": _llama(8192, 80, 64, 8, 28672, 128256),
    "llama-3.3-70b": _llama(8192, 80, 64, 8, 28672, 128256),
    "llama-3.1-405b": _llama(16384, 126, 128, 8, 53248, 128256),
    "qwen2.5-7b": _llama(3584, 28, 28, 4, 18944, 152064, model_type="qwen2", max_position_embeddings=32768),
    "qwen2.5-72b": _llama(8192, 80, 64, 8, 29568, 152064, model_type="qwen2", max_position_embeddings=32768),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, tied=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 6144, tied=True),
    "qwen3-4b": _qwen3(2560, 36, 32, 9728, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 12288),
    "qwen3-14b": _qwen3(5120, 40, 40, 17408),
    "qwen3-32b": _qwen3(5120, 64, 64, 25600),
    "mistral-7b": _llama(4096, 32, 32, 8, 14336, 32768, **_MISTRAL),
    "mistral-7b-v0.1": _llama(4096, 32, 32, 8, 14336, 32000, **_MISTRAL | {"sliding_window": 4096}),
    "mistral-small-24b": _llama(5120, 40, 32, 8, 32768, 131072, **_MISTRAL),
    "mistral-large-123b": _llama(12288, 88, 96, 8, 28672, 32768, **_MISTRAL | {"max_position_embeddings": 131072}),
    "gemma-2-9b": _llama(3584, 42, 16, 8, 14336, 256000, head_dim=256) | _GEMMA2,
    "gemma-2-27b": _llama(4608, 46, 32, 16, 36864, 256000, head_dim=128) | _GEMMA2,
    "gpt-3-175b": {
        "model_type": "gpt2",
        "n_embd": 12288,
        "n_layer": 96,
        "n_head": 96,
        "n_positions": 2048,
        "vocab_size": 50257,
        "torch_dtype": "float16",
    },
}
"""Hugging Face configurations by name, read by the same code as a file. ``gpt-3-175b`` is GPT-2's layout in GPT-3's
sizes."""

HUGGING_FACE: Mapping[str, str] = {
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-2-13b": "meta-llama/Llama-2-13b-hf",
    "llama-2-70b": "meta-llama/Llama-2-70b-hf",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "llama-3.1-70b": "meta-llama/Llama-3.1-70B",
    "llama-3.3-70b": "meta-llama/Llama-3.3-70B-Instruct",
    "llama-3.1-405b": "meta-llama/Llama-3.1-405B",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen2.5-72b": "Qwen/Qwen2.5-72B-Instruct",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen3-1.7b": "Qwen/Qwen3-1.7B",
    "qwen3-4b": "Qwen/Qwen3-4B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen3-14b": "Qwen/Qwen3-14B",
    "qwen3-32b": "Qwen/Qwen3-32B",
    "mistral-7b": "mistralai/Mistral-7B-v0.3",
    "mistral-7b-v0.1": "mistralai/Mistral-7B-v0.1",
    "mistral-small-24b": "mistralai/Mistral-Small-24B-Instruct-2501",
    "mistral-large-123b": "mistralai/Mistral-Large-Instruct-2407",
    "gemma-2-9b": "google/gemma-2-9b",
    "gemma-2-27b": "google/gemma-2-27b",
}
"""Repositories on Hugging Face of ``MODELS``, for the commands that start an engine: the one with these sizes and this
context (Qwen2.5's base models have a longer one). Nobody can serve ``gpt-3-175b``."""
