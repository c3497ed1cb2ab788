"""Verifying: plans, what is made of the ranks' reports, and real runs held against what cannot be undercut.

A layout cannot be faster than the latencies of the messages that its tokens need, however the machine is doing.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tplab.cluster import Provenance, Report
from tplab.collectives.emulated_link import EmulatedLink
from tplab.measure import link_text
from tplab.models.shards import Layout, kv_bytes, weight_bytes
from tplab.models.spec import ModelConfig, ModelSpec
from tplab.topology.advisor.advice import advise
from tplab.topology.advisor.calibration import AllReduceTimes, Calibration, MatmulTimes, SendTimes
from tplab.topology.advisor.workload import Workload
from tplab.topology.verification.plan import ClusterFacts, plan_verify, runs_whole
from tplab.topology.verification.run import Verification, spearman, verification_of, verify
from tplab.topology.verification.static_batch import machine_of, predict_batch, requests_by_replica, runnable

LLAMA = ModelConfig(
    model_type="llama",
    vocab_size=257,  # prime: padded on every number of ranks
    hidden_size=48,
    intermediate_size=96,
    num_layers=4,
    num_heads=6,
    num_kv_heads=3,
    head_dim=8,
    max_positions=128,
)
LOAD = Workload(input_length=8, output_length=6, concurrency=3)
LATENCY_US = 4000.0
LINK = EmulatedLink(latency_us=LATENCY_US, bandwidth_GBps=0.5)
ROOMY = 1e9
PRECISIONS = ("weight_precision", "kv_precision", "activation_precision")

OVER_LINK = {"notes": (link_text(LINK),), "emulated_links": True}


def calibrated(num_ranks=2, latency_us=LATENCY_US, *, sends=None, notes=(), all_reduce=True, **more):
    """A machine as over a link of that latency, by formula."""
    sizes = (1e3, 1e6)
    pairs = sends or {(i, j): latency_us for i in range(num_ranks) for j in range(i + 1, num_ranks)}
    groups = [(n, tuple(range(n))) for n in range(2, num_ranks + 1)] if all_reduce else []
    return Calibration(
        **{
            "machine": f"{num_ranks} ranks",
            "device": "a CPU",
            "backend": "gloo",
            "num_ranks": num_ranks,
            "created": "2026-11-24T12:00:00+00:00",
            "versions": {"torch": "2.13"},
            "all_reduce": tuple(
                AllReduceTimes(
                    num_ranks=n,
                    nbytes=sizes,
                    p50_us=tuple(2 * (n - 1) * latency_us + b / 500 for b in sizes),
                    gpus=gpus,
                )
                for n, gpus in groups
            ),
            "sends": tuple(
                SendTimes(source=i, target=j, nbytes=sizes, p50_us=tuple(us + b / 500 for b in sizes))
                for (i, j), us in pairs.items()
            ),
            "matmuls": tuple(
                MatmulTimes(
                    precision="fp32", num_ranks=n, tokens=(1, 1), params=(1e3, 1e6), p50_us=(5.0 * n, 500.0 * n)
                )
                for n in (1, 2)
            ),
            "copy_GBps": 10.0,
            "kv_read_GBps": 5.0,
            "block_overhead_us": 300.0,
            "step_overhead_us": 200.0,
            "handoff_us": 50.0,
            "launch_us": 0.0,
            "notes": notes,
        }
        | more
    )


PROVENANCE = Provenance(
    backend="gloo",
    num_ranks=2,
    device="a CPU",
    num_devices=1,
    link="TCP over loopback",
    num_cores=2,
    torch_version="2.13",
    nccl_version="",
    python_version="3.11",
    started_at="2026-11-24T12:00:00+00:00",
)


def planned(target=((2, 1), (1, 2), (1, 1, 2)), model=LLAMA, workload=LOAD, **more):
    own_gpus = more.pop("own_gpus", False)
    settings = {"calibration": calibrated(), "free_bytes": [ROOMY] * 2, "links": None} | more
    num_ranks = more.get("num_ranks", 2)
    provenance = replace(
        PROVENANCE,
        backend="nccl" if own_gpus else "gloo",
        num_ranks=num_ranks,
        num_devices=num_ranks if own_gpus else 1,
        num_cores=more.get("num_cores", 2),
    )
    facts = ClusterFacts(
        provenance=provenance,
        calibration=settings["calibration"],
        free_bytes=tuple(settings["free_bytes"]),
        links=settings["links"],
    )
    how = {key: value for key, value in more.items() if key in HOW}
    return plan_verify(target, model, workload, cluster=facts, **how)


HOW = ("compute", "cuda_graphs", "layers", "tokens", "rounds", "repeats")


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        ((1, 2, 3), (10, 20, 30), 1.0),
        ((1, 2, 3), (3, 2, 1), -1.0),
        ((1, 2, 3, 4), (1, 3, 2, 4), 0.8),
        ((1, 1, 2), (5, 5, 9), 1.0),
    ],
)
def test_rank_correlation(a, b, want):
    assert spearman(a, b) == pytest.approx(want)
    assert pd.Series(a).rank().corr(pd.Series(b).rank()) == pytest.approx(want)


def test_rank_correlation_of_too_little():
    assert np.isnan(spearman([1.0], [2.0]))
    assert np.isnan(spearman([1.0, 1.0], [2.0, 3.0]))
    assert np.isnan(spearman([], []))
    with pytest.raises(ValueError, match="must be as many; got 2 and 3"):
        spearman([1, 2], [1, 2, 3])


def test_requests_are_shared_out_over_copies():
    assert requests_by_replica(replace(LOAD, concurrency=7), 3) == [3, 2, 2]
    assert requests_by_replica(replace(LOAD, concurrency=2), 3) == [1, 1]
    with pytest.raises(ValueError, match="a request rate instead"):
        requests_by_replica(Workload(input_length=8, output_length=8, request_rate=1.0), 2)


def test_terms_of_a_batch_add_up_and_follow_the_link():
    spec = ModelSpec.from_config(LLAMA.to_hf(), weight_precision="fp32")
    layouts = [Layout.of(spec, 2, 1), Layout.of(spec, 1, 2), Layout.of(spec, 1, 1, 2)]
    slow, fast = (
        predict_batch(spec, machine_of(c), LOAD, layouts, calibration=c) for c in (calibrated(), calibrated(2, 10.0))
    )
    for made in (*slow, *fast):
        assert sum(made.terms_ms.values()) == pytest.approx(made.tpot_ms, rel=0.02)
    # Two sums a layer, one for the embedding, and a gathering of half a sum: each there and back.
    assert slow[0].terms_ms["all_reduce"] == pytest.approx(2 * 4 * 2 * LATENCY_US / 1e3, rel=0.01)
    assert slow[0].terms_ms["ends"] == pytest.approx(3 * LATENCY_US / 1e3, rel=0.01)
    assert slow[1].terms_ms["ends"] == slow[2].terms_ms["ends"] == 0
    assert slow[1].terms_ms["hops"] == pytest.approx(2 * (LATENCY_US + 50) / 1e3, rel=0.01)
    assert slow[0].tpot_ms > slow[1].tpot_ms > slow[2].tpot_ms
    assert fast[0].tpot_ms < slow[0].tpot_ms
    assert fast[2].tpot_ms == pytest.approx(slow[2].tpot_ms)


def test_graphs_save_launches_of_decode_steps_and_of_nothing_else():
    spec = ModelSpec.from_config(LLAMA.to_hf(), weight_precision="fp32")
    layouts = [Layout.of(spec, 2, 1), Layout.of(spec, 1, 2)]
    c = replace(calibrated(2, 1.0), launch_us=1000.0)
    eager, graphs = (
        predict_batch(spec, machine_of(c), LOAD, layouts, calibration=c, cuda_graphs=on) for on in (False, True)
    )
    for one, other in zip(eager, graphs, strict=True):
        assert one.ttft_ms == pytest.approx(other.ttft_ms)
        assert other.terms_ms["launch"] == 0 < one.terms_ms["launch"]
        # A pipeline waits for its slowest stage, whose launches are half of them.
        assert other.tpot_ms < one.tpot_ms
    assert eager[0].tpot_ms - graphs[0].tpot_ms == pytest.approx(eager[0].terms_ms["launch"])


def test_the_last_stage_samples_before_it_goes_on():
    """With as many micro-batches as stages, every one of them adds the host's work to the slowest stage."""
    spec = ModelSpec.from_config(LLAMA.to_hf(), weight_precision="fp32")
    load, layouts = replace(LOAD, concurrency=4), [Layout.of(spec, 1, 2)]
    quick, slow = (
        predict_batch(spec, machine_of(c), load, layouts, calibration=c)[0].tpot_ms
        for c in (replace(calibrated(2, 1.0), step_overhead_us=us, handoff_us=0.0) for us in (0.0, 5000.0))
    )
    assert slow - quick == pytest.approx(2 * 5.0, rel=0.2)


