"""Command lines that start a layout with vLLM, SGLang or TensorRT-LLM, on the GPUs that placement chose.

One server per replica, each on its own GPUs and port, rather than the engines' data-parallel options: those number
GPUs in order, and placement is the point. A load balancer in front is the user's own. What no flag can say (a precision
that the checkpoint must have already, shares of the nodes that an engine does not take) stands in a comment in front.

Flags as documented in November 2026: vLLM 0.8-0.24 (docs.vllm.ai, engine arguments), SGLang 0.5 (docs.sglang.io, server
arguments), TensorRT-LLM 0.18-1.3 (nvidia.github.io/TensorRT-LLM, trtllm-serve; --kv_cache_dtype: 1.3, its pull request
11487). Without chunks vLLM 0.8-0.10 chunks all the same (its issue 20914). Prefixes are cached without being told
(TensorRT-LLM: enable_block_reuse). SGLang checks as many tokens as it guesses, and one more, where each step has one
guess (docs.sglang.io, speculative decoding); what TensorRT-LLM's file of options may hold: its
tensorrt_llm/llmapi/llm_args.py at fcd3f31.
"""

import json
import math
import shlex
from collections.abc import Mapping

from tplab.models.precision import ITEMSIZE
from tplab.models.shards import Layout
from tplab.models.spec import ModelSpec
from tplab.topology.advisor.constants import DEFAULT
from tplab.topology.advisor.hardware_limits import ENGINE_NAMES as _NAMES
from tplab.topology.advisor.hardware_limits import refused
from tplab.topology.advisor.workload import Workload
from tplab.topology.machine.machine import Gpu, Machine
from tplab.topology.machine.placement import Placement

ENGINES = ("vllm", "sglang", "trtllm")
_FIRST_PORT = 8000
_MEETING_PORT = 5000
_DRAFT = "DRAFT"
"""Stands for the draft model, which the workload does not name."""


def launch_commands(
    model: ModelSpec,
    machine: Machine,
    workload: Workload,
    layout: Layout,
    placement: Placement,
    *,
    path: str | None = None,
) -> dict[str, tuple[str, ...]]:
    """Engine -> one command per replica; of a replica over several nodes, one per node (``# node 1`` in front). Only
    engines that run on such GPUs.

    Lines that begin with ``#`` are comments, for the shell, too; those about the model stand before the first command.

    Args:
        path: where the checkpoint is; by default the model's ``source``, else its name.
    """
    made: dict[str, tuple[str, ...]] = {}
    where = path or model.source or model.name
    for engine in ENGINES:
        if refused(engine, machine.gpu):
            continue
        lines: list[str] = []
        for replica in range(layout.replicas):
            lines += _replica(engine, model, machine, workload, layout, placement, replica, where)
        made[engine] = ("\n".join([*_needs(engine, model, machine.gpu, workload), lines[0]]), *lines[1:])
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
    share: dict[int, list[int]] = {}  # by node, in the order of the ranks: the first is the head
    for gpu in gpus:
        share.setdefault(machine.node_of(gpu), []).append(gpu)
    words = shlex.join(
        [*_WORDS[engine](model, machine.gpu, workload, layout, path, _FIRST_PORT + replica), *_half(model, machine)]
    )
    if len(share) == 1:
        here = f"# node {next(iter(share))}\n" if machine.nodes > 1 else ""
        return [here + _visible(machine, gpus) + words]
    counts = [len(mine) for mine in share.values()]
    unequal = f"# unequal shares per node: {' + '.join(map(str, counts))} GPUs; " if len(set(counts)) > 1 else ""
    if engine == "trtllm":  # one launcher for all ranks
        return [_mpirun(machine, share, unequal) + words]
    lines = []
    for rank, (node, mine) in enumerate(share.items()):
        more = " ".join(_node_words(engine, len(share), rank, replica))  # for the shell, which knows $HEAD
        lines.append(f"# node {node}; HEAD is node {next(iter(share))}\n{_visible(machine, mine)}{words} {more}")
    warning = f"{unequal}{_NAMES[engine]} wants as many on every node\n" if unequal else ""
    return [warning + lines[0], *lines[1:]]


