"""The crossover map: planted winners are found, noise decides nothing, engines' limits are those in their code."""

import math
from typing import Any

import pandas as pd
import pytest

from tplab.collectives import comparable, crossovers, engine_losses, engine_rules, explain_crossovers, fastest
from tplab.collectives.crossover import best_for
from tplab.collectives.engine_thresholds import ENGINES, KIB, KINDS, MIB, EngineRule, capability_of
from tplab.collectives.sweep import read_sweep
from tplab.collectives.sweep_plan import ALGORITHMS, plan_crossover
from tplab.lab.recorded import recorded, recordings

SIZES = [1 << power for power in range(10, 25)]
H100, H200, B200 = "NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA B200"


def rows(algorithm: str, time_us: Any, jitter_us: float = 0.01, **more: Any) -> list[dict[str, Any]]:
    about = {
        "dtype": "bfloat16", "correct": True, "num_ranks": 4, "launch_mode": "graph", "backend": "nccl",
        "device": H200, "num_devices": 4, "link": "NCCL between GPUs",
    }  # fmt: skip
    times = {size: float(time_us(size)) for size in SIZES}
    return [
        {"algorithm": algorithm, "bytes": size, "p50_us": us, "min_us": us - jitter_us, "p95_us": us + 700}
        | about
        | more
        for size, us in times.items()
    ]


@pytest.fixture
def planted() -> pd.DataFrame:
    """Lines that cross at 8 us/(1/10 - 1/100) us per kB = 88,889 bytes, and a third that never wins."""
    one = rows("symmetric-one-shot", lambda size: 2 + size / 1e4)
    two = rows("symmetric-two-shot", lambda size: 10 + size / 1e5)
    never = rows("library", lambda size: 30 + size / 1e5)
    return pd.DataFrame(one + two + never)


def test_planted_winners_and_their_margin(planted: pd.DataFrame) -> None:
    best = fastest(planted)
    assert best["bytes"].tolist() == SIZES
    assert best["winner"].tolist() == [f"symmetric-{'one' if size < 88_889 else 'two'}-shot" for size in SIZES]
    assert best["decided"].all()
    at = best.set_index("bytes").loc[1024]
    assert at["margin_us"] == pytest.approx(8 + 1024 / 1e5 - 1024 / 1e4)
    assert at["runner_up"] == "symmetric-two-shot"


def test_the_crossover_lies_where_straight_lines_in_log_and_log_meet(planted: pd.DataFrame) -> None:
    bands = crossovers(planted)
    assert bands["algorithm"].tolist() == ["symmetric-one-shot", "symmetric-two-shot"]
    assert bands["from_bytes"].iloc[0] == 0
    assert math.isinf(bands["to_bytes"].iloc[1])
    limit = bands["to_bytes"].iloc[0]
    assert limit == bands["from_bytes"].iloc[1]
    assert 65_536 < limit < 131_072
    assert limit == pytest.approx(88_889, rel=0.05)  # the lines themselves are curved in log and log
    assert bands["measured"].tolist() == [7, 8]
    assert best_for(bands, 16_384) == "symmetric-one-shot"
    assert best_for(bands, 1 << 40) == "symmetric-two-shot"
    # By hand: times of both at 64 and 128 KiB.
    before, after = math.log((2 + 6.5536) / (10 + 0.65536)), math.log((2 + 13.1072) / (10 + 1.31072))
    assert limit == pytest.approx(65_536 * 2 ** (-before / (after - before)))


def test_algorithms_within_the_noise_do_not_take_turns() -> None:
    steady = rows("library", lambda size: 10, jitter_us=1.0)
    turns = rows("ring", lambda size: 10 + 0.5 * (-1) ** size.bit_length(), jitter_us=1.0)
    frame = pd.DataFrame(steady + turns)
    assert not fastest(frame)["decided"].any()
    assert set(fastest(frame)["winner"]) == {"library", "ring"}
    assert len(crossovers(frame)) == 1
    assert "15 of 15 sizes" in explain_crossovers(frame)


def test_a_tail_of_slow_samples_is_no_noise(planted: pd.DataFrame) -> None:
    assert (planted["p95_us"] - planted["p50_us"]).min() == pytest.approx(700)
    assert fastest(planted)["decided"].all()


