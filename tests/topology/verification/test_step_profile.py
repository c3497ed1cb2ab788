"""A profile of real ranks: sums of terms, all kernels named, valid Perfetto JSON, predictions beside."""

import json
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tplab import Cluster
from tplab.checks import ArgumentError
from tplab.lab import Pool, ProfilePanel, example_model, explain_profile
from tplab.lab.figures import profile_figure
from tplab.topology import Machine, StepProfile, profile_step
from tplab.topology.verification.kernels import TERMS
from tplab.topology.verification.step_profile import PREDICTED_BY

pytestmark = pytest.mark.timeout(120)
LAYERS = 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(2, "gloo") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def tensor(cluster: Cluster) -> StepProfile:
    machine = Machine.preset("h100", gpus=2)
    return profile_step(cluster, example_model(), tp=2, prompt_length=16, machine=machine)


@pytest.fixture(scope="module")
def pipeline(cluster: Cluster) -> StepProfile:
    return profile_step(cluster, example_model(), pp=2, prompt_length=16)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", ["tensor", "pipeline"])
def test_terms_add_up_to_the_steps_wall_time(name: str, phase: str, request: pytest.FixtureRequest) -> None:
    profile = request.getfixturevalue(name)
    terms = profile.terms(phase)
    assert [each.term for each in terms] == list(TERMS)
    assert sum(each.wall_s for each in terms) * 1e3 == pytest.approx(profile.wall_ms(phase))
    assert profile.unknown() == []


def test_a_rank_of_two_computes_all_layers_and_sums_twice_in_each(tensor: StepProfile) -> None:
    for phase in ("prefill", "decode"):
        calls = {each.term: each.calls for each in tensor.terms(phase)}
        assert calls["weights"] == 4 * LAYERS  # queries, keys and values; output; gate and up; down
        assert (calls["head"], calls["attention"]) == (1, LAYERS)
        assert calls["all-reduce"] >= 2 * LAYERS + 2  # the embedding's sum, and the sampler's gathering
        assert calls["hops"] == calls["other"] == 0
        assert calls["sampling"] > 0


def test_two_stages_compute_half_of_the_layers_each_and_have_hops(pipeline: StepProfile) -> None:
    calls = {each.term: each.calls for each in pipeline.terms("decode")}
    assert (calls["weights"], calls["head"], calls["attention"]) == (4 * LAYERS, 1, LAYERS)
    assert calls["all-reduce"] == 0
    assert calls["hops"] > 0
    assert next(each.wall_s for each in pipeline.terms("decode") if each.term == "hops") > 0
    for rank, kernels in enumerate(pipeline.kernels["decode"]):
        assert sum(each.term == "attention" for each in kernels) == LAYERS // 2
        assert any(each.term == "head" for each in kernels) == (rank == 1)


def test_every_predicted_term_stands_beside_a_measured_one(tensor: StepProfile, pipeline: StepProfile) -> None:
    frame = tensor.frame()
    for phase, rows in frame.groupby("phase"):
        predicted = rows.set_index("term")["predicted_ms"]
        assert predicted.sum() == pytest.approx(sum(tensor.predicted_ms[phase].values()))
        assert set(predicted.dropna().index) == set(PREDICTED_BY[phase])
        assert {name for names in PREDICTED_BY[phase].values() for name in names} >= set(tensor.predicted_ms[phase])
        assert (rows["difference_ms"].dropna() == (rows["predicted_ms"] - rows["measured_ms"]).dropna()).all()
        assert rows["share_pct"].sum() == pytest.approx(100)
    assert frame["backend"].unique() == ["gloo"]
    assert (frame["unprofiled_ms"] > 0).all()
    assert pipeline.frame()["predicted_ms"].isna().all()
    assert "nothing is predicted" in pipeline.notes[0]


def test_the_perfetto_file_is_what_chrome_expects(tensor: StepProfile, tmp_path) -> None:
    path = tmp_path / "step.json"
    tensor.to_perfetto(path)
    data = json.loads(path.read_text())
    slices = [event for event in data["traceEvents"] if event["ph"] == "X"]
    assert {event["pid"] for event in slices} == {0, 1}
    assert all(event["dur"] >= 0 and {"name", "cat", "tid", "ts"} <= set(event) for event in slices)
    kernels = sum(len(rank) for phase in tensor.kernels.values() for rank in phase)
    assert sum(event["cat"] in TERMS for event in slices) == kernels
    named = {(e["pid"], e["tid"]) for e in data["traceEvents"] if e["ph"] == "M" and e["name"] == "thread_name"}
    assert {(event["pid"], event["tid"]) for event in slices} <= named
    for track in named:  # nothing overlaps on a track, or it could not be drawn
        own = sorted((e["ts"], e["ts"] + e["dur"]) for e in slices if (e["pid"], e["tid"]) == track and track[1])
        assert all(after >= until - 1e-3 for (_, until), (after, _) in pairwise(own))
    assert data["otherData"]["backend"] == "gloo"
    assert tensor.trace.measured


def test_the_figure_and_its_words(tensor: StepProfile) -> None:
    frame = tensor.frame()
    figure = profile_figure(frame, title="t", badge=tensor.badge)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert len(bars) == 2
    assert sum(bars[1].x) == pytest.approx(tensor.wall_ms("decode"))
    assert {trace.name for trace in figure.data} == {"measured", "predicted"}
    said = explain_profile(frame)
    assert "The decode step takes" in said
    assert "The advisor is furthest off in" in said
    assert str(tensor).startswith("LIVE gloo")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cuda_graphs": True}, "cuda_graphs must be left out or False where ranks speak gloo"),
        ({"new_tokens": 2}, "new_tokens"),
        ({"batch": 0}, "batch"),
        ({"prompt_length": 4096}, "the model takes 2048"),
        ({"tp": 3}, "3"),
    ],
)
def test_what_cannot_work_is_refused_before_ranks_start(cluster: Cluster, settings, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        profile_step(cluster, example_model(), **settings)


def test_a_phase_that_there_is_not(tensor: StepProfile) -> None:
    with pytest.raises(ArgumentError, match="prefill, decode"):
        tensor.terms("training")


def test_the_panel_profiles_what_its_controls_say(no_ranks_left: None) -> None:
    pool = Pool(2, backend="gloo")
    try:
        panel = ProfilePanel(pool, example_model())
        assert panel.profile is None
        panel.configure(tp=2, prompt_length=32).run()
        assert panel.profile is not None
        assert (panel.profile.generation.layout.tp, panel.profile.generation.layout.pp) == (2, 1)
        assert "TP 2" in panel.figure.layout.title.text
        assert "Nothing is predicted" in panel._below.value
        with pytest.raises(ValueError, match="TP 4 does not divide"):
            panel.configure(tp=4).run()
        assert "TP 2" in panel.figure.layout.title.text
    finally:
        pool.stop()
