"""Stages of a real model's shape: transformer blocks with weights by seed, made on the GPU that holds the stage."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tplab.checks import ArgumentError, check_count
from tplab.layers.overlap import StackPlan, plain_stack
from tplab.pipeline.job import RunPlan
from tplab.pipeline.run import MeasuredTrace, run_trace, submit_schedule
from tplab.pipeline.schedule import Schedule

if TYPE_CHECKING:
    from tplab.cluster import Cluster, Rank


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockStages:
    """What ``run_schedule`` takes as ``stage``, ``inputs`` and ``loss``; ``run`` calls it."""

    stack: StackPlan
    """Shape, dtype and number of blocks of one rank's share of the model."""
    tokens: int
    """Tokens of a micro-batch."""
    chunks: int = 1
    """Stages per rank, v, over which its blocks are divided evenly."""
    model: str = ""
    """Whose shape it is, in words."""

    def __post_init__(self) -> None:
        check_count("tokens", self.tokens, least=1)
        if self.stack.depth % check_count("chunks", self.chunks, least=1):
            raise ArgumentError("chunks", self.chunks, f"must divide the {self.stack.depth} blocks of a rank")

    def __call__(self, rank: "Rank", index: int) -> Any:
        """The module of a stage."""
        import torch

        one = replace(self.stack, depth=self.stack.depth // self.chunks)
        return torch.nn.Sequential(*plain_stack(rank, one, seed=10 * index))

    def inputs(self, rank: "Rank", micro_batch: int) -> Any:
        """A micro-batch: (1, tokens, hidden), by seed."""
        import torch

        # Drawn where it is used, while the run goes on: a processor would take longer for it than the stage does.
        generator = torch.Generator(rank.device).manual_seed(micro_batch)
        shape, dtype = (1, self.tokens, self.stack.hidden), getattr(torch, self.stack.dtype)
        return torch.randn(shape, generator=generator, device=rank.device, dtype=dtype)

    def loss(self, output: Any) -> Any:
        """The mean square of what comes out."""
        return output.float().square().mean()

    def run(self, cluster: "Cluster", schedule: Schedule, *, timeout: float = 120.0) -> MeasuredTrace:
        """Run ``schedule`` with these stages, divided among its chunks, once before the run that counts."""
        plan = self.plan(schedule)
        run = submit_schedule(cluster, plan, timeout=timeout)
        values = run.result()
        return run_trace(plan, run.reports, cluster.provenance, values)

    def plan(self, schedule: Schedule) -> RunPlan:
        """The plan of that run. Outputs and gradients stay where they are: they are large."""
        return RunPlan(
            schedule=schedule,
            stage=replace(self, chunks=schedule.num_chunks),
            inputs=self.inputs,
            loss=None if schedule.is_inference else self.loss,
            warm_ups=1,
            keep=False,
        )

    def __str__(self) -> str:
        blocks = f"{self.stack.depth} block{'s' * (self.stack.depth > 1)}"
        whose = f" of {self.model}'s shape" if self.model else ""
        return f"{blocks}{whose} in {self.stack.dtype}, {self.tokens:,} tokens a micro-batch"


def block_stages(memory_GB: float) -> BlockStages:
    """The largest of ``SIZES`` whose training fits in ``memory_GB`` of a rank with 8 micro-batches held at once, as
    GPipe does; the smallest where none does."""
    return next((size for size in SIZES if _training_GB(size) < 0.7 * memory_GB), SIZES[-1])


def _training_GB(size: BlockStages, held: int = 8) -> float:
    """Weights with their gradients, and what ``held`` micro-batches keep for the backward: some six activations of the
    hidden width and four of the intermediate one a block, by count of what autograd saves in ``tplab.layers.plain``."""
    stack, itemsize = size.stack, 2 if size.stack.dtype == "bfloat16" else 4
    kv = stack.num_kv_heads / stack.num_heads
    weights = stack.hidden * (stack.hidden * (2 + 2 * kv) + 3 * stack.intermediate)
    kept = size.tokens * (8 * stack.hidden + 4 * stack.intermediate)
    return stack.depth * itemsize * (2 * weights + held * kept) / 1e9


def _size(model: str, hidden: int, num_heads: int, num_kv_heads: int, intermediate: int, tokens: int) -> BlockStages:
    stack = StackPlan(
        batch=1,
        hidden=hidden,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        intermediate=intermediate,
        depth=4,
        dtype="bfloat16",
    )
    return BlockStages(stack=stack, tokens=tokens, model=model)


SIZES = (
    _size("Llama-3.1 8B", 4096, 32, 8, 14336, 4096),
    _size("Llama-3.2 1B", 2048, 32, 8, 8192, 2048),
    _size("Qwen2.5 0.5B", 896, 14, 2, 4864, 1024),
)
"""Four blocks, divisible into 1, 2 and 4 chunks, in the shapes of published models (their ``config.json``), the largest
first."""
