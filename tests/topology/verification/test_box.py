"""The steps for a machine with several GPUs, over gloo and small: files, frames, faults that do not stop the others."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tplab.topology.verification.box as box
import tplab.topology.verification.box_layouts as box_layouts
from tplab import Cluster
from tplab.cluster import ClusterError, RankDied, RankTimeout
from tplab.collectives.point_to_point import measure_point_to_point
from tplab.files import read_json
from tplab.layers.overlap import StackPlan, measure_strategies
from tplab.pipeline import Trace, build_schedule
from tplab.topology.advisor.calibration import Calibration
from tplab.topology.advisor.workload import Workload
from tplab.topology.calibration.run import calibrate
from tplab.topology.verification.box import STEPS, measure_box
from tplab.topology.verification.box_layouts import PREDICTED_FROM, BoxCase, each_case, measure_cases, scores
from tplab.topology.verification.box_plan import BoxPlan, powers_below
from tplab.topology.verification.box_run import BoxRun
from tplab.topology.verification.run import Verification

pytestmark = pytest.mark.timeout(150)


@pytest.fixture(scope="module")
def measured(no_ranks_left: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, pd.DataFrame]]:
    out = tmp_path_factory.mktemp("box") / "made"
    return out, measure_box(out, num_ranks=3, backend="gloo", say=lambda _: None)


def test_every_step_has_a_frame_and_a_file(measured: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    out, frames = measured
    assert set(frames) == set(STEPS)
    for step, frame in frames.items():
        stored = pd.read_csv(out / f"{step}.csv")
        assert list(stored.columns) == list(frame.columns)
        assert len(stored) == len(frame) > 0
        assert {"backend", "num_ranks", "device", "torch_version"} <= set(stored.columns)


def test_links_of_every_pair(measured: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    links = measured[1]["links"]
    assert len(links) == 6
    assert (links["latency_us"] > 0).all()
    assert (links["GBps"] > 0).all()


def test_sweeps_of_two_ranks_and_of_all(measured: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    sweep = measured[1]["sweep"]
    assert set(sweep["num_ranks"]) == {2, 3}
    own = {"ring", "one-shot", "two-shot", "recursive-doubling"}
    assert set(sweep["algorithm"]) == {"library", "int8-two-shot", *own}
    assert sweep["correct"].all()
    bands = pd.read_csv(measured[0] / "crossover.csv")
    assert set(bands["algorithm"]) <= {"library", *own}
    for num_ranks, rows in bands.groupby("num_ranks"):
        assert num_ranks in (2, 3)
        assert rows["from_bytes"].iloc[0] == 0
        assert rows["from_bytes"].tolist()[1:] == rows["to_bytes"].tolist()[:-1]
        assert {"device", "started_at", "dtype"} <= set(rows)


def test_messages_of_every_size_stand_beside_the_links(measured: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    messages = pd.read_csv(measured[0] / "point_to_point.csv")
    assert messages.groupby(["src", "dst"]).ngroups == 6
    assert messages["bytes"].nunique() > 3


def test_generation_in_every_layout_and_where_its_time_goes(measured: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    out, frames = measured
    generation = frames["generation"]
    layouts = [(3, 1), (1, 3), (2, 1), (1, 2), (1, 1)]  # the machine as a whole first
    assert list(zip(generation["tp"], generation["pp"], strict=True)) == layouts
    assert (generation["num_ranks"] == generation["tp"] * generation["pp"]).all()
    assert (generation[["ttft_ms", "tpot_ms"]] > 0).all(axis=None)
    profile = pd.read_csv(out / "profile.csv")
    assert len(profile) == len(layouts) * 2 * 9
    for _, rows in profile.groupby(["tp", "pp", "phase"]):
        assert rows["measured_ms"].sum() == pytest.approx(rows["wall_ms"].iloc[0])
    for tp, pp in layouts:
        assert read_json(out / f"profile-tp{tp}-pp{pp}.json.gz")["traceEvents"]


def test_layers_are_right_in_every_strategy(measured: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    layers = measured[1]["layers"]
    assert layers.groupby("tokens").size().nunique() == 1
    int8 = layers["strategy"].str.startswith("Int8")
    assert (layers.loc[~int8, "error"] < 1e-4).all()
    assert (layers.loc[int8, "error"] < 0.05).all()


def test_pipelines_take_as_long_as_simulated_or_longer(measured: tuple[Path, dict[str, pd.DataFrame]]) -> None:
    out, frames = measured
    pipeline = frames["pipeline"]
    assert pipeline["schedule"].tolist() == ["forward-only", "1f1b", "gpipe"]
    assert (pipeline["makespan_ms"] > 0.5 * pipeline["simulated_ms"]).all()
    for name in pipeline["schedule"]:
        path = out / f"pipeline-{name}.json.gz"
        assert read_json(path)["otherData"]["backend"] == "gloo"
        trace = Trace.from_perfetto(path, build_schedule(name, 3, 6))
        assert trace.makespan_s * 1e3 == pytest.approx(pipeline.set_index("schedule").loc[name, "makespan_ms"])


def test_models_in_every_layout_advised_run_and_predicted_twice(
    measured: tuple[Path, dict[str, pd.DataFrame]],
) -> None:
    out, frames = measured
    layouts = frames["layouts"]
    assert set(zip(layouts["tp"], layouts["pp"], layouts["replicas"], strict=True)) == {(3, 1, 1), (1, 3, 1), (1, 1, 3)}
    assert sorted(layouts["advised_rank"]) == [1, 2, 3]
    assert (layouts["layers"] == 8).all()
    assert (layouts[["measured_tpot_ms", "predicted_tpot_ms"]] > 0).all(axis=None)
    assert not any(column.startswith("spec_sheet") for column in layouts)  # a processor has none
    assert scores(layouts)["prediction"].tolist() == ["calibrated"]
    assert Calibration.load(out / "calibration.json").num_ranks == 3


def test_models_are_halved_until_two_layouts_hold_them_and_left_out_where_none_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster2: Cluster
) -> None:
    config = {
        "model_type": "qwen2", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 4,
    }  # fmt: skip
    (tmp_path / "deep.json").write_text(json.dumps(config))
    (tmp_path / "wide.json").write_text(json.dumps(config | {"vocab_size": 100_000}))
    workload = Workload(input_length=4, output_length=3, concurrency=2)
    deep, wide = (BoxCase(model=str(tmp_path / name), workload=workload) for name in ("deep.json", "wide.json"))
    a_layer = 4 * (64 * 64 + 64 * 32 * 2 + 64 * 64 + 3 * 64 * 256)
    free = 3 * a_layer / 0.6  # half of 8 layers is too much for a rank, half of 4 is not; no vocabulary of 100,000
    monkeypatch.setattr(box_layouts, "free_bytes", lambda rank: free)
    said: list[str] = []
    calibration = calibrate(cluster2, **BoxPlan.small().calibration)
    frame = measure_cases(cluster2, [wide, deep], calibration, say=said.append)
    with pytest.raises(ValueError, match="none of the models could be run"):
        measure_cases(cluster2, [wide], calibration, say=said.append)
    assert (frame["layers"] == 4).all()
    assert set(frame["setting"]) == {deep.label}
    assert said[0].startswith(f"{wide.label}: left out: ")


def test_scores_of_predictions_that_are_known() -> None:
    frame = pd.DataFrame(
        {
            "model": "a", "concurrency": 1, "input_length": 2, "output_length": 3, "layout": ["x", "y"],
            "predicted_tpot_ms": [10.0, 20.0], "measured_tpot_ms": [10.0, 25.0], "spec_sheet_tpot_ms": [20.0, 25.0],
            "predicted_ttft_ms": [1.0, 1.0], "measured_ttft_ms": [1.0, 2.0], "spec_sheet_ttft_ms": [1.0, 2.0],
            "predicted_output_tokens_per_s": [100.0, 50.0], "measured_output_tokens_per_s": [100.0, 40.0],
            "spec_sheet_output_tokens_per_s": [50.0, 60.0],
            "tpot_ms_error_pct": [0.0, -20.0], "ttft_ms_error_pct": [0.0, -50.0],
            "output_tokens_per_s_error_pct": [0.0, 25.0],
        }
    )  # fmt: skip
    spec_sheet, calibrated = scores(frame).to_dict("records")
    assert (spec_sheet["prediction"], calibrated["prediction"]) == PREDICTED_FROM
    assert spec_sheet["tpot_mape_pct"] == pytest.approx(50)
    assert calibrated["tpot_mape_pct"] == pytest.approx(10)
    assert (spec_sheet["ttft_mape_pct"], calibrated["ttft_mape_pct"]) == (pytest.approx(0), pytest.approx(25))
    assert (spec_sheet["chosen"], spec_sheet["best"], spec_sheet["regret_pct"]) == ("y", "x", pytest.approx(60))
    assert (calibrated["chosen"], calibrated["regret_pct"]) == ("x", pytest.approx(0))
    assert (spec_sheet["spearman"], calibrated["spearman"]) == (pytest.approx(-1), pytest.approx(1))


def test_a_step_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> pd.DataFrame:
        raise ValueError("no such links")

    monkeypatch.setitem(box._CALLS, "links", broken)
    said: list[str] = []
    frames = measure_box(tmp_path, num_ranks=2, backend="gloo", steps=["links", "sweep"], say=said.append)
    assert set(frames) == {"sweep"}
    assert "no such links" in said[0]
    assert "sweep.csv" in said[1]
    assert not (tmp_path / "links.csv").exists()


def test_a_step_that_fails_halfway_leaves_what_it_has_beside_the_earlier_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def halfway(*_: object) -> Iterator[pd.DataFrame]:
        yield pd.DataFrame({"row": [1, 2]})
        yield pd.DataFrame({"row": [3]})
        assert pd.read_csv(partial)["row"].tolist() == [1, 2, 3]  # before its end
        raise RankDied("rank 1 died", rank=1, exit_code=1)

    partial = tmp_path / "layers.partial.csv"
    (tmp_path / "layers.csv").write_text("row\n7\n")
    monkeypatch.setitem(box._CALLS, "layers", halfway)
    said: list[str] = []
    with Cluster(2, "gloo") as cluster:
        assert measure_box(tmp_path, cluster=cluster, steps=["layers"], say=said.append) == {}
        assert pd.read_csv(partial)["row"].tolist() == [1, 2, 3]
        assert pd.read_csv(tmp_path / "layers.csv")["row"].tolist() == [7]
        assert said[0].startswith(f"layers: 3 rows in {partial}, then after")
        assert said[0].endswith(" s rank 1 died")

        monkeypatch.setitem(box._CALLS, "layers", lambda _: iter([pd.DataFrame({"row": [4]})]))
        measure_box(tmp_path, cluster=cluster, steps=["layers", "layers"], minutes=1, say=said.append)
    assert pd.read_csv(tmp_path / "layers.csv")["row"].tolist() == [4]
    assert not partial.exists()
    assert len(said) == 2


def test_eight_ranks_in_a_fifth_of_a_minute(no_ranks_left: None, tmp_path: Path) -> None:
    """More than there is time for on a few cores, as on a short lease: the whole machine first, and an end."""
    said: list[str] = []
    with Cluster(8, "gloo") as cluster:
        cluster.start()
        began = time.monotonic()
        steps = ["pipeline", "generation"]
        measure_box(tmp_path, cluster=cluster, minutes=0.2, steps=steps, say=said.append)
        assert time.monotonic() - began < 12 + 15  # what runs at the end is stopped, and no ranks are waited for
    for step in steps:
        assert any(step in line for line in said)
    made = {f"{step}.csv" for step in steps} & {path.name for path in tmp_path.iterdir()}
    assert made or any("time" in line for line in said)
    for name in made:
        assert pd.read_csv(tmp_path / name)["num_ranks"].iloc[0] == 8


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (RankTimeout("no answer within 9 s\nRank 0 was here", ranks=[0]), "no answer within 9 s"),
        (RankDied("rank 1 has no memory left", rank=1, exit_code=1), "rank 1 has no memory left"),
    ],
)
def test_a_case_that_ends_halfway_keeps_the_layouts_that_were_run(
    monkeypatch: pytest.MonkeyPatch, cluster2: Cluster, fault: ClusterError, words: str
) -> None:
    (case,) = BoxPlan.small().cases
    calibration = calibrate(cluster2, **BoxPlan.small().calibration)
    whole = measure_cases(cluster2, [case], calibration, say=lambda _: None)
    assert list(whole.columns[:5]) == ["model", "input_length", "output_length", "concurrency", "advised_rank"]

    class Late:
        """A run whose limit passed after two of its layouts."""

        def result(self) -> Verification:
            raise fault

        def partial(self) -> Verification:
            return Verification(frame=whole.iloc[:2, 5:], notes=(), badge="")

    monkeypatch.setattr(box_layouts, "submit_verify", lambda *_, **__: Late())
    said: list[str] = []
    (frame,) = each_case(cluster2, [case], calibration, say=said.append)
    assert frame["layout"].tolist() == whole["layout"].tolist()[:2]
    assert said == [f"{case.label}: 2 of {len(whole)} layouts, then {words}"]


@pytest.mark.parametrize(("kept", "links"), [(7, [[0, 1]]), (2, [])])
def test_pairs_that_took_every_size_are_links_when_the_others_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster2: Cluster, kept: int, links: list[list[int]]
) -> None:
    whole = measure_point_to_point(cluster2)

    class Late:
        """A run that ended early."""

        def result(self) -> pd.DataFrame:
            raise RankDied("rank 1 died", rank=1, exit_code=1)

        def partial(self) -> pd.DataFrame:
            return whole.iloc[:kept]

    assert whole["bytes"].nunique() == 5
    monkeypatch.setattr(box, "submit_point_to_point", lambda *_, **__: Late())
    said: list[str] = []
    assert measure_box(tmp_path, cluster=cluster2, steps=["links"], say=said.append) == {}
    assert len(pd.read_csv(tmp_path / "point_to_point.partial.csv")) == kept
    assert len(list(tmp_path.iterdir())) == 1 + len(links)
    if links:
        frame = pd.read_csv(tmp_path / "links.partial.csv")
        assert frame[["src", "dst"]].to_numpy().tolist() == links
        assert frame["GBps"].iloc[0] == pytest.approx(whole["GBps"].iloc[4])
    assert said[0].endswith("rank 1 died")


def test_a_step_without_room_waits_and_goes_on_when_the_others_had_their_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster2: Cluster
) -> None:
    def links(run: BoxRun) -> Iterator[pd.DataFrame | None]:
        for part in run.time_left.parts(["a", "b"], str):
            if part is None:
                assert (tmp_path / "links.partial.csv").exists()
                assert not (tmp_path / "links.csv").exists()
            yield None if part is None else pd.DataFrame({"part": [part]})
            if part == "a":
                time.sleep(0.7)  # another one does not fit into its twelfth of ten seconds

    monkeypatch.setitem(box._CALLS, "links", links)
    monkeypatch.setitem(box._CALLS, "layers", lambda _: iter([pd.DataFrame({"row": [1]})]))
    monkeypatch.setitem(box._SHARES, "layers", 11)
    said: list[str] = []
    frames = measure_box(tmp_path, cluster=cluster2, steps=["links", "layers"], minutes=1 / 6, say=said.append)
    assert [line.split(":")[0] for line in said] == ["layers", "links"]
    assert frames["links"]["part"].tolist() == pd.read_csv(tmp_path / "links.csv")["part"].tolist() == ["a", "b"]
    assert not (tmp_path / "links.partial.csv").exists()


def test_a_part_that_fails_leaves_the_others_of_its_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster2: Cluster
) -> None:
    real = measure_strategies

    def measure(cluster: Cluster, ways: Any, plan: StackPlan, timeout: float | None) -> pd.DataFrame:
        if plan.seq == 16:
            raise RankDied("rank 1 has no memory left", rank=1, exit_code=1)
        return real(cluster, ways, plan, timeout=timeout)

    monkeypatch.setattr(box, "measure_strategies", measure)
    said: list[str] = []
    frame = measure_box(tmp_path, cluster=cluster2, steps=["layers"], say=said.append)["layers"]
    assert set(frame["tokens"]) == {64}
    assert said[0] == "layers, 16 tokens: left out: rank 1 has no memory left"


def test_powers_below() -> None:
    assert [powers_below(n) for n in (1, 2, 3, 4, 5, 8)] == [[], [1], [2, 1], [2, 1], [4, 2, 1], [4, 2, 1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_ranks": 1}, "num_ranks must be a whole number of at least 2"),
        ({"num_ranks": 2, "steps": ["weather"]}, "steps must be out of links, .*got 'weather'"),
        ({"num_ranks": 2, "minutes": 0}, "minutes must be a number above 0"),
    ],
)
def test_bad_input(arguments: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        measure_box(tmp_path, **arguments)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be made a folder"):
        measure_box(tmp_path / "file" / "below", num_ranks=2)
