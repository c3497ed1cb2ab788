"""Results of every program that is read: figures, units, what is missing, what is no steady load.

Small files of our own, after the sources that ``benchmark_forms`` names.
"""

import json
import time

import pytest

from tplab.cli import main
from tplab.models.spec import ModelSpec
from tplab.topology.machine.machine import Machine
from tplab.topology.published.benchmarks import beside_benchmark, read_benchmark

MODEL = ModelSpec.from_config("llama-3.1-8b")
MACHINE = Machine.preset("h100", gpus=4)

SERVED = {
    "backend": "vllm", "model_id": "acme/llama-3.1-8b", "num_prompts": 96, "completed": 96, "max_concurrency": 8,
    "request_rate": "inf", "total_input_tokens": 96 * 512, "total_output_tokens": 96 * 128, "duration": 24.0,
    "request_throughput": 4.0, "output_throughput": 512.0, "mean_ttft_ms": 48.0, "mean_tpot_ms": 15.0,
}  # fmt: skip
SGLANG = {
    "backend": "sglang-oai", "dataset_name": "random", "request_rate": float("inf"), "max_concurrency": 8,
    "random_input_len": 512, "random_output_len": 128, "random_range_ratio": 1.0, "duration": 24.0, "completed": 96,
    "total_input_tokens": 96 * 512, "total_output_tokens": 96 * 128, "total_output_tokens_retokenized": 12280,
    "request_throughput": 4.0, "output_throughput": 512.0, "mean_ttft_ms": 48.0, "mean_tpot_ms": 15.0,
    "server_info": {"tp_size": 2, "dp_size": 2, "model_path": "acme/llama-3.1-8b"},
}  # fmt: skip
TABLE = """\
Namespace(subparser='bench', model='acme/llama-3.1-8b', request_rate=inf, max_concurrency=8, num_prompts=96)
Traffic request rate: inf
Burstiness factor: 1.0 (Poisson process)
Maximum request concurrency: 8
============ Serving Benchmark Result ============
Successful requests:                     96
Benchmark duration (s):                  24.00
Total input tokens:                      49152
Total generated tokens:                  12288
Request throughput (req/s):              4.00
Output token throughput (tok/s):         512.00
Peak output token throughput (tok/s):    900.00
Peak concurrent requests:                16.00
Total Token throughput (tok/s):          2560.00
---------------Time to First Token----------------
Mean TTFT (ms):                          48.00
Median TTFT (ms):                        47.00
P99 TTFT (ms):                           99.00
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          15.00
Median TPOT (ms):                        14.50
P99 TPOT (ms):                           19.00
---------------Inter-token Latency----------------
Mean ITL (ms):                           16.00
==================================================
"""
AIPERF = {
    "aiperf_version": "0.4.0",
    "request_throughput": {"unit": "requests/sec", "avg": 4.0},
    "request_count": {"unit": "requests", "avg": 96.0},
    "output_token_throughput": {"unit": "tokens/sec", "avg": 512.0},
    "time_to_first_token": {"unit": "ms", "avg": 48.0, "p50": 47.0},
    "inter_token_latency": {"unit": "ms", "avg": 15.0, "p50": 14.5},
    "input_sequence_length": {"unit": "tokens", "avg": 512.0, "std": 0.0},
    "output_sequence_length": {"unit": "tokens", "avg": 128.0, "std": 1.0},
    "input_config": {"endpoint": {"model_names": ["acme/llama-3.1-8b"]}, "loadgen": {"concurrency": 8}},
}
GENAI_PERF = {key: value for key, value in AIPERF.items() if key != "aiperf_version"} | {
    "time_to_first_token": {"unit": "\u03bcs", "avg": 48e3},
    "inter_token_latency": {"unit": "ns", "avg": 15e6},
    "input_config": {"model_names": ["acme/llama-3.1-8b"], "perf_analyzer": {"stimulus": {"concurrency": 8}}},
}
OLD_GENAI_PERF = GENAI_PERF | {"input_config": {"model": ["acme/llama-3.1-8b"], "concurrency": 8, "request_rate": None}}
NEW_AIPERF = AIPERF | {
    "input_config": {
        "models": {"items": [{"name": "acme/llama-3.1-8b"}]},
        "phases": [
            {"name": "warmup", "type": "concurrency", "concurrency": 2, "exclude_from_results": True},
            {"name": "profiling", "type": "concurrency", "concurrency": 8, "requests": 96},
        ],
    }
}
GENAI_CSV = """\
Metric,avg,min,max,p99,p95,p90,p75,p50,p25
Time To First Token (ms),48.00,40.00,"1,060.10",60.00,60.00,60.00,50.00,47.00,41.00
Inter Token Latency (ms),15.00,14.00,17.00,17.00,17.00,16.00,15.50,14.50,14.00
Request Latency (ms),"1,953.00",1.00,2.00,2.00,2.00,2.00,2.00,1.00,1.00
Output Sequence Length (tokens),128.00,128.00,128.00,128.00,128.00,128.00,128.00,128.00,128.00
Input Sequence Length (tokens),512.00,512.00,512.00,512.00,512.00,512.00,512.00,512.00,512.00

Metric,Value
Output Token Throughput (per sec),512.00
Request Throughput (per sec),4.00
Request Count (count),96.00
"""