def test_decode_steps_are_replayed_where_every_rank_has_a_gpu():
    assert not planned().cuda_graphs
    alone = planned(own_gpus=True, num_cores=4)
    assert alone.cuda_graphs
    assert alone.parts_of_badge == ("CUDA graphs",)
    assert not planned(own_gpus=True, cuda_graphs=False).cuda_graphs
    assert not planned(own_gpus=True, compute="emulated").cuda_graphs


def test_a_layout_fits_with_all_of_its_layers_or_not():
    spec = ModelSpec.from_config(LLAMA.to_hf(), weight_precision="fp32")
    whole = Layout.of(spec, 1, 2)
    config = runnable(spec, 4, LOAD.context_length + 1, "float32")
    most = max(
        weight_bytes(config, whole, stage, 0)
        + kv_bytes(config, whole, stage, 0, requests=3, context=LOAD.context_length)
        for stage in (0, 1)
    )
    spec = replace(spec, **dict.fromkeys(PRECISIONS, "fp32"))
    assert runs_whole(spec, whole, LOAD, [most / 0.6 + 1] * 2)
    assert not runs_whole(spec, whole, LOAD, [most / 0.6 + 1, most / 0.6 - 1])


def test_alone_takes_the_rates_of_one_rank():
    spec = ModelSpec.from_config(LLAMA.to_hf(), weight_precision="fp32")
    layouts, c = [Layout.of(spec, 2, 1)], calibrated()
    together, alone = (
        predict_batch(spec, machine_of(c), LOAD, layouts, calibration=c, alone=alone)[0] for alone in (False, True)
    )
    assert together.terms_ms["weights"] == pytest.approx(2 * alone.terms_ms["weights"])
    assert together.terms_ms["all_reduce"] == alone.terms_ms["all_reduce"]


