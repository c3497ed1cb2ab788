"""Keys as people write them: ``llama-3.1-70b`` is Llama 3.1 70B, ``1f1b`` is 1F1B. The keys stay what code takes."""

import re
from collections.abc import Iterable
from functools import cache
from typing import Final

_NAMES: Final = {
    "vllm": "vLLM",
    "vllm-0.4": "vLLM 0.4",
    "sglang": "SGLang",
    "trtllm": "TensorRT-LLM",
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "interleaved 1F1B",
    "zb-h1": "ZB-H1",
    "forward-only": "forward only",
    "chunked-prefill": "chunked prefill",
    "decode-ring": "decode ring",
    "prefill-decode": "prefill and decode",
    "one-shot": "one-shot",
    "dgx-1": "DGX-1 (V100)",
    "dgx-1-16gb": "DGX-1 (V100 16 GB)",
    "dgx-1-p100": "DGX-1 (P100)",
    "dgx-2": "DGX-2 (V100)",
    "h20-3e": "H20-3e",
    "gpt-3-175b": "GPT-3 175B",
}
_WORDS: Final = {
    "llama": "Llama",
    "mistral": "Mistral",
    "gemma": "Gemma",
    "small": "Small",
    "large": "Large",
    "pcie": "PCIe",
    "ti": "Ti",
    "super": "Super",
    "ada": "Ada",
    "titan": "Titan",
    "quadro": "Quadro",
    "pro": "PRO",
    "max": "Max",
    "workstation": "Workstation",
    "pairs": "in bridged pairs",
}


def name_of(key: str) -> str:
    """The name of a model, GPU, machine, schedule or engine that the lab knows by ``key``; any other text stays."""
    if key in _NAMES:
        return _NAMES[key]
    return " ".join(map(_word, key.split("-"))) if key in _keys() else key


def offered(keys: Iterable[str]) -> list[tuple[str, str]]:
    """Options of a drop-down: name and key."""
    return [(name_of(key), key) for key in keys]


@cache
def _keys() -> frozenset[str]:
    from tplab.models.presets import MODELS
    from tplab.topology.machine.presets import MACHINES
    from tplab.topology.machine.spec_sheets import GPUS

    return frozenset((*MODELS, *GPUS, *MACHINES))


def _word(word: str) -> str:
    if memory := re.fullmatch(r"(\d+)gb", word):
        return f"{memory[1]} GB"
    if re.fullmatch(r"qwen[\d.]*", word):
        return word.capitalize()
    return _WORDS.get(word, word if re.fullmatch(r"v\d+\.\d+", word) else word.upper())
