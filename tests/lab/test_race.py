"""The race in the kernel: what the picture is told, and the same race on real ranks."""

from collections.abc import Iterator

import pandas as pd
import pytest

from tplab.collectives import AlphaBeta, time_us
from tplab.collectives.measured_race import plan_race
from tplab.lab import Pool, Predict, RacePanel, SweepPanel
from tplab.lab.choice import Choice
from tplab.lab.figures.collectives import explain_race, race_figure
from tplab.lab.known_links import THIS_MACHINE
from tplab.lab.panels.check_boxes import CheckBoxes
from tplab.lab.pictures import Race

pytestmark = pytest.mark.timeout(90)


def test_boxes_are_ticked_by_hand_and_by_name_and_keep_their_order() -> None:
    boxes = CheckBoxes([("one", 1), ("two", 2), ("three", 3)], value=[2], description="numbers")
    seen = []
    boxes.observe(lambda change: seen.append(change.new), names="value")
    boxes._boxes[1].value = True
    assert boxes.value == (1, 2)
    boxes.value = [3, 1]
    assert [box.value for box in boxes._boxes.values()] == [True, False, True]
    assert seen == [(1, 2), (1, 3)]
    with pytest.raises(ValueError, match="one of 1, 2, 3"):
        boxes.value = (4,)


def test_what_cannot_be_chosen_is_greyed_out_with_its_reason() -> None:
    boxes = CheckBoxes([1, 2, 3], value=[2, 3], description="numbers")
    boxes.refuse({2: "Need a GPU per rank"})
    assert boxes.value == (3,)
    assert boxes._boxes[2].disabled
    assert "Need a GPU per rank" in boxes._withheld.children[0].value
    with pytest.raises(ValueError, match="x cannot be chosen here: Need a GPU per rank"):
        boxes.check("x", [2])
    boxes.refuse({3: "not now"})
    assert boxes.value == (1,)  # something is ticked as before
    boxes.refuse({})
    assert not any(box.disabled for box in boxes._boxes.values())


def test_the_sweep_offers_what_the_ranks_have(pool: Pool) -> None:
    panel = SweepPanel(pool)
    with pytest.raises(ValueError, match="algorithms cannot be chosen here: Need a GPU per rank"):
        panel.configure(algorithms=["library", "pushed-one-shot"])
    with pytest.raises(ValueError, match="mode"):
        panel.configure(mode="graph")
    panel.suit(Choice(num_ranks=2, backend="nccl", num_gpus=2, gpu="H200", memory_GB=141, num_cores=8))
    panel.configure(mode="graph", algorithms=["library", "pushed-one-shot"])
    with pytest.raises(ValueError, match="Not in CUDA graphs"):
        panel.configure(algorithms=["ring"])


