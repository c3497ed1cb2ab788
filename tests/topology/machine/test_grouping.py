"""A placement of groups that somebody else chose: their links, and what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tplab.topology import Machine, place, placement_of

DGX = Machine.preset("dgx-1")


def test_a_dgx_1_by_hand():
    """GPUs 0 and 3 have two NVLinks, 0 and 1 one, 0 and 5 none (its system architecture white paper)."""
    placed = placement_of(DGX, [[[0, 3], [1, 5]], [[4, 7], [2, 6]]])
    assert [link.label for link in placed.tp_links[0]] == ["NV2", "NV2"]
    assert [link.label for link in placed.tp_links[1]] == ["NV2", "NV1"]
    # 0 and 3 send to 1 and 5: 0-1 and 3-5 would be NV1 and SYS, 0-5 and 3-1 SYS and NV1.
    assert placed.hop_links[0][0].label == "SYS"
    assert placement_of(DGX, [[[0, 3]]]).idle == (1, 2, 4, 5, 6, 7)


def test_a_ring_goes_around_a_missing_link():
    placed = placement_of(DGX, [[list(range(8))]])
    assert placed.slowest_tp_link.label == "SYS"
    assert placed.slowest_ring_link.label == "NV2"


def test_stages_face_each_other_whatever_order_they_come_in():
    bridged = Machine.preset("a100-pairs", gpus=4)  # bridges 0-1 and 2-3
    for second in ([1, 3], [3, 1]):
        placed = placement_of(bridged, [[[0, 2], second]])
        assert placed.groups == (((0, 2), (1, 3)),)
        assert placed.hop_links[0][0].is_nvlink


def test_a_group_over_parts_of_nodes_has_the_network_inside():
    machine = Machine.preset("h100", nodes=2)
    placed = placement_of(machine, [[[0, 1, 8, 9]]])
    assert placed.slowest_tp_link == placed.slowest_ring_link == machine.network


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_place_finds_has_the_links_that_it_says(data):
    name = data.draw(st.sampled_from(["dgx-1", "a100-pairs", "a100-pcie", "h100"]))
    machine = Machine.preset(name, gpus=data.draw(st.integers(2, 8)), nodes=data.draw(st.integers(1, 2)))
    tp = data.draw(st.integers(1, machine.gpus_per_node))
    pp = data.draw(st.integers(1, machine.room_for(tp)))
    found = place(machine, tp, pp)
    again = placement_of(machine, found.groups)
    assert (again.tp_links, again.ring_links, again.hop_links) == (found.tp_links, found.ring_links, found.hop_links)
    assert again.idle == found.idle


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([], "a GPU in every group"),
        ([[[]]], "a GPU in every group"),
        ([[]], "a GPU in every group"),
        ([[[0, 1], [2]]], "some have 1 GPUs, some 2"),
        ([[[0], [1]], [[2]]], "as many stages in every replica"),
        ([[[0, 8]]], "GPUs 0 to 7"),
        ([[[0, -1]]], "GPUs 0 to 7"),
        ([[[0, 1], [1, 2]]], "GPU 1 is in two places"),
        ([[0, 1]], "lists of stages"),
        ([[["a"]]], "lists of stages"),
    ],
)
def test_what_no_placement_is(groups, words):
    with pytest.raises(ValueError, match=words) as refused:
        placement_of(DGX, groups)
    assert "groups" in str(refused.value)
