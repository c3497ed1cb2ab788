"""Recorded measurements: readable, right, and with where they come from."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tplab.collectives import comparable, crossovers
from tplab.lab.recorded import recorded, recorded_badge, recorded_calibration, recorded_trace, recordings
from tplab.pipeline import Op, build_schedule
from tplab.topology import EnginePolicy, Layout, Machine, ModelSpec, Workload, machine_of, place
from tplab.topology.verification.box_layouts import scores
from tplab.topology.verification.static_batch import predict_batch

FOUR = "4xH200-2026-11-26"
HOSTS = "2_hosts_at_400_Mbit-2026-11-29"


def test_every_step_of_every_recording_is_readable() -> None:
    assert recordings()
    for name in recordings():
        for step in ("links", "sweep", "layers"):
            frame = recorded(name, step)
            assert len(frame)
            assert {"backend", "num_ranks", "device", "torch_version", "nccl_version", "started_at"} <= set(frame)
            assert frame["started_at"].str.startswith(name[-10:]).all()


def test_all_recordings_together_are_small() -> None:
    sizes = [path.stat().st_size for path in Path(str(files("tplab.lab.recorded"))).rglob("*") if path.is_file()]
    assert sum(sizes) < 2_000_000


def test_all_results_were_checked() -> None:
    for name in recordings():
        assert recorded(name, "sweep")["correct"].all()
        links = recorded(name, "links")
        assert links.loc[links["topo"].notna(), "agree"].all()  # of GPUs: only they have two who say


def test_badges() -> None:
    assert recorded_badge("2xH100-2026-11-24") == "RECORDED 2xH100 2026-11-24"
    assert recorded_badge(HOSTS) == "RECORDED 2 hosts at 400 Mbit 2026-11-29"


def test_two_hosts_and_the_cable_between_them() -> None:
    """What ``tc`` was told is what was measured, and the advice follows from it."""
    machine = machine_of(recorded_calibration(HOSTS))
    assert (machine.nodes, machine.gpus_per_node) == (2, 2)
    assert machine.network is not None
    assert machine.network.bandwidth_GBps * 8e3 == pytest.approx(400, rel=0.2)
    links = recorded(HOSTS, "links")
    across = (links["src"] < 2) != (links["dst"] < 2)
    assert links.loc[across, "GBps"].max() * 8e3 == pytest.approx(400, rel=0.2)
    assert links.loc[~across, "GBps"].min() > 3 * links.loc[across, "GBps"].max()
    assert set(recorded(HOSTS, "sweep").query("num_ranks == 4")["link"]) == {"TCP between 2 hosts"}
    assert place(machine, 2, 2, 1).groups == (((0, 1), (2, 3)),)


def test_a_pipeline_ran_in_the_order_of_its_table() -> None:
    for name in ("gpipe", "1f1b", "forward-only"):
        trace = recorded_trace(FOUR, build_schedule(name, 4, 8))
        assert trace.badge == "RECORDED 4xH200 2026-11-26"
        summary = recorded(FOUR, "pipeline").set_index("schedule")
        assert trace.makespan_s * 1e3 == pytest.approx(summary.loc[name, "makespan_ms"])
        for rank, row in enumerate(trace.schedule.ranks):
            ran = [f"{s.stage}{s.op}{s.micro_batch}" for s in trace.spans if s.rank == rank and s.op.is_compute]
            assert ran == [str(action) for action in row if action is not None]
    with pytest.raises(ValueError, match="is a trace of 1f1b, not of this 1f1b of 4 stages and 16 micro-batches"):
        recorded_trace(FOUR, build_schedule("1f1b", 4, 16))
    with pytest.raises(ValueError, match="not of this 1f1b of 4 stages and 4 micro-batches"):
        recorded_trace(FOUR, build_schedule("1f1b", 4, 4))


def test_layouts_of_whole_models_and_what_predictions_of_them_are_worth() -> None:
    made = scores(recorded(FOUR, "layouts")).set_index("prediction")
    assert made.loc["calibrated", "tpot_mape_pct"].mean() < made.loc["spec sheet", "tpot_mape_pct"].mean()
    assert (made["regret_pct"] < 10).all()
    assert recorded_calibration(FOUR).num_ranks == 4


def test_packed_steps_go_before_those_that_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    schedule = build_schedule("1f1b", 4, 8)
    trace = recorded_trace(FOUR, schedule)
    (tmp_path / FOUR).mkdir()
    monkeypatch.setattr("tplab.lab.recorded.files", lambda _: tmp_path)
    trace.to_perfetto(tmp_path / FOUR / "pipeline-1f1b.json")
    assert recorded_trace(FOUR, schedule).makespan_s == pytest.approx(trace.makespan_s)
    (tmp_path / FOUR / "pipeline-1f1b.json").write_text("an earlier one")
    trace.to_perfetto(tmp_path / FOUR / "pipeline-1f1b.json.gz")
    assert recorded_trace(FOUR, schedule).makespan_s == pytest.approx(trace.makespan_s)


def test_what_there_is_not() -> None:
    with pytest.raises(
        ValueError, match=r"name must be one of 1xH100-2026-11-28, 2_hosts.*, 2xH100-2026-11-24.*got '8xB300'"
    ):
        recorded("8xB300", "sweep")
    with pytest.raises(ValueError, match=r"must be one of layers, links, sweep; got 'weather'"):
        recorded("2xH100-2026-11-24", "weather")
    with pytest.raises(ValueError, match="step of 2xH100-2026-11-24 must be one of none; got 'calibration'"):
        recorded_calibration("2xH100-2026-11-24")


ONE = "1xH100-2026-11-28"


def test_one_gpu_generates_and_where_its_time_goes() -> None:
    generation = recorded(ONE, "generation")
    assert generation["num_ranks"].unique() == [1]
    in_graphs = generation[generation["launch_mode"] == "graph"]
    assert in_graphs["tpot_ms"].iloc[0] == pytest.approx(5.4, abs=0.4)  # 16.1 GB of weights at some 3 TB/s
    profile = recorded(ONE, "profile")
    for _, rows in profile.groupby(["model", "batch", "launch_mode", "phase"]):
        assert rows["measured_ms"].sum() == pytest.approx(rows["wall_ms"].iloc[0])
    # Products of eight sequences: a kernel that no pattern knew on that day.
    assert set(profile.loc[(profile["term"] == "other") & (profile["calls"] > 0), "names"]) <= {"_few_kernel"}
    decode = profile[(profile["phase"] == "decode") & (profile["batch"] == 1)].set_index("term")
    assert decode.loc["gaps", "share_pct"] < 5
    assert decode.loc["weights", "share_pct"] > 80


def test_ranks_that_share_a_gpu_have_their_own_map() -> None:
    sweep = recorded(ONE, "sweep")
    assert sweep["link"].str.contains("share a GPU").all()
    bands = recorded(ONE, "crossover")
    made = crossovers(comparable(sweep))
    pd.testing.assert_frame_equal(bands[[*made.columns]], made)
    assert recorded_trace(ONE, build_schedule("1f1b", 2, 4)).measured


@pytest.mark.parametrize(("name", "gpu", "rows"), [("1xH100-2026-11-28", "h100", 2), ("2xH200-2026-11-28", "h200", 6)])
def test_our_own_engine_in_graphs_is_predicted_by_the_spec_sheet(name: str, gpu: str, rows: int) -> None:
    frame = recorded(name, "generation").query("launch_mode == 'graph'")
    model, machine = ModelSpec.from_config("llama-3.1-8b"), Machine.preset(gpu)
    assert len(frame) == rows
    for row in frame.itertuples():
        engine = EnginePolicy(pp_micro_batches=row.micro_batches)
        prompt, new = row.prompt_tokens // row.sequences, row.new_tokens // row.sequences
        load = Workload(input_length=prompt, output_length=new, concurrency=row.sequences, engine=engine)
        layout = Layout.of(model, row.tp, row.pp)
        (made,) = predict_batch(model, machine, load, [layout], calibration=None, cuda_graphs=True)
        assert made.tpot_ms == pytest.approx(row.tpot_ms, rel=0.1), (row.tp, row.pp, row.sequences)


def test_backwards_of_the_recorded_pipeline_are_fastest_at_first_and_longest_on_the_last_rank() -> None:
    """What notebook 05 says of it."""
    trace = recorded_trace("4xH200-2026-11-26", build_schedule("1f1b", 4, 8))
    times = [[span.end_s - span.start_s for span in trace.spans if (span.rank, span.op) == (r, Op.B)] for r in range(4)]
    assert all(min(each) == each[0] for each in times)
    medians = [float(np.median(each)) for each in times]
    assert max(medians) == medians[3]
