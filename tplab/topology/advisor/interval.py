"""How far from its measurement a prediction may be, and what it was checked on that is nearest. Pure.

The interval is wide where little was checked, and says why. ln(measured / predicted) varies by

    base² + Σ over parts (sigma of the part · its share of the time)² + Σ over what is new (sigma of that · its share)²

The *parts* are the terms by what they come from: a small model on many GPUs, whose token is start-up and messages, has
a wider interval than a large one that streams its weights. *New* is what the nearest configuration that was checked
does not share with the question: nearest is the one that leaves the narrowest interval, not the one of the same name.
What is new adds to the parts that it concerns (``TOUCHES``): an engine to its own time and to how it brings in prompts,
not to the reading of weights.

``published.refit`` computes the numbers from tables of served models, each cell predicted by constants that have not
seen its model, GPU, engine or length, and in sample; they are in ``validated``. What was calibrated here is not new.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tplab.models.spec import ModelSpec
from tplab.shown import fixed
from tplab.topology.machine.machine import Gpu
from tplab.topology.machine.spec_sheets import GPUS

if TYPE_CHECKING:  # numpy is for predictions of time: memory is asked about without it
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

NINETY = 1.645
"""Standard deviations of a normal distribution that hold 90 % of it."""
PARTS: Mapping[str, tuple[str, ...]] = {
    "memory": ("weights", "lm_head", "kv_cache", "activations", "drafts"),
    "overheads": ("kernels", "host", "launch"),
    "messages": ("all_reduce", "hops"),
    "prompts": ("prefill", "bubble"),
}
"""Part of a time per token -> its terms: streaming and multiplying, what is fixed, communication, how prompts and
micro-batches are scheduled."""
ASPECTS = ("model", "engine", "GPU", "memory of the GPU", "precision", "links", "pipeline")
"""What may be new: family or size class, engine, processor, its memory, precision of weights, tensor parallelism
without NVLink, pipeline stages."""
TOUCHES: Mapping[str, tuple[str, ...]] = {"engine": ("overheads", "messages", "prompts"), "links": ("messages",)}
"""Aspect -> parts of the time that it makes less certain; all of them for the others."""
_SAME_CLASS = 1.6
"""Most that models of one size class differ in parameters."""
_SAME_RATE = 1.03
_ENGINES = {
    "vllm": "vLLM",
    "trtllm": "TensorRT-LLM",
    "sglang": "SGLang",
    "fastertransformer": "FasterTransformer",
    "lab": "this lab's own engine",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """A configuration of which measurements were compared with predictions."""

    model: str
    params: float
    """Number of parameters of the model's blocks."""
    gpu: str
    """Name of the GPU in ``presets.GPUS``."""
    engine: str
    precision: str
    """Precision of the weights."""
    tps: tuple[int, ...]
    pps: tuple[int, ...]
    loads: tuple[int, int]
    """Fewest and most requests in flight."""
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    """Fewest and most tokens of prompts and of answers."""
    num_cells: int
    """Number of measurements."""
    error_pct: float | None = None
    """Mean absolute error of the time per token, or of throughput where only that was measured; None: not known."""
    how: str = ""
    """What the constants of that error have not seen, in words."""

    def __str__(self) -> str:
        degrees = [f"TP {_span(self.tps)}"] + ([f"PP {_span(self.pps)}"] if max(self.pps) > 1 else [])
        error = "" if self.error_pct is None else f": {self.error_pct:.2g} % off {self.how}"
        return (
            f"{self.model} {self.precision} on {self.gpu} with {_ENGINES.get(self.engine, self.engine)}, "
            f"{', '.join(degrees)}, {self.num_cells} measurements{error}"
        )

    def lacks(self, model: ModelSpec, gpu: Gpu, engine: str, *, split: bool, pipeline: bool) -> tuple[str, ...]:
        """The ``ASPECTS`` of a question that this configuration does not share.

        Args:
            model, gpu, engine: what is asked.
            split: whether GPUs share layers.
            pipeline: whether over stages.
        """
        ratio = model.num_layers * model.block_matmul_params / self.params
        known = GPUS.get(self.gpu)
        rate = 0.0 if known is None else gpu.bf16_TFLOPS / known.bf16_TFLOPS
        same_rate = 1 / _SAME_RATE < rate < _SAME_RATE
        differs = (
            family(self.model) != family(model.name) or not 1 / _SAME_CLASS < ratio < _SAME_CLASS,
            self.engine != engine,
            not same_rate,
            same_rate and known is not None and gpu.hbm_GBps != known.hbm_GBps,
            self.precision != model.weight_precision,
            split and not gpu.num_nvlinks and (known is None or known.num_nvlinks > 0 or max(self.tps) == 1),
            pipeline and max(self.pps) == 1,
        )
        return tuple(aspect for aspect, new in zip(ASPECTS, differs, strict=True) if new)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Standard deviations of ln(measured / predicted), by cause."""

    base: float
    """Where everything was checked."""
    parts: Mapping[str, float]
    """Part of ``PARTS`` -> standard deviation of that part's time."""
    new: Mapping[str, float]
    """Aspect of ``ASPECTS`` -> what it adds if it is new."""
    calibrated: float
    """Deviation of whole predictions whose every term was measured on the machine itself."""


