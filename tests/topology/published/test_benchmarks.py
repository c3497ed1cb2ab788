"""Result files of ``vllm bench serve``: read, refused by key, set beside predictions. Other programs': ``forms``.

The files here are made from a prediction, so what must come out is known.
"""

import json
from dataclasses import replace

import pytest

from tplab.models.spec import ModelSpec
from tplab.topology.advisor.prediction import predict
from tplab.topology.advisor.workload import EnginePolicy, Workload
from tplab.topology.machine.machine import Machine
from tplab.topology.published.benchmark import Benchmark
from tplab.topology.published.benchmarks import beside_benchmark, read_benchmark

MODEL = ModelSpec.from_config("llama-3.1-8b")
MACHINE = Machine.preset("h100", gpus=4)
LOAD = Workload(input_length=1024, output_length=256, concurrency=16, engine=EnginePolicy(name="vllm"))


def result(tp=2, factor=1.0, **more):
    """What the benchmark would write of a server that is ``factor`` times as slow as predicted."""
    made = predict(MODEL, MACHINE, LOAD, tp, 1)
    prompts = 160
    return {
        "date": "20261124-120000",
        "endpoint_type": "vllm",
        "backend": "vllm",
        "label": None,
        "model_id": "meta-llama/Llama-3.1-8B-Instruct",
        "tokenizer_id": "meta-llama/Llama-3.1-8B-Instruct",
        "num_prompts": prompts,
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": 16,
        "duration": prompts / made.requests_per_s,
        "completed": prompts,
        "failed": 0,
        "total_input_tokens": prompts * LOAD.input_length,
        "total_output_tokens": prompts * LOAD.output_length,
        "request_throughput": made.requests_per_s / factor,
        "output_throughput": made.output_tokens_per_s / factor,
        "total_token_throughput": 5 * made.output_tokens_per_s / factor,
        "mean_ttft_ms": made.ttft_ms * factor,
        "median_ttft_ms": made.ttft_ms,
        "mean_tpot_ms": made.tpot_ms * factor,
        "median_tpot_ms": made.tpot_ms,
        "mean_itl_ms": made.tpot_ms,
    } | more


@pytest.fixture
def write(tmp_path):
    def make(*data, name="result.json"):
        path = tmp_path / name
        path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in data))
        return path

    return make


def test_a_server_as_fast_as_predicted(write):
    frame = beside_benchmark(write(result()), MODEL, MACHINE, tp=2)
    row = frame.iloc[0]
    assert (row["run"], row["tp"], row["pp"], row["load"]) == ("result.json", 2, 1, "16 in flight")
    for name in ("tpot_ms", "ttft_ms", "output_tokens_per_s"):
        assert row[f"{name}_error_pct"] == pytest.approx(0, abs=1e-6)
    assert row["within"]
    assert row["note"] == ""


def test_a_server_twice_as_slow_is_said_to_be(write):
    row = beside_benchmark(write(result(factor=2.0)), MODEL, MACHINE, tp=2).iloc[0]
    assert row["tpot_ms_error_pct"] == pytest.approx(-50)
    assert row["output_tokens_per_s_error_pct"] == pytest.approx(100)
    assert not row["within"]


def test_degrees_come_from_metadata_unless_given(write):
    path = write(result(tp=4, tensor_parallel_size="4", pp="1"))
    assert beside_benchmark(path, MODEL, MACHINE)["tp"].item() == 4
    assert beside_benchmark(path, MODEL, MACHINE, tp=1)["tp"].item() == 1
    with pytest.raises(ValueError, match=r"tp must be given .*; got 'result.json'"):
        beside_benchmark(write(result()), MODEL, MACHINE)


def test_several_runs_in_one_file_and_several_files(write):
    appended = write(result(), result(factor=1.5), name="two.json")
    assert [run.name for run in read_benchmark(appended)] == ["two.json#1", "two.json#2"]
    frame = beside_benchmark([appended, write(result())], MODEL, MACHINE, tp=2)
    assert list(frame["run"]) == ["two.json#1", "two.json#2", "result.json"]


def run_of(**more):
    return Benchmark(
        **{
            "name": "r",
            "model_id": "llama-3.1-8b",
            "num_prompts": 1000,
            "completed": 1000,
            "max_concurrency": None,
            "request_rate": None,
            "input_length": 100.4,
            "output_length": 50.6,
            "ttft_ms": 100.0,
            "tpot_ms": 10.0,
            "output_tokens_per_s": 500.0,
            "requests_per_s": 10.0,
        }
        | more
    )


def test_what_set_the_load():
    """Little: 10 requests per second of 0.596 s each are 5.96 in flight."""
    assert run_of().in_flight == pytest.approx(5.96)
    assert run_of().workload().concurrency == 1000
    assert run_of(max_concurrency=6).workload().concurrency == 6
    assert run_of(max_concurrency=6, request_rate=11.0).workload().concurrency == 6
    slack = run_of(max_concurrency=64, request_rate=10.0).workload()
    assert (slack.concurrency, slack.request_rate) == (None, 10.0)
    assert run_of(request_rate=10.0).workload().request_rate == 10.0
    assert run_of(max_concurrency=5000).workload().concurrency == 1000
    rounded = run_of().workload()
    assert (rounded.input_length, rounded.output_length) == (100, 51)
    assert rounded.engine.name == "vllm"


def test_what_a_reader_must_know():
    def note(**more):
        return beside_benchmark(run_of(**more), MODEL, MACHINE, tp=1)["note"].item()

    assert note(max_concurrency=6) == ""
    assert note(completed=990, max_concurrency=6) == "10 of 1000 requests failed"
    assert "all requests were sent at once" in note()
    assert "filling and draining" in note(max_concurrency=500)
    assert "the server ran Qwen/Qwen3-8B" in note(max_concurrency=6, model_id="Qwen/Qwen3-8B")
    assert note(max_concurrency=6, model_id="/models/Meta-Llama-3.1-8B-Instruct/") == ""


def test_engine_and_replicas_are_those_given(write):
    path = write(result())
    eager = beside_benchmark(path, MODEL, MACHINE, tp=2, engine=replace(LOAD.engine, cuda_graphs=False)).iloc[0]
    usual = beside_benchmark(path, MODEL, MACHINE, tp=2).iloc[0]
    two = beside_benchmark(path, MODEL, MACHINE, tp=2, replicas=2).iloc[0]
    assert eager["predicted_tpot_ms"] > usual["predicted_tpot_ms"] > two["predicted_tpot_ms"]


def lacking(*keys):
    return {key: value for key, value in result().items() if key not in keys}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "is empty"),
        ("{", "is not valid JSON"),
        ("3", "holds no result of a benchmark that is read: vllm bench serve --save-result, "),
        ("[3]", "must hold an object .* it holds a int"),
        ("[]", "holds an empty list"),
        (lacking("total_input_tokens", "completed"), "lacks completed, total_input_tokens: it is no result of vllm"),
        (result(completed=0), "0 requests came back"),
        (result(mean_tpot_ms="fast"), "mean_tpot_ms must be a number .*; got 'fast'"),
        (result(output_throughput=None), "output_throughput must be a number .*; got None"),
        (result(mean_ttft_ms=-1), "mean_ttft_ms must be a number of at least 0 and at most 1e.15"),
        (result(max_concurrency="many"), "max_concurrency must be a number"),
    ],
)
def test_files_that_are_none(write, content, match):
    with pytest.raises(ValueError, match=match):
        read_benchmark(write(content))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.json cannot be read"):
        read_benchmark(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="cannot be read"):
        read_benchmark(tmp_path)
