"""Which GPUs share a layer, and which follow each other in the pipeline, where links differ.

The sum of a tensor-parallel group is held up by the slowest link inside it, so groups are chosen first, to make the
slowest link of the worst group as fast as can be, then of the second worst, and so on; among equal choices the one
whose ring is fastest (NCCL sends around a ring, which can avoid a pair without a direct link); then stages are strung
together so that the slowest hop is as fast as can be. Exact on nodes of up to 8 GPUs: every way to cut them is tried
(105 into pairs, 35 into fours), and the best order of stages comes from dynamic programming over sets, so it takes
milliseconds. Not GPU numbers in order, which is what launchers do: on pairwise bridges or a DGX-1, GPUs 0-3 are a poor
choice or a good one depending on who wired the board.

A group larger than a node takes whole ones, in order.

What it does not see: pairs that share a wire (two PCIe cards behind one switch, all that crosses between sockets). A
replica that spans nodes takes each node's GPUs in that node's best order; which end faces the network does not matter.

Letters: t GPUs of a group, p stages, G GPUs of a node.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, groupby, pairwise, permutations
from operator import itemgetter

from tplab.topology.machine.machine import Link, Machine, slowest

Group = tuple[int, ...]
Key = tuple[float, float]
Chain = list[tuple[int, Group]]
"""Stages of a replica: the number of a node, and GPUs as that node numbers them."""

EXACT_UP_TO = 8
"""Most GPUs of a node for which every choice is tried; beyond, groups are grown one by one and improved by swaps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """GPUs of every replica, stage and place; numbered over all nodes."""

    groups: tuple[tuple[Group, ...], ...]
    """``groups[replica][stage]``: the GPUs of that tensor-parallel group, in order: place r sends to place r of the
    next stage."""
    tp_links: tuple[tuple[Link | None, ...], ...]
    """``tp_links[replica][stage]``: slowest link of all pairs in the group; None with t = 1."""
    ring_links: tuple[tuple[Link | None, ...], ...]
    """``ring_links[replica][stage]``: slowest link of the group's best ring, which limits NCCL's ring; never slower
    than the one of ``tp_links``."""
    hop_links: tuple[tuple[Link, ...], ...]
    """``hop_links[replica][boundary]``: slowest link from a place to the same place of the next stage."""
    idle: tuple[int, ...]
    """GPUs that the layout leaves idle."""
    exact: bool
    """Whether every choice was tried, or none was left."""

    @property
    def slowest_tp_link(self) -> Link | None:
        """Over all groups; None with t = 1."""
        return _slowest_of(self.tp_links)

    @property
    def slowest_ring_link(self) -> Link | None:
        """Over all groups' best rings; None with t = 1."""
        return _slowest_of(self.ring_links)

    @property
    def slowest_hop_link(self) -> Link | None:
        """Over all boundaries; None with p = 1."""
        return _slowest_of(self.hop_links)

    def device_order(self, replica: int = 0) -> tuple[int, ...]:
        """GPUs of a replica by rank, stage by stage: for ``CUDA_VISIBLE_DEVICES`` where they are one node's."""
        return tuple(gpu for group in self.groups[replica] for gpu in group)


def place(machine: Machine, tp: int, pp: int, replicas: int | None = None) -> Placement:
    """The best GPUs for ``replicas`` copies of TP × PP; by default as many copies as the machine holds.

    Raises:
        ValueError: groups larger than a node that do not take whole ones, or more GPUs than there are.
    """
    per_node = machine.gpus_per_node // tp if 1 <= tp <= machine.gpus_per_node else 0
    most = machine.room_for(tp) // pp if pp >= 1 and tp >= 1 else 0
    wanted = most if replicas is None else replicas
    if not 1 <= wanted <= most:
        raise ValueError(
            f"{machine.name} has no room for {max(wanted, 1)} x TP {tp} × PP {pp}: {per_node} groups of {tp} fit in a "
            f"node of {machine.gpus_per_node}, and there are {machine.nodes} nodes"
        )
    node = _node(machine.links)
    if not per_node:
        return _whole_nodes(machine, node, tp, pp, wanted)
    chains = _chains(node, machine.nodes, tp, pp, wanted, per_node)
    strung = [_aligned(machine, node, chain) for chain in chains]
    inside = [[node.links_inside(group) for _, group in chain] for chain in chains]
    groups = tuple(groups for groups, _ in strung)
    used = {gpu for chain in groups for group in chain for gpu in group} if wanted * tp * pp < machine.num_gpus else ()
    return Placement(
        groups=groups,
        tp_links=tuple(tuple(pair for pair, _ in links) for links in inside),
        ring_links=tuple(tuple(ring for _, ring in links) for links in inside),
        hop_links=tuple(hops for _, hops in strung),
        idle=tuple(gpu for gpu in range(machine.num_gpus) if gpu not in used) if used else (),
        exact=node.exact,
    )