def test_the_picture_is_told_what_a_cell_says() -> None:
    race = Race(3, 1 << 20, link=AlphaBeta(alpha_us=5, beta_GBps=10), algorithms=["ring", "one-shot"], own_links=True)
    assert race.times_us == {
        "ring": time_us("ring", 1 << 20, 3, 5, 10),
        "one-shot": time_us("one-shot", 1 << 20, 3, 5, 10, ports=2),
    }
    race.offer("mine", AlphaBeta(alpha_us=7, beta_GBps=2))
    assert race.link == AlphaBeta(alpha_us=7, beta_GBps=2)
    assert [link["name"] for link in race.links][:2] == ["mine", "NVLink 4 (H100)"]
    for wrong in ({"num_ranks": 9}, {"nbytes": 0}, {"algorithms": ["tree"]}, {"algorithms": []}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Race(**wrong)


def test_bytes_are_uncovered_by_a_prediction_or_without_one() -> None:
    for answer in (lambda guess: guess.commit(2), lambda guess: guess.reveal()):
        guess = Predict("bytes", unit="S")
        race = Race(after=guess)
        assert race.covered
        answer(guess)
        assert not race.covered
    assert not Race().covered
    shown: list[str] = []
    guess = Predict("bytes", unit="S")
    guess.afterwards(lambda: shown.append("the answer"))
    Race(after=guess).covered = False  # the picture's own button
    assert shown == ["the answer"]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool(3, backend="gloo")
    yield pool
    pool.stop()


def test_the_same_race_on_ranks_brings_their_link_and_their_times(pool: Pool) -> None:
    panel = RacePanel(pool, nbytes=1 << 12)
    assert panel.race.num_ranks == 3
    panel.run()
    frame, race = panel.frame, panel.race
    assert frame["algorithm"].tolist() == ["one-shot", "recursive-doubling", "ring"]
    assert frame["correct"].all()
    assert (race.links[0]["name"], race.links[0]["alpha_us"]) == (THIS_MACHINE, race.alpha_us)
    assert frame["formula_us"].tolist() == pytest.approx(list(race.times_us.values()))
    assert [(row["algorithm"], row["us"]) for row in race.measured] == list(
        zip(frame["algorithm"], frame["p50_us"], strict=True)
    )
    assert {row["badge"] for row in race.measured} == {"LIVE gloo · 3 ranks"}
    assert {row["at"] for row in race.measured} == {panel.state.drawn.began_at}
    assert "All-reduce of 4 KiB on 3 ranks" in panel.figure.layout.title.text
    assert panel._ribbon.value == ""  # the race took the link that was measured: nothing is out of date
    race.num_ranks = 2  # two of the three
    assert "Settings" in panel._ribbon.value or "GPUs" in panel._ribbon.value
    panel.configure(algorithms=["ring"]).run()
    assert panel.frame["num_ranks"].tolist() == [2]
    assert len(race.measured) == 4


def test_over_a_declared_link_the_race_is_the_emulated_one(pool: Pool) -> None:
    panel = RacePanel(pool, nbytes=1 << 14).configure(link="declared", alpha_us=2000.0, beta_GBps=0.05)
    panel.configure(algorithms=["one-shot", "ring"]).run()
    assert panel.race.own_links
    assert panel.frame["formula_us"].tolist() == pytest.approx(list(panel.race.times_us.values()))
    assert (panel.frame["p50_us"] >= panel.frame["formula_us"]).all()
    assert "emulated link" in panel.race.measured[0]["badge"]
    panel.race.alpha_us = 1.5
    with pytest.raises(ValueError, match=r"alpha_us must be at least 200 µs to be emulated.*move α of the race"):
        panel.run()
    panel.race.num_ranks = 5
    with pytest.raises(ValueError, match="num_ranks must be at most the 3 ranks of the pool"):
        panel.run()


def test_what_would_take_too_long_or_too_much_is_refused(pool: Pool) -> None:
    from tplab.collectives import EmulatedLink

    with pytest.raises(ValueError, match="nbytes must be at most 64 MiB on the CPU"):
        plan_race(pool.cluster, ["ring"], 1 << 30)
    with pytest.raises(ValueError, match="nbytes must be less for this link"):
        plan_race(pool.cluster, ["ring"], 1 << 26, link=EmulatedLink(latency_us=1000, bandwidth_GBps=0.01))


def test_the_words_on_a_measured_race_say_who_was_first_and_who_should_have_been() -> None:
    frame = pd.DataFrame(
        {
            "algorithm": ["one-shot", "recursive-doubling", "ring"],
            "bytes": 4096,
            "num_ranks": 4,
            "p50_us": [100.0, 90.0, 600.0],
            "formula_us": [50.0, 60.0, 200.0],
            "correct": True,
        }
    )
    assert explain_race(frame) == (
        "Fastest here: recursive doubling, 90 µs; the formula says one-shot. "
        "Times as long as its formula: one-shot 2, recursive doubling 1.5, ring 3."
    )
    assert "so does the formula" in explain_race(frame.assign(p50_us=[80.0, 90.0, 600.0]))
    assert "WRONG" in explain_race(frame.assign(correct=[True, False, True]))
    assert explain_race(frame.head(0)) == ""
    assert [trace.name for trace in race_figure(frame.assign(formula_us=None), badge="LIVE").data] == ["measured"]


def test_the_still_is_the_race_under_way_and_then_the_run(pool: Pool) -> None:
    panel = RacePanel(pool)
    parts = [str(part) for part in panel.still()]
    assert ["All-reduce race" in part for part in parts[:2]] == [True, False]
    assert "<iframe" in parts[2]
    assert "The same race on real ranks" in parts[3]
    assert sum("iframe" in part for part in parts) == 1
    assert panel.race.still_state()["at"] > 0
    assert panel.race.at == 0


def test_a_recorded_curve_stands_behind_the_sweep_once_a_time_was_predicted(pool: Pool) -> None:
    guess = Predict("a time", unit="µs")
    panel = SweepPanel(pool, after=guess).configure(sizes=(1 << 10, 1 << 14))
    box = panel._named["beside"]
    assert box.disabled
    panel.run()
    alone = [trace.name for trace in panel.figure.data]
    guess.commit(100)
    assert not box.disabled
    box.value = True
    first, *others = panel.figure.data  # the first is drawn below the others
    assert first.name == "Four H200, NVLink, RECORDED 4xH200 2026-11-26"
    assert [trace.name for trace in others] == alone
    assert first.x.min() >= 1 << 10
    assert first.x.max() <= 1 << 14
    assert "Four H200, NVLink: 13.1 µs, and 354 GB/s at 1 GiB." in panel._below.value
    assert panel._ribbon.value == ""  # it changes nothing that was measured
    panel._look.value = "Bus bandwidth"
    assert panel.figure.data[0].name == first.name


def test_who_waits_for_a_run_does_not_wait_for_ever(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = SweepPanel(pool).configure(sizes=(1 << 10, 1 << 10))
    become = panel._become

    def fails_at_the_end(**changes: object) -> None:
        if changes.get("stage") == "done":
            raise AttributeError("no words for this setting")
        become(**changes)

    monkeypatch.setattr(panel, "_become", fails_at_the_end)
    panel._begin()
    assert panel._ended.wait(30)


@pytest.mark.parametrize(
    ("name", "value"), [("algorithms", []), ("algorithms", ["tree"]), ("beta_GBps", 0.0), ("alpha_us", -1.0)]
)
def test_a_race_that_cannot_be_run_is_refused_and_the_last_one_stays(name: str, value: object) -> None:
    race = Race()
    before = race.state()
    with pytest.raises(ValueError, match=name):
        setattr(race, name, value)
    assert race.state() == before
