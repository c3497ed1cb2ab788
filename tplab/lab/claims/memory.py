"""Recipes for claims about memory: C1 to C3 (see docs/article.md)."""

from tplab.lab.claims.findings import Finding, at_least, at_most, equal, said
from tplab.models.shards import Layout
from tplab.models.spec import ModelSpec
from tplab.topology.advisor.memory import max_requests
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.spec_sheets import GPUS

_SOLD_GB = 80.0
_MODEL = "llama-3.1-70b"
_CHAT = Workload(input_length=1536, output_length=512, concurrency=1)


def fp16_weights(tolerance: float) -> Finding:
    """C1: weights in 16 bits beside 140 GB and beside a card."""
    two, three = (ModelSpec.from_config(name).weight_bytes for name in ("llama-2-70b", _MODEL))
    return Finding(
        cases=(
            equal("Llama-2 70B", 140, two / 1e9, "GB", tolerance, "140 GB"),
            equal("Llama-3.1 70B", 140, three / 1e9, "GB", tolerance, "140 GB"),
            at_least("weights over the memory of one A100", 1, two / 1e9 / GPUS["a100"].memory_GB, "times", "no fit"),
        ),
        facts={"gib": said(three / 2**30, "GiB"), "gb": said(three / 1e9, "GB"), "two": said(two / 1e9, "GB")},
    )


def four_bits(tolerance: float) -> Finding:
    """C2: what fits on one card without any parallelism; and weights streamed from host memory."""
    small = ModelSpec.from_config("llama-2-70b", weight_precision="int4")
    fitting = max_requests(small, GPUS["a100"], _CHAT, Layout.of(small, 1, 1))
    whole = ModelSpec.from_config("llama-2-70b").weight_bytes
    pcie = GPUS["a100"].pcie_GBps
    seconds = (whole / 1e9 - _SOLD_GB) / pcie
    return Finding(
        cases=(
            at_most("requests of 2,048 tokens beside 4-bit weights on one A100", 0, fitting, ""),
            at_most(f"tokens per minute with what does not fit streamed over {pcie:g} GB/s", 0, 60 / seconds, ""),
        ),
        facts={
            "weights": said(small.weight_bytes / 1e9, "GB"),
            "requests": str(fitting),
            "seconds": said(seconds, "s"),
        },
    )


def int8_and_cache(tolerance: float) -> Finding:
    """C3: INT8 weights, and what they leave of a card sold as 80 GB."""
    spec = ModelSpec.from_config(_MODEL, weight_precision="int8")
    left = _SOLD_GB - spec.weight_bytes / 1e9
    tokens = left * 1e9 / spec.kv_bytes_per_token
    card = GPUS["a100"]
    fitting = max_requests(spec, card, _CHAT, Layout.of(spec, 1, 1))
    return Finding(
        cases=(
            equal("weights in INT8", 70, spec.weight_bytes / 1e9, "GB", tolerance, "70 GB"),
            at_most("left of 80 GB for cache and workspace", 10, left, "GB", "close to the limit"),
        ),
        facts={
            "left": said(left, "GB"),
            "tokens": f"{tokens:,.0f}",
            "card": said(card.memory_GB, "GB"),
            "requests": str(fitting),
        },
    )
