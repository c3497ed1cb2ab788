"""Fixtures for the tests of tplab.models: models of each family that are small and awkward."""

from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest

SIZES: dict[str, Any] = {
    "vocab_size": 1009,  # prime: divides over no number of ranks
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,  # on four ranks each lies twice
    "max_position_embeddings": 256,
    "eos_token_id": None,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"model_type": "mistral", "sliding_window": 7},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {
        "model_type": "qwen3",
        "head_dim": 12,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "gemma": {"model_type": "gemma", "head_dim": 10, "num_key_value_heads": 1},
}


@pytest.fixture(scope="module", autouse=True)
def functions_travel_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture(scope="session")
def families() -> dict[str, dict[str, Any]]:
    """``config.json`` of each family."""
    return {name: SIZES | extra for name, extra in FAMILIES.items()}
