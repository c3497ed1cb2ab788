"""The drawing of a machine, without a browser: its state, and what is refused."""

import pytest

from tplab.lab.pictures import Topology
from tplab.topology import Machine, machine_of, place, placement_of, predict
from tplab.topology.advisor.calibration import AllReduceTimes, Calibration, SendTimes


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


def calibration(fast: float, slow: float) -> Calibration:
    """Of three ranks: all-reduces of 0 and 1 take ``fast`` us, all others ``slow``."""
    sizes = (1 << 10, 1 << 20)

    def swept(gpus: tuple[int, int]) -> AllReduceTimes:
        us = fast if gpus == (0, 1) else slow
        return AllReduceTimes(num_ranks=2, nbytes=sizes, p50_us=(us, 2 * us), launch="eager", gpus=gpus)

    pairs = ((0, 1), (0, 2), (1, 2))
    return Calibration(
        backend="gloo",
        device="a CPU",
        machine="3 ranks",
        num_ranks=3,
        created="2026-11-24T12:00:00+00:00",
        versions={},
        all_reduce=tuple(map(swept, pairs)),
        sends=tuple(SendTimes(source=a, target=b, nbytes=sizes, p50_us=(50.0, 900.0)) for a, b in pairs),
    )


def test_what_was_measured_on_these_very_ranks_is_the_last_word():
    measured = calibration(fast=100.0, slow=400.0)
    picture = Topology(machine_of(measured), "llama-3.1-8b", tp=2, pp=1, calibration=measured)
    assert picture.best == [0, 0, -1]
    picture.groups = [0, -1, 0]
    rows = picture.prices["exact"]
    assert rows["0,2"][2] > 2 * rows["0,1"][2]  # all-reduces
    for key, groups in (("0,1", [[[0, 1]]]), ("0,2", [[[0, 2]]])):
        placed = placement_of(picture._machine, groups)
        made = predict(picture._spec, picture._machine, picture._workload, 2, 1, placement=placed, calibration=measured)
        assert rows[key][0] == pytest.approx(made.tpot_ms)
    assert picture.prices["best"]["tpot_ms"] == pytest.approx(rows["0,1"][0])
