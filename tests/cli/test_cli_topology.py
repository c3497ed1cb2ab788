"""``tplab calibrate``, ``advise``, ``validate`` and ``box``: what they print and write, and how they refuse."""

import io
import json
import re

import pandas as pd
import pytest

from tplab.cli import main
from tplab.models.precision import ITEMSIZE
from tplab.models.presets import MODELS
from tplab.models.spec import ModelSpec
from tplab.topology.advisor.calibration import AllReduceTimes, Calibration, MatmulTimes, SendTimes
from tplab.topology.advisor.prediction import predict
from tplab.topology.advisor.workload import EnginePolicy, Workload
from tplab.topology.machine.machine import Machine
from tplab.topology.machine.presets import MACHINES
from tplab.topology.machine.spec_sheets import GPUS

TOPO = """\
        GPU0    GPU1    CPU Affinity    NUMA Affinity
GPU0     X      NV12    0-31            0
GPU1    NV12     X      0-31            0
"""

H100 = ("advise", "--model", "llama-3.1-8b", "--machine", "h100")


@pytest.fixture
def said(capsys):
    """Runs a command line: exit status, output and errors."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def calibration(tmp_path):
    made = Calibration(
        machine="two",
        device="a CPU",
        backend="gloo",
        num_ranks=2,
        created="2026-11-24T12:00:00+00:00",
        versions={"torch": "2.13"},
        all_reduce=(AllReduceTimes(num_ranks=2, nbytes=(1e3, 1e6), p50_us=(200.0, 2000.0), gpus=(0, 1)),),
        sends=(SendTimes(source=0, target=1, nbytes=(1e3, 1e6), p50_us=(100.0, 1000.0)),),
        matmuls=(MatmulTimes(precision="bf16", tokens=(1, 1), params=(1e4, 1e6), p50_us=(10.0, 500.0)),),
    )
    return made.save(tmp_path / "two.json")


def test_advice_for_a_preset(said, tmp_path):
    csv = tmp_path / "table.csv"
    status, out, _ = said(
        *("advise", "--model", "llama-3.1-70b", "--gpus", 8, "--machine", "h200", "--weights", "fp8"),
        *("--concurrency", 32, "--engine", "vllm", "--most", 3, "--csv", csv),
    )
    assert status == 0
    table = pd.read_csv(csv)
    best = table[table["rank"] == 1].iloc[0]
    assert f"llama-3.1-70b on 8 x h200: {best['layout']}" in out
    assert out.startswith("Asked: llama-3.1-70b with fp8 weights and bf16 cache on 8 x h200; requests of")
    assert " ".join(out.split()).count("requests of 1024 tokens in and 256 out, 32 in flight; engine vllm.") == 1
    assert "vllm serve" in out
    assert "more that fit" in out
    assert f"Wrote {csv} ({len(table)} rows)." in out
    assert (table["rank"] == 0).any()


@pytest.mark.parametrize("columns", [80, 200])
def test_rows_of_the_table_fit_the_terminal(said, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    status, out, _ = said("advise", "--model", "llama-3.1-8b", "--machine", "h200", "--concurrency", 4000)
    assert status == 0
    rows = out[out.index("rank  layout") : out.index("x N: N replicas, each with its own copy")].splitlines()
    assert max(map(len, rows)) <= columns
    assert re.search(r"\d\d,\d\d\d", rows[1])  # tokens per second of eight replicas
    assert not re.search(r"\de[+-]", "".join(rows))
    assert rows[0].endswith("free GB/GPU  verdict" if columns == 200 else "free GB/GPU")
    assert len(rows) == (1 + 12 if columns == 200 else 1 + 2 * 12)
    assert rows[2].strip() == "recommended" if columns == 80 else rows[1].endswith("recommended")


@pytest.mark.parametrize(
    ("most", "hint"),
    [(2, "(5 more that fit and 1 impossible: --most 0 shows them"), (7, "(1 impossible: --most 0"), (0, None)],
)
def test_what_is_hidden_is_said_and_shown_when_asked_for(said, most, hint):
    status, out, _ = said("advise", "--model", "llama-3.1-8b", "--machine", "h200", "--gpus", 4, "--most", most)
    assert status == 0
    assert len(re.findall(r"^ +\d+  TP \d", out, re.MULTILINE)) == (most or 7)
    assert ("--most 0" in out) == (hint is not None)
    assert (hint or "Impossible:\n  TP 3 × PP 1: tp must divide the model's 32 query heads: use 1, 2, 4, ") in out


@pytest.mark.parametrize("engine", ["generic", "vllm", "sglang", "trtllm"])
def test_commands_are_of_the_engine_asked_for(said, engine):
    status, out, _ = said("advise", "--model", "llama-3.1-8b", "--machine", "h200", "--engine", engine)
    assert status == 0
    printed = re.findall(r"^(vllm|sglang|trtllm):$", out, re.MULTILINE)
    assert printed == (["vllm", "sglang", "trtllm"] if engine == "generic" else [engine])


def test_a_gpu_of_ones_own_in_figures(said, tmp_path):
    figures = "name=my card,memory_GB=48,hbm_GBps=900,bf16_TFLOPS=200,num_nvlinks=4,nvlink_GBps=14"
    status, out, _ = said("advise", "--model", "llama-3.1-8b", "--machine", figures, "--gpus", 2)
    assert status == 0
    assert "on 2 x my card: TP 2 × PP 1" in out
    assert "figures as given" in " ".join(out.split())
    topo = tmp_path / "topo.txt"
    topo.write_text("\tGPU0\tGPU1\nGPU0\tX\tNV4\nGPU1\tNV4\tX\n")
    status, out, _ = said("advise", "--model", "llama-3.1-8b", "--topo", topo, "--gpu", figures)
    assert status == 0
    assert "on 2 x my card: TP 2 × PP 1" in out
    status, _, error = said("advise", "--model", "llama-3.1-8b", "--machine", "rtx-4070-super")
    assert status != 0
    assert "the nearest in kind is" in error
    assert "give the figures of a GPU of your own" in " ".join(error.split())


def test_an_instance_of_a_cloud_is_a_machine(said):
    status, out, _ = said("advise", "--model", "llama-3.1-8b", "--machine", "g5.12xlarge", "--engine", "vllm")
    assert status == 0
    assert "on 4 x a10g: " in out


def test_what_is_asked_of_the_engine_is_said_and_set(said):
    status, out, _ = said(
        *("advise", "--model", "llama-3.1-8b", "--machine", "h200", "--engine", "vllm", "--max-num-seqs", 48),
        *("--prefill-policy", "mixed", "--token-budget", 2048, "--cached-prefix", 0.25, "--speculative-tokens", 3),
        *("--acceptance", 0.8),
    )
    assert status == 0
    flat = " ".join(out.split())
    assert (
        "engine vllm; at most 48 requests at once on a replica; prompts mixed; at most 2048 tokens a step; 25% of each "
        "prompt cached; 3 tokens guessed a step, each accepted at 0.8." in flat
    )
    assert "--max-num-seqs 48 --max-num-batched-tokens 2048" in flat
    assert "--enable-prefix-caching --speculative-config" in flat
    whole = said("advise", "--model", "llama-3.1-8b", "--machine", "h200", "--engine", "vllm", "--token-budget", 0)[1]
    assert "engine vllm; prompts whole." in " ".join(whole.split())
    assert "--no-enable-chunked-prefill" in whole


def test_percentiles_of_requests_at_random(said):
    status, out, _ = said("advise", "--model", "llama-3.1-8b", "--machine", "h200", "--rate", 20, "--percentiles")
    assert status == 0
    assert "\n2,000 requests that arrive at random, 20 per second:\nfirst token 50 % within " in out
    times = re.findall(r"each further token 50 % within (.*?) ms, 90 % within (.*?) ms, 99 % within (.*?) ms", out)
    assert [float(ms) for ms in times[0]] == sorted(float(ms) for ms in times[0])
    assert "arrive at random" not in said("advise", "--model", "llama-3.1-8b", "--machine", "h200", "--rate", 20)[1]


def test_every_line_of_a_command_is_indented(said):
    what = ("--model", "llama-3.1-405b", "--machine", "h100", "--nodes", 2, "--engine", "vllm")
    status, out, _ = said("advise", *what)
    assert status == 0
    lines = out[out.index("vllm:\n") : out.index("Note:")].splitlines()[1:]
    assert len(lines) >= 4  # two nodes, each with a remark
    assert all(line.startswith("  ") for line in lines)


def test_a_table_of_links_from_standard_input(said, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TOPO.encode("utf-16"))))
    status, out, _ = said("advise", "--model", "llama-3.1-8b", "--topo", "-", "--rate", 2.5, "--ttft-limit-ms", 200)
    assert status == 0
    flat = " ".join(out.split())
    assert (
        "on 2 x a100-40gb; requests of 1024 tokens in and 256 out, 2.5 per second; first token within 200 ms; " in flat
    )
    assert "everything here hangs on it; give the gpu if they are others (--gpu)" in flat


def test_the_gpu_of_a_report_decides_what_fits(said, tmp_path):
    rows = [["X" if i == j else "SYS" for j in range(4)] for i in range(4)]
    lines = ["\tGPU0\tGPU1\tGPU2\tGPU3", *(f"GPU{i}\t" + "\t".join(row) for i, row in enumerate(rows))]
    report = tmp_path / "report.txt"
    for names, doubt in (("GPU 0,1,2,3: NVIDIA L4\n", False), ("", True)):
        report.write_text(names + "\n".join(lines), encoding="utf-16")
        status, _, err = said("advise", "--model", "qwen2.5-72b", "--topo", report)
        assert status == 2
        assert "does not fit on 4 x l4 (4 x 23.7 GB)" in err
        assert ("But which GPUs these are, the text does not say" in err) is doubt
    status, out, _ = said("advise", "--model", "qwen3-8b", "--topo", report, "--most", 1)
    assert status == 0
    assert "which GPUs these are is a guess, and everything hangs on it (--gpu)" in " ".join(out.split())
    assert "did you mean report.txt?" in said("advise", "--model", "qwen3-8b", "--topo", tmp_path / "reprot.txt")[2]


@pytest.mark.parametrize("command", ["advise", "validate"])
def test_help_lists_what_may_be_given(said, capsys, command):
    with pytest.raises(SystemExit):
        said(command, "--help")
    words = " ".join(capsys.readouterr().out.split())
    for part in (*MODELS, *MACHINES, *GPUS, *ITEMSIZE, "generic, sglang, trtllm, vllm", "standard input"):
        assert part in words, part


def test_model_from_a_file_and_machine_from_topo(said, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {
                "model_type": "llama",
                "hidden_size": 2048,
                "intermediate_size": 8192,
                "num_hidden_layers": 16,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "vocab_size": 32000,
                "torch_dtype": "bfloat16",
            }
        )
    )
    topo = tmp_path / "topo.txt"
    topo.write_text(TOPO)
    status, out, _ = said("advise", "--model", config, "--topo", topo, "--gpu", "a100", "--rate", 4, "--most", 0)
    assert status == 0
    assert "TP 2 × PP 1" in out
    assert "TP 1 × PP 2" in out


def test_a_calibration_is_the_machine_unless_one_is_named(said, calibration):
    status, out, _ = said("advise", "--model", "qwen3-0.6b", "--calibration", calibration, "--concurrency", 1)
    assert status == 0
    assert "qwen3-0.6b on two:" in out
    status, _, err = said("advise", "--model", "qwen3-0.6b", "--calibration", calibration, "--machine", "h100")
    assert status == 2
    assert "--calibration is of 2 ranks, 8 x h100 has 8 GPUs: calibrate with --ranks 8" in err


def test_calibrating_two_ranks_over_an_emulated_link(said, tmp_path, monkeypatch):
    """With a plan that is over quickly: what is measured has its own tests."""
    from tplab.topology.calibration import run as calibrating

    usual = calibrating.plan_calibration

    def quick(*args, **settings):
        return usual(*args, **settings | {"sizes": (2048,), "tokens": (1,), "widths": (64, 128)})

    monkeypatch.setattr(calibrating, "plan_calibration", quick)
    out = tmp_path / "made.json"
    status, text, _ = said(
        *("calibrate", "--ranks", 2, "--backend", "gloo", "--rounds", 1, "--out", out, "--name", "laptop"),
        *("--latency-us", 2000, "--bandwidth-GBps", 0.1),
    )
    assert status == 0
    made = Calibration.load(out)
    assert made.machine == "laptop"
    assert min(made.all_reduce[0].p50_us) >= 4000
    assert "emulated link 2,000 us, 0.1 GB/s" in text
    assert f"Wrote {out}." in text


def vllm_result(factor=1.0):
    workload = Workload(input_length=512, output_length=128, concurrency=8, engine=EnginePolicy(name="vllm"))
    made = predict(ModelSpec.from_config("llama-3.1-8b"), Machine.preset("h100", gpus=2), workload, 2, 1)
    return {
        "model_id": "meta-llama/Llama-3.1-8B",
        "num_prompts": 80,
        "completed": 80,
        "max_concurrency": 8,
        "request_rate": "inf",
        "total_input_tokens": 80 * 512,
        "total_output_tokens": 80 * 128,
        "request_throughput": made.requests_per_s,
        "output_throughput": made.output_tokens_per_s,
        "mean_ttft_ms": made.ttft_ms,
        "mean_tpot_ms": made.tpot_ms * factor,
    }


def test_a_vllm_result_beside_the_prediction(said, tmp_path):
    one, two, csv = tmp_path / "one.json", tmp_path / "two.json", tmp_path / "beside.csv"
    one.write_text(json.dumps(vllm_result()))
    two.write_text(json.dumps(vllm_result(2.0)))
    what = ("--model", "llama-3.1-8b", "--machine", "h100", "--gpus", 2)
    status, out, _ = said("validate", one, two, *what, "--tp", 2, "--csv", csv)
    assert status == 0
    assert "one.json" in out
    errors = pd.read_csv(csv)["tpot_ms_error_pct"]
    assert errors.tolist() == pytest.approx([0, -50], abs=1e-6)
    status, _, err = said("validate", one, *what)
    assert status == 2
    assert "--tp must be given with a result that does not say on how many GPUs" in err
    assert "got 'one.json'" in err
    status, _, err = said("validate", one, *what, "--tp", 3)
    assert status == 2
    assert "--tp must divide the model's 32 query heads: use 1, 2, 4, 8, 16 or 32 (one.json); got 3" in err
    status, _, err = said("validate", one, *what, "--tp", 2, "--by", "tp", "--no-refit")
    assert (status, err) == (2, f"tplab validate: --by, --no-refit must come with a folder of tables; got {one}\n")
    status, _, err = said("validate", one, *what, "--tp", 2, "--report", "accuracy.md")
    assert (status, err) == (2, f"tplab validate: --report must come with a folder of tables; got {one}\n")
    status, _, err = said("validate", one, "--machine", "h100")
    assert "--model must be given" in err


def test_the_scoreboard_of_a_folder(said, tmp_path):
    rows = [
        {
            "model_path": "meta-llama/Llama-3.1-70B",
            "system": "h200_sxm",
            "backend": "vllm",
            "gemm_quant_mode": "fp8",
            "isl": 1024,
            "osl": 1024,
            "concurrency": requests,
            "tp_size": tp,
            "silicon_ttft_ms": 100.0,
            "silicon_tpot_ms": 20.0 / tp + requests / 8,
        }
        for tp in (2, 4, 8)
        for requests in (4, 32)
    ]
    folder, csv = tmp_path / "tables", tmp_path / "scores.csv"
    folder.mkdir()
    rows.append(rows[0] | {"model_path": "deepseek-ai/DeepSeek-V3"})
    pd.DataFrame(rows).to_csv(folder / "e2e_ttft_tpot_dense_by_tp.csv", index=False)
    status, out, _ = said("validate", folder, "--no-refit", "--by", "tp", "--csv", csv)
    assert status == 0
    scores = pd.read_csv(csv)
    assert sorted(scores["tp"]) == [2, 4, 8]
    assert scores["num_cases"].tolist() == [2, 2, 2]
    assert "largest TP" in out
    assert "\nRows left out, by reason:\n      1  model deepseek-ai/DeepSeek-V3 is not a preset\n" in out
    assert not re.search(r"\de[+-]", out)
    assert max(map(len, out.splitlines()[:-1])) <= 80
    status, _, err = said("validate", folder, "--no-refit", "--by", "colour")
    assert status == 2
    assert "--by must be out of split, " in err
    status, _, err = said("validate", folder, "--tp", 2, "--machine", "h100", "--eager")
    assert (status, err) == (
        2,
        f"tplab validate: --tp, --machine, --eager must come with result files; got {folder}\n",
    )
    page, beside = tmp_path / "accuracy.md", tmp_path / "beside.csv"
    status, out, _ = said("validate", folder, "--report", page)
    assert status == 0
    assert out.endswith(f"Wrote {page}.\n")
    text = page.read_text()
    assert text.startswith("# How accurate the advisor is\n")
    assert "| 1 | model DeepSeek-V3 is not a preset |" in text.replace("deepseek-ai/", "")
    assert str(tmp_path) not in text
    beside.write_text("tp,pp\n1,1\n")
    for more, message in (
        (("--report", page, "--beside", beside), f"{beside} lacks the columns table, "),
        (("--report", page, "--no-refit"), "--report must come without --no-refit"),
        (("--beside", beside), "--beside must come with --report"),
        (("--report", tmp_path / "none" / "page.md"), f"--report {tmp_path / 'none' / 'page.md'} cannot be written"),
    ):
        status, out, err = said("validate", folder, *more)
        assert (status, out) == (2, "")
        assert err.startswith(f"tplab validate: {message}")
    pd.DataFrame(rows[-1:]).to_csv(folder / "e2e_ttft_tpot_dense_by_tp.csv", index=False)
    status, _, err = said("validate", folder)
    assert status == 2
    assert "nothing to score: 1 of 1 rows left out: model deepseek-ai/DeepSeek-V3 is not a preset (1)" in err


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        (("advise", "--model", "llama-9"), "llama-9"),
        (("advise", "--model", "llama-3.1-8b", "--machine", "h1000"), "did you mean"),
        (("advise", "--model", "llama-3.1-8b", "--gpus", 8), "--gpus goes with --machine"),
        ((*H100, "--topo", "x"), "must not both be given"),
        (("advise", "--model", "llama-3.1-8b", "--topo", "nowhere"), "--topo nowhere cannot be read"),
        (("advise", "--model", "llama-3.1-8b", "--calibration", "nowhere"), "--calibration nowhere cannot be read"),
        ((*H100, "--rate", 1, "--concurrency", 1), "not both"),
        (("advise", "--model", "llama-3.1-405b", "--machine", "l4", "--gpus", 1), "does not fit"),
        ((*H100, "--csv", "no/a.csv"), "there is no folder"),
        (("advise", "--model", ""), "--model must not be empty"),
        (("advise", "--model", "llama-3.1-8b", "--machine", ""), "--machine must not be empty"),
        ((*H100, "--csv", ""), "--csv must not be empty"),
        ((*H100, "--most", -1), "--most must be a whole number of at least 0; got -1"),
        ((*H100, "--concurrency", 0), "--concurrency must be a whole number from 1 to 1,000,000,000; got 0"),
        ((*H100, "--input", 0), "--input must be a whole number from 1 to"),
        ((*H100, "--rate", 0), "--rate must be a number above 0 and at most 1,000,000,000; got 0"),
        ((*H100, "--gpus", 0), "--gpus must be 1 to 8, the GPUs of a h100 node: "),
        ((*H100, "--gpus", 9), "--gpus must be 1 to 8, the GPUs of a h100 node: take more nodes for more; got 9"),
        ((*H100, "--gpu", "a100"), "--gpu goes with --topo"),
        (("advise", "--model", "llama-3.1-8b", "--gpu", "a100"), "--gpu goes with --topo"),
        (("advise", "--model", "llama-3.1-8b", "--nodes", 2), "--nodes goes with --machine or --topo"),
        ((*H100, "--weights", "fp3"), "--weights must be one of fp32, bf16, fp16, fp8, int8, fp4, int4; got 'fp3'"),
        ((*H100, "--kv", "fp3"), "--kv must be one of fp32, "),
        (
            ("advise", "--model", "llama-3.1-8b", "--topo", "one.txt", "--nodes", 2),
            "--nodes must be 1 where the text",
        ),
        (("calibrate", "--ranks", 0), "--ranks must be a whole number from 1 to 64; got 0"),
        (("validate", ""), "PATH must not be empty"),
        (("box", ""), "FOLDER must not be empty"),
        (("calibrate", "--latency-us", 5), "must be given together"),
        (
            ("calibrate", "--latency-us", -5, "--bandwidth-GBps", 1),
            "--latency-us must be a finite number of at least 0",
        ),
        (("calibrate", "--latency-us", 5, "--bandwidth-GBps", 0), "--bandwidth-GBps must be a number above 0; got 0.0"),
        (("calibrate", "--backend", "mpi"), "--backend must be one of auto, gloo, nccl; got 'mpi'"),
        ((*H100, "--nodes", 0), "--nodes must be a whole number from 1"),
        ((*H100, "--engine", "tgi"), "--engine must be one of"),
        ((*H100, "--ttft-limit-ms", 0), "--ttft-limit-ms must be a"),
        ((*H100, "--tpot-limit-ms", -1), "--tpot-limit-ms must be a"),
        ((*H100, "--max-num-seqs", 0), "--max-num-seqs must be a whole number of at least 1; got 0"),
        ((*H100, "--prefill-policy", "last"), "--prefill-policy must be one of auto, mixed, prefill-first, static"),
        ((*H100, "--token-budget", -1), "--token-budget must be a whole number of at least 1; got -1"),
        ((*H100, "--cached-prefix", 2), "--cached-prefix must be a number of at least 0 and at most 1; got 2"),
        ((*H100, "--speculative-tokens", 65), "--speculative-tokens must be a whole number from 0 to 64; got 65"),
        ((*H100, "--percentiles"), "--percentiles goes with --rate"),
        ((*H100, "--acceptance", 0.5), "--acceptance goes with --speculative-tokens"),
        ((*H100, "--speculative-tokens", 2, "--acceptance", 1.5), "--acceptance must be a number of at least 0 and"),
        (("calibrate", "--out", "no/where.json"), "--out no/where.json cannot be written: there is no folder"),
        (("calibrate", "--out", "."), "--out . cannot be written: it is a folder (give the name of a file)"),
        (("validate", "nowhere"), "there is no file or folder nowhere"),
        (("validate", ".", "tests"), "give one folder, or files only"),
    ],
)
def test_mistakes(said, arguments, want, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "one.txt").write_text(TOPO)
    status, out, err = said(*arguments)
    assert status == 2
    assert err.startswith(f"tplab {arguments[0]}: ")
    assert want in err
    assert out == ""


def test_a_calibration_of_another_form_is_refused_by_name(said, tmp_path):
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"format": "other/1"}))
    status, _, err = said("advise", "--model", "qwen3-0.6b", "--calibration", wrong)
    assert status == 2
    assert f"{wrong}: a calibration has format 'tplab-calibration/1', got 'other/1'" in err


@pytest.mark.timeout(120)
def test_a_box_with_a_model_of_ones_own(said, tmp_path, no_ranks_left):
    config = {
        "model_type": "llama", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    status, out, _ = said(
        *("box", tmp_path / "out", "--ranks", 2, "--backend", "gloo", "--steps", "layouts"),
        *("--model", tmp_path / "config.json", "--input", 8, "--output", 4, "--concurrency", 2),
    )
    assert status == 0
    layouts = pd.read_csv(tmp_path / "out" / "layouts.csv")
    assert set(layouts["layout"]) == {"TP 2 × PP 1", "TP 1 × PP 2", "TP 1 × PP 1 × 2"}
    assert set(layouts["input_length"]) == {8}
    assert "calibrated" in out
    assert "spec sheet" not in out  # a processor has none


def test_a_box_that_has_no_time_for_anything(said, tmp_path, no_ranks_left):
    options = ("--ranks", 2, "--backend", "gloo", "--steps", "links,sweep", "--minutes", 1e-6)
    status, out, _ = said("box", tmp_path, *options)
    assert (status, out) == (1, "links: left out for want of time\nsweep: left out for want of time\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "weather"), "--steps must be out of links"),
        (("--model", "llama-9"), "llama-9"),
        (("--ranks", 1), "--ranks must be a whole number of at least 2; got 1"),
        (("--ranks", 0), "--ranks must be a whole number of at least 2; got 0"),
        (("--model", "llama-3.1-8b", "--output", 1), "--output must be a whole number of at least 2; got 1"),
        (("--model", "gpt-3-175b"), "an MLP without a gate"),
        (("--model", "llama-3.1-8b", "--steps", "links"), "--model must come with the step layouts"),
        (("--input", 5, "--output", 6), "--input, --output must come with --model"),
        (("--minutes", "nan"), "--minutes must be a number above 0 and at most 1,000,000; got nan"),
    ],
)
def test_a_box_refuses(said, tmp_path, arguments, message):
    status, _, errors = said("box", tmp_path / "out", "--backend", "gloo", *arguments)
    assert status == 2
    assert message in errors