def stats(mean, **more):
    return {"successful": {"mean": mean, "median": mean, "std_dev": 0.0} | more, "total": {"mean": 2 * mean}}


def guided(strategy, at="args", **more):
    return {
        at: {"strategy": strategy},
        "worker": {"backend_model": "acme/llama-3.1-8b"},
        "metrics": {
            "request_totals": {"successful": 96, "errored": 0, "incomplete": 3, "total": 99},
            "requests_per_second": stats(4.0),
            "prompt_token_count": stats(512),
            "output_token_count": stats(128),
            "time_to_first_token_ms": stats(48.0),
            "time_per_output_token_ms": stats(15.3),
            "inter_token_latency_ms": stats(15.0),
            "output_tokens_per_second": stats(512.0),
        }
        | more,
    }


INFERENCEX = {
    "hw": "h100-cw", "tp": 2, "ep": 1, "dp_attention": "false", "conc": 8, "model": "acme/llama-3.1-8b",
    "framework": "trt", "precision": "fp8", "isl": 512, "osl": 128, "tput_per_gpu": 1280.0,
    "output_tput_per_gpu": 256.0, "mean_ttft": 0.048, "mean_tpot": 0.015, "median_tpot": 0.0145, "mean_intvty": 66.0,
}  # fmt: skip
SITE = {
    "hardware": "h100", "model": "acme/llama-3.1-8b", "framework": "trtllm", "precision": "fp8", "isl": 512, "osl": 128,
    "conc": 8, "disagg": False, "prefill_tp": 2, "decode_tp": 2, "spec_method": "none",
    "metrics": {"tput_per_gpu": 1280.0, "output_tput_per_gpu": 256.0, "mean_ttft": 0.048, "mean_tpot": 0.015},
}  # fmt: skip
LLMPERF = {
    "model": "acme/llama-3.1-8b", "mean_input_tokens": 512, "mean_output_tokens": 128, "num_concurrent_requests": 8,
    "results_number_input_tokens_mean": "512.0", "results_number_output_tokens_mean": "128.0",
    "results_ttft_s_mean": 0.048, "results_end_to_end_latency_s_mean": 0.048 + 127 * 0.015,
    "results_inter_token_latency_s_mean": 0.0153, "results_mean_output_throughput_token_per_s": 512.0,
    "results_num_completed_requests": 96, "results_num_completed_requests_per_min": 240.0,
}  # fmt: skip

