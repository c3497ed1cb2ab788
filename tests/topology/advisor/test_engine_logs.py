"""Room for the cache as engines log it when they start, beside the formula.

Figures as published, each with its source (a project's issue or pull request, or a file at a version). What CUDA shows
of the GPU's memory stands in the log or follows from the GPU. ``told`` marks the logs that constants were derived from
(``engine_memory``); the others were looked up to check them, and nothing was changed after.
"""

from dataclasses import dataclass, replace

import pytest

from tplab.models.shards import Layout
from tplab.topology import EnginePolicy, Machine, ModelSpec, Workload, advise
from tplab.topology.advisor.memory import LayoutMemory
from tplab.topology.machine.spec_sheets import GPUS

_GIB = 2**30


def config(hidden, layers, heads, kv, inner, vocab, kind="llama", positions=32768):
    return {
        "model_type": kind, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "intermediate_size": inner, "vocab_size": vocab, "torch_dtype": "bfloat16",
        "max_position_embeddings": positions,
    }  # fmt: skip


QWEN_14B = config(5120, 48, 40, 8, 13824, 152064, "qwen2", 131072)
QWEN_32B = config(5120, 64, 40, 8, 27648, 152064, "qwen2")
QWEN_1B = config(1536, 28, 12, 2, 8960, 151936, "qwen2") | {"tie_word_embeddings": True}
QWEN15_7B = config(4096, 32, 32, 32, 11008, 151936, "qwen2")
CODELLAMA_7B = config(4096, 32, 32, 32, 11008, 32016, positions=16384)


@dataclass(frozen=True, kw_only=True)
class Log:
    """What an engine said of its cache."""

    source: str
    told: bool = False
    model: object
    weights: str = "bf16"
    cache: str | None = None
    gpu: str
    cuda_GiB: float
    tp: int = 1
    engine: str = "vllm"
    share: float
    chunk: int
    rows: int = 256
    """Most sequences at once."""
    tokens: int
    """That the cache holds."""

    @property
    def memory(self):
        spec = ModelSpec.from_config(self.model, weight_precision=self.weights, kv_precision=self.cache)
        gpu = replace(GPUS[self.gpu], memory_GB=self.cuda_GiB * _GIB / 1e9)
        policy = EnginePolicy(
            name=self.engine, gpu_memory_utilization=self.share, chunked_prefill=self.chunk, max_num_seqs=self.rows
        )
        workload = Workload(input_length=64, output_length=64, concurrency=1, engine=policy)
        return LayoutMemory.of(spec, gpu, workload, Layout.of(spec, self.tp, 1))

    @property
    def error(self):
        """Relative, positive where more is promised than the engine has."""
        return self.memory.token_capacity() / self.tokens - 1


