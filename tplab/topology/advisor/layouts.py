"""The layouts of a model over a machine: which can be, why the others cannot, and the links that each would use.

A tensor-parallel group stays inside a node, where the fast links are, or takes whole ones; stages may follow each other
over nodes. What GPUs are left over after whole replicas is said, not hidden. Which of the possible layouts is best is
not asked here.

For ``latency`` layouts become arrays. Where all links of a node are alike, GPUs are taken in order, as engines number
their ranks: those that share a layer are neighbours, then come the stages, then the replicas. Where links differ,
``placement`` chooses, and layouts are judged by the groups it finds: rank order would judge the wiring of a board, not
the layout.

Letters: t tensor-parallel degree, p stages, N layouts.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tplab.checks import ArgumentError, check_count
from tplab.models.shards import Layout, can_cut, why_not
from tplab.models.spec import ModelSpec
from tplab.shown import as_GB
from tplab.topology.advisor.allreduce import NO_LINK, Floats, Groups, Ints
from tplab.topology.advisor.constants import DEFAULT, FAMILIES, FAMILY_OF, Constants
from tplab.topology.advisor.group_links import GroupLinks, links_alike, links_in_order, links_of
from tplab.topology.advisor.memory import LayoutMemory, RankMemory
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.machine import Machine
from tplab.topology.machine.placement import Placement, place

_USUAL_GROUP = 128
"""Weights that share a scale in most checkpoints in int4."""
_Table = TypeVar("_Table", "Layouts", Groups)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One layout, and whether it can be."""

    spec: ModelSpec
    machine: Machine
    tp: int
    pp: int
    memory: LayoutMemory | None
    """What its ranks hold; None if the model cannot be cut so, or the machine too few GPUs for the layout's groups."""

    @property
    def layout(self) -> Layout | None:
        """The layout, with replicas and layers per stage; None if the model cannot be cut so."""
        return self.memory.layout if self.memory else None

    @property
    def idle(self) -> int:
        """Number of GPUs left over."""
        return self.machine.num_gpus - (self.layout.num_gpus if self.layout else 0)

    @property
    def fullest(self) -> RankMemory | None:
        """The rank with the least left at one request; None if the model cannot be cut so."""
        return self.memory.fullest(1) if self.memory else None

    @property
    def missing_bytes(self) -> float:
        """Bytes that the fullest rank lacks for a single request; 0 if it lacks none or the model cannot be cut so."""
        return max(0.0, -self.fullest.free) if self.fullest else 0.0

    @property
    def max_requests(self) -> int:
        """Capacity of one replica, in requests of full length."""
        return self.memory.max_requests if self.memory else 0

    @property
    def feasible(self) -> bool:
        return self.memory is not None and not self.missing_bytes

    @property
    def reason(self) -> str | None:
        """Why the layout cannot be; None if it can."""
        if self.fullest is None:
            cannot = why_not(self.spec, self.tp, self.pp)
            return f"{cannot.argument} {cannot.rule}" if cannot else no_room_on(self.machine, self.tp, self.pp)
        return _too_full(self.fullest) if self.missing_bytes else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences to be shown with the layout."""
        tp, kv, notes = self.tp, self.spec.num_kv_heads, []
        if self.layout is None:
            return ()
        if tp % kv and kv % tp:  # neither split evenly nor copied evenly
            notes.append(
                f"vLLM, SGLang and TensorRT-LLM refuse tp={tp} with {kv} key-value heads; tplab.models runs it"
            )
        inner = self.spec.intermediate_size
        if (
            self.spec.weight_precision == "int4"
            and not self.spec.quant_method
            and tp > 1
            and inner // tp % _USUAL_GROUP
        ):
            notes.append(
                f"checkpoints in groups of {_USUAL_GROUP}, as AWQ's and GPTQ's usually are, cannot be cut so "
                f"(intermediate_size={inner}): it takes smaller groups, or a padded one"
            )
        if (between := self.machine.network) and tp > self.machine.gpus_per_node:
            notes.append(
                f"every all-reduce crosses {math.ceil(tp / self.machine.gpus_per_node)} nodes, over {between} per GPU "
                f"({self.machine.source}): NCCL's, since the engines' own kernels stay inside a node"
            )
        if self.idle:
            notes.append(f"{self.idle} of {self.machine.num_gpus} GPUs {'is' if self.idle == 1 else 'are'} left over")
        if len(set(self.layout.layers_of_stage)) > 1:
            layers = "-".join(map(str, self.layout.layers_of_stage))
            notes.append(f"stages of {layers} layers: the longest sets the pace")
        if self.spec.tied_embeddings and self.pp > 1:
            notes.append("the tied embedding is on the first stage and on the last")
        return tuple(notes)

    def __str__(self) -> str:
        what = str(self.layout) if self.layout else f"TP {self.tp} × PP {self.pp}"
        return f"{what}: {self.reason or f'{self.max_requests} requests a replica'}"


def all_choices(
    spec: ModelSpec,
    machine: Machine,
    workload: Workload,
    *,
    tp: Iterable[int] | None = None,
    pp: Iterable[int] | None = None,
) -> list[Choice]:
    """Every TP × PP of the machine, possible or not, by t and p.

    Args:
        tp, pp: only these degrees; by default all up to a node's GPUs and whole nodes up to the model's heads, and up
            to the machine's.

    Raises:
        ValueError: no degree to choose from, or one that is no whole number of at least 1.
    """
    most = machine.gpus_per_node
    over_nodes = range(2 * most, min(machine.num_gpus, spec.num_heads) + 1, most)
    degrees = [*range(1, most + 1), *over_nodes] if tp is None else _degrees("tp", tp)
    wanted = None if pp is None else _degrees("pp", pp)
    choices = []
    for t in degrees:
        stages = range(1, max(machine.room_for(t), 1) + 1) if wanted is None else wanted
        choices += [choice(spec, machine, workload, tp=t, pp=p) for p in stages]
    return choices


def _degrees(name: str, given: Iterable[int]) -> list[int]:
    degrees = list(given) if isinstance(given, Iterable) else [given]
    if not degrees:
        raise ArgumentError(name, degrees, "must hold at least one degree")
    return [check_count(name, degree, least=1) for degree in degrees]


def choice(spec: ModelSpec, machine: Machine, workload: Workload, *, tp: int, pp: int) -> Choice:
    """Whether the model can run so on the machine, with at least one request of the workload.

    Args:
        spec, machine, workload: the model, where it runs, and what is asked.
        tp, pp: t and p; as many replicas as the machine holds.
    """
    memory = None
    if can_cut(spec, tp, pp) and not no_room_on(machine, tp, pp):
        memory = LayoutMemory.of(spec, machine.gpu, workload, Layout.even(spec, tp, pp, machine.room_for(tp) // pp))
    return Choice(spec=spec, machine=machine, tp=tp, pp=pp, memory=memory)


def no_room_on(machine: Machine, tp: int, pp: int) -> str | None:
    most, groups = machine.gpus_per_node, machine.room_for(tp)
    if not groups:
        whole = f", or whole nodes, up to {machine.num_gpus}" if machine.nodes > 1 else ""
        return f"tp={tp} GPUs would have to share each layer, and a node has {most}: use tp of at most {most}{whole}"
    if pp > groups:
        return (
            f"pp={pp} stages of {tp} GPUs need {tp * pp} GPUs, and {machine.name} has room for {groups} groups of "
            f"{tp}: use pp of at most {groups}"
        )
    return None


def _too_full(rank: RankMemory) -> str:
    parts = (
        f"weights {as_GB(rank.weights)}, one request's cache {as_GB(rank.kv)}, activations {as_GB(rank.activations)}, "
        f"workspace {as_GB(rank.workspace)}"
    )
    return (
        f"does not fit: stage {rank.stage} needs {as_GB(rank.total)} ({parts}), {as_GB(-rank.free)} more than the "
        f"{as_GB(rank.usable)} the engine may take"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Layouts:
    """N layouts on one machine, as arrays."""

    tp: Floats
    pp: Floats
    replicas: Floats
    groups: Groups
    """All-reduce group of the slowest stage."""
    hop_family: Ints
    """Family of the slowest link between two stages, an index into ``FAMILIES``."""
    hop_GBps: Floats
    """Bandwidth of that link in one direction, in GB/s."""
    hop_latency_us: Floats
    """Latency of that link, in us."""
    capacity_tokens: Floats
    """Tokens that the cache of one replica holds."""
    kv_heads: Floats
    """Number of distinct key-value heads per rank."""
    hop_pairs: tuple[frozenset[tuple[int, int]], ...] = ()
    """Pairs of GPUs that send to each other in each layout; empty if all pairs are alike."""

    def __len__(self) -> int:
        return len(self.tp)

    @classmethod
    def joined(cls, parts: "Sequence[Layouts]") -> "Layouts":
        """The layouts of all parts, one after the other; all on GPUs of one kind, with one network."""
        return _changed(parts, np.concatenate, lambda columns: sum(columns, ()))

    def take(self, at: "NDArray[np.intp]") -> "Layouts":
        """The layouts at these places, some of them several times or not at all."""
        return _changed(
            [self], lambda columns: columns[0][at], lambda columns: tuple(columns[0][i] for i in at if columns[0])
        )

    def scaled(self, scale: "Floats | float") -> "Layouts":
        """The layouts with all links inside nodes ``scale`` times as wide (where measured: all links that were)."""
        lay = self.groups
        groups = replace(lay, bandwidth_GBps=lay.bandwidth_GBps * scale, width=lay.width * scale)
        hops = np.where(self.hop_family != FAMILIES.index("network"), self.hop_GBps * scale, self.hop_GBps)
        return replace(self, groups=groups, hop_GBps=hops)

    def slower(self, latency_us: "Floats | float") -> "Layouts":
        """The layouts with so much more latency on all links inside nodes, in us (what was measured stays)."""
        groups = replace(self.groups, latency_us=self.groups.latency_us + latency_us)
        inside = self.hop_family != FAMILIES.index("network")
        return replace(self, groups=groups, hop_latency_us=self.hop_latency_us + np.where(inside, latency_us, 0.0))


def _changed(
    parts: Sequence[_Table], arrays: Callable[[list[Any]], Any], tuples: Callable[[list[Any]], tuple[Any, ...]]
) -> _Table:
    """A table whose columns are made of the parts' columns; numbers are the first part's."""
    values: dict[str, Any] = {}
    for field in fields(parts[0]):
        columns = [getattr(part, field.name) for part in parts]
        match columns[0]:
            case Groups():
                values[field.name] = _changed(columns, arrays, tuples)
            case np.ndarray():
                values[field.name] = arrays(columns)
            case tuple():
                values[field.name] = tuples(columns)
            case number:
                values[field.name] = number
    return type(parts[0])(**values)


def layout_arrays(
    machine: Machine,
    memories: Sequence[LayoutMemory],
    constants: Constants = DEFAULT,
    placements: "Sequence[Placement | None] | None" = None,
    by_gpu: bool = False,
) -> Layouts:
    """All of these layouts of one model, each of which must fit the machine's number of GPUs.

    Args:
        machine: where they run.
        memories: the layouts, each with what its ranks hold.
        constants: of the latency model.
        placements: their GPUs; None, for all or one: in order where links are alike, else the best.
        by_gpu: note which GPUs are in which group and send to each other, for measurements of those.
    """
    layouts = [memory.layout for memory in memories]
    found, members, pairs = [], [], []
    alike = links_alike(machine)
    for i, layout in enumerate(layouts):
        where = placements[i] if placements is not None else None
        if where is None and not alike:
            where = place(machine, layout.tp, layout.pp, layout.replicas)
        found.append(links_of(machine, where) if where else links_in_order(machine, layout))
        if by_gpu:
            chains = where.groups if where else groups_in_order(layout)
            members.append(frozenset(tuple(sorted(group)) for chain in chains for group in chain))
            pairs.append(
                frozenset(pair for chain in chains for a, b in pairwise(chain) for pair in zip(a, b, strict=True))
            )
    return arrays_of_links(machine, memories, found, constants, members=tuple(members), pairs=tuple(pairs))


def arrays_of_links(
    machine: Machine,
    memories: Sequence[LayoutMemory],
    found: Sequence[GroupLinks],
    constants: Constants = DEFAULT,
    *,
    members: "tuple[frozenset[tuple[int, ...]], ...]" = (),
    pairs: "tuple[frozenset[tuple[int, int]], ...]" = (),
) -> Layouts:
    """``layout_arrays`` where the links of each layout are known.

    Args:
        machine, memories, constants: as there.
        found: the links that hold up each layout.
        members, pairs: GPUs of its groups and of its hops, for measurements of those; empty if all are alike.
    """
    model, context = memories[0].spec, memories[0].workload.context_length
    layouts, hop = [memory.layout for memory in memories], [links.hop or NO_LINK for links in found]
    # Windowed layers keep fewer tokens, so the capacity is larger.
    capacity_of = {id(memory): float(memory.token_capacity()) for memory in memories}
    capacity = np.array([capacity_of[id(memory)] for memory in memories])
    kv_heads = {tp: float(model.kv_heads_per_rank(tp)) for tp in {layout.tp for layout in layouts}}
    return Layouts(
        tp=np.array([float(layout.tp) for layout in layouts]),
        pp=np.array([float(layout.pp) for layout in layouts]),
        replicas=np.array([float(layout.replicas) for layout in layouts]),
        groups=Groups.of(
            [layout.tp for layout in layouts],
            [links.ring for links in found],
            direct=[links.direct for links in found],
            nodes=[links.nodes for links in found],
            bridged=[links.bridged for links in found],
            network=machine.network,
            scale=constants.generation_scale.get(machine.gpu.generation or "", 1.0),
            members=members,
        ),
        hop_family=np.array([FAMILIES.index(FAMILY_OF[link.kind]) for link in hop]),
        hop_GBps=np.array([link.bandwidth_GBps for link in hop]),
        hop_latency_us=np.array([link.latency_us for link in hop]),
        capacity_tokens=capacity * context / model.kept_tokens(context),
        kv_heads=np.array([kv_heads[layout.tp] for layout in layouts]),
        hop_pairs=pairs,
    )


def groups_in_order(layout: Layout) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """GPUs in order: ``[replica][stage]``."""
    t, p = layout.tp, layout.pp
    return tuple(
        tuple(tuple(range((r * p + s) * t, (r * p + s + 1) * t)) for s in range(p)) for r in range(layout.replicas)
    )
