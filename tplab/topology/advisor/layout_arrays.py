"""Layouts of a machine as the arrays that ``latency`` computes on: their groups' links, hops, and capacity of the
cache.

Where all links of a node are alike, GPUs are taken in order, as engines number their ranks: those that share a layer
are neighbours, then come the stages, then the replicas. Where links differ, ``placement`` chooses, and layouts are
judged by the groups it finds: rank order would judge the wiring of a board, not the layout.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tplab.models.shards import Layout
from tplab.topology.advisor.allreduce import Floats, Groups, Ints
from tplab.topology.advisor.constants import DEFAULT, FAMILIES, FAMILY_OF, Constants, EngineConstants
from tplab.topology.advisor.memory import LayoutMemory
from tplab.topology.machine.machine import Link, Machine
from tplab.topology.machine.placement import Placement, place

_NO_LINK = Link(kind="host", bandwidth_GBps=1.0, latency_us=0.0)
_Table = TypeVar("_Table", "Layouts", Groups)


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
    engine: EngineConstants,
    constants: Constants = DEFAULT,
    placements: "Sequence[Placement | None] | None" = None,
    by_gpu: bool = False,
) -> Layouts:
    """All of these layouts of one model, each of which must fit the machine's number of GPUs.

    Args:
        machine: where they run.
        memories: the layouts, each with what its ranks hold.
        engine: decides how much memory the cache gets.
        constants: of the latency model.
        placements: their GPUs; None, for all or one: in order where links are alike, else the best.
        by_gpu: note which GPUs are in which group and send to each other, for measurements of those.
    """
    model, context = memories[0].spec, memories[0].workload.context_length
    layouts = [memory.layout for memory in memories]
    ring, direct, hop, nodes = [], [], [], []
    members, pairs = [], []
    alike = links_alike(machine)
    for i, layout in enumerate(layouts):
        where = placements[i] if placements is not None else None
        if where is None and not alike and layout.tp <= machine.gpus_per_node:
            where = place(machine, layout.tp, layout.pp, layout.replicas)
        found = _by_placement(machine, where) if where else _in_order(machine, layout)
        ring.append(found[0])
        direct.append(found[1])
        hop.append(found[2] or _NO_LINK)
        nodes.append(found[3])
        if by_gpu:
            chains = where.groups if where else groups_in_order(layout)
            members.append(frozenset(tuple(sorted(group)) for chain in chains for group in chain))
            pairs.append(
                frozenset(pair for chain in chains for a, b in pairwise(chain) for pair in zip(a, b, strict=True))
            )
    # Windowed layers keep fewer tokens, so the capacity is larger.
    capacity = np.array([float(memory.token_capacity(engine.of_free_memory)) for memory in memories])
    kv_heads = {tp: float(model.kv_heads_per_rank(tp)) for tp in {layout.tp for layout in layouts}}
    return Layouts(
        tp=np.array([float(layout.tp) for layout in layouts]),
        pp=np.array([float(layout.pp) for layout in layouts]),
        replicas=np.array([float(layout.replicas) for layout in layouts]),
        groups=Groups.of(
            [layout.tp for layout in layouts],
            ring,
            direct=direct,
            nodes=nodes,
            network=machine.network,
            scale=constants.generation_scale.get(machine.gpu.name, 1.0),
            members=tuple(members),
        ),
        hop_family=np.array([FAMILIES.index(FAMILY_OF[link.kind]) for link in hop]),
        hop_GBps=np.array([link.bandwidth_GBps for link in hop]),
        hop_latency_us=np.array([link.latency_us for link in hop]),
        capacity_tokens=capacity * context / model.kept_tokens(context),
        kv_heads=np.array([kv_heads[layout.tp] for layout in layouts]),
        hop_pairs=tuple(pairs),
    )


def groups_in_order(layout: Layout) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """GPUs in order: ``[replica][stage]``."""
    t, p = layout.tp, layout.pp
    return tuple(
        tuple(tuple(range((r * p + s) * t, (r * p + s + 1) * t)) for s in range(p)) for r in range(layout.replicas)
    )


def links_alike(machine: Machine) -> bool:
    """Whether every pair of a node has the same link."""
    return len({link for row in machine.links for link in row if link is not None}) <= 1


_Found = tuple[Link | None, bool, Link | None, int]


def _by_placement(machine: Machine, where: Placement) -> _Found:
    """Slowest ring, whether every pair of every group is direct, slowest hop, nodes per group."""
    groups = [group for chain in where.groups for group in chain]
    pair = where.slowest_tp_link
    nodes = max(len({machine.node_of(gpu) for gpu in group}) for group in groups)
    return where.slowest_ring_link, pair is not None and pair.is_nvlink, where.slowest_hop_link, nodes


def _in_order(machine: Machine, layout: Layout) -> _Found:
    t, used, per_node = layout.tp, layout.gpus_per_replica, machine.gpus_per_node
    inside = machine.slowest_link(range(min(per_node, max(t, 2)))) if per_node > 1 else None
    nodes = math.ceil(t / per_node)
    over_nodes = used > per_node or layout.replicas > machine.nodes * (per_node // used)
    hop = (machine.network or inside) if over_nodes else inside
    link = inside or machine.network
    return (link if t > 1 else None), link is not None and link.is_nvlink, hop if layout.pp > 1 else None, nodes
