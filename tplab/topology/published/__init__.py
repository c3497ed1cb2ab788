"""Published measurements: the constants fitted to them, the model's error on them, and the user's own server."""

from tplab.topology.published.scoreboard import layout_choice, validate
from tplab.topology.published.vllm_bench import beside_vllm, read_vllm

__all__ = [
    "beside_vllm",
    "layout_choice",
    "read_vllm",
    "validate",
]
