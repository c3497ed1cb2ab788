"""One model, one kind of GPU, so many users of so many tokens: what every GPU of a layout holds. Pure.

The memory model is ``tplab.topology.advisor.memory``; what is added here is weights that were counted in files, and the
search over layouts and settings.

Letters: t tensor-parallel degree, p stages.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tplab.models.found.headers import StoredWeights
from tplab.models.found.named import blocks_bytes
from tplab.models.shards import Layout, can_cut, why_not
from tplab.models.spec import ModelSpec
from tplab.shown import as_GB
from tplab.topology.advisor.constants import DEFAULT
from tplab.topology.advisor.memory import CACHE_PAGE, LayoutMemory
from tplab.topology.advisor.workload import EnginePolicy, Workload
from tplab.topology.machine.machine import Gpu

MOST_CONTEXT = 1 << 24
"""Longest context in tokens, where the model names none."""
MOST_USERS = 1 << 20
MOST_GPUS = 4096
USUAL_NUMBERS = (1, 2, 3, 4, 6, *range(8, 65, 8))
"""Numbers of GPUs in which machines have them, the most that are looked at for one copy of a model last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked, of a model whose description is known."""

    spec: ModelSpec
    weights: StoredWeights | None
    """What its files hold; None: weights follow from the description."""
    gpu: Gpu
    per_node: int
    """Most GPUs that may share a layer: of one node."""
    gpus: int
    """GPUs for one copy of the model: as many as the layout can use."""
    context: int
    """Tokens of a user's request at its end."""
    users: int
    """Requests in flight."""
    engine: str
    gpu_memory_utilization: float

    @property
    def longest(self) -> int:
        """Longest context that may be asked for, in tokens."""
        return self.spec.max_length or MOST_CONTEXT

    def workload(self, users: int, context: int) -> Workload:
        """So many requests of so many tokens, under the engine's default settings but for those that were asked for. An
        engine that is to run more at once than it does by default must be told, and reserves memory for them."""
        most = DEFAULT.engines.get(self.engine, DEFAULT.engines["generic"]).largest_batch(self.gpu)
        policy = EnginePolicy(
            name=self.engine,
            gpu_memory_utilization=self.gpu_memory_utilization,
            max_num_seqs=users if users > most else None,
        )
        return Workload(input_length=max(1, context - 1), output_length=1, concurrency=max(1, users), engine=policy)

    def memory(self, tp: int, pp: int, *, users: int | None = None, context: int | None = None) -> LayoutMemory:
        """The ranks of one copy on ``tp`` × ``pp`` GPUs, by default as it was asked."""
        asked = self.workload(self.users if users is None else users, self.context if context is None else context)
        memory = LayoutMemory.of(self.spec, self.gpu, asked, Layout.even(self.spec, tp, pp, 1))
        return memory if self.weights is None else replace(memory, weights=self._counted(memory, self.weights))

    def holds(self, tp: int, pp: int, *, users: int | None = None, context: int | None = None) -> bool:
        """Whether a layout holds these users of that context, by default as it was asked."""
        requests = self.users if users is None else users
        return self.memory(tp, pp, users=requests, context=context).fullest(requests).free >= 0

    def max_users(self, tp: int, pp: int) -> int:
        """Most users of that context that a layout holds; 0 where it holds none."""
        most = min(self.memory(tp, pp, users=1).max_requests, MOST_USERS)
        return bisect_left(range(most), True, key=lambda n: not self.holds(tp, pp, users=n + 1))

    def max_context(self, tp: int, pp: int) -> int:
        """Longest context in tokens with which a layout holds the users, in whole pages unless it is all that the model
        takes; 0 where there is none."""
        if self.holds(tp, pp, context=self.longest):
            return self.longest
        pages = range(1, self.longest // CACHE_PAGE + 1)
        return CACHE_PAGE * bisect_left(pages, True, key=lambda n: not self.holds(tp, pp, context=n * CACHE_PAGE))

    def max_tokens(self, tp: int, pp: int) -> int:
        """Tokens that the cache of a layout holds, over all users: what vLLM logs as the size of its KV cache. Windowed
        layers keep fewer, so with them it depends on the context."""
        kept = self.context / self.spec.kept_tokens(self.context)
        return int(self.memory(tp, pp).token_capacity() * kept) // CACHE_PAGE * CACHE_PAGE

    def layouts(self) -> Iterator[tuple[int, int]]:
        """Every t and p with no more than the GPUs that there are, which the model can be cut to."""
        for tp in range(1, min(self.gpus, self.per_node) + 1):
            if can_cut(self.spec, tp, 1):
                yield from ((tp, pp) for pp in range(1, min(self.gpus // tp, self.spec.num_layers) + 1))

    def layout(self) -> tuple[int, int]:
        """The layout for so many GPUs: of those that hold the users the one with the fewest stages, and of these the
        one that holds most; where none holds them, the one with the fewest stages on all GPUs.

        Tensor parallelism first, inside a node, and stages where it does not fit or divide, as vLLM advises
        (docs.vllm.ai, serving/parallelism_scaling): a token waits for every stage.
        """
        layouts = list(self.layouts())
        holding = [each for each in layouts if self.holds(*each)]
        if not holding:
            return max(layouts, key=lambda each: (math.prod(each), each[0]))
        stages = min(pp for _, pp in holding)
        return max((each for each in holding if each[1] == stages), key=lambda each: (self.max_users(*each), -each[0]))

    def least_gpus(self, most: int = USUAL_NUMBERS[-1]) -> int | None:
        """Fewest GPUs of ``USUAL_NUMBERS``, up to ``most``, that hold the users; None if those do not."""
        usual = [each for each in replace(self, gpus=most).layouts() if math.prod(each) in USUAL_NUMBERS]
        layouts = sorted(usual, key=lambda each: (math.prod(each), each[1]))
        return next((math.prod(each) for each in layouts if self.holds(*each)), None)

    def why_stages(self, tp: int, pp: int) -> str:
        """Why not all GPUs of a layout share the layers, in a clause; empty where they do, or one node has too few."""
        whole = tp * pp
        if pp == 1 or whole > self.per_node:
            return ""
        if cannot := why_not(self.spec, whole, 1):
            return f"not TP {whole}, which {cannot.rule.partition(':')[0]}"
        lacks = -self.memory(whole, 1).fullest(self.users).free
        return f"not TP {whole}, which lacks {as_GB(lacks)} on each GPU" if lacks > 0 else ""

    def _counted(self, memory: LayoutMemory, weights: StoredWeights) -> tuple[float, ...]:
        """Bytes of weights of the ranks that are looked at, by the files: the layers as the files have them, shared as
        the description's are; towers on the first stage, shared by its ranks; embedding and head by the description,
        which knows how they are padded and whether they are tied."""
        spec, layout = self.spec, memory.layout
        scale = weights.served_bytes(spec.activation_itemsize, "blocks") / blocks_bytes(spec)
        towers = weights.served_bytes(spec.activation_itemsize, "towers")
        counted = []
        for (stage, index), held in zip(memory.places, memory.weights, strict=True):
            matmul, small = spec.block_params_of_rank(index, layout.tp)
            blocks = layout.layers_of_stage[stage] * (matmul * spec.weight_itemsize + small * spec.activation_itemsize)
            counted.append(held + (scale - 1) * blocks + (towers / layout.tp if stage == 0 else 0))
        return tuple(counted)
