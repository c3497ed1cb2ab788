"""Command lines that start a layout with vLLM, SGLang or TensorRT-LLM, on the GPUs that placement chose.

One server per replica, each on its own GPUs and port, rather than the engines' data-parallel options: those number
GPUs in order, and placement is the point. A load balancer in front is the user's own.

Flags as documented in November 2026: vLLM 0.8-0.24 (docs.vllm.ai, engine arguments), SGLang 0.5 (docs.sglang.io, server
arguments), TensorRT-LLM 0.18-1.3 (nvidia.github.io/TensorRT-LLM, trtllm-serve).
"""

import math
import shlex
from collections.abc import Mapping

from tplab.topology.machine import Machine
from tplab.topology.model_spec import ModelSpec
from tplab.topology.placement import Placement
from tplab.topology.sharding import Layout
from tplab.topology.workload import Workload

ENGINES = ("vllm", "sglang", "trtllm")
_FIRST_PORT = 8000
_MOST_SEQUENCES = 2048


def launch_commands(
    model: ModelSpec,
    machine: Machine,
    workload: Workload,
    layout: Layout,
    placement: Placement,
    *,
    path: str | None = None,
) -> dict[str, tuple[str, ...]]:
    """By engine: one command per replica; of a replica over several nodes, one per node (``# node 1`` in front).

    Args:
        path: where the checkpoint is; by default the model's name.
    """
    made: dict[str, tuple[str, ...]] = {}
    for engine in ENGINES:
        lines: list[str] = []
        for replica in range(layout.replicas):
            lines += _replica(engine, model, machine, workload, layout, placement, replica, path or model.name)
        made[engine] = tuple(lines)
    return made


def _replica(
    engine: str,
    model: ModelSpec,
    machine: Machine,
    workload: Workload,
    layout: Layout,
    placement: Placement,
    replica: int,
    path: str,
) -> list[str]:
    gpus = placement.device_order(replica)
    nodes = sorted({machine.node_of(gpu) for gpu in gpus})
    words = _WORDS[engine](model, workload, layout, path, _FIRST_PORT + replica)
    if len(nodes) == 1:
        here = f"# node {nodes[0]}\n" if machine.nodes > 1 else ""
        return [here + _visible(machine, gpus) + shlex.join(words)]
    if engine == "trtllm":  # one launcher for all ranks
        each = math.ceil(layout.gpus_per_replica / len(nodes))
        start = f"mpirun -n {layout.gpus_per_replica} --npernode {each} trtllm-llmapi-launch "
        return [f"# over nodes {', '.join(map(str, nodes))}\n{start}{shlex.join(words)}"]
    lines = []
    for rank, node in enumerate(nodes):
        mine = [gpu for gpu in gpus if machine.node_of(gpu) == node]
        more = " ".join(_node_words(engine, len(nodes), rank))  # for the shell, which knows $HEAD
        lines.append(f"# node {node}; HEAD is node {nodes[0]}\n{_visible(machine, mine)}{shlex.join(words)} {more}")
    return lines


def _visible(machine: Machine, gpus: "tuple[int, ...] | list[int]") -> str:
    local = [gpu % machine.gpus_per_node for gpu in gpus]
    if local == list(range(machine.gpus_per_node)):
        return ""
    return f"CUDA_VISIBLE_DEVICES={','.join(map(str, local))} "


def _vllm(model: ModelSpec, workload: Workload, layout: Layout, path: str, port: int) -> list[str]:
    e = workload.engine
    words = ["vllm", "serve", path, "--tensor-parallel-size", str(layout.tp)]
    words += ["--pipeline-parallel-size", str(layout.pp)] if layout.pp > 1 else []
    words += ["--max-model-len", str(_length(workload)), "--max-num-seqs", str(_sequences(workload, layout))]
    words += ["--max-num-batched-tokens", str(e.chunked_prefill)] if e.chunked_prefill else []
    words += ["--gpu-memory-utilization", f"{e.gpu_memory_utilization:g}"]
    words += ["--quantization", "fp8"] if model.weight_precision == "fp8" else []
    words += ["--kv-cache-dtype", "fp8"] if model.kv_precision == "fp8" else []
    words += [] if e.cuda_graphs else ["--enforce-eager"]
    words += ["--disable-custom-all-reduce"] if e.all_reduce == "nccl" else []
    return [*words, "--port", str(port)]


def _sglang(model: ModelSpec, workload: Workload, layout: Layout, path: str, port: int) -> list[str]:
    e = workload.engine
    words = ["python", "-m", "sglang.launch_server", "--model-path", path, "--tp-size", str(layout.tp)]
    words += ["--pp-size", str(layout.pp)] if layout.pp > 1 else []
    words += ["--context-length", str(_length(workload)), "--max-running-requests", str(_sequences(workload, layout))]
    words += ["--chunked-prefill-size", str(e.chunked_prefill or -1)]
    words += ["--mem-fraction-static", f"{e.gpu_memory_utilization:g}"]
    words += ["--quantization", "fp8"] if model.weight_precision == "fp8" else []
    words += ["--kv-cache-dtype", "fp8_e4m3"] if model.kv_precision == "fp8" else []
    words += [] if e.cuda_graphs else ["--disable-cuda-graph"]
    words += ["--disable-custom-all-reduce"] if e.all_reduce == "nccl" else []
    return [*words, "--port", str(port)]


def _trtllm(model: ModelSpec, workload: Workload, layout: Layout, path: str, port: int) -> list[str]:
    e = workload.engine
    words = ["trtllm-serve", path, "--tp_size", str(layout.tp)]
    words += ["--pp_size", str(layout.pp)] if layout.pp > 1 else []
    words += ["--max_seq_len", str(_length(workload)), "--max_batch_size", str(_sequences(workload, layout))]
    words += ["--max_num_tokens", str(e.chunked_prefill or max(8192, workload.input_length))]
    return [*words, "--kv_cache_free_gpu_memory_fraction", f"{e.gpu_memory_utilization:g}", "--port", str(port)]


_WORDS = {"vllm": _vllm, "sglang": _sglang, "trtllm": _trtllm}


def _node_words(engine: str, nodes: int, rank: int) -> list[str]:
    words = ["--nnodes", str(nodes), "--node-rank", str(rank)]
    if engine == "sglang":
        return [*words, "--dist-init-addr", '"$HEAD":5000']
    return [*words, "--master-addr", '"$HEAD"', *(["--headless"] if rank else [])]


def _length(workload: Workload) -> int:
    return workload.context_length


def _sequences(workload: Workload, layout: Layout) -> int:
    """A replica's share of the requests; for an arrival rate, as many as engines allow."""
    if workload.concurrency is None:
        return 256
    return min(_MOST_SEQUENCES, max(1, math.ceil(workload.concurrency / layout.replicas)))


def as_text(commands: Mapping[str, tuple[str, ...]]) -> str:
    """All of them, under the engine's name."""
    return "\n\n".join(f"# {engine}\n" + "\n".join(lines) for engine, lines in commands.items())
