"""Published measurements: the constants fitted to them, the model's error on them, and the user's own server."""

from tplab.topology.published.benchmark import Benchmark
from tplab.topology.published.benchmarks import beside_benchmark, beside_vllm, read_benchmark, read_vllm
from tplab.topology.published.scoreboard import layout_choice, validate

__all__ = [
    "Benchmark",
    "beside_benchmark",
    "beside_vllm",
    "layout_choice",
    "read_benchmark",
    "read_vllm",
    "validate",
]
