"""A layout: how many GPUs share a layer, how many stages follow each other, how many copies run side by side.

Only what follows from the model's sizes; whether it fits in memory is asked in ``layouts``, which GPUs it takes in
``placement``.

Letters: t tensor-parallel degree, p stages, L layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tplab.models.spec import ModelSpec, divisors
from tplab.models.stages import Layout as RankLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """TP x PP x replicas."""

    tp: int
    """t, GPUs that share every layer of a stage."""
    pp: int
    """p, stages."""
    replicas: int = 1
    """Copies of the model, each on t·p GPUs, that share the requests."""
    layers_of_stage: tuple[int, ...]
    """Layers of each stage; they need not be equal."""

    @classmethod
    def of(
        cls, spec: ModelSpec, tp: int, pp: int, replicas: int = 1, layers_of_stage: Sequence[int] | None = None
    ) -> "Layout":
        """A layout with its layers split as ``tplab.models`` splits them: evenly, what is left over to the middle
        stages.

        Raises:
            ValueError: heads or MLP that ``tp`` does not divide, more stages than layers, or stages that do not add up.
        """
        reason = why_not(spec, tp, pp)
        if reason:
            raise ValueError(f"{spec.name} cannot be cut tp={tp} x pp={pp}: {reason}")
        if replicas < 1:
            raise ValueError(f"replicas must be at least 1, got {replicas}")
        split = RankLayout.of(spec.num_layers, tp, pp, layers_of_stage)
        return cls(tp=tp, pp=pp, replicas=replicas, layers_of_stage=split.layers_of_stage)

    @property
    def gpus_per_replica(self) -> int:
        """t·p."""
        return self.tp * self.pp

    @property
    def num_gpus(self) -> int:
        """t·p·replicas."""
        return self.gpus_per_replica * self.replicas

    def __str__(self) -> str:
        return f"TP {self.tp} x PP {self.pp}" + (f" x {self.replicas}" if self.replicas > 1 else "")


def why_not(spec: ModelSpec, tp: int, pp: int) -> str | None:
    """Why the model cannot be cut so, and what would do; None if it can."""
    if tp < 1 or pp < 1:
        return f"tp and pp must be at least 1, got {tp} and {pp}"
    if spec.num_heads % tp:
        return f"tp={tp} does not divide its {spec.num_heads} query heads: use {_listed(divisors(spec.num_heads))}"
    if spec.intermediate_size % tp:
        both = divisors(math.gcd(spec.num_heads, spec.intermediate_size))
        return f"tp={tp} does not divide its intermediate_size={spec.intermediate_size}: use {_listed(both)}"
    if pp > spec.num_layers:
        return f"pp={pp} stages need a layer each, and it has {spec.num_layers}: use pp of at most {spec.num_layers}"
    return None


def engine_note(spec: ModelSpec, tp: int) -> str | None:
    """What vLLM, SGLang and TensorRT-LLM refuse though it can be done: key-value heads that are neither split evenly
    nor copied evenly (tp must divide their number, or be a multiple of it)."""
    kv = spec.num_kv_heads
    if tp % kv and kv % tp:
        return f"vLLM, SGLang and TensorRT-LLM refuse tp={tp} with {kv} key-value heads; tplab.models runs it"
    return None


def _listed(numbers: Sequence[int]) -> str:
    words = [str(n) for n in numbers]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