SAME = {
    "vllm, a number as text": (SERVED | {"completed": "96"}, "vllm bench serve", "vllm", 8),
    "vllm, a list": ([SERVED], "vllm bench serve", "vllm", 8),
    "vllm, a log": (f"[01:02 INFO] up\n<<<\n{json.dumps(SERVED)}\n>>>\nnext\n", "vllm bench serve", "vllm", 8),
    "vllm, a log on many lines": (f"up\n{json.dumps(SERVED, indent=2)}\nnext\n", "vllm bench serve", "vllm", 8),
    "vllm, printed": (TABLE, "vllm bench serve", "vllm", 8),
    "vllm, printed below a word of YAML": ("benchmarks:\n" + TABLE, "vllm bench serve", "vllm", 8),
    "vllm, printed by Windows": (TABLE.replace("\n", "\r\n"), "vllm bench serve", "vllm", 8),
    "vllm, printed in a comment": (TABLE.replace("\n", "\n# "), "vllm bench serve", "vllm", 8),
    "vllm, printed by a container": (TABLE.replace("\n", "\nbench-1  | "), "vllm bench serve", "vllm", 8),
    "vllm, printed after a command with a variable": (
        f'--max-concurrency "$C" --request-rate inf\n{TABLE[TABLE.index("Maximum") :]}',
        *("vllm bench serve", "vllm", 8),
    ),
    "vllm, printed after words about options": (
        f"`--request-rate` sets it, `--max-concurrency 8`, `--request-rate inf`, --num-prompts=N.\n"
        f"{TABLE[TABLE.index('====') :]}",
        *("vllm bench serve", "vllm", 8),
    ),
    "vllm, printed with rows of its own after a command": (
        "--max-concurrency 8 --request-rate inf\n"
        + TABLE[TABLE.index("====") :].replace("Benchmark dur", "Maximum request concurrency:  8\nBenchmark dur"),
        *("vllm bench serve", "vllm", 8),
    ),
    "vllm, printed without the lines above": (TABLE[TABLE.index("Successful") :], "vllm bench serve", "vllm", None),
    "vllm, printed in colours": (
        TABLE.replace("Mean", "\x1b[1mMean").replace("(ms):", "(ms):\x1b[0m"),
        *("vllm bench serve", "vllm", 8),
    ),
    "vllm, CSV of the keys": (
        f"label;{';'.join(SERVED)}\n;{';'.join(map(str, SERVED.values()))}\n\n",
        *("vllm bench serve", "vllm", 8),
    ),
    "vllm, CSV of the keys with decimal commas": (
        f"{';'.join(SERVED)}\n{';'.join(str(value).replace('.0', ',0') for value in SERVED.values())}\n",
        *("vllm bench serve", "vllm", 8),
    ),
    "sglang": (SGLANG, "sglang.bench_serving", "sglang", 8),
    "aiperf": (AIPERF, "aiperf", "vllm", 8),
    "aiperf 0.10": (NEW_AIPERF, "aiperf", "vllm", 8),
    "vllm, in a collection": ({"benchmarks": [SERVED]}, "vllm bench serve", "vllm", 8),
    "InferenceX, of the site": (SITE, "InferenceX", "trtllm", 8),
    "genai-perf": (GENAI_PERF, "genai-perf", "vllm", 8),
    "genai-perf, earlier": (OLD_GENAI_PERF, "genai-perf", "vllm", 8),
    "genai-perf, CSV": (GENAI_CSV, "genai-perf", "vllm", None),
    "genai-perf, CSV of a spreadsheet": (
        "\n" + GENAI_CSV.replace('"1,', "1").replace('0"', "0").replace(",", ";").replace(".", ","),
        *("genai-perf", "vllm", None),
    ),
    "guidellm 0.2": ({"benchmarks": [guided({"type_": "concurrent", "streams": 8})]}, "guidellm", "vllm", 8),
    "guidellm 0.5": (
        {"benchmarks": [guided({"type_": "concurrent", "max_concurrency": 8}, at="config")]},
        *("guidellm", "vllm", 8),
    ),
    "InferenceX": (INFERENCEX, "InferenceX", "trtllm", 8),
    "LLMPerf": (LLMPERF, "LLMPerf", "vllm", 8),
}
"""Results of one and the same load: 8 in flight, 512 tokens in and 128 out."""