@pytest.mark.timeout(20)
def test_a_median_below_the_least_sample_is_no_endless_comparison(planted: pd.DataFrame) -> None:
    assert len(crossovers(planted.assign(min_us=planted["p50_us"] + 2)))


def test_an_algorithm_alone_wins_everything() -> None:
    frame = pd.DataFrame(rows("library", lambda size: size))
    assert fastest(frame)["decided"].all()
    assert crossovers(frame)["algorithm"].tolist() == ["library"]


def test_an_algorithm_that_was_not_timed_everywhere_wins_where_it_was() -> None:
    slow = rows("library", lambda size: 100)
    short = [row for row in rows("one-shot", lambda size: 10) if row["bytes"] <= 1 << 14]
    bands = crossovers(pd.DataFrame(slow + short))
    assert bands["algorithm"].tolist() == ["one-shot", "library"]
    assert bands["to_bytes"].iloc[0] == (1 << 14) + 1, "what was not measured beyond may not be to be had there"
    frame = pd.DataFrame(slow + short)
    losses = engine_losses(frame, [rule((math.inf, "NCCL"))], hidden=1024, num_layers=1, batches=range(1, 20))
    assert losses["best"].tolist() == ["one-shot"] * 8 + ["library"] * 11


@pytest.mark.parametrize("name", [each for each in recordings() if each[1] == "x"])
def test_recorded_sweeps_have_a_best_for_every_message(name: str) -> None:
    frame = comparable(recorded(name, "sweep"))
    losses = engine_losses(frame, [rule((math.inf, "NCCL"))], hidden=4096, num_layers=32, batches=range(1, 130))
    assert losses["best_us"].notna().all()


def test_wrong_results_and_those_that_change_numbers_do_not_race(planted: pd.DataFrame) -> None:
    cheats = rows("ring", lambda size: 0.5, correct=False) + rows("int8-two-shot", lambda size: 0.5)
    kept = comparable(pd.concat([planted, pd.DataFrame(cheats)]))
    assert set(kept["algorithm"]) == set(planted["algorithm"])


def test_most_ranks_and_graphs_come_first(planted: pd.DataFrame) -> None:
    frame = pd.concat([planted, planted.assign(num_ranks=2), planted.assign(launch_mode="eager")])
    kept = comparable(frame)
    assert (kept["num_ranks"].iloc[0], kept["launch_mode"].iloc[0], len(kept)) == (4, "graph", len(planted))
    assert comparable(frame, num_ranks=2)["num_ranks"].unique() == [2]
    only_library = frame[(frame["launch_mode"] == "eager") | (frame["algorithm"] == "library")]
    assert comparable(only_library)["launch_mode"].unique() == ["eager"]  # one algorithm in graphs is no race
    with pytest.raises(ValueError, match=r"no exact, right results for 3, .*; it has 2 ranks graph bfloat16"):
        comparable(frame, num_ranks=3)
    with pytest.raises(ValueError, match="rows of one num_ranks"):
        crossovers(frame)
    with pytest.raises(ValueError, match="it has none"):
        comparable(frame.assign(correct=False))


def rule(*bands: tuple[float, str]) -> EngineRule:
    from tplab.collectives.engine_thresholds import Band

    made = tuple(Band(to_bytes=limit, kind=kind) for limit, kind in bands)
    return EngineRule(engine="vLLM", bands=made, source="test")


def test_a_fixed_limit_loses_the_difference_times_all_calls(planted: pd.DataFrame) -> None:
    fixed = rule((math.inf, "one-shot"))
    losses = engine_losses(planted, [fixed], hidden=8192, num_layers=80, batches=[1, 64])
    small, large = losses.to_dict("records")
    assert (small["bytes"], large["bytes"]) == (16 * KIB, MIB)
    assert small["lost_us_per_call"] == 0
    per_call = (2 + MIB / 1e4) - (10 + MIB / 1e5)
    assert large["lost_us_per_call"] == pytest.approx(per_call)
    assert large["lost_ms_per_step"] == pytest.approx(160 * per_call / 1e3)