PLANNER = {"source": "llm-d-planner, accuracy/accuracy_report.md at 875a4fd (vLLM 0.19)", "gpu": "h100"} | {
    "cuda_GiB": 79.19, "share": 0.95, "chunk": 8192, "rows": 1024,
}  # fmt: skip
OLDER = PLANNER | {
    "source": "llm-d-benchmark, config_explorer/empirical-vllm-memory-results.md at 2593348 (vLLM up to 0.16)",
    "cuda_GiB": 79.18, "share": 0.9,
}  # fmt: skip
LOGS = [
    Log(source="vllm#10517 (0.6)", told=True, model="llama-3.1-8b", gpu="rtx-3090", cuda_GiB=23.58, share=0.9,
        chunk=20000, tokens=31232),
    Log(source="vllm#10517 (0.6)", told=True, model="llama-3.1-8b", gpu="rtx-3090", cuda_GiB=23.58, share=0.9,
        chunk=29000, tokens=23648),
    Log(source="vllm#2031 (0.2)", model="llama-2-7b", gpu="a100", cuda_GiB=79.2, share=0.9, chunk=4096, tokens=117616),
    Log(source="vllm#10511 (0.6)", told=True, model="llama-3.1-8b", gpu="h100", cuda_GiB=79.22, share=0.9, chunk=8192,
        tokens=436500),
    Log(source="vllm#10511 (0.6)", told=True, model="llama-3.1-8b", gpu="h100", cuda_GiB=79.22, tp=2, share=0.9,
        chunk=8192, tokens=966000),
    Log(source="vllm#13061 (0.7)", told=True, model=QWEN_14B, gpu="rtx-4090", cuda_GiB=23.55, tp=2, share=0.98,
        chunk=2048, tokens=81536),
    Log(source="Qwen3#16 (vLLM 0.4, GPTQ)", told=True, model=QWEN15_7B, weights="int4", gpu="rtx-3090",
        cuda_GiB=23.69, share=0.9, chunk=32768, tokens=24320),
    Log(told=True, model="llama-3.1-8b", tokens=476016, **PLANNER),
    Log(told=True, model="llama-3.1-8b", tp=2, tokens=1044643, **PLANNER),
    Log(told=True, model="llama-3.1-8b", tp=4, tokens=2209873, **PLANNER),
    Log(model="llama-3.1-8b", cache="fp8", tokens=952032, **PLANNER),
    Log(told=True, model="qwen2.5-7b", tokens=1096000, **PLANNER),
    Log(told=True, model="qwen2.5-7b", tp=2, tokens=2390753, **PLANNER),
    Log(told=True, model="qwen2.5-7b", tp=4, tokens=5043650, **PLANNER),
    Log(model="llama-3.3-70b", weights="fp8", tp=2, tokens=244685, **PLANNER),
    Log(told=True, model="llama-3.3-70b", weights="fp8", tp=4, tokens=709519, **PLANNER),
    Log(told=True, model="qwen2.5-72b", tp=4, tokens=483291, **PLANNER),
    Log(model="qwen3-8b", tokens=418804, **PLANNER),
    Log(told=True, model=CODELLAMA_7B, tokens=126277, **PLANNER),
    Log(model="qwen3-14b", tokens=297140, **PLANNER | {"source": PLANNER["source"].replace("0.19", "0.17")}),
    Log(source="sglang#4760 (0.4)", told=True, model="llama-3.1-8b", gpu="h100", cuda_GiB=79.15, engine="sglang",
        share=0.88, chunk=8192, tokens=442750),
    Log(source="sglang#2468 (0.4)", told=True, model="mistral-7b", gpu="rtx-4090", cuda_GiB=23.6, engine="sglang",
        share=0.88, chunk=8192, tokens=56524),
    Log(source="SGLang 0.4, QwQ-32B on four A10G", told=True, model=QWEN_32B, gpu="a10", cuda_GiB=22.07, tp=4,
        engine="sglang", share=0.85, chunk=2048, tokens=46611),
    Log(source="TensorRT-LLM#1400 (0.8)", told=True, model="llama-2-7b", weights="int8", gpu="a100", cuda_GiB=79.2,
        engine="trtllm", share=0.9, chunk=4096, rows=1, tokens=132608),
    Log(source="TensorRT-LLM 1.x with Qwen3-Reranker-0.6B", told=True, model="qwen3-0.6b", gpu="h100", cuda_GiB=79.2,
        engine="trtllm", share=0.9, chunk=8192, rows=2048, tokens=643136),
    Log(source="vLLM 0.8 with Qwen3-4B", model="qwen3-4b", gpu="rtx-4090", cuda_GiB=12.0, share=0.95, chunk=10000,
        rows=1, tokens=22304),
    Log(source="vLLM 0.14 with Qwen3-8B", model="qwen3-8b", gpu="rtx-6000-ada", cuda_GiB=47.37, share=0.9, chunk=2048,
        tokens=188864),
    Log(source="vLLM 0.7 with Qwen2.5-72B AWQ", told=True, model="qwen2.5-72b", weights="int4", gpu="rtx-4090",
        cuda_GiB=44.45, tp=2, share=0.9, chunk=32768, tokens=95879),
    Log(model="llama-3.3-70b", weights="fp8", tp=2, tokens=209715, **OLDER),
    Log(model="llama-3.1-8b", tokens=420905, **OLDER),
    Log(model="qwen3-0.6b", tokens=603391, **OLDER),
    Log(source="SGLang 0.5 with Qwen3-14B", model="qwen3-14b", gpu="rtx-4090", cuda_GiB=23.58, tp=4, engine="sglang",
        share=0.8, chunk=2048, tokens=298447),
    Log(source="vLLM 0.7 with Qwen2.5-1.5B", model=QWEN_1B, gpu="a10", cuda_GiB=22.06, share=0.9, chunk=4096,
        tokens=581312),
    *(
        Log(source="vLLM's cache by GPU and model, RTX 6000 Ada and H100 NVL", model=model, gpu="h100-nvl",
            cuda_GiB=93.1, share=0.9, chunk=4096, rows=1024, tokens=tokens)
        for model, tokens in (("llama-3.1-8b", 542960), ("qwen3-8b", 478560), ("qwen3-14b", 350304))
    ),
]  # fmt: skip
"""Cards of two logs stand in for others of the same kind of link; memory is as logged."""


