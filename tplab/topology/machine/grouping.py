"""A placement of groups that somebody else chose: a launcher, or a hand that drags a GPU into another group.

``place`` looks for the best groups; this one says what the given ones get. Unlike those that ``place`` finds, they may
lie over parts of nodes.
"""

from collections.abc import Sequence
from itertools import permutations

from tplab.checks import ArgumentError
from tplab.topology.machine.machine import Link, Machine, slowest
from tplab.topology.machine.placement import Group, Placement, links_inside

_EVERY_ORDER_UP_TO = 4
"""GPUs of a stage up to which every order is tried to face the stage before it, as ``place`` does."""


def placement_of(machine: Machine, groups: Sequence[Sequence[Sequence[int]]]) -> Placement:
    """The links of these groups of GPUs.

    Args:
        machine: whose GPUs they are.
        groups: ``groups[replica][stage]``: GPUs that share layers, numbered over all nodes. In each stage they are put
            in the order that faces the stage before it over the fastest links.

    Raises:
        ValueError: no groups, groups of different sizes, replicas of different numbers of stages, a GPU that is not
            there or that is in two groups.
    """
    chains = _checked(machine, groups)
    links = [[_links(machine, group) for group in chain] for chain in chains]
    strung = [_strung(machine, chain) for chain in chains]
    used = {gpu for chain in chains for group in chain for gpu in group}
    return Placement(
        groups=tuple(ordered for ordered, _ in strung),
        tp_links=tuple(tuple(pair for pair, _ in row) for row in links),
        ring_links=tuple(tuple(ring for _, ring in row) for row in links),
        hop_links=tuple(hops for _, hops in strung),
        idle=tuple(gpu for gpu in range(machine.num_gpus) if gpu not in used),
        exact=True,
    )


def _checked(machine: Machine, groups: Sequence[Sequence[Sequence[int]]]) -> list[list[Group]]:
    try:
        chains = [[tuple(int(gpu) for gpu in group) for group in chain] for chain in groups]
    except (TypeError, ValueError):
        raise ArgumentError("groups", groups, "must be lists of stages, which are lists of GPUs: [[[0, 1]]]") from None
    flat = [group for chain in chains for group in chain]
    if not flat or not all(flat) or not all(chains):
        raise ArgumentError("groups", groups, "must have a GPU in every group, and a group in every replica")
    sizes, stages = sorted({len(group) for group in flat}), sorted({len(chain) for chain in chains})
    if len(sizes) > 1:
        raise ArgumentError("groups", groups, f"must be of one size, but some have {sizes[0]} GPUs, some {sizes[-1]}")
    if len(stages) > 1:
        raise ArgumentError("groups", groups, f"must have as many stages in every replica, not {stages}")
    gpus = [gpu for group in flat for gpu in group]
    if outside := [gpu for gpu in gpus if not 0 <= gpu < machine.num_gpus]:
        raise ArgumentError(
            "groups", groups, f"must be of GPUs 0 to {machine.num_gpus - 1} of {machine.name}, not {outside[0]}"
        )
    if twice := [gpu for gpu in dict.fromkeys(gpus) if gpus.count(gpu) > 1]:
        raise ArgumentError("groups", groups, f"must have every GPU once, but GPU {twice[0]} is in two places")
    return chains


def _links(machine: Machine, group: Group) -> tuple[Link | None, Link | None]:
    """The group's slowest pair, and the slowest of its best ring."""
    per_node = machine.gpus_per_node
    nodes = sorted({gpu // per_node for gpu in group})
    parts = [tuple(gpu % per_node for gpu in group if gpu // per_node == node) for node in nodes]
    inside = [links_inside(machine, part) for part in parts]
    if len(nodes) == 1:
        return inside[0]
    assert machine.network is not None, "a machine of several nodes has a network"
    pair, ring = (slowest([machine.network, *filter(None, found)]) for found in zip(*inside, strict=True))
    return pair, ring


def _strung(machine: Machine, chain: Sequence[Group]) -> tuple[tuple[Group, ...], tuple[Link, ...]]:
    """Stages with each one's GPUs in the order that faces the stage before it, and the slowest links between them."""
    ordered, hops = [chain[0]], []
    for after in chain[1:]:
        orders = permutations(after) if len(after) <= _EVERY_ORDER_UP_TO else (after, after[::-1])
        facing = [(slowest(map(machine.link, ordered[-1], order)), order) for order in orders]
        link, order = max(facing, key=lambda each: (each[0].bandwidth_GBps, -each[0].latency_us))
        ordered.append(order)
        hops.append(link)
    return tuple(ordered), tuple(hops)