def links_inside(machine: Machine, gpus: Group) -> tuple[Link | None, Link | None]:
    """Of GPUs of a node, as that numbers them: the slowest pair, and the slowest of the best ring; None for one GPU."""
    return _node(machine.links).links_inside(gpus)


def _whole_nodes(machine: Machine, node: "_Node", tp: int, pp: int, wanted: int) -> Placement:
    between = machine.network
    assert between is not None, "a machine of several nodes has a network"
    inside = node.links_inside(tuple(range(node.size)))
    pair, ring = (slowest([between, *([link] if link else [])]) for link in inside)
    starts = [[(r * pp + s) * tp for s in range(pp)] for r in range(wanted)]
    return Placement(
        groups=tuple(tuple(tuple(range(first, first + tp)) for first in chain) for chain in starts),
        tp_links=((pair,) * pp,) * wanted,
        ring_links=((ring,) * pp,) * wanted,
        hop_links=((between,) * (pp - 1),) * wanted,
        idle=tuple(range(wanted * pp * tp, machine.num_gpus)),
        exact=node.exact,
    )


def _ring_link(links: Mapping[tuple[int, int], Link], gpus: Sequence[int]) -> Link:
    """The slowest link of the ring through ``gpus`` whose slowest link is fastest; beyond 8 GPUs of the ring in the
    order given. A DGX-1 has pairs without NVLink, and yet a ring of double NVLinks through all eight."""
    if len(set(links.values())) == 1:
        return next(iter(links.values()))
    if len(gpus) > EXACT_UP_TO:
        return slowest(links[a, b] for a, b in pairwise([*gpus, gpus[0]]))
    keys = [[_key(links[a, b]) if a != b else _BEST for b in gpus] for a in gpus]
    order = _best_path(keys, range(len(gpus)), ring=True)
    return slowest(links[gpus[a], gpus[b]] for a, b in pairwise([*order, order[0]]))


_BEST: Key = (float("inf"), 0.0)


def _key(link: Link) -> Key:
    """Larger is better."""
    return (link.bandwidth_GBps, -link.latency_us)


def _slowest_of(rows: Sequence[Sequence[Link | None]]) -> Link | None:
    different = {id(link): link for row in rows for link in row if link}  # a machine has few, and hashing costs more
    return slowest(different.values()) if different else None


