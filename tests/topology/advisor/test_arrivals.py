"""Requests that arrive at random: percentiles, seeds, loads, and what is said of a queue that grows."""

import itertools

import numpy as np
import pytest

from tplab.models.shards import Layout
from tplab.topology import EnginePolicy, Machine, ModelSpec, Workload, predict, simulate_arrivals
from tplab.topology.advisor.arrivals import engine_loop
from tplab.topology.advisor.engine_loop import Requests, run_loop
from tplab.topology.advisor.latency import Server
from tplab.topology.advisor.memory import LayoutMemory

FP8 = ModelSpec.from_config("llama-3.1-70b", weight_precision="fp8")
LLAMA = ModelSpec.from_config("llama-3.1-70b")
H100 = Machine.preset("h100")


def workload(rate, input_length=1024, output_length=256, limits=None, **engine):
    policy = EnginePolicy(**{"name": "vllm", **engine})
    lengths = {"input_length": input_length, "output_length": output_length}
    return Workload(**lengths, request_rate=rate, engine=policy, **(limits or {}))


def closed_loop(concurrency, input_length, output_length, **engine):
    policy = EnginePolicy(name="vllm", **engine)
    lengths = {"input_length": input_length, "output_length": output_length}
    return Workload(**lengths, concurrency=concurrency, engine=policy)


def simulated(rate, tp=8, pp=1, asked=None, **how):
    return simulate_arrivals(LLAMA, H100, workload(rate, **(asked or {})), tp, pp, **how)


def test_a_seed_says_everything():
    first, again, other = (simulated(4, num_requests=300, variation=0.5, seed=seed) for seed in (3, 3, 4))
    assert first.frame.equals(again.frame)
    assert not np.isclose(first.frame["ttft_ms"], other.frame["ttft_ms"]).all()
    assert first.percentiles.equals(again.percentiles)