def test_shapes_of_a_model_survive_but_for_its_depth():
    spec = ModelSpec.from_config("qwen3-0.6b")
    config = runnable(spec, 3, 64, "float32")
    assert config.num_layers == 3
    assert config.tied_embeddings == spec.tied_embeddings
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim", "qk_norm"):
        assert getattr(config, name) == getattr(spec, name)
    weights = weight_bytes(config, Layout.of(config), 0, 0)
    as_run = replace(spec, num_layers=3, **dict.fromkeys(PRECISIONS, "fp32"))
    assert weights == as_run.weight_bytes
    with pytest.raises(ValueError, match=r"an MLP without a gate, which tplab\.models does not run"):
        runnable(ModelSpec.from_config("gpt-3-175b"), 3, 64, "float32")


def test_windows_are_kept():
    spec = ModelSpec.from_config("gemma-2-9b")
    half = runnable(replace(spec, num_layers=4, windows=(4096, None) * 2), 4, 64, "float32")
    assert sorted(map(str, half.windows)) == ["4096", "4096", "None", "None"]


def test_as_many_layers_as_fit():
    whole = planned()
    assert (whole.config.num_layers, whole.notes) == (4, ())
    # A copy on one rank needs most. Room for two of its layers and the ends, in the share that may be used.
    per_layer = (2 * 48 * (48 + 24) + 3 * 48 * 96 + 2 * 48) * 4
    ends = (2 * 257 * 48 + 48) * 4
    cache = 2 * 2 * 2 * 24 * 4 * (LOAD.input_length + LOAD.output_length)
    room = (ends + 2.5 * per_layer + cache) / 0.6
    part = planned(free_bytes=[room, ROOMY])
    assert part.config.num_layers == 2
    assert part.notes[0].startswith("2 of 4 layers are run, and times scaled up")
    assert all(1 < run.scale < 2.1 for run in part.runs)
    assert part.runs[2].scale > part.runs[1].scale  # hops do not come with layers
    assert all(run.scale == 1 for run in whole.runs)
    assert planned(layers=3).config.num_layers == 3


def test_what_the_badge_and_notes_say():
    plan = planned(links=LINK, compute="emulated", calibration=calibrated(**OVER_LINK))
    assert plan.parts_of_badge == ("emulated compute", "emulated link 4,000 us, 0.5 GB/s")
    assert "stages wait as long as they were timed alone" in plan.notes[0]
    assert planned().parts_of_badge == ()
    assert not planned().emulated_compute
    four = planned(((4, 1), (1, 4)), replace_heads(8), num_ranks=4, calibration=calibrated(4), free_bytes=[ROOMY] * 4)
    assert four.emulated_compute
    many_cores = planned(
        ((4, 1),), replace_heads(8), num_ranks=4, num_cores=4, calibration=calibrated(4), free_bytes=[ROOMY] * 4
    )
    assert not many_cores.emulated_compute
    shorter = planned(workload=replace(LOAD, output_length=100), tokens=6)
    assert shorter.output_length == 6
    assert "6 of 100 new tokens" in shorter.notes[0]
    narrow = planned(model=ModelSpec.from_config(LLAMA.to_hf(), weight_precision="fp8"))
    assert "run in fp32 instead of fp8" in narrow.notes


