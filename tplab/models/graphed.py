"""Decode steps replayed from CUDA graphs: one launch instead of some ten per layer.

A decode step of one token launches so many small CUDA kernels that the host cannot keep up: eagerly, a layer takes some
0.3 ms of host time whatever its weights, and tensor parallelism has nothing to win. Serving engines replay graphs, and
so must whoever wants to measure what a layout is worth to them.

One graph per place in the cache, not one graph over a cache of full length with the length in a tensor: the layers stay
as they are, and attention reads what is there and no more. It costs a capture per token of the output, which is right
for a batch that is run several times over, as a measurement is, and wrong for a server.

Prefill, and whatever comes for the first time, runs as it is: libraries choose their algorithms and take their memory
then, which must not be captured.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tplab.measure.graph import capture
from tplab.models.decoder import Padding

if TYPE_CHECKING:
    from tplab.layers.core_attention import KVCache
    from tplab.models.decoder import Stage


WARM_UPS = 3
"""Number of generations until everything is replayed: one as it is, one that captures, and the first replay."""


class _Step(NamedTuple):
    """A captured step."""

    graph: torch.cuda.CUDAGraph
    x: torch.Tensor
    """Tensor that the step reads."""
    y: torch.Tensor
    """Tensor that the step writes."""
    padding: Padding
    """Padding whose memory the step reads too, so that it must be held."""


class GraphedStage:
    """A :class:`~tplab.models.decoder.Stage` on a GPU, for batches of the same shapes again and again.

    The first generation runs eagerly, the second captures as it goes, the third and later ones replay. Call
    :meth:`restart` before each: its caches are the same memory every time, since graphs write there.

    Results are those of the stage, bitwise: the same CUDA kernels in the same order. There is no ``every_position``.

    Raises:
        ValueError: a model that scales its embedding by a number from the host (Gemma): a graph cannot hold that.
    """

    def __init__(self, stage: "Stage") -> None:
        if stage.config.embedding_scale != 1.0:
            raise ValueError(
                f"a {stage.config.model_type} model with embedding_scale={stage.config.embedding_scale} cannot be "
                f"captured in a CUDA graph: run it eagerly"
            )
        self.spec, self.config, self.vocab = stage.spec, stage.config, stage.vocab
        self._stage = stage
        self._caches: list[tuple[tuple[int, int], list[KVCache]]] = []
        self._handed_out = 0
        self._seen: set[tuple[Any, ...]] = set()
        self._steps: dict[tuple[Any, ...], _Step] = {}
        self._pool: Any = None

    @property
    def num_graphs(self) -> int:
        """Steps that are captured."""
        return len(self._steps)

    def parameters(self) -> Any:
        """The stage's."""
        return self._stage.parameters()

    def set_strategy(self, strategy: Any) -> None:
        """The stage's. Steps that were captured stay as they are."""
        self._stage.set_strategy(strategy)

    def restart(self) -> None:
        """Hand the same caches out again, from the first."""
        self._handed_out = 0

    def make_caches(self, batch: int, max_length: int) -> "list[KVCache]":
        """Caches as the stage makes them; the i-th call after :meth:`restart` gives the i-th ones there are,
        emptied."""
        shape, place = (batch, max_length), self._handed_out
        if place < len(self._caches) and self._caches[place][0] != shape:
            raise ValueError(
                f"captured for batch and length {self._caches[place][0]}, got {shape}: use another GraphedStage"
            )
        if place == len(self._caches):
            self._caches.append((shape, self._stage.make_caches(batch, max_length)))
        self._handed_out += 1
        caches = self._caches[place][1]
        for cache in caches:
            cache.reset()
        return caches

    def __call__(self, x: torch.Tensor, *, padding: Padding, caches: "list[KVCache]") -> torch.Tensor:
        """The stage's output for the last position. It is overwritten by the next replay of the same step."""
        past = caches[0].length
        key = (id(caches), past, padding.lengths)
        if past == 0 or x.shape[1] > 1 or key not in self._seen:
            self._seen.add(key)
            return self._stage(x, padding=padding, caches=caches)  # type: ignore[no-any-return]
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = self._capture(x, padding, caches)
        else:
            step.x.copy_(x)
            for cache in caches:
                cache.length += 1
        step.graph.replay()
        return step.y

    def _capture(self, x: torch.Tensor, padding: Padding, caches: "list[KVCache]") -> _Step:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        held = x.clone()
        graph, y = capture(lambda: self._stage(held, padding=padding, caches=caches), self._pool)
        return _Step(graph, held, y, padding)