class _Node:
    """Links of one node as numbers to compare, and what has been worked out about its groups."""

    def __init__(self, links: tuple[tuple[Link | None, ...], ...]) -> None:
        self.size = len(links)
        self.links = links
        self.keys: list[list[Key]] = [[_BEST if link is None else _key(link) for link in row] for row in links]
        flat = {self.keys[i][j] for i, j in combinations(range(self.size), 2)}
        self.uniform = len(flat) <= 1
        self.exact = self.uniform or self.size <= EXACT_UP_TO
        self.inside = cache(self._inside)
        self.hop = cache(self._hop)
        self.groups = cache(self._groups)
        self.chains = cache(self._chains)
        self.links_inside = cache(self._links_inside)
        self.facing = cache(self._facing)
        self.aligned = cache(self._aligned)
        self.shifted = cache(self._shifted)

    def _inside(self, group: Group) -> tuple[Key, Key]:
        """The group's slowest pair, and the slowest of its best ring."""
        if len(group) < 2:
            return _BEST, _BEST
        pair = min(self.keys[i][j] for i, j in combinations(group, 2))
        if len(group) < 4:  # every ring has all pairs
            return pair, pair
        order = _best_path(self.keys, group, ring=True) if len(group) <= EXACT_UP_TO else group
        return pair, min(self.keys[a][b] for a, b in pairwise([*order, order[0]]))

    def _hop(self, a: Group, b: Group) -> Key:
        """Links from each GPU of ``a`` to one of ``b``, matched so that the slowest is as fast as can be."""
        if len(a) > 4:
            return max(min(self.keys[i][j] for i, j in zip(a, b, strict=True)) for b in (b, b[::-1]))
        return max(min(self.keys[i][j] for i, j in zip(a, order, strict=True)) for order in permutations(b))

    def _links_inside(self, group: Group) -> tuple[Link | None, Link | None]:
        """The group's slowest pair, and the slowest of its best ring."""
        links = {(i, j): link for i in group for j in group if (link := self.links[i][j])}
        return (slowest(links.values()), _ring_link(links, group)) if links else (None, None)

    def _facing(self, a: Group, b: Group) -> tuple[Group, Link]:
        """``b`` in the order that faces ``a`` over the fastest links, and the slowest of these."""
        orders = [b, b[::-1]] if self.uniform or len(b) > 4 else list(permutations(b))
        found = {order: slowest(self._link(i, j) for i, j in zip(a, order, strict=True)) for order in orders}
        order = max(orders, key=lambda order: _key(found[order]))
        return order, found[order]

    def _aligned(self, chain: tuple[Group, ...]) -> tuple[tuple[Group, ...], tuple[Link, ...]]:
        """Stages in this node: each one's GPUs in the order that faces the stage before it, and the slowest links."""
        ordered, hops = [chain[0]], []
        for group in chain[1:]:
            order, link = self.facing(ordered[-1], group)
            ordered.append(order)
            hops.append(link)
        return tuple(ordered), tuple(hops)

    def _shifted(self, group: Group, number: int) -> Group:
        """The GPUs of node ``number`` in the machine's own numbers."""
        return tuple(gpu + number * self.size for gpu in group)

    def _link(self, i: int, j: int) -> Link:
        link = self.links[i][j]
        assert link is not None, "no stage sends to itself"
        return link

    def _groups(self, tp: int, count: int) -> list[list[Group]]:
        """The best choices of ``count`` groups, equally good inside."""
        if self.uniform:
            return [[tuple(range(k * tp, (k + 1) * tp)) for k in range(count)]]
        if not self.exact:
            return [_grown(self, tp, count)]
        best: list[list[Group]] = []
        best_key: list[tuple[Key, Key]] = []
        for groups in _partitions(tuple(range(self.size)), tp, count):
            key = sorted(self.inside(group) for group in groups)
            if key > best_key or not best:
                best, best_key = [groups], key
            elif key == best_key:
                best.append(groups)
        return best

    def _chains(self, tp: int, pp: int, chains: int, leftover: int) -> tuple[list[list[Group]], list[Group]]:
        """``chains`` replicas of ``pp`` groups, and ``leftover`` more groups in a good order."""
        best: tuple[list[Key], list[list[Group]], list[Group]] | None = None
        for groups in self.groups(tp, chains * pp + leftover):
            hops, strung, rest = _strung(self, groups, pp, chains)
            if best is None or hops > best[0]:
                best = hops, strung, rest
        assert best is not None, "a node has at least one way to be cut"
        return best[1], best[2]


@lru_cache(maxsize=16)
def _node(links: tuple[tuple[Link | None, ...], ...]) -> _Node:
    """Kept, because an advisor asks for dozens of layouts of one machine."""
    return _Node(links)