@pytest.mark.parametrize("log", LOGS, ids=lambda log: f"{log.source}, TP {log.tp}, {log.tokens}")
def test_as_engines_log_it(log):
    """Within 5 % on one GPU and 10 % on several, and with at most half of that promised too much."""
    most = 0.05 if log.tp == 1 else 0.1
    assert -most <= log.error <= (most if log.tp == 1 else most / 2)


def test_no_side_is_taken_on_average():
    """Logs that constants were not derived from: as good as the others, and not on the hopeful side."""
    told, new = ([log.error for log in LOGS if log.told is told] for told in (True, False))
    assert len(new) >= 10
    for errors in (told, new):
        assert abs(sum(errors) / len(errors)) < 0.02
        assert sum(map(abs, errors)) / len(errors) < 0.025


TIGHT = [
    Log(model="qwen3-32b", tokens=18227, **OLDER),
    Log(source="vLLM's cache by GPU and model, RTX 6000 Ada and H100 NVL", model="qwen3-32b", gpu="h100-nvl",
        cuda_GiB=93.1, share=0.9, chunk=4096, rows=1024, tokens=81648),
    Log(model="qwen2.5-72b", tp=2, tokens=20554, **PLANNER),
    Log(source="LMCache#1241 (vLLM 0.9)", model=QWEN_32B, weights="fp8", gpu="rtx-4090", cuda_GiB=23.55, tp=2,
        share=0.9, chunk=2048, tokens=18144),
]  # fmt: skip
"""Weights leave a few per cent: a gigabyte more or less is a third of the cache."""


@pytest.mark.parametrize("log", TIGHT, ids=lambda log: log.source)
def test_where_next_to_nothing_is_left_the_gigabytes_are_right(log):
    memory = log.memory
    wrong = abs(memory.token_capacity() - log.tokens) * memory.with_one[0].kv_per_token / _GIB
    assert wrong < 0.05 * log.cuda_GiB


def test_what_an_engine_refused_is_refused():
    """vllm#13882 (0.7): Qwen2.5-7B AWQ on 70 % of 8 GB has no room for a cache, and the log says by how much."""
    log = Log(source="vllm#13882", model="qwen2.5-7b", weights="int4", gpu="rtx-4090", cuda_GiB=8.0, share=0.7,
              chunk=4096, tokens=1)  # fmt: skip
    (rank,) = log.memory.ranks(0)
    assert log.memory.token_capacity() == log.memory.max_requests == 0
    assert rank.free / _GIB == pytest.approx(-1.05, abs=0.35)


def test_a_context_that_the_engine_would_refuse_is_not_advised():
    """LMCache#1241: 18,144 tokens at most on two RTX 4090, where 29,000 were advised."""
    spec = ModelSpec.from_config(QWEN_32B, weight_precision="fp8")
    workload = Workload(input_length=28_000, output_length=1000, concurrency=1)
    with pytest.raises(ValueError, match="does not fit on 2 x rtx-4090"):
        advise(spec, Machine.preset("rtx-4090", gpus=2), workload)