def test_an_algorithm_is_not_guessed_beyond_its_largest_message() -> None:
    short = [row for row in rows("pushed-one-shot", lambda size: 5) if row["bytes"] <= 1 << 18]
    frame = pd.DataFrame(short + rows("symmetric-one-shot", lambda size: 50) + rows("library", lambda size: 20))
    losses = engine_losses(frame, [rule((math.inf, "one-shot"))], hidden=8192, num_layers=1, batches=[1, 64])
    assert losses["algorithm"].tolist() == ["pushed-one-shot", "symmetric-one-shot"]
    assert losses["lost_us_per_call"].tolist() == pytest.approx([0, 30])


def test_a_choice_that_was_not_measured_and_an_engine_without_one_have_no_number(planted: pd.DataFrame) -> None:
    frame = planted[planted["algorithm"] != "library"]
    losses = engine_losses(frame, [rule((math.inf, "NCCL"))], hidden=64, num_layers=1, batches=[1])
    assert losses["lost_us_per_call"].isna().all()
    assert losses["note"].iloc[0] == "takes NCCL, which was not measured here"
    nothing = engine_losses(frame, engine_rules("AMD EPYC", 2, 64), hidden=64, num_layers=1, batches=[1])
    assert nothing["engine"].tolist() == [*ENGINES]
    assert nothing["lost_ms_per_step"].isna().all()
    assert nothing["note"].str.contains("no threshold for AMD EPYC").all()


@pytest.mark.parametrize(
    ("device", "n", "engine", "nbytes", "kind"),
    [
        # vLLM, csrc/custom_all_reduce.cuh: two ranks always one stage; up to four below 512 KiB, up to eight below 256.
        (H100, 2, "vLLM", 4 * MIB, "one-shot"),
        (H100, 4, "vLLM", 512 * KIB - 1, "one-shot"),
        (H100, 4, "vLLM", 512 * KIB, "two-shot"),
        (H100, 8, "vLLM", 256 * KIB, "two-shot"),
        (H100, 8, "vLLM", 8 * MIB, "NCCL"),
        ("NVIDIA A100-SXM4-80GB", 4, "vLLM", 256 * KIB, "one-shot"),
        (H100, 3, "vLLM", 1, "NCCL"),
        # SGLang, custom_all_reduce_v2.py: limits included; cut to the workspace of 16 MiB.
        (H200, 4, "SGLang", 384 * KIB, "one-shot"),
        (H200, 4, "SGLang", 384 * KIB + 2, "two-shot"),
        (H200, 8, "SGLang", 128 * KIB, "one-shot"),
        (H200, 8, "SGLang", 16 * MIB, "two-shot"),
        (H200, 2, "SGLang", 17 * MIB, "NCCL"),
        (B200, 4, "SGLang", MIB, "one-shot"),
        # TensorRT-LLM, by tokens of 8,192: TP 8 takes two steps from 32 tokens (512 KiB) and NCCL from 512 (8 MiB).
        (H100, 8, "TensorRT-LLM", 31 * 16 * KIB, "one-shot"),
        (H100, 8, "TensorRT-LLM", 32 * 16 * KIB, "two-shot"),
        (H100, 8, "TensorRT-LLM", 512 * 16 * KIB, "NCCL"),
        (B200, 4, "TensorRT-LLM", 255 * 16 * KIB, "one-shot"),
    ],
)
def test_limits_are_those_in_the_engines_code(device: str, n: int, engine: str, nbytes: int, kind: str) -> None:
    found = {each.engine: each for each in engine_rules(device, n, 8192)}
    assert found[engine].kind_at(nbytes) == kind


@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("hidden", [1024, 4096, 5120, 8192, 16384])
@pytest.mark.parametrize("device", [H100, H200, B200, "NVIDIA B300 SXM6 AC", "NVIDIA A100-SXM4-40GB"])
def test_bands_rise_and_cover_everything_or_say_why_not(device: str, hidden: int, n: int) -> None:
    for each in engine_rules(device, n, hidden):
        limits = [band.to_bytes for band in each.bands]
        assert limits == sorted(set(limits))
        assert all(band.kind in KINDS for band in each.bands)
        assert (limits[-1] == math.inf) if limits else each.note
        assert each.thresholds == tuple(limits[:-1])
        assert "commit" in each.source
        assert each.engine in each.source