@pytest.mark.parametrize("policy", ["mixed", "prefill-first", "static"])
@pytest.mark.parametrize("pp", [1, 2])
def test_more_requests_per_second_take_longer(policy, pp):
    """With the same seed the same arrivals, closer together."""
    loads = [simulated(rate, 8 // pp, pp, {"prefill_policy": policy}, num_requests=800) for rate in (0.5, 2, 5)]
    for made in loads:
        assert made.reason is None
        assert len(made.frame) == 800
        times = made.percentiles
        assert (times["p50"] <= times["p90"]).all()
        assert (times["p90"] <= times["p99"]).all()
        assert (made.frame["queue_ms"] <= made.frame["ttft_ms"]).all()
        assert (made.frame["ttft_ms"] < made.frame["e2e_ms"]).all()
    for few, many in itertools.pairwise(loads):
        assert (few.percentiles[["mean", "p90"]] < many.percentiles[["mean", "p90"]]).to_numpy().all()


@pytest.mark.parametrize(
    ("policy", "pp", "input_length", "output_length"),
    [
        (policy, pp, *lengths)
        for policy in ("mixed", "prefill-first", "static")
        for pp in (1, 4)
        for lengths in ((128, 1024), (1024, 256), (4096, 64))
        if pp == 1 or policy == "static" or lengths == (128, 1024)
    ],
)
def test_a_closed_loop_takes_as_long_as_predicted(policy, pp, input_length, output_length):
    """The same step times, so the same requests per second: one request at a time against the equation. Those that are
    mixed in start at different times; on a pipeline the equation has all prompts of a benchmark follow one another,
    which only static batches do for ever: held there where prompts are few."""
    for at_once in (1, 4, 16, 64, 256):
        asked = closed_loop(at_once, input_length, output_length, prefill_policy=policy)
        memory = LayoutMemory.of(FP8, H100.gpu, asked, Layout.of(FP8, 4 // pp, pp, 1))
        loop = engine_loop(Server.of(H100, [memory], calibration=None))
        count = 12 * at_once
        out = np.full(count, output_length)
        if policy == "mixed":
            out[:at_once] = np.random.default_rng(0).permutation(np.linspace(1, output_length, at_once).round())
        requests = Requests(arrival_us=np.zeros(at_once), input_tokens=np.full(count, input_length), output_tokens=out)
        times, settled = run_loop(loop, requests), slice(3 * at_once, count - 2 * at_once)
        simulated_ms = np.mean((times.last - times.arrival)[settled]) / 1e3
        made = predict(FP8, H100, asked, 4 // pp, pp)
        assert simulated_ms == pytest.approx(made.e2e_ms, rel=0.1 if at_once > 1 else 0.001)


@pytest.mark.parametrize("policy", ["mixed", "prefill-first"])
@pytest.mark.parametrize("pp", [1, 2, 4])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_where_many_are_in_flight_the_means_are_those_predicted(policy, pp, share):
    """So many that their number hardly varies."""
    if pp > 1 and share > 0.5:
        pytest.skip("what a pipeline can do follows from its queue, which feeds on itself near its most")
    most = predict(FP8, H100, workload(1e5, prefill_policy=policy), 4 // pp, pp).requests_per_s
    asked = workload(share * most, prefill_policy=policy)
    made = simulate_arrivals(FP8, H100, asked, 4 // pp, pp, num_requests=4000)
    assert made.reason is None
    near = 0.12 if pp == 1 else 0.2
    assert made.percentiles.loc["tpot_ms", "mean"] == pytest.approx(made.prediction.tpot_ms, rel=near)
    assert made.percentiles.loc["e2e_ms", "mean"] == pytest.approx(made.prediction.e2e_ms, rel=near)


def test_a_queue_that_grows_is_said_and_ends():
    rate = 3 * predict(LLAMA, H100, workload(1e4), 8, 1).requests_per_s
    made = simulated(rate)
    assert "cannot keep up" in made.reason
    assert str(made).endswith(f"{made.reason}.")
    assert simulated(rate / 10).reason is None


def test_a_queue_that_grows_is_seen_in_the_run_itself(monkeypatch):
    """Static batches of one, which the means do not know of: each takes some three seconds."""
    made = simulated(1.0, asked={"prefill_policy": "static", "max_num_seqs": 1}, num_requests=600)
    assert "its queue grows" in made.reason


def test_replicas_take_turns():
    one, two = simulated(2, tp=4, num_requests=1500), simulated(4, tp=4, num_requests=3000, replicas=2)
    assert set(two.frame["replica"]) == {0, 1}
    assert (two.frame["replica"].diff().abs().dropna() == 1).all()
    assert two.percentiles.loc["tpot_ms", "mean"] == pytest.approx(one.percentiles.loc["tpot_ms", "mean"], rel=0.05)
    # Turns are more even than chance.
    assert two.percentiles.loc["ttft_ms", "p90"] <= 1.05 * one.percentiles.loc["ttft_ms", "p90"]


def test_lengths_that_vary_spread_the_times():
    alike, varied = simulated(4), simulated(4, variation=1.0)
    assert alike.frame["input_tokens"].unique().tolist() == [1024]
    for name, mean in (("input_tokens", 1024), ("output_tokens", 256)):
        assert varied.frame[name].mean() == pytest.approx(mean, rel=0.1)
        assert varied.frame[name].std() == pytest.approx(mean, rel=0.25)
    spread = [made.percentiles["p99"] / made.percentiles["p50"] for made in (alike, varied)]
    assert (spread[1] > 1.5 * spread[0])[["ttft_ms", "e2e_ms"]].all()


def test_one_token_out_has_no_time_per_token():
    made = simulated(2, asked={"output_length": 1}, num_requests=200)
    assert made.frame["tpot_ms"].isna().all()
    assert (made.frame["ttft_ms"] == made.frame["e2e_ms"]).all()
    assert "each further token" not in str(made)
    assert "first token 50 % within" in str(made)


def test_what_is_cached_or_guessed_is_no_work():
    plain, cached = (
        simulate_arrivals(
            LLAMA, H100, Workload(input_length=4096, output_length=64, request_rate=1, cached_prefix=share), 8, 1
        )
        for share in (0.0, 0.9)
    )
    assert cached.percentiles.loc["ttft_ms", "p50"] < 0.4 * plain.percentiles.loc["ttft_ms", "p50"]
    guessing = simulated(1, asked={"speculative_tokens": 4, "acceptance": 0.8, "draft_cost": 0.3})
    assert guessing.percentiles.loc["tpot_ms", "p50"] == pytest.approx(guessing.prediction.tpot_ms, rel=0.1)
    guessing = simulated(1, asked={"speculative_tokens": 4, "acceptance": 0.8})
    assert guessing.percentiles.loc["tpot_ms", "p50"] < 0.8 * simulated(1).percentiles.loc["tpot_ms", "p50"]


def test_what_cannot_be_simulated():
    closed = Workload(input_length=8, output_length=8, concurrency=4)
    with pytest.raises(ValueError, match=r"request_rate must be given: requests per second .*; got None"):
        simulate_arrivals(LLAMA, H100, closed, 8, 1)
    with pytest.raises(ValueError, match=r"TP 1 × PP 1 of llama-3\.1-70b on 8 x h100"):
        simulated(1, tp=1)
    with pytest.raises(ValueError, match="needs 16 GPUs"):
        simulated(1, replicas=2)
    with pytest.raises(ValueError, match="num_requests must be a whole number from 1 to 200,000; got 0"):
        simulated(1, num_requests=0)
    with pytest.raises(ValueError, match="variation must be a number of at least 0"):
        simulated(1, variation=-1)