@pytest.fixture
def write(tmp_path):
    def make(data, name="result.txt"):
        path = tmp_path / name
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return make


def read_one(path):
    (run,) = read_benchmark(path)
    return run


@pytest.mark.parametrize("case", SAME)
def test_one_load_as_every_program_tells_it(write, case):
    data, program, engine, limit = SAME[case]
    run = read_one(write(data))
    assert (run.program, run.engine, run.max_concurrency, run.request_rate) == (program, engine, limit, None)
    assert (run.input_length, run.output_length) == (512, 128)
    assert (run.ttft_ms, run.tpot_ms) == (pytest.approx(48), pytest.approx(15))
    assert (run.output_tokens_per_s, run.requests_per_s) == (pytest.approx(512), pytest.approx(4))
    assert run.workload().concurrency == 8  # by Little's law where nothing says it
    assert run.load_is_said == (limit is not None)
    row = beside_benchmark(run, MODEL, MACHINE, tp=1, pp=1, replicas=1).iloc[0]
    assert row["predicted_tpot_ms"] > 0
    assert row["engine"] == engine
    assert ("Little" in row["note"]) == (limit is None)


def test_what_is_said_of_the_split_is_taken(write):
    row = beside_benchmark(write(SGLANG), MODEL, MACHINE).iloc[0]
    assert (row["tp"], row["pp"], row["replicas"], row["engine"]) == (2, 1, 2, "sglang")
    given = beside_benchmark(write(SGLANG), MODEL, MACHINE, tp=1, replicas=4).iloc[0]
    assert (given["tp"], given["replicas"]) == (1, 4)
    assert "the result says tp 2, replicas 2: the throughput is of that many GPUs" in given["note"]
    assert "the result says" not in row["note"]
    for degree in ("tp", "pp", "replicas"):  # not taken for one that is not given
        with pytest.raises(ValueError, match=f"{degree} must be .*at least 1.*; got 0"):
            beside_benchmark(write(SGLANG), MODEL, MACHINE, **{degree: 0})
    served = f"vllm serve acme/llama-3.1-8b --tensor-parallel-size 2\n{TABLE}"
    assert beside_benchmark(write(served), MODEL, MACHINE)["tp"].item() == 2
    row = beside_benchmark(write(INFERENCEX | {"hw": "mi355x"}), MODEL, MACHINE).iloc[0]
    assert row["tp"] == 2
    assert "the result is of mi355x, predicted is h100" in row["note"]
    assert "the result is of fp8 weights, predicted are bf16" in row["note"]
    alike = ModelSpec.from_config("llama-3.1-8b", weight_precision="fp8")
    assert beside_benchmark(write(INFERENCEX), alike, MACHINE)["note"].item() == ""


def test_a_ramp_is_no_steady_load(write):
    ramp = {"ramp_up_strategy": "linear", "ramp_up_start_rps": 1, "ramp_up_end_rps": 20, "max_concurrency": None}
    printed = TABLE.replace("Burstiness", "Traffic ramp-up strategy: linear.\nWill increase RPS from 1 to 20 RPS over "
                            "the duration of the benchmark.\nBurstiness")  # fmt: skip
    for data in (SERVED | ramp, printed):
        path = write(data)
        row = beside_benchmark(path, MODEL, MACHINE, tp=1).iloc[0]
        assert "a ramp is no steady load ('linear' from 1 to 20 requests/s)" in row["note"]
        assert row["measured_tpot_ms"] == 15
        assert row["load"] == "no steady load"
        assert row[["predicted_tpot_ms", "tpot_ms_error_pct", "within"]].isna().all()
        with pytest.raises(ValueError, match=r"result\.txt: a ramp is no steady load"):
            read_one(path).workload()
    phase = NEW_AIPERF["input_config"]["phases"][1]
    for phases in ([phase | {"concurrency_ramp": {"duration": 30}}], [phase, phase]):
        row = beside_benchmark(write(AIPERF | {"input_config": {"phases": phases}}), MODEL, MACHINE, tp=1).iloc[0]
        assert row["load"] == "no steady load"
        assert "nothing is predicted for it" in row["note"]
    apart = INFERENCEX | {"disagg": True}
    assert "disaggregated" in beside_benchmark(write(apart), MODEL, MACHINE)["note"].item()