def _mpirun(machine: Machine, share: Mapping[int, list[int]], unequal: str) -> str:
    """The launcher of all ranks of a replica over several nodes, and in front what its flags cannot say."""
    seen = {node: _visible(machine, mine).strip() for node, mine in share.items()}
    start = f"# over nodes {', '.join(map(str, share))}\n"
    each = ""
    if unequal:
        start += f"{unequal}give mpirun a hostfile with these slots\n"
    else:
        each = f"--npernode {len(next(iter(share.values())))} "
    export = ""
    if len(set(seen.values())) > 1:
        devices = "; ".join(f"node {node} {devices or 'all GPUs'}" for node, devices in seen.items())
        start += f"# devices differ per node, set them there: {devices}\n"
    elif devices := next(iter(seen.values())):
        export = f"-x {devices} "
    return f"{start}mpirun -n {sum(map(len, share.values()))} {each}{export}trtllm-llmapi-launch "


def _visible(machine: Machine, gpus: "tuple[int, ...] | list[int]") -> str:
    local = [gpu % machine.gpus_per_node for gpu in gpus]
    if local == list(range(machine.gpus_per_node)):
        return ""
    return f"{'HIP' if machine.gpu.is_amd else 'CUDA'}_VISIBLE_DEVICES={','.join(map(str, local))} "


def _half(model: ModelSpec, machine: Machine) -> list[str]:
    """What vLLM and SGLang, the two that run on GPUs without bf16, must be told of a checkpoint in it."""
    made = machine.gpu.made
    return ["--dtype", "half"] if made and not made.bf16 and model.activation_precision == "bf16" else []


def _vllm(model: ModelSpec, gpu: Gpu, workload: Workload, layout: Layout, path: str, port: int) -> list[str]:
    e = workload.engine
    words = ["vllm", "serve", path, "--tensor-parallel-size", str(layout.tp)]
    words += ["--pipeline-parallel-size", str(layout.pp)] if layout.pp > 1 else []
    words += [
        "--max-model-len",
        str(_length(workload)),
        "--max-num-seqs",
        str(_sequences("vllm", workload, layout, gpu)),
    ]
    # left out, vLLM chunks, too; without chunks it raises the batched tokens to the longest sequence by itself
    chunks = ["--max-num-batched-tokens", str(e.chunked_prefill)]
    words += chunks if e.chunked_prefill else ["--no-enable-chunked-prefill"]
    words += ["--gpu-memory-utilization", f"{e.gpu_memory_utilization:g}"]
    words += _precision_words("vllm", model)
    words += [] if e.cuda_graphs else ["--enforce-eager"]
    words += ["--disable-custom-all-reduce"] if e.all_reduce == "nccl" else []
    words += ["--enable-prefix-caching"] if workload.cached_prefix else []
    if e.speculative_tokens:
        words += ["--speculative-config", json.dumps({"model": _DRAFT, "num_speculative_tokens": e.speculative_tokens})]
    return [*words, "--port", str(port)]


def _sglang(model: ModelSpec, gpu: Gpu, workload: Workload, layout: Layout, path: str, port: int) -> list[str]:
    e = workload.engine
    words = ["python", "-m", "sglang.launch_server", "--model-path", path, "--tp-size", str(layout.tp)]
    words += ["--pp-size", str(layout.pp)] if layout.pp > 1 else []
    words += [
        "--context-length",
        str(_length(workload)),
        "--max-running-requests",
        str(_sequences("sglang", workload, layout, gpu)),
    ]
    words += ["--chunked-prefill-size", str(e.chunked_prefill or -1)]
    words += ["--mem-fraction-static", f"{e.gpu_memory_utilization:g}"]
    words += _precision_words("sglang", model)
    words += [] if e.cuda_graphs else ["--disable-cuda-graph"]
    words += ["--disable-custom-all-reduce"] if e.all_reduce == "nccl" else []
    words += ["--enable-mixed-chunk"] if e.prefill_policy == "mixed" else []
    if k := e.speculative_tokens:
        words += ["--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", _DRAFT]
        words += ["--speculative-num-steps", str(k), "--speculative-eagle-topk", "1"]
        words += ["--speculative-num-draft-tokens", str(k + 1)]
    return [*words, "--port", str(port)]


