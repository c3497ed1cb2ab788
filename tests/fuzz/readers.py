"""Everything in tplab that reads what people download, each with an input that it accepts."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.collectives.nccl_output import as_json, printed
from tplab import Machine, ModelSpec, Workload, advise, predict
from tplab.cli import main
from tplab.collectives.crossover import comparable, crossovers
from tplab.collectives.nccl_tests import nccl_frame, read_nccl
from tplab.collectives.sweep import read_sweep
from tplab.collectives.sweep_plan import parse_bytes
from tplab.files import read_text
from tplab.models.checkpoint import INDEX, Checkpoint, RandomWeights, save_checkpoint
from tplab.models.spec import ModelConfig
from tplab.pipeline import Schedule, add_communication, build_schedule, simulate, validate
from tplab.pipeline.trace import Trace
from tplab.topology.advisor.calibration import AllReduceTimes, Calibration, MatmulTimes, SendTimes
from tplab.topology.calibration.from_nccl import calibration_of_nccl, machine_of_test
from tplab.topology.published.accuracy import read_beside
from tplab.topology.published.benchmarks import beside_benchmark, read_benchmark
from tplab.topology.published.tables import CELL, read_folder
from tplab.topology.verification.static_batch import machine_of

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "vocab_size": 100,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "bfloat16",
    "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "eos_token_id": [1, 2],
    "rope_theta": 5e5, "sliding_window": None,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 512},
}  # fmt: skip
QWEN = {
    "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 100,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "use_sliding_window": True,
    "sliding_window": 12, "max_window_layers": 1, "max_position_embeddings": 4096, "dtype": "float32",
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"], "eos_token_id": 3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}  # fmt: skip
QUANTISED = LLAMA | {
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    "quantization_config": {"quant_method": "compressed-tensors", "ignore": ["lm_head", "model.layers.0.mlp"],
                            "kv_cache_scheme": {"num_bits": 8},
                            "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}},
}  # fmt: skip
OUTER = {
    "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {"hidden_size": 3},
    "text_config": {"model_type": "gemma3_text", "hidden_size": 64, "sliding_window": 512, "num_hidden_layers": 8},
    "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32},
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 300,
        "n_inner": None, "torch_dtype": "float16"}  # fmt: skip
FALCON = {"model_type": "falcon", "hidden_size": 64, "n_layer": 2, "num_attention_heads": 4, "num_kv_heads": 2,
          "new_decoder_architecture": True, "multi_query": True, "parallel_attn": True, "bias": False,
          "num_ln_in_parallel_attn": None, "vocab_size": 300}  # fmt: skip
MPT = {"model_type": "mpt", "d_model": 64, "n_layers": 2, "n_heads": 4, "expansion_ratio": 4, "max_seq_len": 128,
       "vocab_size": 300, "attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": 2}}  # fmt: skip
NEO = {"model_type": "gpt_neo", "hidden_size": 64, "num_layers": 4, "num_heads": 4, "window_size": 16,
       "attention_types": [[["global", "local"], 2]], "vocab_size": 300}  # fmt: skip
RESULT = {
    "date": "20261124-120000", "backend": "vllm", "model_id": "meta-llama/Llama-3.1-8B", "num_prompts": 160,
    "request_rate": "inf", "max_concurrency": 16, "completed": 160, "total_input_tokens": 163840,
    "total_output_tokens": 40960, "request_throughput": 3.1, "output_throughput": 800.0, "mean_ttft_ms": 50.0,
    "median_ttft_ms": 49.0, "mean_tpot_ms": 9.0, "median_tpot_ms": 9.0, "tensor_parallel_size": "2",
}  # fmt: skip
ROW_OF_SITE = {
    "hw": "h100", "tp": 2, "conc": 8, "model": "meta-llama/Llama-3.1-8B", "framework": "sglang", "isl": 512, "osl": 128,
    "tput_per_gpu": 1280.0, "output_tput_per_gpu": 256.0, "mean_ttft": 0.048, "mean_tpot": 0.015,
}  # fmt: skip
PRINTED = """\
vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 2
Maximum request concurrency: 8
============ Serving Benchmark Result ============
Successful requests:                     96
Benchmark duration (s):                  24.00
Total input tokens:                      49152
Total generated tokens:                  12288
Request throughput (req/s):              4.00
Output token throughput (tok/s):         512.00
Mean TTFT (ms):                          48.00
Mean TPOT (ms):                          15.00
==================================================
"""
SWEEP = (
    "algorithm,dtype,bytes,p50_us,min_us,correct,backend,num_ranks,device,num_devices,link,launch_mode,num_cores,"
    "torch_version,nccl_version,python_version,started_at\n"
) + "".join(
    f"{algorithm},bfloat16,{1 << power},{power},{power - 1},True,nccl,2,NVIDIA H200,2,NCCL,graph,8,2.13,2.28,3.12,now\n"
    for algorithm in ("library", "ring")
    for power in range(10, 14)
)
CALIBRATION = Calibration(
    machine="2 x test", device="NVIDIA H100 80GB HBM3", backend="nccl", num_ranks=2, created="2026-11-24T18:00:00",
    versions={"torch": "2.13"},
    all_reduce=(AllReduceTimes(num_ranks=2, nbytes=(1e3, 1e6), p50_us=(10.0, 100.0), link="host", gpus=(0, 1)),
                AllReduceTimes(num_ranks=2, launch="graph", nbytes=(1e3,), p50_us=(7.0,))),
    sends=(SendTimes(source=0, target=1, nbytes=(1e3, 1e6), p50_us=(5.0, 50.0)),),
    matmuls=(MatmulTimes(precision="bf16", tokens=(1, 1, 8, 8), params=(1e4, 1e6, 1e4, 1e6),
                         p50_us=(6.0, 105.0, 9.0, 405.0)),),
    copy_GBps=1200.5, kv_read_GBps=900.0, attention_fixed_us=3.0, prompt_attention_TFLOPS=300.0, light_kernel_us=2.0,
    launch_us=4.0, block_overhead_us=20.0, block_overhead_per_width_us=1e-4, step_overhead_us=30.0, handoff_us=9.0,
    notes=("ranks share cores",),
)  # fmt: skip
TOPO = """\
	\x1b[4mGPU0	GPU1	GPU2	GPU3	NIC0	NIC1	CPU Affinity	NUMA Affinity	GPU NUMA ID\x1b[0m
GPU0	 X 	NV4	PIX	SYS	PIX	SYS	0-15,64-79	0		N/A
GPU1	NV4	 X 	SYS	PXB	PXB	SYS	0-15,64-79	0		N/A
GPU2	PIX	SYS	 X 	NV4	SYS	PIX	16-31	1		N/A
GPU3	SYS	PXB	NV4	 X 	SYS	NODE	16-31	1		N/A
NIC0	PIX	PXB	SYS	SYS	 X 	SYS
NIC1	SYS	SYS	PIX	NODE	SYS	 X

Legend:

  X    = Self
  NV#  = Connection traversing a bonded set of # NVLinks

NIC Legend:

  NIC0: mlx5_0
  NIC1: mlx5_1
"""
TABLES = (
    "# a comment\nmodel_path,system,backend,isl,osl,tp_size,pp_size,concurrency,precision,kv_cache_dtype,"
    "silicon_tpot_ms,silicon_ttft_ms\nmeta-llama/Llama-3.1-8B,h100_sxm,trtllm,1024,256,2,1,16,fp8,fp8,7.5,40\n"
    "qwen3-32b,h200_sxm,vllm,512,128,4,1,8,bf16,,12.5,\n",
    "model,impl,tp,pp,batch_size,input_len,output_len,latency_ms\ngpt-175b,fastertransformer,8,1,4,60,20,900.5\n",
    "model,gpu,tp,pp,isl,osl,precision,throughput\nllama-3.1-70b,H100 SXM,4,1,128,2048,fp8,3500.0\n"
    "llama-3.1-8b,A100,1,,128,128,,2000\n",
    "# TensorRT-LLM\nmodel,hardware,precision,tp,pp,isl,osl,value,unit\n"
    "Llama-3.3-70B,rtx_pro_6000_server,fp4,1,4,128,128,9641.0,output_tokens_per_s_total\n",
)
REPORT = f"""\
2026-01-02T03:04:05Z GPU models and configuration:
2026-01-02T03:04:05Z GPU 0: NVIDIA RTX A6000
2026-01-02T03:04:05Z GPU 1: NVIDIA RTX A6000
2026-01-02T03:04:05Z GPU 2: NVIDIA RTX A6000
2026-01-02T03:04:05Z GPU 3: NVIDIA RTX A6000
2026-01-02T03:04:06Z |   0  NVIDIA RTX A6000     Off | 00000000:01:00.0 Off |                  Off |
2026-01-02T03:04:06Z | 30%   31C    P8    16W / 300W |      1MiB / 49140MiB |      0%      Default |
{"".join(f"2026-01-02T03:04:07Z {line}{chr(10)}" for line in TOPO.splitlines())}
2026-01-02T03:04:08Z nvidia-smi topo -p2p r
2026-01-02T03:04:08Z  \tGPU0\tGPU1\tGPU2\tGPU3
2026-01-02T03:04:08Z  GPU0\tX\tOK\tCNS\tCNS
2026-01-02T03:04:08Z  GPU1\tOK\tX\tCNS\tCNS
2026-01-02T03:04:08Z  GPU2\tCNS\tCNS\tX\tOK
2026-01-02T03:04:08Z  GPU3\tCNS\tCNS\tOK\tX
"""
BESIDE = (
    f"{','.join(CELL)},source,predicted_tpot_ms,predicted_ttft_ms,predicted_tok_s,failure\n"
    "a.csv,served,llama-3.1-8b,fp8,h100,vllm,2,1,1024/256,16,Other 2.0,7.5,40,700.5,\n"
    "a.csv,served,llama-3.1-8b,fp8,h100,vllm,4,1,1024/256,16,Other 2.0,,,,does not fit\n"
)
SMALL = Workload(input_length=64, output_length=64, concurrency=2)
H100 = Machine.preset("h100", gpus=8)
MODEL = ModelSpec.from_config("llama-3.1-8b")
CONFIG = ModelConfig.from_hf(LLAMA | {"num_hidden_layers": 1, "tie_word_embeddings": True})
TABLE = build_schedule("1f1b", 2, 3)
TABLES_OF_ACTIONS = (TABLE, *(add_communication(build_schedule(name, 2, 3)) for name in ("1f1b", "forward-only")))


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One way in."""

    bases: tuple[bytes, ...]
    file: str
    """Where an input is put."""
    read: Callable[[Path], object]
    words: tuple[str, ...] = ()
    """Beside the file's name and the keys of its JSON, what an error may name."""
    prepare: Callable[[Path], object] = field(default=lambda folder: None)
    """Once, for what stands beside the file."""


def _models(path: Path) -> None:
    ModelConfig.from_hf(path).tensor_shapes()


def _advisor(path: Path) -> None:
    advise(ModelSpec.from_config(path), H100, SMALL)


def _calibration(path: Path) -> None:
    calibration = Calibration.load(path)
    predict(MODEL, replace(H100, notes=()), SMALL, 2, 1, calibration=calibration)
    machine_of(calibration)


def _nccl(path: Path) -> None:
    tests = read_nccl(path)
    nccl_frame(tests)
    for test in tests:
        machine_of_test(test)
    calibration_of_nccl(tests)


def _checkpoint(path: Path) -> None:
    source = Checkpoint(path.parent, CONFIG)
    for name in CONFIG.tensor_shapes():
        with source.open(name) as full:
            full[:1]


def _schedule(path: Path) -> None:
    validate(Schedule.from_csv(path))


def _trace(path: Path) -> None:
    trace = Trace.from_perfetto(path, TABLE)
    trace.frame()
    trace.perfetto()


def _options(path: Path) -> None:
    """The command line, whose parser ends the program for what is no number."""
    arguments = path.read_text(encoding="utf-8", errors="replace").split()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main(["advise", "--model", "qwen3-0.6b", "--machine", "h100", *arguments])
        except SystemExit as end:
            status = int(end.code or 0)
    if status:
        raise ValueError(said.getvalue()[:2000])  # argparse repeats what it does not know in full


def _json(*trees: Any) -> tuple[bytes, ...]:
    return tuple(json.dumps(tree).encode() for tree in trees)


def _save(folder: Path) -> None:
    save_checkpoint(folder, CONFIG, RandomWeights(CONFIG), max_shard_bytes=30_000)


READERS: dict[str, Reader] = {
    "models": Reader(bases=_json(LLAMA, QWEN), file="config.json", read=_models),
    "advisor": Reader(
        bases=_json(LLAMA, QWEN, QUANTISED, OUTER, GPT2, FALCON, MPT, NEO), file="config.json", read=_advisor,
        words=("fit on", "cannot be cut", "must be an object"),
    ),
    "benchmarks": Reader(bases=(*_json(RESULT, ROW_OF_SITE), PRINTED.encode()), file="result.json",
                   read=lambda path: beside_benchmark(read_benchmark(path), MODEL, H100)),
    "calibration": Reader(bases=(CALIBRATION.to_json().encode(),), file="calibration.json", read=_calibration,
                          words=("calibration",)),
    "index": Reader(bases=(), file=INDEX, read=_checkpoint, prepare=_save, words=("of this config",)),
    "safetensors": Reader(bases=(), file="model.safetensors", read=_checkpoint, words=("layers.", "lm_head", "embed")),
    "topology": Reader(bases=(TOPO.encode(), REPORT.encode()), file="topo.txt",
                       words=("line ", "the text", "NVLinks", "network card", "nvidia-smi", "the table"),
                       read=lambda path: Machine.from_topo(read_text(path, errors="replace"), nodes=2).bandwidths()),
    "schedule": Reader(bases=tuple(table.to_text().encode() for table in TABLES_OF_ACTIONS), file="table.csv",
                       words=("row ", "schedule 'table'", "text must hold", "id mistyped", "num_stages"),
                       read=_schedule),
    "trace": Reader(bases=(), file="trace.json", read=_trace),
    "tables": Reader(bases=tuple(text.encode() for text in TABLES), file="table.csv",
                     read=lambda path: read_folder(path.parent), words=("has no table of a known form",)),
    "beside": Reader(bases=(BESIDE.encode(),), file="beside.csv", read=read_beside),
    "sweep": Reader(bases=(SWEEP.encode(),), file="sweep.csv", words=("the sweep has", "a comparison needs"),
                    read=lambda path: crossovers(comparable(read_sweep(path)))),
    "nccl": Reader(bases=(printed(n=2).encode(), printed("sendrecv", 4, hosts=2).encode(), as_json().encode()),
                   file="nccl.txt", read=_nccl,
                   words=("tests must", "machine must", "collective must", "JSON of nccl-tests", "named")),
    "sizes": Reader(bases=(b"64KiB", b"1GiB", b"512", b" 3 MiB"), file="size.txt", words=("--from-size",),
                    read=lambda path: parse_bytes("--from-size", path.read_text("utf-8", "replace"))),
    "options": Reader(bases=(b"--gpus 8 --nodes 2 --input 1024 --output 16 --concurrency 8 --most 3 --tpot-limit-ms 9",
                             b"--input 64 --output 9 --rate 2.5 --ttft-limit-ms 1e3 --weights fp8 --kv fp8"),
                      file="options.txt", read=_options, words=("--", "does not fit on")),
}  # fmt: skip


def bases_of(name: str, folder: Path) -> tuple[bytes, ...]:
    """Valid inputs of a reader; those that only tplab can write are written."""
    if name == "index":
        return ((folder / INDEX).read_bytes(),)
    if name == "safetensors":
        save_checkpoint(folder / "written", CONFIG, RandomWeights(CONFIG))
        return ((folder / "written" / "model.safetensors").read_bytes(),)
    if name == "trace":
        spans = simulate(add_communication(TABLE)).spans
        Trace.from_spans(TABLE, spans, measured=True, badge="LIVE", provenance={"torch": "2"}).to_perfetto(
            folder / "written.json"
        )
        return ((folder / "written.json").read_bytes(),)
    return READERS[name].bases