def replace_heads(num_heads):
    return replace(LLAMA, num_heads=num_heads, num_kv_heads=num_heads)


def test_unlike_links_choose_the_ranks():
    """Ranks 0 and 2 are near each other: they share the layers."""
    sends = {(0, 1): 9000.0, (0, 2): 50.0, (1, 2): 9000.0}
    c = calibrated(3, sends=sends)
    plan = planned(((2, 1), (1, 3)), calibration=c, num_ranks=3, free_bytes=[ROOMY] * 3)
    assert sorted(plan.runs[0].groups[0][0]) == [0, 2]
    alike = planned(((2, 1), (1, 3)), calibration=calibrated(3), num_ranks=3, free_bytes=[ROOMY] * 3)
    assert alike.runs[0].groups == (((0, 1),),)
    assert alike.runs[1].groups == (((0,), (1,), (2,)),)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"num_ranks": 4},
            r"the calibration is of 2 ranks, the cluster has 4: calibrate this one, or use Cluster\(2\)",
        ),
        ({"compute": "maybe"}, "compute must be one of auto, real, emulated; got 'maybe'"),
        ({"tokens": 1}, "tokens must be a whole number of at least 2; got 1"),
        ({"rounds": 0}, "rounds must be a whole number of at least 1; got 0"),
        ({"target": ()}, "there is no layout to verify"),
        ({"target": ((2, 2),)}, r"TP 2 × PP 2 needs 4 ranks, the cluster has 2: use Cluster\(4\)"),
        ({"target": ((2,),)}, r"a layout must be a Layout, \(tp, pp\) or \(tp, pp, replicas\); got \(2,\)"),
        ({"target": ((4, 1),)}, "tp must divide the model's 6 query heads"),
        ({"layers": 5}, "layers must be a whole number from 2 to 4; got 5"),
        ({"layers": 1}, "layers must be a whole number from 2 to 4; got 1"),
        ({"free_bytes": [1e5, 1e5]}, "with 2 layers needs 0.00 GB on a rank"),
        ({"cuda_graphs": True}, "cuda_graphs=True needs a GPU for every rank"),
        (
            {"cuda_graphs": True, "own_gpus": True, "compute": "emulated"},
            "cuda_graphs=True has nothing to replay with compute='emulated'",
        ),
        ({"model": None}, "model and workload must be given with a list of layouts"),
        ({"workload": Workload(input_length=8, output_length=8, request_rate=1.0)}, "a request rate instead"),
    ],
)
def test_what_cannot_be_verified(settings, match):
    with pytest.raises(ValueError, match=match):
        planned(**settings)


def reported(row, rank, first_s, token_s, tokens=LOAD.output_length, start_s=100.0):
    first = start_s + first_s
    moments = {"start": start_s, "first": first, "last": first + token_s * (tokens - 1)}
    return Report(rank, {"samples": {(row, what): seconds * 1e6 for what, seconds in moments.items()}})


def test_what_is_made_of_reports():
    plan = planned()
    reports = []
    for token_s in (0.2, 0.1, 0.4):
        reports += [reported(0, rank, 0.5, token_s) for rank in (0, 1)]
        reports += [reported(1, rank, 0.5, 0.05) for rank in (0, 1)]
    reports += [reported(2, 0, 0.3, 0.02), reported(2, 1, 0.4, 0.03)]
    reports += [reported(2, 0, 0.3, 0.02)]  # the other copy has not finished: no sample
    made = verification_of(plan, reports, PROVENANCE)
    frame = made.frame
    assert list(frame["layout"]) == ["TP 2 × PP 1", "TP 1 × PP 2", "TP 1 × PP 1 × 2"]
    assert list(frame["samples"]) == [3, 3, 1]
    assert frame["measured_tpot_ms"].tolist() == pytest.approx([200, 50, 30])  # median; the slower copy
    assert frame["measured_ttft_ms"].tolist() == pytest.approx([500, 500, 400])
    assert frame["measured_output_tokens_per_s"].iloc[2] == pytest.approx(3 * 6 / (0.4 + 5 * 0.03))
    predicted = [run.predicted.tpot_ms for run in plan.runs]
    errors = [100 * (p / m - 1) for p, m in zip(predicted, (200, 50, 30), strict=True)]
    assert frame["tpot_ms_error_pct"].tolist() == pytest.approx(errors)
    assert made.mape_pct() == pytest.approx(np.abs(errors).mean())
    assert made.spearman == 1.0
    assert made.regret_pct == 0.0
    assert made.badge == "LIVE gloo · 2 ranks"
    assert "time per token" in str(made)