def test_what_is_no_load_of_one_kind_is_said(write):
    def note(data):
        return beside_benchmark(write(data), MODEL, MACHINE, tp=1)["note"].item()

    assert note(SERVED) == ""
    detailed = SERVED | {"input_lens": [12, 1012] * 48, "output_lens": [128] * 96}
    assert "prompts have 512 tokens with a standard deviation of 500" in note(detailed)
    assert "standard deviation of 147.8, answers have" in note(SGLANG | {"random_range_ratio": 0.0})
    assert note(TABLE.replace("max_conc", "dataset_name='random', random_range_ratio='0.0', max_conc")) == ""
    ranged = "dataset_name='random', random_input_len=512, random_output_len=128, random_range_ratio=0.9, max_conc"
    assert "prompts have 512 tokens with a standard deviation of 266" in note(TABLE.replace("max_conc", ranged))
    row = beside_benchmark(write(TABLE.replace("Mean", "Other")), MODEL, MACHINE, tp=1).iloc[0]
    assert (row["measured_ttft_ms"], "medians only" in row["note"]) == (47, True)
    assert "lengths in sharegpt differ" in note(SGLANG | {"dataset_name": "sharegpt"})
    assert "no load of one length" in note(AIPERF | {"input_sequence_length": {"avg": 512, "std": 400.0}})
    assert "burstiness of 0.5" in note(SERVED | {"burstiness": 0.5, "request_rate": 4.0, "max_concurrency": None})
    at_rate = SERVED | {"max_concurrency": None}
    assert note(at_rate | {"request_rate": 5.0}) == ""
    assert "4 of 10 requests/s were served: requests piled up" in note(at_rate | {"request_rate": 10.0})
    assert "all 96 requests were sent within the time of one" in note(at_rate | {"request_rate": 60.0})
    assert "medians only" in note({k: v for k, v in SGLANG.items() if k != "mean_ttft_ms"} | {"median_ttft_ms": 48})
    assert "2.4 tokens a step by speculative decoding" in note(SGLANG | {"accept_length": 2.4})
    assert "data-parallel" in note(INFERENCEX | {"dp_attention": "true"})


def test_a_load_beyond_the_prediction_has_no_time_to_the_first_token(write):
    path = write(SERVED | {"request_rate": 400.0, "request_throughput": 390.0, "max_concurrency": None})
    row = beside_benchmark(path, MODEL, MACHINE, tp=1).iloc[0]
    assert "by the prediction it cannot keep up: at most " in row["note"]
    assert row[["predicted_ttft_ms", "ttft_ms_error_pct"]].isna().all()
    assert row["predicted_tpot_ms"] > 0
    large = beside_benchmark(path, ModelSpec.from_config("llama-3.1-70b"), MACHINE, tp=1)
    assert "by the prediction it does not fit" in large["note"].item()


def test_all_results_of_a_file_are_rows(write):
    rates = [{"type_": "synchronous"}, {"type_": "constant", "rate": 3.9}, {"type_": "throughput"}]
    sweep = read_benchmark(write({"benchmarks": [guided(each) for each in rates]}))
    assert [(r.max_concurrency, r.request_rate) for r in sweep] == [(1, None), (None, 3.9), (None, None)]
    assert [run.name for run in sweep] == ["result.txt#1", "result.txt#2", "result.txt#3"]
    at_once = beside_benchmark(sweep, MODEL, MACHINE, tp=1)
    assert list(at_once["load"]) == ["1 in flight", "3.9 requests/s", "96 in flight"]
    lines = write("\n".join(json.dumps(SGLANG | {"max_concurrency": n}) for n in (1, 2, 4)))
    assert [run.max_concurrency for run in read_benchmark(lines)] == [1, 2, 4]
    second = TABLE.replace("concurrency: 8", "concurrency: 4").replace("max_concurrency=8", "max_concurrency=4")
    assert [run.max_concurrency for run in read_benchmark(write(TABLE + "\n" + second))] == [8, 4]
    cut = read_one(write(TABLE + second[: second.index("Total generated")]))
    assert cut.max_concurrency == 8
    assert cut.remarks == ("table 2 of 2 in result.txt is cut off and was left out",)
    twice = beside_benchmark([write(SERVED), write(SERVED)], MODEL, MACHINE, tp=1)
    assert list(twice["note"]) == ["", "the same figures as result.txt above: one result twice"]