def _chains(node: _Node, nodes: int, tp: int, pp: int, wanted: int, per_node: int) -> list[Chain]:
    """Stages of each replica, in order: inside nodes as long as a node has room for one, then over what is left."""
    inside = min(wanted, nodes * (per_node // pp))
    chains: list[Chain] = []
    left: Chain = []
    for number in range(nodes):
        here = min(per_node // pp, inside - len(chains))
        leftover = per_node - here * pp if len(chains) + here < wanted else 0
        if not here and not leftover:
            break
        whole, rest = node.chains(tp, pp, here, leftover)
        chains += [[(number, group) for group in chain] for chain in whole]
        left += [(number, group) for group in rest]
    while len(chains) < wanted:
        chains.append(left[:pp])
        left = left[pp:]
    # Either direction is as good: low numbers first.
    return sorted(min(chain, chain[::-1]) for chain in chains)


def _strung(
    node: _Node, groups: Sequence[Group], pp: int, chains: int
) -> tuple[list[Key], list[list[Group]], list[Group]]:
    """Groups as chains: the slowest hops of each, sorted, as large as can be."""
    if pp == 1 and chains:
        return [], [[group] for group in groups[:chains]], list(groups[chains:])
    if node.uniform:
        return [], [list(groups[k * pp : (k + 1) * pp]) for k in range(chains)], list(groups[chains * pp :])
    keys = [[_BEST if a is b else node.hop(a, b) for b in groups] for a in groups]
    if len(groups) > EXACT_UP_TO:
        order = _nearest_first(keys)
        strung = [[groups[k] for k in order[c * pp : (c + 1) * pp]] for c in range(chains)]
        return [], strung, [groups[k] for k in order[chains * pp :]]

    @cache
    def path(members: Group) -> tuple[Key, Group]:
        order = _best_path(keys, members)
        return min((keys[a][b] for a, b in pairwise(order)), default=_BEST), tuple(order)

    best: tuple[list[Key], list[Group]] | None = None
    everyone = tuple(range(len(groups)))
    for cut in _partitions(everyone, pp, chains):
        rest = tuple(sorted(set(everyone) - {k for part in cut for k in part}))
        found = [path(part) for part in [*cut, *([rest] if rest else [])]]
        hops = sorted(key for key, _ in found)
        if best is None or hops > best[0]:
            best = hops, [order for _, order in found]
    assert best is not None, "there is at least one way to string groups"
    ordered = [[groups[k] for k in order] for order in best[1]]
    return best[0], ordered[:chains], [group for chain in ordered[chains:] for group in chain]


def _partitions(items: Group, size: int, count: int) -> Iterator[list[Group]]:
    """Every choice of ``count`` disjoint groups of ``size``; order does not matter, and some may be left out."""
    if count == 0:
        yield []
        return
    for start in range(len(items) - size * count + 1):
        first, others = items[start], items[start + 1 :]
        for mates in combinations(others, size - 1):
            remaining = tuple(item for item in others if item not in mates)
            for rest in _partitions(remaining, size, count - 1):
                yield [(first, *mates), *rest]


def _best_path(keys: Sequence[Sequence[Key]], members: Sequence[int], *, ring: bool = False) -> list[int]:
    """The order of ``members`` whose slowest step is fastest (closed to a ring if asked): dynamic programming over the
    set of those behind and the last one."""
    names = list(members)
    n = len(names)
    starts = [0] if ring else range(n)
    best: dict[tuple[int, int], tuple[Key, int]] = {(1 << s, s): (_BEST, -1) for s in starts}
    for done in range(1, 1 << n):
        for last in range(n):
            state = best.get((done, last))
            if state is None:
                continue
            for after in range(n):
                if done >> after & 1:
                    continue
                key = min(state[0], keys[names[last]][names[after]])
                place_ = (done | 1 << after, after)
                if place_ not in best or key > best[place_][0]:
                    best[place_] = key, last
    everyone = (1 << n) - 1

    def score(last: int) -> Key:
        key = best[everyone, last][0]
        return min(key, keys[names[last]][names[0]]) if ring and n > 1 else key

    last = max((last for last in range(n) if (everyone, last) in best), key=score)
    order, done = [], everyone
    while last >= 0:
        order.append(names[last])
        before = best[done, last][1]
        done &= ~(1 << last)
        last = before
    return order[::-1]


def _nearest_first(keys: Sequence[Sequence[Key]]) -> list[int]:
    order = [0]
    while len(order) < len(keys):
        order.append(max((k for k in range(len(keys)) if k not in order), key=lambda k: (keys[order[-1]][k], -k)))
    return order


def _grown(node: _Node, tp: int, count: int) -> list[Group]:
    """Groups grown from the lowest free GPU by its fastest links, then improved by swapping members while it helps."""
    free = list(range(node.size))
    groups: list[list[int]] = []
    for _ in range(count):
        group = [free.pop(0)]
        while len(group) < tp:
            joining = max(free, key=lambda k: (min(node.keys[k][m] for m in group), -k))
            free.remove(joining)
            group.append(joining)
        groups.append(group)
    spare = [[k] for k in free]

    def score() -> list[tuple[Key, Key]]:
        return sorted(node.inside(tuple(sorted(group))) for group in groups)

    best, improved = score(), True
    while improved:
        improved = False
        for a, b in combinations([*groups, *spare], 2):
            for i in range(len(a)):
                for j in range(len(b)):
                    a[i], b[j] = b[j], a[i]
                    now = score()
                    if now > best:
                        best, improved = now, True
                    else:
                        a[i], b[j] = b[j], a[i]
    return [tuple(sorted(group)) for group in groups]


def _aligned(machine: Machine, node: _Node, chain: Chain) -> tuple[tuple[Group, ...], tuple[Link, ...]]:
    """Members of each group in the order that faces the group before it over the fastest links; the slowest links."""
    ordered: list[Group] = []
    hops: list[Link] = []
    for number, stages in groupby(chain, key=itemgetter(0)):
        groups, links = node.aligned(tuple(group for _, group in stages))
        if ordered:
            hops.append(machine.link(ordered[-1][0], number * node.size))
        ordered += [node.shifted(group, number) for group in groups]
        hops += links
    return tuple(ordered), tuple(hops)