def _trtllm(model: ModelSpec, gpu: Gpu, workload: Workload, layout: Layout, path: str, port: int) -> list[str]:
    e = workload.engine
    words = ["trtllm-serve", path, "--tp_size", str(layout.tp)]
    words += ["--pp_size", str(layout.pp)] if layout.pp > 1 else []
    words += [
        "--max_seq_len",
        str(_length(workload)),
        "--max_batch_size",
        str(math.ceil(_sequences("trtllm", workload, layout, gpu) / layout.pp)),  # of each micro-batch
    ]
    words += ["--max_num_tokens", str(e.chunked_prefill or max(8192, workload.input_length))]
    words += ["--enable_chunked_prefill"] if e.chunked_prefill and e.chunked_prefill < workload.input_length else []
    words += _precision_words("trtllm", model)
    return [*words, "--kv_cache_free_gpu_memory_fraction", f"{e.gpu_memory_utilization:g}", "--port", str(port)]


_WORDS = {"vllm": _vllm, "sglang": _sglang, "trtllm": _trtllm}

_POLICIES = {"vllm": ("mixed",), "sglang": ("mixed", "prefill-first"), "trtllm": ("mixed",)}
"""Prefill policies that an engine has (vLLM: its V1 scheduler), besides those that stand in a file of options."""
_GUESSES = {
    "vllm": '"method": "eagle3", "mtp", "ngram", ...',
    "sglang": "--speculative-algorithm EAGLE3, NGRAM, ...",
}

WEIGHT_WORDS: Mapping[tuple[str, str], list[str]] = {
    ("vllm", "fp8"): ["--quantization", "fp8"],
    ("sglang", "fp8"): ["--quantization", "fp8"],
    ("vllm", "fp32"): ["--dtype", "float32"],
    ("sglang", "fp32"): ["--dtype", "float32"],
}
"""What makes these weights of a checkpoint in 16 or 32 bits. float32 must be said: --dtype auto serves 16 bits."""
CACHE_WORDS: Mapping[tuple[str, str], list[str]] = {
    ("vllm", "fp8"): ["--kv-cache-dtype", "fp8"],
    ("sglang", "fp8"): ["--kv-cache-dtype", "fp8_e4m3"],
    ("sglang", "fp4"): ["--kv-cache-dtype", "fp4_e2m1"],
    ("trtllm", "fp8"): ["--kv_cache_dtype", "fp8"],
    ("trtllm", "fp4"): ["--kv_cache_dtype", "nvfp4"],
}
WEIGHT_COMMENTS = {
    "fp8": "needs a checkpoint already in fp8 (by NVIDIA's Model Optimizer, ...)",
    "fp4": "needs a checkpoint already in fp4 (NVFP4, by NVIDIA's Model Optimizer, ...)",
    "int8": "needs a checkpoint already in int8 (GPTQ, compressed-tensors, ...)",
    "int4": "needs a checkpoint already in int4 (AWQ, GPTQ, ...)",
    "fp32": "in float32 only with dtype: float32 in the file of --extra_llm_api_options",
}
"""Comments on weights that no flag makes."""


def _precision_words(engine: str, model: ModelSpec) -> list[str]:
    """Flags for weights and cache. None for the weights of a quantised checkpoint: engines read its configuration, and
    vLLM refuses a method of another name ("... does not match the quantization method specified ...")."""
    weights = [] if model.quant_method else WEIGHT_WORDS.get((engine, model.weight_precision), [])
    return weights + CACHE_WORDS.get((engine, model.kv_precision), [])


