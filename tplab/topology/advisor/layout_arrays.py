"""Layouts of a machine as the arrays that ``latency`` computes on: their groups' links, hops, and capacity of the
cache.

Where all links of a node are alike, GPUs are taken in order, as engines number their ranks: those that share a layer
are neighbours, then come the stages, then the replicas. Where links differ, ``placement`` chooses, and layouts are
judged by the groups it finds: rank order would judge the wiring of a board, not the layout.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from tplab.models.shards import Layout
from tplab.models.spec import ModelSpec
from tplab.topology.advisor.allreduce import Groups
from tplab.topology.advisor.constants import DEFAULT, FAMILIES, FAMILY_OF, Constants, EngineConstants
from tplab.topology.advisor.latency import Layouts
from tplab.topology.advisor.memory import kv_token_capacity
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.machine import Link, Machine
from tplab.topology.machine.placement import Placement, place

_NO_LINK = Link(kind="host", bandwidth_GBps=1.0, latency_us=0.0)


def columns(
    model: ModelSpec,
    machine: Machine,
    workload: Workload,
    layouts: Sequence[Layout],
    engine: EngineConstants,
    constants: Constants = DEFAULT,
    placements: "Sequence[Placement | None] | None" = None,
    by_gpu: bool = False,
) -> Layouts:
    """All of ``layouts``, each of which must fit the machine's number of GPUs.

    Args:
        engine: decides how much memory the cache gets.
        placements: their GPUs; None, for all or one: in order where links are alike, else the best.
        by_gpu: tell which GPUs are in which group and send to each other, for measurements of those.
    """
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
            chains = where.groups if where else _chains(layout)
            members.append(frozenset(tuple(sorted(group)) for chain in chains for group in chain))
            pairs.append(
                frozenset(pair for chain in chains for a, b in pairwise(chain) for pair in zip(a, b, strict=True))
            )
    return Layouts(
        tp=np.array([layout.tp for layout in layouts]),
        pp=np.array([layout.pp for layout in layouts]),
        replicas=np.array([layout.replicas for layout in layouts]),
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
        capacity_tokens=np.array([capacity_tokens(model, machine, workload, layout, engine) for layout in layouts]),
        kv_heads=np.array([float(model.kv_heads_per_rank(layout.tp)) for layout in layouts]),
        hop_pairs=tuple(pairs),
    )


def _chains(layout: Layout) -> list[list[tuple[int, ...]]]:
    """GPUs in order: ``[replica][stage]``."""
    t, p = layout.tp, layout.pp
    return [[tuple(range((r * p + s) * t, (r * p + s + 1) * t)) for s in range(p)] for r in range(layout.replicas)]


def links_alike(machine: Machine) -> bool:
    """Whether every pair of a node has the same link."""
    return len({link for row in machine.links for link in row if link is not None}) <= 1


def capacity_tokens(
    model: ModelSpec, machine: Machine, workload: Workload, layout: Layout, engine: EngineConstants
) -> float:
    """Tokens of cache for one replica, by the engine's way of counting; windowed layers keep fewer."""
    if engine.of_free_memory:
        whole = replace(workload, engine=replace(workload.engine, gpu_memory_utilization=1.0))
        room = kv_token_capacity(model, machine.gpu, whole, layout) * workload.engine.gpu_memory_utilization
    else:
        room = kv_token_capacity(model, machine.gpu, workload, layout)
    context = workload.context_length
    return room * context / model.kept_tokens(context)


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