def test_rows_of_a_table_that_say_the_load(write):
    load = "Maximum request concurrency:  8\nRequest rate configured (RPS):  2.00\n"
    newer = TABLE[TABLE.index("====") :].replace("Benchmark duration", f"{load}Benchmark duration")
    run = read_one(write(newer))
    assert (run.max_concurrency, run.request_rate, run.load_is_said) == (8, 2.0, True)
    sglang = newer.replace("Maximum", "Max").replace("concurrency:  8", "concurrency:   not set")
    run = read_one(write(sglang.replace("Request rate configured (RPS)", "Backend: sglang\nTraffic request rate")))
    assert (run.max_concurrency, run.request_rate, run.engine) == (None, 2.0, "sglang")


def test_lengths_that_a_result_lacks_are_asked_for(write, capsys):
    row = {key: value for key, value in INFERENCEX.items() if key not in ("isl", "osl")}
    path = write(row)
    with pytest.raises(ValueError, match="input_length must be given with a result that does not say it"):
        beside_benchmark(path, MODEL, MACHINE)
    found = beside_benchmark(path, MODEL, MACHINE, input_length=512, output_length=128).iloc[0]
    assert found["predicted_tpot_ms"] == beside_benchmark(write(INFERENCEX), MODEL, MACHINE)["predicted_tpot_ms"].item()
    asked = ["validate", str(write(row)), "--model", "llama-3.1-8b", "--machine", "h100"]
    assert main(asked) == 2
    assert "--input must be given" in capsys.readouterr().err
    assert main([*asked, "--input", "512", "--output", "128", "--replicas", "2"]) == 0
    assert "measured_ttft_ms" in capsys.readouterr().out


FIRST_ROW = "Successful requests: 1\n"