@pytest.mark.parametrize(
    ("device", "capability"),
    [
        (H100, (9, 0)), ("NVIDIA GH200 480GB", (9, 0)), ("NVIDIA H20", (9, 0)), ("NVIDIA H800", (9, 0)),
        (B200, (10, 0)), ("NVIDIA GB200", (10, 0)), ("NVIDIA GB300", (10, 3)), ("NVIDIA A100-SXM4-80GB", (8, 0)),
        ("NVIDIA H100 PCIe", None), ("NVIDIA L40S", None), ("AMD EPYC", None), ("NVIDIA A10", None),
    ],
)  # fmt: skip
def test_capability_by_name(device: str, capability: "tuple[int, int] | None") -> None:
    assert capability_of(device) == capability


def test_engines_have_nothing_to_say_of_one_rank_or_a_shared_gpu() -> None:
    assert all("one rank" in each.note and not each.bands for each in engine_rules(H100, 1, 4096))
    assert all("a GPU of its own" in each.note for each in engine_rules(H100, 2, 4096, own_gpus=False))


def test_the_algorithms_that_stand_for_engines_are_in_the_sweep() -> None:
    assert {name for names in KINDS.values() for name in names} <= set(ALGORITHMS)


def test_on_gpus_graphs_of_what_can_be_captured_elsewhere_our_own() -> None:
    on_gpus = plan_crossover(backend="nccl", shares_gpus=False)
    assert {point.mode for point in on_gpus} == {"graph"}
    assert {"library", "symmetric-one-shot", "symmetric-two-shot"} <= {point.algorithm for point in on_gpus}
    apart = plan_crossover(backend="nccl", shares_gpus=False, peer_memory=False)
    assert max(point.nbytes for point in apart) == 64 * MIB
    for elsewhere in (
        [point for point in apart if point.nbytes <= 4 * MIB],
        plan_crossover(backend="gloo", shares_gpus=False),
        plan_crossover(backend="nccl", shares_gpus=True),
    ):
        assert {point.mode for point in elsewhere} == {"eager"}
        assert {"library", "ring", "one-shot", "two-shot"} <= {point.algorithm for point in elsewhere}
        assert max(point.nbytes for point in elsewhere) == 4 * MIB


@pytest.mark.parametrize("name", [each for each in recordings() if each[:2] in ("2x", "4x")])
def test_recorded_sweeps_have_a_map(name: str) -> None:
    frame = comparable(recorded(name, "sweep"))
    assert frame["launch_mode"].unique() == ["graph"]
    bands = crossovers(frame)
    ours = "pushed-one-shot" in set(frame["algorithm"])
    assert bands["algorithm"].iloc[0] == ("pushed-one-shot" if ours else "symmetric-two-shot")
    rules = engine_rules(frame["device"].iloc[0], int(frame["num_ranks"].iloc[0]), 8192)
    losses = engine_losses(frame, rules, hidden=8192, num_layers=80, batches=[1, 16])
    assert losses["lost_us_per_call"].between(0, 20).all()
    # With a one-shot kernel that needs no copy behind it, engines choose right for messages as small as these.
    assert (losses["lost_us_per_call"] > 1).any() != ours


def test_a_sweep_that_was_written_reads_back(planted: pd.DataFrame, tmp_path: Any) -> None:
    name = "4xH200-2026-11-26"
    path = tmp_path / "sweep.csv"
    recorded(name, "sweep").to_csv(path, index=False)
    pd.testing.assert_frame_equal(
        crossovers(comparable(read_sweep(path))), crossovers(comparable(recorded(name, "sweep")))
    )
    planted.to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"no sweep of all-reduces: it has no column .*torch_version"):
        read_sweep(path)
    broken = recorded(name, "sweep").astype({"p50_us": object})
    broken.loc[3, "p50_us"] = "much"
    broken.to_csv(path, index=False)
    with pytest.raises(ValueError, match="column p50_us holds more than numbers above 0"):
        read_sweep(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_sweep(tmp_path / "none.csv")