def shares_of(terms: "Mapping[str, Floats]") -> "dict[str, Floats]":
    """Part of ``PARTS`` -> its share of the time per token, from all its terms (``served.TERMS``)."""
    import numpy as np

    whole = sum(terms.values(), np.zeros(1))
    return {part: sum((terms[name] for name in names), np.zeros(1)) / whole for part, names in PARTS.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How a question stands to what was checked."""

    spread: Spread
    nearest: Checked | None
    """None if nothing was checked."""
    new: tuple[str, ...]
    """The ``ASPECTS`` that are new."""
    calibrated: bool = False
    """Whether every term was measured on the machine itself."""

    @property
    def regime(self) -> str:
        """What was checked of the question and what is new, in words."""
        if self.calibrated:
            return "calibrated"
        known = [aspect for aspect in ASPECTS if aspect not in self.new]
        parts = (("checked", known), ("new", self.new))
        return "; ".join(f"{word}: {', '.join(names)}" for word, names in parts if names)

    def half_width(self, shares: "Mapping[str, Floats]") -> "Floats":
        """Half of the interval of ln(measured / predicted) that holds nine of ten, by ``shares_of`` the terms."""
        import numpy as np

        spread = self.spread
        if self.calibrated:
            return NINETY * spread.calibrated * np.ones_like(shares["memory"])
        variance = np.full_like(shares["memory"], spread.base**2)
        for part, share in shares.items():
            variance += (spread.parts[part] * share) ** 2
        for each in self.new:
            variance += (spread.new[each] * touched(each, shares)) ** 2
        return NINETY * np.sqrt(variance)

    def __str__(self) -> str:
        if self.calibrated:
            within = fixed(100 * math.expm1(NINETY * self.spread.calibrated))
            return f"Every term was measured on this machine: nine of ten such predictions were within {within} %."
        if self.nearest is None:
            return "Nothing like it was checked."
        new = f"new here: {', '.join(self.new)}" if self.new else "nothing is new here"
        return f"Nearest that was checked: {self.nearest}; {new}."

    @classmethod
    def of(
        cls,
        checked: Sequence[Checked],
        spread: Spread,
        model: ModelSpec,
        gpu: Gpu,
        engine: str,
        *,
        split: bool,
        pipeline: bool,
        measured: Collection[str] = (),
    ) -> "Standing":
        """Beside the configuration that leaves the narrowest interval.

        Args:
            checked, spread: what the constants were compared with, and how far off they were.
            model, gpu, engine: what is asked.
            split: whether GPUs share layers.
            pipeline: whether over stages.
            measured: aspects that a calibration has settled.
        """

        def new(one: Checked | None) -> tuple[str, ...]:
            lacking = ASPECTS if one is None else one.lacks(model, gpu, engine, split=split, pipeline=pipeline)
            asked = {"links": split, "pipeline": pipeline}
            return tuple(each for each in lacking if each not in measured and asked.get(each, True))

        def width(one: Checked) -> tuple[float, int]:
            return sum(spread.new[aspect] ** 2 for aspect in new(one)), -one.num_cells

        nearest = min(checked, key=width, default=None)
        return cls(spread=spread, nearest=nearest, new=new(nearest))


def touched(aspect: str, shares: "Mapping[str, Floats]") -> "Floats":
    """The share of the time that is less certain where ``aspect`` is new, by ``shares_of`` the terms."""
    import numpy as np

    parts = TOUCHES.get(aspect)
    return np.ones_like(shares["memory"]) if parts is None else np.asarray(sum(shares[part] for part in parts))


@cache
def family(name: str) -> str:
    """A model's family, by its name: the letters before the first number (``llama``, ``qwen``)."""
    found = re.match(r"(?:meta-)?([a-z]+)", name.rsplit("/", 1)[-1].lower())
    return found.group(1) if found else name


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low}-{high}"
