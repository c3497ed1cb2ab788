"""Decode steps with everything that they read and write in one place, launched one by one or as one CUDA graph.

A decode step of one token launches so many small kernels that the host cannot keep up: eagerly, a layer takes tenths of
a millisecond of host time whatever its weights, and tensor parallelism has nothing to win. Serving engines replay
graphs, and so does ``generate`` wherever it can.

One graph per batch shape, for every length: how many tokens are in the caches is a number in the device's memory, which
the step itself counts on, as it writes its token where the next step reads it. A graph per place in the cache needs
nothing of the kind, but a capture per token of the output.

Captured steps are kept with the model, so that the next generation of their shape captures nothing. Prompts, and
whatever comes for the first time, run as they are: libraries choose their algorithms and take their memory then, which
must not be captured.

Legend: B sequences, D hidden.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from tplab.layers.comm import Comm, why_not_captured
from tplab.measure.clock import synchronize
from tplab.measure.graph import capture
from tplab.models.decoder import Padding, Stage
from tplab.models.records import Request
from tplab.models.sampling import Sampler

_CAPACITY_STEP = 256
"""Caches have a multiple of so many places: a length more or less then finds the same graph."""
_MOST_KEPT = 8
"""Captured steps that are kept with a model; the one that was not used for longest goes first."""
_WARM_UPS = 2


class StepShape(NamedTuple):
    """What two decode steps must have in common to be one graph."""

    batch: int
    """B."""
    capacity: int
    """Places in the caches."""
    choice: tuple[Any, ...]
    """How tokens are chosen: margins, temperature, top_k and top_p of the request."""

    @classmethod
    def of(cls, request: Request, batch: int, length: int) -> "StepShape":
        """For sequences of at most ``length`` tokens in the caches."""
        capacity = -(-length // _CAPACITY_STEP) * _CAPACITY_STEP
        return cls(batch, capacity, (request.margins, request.temperature, request.top_k, request.top_p))


class DecodeStep:
    """The decode steps of one micro-batch on one rank.

    ==========  =====================  ======================================================
    in memory   shape                  what
    ==========  =====================  ======================================================
    caches                             keys and values, one cache per layer
    x           (B, 1) or (B, 1, D)    what the next step reads: token ids on the first stage,
                                       hidden states on the others
    past        (1,)                   tokens in the caches
    ==========  =====================  ======================================================

    A step returns tokens (B,) and margins (B,) or None on the last stage, else hidden states (B, 1, D) and None. With a
    graph they are the same memory at every step: what is to be kept must be copied, or sent and waited for, before the
    next. A stage alone writes its tokens into ``x`` itself.

    Args:
        stage: whose steps.
        comm: the ranks that share the stage.
        request: how tokens are chosen.
        shape: sequences, and places in the caches.
    """

    def __init__(self, stage: Stage, comm: Comm, request: Request, shape: StepShape) -> None:
        like = next(stage.parameters())
        device, batch, hidden = like.device, shape.batch, stage.config.hidden_size
        self.shape = shape
        self.caches = stage.make_caches(batch, shape.capacity)
        self.sampler = Sampler(request, 0, batch, stage.vocab, comm, device) if stage.spec.last else None
        if stage.spec.first:
            self.x = torch.zeros((batch, 1), dtype=torch.int64, device=device)
        else:
            self.x = torch.zeros((batch, 1, hidden), dtype=like.dtype, device=device)
        self.past = torch.zeros(1, dtype=torch.int32, device=device)
        self._padding = Padding([1] * batch, 1, device)
        self._stage = stage
        self._is_warm = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._made: tuple[torch.Tensor, torch.Tensor | None] | None = None

    @property
    def is_captured(self) -> bool:
        """Whether steps are replayed from a graph."""
        return self._graph is not None

    def restart(self, padding: Padding, request: Request, start: int) -> None:
        """For the sequences from ``start`` on of a request; their prompts are to be put into the empty caches."""
        for cache in self.caches:
            cache.reset()
        self._padding.start_B.copy_(padding.start_B)
        self._padding.shorter.copy_(padding.shorter)
        self.past.fill_(padding.longest)
        if self.sampler is not None:
            self.sampler.restart(request, start)

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The next step, of ``x``."""
        if self._graph is None or self._made is None:
            return self._run()
        self._graph.replay()
        return self._made

    def warm_up(self) -> None:
        """Steps as they are, with their collectives: all ranks that share the stage make them together."""
        if self._is_warm:
            return
        for _ in range(_WARM_UPS):
            self.past.zero_()
            self._run()
        synchronize(self.past.device)
        self._is_warm = True

    def capture(self) -> None:
        """From now on steps are replayed. To be followed by :meth:`restart`."""
        self.warm_up()
        self._graph, self._made = capture(self._run)

    def release(self) -> None:
        """Launch steps one by one from now on."""
        self._graph = self._made = None

    def _run(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        stage = self._stage
        y = stage.decode(self.x, padding=self._padding, caches=self.caches, past=self.past)
        self.past += 1
        if self.sampler is None:
            return y, None
        tokens_B, margins_B = self.sampler(y)
        if stage.spec.first:
            self.x.copy_(tokens_B[:, None])
        return tokens_B, margins_B


class KeptSteps:
    """Captured steps of a model on one rank, the one used last at the end."""

    def __init__(self) -> None:
        self._kept: list[DecodeStep] = []

    def __len__(self) -> int:
        return len(self._kept)

    def taken(self, shapes: Sequence[StepShape]) -> list[DecodeStep] | None:
        """One for each shape, those of equal shapes apart; None unless there are all of them."""
        left, found = list(self._kept), []
        for shape in shapes:
            step = next((step for step in left if step.shape == shape), None)
            if step is None:
                return None
            left.remove(step)
            found.append(step)
        self._kept = left + found
        return found

    def keep(self, steps: Sequence[DecodeStep]) -> None:
        """Add what was captured for one generation; of the others only as many as there is room for."""
        room = max(0, _MOST_KEPT - len(steps))
        self._kept = [*(self._kept[-room:] if room else []), *steps]

    def has(self, shapes: Sequence[StepShape]) -> bool:
        """Whether there is one for each shape, those of equal shapes apart."""
        return self.taken(shapes) is not None

    def forget(self, shapes: Sequence[StepShape]) -> None:
        """Let those of these shapes go."""
        self._kept = [step for step in self._kept if step.shape not in shapes]

    def drop(self) -> None:
        """Let all of them go, with their memory."""
        self._kept.clear()


def why_no_graph(stage: Stage, comm: Comm) -> str | None:
    """The reason why decode steps of a stage cannot be replayed from a CUDA graph, in words; None where they can. The
    same on all ranks of a cluster, whose devices and backend are alike."""
    reason = stage.why_no_decode()
    if reason is not None:
        return reason
    device = next(stage.parameters()).device
    if device.type != "cuda":
        return f"CUDA graphs need a GPU; this rank computes on {device}"
    return why_not_captured(comm)
