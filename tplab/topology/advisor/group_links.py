"""The links that hold up a layout: the worst of each kind among its groups, from the GPUs that it takes. Pure.

A layout is as slow as its slowest group, so one group stands for all: it has the slowest ring of any, spans the most
nodes of any, and is joined directly only if all are. (No group need have all of that at once: where links inside nodes
differ and groups of one layout span different numbers of nodes, that is too slow by what the better ones save.)
"""

import math
from collections import Counter
from dataclasses import dataclass
from itertools import combinations

from tplab.models.shards import Layout
from tplab.topology.machine.machine import Link, Machine, slowest
from tplab.topology.machine.placement import Group, Placement, links_inside, place


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupLinks:
    """What a layout's all-reduces and hops go over."""

    ring: Link | None
    """Slowest link of any group's best ring inside a node (the network's, if a group has one GPU in each); None with
    one GPU a group."""
    direct: bool
    """Whether NVLink or Infinity Fabric joins every pair of every group."""
    hop: Link | None
    """Slowest link from a stage to the next; None with one stage."""
    nodes: int
    """Nodes that a group spans. Of GPUs that lie unevenly over nodes: so many as if each had as few of them as the one
    with the fewest, whose network cards hold up the others."""
    bridged: bool
    """Whether every GPU of every group has an NVLink to another of its group, yet the rings cross slower links."""


def links_of(machine: Machine, where: Placement) -> GroupLinks:
    """The links that hold up a layout on those GPUs."""
    rings, nodes = [], 1
    per_node = machine.gpus_per_node
    for chain, links in zip(where.groups, where.ring_links, strict=True):
        for group, ring in zip(chain, links, strict=True):
            parts = parts_of(machine, group)
            if len(parts) == 1:
                rings.append(ring)
                continue
            nodes = max(nodes, math.ceil(len(group) / min(map(len, parts))))
            rings += [links_inside(machine, tuple(gpu % per_node for gpu in part))[1] for part in parts]
    inside, pair = [ring for ring in rings if ring], where.slowest_tp_link
    ring = slowest(inside) if inside else None
    if ring is None and nodes > 1:
        ring = machine.network
    return GroupLinks(
        ring=ring,
        direct=pair is not None and pair.is_peer and nodes == 1 and _all_joined(machine, where),
        hop=where.slowest_hop_link,
        nodes=nodes,
        bridged=ring is not None and not ring.is_peer and _bridged(machine, where),
    )


def parts_of(machine: Machine, group: Group) -> list[Group]:
    """The GPUs of a group that are in the same node, node by node."""
    per_node = machine.gpus_per_node
    counted = Counter(gpu // per_node for gpu in group)
    return [tuple(gpu for gpu in group if gpu // per_node == node) for node in counted]


def links_alike(machine: Machine) -> bool:
    """Whether every pair of a node has the same link."""
    return len({link for row in machine.links for link in row if link is not None}) <= 1


def links_in_order(machine: Machine, layout: Layout) -> GroupLinks:
    """The same where all links of a node are alike, with GPUs in order."""
    t, used, per_node = layout.tp, layout.gpus_per_replica, machine.gpus_per_node
    if t > per_node:
        whole = place(machine, per_node, 1, 1).slowest_ring_link or machine.network
        hop = machine.network if layout.pp > 1 else None
        return GroupLinks(ring=whole, direct=False, hop=hop, nodes=t // per_node, bridged=False)
    inside = machine.slowest_link(range(min(per_node, max(t, 2)))) if per_node > 1 else None
    over_nodes = used > per_node or layout.replicas > machine.nodes * (per_node // used)
    hop = (machine.network or inside) if over_nodes else inside
    return GroupLinks(
        ring=inside if t > 1 else None,
        direct=inside is not None and inside.is_peer,
        hop=hop if layout.pp > 1 else None,
        nodes=1,
        bridged=False,
    )


def _all_joined(machine: Machine, where: Placement) -> bool:
    pairs = (pair for chain in where.groups for group in chain for pair in combinations(group, 2))
    return all(machine.link(a, b).is_peer for a, b in pairs)  # NV1 can be slower than PCIe: the slowest does not say


def _bridged(machine: Machine, where: Placement) -> bool:
    def joined(a: int, b: int) -> bool:
        return a != b and machine.link(a, b).is_peer

    return all(any(joined(a, b) for b in group) for chain in where.groups for group in chain for a in group)
