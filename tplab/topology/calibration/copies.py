"""Copies of a model on the ranks of a cluster: any groups, real or emulated links, computing or waiting.

``tplab.models.generate`` puts one copy of a model on all ranks, in order, over the backend's own links. To measure what
a layout costs, the advisor needs more: several copies side by side, the groups that placement chose, links that are
declared, and stages that wait where there are more ranks than cores. The engine that runs the steps is the same one;
only what it is given differs.

Runs on the ranks. Weights are random and need not be the same on every layout: only times are looked at.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist

from tplab.cluster import Rank
from tplab.collectives.emulated import EmulatedGroup, sleep_until
from tplab.collectives.emulated_link import EmulatedLink, LinkTable
from tplab.collectives.transport import ProcessGroupTransport, Transport
from tplab.layers.comm import Comm, NullComm, ProcessGroupComm
from tplab.layers.emulated_comm import EmulatedComm
from tplab.layers.shards import VocabShard
from tplab.models.checkpoint import torch_dtype
from tplab.models.decoder import Stage
from tplab.models.loading import Loaded
from tplab.models.records import LoadReport
from tplab.models.shards import Layout
from tplab.models.spec import ModelConfig

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Links = LinkTable | EmulatedLink | None
_KEY = "tplab.topology"


def subgroup(rank: Rank, ranks: Sequence[int]) -> "ProcessGroup | None":
    """The process group of these ranks, made once; None on the others. To be called by every rank of the cluster."""
    wanted = tuple(sorted(ranks))
    if len(wanted) == rank.world_size:
        return rank.group
    held: dict[tuple[int, ...], Any] = rank.store.setdefault((f"{_KEY}.groups", rank.world_size), {})
    if wanted not in held:
        held[wanted] = dist.new_group(list(wanted))
    return held[wanted] if rank.index in wanted else None


def links_among(links: "LinkTable | EmulatedLink", ranks: Sequence[int]) -> LinkTable:
    """The links among ``ranks``, numbered anew from 0."""
    if isinstance(links, EmulatedLink):
        return LinkTable(default=links)
    number = {rank: index for index, rank in enumerate(sorted(ranks))}
    inside = {
        (number[source], number[target]): link
        for (source, target), link in links.overrides.items()
        if source in number and target in number
    }
    return LinkTable(default=links.default, overrides=inside)


def comm_of(rank: Rank, ranks: Sequence[int], links: Links) -> Comm | None:
    """Collectives of these ranks, as layers use them; None on the others. To be called by every rank."""
    if len(ranks) == 1:
        return NullComm() if rank.index in ranks else None
    group = subgroup(rank, ranks)
    if group is None:
        return None
    if links is None:
        return ProcessGroupComm(group)
    return EmulatedComm(EmulatedGroup(group, links_among(links, ranks)))


def p2p_of(rank: Rank, links: Links) -> Transport:
    """Messages between all ranks of the cluster, one at a time, as the engine sends them."""
    if links is None:
        return ProcessGroupTransport(rank.group, batched=False)
    return EmulatedGroup(rank.group, links)


def load_random(config: ModelConfig, layout: Layout, place: int, comm: Comm, *, device: torch.device) -> Loaded:
    """This place's stage with random weights, of a spread that keeps activations finite.

    The same million numbers over and over: drawing billions would take longer than what is measured.

    Args:
        config: the model.
        layout, place: how it is cut, and the rank's place in that: stage·t + index.
        comm: the ranks that share the layers.
        device: the device for the weights.
    """
    index, _ = layout.place(place)
    dtype = torch_dtype(config.dtype)
    stage = Stage(config, layout.spec(index), comm, dtype=dtype)
    drawn = torch.empty(1_000_003, dtype=dtype, device=device).normal_()  # prime: rows differ
    for name, weight in list(stage.named_parameters()):
        if name == "head.weight" and stage.shares_table:
            continue
        if weight.dim() > 1:
            copies = -(-weight.numel() // drawn.numel())
            value = drawn.repeat(copies)[: weight.numel()].view(weight.shape) * weight.shape[-1] ** -0.5
        else:
            value = torch.full(weight.shape, 1.0 - config.norm_offset, dtype=weight.dtype, device=device)
        stage.set(name, value)
    return _loaded(stage, comm, layout, place)


class StageTimes(NamedTuple):
    """Seconds that a stage's computation takes, without communication."""

    prefill_s: float
    decode_s: float


class EmulatedStage:
    """Stands for a ``Stage`` where there are more ranks than cores: waits as long as it was timed, and communicates.

    The sums of its layers and of the embedding are real, and of the real size; so is everything around it.
    """

    def __init__(self, stage: Stage, times: StageTimes, comm: Comm, device: torch.device) -> None:
        self.spec, self.config, self.vocab = stage.spec, stage.config, stage.vocab
        self._times, self._comm = times, comm
        self._like = torch.empty(0, dtype=next(stage.parameters()).dtype, device=device)
        self._rows = VocabShard.of(self.config.vocab_size, comm.index, comm.size).rows

    def parameters(self) -> Any:
        """One, for its dtype."""
        return iter([self._like])

    def make_caches(self, batch: int, max_length: int) -> "list[_NoCache]":
        return [_NoCache()]

    def why_no_decode(self) -> str:
        """It has no kernels."""
        return "stages wait instead of computing"

    def set_strategy(self, strategy: object) -> None:
        """Waits and sums in turns, whatever the strategy."""

    def __call__(self, x: torch.Tensor, *, padding: Any, caches: "list[_NoCache]") -> torch.Tensor:
        seconds = self._times.decode_s if caches[0].length else self._times.prefill_s
        caches[0].length += x.shape[1]
        hidden_BSD = self._like.new_zeros((x.shape[0], x.shape[1], self.config.hidden_size))
        parts = 2 * self.spec.num_layers if self._comm.size > 1 else 1
        if self.spec.first:
            self._comm.all_reduce(hidden_BSD)
        for _ in range(parts):
            wait_s(seconds / parts)
            self._comm.all_reduce(hidden_BSD)
        return hidden_BSD if not self.spec.last else self._like.new_zeros((x.shape[0], self._rows))


class _NoCache:
    """A cache without memory: it counts only how far a sequence has come."""

    num_bytes = 0

    def __init__(self) -> None:
        self.length = 0


def waiting(loaded: Loaded, times: StageTimes, comm: Comm, device: torch.device) -> Loaded:
    """The stage with waiting in the place of computation; its weights may be on the meta device."""
    stage: Any = EmulatedStage(loaded.stage, times, comm, device)
    return _loaded(stage, comm, loaded.layout, loaded.place)


def wait_s(seconds: float) -> None:
    """Sleep so long, to some microseconds where a core is free."""
    sleep_until(time.monotonic_ns() + round(seconds * 1e9))


def _loaded(stage: Any, comm: Comm, layout: Layout, place: int) -> Loaded:
    report = LoadReport(load_s=0.0, read_bytes=0, weight_bytes=0, peak_bytes=None)
    return Loaded(stage=stage, comm=comm, layout=layout, place=place, report=report)