def _needs(engine: str, model: ModelSpec, gpu: Gpu, workload: Workload) -> list[str]:
    """Comments on what no flag can say."""
    weights, cache, made = model.weight_precision, model.kv_precision, []
    if weights == "fp4" and gpu.is_amd and not model.quant_method:
        made.append("# needs a checkpoint already in fp4 (MXFP4, by AMD's Quark)")
    elif weights in WEIGHT_COMMENTS and not model.quant_method and (engine, weights) not in WEIGHT_WORDS:
        made.append(f"# {WEIGHT_COMMENTS[weights]}")
    if (engine, cache) not in CACHE_WORDS and ITEMSIZE[cache] != model.activation_itemsize:
        made.append(f"# no flag makes a cache in {cache}: {_NAMES[engine]} keeps it in {model.activation_precision}")
    if engine == "trtllm" and (engine, cache) in CACHE_WORDS:
        made.append("# --kv_cache_dtype: TensorRT-LLM 1.3 on; before, kv_cache_config in --extra_llm_api_options")
    if engine == "trtllm" and not workload.engine.cuda_graphs:
        made.append("# without CUDA graphs: cuda_graph_config: null in the file of --extra_llm_api_options")
    if engine == "trtllm" and workload.engine.all_reduce == "nccl":
        made.append("# NCCL's all-reduce: allreduce_strategy: NCCL in the file of --extra_llm_api_options")
    return made + _policy_comments(engine, workload)


def _policy_comments(engine: str, workload: Workload) -> list[str]:
    """Comments on schedulers that the engine lacks, and on the draft model that must be named."""
    e, made = workload.engine, []
    if engine == "trtllm" and e.prefill_policy == "static":
        made.append(
            "# static batches: scheduler_config: {capacity_scheduler_policy: STATIC_BATCH} in the file of "
            "--extra_llm_api_options"
        )
    elif e.prefill_policy not in ("auto", *_POLICIES[engine]):
        made.append(f"# {_NAMES[engine]} has no scheduler that is {e.prefill_policy}: it runs prompts its own way")
    if e.speculative_tokens and engine == "trtllm":
        made.append(
            f"# speculative_config: {{decoding_type: DraftTarget, max_draft_len: {e.speculative_tokens}, "
            f"speculative_model_dir: {_DRAFT}}} in the file of --extra_llm_api_options; {_DRAFT}: name the draft model"
        )
    elif e.speculative_tokens:
        made.append(f"# {_DRAFT}: name the draft model's checkpoint; other ways to guess: {_GUESSES[engine]}")
    return made


def _node_words(engine: str, nodes: int, rank: int, replica: int) -> list[str]:
    """Replicas may share a head node: each has a port of its own to meet at."""
    port = str(_MEETING_PORT + replica)
    words = ["--nnodes", str(nodes), "--node-rank", str(rank)]
    if engine == "sglang":
        return [*words, "--dist-init-addr", f'"$HEAD":{port}']
    return [*words, "--master-addr", '"$HEAD"', "--master-port", port, *(["--headless"] if rank else [])]


def _length(workload: Workload) -> int:
    return workload.context_length


def _sequences(engine: str, workload: Workload, layout: Layout, gpu: Gpu) -> int:
    """The largest batch that was asked for, else a replica's share of the requests, and no more than the engine takes
    by default, since it reserves memory for each. vLLM refuses to start with more than a step's tokens."""
    e, constants = workload.engine, DEFAULT.engines[engine]
    most = e.max_num_seqs or constants.largest_batch(gpu) * (layout.pp if constants.batch_per_stage else 1)
    most = min(most, e.chunked_prefill or most) if engine == "vllm" else most
    if e.max_num_seqs or workload.concurrency is None:
        return most
    return min(most, math.ceil(workload.concurrency / layout.replicas))