def test_regret_is_what_the_advice_loses():
    frame = pd.DataFrame(
        {
            "setting": ["a"] * 3 + ["b"] * 2,
            "layout": ["x", "y", "z", "x", "y"],
            "predicted_output_tokens_per_s": [3.0, 2.0, 1.0, 1.0, 2.0],
            "measured_output_tokens_per_s": [80.0, 100.0, 10.0, 1.0, 2.0],
        }
    )
    made = Verification(frame=frame, notes=(), badge="b")
    choices = made.choices()
    assert choices["advised"].tolist() == ["x", "y"]
    assert choices["best"].tolist() == ["y", "y"]
    assert choices["regret_pct"].tolist() == pytest.approx([20, 0])
    assert made.regret_pct == pytest.approx(10)
    joined = Verification.joined([made, replace(made, badge="c", notes=("n",))])
    assert len(joined.frame) == 10
    assert (joined.badge, joined.notes) == ("b | c", ("n",))
    with pytest.raises(ValueError, match="no verification to join"):
        Verification.joined([])


def test_real_layouts_over_a_slow_link(cluster2):
    """Copies that send nothing are best, sums over every layer worst; and said so."""
    calibration = calibrated(**OVER_LINK)
    made = verify(
        cluster2,
        ((2, 1), (1, 2), (1, 1, 2)),
        LLAMA,
        LOAD,
        calibration=calibration,
        links=LINK,
        rounds=2,
        repeats=1,
        compute="real",
        timeout=120,
    )
    frame = made.frame.set_index("layout")
    measured = frame["measured_tpot_ms"]
    assert measured["TP 2 × PP 1"] >= (2 * 4 * 2 + 3) * LATENCY_US / 1e3
    assert measured["TP 1 × PP 2"] >= 2 * LATENCY_US / 1e3
    assert measured.idxmax() == "TP 2 × PP 1"
    choice = made.choices().iloc[0]
    assert choice["advised"] == "TP 1 × PP 1 × 2"
    assert choice["best"] != "TP 2 × PP 1"
    assert made.regret_pct < 50  # sharing layers would have lost four fifths
    assert frame["samples"].tolist() == [2, 2, 2]
    assert frame["batch"].tolist() == [3, 3, 3]
    assert made.badge == "LIVE gloo · 2 ranks · emulated link 4,000 us, 0.5 GB/s"


def test_an_advice_is_run_over_the_backends_own_links(cluster2):
    calibration = calibrated(2, 100.0)
    spec = ModelSpec.from_config(LLAMA.to_hf(), weight_precision="fp32")
    advice = advise(spec, machine_of(calibration, memory_GB=16), LOAD, calibration=calibration)
    made = verify(cluster2, advice, calibration=calibration, rounds=1, repeats=1, compute="real", timeout=120)
    assert set(made.frame["layout"]) == {str(option.layout) for option in advice.options}
    assert (made.frame["measured_ttft_ms"] > 0).all()
    assert made.badge == "LIVE gloo · 2 ranks"
    assert made.frame["setting"].unique().tolist() == ["TCP over loopback"]


def test_emulated_compute_on_more_ranks(cluster3):
    calibration = calibrated(3, **OVER_LINK)
    made = verify(
        cluster3,
        ((3, 1), (1, 3), (1, 1, 3), (1, 2)),
        LLAMA,
        LOAD,
        calibration=calibration,
        links=LINK,
        rounds=1,
        repeats=1,
        compute="emulated",
        timeout=120,
    )
    measured = made.frame.set_index("layout")["measured_tpot_ms"]
    assert "emulated compute" in made.badge
    assert measured["TP 3 × PP 1"] >= (2 * 4 * 4 + 4) * LATENCY_US / 1e3
    assert measured["TP 1 × PP 3"] >= 3 * LATENCY_US / 1e3
    assert measured.idxmax() == "TP 3 × PP 1"  # 36 latencies a token against 3 at most
    assert len(measured) == 4


def test_a_cluster_of_another_size_is_refused_before_anything_runs(cluster2):
    with pytest.raises(ValueError, match="the calibration is of 3 ranks, the cluster has 2"):
        verify(cluster2, ((2, 1),), LLAMA, LOAD, calibration=calibrated(3))
