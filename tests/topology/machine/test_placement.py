"""Placement: as good as any other choice, on machines whose links differ."""

import random
from dataclasses import replace
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.topology import Link, Machine
from tplab.topology.machine.placement import EXACT_UP_TO, place
from tplab.topology.machine.spec_sheets import GPUS


def machine_of(bandwidths, nodes=1):
    """From a symmetric table of GB/s."""
    n = len(bandwidths)
    links = tuple(
        tuple(
            None if i == j else Link(kind="emulated", bandwidth_GBps=bandwidths[min(i, j)][max(i, j)], latency_us=1)
            for j in range(n)
        )
        for i in range(n)
    )
    network = Link(kind="network", bandwidth_GBps=0.5, latency_us=9) if nodes > 1 else None
    return Machine(
        name="drawn", gpu=GPUS["h100"], gpus_per_node=n, nodes=nodes, links=links, network=network, source="declared"
    )


def renumbered(machine, order):
    """The same machine with GPU ``order[i]`` called i."""
    return replace(machine, links=tuple(tuple(machine.links[a][b] for b in order) for a in order))


def speeds(links):
    return sorted(link.bandwidth_GBps for link in links if link is not None)


def everything_tried(machine, tp, pp, replicas):
    """Slowest links of groups, of their rings and of hops, for the best of all orders of GPUs; by brute force."""

    def pair(i, j):
        return machine.link(i, j).bandwidth_GBps

    best_inside, best = None, None
    for order in permutations(range(machine.num_gpus), tp * pp * replicas):
        groups = [order[k : k + tp] for k in range(0, len(order), tp)]
        inside = []
        for group in groups:
            if tp == 1:
                continue
            ring = max(
                min(pair(a, b) for a, b in pairwise((group[0], *rest, group[0]))) for rest in permutations(group[1:])
            )
            inside.append((min(pair(a, b) for a, b in combinations(group, 2)), ring))
        inside.sort()
        if best_inside is None or inside > best_inside:
            best_inside, best = inside, None
        if inside == best_inside:
            hops = sorted(
                min(pair(a, b) for k in range(pp - 1) for a, b in zip(chain[k], chain[k + 1], strict=True))
                for chain in (groups[c * pp : (c + 1) * pp] for c in range(replicas) if pp > 1)
            )
            best = hops if best is None else max(best, hops)
    return best_inside, best


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(4, 2, 1, 2), (4, 2, 2, 1), (4, 1, 4, 1), (4, 1, 2, 2), (5, 2, 2, 1), (6, 3, 2, 1),
                           (6, 2, 3, 1), (5, 4, 1, 1), (6, 2, 1, 2), (6, 1, 3, 2), (5, 1, 2, 2), (3, 3, 1, 1)]),
    seed=st.integers(0, 10_000),
)  # fmt: skip
def test_no_choice_is_better(shape, seed):
    """Against all orders of the GPUs, on links drawn at random."""
    n, tp, pp, replicas = shape
    draw = random.Random(seed)
    machine = machine_of([[draw.choice([1, 2, 3, 5, 8]) for _ in range(n)] for _ in range(n)])
    found = place(machine, tp, pp, replicas)
    inside, hops = everything_tried(machine, tp, pp, replicas)
    groups = list(zip(sum(found.tp_links, ()), sum(found.ring_links, ()), strict=True))
    if tp > 1:
        assert sorted((a.bandwidth_GBps, b.bandwidth_GBps) for a, b in groups) == inside
    if pp > 1:
        assert sorted(speeds(row)[0] for row in found.hop_links) == hops
    assert found.exact


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 8),
    nodes=st.integers(1, 3),
    tp=st.integers(1, 16),
    pp=st.integers(1, 12),
    data=st.data(),
    seed=st.integers(0, 999),
)
def test_every_gpu_has_one_place(n, nodes, tp, pp, data, seed):
    """As many replicas as there is room for, groups inside nodes or of whole ones, no GPU twice, none lost; links as
    reported."""
    draw = random.Random(seed)
    machine = machine_of([[draw.choice([1, 4]) for _ in range(n)] for _ in range(n)], nodes)
    most = (nodes * (n // tp) if tp <= n else 0 if tp % n else nodes // (tp // n)) // pp
    if most == 0:
        with pytest.raises(ValueError, match="has no room for 1 x TP"):
            place(machine, tp, pp)
        return
    wanted = data.draw(st.none() | st.integers(1, most))
    found = place(machine, tp, pp, wanted)
    assert len(found.groups) == (wanted or most)
    used = [gpu for replica in range(len(found.groups)) for gpu in found.device_order(replica)]
    assert sorted([*used, *found.idle]) == list(range(machine.num_gpus))
    for chain, inside, hops in zip(found.groups, found.tp_links, found.hop_links, strict=True):
        assert len(chain) == pp
        for group, link in zip(chain, inside, strict=True):
            assert len(group) == tp
            assert len({machine.node_of(gpu) for gpu in group}) == max(1, tp // n)
            assert link == machine.slowest_link(group)
        for a, b, link in zip(chain, chain[1:], hops, strict=False):
            assert link.bandwidth_GBps == min(machine.link(i, j).bandwidth_GBps for i, j in zip(a, b, strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_pairwise_bridges_whatever_the_numbers(seed):
    """TP 2 takes the bridged pairs, wherever they are; TP 4 cannot, and stays on one socket."""
    order = random.Random(seed).sample(range(8), 8) if seed else list(range(8))
    machine = renumbered(Machine.preset("a100-pairs", gpus=8), order)
    pairs = place(machine, 2, 1)
    assert all(link.is_nvlink for row in pairs.tp_links for link in row)
    assert pairs.slowest_tp_link.bandwidth_GBps == 300
    fours = place(machine, 4, 1)
    assert fours.slowest_tp_link.kind == "node"
    stages = place(machine, 2, 2)
    assert stages.slowest_tp_link.is_nvlink
    assert stages.slowest_hop_link.kind == "node"
    if order[0] // 2 != order[1] // 2:  # what a launcher would take
        assert machine.link(0, 1).bandwidth_GBps < 300


@pytest.mark.parametrize("seed", range(6))
def test_dgx1_whatever_the_numbers(seed):
    order = random.Random(seed).sample(range(8), 8) if seed else list(range(8))
    machine = renumbered(Machine.preset("dgx-1"), order)
    twos = place(machine, 2, 1)
    assert [link.label for row in twos.tp_links for link in row] == ["NV2"] * 4
    fours = place(machine, 4, 1)
    assert all(link.is_nvlink for row in fours.tp_links for link in row)
    assert {frozenset(order[gpu] for gpu in chain[0]) for chain in fours.groups} == {
        frozenset(range(4)),
        frozenset(range(4, 8)),
    }
    eight = place(machine, 8, 1)
    assert eight.slowest_tp_link.label == "SYS"
    assert eight.slowest_ring_link.label == "NV2"
    chain = place(machine, 1, 8)
    assert {link.label for link in chain.hop_links[0]} == {"NV2"}


def test_numbers_in_order_would_be_worse_on_a_dgx1():
    """GPUs 0 and 1 have one NVLink, every chosen pair two."""
    machine = Machine.preset("dgx-1")
    in_order = min(machine.link(k, k + 1).bandwidth_GBps for k in range(0, 8, 2))
    assert place(machine, 2, 1).slowest_tp_link.bandwidth_GBps == 2 * in_order


def test_part_of_a_machine_takes_its_best_part():
    """One pair is fast: one replica of TP 2 takes it, and leaves the others idle."""
    table = [[1] * 6 for _ in range(6)]
    table[2][5] = 9
    found = place(machine_of(table), 2, 1, replicas=1)
    assert found.groups == (((2, 5),),)
    assert found.idle == (0, 1, 3, 4)


def test_stages_over_nodes():
    """TP inside nodes, one hop of the pipeline between them."""
    machine = Machine.preset("h100", nodes=2)
    found = place(machine, 8, 2)
    assert found.slowest_tp_link.kind == "nvswitch"
    assert found.slowest_hop_link.kind == "network"
    assert [machine.node_of(group[0]) for group in found.groups[0]] == [0, 1]
    inside = place(machine, 4, 2)
    assert len(inside.groups) == 2
    assert inside.slowest_hop_link.kind == "nvswitch"
    across = place(machine, 4, 4)
    assert [link.kind for link in across.hop_links[0]].count("network") == 1


def test_one_gpu():
    found = place(Machine.preset("l4", gpus=1), 1, 1)
    assert found.groups == (((0,),),)
    assert found.slowest_tp_link is None
    assert found.slowest_ring_link is None
    assert found.slowest_hop_link is None


def test_large_nodes_are_not_exact_and_say_so():
    """16 GPUs whose fast quads are scattered: found by growing and swapping, far better than numbers in order."""
    quads = [k % 4 for k in range(16)]
    machine = machine_of([[10 if quads[i] == quads[j] else 1 for j in range(16)] for i in range(16)])
    found = place(machine, 4, 1)
    assert machine.gpus_per_node > EXACT_UP_TO
    assert not found.exact
    assert found.slowest_tp_link.bandwidth_GBps == 10
    assert machine.slowest_link(range(4)).bandwidth_GBps == 1
    assert len(place(machine, 2, 4).groups) == 2
    assert place(Machine.preset("gb200", gpus=72), 8, 1).exact  # all links equal: nothing to choose


def test_ring_avoids_a_slow_pair():
    table = [[5] * 4 for _ in range(4)]
    table[0][1] = 1
    machine = machine_of(table)
    assert machine.slowest_link(range(4)).bandwidth_GBps == 1
    assert place(machine, 4, 1).slowest_ring_link.bandwidth_GBps == 5
    assert place(machine_of([row[:3] for row in table[:3]]), 3, 1).slowest_ring_link.bandwidth_GBps == 1
    assert place(machine, 1, 1).slowest_ring_link is None


def test_too_much():
    with pytest.raises(ValueError, match=r"8 x h100 has no room for 3 x TP 4 × PP 1: 2 groups of 4 fit in a node of 8"):
        place(Machine.preset("h100"), 4, 1, 3)
    with pytest.raises(ValueError, match="has no room"):
        place(Machine.preset("h100"), 16, 1)
    with pytest.raises(ValueError, match="has no room"):
        place(Machine.preset("h100"), 1, 0)
