"""The drawing of a machine, without a browser: its state, and what is refused."""

import pytest

from tplab.lab.pictures import Topology
from tplab.topology import Machine, place, predict


def test_its_groups_are_a_placement():
    picture = Topology(tp=2, pp=2)
    assert picture.replicas == 2
    assert picture.placement == place(Machine.preset("dgx-1"), 2, 2)
    picture.groups = [0, 0, 1, 1, 2, 2, 3, 3]
    assert picture.placement.groups[1] == ((4, 5), (7, 6))  # 4-7 and 5-6 have two NVLinks
    picture.groups = [0, 0, 0, 1, 2, 2, 3, 3]
    with pytest.raises(ValueError, match="of one size"):
        _ = picture.placement


def test_another_layout_leaves_gpus_idle():
    picture = Topology()
    picture.lay(Machine.preset("h100"), "llama-3.1-8b", tp=3, pp=1, replicas=2)  # 3 do not divide its heads
    assert picture.groups.count(-1) == 2
    assert picture.in_order == [0, 0, 0, 1, 1, 1, -1, -1]
    assert "rows" not in picture.prices
    assert "No prediction for Llama 3.1 8B" in picture.prices["why"]


def test_its_table_has_the_price_of_the_best():
    picture = Topology(Machine.preset("a100-pcie"), "llama-3.1-70b", tp=4, pp=2)
    made = predict(picture._spec, picture._machine, picture._workload, 4, 2)
    assert picture.prices["best"]["tpot_ms"] == pytest.approx(made.tpot_ms)


def test_more_than_can_be_drawn_and_more_than_there_are():
    with pytest.raises(ValueError, match="at most 144"):
        Topology(Machine.preset("h100", nodes=32))
    with pytest.raises(ValueError, match="no room"):
        Topology(Machine.preset("h100"), tp=8, pp=2)
    with pytest.raises(ValueError, match="tp"):
        Topology(tp=0)
