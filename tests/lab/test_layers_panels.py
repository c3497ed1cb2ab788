"""The panels of notebooks 03 and 04 without a browser: what a click runs, through the same methods."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tplab.cluster import RunStopped
from tplab.collectives.emulated_link import EmulatedLink
from tplab.lab import Pool
from tplab.lab.panels.layers import LINKS, ChunkModel, OverlapPanel, PhasesPanel, linked_badge

pytestmark = pytest.mark.timeout(120)

SLOW = "0.2 ms, 0.05 GB/s"


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool(2, backend="gloo")
    yield pool
    pool.stop()


@pytest.fixture
def overlap(pool: Pool) -> OverlapPanel:
    return OverlapPanel(pool).configure(chunks=(1, 4), tokens=256, in_features=1024, link=SLOW)


@pytest.fixture
def phases(pool: Pool) -> PhasesPanel:
    return PhasesPanel(pool).configure(tokens=(1, 16), hidden=256)


def badges(panel: object) -> list[str]:
    return [item.text for item in panel.figure.layout.annotations]  # type: ignore[attr-defined]


def wait_for(condition: object, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def test_the_overlap_panel_measures_draws_and_explains(overlap: OverlapPanel) -> None:
    overlap.run()
    frame = overlap.frame
    assert frame["chunks"].tolist() == [1, 4]
    assert frame["correct"].all()
    assert frame["link"].unique().tolist() == ["emulated link 200 us, 0.05 GB/s"]
    computed, exposed = overlap.figure.data[:2]
    assert list(computed.y + exposed.y) == pytest.approx((frame[["compute_us", "total_us"]].max(axis=1) / 1e3).tolist())
    assert "<b>LIVE gloo · 2 ranks · emulated link 200 us, 0.05 GB/s</b>" in badges(overlap)
    assert "of what can be hidden" in overlap._below.value
    assert "WRONG" not in overlap._below.value
    assert overlap._status.share == 1.0


def test_one_chunk_is_always_among_them(overlap: OverlapPanel) -> None:
    overlap.configure(chunks=[4, 2]).run()
    assert overlap.frame["chunks"].tolist() == [1, 2, 4]


def test_without_a_link_the_badge_names_none(overlap: OverlapPanel) -> None:
    overlap.configure(link="the ranks' own").run()
    assert "<b>LIVE gloo · 2 ranks</b>" in badges(overlap)
    assert not overlap.frame["link"].str.contains("emulated").any()
    assert (overlap.frame["predicted_us"] > 0).all()


def test_the_phases_panel_measures_draws_and_explains(phases: PhasesPanel) -> None:
    phases.run()
    assert phases.frame["tokens"].tolist() == [1, 16]
    assert phases.frame["correct"].all()
    assert phases.frame["payload_bytes"].tolist() == [2 * 256 * 4, 2 * 16 * 256 * 4]
    assert phases._below.value.count("exposed communication") == 1
    assert "A decode step" in phases._below.value
    assert "<b>LIVE gloo · 2 ranks</b>" in badges(phases)
    shares = sum(item.y for item in phases.figure.data)
    assert list(shares) == pytest.approx([100, 100])


def test_a_slow_link_is_on_the_badge_and_is_felt(phases: PhasesPanel) -> None:
    phases.configure(tokens=(16,), link="2 ms, 0.05 GB/s").run()
    assert "<b>LIVE gloo · 2 ranks · emulated link 2,000 us, 0.05 GB/s</b>" in badges(phases)
    assert phases.frame["exposed_us"].iloc[0] > 2 * 2000  # two all-reduces, each at least one latency


def test_steps_are_drawn_from_decode_to_prefill_whatever_the_order(phases: PhasesPanel) -> None:
    phases.configure(tokens=[16, 1]).run()
    assert phases.frame["tokens"].tolist() == [1, 16]


def test_the_ribbon_shows_while_settings_differ_from_the_run(phases: PhasesPanel) -> None:
    phases.configure(tokens=(1,)).run()
    assert phases._ribbon.value == ""
    phases.configure(hidden=512)
    assert "Settings changed" in phases._ribbon.value
    phases.configure(hidden=256)
    assert phases._ribbon.value == ""


def test_a_stopped_run_keeps_its_rounds(overlap: OverlapPanel) -> None:
    overlap.configure(chunks=(1, 2, 4, 8), tokens=1024, in_features=4096)
    overlap._run_button.click()
    wait_for(lambda: any("samples" in report.fields for report in overlap.state.work.run.reports))
    wait_for(lambda: {report.rank for report in overlap.state.work.run.reports if "samples" in report.fields} == {0, 1})
    overlap.stop()
    wait_for(overlap._ended.is_set)
    assert isinstance(overlap.state.work.run.exception(), RunStopped)
    assert "Stopped" in overlap._status.words
    assert overlap._error.value == ""
    assert overlap.frame["chunks"].tolist() == [1, 2, 4, 8]
    overlap.configure(chunks=(1,), tokens=256, in_features=1024).run()
    assert overlap._error.value == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"colour": "red"}, "colour is not a setting of this panel, which has chunks, tokens, in_features, out_feat"),
        ({"tokens": 17}, "tokens must be one of 256, 512, 1024, 2048, 4096, 8192, 16384; got 17"),
        ({"link": "carrier pigeon"}, "link must be one of the ranks' own, 0.2 ms, 0.05 GB/s, .*; got 'carrier pigeon'"),
        ({"chunks": (1, 3)}, "chunks must be one of 1, 2, 4, 8, 16, 32; got 3"),
        ({"chunks": 4}, r"chunks must be a list or tuple out of 1, 2, 4, 8, 16, 32; got 4"),
    ],
)
def test_a_setting_that_is_not_offered_is_named(
    overlap: OverlapPanel, settings: dict[str, object], message: str
) -> None:
    before = overlap.settings()
    with pytest.raises(ValueError, match=message):
        overlap.configure(**settings)
    assert overlap.settings() == before


def test_no_step_at_all_is_shown_and_raised(phases: PhasesPanel) -> None:
    with pytest.raises(ValueError, match="Tokens: choose at least one step size"):
        phases.configure(tokens=()).run()
    assert "choose at least one" in phases._error.value


def test_features_that_do_not_divide_are_shown(pool: Pool) -> None:
    pool.num_ranks = 3
    try:
        panel = OverlapPanel(pool).configure(in_features=1024)
        with pytest.raises(ValueError, match="in_features=1024 does not divide over 3 ranks"):
            panel.run()
        assert "does not divide" in panel._error.value
    finally:
        pool.num_ranks = 2


def test_every_link_on_offer_says_what_it_is() -> None:
    for name, link in LINKS.items():
        if link is None:
            assert linked_badge("B", link) == "B"
        else:
            assert name == f"{link.latency_us / 1e3:g} ms, {link.bandwidth_GBps:g} GB/s"
            assert linked_badge("B", link) == f"B · emulated link {link}"
    assert isinstance(LINKS[SLOW], EmulatedLink)


def test_the_model_follows_its_sliders() -> None:
    model = ChunkModel()
    assert model.figure.layout.title.text.startswith("1 chunk:")
    assert "nothing to hide behind" in model.below
    assert model.show(num_chunks=1, compute_ms=40, comm_ms=20) is model
    assert model.figure.layout.title.text == "1 chunk: 60.0 ms; in one piece 60.0, bound 40.0 ms"
    before = model.figure
    model._named["num_chunks"].value = 8
    assert model.figure is not before
    assert model.figure.layout.title.text.startswith("8 chunks")
    model.show(compute_ms=2, overhead_ms=2, comm_ms=2, latency_ms=2)  # all of it start-up
    assert "8 chunks: 18.0 ms" in model.figure.layout.title.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speed": 1}, "speed is not a setting of this panel, which has num_chunks, compute_ms, comm_ms, overhead_ms"),
        ({"num_chunks": 33}, "num_chunks must be a whole number from 1 to 32; got 33"),
        ({"compute_ms": 1.5}, "compute_ms must be a number of at least 2 and at most 100; got 1.5"),
        ({"num_chunks": 2.5}, "num_chunks must be a whole number from 1 to 32; got 2.5"),
    ],
)
def test_sliders_name_what_they_cannot_be(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChunkModel().show(**settings)


def test_sizes_and_links_suit_the_ranks(pool: Pool) -> None:
    cpu = pool.choice
    shared = replace(cpu, backend="nccl", num_gpus=1, gpu="a GPU", memory_GB=40.0)
    for panel in (OverlapPanel(pool), PhasesPanel(pool)):
        panel.suit(shared)
        assert panel._named["link"].options == ("the ranks' own",)
        panel.suit(cpu)
        assert len(panel._named["link"].options) == len(LINKS)
    overlap = OverlapPanel(pool)
    assert overlap.settings()["link"] == "0.2 ms, 0.05 GB/s"
    overlap.suit(replace(shared, num_gpus=2))
    assert (overlap.settings()["dtype"], overlap.settings()["out_features"]) == ("bfloat16", 8192)
