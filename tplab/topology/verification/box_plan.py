"""How large the steps of ``measure_box`` are: on GPUs, on GPUs that ranks share, and on a CPU. Data."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tplab.layers.overlap import StackPlan
from tplab.models.spec import ModelConfig
from tplab.topology.advisor.workload import Workload
from tplab.topology.verification.box_layouts import BoxCase

_TINY = ModelConfig(
    model_type="llama",
    vocab_size=256,
    hidden_size=96,
    intermediate_size=96,
    num_layers=8,
    num_heads=24,
    num_kv_heads=24,
    head_dim=4,
    max_positions=64,
)


_GENERATED = tuple(
    BoxCase(model="llama-3.1-8b", workload=Workload(input_length=prompt, output_length=16, concurrency=requests))
    for prompt, requests in ((128, 1), (2048, 8))
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxPlan:
    """How large the steps are."""

    sizes: tuple[int, ...]
    """Sizes of the all-reduces in bytes."""
    own_up_to: int
    """Largest message in bytes for algorithms of our own, which are made of many small CUDA kernels."""
    tokens: tuple[int, ...]
    """Tokens of the steps in which layers are timed."""
    stack: StackPlan
    """Blocks of a stack, and of a pipeline stage; its dtype is that of messages, too."""
    micro_batch_tokens: int
    """Tokens of each micro-batch of a pipeline, which has m = 2p of them."""
    cases: tuple[BoxCase, ...]
    """Models that are run in every layout, each with its workload."""
    generated: tuple[BoxCase, ...]
    """Loads of one model that generates in every layout of 1, 2, 4, ... ranks, profiled kernel by kernel."""
    calibration: Mapping[str, Any]
    """Arguments of the ``calibrate`` that runs before the layouts."""

    @classmethod
    def large(cls) -> "BoxPlan":
        """A plan for GPUs: messages up to 1 GiB, blocks of Llama-3.1 70B's shape."""
        return cls(
            sizes=tuple(1 << power for power in range(10, 31)),
            own_up_to=1 << 25,
            tokens=(1024, 4096, 16384),
            stack=StackPlan(
                batch=1, hidden=8192, num_heads=64, num_kv_heads=8, intermediate=28672, dtype="bfloat16", iterations=7
            ),
            micro_batch_tokens=4096,
            cases=tuple(
                BoxCase(model=model, workload=Workload(input_length=prompt, output_length=new, concurrency=requests))
                for model in ("llama-3.1-70b", "llama-3.1-8b")
                for prompt, new, requests in ((128, 32, 8), (2048, 32, 32))  # decode counts; prompts count
            ),
            generated=_GENERATED,
            calibration={},
        )

    @classmethod
    def shared(cls) -> "BoxPlan":
        """A plan for ranks that share GPUs, whose messages take milliseconds: blocks of Llama-3.1 8B's shape, and
        generation on as many ranks as there are GPUs. No layouts: they would compare how the ranks take turns."""
        return replace(
            cls.large(),
            sizes=tuple(1 << power for power in range(10, 21)),
            own_up_to=1 << 18,
            tokens=(1024,),
            stack=StackPlan(
                batch=1, hidden=4096, num_heads=32, num_kv_heads=8, intermediate=14336, dtype="bfloat16", iterations=5
            ),
            micro_batch_tokens=1024,
            cases=(),
        )

    @classmethod
    def small(cls) -> "BoxPlan":
        """A plan for CPUs, of some seconds in all; heads and features divide over 2, 3, 4, 6 and 8 ranks."""
        return cls(
            sizes=(1 << 10, 1 << 16),
            own_up_to=1 << 16,
            tokens=(16, 64),
            stack=StackPlan(batch=1, hidden=96, num_heads=24, num_kv_heads=8, intermediate=144, depth=1, iterations=2),
            micro_batch_tokens=16,
            cases=(BoxCase(model=_TINY, workload=Workload(input_length=8, output_length=4, concurrency=6)),),
            generated=(BoxCase(model=_TINY, workload=Workload(input_length=8, output_length=4, concurrency=2)),),
            calibration={"rounds": 1, "sizes": (1 << 12, 1 << 16), "tokens": (1, 4, 16), "widths": (64, 128)},
        )


def powers_below(num_ranks: int) -> list[int]:
    """..., 4, 2, 1: the powers of two below a number of ranks."""
    return [1 << power for power in reversed(range((num_ranks - 1).bit_length()))]