def without(data, *keys):
    return {key: value for key, value in data.items() if key not in keys}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"elapsed_time": 3.0, "num_requests": 9, "total_num_tokens": 900, "tokens_per_second": 300.0},
         "is a result of vllm bench throughput, which sends no requests to a server over time: run vllm bench serve"),
        ({"avg_latency": 1.0, "latencies": [1.0], "percentiles": {}}, "is a result of vllm bench latency"),
        ({"run_name": "x", "batch_size": 1, "input_len": 8, "output_len": 8}, "is a result of sglang.bench_one_batch"),
        (without(AIPERF, "time_to_first_token"), r"lacks time_to_first_token.avg: .*aiperf profile --streaming"),
        (AIPERF | {"time_to_first_token": {"unit": "days", "avg": 1.0}}, "time_to_first_token.unit must be one of ns"),
        (AIPERF | {"time_to_first_token": [3]}, r"lacks time_to_first_token.avg"),
        (AIPERF | {"inter_token_latency": {"unit": [1], "avg": 1.0}}, "inter_token_latency.unit must be one of ns"),
        ({"experiments": [], "service_kind": "openai"}, "give profile_export_genai_perf.json, which stands beside it"),
        ({"metadata": {}, "metrics": {}}, "give profile_export_aiperf.json, which stands beside it"),
        ([{"model_filename": "m.gguf", "n_prompt": 512, "avg_ts": 99.0}], "is no result of a benchmark that is read"),
        ('{"metadata": {}, "metrics": {"time_to_first_token": {}}}\n' * 501, "give profile_export_aiperf.json"),
        ("max_concurrency,mean_ttft_ms\n8,48.0\n", "lacks completed, total_output_tokens"),
        ({"benchmarks": []}, "holds no benchmarks: guidellm broke off"),
        ({"benchmarks": [3]}, "must be an object of one benchmark, got 3"),
        ({"benchmarks": [{"benchmarks": [SERVED]}]}, "must be an object of one benchmark"),
        (AIPERF | {"input_config": {"phases": 3}}, "phases must be a list"),
        ({"benchmarks": [guided({"type_": "concurrent", "streams": 8}, inter_token_latency_ms=None)]},
         "lacks metrics.inter_token_latency_ms.successful.mean: it is no result of guidellm"),
        ({"benchmarks": [guided({"type_": "concurrent", "streams": "x"})]}, "streams must be a number"),
        (without(INFERENCEX, "isl", "output_tput_per_gpu"), "lacks isl and osl, without which tput_per_gpu"),
        (without(INFERENCEX, "mean_ttft"), "lacks mean_ttft: it is no result of InferenceX"),
        (INFERENCEX | {"tp": 1.5}, "tp must be a whole number"),
        (INFERENCEX | {"output_tput_per_gpu": 0}, "there is nothing to compare"),
        (SERVED | {"mean_ttft_ms": float("nan")}, "mean_ttft_ms must be a number"),
        (SERVED | {"input_lens": ["a"]}, "input_lens must be a list of numbers"),
        (SERVED | {"input_lens": [[1], [2, 3]]}, "input_lens must be a list of numbers"),
        (SERVED | {"model_id": {"a": 1}}, "model_id must be a text"),
        (without(SERVED, "request_throughput") | {"duration": 0.0}, "lacks request_throughput"),
        (TABLE[: TABLE.index("Mean TTFT")], "lacks mean_ttft_ms, mean_tpot_ms"),
        (TABLE.replace("48.00", "fast"), "mean_ttft_ms must be a number .*; got 'fast'"),
        (GENAI_CSV[: GENAI_CSV.index("Inter Token")], "lacks input_sequence_length.avg, output_sequence_length.avg"),
        ("| ISL | OSL | TTFT (ms) |\n|---|---|---|\n| 128 | 128 | 41.5 |\n", "holds no result of a benchmark"),
        ("{'completed': 3}", "is not valid JSON"),
        ("[INFO] up\n[INFO] down\n", "is not valid JSON"),
        ("metadata:\n  version: 1\nbenchmarks:\n- config: {}\n", "is guidellm's YAML: write its JSON"),
        ("Metric;avg\n" + "x" * 200_000, r"result\.txt: line 2: field larger than field limit"),
    ],
)  # fmt: skip
def test_results_that_are_none(write, content, match):
    with pytest.raises(ValueError, match=match):
        read_benchmark(write(content))


@pytest.mark.parametrize(
    "text",
    [
        f"{FIRST_ROW}" + "\n" * 800_000,
        "{\n" * 400_000,
        '{"ttft": [\n' * 100_000,
        FIRST_ROW * 40_000,
        FIRST_ROW + "=" * 800_000 + "x",
        FIRST_ROW + " =" * 400_000,
        FIRST_ROW + "model" * 160_000,
        FIRST_ROW + "Concurrency:\t" * 60_000,
        "Metric,avg\n" + "a," * 400_000,
        'x {"ttft\n}\n{ \n' * 200_000,
        "x" * 5_000_000,
    ],
    ids=lambda text: repr(text[20:40]),
)
def test_hostile_text_ends_soon(write, text):
    path = write(text)
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"result\.txt"):
        read_benchmark(path)
    assert time.process_time() - begun < 2


def test_more_than_is_read_names_the_way_out(write):
    path = write("")
    with path.open("r+b") as file:
        file.truncate(100 << 20)
    with pytest.raises(ValueError, match="save the result without the details of each request"):
        read_benchmark(path)
